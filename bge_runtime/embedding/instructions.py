"""Which text goes around a query or a document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from bge_runtime.errors import ConfigurationError
from bge_runtime.inputs.tokenizing import Framed
from bge_runtime.models.registry import list_models
from bge_runtime.models.spec import ModelSpec
from bge_runtime.models.table import EN

__all__ = ["OTHER_NAMES", "Example", "Instructions", "Role", "check_examples", "resolve_instructions"]

Role = Literal["query", "document"]
Example = Mapping[str, str]

# LangChain and LlamaIndex call it so; either name is taken everywhere, since what they are told apart by is the owner.
OTHER_NAMES = {"embed_instruction": "document_instruction", "text_instruction": "document_instruction"}

# What HuggingFaceBgeEmbeddings and HuggingFaceEmbedding give English models in place of the trained text.
LEGACY_EN = "Represent this question for searching relevant passages: "


@dataclass(frozen=True, kw_only=True, slots=True)
class Instructions:
    """The instructions in force.

    Attributes:
        query: Instruction for queries; empty means none.
        document: Instruction for documents; empty means none.
        query_format: Template that joins the query instruction and the query.
        joins_lines: Whether newlines in texts become spaces.
        examples: In-context examples before queries, as the model is to read them.
    """

    query: str
    document: str
    query_format: str
    joins_lines: bool = False
    examples: str = ""

    @property
    def query_tail(self) -> str:
        """What stands behind a query."""
        return self.query_format.split("{text}", 1)[1]

    def apply(self, text: str, role: Role) -> str | Framed:
        """Return `text` as the model is to read it in this role."""
        # As HuggingFaceBgeEmbeddings did; sentence-transformers, and all else here, keeps newlines.
        if self.joins_lines:
            text = text.replace("\n", " ")
        if role == "document":
            return self.document + text
        # One pass over the template: a text that holds "{text}" stays as it is.
        head, tail = self.query_format.split("{text}", 1)
        head = head.replace("{instruction}", self.query) if self.query else ""
        return Framed(self.examples, head, text, tail) if tail or self.examples else head + text


def check_examples(examples: Iterable[Example] | None) -> tuple[dict[str, str], ...] | None:
    """Return a copy of in-context examples; `None` for none.

    Raises:
        ConfigurationError: They are no list of examples.
    """
    if examples is None:
        return None
    allowed = (
        "Pass a list of dictionaries with the texts 'query' and 'response', and with 'instruct' where the example's "
        "instruction is not that of the queries."
    )
    if isinstance(examples, str | Mapping) or not isinstance(examples, Iterable):
        raise ConfigurationError(f"examples={examples!r} is not a list of examples. {allowed}")
    copies = []
    for number, example in enumerate(examples):
        keys = set(example) if isinstance(example, Mapping) else set()
        if not {"query", "response"} <= keys <= {"instruct", "query", "response"} or not all(
            isinstance(example[key], str) for key in keys
        ):
            raise ConfigurationError(f"examples[{number}]={example!r} is not an example. {allowed}")
        copies.append({key: str.__str__(example[key]) for key in keys})
    return tuple(copies) or None


def resolve_instructions(
    spec: ModelSpec,
    *,
    query_instruction: str | None = None,
    document_instruction: str | None = None,
    task: str | None = None,
    legacy: bool = False,
    examples: Iterable[Example] | None = None,
) -> Instructions:
    """Decide the instructions: the caller's value wins, then the task's, then the model's.

    Args:
        spec: The model.
        query_instruction: Text for queries; `""` turns it off; `None` takes the model's.
        document_instruction: The same for documents.
        task: One of `spec.tasks`.
        legacy: Whether to read texts as `HuggingFaceBgeEmbeddings` did: "question" in the English instruction, and
            newlines as spaces.
        examples: In-context examples, from `check_examples`.

    Raises:
        ConfigurationError: The task does not exist, an instruction is not a string, or the model takes no examples.
    """
    for name, value in (
        ("query_instruction", query_instruction),
        ("document_instruction", document_instruction),
    ):
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(
                f"{name}={value!r} is not a string. Pass a text, '' for none, or None for the model's own."
            )
    # The characters: a member of an enumeration prints as its name.
    query_instruction, document_instruction = (
        None if each is None else str.__str__(each) for each in (query_instruction, document_instruction)
    )
    query, document = spec.query_instruction, spec.document_instruction
    if legacy and query == EN:
        query = LEGACY_EN
    if task is not None:
        if task not in spec.tasks:
            allowed = ", ".join(repr(each) for each in spec.tasks) or "none for this model"
            raise ConfigurationError(
                f"task={task!r} is not a task of {spec.id!r}. Tasks: {allowed}. "
                "Use query_instruction= to pass an instruction of your own."
            )
        query, document = spec.tasks[task]
    query = query if query_instruction is None else query_instruction
    return Instructions(
        query=query,
        document=document if document_instruction is None else document_instruction,
        query_format=spec.query_format,
        joins_lines=legacy,
        examples=_rendered(spec, examples or (), query),
    )


def _rendered(spec: ModelSpec, examples: Iterable[Example], instruction: str) -> str:
    """Return examples as FlagEmbedding joins them: a blank line after each."""
    given = list(examples)
    if given and not spec.example_format:
        able = ", ".join(repr(each.id) for each in list_models() if each.example_format)
        raise ConfigurationError(
            f"examples={given!r} is not allowed: {spec.id!r} takes no in-context examples. Leave them out, or use a "
            f"model that takes some: {able}."
        )
    pattern = re.compile(r"\{(instruct|query|response)\}")

    def rendered(example: Example) -> str:
        # One pass: a text that holds "{query}" stays as it is.
        values = {"instruct": instruction, **example}
        return pattern.sub(lambda match: values[match[1]], spec.example_format) + "\n\n"

    return "".join(map(rendered, given))
