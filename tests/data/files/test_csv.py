"""CSV and TSV: delimiters, quotes, headers and odd rows are read by what the whole file shows, and it is said."""

import csv
import time

import pytest
from files_read import ODD, mistake, rows, write, write_csv

from llmkit.data import files
from llmkit.data.files.options import BadRow
from llmkit.errors import UserError


def read(file, **options):
    """Return the rows that can be read, the others with their places, and the notes without the file's name."""
    notes = []
    placed = list(files.read_rows(file, files.ReadOptions(**options), note=notes.append, strict=False))
    good = [tuple(row.values()) for _, row in placed if not isinstance(row, BadRow)]
    bad = [(place, row) for place, row in placed if isinstance(row, BadRow)]
    return good, bad, [note.replace(f"`{file}`", "F") for note in notes]


# --- the delimiter ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_file_is_found_in_its_header(tmp_path, delimiter):
    file = write_csv(tmp_path / "a.csv", [("id, name", "text"), *enumerate(ODD)], delimiter)
    if delimiter != ",":
        write(file, file.read_text().replace("id, name", '"id, name"', 1))
    quoting = "minimal" if delimiter == "\t" else None  # else no field spans lines where tabs separate them
    assert rows(file, quoting=quoting) == [{"id, name": str(n), "text": text} for n, text in enumerate(ODD)]


def test_a_column_with_a_comma_in_a_tab_separated_file(tmp_path):
    assert rows(write(tmp_path / "a.tsv", "a, b, c\td\n1\t2\n")) == [{"a, b, c": "1", "d": "2"}]


@pytest.mark.parametrize(
    ("text", "columns", "noted"),
    [
        ("text, raw;label\na;1\nb, c;2\n", ["text, raw", "label"], "F: the delimiter is taken to be ';'"),
        ("text\nWell, well\nOk\nso, so, so\n", ["text"], "F: its first line has no delimiter"),
        ("In English, raw\nGood\nBad\nFine\n", ["In English, raw"], "F: no row has the ',' of its first line"),
        ("text|label\na, b|1\n", ["text", "label"], ""),
        ('"a;b;c",d\n1,2\n', ["a;b;c", "d"], ""),
        ("sep=;\ntext;label\na,b;1\n", ["text", "label"], "F: the first line, `sep=;`, names the delimiter"),
        ("\n\ntext,label\na,1\n", ["text", "label"], ""),
    ],
)
def test_rows_tell_which_of_several_delimiters_of_a_header_is_meant(tmp_path, text, columns, noted):
    file = write(tmp_path / "a.csv", text)
    assert list(rows(file)[0]) == columns
    assert [note[: len(noted)] for note in read(file)[2]] == ([noted] if noted else [])


def test_the_recipe_sets_a_delimiter(tmp_path):
    assert rows(write(tmp_path / "a.csv", "a,x^b\n1,2^3\n"), delimiter="^") == [{"a,x": "1,2", "b": "3"}]
    assert rows(write(tmp_path / "a.tsv", "a,b\n1,2\n"), delimiter=",") == [{"a": "1", "b": "2"}]
    assert rows(write(tmp_path / "a.rows", "a\tb,c\n1\t2\n").rename(tmp_path / "b.csv"), delimiter="\t") == [
        {"a": "1", "b,c": "2"}
    ]


def test_a_tsv_file_without_tabs(tmp_path):
    assert rows(write(tmp_path / "a.tsv", "a,b\n1,2\n")) == [{"a": "1", "b": "2"}]
    assert rows(write(tmp_path / "a.tsv", "a, b\nWell\n")) == [{"a, b": "Well"}]


def test_blanks_that_follow_every_delimiter_belong_to_it(tmp_path):
    good, _, notes = read(write(tmp_path / "a.csv", 'text, label\n"a, b", x\nc, y\n'))
    assert good == [("a, b", "x"), ("c", "y")]
    assert notes == ["F: a blank follows each ',' and is left out"]
    good, _, notes = read(write(tmp_path / "a.csv", "text, label \na, x\nb,y\n"))
    assert (good, notes) == ([("a", " x"), ("b", "y")], [])
    assert list(rows(tmp_path / "a.csv")[0]) == ["text", "label"]


# --- quotes in TSV ----------------------------------------------------------------------------------------------------


CHARACTERS = "F: quotes are read as characters, as the one that begins a field on line {} does not enclose it; "
ENCLOSE = "F: quotes enclose fields (the first on line {}) and are taken off{}; "


@pytest.mark.parametrize(
    ("text", "fields", "noted"),
    [
        ('a\tb\n"He said\t0\nfine\t1\n', [('"He said', "0"), ("fine", "1")], CHARACTERS.format(2)),
        ('a\tb\n"She\t0\nleft"\t1\n', [('"She', "0"), ('left"', "1")], CHARACTERS.format(2)),
        ('a\tb\n"q"\t0\n"Oh" he\t1\n', [('"q"', "0"), ('"Oh" he', "1")], CHARACTERS.format(3)),
        ('a\tb\tc\n"q\tr"\t0\n', [('"q', 'r"', "0")], CHARACTERS.format(2)),
        ('a\tb\n"q ""r"" s"\t0\nx\t"1"\n', [('q "r" s', "0"), ("x", "1")], ENCLOSE.format(2, "")),
        ('a\tb\n"q\tr"\t0\n', [("q\tr", "0")], ENCLOSE.format(2, "")),
        ('"a"\t"b"\nx\t1\n', [("x", "1")], ENCLOSE.format(1, "")),
        ('a\tb\n"q \\"r\\""\t0\n', [('q "r"', "0")], ENCLOSE.format(2, r", and \" is read as a quote inside a field")),
        ('a\tb\nso "so\t0\n', [('so "so', "0")], ""),
    ],
)
def test_a_tsv_file_is_quoted_only_if_all_of_it_can_be(tmp_path, text, fields, noted):
    good, bad, notes = read(write(tmp_path / "a.tsv", text))
    assert (good, bad) == (fields, [])
    assert [note[: len(noted)] for note in notes] == ([noted] if noted else [])


def test_a_quote_far_down_decides_for_all_of_a_tsv_file(tmp_path):
    whole = 'a\tb\n"q"\t0\n' + "x\t1\n" * 100_000
    assert rows(write(tmp_path / "a.tsv", whole))[0]["a"] == "q"
    assert rows(write(tmp_path / "a.tsv", whole + '"open\t1\n'))[0]["a"] == '"q"'


def test_the_recipe_says_what_quotes_in_a_tsv_file_are(tmp_path):
    file = write(tmp_path / "a.tsv", 'a\tb\n"line\nbreak"\t1\n"q"\t2\n')
    good, bad, notes = read(file, quoting="minimal")
    assert (good, bad) == ([("line\nbreak", "1"), ("q", "2")], [])
    assert notes == [
        'F: 1 row with line breaks in a field (lines 2 to 3); if no field has any, set data.quoting = "none"'
    ]
    assert read(file, quoting="none")[0] == [('break"', "1"), ('"q"', "2")]
    good, bad, notes = read(file)
    assert good == [('break"', "1"), ('"q"', "2")]
    assert bad[0][1].hint.endswith('if quotes enclose fields, set data.quoting = "minimal"')


# --- quotes in CSV ----------------------------------------------------------------------------------------------------


LITERAL = "with a quote that begins a field and does not enclose it, read as a character"


@pytest.mark.parametrize(
    ("body", "fields", "first"),
    [
        ('"He said,0\nfine,1\n"a, b",0\n', [('"He said', "0"), ("fine", "1"), ("a, b", "0")], 2),
        ('ok,1\n"to the end,0\nx,1\n', [("ok", "1"), ('"to the end', "0"), ("x", "1")], 3),
        ('x,0\ny,1\n"She,0\nleft",1\n', [("x", "0"), ("y", "1"), ('"She', "0"), ('left"', "1")], 4),
        ('"She,0\nleft",1\n"He,0\ncame",1\n', [('"She', "0"), ('left"', "1"), ('"He', "0"), ('came"', "1")], 2),
        ('"Oh" he,1\n"Oh, ""he""",0\n', [('"Oh" he', "1"), ('Oh, "he"', "0")], 2),
    ],
)
def test_a_stray_quote_joins_no_rows(tmp_path, body, fields, first):
    good, bad, notes = read(write(tmp_path / "a.csv", f"text,label\n{body}"))
    assert (good, bad) == (fields, [])
    assert LITERAL in notes[0] and f"line {first})" in notes[0] and 'data.quoting = "none"' in notes[0]


def test_a_stray_quote_whose_line_cannot_be_read_leaves_the_others_whole(tmp_path):
    file = write(tmp_path / "a.csv", 'id,text\n1,one\n2,"two, or\n3,three\n4,four\n')
    good, [(place, row)], _ = read(file)
    assert good == [("1", "one"), ("3", "three"), ("4", "four")]
    assert (place, row.kind) == ("line 3", "a quote that is not closed")
    assert row.message == "a quote opens a field but does not close it (unexpected end of data)"
    error = mistake(file)
    assert error.message == f"`{file}`, line 3: {row.message}"
    assert 'data.quoting = "none"' in error.hint and "a quote inside it must be doubled" in error.hint


def test_a_stray_quote_in_the_header_is_told(tmp_path):
    file = write(tmp_path / "a.csv", '"text,label\none,1\n')
    assert mistake(file).message.startswith(f"`{file}`, line 1: a quote opens a field")


@pytest.mark.parametrize(
    "field", ["Well, I think\nso, or not", "one\n\ntwo", "a\nb,c", "I paid 1,000\nand 2,000 back", 'x\n"y", 1\nz']
)
def test_fields_with_line_breaks_stay_whole_and_are_counted(tmp_path, field):
    file = write_csv(tmp_path / "a.csv", [("text", "label"), ("x", "0"), (field, "1"), ("y", "1")])
    good, bad, notes = read(file)
    assert (good, bad) == ([("x", "0"), (field, "1"), ("y", "1")], [])
    last = 3 + field.count("\n")
    assert notes == [
        f'F: 1 row with line breaks in a field (lines 3 to {last}); if no field has any, set data.quoting = "none"'
    ]


def test_no_quote_of_a_csv_file_is_taken_off_where_the_recipe_says_so(tmp_path):
    file = write(tmp_path / "a.csv", 'text,label\n"one",1\n"two,0\n')
    assert read(file, quoting="none") == ([('"one"', "1"), ('"two', "0")], [], [])


@pytest.mark.parametrize(
    ("body", "texts", "backslash"),
    [
        (r'"He said \"hi\"",1', ['He said "hi"'], True),
        (r'"He said \"hi\", he",1|"C:\\",0|plain \n,1', ['He said "hi", he', "C:\\", r"plain \n"], True),
        (r'"C:\dir\",1|"He said ""hi""",0', ["C:\\dir\\", 'He said "hi"'], False),
        (r"so \"so\",1", [r"so \"so\""], False),
    ],
)
def test_backslashes_before_quotes(tmp_path, body, texts, backslash):
    good, bad, notes = read(write(tmp_path / "a.csv", "text,label\n" + body.replace("|", "\n") + "\n"))
    assert ([text for text, _ in good], bad) == (texts, [])
    assert (
        notes == [r"F: \" is read as a quote inside a field, as a backslash marks such quotes in this file"] * backslash
    )


# --- odd rows ---------------------------------------------------------------------------------------------------------


def test_a_ragged_csv_file(tmp_path):
    file = write(tmp_path / "a.csv", 'id;text\n1;"one\nand a half"\n\n2;two;three\n')
    error = mistake(file)
    assert error.message == f"`{file}`, line 5: 3 fields where the header has 2"
    assert error.hint == "the delimiter is ';' (data.delimiter sets another); quote fields that contain it"
    assert mistake(write(file, "id,text\n1,one\n2\n")).message == f"`{file}`, line 3: 1 field where the header has 2"


def test_a_ragged_row_leaves_the_others_whole(tmp_path):
    good, bad, notes = read(write(tmp_path / "a.csv", "a,b\n1,2\n3\n4,5,6\n7,8,,\n   \n,\n9,10\n"))
    assert good == [("1", "2"), ("7", "8"), ("", ""), ("9", "10")]
    assert [(place, row.message, row.kind) for place, row in bad] == [
        ("line 3", "1 field where the header has 2", "missing or extra fields"),
        ("line 4", "3 fields where the header has 2", "missing or extra fields"),
    ]
    assert notes == ["F: 1 row with empty fields beyond the header's, which are left out (line 5)"]


def test_carriage_returns(tmp_path):
    good, [(place, row)], _ = read(write(tmp_path / "a.csv", "a,b\n1,x\ry\n3,4\n"))
    assert (good, place, row.kind) == ([("3", "4")], "line 2", "carriage return in a field")
    (tmp_path / "a.csv").write_bytes(b'a,b\n1,"x\ry"\n"3, 4",5\r\n')
    assert read(tmp_path / "a.csv")[:2] == ([("1", "x\ry"), ("3, 4", "5")], [])
    (tmp_path / "a.csv").write_bytes(b"a,b\r1,2\r3,4\r")  # as on an old Mac
    assert read(tmp_path / "a.csv") == ([("1", "2"), ("3", "4")], [], [])


def test_a_byte_that_is_no_text_stays_an_error(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"a,b\n" + b"1,2\n" * 500_000 + b"\xe9,3\n")
    with pytest.raises(UserError, match="line 500002: byte 0xe9 is not utf-8"):
        read(file)


# --- the header -------------------------------------------------------------------------------------------------------


def test_a_column_without_a_name(tmp_path):
    file = tmp_path / "a.csv"
    good, _, notes = read(write(file, "a; ;c\n0;1;2\n"))
    assert (good, notes) == ([("0", "1", "2")], ["F: columns without a name are called by their number: 2"])
    assert rows(file) == [{"a": "0", "2": "1", "c": "2"}]
    assert (
        mistake(write(file, "My table,,\ntext,label,id\na,b,1\n")).message == f"`{file}`, line 1: column 2 has no name"
    )
    assert mistake(write(file, "gj04\t1\t\tOur friends\ngj04\t0\t*\tThey\n")).hint.startswith(
        "if the first line is data (`1` is a number), set data.header = false; otherwise "
    )


def test_the_index_that_pandas_writes_is_no_column(tmp_path):
    file = write(tmp_path / "a.csv", ",text,label\n0,one,x\n1,two,y\n")
    assert rows(file) == [{"text": "one", "label": "x"}, {"text": "two", "label": "y"}]
    assert read(file)[2] == ["F: the first column has no name and is left out, as the index that pandas writes"]
    assert rows(file, column_names=("a", "b"))[0] == {"a": "one", "b": "x"}


def test_two_columns_of_one_name(tmp_path):
    for header in ("text,id,text", " text,id,text "):
        file = write(tmp_path / "a.csv", f"{header}\none,1,two\n")
        assert mistake(file).message == f"`{file}`, line 1: 2 columns are called `text`"
        assert mistake(file).hint == "give every column a unique name"
    assert rows(write(file, "Text,text\none,two\n")) == [{"Text": "one", "text": "two"}]


def test_a_table_without_a_header(tmp_path):
    file = write(tmp_path / "a.csv", '"3","A title","a text"\n"4","Another, too","b"\n')
    assert rows(file, header=False)[1] == {"1": "4", "2": "Another, too", "3": "b"}
    assert rows(file, header=False, column_names=("label", "title", "text"))[0]["text"] == "a text"
    assert len(rows(file)) == 1
    with pytest.raises(UserError) as caught:
        rows(file, header=False, column_names=("label", "text"))
    assert caught.value.message == f"`{file}`, line 1: 3 fields, but data.column_names has 2 names"
    good, bad, _ = read(write(file, "a\nb,1\nc,2\nd,3\n"), header=False, delimiter=",")
    assert (good, bad[0][0]) == ([("b", "1"), ("c", "2"), ("d", "3")], "line 1")
    assert bad[0][1].message == "1 field where most rows have 2"


def test_names_in_the_recipe_replace_a_header(tmp_path):
    file = write(tmp_path / "a.csv", "x,x\none,1\n")
    assert rows(file, column_names=("text", "label")) == [{"text": "one", "label": "1"}]
    assert read(file, column_names=("text", "label"))[2] == [
        "F: data.column_names replaces its first line, `x, x`; if that is data, set data.header = false"
    ]
    assert read(file, column_names=("text", "label"), header=True)[2] == []
    with pytest.raises(UserError, match="2 columns are called `a`"):
        rows(file, column_names=("a", "a"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"3","Wall St. Bears","a text"\n"4","b","c"\n', "`3` is a number"),
        ("I liked it.,pos\nI did not like it,neg\n", "`I liked it.` is a text"),
        ("nice,pos\nbad,neg\nok,pos\nfine,neg\n", "`pos` stands again in its column"),
        ("2020-01-02,x\n2020-01-03,y\n", "`2020-01-02` is a number or a date"),
        ("https://a.org,x\nhttps://b.org,y\n", "a name is an address"),
    ],
)
def test_a_first_line_that_looks_like_data_is_said(tmp_path, text, reason):
    file = write(tmp_path / "a.csv", text)
    assert read(file)[2] == [
        f"the first line of F looks like data ({reason}): if it is, set data.header = false "
        "(columns are then called 1, 2, ...)"
    ]
    assert read(file, header=True)[2] == read(file, header=False)[2] == []


@pytest.mark.parametrize(
    "header",
    ["text,label", "sentence1,sentence2", "Quality,#1 ID", "id,q1", "How old are you?,Is it good?", "Text (EN),No."],
)
def test_ordinary_headers_are_not_taken_for_data(tmp_path, header):
    assert read(write(tmp_path / "a.csv", f"{header}\n3,yes\n4,no\n5,yes\n"))[2] == []


def test_columns_that_pandas_counts_are_said(tmp_path):
    note = "F: its columns are called 0, 1, as pandas calls those without names; if that line is data, "
    assert read(write(tmp_path / "a.csv", "0,1\na,b\n"))[2] == [note + "set data.header = false"]
    assert len(read(write(tmp_path / "a.csv", "0,5\na,b\n"))[2]) == 1


def test_a_header_in_the_middle_is_left_out(tmp_path):
    file = write(tmp_path / "a.csv", "text,label\na,1\ntext,label\ntext,1\ntext,label\nb,0\n")
    good, bad, notes = read(file)
    assert (good, bad) == ([("a", "1"), ("text", "1"), ("b", "0")], [])
    assert notes == ["F: 2 lines left out: the header again (such as line 3)"]


def test_a_header_in_the_middle_is_known_in_other_letters(tmp_path):
    file = write(tmp_path / "a.csv", "text,label\na,1\nText, LABEL \nlabel,text\n")
    good, bad, notes = read(file)
    assert (good, bad) == ([("a", "1"), ("label", "text")], [])
    assert notes == ["F: 1 line left out: the header again (line 3)"]


def test_fields_without_a_name_at_the_end_of_a_header_are_no_columns_if_they_are_empty(tmp_path):
    file = write(tmp_path / "a.csv", "text,label,,\na,1,,\nb,2,,\n")
    good, bad, notes = read(file)
    assert (good, bad) == ([("a", "1"), ("b", "2")], [])
    assert notes == ["F: 2 rows with empty fields beyond the header's, which are left out (such as line 2)"]
    assert rows(write(file, "text,label,,\na,1,,\nb,2,more,\n")) == [
        {"text": "a", "label": "1", "3": "", "4": ""},
        {"text": "b", "label": "2", "3": "more", "4": ""},
    ]
    late = "text,label,\n" + "a,1,\n" * 300 + "b,2,late\n"
    good, bad, _ = read(write(file, late))
    assert len(good) == 300
    assert [(place, row.message) for place, row in bad] == [("line 302", "3 fields where the header has 2")]


def test_rows_without_anything_are_left_out_at_the_end_alone(tmp_path):
    file = write(tmp_path / "a.csv", "text,label\n,\na,1\n,\n\nb,2\n,\n\n,\n")
    good, bad, notes = read(file)
    assert (good, bad) == ([("", ""), ("a", "1"), ("", ""), ("b", "2")], [])
    assert notes == ["F: 2 rows at the end left out: every field is empty (such as line 7)"]
    assert rows(write(file, 'text\na\n""\n')) == [{"text": "a"}, {"text": ""}]


def test_a_wide_table_is_read_in_linear_time(tmp_path):
    def seconds(width):
        file = write_csv(tmp_path / "a.csv", [[f"c{n}" for n in range(width)], *[list(range(width))] * 3])
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            assert len(rows(file)[0]) == width
            times.append(time.perf_counter() - begin)
        return min(times)

    assert seconds(40_000) < 4 * seconds(20_000)


def test_every_field_comes_back_as_it_was_written(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("n", "text"), *enumerate(ODD)])
    assert rows(tmp_path / "a.csv") == [{"n": str(n), "text": text} for n, text in enumerate(ODD)]
