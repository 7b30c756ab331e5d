"""Write rows into a file, as JSON lines or a table, or files into a folder: whole or not at all."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmkit import disk
from llmkit.errors import UserError, quantity
from llmkit.recipe.paths import at_home, refuse_address

ERROR = "error"  # the key of a row that cannot be used, in place of what would be said of it


@dataclass(frozen=True)
class Output:
    """What `--output` names: a file of rows that is not there yet or may be overwritten, or a device or a pipe."""

    path: Path
    overwrite: bool = False

    @classmethod
    def named(cls, path: Path | None, overwrite: bool) -> "Output | None":
        """Return what the command line names, None where it names nothing."""
        if path is None and overwrite:
            raise UserError("--overwrite needs --output", "add --output FILE")
        return None if path is None else cls(path, overwrite)

    @property
    def is_stream(self) -> bool:
        """Whether it is written to as it comes: a device, a pipe, or a stream that is open already (/dev/stdout)."""
        place = Path(os.path.realpath(self.path.parent))
        opened = place == Path("/dev") or (place.parts[:2] == ("/", "proc") and place.name == "fd")
        return disk.exists(self.path) and not disk.is_dir(self.path) and (opened or not disk.is_file(self.path))

    @property
    def target(self) -> Path:
        """The file itself, where the path is a link."""
        return Path(os.path.realpath(self.path))

    def check(self) -> None:
        """Check that it can be written and is not another's; raise UserError otherwise. Nothing of it is left."""
        path = self.path
        refuse_address(str(path), written=True)
        if self.is_stream:
            return
        if path.suffix.lower() not in (".jsonl", ".ndjson", ".csv"):
            raise UserError(f"--output: `{path}` ends in neither .jsonl nor .csv", "the suffix decides the format")
        if disk.is_dir(path):
            raise UserError(f"--output: `{path}` is a folder", "name a file")
        if not disk.is_dir(path.parent):
            raise UserError(f"--output: there is no folder `{path.parent}`", "create it first, or write elsewhere")
        if not self.overwrite and disk.has_content(path):
            raise UserError(f"--output: `{path}` already exists", "name another file, or add --overwrite")
        with self.written():
            self.draft().touch()
            self.draft().unlink()

    def draft(self) -> Path:
        """Return where the rows are until all are there: beside the file, or the one that a link leads to."""
        return self.target.with_name(f".{self.target.name}.{os.getpid()}")

    @contextmanager
    def written(self) -> Iterator[None]:
        """Turn errors of the file system into a UserError."""
        try:
            yield
        except OSError as problem:
            raise UserError(f"--output: `{self.path}` cannot be written: {problem.strerror or problem}") from problem

    def __str__(self) -> str:
        return str(self.path)


def check_folder(output: str) -> Path:
    """Return the folder that `--output` names, which is new or empty; raise UserError otherwise."""
    refuse_address(output, written=True)
    target = at_home(output).resolve()
    if disk.is_file(target) or (disk.is_dir(target) and any(target.iterdir())):
        raise UserError(
            f"the output directory `{output}` already contains other files", "name a new or empty directory"
        )
    return target


@contextmanager
def new_folder(target: Path, output: str) -> Iterator[Path]:
    """Yield a draft that becomes the folder `target` where nothing was raised; `output` names it in errors."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        yield draft
        disk.share_files(draft)
        draft.replace(target)
    except OSError as problem:
        raise UserError(
            f"the output directory `{output}` cannot be written: {problem.strerror or problem}"
        ) from problem
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def own_name(key: str, columns: Collection[str], prefix: str = "predicted_") -> str:
    """Return `key`, behind `prefix` where one of the input's `columns` has that name."""
    while key in columns:
        key = prefix + key
    return key


@contextmanager
def row_writer(
    output: Output | None, error: str = ERROR, kept_in: Path | None = None
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that writes a row: to stdout, or to a file that appears under its name when it is complete.

    Where the disk is full, the rows so far are kept beside that file, and said, unless they are `kept_in` another.
    `error` is the key of a row that cannot be used.
    """
    if output is None:
        yield lambda row: print(as_json(row), flush=True)  # noqa: T201
        return
    if output.is_stream:
        with output.written(), output.path.open("a", encoding="utf-8", newline="") as stream:
            write, finish = _format(output, stream, error)
            yield write
            finish()
        return
    draft, whole = output.draft(), _Whole()
    try:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            write, finish = _format(output, stream, error)

            def write_row(row: Mapping[str, Any]) -> None:
                write(row)
                whole.add(stream)

            yield write_row
            finish()
        if not output.overwrite and disk.has_content(output.path):
            there = _kept(output, whole, kept_in) or "nothing was written"
            raise UserError(f"--output: `{output}` was written by another program meanwhile; {there}")
        draft.replace(output.target)
    except OSError as problem:
        reason = f"--output: `{output}` cannot be written: {problem.strerror or problem}"
        raise UserError(reason, _kept(output, whole, kept_in)) from problem
    finally:
        draft.unlink(missing_ok=True)


@dataclass
class _Whole:
    """How many rows are whole in a file, and where the last of them ends."""

    rows: int = 0
    end: int = 0
    _seen: int = 0

    def add(self, stream: IO[str]) -> None:
        """Count a row that was just written."""
        self._seen += 1
        stream.flush()
        end = stream.buffer.tell()  # type: ignore[attr-defined]
        if end > self.end:  # else it waits for the header
            self.rows, self.end = self._seen, end


def _kept(output: Output, whole: _Whole, kept_in: Path | None) -> str:
    """Keep the whole rows of a draft beside its file; return where they are, "" where there are none."""
    if kept_in is not None:
        return f"what is done is kept in `{kept_in}`: free some disk space, and the same command goes on from there"
    if not whole.rows:
        return ""
    path, number = output.path.with_suffix(f".unfinished{output.path.suffix}"), 1
    while os.path.lexists(path):
        number += 1
        path = output.path.with_suffix(f".unfinished-{number}{output.path.suffix}")
    try:
        os.truncate(output.draft(), whole.end)
        output.draft().rename(path)
    except OSError:
        return ""
    return f"the first {quantity(whole.rows, 'row')} are kept in `{path}`"


def _format(
    output: Output, stream: IO[str], error: str
) -> tuple[Callable[[Mapping[str, Any]], None], Callable[[], None]]:
    """Return what writes a row in the format of the output, and what is to be called behind the last one."""
    if output.path.suffix.lower() == ".csv":
        return _csv_writer(stream, error)
    return lambda row: _line(stream, row), lambda: None


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
