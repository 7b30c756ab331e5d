"""Rows of Parquet, read with pyarrow."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit.errors import UserError


def parquet_columns(file: Path) -> list[str]:
    """The names of a Parquet file's columns; no row is read."""
    import pyarrow.parquet

    with _reading_parquet(file):
        return pyarrow.parquet.read_schema(file).names


def read_parquet(
    file: Path, encoding: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one row after another, of `columns` alone where they are given; `encoding` means nothing here."""
    import pyarrow.parquet

    with _reading_parquet(file), pyarrow.parquet.ParquetFile(file) as table:
        batches = table.iter_batches(1000, columns=None if columns is None else list(columns))
        every = itertools.chain.from_iterable(map(_values, batches))
        number = 0
        try:
            for number, row in enumerate(every, 1):
                yield f"row {number}", row
        except (ValueError, OverflowError) as problem:  # UnicodeDecodeError, or a time that Python has no words for
            if isinstance(problem, pyarrow.ArrowException):
                raise
            raise UserError(
                f"`{file}`, row {number + 1}: {problem}", "mend the row, or take out the column if it is not needed"
            ) from problem


def _values(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch; one by one only where they cannot be had at once, so that those before the bad one count."""
    try:
        found = batch.to_pylist()
    except (ValueError, OverflowError):
        found = (batch.slice(row, 1).to_pylist()[0] for row in range(batch.num_rows))
    yield from found


@contextmanager
def _reading_parquet(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as problem:
        raise UserError(
            f"`{file}`: not a whole Parquet file ({str(problem).splitlines()[0]})", "copy or download it again"
        ) from problem
