"""Write rows into a file, as JSON lines or a table: whole or not at all."""

import csv
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmkit import disk
from llmkit.errors import UserError

ERROR = "error"  # the key of a row that cannot be used, in place of what would be said of it


def check_output(output: Path) -> None:
    """Check that `output` can be written; raise UserError otherwise."""
    if output.suffix.lower() not in (".jsonl", ".ndjson", ".csv"):
        raise UserError(f"--output: `{output}` ends in neither .jsonl nor .csv", "the suffix decides the format")
    if disk.is_dir(output):
        raise UserError(f"--output: `{output}` is a folder", "name a file")
    if not disk.is_dir(output.parent):
        raise UserError(f"--output: there is no folder `{output.parent}`", "create it first, or write elsewhere")


def own_name(key: str, columns: Collection[str], prefix: str = "predicted_") -> str:
    """Return `key`, behind `prefix` where one of the input's `columns` has that name."""
    while key in columns:
        key = prefix + key
    return key


@contextmanager
def row_writer(output: Path | None, error: str = ERROR) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that writes a row: to stdout, or to a file that appears under its name when it is complete.

    `error` is the key of a row that cannot be used.
    """
    if output is None:
        yield lambda row: print(as_json(row), flush=True)  # noqa: T201
        return
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            table = output.suffix.lower() == ".csv"
            write, finish = _csv_writer(stream, error) if table else (lambda row: _line(stream, row), lambda: None)
            yield write
            finish()
        draft.replace(output)
    except OSError as problem:
        raise UserError(f"--output: `{output}` cannot be written: {problem.strerror or problem}") from problem
    finally:
        draft.unlink(missing_ok=True)


def _line(stream: IO[str], row: Mapping[str, Any]) -> None:
    stream.write(as_json(row) + "\n")


def as_json(value: Any) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False, default=str)  # a Parquet file's id may be a date


def _csv_writer(stream: IO[str], error: str) -> tuple[Callable[[Mapping[str, Any]], None], Callable[[], None]]:
    """Return what writes a row, and what is to be called behind the last one.

    The header is that of the first row without an `error`, and `error`; rows before that one wait.
    """
    table = csv.writer(stream, lineterminator="\n")
    header: list[str] = []
    waiting: list[Mapping[str, Any]] = []

    def write(row: Mapping[str, Any]) -> None:
        if not header and error in row:
            waiting.append(row)
            return
        if not header:
            header.extend([*row, error])
            flush()
        values = [row.get(name) for name in header]
        table.writerow([as_json(value) if isinstance(value, dict | list) else value for value in values])

    def flush() -> None:
        table.writerow(header)
        for row in waiting:
            write(row)
        waiting.clear()

    def finish() -> None:
        if waiting:
            header.extend(waiting[0])
            flush()

    return write, finish
