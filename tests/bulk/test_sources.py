"""What is read of files: rows in order, ids that stay, and errors that name file and row."""

from __future__ import annotations

import csv
import gzip
import os
import tracemalloc

import pyarrow as pa
import pytest

from bge_runtime import ConfigurationError, InputError
from bge_runtime.bulk.checking import examined
from bge_runtime.bulk.sources import Source
from tests.bulk.corpora import sentences, write_lines, write_parquet

TEXTS = ["first", "second, with a comma", 'third "quoted"\nin two lines', "", "  "]


def opened(place, text_column="text", id_column=None):
    return Source.open(place, text_column=text_column, id_column=id_column)


def pairs(source, start=0, counts=()):
    return [(row.id, row.text) for row in source.rows(start, counts)]


def write_csv(file, header, rows):
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def test_lines_of_json_are_read_and_numbered_by_line(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", TEXTS)
    assert pairs(opened(file)) == [(f"a.jsonl:{number}", text) for number, text in enumerate(TEXTS, start=1)]
    file.write_text('{"text": "one"}\n\n{"text": "two"}', encoding="utf-8")
    assert pairs(opened(file)) == [("a.jsonl:1", "one"), ("a.jsonl:3", "two")]


def test_ids_are_those_of_the_column_where_there_is_one(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", ["x", "y"], id=[7, "b"], key=["k", "l"])
    assert pairs(opened(file)) == [("7", "x"), ("b", "y")]
    assert pairs(opened(file, id_column="key")) == [("k", "x"), ("l", "y")]
    assert pairs(opened(file, id_column="")) == [("a.jsonl:1", "x"), ("a.jsonl:2", "y")]


def test_parquet_csv_and_packed_lines_give_the_same_rows(tmp_path):
    expected = [(f"i{number}", text) for number, text in enumerate(TEXTS)]
    ids = [name for name, _ in expected]
    written = [
        write_parquet(tmp_path / "a.parquet", group=2, text=TEXTS, id=ids, other=[1, 2, 3, 4, 5]),
        write_csv(tmp_path / "a.csv", ["id", "other", "text"], zip(ids, range(5), TEXTS, strict=True)),
        write_lines(tmp_path / "a.jsonl", TEXTS, id=ids),
    ]
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(written[2].read_bytes()))
    packed_csv = tmp_path / "b.csv.gz"
    packed_csv.write_bytes(gzip.compress(written[1].read_bytes()))
    for file in (*written, packed, packed_csv):
        assert pairs(opened(file)) == expected, file.name


def test_csv_is_taken_for_text_whatever_it_looks_like(tmp_path):
    file = write_csv(tmp_path / "a.csv", ["\ufeffid", "text"], [("007", "NA"), ("1e3", "12")])
    assert pairs(opened(file)) == [("007", "NA"), ("1e3", "12")]


def test_of_parquet_texts_of_every_kind_of_string_are_read(tmp_path):
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        file = write_parquet(tmp_path / "a.parquet", text=pa.array(["x", "y"]).cast(kind))
        assert [text for _, text in pairs(opened(file))] == ["x", "y"]


def test_every_line_of_a_text_file_is_a_text_an_empty_one_too(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\ntwo\n\nfour\u2028still four".encode())
    assert pairs(opened(file)) == [
        ("a.txt:1", "one"),
        ("a.txt:2", "two"),
        ("a.txt:3", ""),
        ("a.txt:4", "four\u2028still four"),
    ]


def test_a_folder_is_read_by_the_names_of_its_tables_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b" / "one.jsonl", ["third"])
    write_parquet(tmp_path / "a.parquet", text=["first", "second"])
    (tmp_path / "README.md").write_text("# A page\n\nabout it")
    (tmp_path / "LICENSE.txt").write_text("free")
    (tmp_path / ".hidden.jsonl").write_text("no JSON")
    assert pairs(opened(tmp_path)) == [
        ("a.parquet:1", "first"),
        ("a.parquet:2", "second"),
        ("b/one.jsonl:1", "third"),
    ]


def test_a_folder_of_documents_gives_its_sections(tmp_path):
    (tmp_path / "body.md").write_text("# Body\n\n## Heart\n\nIt pumps.\n\n## Lungs\n\nThey breathe.\n")
    (tmp_path / "note.txt").write_text("two\nlines")
    assert pairs(opened(tmp_path)) == [
        ("body.md:1", "Heart\nIt pumps."),
        ("body.md:2", "Lungs\nThey breathe."),
        ("note.txt:1", "two\nlines"),
    ]


def test_a_folder_of_text_files_gives_their_lines(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    assert pairs(opened(tmp_path)) == [("a.txt:1", "a1"), ("a.txt:2", "a2"), ("b.txt:1", "b1"), ("b.txt:2", "b2")]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "txt"])
def test_rows_can_be_read_from_any_one_on(tmp_path, kind):
    texts = sentences(20)
    for name, part in (("a", texts[:12]), ("b", texts[12:])):
        file = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            write_parquet(file, group=5, text=part)
        elif kind == "jsonl":
            write_lines(file, part)
        elif kind == "csv":
            write_csv(file, ["text"], [[text] for text in part])
        else:
            file.write_text("".join(f"{text}\n" for text in part))
    source = opened(tmp_path)
    whole = pairs(source)
    assert [text for _, text in whole] == texts
    for start in range(21):
        assert pairs(source, start, [12, 8]) == whole[start:]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"body": ["x"]}, {}, r"'a.parquet', row 1: there is no column 'text'; there are: 'body'.*--text-column"),
        ({"text": ["x", None]}, {}, "'a.parquet', row 2: column 'text' is null; a string is needed"),
        ({"text": [1, 2]}, {}, "'a.parquet', row 1: column 'text' is int 1; a string is needed"),
        ({"text": ["x"]}, {"id_column": "key"}, "'a.parquet', row 1: column 'key', which holds the ids, is missing"),
        ({"text": ["x", "y"], "id": ["a", None]}, {}, "row 2: column 'id', which holds the ids, is null"),
        ({"text": ["x"], "id": [0.5]}, {}, "row 1: column 'id', which holds the ids, is float 0.5"),
        ({"text": ["x", "y", "z"], "id": ["a", "b", "a"]}, {}, r"row 3: the id 'a' stands in 'a.parquet', row 1, alr"),
        ({"text": pa.array([], pa.string())}, {}, "holds no text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, columns, options, message):
    write_parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(InputError, match=message):
        examined(opened(tmp_path / "a.parquet", **options), tmp_path)
    assert os.listdir(tmp_path) == ["a.parquet"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "x"}\n{"text": ', "'a.jsonl', row 2: this is not JSON"),
        (b'{"text": "x"}\n[1]\n', "'a.jsonl', row 2: this is no JSON object, but list"),
        (b'{"text": "x"}\n{"text": "\xff"}\n', "'a.jsonl', row 2: this is not UTF-8"),
        (b'{"text": "x"}\n{"body": "y"}\n', "'a.jsonl', row 2: there is no column 'text'; there are: 'body'"),
        (b'{"text": "x", "id": 1}\n{"text": "y"}\n', "'a.jsonl', row 2: column 'id', which holds the ids, is missing"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        examined(opened(tmp_path / "a.jsonl"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 is not all of it"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99)[:-9]),
        ("a.csv", b"text,id\nx\n"),
        ("a.pdf", b"not a PDF"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"'{name}' cannot be read"):
        examined(opened(tmp_path / name), tmp_path)


def test_an_id_that_stands_in_two_files_is_named_with_both(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["x"] * 5000, id=list(range(5000)))
    write_lines(tmp_path / "b.jsonl", ["x", "y"], id=["new", "4999"])
    with pytest.raises(InputError, match=r"'b.jsonl', row 2: the id '4999' stands in 'a.jsonl', row 5000, already"):
        examined(opened(tmp_path), tmp_path)


def test_what_is_no_input_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        opened(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match="holds nothing that is read"):
        opened(tmp_path)
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(ConfigurationError, match="of no format that is read"):
        opened(tmp_path / "a.xlsx")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        opened(tmp_path / "pipe.jsonl")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigurationError, match="has no columns"):
        opened(tmp_path / "a.txt", id_column="id")


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", ["x"] * 3)
    source = opened(file)
    rows = source.rows()
    next(rows)
    with file.open("a") as stream:
        stream.write('{"text": "y"}\n')
    with pytest.raises(InputError, match=r"'a.jsonl' was changed while it was read"):
        list(rows)


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    peaks = []
    for count in (12_000, 36_000):  # more than two of what is read at once
        file = write_lines(tmp_path / f"{count}.jsonl", sentences(count), id=list(range(count)))
        source = opened(file)
        tracemalloc.start()
        try:
            assert examined(source, tmp_path)[0].rows == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
