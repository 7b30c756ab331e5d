"""Read the fields of a text table's rows, and never join two lines for a quote that encloses nothing."""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.data.files.options import BadRow

csv.field_size_limit(1 << 30)

NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
MOST_LINES = 100_000  # of one row
SHOWN = 80  # characters of a row, in a message

_ESCAPED = re.compile(r'(\\+)"')
_MARK = "\udc22"  # stands for a quote after a backslash while a line is parsed: half a character, which no encoding has


@dataclass(frozen=True)
class Dialect:
    """How a table is written."""

    delimiter: str
    quoted: bool = False  # quotes enclose fields
    spanning: bool = False  # which may span lines
    trusted: bool = False  # as the recipe says
    backslash: bool = False  # a quote inside a field stands behind a backslash
    blanks: bool = False  # a blank after the delimiter belongs to it

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of `csv.reader`."""
        quoting = {} if self.quoted else {"quoting": csv.QUOTE_NONE, "quotechar": None}
        return {"delimiter": self.delimiter, "skipinitialspace": self.blanks, **quoting}

    def prepare(self, line: str) -> str:
        """Hide the quotes that stand behind a backslash, which is itself no more than text behind another one."""
        if not self.backslash or '\\"' not in line:
            return line
        return _ESCAPED.sub(lambda found: "\\" * (len(found[1]) // 2) + (_MARK if len(found[1]) % 2 else '"'), line)

    def restore(self, row: list[str]) -> list[str]:
        """Put back the quotes that `prepare` hid."""
        return [field.replace(_MARK, '"') for field in row] if self.backslash else row

    def split(self, line: str) -> list[str]:
        """Split a line with its quotes as characters."""
        fields = line.rstrip("\r\n").split(self.delimiter)
        return [field.lstrip(" ") for field in fields] if self.blanks else fields


class Tally:
    """Count places by kind, and keep the first of each."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.first: dict[str, str] = {}

    def add(self, kind: str, place: str) -> None:
        """Count a place."""
        self.counts[kind] += 1
        self.first.setdefault(kind, place)


Fields = list[str] | BadRow


def read_fields(
    lines: Iterator[str], before: int, dialect: Dialect, sample: Sequence[list[str]], tally: Tally, width: int = 0
) -> Iterator[tuple[int, Fields]]:
    """Yield the fields of each row with the number of its first line; a blank line has none.

    `before` is the number of lines before `lines`, and `sample` holds rows that show what the columns are. In `tally`
    are counted the rows that span lines ("spanning"), and the lines with a quote that encloses no field, which is read
    as a character ("literal") if the line then has `width` fields, or as many as the first row.
    """
    if dialect.quoted and dialect.spanning:
        return _spanning(lines, before, dialect, sample, tally, width)
    return _line_by_line(lines, before, dialect)


def _line_by_line(lines: Iterator[str], before: int, dialect: Dialect) -> Iterator[tuple[int, Fields]]:
    if dialect.backslash:
        lines = map(dialect.prepare, lines)
    reader = csv.reader(lines, strict=True, **dialect.parameters)
    while True:
        try:
            for row in reader:
                yield before + reader.line_num, dialect.restore(row) if dialect.backslash else row
            return
        except csv.Error as problem:
            yield before + reader.line_num, _carriage_return(str(problem))


def _spanning(
    lines: Iterator[str], before: int, dialect: Dialect, sample: Sequence[list[str]], tally: Tally, width: int = 0
) -> Iterator[tuple[int, Fields]]:
    held: list[str] = []  # the lines of a row
    again = deque[str]()  # lines that a quote swallowed

    def fed() -> Iterator[str]:
        while again and len(held) < MOST_LINES:
            held.append(again.popleft())
            yield dialect.prepare(held[-1])
        for line in lines:
            held.append(line)
            yield dialect.prepare(line) if dialect.backslash else line
            if len(held) >= MOST_LINES:
                return

    columns = _Columns(sample, dialect)
    number = before + 1
    while True:
        problem = ""
        try:
            for row in csv.reader(fed(), strict=True, **dialect.parameters):
                if len(held) > 1:
                    if not dialect.trusted and columns.joins_rows(held):
                        problem = "whole rows would become one field"
                        break
                    tally.add("spanning", f"lines {number} to {number + len(held) - 1}")
                yield number, dialect.restore(row) if dialect.backslash else row
                width = width or len(row)
                number += len(held)
                held.clear()
        except csv.Error as error:
            problem = str(error)
        if not held:
            return
        line, *swallowed = held
        again.extendleft(reversed(swallowed))
        held.clear()
        fields = dialect.split(line)
        if "\r" in line.rstrip("\r\n") and "new-line" in problem:
            yield number, _carriage_return(problem)
        elif width == len(fields) and not dialect.trusted:
            tally.add("literal", f"line {number}")
            yield number, fields
        else:
            yield number, _open_quote(problem, line)
        number += 1


class _Columns:
    """What fields the columns take, as a sample of their rows shows."""

    def __init__(self, sample: Sequence[list[str]], dialect: Dialect) -> None:
        self._dialect = dialect
        self._columns = [[field for field in column if "\n" not in field] for column in zip(*sample, strict=True)]

    def joins_rows(self, lines: Sequence[str]) -> bool:
        """Tell whether the lines of what was read as one row are rows of the table, each with fields of its columns."""
        rows = [self._dialect.split(line) for line in lines if line.strip()]
        whole = [self._takes(row) for row in rows]
        return whole[0] and whole[-1] and sum(whole) >= 0.9 * len(whole)

    def _takes(self, row: list[str]) -> bool:
        return len(row) == len(self._columns) > 1 and all(
            '"' in field or _belongs(field, column) for field, column in zip(row, self._columns, strict=True)
        )


def _belongs(field: str, column: list[str]) -> bool:
    """Tell whether a field may be one of a column: of numbers, of few values, or of texts that begin with no blank."""
    values = set(column)
    if column and all(map(NUMBER.fullmatch, values)):
        return NUMBER.fullmatch(field) is not None and len(field) <= max(map(len, values))
    if column and 2 * len(values) <= len(column):
        return field in values
    return not field.startswith(" ")


def _carriage_return(problem: str) -> BadRow:
    if "new-line" not in problem:
        return BadRow(problem, "fix the row", "unreadable row")
    return BadRow(
        "a carriage return inside an unquoted field",
        "quote the field, or remove the carriage return; if every line ends with one, convert them to line feeds",
        "carriage return in a field",
    )


def _open_quote(problem: str, line: str) -> BadRow:
    return BadRow(
        f"a quote opens a field but does not close it ({problem})",
        'a field that begins with a quote must end with one, and a quote inside it must be doubled (""); '
        'if quotes are ordinary characters in this file, set data.quoting = "none"',
        "a quote that is not closed",
        (" ".join(line.split())[:SHOWN],),
    )
