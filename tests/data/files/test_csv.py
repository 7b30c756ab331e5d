"""CSV: its delimiter is found, and what is ragged, unnamed or open is told with its line."""

import pytest
from files_read import ODD, mistake, rows, write, write_csv

from llmkit.data import files


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_file_is_found_in_its_header(tmp_path, delimiter):
    file = write_csv(tmp_path / "a.csv", [("id, name", "text"), *enumerate(ODD)], delimiter)
    if delimiter != ",":
        write(file, file.read_text().replace("id, name", '"id, name"', 1))
    assert rows(file) == [{"id, name": str(n), "text": text} for n, text in enumerate(ODD)]


def test_a_column_with_a_comma_in_a_tab_separated_file(tmp_path):
    assert rows(write(tmp_path / "a.tsv", "a, b, c\td\n1\t2\n")) == [{"a, b, c": "1", "d": "2"}]


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
    assert [row for _, row in files.read_rows(file)] == [
        {"text": "one", "label": "x"},
        {"text": "two", "label": "y"},
    ]


def test_two_columns_of_one_name(tmp_path):
    file = write(tmp_path / "a.csv", "text,id,text\none,1,two\n")
    assert mistake(file).message == f"`{file}`, line 1: 2 columns are called `text`"
    assert mistake(file).hint == "give every column a name of its own"
