"""Training pairs from the documents of an index, by a language model of either framework."""

from __future__ import annotations

import json

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.schema import NodeWithScore, TextNode

from bge_runtime import ConfigurationError, InputError
from bge_runtime.training.examples import TrainingData
from bge_runtime.training.generating import PROMPT, generate_pairs

HEART = "The heart is the organ that pumps blood through all of the body."
PARIS = "Paris is the capital of France, and its largest city by far, too."
BREAD = "Bread is made of flour, water, salt and yeast, and it is baked hot."
TEXTS = [HEART, PARIS, BREAD]


class Asker(CustomLLM):
    """A language model of LlamaIndex that asks about the first word of a passage."""

    @property
    def metadata(self):
        return LLMMetadata()

    def complete(self, prompt, formatted=False, **options):
        return CompletionResponse(text=f"1. What is {prompt.split('document:')[1].split()[0]}?")

    def stream_complete(self, prompt, formatted=False, **options):
        raise NotImplementedError


def pairs(data):
    return [(each.query, *each.positives) for each in data.examples]


def first_words(prompt):
    return f"What of {' '.join(prompt.split('document:')[1].split()[:2])}?"


def test_documents_of_langchain_and_a_chat_model():
    documents = [Document(HEART, id="a"), Document("Too short."), Document(PARIS)]
    asked = GenericFakeChatModel(messages=iter([AIMessage("What pumps\n blood?"), AIMessage('"Which capital?"')]))
    made = generate_pairs(documents, asked)
    assert pairs(made) == [("What pumps blood?", HEART), ("Which capital?", PARIS)]
    assert [each.where for each in made.examples] == ["document a", "document d3"]
    assert made.documents == {"a": HEART, "d2": "Too short.", "d3": PARIS}  # `mine` searches the short one too
    assert "1 documents below 40 characters, left out" in made.notes
    assert "without a reader" in made.notes[0]


def test_nodes_of_llamaindex_and_its_models():
    nodes = [TextNode(text=HEART, id_="n1"), NodeWithScore(node=TextNode(text=PARIS, id_="n2"), score=0.5)]
    made = generate_pairs(iter(nodes), Asker())
    assert pairs(made) == [("What is The?", HEART), ("What is Paris?", PARIS)]
    assert list(made.documents) == ["n1", "n2"]
    assert len(generate_pairs(nodes[:1], MockLLM(max_tokens=5)).examples) == 1


def test_texts_and_a_function_with_some_documents_picked():
    made = generate_pairs([*TEXTS, HEART], first_words)
    assert pairs(made) == [("What of The heart?", HEART), ("What of Paris is?", PARIS), ("What of Bread is?", BREAD)]
    some = generate_pairs(TEXTS, first_words, limit=2, seed=1)
    assert len(some.examples) == 2
    assert pairs(some) == pairs(generate_pairs(TEXTS, first_words, limit=2, seed=1))
    assert {pairs(generate_pairs(TEXTS, first_words, limit=1, seed=seed))[0] for seed in range(9)} == set(pairs(made))
    assert len(some.documents) == 3
    assert pairs(generate_pairs(TEXTS, first_words, limit=9)) == pairs(made)


@pytest.mark.parametrize(
    ("answer", "questions"),
    [
        (
            "Here are three questions:\n\n1. What beats?\n2) Who bleeds?\n(3) Why?",
            ["What beats?", "Who bleeds?", "Why?"],
        ),
        ('- "What beats?"\n* “Who bleeds?”\n', ["What beats?", "Who bleeds?"]),
        ("Q1: What beats?\nQuestion 2: Who bleeds?\n**3. Why?**\n4. One more?", ["What beats?", "Who bleeds?", "Why?"]),
        ("What beats?\nwhat  beats?\n", ["What beats?"]),
        ("3D hearts, do they beat?\n1.5 litres of what?", ["3D hearts, do they beat?", "1.5 litres of what?"]),
    ],
)
def test_several_questions_without_what_models_put_around_them(answer, questions):
    asked = []
    made = generate_pairs([HEART], lambda prompt: asked.append(prompt) or answer, per_document=3)
    assert [each.query for each in made.examples] == questions
    assert "Number of questions: 3." in asked[0]
    assert HEART in asked[0]


def test_answers_that_are_empty_or_repeat_are_left_out():
    answers = iter(["What is it?", " \n", "what is IT?"])
    made = generate_pairs(TEXTS, lambda _: next(answers))
    assert pairs(made) == [("What is it?", HEART)]
    assert made.notes[1:] == ("1 documents that the model wrote no question for", "1 questions that repeat, left out")


def test_a_prompt_of_ones_own_and_a_passage_that_looks_like_one():
    asked = []
    passage = f"{HEART} It has {{count}} and {{passage}} in it."
    generate_pairs([passage], lambda prompt: asked.append(prompt) or "What?", prompt="Ask {count} of: {passage}")
    assert asked == [f"Ask 1 of: {passage}"]
    assert "{count}" in PROMPT


def test_what_is_made_is_written_as_flagembedding_has_it(tmp_path):
    made = generate_pairs(TEXTS, FakeListChatModel(responses=["One?", "Two?", "Three?"]))
    made.write(tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows[0] == {"query": "One?", "pos": [HEART], "neg": []}
    assert pairs(TrainingData.read(tmp_path / "pairs.jsonl")) == pairs(made)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "no document with a text"),
        (["", " "], "no document with a text"),
        (HEART, "documents is str 'The heart"),
        ({"a": HEART}, "documents is dict"),
        (5, "documents is int 5"),
        ([HEART, 5], r"documents\[1\] is int 5, without a text"),
        ([Document(HEART, id="a"), Document(PARIS, id="a")], "has the id 'a' a second time"),
        (["Too short.", "This as well."], "None of 2 documents has 40 characters"),
    ],
)
def test_documents_that_cannot_be_asked_about(documents, message):
    with pytest.raises(InputError, match=message):
        generate_pairs(documents, first_words)


def test_options_and_models_that_are_refused():
    with pytest.raises(ConfigurationError, match="has no place for the passage"):
        generate_pairs(TEXTS, first_words, prompt="Ask me something.")
    for name, value in (("per_document", 0), ("per_document", True), ("limit", 0), ("limit", 1.5)):
        with pytest.raises(ConfigurationError, match=f"{name}={value!r} is not allowed"):
            generate_pairs(TEXTS, first_words, **{name: value})
    with pytest.raises(ConfigurationError, match="writes no questions"):
        generate_pairs(TEXTS, 5)
    with pytest.raises(InputError, match="answered none of 3 documents"):
        generate_pairs(TEXTS, lambda _: "")


def test_progress_is_shown_where_it_is_wanted(capsys):
    generate_pairs(TEXTS, first_words)
    assert capsys.readouterr().err == ""
    generate_pairs(TEXTS, first_words, show_progress=True)
    assert "questions: 100%" in capsys.readouterr().err
