"""Read a whole column of labels: of what kind it is, which of its labels are odd, and of what class each row is."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from llmkit.data.rows import labels
from llmkit.data.rows.examples import Encoded, places, refuse
from llmkit.data.rows.faults import ALWAYS_ALLOWED, MAX_SKIPPED_FRACTION
from llmkit.data.rows.labels import INTEGER, MULTI, NO_LABEL, REGRESSION, REMEDY, SINGLE
from llmkit.data.rows.reader import Unusable, by_rarest
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData

MINUS_ONE = "no label (-1)"
DASH = re.compile(r"-+|\u2013|\u2014|\?+")
SEPARATORS = (";", "|", ",", "/")
MOST_CODES = 50  # numbers with gaps: more of them may be values


def read(
    targets: Sequence[Any], rows: Rows, column: str, data: ClassificationData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable], list[str]]:
    """Return the class of each row, the rows with a label that cannot be used, and notes for the user.

    Raises UserError where it is not clear what the column means.
    """
    problem = data.problem_type or labels.problem_in(data, targets)
    if problem == REGRESSION:
        return [None] * len(targets), _no_values(targets), []
    names, unusable = _names(targets, rows, column, data, problem)
    if data.label_names is None and column not in rows.class_names:
        counts = Counter(name for of_row in names for name in of_row)
        _check_fractions(unusable, len(targets), rows, data)
        unusable |= _mixed(targets, names, rows, data, problem)
        unusable |= _minus_ones(names, counts, rows, data)
        unusable |= _dashes(names, counts, rows, data) if problem == SINGLE else {}
        _check_codes(counts, len(targets), rows, data)
    notes = _notes(targets, names, data, problem)
    if problem == SINGLE:
        return [of_row[0] if of_row else None for of_row in names], unusable, notes
    return by_rarest(names), unusable, notes


def most_odd(total: int, data: ClassificationData) -> int:
    """Return how many of `total` rows may be odd ones which say nothing of what the column means."""
    share = MAX_SKIPPED_FRACTION if data.max_skipped_fraction is None else data.max_skipped_fraction
    return max(int(share * total), min(ALWAYS_ALLOWED, total // 10))


def _no_values(targets: Sequence[Any]) -> dict[int, Unusable]:
    unusable: dict[int, Unusable] = {}
    for row, target in enumerate(targets):
        try:
            labels.value_in(target)
        except Unusable as fault:
            unusable[row] = fault
    return unusable


def _names(
    targets: Sequence[Any], rows: Rows, column: str, data: ClassificationData, problem: str
) -> tuple[list[tuple[str, ...]], dict[int, Unusable]]:
    """Return the classes of each row by name, folded, and the rows in which one cannot be read."""
    several = labels.columns_of_labels(data, column)
    width = None
    if problem == MULTI and not several:
        width = labels.indicator_width(targets, most_odd(len(targets), data))
    base = 0 if column in rows.class_names else labels.first_number(data, targets)
    meant = labels.numbered(labels.meanings(data, Encoded(rows), column), base)
    listed = labels.index_of(data.label_names or ())
    known: dict[tuple[type, Any], tuple[str, ...] | Unusable] = {}  # of labels that are no lists

    def name(value: Any) -> str:
        text = str(value).strip()
        found = text if text in listed else labels.class_in(value)
        if meant is not None and INTEGER.fullmatch(found):
            if found == "-1":
                raise Unusable(MINUS_ONE, "no label (-1)", NO_LABEL)
            if int(found) not in meant:
                said = f"label {found} is out of range {min(meant)} to {max(meant)}"
                raise Unusable("a label out of range", said, labels.NUMBERS)
            found = meant[int(found)]
        return found if found in listed else found.casefold()

    def names(target: Any) -> tuple[str, ...]:
        if problem == SINGLE:
            return (name(labels.one(target)),)
        if width is None:
            return tuple(map(name, labels.many(target)))
        bits = labels.bits_in(target)
        if bits is None or len(bits) != width:
            said = f"labels {target}: 0 or 1 is expected for each of {width} classes"
            raise Unusable("not 0 or 1 for each class", said, REMEDY)
        return tuple(str(number) for number, bit in enumerate(bits) if bit)

    found: list[tuple[str, ...]] = []
    unusable: dict[int, Unusable] = {}
    for row, target in enumerate(targets):
        key = (type(target), target) if isinstance(target, str | int | float) else None
        result = known.get(key) if key is not None else None
        if result is None:
            try:
                result = names(target)
            except Unusable as fault:
                result = fault
            if key is not None:
                known[key] = result
        if isinstance(result, Unusable):
            unusable[row] = result
        found.append(() if isinstance(result, Unusable) else result)
    return found, unusable


def _check_fractions(unusable: Mapping[int, Unusable], total: int, rows: Rows, data: ClassificationData) -> None:
    """Ask where too many labels for a slip are numbers with a fraction: the column may hold values."""
    fractions = {row: str(fault) for row, fault in unusable.items() if fault.kind == "a number with a fraction"}
    if len(fractions) > most_odd(total, data):
        refuse(rows, fractions, "with a number as label that is not a whole number", labels.FRACTIONS)


def _mixed(
    targets: Sequence[Any], names: Sequence[tuple[str, ...]], rows: Rows, data: ClassificationData, problem: str
) -> dict[int, Unusable]:
    """Find numbers among names, or names among numbers, in files that tell them apart; ask where both are many."""
    kinds: dict[str, list[int]] = {"name": [], "number": []}
    for row, target in enumerate(targets):
        for value in labels.many(target) if problem == MULTI and names[row] else [target] * bool(names[row]):
            if not isinstance(value, str):
                kinds["number"].append(row)
            elif not INTEGER.fullmatch(value.strip()):
                kinds["name"].append(row)
    if not all(kinds.values()):
        return {}
    rare, usual = sorted(kinds, key=lambda kind: len(kinds[kind]))
    said = {row: f"label {_shown(targets[row])} is a {rare}, where others are {usual}s" for row in kinds[rare]}
    example = _shown(targets[kinds[usual][0]])
    if len(said) <= most_odd(len(targets), data):
        return {row: Unusable(f"a {rare} among {usual}s", text) for row, text in said.items()}
    refuse(
        rows,
        said,
        f"with a {rare} as label, where others have a {usual}, such as {example}",
        f"write all labels as text, or all as numbers; to leave these rows out: data.max_skipped_fraction = "
        f"{_share(len(said), len(targets))}",
    )
    return {}


def _minus_ones(
    names: Sequence[tuple[str, ...]], counts: Counter[str], rows: Rows, data: ClassificationData
) -> dict[int, Unusable]:
    """Find the rows whose label -1 means "no label": beside 0 to n, with n >= 2, in a small share of the rows.

    Ask where -1 stands beside 0 and it is not clear; beside 1 alone, or other negative numbers, it is a class.
    """
    if "-1" not in counts or not all(map(INTEGER.fullmatch, counts)):
        return {}
    others = sorted(int(name) for name in counts if name != "-1")
    if not others or others[0] != 0:
        return {}
    sure = len(others) > 2 and others[-1] == len(others) - 1
    return _without_label("-1", [str(number) for number in others], sure, names, rows, data)


def _dashes(
    names: Sequence[tuple[str, ...]], counts: Counter[str], rows: Rows, data: ClassificationData
) -> dict[int, Unusable]:
    """Find the rows whose label is a dash or a question mark, which mean "no label" beside two classes with names.

    SNLI has "-" where its annotators did not agree.
    """
    found: dict[int, Unusable] = {}
    marks = [name for name in counts if DASH.fullmatch(name)]
    others = sorted(name for name in counts if name not in marks)
    if len(others) > 1 and all(any(map(str.isalpha, name)) for name in others):
        for mark in marks:
            found |= _without_label(mark, others, True, names, rows, data)
    return found


def _without_label(
    mark: str,
    classes: Sequence[str],
    sure: bool,
    names: Sequence[tuple[str, ...]],
    rows: Rows,
    data: ClassificationData,
) -> dict[int, Unusable]:
    """Leave out the rows with a label that stands for none; ask unless it is `sure`, and if too many have it."""
    without = [row for row, of_row in enumerate(names) if mark in of_row]
    share = MAX_SKIPPED_FRACTION if data.max_skipped_fraction is None else data.max_skipped_fraction
    allowed = len(without) <= max(ALWAYS_ALLOWED, share * len(names))
    if sure and allowed:
        return {row: Unusable(f"no label ({mark})", f"label {mark}", NO_LABEL) for row in without}
    leave = f"data.label_names = {_list(classes)}"
    if not allowed:
        leave += f" and data.max_skipped_fraction = {_share(len(without), len(names))}"
    raise UserError(
        f"{rows.source}: {len(without):,} of {len(names):,} rows have the label {mark}: is it a class, or no label?",
        f"if a class, data.label_names = {_list([mark, *classes])}; if no label, leave these rows out: {leave}",
        tuple(f"{place}: label {mark}" for place in places(rows, without[:1])),
    )


def _check_codes(counts: Counter[str], total: int, rows: Rows, data: ClassificationData) -> None:
    """Ask where a column of whole numbers has so many different ones that they may be values, or numbers of rows."""
    if data.problem_type is not None or len(counts) <= MOST_CODES or not all(map(INTEGER.fullmatch, counts)):
        return
    numbers = sorted(map(int, counts))
    if (numbers[-1] - numbers[0] == len(numbers) - 1 and numbers[0] in (0, 1)) or 2 * len(counts) <= total:
        return
    raise UserError(
        f"{rows.source}: {total:,} rows have {len(counts):,} different numbers as labels: is each number a class?",
        'if values, data.problem_type = "regression"; if classes, data.problem_type = "single_label_classification"; '
        "is it the right column (data.label_column)?",
    )


def _notes(
    targets: Sequence[Any], names: Sequence[tuple[str, ...]], data: ClassificationData, problem: str
) -> list[str]:
    notes = []
    if labels.first_number(data, targets):
        assert data.label_names is not None
        notes.append(f"label 1 is taken for {data.label_names[0]}, the first of data.label_names: 0 is in no row")
    if problem == SINGLE and data.label_separator is None and data.problem_type is None and data.label_names is None:
        notes += _separators(Counter(name for of_row in names for name in of_row))
    return notes


def _separators(counts: Counter[str]) -> list[str]:
    """Suggest a separator between parts that come back: in most labels, or between labels that stand alone too."""
    for separator in SEPARATORS:
        parts = Counter(part.strip() for name in counts for part in set(name.split(separator)))
        joined = {name: count for name, count in counts.items() if separator in name}
        repeat = all(parts[part.strip()] > 1 for name in joined for part in name.split(separator))
        most = 2 * sum(joined.values()) > counts.total() and len(joined) > 1
        alone = any(all(part.strip() in counts for part in name.split(separator)) for name in joined)
        if repeat and joined and (most or alone):
            return [
                f"labels such as `{next(iter(joined))}` are taken for one class each; if `{separator}` separates "
                f'several labels: data.label_separator = "{separator}"'
            ]
    return []


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _share(count: int, total: int) -> str:
    return f"{-(-100 * count // total) / 100:g}"
