"""Files of one word a line: sentences, columns, comments, and words that look like none of these."""

import gzip

import pytest

from llmkit.data import files
from llmkit.errors import UserError

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER

"""


def read(tmp_path, text, name="a.conll"):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return list(files.read_rows(tmp_path / name))


def test_sentences_with_all_their_columns_and_the_line_of_their_first_word(tmp_path):
    assert read(tmp_path, CONLL) == [
        (
            "line 3",
            {
                "tokens": ["EU", "rejects"],
                "column_2": ["NNP", "VBZ"],
                "column_3": ["B-NP", "B-VP"],
                "tags": ["B-ORG", "O"],
            },
        ),
        ("line 6", {"tokens": ["Peter"], "column_2": ["NNP"], "column_3": ["B-NP"], "tags": ["B-PER"]}),
    ]


@pytest.mark.parametrize("name", ["a.conll", "A.BIO", "a.iob", "a.iob2", "a.bmes"])
def test_the_suffixes(tmp_path, name):
    assert files.suffix(tmp_path / name) in files.ROW_SUFFIXES
    assert read(tmp_path, "a O\nb B-X", name) == [("line 1", {"tokens": ["a", "b"], "tags": ["O", "B-X"]})]


def test_gzip_windows_line_ends_a_byte_order_mark_and_no_last_line_break(tmp_path):
    (tmp_path / "a.bio.gz").write_bytes(gzip.compress("\ufeffa O\r\n\r\n \t\r\nb  B-X\r\n".encode()))
    rows = list(files.read_rows(tmp_path / "a.bio.gz"))
    assert rows == [("line 1", {"tokens": ["a"], "tags": ["O"]}), ("line 4", {"tokens": ["b"], "tags": ["B-X"]})]


def test_a_new_document_ends_a_sentence_without_a_blank_line(tmp_path):
    rows = read(tmp_path, "a O\n-DOCSTART- O\nb O\n")
    assert [row["tokens"] for _, row in rows] == [["a"], ["b"]]


def test_words_hold_any_space_that_is_no_blank(tmp_path):
    words = ["20\u00a0km", "a\u2028b", "c\u0085d", "\u3000"]
    for between in (" ", "\t"):
        assert read(tmp_path, "".join(f"{word}{between}O\n" for word in words))[0][1]["tokens"] == words
    assert read(tmp_path, "New York\tB-LOC\n")[0][1] == {"tokens": ["New York"], "tags": ["B-LOC"]}


def test_comments_head_a_sentence_and_have_other_columns_than_words(tmp_path):
    conllu = "# sent_id = 1\n# text = a b\na X Y O\nb X Y B-Z\n\n# sent_id = 2\n# X Y O\n#b X Y B-Z\n"
    assert [(place, row["tokens"]) for place, row in read(tmp_path, conllu)] == [
        ("line 3", ["a", "b"]),
        ("line 7", ["#", "#b"]),
    ]
    shared_task = "# id 52-a1\tdomain=en\n\nthe _ _ O\nfox _ _ B-ANIMAL\n"  # its tab would make four columns
    assert [row["tokens"] for _, row in read(tmp_path, shared_task)] == [["the", "fox"]]
    tweet = "we O\n#win O\n\n#1 O\n"
    assert [row["tokens"] for _, row in read(tmp_path, tweet)] == [["we", "#win"], ["#1"]]


def test_words_alone(tmp_path):
    assert read(tmp_path, "a\nb\n\nc\n") == [("line 1", {"tokens": ["a", "b"]}), ("line 4", {"tokens": ["c"]})]


def test_nothing(tmp_path):
    assert read(tmp_path, "") == []
    assert read(tmp_path, "\n-DOCSTART- O\n\n") == []


@pytest.mark.parametrize(
    ("text", "line", "count", "width", "between"),
    [
        ("a O\n\nb O\nc\n", 4, 1, 2, "spaces"),
        ("a O\nb X O\n", 2, 3, 2, "spaces"),
        ("a\tO\nb O\n", 2, 1, 2, "tabs"),
        ("a O\n# b c d\n", 2, 4, 2, "spaces"),  # inside a sentence there are no comments
    ],
)
def test_a_line_with_other_columns_is_an_error_with_file_and_line(tmp_path, text, line, count, width, between):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    message = f"`{tmp_path / 'a.conll'}`, line {line}: {count} columns, but the first word has {width}"
    assert caught.value.message == message
    assert f"separated by {between}" in caught.value.hint


def test_a_sentence_with_a_line_of_other_columns_is_one_bad_row(tmp_path):
    (tmp_path / "a.conll").write_text("a O\n\nb O\nc\nd X Y\n\ne O\n")
    (_, first), (place, bad), (_, last) = files.read_rows(tmp_path / "a.conll", strict=False)
    assert (first["tokens"], place, last["tokens"]) == (["a"], "line 4", ["e"])
    assert bad.message == "1 columns, but the first word has 2"


def test_a_first_column_that_counts_the_words_is_not_taken_for_them(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text("# id = 1\n1 Rain VB O\n\n1 Peter NNP B-PER\n2 sleeps VB O\n", encoding="utf-8")
    notes: list[str] = []
    found = [row for _, row in files.read_rows(file, note=notes.append)]
    assert found[1] == {
        "number": ["1", "2"],
        "tokens": ["Peter", "sleeps"],
        "column_3": ["NNP", "VB"],
        "tags": ["B-PER", "O"],
    }
    assert notes[0] == f"`{file}`: the first column counts the words, and the second is taken for them"
    for text in ("1 CD O\n2 CD O\n4 CD O\n", "1 O\n2 O\n", "2 CD O\n1 CD O\n", "1 CD O\n"):
        file.write_text(text, encoding="utf-8")
        assert next(iter(row for _, row in files.read_rows(file)))["tokens"] == [
            line.split()[0] for line in text.splitlines()
        ]
