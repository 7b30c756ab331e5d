"""Rows of multiple choice: which column is which, how choices and answers are read, and what can be wrong with them."""

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NoReturn

from llmkit.data.files import BadRow
from llmkit.data.rows.cells import ABSENT, parsed, value_at
from llmkit.data.rows.reader import Examined, Unusable, text_in
from llmkit.data.rows.table import HEAD, Rows, need, usual
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChoiceData

if TYPE_CHECKING:
    from llmkit.data.rows import choices
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = choices


LABEL_ROLES = ("answer",)  # the roles of columns that only training and evaluation read
reshape = None  # rows are read as they come
# Names of columns that data sets use. Where the context is one of BEGUN, the column beside it begins every choice.
BEGUN = {"sent1": "sent2", "ctx_a": "ctx_b"}
CONTEXTS = ("context", "article", "passage", "premise", "story", "startphrase", "ctx", "sentence")
QUESTIONS = ("question", "question_stem", "query", "goal")
LISTS = ("choices", "options", "endings", "choice")
NUMBERED = re.compile(r"(?P<stem>(?:ending|choice|option|answer|sol)_?)(?P<key>\d+|[A-Za-z])|(?P<letter>[A-Z])", re.I)
ANSWERS = ("label", "labels", "answer", "answerKey", "answer_key")
MARK = re.compile(r"\(?(\w)[).:]*")  # "(A)", "A."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHOWN = 40  # characters of an answer in a message
# What an answer may be, in the order in which it is taken for it: "counted" is a number that counts from 1.
KINDS = {
    "name": "the name",
    "number": "the number",
    "letter": "the letter",
    "text": "the text",
    "counted": "the number",
}
CLEAR = 20  # rows that show, none of them with an answer 0, that answers count from 1
FROM_ONE = "the answers are numbers that count from 1"
CHOICES_HINT = (
    'choices are a list of texts (in a CSV, JSON: ["a", "b"]), a table of `text` and `label`, or one column each'
)
ANSWER_HINT = "write an answer as the number of a choice (from 0), its letter (A, B, ...), its label or its text"


def resolve_columns(data: ChoiceData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column is the `context`, the `question`, the `beginning` of every choice, and the `answer`.

    The choices are one column, `choices`, or many, `choice0` and so on. Raises UserError where that is not clear.
    """
    head = [row for _, row in islice(rows, HEAD) if not isinstance(row, BadRow)]
    found: dict[str, str | None] = {"context": data.context_column, "question": data.question_column}
    found |= _choice_columns(data, rows, head)
    found["answer"] = data.answer_column if labelled else None
    for role, name in found.items():
        if name is not None:
            found[role] = need(rows, name, "choices" if role.startswith("choice") else role)
    left = [name for name in rows.columns if name not in found.values()]

    def usual_left(names: Iterable[str]) -> list[str]:
        return [name for name in usual(rows, names) if name in left]

    if found["question"] is None:
        stems = [f"{name}.stem" for name in usual_left(QUESTIONS) if _holds_choices(head, name)]
        found["question"] = next(iter(stems or usual_left(QUESTIONS)), None)
    if found["context"] is None:
        known = usual_left(BEGUN) or usual_left(CONTEXTS)
        if len(known) > 1 or (not known and found["question"] is None):
            _ask(rows, "context", "is read before the choices")
        found["context"] = next(iter(known), None)
    beginning = BEGUN.get((found["context"] or "").strip().casefold())
    found["beginning"] = next(iter(usual_left([beginning] if beginning else [])), None)
    if labelled and found["answer"] is None:
        known = usual_left(ANSWERS)
        if len(known) != 1:
            _ask(rows, "answer", "says which choice is right")
        found["answer"] = known[0]
    return {role: name for role, name in found.items() if name is not None}


def _choice_columns(data: ChoiceData, rows: Rows, head: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    named: str | Sequence[str] | None = data.choices_column
    if named is None:
        series: dict[str, dict[int, str]] = {}
        for name in rows.columns:
            if (match := NUMBERED.fullmatch(name.strip())) and (match["stem"] or match["letter"].isupper()):
                key = match["key"] or match["letter"]
                place = int(key) if key.isdecimal() else LETTERS.index(key.upper())
                series.setdefault((match["stem"] or "").casefold(), {})[place] = name
        candidates: list[str | Sequence[str]] = [
            *(name for name in usual(rows, LISTS) if name != data.answer_column),
            *([each[place] for place in sorted(each)] for each in series.values() if _without_gaps(sorted(each))),
            *(f"{name}.choices" for name in usual(rows, QUESTIONS) if _holds_choices(head, name)),
        ]
        if not candidates:
            candidates = [name for name in rows.columns if name != data.context_column and _all_lists(head, name)]
        if len(candidates) != 1:
            _ask(rows, "choices", "holds the choices (or which columns, one for each)")
        named = candidates[0]
    if isinstance(named, str):
        return {"choices": named}
    return {f"choice{number}": name for number, name in enumerate(named)}


def _holds_choices(head: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Tell whether a column holds tables of a question's `stem` and its `choices`, as ARC's files do."""
    return bool(head) and value_at(head[0], f"{name}.stem") is not ABSENT is not value_at(head[0], f"{name}.choices")


def _all_lists(head: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Tell whether a column without a usual name holds lists of two texts at least, and is not the context."""
    if name.strip().casefold() in CONTEXTS:
        return False
    cells = [parsed(value_at(row, name)) for row in head]
    return bool(cells) and all(
        isinstance(cell, list) and len(cell) > 1 and all(isinstance(each, str) for each in cell) for cell in cells
    )


def _without_gaps(places: list[int]) -> bool:
    """Two at least, counted from 0 or 1."""
    return len(places) > 1 and places[0] < 2 and places == list(range(places[0], places[0] + len(places)))


def _ask(rows: Rows, key: str, what: str) -> NoReturn:
    raise UserError(
        f"{rows.source}: which column {what}?", f"set data.{key}_column; the columns are {', '.join(rows.columns)}"
    )


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """Yield what a tokenizer of one's own is trained on."""
    for role, name in columns.items():
        if role not in LABEL_ROLES:
            yield from _strings(parsed(value_at(row, name)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(value["text"] if "text" in value else list(value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings, value))


def read_beginnings(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, str]:
    """Return what is read before the choices of a row, and what begins every one of them."""
    found = {}
    for role in ("context", "question", "beginning"):
        name = columns.get(role)
        if name is not None:
            value = parsed(value_at(row, name))
            lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
            found[role] = text_in({name: "\n".join(value)} if lines else row, name).strip()
    return " ".join(filter(None, map(found.get, ("context", "question")))), found.get("beginning", "")


def read_choices(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[str], list[str] | None]:
    """Read the choices of a row, and what the data calls them ("A", "1"), if it does; raise Unusable for no choices.

    They are a list of texts, a list of tables with `text` and `label`, a table of two such lists or from label to
    text, or one column for each, of which the last may be empty.
    """
    names: Any = None
    if "choices" in columns:
        column = columns["choices"]
        value = parsed(value_at(row, column))
        if isinstance(value, Mapping) and "text" in value:
            names, value = value.get("label"), value["text"]
        elif isinstance(value, Mapping):  # {"A": "...", "B": "..."}; null where a row has fewer
            names = [name for name, each in value.items() if each is not None]
            value = [value[name] for name in names]
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            names = [each["label"] for each in value if "label" in each] or None
            value = [each.get("text") for each in value]
        if value is None or value is ABSENT or value == "":
            value = []
        if not isinstance(value, list):
            shown = json.dumps(value, default=str, ensure_ascii=False)[:SHOWN]
            raise Unusable(
                "not a list of choices", f"`{column}` holds {shown}, which is not a list of choices", CHOICES_HINT
            )
    else:
        own = [(name, value_at(row, name)) for role, name in columns.items() if role.startswith("choice")]
        while own and own[-1][1] in (None, "", ABSENT):
            own.pop()
        column, value = "its choices", [each for _, each in own]
    found = [str(each) if isinstance(each, int | float) else each for each in value]
    choices = [text_in({column: each}, column).strip() for each in found]
    if len(choices) < 2:
        message = f"{len(choices) or 'no'} choice{'s' * (not choices)}, where at least two are expected"
        raise Unusable("fewer than two choices", message, CHOICES_HINT)
    if names is not None and (not isinstance(names, list) or len(names) != len(choices)):
        count = len(names) if isinstance(names, list) else "no"
        raise Unusable("choices without labels", f"{len(choices)} choices and {count} labels for them", CHOICES_HINT)
    return choices, None if names is None else [str(name).strip() for name in names]


def readings(
    choices: Sequence[str], names: Sequence[str] | None, answer: Any, base: int | None = None
) -> dict[str, int]:
    """Return the place of the choice that an answer means, by each of KINDS that it can be read as.

    Where the data has names for the choices, an answer is never the number or the letter of one: theirs may differ.
    Numbers count from `base`; where that is None, from 0 or, as "counted", from 1.
    """
    text = str(answer).strip()
    found = {}
    mark = None if text in choices else MARK.fullmatch(text)
    bare = mark[1] if mark else text
    if names is not None and (text in names or bare in names):
        found["name"] = names.index(text if text in names else bare)
    number = number_in(answer)
    if names is None and number is not None:
        for kind, first in (("number", base or 0), *([("counted", 1)] if base is None else [])):
            if 0 <= number - first < len(choices):
                found[kind] = number - first
    if names is None and len(bare) == 1 and bare.upper() in LETTERS[: len(choices)]:
        found["letter"] = LETTERS.index(bare.upper())
    alike = [place for place, choice in enumerate(choices) if choice.casefold() == text.casefold()]
    if answer is not None and text and (text in choices or len(alike) == 1):
        found["text"] = choices.index(text) if text in choices else alike[0]
    return found


def kind_meant(read: Sequence[Iterable[str]]) -> str:
    """Choose how all answers are read, from the kinds that each can be: the first that most of them are.

    They count from 1 only if none of them is 0.
    """
    counts = Counter(chain.from_iterable(read))
    if any("number" in kinds and "counted" not in kinds for kinds in read):
        del counts["counted"]
    return max(KINDS, key=lambda kind: counts[kind]) if counts else "number"


def number_in(answer: Any) -> int | None:
    """Return the whole number that an answer is; pandas writes 1.0 for 1 in a CSV where a row has none."""
    if not re.fullmatch(r"-?\d{1,9}(\.0)?", str(answer).strip()):
        return None
    return int(float(answer))


def misfit(answer: Any, number: int, kinds: Iterable[str], meant: str, base: int = 0) -> str:
    """Say what is wrong with an answer that is none of `number` choices, or not in the way that others are."""
    text = str(answer).strip()
    shown = f'answer "{text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."}"'
    if others := [kind for kind in KINDS if kind in kinds and KINDS[kind] != KINDS[meant]]:
        return f"{shown} is {KINDS[others[0]]} of a choice, where other rows have {KINDS[meant]}"
    if number_in(answer) is not None and meant in ("number", "counted"):
        first = 1 if meant == "counted" else base
        return f"answer {number_in(answer)} is out of range {first} to {number - 1 + first}"
    return f"{shown} is not one of its {number} choices"


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: ChoiceData, evaluation: bool) -> Examined:
    """Read the choices of a row, and what its answer may be, which is seen in the whole column.

    The target is (the kinds that the answer can be, the answer, the number of choices).
    """
    read_beginnings(row, columns)
    choices, names = read_choices(row, columns)
    if "answer" not in columns:
        return Examined()
    answer = value_at(row, columns["answer"])
    if answer is ABSENT:
        message = f"no `{columns['answer']}`; the row has {', '.join(row)}"
        raise Unusable(f"no `{columns['answer']}`", message, "every row needs an answer")
    found = readings(choices, names, answer, data.answer_base)
    if answer is None or not str(answer).strip() or answer != answer or (number_in(answer) == -1 and not found):
        raise Unusable("no answer", "no answer (is this a test split?)", ANSWER_HINT)
    return Examined((tuple(found), answer, len(choices)))


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: ChoiceData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw from all rows alike, for the place of the right choice is no class; all answers are read in one way."""
    unusable = {}
    if "answer" in columns:
        meant = kind_meant([kinds for kinds, _, _ in targets])
        for index, (kinds, answer, number) in enumerate(targets):
            if meant not in kinds:
                message = misfit(answer, number, kinds, meant, data.answer_base or 0)
                unusable[index] = Unusable("the answer is not one of the choices", message, ANSWER_HINT)
        if meant == "counted":
            rows.notes[FROM_ONE] = FROM_ONE
    return [None] * len(targets), unusable
