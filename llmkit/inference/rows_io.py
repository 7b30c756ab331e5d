"""Read rows and write predictions: texts or a file, JSON lines or CSV, never half a file."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llmkit.errors import UserError, say

if TYPE_CHECKING:
    from llmkit.data.files import ReadOptions
    from llmkit.data.rows.table import Rows


CHUNK = 256  # rows in memory: read, sorted by length and predicted together


def check_files(texts: Sequence[str], source: Path | None, output: Path | None) -> None:
    """Check that there is exactly one source of rows, and that `output` can be written; raise UserError otherwise."""
    if source is None and not texts:
        raise UserError("nothing to predict", "give texts, or a file: --input FILE")
    if source is not None and texts:
        raise UserError("texts and --input exclude one another", "put the texts into the file")
    if source is not None and not source.is_file():
        raise UserError(f"--input: there is no file `{source}`")
    if output is None:
        return
    if output.suffix.lower() not in (".jsonl", ".ndjson", ".csv"):
        raise UserError(f"--output: `{output}` ends in neither .jsonl nor .csv", "the suffix decides the format")
    if output.is_dir():
        raise UserError(f"--output: `{output}` is a folder", "name a file")
    if not output.parent.is_dir():
        raise UserError(f"--output: there is no folder `{output.parent}`", "make it first, or write elsewhere")
    if source is not None and output.resolve() == source.resolve():
        raise UserError("--output is the file that --input reads", "name another")


# From the rows of a chunk: the columns that the model reads, by role. From the rows and these: a prediction a row, or
# `{"error": ...}` for a row that cannot be read.
ResolveColumns = Callable[["Rows"], dict[str, str]]
PredictRows = Callable[["Rows", Mapping[str, str]], Sequence[dict[str, Any]]]


def read_rows(
    texts: Sequence[str], source: Path | None, options: "ReadOptions | None" = None, strict: bool = True
) -> Iterator[tuple[str, Any]]:
    """Yield each of `texts`, or each row of the file `source` (each line of a text file), behind its location.

    `options` say how the file is read. Without `strict` a row that cannot be read is a BadRow. What the user should
    know of how the file was read is said behind its last row.
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
            say(f"note: {remark}")


def predictions(
    rows: Iterator[tuple[str, Any]],
    source: Path | None,
    resolve_columns: ResolveColumns,
    predict_rows: PredictRows,
    columns: "Mapping[str, str] | None" = None,
) -> Iterator[dict[str, Any]]:
    """Predict for each row, in order; yield its `id` (if any), the columns that the model read, and its prediction.

    A row of a file that cannot be read has an `error` in place of a prediction. At most `CHUNK` rows are in memory.
    `source` is named in messages. `columns` are those that `resolve_columns` found before, if it was asked. Raises
    UserError for a text, without `source`, that cannot be read.
    """
    from llmkit.data.files import BadRow
    from llmkit.data.rows.cells import ABSENT, value_at
    from llmkit.data.rows.examples import chunks
    from llmkit.data.rows.table import Rows

    columns = columns or {}
    for chunk in chunks(rows, CHUNK):
        names = tuple(dict.fromkeys(name for _, row in chunk if not isinstance(row, BadRow) for name in row))
        table = Rows(chunk.__iter__, names, {}, "", f"`{source}`" if source else "the texts")
        if not columns and names:
            columns = resolve_columns(table)
        visible = [*(["id"] if "id" in names else []), *columns.values()]
        predicted = predict_rows(table, columns)
        for (location, _), prediction in zip(chunk, predicted, strict=True):
            if source is None and "error" in prediction:
                raise UserError(f"{location}: {prediction['error']}")
        for (_, row), prediction in zip(chunk, predicted, strict=True):
            shown = {} if isinstance(row, BadRow) else row
            values = {column: value_at(shown, column) for column in visible}
            yield {column: None if value is ABSENT else value for column, value in values.items()} | prediction


@contextmanager
def row_writer(output: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that writes a row: to stdout, or to a file that appears under its name when it is complete."""
    if output is None:
        yield lambda prediction: print(as_json(prediction), flush=True)  # noqa: T201
        return
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            table = output.suffix.lower() == ".csv"
            write, finish = (
                _csv_writer(stream) if table else (lambda prediction: _line(stream, prediction), lambda: None)
            )
            yield write
            finish()
        draft.replace(output)
    except OSError as problem:
        raise UserError(f"--output: `{output}` cannot be written: {problem.strerror or problem}") from problem
    finally:
        draft.unlink(missing_ok=True)


def _line(stream: IO[str], prediction: Mapping[str, Any]) -> None:
    stream.write(as_json(prediction) + "\n")


def as_json(prediction: Any) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(prediction, ensure_ascii=False, default=str)  # a Parquet file's id may be a date


def _csv_writer(stream: IO[str]) -> tuple[Callable[[Mapping[str, Any]], None], Callable[[], None]]:
    """Return what writes a row, and what is to be called behind the last one.

    The header is that of the first row without an `error`, and `error`; rows before that one wait.
    """
    table = csv.writer(stream, lineterminator="\n")
    header: list[str] = []
    waiting: list[Mapping[str, Any]] = []

    def write(prediction: Mapping[str, Any]) -> None:
        if not header and "error" in prediction:
            waiting.append(prediction)
            return
        if not header:
            header.extend([*prediction, "error"])
            flush()
        values = [prediction.get(name) for name in header]
        table.writerow([as_json(value) if isinstance(value, dict | list) else value for value in values])

    def flush() -> None:
        table.writerow(header)
        for prediction in waiting:
            write(prediction)
        waiting.clear()

    def finish() -> None:
        if waiting:
            header.extend(waiting[0])
            flush()

    return write, finish


def check_finite(finite: Any) -> None:
    """Raise UserError unless `finite` is true."""
    if not finite:
        raise UserError("the model's outputs are not finite numbers", "did its training diverge?")
