"""Read rows from a file of any format; the suffix chooses the reader."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmkit.data.files.archives import open_bytes, suffix
from llmkit.data.files.arrow import ARROW_SUFFIXES, COLUMNAR_SUFFIXES, read_arrow, read_parquet
from llmkit.data.files.by_lines import advice_by_lines
from llmkit.data.files.conll import looks_like_conll, read_conll
from llmkit.data.files.csv import read_csv
from llmkit.data.files.json import read_json, read_json_lines
from llmkit.data.files.labelled_lines import read_labelled_lines
from llmkit.data.files.lines import TEXT_SUFFIXES
from llmkit.data.files.options import BadRow, Note, ReadOptions, unheard
from llmkit.errors import UserError
from llmkit.recipe.paths import COMPRESSED

Reader = Callable[..., Iterator[tuple[str, dict[str, Any] | BadRow]]]
# Add a format here. A reader takes a file, how to read it and whom to tell remarks, and yields its rows, each with its
# place in the file. It may yield a BadRow for a row that it cannot read. Those of COLUMNAR_SUFFIXES take the wanted
# columns too.
READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    **dict.fromkeys(ARROW_SUFFIXES, read_arrow),
    ".fasttext": read_labelled_lines,
    **dict.fromkeys((".conll", ".bio", ".iob", ".iob2", ".bmes"), read_conll),
}
ROW_SUFFIXES = tuple(READERS)
SUFFIXES = TEXT_SUFFIXES + ROW_SUFFIXES
# Formats that data.format does not help to read, and what does.
REMEDIES = dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"), "unpack it")
REMEDIES |= dict.fromkeys((".xls", ".xlsx", ".ods", ".numbers"), "save the sheet as CSV")
# With these names CoNLL's own files come (eng.testa, wnut16.test, emerging.test.annotated): their lines decide.
SNIFFED = (".train", ".dev", ".valid", ".test", ".testa", ".testb", ".annotated")


def read_rows(
    file: Path,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - it is frozen
    columns: Sequence[str] | None = None,
    note: Note = unheard,
    strict: bool = True,
) -> Iterator[tuple[str, Any]]:
    """Read the rows of a file, each with its place in it: "line 3", "row 7", "item 2".

    `format_of` decides the format. From a Parquet or Arrow file only `columns` are read, where they are given. `note`
    is told what a user should know of how the file was read. Without `strict` a row that cannot be read is a BadRow.
    Raises UserError for it, and for a format that has no rows or that llmkit does not read.
    """
    for place, row in _reader(file, options, columns, note):
        if strict and isinstance(row, BadRow):
            raise UserError(f"`{file}`, {place}: {row.message}", row.hint, row.details)
        yield place, row


def _reader(
    file: Path, options: ReadOptions, columns: Sequence[str] | None, note: Note
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    kind = format_of(file, options)
    if kind in READERS:
        if options.format and kind == suffix(file) and READERS[kind] is not READERS.get(f".{options.format}"):
            note(f"`{file}`: read as its name says; data.format is for names that do not tell")
        reads = {"columns": columns} if kind in COLUMNAR_SUFFIXES else {}
        return READERS[kind](file, options, note, **reads)
    if kind in TEXT_SUFFIXES:
        raise UserError(
            f"`{file}`: a text file has no columns",
            advice_by_lines(file, options.encoding)
            or f"rows are read from files that end in {' '.join(ROW_SUFFIXES)}; for another name, set data.format",
        )
    if kind in COMPRESSED:
        open_bytes(file).close()  # it raises where an archive holds many files
    if kind in REMEDIES:
        raise UserError(f"`{file}`: llmkit does not read `{kind}` files", REMEDIES[kind])
    raise UserError(
        f"`{file}`: llmkit does not read `{kind}` files" if kind else f"`{file}`: its name does not show its format",
        advice_by_lines(file, options.encoding)
        or f"llmkit reads files that end in {' '.join(SUFFIXES)} (or the same with {' '.join(COMPRESSED)}); for "
        "another "
        "name, set data.format",
    )


def format_of(file: Path, options: ReadOptions = ReadOptions()) -> str:  # noqa: B008 - it is frozen
    """Return the suffix of the format that a file is read as: its own; else data.format's; else what its lines show.

    A text file is what data.format says of it. For a file that cannot be read its own suffix is returned.
    """
    kind = suffix(file)
    if kind in ROW_SUFFIXES:
        return kind
    if options.format:
        return ".txt" if options.format == "text" else f".{options.format}"
    return ".conll" if kind in SNIFFED and looks_like_conll(file, options.encoding) else kind
