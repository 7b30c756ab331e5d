"""Rows of conversations: columns by name whatever their case, and what is left out for which fault."""

import json

import pytest

from llmkit.data.rows import conversations as reader
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.splits import tables
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChatData
from llmkit.recipe.table import ReadOnly

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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "instruction context response category",
            {"prompt": "instruction", "completion": "response", "input": "context"},
        ),
        (
            "id system_prompt question response",
            {"prompt": "question", "completion": "response", "system": "system_prompt"},
        ),
        ("question answer", {"prompt": "question", "completion": "answer"}),
        ("input output", {"prompt": "input", "completion": "output"}),
        ("conversation system", {"messages": "conversation", "system": "system"}),
    ],
)
def test_the_columns_of_known_sets_are_found(names, expected):
    assert resolved(*names.split()) == expected


def test_companions_are_what_they_hold():
    def found(**row):
        row = {"messages": [USER, SAYS], **row}
        return reader.resolve_columns(ChatData(path="x"), Rows(lambda: iter([("", row)]), tuple(row), {}, "", "`x`"))

    beside = {"system": "be brief", "tools": "[]", "history": [["a", "b"]]}
    assert found(**beside) == {"messages": "messages", "system": "system", "tools": "tools", "history": "history"}
    assert found(system=None, tools=None, history=None) == found(**beside)
    assert found(system=4, tools="hammer, saw", history="long ago") == {"messages": "messages"}


def talk(row, **keys):
    data = ChatData(path="x", **keys)
    columns = reader.resolve_columns(data, Rows(lambda: iter([("", row)]), tuple(row), {}, "", "`x`"))
    return reader.conversation(row, columns, data)


def test_what_stands_beside_a_conversation_is_read():
    tool = {"type": "function", "function": {"name": "add"}}
    found = talk({"messages": [USER, SAYS], "system": " be brief\n", "tools": json.dumps([{"name": "add"}])})
    assert found.messages == [{"role": "system", "content": " be brief\n"}, USER, SAYS]
    assert found.tools == [tool]
    row = {"instruction": "who", "input": "saw it?", "output": "the fox", "system": "", "history": [["a", "b"]]}
    found = talk(row)
    assert [message["content"] for message in found.messages] == ["a", "b", "who\n\nsaw it?", "the fox"]
    assert found.learned == [False, True, False, True]
    assert talk({**row, "system": "be brief"}, system_prompt="be long").messages[0]["content"] == "be brief"
    assert talk(row, system_prompt="be long").messages[0]["content"] == "be long"


def test_a_system_message_that_the_column_repeats_stands_once():
    brief = {"role": "system", "content": "be brief"}
    assert talk({"messages": [brief, USER, SAYS], "system": "be brief"}).messages == [brief, USER, SAYS]
    found = talk({"messages": [brief, USER, SAYS], "system": "be kind"})
    assert found.messages[0]["content"] == "be kind\n\nbe brief"
    assert found.mended == "two turns of one speaker joined by a blank line"


def test_a_companion_that_the_first_rows_lack_is_read_all_the_same(tmp_path):
    rows = [{"messages": [USER, SAYS]}] * 200 + [{"messages": [USER, SAYS], "system": "be brief"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ChatData(path=str(tmp_path / "x.jsonl"))
    found = tables(data, 0, reader)
    *_, last = found.train
    assert len(reader.conversation(last[1], found.columns, data).messages) == 3


def test_a_file_without_the_companions_of_another_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [USER, SAYS], "system": "be brief"}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": [USER, SAYS]}) + "\n")
    assert len(list(tables(ChatData(path=f"{tmp_path}/*.jsonl"), 0, reader).train)) == 2


def test_earlier_versions_read_the_messages_alone(tmp_path):
    row = {"messages": [USER, {**SAYS, "weight": 0}], "system": "be brief"}
    found = talk(row, companions=False)
    assert (found.messages, found.learned) == ([USER, {**SAYS, "weight": 0}], [False, True])
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps({"messages": [USER, SAYS]}) + "\n")
    then, now, mapped = (
        tables(ChatData(path=str(file), **keys), 0, reader).train.fingerprint
        for keys in ({"companions": False}, {"max_skipped_fraction": 1}, {"role_map": ReadOnly({"nurse": "user"})})
    )
    from llmkit.data.rows.table import open_files

    assert then == open_files(ChatData(path=str(file)), "train").fingerprint
    assert len({then, now, mapped}) == 3


def test_mended_rows_and_rows_with_nothing_to_learn_are_counted(tmp_path):
    rows = [[USER, SAYS]] * 50 + [[SAYS, USER, SAYS], [USER, SAYS, USER], [USER, {**SAYS, "weight": 0}]]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    found = tables(ChatData(path=str(file)), 0, reader)
    assert found.record == {
        "mended": {
            "train": {
                "a first turn of the assistant left out": 1,
                "an unanswered last turn cut off": 1,
            }
        },
    }
    assert f"`{file}`: 1 row left out: each answer is marked as not to be learned" in found.notes
    assert f"1 row mended: a first turn of the assistant left out, such as `{file}`, line 51" in found.notes


def test_a_tokenizer_of_ones_own_learns_whatever_the_roles_are_called():
    row = {"m": [{"role": "nurse", "content": "who?"}], "s": "be brief"}
    assert list(reader.texts(row, {"messages": "m", "system": "s"})) == ["be brief", "who?"]


def test_keys_that_exclude_one_another_are_named():
    with pytest.raises(UserError) as caught:
        resolved("messages", "prompt", messages_column="messages", prompt_column="prompt")
    assert caught.value.hint == "remove data.prompt_column, or data.messages_column"


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([USER, {**SAYS, "content": " "}], "empty answer"),
        ([{**USER, "content": ""}, SAYS], "empty message"),
        ([SAYS, USER], "roles out of turn"),
        ([USER, {**SAYS, "train": False}], "nothing to learn, by its weights"),
        ([USER], "roles out of turn"),
        ([], "empty conversation"),
        ("{", "not JSON"),
        (None, "not a list of messages"),
        ([USER, {**SAYS, "content": 4}], "a message is not text"),
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


def test_rows_marked_as_not_to_be_learned_are_no_faults_however_many(tmp_path):
    rows = [{"messages": [USER, {**SAYS, "train": n % 2 == 0}]} for n in range(40)]
    rows += [{"messages": json.dumps(row["messages"])} for row in rows]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tables(ChatData(path=str(file)), 0, reader)
    assert (len(list(found.train)), found.record) == (40, {})
    assert f"`{file}`: 40 rows left out: each answer is marked as not to be learned" in found.notes


def test_a_file_in_which_nothing_is_to_be_learned_is_refused(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"messages": [USER, {**SAYS, "weight": 0}]}) + "\n")
    with pytest.raises(UserError, match="nothing to learn: all 1 rows are marked as not to be learned"):
        tables(ChatData(path=str(file)), 0, reader)
