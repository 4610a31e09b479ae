"""What is compared with FlagEmbedding: texts, pairs, and each model with both sides' arguments.

To add a model: its seeded checkpoint in `tests/checkpoints`, one `Case` here, then `make reference-check WRITE=1`.
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

# Where a model's own limit is higher, so that long texts and pairs are cut on both sides.
CUT = {"max_length": 512}
CUT_TEXTS = {"query_max_length": 512, "passage_max_length": 512}
WHOLE_TEXTS = {"query_max_length": 4096, "passage_max_length": 4096}
# Without special tokens, see `Case.our_space`.
PLAIN = tuple(text for text in TEXTS if "</s>" not in text)
# From the model cards, not from our own table.
ENGLISH = "Represent this sentence for searching relevant passages: "
CHINESE = "为这个句子生成表示以用于检索相关文章："
LLM_EMBEDDER = {
    "query_instruction_for_retrieval": "Represent this query for retrieving relevant documents: ",
    "passage_instruction_for_retrieval": "Represent this document for retrieval: ",
}
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query."
INSTRUCT = {
    "query_instruction_for_retrieval": WEB_SEARCH,
    "query_instruction_format": "<instruct>{}\n<query>{}",
}
EXAMPLES = (
    ("Given a web search query, retrieve relevant passages.", "what is a panda", "A panda is a bear."),
    ("Given a question in text, retrieve SQL queries.", "how many pandas", "SELECT COUNT(*) FROM pandas"),
)
SHOWN = [{"instruct": task, "query": query, "response": response} for task, query, response in EXAMPLES]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model on both sides.

    Attributes:
        model: Hub id; a seeded checkpoint of it is in `tests/checkpoints`.
        kind: `m3`: three outputs and five scores; `embedder`: queries and documents; `reranker`: raw scores.
        theirs: Class of FlagEmbedding.
        their_options: Arguments of its constructor, beside float32 on the processor.
        our_options: Arguments of `Embedder` or `Reranker`.
        our_space: Whether queries get a space in front on our side. FlagICLModel encodes each query, decodes it and
            encodes it again, which puts a space behind `<instruct>` and `<query>`; neither sentence-transformers
            nor this project does.
        texts: What is embedded.
        variant: Tells cases of one model apart.
    """

    model: str
    kind: Literal["m3", "embedder", "reranker"]
    theirs: str
    their_options: Mapping[str, Any] = field(default_factory=dict)
    our_options: Mapping[str, Any] = field(default_factory=dict)
    our_space: bool = False
    texts: tuple[str, ...] = TEXTS
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
    Case(
        model="BAAI/bge-multilingual-gemma2",
        kind="embedder",
        theirs="FlagLLMModel",
        their_options={**INSTRUCT, **CUT_TEXTS},
        our_options=CUT,
    ),
    Case(
        model="BAAI/bge-en-icl",
        kind="embedder",
        theirs="FlagICLModel",
        their_options={**INSTRUCT, **WHOLE_TEXTS},
        our_options={"query_instruction": f" {WEB_SEARCH}"},
        our_space=True,
        texts=PLAIN,
    ),
    Case(
        model="BAAI/bge-en-icl",
        kind="embedder",
        theirs="FlagICLModel",
        their_options={**INSTRUCT, **WHOLE_TEXTS, "examples_for_task": SHOWN},
        our_options={"query_instruction": f" {WEB_SEARCH}", "examples": SHOWN},
        our_space=True,
        texts=PLAIN,
        variant="examples",
    ),
    Case(model="BAAI/bge-reranker-v2-gemma", kind="reranker", theirs="FlagLLMReranker", our_options=CUT),
    Case(
        model="BAAI/bge-reranker-v2-minicpm-layerwise",
        kind="reranker",
        theirs="LayerWiseFlagLLMReranker",
        their_options={"cutoff_layers": [28]},
        our_options={**CUT, "cutoff_layers": 28},
    ),
    Case(
        model="BAAI/bge-reranker-v2.5-gemma2-lightweight",
        kind="reranker",
        theirs="LightWeightFlagLLMReranker",
        their_options={"cutoff_layers": [28]},
        our_options={**CUT, "cutoff_layers": 28},
    ),
    Case(
        model="BAAI/bge-reranker-v2.5-gemma2-lightweight",
        kind="reranker",
        theirs="LightWeightFlagLLMReranker",
        their_options={"cutoff_layers": [40], "compress_ratio": 2, "compress_layers": [24, 40], "batch_size": 1},
        our_options={**CUT, "cutoff_layers": 40, "compress_ratio": 2, "compress_layers": [24, 40]},
        variant="compressed",
    ),
)
BY_LABEL = {case.label: case for case in CASES}


def request_of(case: Case, folder: str = "") -> dict[str, Any]:
    """Return what `compute.py` is asked for one case; `digest` names the question, wherever the folder is."""
    question = {
        "kind": case.kind,
        "class": case.theirs,
        "options": dict(case.their_options),
        "texts": list(case.texts),
        "pairs": [list(pair) for pair in PAIRS],
        "weights": {name: weights and list(weights) for name, weights in WEIGHTS.items()},
        "text_length": M3_LENGTH,
        "pair_length": M3_PAIR_LENGTH,
    }
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return {**question, "label": case.label, "folder": folder, "digest": digest}
