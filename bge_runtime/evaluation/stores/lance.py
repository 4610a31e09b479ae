"""LanceDB tables: the columns stay as they are, but for the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bge_runtime import InputError
from bge_runtime.evaluation.stores.base import PAGE, Row, Store, Vectors, client, digest, no_text
from bge_runtime.evaluation.stores.nodes import embedded_text, stored_node

__all__ = ["LanceDB"]

_FUNCTIONS = b"embedding_functions"


class LanceDB(Store):
    """A table with the columns `id`, `text`, perhaps `metadata`, and one column of vectors."""

    kind: ClassVar[str] = "LanceDB"

    @classmethod
    def names(cls, folder: Path) -> list[str]:
        """Return the names of the tables."""
        return sorted(each.stem for each in folder.glob("*.lance") if each.is_dir())

    def owns(self, file: str) -> bool:
        """Return whether it is a table."""
        return file.endswith(".lance")

    def rows(self) -> Iterator[Row]:
        """Yield rows in the table's order, all of one version."""
        table = self._table()
        column = self._column(table.schema)
        names = [name for name in table.schema.names if name != column]
        for batch in table.search().select(names).to_batches(PAGE):
            for row in batch.to_pylist():
                yield Row(str(row["id"]), self._text(row), digest(row))

    def write(self, target: Path, vectors: Vectors) -> list[str]:
        """Make a table with the same name and columns; only the vectors' length differs."""
        table = self._table()
        column = self._column(table.schema)
        schema, left = self._schema(table.schema, column, vectors.dimension)
        try:
            new = client("lancedb", "lancedb").connect(str(target)).create_table(self.name, schema=schema)
            # One by one: LanceDB runs on one thread of its own, on which a generator could not read another table.
            for batch in self._batches(table, column, schema, vectors):
                new.add(batch)
        except RuntimeError as error:
            raise OSError(f"LanceDB cannot write {str(target)!r}: {error}") from error
        self.copy_rest(target)
        return [*left, *(f"the table's index {each.name!r} on {each.columns}" for each in table.list_indices())]

    def _table(self) -> Any:
        return client("lancedb", "lancedb").connect(str(self.folder)).open_table(self.name)

    def _column(self, schema: Any) -> str:
        """Return the column of vectors."""
        types = client("pyarrow.types", "pyarrow")
        found = [
            field.name
            for field in schema
            if types.is_fixed_size_list(field.type) and types.is_floating(field.type.value_type)
        ]
        missing = {"id", "text"} - set(schema.names)
        if len(found) != 1 or missing:
            raise InputError(
                f"The LanceDB table {self.name!r} in {str(self.folder)!r} has the columns {schema.names}, of which "
                f"{found} hold vectors. A migration reads 'id' and 'text' and renews one column of vectors. "
                "Fill a new index from the source documents."
            )
        return str(found[0])

    def _text(self, row: dict[str, Any]) -> str:
        metadata = row.get("metadata")
        try:
            node = stored_node(metadata) if isinstance(metadata, dict) else None
        except ValueError as error:
            raise no_text(self, row["id"], f"has a node that cannot be read ({error})") from error
        text = row["text"] if node is None else embedded_text(node, row["text"])
        if not isinstance(text, str):
            raise no_text(self, row["id"], "has no text")
        return text

    def _schema(self, schema: Any, column: str, dimension: int) -> tuple[Any, list[str]]:
        """Return the new schema, and what of the old one's notes is left out."""
        arrow = client("pyarrow", "pyarrow")
        at = schema.get_field_index(column)
        values = schema.field(at).type.value_field
        renewed = schema.set(at, schema.field(at).with_type(arrow.list_(values, dimension)))
        notes = dict(schema.metadata or {})
        # It names the old model, with which LanceDB would embed queries.
        function = notes.pop(_FUNCTIONS, None)
        return renewed.with_metadata(notes or None), [] if function is None else ["the table's embedding function"]

    def _batches(self, table: Any, column: str, schema: Any, vectors: Vectors) -> Iterator[Any]:
        arrow = client("pyarrow", "pyarrow")
        at = schema.get_field_index(column)
        for batch in table.search().to_batches(PAGE):
            texts = [self._text(row) for row in batch.drop_columns([column]).to_pylist()]
            numbers = arrow.array(vectors.of(texts).reshape(-1)).cast(schema.field(at).type.value_type)
            columns = [batch.column(name) for name in schema.names]
            columns[at] = arrow.FixedSizeListArray.from_arrays(numbers, type=schema.field(at).type)
            yield arrow.RecordBatch.from_arrays(columns, schema=schema)
