"""Read rows from Parquet files with pyarrow."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit.data.files.options import Note, ReadOptions
from llmkit.errors import UserError


def parquet_columns(file: Path) -> list[str]:
    """Return the names of a Parquet file's columns without reading a row."""
    import pyarrow.parquet

    with _reading_parquet(file):
        return pyarrow.parquet.read_schema(file).names


def read_parquet(
    file: Path, options: ReadOptions, note: Note, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows, with `columns` alone where they are given; no option concerns them."""
    import pyarrow.parquet

    with _reading_parquet(file), pyarrow.parquet.ParquetFile(file) as table:
        batches = table.iter_batches(1000, columns=None if columns is None else list(columns))
        rows = itertools.chain.from_iterable(map(_rows, batches))
        number = 0
        try:
            for number, row in enumerate(rows, 1):
                yield f"row {number}", row
        except (ValueError, OverflowError) as problem:  # UnicodeDecodeError, or a time that Python cannot represent
            if isinstance(problem, pyarrow.ArrowException):
                raise
            raise UserError(
                f"`{file}`, row {number + 1}: {problem}", "mend the row, or take out the column if it is not needed"
            ) from problem


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch: all at once, or one by one if one is bad, so that those before it are still read."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = (batch.slice(row, 1).to_pylist()[0] for row in range(batch.num_rows))
    yield from rows


@contextmanager
def _reading_parquet(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as problem:
        raise UserError(
            f"`{file}`: not a whole Parquet file ({str(problem).splitlines()[0]})", "copy or download it again"
        ) from problem
