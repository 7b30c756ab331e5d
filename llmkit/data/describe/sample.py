"""Read the first rows of a local split, and estimate how many there are."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.data import files
from llmkit.data.rows.table import Rows

ROWS, CHARACTERS = 20_000, 10_000_000  # of each split, as much is read as reaches one of them


@dataclass(frozen=True)
class Sample:
    """The first rows of a split: all of them, unless it is `partial`; `about` is the estimate of how many there are."""

    rows: Rows
    number: int
    partial: bool
    about: int | None

    @property
    def counted(self) -> str:
        if not self.partial:
            return f"{self.number:,} row{'s' * (self.number != 1)}"
        return (f"about {self.about:,} rows" if self.about else "more rows") + f"; the first {self.number:,} are read"


def take(rows: Rows, paths: Sequence[Path]) -> Sample:
    """Read the first rows of a split once, and hold them."""
    held, characters, partial = list[tuple[str, Any]](), 0, False
    for place, row in rows.read():
        if partial := len(held) == ROWS or characters > CHARACTERS:
            break
        held.append((place, row))
        if isinstance(row, Mapping):
            characters += sum(len(cell if isinstance(cell, str) else str(cell)) for cell in row.values())
    about = _estimate(paths, len(held), held[-1][0]) if partial else None
    return Sample(replace(rows, read=lambda: iter(held)), len(held), partial, about)


def _estimate(paths: Sequence[Path], number: int, last: str) -> int | None:
    """Estimate how many rows files have, of which the last that was read stands at `last`; None where nothing tells."""
    if all(files.suffix(file) == ".parquet" for file in paths):
        import pyarrow.parquet

        return sum(int(pyarrow.parquet.ParquetFile(file).metadata.num_rows) for file in paths)
    place = re.fullmatch(r"`(.*)`, line (\d+)", last)
    if place is None or any(files.suffix(file) != file.suffix.lower() for file in paths):
        return None
    read = 0
    for file in paths:
        if str(file) == place[1]:
            with file.open("rb") as stream:
                read += sum(map(len, itertools.islice(stream, int(place[2]))))
            break
        read += file.stat().st_size
    exact = number * sum(file.stat().st_size for file in paths) / max(read, 1)
    return int(float(f"{exact:.2g}"))
