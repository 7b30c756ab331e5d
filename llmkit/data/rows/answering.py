"""Rows of question answering: which column is which, where the answers stand, and what can be wrong with a row."""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkit.data.files import BadRow
from llmkit.data.rows.cells import ABSENT, parsed, value_at
from llmkit.data.rows.reader import Examined, Unusable, text_in
from llmkit.data.rows.table import HEAD, Rows, need, usual
from llmkit.errors import UserError
from llmkit.recipe.data_tables import AnsweringData

if TYPE_CHECKING:
    from llmkit.data.rows import answering
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = answering


texts = None  # a tokenizer of the run's own is trained on the inputs
reshape = None  # rows are read as they come
LABEL_ROLES = ("answers", "starts", "impossible")  # the roles of columns that only training and evaluation read
# Names that data sets use. The first of them wins; of the others, there may be one only.
USUAL = {
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph", "document", "context_text"),
    "answers": ("answers", "answer", "answer_text", "answers_text"),
}
STARTS = ("answer_start", "answers_start", "answer_starts", "answer_begin", "answer_offset", "start")
IMPOSSIBLE = ("is_impossible",)
QUESTION_MARKS = ("?", "\uff1f", "\u061f")  # also the full-width and the Arabic one
NOWHERE = -1  # the start of an answer that has no place in its context
HINT = (
    "an answer is a span of its context; `answer_start` is the character it starts at, counted from 0; "
    'in a CSV, write the text or JSON: {"text": [...], "answer_start": [...]}'
)


def resolve_columns(data: AnsweringData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column is the `question`, the `context` and the `answers`; UserError where that is not clear.

    The columns `starts` (where an answer begins) and `impossible` (whether there is none) are read if they are there.
    """
    columns = {
        role: need(rows, name, role)
        for role in (*USUAL, "starts")
        if (labelled or role not in LABEL_ROLES) and (name := getattr(data, f"{role}_column")) is not None
    }
    wanted = [role for role in USUAL if role not in columns and (labelled or role not in LABEL_ROLES)]
    for role in sorted(wanted, key=["answers", "question", "context"].index):
        candidates = [name for name in usual(rows, USUAL[role]) if name not in columns.values()]
        if len(candidates) > 1 and candidates[0] not in usual(rows, USUAL[role][:1]) and role != "answers":
            candidates = []
        if role == "answers" and not candidates and usual(rows, STARTS):
            candidates = usual(rows, ("text",))  # as `answers` is cut into columns
        candidates = candidates or _fitting(rows, role, columns)
        if not candidates:
            raise UserError(
                f"{rows.source}: which column holds the {role}?",
                f"set data.{role}_column to one of: {', '.join(rows.columns)}",
            )
        columns[role] = candidates[0]
    if labelled:
        for role, names in (("starts", STARTS), ("impossible", IMPOSSIBLE)):
            candidates = [name for name in usual(rows, names) if name not in columns.values()]
            if role not in columns and candidates:
                columns[role] = candidates[0]
    return {role: columns[role] for role in (*USUAL, *LABEL_ROLES) if role in columns}


def _fitting(rows: Rows, role: str, columns: Mapping[str, str]) -> list[str]:
    """Find the one column that must be the question, for its question marks, or the context, for the answers in it."""
    head = [row for _, row in islice(rows, HEAD) if not isinstance(row, BadRow)]

    def fits(name: str) -> bool:
        values = [value_at(row, name) for row in head]
        if not all(isinstance(value, str) for value in values):
            return False
        if role == "question":
            return 2 * sum(value.rstrip().endswith(QUESTION_MARKS) for value in values) > len(values)
        if role != "context" or "answers" not in columns:
            return False
        answers = [list(_pairs(value_at(row, columns["answers"]), None)) for row in head]
        holding = [any(text and text in value for _, text in each) for value, each in zip(values, answers, strict=True)]
        return 2 * sum(holding) > sum(map(bool, answers)) > 0

    fitting = [name for name in rows.columns if name not in columns.values() and fits(name)]
    return fitting if len(fitting) == 1 else []


class Answers(NamedTuple):
    """The answers of a row, each as (where it begins, its text), with NOWHERE for one that has no place.

    `mended` says how a place for the one to learn, the first that has one, was found; `fault` why there is none.
    """

    found: list[tuple[int, str]]
    mended: str | None = None
    fault: Unusable | None = None


def read_answers(row: Mapping[str, Any], columns: Mapping[str, str], context: str) -> Answers:
    """Read the answers of a row: the Hub's table of lists, SQuAD's list of tables, or texts alone.

    A text alone begins where the column `starts` says, or where it stands. Raises Unusable for what is no answer.
    """
    value = value_at(row, columns["answers"])
    if value is ABSENT:
        raise Unusable(
            f"no `{columns['answers']}`",
            f"no `{columns['answers']}`; the row has {', '.join(row)}",
            "every row needs that column, with null or [] where there is no answer",
        )
    starts = value_at(row, columns["starts"]) if "starts" in columns else None
    pairs = [(start, text) for start, text in _pairs(value, None if starts is ABSENT else starts) if text]
    impossible = value_at(row, columns["impossible"]) if "impossible" in columns else False
    if str(impossible).strip().casefold() in ("true", "1", "1.0", "yes"):
        return Answers([], f"`{columns['impossible']}` is true: its answer is ignored" if pairs else None)
    answers: list[tuple[int, str]] = []
    learned: str | None = None
    fault: Unusable | None = None
    for start, text in pairs:
        try:
            at, text, mended = _place(start, text, context)
        except Unusable as problem:
            fault = fault or problem
            at, mended = NOWHERE, None
        if at != NOWHERE and all(place == NOWHERE for place, _ in answers):
            learned = "its first answer is not in its context: another one is learned" if fault else mended
        answers.append((at, text))
    placed = any(at != NOWHERE for at, _ in answers)
    return Answers(answers, learned, None if placed else fault)


def _pairs(value: Any, starts: Any) -> Iterator[tuple[Any, str]]:
    """Yield (what is said of where it begins, text) of each answer in a cell; "" is no answer."""
    cell = parsed(value)
    if isinstance(cell, list) and not all(isinstance(each, str | Mapping) for each in cell) and isinstance(value, str):
        cell = value  # an answer such as "[7]"
    if cell is None or cell is ABSENT:
        return
    if isinstance(cell, Mapping):
        texts = cell.get("text")
        places = next((cell[name] for name in STARTS if name in cell), None)
    elif isinstance(cell, list) and cell and all(isinstance(each, Mapping) and "text" in each for each in cell):
        texts = [each.get("text") for each in cell]
        places = [next((each[name] for name in STARTS if name in each), None) for each in cell]
    else:
        texts, places = cell, parsed(starts)
    if isinstance(texts, str):
        texts, places = [texts], places if isinstance(places, list) else [places]
    elif isinstance(texts, list) and (places in (None, "") or len(texts) < 2) and not isinstance(places, list):
        places = [places] * len(texts)
    if not isinstance(texts, list) or not isinstance(places, list) or len(texts) != len(places):
        if not isinstance(cell, Mapping | list):
            raise Unusable("the answer is not text", f"the answer {cell!r} is not text", HINT)
        raise Unusable(
            "answers that cannot be read",
            "answers must be a table of `text` and `answer_start`, two lists of the same length",
            HINT,
        )
    for place, text in zip(places, texts, strict=True):
        if text is not None and not isinstance(text, str):
            raise Unusable("the answer is not text", f"the answer {text!r} is not text", HINT)
        yield place, text or ""


def _place(start: Any, text: str, context: str) -> tuple[int, str, str | None]:
    """Find where an answer stands: (the character, the text there, how that was found if not as it is said)."""
    shown = text if len(text) <= 40 else text[:37] + "..."
    try:
        stated = None if start is None or start == "" or start != start else int(float(start))  # pandas writes 515.0
    except (TypeError, ValueError, OverflowError):
        stated = NOWHERE
    mended = None
    bare = text.strip()
    if text not in context and bare and bare in context:
        stated = None if stated is None else stated + len(text) - len(text.lstrip())
        text, mended = bare, "spaces around an answer are removed"
    at = context.find(text)
    if at < 0 and bare:
        spelled = r"(?<!\w)" + r"\s+".join(map(re.escape, bare.split())) + r"(?!\w)"
        alike = list(re.finditer(spelled, context, re.IGNORECASE))
        alike = [match for match in alike if match.start() == stated] or alike
        if len(alike) == 1:
            return alike[0].start(), alike[0][0], "an answer differs from its context in capitals or spaces"
    if at < 0:
        raise Unusable("answer not in its context", f'the answer "{shown}" is not in its context', HINT)
    once = context.find(text, at + 1) < 0
    if stated is None and once:
        return at, text, mended
    if stated is None or (stated < 0 and not once):  # -1 says that nobody looked for it
        return at, text, "an answer occurs more than once, with no position given: the first is taken"
    if stated >= 0 and context.startswith(text, stated):
        return stated, text, mended
    meant = [(at, unit) for at, unit in _otherwise(stated, context) if stated >= 0 and context.startswith(text, at)]
    if len({at for at, _ in meant}) == 1:
        return meant[0][0], text, f"`answer_start` counts {meant[0][1]}"
    if once:
        return at, text, "`answer_start` was wrong; the answer occurs once elsewhere"
    raise Unusable(
        "`answer_start` is wrong, and the answer occurs more than once",
        f'the answer "{shown}" is not at character {start} of its context, but at {at} and elsewhere',
        HINT,
    )


def _otherwise(stated: int, context: str) -> Iterator[tuple[int, str]]:
    """Yield the characters that `said` may mean, with what it counts then, if not characters from the beginning."""
    yield len(context.encode()[:stated].decode(errors="ignore")), "bytes"
    yield len(context.encode("utf-16-le")[: 2 * stated].decode("utf-16-le", errors="ignore")), "UTF-16 code units"
    if "\r\n" in context:
        yield len(context.replace("\r\n", "\n")[:stated].replace("\n", "\r\n")), "a line end as one character"
    else:
        yield len(context.replace("\n", "\r\n")[:stated].replace("\r\n", "\n")), "a line end as two characters"
    yield stated + len(context) - len(context.lstrip()), "from the first character that is not a space"
    yield len(context) - len(context[stated:].lstrip()), "from the spaces before the answer"


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: AnsweringData, evaluation: bool) -> Examined:
    """Read the question, the context, and where its answers stand in it.

    For evaluation an answer need not stand there: what the model says is compared with its text.
    """
    text_in(row, columns["question"])
    context = text_in(row, columns["context"])
    if "answers" not in columns:
        return Examined()
    answers = read_answers(row, columns, context)
    if answers.fault is None:
        return Examined(bool(answers.found), answers.mended)
    if evaluation:
        return Examined(True, f"{answers.fault.kind}; scored anyway")
    raise answers.fault


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: AnsweringData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw questions with and without an answer each in their share."""
    return targets, {}
