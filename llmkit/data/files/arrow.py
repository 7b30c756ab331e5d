"""Read rows from Parquet, Arrow and Feather files with pyarrow, and the names of their classes."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit.data.files.archives import seekable, suffix
from llmkit.data.files.options import Note, ReadOptions
from llmkit.errors import UserError, in_words

ARROW_SUFFIXES = (".arrow", ".feather")
COLUMNAR_SUFFIXES = (".parquet", *ARROW_SUFFIXES)
_ROWS = 1000  # rows that are made at once


def column_names(file: Path) -> list[str]:
    """Return the names of a Parquet or Arrow file's columns without reading a row."""
    with _opened(file) as (schema, _):
        return list(schema.names)


def class_names(file: Path, options: ReadOptions = ReadOptions()) -> dict[str, tuple[str, ...]]:  # noqa: B008
    """Return the names of the classes by column, that `datasets` wrote into a Parquet or Arrow file; of others, none.

    They are those of a ClassLabel, also of one in a list.
    """
    if options.format != "parquet" and suffix(file) not in COLUMNAR_SUFFIXES:
        return {}
    with _opened(file, _is_arrow(file)) as (schema, _):
        about = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(about or b"{}")["info"]["features"]
        named = {column: _names(feature) for column, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # there is none, or one that `datasets` did not write
        return {}
    return {column: names for column, names in named.items() if names}


def _names(feature: Any) -> tuple[str, ...]:
    """Find the names in a feature: of a ClassLabel, or of one in a list in the notations of `datasets` 2, 3 and 4."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature["feature"]
        else:
            break
    is_class = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return tuple(feature.get("names") or ()) if is_class else ()


def read_parquet(
    file: Path, options: ReadOptions, note: Note, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a Parquet file, with `columns` alone where they are given; no option concerns them."""
    return _read(file, False, columns)


def read_arrow(
    file: Path, options: ReadOptions, note: Note, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of an Arrow or Feather file, as a stream or a file, with `columns` alone where they are given."""
    return _read(file, True, columns)


def _read(file: Path, arrow: bool, columns: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow

    with _opened(file, arrow) as (schema, batches):
        name, count = max(Counter(schema.names).items(), key=lambda item: item[1], default=("", 0))
        if count > 1:
            raise UserError(f"`{file}`: {count} columns are called `{name}`", "give every column a unique name")
        wanted = None if columns is None else [name for name in schema.names if name in columns]
        rows = itertools.chain.from_iterable(map(_rows, batches(wanted)))
        number = 0
        try:
            for number, row in enumerate(rows, 1):
                yield f"row {number}", row
        except (ValueError, OverflowError) as problem:  # UnicodeDecodeError, or a time that Python cannot represent
            if isinstance(problem, pyarrow.ArrowException):
                raise
            raise UserError(
                f"`{file}`, row {number + 1}: {problem}", "fix the row, or remove the column if it is not needed"
            ) from problem


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch: all at once, or one by one if one is bad, so that those before it are still read."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = (batch.slice(row, 1).to_pylist()[0] for row in range(batch.num_rows))
    yield from rows


@contextmanager
def _opened(file: Path, arrow: bool | None = None) -> Iterator[tuple[Any, Any]]:
    """Open a file for its schema and for a function from columns, or None for all, to its batches."""
    import pyarrow
    import pyarrow.parquet

    arrow = _is_arrow(file) if arrow is None else arrow
    try:
        with seekable(file) as source:
            if not arrow:
                with pyarrow.parquet.ParquetFile(source) as table:
                    yield table.schema_arrow, lambda columns: table.iter_batches(_ROWS, columns=columns)
            else:
                with _arrow_source(source) as stream:
                    yield _arrow_batches(stream)
    except (pyarrow.ArrowException, OSError, UnicodeError) as problem:  # of a name of a column
        raise UserError(
            f"`{file}`: not a complete {'Arrow' if arrow else 'Parquet'} file ({in_words(problem)})",
            "copy or download it again",
        ) from problem


def _is_arrow(file: Path) -> bool:
    return suffix(file) in ARROW_SUFFIXES


def _arrow_source(source: Any) -> Any:
    """Open a file, of which a batch is read at a time; take an open one as it is."""
    import pyarrow

    return pyarrow.OSFile(str(source)) if isinstance(source, Path) else pyarrow.PythonFile(source, "r")


def _arrow_batches(stream: Any) -> tuple[Any, Any]:
    import pyarrow
    import pyarrow.feather

    mark = stream.read(6)
    stream.seek(0)
    if mark.startswith(b"FEA1"):  # the first version of Feather, which is no Arrow file
        table = pyarrow.feather.read_table(stream)
        return table.schema, lambda columns: _sliced(table.to_batches(), columns)
    if mark == b"ARROW1":
        filed = pyarrow.ipc.open_file(stream)
        return filed.schema, lambda columns: _sliced(map(filed.get_batch, range(filed.num_record_batches)), columns)
    streamed = pyarrow.ipc.open_stream(stream)
    return streamed.schema, lambda columns: _sliced(streamed, columns)


def _sliced(batches: Any, columns: Sequence[str] | None) -> Iterator[Any]:
    for batch in batches:
        chosen = batch if columns is None else batch.select(list(columns))
        yield from (chosen.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))
