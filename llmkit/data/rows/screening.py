"""Look at every row before training: which can be learned, which are left out and why, and of what class each is."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import xxhash

from llmkit.data.files import BadRow, digest, nearest
from llmkit.data.rows import store
from llmkit.data.rows.cells import ABSENT, value_at
from llmkit.data.rows.faults import Tally, check_share
from llmkit.data.rows.reader import RowReader, Unusable
from llmkit.data.rows.table import Rows
from llmkit.data.rows.unused import OtherColumns
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData


@dataclass(frozen=True)
class Screened:
    """The rows that can be used, and what was found while looking at all of them.

    Attributes:
        rows: those that can be used.
        strata: the class of each, as a number: int32 [N].
        keys: a hash of the inputs of each: uint64 [N].
        skipped: of each kind of fault, how many rows were left out for it.
        mended: of each kind of mend, how many rows needed it.
        targets: what each is to teach, as `examine` read it.
        notes: the same in words, with the place of the first row of each kind.
        keep: of each row that was looked at, whether it can be used: 1 or 0, a byte.
        fingerprint: that of the rows before any was left out.
    """

    rows: Rows
    strata: np.ndarray
    keys: np.ndarray
    skipped: Mapping[str, int]
    mended: Mapping[str, int]
    notes: tuple[str, ...]
    targets: Sequence[Any] = ()
    keep: bytes = b""
    fingerprint: str = ""


def screen(
    rows: Rows,
    columns: Mapping[str, str],
    reader: RowReader,
    data: RowData,
    *,
    evaluation: bool = False,
    known: Collection[str] | None = None,
) -> Screened:
    """Examine every row of a file or split as it was read; leave out those that cannot be used.

    A note names the columns beside those that are `known`, by default those of `rows`, which no reader reads.

    Raises UserError where more rows than `data.max_skipped_fraction` allows cannot be used, or none can.
    """
    _check_files(rows, columns)
    keep, keys, targets = bytearray(), array("Q"), []
    faults, mends = Tally(), Tally()
    others = OtherColumns(rows.columns if known is None else known, columns.values())
    inputs = [name for role, name in columns.items() if role not in reader.LABEL_ROLES]
    viewed = view(rows, columns)
    for place, row in viewed.read():
        keep.append(0)
        if isinstance(row, BadRow):
            faults.add(row.kind, place, row.message, row.hint)
            continue
        others.look(row, place)
        try:
            examined = reader.examine(row, columns, data, evaluation)
        except Unusable as fault:
            faults.add(fault.kind, place, str(fault), fault.hint)
            continue
        if examined.mended is not None:
            mends.add(examined.mended, place)
        keep[-1] = 1
        keys.append(_key(row, inputs))
        targets.append(examined.target)
    viewed = replace(viewed, looked_at=len(keep))
    if how := sorted(filter(None, rows.notes.values())):  # the same bytes, read otherwise than by earlier versions
        viewed = replace(viewed, fingerprint=digest(rows.fingerprint, how))
    strata, unusable = reader.strata(targets, viewed, columns, data)
    if unusable:
        number_of = np.flatnonzero(np.frombuffer(keep, np.uint8)).tolist()  # by examined row
        places = _places(viewed, {number_of[index] for index in unusable})
        for index, late in unusable.items():
            keep[number_of[index]] = 0
            faults.add(late.kind, places[number_of[index]], str(late), late.hint)
    check_share(rows.source, faults, len(keep), data.max_skipped_fraction)
    used = np.ones(len(targets), bool)
    used[list(unusable)] = False
    kept = part(viewed, keep) if faults.total else viewed
    return Screened(
        kept,
        _numbered(strata)[used],
        np.frombuffer(keys, np.uint64)[used] if keys else np.empty(0, np.uint64),
        faults.counts,
        mends.counts,
        (*others.notes(), *faults.notes("left out"), *mends.notes("mended")),
        [target for index, target in enumerate(targets) if index not in unusable] if unusable else targets,
        bytes(keep),
        viewed.fingerprint,
    )


def screen_once(
    rows: Rows,
    columns: Mapping[str, str],
    reader: RowReader,
    data: RowData,
    *,
    evaluation: bool = False,
    known: Collection[str] | None = None,
) -> Screened:
    """Screen rows as `screen` does, or read from the cache what it found; without `targets`.

    The fingerprint of `rows` must stand for their content.
    """
    parts = (rows.fingerprint, rows.source, rows.columns, sorted(rows.class_names.items()), sorted(rows.heads))
    settings = (sorted(columns.items()), getattr(reader, "__name__", reader), data.model_dump_json(), evaluation)
    folder = store.folder_of("screened", *parts, *settings, None if known is None else sorted(known))
    what = f"the findings of screening {rows.source}"
    if (entry := store.load(folder, what)) is not None:
        rows.verify()
        _check_files(rows, columns)
        rows.notes.update(entry.facts["notes_of_reading"])
        fingerprint, number = entry.facts["fingerprint"], len(entry.arrays["keep"])
        viewed = replace(view(rows, columns), fingerprint=fingerprint, looked_at=number)
        kept = part(viewed, entry.arrays["keep"]) if entry.facts["skipped"] else viewed
        return Screened(
            kept,
            entry.arrays["strata"],
            entry.arrays["keys"],
            entry.facts["skipped"],
            entry.facts["mended"],
            tuple(entry.facts["notes"]),
        )
    found = screen(rows, columns, reader, data, evaluation=evaluation, known=known)
    if len(found.keep) >= store.LEAST:
        arrays = {"strata": found.strata, "keys": found.keys, "keep": np.frombuffer(found.keep, np.uint8)}
        facts = {name: getattr(found, name) for name in ("skipped", "mended", "notes", "fingerprint")}
        store.save(folder, what, arrays, {**facts, "notes_of_reading": rows.notes})
    return replace(found, targets=())


def _check_files(rows: Rows, columns: Mapping[str, str]) -> None:
    """Raise UserError for a file that lacks a column which is read, and which other files of the split have."""
    for name in columns.values():
        with_it = [file for file, head in rows.heads.items() if value_at(head, name) is not ABSENT]
        for file in rows.heads if with_it else ():
            if file not in with_it:
                raise UserError(
                    f"`{file}` has no column `{name}`, which `{with_it[0]}` has",
                    f"{nearest(name, list(rows.heads[file]))}all files of a split need the columns that are read; "
                    "choose the files with data.data_files",
                )


def view(rows: Rows, columns: Mapping[str, str]) -> Rows:
    """Let each row have the columns that are read under the names in `columns`, wherever they stand in it."""
    names = list(columns.values())

    def read() -> Iterator[tuple[str, Any]]:
        for place, row in rows.read():
            if isinstance(row, BadRow) or all(name in row for name in names):
                yield place, row
                continue
            found = {name: value_at(row, name) for name in names}
            yield place, {**row, **{name: value for name, value in found.items() if value is not ABSENT}}

    return replace(rows, read=read)


def part(rows: Rows, keep: bytes | bytearray | np.ndarray) -> Rows:
    """Choose the rows whose entry in `keep` is not 0; it holds a byte for each row."""
    chosen = bytes(keep) if isinstance(keep, bytes | bytearray) else np.asarray(keep, np.uint8).tobytes()
    return replace(
        rows,
        read=lambda: compress(rows.read(), chosen),
        fingerprint=digest(rows.fingerprint, "rows", xxhash.xxh3_128_hexdigest(chosen)),
    )


def _key(row: Mapping[str, Any], inputs: list[str]) -> int:
    values = (row.get(name) for name in inputs)
    texts = (value if isinstance(value, str) else json.dumps(value, default=str) for value in values)
    return xxhash.xxh3_64_intdigest("\0".join(texts).encode(errors="surrogatepass"))


def _numbered(strata: Any) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(stratum, len(numbers)) for stratum in strata), np.int32)


def _places(rows: Rows, wanted: set[int]) -> dict[int, str]:
    return {number: place for number, (place, _) in enumerate(rows.read()) if number in wanted}
