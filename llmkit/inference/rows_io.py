"""Rows in and answers out: texts or a file, JSON lines or CSV, never half of a file."""

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


CHUNK = 256  # rows read, sorted by length and answered together: what is held in memory


def check_files(texts: Sequence[str], source: Path | None, output: Path | None) -> None:
    """There is one source of rows, and a place to write to."""
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


# From the rows of a chunk: which of their columns the model reads, by role; and, with that, what it says of each row.
Layout = Callable[["Rows"], dict[str, str]]


Answer = Callable[["Rows", Mapping[str, str]], Sequence[dict[str, Any]]]


def read_rows(texts: Sequence[str], source: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each of `texts`, or each row of the file `source`, with its place for messages; of a text file each line."""
    from llmkit.data import files

    if source is None:
        yield from ((f"text {number}", {"text": text}) for number, text in enumerate(texts, 1))
    elif files.suffix(source) in files.TEXT_SUFFIXES:
        for number, line in files.read_lines(source, "utf-8"):
            if line.strip():
                yield f"`{source}`, line {number}", {"text": line.rstrip("\r\n")}
    else:
        for place, row in files.read_rows(source, "utf-8"):
            yield f"`{source}`, {place}", row


def answers(
    rows: Iterator[tuple[str, dict[str, Any]]], source: Path | None, layout: Layout, answer: Answer
) -> Iterator[dict[str, Any]]:
    """What the model says of each row, in their order, behind the row's `id` (if it has one) and what it was asked.

    At most `CHUNK` rows are held at once.
    """
    from llmkit.data.rows.examples import chunks
    from llmkit.data.rows.table import Rows

    columns: dict[str, str] = {}
    shown: list[str] = []
    for chunk in chunks(rows, CHUNK):
        part = Rows(chunk.__iter__, tuple(chunk[0][1]), {}, "", f"`{source}`" if source else "the texts")
        if not columns:
            columns = layout(part)
            shown = [*(["id"] if "id" in part.columns else []), *columns.values()]
        for (_, row), said in zip(chunk, answer(part, columns), strict=True):
            yield {column: row.get(column) for column in shown} | said


@contextmanager
def writing(output: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write answers as they come: to stdout, or to a file that appears under its name when it is whole."""
    if output is None:
        yield lambda said: print(as_json(said), flush=True)  # noqa: T201
        return
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            table = output.suffix.lower() == ".csv"
            yield _csv_writer(stream) if table else lambda said: _line(stream, said)
        draft.replace(output)
    except OSError as problem:
        raise UserError(f"--output: `{output}` cannot be written: {problem.strerror or problem}") from problem
    finally:
        draft.unlink(missing_ok=True)


def _line(stream: IO[str], said: Mapping[str, Any]) -> None:
    stream.write(as_json(said) + "\n")


def as_json(said: Any) -> str:
    """`said` as a line of JSON."""
    return json.dumps(said, ensure_ascii=False, default=str)  # a Parquet file's id may be a date


def _csv_writer(stream: IO[str]) -> Callable[[Mapping[str, Any]], None]:
    table = csv.writer(stream, lineterminator="\n")
    header: list[str] = []

    def write(said: Mapping[str, Any]) -> None:
        if not header:
            header.extend(said)
            table.writerow(header)
        table.writerow([as_json(value) if isinstance(value, dict | list) else value for value in said.values()])

    return write


def check_finite(finite: Any) -> None:
    if not finite:
        raise UserError("the model's outputs are not finite numbers", "did its training diverge?")
