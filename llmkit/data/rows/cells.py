"""Find columns by name, and the value of a column in a row: also nested, and in other spellings of the name."""

from __future__ import annotations

import ast
import io
import json
import tokenize
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
    """Read a cell that holds a list or table as JSON, Python or NumPy writes it (`["a"]`, `(0, 1)`, `['a' 'b']`).

    Any other value is returned as it is.
    """
    if not isinstance(value, str):
        return value
    if value.strip() == "set()":
        return []
    if value.lstrip()[:1] not in ("[", "{", "("):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        found = _python(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError, tokenize.TokenError):
        return value
    if isinstance(found, tuple | set | frozenset):
        return list(found)
    return found if isinstance(found, list | dict) else value


def _python(text: str) -> Any:
    """Evaluate a literal as Python writes it, where NumPy's arrays are lists: `array([1], dtype=int32)`, `['a' 'b']`.

    To Python alone, two texts side by side are one. An array that NumPy cut short (`...`) is no literal.
    """
    words: list[str] = []
    beside = False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _LAYOUT:
            continue
        value = token.type in (tokenize.STRING, tokenize.NUMBER)
        words += [",", token.string] if value and beside else [token.string]
        beside = value
    return ast.literal_eval(_Unwrapped().visit(ast.parse(" ".join(words), mode="eval")))


_LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


class _Unwrapped(ast.NodeTransformer):
    """Puts what an `array(...)` holds in its place."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        return node.args[0] if isinstance(node.func, ast.Name) and node.func.id == "array" and node.args else node
