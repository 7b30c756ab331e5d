"""Recognise conversations that are already written out in one text: "### Human: ... ### Assistant: ...", ChatML."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmkit.data.rows.table import Rows, first_values
from llmkit.errors import UserError

# A mark before each turn: those of chat templates, then those of plain text, which has both sides.
_TEMPLATE = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant|system)\|>|\[INST\]")
_USER = r"(?:^|\n)[ \t]*((?:###?#? ?)?(?:human|user|instruction|question|q)[ \t]*:)"
_ASSISTANT = r"\s(?:###?#? ?)?(?:assistant|response|answer|gpt|ai|bot|a)[ \t]*:"
_PLAIN = re.compile(rf"{_USER}.*?{_ASSISTANT}", re.IGNORECASE | re.DOTALL)


def mark_of(rows: Rows, column: str) -> str | None:
    """Return the mark of the turns that most of the first texts in a column have; None for any other column."""
    values = first_values(rows, column)
    marks = [mark for value in values if isinstance(value, str) and (mark := _mark(value))]
    return max(marks, key=marks.count) if marks and 2 * len(marks) > len(values) else None


def _mark(text: str) -> str | None:
    if text.lstrip()[:1] in ("[", "{") and (text.lstrip().startswith(("[{", "{")) or '"role"' in text):
        return None  # JSON, which may quote anything
    if found := _TEMPLATE.search(text):
        return found[0]
    found = _PLAIN.search(text)
    return found[1] if found else None


def refuse(rows: Rows, columns: Sequence[str]) -> None:
    """Raise UserError where one of `columns` holds conversations that are already written out."""
    for column in columns:
        if mark := mark_of(rows, column):
            raise UserError(
                f"{rows.source}: `{column}` holds conversations already formatted as text, with marks such as `{mark}`",
                way(column, mark),
            )


def way(column: str, mark: str) -> str:
    """Say how texts that are written out can be learned."""
    return (
        "to learn the whole texts, including questions: llmkit pretrain tiny/gpt2 model.name=MODEL data.path=FILE "
        f"data.text_column={column} trainer.learning_rate=5e-5; to learn only the answers, split each text at its "
        f"marks (`{mark}`) into a list of messages, each with `role` and `content`"
    )
