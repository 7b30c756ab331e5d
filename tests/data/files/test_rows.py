"""Rows of every format, from their beginning: what was written, and its place."""

import gzip
import json

import pytest
from files_read import ODD, ROWS, mistake, places, rows, write, write_csv, write_parquet

from llmkit.data import files


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_a_row_is_what_was_written_and_knows_its_place(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    unit, first = "line", 1
    if suffix == ".parquet":
        write_parquet(file, n=[row["n"] for row in ROWS], text=ODD)
        unit = "row"
    elif suffix in (".csv", ".tsv"):
        write_csv(file, [("n", "text"), *(row.values() for row in ROWS)], "," if suffix == ".csv" else "\t")
        first = 2
    elif suffix == ".json":
        write(file, json.dumps(ROWS, indent=1))
        unit = "item"
    else:
        write(file, "".join(json.dumps(row) + "\n" for row in ROWS))
    options = {"quoting": "minimal"} if suffix == ".tsv" else {}  # else a field of a TSV file spans no lines
    assert rows(file, **options) == ROWS
    expected = [f"{unit} {first + n}" for n in range(len(ROWS))]
    if first == 2:
        expected[-1] = f"line {first + len(ROWS)}"  # after the row that holds a line break
    assert places(file, **options) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "b.json"])
def test_gzip(tmp_path, name):
    content = {"a.jsonl": '{"text": "one"}\n', "a.json": '[{"text": "one"}]', "a.csv": "text\none\n"}
    whole = content.get(name, '{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(whole.encode()))
    assert rows(tmp_path / f"{name}.gz")[0] == {"text": "one"}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_other_encodings(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("text\nné\n".encode(encoding))
    (tmp_path / "a.json").write_bytes('[\n{"text": "né"}]'.encode(encoding))
    assert rows(tmp_path / "a.csv", encoding) == rows(tmp_path / "a.json", encoding) == [{"text": "né"}]


def test_files_without_rows(tmp_path):
    error = mistake(tmp_path / "a.txt")
    assert error.message == f"`{tmp_path / 'a.txt'}`: a text file has no columns"
    assert error.hint == (
        "rows are read from files that end in .jsonl .ndjson .json .csv .tsv .parquet .arrow .feather .fasttext .conll "
        ".bio .iob .iob2 .bmes; for another name, set data.format"
    )
    for name, message in (
        ("a.dat", "llmkit does not read `.dat` files"),
        ("a", "its name does not show its format"),
    ):
        error = mistake(tmp_path / name)
        assert error.message == f"`{tmp_path / name}`: {message}"
        assert "data.format" in error.hint
    assert mistake(write(tmp_path / "a.test", "no words and tags\n")).message.endswith("does not read `.test` files")


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("csv", "text\na b\n"),
        ("tsv", "text\tn\na b\t1\n"),
        ("jsonl", '{"text": "a b"}\n'),
        ("json", '[{"text": "a b"}]'),
    ],
)
@pytest.mark.parametrize("name", ["a", "a.dat", "a.txt", "a.dat.gz"])
def test_the_format_of_a_file_whose_name_does_not_tell(tmp_path, format, text, name):
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    options = files.ReadOptions(format=format)
    assert [row["text"] for _, row in files.read_rows(tmp_path / name, options)] == ["a b"]
    assert files.folder(tmp_path, files.ROW_SUFFIXES, options) == ([tmp_path / name], [])
    assert rows(write(tmp_path / "b.jsonl", '{"a": 1}')) == [{"a": 1}]
    remarks = []
    assert [row for _, row in files.read_rows(tmp_path / "b.jsonl", options, note=remarks.append)] == [{"a": 1}]
    about = f"`{tmp_path / 'b.jsonl'}`: read as its name says; data.format is for names that do not tell"
    assert remarks == ([] if format == "jsonl" else [about])


def test_the_suffix_decides_whatever_its_case(tmp_path):
    assert [files.suffix(tmp_path / name) for name in ("A.CSV", "a.b.Jsonl.GZ", "a")] == [".csv", ".jsonl", ""]


def test_a_recipe_takes_every_file_that_can_be_read_for_a_path():
    """Without torch or a reader it goes by the suffix: a misspelt file is not looked for on the Hub."""
    from llmkit.data.files import SUFFIXES
    from llmkit.recipe import paths

    assert set(SUFFIXES) <= set(paths.SUFFIXES)


@pytest.mark.parametrize(("name", "remedy"), [("a.tar.gz", "unpack it"), ("a.XLSX", "save the sheet as CSV")])
def test_a_format_that_no_key_helps_to_read_is_told_from_an_unknown_name(tmp_path, name, remedy):
    error = mistake(write(tmp_path / name, ""))
    assert "llmkit does not read" in error.message
    assert error.hint == remedy


def test_every_name_that_the_package_gives_is_there():
    assert not [name for name in files.__all__ if not hasattr(files, name)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf16_without_its_mark_is_refused(encoding, tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes("text,label\none,a\n".encode(f"{encoding}-be"))
    error = mistake(file, encoding)
    assert error.message.startswith(f"`{file}`")
    assert f"not {encoding}" in error.message
    assert "data.encoding" in error.hint


def test_a_parquet_file_with_a_column_whose_name_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "a.parquet"
    write_parquet(file, zqzqzq=["one"])
    file.write_bytes(file.read_bytes().replace(b"zqzqzq", b"zq\xe9qzq"))
    assert mistake(file).message.startswith(f"`{file}`: not a complete Parquet file (")
