"""Drop exact and near duplicates, and documents that share text with the evaluation set.

Memory, measured: exact duplicates need 100 bytes for each document (a hash of 16 bytes in a Python set). Near
duplicates need, at a similarity of 0.8, 4.5 kilobytes for each document that is kept (a signature of 128 numbers, and
its 32 entries in an index). The texts stay on the disk.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import xxhash

from llmkit.data.cleaning.repair import Step
from llmkit.data.words import hashes, ngrams, words

_NUM_PERM = 128
_SEED = 1


def exact() -> Step:
    """Make the step that drops a text that came before, character for character."""
    seen: set[bytes] = set()

    def step(text: str, count: Counter[str]) -> str | None:
        digest = xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
        if digest in seen:
            return None
        seen.add(digest)
        return text

    return step


def near(threshold: float, n: int, next_offset: Callable[[], int], read: Callable[[int], str]) -> Step:
    """Make the step that drops a text whose n-grams of words are nearly those of a text that was kept before.

    Two texts are near duplicates if the Jaccard similarity of their sets of n-grams is at least `threshold`. MinHash
    (Broder 1997) in bands finds the texts to compare and misses one pair in a hundred at the threshold at most. Then
    the n-grams themselves decide, so that no text is dropped by chance. `next_offset` says where the text will stand if
    it is kept, and `read` returns the text at an offset.
    """
    from rensa import RMinHash, RMinHashLSH

    # The fewest bands, and so the fewest comparisons, of which one is equal with 0.99: 1 - (1 - t^rows)^bands.
    missed = {bands: (1 - threshold ** (_NUM_PERM // bands)) ** bands for bands in (8, 16, 32, 64, 128)}
    bands = next(bands for bands, share in missed.items() if share <= 0.01)
    index = RMinHashLSH(threshold, _NUM_PERM, bands)
    signatures: dict[int, np.ndarray] = {}
    # Texts with a lower estimate, four standard errors below the threshold, are not read again.
    least = threshold - 4 * math.sqrt(threshold * (1 - threshold) / _NUM_PERM)

    def step(text: str, count: Counter[str]) -> str | None:
        own = shingles(text, n)
        if not own.size:
            return text
        sketch = RMinHash(_NUM_PERM, _SEED)
        sketch.update(own.view("V8").tolist())
        signature = np.asarray(sketch.digest(), np.uint32)
        candidates = np.asarray(sorted(index.query(sketch)), np.int64)
        if candidates.size:
            equal = np.mean([signatures[key] == signature for key in candidates.tolist()], axis=1)
            for key in candidates[np.argsort(-equal, kind="stable")][: int(np.sum(equal >= least))].tolist():
                if jaccard(own, shingles(read(key), n)) >= threshold:
                    return None
        offset = next_offset()
        index.insert(offset, sketch)
        signatures[offset] = signature
        return text

    return step


def shingles(text: str, n: int) -> np.ndarray:
    """Hash the set of n-grams of words (one of all words, where there are fewer): sorted uint64 [n-grams]."""
    hashed = hashes(words(text))
    return np.unique(ngrams(hashed, min(n, max(len(hashed), 1))))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the Jaccard similarity of two sets, which are sorted, without repetition and not empty."""
    common = np.intersect1d(one, other, assume_unique=True).size
    return common / (one.size + other.size - common)


def overlap(against: Iterable[str], n: int, share: float) -> Step:
    """Make the step that drops a text that shares more than `share` of its n-grams of words with those of `against`.

    After Brown et al. 2020 (arXiv:2005.14165, appendix C): 13 words without their punctuation, upper and lower case
    alike. A text of `against` with fewer than `n` words matches only a whole document. Holds 8 bytes in memory for each
    n-gram of `against`.
    """
    parts: list[np.ndarray] = []
    short: set[tuple[int, int]] = set()
    for text in against:
        hashed = hashes(words(text))
        parts.append(ngrams(hashed, n))
        if 0 < len(hashed) < n:
            short.add(_whole_text(hashed))
    held_out = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)

    def step(text: str, count: Counter[str]) -> str | None:
        hashed = hashes(words(text))
        if 0 < len(hashed) < n:
            return None if _whole_text(hashed) in short else text
        own = ngrams(hashed, n)
        if not own.size or not held_out.size:
            return text
        nearest = np.minimum(np.searchsorted(held_out, own), held_out.size - 1)
        return None if np.mean(held_out[nearest] == own) > share else text

    return step


def _whole_text(hashed: np.ndarray) -> tuple[int, int]:
    return len(hashed), int(ngrams(hashed, len(hashed))[0])
