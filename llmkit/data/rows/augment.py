"""Make altered copies of training texts: delete words, swap words, replace words by synonyms.

After EDA (Wei & Zou 2019, arXiv:1901.11196), with two differences: a copy is altered in all the ways that the recipe
sets, not in one of them, and no words are inserted.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import Augment

# The blank before a unit, if any, and the unit: a character of Chinese or Japanese, or a word with its punctuation.
_NO_BLANKS = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNIT = re.compile(rf"(\s*)([{_NO_BLANKS}]|[^\s{_NO_BLANKS}]+)")
WORD = re.compile(r"(\W*)([A-Za-z]+)(\W*)")
# WordNet has no function words: an entry that is spelled like one of these is another word.
_FUNCTION = (
    "a about above across after against all along am among an and any are around as at be because been before behind "
    "being below beneath beside between beyond but by can could despite did do does down during each either else even "
    "except few for from had has have he her here hers him his how i if in inside into is it its just like many may me "
    "might mine more most much must my near neither no nor not now of off on once one only or other our out outside "
    "over past per same shall she should since so some such than that the their them then there these they this those "
    "though through thus till to too toward under until up upon us very was we were what when where whether which "
    "while who whom whose why will with within without would yet you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION.split())
Lookup = Callable[[str], str | None]  # a word in lower case -> its synonym, if it has a clear one


def copies(rows: Rows, texts: Mapping[str, str], table: Augment) -> Rows:
    """Make `table.copies` altered copies of all rows: the first of each in their order, then the second, and so on.

    `texts` are the columns with text, by role. Each copy follows from the seed, the number of the row and the number of
    the copy alone. Raises UserError where `table` asks for synonyms and WordNet is missing.
    """
    synonym_of = synonyms() if table.synonym else None

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for copy in range(table.copies):
            for number, (place, row) in enumerate(rows.read()):
                rng = np.random.default_rng([table.seed, number, copy])
                changed = {name: altered(row[name], table, rng, synonym_of) for name in texts.values() if row[name]}
                yield place, row | changed

    return replace(rows, read=read)


def altered(text: str, table: Augment, rng: np.random.Generator, synonym_of: Lookup | None = None) -> str:
    """Replace, swap and delete words of `text` in the shares that `table` sets; at least one word stays."""
    units = UNIT.findall(text)
    words = [word for _, word in units]
    if synonym_of is not None:
        replacements = {index: new for index, word in enumerate(words) if (new := _replacement(word, synonym_of))}
        count = min(_round_at_random(table.synonym * len(words), rng), len(replacements))
        for index in rng.permutation(list(replacements))[:count].tolist():
            words[index] = replacements[index]
    pairs = min(_round_at_random(table.swap * len(words) / 2, rng), len(words) // 2)
    for one, other in rng.permutation(len(words))[: 2 * pairs].reshape(-1, 2):
        words[one], words[other] = words[other], words[one]
    kept = rng.random(len(words)) >= table.delete
    if not kept.any() and len(words):
        kept[rng.integers(len(words))] = True
    return "".join(blank + word for (blank, _), word, stays in zip(units, words, kept, strict=True) if stays).strip()


def _round_at_random(number: float, rng: np.random.Generator) -> int:
    """Round up or down at random, so that the mean is `number`: short texts get their share too."""
    return int(number + rng.random())


def _replacement(word: str, synonym_of: Lookup) -> str | None:
    """Find the synonym of a word; keep its capitals and its punctuation."""
    parts = WORD.fullmatch(word)
    if parts is None:
        return None
    before, inside, behind = parts.groups()
    write = next((way for way in (str.lower, str.capitalize, str.upper) if way(inside) == inside), None)
    new = synonym_of(inside.lower()) if write else None
    return before + write(new) + behind if write and new else None


def synonyms() -> Lookup:
    """Make the look-up of clear synonyms in WordNet (Miller 1995, doi:10.1145/219717.219748), as nltk reads it.

    A word has a clear synonym if it belongs to one word class and is no inflected form, and if exactly one other word
    shares its first meaning as its own first one. That other is a single word, and occurs in the texts on which
    WordNet's counts are based. Raises UserError where WordNet is missing.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError) as problem:
        raise UserError(
            "data.augment.synonym needs WordNet, but nltk cannot find it on this machine",
            "download it once: python -m nltk.downloader wordnet",
        ) from problem

    @cache
    def synonym_of(word: str) -> str | None:
        senses = [] if word in FUNCTION_WORDS else wordnet.synsets(word)
        classes = {sense.pos().replace("s", "a") for sense in senses}  # s: an adjective, grouped with another
        if len(classes) != 1 or any(word not in sense.lemma_names() for sense in senses):
            return None
        first = senses[0]
        clear = [
            lemma.name()
            for lemma in first.lemmas()
            if lemma.name() != word
            and re.fullmatch("[a-z]+", lemma.name())
            and wordnet.synsets(lemma.name(), first.pos())[:1] == [first]
            and lemma.count()
        ]
        return clear[0] if len(clear) == 1 else None

    return synonym_of
