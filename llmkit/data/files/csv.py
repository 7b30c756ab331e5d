"""Rows of a table in text: commas, semicolons, tabs or bars between its fields."""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files.lines import UTF_16_HINT, read_lines, suffix
from llmkit.errors import UserError

csv.field_size_limit(1 << 30)


SHOWN = 80  # characters of a row, in a message


def read_csv(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows behind the header, each field as it is written; the header's line decides the delimiter."""
    numbered = read_lines(file, encoding)
    above, first = next(((number - 1, line) for number, line in numbered if line.strip()), (0, ""))  # blank lines
    if "\0" in first:
        raise UserError(f"`{file}`, line {above + 1}: NUL bytes among the names of the columns", UTF_16_HINT)
    # The comma where none of these occurs: one column.
    unquoted = re.sub('"[^"]*"', "", first)
    delimiter = "\t" if suffix(file) == ".tsv" else max(",;\t|", key=unquoted.count)
    reader = csv.reader(
        itertools.chain([first], (line for _, line in numbered)),
        delimiter=delimiter,
        strict=True,
    )
    begins = above + 1  # the line on which a row begins; quoted line breaks let it go on for many
    try:
        header = next(reader, [])
        numbered_by_pandas = len(header) > 1 and not header[0]  # its index: no column of the data
        for number, name in enumerate(header, 1):
            if not name.strip() and not (numbered_by_pandas and number == 1):
                raise UserError(f"`{file}`, line {begins}: column {number} has no name", "name it or take it out")
            if Counter(header)[name] > 1:
                raise UserError(
                    f"`{file}`, line {begins}: {Counter(header)[name]} columns are called `{name}`",
                    "give every column a name of its own",
                )
        begins = above + reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"`{file}`, line {begins}: {len(row)} fields where the header has {len(header)}",
                    f"the delimiter read from the header is {delimiter!r}; quote fields that contain it",
                    (" ".join(delimiter.join(row).split())[:SHOWN],),
                )
            if row:
                named = zip(header, row, strict=True)
                yield f"line {begins}", dict(itertools.islice(named, int(numbered_by_pandas), None))
            begins = above + reader.line_num + 1
    except csv.Error as problem:
        if str(problem).startswith("new-line character"):
            raise UserError(
                f"`{file}`, line {begins}: a carriage return inside a field that is not quoted",
                "quote the field; if every line ends so (as on an old Mac), write line feeds instead",
            ) from problem
        raise UserError(
            f"`{file}`, line {begins}: {problem}",
            'a field that begins with a quote ends with one, and a quote inside it is doubled ("")',
        ) from problem
