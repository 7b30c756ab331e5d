"""Find exact and near duplicates among the documents of all shards, on disk and in bounded memory.

The rule, which is that of one pass in the order of the documents:

- A text that came before, character for character, is dropped, whatever became of the first one.
- A text that overlaps with evaluation data is dropped.
- Of the others, a text is dropped if it is alike to one before it that is *kept*. Two texts are alike if one band at
  least of their MinHash signatures (Broder 1997) is equal, and enough of all their numbers, and if the Jaccard
  similarity of their n-grams of words is at least the threshold.

What is alike does not depend on order; what is kept does. It is settled in rounds, as greedy maximal independent sets
are in parallel (Blelloch et al. 2012, arXiv:1202.3205). A round

1. sorts the bands of all documents that are open, one range of keys at a time, and pairs each document with the first
   WIDTH documents of every band that it shares (`pair`),
2. reads the texts of the pairs and keeps those that are alike (`verify`), and
3. goes through the documents in their order: one that is alike to a kept one is dropped, and one that was compared with
   all before it, and is alike to none that is kept or open, is kept (`_settle`).

Without the limit, a page that a million others resemble would make 10^12 pairs, where one pass makes a million: what is
left open has four times the WIDTH in the next round. Most documents are settled in the first.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from llmkit.data.cleaning import duplicates
from llmkit.data.cleaning.shards import Shard, save_array, shard_folder, table_of, whole_folder
from llmkit.data.engines import Engine

OPEN, KEPT, EXACT, OVERLAP, NEAR, UNCOMPARED = range(6)  # the state of a document; the last within `_settle` alone
STATES = {"exact_duplicates": EXACT, "overlap": OVERLAP, "near_duplicates": NEAR}  # by the step that drops
ROWS = 2**21  # rows that are sorted at once: some 150 MB in memory
WIDTH = 4  # documents of a band with which the others are compared in the first round
SLICE = 2**14  # pairs whose signatures are compared at once: 16 MB
PAIR = np.dtype([("key", np.uint64), ("earlier", np.uint64)])  # the key is the later document


@dataclass(frozen=True)
class Range:
    """One of `count` equal ranges of 64-bit keys."""

    number: int
    count: int

    @property
    def low(self) -> int:
        return (self.number << 64) // self.count

    @property
    def high(self) -> int:
        return ((self.number + 1) << 64) // self.count


def compare_all(work: Path, num_shards: int, engine: Engine) -> np.ndarray:
    """Find out the state of every document that cleaning left: uint8 [documents], mapped from the disk."""
    table = table_of(work)
    counts = [len(_shard(work, number).entries) for number in range(num_shards)]
    save_array(work / "firsts.npy", np.cumsum([0, *counts]), safe=False)
    firsts = _firsts(work)
    states = np.lib.format.open_memmap(work / "states.npy", "w+", np.uint8, (int(firsts[-1]),))
    if table.exact_duplicates:
        for found in engine(partial(find_exact, work), _ranges(work, "exact", num_shards)):
            states[np.load(found)] = EXACT
    for number in range(num_shards):
        part = states[firsts[number] : firsts[number + 1]]
        part[(part == OPEN) & _shard(work, number).entries["overlaps"]] = OVERLAP
    if table.near_duplicates:
        _drop_near(work, num_shards, states, engine)
    for part in _parts(states):
        part[part == OPEN] = KEPT
    return states


def _drop_near(work: Path, num_shards: int, states: np.ndarray, engine: Engine) -> None:
    """Settle the state of all open documents, round by round."""
    firsts, number = _firsts(work), 0
    ranges = _ranges(work, "bands", num_shards)
    while any((part == OPEN).any() for part in _parts(states)):
        folder = work / f"near-{number:02d}"
        if not folder.exists():
            with whole_folder(folder) as draft:
                np.save(draft / "states.npy", states)
        for uncompared in engine(partial(pair, work, number), ranges):
            late = np.load(uncompared)
            states[late] = UNCOMPARED
        for shard, alike in enumerate(engine(partial(verify, work, number), range(num_shards))):
            _settle(states, int(firsts[shard]), int(firsts[shard + 1]), np.load(alike))
        for part in _parts(states):
            part[part == UNCOMPARED] = OPEN
        number += 1


def _settle(states: np.ndarray, first: int, last: int, alike: np.ndarray) -> None:
    """Settle the documents from `first` to before `last`, of which `alike` has the pairs, sorted by the later one."""
    part = states[first:last]
    alone = part == OPEN
    alone[(alike["key"] - np.uint64(first)).astype(np.int64)] = False
    part[alone] = KEPT
    new = np.append(True, alike["key"][1:] != alike["key"][:-1])[: len(alike)]
    for begin, end in pairwise([*np.flatnonzero(new).tolist(), len(alike)]):
        later, before = int(alike["key"][begin]), states[alike["earlier"][begin:end]]
        if (before == KEPT).any():
            states[later] = NEAR
        elif states[later] == OPEN and not np.isin(before, (OPEN, UNCOMPARED)).any():
            states[later] = KEPT


def _parts(states: np.ndarray) -> Iterator[np.ndarray]:
    """Cut the states into views of a few megabytes."""
    return (states[begin : begin + 2**22] for begin in range(0, len(states), 2**22))


# ---- what a worker does --------------------------------------------------------------------------------------------


def find_exact(work: Path, keys: Range) -> Path:
    """Find the documents whose texts came before, among those with hashes in a range; return the file of them."""
    result = work / "exact" / f"{keys.number:05d}.npy"
    if not result.exists():
        rows, documents = _gather(work, "exact", keys)
        order = np.lexsort((documents, rows["rest"], rows["key"]))
        rows, documents = rows[order], documents[order]
        again = (rows["key"][1:] == rows["key"][:-1]) & (rows["rest"][1:] == rows["rest"][:-1])
        save_array(result, np.sort(documents[1:][again]))
    return result


def pair(work: Path, number: int, keys: Range) -> Path:
    """Pair the open documents that share a band with a key in a range; return the file of those not compared with all.

    Each is paired with the first documents of the band, as many as the round has, and the pairs are sorted in runs.
    """
    folder = work / f"near-{number:02d}" / f"pairs-{keys.number:05d}"
    if folder.exists():
        return folder / "uncompared.npy"
    width = WIDTH * 4**number
    states = np.load(folder.parent / "states.npy", mmap_mode="r")
    rows, documents = _gather(work, "bands", keys)
    still = states[documents] == OPEN
    bands, documents = rows["key"][still], documents[still]
    order = np.lexsort((documents, bands))
    bands, documents = bands[order], documents[order]
    del rows, still, order
    begins = np.flatnonzero(np.append(True, bands[1:] != bands[:-1])) if len(bands) else np.empty(0, np.int64)
    first = np.repeat(begins, np.diff(begins, append=len(bands)))  # of its band, for each row
    rank = np.arange(len(bands)) - first
    with whole_folder(folder) as draft:
        save_array(draft / "uncompared.npy", np.unique(documents[rank >= width]))
        laters, earliers, held, runs = list[np.ndarray](), list[np.ndarray](), 0, 0
        behind = np.flatnonzero(rank > 0)
        for place in range(width):
            behind = behind[rank[behind] > place]
            laters.append(documents[behind])
            earliers.append(documents[first[behind] + place])
            held += len(behind)
            if held and (held >= ROWS or not len(behind) or place == width - 1):
                save_array(draft / f"run-{runs:05d}.npy", _sorted(np.concatenate(laters), np.concatenate(earliers)))
                laters, earliers, held, runs = [], [], 0, runs + 1
            if not len(behind):
                break
    return folder / "uncompared.npy"


def verify(work: Path, number: int, shard: int) -> Path:
    """Find out which pairs are alike, of those whose later document is in a shard; return the file of them."""
    folder = work / f"near-{number:02d}"
    result = folder / f"alike-{shard:05d}.npy"
    if result.exists():
        return result
    table, firsts = table_of(work), _firsts(work)
    least = duplicates.least_estimate(table.near_threshold)
    files = sorted(folder.glob("pairs-*/run-*.npy"))
    alike = [np.empty(0, PAIR)]
    for pairs in _pieces(files, int(firsts[shard]), int(firsts[shard + 1])):
        pairs = _sorted(pairs["key"], pairs["earlier"])
        for begin in range(0, len(pairs), SLICE):
            some = pairs[begin : begin + SLICE]
            equal = np.mean(_signatures(work, some["key"]) == _signatures(work, some["earlier"]), axis=1)
            likely = some[equal >= least]
            found = [
                duplicates.jaccard(_shingles(work, later), _shingles(work, earlier)) >= table.near_threshold
                for later, earlier in likely.tolist()
            ]
            alike.append(likely[np.array(found, bool)])
    save_array(result, np.concatenate(alike))
    return result


def _sorted(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Sort pairs by the later document, then by the earlier one, each pair once."""
    order = np.lexsort((earlier, later))
    pairs = np.empty(len(order), PAIR)
    pairs["key"], pairs["earlier"] = later[order], earlier[order]
    new = (pairs["key"][1:] != pairs["key"][:-1]) | (pairs["earlier"][1:] != pairs["earlier"][:-1])
    return pairs[np.append(True, new)] if len(pairs) else pairs


# ---- rows of many files --------------------------------------------------------------------------------------------


def _ranges(work: Path, name: str, num_shards: int) -> list[Range]:
    """Cut all keys into ranges of about ROWS rows of the shards' files `name`, of which hashes are evenly spread."""
    rows = sum(len(_rows(work, name, number)) for number in range(num_shards))
    count = max(-(-rows // ROWS), 1)
    return [Range(number, count) for number in range(count)]


def _rows(work: Path, name: str, shard: int) -> np.ndarray:
    rows: np.ndarray = np.load(shard_folder(work, shard) / f"{name}.npy", mmap_mode="r")
    return rows


def _gather(work: Path, name: str, keys: Range) -> tuple[np.ndarray, np.ndarray]:
    """Gather the rows of all shards whose keys are in a range, and the number of each one's document among all."""
    firsts = _firsts(work)
    found, documents = list[np.ndarray](), [np.empty(0, np.int64)]
    for shard in range(len(firsts) - 1):
        rows = _rows(work, name, shard)
        found.append(np.array(_between(rows, keys.low, keys.high)))
        documents.append(firsts[shard] + found[-1]["document"].astype(np.int64))
    return np.concatenate(found), np.concatenate(documents)


def _between(rows: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return the rows, which are sorted, whose keys are from `low` to before `high`, without reading the others."""
    keys: Sequence[int] = rows["key"]  # type: ignore[assignment]
    begin = bisect_left(keys, low, key=int)
    return rows[begin : bisect_left(keys, high, begin, key=int)]


def _pieces(files: Sequence[Path], low: int, high: int) -> Iterator[np.ndarray]:
    """Yield the pairs of documents from `low` to before `high`, about ROWS of them at a time."""
    parts = [_between(np.load(file, mmap_mode="r"), low, high) for file in files]
    if sum(map(len, parts)) > ROWS and high - low > 1:
        middle = (low + high) // 2
        yield from _pieces(files, low, middle)
        yield from _pieces(files, middle, high)
    elif parts:
        yield np.concatenate(parts)


# ---- documents by their numbers ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _firsts(work: Path) -> np.ndarray:
    """Return the number of each shard's first document among all, and that of all: int64 [shards + 1]."""
    firsts: np.ndarray = np.load(work / "firsts.npy")
    return firsts


@lru_cache(maxsize=64)
def _shard(work: Path, number: int) -> Shard:
    return Shard.of(work, number)


@lru_cache(maxsize=8)  # what is read of them counts as memory of the process while they are mapped
def _signatures_of(work: Path, shard: int) -> np.ndarray:
    return _rows(work, "signatures", shard)


def _signatures(work: Path, documents: np.ndarray) -> np.ndarray:
    """Read the signatures of documents: uint32 [documents, NUM_PERM]."""
    firsts = _firsts(work)
    numbers = documents.astype(np.int64)
    shards = np.searchsorted(firsts, numbers, "right") - 1
    read = np.empty((len(numbers), duplicates.NUM_PERM), np.uint32)
    for shard in np.unique(shards).tolist():
        here = shards == shard
        read[here] = _signatures_of(work, shard)[numbers[here] - firsts[shard]]
    return read


@lru_cache(maxsize=256)  # the first of a band is compared with many
def _shingles(work: Path, document: int) -> np.ndarray:
    firsts = _firsts(work)
    shard = int(np.searchsorted(firsts, document, "right")) - 1
    text = _shard(work, shard).text(document - int(firsts[shard]))
    return duplicates.shingles(text, table_of(work).near_ngram)


def forget() -> None:
    """Let go of what was held for a work, and of the disk space of its files."""
    for held in (_firsts, _shard, _signatures_of, _shingles):
        held.cache_clear()
