"""What is compared with FlagEmbedding: texts, pairs, and each model with both sides' arguments.

To add a model: its seeded checkpoint in `tests/checkpoints.py`, one `Case` here, then `make reference-check WRITE=1`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BY_LABEL", "CASES", "M3_LENGTH", "M3_PAIR_LENGTH", "PAIRS", "TEXTS", "WEIGHTS", "Case", "request_of"]

WORDS = (
    "The heart pumps blood through the body and aspirin thins the blood while a giant panda eats bamboo in the garden "
    "Paris is the capital of France and machine learning models map similar texts to a vector slow fast old new"
).split()
SENTENCE = "The heart pumps blood through the body, and aspirin thins the blood."


def words(count: int) -> str:
    """Return a text of `count` words, the same on every machine."""
    dice = random.Random(count)
    return " ".join(WORDS[int(dice.random() * len(WORDS))] for _ in range(count))


TEXTS = (
    "panda",
    "",
    "?! ... ,; ( )",
    "blood blood Blood blood heart blood blood",
    "What is a panda?",
    SENTENCE,
    "大熊猫是中国特有的熊类动物：主要以竹子为食。",
    "zymurgy, quixotry & 42 \N{SNOWMAN}",
    "The giant panda</s> is a bear species. 大熊猫",
    words(40),
    words(200),
    words(600),
)
QUERIES = ("What is a panda?", "blood blood heart", "大熊猫吃竹子", "panda", words(30))
PAIRS = (
    *((QUERIES[0], text) for text in TEXTS),
    *((QUERIES[1], TEXTS[index]) for index in (3, 5, 10, 11)),
    *((QUERIES[2], TEXTS[index]) for index in (6, 8)),
    (QUERIES[3], TEXTS[0]),
    ("", TEXTS[5]),
    *((QUERIES[4], TEXTS[index]) for index in (1, 9, 10)),
    (TEXTS[11], TEXTS[5]),
    (TEXTS[11], TEXTS[11]),
)
# Of the dense, the sparse and the multi-vector score: the model card's, and FlagEmbedding's default, which is 1, 1, 1.
WEIGHTS = {"card": (0.4, 0.2, 0.4), "default": None}
# Texts are read whole, those of pairs are cut: both are compared.
M3_LENGTH, M3_PAIR_LENGTH = 8192, 128

# From the model cards, not from our own table.
ENGLISH = "Represent this sentence for searching relevant passages: "
CHINESE = "为这个句子生成表示以用于检索相关文章："
LLM_EMBEDDER = {
    "query_instruction_for_retrieval": "Represent this query for retrieving relevant documents: ",
    "passage_instruction_for_retrieval": "Represent this document for retrieval: ",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model on both sides.

    Attributes:
        model: Hub id; a seeded checkpoint of it is in `tests/checkpoints.py`.
        kind: `m3`: three outputs and five scores; `embedder`: queries and documents; `reranker`: raw scores.
        theirs: Class of FlagEmbedding.
        their_options: Arguments of its constructor, beside float32 on the processor.
        our_options: Arguments of `Embedder` or `Reranker`.
        variant: Tells cases of one model apart.
    """

    model: str
    kind: Literal["m3", "embedder", "reranker"]
    theirs: str
    their_options: Mapping[str, Any] = field(default_factory=dict)
    our_options: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def label(self) -> str:
        """Short name, also of the file with the extract."""
        return self.model.partition("/")[2] + (f"-{self.variant}" if self.variant else "")


CASES = (
    Case(model="BAAI/bge-m3", kind="m3", theirs="BGEM3FlagModel"),
    Case(
        model="BAAI/bge-small-en-v1.5",
        kind="embedder",
        theirs="FlagModel",
        their_options={"query_instruction_for_retrieval": ENGLISH},
    ),
    Case(
        model="BAAI/bge-small-zh-v1.5",
        kind="embedder",
        theirs="FlagModel",
        their_options={"query_instruction_for_retrieval": CHINESE},
    ),
    Case(model="BAAI/llm-embedder", kind="embedder", theirs="FlagModel", their_options=LLM_EMBEDDER),
    Case(model="BAAI/bge-reranker-base", kind="reranker", theirs="FlagReranker"),
    Case(
        model="BAAI/bge-reranker-v2-m3",
        kind="reranker",
        theirs="FlagReranker",
        their_options={"max_length": 1024},
        our_options={"max_length": 1024},
    ),
)
BY_LABEL = {case.label: case for case in CASES}


def request_of(case: Case, folder: str = "") -> dict[str, Any]:
    """Return what `compute.py` is asked for one case; `digest` names the question, wherever the folder is."""
    question = {
        "kind": case.kind,
        "class": case.theirs,
        "options": dict(case.their_options),
        "texts": list(TEXTS),
        "pairs": [list(pair) for pair in PAIRS],
        "weights": {name: weights and list(weights) for name, weights in WEIGHTS.items()},
        "text_length": M3_LENGTH,
        "pair_length": M3_PAIR_LENGTH,
    }
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return {**question, "label": case.label, "folder": folder, "digest": digest}
