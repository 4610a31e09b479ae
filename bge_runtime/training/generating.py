"""Training pairs that a language model writes for the documents of an index."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from bge_runtime import ConfigurationError, InputError
from bge_runtime.evaluation.questions import LEAST_CHARACTERS, asking
from bge_runtime.evaluation.sources import WEAK
from bge_runtime.training.examples import Example, TrainingData

__all__ = ["PROMPT", "generate_pairs"]

PROMPT = (
    "Here is a passage of a document:\n\n{passage}\n\nWrite questions that this passage answers and that a person "
    "would ask who has not read it. Number of questions: {count}. Answer with the questions alone, each on its own "
    "line."
)
DOCUMENTS = "Pass a list of LangChain documents, LlamaIndex nodes or texts."
# "1. ", "(2) ", "- ", "Q3: ", "Question 4: " before a question.
_MARK = re.compile(r"^(?:[-*•–]|\(?\d{1,3}[.):]+|(?:q|question)\s*\d*\s*[.):]+)\s+", re.IGNORECASE)
_QUOTES = ('""', "''", "“”", "„“", "\u2018\u2019", "«»", "``", "**")


def generate_pairs(
    documents: Iterable[Any],
    model: Any,
    *,
    per_document: int = 1,
    limit: int | None = None,
    seed: int = 0,
    prompt: str = PROMPT,
    show_progress: bool = False,
) -> TrainingData:
    """Let a language model write questions for documents, as pairs to train on.

    Each question has the document that it was written for as its positive, and of equal questions the first is kept.
    Negatives come from `mine`, which searches all the documents. Such questions are easier than what users ask: test on
    real ones.

    Args:
        documents: LangChain documents (`page_content`, `id`), LlamaIndex nodes (`get_content()`, `node_id`) or texts,
            as they stand in the index; each text counts once.
        model: A LangChain chat model or LLM (it has `invoke`), a LlamaIndex LLM (it has `complete`), or a function of
            a prompt.
        per_document: How many questions each document gets, at most.
        limit: How many documents the model is asked about, picked at random; `None` is all that are long enough.
        seed: Of the picking.
        prompt: What the model is asked; `{passage}` stands in it, and maybe `{count}`.
        show_progress: Whether to show progress on standard error.

    Returns:
        The pairs, in the order of the documents; `write` makes FlagEmbedding's JSON lines of them.

    Raises:
        ConfigurationError: An option has a wrong value, or the model is none of these.
        InputError: There are no documents, one is of no known type, or the model answered nothing.
    """
    _check(per_document, limit, prompt)
    ask = asking(model)
    texts = _texts(documents)
    long = [name for name, text in texts.items() if len(text.strip()) >= LEAST_CHARACTERS]
    if not long:
        raise InputError(
            f"None of {len(texts)} documents has {LEAST_CHARACTERS} characters, too few to ask about. {DOCUMENTS}"
        )
    chosen = long
    if limit is not None and limit < len(long):
        chosen = [long[at] for at in sorted(random.Random(seed).sample(range(len(long)), limit))]
    examples: dict[str, Example] = {}
    repeated = silent = 0
    for name in tqdm(chosen, desc="questions", unit="document", disable=not show_progress):
        told = prompt.replace("{count}", str(per_document)).replace("{passage}", texts[name])
        questions = _questions(ask(told), per_document)
        silent += not questions
        for question in questions:
            example = Example(query=question, positives=(texts[name],), where=f"document {name}")
            repeated += examples.setdefault(question.casefold(), example) is not example
    if not examples:
        raise InputError(
            f"The model answered none of {len(chosen)} documents with a question. Look at what it says to "
            f"{prompt!r:.60}, or pass another prompt=."
        )
    left_out = {
        f"documents below {LEAST_CHARACTERS} characters, left out": len(texts) - len(long),
        "documents that the model wrote no question for": silent,
        "questions that repeat, left out": repeated,
    }
    notes = (WEAK, *(f"{count} {what}" for what, count in left_out.items() if count))
    return TrainingData(name="generated", examples=tuple(examples.values()), documents=texts, notes=notes)


def _check(per_document: int, limit: int | None, prompt: str) -> None:
    for name, value in (("per_document", per_document), ("limit", limit)):
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not is_count and not (name == "limit" and value is None):
            raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a whole number of at least 1.")
    if not isinstance(prompt, str) or "{passage}" not in prompt:
        raise ConfigurationError(f"prompt={prompt!r} has no place for the passage. Write {{passage}} where it goes.")


def _texts(documents: Iterable[Any]) -> dict[str, str]:
    """Return text by id, each text once; what holds no text is left out."""
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise InputError(f"documents is {type(documents).__name__} {documents!r:.60}. {DOCUMENTS}")
    found: dict[str, str] = {}
    known = set()
    for at, document in enumerate(documents):
        name, text = _read(document, at)
        if not text.strip() or text in known:
            continue
        if name in found:
            raise InputError(f"documents[{at}] has the id {name!r} a second time, with another text. Ids must differ.")
        known.add(text)
        found[name] = text
    if not found:
        raise InputError(f"There is no document with a text. {DOCUMENTS}")
    return found


def _read(document: Any, at: int) -> tuple[str, str]:
    text: Any = document
    name = None
    if callable(getattr(document, "get_content", None)):
        text, name = document.get_content(), getattr(document, "node_id", None)
    elif hasattr(document, "page_content"):
        text, name = document.page_content, getattr(document, "id", None)
    if not isinstance(text, str):
        raise InputError(f"documents[{at}] is {type(document).__name__} {document!r:.60}, without a text. {DOCUMENTS}")
    return str(name or f"d{at + 1}"), text


def _questions(answer: str, count: int) -> list[str]:
    """Return the questions of an answer, without what models put around them."""
    # "Here are three questions:" ends so; no question does.
    lines = [line for line in answer.splitlines() if not line.rstrip().endswith(":")]
    parts = lines if count > 1 else [" ".join(lines)]
    return [question for part in parts if (question := _bare(part))][:count]


def _bare(line: str) -> str:
    """Return a question without numbering and quotes."""
    told, before = " ".join(line.split()), ""
    while told != before:  # quotes may be around a number, or a number before quotes
        before, told = told, _MARK.sub("", told)
        if len(told) > 1 and told[0] + told[-1] in _QUOTES:
            told = told[1:-1].strip()
    return told
