"""Conversations that are already written out in one text are recognised by their marks."""

import pytest

from llmkit.data.rows import conversations as reader
from llmkit.data.rows import written_out
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChatData


def table(*rows):
    return Rows(lambda: iter([("", row) for row in rows]), tuple(rows[0]), {}, "", "`x`")


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("### Human: who?### Assistant: the fox", "### Human:"),
        ("### Instruction:\nwho?\n\n### Response:\nthe fox", "### Instruction:"),
        ("\n\nHuman: who?\n\nAssistant: the fox", "Human:"),
        ("USER: who? ASSISTANT: the fox", "USER:"),
        ("Q: who?\nA: the fox", "Q:"),
        ("<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\nthe fox<|im_end|>", "<|im_start|>"),
        ("<s>[INST] who? [/INST] the fox</s>", "[INST]"),
        ("<|user|>\nwho?\n<|assistant|>\nthe fox", "<|user|>"),
        ("who saw it? the fox.", None),
        ("She said: Human: a word that ends the line", None),
        ('[{"role": "user", "content": "<|im_start|>"}]', None),
        ("", None),
    ],
)
def test_the_marks_of_turns_are_found(text, mark):
    assert written_out.mark_of(table({"text": text}), "text") == mark


def test_a_few_texts_that_quote_a_conversation_are_not_the_column():
    quoted = {"text": "Human: who?\nAssistant: the fox"}
    assert written_out.mark_of(table(quoted, {"text": "a"}, {"text": "b"}), "text") is None


@pytest.mark.parametrize("column", ["text", "messages", "prompt"])
def test_a_column_that_is_written_out_is_named_with_the_way(column):
    with pytest.raises(UserError) as caught:
        reader.resolve_columns(ChatData(path="x"), table({"id": 1, column: "### Human: who?### Assistant: the fox"}))
    assert f"`{column}` holds conversations already formatted as text" in caught.value.message
    assert f"data.text_column={column}" in caught.value.hint
    assert "split each text at its marks (`### Human:`)" in caught.value.hint


def test_of_two_prompts_the_one_that_is_not_written_out_is_read():
    row = {"prompt": "### Instruction: who? ### Response: the fox", "instruction": "who?", "output": "the fox"}
    assert reader.resolve_columns(ChatData(path="x"), table(row)) == {"prompt": "instruction", "completion": "output"}
