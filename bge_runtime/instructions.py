"""Which text goes before a query or a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bge_runtime.errors import ConfigurationError
from bge_runtime.spec import ModelSpec
from bge_runtime.table import EN

__all__ = ["Instructions", "Role", "resolve_instructions"]

Role = Literal["query", "document"]

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
    """

    query: str
    document: str
    query_format: str
    joins_lines: bool = False

    def apply(self, text: str, role: Role) -> str:
        """Return `text` as the model is to read it in this role."""
        if self.joins_lines:
            text = text.replace("\n", " ")
        if role == "document":
            return self.document + text
        if not self.query:
            return text
        # One pass over the template: a text that holds "{text}" stays as it is.
        head, tail = self.query_format.split("{text}", 1)
        return head.replace("{instruction}", self.query) + text + tail


def resolve_instructions(
    spec: ModelSpec,
    *,
    query_instruction: str | None = None,
    document_instruction: str | None = None,
    task: str | None = None,
    legacy: bool = False,
) -> Instructions:
    """Decide the instructions: the caller's value wins, then the task's, then the model's.

    Args:
        spec: The model.
        query_instruction: Text for queries; `""` turns it off; `None` takes the model's.
        document_instruction: The same for documents.
        task: One of `spec.tasks`.
        legacy: Whether to read texts as `HuggingFaceBgeEmbeddings` did: "question" in the English instruction, and
            newlines as spaces.

    Raises:
        ConfigurationError: The task does not exist, or an instruction is not a string.
    """
    for name, value in (
        ("query_instruction", query_instruction),
        ("document_instruction", document_instruction),
    ):
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(
                f"{name}={value!r} is not a string. Pass a text, '' for none, or None for the model's own."
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
    return Instructions(
        query=query if query_instruction is None else query_instruction,
        document=document if document_instruction is None else document_instruction,
        query_format=spec.query_format,
        joins_lines=legacy,
    )
