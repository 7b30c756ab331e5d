"""`predictions.jsonl.gz`: what the last evaluation made of each row, a row a line, in the order of the data.

A line has `split` where several parts were evaluated, `row` (its number in the part), `key` (a hash of its texts, not
under `report.rows = false`), what the task says of it (`truth`, `prediction`, figures), its `loss`, `decisions` where
these are not the truth and the prediction, and of the worst rows `worst` (from 1), `columns`, the texts, and of tags
`labels`.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmkit.disk import drafted
from llmkit.runs.directory import PREDICTIONS_FILE


def as_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON; half a character, which JSON can write, as a question mark."""
    return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode(errors="replace")


def write(directory: Path, lines: Iterable[bytes]) -> None:
    """Write the lines, whole or not at all; the same lines make the same bytes."""
    with (
        drafted(directory / PREDICTIONS_FILE) as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as out,
    ):
        out.writelines(lines)


def read(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows; none where there is no file."""
    path = directory / PREDICTIONS_FILE
    if path.is_file():
        with gzip.open(path, "rb") as lines:
            yield from map(json.loads, lines)
