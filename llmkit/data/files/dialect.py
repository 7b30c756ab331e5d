"""Find how a text table is written: the line that it begins on, its delimiter, and what its quotes mean."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from llmkit.data.files.fields import Dialect, Tally, read_fields
from llmkit.data.files.lines import open_text, suffix
from llmkit.data.files.options import BadRow, Note, ReadOptions

DELIMITERS = ",;\t|"
NO_DELIMITER = "\udc00"  # of a table of one column; half a character, which no encoding has
SAMPLE = 200  # lines that show what the columns hold
_BLOCK = 1 << 18  # characters
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # the first line, for Excel


@dataclass(frozen=True)
class Sight:
    """What one look over all of a file shows: its first lines, how its lines end, and whether it has quotes."""

    start: str
    newline: str
    quotes: bool
    backslashes: bool  # before quotes

    @cached_property
    def head(self) -> list[str]:
        """The first lines, as they are."""
        lines = io.StringIO(self.start, newline=self.newline).readlines()
        return lines[:-1] if len(lines) > 1 and len(self.start) >= _BLOCK - 1 else lines

    @cached_property
    def separator(self) -> str:
        """The delimiter that a first line such as `sep=;` names, else ""."""
        named = _SEPARATOR.fullmatch(self.head[0]) if self.head else None
        return named[1] if named else ""

    @cached_property
    def before(self) -> int:
        """The number of lines before the table."""
        named = int(bool(self.separator))
        return named + sum(1 for _ in itertools.takewhile(lambda line: not line.strip(), self.head[named:]))

    @cached_property
    def lines(self) -> list[str]:
        """The first lines of the table that are not blank."""
        return [line for line in self.head[self.before : self.before + SAMPLE + 1] if line.strip()]


def look(file: Path, options: ReadOptions) -> Sight:
    """Look over all of a file, in constant memory."""
    start, seam, newline = "", "", "\r"
    quotes = backslashes = False
    with open_text(file, options.encoding, bound=options.max_document_bytes) as text:
        while block := text.read(_BLOCK):
            start = start or block.removeprefix("\ufeff")
            newline = "\n" if "\n" in block else newline
            quotes = quotes or '"' in block
            backslashes = backslashes or (quotes and ('\\"' in block or seam + block[0] == '\\"'))
            seam = block[-1]
    return Sight(start, newline if "\r" in start else "\n", quotes, backslashes)


@contextmanager
def table_lines(file: Path, options: ReadOptions, sight: Sight) -> Iterator[Iterator[str]]:
    """Open the lines of a table, from the first that is not blank."""
    with open_text(file, options.encoding, sight.newline, options.max_document_bytes) as text:
        for _ in range(sight.before):
            next(text)
        yield itertools.chain([next(text, "").removeprefix("\ufeff")], text)


def find_dialect(file: Path, options: ReadOptions, sight: Sight, note: Note) -> tuple[Dialect, list[list[str]]]:
    """Return how the table of a file is written, and a sample of its rows, those of most of their lengths."""
    if sight.separator:
        note(f"`{file}`: the first line, `{sight.head[0].strip()}`, names the delimiter and is no row")
    delimiter = options.delimiter or sight.separator or _delimiter(file, options, sight, note)
    dialect = Dialect(delimiter, quoted=sight.quotes and options.quoting != "none", blanks=_blanks(sight, delimiter))
    if dialect.blanks:
        note(f"`{file}`: a blank follows each {delimiter!r} and is left out")
    if dialect.quoted and options.quoting == "minimal":
        dialect = replace(dialect, spanning=True, trusted=True)
    elif dialect.quoted and delimiter == "\t":
        return _tab_separated(file, options, sight, dialect, note)
    elif dialect.quoted:
        dialect = replace(dialect, spanning=True)
    if not dialect.quoted or not sight.backslashes:
        return dialect, _sample(sight, dialect)
    if doubled := _faults(file, options, sight, dialect):
        backslash = replace(dialect, backslash=True)
        if _faults(file, options, sight, backslash) < doubled:
            note(rf"`{file}`: \" is read as a quote inside a field, as a backslash marks such quotes in this file")
            return backslash, _sample(sight, backslash)
    return dialect, _sample(sight, dialect)


def _delimiter(file: Path, options: ReadOptions, sight: Sight, note: Note) -> str:
    first, *rest = (re.sub('"[^"]*"', "", line) for line in sight.lines)
    tabs = suffix(file) == ".tsv" or options.format == "tsv"
    if tabs and any("\t" in line for line in (first, *rest)):
        return "\t"
    if options.header is False and len(options.column_names or ()) == 1:
        return NO_DELIMITER

    def agreeing(delimiter: str) -> int:
        return sum(line.count(delimiter) == first.count(delimiter) for line in rest)

    candidates = [delimiter for delimiter in DELIMITERS if delimiter in first]
    if tabs:  # without one
        candidates = [delimiter for delimiter in candidates if rest and agreeing(delimiter) == len(rest)]
    if not candidates:
        for delimiter in DELIMITERS:
            numbers = {line.count(delimiter) for line in rest}
            if len(rest) > 2 and len(numbers) == 1 and numbers != {0}:  # every row has more fields than the header
                return delimiter
        if any(delimiter in line for line in rest for delimiter in DELIMITERS):
            note(
                f"`{file}`: its first line has no delimiter, so each line is one field; "
                "if that is wrong, set data.delimiter"
            )
        return NO_DELIMITER
    if len(rest) > 2 and not any(delimiter in line for line in rest for delimiter in candidates):
        note(
            f"`{file}`: no row has the {candidates[0]!r} of its first line, so there is one column; "
            "if that is wrong, set data.delimiter"
        )
        return NO_DELIMITER
    best = max(candidates, key=lambda delimiter: (agreeing(delimiter), first.count(delimiter)))
    if len(candidates) > 1 or tabs:
        note(f"`{file}`: the delimiter is taken to be {best!r}; data.delimiter sets another")
    return best


def _blanks(sight: Sight, delimiter: str) -> bool:
    """Tell whether a blank follows the delimiter wherever it stands outside quotes."""
    if not delimiter.strip():
        return False
    unquoted = [re.sub('"[^"]*"', "q", line) for line in sight.lines]
    bare = re.compile(re.escape(delimiter) + "[^ \r\n]")
    return bool(unquoted) and delimiter in unquoted[0] and not any(map(bare.search, unquoted))


def _sample(sight: Sight, dialect: Dialect) -> list[list[str]]:
    """Read the first rows, without the very first: those of the most frequent length."""
    rows: list[list[str]] = []
    reader = csv.reader(map(dialect.prepare, sight.lines), strict=False, **dialect.parameters)
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            continue
        if row is None:
            break
        rows.append(dialect.restore(row))
    rows = rows[1:]
    common = Counter(map(len, rows)).most_common(1)
    return [row for row in rows if len(row) == common[0][0]]


def _faults(file: Path, options: ReadOptions, sight: Sight, dialect: Dialect) -> int:
    """Count the rows that do not read well so."""
    tally, faults, width = Tally(), 0, 0
    with table_lines(file, options, sight) as lines:
        for _, row in read_fields(lines, 0, dialect, _sample(sight, dialect), tally):
            if isinstance(row, BadRow):
                faults += 1
            elif row:
                width = width or len(row)
                faults += len(row) != width
    return faults + tally.counts["literal"]


def _tab_separated(
    file: Path, options: ReadOptions, sight: Sight, dialect: Dialect, note: Note
) -> tuple[Dialect, list[list[str]]]:
    """Take quotes to enclose fields only if those of the whole file can, each within its line."""
    readings = [dialect, replace(dialect, backslash=True)] if sight.backslashes else [dialect]
    for reading in readings:
        begins, contradicts = _quotes_at_tabs(file, options, sight, reading)
        if begins and not contradicts:
            marked = r", and \" is read as a quote inside a field" if reading.backslash else ""
            note(
                f"`{file}`: quotes enclose fields (the first on line {begins}) and are taken off{marked}; "
                'to keep them, set data.quoting = "none"'
            )
            return reading, _sample(sight, reading)
    if contradicts:
        note(
            f"`{file}`: quotes are read as characters, as the one that begins a field on line {contradicts} does not "
            'enclose it; if fields span lines between quotes, set data.quoting = "minimal", which joins such lines'
        )
    literal = replace(dialect, quoted=False)
    return literal, _sample(sight, literal)


def _quotes_at_tabs(file: Path, options: ReadOptions, sight: Sight, dialect: Dialect) -> tuple[int, int]:
    """Return the first line with a quote at the begin of a field, and the first where quotes cannot enclose fields.

    They cannot where one is not closed in its line, or before a tab, or where a line has the right number of columns
    only if its quotes are characters. 0 stands for no such line.
    """
    begins = width = literal = 0
    held: list[int] = []  # the lines of a row

    def beginning(lines: Iterator[str]) -> Iterator[str]:
        nonlocal begins, width, literal
        for number, line in enumerate(lines, sight.before + 1):
            if line.startswith('"') or '\t"' in line:
                begins = begins or number
                literal = line.count("\t") + 1
                held.append(number)
                yield dialect.prepare(line)
            elif not width and line.strip():
                width = line.count("\t") + 1

    with table_lines(file, options, sight) as lines:
        try:
            for row in csv.reader(beginning(lines), strict=True, **dialect.parameters):
                if len(held) > 1 or (width and len(row) != width == literal):
                    return begins, held[0]
                width = width or len(row)
                held.clear()
        except csv.Error:
            return begins, held[0]
    return begins, 0
