"""Open the first rows of a data set on the Hub, without downloading all of it."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmkit.data.files import digest
from llmkit.data.rows import table
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import Data, RowData

ROWS = 1000  # that are read of each split
BYTES = 20_000_000  # that are downloaded at most


class TooMuchError(OSError):
    """Raised where more bytes would be downloaded than allowed; it has an `errno`, for it is no damaged table."""


@contextmanager
def bounded(limit: int = BYTES) -> Iterator[None]:
    """Let no more than `limit` bytes of data files be downloaded; raise UserError where one asks for more."""
    from huggingface_hub.hf_file_system import HfFileSystemFile

    remote: Any = HfFileSystemFile
    original, left = remote._fetch_range, limit

    def fetch(file: Any, start: int, end: int) -> bytes:
        nonlocal left
        left -= end - start
        if left < 0:
            raise TooMuchError(0, f"more than {limit:,} bytes")
        content: bytes = original(file, start, end)
        return content

    remote._fetch_range = fetch
    try:
        yield
    finally:
        remote._fetch_range = original


def too_large(data: Data, split: str) -> UserError:
    """Return the error for a split whose first rows take more than BYTES."""
    return UserError(
        f"`{data.path}` (split {split}): its first rows do not fit into {BYTES // 1_000_000} MB, the most that a dry "
        "run downloads"
    )


def whole_split(split: str) -> str:
    """Name the split that a slice, such as `train[:4000]`, or the first part of a sum is of: streams have no slices."""
    return re.split(r"[\[+]", split)[0]


def open_head(data: RowData, split: str) -> Rows:
    """Open the first ROWS rows of a split; offline, of what is in the cache."""
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        whole = table.open_hub(data, split)
        held = list(itertools.islice(whole, ROWS + 1))
        return _held(whole, held[:ROWS], len(held) > ROWS)
    source = f"`{data.path}` ({f'{data.name}, ' if data.name else ''}split {split})"
    stream = table.load(data, whole_split(split), streaming=True)
    rows, partial = list[Any](), False
    with bounded():
        try:
            for row in stream:
                if partial := len(rows) == ROWS:
                    break
                rows.append(row)
        except TooMuchError as problem:
            partial = True
            if not rows:
                raise too_large(data, split) from problem
    if not rows:
        raise UserError(f"{source}: there are no rows in it", "data.split and data.validation_split choose others")
    columns = tuple(stream.column_names or rows[0])
    names = table.class_names(stream.features or {})
    placed = [(f"{source}, row {number}", row) for number, row in enumerate(rows, 1)]
    return _held(Rows(lambda: iter(placed), columns, names, digest(data.path, split), source), placed, partial)


def _held(rows: Rows, placed: list[tuple[str, Any]], partial: bool) -> Rows:
    return Rows(
        lambda: iter(placed),
        rows.columns,
        rows.class_names,
        rows.fingerprint,
        rows.source,
        (f"{rows.source}: a dry run reads the first {len(placed):,} rows",) if partial else (),
    )
