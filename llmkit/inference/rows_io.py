"""Read rows and write predictions: texts or a file, JSON lines or CSV, never half a file."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llmkit.errors import UserError

if TYPE_CHECKING:
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


# From the rows of a chunk: the columns that the model reads, by role. From the rows and these: a prediction a row.
ResolveColumns = Callable[["Rows"], dict[str, str]]
PredictRows = Callable[["Rows", Mapping[str, str]], Sequence[dict[str, Any]]]


def read_rows(texts: Sequence[str], source: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each of `texts`, or each row of the file `source` (each line of a text file), behind its location."""
    from llmkit.data import files

    if source is None:
        yield from ((f"text {number}", {"text": text}) for number, text in enumerate(texts, 1))
    elif files.suffix(source) in files.TEXT_SUFFIXES:
        for number, line in files.read_lines(source, "utf-8"):
            if line.strip():
                yield f"`{source}`, line {number}", {"text": line.rstrip("\r\n")}
    else:
        for location, row in files.read_rows(source):
            yield f"`{source}`, {location}", row


def predictions(
    rows: Iterator[tuple[str, dict[str, Any]]],
    source: Path | None,
    resolve_columns: ResolveColumns,
    predict_rows: PredictRows,
) -> Iterator[dict[str, Any]]:
    """Predict for each row, in order; yield its `id` (if any), the columns that the model read, and its prediction.

    At most `CHUNK` rows are in memory. `source` is named in messages.
    """
    from llmkit.data.rows.examples import chunks
    from llmkit.data.rows.table import Rows

    columns: dict[str, str] = {}
    visible: list[str] = []
    for chunk in chunks(rows, CHUNK):
        table = Rows(chunk.__iter__, tuple(chunk[0][1]), {}, "", f"`{source}`" if source else "the texts")
        if not columns:
            columns = resolve_columns(table)
            visible = [*(["id"] if "id" in table.columns else []), *columns.values()]
        for (_, row), prediction in zip(chunk, predict_rows(table, columns), strict=True):
            yield {column: row.get(column) for column in visible} | prediction


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
            yield _csv_writer(stream) if table else lambda prediction: _line(stream, prediction)
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


def _csv_writer(stream: IO[str]) -> Callable[[Mapping[str, Any]], None]:
    table = csv.writer(stream, lineterminator="\n")
    header: list[str] = []

    def write(prediction: Mapping[str, Any]) -> None:
        if not header:
            header.extend(prediction)
            table.writerow(header)
        table.writerow([as_json(value) if isinstance(value, dict | list) else value for value in prediction.values()])

    return write


def check_finite(finite: Any) -> None:
    """Raise UserError unless `finite` is true."""
    if not finite:
        raise UserError("the model's outputs are not finite numbers", "did its training diverge?")
