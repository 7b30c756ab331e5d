"""Read rows from text tables whose fields are separated by commas, semicolons, tabs, bars or what a recipe says."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmkit.data.files.dialect import Sight, find_dialect, look, table_lines
from llmkit.data.files.fields import SHOWN, Dialect, Tally, read_fields
from llmkit.data.files.header import name_columns
from llmkit.data.files.lines import UTF_16_HINT
from llmkit.data.files.options import BadRow, Note, ReadOptions
from llmkit.errors import UserError


def read_csv(file: Path, options: ReadOptions, note: Note) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Yield the rows after the header, each field as it is written.

    The header decides the delimiter, and the whole file what its quotes mean, where the recipe does not. A row that
    cannot be read is a BadRow.
    """
    sight = look(file, options)
    if "\0" in "".join(sight.lines[:1]):
        raise UserError(f"`{file}`, line {sight.before + 1}: NUL bytes in the column names", UTF_16_HINT)
    if not sight.lines:
        return
    dialect, sample = find_dialect(file, options, sight, note)
    tally, headed = Tally(), options.header is not False
    usual = sample[0] if sample and not headed else []
    with table_lines(file, options, sight) as lines:
        rows = read_fields(lines, sight.before, dialect, sample, tally, len(usual))
        number, first = next(rows)
        if not headed:
            rows = itertools.chain([(number, first)], rows)
            first = usual or first
        if isinstance(first, BadRow):
            raise UserError(f"`{file}`, line {number}: {first.message}", first.hint, first.details)
        if headed and options.column_names is None:
            first = _named(first, sample)
        header = name_columns(f"line {number}", first, sample, file, options, note)
        names, width, folded = header.names[header.index :], len(first), _folded(first)
        last, longest = folded[-1], len(first[-1]) + 2  # a look at one field saves the time for all
        expected = f"where {'the header has' if headed else 'most rows have'} {width}"
        blank: list[tuple[int, list[str]]] = []  # lines without anything; spreadsheets write such at the end

        def fitted(number: int, row: list[str]) -> dict[str, str] | BadRow | None:
            """Return a row by its columns; None for a blank line."""
            if len(row) < 2 and not "".join(row).strip():
                return None
            if len(row) < width or any(row[width:]):
                return _ragged(row, expected, dialect, sight)
            if len(row) > width:
                tally.add("trailing", f"line {number}")
            return dict(zip(names, row[1:] if header.index else row))  # noqa: B905 - may be longer

        for number, row in rows:
            if isinstance(row, list) and len(row) != 1 and not any(row):
                blank.append((number, row))
                continue
            for before, empty in blank:
                if (one := fitted(before, empty)) is not None:
                    yield f"line {before}", one
            if blank:
                blank.clear()
            if isinstance(row, BadRow):
                yield f"line {number}", row
            elif len(row) != width:
                if (one := fitted(number, row)) is not None:
                    yield f"line {number}", one
            elif headed and len(row[-1]) <= longest and row[-1].strip().casefold() == last and _folded(row) == folded:
                tally.add("repeated", f"line {number}")
            else:
                yield f"line {number}", dict(zip(names, row[1:] if header.index else row))  # noqa: B905 - it takes time
        for number, row in blank:
            if row:
                tally.add("blank", f"line {number}")
    _report(file, tally, note)


def _named(first: list[str], sample: Sequence[list[str]]) -> list[str]:
    """Take the fields without a name off the end of a header, as a spreadsheet writes them, if their columns are empty.

    A row with anything there has too many fields.
    """
    width = len(first)
    while width > 1 and not first[width - 1].strip():
        width -= 1
    return first if any("".join(row[width:]).strip() for row in sample) else first[:width]


def _folded(row: list[str]) -> list[str]:
    """Return the names of columns as they are compared: without case and the blanks around them."""
    return [field.strip().casefold() for field in row]


def _ragged(row: list[str], expected: str, dialect: Dialect, sight: Sight) -> BadRow:
    quotes = '; if quotes enclose fields, set data.quoting = "minimal"' if sight.quotes and not dialect.quoted else ""
    return BadRow(
        f"{len(row)} field{'s' if len(row) != 1 else ''} {expected}",
        f"the delimiter is {dialect.delimiter!r} (data.delimiter sets another); quote fields that contain it{quotes}",
        "missing or extra fields",
        (" ".join(dialect.delimiter.join(row).split())[:SHOWN],),
    )


def _report(file: Path, tally: Tally, note: Note) -> None:
    """Tell what a full pass has counted."""
    for kind, noun, what, advice in (
        (
            "literal",
            "line",
            "with a quote that begins a field and does not enclose it, read as a character",
            '; to read all quotes so, set data.quoting = "none"',
        ),
        ("spanning", "row", "with line breaks in a field", '; if no field has any, set data.quoting = "none"'),
        ("trailing", "row", "with empty fields beyond the header's, which are left out", ""),
        ("repeated", "line", "left out: the header again", ""),
        ("blank", "row", "at the end left out: every field is empty", ""),
    ):
        if count := tally.counts[kind]:
            counted, place = (f"{count:,} {noun}s", "such as ") if count > 1 else (f"1 {noun}", "")
            note(f"`{file}`: {counted} {what} ({place}{tally.first[kind]}){advice}")
