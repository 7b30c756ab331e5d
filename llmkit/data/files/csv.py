"""Read rows from text tables whose fields are separated by commas, semicolons, tabs or bars."""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files.lines import UTF_16_HINT, read_lines, suffix
from llmkit.data.files.options import Note, ReadOptions
from llmkit.errors import UserError

csv.field_size_limit(1 << 30)

SHOWN = 80  # characters of a row, in a message


def read_csv(file: Path, options: ReadOptions, note: Note) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows after the header, each field as it is written; the header decides the delimiter."""
    numbered = read_lines(file, options.encoding)
    blank_lines, first = next(((number - 1, line) for number, line in numbered if line.strip()), (0, ""))
    if "\0" in first:
        raise UserError(f"`{file}`, line {blank_lines + 1}: NUL bytes among the names of the columns", UTF_16_HINT)
    # Where none of these occurs, the comma: there is one column.
    unquoted = re.sub('"[^"]*"', "", first)
    delimiter = "\t" if suffix(file) == ".tsv" else max(",;\t|", key=unquoted.count)
    reader = csv.reader(
        itertools.chain([first], (line for _, line in numbered)),
        delimiter=delimiter,
        strict=True,
    )
    row_line = blank_lines + 1  # where a row begins: with quoted line breaks it may fill many lines
    try:
        header = next(reader, [])
        numbered_by_pandas = len(header) > 1 and not header[0]  # by its index, which is no column of the data
        for number, name in enumerate(header, 1):
            if not name.strip() and not (numbered_by_pandas and number == 1):
                raise UserError(f"`{file}`, line {row_line}: column {number} has no name", "name it or take it out")
            if Counter(header)[name] > 1:
                raise UserError(
                    f"`{file}`, line {row_line}: {Counter(header)[name]} columns are called `{name}`",
                    "give every column a name of its own",
                )
        row_line = blank_lines + reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"`{file}`, line {row_line}: {len(row)} fields where the header has {len(header)}",
                    f"the delimiter read from the header is {delimiter!r}; quote fields that contain it",
                    (" ".join(delimiter.join(row).split())[:SHOWN],),
                )
            if row:
                fields = zip(header, row, strict=True)
                yield f"line {row_line}", dict(itertools.islice(fields, int(numbered_by_pandas), None))
            row_line = blank_lines + reader.line_num + 1
    except csv.Error as problem:
        if str(problem).startswith("new-line character"):
            raise UserError(
                f"`{file}`, line {row_line}: a carriage return inside a field that is not quoted",
                "quote the field; if every line ends so (as on an old Mac), write line feeds instead",
            ) from problem
        raise UserError(
            f"`{file}`, line {row_line}: {problem}",
            'a field that begins with a quote ends with one, and a quote inside it is doubled ("")',
        ) from problem
