"""Rows of multiple choice: which column is which, how choices are read, and what can be wrong with a row."""

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

from llmkit.data.files import text_of
from llmkit.data.rows.reader import Examined, Unusable
from llmkit.data.rows.table import Rows, need
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChoiceData

if TYPE_CHECKING:
    from llmkit.data.rows import choices
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = choices


LABEL_ROLES = ("answer",)  # the roles of columns that only training and evaluation read
# Names of columns that data sets use. Where the context is one of BEGUN, the column beside it begins every choice.
BEGUN = {"sent1": "sent2", "ctx_a": "ctx_b"}
CONTEXTS = ("context", "article", "passage", "premise", "story", "startphrase", "ctx")
QUESTIONS = ("question", "question_stem", "query", "goal")
LISTS = ("choices", "options", "endings", "choice")
NUMBERED = re.compile(r"(?P<stem>(?:ending|choice|option|answer|sol)_?)(?P<key>\d+|[A-Za-z])|(?P<letter>[A-Z])")
ANSWERS = ("label", "labels", "answer", "answerKey", "answer_key")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHOWN = 40  # characters of an answer in a message


def resolve_columns(data: ChoiceData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column is the `context`, the `question`, the `beginning` of every choice, and the `answer`.

    The choices are one column, `choices`, or many, `choice0` and so on. Raises UserError where that is not clear.
    """
    found: dict[str, str | None] = {"context": data.context_column, "question": data.question_column}
    found |= _choice_columns(data, rows)
    found["answer"] = data.answer_column if labelled else None
    for role, name in found.items():
        if name is not None:
            need(rows, name, "choices" if role.startswith("choice") else role)
    left = [name for name in rows.columns if name not in found.values()]
    if found["question"] is None:
        found["question"] = next((name for name in QUESTIONS if name in left), None)
    if found["context"] is None:
        known = [name for name in BEGUN if name in left] or [name for name in CONTEXTS if name in left]
        if len(known) > 1 or (not known and found["question"] is None):
            _ask(rows, "context", "is read before the choices")
        found["context"] = next(iter(known), None)
    beginning = BEGUN.get(found["context"] or "")
    found["beginning"] = beginning if beginning in left else None
    if labelled and found["answer"] is None:
        known = [name for name in ANSWERS if name in left]
        if len(known) != 1:
            _ask(rows, "answer", "says which choice is right")
        found["answer"] = known[0]
    return {role: name for role, name in found.items() if name is not None}


def _choice_columns(data: ChoiceData, rows: Rows) -> dict[str, str]:
    named: str | Sequence[str] | None = data.choices_column
    if named is None:
        series: dict[str, dict[int, str]] = {}
        for name in rows.columns:
            if match := NUMBERED.fullmatch(name):
                key = match["key"] or match["letter"]
                place = int(key) if key.isdecimal() else LETTERS.index(key.upper())
                series.setdefault(match["stem"] or "", {})[place] = name
        candidates: list[str | Sequence[str]] = [
            *(name for name in LISTS if name in rows.columns and name != data.answer_column),
            *([each[place] for place in sorted(each)] for each in series.values() if _without_gaps(sorted(each))),
        ]
        if len(candidates) != 1:
            _ask(rows, "choices", "holds the choices (or which, of one for each)")
        named = candidates[0]
    if isinstance(named, str):
        return {"choices": named}
    return {f"choice{number}": name for number, name in enumerate(named)}


def _without_gaps(places: list[int]) -> bool:
    """Two at least, counted from 0 or 1."""
    return len(places) > 1 and places[0] < 2 and places == list(range(places[0], places[0] + len(places)))


def _ask(rows: Rows, key: str, what: str) -> NoReturn:
    raise UserError(
        f"{rows.source}: which column {what}?", f"set data.{key}_column, of the columns {', '.join(rows.columns)}"
    )


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """Yield what a tokenizer of one's own is trained on."""
    for role, name in columns.items():
        if role not in LABEL_ROLES:
            yield from _strings(_parsed(row.get(name)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(value.get("text"))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings, value))


def _parsed(value: Any) -> Any:
    """A cell of a CSV that holds a JSON list or table, as that; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with suppress(ValueError):
            return json.loads(value)
    return value


def read_beginnings(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> tuple[str, str]:
    """What is read before the choices of a row, and what begins every one of them."""
    found = {}
    for role in ("context", "question", "beginning"):
        name = columns.get(role)
        if name is not None:
            value = _parsed(row.get(name))
            lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
            plain = {**row, name: "\n".join(value)} if lines else row
            key = "context" if role == "beginning" else role
            found[role] = text_of(plain, name, place, f"data.{key}_column").strip()
    return " ".join(filter(None, map(found.get, ("context", "question")))), found.get("beginning", "")


def read_choices(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> tuple[list[str], list[str] | None]:
    """Read the choices of a row, and what the data calls them ("A", "1"), if it does; ValueError where they are none.

    They are a list of texts, a list of tables with `text` and `label`, a table of two such lists, or one column for
    each, of which the last may be empty.
    """
    names: Any = None
    if "choices" in columns:
        column = columns["choices"]
        value = _parsed(row.get(column))
        if isinstance(value, Mapping):
            names, value = value.get("label"), value.get("text")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            names = [each["label"] for each in value if "label" in each] or None
            value = [each.get("text") for each in value]
        if value is None or value == "":
            raise ValueError("no choices")
        if not isinstance(value, list):
            raise ValueError(f"`{column}` holds {json.dumps(value, default=str)[:SHOWN]}, which is no list of choices")
    else:
        own = [(name, row.get(name)) for role, name in columns.items() if role.startswith("choice")]
        while own and own[-1][1] in (None, ""):
            own.pop()
        column, value = "its choices", [each for _, each in own]
    found = [str(each) if isinstance(each, int | float) else each for each in value]
    choices = [text_of({column: each}, column, place, "data.choices_column").strip() for each in found]
    if len(choices) < 2:
        raise ValueError(f"{len(choices) or 'no'} choice{'s' * (not choices)}, where two at least are expected")
    if names is not None and (not isinstance(names, list) or len(names) != len(choices)):
        raise ValueError(
            f"{len(choices)} choices and {len(names) if isinstance(names, list) else 'no'} labels for them"
        )
    return choices, None if names is None else [str(name).strip() for name in names]


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: ChoiceData, evaluation: bool) -> Examined:
    """Read the choices of a row, and its answer as it stands."""
    try:
        read_beginnings(row, columns, "")
        read_choices(row, columns, "")
    except UserError as fault:
        raise Unusable("no text", fault.message.removeprefix(": "), fault.hint) from fault
    except ValueError as fault:
        raise Unusable("the choices cannot be used", str(fault)) from fault
    if "answer" not in columns:
        return Examined()
    answer = row.get(columns["answer"])
    if answer is None or not str(answer).strip():
        raise Unusable("no answer", "no answer")
    return Examined(answer)


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: ChoiceData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw from all rows alike: the place of the right choice is no class."""
    return [None] * len(targets), {}
