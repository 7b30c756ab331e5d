"""Find columns by name, and the value of a column in a row: also nested, and in other spellings of the name."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.errors import UserError

JOINED = " + "  # between the names of several columns that are read as one
ABSENT = object()  # the value of a column that a row does not have


def find_column(columns: Sequence[str], wanted: str) -> str | None:
    """Find the column called `wanted`: exactly so, else but for case and surrounding blanks; None where there is none.

    Raises UserError where two columns differ from `wanted` in case and blanks alone.
    """
    if wanted in columns:
        return wanted
    alike = [name for name in columns if _folded(name) == _folded(wanted)]
    if len(alike) > 1:
        raise UserError(f"the columns {' and '.join(f'`{name}`' for name in alike)} could both be `{wanted}`")
    return alike[0] if alike else None


def _folded(name: str) -> str:
    return name.strip().casefold()


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, ABSENT where the row has none.

    A column called exactly so wins; then one that differs in case and blanks; then `a.b`, the entry `b` of the table in
    column `a`; then several names joined by JOINED, whose values are a list.
    """
    if name in row:
        return row[name]
    columns = list(row)
    if (column := find_column(columns, name)) is not None:
        return row[column]
    if JOINED in name:
        values = [value_at(row, part) for part in name.split(JOINED)]
        return ABSENT if ABSENT in values else values
    outer, dot, inner = name.partition(".")
    if dot and (column := find_column(columns, outer)) is not None:
        table = row[column] if not isinstance(row[column], str) else parsed(row[column])
        if isinstance(table, Mapping):
            return value_at(table, inner)
        if isinstance(table, list) and table and all(isinstance(entry, Mapping) for entry in table):
            values = [value_at(entry, inner) for entry in table]
            return ABSENT if ABSENT in values else values
    return ABSENT


def parsed(value: Any) -> Any:
    """Read a cell that holds a list or table as JSON or Python writes it (`["a"]`, `(0, 1)`, `{'text': []}`) as such.

    Any other value is returned as it is.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{", "("):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return value
    if isinstance(found, tuple | set | frozenset):
        return list(found)
    return found if isinstance(found, list | dict) else value
