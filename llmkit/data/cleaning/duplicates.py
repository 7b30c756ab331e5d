"""Tell what documents are compared by: their shingles, signatures and bands, and the n-grams of evaluation data."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmkit.data.words import hashes, ngrams, words

NUM_PERM = 128
_SEED = 1


def num_bands(threshold: float) -> int:
    """Return the fewest bands, and so the fewest comparisons, of which one is equal with 0.99 at the threshold."""
    missed = {bands: (1 - threshold ** (NUM_PERM // bands)) ** bands for bands in (8, 16, 32, 64, 128)}
    return next(bands for bands, share in missed.items() if share <= 0.01)


def least_estimate(threshold: float) -> float:
    """Return the share of equal numbers, four standard errors below the threshold, under which texts are not read."""
    return threshold - 4 * math.sqrt(threshold * (1 - threshold) / NUM_PERM)


def signature(own: np.ndarray) -> np.ndarray | None:
    """Compute the MinHash signature of a set of shingles: uint32 [NUM_PERM], None for an empty set."""
    if not own.size:
        return None
    from rensa import RMinHash

    sketch = RMinHash(NUM_PERM, _SEED)
    sketch.update(own.view("V8").tolist())
    return np.asarray(sketch.digest(), np.uint32)


def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
    """Hash each band of signatures [documents, NUM_PERM]: uint64 [documents, bands], equal where the band is."""
    keys = np.empty((len(signatures), bands), np.uint64)
    for band, numbers in enumerate(np.split(signatures, bands, axis=1)):
        mixed = np.full(len(signatures), band + 1, np.uint64)
        for row in range(numbers.shape[1]):
            mixed = _mix(mixed ^ numbers[:, row])
        keys[:, band] = mixed
    return keys


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread each value over all 64 bits, no two to the same (Steele et al. 2014, SplitMix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(text: str, n: int) -> np.ndarray:
    """Hash the set of n-grams of words (one of all words, where there are fewer): sorted uint64 [n-grams]."""
    hashed = hashes(words(text))
    return np.unique(ngrams(hashed, min(n, max(len(hashed), 1))))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the Jaccard similarity of two sets, which are sorted, without repetition and not empty."""
    common = np.intersect1d(one, other, assume_unique=True).size
    return common / (one.size + other.size - common)


@dataclass(frozen=True)
class HeldOut:
    """The evaluation texts that training documents must not share text with.

    After Brown et al. 2020 (arXiv:2005.14165, appendix C): 13 words without their punctuation, upper and lower case
    alike. `ngrams` are the hashes of their n-grams of words (sorted uint64, 8 bytes each). A text with fewer than n
    words matches only a whole document: `short` has the number of words and the hash of each.
    """

    ngrams: np.ndarray
    short: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, texts: Iterable[str], n: int) -> "HeldOut":
        """Collect the n-grams of texts."""
        parts: list[np.ndarray] = []
        short: set[tuple[int, int]] = set()
        for text in texts:
            hashed = hashes(words(text))
            parts.append(ngrams(hashed, n))
            if 0 < len(hashed) < n:
                short.add(_whole_text(hashed))
        held_out = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
        return cls(held_out, frozenset(short))

    def save(self, folder: Path) -> None:
        np.save(folder / "ngrams.npy", self.ngrams)
        (folder / "short.json").write_text(json.dumps(sorted(self.short)))

    @classmethod
    def load(cls, folder: Path) -> "HeldOut":
        """Read what was saved; the processes of a machine share the n-grams in its memory."""
        short = json.loads((folder / "short.json").read_text())
        return cls(np.load(folder / "ngrams.npy", mmap_mode="r"), frozenset((int(a), int(b)) for a, b in short))

    def overlaps(self, n: int, share: float) -> Callable[[str], bool]:
        """Make the test for a text that shares more than `share` of its n-grams of words with these."""

        def test(text: str) -> bool:
            hashed = hashes(words(text))
            if 0 < len(hashed) < n:
                return _whole_text(hashed) in self.short
            own = ngrams(hashed, n)
            if not own.size or not self.ngrams.size:
                return False
            nearest = np.minimum(np.searchsorted(self.ngrams, own), self.ngrams.size - 1)
            return bool(np.mean(self.ngrams[nearest] == own) > share)

        return test


def _whole_text(hashed: np.ndarray) -> tuple[int, int]:
    return len(hashed), int(ngrams(hashed, len(hashed))[0])
