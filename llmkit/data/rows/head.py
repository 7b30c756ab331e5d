"""Open the first rows of a data set on the Hub, without downloading all of it."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmkit.data.files import digest
from llmkit.data.rows import table
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData

ROWS = 1000  # that are read of each split
BYTES = 20_000_000  # that are downloaded at most, of all splits together


class TooMuchError(OSError):
    """Raised where more bytes would be downloaded than allowed; it has an `errno`, for it is no damaged table."""


class UnreadError(UserError):
    """Raised for data whose first rows do not fit into what may be downloaded: a run would read them."""


@dataclass(frozen=True)
class Head:
    """The first `number` rows of a split, and how many there are in all, where the Hub says so."""

    rows: Rows
    number: int
    total: int | None


@contextmanager
def bounded(limit: int) -> Iterator[None]:
    """Let no more than `limit` bytes of data files be downloaded; raise TooMuchError where more are asked for."""
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


def whole_split(split: str) -> str:
    """Name the split that a slice, such as `train[:4000]`, or the first part of a sum is of: streams have no slices."""
    return re.split(r"[\[+]", split)[0]


def open_head(data: RowData, split: str, limit: int = BYTES) -> Head:
    """Open the first ROWS rows of a split, of which at most `limit` bytes are downloaded; offline, of the cache."""
    import datasets

    source = table.source_of(data, split)
    if datasets.config.HF_HUB_OFFLINE:
        whole = table.open_hub(data, split)
        held = list(itertools.islice(whole, ROWS + 1))
        partial = len(held) > ROWS
        return Head(_held(whole, held[:ROWS], partial), len(held[:ROWS]), None if partial else len(held))
    stream = table.load(data, whole_split(split), streaming=True)
    total = _total(stream.info.splits, split)
    wanted = ROWS if total is None else min(ROWS, total)
    rows, partial = list[Any](), False
    with bounded(limit):
        try:
            for row in stream:
                if partial := len(rows) == wanted:
                    break
                rows.append(row)
        except TooMuchError as problem:
            partial = True
            if not rows:
                raise UnreadError(f"{source}: its first rows do not fit into {limit / 1e6:.0f} MB") from problem
    if not rows:
        raise UserError(
            f"{source}: there are no rows in it", "choose another split with data.split or data.validation_split"
        )
    columns = tuple(stream.column_names or rows[0])
    names = table.class_names(stream.features or {})
    placed = [(f"{source}, row {number}", row) for number, row in enumerate(rows, 1)]
    opened = Rows(lambda: iter(placed), columns, names, digest(data.path, split), source)
    total = total or (None if partial else len(rows))
    return Head(_held(opened, placed, partial and total != len(rows), total), len(rows), total)


def _total(splits: Any, split: str) -> int | None:
    """Return how many rows a split or a slice has by what the Hub says of the data set; None where it says nothing."""
    import datasets

    numbers = {name: one.num_examples for name, one in (splits or {}).items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(numbers)
    except (AssertionError, ValueError):
        return None
    return sum((numbers[part.splitname] if part.to is None else part.to) - (part.from_ or 0) for part in parts) or None


def _held(rows: Rows, placed: list[tuple[str, Any]], partial: bool, total: int | None = None) -> Rows:
    of = f" of {total:,}" if total else ""
    remark = f"{rows.source}: a dry run reads the first {len(placed):,}{of} rows"
    return Rows(
        lambda: iter(placed), rows.columns, rows.class_names, rows.fingerprint, rows.source, (remark,) * partial
    )
