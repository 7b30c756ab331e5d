"""Read rows, texts or those of a file, and predict for them in chunks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import disk
from llmkit.data.output import Output as Output
from llmkit.data.output import as_json as as_json
from llmkit.data.output import row_writer as row_writer
from llmkit.errors import UserError, say
from llmkit.recipe.paths import local_copy
from llmkit.remote import scheme_of

if TYPE_CHECKING:
    from llmkit.data.files import ReadOptions
    from llmkit.data.rows.table import Rows


CHUNK = 256  # rows in memory: read, sorted by length and predicted together


def check_files(texts: Sequence[str], source: Path | None, output: Output | None) -> Path | None:
    """Check that there is exactly one source of rows, and that `output` can be written; raise UserError otherwise.

    Returns the file to read: of an address the local copy.
    """
    if source is None and not texts:
        raise UserError("nothing to predict", "give texts, or a file: --input FILE")
    if source is not None and texts:
        raise UserError("texts and --input cannot be combined", "put the texts into the file")
    there = source is None or scheme_of(str(source)) or disk.is_file(source)
    if not there:
        raise UserError(f"--input: there is no file `{source}`")
    if output is not None:
        if source is not None and output.path.resolve() == source.resolve():
            raise UserError("--output is the file that --input reads", "name another file")
        output.check()
    if source is None:
        return None
    local = Path(local_copy(str(source)))
    if not disk.is_file(local):
        raise UserError(f"--input: `{local}` is not one file", "name one file")
    return local


# From the rows of a chunk: the columns that the model reads, by role. From the rows and these: a prediction a row, or
# `{"error": ...}` for a row that cannot be read.
ResolveColumns = Callable[["Rows"], dict[str, str]]
PredictRows = Callable[["Rows", Mapping[str, str]], Sequence[dict[str, Any]]]


def read_rows(
    texts: Sequence[str],
    source: Path | None,
    options: "ReadOptions | None" = None,
    strict: bool = True,
    said: set[str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield each of `texts`, or each row of the file `source` (each line of a text file), behind its location.

    `options` say how the file is read. Without `strict` a row that cannot be read is a BadRow. What the user should
    know of how the file was read is said behind its last row, and not again where it is among `said`.
    """
    from llmkit.data import files

    options = options or files.ReadOptions()
    notes: dict[str, None] = {}
    if source is None:
        yield from ((f"text {number}", {"text": text}) for number, text in enumerate(texts, 1))
    elif files.format_of(source, options) in files.TEXT_SUFFIXES:
        for number, line in files.read_lines(source, options.encoding):
            if line.strip():
                yield f"`{source}`, line {number}", {"text": line.rstrip("\r\n")}
    else:
        for location, row in files.read_rows(source, options, note=notes.setdefault, strict=strict):
            yield f"`{source}`, {location}", row
        for remark in notes:
            if said is None or remark not in said:
                say(f"note: {remark}")
        if said is not None:
            said.update(notes)


def predictions(
    rows: Iterator[tuple[str, Any]],
    source: Path | None,
    resolve_columns: ResolveColumns,
    predict_rows: PredictRows,
    columns: "Mapping[str, str] | None" = None,
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Predict for each row, in order; yield the row and its prediction.

    A row of a file that cannot be read has an `error` in place of a prediction. At most `CHUNK` rows are in memory.
    `source` is named in messages. `columns` are those that `resolve_columns` found before, if it was asked. Raises
    UserError for a text, without `source`, that cannot be read.
    """
    from llmkit.data.files import BadRow
    from llmkit.data.rows.examples import chunks
    from llmkit.data.rows.table import Rows

    columns = columns or {}
    for chunk in chunks(rows, CHUNK):
        names = tuple(dict.fromkeys(name for _, row in chunk if not isinstance(row, BadRow) for name in row))
        table = Rows(chunk.__iter__, names, {}, "", f"`{source}`" if source else "the texts")
        if not columns and names:
            columns = resolve_columns(table)
        predicted = predict_rows(table, columns)
        for (location, _), prediction in zip(chunk, predicted, strict=True):
            if source is None and "error" in prediction:
                raise UserError(f"{location}: {prediction['error']}")
        for (_, row), prediction in zip(chunk, predicted, strict=True):
            yield ({} if isinstance(row, BadRow) else row), prediction


def check_finite(finite: Any) -> None:
    """Raise UserError unless `finite` is true."""
    if not finite:
        raise UserError("the model's outputs are not finite numbers", "did its training diverge?")
