"""Rows of question answering: which column is which, where the answers stand, and what can be wrong with a row."""

import json
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmkit.data.rows.reader import Examined, Unusable, text_in
from llmkit.data.rows.table import Rows, need
from llmkit.recipe.data_tables import AnsweringData

if TYPE_CHECKING:
    from llmkit.data.rows import answering
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = answering


texts = None  # a tokenizer of the run's own is trained on the inputs
LABEL_ROLES = ("answers",)  # the roles of columns that only training and evaluation read
ANSWERS = ("answers", "answer")


def resolve_columns(data: AnsweringData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column is the `question`, the `context` and the `answers`; UserError where one is missing."""
    found = {"question": data.question_column, "context": data.context_column}
    if labelled:
        named = [data.answers_column] if data.answers_column else [name for name in ANSWERS if name in rows.columns]
        found["answers"] = named[0] if named else ANSWERS[0]
    for role, name in found.items():
        need(rows, name, role)
    return found


def read_answers(value: Any, context: str, start: Any = None) -> list[tuple[int, str]]:
    """(start, text) of each answer: the Hub's table of lists, SQuAD's list of tables, or the text alone.

    A text alone begins at `start`, or where it first occurs. ValueError for an answer that does not stand in the
    context, or not where it says.
    """
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):  # a CSV's cell, or an answer such as "[sic]"
        with suppress(ValueError):
            parsed = json.loads(value)
            if isinstance(parsed, dict) or all(isinstance(each, str | dict) for each in parsed):
                value = parsed
    if value is None or value == "":
        return []
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError("answers are a table of `text` and `answer_start`, two lists of one length")
        pairs = list(zip(starts, texts, strict=True))
    elif isinstance(value, list):
        pairs = [(a.get("answer_start"), a.get("text")) if isinstance(a, Mapping) else (None, a) for a in value]
    else:
        pairs = [(start, value)]
    return [_located(start, text, context) for start, text in pairs]


def _located(start: Any, text: Any, context: str) -> tuple[int, str]:
    if not isinstance(text, str) or not text:
        raise ValueError(f"the answer {text!r} is no text")
    shown = text if len(text) <= 40 else text[:37] + "..."
    at = context.find(text)
    if at < 0:
        raise ValueError(f'the answer "{shown}" is not in its context')
    if start is None or start == "":
        return at, text
    try:
        said = int(float(start))  # a CSV has "515", and pandas writes 515.0 where another row has none
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'the answer "{shown}" has the answer_start {start!r}, which is no number') from None
    if said < 0 or not context.startswith(text, said):
        raise ValueError(f'the answer "{shown}" does not stand at character {said} of its context, but at {at}')
    return said, text


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: AnsweringData, evaluation: bool) -> Examined:
    """Read the question, the context, and where its answers stand in it."""
    text_in(row, columns["question"])
    context = text_in(row, columns["context"])
    if "answers" not in columns:
        return Examined()
    if columns["answers"] not in row:
        raise Unusable(f"no `{columns['answers']}`", f"no `{columns['answers']}`; the row has {', '.join(row)}")
    try:
        answers = read_answers(row[columns["answers"]], context, row.get("answer_start"))
    except ValueError as fault:
        raise Unusable("the answer cannot be used", str(fault)) from fault
    return Examined(bool(answers))


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: AnsweringData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw questions with and without an answer each in their share."""
    return targets, {}
