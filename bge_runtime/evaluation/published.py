"""Values that the models' authors printed themselves, as data: what `bge doctor --verify` and the hub tests compute.

Sources are files of the repository FlagOpen/FlagEmbedding unless they say otherwise. Values printed from half
precision carry its error, hence the wider tolerances: the authors' own prints of one value, made with other batches,
differ by up to 8e-3 for encoders and 2.3e-2 for the LLM rerankers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["PUBLISHED", "PublishedValue", "Quantity"]

Quantity = Literal["similarity", "vector", "lexical_weights", "token_vectors", "score"]

# Similarities and weights, then logits: as printed from float32, and from float16.
SIMILARITY_32, SIMILARITY_16 = 1e-4, 2e-3
LOGIT_32, LOGIT_16, LOGIT_16_LLM = 1e-3, 2e-2, 5e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedValue:
    """Numbers of one model that its authors printed.

    Attributes:
        model: Hub id.
        title: What the numbers are, in a few words.
        quantity: What is computed: cosines of all queries with all passages, the first entries of a passage's
            vector, the lexical weights of a query's tokens and their count, the shapes of the passages' token
            vectors, or the scores of pairs.
        queries: Texts of the query side.
        passages: Texts of the passage side; for scores as many as queries.
        tokens: For lexical weights: each token and its id, in the order of the expected weights.
        options: Arguments of `Embedder` or `Reranker`.
        expected: The numbers; a matrix row by row.
        tolerance: Largest difference that passes.
        printed_in: Number format that the authors computed in. What they computed in float32 is computed in float32
            here, the rest in the format that this machine would choose.
        source: Where the numbers are printed.
    """

    model: str
    title: str
    quantity: Quantity
    queries: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()
    tokens: tuple[tuple[str, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    expected: tuple[float, ...]
    tolerance: float
    printed_in: Literal["float32", "float16"]
    source: str

    def __post_init__(self) -> None:
        """Freeze the options."""
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values, for JSON."""
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "options": dict(self.options)}


WORDS = ("query", "passage")
PANDA = "what is panda?"
GIANT_PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
    "endemic to China."
)
TIGER = (
    "The tiger (Panthera tigris) is a member of the genus Panthera and the largest living cat species native to Asia."
)
CAPITAL = ("What is the capital of France?", "What is the population of China?")
PARIS = ("Paris is the capital of France.", "The population of China is over 1.4 billion people.")
RERANKER_README = "examples/inference/reranker/README.md"
RERANKER_TUTORIAL = "Tutorials/5_Reranking/5.2_BGE_Reranker.ipynb"
LLM_EXAMPLES = "examples/inference/reranker/decoder_only"


def _scores(model: str, title: str, pairs: Mapping[tuple[str, str], float], **facts: Any) -> PublishedValue:
    queries, passages = zip(*pairs, strict=True)
    values: dict[str, Any] = {"tolerance": LOGIT_16, "printed_in": "float16", "source": RERANKER_README, **facts}
    return PublishedValue(
        model=f"BAAI/{model}",
        title=title,
        quantity="score",
        queries=queries,
        passages=passages,
        expected=tuple(pairs.values()),
        **values,
    )


def _llm_scores(
    model: str, word_pair: float, questions: tuple[float, ...], script: str, **options: Any
) -> tuple[PublishedValue, ...]:
    pairs = [(question, passage) for question in CAPITAL for passage in PARIS]
    facts: dict[str, Any] = {"options": options, "tolerance": LOGIT_16_LLM}
    return (
        _scores(model, "score", {WORDS: word_pair}, source=RERANKER_TUTORIAL, **facts),
        _scores(
            model,
            "scores of questions",
            dict(zip(pairs, questions, strict=True)),
            source=f"{LLM_EXAMPLES}/{script}_single_device.py",
            **facts,
        ),
    )


_RERANKERS = (
    _scores(
        "bge-reranker-base",
        "logits",
        {WORDS: 0.44748798, (PANDA, "hi"): -8.15439224, (PANDA, GIANT_PANDA): 6.18211174},
        tolerance=LOGIT_32,
        printed_in="float32",
        source="printed upstream; on which page is not recorded",
    ),
    _scores(
        "bge-reranker-large",
        "logits",
        {WORDS: -1.52636719, (PANDA, "hi"): -5.60546875, (PANDA, GIANT_PANDA): 5.76171875},
    ),
    _scores(
        "bge-reranker-large",
        "logits in float32",
        {(PANDA, "Today is a sunny day"): -9.474676, (PANDA, TIGER): -2.823843, (PANDA, GIANT_PANDA): 5.762268},
        tolerance=LOGIT_32,
        printed_in="float32",
        source="Tutorials/5_Reranking/5.1_Intro.ipynb",
    ),
    # A sigmoid's tolerance is that of the logit times its slope.
    _scores("bge-reranker-large", "sigmoid", {WORDS: 0.1785258}, options={"normalize": True}, tolerance=3e-3),
    _scores(
        "bge-reranker-large",
        "sigmoids of the panda pairs",
        {(PANDA, "hi"): 0.0036642203, (PANDA, GIANT_PANDA): 0.9968641641},
        options={"normalize": True},
        tolerance=1e-4,
    ),
    _scores(
        "bge-reranker-v2-m3",
        "logits",
        {WORDS: -5.65234375, (PANDA, "hi"): -8.1875, (PANDA, GIANT_PANDA): 5.26171875},
    ),
    _scores(
        "bge-reranker-v2-m3",
        "sigmoids",
        {WORDS: 0.0034970103, (PANDA, "hi"): 0.000278031, (PANDA, GIANT_PANDA): 0.9948403768},
        options={"normalize": True},
        tolerance=2e-4,
    ),
    *_llm_scores("bge-reranker-v2-gemma", 1.974609375, (9.171875, -4.49609375, -5.5234375, 10.2109375), "base"),
    *_llm_scores(
        "bge-reranker-v2-minicpm-layerwise",
        -7.06640625,
        (1.939453125, -12.71875, -11.78125, 2.189453125),
        "layerwise",
        cutoff_layers=28,
    ),
    *_llm_scores(
        "bge-reranker-v2.5-gemma2-lightweight",
        14.734375,
        (25.375, 8.734375, 9.8359375, 26.15625),
        "lightweight",
        cutoff_layers=28,
        compress_ratio=2,
        compress_layers=[24, 40],
    ),
)

M3_QUERIES = ("What is BGE M3?", "Defination of BM25")
M3_PASSAGES = (
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing in "
    "each document",
)
M3_TUTORIAL = "Tutorials/1_Embedding/1.2.4_BGE-M3.ipynb"
SERIES_TUTORIAL = "Tutorials/1_Embedding/1.2.1_BGE_Series.ipynb"


def _embedding(model: str, title: str, quantity: Quantity, expected: tuple[float, ...], **facts: Any) -> PublishedValue:
    values: dict[str, Any] = {"tolerance": SIMILARITY_32, "printed_in": "float32", "source": M3_TUTORIAL, **facts}
    return PublishedValue(model=f"BAAI/{model}", title=title, quantity=quantity, expected=expected, **values)


def _m3_scores(title: str, expected: tuple[float, ...], **options: Any) -> PublishedValue:
    pairs = [(query, passage) for query in M3_QUERIES for passage in M3_PASSAGES]
    scores = dict(zip(pairs, expected, strict=True))
    source = "research/BGE_M3/README.md"
    return _scores("bge-m3", title, scores, options=options, tolerance=SIMILARITY_16, source=source)


_M3 = (
    _embedding(
        "bge-m3",
        "dense similarity",
        "similarity",
        (0.6259035, 0.34749585, 0.349868, 0.6782462),
        queries=M3_QUERIES,
        passages=M3_PASSAGES,
    ),
    _embedding(
        "bge-m3",
        "lexical weights",
        "lexical_weights",
        (0.08362077, 0.081469566, 0.12964639, 0.25186998, 0.17001738, 0.26957875, 0.040755156, 7),
        queries=M3_QUERIES[:1],
        tokens=(("What", 4865), ("is", 83), ("B", 335), ("GE", 11679), ("M", 276), ("3", 363), ("?", 32)),
        source=f"{M3_TUTORIAL}; ids: {SERIES_TUTORIAL}",
    ),
    _embedding(
        "bge-m3",
        "shape of token vectors",
        "token_vectors",
        (8, 1024, 30, 1024),
        passages=(M3_QUERIES[0], M3_PASSAGES[0]),
        tolerance=0.0,
    ),
    _m3_scores("multi-vector scores", (0.77964997, 0.46214658, 0.45237947, 0.78985751), mode="multi_vector"),
    _m3_scores("sparse scores", (0.19555664, 0.00879669, 0.0, 0.18029785), mode="sparse"),
    _m3_scores(
        "scores of dense and sparse",
        (0.48250321, 0.23454030, 0.23323567, 0.51224774),
        mode="hybrid",
        weights=(0.4, 0.2, 0.0),
    ),
    _m3_scores(
        "scores of all three",
        (0.60136193, 0.32558280, 0.32089320, 0.62329161),
        mode="hybrid",
        weights=(0.4, 0.2, 0.4),
    ),
)

NUMBERED: dict[str, Any] = {
    "queries": ("query 1", "query 2"),
    "passages": ("passage 1", "passage 2"),
    "source": SERIES_TUTORIAL,
}
NLP = ("embedding", "I love machine learning and nlp")
NLP_TUTORIAL = "Tutorials/1_Embedding/1.2.3_BGE_v1&1.5.ipynb"
PROTEIN = (
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. "
    "But, as you can see from this chart, you'll need to increase that if you're expecting or training for a "
    "marathon. Check out the chart below to see how much protein you should be eating each day."
)
SUMMIT = (
    "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain. "
    ": 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more governments."
)
HALF: dict[str, Any] = {"tolerance": SIMILARITY_16, "printed_in": "float16"}
EMBEDDER_EXAMPLES = "examples/inference/embedder"

_EMBEDDERS = (
    _embedding(
        "bge-small-en-v1.5",
        "similarity",
        "similarity",
        (0.7944, 0.4492, 0.58, 0.801),
        queries=CAPITAL,
        passages=PARIS,
        source=f"{EMBEDDER_EXAMPLES}/encoder_only/base_single_device.py",
        **HALF,
    ),
    _embedding("bge-base-en", "similarity", "similarity", (0.84864, 0.7946737, 0.760097, 0.85449743), **NUMBERED),
    _embedding("bge-base-en-v1.5", "similarity", "similarity", (0.76, 0.6714, 0.6177, 0.7603), **HALF, **NUMBERED),
    _embedding(
        "bge-base-en-v1.5",
        "similarity, no instruction",
        "similarity",
        (0.6077381,),
        queries=NLP[:1],
        passages=NLP[1:],
        options={"query_instruction": ""},
        source=NLP_TUTORIAL,
    ),
    _embedding(
        "bge-base-en-v1.5",
        "first dimensions",
        "vector",
        (0.014549762, -0.0096840411, 0.0037761475),
        passages=NLP[:1],
        tolerance=1e-5,
        source=NLP_TUTORIAL,
    ),
    _embedding(
        "llm-embedder",
        "similarity, task qa",
        "similarity",
        (0.8971, 0.8534, 0.8462, 0.9091),
        queries=("test query 1", "test query 2"),
        passages=("test key 1", "test key 2"),
        options={"task": "qa"},
        tolerance=2e-4,  # four decimals are printed
        source="research/llm_embedder/README.md",
    ),
    _embedding(
        "bge-multilingual-gemma2",
        "similarity",
        "similarity",
        (0.558, 0.0212, 0.01651, 0.526),
        queries=("how much protein should a female eat", "summit define"),
        passages=(PROTEIN, SUMMIT),
        options={"query_instruction": "Given a question, retrieve passages that answer the question."},
        source=f"{EMBEDDER_EXAMPLES}/decoder_only/base_single_device.py",
        **HALF,
    ),
)

PUBLISHED: tuple[PublishedValue, ...] = (*_EMBEDDERS, *_M3, *_RERANKERS)
