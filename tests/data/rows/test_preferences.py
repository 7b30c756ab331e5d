"""Preferences are recognised in every shape, and what the hint says learns the better answers alone."""

import json
import re

import pytest

from llmkit.data.rows import conversations as reader
from llmkit.data.rows.splits import tables
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChatData


def says(role, text):
    return {"role": role, "content": text}


def sharegpt(who, text):
    return {"from": who, "value": text}


ASKED = says("user", "add")
SHAPES = {
    "texts": {"prompt": "add", "chosen": "good", "rejected": "bad"},
    "alpaca": {"instruction": "add", "input": "", "chosen": "good", "rejected": "bad"},
    "messages": {"prompt": [ASKED], "chosen": [says("assistant", "good")], "rejected": [says("assistant", "bad")]},
    "whole conversations": {
        "prompt": "add",
        "chosen": [ASKED, says("assistant", "good")],
        "rejected": [ASKED, says("assistant", "bad")],
        "messages": [ASKED, says("assistant", "good")],
        "score_chosen": 5.0,
        "score_rejected": 1.0,
    },
    "sharegpt": {
        "conversations": [sharegpt("human", "add")],
        "chosen": sharegpt("gpt", "good"),
        "rejected": sharegpt("gpt", "bad"),
    },
    "openai": {
        "input": {"messages": [ASKED]},
        "preferred_output": [says("assistant", "good")],
        "non_preferred_output": [says("assistant", "bad")],
    },
    "case and scores as text": {"score_chosen": "5", "Prompt": "add", "Chosen": "good", "Rejected": "bad"},
    "true or false": [
        {"prompt": "add", "completion": "good", "label": True},
        {"prompt": "add", "completion": "bad", "label": False},
    ],
    "0 or 1 as text": [
        {"question": "add", "answer": "good", "label": "1"},
        {"question": "add", "answer": "bad", "label": "0"},
    ],
    "a tag of conversations": [
        {"messages": [ASKED, says("assistant", "good")], "kto_tag": True},
        {"messages": [ASKED, says("assistant", "bad")], "kto_tag": False},
    ],
}


def written(path, rows):
    rows = rows if isinstance(rows, list) else [rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
def test_preferences_are_refused_and_the_hint_learns_the_better_answers(tmp_path, rows):
    file = written(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match="holds preferences") as caught:
        tables(ChatData(path=str(file)), 0, reader)
    keys = dict(re.findall(r"data\.(\w+)=(\S+)", caught.value.hint))
    data = ChatData(path=str(file), **keys)
    found = tables(data, 0, reader)
    talks = [reader.conversation(row, found.columns, data) for _, row in found.train]
    assert [[message["content"] for message in talk.messages] for talk in talks] == [["add", "good"]]
    assert talks[0].learned == [False, True]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "add", "response_0": "good", "response_1": "bad", "better_response_id": 0},
            "`response_0` and `response_1` are answers of one row to compare",
        ),
        ({"history": "add", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}, "`human_ref_A` and"),
        ({"question": "add", "answer_j": "good", "answer_k": "bad", "score": 1}, "`answer_j` and `answer_k`"),
    ],
)
def test_numbered_answers_with_a_judgement_are_preferences(tmp_path, row, said):
    with pytest.raises(UserError) as caught:
        tables(ChatData(path=str(written(tmp_path / "x.jsonl", row))), 0, reader)
    assert said in caught.value.message


def test_written_out_preferences_name_both(tmp_path):
    row = {"chosen": "\n\nHuman: add\n\nAssistant: good", "rejected": "\n\nHuman: add\n\nAssistant: bad"}
    with pytest.raises(UserError, match="preferences") as caught:
        tables(ChatData(path=str(written(tmp_path / "x.jsonl", row))), 0, reader)
    assert "data.text_column=chosen" in caught.value.hint
    assert "`Human:`" in caught.value.hint


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "add", "completion": "good", "label": "arithmetic"},
        {"prompt": "add", "completion": "good", "label": 3},
        {"instruction": "add", "response": "good", "chosen": True},
        {"prompt": "add", "response": "good", "score": 5},
    ],
)
def test_what_only_looks_like_preferences_is_learned(tmp_path, row):
    found = tables(ChatData(path=str(written(tmp_path / "x.jsonl", row))), 0, reader)
    assert len(list(found.train)) == 1


def test_rows_of_weight_0_are_left_out_and_counted_without_being_faults(tmp_path):
    rows = [{"prompt": f"add {n}", "completion": "x", "good": n % 4 == 0} for n in range(40)]
    file = written(tmp_path / "x.jsonl", rows)
    whole, part = (tables(ChatData(path=str(file), weight_column=name), 0, reader) for name in (None, "good"))
    assert len(list(part.train)) == 10
    assert f"`{file}`: 30 rows with `good` 0 or false left out (data.weight_column)" in part.notes
    assert part.record == {}
    assert part.train.fingerprint != whole.train.fingerprint


def test_prediction_needs_no_answers(tmp_path):
    from llmkit.data.rows.table import open_files

    data = ChatData(path=str(written(tmp_path / "x.jsonl", SHAPES["texts"])))
    assert reader.resolve_columns(data, open_files(data, "train"), labelled=False) == {"prompt": "prompt"}
