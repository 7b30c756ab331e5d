"""Read rows from a file of any format; the suffix chooses the reader."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.data.files.conll import read_conll
from llmkit.data.files.csv import read_csv
from llmkit.data.files.json import read_json, read_json_lines
from llmkit.data.files.lines import TEXT_SUFFIXES, suffix
from llmkit.data.files.options import BadRow, Note, ReadOptions, unheard
from llmkit.data.files.parquet import read_parquet
from llmkit.errors import UserError

Reader = Callable[[Path, ReadOptions, Note], Iterator[tuple[str, dict[str, Any] | BadRow]]]
# Add a format here. A reader takes a file, how to read it and whom to tell remarks, and yields its rows, each with its
# place in the file.
READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    **dict.fromkeys((".conll", ".bio", ".iob", ".iob2", ".bmes"), read_conll),
}
ROW_SUFFIXES = tuple(READERS)
SUFFIXES = TEXT_SUFFIXES + ROW_SUFFIXES


def read_rows(
    file: Path,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - it is frozen
    columns: Sequence[str] | None = None,
    note: Note = unheard,
    strict: bool = True,
) -> Iterator[tuple[str, Any]]:
    """Read the rows of a file, each with its place in it: "line 3", "row 7", "item 2".

    The suffix decides the format. From a Parquet file only `columns` are read, where they are given. `note` is told
    what a user should know of how the file was read. Without `strict` a row that cannot be read is a BadRow. Raises
    UserError for it, and for a format that has no rows or that llmkit does not read.
    """
    for place, row in _reader(file, options, columns, note):
        if strict and isinstance(row, BadRow):
            raise UserError(f"`{file}`, {place}: {row.message}", row.hint, row.details)
        yield place, row


def _reader(
    file: Path, options: ReadOptions, columns: Sequence[str] | None, note: Note
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    kind = suffix(file)
    if kind == ".parquet":
        return read_parquet(file, options, note, columns)
    if kind in READERS:
        return READERS[kind](file, options, note)
    if kind in TEXT_SUFFIXES:
        raise UserError(
            f"`{file}`: a text file has no columns", f"rows come from files that end in {' '.join(ROW_SUFFIXES)}"
        )
    raise UserError(
        f"`{file}`: llmkit does not read `{kind}` files" if kind else f"`{file}`: its name does not say what it is",
        f"it reads files that end in {' '.join(SUFFIXES)} (or the same with .gz)",
    )


def text_of(row: Mapping[str, Any], column: str, where: str, key: str = "its key in [data]") -> str:
    """Return the text in a column of a row, "" for None.

    `where` names the file and the row, and `key` the recipe's key that chose the column: both are for messages. Raises
    UserError where the column is missing, or holds no text or text that cannot be tokenized.
    """
    if column not in row:
        raise UserError(
            f"{where}: no `{column}`; the row has {', '.join(row) or 'nothing'}", "every row needs that column"
        )
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{where}: column `{column}` holds {type(value).__name__}, not text",
            f"set {key} to the column with the text",
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as problem:  # JSON can write it, and nothing can tokenize it
            raise UserError(
                f"{where}: `{column}` holds half a character (\\u{ord(value[problem.start]):04x})",
                "characters beyond U+FFFF are two \\u escapes in JSON; mend the row or take it out",
            ) from problem
    return value
