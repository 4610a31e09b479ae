"""Questions made from documents: by their headings, definitions and links, or by a language model."""

from __future__ import annotations

import posixpath
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt

from bge_runtime import ConfigurationError, InputError
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.sources import WEAK, Passage, read_folder
from bge_runtime.search.documents import find_files
from bge_runtime.search.sections import Section

__all__ = ["LEAST_CHARACTERS", "asking", "make_questions", "write_questions"]

# Words of a heading or link that can be a question, and characters of a passage that can answer one.
WORDS = (2, 16)
LEAST_CHARACTERS = 40
QUOTE_CHARACTERS = 400
# "A cross-encoder is ...", "The identity of an index means ...": the subject of a first sentence.
_DEFINITION = re.compile(
    r"^(?:An?|The)?\s*([A-Z`\w][^.,:;()'\n]{2,60}?)\s+(?:is|are|means)\s+(?:an?|the)\s+\w", re.UNICODE
)
_WORD = re.compile(r"\w+")
PROMPT = (
    "Here is a passage of a document:\n\n{passage}\n\nWrite one question that this passage answers and that a person "
    "would ask who has not read it. Answer with the question alone."
)


def make_questions(folder: Path, *, limit: int | None = None, seed: int = 0) -> Judgements:
    """Make questions from a folder's headings, definitions and the words of its links, without a language model.

    They are weak: their words stand in the documents that answer them, so that every figure is higher than with what
    users ask. What they can do is compare ways of retrieving.

    Args:
        folder: Documents, as `bge search` reads them.
        limit: Most questions, picked at random.
        seed: Of the picking.

    Raises:
        ConfigurationError: The folder holds no documents.
        InputError: Nothing in it makes a question.
    """
    found: dict[str, Passage] = {}
    documents = {}
    ambiguous = set()
    made: list[tuple[str, Passage]] = []
    for name, text, sections in read_folder(folder):
        documents[name] = text
        made += _questions(name, sections)
    made += _links(folder, documents)
    for question, passage in made:
        if question in found and found[question] != passage:
            ambiguous.add(question)
        found.setdefault(question, passage)
    kept = [(question, passage) for question, passage in found.items() if question not in ambiguous]
    if limit is not None and limit < len(kept):
        kept = random.Random(seed).sample(kept, limit)
    if not kept:
        raise InputError(f"Nothing in {str(folder)!r} makes a question: it has no headings, definitions or links.")
    return _judgements(folder, kept, documents)


def write_questions(folder: Path, model: Any, *, limit: int = 100, seed: int = 0, prompt: str = PROMPT) -> Judgements:
    """Let a language model write a question for each of some passages.

    Args:
        folder: Documents, as `bge search` reads them.
        model: A LangChain chat model or LLM (it has `invoke`), a LlamaIndex LLM (it has `complete`), or a function of
            a prompt.
        limit: How many passages, picked at random.
        seed: Of the picking.
        prompt: What the model is asked; `{passage}` stands in it.

    Raises:
        ConfigurationError: The model is none of these, or the prompt has no place for the passage.
        InputError: There is no passage, or the model answered nothing.
    """
    ask = asking(model)
    if "{passage}" not in prompt:
        raise ConfigurationError(f"prompt={prompt!r} has no place for the passage. Write {{passage}} where it goes.")
    documents, passages = {}, []
    for name, text, sections in read_folder(folder):
        documents[name] = text
        quotes = (each.text.strip() for each in sections)
        passages += [Passage(document=name, quote=quote) for quote in quotes if len(quote) >= LEAST_CHARACTERS]
    if not passages:
        raise InputError(f"{str(folder)!r} holds no passage of {LEAST_CHARACTERS} characters.")
    chosen = passages if limit >= len(passages) else random.Random(seed).sample(passages, limit)
    made: dict[str, Passage] = {}
    for passage in chosen:
        question = " ".join(ask(prompt.replace("{passage}", passage.quote)).split())
        if question:
            made.setdefault(question, passage)
    if not made:
        raise InputError(f"The model answered none of {len(chosen)} passages with a question.")
    return _judgements(folder, list(made.items()), documents)


def _links(folder: Path, documents: Mapping[str, str]) -> Iterator[tuple[str, Passage]]:
    """Yield the words of Markdown's links between the documents, each with the document that it leads to."""
    for file in find_files(folder):
        if file.kind != "markdown":
            continue
        for words, target in _links_of(file.read().decode("utf-8", "replace")):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(file.name), target))
            if place in documents and place != file.name and _fits(words):
                yield words, Passage(document=place)


def _links_of(text: str) -> Iterator[tuple[str, str]]:
    for block in MarkdownIt("commonmark").parse(text):
        target, words = "", ""
        for each in block.children or ():
            if each.type == "link_open":
                target, words = unquote(str(each.attrs["href"])).partition("#")[0], ""
            elif each.type == "link_close":
                yield words.strip(), target
            elif each.type in ("text", "code_inline"):
                words += each.content


def _questions(name: str, sections: list[Section]) -> Iterator[tuple[str, Passage]]:
    for trail, text, _ in sections:
        prose = text.strip()
        if len(prose) < LEAST_CHARACTERS:
            continue
        passage = Passage(document=name, quote=_beginning(prose))
        # A heading such as "Example" says nothing without the one above it.
        words = " ".join(trail[-2:] if trail and len(trail[-1].split()) < 4 else trail[-1:])
        if _fits(words):
            yield words, passage
        if (match := _DEFINITION.match(prose)) and _fits(f"What is {match[1]}"):
            yield f"What is {match[1].strip('`')}?", passage


def _beginning(prose: str) -> str:
    """Return the first sentences, up to the length of a passage."""
    if len(prose) <= QUOTE_CHARACTERS:
        return prose
    cut = max(prose.rfind(mark, 0, QUOTE_CHARACTERS) for mark in (". ", "。", "\n"))
    return prose[: cut + 1 if cut >= LEAST_CHARACTERS else QUOTE_CHARACTERS].strip()


def _fits(words: str) -> bool:
    return WORDS[0] <= len(_WORD.findall(words)) <= WORDS[1]


def asking(model: Any) -> Callable[[str], str]:
    """Return a function that lets a language model of any framework answer a prompt.

    Raises:
        ConfigurationError: The model has no call that is known.
    """
    if callable(getattr(model, "complete", None)):
        return lambda prompt: str(model.complete(prompt))
    if callable(getattr(model, "invoke", None)):
        return lambda prompt: _content(model.invoke(prompt))
    if callable(model):
        return lambda prompt: str(model(prompt))
    raise ConfigurationError(
        f"model={model!r} writes no questions. Pass a LangChain model, a LlamaIndex LLM, or a function of a prompt."
    )


def _content(answer: Any) -> str:
    content = getattr(answer, "content", answer)
    if isinstance(content, list):  # of blocks, those with a text
        content = "".join(each if isinstance(each, str) else str(each.get("text", "")) for each in content)
    return str(content)


def _judgements(folder: Path, found: list[tuple[str, Passage]], documents: dict[str, str]) -> Judgements:
    names = [f"q{number}" for number in range(1, len(found) + 1)]
    answers = list(zip(names, (passage for _, passage in found), strict=True))
    return Judgements(
        name=folder.name or str(folder),
        queries=dict(zip(names, (question for question, _ in found), strict=True)),
        grades={name: {each.name: each.grade} for name, each in answers if each.is_document},
        passages={name: (each,) for name, each in answers if not each.is_document},
        documents=documents,
        is_weak=True,
        notes=(WEAK,),
    )
