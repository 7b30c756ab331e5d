"""Find the columns that are taken for nothing, so that they can be named."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from llmkit.data.rows.cells import JOINED, find_column, parsed
from llmkit.terminal import printable

BESIDE = {"answers": "answer_start"}  # columns that are read beside one of these roles
LISTED = 30  # columns, by name
MOST = 1000  # columns beside the known ones that are kept


def unused_columns(columns: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """List the columns that are taken for nothing."""
    read = [each for name in columns.values() for each in (name, *name.split(JOINED))]
    read += [name.partition(".")[0] for name in read if name not in names]
    read += [BESIDE[role] for role in columns if role in BESIDE]
    used = {find_column(names, name) for name in read}
    return [name for name in names if name not in used]


def listed(names: Collection[str]) -> str:
    """Name columns, the first of many."""
    shown = [f"`{printable(name)}`" for name in names][:LISTED]
    return ", ".join(shown) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


class OtherColumns:
    """Gathers the columns that only later rows have, and the entries beside one that is read, such as `a.c` by `a.b`.

    `known` are the columns that are named elsewhere, `read` those that are read.
    """

    def __init__(self, known: Collection[str], read: Collection[str]) -> None:
        parts = {part for name in read for part in name.split(JOINED)}
        self._known = {*known, *read, *parts}
        self._read = {name.strip().casefold() for name in parts}
        self._outer = {name.partition(".")[0] for name in parts if "." in name and name not in known}
        self._found: list[str] = []
        self._place = ""

    def look(self, row: Mapping[str, Any], place: str) -> None:
        """Look at the columns of one row."""
        if not self._outer and row.keys() <= self._known:
            return
        for name in self._names(row):
            if name not in self._known and len(self._found) < MOST:
                self._known.add(name)
                if name.strip().casefold() not in self._read:
                    self._found.append(name)
                    self._place = self._place or place

    def _names(self, row: Mapping[str, Any]) -> Iterator[str]:
        for name, value in row.items():
            table = parsed(value) if name in self._outer else None
            entries = table if isinstance(table, list) else [table]
            for entry in entries:
                yield from (f"{name}.{each}" for each in entry) if isinstance(entry, Mapping) else [name]

    def notes(self) -> tuple[str, ...]:
        """Say which there are, and where the first of them stands."""
        return (f"not used: {listed(self._found)}, such as in {self._place}",) if self._found else ()
