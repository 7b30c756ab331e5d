"""Rows of source and target: columns by name and by what they hold, several targets, and rows without one."""

import pytest

from llmkit.data.rows import pairs as reader
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.splits import tables
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import PairData

COLUMNS = {"source": "source", "target": "target"}


def settings(**keys):
    return PairData(path="-", **keys)


def resolved(row, labelled=True, **keys):
    rows = Rows(lambda: iter([("row 1", row)] * 3), tuple(row), {}, "", "`x`")
    return reader.resolve_columns(settings(**keys), rows, labelled)


@pytest.mark.parametrize(
    ("row", "keys", "expected"),
    [
        ({"Document": "a", " SUMMARY ": "b"}, {}, ("Document", " SUMMARY ")),
        ({"EN": "a", "DE": "b"}, {"source_lang": "en", "target_lang": "de"}, ("EN", "DE")),
        ({"body": "one two", "id": "x", "summary": "one two"}, {}, ("body", "summary")),
        ({"number": 3, "body": "one two", "headline": "one two"}, {"target_column": "headline"}, ("body", "headline")),
        (
            {"text": "a", "s1": "b", "s2": "c"},
            {"source_column": "Text", "target_column": ["S1", "s2"]},
            ("text", "s1 + s2"),
        ),
        ({"1": "a", "2": "b", "3": "c"}, {"source_column": "1", "target_column": "2"}, ("1", "2")),  # no header
        ({"t": {"en": "a", "de": "b"}}, {"source_column": "t.en", "target_column": "t.de"}, ("t.en", "t.de")),
        (
            {"translation": "{'en': 'a', 'de': 'b'}"},
            {"source_lang": "en", "target_lang": "de"},
            ("translation.en", "translation.de"),
        ),
    ],
)
def test_columns_are_found(row, keys, expected):
    assert tuple(resolved(row, **keys).values()) == expected
    if "target_column" not in keys or "source_column" in keys:
        assert resolved(row, labelled=False, **keys) == {"source": expected[0]}


def test_two_columns_of_text_with_nothing_to_tell_them_apart_are_asked_for():
    with pytest.raises(UserError, match=r"which column is the source\?") as caught:
        resolved({"question": "one two", "answer": "one two"})
    assert caught.value.hint == "set data.source_column and data.target_column, from: question, answer"
    with pytest.raises(UserError, match=r"which language is translated into which\?") as caught:
        resolved({"translation": "{'en': 'a', 'de': 'b'}"})
    assert "en, de" in caught.value.hint
    with pytest.raises(UserError, match="no column `c`") as caught:
        resolved({"a": "", "b": ""}, source_column="a", target_column=["b", "c"])
    assert "data.target_column" in caught.value.hint


@pytest.mark.parametrize("empty", ["", "  ", None, [], [""]])
def test_a_row_without_a_target_is_unusable(empty):
    with pytest.raises(Unusable, match="`target` is empty") as caught:
        reader.examine({"source": "red", "target": empty}, COLUMNS, settings(), False)
    assert caught.value.kind == "empty target"
    assert reader.examine({"source": "red", "target": empty}, {"source": "source"}, settings(), False).mended is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "red", "target": 3}, "column `target` holds int, not text"),
        ({"source": "red", "target": ["a", 3]}, "column `target` holds int, not text"),
        ({"source": 3, "target": "a"}, "column `source` holds int, not text"),
        ({"source": "red"}, "no `target`; the row has source"),
    ],
)
def test_what_is_no_text_is_unusable(row, message):
    with pytest.raises(Unusable, match=message):
        reader.examine(row, COLUMNS, settings(), False)


def test_lists_and_several_columns_are_references_of_which_the_first_is_learned():
    row = {"source": "", "target": ["b", "c"], "more": "d", "none": None}
    columns = {"source": "source", "target": "target + more + none"}
    assert reader.references_in(row, columns["target"]) == ["b", "c", "d"]
    assert reader.examine(row, columns, settings(), False).mended is None
    columns = {"source": "source", "target": "none + more"}
    assert (
        reader.examine(row, columns, settings(), False).mended == "the first target is empty: the next one is learned"
    )


def test_rows_without_a_target_are_left_out_and_counted(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("text,summary\n" + "".join(f"long text {n},{'' if n in (3, 9) else 'short'}\n" for n in range(50)))
    found = tables(PairData(path=str(file)), 0, reader)
    assert found.record == {"skipped": {"train": {"empty target": 2}}}
    assert f"2 rows left out: empty target, such as `{file}`, line 5" in found.notes
    assert len(list(found.train.read())) == 48


def test_one_of_several_targets_may_be_missing_in_a_row():
    assert reader.references_in({"s1": "a"}, "s1 + s2") == ["a"]
    with pytest.raises(Unusable):
        reader.references_in({"source": "a"}, "s1 + s2")
