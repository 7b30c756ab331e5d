"""Filter documents by the rules of C4 and Gopher, by language and by length.

A step takes a text and a counter, and returns the text, or None for a document to drop. In the counter it notes the
rule that dropped a document or removed lines from it. A character of a script without blanks counts as a word.
"""

import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import regex

from llmkit.data.cleaning.repair import Step
from llmkit.data.words import any_of, hashes, ngrams, without_blanks, word_list, words
from llmkit.errors import UserError
from llmkit.recipe.cleaning import Clean

# ---- C4 ------------------------------------------------------------------------------------------------------------

_CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")
_TERMINAL = (*".!?", '"', "\u201d", *"。\uff01\uff1f｡」』")
_SENTENCE_END = re.compile("[.!?]+[\"'\u201d\u2019)\\]]*(?=\\s|$)|[。\uff01\uff1f｡]+[\u201d\u2019」』]*")
_POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")


def c4(table: Clean) -> Step:
    """Make the step that applies the rules of C4, Raffel et al. 2020 (arXiv:1910.10683, section 2.2).

    It drops pages with "lorem ipsum", with a curly bracket, with a bad word (only where a list is given) or with too
    few sentences. From the others it removes marks of citation, and lines that end without punctuation, are short, or
    are about Javascript or policies. The paper's rule that no three sentences occur twice is left to the search for
    duplicates.
    """
    listed = word_list(table.c4_bad_words, "c4_bad_words") if table.c4_bad_words else ()
    bad = regex.compile(any_of(listed), regex.IGNORECASE) if listed else None

    def step(text: str, count: Counter[str]) -> str | None:
        if "lorem ipsum" in text.lower():
            return _or_drop(text, "lorem ipsum", count)
        if "{" in text:
            return _or_drop(text, "curly bracket", count)
        if bad and bad.search(text):
            return _or_drop(text, "bad words", count)
        kept, sentences = [], 0
        for line in _CITATION.sub("", text).split("\n"):
            bare, lower = line.strip(), line.lower()
            if not bare:
                continue
            if not bare.endswith(_TERMINAL):
                count["lines without a full stop"] += 1
            elif len(words(bare)) < table.c4_min_words_per_line:
                count["short lines"] += 1
            elif "javascript" in lower:
                count["lines on Javascript"] += 1
            elif _POLICY.search(lower):
                count["lines on policies"] += 1
            else:
                kept.append(bare)
                sentences += max(len(_SENTENCE_END.findall(bare)), 1)
        return _or_drop("\n".join(kept), "few sentences" if sentences < table.c4_min_sentences else "", count)

    return step


# ---- Gopher --------------------------------------------------------------------------------------------------------

_STOP_WORDS = frozenset("the be to of and that have with".split())  # noqa: SIM905
_CHINESE = frozenset("的了是在和有不我这中")  # our choice: the paper has English alone
_ELLIPSES = ("...", "\u2026")
_BULLETS = ("\u2022", "\u2023", "\u25e6", "\u2043", "\u25cf", "\u25aa", "\u25a0", "\u00b7", "- ", "* ", "\u2013 ")
_NO_LETTER = regex.compile(r"(?<!\S)[^\s\p{L}]+(?!\S)")  # between two blanks


def gopher(table: Clean) -> Step:
    """Make the step that applies the quality rules of Gopher, Rae et al. 2021 (arXiv:2112.11446, section A1.1).

    In text without blanks a word is a character, and the rule for the mean length of words does not apply.
    """

    def step(text: str, count: Counter[str]) -> str | None:
        listed = words(text)
        number = len(listed)
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        alone = without_blanks(text, number)
        length = sum(map(len, listed)) / max(number, 1)
        without_letters = sum(map(str.isnumeric, listed)) if alone else len(_NO_LETTER.findall(text))
        ellipses = text.count(_ELLIPSES[0]) + text.count(_ELLIPSES[1])
        stop_words = _CHINESE if alone else _STOP_WORDS
        rule = ""
        if number < table.gopher_min_words:
            rule = "few words"
        elif number > table.gopher_max_words:
            rule = "many words"
        elif not alone and not table.gopher_min_mean_word_length <= length <= table.gopher_max_mean_word_length:
            rule = "mean length of words"
        elif text.count("#") > table.gopher_max_symbols * number or ellipses > table.gopher_max_symbols * number:
            rule = "symbols"
        elif sum(line.startswith(_BULLETS) for line in lines) > table.gopher_max_bullet_lines * len(lines):
            rule = "bullet lines"
        elif sum(line.endswith(_ELLIPSES) for line in lines) > table.gopher_max_ellipsis_lines * len(lines):
            rule = "ellipsis lines"
        elif without_letters > (1 - table.gopher_min_alphabetic) * (number if alone else len(text.split())):
            rule = "words without letters"
        elif len(stop_words.intersection(map(str.lower, listed))) < table.gopher_min_stop_words:
            rule = "stop words"
        return _or_drop(text, rule, count)

    return step


def gopher_repetition(table: Clean) -> Step:
    """Make the step that applies the repetition rules of Gopher, Rae et al. 2021 (arXiv:2112.11446, table A1).

    A line or an n-gram that is repeated counts from its second time on. The share of n-grams is that of the characters
    of the words in them, each word counted once.
    """

    def step(text: str, count: Counter[str]) -> str | None:
        limits = iter(table.gopher_max_duplicates)
        split = {"lines": text.split("\n"), "paragraphs": re.split(r"\n\s*\n", text)}
        filled = {kind: [part.strip() for part in parts if part.strip()] for kind, parts in split.items()}
        repeated = {kind: _repeated(parts) for kind, parts in filled.items()}
        for kind, limit in zip(filled, limits, strict=False):
            if len(repeated[kind]) > limit * len(filled[kind]):
                return _or_drop(text, f"repeated {kind}", count)
        for kind, limit in zip(filled, limits, strict=True):
            if sum(map(len, repeated[kind])) > limit * sum(map(len, filled[kind])):
                return _or_drop(text, f"characters in repeated {kind}", count)
        return _or_drop(text, _repeated_ngrams(words(text), table), count)

    return step


def _repeated(parts: list[str]) -> list[str]:
    """List the parts that occurred before."""
    seen: set[str] = set()
    return [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]


def _repeated_ngrams(words: list[str], table: Clean) -> str:
    """Name the rule for n-grams that is broken; "" if there is none."""
    hashed = hashes(words)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    for n, limit in enumerate(table.gopher_max_top_ngrams, 2):
        runs = ngrams(hashed, n)
        values, counts = np.unique(runs, return_counts=True)
        if counts.size and counts.max() > 1:
            top = np.flatnonzero(runs == values[counts.argmax()])
            if _covered(top, n, lengths) > limit * lengths.sum():
                return f"most frequent {n}-gram"
    for n, limit in enumerate(table.gopher_max_duplicate_ngrams, 5):
        runs = ngrams(hashed, n)
        _, first = np.unique(runs, return_index=True)
        if first.size == runs.size:
            break  # no longer run occurs twice either
        later = np.setdiff1d(np.arange(runs.size), first, assume_unique=True)
        if _covered(later, n, lengths) > limit * lengths.sum():
            return f"repeated {n}-grams"
    return ""


def _covered(starts: np.ndarray, n: int, lengths: np.ndarray) -> int:
    """Count the characters in the runs of `n` words that begin at `starts`; `lengths` [words] are by word."""
    inside = np.zeros(len(lengths), bool)
    for offset in range(n):
        inside[starts + offset] = True
    return int(lengths[inside].sum())


# ---- language and length -------------------------------------------------------------------------------------------

_LOOKED_AT = 1000  # characters: with more the choice is slower and hardly more certain


def language(table: Clean) -> Step:
    """Make the step that keeps documents in `table.languages`, which py3langid tells by their first 1000 characters.

    After Lui & Baldwin 2012 (ACL, P12-3005). Raises UserError for a language that it does not know.
    """
    identifier = _identifier()
    unknown = [code for code in table.languages if code not in identifier.labels]
    if unknown:
        raise UserError(
            f"data.clean.languages: py3langid does not know {', '.join(unknown)}",
            f"it knows {', '.join(sorted(identifier.labels))}",
        )

    def step(text: str, count: Counter[str]) -> str | None:
        code, confidence = identifier.classify(text[:_LOOKED_AT])
        if code not in table.languages:
            return _or_drop(text, str(code), count)
        return _or_drop(text, "unsure" if confidence < table.language_confidence else "", count)

    return step


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def length(table: Clean) -> Step:
    """Make the step that drops documents that are too short or too long, in characters or in words."""

    def step(text: str, count: Counter[str]) -> str | None:
        rule = _outside(len(text), table.min_characters, table.max_characters, "characters")
        if not rule and (table.min_words or table.max_words):
            rule = _outside(len(words(text)), table.min_words, table.max_words, "words")
        return _or_drop(text, rule, count)

    return step


def _outside(number: int, least: int | None, most: int | None, what: str) -> str:
    if least is not None and number < least:
        return f"few {what}"
    return f"many {what}" if most is not None and number > most else ""


def _or_drop(text: str, rule: str, count: Counter[str]) -> str | None:
    """Return the text, or count the broken rule and return None."""
    if not rule:
        return text
    count[rule] += 1
    return None
