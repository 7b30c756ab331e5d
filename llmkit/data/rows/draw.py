"""Draw rows so that every class keeps its share: for validation, or as a sample."""

import numpy as np


def draw(strata: np.ndarray, keys: np.ndarray, number: int, seed: int, *, leave: bool = False) -> np.ndarray:
    """Draw `number` of N rows, each class in its share; return a mask, bool [N].

    Rows are ranked by a hash of the seed and of what they hold, so that a row's rank does not depend on the others:
    after k rows are added, at most k + 1 rows of a class change sides. Rows that hold the same are drawn together;
    where they do not fit into what is left of the share, the next ones are. With `leave`, one row of each class at
    least is not drawn.

    Args:
        strata: the class of each row, int [N].
        keys: a hash of what each row holds, uint64 [N].
        number: how many rows to draw; fewer are drawn where rows that hold the same do not fit.
        seed: decides the ranks.
    """
    chosen = np.zeros(len(keys), bool)
    if not len(keys) or number <= 0:
        return chosen
    ranks = _scrambled(keys, seed)
    _, first, group_of, sizes = np.unique(ranks, return_index=True, return_inverse=True, return_counts=True)
    stratum = strata[first]  # of each group of equal rows; groups are in the order of their ranks
    rows_of = np.bincount(stratum, sizes, minlength=int(strata.max()) + 1).astype(np.int64)
    most = rows_of.copy()
    if leave:
        smallest = np.full(len(most), np.iinfo(np.int64).max)
        np.minimum.at(smallest, stratum, sizes)
        most = np.maximum(rows_of - np.where(rows_of > 0, smallest, 0), 0)
    quota = _shares(rows_of, most, min(number, int(rows_of.sum())))
    taken = np.zeros(len(sizes), bool)
    for group in range(len(sizes)) if (sizes > 1).any() else ():
        if sizes[group] <= quota[stratum[group]]:
            taken[group] = True
            quota[stratum[group]] -= sizes[group]
    if not (sizes > 1).any():
        order = np.argsort(stratum, kind="stable")  # by class, and by rank within it
        behind = np.cumsum(rows_of)
        place = np.arange(len(order)) - np.repeat(behind - rows_of, rows_of)
        taken[order] = place < np.repeat(quota, rows_of)
    elif quota.sum():  # what no class could fill, from whichever can
        room = most - np.bincount(stratum[taken], sizes[taken], minlength=len(most)).astype(np.int64)
        left: int = int(quota.sum())
        for group in np.flatnonzero(~taken).tolist():
            if sizes[group] <= left and sizes[group] <= room[stratum[group]]:
                taken[group] = True
                left -= int(sizes[group])
                room[stratum[group]] -= sizes[group]
    return np.asarray(taken[group_of])


def _shares(sizes: np.ndarray, most: np.ndarray, number: int) -> np.ndarray:
    """Divide `number` by the sizes, largest remainders first, with no share above `most`: int [C]."""
    exact = sizes * (number / max(1, int(sizes.sum())))
    shares = np.minimum(np.floor(exact).astype(np.int64), most)
    by_remainder = np.argsort(-(exact - np.floor(exact)), kind="stable")
    while (missing := number - int(shares.sum())) > 0:
        open_classes = by_remainder[shares[by_remainder] < most[by_remainder]][:missing]
        if not len(open_classes):
            break
        shares[open_classes] += 1
    return shares


def _scrambled(keys: np.ndarray, seed: int) -> np.ndarray:
    """Hash each key together with the seed: uint64 [N], by the finalizer of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))
