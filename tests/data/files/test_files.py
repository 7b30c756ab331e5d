"""Rows come out of files as they went in; what is wrong with a file is said with its name, its line and a remedy."""

import csv
import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from llmkit.data import files
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.table import ReadOnly

ODD = ["NA", "null", "None", "", "nan", "1e5", "  two  spaces ", 'a "quote"', "a, b; c\td | e", "line\nbreak", "é日😀"]
ROWS = [{"n": str(n), "text": text} for n, text in enumerate(ODD)]
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": "In France, in the 10th century.",
                    "qas": [
                        {
                            "id": "56ddde6b",
                            "question": "Where?",
                            "is_impossible": False,
                            "answers": [
                                {"text": "France", "answer_start": 3},
                                {"text": "In France", "answer_start": 0},
                            ],
                        },
                        {"id": "5ad39d53", "question": "Why?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        },
        {
            "title": "Warsaw",
            "paragraphs": [
                {
                    "context": "Poland",
                    "qas": [{"question": "What?"}, {"id": "", "question": "Who?", "is_impossible": True}],
                }
            ],
        },
    ],
}


def rows(file, encoding="utf-8", columns=None):
    return [row for _, row in files.read_rows(file, encoding, columns)]


def places(file):
    return [place for place, _ in files.read_rows(file, "utf-8")]


def mistake(file):
    with pytest.raises(UserError) as caught:
        rows(file)
    return caught.value


def write_csv(file, lines, delimiter=","):
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(lines)
    return file


def write(file, text):
    file.write_text(text, encoding="utf-8")
    return file


def write_parquet(file, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


# --- formats ----------------------------------------------------------------------------------------------------------


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
    assert rows(file) == ROWS
    expected = [f"{unit} {first + n}" for n in range(len(ROWS))]
    if first == 2:
        expected[-1] = f"line {first + len(ROWS)}"  # after the row that holds a line break
    assert places(file) == expected


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_file_is_found_in_its_header(tmp_path, delimiter):
    file = write_csv(tmp_path / "a.csv", [("id, name", "text"), *enumerate(ODD)], delimiter)
    if delimiter != ",":
        write(file, file.read_text().replace("id, name", '"id, name"', 1))
    assert rows(file) == [{"id, name": str(n), "text": text} for n, text in enumerate(ODD)]


def test_a_column_with_a_comma_in_a_tab_separated_file(tmp_path):
    assert rows(write(tmp_path / "a.tsv", "a, b, c\td\n1\t2\n")) == [{"a, b, c": "1", "d": "2"}]


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


def test_of_a_parquet_file_only_the_wanted_columns_are_read(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", big=[os.urandom(500).hex() for _ in range(2000)], n=list(range(2000)))
    raw = bytearray(file.read_bytes())
    at = pyarrow.parquet.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    raw[at : at + 1000] = b"\xff" * 1000  # this column cannot be read any more
    file.write_bytes(raw)
    assert rows(file, columns=["n"]) == [{"n": n} for n in range(2000)]
    assert files.parquet_columns(file) == ["big", "n"]
    assert "not a whole Parquet file" in mistake(file).message


# --- .json ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ['{"a": 1}\n{"a": 2}\n', '\n{"a": 1}\n\n{"a": 2}', '\ufeff{"a": 1}\n{"a": 2}'])
def test_json_lines_that_are_called_json(tmp_path, content):
    assert rows(write(tmp_path / "a.json", content)) == [{"a": 1}, {"a": 2}]


def test_one_json_line_that_is_called_json(tmp_path):
    file = write(tmp_path / "a.json", '{"text": "a", "data": "no list"}\n')
    assert rows(file) == [{"text": "a", "data": "no list"}]
    assert places(file) == ["line 1"]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_an_object_with_a_list_of_rows(tmp_path, indent):
    file = write(tmp_path / "a.json", json.dumps({"about": 1, "data": ROWS}, indent=indent))
    assert rows(file) == ROWS
    assert places(file)[:2] == ["item 1", "item 2"]
    assert rows(write(file, '{"data": []}')) == []


def test_an_object_whose_rows_stand_one_a_line(tmp_path):
    file = write(tmp_path / "a.json", '{"data": [\n{"a": 1},\n{"a": 2}\n]}')
    assert rows(file) == [{"a": 1}, {"a": 2}]
    error = mistake(write(file, '{"data": [\n{"a": 1},\n{"a": 2\n]}'))
    assert error.message.startswith(f"`{file}`: not JSON (Expecting ',' delimiter: line 4 column 1")


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_squad(tmp_path, indent, suffix):
    """In the shape in which the Hub has it: rajpurkar/squad and rajpurkar/squad_v2."""
    content = json.dumps(SQUAD, indent=indent).encode()
    file = tmp_path / f"dev-v2.0{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    context = "In France, in the 10th century."
    assert list(files.read_rows(file, "utf-8")) == [
        (
            "question 56ddde6b",
            {
                "id": "56ddde6b",
                "title": "Normans",
                "context": context,
                "question": "Where?",
                "answers": {"text": ["France", "In France"], "answer_start": [3, 0]},
            },
        ),
        (
            "question 5ad39d53",
            {
                "id": "5ad39d53",
                "title": "Normans",
                "context": context,
                "question": "Why?",
                "answers": {"text": [], "answer_start": []},
            },
        ),
        ("question 3", {"id": "3", "title": "Warsaw", "context": "Poland", "question": "What?"}),
        (
            "question 4",
            {
                "id": "4",
                "title": "Warsaw",
                "context": "Poland",
                "question": "Who?",
                "answers": {"text": [], "answer_start": []},
            },
        ),
    ]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d[1].pop("paragraphs"), "article 2: `paragraphs` is missing"),
        (lambda d: d[1].update(paragraphs={}), "article 2: `paragraphs` is not a list"),
        (lambda d: d[0]["paragraphs"].append("text"), "article 1, paragraph 2: `context` is missing"),
        (lambda d: d[0]["paragraphs"][0].pop("context"), "article 1, paragraph 1: `context` is missing"),
        (lambda d: d[0]["paragraphs"][0].update(qas=None), "article 1, paragraph 1: `qas` is not a list"),
        (lambda d: d[1]["paragraphs"][0]["qas"].append(5), "article 2, paragraph 1, question 5: `question` is missing"),
        (
            lambda d: d[0]["paragraphs"][0]["qas"][0].update(question=["Where?"]),
            "article 1, paragraph 1, question 56ddde6b: `question` is not text",
        ),
        (
            lambda d: d[0]["paragraphs"][0]["qas"][0].update(answers={"text": []}),
            "article 1, paragraph 1, question 56ddde6b: `answers` is not a list",
        ),
        (
            lambda d: d[0]["paragraphs"][0]["qas"][0]["answers"][1].pop("text"),
            "article 1, paragraph 1, question 56ddde6b: `text` is missing",
        ),
        (
            lambda d: d[0]["paragraphs"][0]["qas"][0]["answers"][1].update(answer_start="3"),
            "article 1, paragraph 1, question 56ddde6b: `answer_start` is not a whole number",
        ),
    ],
)
def test_malformed_squad(tmp_path, change, where):
    broken = json.loads(json.dumps(SQUAD))
    change(broken["data"])
    error = mistake(write(tmp_path / "a.json", json.dumps(broken)))
    assert error.message == f"`{tmp_path / 'a.json'}`, {where}"
    assert error.hint.startswith("SQuAD's format is data > paragraphs > context")


@pytest.mark.parametrize("content", ['["one"]', '{\n"train": [{"text": "one"}]\n}', '{"data": ["one"]}', "3"])
def test_json_that_is_no_table(tmp_path, content):
    error = mistake(write(tmp_path / "a.json", content))
    assert error.message == f"`{tmp_path / 'a.json'}`: a list of objects is expected, or one object a line"
    assert '{"data": [...]}' in error.hint


def test_broken_json(tmp_path):
    error = mistake(write(tmp_path / "a.json", '[{"text": "one"},\n {"text": }]'))
    assert error.message.startswith(f"`{tmp_path / 'a.json'}`: not JSON (Expecting value: line 2 column 11")
    assert error.hint == "mend it there, or write one object a line"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('{"text": "one"}\n{"text": "two"\n', "line 2: not JSON (Expecting ',' delimiter: column 15"),
        ('{"text": "one"\n{"text": "two"}\n', "line 1: not JSON (Expecting ',' delimiter: column 15"),
        ('{"text": "one"}\n\nnonsense\n', "line 3: not JSON (Expecting value: column 1"),
    ],
)
def test_a_broken_json_line(tmp_path, name, content, where):
    error = mistake(write(tmp_path / name, content))
    assert error.message.startswith(f"`{tmp_path / name}`, {where}")
    assert error.hint == "one object a line is expected"


def test_a_json_line_that_is_no_object(tmp_path):
    error = mistake(write(tmp_path / "a.jsonl", '{"text": "one"}\n["two"]\n'))
    assert error.message == f"`{tmp_path / 'a.jsonl'}`, line 2: an object is expected, this is a list"
    assert error.hint == 'write a row as an object with its columns: {"text": "..."}'


# --- what is wrong, and where -----------------------------------------------------------------------------------------


def test_a_ragged_csv_file(tmp_path):
    file = write(tmp_path / "a.csv", 'id;text\n1;"one\nand a half"\n\n2;two;three\n')
    error = mistake(file)
    assert error.message == f"`{file}`, line 5: 3 fields where the header has 2"
    assert error.hint == "the delimiter read from the header is ';'; quote fields that contain it"
    assert mistake(write(file, "id,text\n1,one\n2\n")).message == f"`{file}`, line 3: 1 fields where the header has 2"


def test_a_quote_that_is_never_closed_is_shown_where_it_opens(tmp_path):
    file = write(tmp_path / "a.csv", 'id,text\n1,one\n2,"two\n3,three\n4,four\n')
    assert mistake(file).message == f"`{file}`, line 3: unexpected end of data"
    assert "a quote inside it is doubled" in mistake(file).hint


def test_a_column_without_a_name(tmp_path):
    file = tmp_path / "a.csv"
    assert mistake(write(file, "a; ;c\n0;1;2\n")).message == f"`{file}`, line 1: column 2 has no name"


def test_the_index_that_pandas_writes_is_no_column(tmp_path):
    file = write(tmp_path / "a.csv", ",text,label\n0,one,x\n1,two,y\n")
    assert [row for _, row in files.read_rows(file, "utf-8")] == [
        {"text": "one", "label": "x"},
        {"text": "two", "label": "y"},
    ]


def test_two_columns_of_one_name(tmp_path):
    file = write(tmp_path / "a.csv", "text,id,text\none,1,two\n")
    assert mistake(file).message == f"`{file}`, line 1: 2 columns are called `text`"
    assert mistake(file).hint == "give every column a name of its own"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.csv.gz"])
def test_files_that_are_not_utf8(tmp_path, name):
    content = b'["\n\xe9"]' if name == "a.json" else b'{"text": "a"}\n{"text": "\xe9"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    error = mistake(tmp_path / name)
    assert error.message == f"`{tmp_path / name}`, line 2: byte 0xe9 is not utf-8"
    assert "data.encoding" in error.hint


def test_a_broken_parquet_file(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", text=["one"] * 100)
    whole = file.read_bytes()
    for broken in (whole[:-20], b"\0" * 30 + whole[30:]):
        file.write_bytes(broken)
        error = mistake(file)
        assert error.message.startswith(f"`{file}`: not a whole Parquet file")
        assert error.hint == "copy or download it again"


def test_a_broken_gzip_file(tmp_path):
    file = tmp_path / "a.csv.gz"
    file.write_bytes(gzip.compress(b"one\n" * 1000)[:-9])
    assert mistake(file).message == (
        f"`{file}` cannot be read: Compressed file ended before the end-of-stream marker was reached"
    )
    file.write_bytes(b"not gzip")
    assert mistake(file).message.startswith(f"`{file}` cannot be read: Not a gzipped file")
    assert mistake(tmp_path / "b.csv").message == f"`{tmp_path / 'b.csv'}` cannot be read: No such file or directory"
    assert mistake(tmp_path / "b.csv").hint == "is it there, whole, and yours to read?"


def test_files_without_rows(tmp_path):
    error = mistake(tmp_path / "a.txt")
    assert error.message == f"`{tmp_path / 'a.txt'}`: a text file has no columns"
    assert error.hint == (
        "rows come from files that end in .jsonl .ndjson .json .csv .tsv .parquet .conll .bio .iob .iob2 .bmes"
    )
    assert mistake(tmp_path / "a.xlsx").message == f"`{tmp_path / 'a.xlsx'}`: llmkit does not read `.xlsx` files"


def test_the_text_of_a_row():
    assert files.text_of({"text": "é"}, "text", "here") == "é"
    assert files.text_of({"text": None}, "text", "here") == ""
    for row, message, hint in (
        ({"id": 1, "txt": "two"}, "`a`, line 2: no `text`; the row has id, txt", "every row needs that column"),
        ({"text": 2}, "`a`, line 2: column `text` holds int, not text", "set data.x to the column with the text"),
        ({"text": "\ud83d"}, "`a`, line 2: `text` holds half a character (\\ud83d)", "characters beyond U+FFFF"),
    ):
        with pytest.raises(UserError) as caught:
            files.text_of(row, "text", "`a`, line 2", "data.x")
        assert caught.value.message == message
        assert caught.value.hint.startswith(hint)


# --- which files ------------------------------------------------------------------------------------------------------


def test_the_suffix_decides_whatever_its_case(tmp_path):
    assert [files.suffix(tmp_path / name) for name in ("A.CSV", "a.b.Jsonl.GZ", "a")] == [".csv", ".jsonl", ""]


def test_a_folder_is_all_its_files_with_the_suffixes(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("b/2.csv", "c.JSONL", "README.md", "picture.png", ".cache/a.csv"):
        (tmp_path / name).write_text("")
    assert files.expand(str(tmp_path), files.ROW_SUFFIXES) == [tmp_path / "b" / "2.csv", tmp_path / "c.JSONL"]
    assert len(files.expand(str(tmp_path))) == 3
    assert files.expand(str(tmp_path / "*")) == [tmp_path / name for name in ("README.md", "c.JSONL", "picture.png")]


def test_the_files_of_a_split(tmp_path):
    for name in ("a.csv", "b.csv", "v.csv"):
        (tmp_path / name).write_text("")
    data = RowData(path=str(tmp_path), data_files=ReadOnly({"train": ["b.csv", "a.*"], "mine": "v.csv", "bad": "x"}))
    assert files.of_split(data, "train") == [tmp_path / "b.csv", tmp_path / "a.csv"]
    assert files.of_split(data, "mine") == [tmp_path / "v.csv"]
    with pytest.raises(UserError, match="has no `dev`; it names train, mine, bad"):
        files.of_split(data, "dev")
    with pytest.raises(UserError, match=f"data.data_files: no file matches `{tmp_path / 'x'}`"):
        files.of_split(data, "bad")
    assert len(files.of_split(RowData(path=str(tmp_path)), "train")) == 3
    with pytest.raises(UserError, match="files make no splits by themselves"):
        files.of_split(RowData(path=str(tmp_path)), "test")
    with pytest.raises(UserError, match="files make no splits by themselves"):
        files.of_split(RowData(path=str(tmp_path), validation_split="train"), "train")


def test_the_content_hash_follows_the_bytes_and_where_a_file_ends(tmp_path):
    hashes = set()
    for number, parts in enumerate((("ab", "c"), ("a", "bc"), ("abc",), ("ab", "d"))):
        paths = [tmp_path / f"{number}-{part}" for part in parts]
        for path, part in zip(paths, parts, strict=True):
            path.write_text(part)
        hashes.add(files.content_hash(paths))
    assert len(hashes) == 4
    (tmp_path / "other").write_text("abc")
    assert files.content_hash([tmp_path / "other"]) in hashes
