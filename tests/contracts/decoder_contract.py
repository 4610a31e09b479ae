"""What decoder embedders, in-context examples and named tasks give in the runtime and in both adapters."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import bge_runtime
from tests.contracts.samples import array
from tests.runtime import references

ICL = "BAAI/bge-en-icl"
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query."
INSTRUCT = f"<instruct>{WEB_SEARCH}\n<query>"
# What the authors put around a query.
AROUND = {
    "BAAI/bge-multilingual-gemma2": (INSTRUCT, ""),
    ICL: (INSTRUCT, "\n<response>"),
    "BAAI/bge-code-v1": (INSTRUCT, ""),
    "BAAI/bge-reasoner-embed-qwen3-8b-0923": (f"Instruct: {WEB_SEARCH}\nQuery: ", ""),
}
TEXTS = ["what is panda?", "x", "panda bear: 大熊猫：the opinions of bear " * 6]
EXAMPLES = [
    {"instruct": "Given a question in text, retrieve SQL queries.", "query": "what {query}?", "response": "a\nb"},
    {"query": "bear {response}", "response": "panda {query} {text}"},
]
RENDERED = (
    "<instruct>Given a question in text, retrieve SQL queries.\n<query>what {query}?\n<response>a\nb\n\n"
    f"{INSTRUCT}bear {{response}}\n<response>panda {{query}} {{text}}\n\n"
)
BAD_EXAMPLES = {
    "a text": "what is panda?",
    "one example": EXAMPLES[1],
    "no list": 3,
    "no dictionary": ["what is panda?"],
    "no response": [{"query": "bear"}],
    "another key": [{**EXAMPLES[1], "answer": "panda"}],
    "a number": [{"query": "bear", "response": 3}],
}


class DecoderContract:
    """Subclasses give the fixture `adapter`, an `EmbedderAdapter`."""

    @pytest.mark.parametrize("model", AROUND, ids=lambda model: model.rsplit("/")[-1])
    def test_queries_are_formatted_and_documents_are_bare(self, adapter, hub_cache: Path, model: str):
        subject, folder = adapter.make(model=model), references.snapshot_of(hub_cache, model)
        head, tail = AROUND[model]
        expected = [references.last_token_vector(folder, head + text + tail) for text in TEXTS]
        np.testing.assert_allclose(subject.embed_queries(TEXTS), expected, atol=1e-4)
        expected = [references.last_token_vector(folder, text) for text in TEXTS]
        np.testing.assert_allclose(subject.embed_documents(TEXTS), expected, atol=1e-4)

    def test_the_task_is_the_callers(self, adapter, hub_cache: Path):
        task = "Given a question in text, retrieve SQL queries that are appropriate responses to the question."
        subject = adapter.make(model="BAAI/bge-code-v1", query_instruction=task)
        folder = references.snapshot_of(hub_cache, "BAAI/bge-code-v1")
        expected = references.last_token_vector(folder, f"<instruct>{task}\n<query>{TEXTS[0]}")
        np.testing.assert_allclose(subject.embed_queries(TEXTS[:1])[0], expected, atol=1e-4)

    @pytest.mark.parametrize("task", bge_runtime.get_spec("BAAI/llm-embedder").tasks)
    def test_llm_embedder_has_six_tasks(self, adapter, hub_cache: Path, task: str):
        subject = adapter.make(model="BAAI/llm-embedder", task=task)
        folder = references.snapshot_of(hub_cache, "BAAI/llm-embedder")
        query, document = bge_runtime.get_spec("BAAI/llm-embedder").tasks[task]
        expected = references.vector(folder, query + TEXTS[0], max_length=512)
        np.testing.assert_allclose(subject.embed_queries(TEXTS[:1])[0], expected, atol=1e-4)
        expected = references.vector(folder, document + TEXTS[0], max_length=512)
        np.testing.assert_allclose(subject.embed_documents(TEXTS[:1])[0], expected, atol=1e-4)

    def test_bge_m3_unsupervised_reads_bare_texts(self, adapter, hub_cache: Path):
        subject = adapter.make(model="BAAI/bge-m3-unsupervised")
        folder = references.snapshot_of(hub_cache, "BAAI/bge-m3-unsupervised")
        expected = [references.vector(folder, text, max_length=8192) for text in TEXTS]
        np.testing.assert_allclose(subject.embed_queries(TEXTS), expected, atol=1e-4)
        np.testing.assert_allclose(subject.embed_documents(TEXTS), expected, atol=1e-4)

    def test_examples_stand_before_queries_and_not_before_documents(self, adapter, hub_cache: Path):
        subject, folder = adapter.make(model=ICL, examples=EXAMPLES), references.snapshot_of(hub_cache, ICL)
        expected = [references.icl_vector(folder, INSTRUCT + text, RENDERED, max_length=4096) for text in TEXTS]
        np.testing.assert_allclose(subject.embed_queries(TEXTS), expected, atol=1e-4)
        expected = [references.last_token_vector(folder, text) for text in TEXTS]
        np.testing.assert_allclose(subject.embed_documents(TEXTS), expected, atol=1e-4)

    def test_examples_are_part_of_the_query_side_of_the_identity_only(self, adapter, hub_cache: Path):
        plain = adapter.make(model=ICL)
        with_examples = adapter.make(model=ICL, examples=EXAMPLES)
        fewer = adapter.make(model=ICL, examples=EXAMPLES[:1])
        assert len({each.identity() for each in (plain, with_examples, fewer)}) == 3
        assert adapter.make(model=ICL, examples=[]).identity() == plain.identity()
        twin = pickle.loads(pickle.dumps(with_examples.subject))
        assert adapter(twin).identity() == with_examples.identity()

    def test_examples_are_copied(self, adapter, hub_cache: Path):
        given = [dict(example) for example in EXAMPLES]
        subject = adapter.make(model=ICL, examples=given)
        before = subject.identity()
        given[0]["query"] = "bear"
        del given[1]
        assert subject.identity() == before

    @pytest.mark.parametrize("examples", BAD_EXAMPLES.values(), ids=BAD_EXAMPLES)
    def test_what_is_no_example_is_refused_at_construction(self, adapter, examples: object):
        with pytest.raises(bge_runtime.ConfigurationError, match="examples"):
            adapter.make(model=ICL, examples=examples)

    def test_models_that_take_no_examples_refuse_them(self, adapter):
        with pytest.raises(bge_runtime.ConfigurationError, match="bge-en-icl"):
            adapter.make(model="BAAI/bge-code-v1", examples=EXAMPLES)

    def test_loading_arguments_reach_the_source(self, adapter):
        given = {"device_map": "auto", "quantization_config": {"load_in_8bit": True}, "attn_implementation": "eager"}
        subject = adapter.make(model=ICL, model_kwargs=given).subject
        source = subject.source if isinstance(subject, bge_runtime.Embedder) else subject.embedder.source
        assert source.model_kwargs == given

    def test_a_cut_query_keeps_its_suffix(self, adapter, hub_cache: Path):
        folder = references.snapshot_of(hub_cache, ICL)
        subject = adapter.make(model=ICL, examples=EXAMPLES, max_length=40, truncation="silent")
        expected = references.icl_vector(folder, INSTRUCT + TEXTS[2], RENDERED, max_length=40)
        found = array(subject.embed_queries(TEXTS[2:]))[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
