"""Rows of conversations: columns by name whatever their case, and what is left out for which fault."""

import json

import pytest

from llmkit.data.rows import conversations as reader
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.splits import tables
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChatData

USER, SAYS = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "the fox"}


def resolved(*names, **keys):
    row = dict.fromkeys(names, "a")
    return reader.resolve_columns(ChatData(path="x", **keys), Rows(lambda: iter([("", row)]), names, {}, "", "`x`"))


def test_case_and_blanks_in_the_names_of_columns_do_not_count():
    assert resolved("ID", " Messages") == {"messages": " Messages"}
    expected = {"prompt": "Instruction", "completion": "Output", "input": "Input"}
    assert resolved("Instruction", "Input", "Output") == expected
    assert resolved("Ask", "Say", prompt_column="ask", completion_column="say") == {
        "prompt": "Ask",
        "completion": "Say",
    }


def test_keys_that_exclude_one_another_are_named():
    with pytest.raises(UserError) as caught:
        resolved("messages", "prompt", messages_column="messages", prompt_column="prompt")
    assert caught.value.hint == "take out data.prompt_column, or data.messages_column"


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([USER, {**SAYS, "content": " "}], "empty answer"),
        ([{**USER, "content": ""}, SAYS], "empty message"),
        ([SAYS, USER], "roles out of turn"),
        ([USER], "roles out of turn"),
        ([], "empty conversation"),
        ("{", "not JSON"),
        (None, "no list of messages"),
        ([USER, {**SAYS, "content": 4}], "a message is no text"),
        ([{**USER, "role": "bot"}, SAYS], "unknown role"),
        ([USER, {**SAYS, "content": "\ud800"}], "half a character"),
    ],
)
def test_each_fault_has_a_kind(messages, kind):
    with pytest.raises(Unusable) as caught:
        reader.examine({"m": messages}, {"messages": "m"}, ChatData(path="x"), False)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("row", "kind"),
    [({"p": "a", "c": ""}, "empty answer"), ({"p": [USER], "c": []}, "empty answer"), ({"p": "a"}, "no `c`")],
)
def test_a_prompt_without_an_answer_has_a_kind(row, kind):
    with pytest.raises(Unusable) as caught:
        reader.examine(row, {"prompt": "p", "completion": "c"}, ChatData(path="x"), False)
    assert caught.value.kind == kind


def test_empty_answers_are_left_out_and_counted(tmp_path):
    file = tmp_path / "train.jsonl"
    rows = [{"instruction": f"add {n}", "input": "", "output": "" if n % 60 == 3 else str(n)} for n in range(300)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tables(ChatData(path=str(file)), 0, reader)
    assert found.record == {"skipped": {"train": {"empty answer": 5}}}
    assert f"5 rows left out: empty answer, such as `{file}`, line 4" in found.notes
    with pytest.raises(UserError, match="5 of 300 rows cannot be used: empty answer") as caught:
        tables(ChatData(path=str(file), max_skipped_fraction=0), 0, reader)
    assert "data.max_skipped_fraction = 0.02" in caught.value.hint
