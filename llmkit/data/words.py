"""Split text into words, and hash words and n-grams of words.

A word is a run of letters and digits. In scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese, Tibetan) each character is a word. Punctuation belongs to no word.
"""

import re
from pathlib import Path

import numpy as np
import regex
import xxhash

from llmkit.errors import UserError

_NO_BLANKS = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # CJK, kana
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan; Burmese; Khmer
)
_ALONE = rf"[[{_NO_BLANKS}]&&\w]\p{{M}}*"
_LETTERS = rf"[\w--[{_NO_BLANKS}]]+"
WORD = regex.compile(rf"(?V1){_ALONE}|{_LETTERS}(?:['\u2019]{_LETTERS})*")
_ASCII = re.compile(r"\w+(?:'\w+)*", re.ASCII)  # the same for pure ASCII, and faster
ALONE = regex.compile(rf"(?V1){_ALONE}")

# Odd, so that no bit of a word is lost on the way; the golden ratio in 64 bits (Knuth, TAOCP volume 3, section 6.4).
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """List the words of a text, as they are written."""
    listed: list[str] = (_ASCII if text.isascii() else WORD).findall(text)
    return listed


def without_blanks(text: str, num_words: int) -> bool:
    """Tell whether most words of a text are characters of a script without blanks."""
    return not text.isascii() and len(ALONE.findall(text)) * 2 > num_words


def hashes(words: list[str]) -> np.ndarray:
    """Hash each word, upper and lower case alike: uint64 [words]."""
    return np.fromiter((xxhash.xxh3_64_intdigest(word.lower().encode()) for word in words), np.uint64, len(words))


def ngrams(hashed: np.ndarray, n: int) -> np.ndarray:
    """Hash each run of `n` words, in their order: uint64 [words - n + 1], empty where there are fewer words.

    The hashes of the words are the coefficients of a polynomial, modulo 2^64 (Karp & Rabin 1987).
    """
    number = max(len(hashed) - n + 1, 0)
    combined = np.zeros(number, np.uint64)
    for offset in range(n if number else 0):
        combined = combined * _FACTOR + hashed[offset : offset + number]
    return combined


def word_list(given: str | tuple[str, ...], key: str) -> tuple[str, ...]:
    """Return the words of an array, or of a file with one a line; raise UserError where the file cannot be read."""
    if not isinstance(given, str):
        return given
    try:
        lines = Path(given).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"data.clean.{key}: `{given}` cannot be read: {reason}", "name a file with one word per line"
        ) from problem
    return tuple(line.strip() for line in lines if line.strip())


def any_of(listed: tuple[str, ...]) -> str:
    """Write a regular expression for any of these words, the longest first: whole words, or characters anywhere."""
    ordered = sorted(set(listed), key=lambda word: (-len(word), word))
    alone = [regex.escape(word) for word in ordered if ALONE.match(word)]
    whole = [regex.escape(word) for word in ordered if not ALONE.match(word)]
    parts = [rf"(?<![\w'\u2019])(?:{'|'.join(whole)})(?![\w'\u2019])"] if whole else []
    return "|".join([*parts, *alone])
