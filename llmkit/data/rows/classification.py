"""Rows of classification: which column is which, and what can be wrong with a row."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmkit.data.files import BadRow
from llmkit.data.rows import label_column
from llmkit.data.rows.cells import ABSENT, JOINED, find_column, parsed, value_at
from llmkit.data.rows.content import LOOKED_AT, Column, entries, look_at
from llmkit.data.rows.labels import (
    INTEGER,
    MULTI,
    NO_LABEL,
    REGRESSION,
    SINGLE,
    class_in,
    columns_of_labels,
    index_of,
    many,
    scalars,
)
from llmkit.data.rows.reader import Examined, Unusable, text_in
from llmkit.data.rows.table import Rows, need, usual
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData

if TYPE_CHECKING:
    from llmkit.data.rows import classification
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = classification


texts = None  # a tokenizer of the run's own is trained on the inputs
LABEL_ROLES = ("label",)  # the roles of columns that only training and evaluation read
reshape = None  # rows are read as they come
# Usual names of the column with the label; those of the first group count before the classes of the Hub,
# and those of the last only where there is none of the others.
LABELS = (
    ("label", "labels"),
    ("class", "category", "target", "sentiment", "intent", "emotion", "topic", "gold_label", "label_text", "y"),
    ("rating", "stars", "overall"),  # of a review
)
# Pairs of columns that data sets of two texts use; the first that is there counts.
PAIRS = (
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis")),
    *(("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"), ("query", "passage")),
    *(("question", "passage"), ("context", "hypothesis")),
)
TEXTS = (  # those of the second group only where no other column holds texts
    ("text", "sentence", "content", "review"),
    ("comment_text", "comment", "tweet", "message", "post", "utterance", "document", "review_text"),
)
NUMBERING = ("idx", "id", "index")  # columns that are no text
BITS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


# ---- columns -------------------------------------------------------------------------------------------------------


def resolve_columns(data: ClassificationData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column is the `text`, the `text_pair` (if any) and the `label`; UserError where that is not clear.

    Several columns of labels are joined by JOINED.
    """
    columns: dict[str, str] = {}
    for role, name in (("text", data.text_column), ("text_pair", data.text_pair_column)):
        if name is not None:
            columns[role] = need(rows, name, role)
    label = _named_label(data, rows) if labelled or data.label_column is None else _skipped_label(data, rows)
    if label is not None:
        columns["label"] = label
    if "text" not in columns:
        columns |= _texts(rows, columns)
    if labelled and "label" not in columns:
        columns["label"] = _label_by_content(data, rows, columns)
    if not labelled:
        columns.pop("label", None)
    return {role: columns[role] for role in ("text", "text_pair", "label") if role in columns}


def _named_label(data: ClassificationData, rows: Rows) -> str | None:
    """Find the column of labels that the recipe or a usual name means; of several, their names joined."""
    if data.label_column is not None:
        names = (data.label_column,) if isinstance(data.label_column, str) else data.label_column
        return JOINED.join(need(rows, name, "label") for name in names)
    declared = [name for name in rows.class_names if name in rows.columns]
    texts = (data.text_column, data.text_pair_column)
    further = [usual(rows, names) if len(rows.columns) > 1 else [] for names in LABELS[1:]]
    for known in (usual(rows, LABELS[0]), declared, *further):
        left = [name for name in known if name not in texts]
        if left:
            return left[0] if len(left) == 1 else None
    return None


def _skipped_label(data: ClassificationData, rows: Rows) -> str | None:
    """Find the label's column in rows to predict, which need none: it is no text."""
    assert data.label_column is not None
    names = (data.label_column,) if isinstance(data.label_column, str) else data.label_column
    known = [name for each in names if (name := find_column(rows.columns, each)) is not None]
    return JOINED.join(known) or None


def _texts(rows: Rows, columns: Mapping[str, str]) -> dict[str, str]:
    """Find the text, or the pair of texts: by name, else the only column left, else the only one that holds texts."""
    taken = {name for names in columns.values() for name in names.split(JOINED)}
    others = [name for name in rows.columns if name not in taken and not _numbers(name)]
    left = {name.strip().casefold(): name for name in others} | {name: name for name in others}  # as it stands wins
    pairs = [pair for pair in PAIRS if set(pair) <= left.keys()] if "text_pair" not in columns else []
    single = [left[name] for name in TEXTS[0] if name in left and not any(name in pair for pair in pairs)]
    if len(pairs) + len(single) == 1:
        named = [left[name] for name in pairs[0]] if pairs else single
        return dict(zip(("text", "text_pair"), named, strict=False))
    described: tuple[str, ...] = ()
    if not pairs and not single:
        if len(others) == 1 and not entries(rows, others):
            return {"text": others[0]}
        held = look_at(rows, others, LOOKED_AT)
        fitting = [column for column in held if column.is_text]
        if "text_pair" not in columns and len(fitting) == 2 and _counted(fitting[0].name, fitting[1].name):
            return {"text": fitting[0].name, "text_pair": fitting[1].name}
        further = [left[name] for name in TEXTS[1] if name in left]
        if len(fitting) == 1 or (not fitting and len(further) == 1):
            return {"text": fitting[0].name if fitting else further[0]}
        others, described = [column.name for column in held], tuple(map(str, fitting))
    raise UserError(
        f"{rows.source}: which column is the text?",
        "set data.text_column (for two texts, data.text_pair_column too) to one of: "
        + ", ".join(others or rows.columns),
        described,
    )


def _counted(first: str, second: str) -> bool:
    """Tell whether two names are one but for a number or letter: `#1 String` and `#2 String`, `text_A` and `text_B`."""
    differ = [pair for pair in zip(first.casefold(), second.casefold(), strict=False) if pair[0] != pair[1]]
    return len(first) == len(second) and differ in ([("1", "2")], [("0", "1")], [("a", "b")])


def _label_by_content(data: ClassificationData, rows: Rows, columns: Mapping[str, str]) -> str:
    """Find the label by what the columns hold: the only one with few values, or several that say 0 or 1 of a label.

    Of a regression, it is the only one with numbers that have fractions.
    """
    held = look_at(rows, [name for name in rows.columns if name not in columns.values()])
    rest = [column for column in held if column.values and not column.is_id and not _numbers(column.name)]
    bits = [column for column in rest if column.values <= BITS.keys()]
    if len(bits) > 1 and len(bits) == len(rest):
        return JOINED.join(column.name for column in bits)
    values = [column for column in held if column.is_value]
    fitting = values if data.problem_type == REGRESSION else [column for column in rest if column.is_label]
    named = [column for column in fitting if column.name.rpartition(".")[2].strip().casefold() in LABELS[0]]
    if len(fitting) == 1 or len(named) == 1:
        return (named or fitting)[0].name
    together = (
        f"; if several columns each hold 0 or 1 for a label: data.label_column = {_list(bits)}" if bits[1:] else ""
    )
    raise UserError(
        f"{rows.source}: which column is the label?",
        f"set data.label_column to one of: {', '.join(_and_entries(rows))}{together}"
        + (
            '; to learn values, also set data.problem_type = "regression"'
            if values and data.problem_type is None
            else ""
        ),
        tuple(dict.fromkeys(map(str, [*fitting, *values]))),
    )


def _and_entries(rows: Rows) -> list[str]:
    """List the columns; of those that hold tables, the entries `a.b`."""
    nested = entries(rows, rows.columns)
    return [each for name in rows.columns for each in ([f"{name}.{key}" for key in nested.get(name, ())] or [name])]


def _numbers(name: str) -> bool:
    return name.strip().casefold() in NUMBERING


def _list(columns: Sequence[Column]) -> str:
    return "[" + ", ".join(f'"{column.name}"' for column in columns) + "]"


def remarks(data: ClassificationData, rows: Rows, columns: Mapping[str, str]) -> list[str]:
    """Say which columns were chosen by what they hold, where neither the recipe nor a usual name says it."""
    said = []
    roles = (("label", LABELS, "the label"), ("text", TEXTS, "the text"), ("text_pair", (), "the second text"))
    for role, groups, called in roles:
        if (column := columns.get(role)) is None:
            continue
        known = {name for group in (*groups, *PAIRS) for name in group}
        if getattr(data, f"{role}_column") or column in rows.class_names or column.strip().casefold() in known:
            continue
        names = [f"`{name}`" for name in column.split(JOINED)]
        said.append(
            f"columns {', '.join(names)} hold 0 and 1 alone and are taken for labels; data.label_column names others"
            if len(names) > 1
            else f"column {names[0]} is taken for {called}; data.{role}_column names another"
        )
    return said


# ---- rows ----------------------------------------------------------------------------------------------------------


def target_in(row: Mapping[str, Any], columns: Mapping[str, str], data: ClassificationData) -> Any:
    """Read the label of a row as it stands; Unusable for none.

    It is a list where several columns, a separator, or a table of 0 and 1 for each label say so.
    """
    column = columns["label"]
    target = value_at(row, column)
    several = columns_of_labels(data, column)
    if several is not None and isinstance(target, list):
        return [name for name, value in zip(several, target, strict=True) if _bit(name, value)]
    if target is ABSENT or target is None or target != target:
        raise Unusable("no label", "no label", NO_LABEL)
    if isinstance(entries_of := parsed(target), Mapping) and data.hold_out != "hash":  # an earlier version: a name
        return _applying(entries_of, column)
    if data.label_separator is not None and isinstance(target, str):
        return [name.strip() for name in target.split(data.label_separator) if name.strip()]
    if data.label_separator is not None and isinstance(target, int | float):
        return [target]
    if data.problem_type == SINGLE and isinstance(target, list) and len(target) == 1:
        return target[0]
    return target


def _applying(table: Mapping[str, Any], column: str) -> list[str]:
    """List the labels to which a table says 1 or true, such as {"toxic": 1, "insult": 0}."""
    bits = {name: BITS.get(str(value).strip().casefold()) for name, value in table.items()}
    if not bits or None in bits.values():
        names = ", ".join(f'"{column}.{name}"' for name in table)
        raise Unusable(
            "a table as label",
            f"label {table} is a table, where a class is expected",
            f"set data.label_column to one of its entries: {names}",
        )
    return [str(name) for name, bit in bits.items() if bit]


def _bit(column: str, value: Any) -> bool:
    bit = BITS.get(str(value).strip().casefold())
    if bit is None:
        raise Unusable(
            "a label that is neither 0 nor 1",
            f"column `{column}` holds {value!r}, where 0 or 1 is expected",
            "data.label_column lists the columns that each hold 0 or 1 for a label",
        )
    return bit


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: ClassificationData, evaluation: bool) -> Examined:
    """Read the texts of a row and its label as it stands; what labels mean is seen in the whole column.

    A label that `data.label_names` lacks is unusable, but not in `evaluation`, where it is counted wrong.
    """
    for role in ("text", "text_pair"):
        if role in columns:
            text_in(row, columns[role])
    if "label" not in columns:
        return Examined()
    target = target_in(row, columns, data)
    if data.label_names is not None and data.problem_type != REGRESSION:
        _check_named(target, data, evaluation)
    return Examined(target)


def _check_named(target: Any, data: ClassificationData, evaluation: bool) -> None:
    names = data.label_names or ()
    index = index_of(names)
    numbered = not any(INTEGER.fullmatch(name) for name in names)
    for value in many(target) if data.problem_type == MULTI else scalars(target):
        name = str(value).strip()
        if name in index or value == "":
            continue
        name = class_in(value)
        if name in index or name.casefold() in index:
            continue
        if INTEGER.fullmatch(name) and (numbered or value is not target) and int(name) >= 0:
            continue  # a place in the names, or one of 0 and 1 for each: seen in the whole column
        if name == "-1":
            raise Unusable(label_column.MINUS_ONE, "label -1 is not in data.label_names", NO_LABEL)
        if not evaluation:
            raise Unusable(
                "a label that is not in data.label_names",
                f'label "{name}" is not in data.label_names, which has {", ".join(names[:10])}',
                "data.label_names must list every class",
            )


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: ClassificationData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw each class in its share, of several labels the rarest; values, of a regression, all alike.

    Unusable are labels that are not of the column's kind, and -1 where it means "no label".
    """
    for remark in remarks(data, rows, columns):
        rows.notes[remark] = remark

    def accepted() -> Iterator[tuple[str, Any]]:
        for place, row in rows.read():
            with suppress(Unusable):
                if not isinstance(row, BadRow):
                    examine(row, columns, data, False)
                    yield place, row

    seen = replace(rows, read=accepted)  # the rows that the targets are of, for messages
    found, unusable, notes = label_column.read(targets, seen, columns["label"], data)
    for note in notes:
        rows.notes[note] = note
    return found, unusable
