"""Name the columns of a text table: by its header, which may be data, or without one."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.data.files.options import Note, ReadOptions
from llmkit.errors import UserError

HEADER_KEY = "data.header = false"
_LONG = 60  # characters that no name has
_NAME_ALL = "name it in the file, or name all columns with data.column_names"
_NUMBER_OR_DATE = re.compile(r"[-+]?\.?\d[\d.,:/ -]*([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Header:
    """The names of the columns, and whether the first column is an index, which is no column of the data."""

    names: list[str]
    index: bool = False


def name_columns(
    place: str, first: list[str], sample: Sequence[list[str]], file: Path, options: ReadOptions, note: Note
) -> Header:
    """Name the columns of a table by its first row, or as the recipe says.

    `place` is the line of `first`, and `sample` holds rows of the table. Raises UserError for a column without a name
    of its own, and where data.column_names has another number of names than the table has columns.
    """
    where = f"`{file}`, {place}"
    if options.header is False:
        names = list(options.column_names or map(str, range(1, len(first) + 1)))
        return Header(_distinct(_as_many(names, first, where), where, "data.column_names"))
    header = [name.strip() for name in first]
    index = len(first) > 1 and not first[0]  # as pandas writes its own
    if options.column_names is not None:
        if options.header is None:
            note(
                f"`{file}`: data.column_names replaces its first line, `{_shown(header)}`; "
                f"if that is data, set {HEADER_KEY}"
            )
        index = index and len(options.column_names) == len(first) - 1
        names = ["", *options.column_names] if index else list(options.column_names)
        return Header(_distinct(_as_many(names, first, where), where, "data.column_names"), index)
    reason = "" if options.header else looks_like_data(header, [row for row in sample if row != first])
    hint = f"if the first line is data ({reason}), set {HEADER_KEY}; otherwise " if reason else ""
    unnamed = [str(number) for number, name in enumerate(header[index:], index + 1) if not name]
    if unnamed and (reason or len(header) < len(unnamed) + 2):  # a line with one name may be a title
        raise UserError(f"{where}: column {unnamed[0]} has no name", f"{hint}{_NAME_ALL}")
    if unnamed:
        note(f"`{file}`: columns without a name are called by their number: {_shown(unnamed)}")
        header = [name or str(number) for number, name in enumerate(header, 1)]
    _distinct(header, where, hint=hint)
    if index:
        note(f"`{file}`: the first column has no name and is left out, as the index that pandas writes")
    if _counted(header[index:]) and not options.header:
        note(
            f"`{file}`: its columns are called {_shown(header[index:])}, as pandas calls those without names; if that "
            f"line is data, set {HEADER_KEY}"
        )
    elif reason:
        note(
            f"the first line of `{file}` looks like data ({reason}): if it is, set {HEADER_KEY} "
            "(columns are then called 1, 2, ...)"
        )
    return Header(header, index)


def looks_like_data(header: Sequence[str], rows: Sequence[list[str]]) -> str:
    """Say what in a header looks more like data than like a name; "" where nothing does."""
    columns = list(zip(*(row for row in rows if len(row) == len(header)), strict=True)) or [()] * len(header)
    for name, column in zip(header, columns, strict=True):
        if _NUMBER_OR_DATE.fullmatch(name):
            return f"`{name}` is a number" if name.isdecimal() else f"`{name}` is a number or a date"
        if name.startswith(("http://", "https://")):
            return "a name is an address"
        if _is_text(name) and (not column or 2 * sum(len(field.split()) > 2 for field in column) >= len(column)):
            return f"`{_shown([name])}` is a text"
        kept = [field.strip() for field in column]
        if name and name in kept and 2 * len(set(kept)) <= len(kept) + 1 and len(kept) > 1:
            return f"`{_shown([name])}` stands again in its column"
    return ""


def _is_text(name: str) -> bool:
    words = len(name.split())
    return len(name) > _LONG or words > 4 or (words > 2 and name.endswith((".", "!", "?"))) or name.endswith("。")


def _counted(names: Sequence[str]) -> bool:
    """Tell whether names count the columns, from 0 or 1."""
    return any(list(names) == [str(number) for number in range(first, first + len(names))] for first in (0, 1))


def _as_many(names: list[str], first: list[str], where: str) -> list[str]:
    if len(names) != len(first):
        raise UserError(
            f"{where}: {len(first)} fields, but data.column_names has {len(names)} names", "name every column once"
        )
    return names


def _distinct(names: list[str], where: str, key: str = "", hint: str = "") -> list[str]:
    name, count = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise UserError(
            f"{key or where}: {count} columns are called `{name}`", f"{hint}give every column a unique name"
        )
    return names


def _shown(names: Sequence[str]) -> str:
    listed = ", ".join(names)
    return listed if len(listed) <= _LONG else f"{listed[:_LONG]}..."
