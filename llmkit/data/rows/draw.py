"""Draw rows so that every class keeps its share: those to hold out for evaluation, or a sample.

Rows are ranked by a hash of the seed and of what they hold, so that no row's rank depends on another row: after k rows
are added, at most k + 1 rows of a class change sides.
"""

import numpy as np


def sample(strata: np.ndarray, keys: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Draw `number` of N rows, each class in its share; return a mask, bool [N].

    Args:
        strata: the class of each row, int [N].
        keys: a hash of what each row holds, uint64 [N].
        number: how many rows to draw.
        seed: decides the ranks.
    """
    chosen = np.zeros(len(keys), bool)
    if len(keys) and number > 0:
        rows_of = np.bincount(strata)
        quota = _shares(rows_of, rows_of, min(number, len(keys)))
        order = np.lexsort((_scrambled(keys, seed), strata))  # by class, and by rank within it
        place = np.arange(len(keys)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
        chosen[order] = place < np.repeat(quota, rows_of)
    return chosen


def hold_out(strata: np.ndarray, keys: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw a share of N rows to hold out, each class in its share; return a mask, bool [N].

    As many are drawn as `max(1, round(N * fraction))`, with two exceptions: rows that hold the same stand on one side,
    and of every class at least one row is left. Of a class with a single row none is drawn. The arguments are those of
    `sample`.
    """
    if not len(keys):
        return np.zeros(0, bool)
    # Groups of equal rows, in the order of their ranks. A group is of the class of its first row.
    _, first, group_of, sizes = np.unique(
        _scrambled(keys, seed), return_index=True, return_inverse=True, return_counts=True
    )
    classes = strata[first]
    rows_of = np.bincount(classes, sizes, minlength=int(strata.max()) + 1).astype(np.int64)
    smallest = np.full(len(rows_of), len(keys))
    np.minimum.at(smallest, classes, sizes)
    room = np.maximum(rows_of - smallest, 0)  # what may be drawn of each class
    left = min(max(1, round(len(keys) * fraction)), int(room.sum()))
    quota = _shares(rows_of, room, left)
    taken = np.zeros(len(sizes), bool)

    def take(group: int) -> None:
        nonlocal left
        taken[group] = True
        left -= sizes[group]
        room[classes[group]] -= sizes[group]
        quota[classes[group]] -= sizes[group]

    for group in range(len(sizes)):
        if not left:
            break
        if sizes[group] <= quota[classes[group]]:
            take(group)
    for group in range(len(sizes)) if left else ():  # what a class could not fill, from any
        if not taken[group] and sizes[group] <= min(left, room[classes[group]]):
            take(group)
    if left and not taken.any():  # every group is larger than what was asked for
        fitting = [group for group in range(len(sizes)) if sizes[group] <= room[classes[group]]]
        for group in sorted(fitting, key=sizes.__getitem__)[:1]:
            take(group)
    return np.asarray(taken[group_of])


def _shares(sizes: np.ndarray, most: np.ndarray, number: int) -> np.ndarray:
    """Divide `number` by the sizes of classes, largest remainders first, with no share above `most`: int [C].

    Where `number` allows it, every class gets one.
    """
    exact = sizes * (number / max(1, int(sizes.sum())))
    least = np.minimum(most, 1) if number >= (most > 0).sum() else np.zeros_like(most)
    shares = np.maximum(np.minimum(np.floor(exact).astype(np.int64), most), least)
    by_remainder = np.argsort(shares - exact, kind="stable")
    while (missing := number - int(shares.sum())) > 0:
        with_room = by_remainder[shares[by_remainder] < most[by_remainder]][:missing]
        if not len(with_room):
            break
        shares[with_room] += 1
    for _ in range(int(shares.sum()) - number):  # what small classes got beyond their share, from those that have most
        shares[np.argmax(np.where(shares > least, shares - exact, -np.inf))] -= 1
    return shares


def _scrambled(keys: np.ndarray, seed: int) -> np.ndarray:
    """Hash each key together with the seed: uint64 [N], by the finalizer of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))
