"""Show a row as its columns hold it: each text by its role, tags under their words, an answer marked in its context."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.data.display import cut
from llmkit.data.rows.cells import ABSENT, parsed, value_at
from llmkit.data.rows.table import Rows
from llmkit.terminal import columns_of, printable

TURNS = 6  # messages of a conversation that are shown
CELL = 20  # columns of a word above its tag


def row_lines(row: Mapping[str, Any], columns: Mapping[str, str], rows: Rows, width: int) -> list[str]:
    """Write a row in lines of `width` columns: a line for each role, with its value cut at the end."""
    values = {role: value_at(row, name) for role, name in columns.items()}
    values = {role: _named(value, rows.class_names.get(columns[role], ())) for role, value in values.items()}
    words, tags = _listed(values.get("tokens")), _listed(values.get("tags"))
    if words and len(words) == len(tags):
        return tagged(words, tags, width)
    lines = []
    answers = _answers(values.get("answers"))
    for role, value in values.items():
        if role == "context" and answers and isinstance(value, str):
            lines.append(cut(f"{role}: {_marked(value, answers[0], width - len(role) - 2)}", width))
        elif role == "messages" and isinstance(turns := parsed(value), list):
            lines += [cut(_turn(turn), width) for turn in turns[:TURNS]]
            lines += [f"and {len(turns) - TURNS:,} more messages"] if len(turns) > TURNS else []
        elif role == "answers":
            lines.append(cut(f"{role}: {', '.join(answers) or 'none'}", width))
        elif value is not ABSENT:
            lines.append(cut(f"{role}: {_written(value)}", width))
    return lines


def tagged(words: Sequence[Any], tags: Sequence[Any], width: int) -> list[str]:
    """Set each tag under its word; words that do not fit are left out."""
    above, below = "", ""
    for number, (word, tag) in enumerate(zip(words, tags, strict=True)):
        word, tag = cut(str(word), CELL), cut(str(tag), CELL)
        broad = max(columns_of(word), columns_of(tag)) + 1
        if columns_of(above) + broad + 3 > width:
            return [f"{above}...", f"{below}...".rstrip()] if number else [above, below]
        above += word + " " * (broad - columns_of(word))
        below += tag + " " * (broad - columns_of(tag))
    return [above.rstrip(), below.rstrip()]


def _listed(value: Any) -> list[Any]:
    value = parsed(value)
    return value if isinstance(value, list) else value.split() if isinstance(value, str) else []


def _named(value: Any, names: Sequence[str]) -> Any:
    """Name the classes that numbers stand for."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _answers(value: Any) -> list[str]:
    value = parsed(value)
    if isinstance(value, Mapping):
        value = value.get("text")
    found = value if isinstance(value, list) else [value]
    texts = (each.get("text") if isinstance(each, Mapping) else each for each in found)
    return [text for text in texts if isinstance(text, str) and text]


def _marked(context: str, answer: str, width: int) -> str:
    """Cut a context around its answer, which stands in [[brackets]]."""
    at = context.find(answer)
    if at < 0:
        return context
    begin = max(0, at - max(10, (width - len(answer) - 10) // 2))
    left, right = context[begin:at], context[at + len(answer) :]
    return f"{'...' if begin else ''}{left}[[{answer}]]{right}"


def _turn(turn: Any) -> str:
    if not isinstance(turn, Mapping):
        return _written(turn)
    role = turn.get("role", turn.get("from", ""))
    return f"{role}: {_written(turn.get('content', turn.get('value', '')))}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else printable(json.dumps(value, ensure_ascii=False, default=str))
