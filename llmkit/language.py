"""Tell in what units a language is compared: words, or characters where no blanks are set between words."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

# Languages that set no blanks between words, and the letters of each; Japanese has kana beside Chinese characters.
UNSPACED = {
    "zh": ("Chinese", r"\p{Han}"),
    "yue": ("Cantonese", r"\p{Han}"),
    "ja": ("Japanese", r"[\p{Hiragana}\p{Katakana}]"),
    "th": ("Thai", r"\p{Thai}"),
    "lo": ("Lao", r"\p{Lao}"),
    "km": ("Khmer", r"\p{Khmer}"),
    "my": ("Burmese", r"\p{Myanmar}"),
    "bo": ("Tibetan", r"\p{Tibetan}"),
}
KANA = 0.1  # the share of kana from which text is Japanese: names in a Chinese text have some
_LETTERS = {
    code: regex.compile(rf"(?V1)[{letters}&&\p{{L}}]") for code, (_, letters) in UNSPACED.items() if code != "yue"
}
_LATIN = regex.compile(r"(?V1)[\p{Latin}&&\p{L}]")
_LETTER = regex.compile(r"\p{L}")


@dataclass(frozen=True)
class Units:
    """The units that texts are compared in.

    Attributes:
        language: its code, None where only the script is known.
        characters: whether each character is a unit, and not each word.
        latin: whether most letters are Latin ones.
    """

    language: str | None = None
    characters: bool = False
    latin: bool = True

    @property
    def record(self) -> dict[str, str]:
        """What the run's record says, and the output of `llmkit evaluate` where there are `lines`."""
        known = {} if self.language is None else {"language": self.language}
        return {"scored_by": "characters" if self.characters else "words", **known}

    @property
    def lines(self) -> list[str]:
        """What the terminal says: nothing of words, which are usual, unless the recipe named the language."""
        if not self.characters and self.language is None:
            return []
        name = UNSPACED[code(self.language)][0] if self.characters and self.language else self.language
        return [f"references: {name}, scored by {'characters' if self.characters else 'words'}"]


WORDS = Units()


def code(language: str | None) -> str:
    """Return the language of a code that may name a region or script too: zh for zh-CN and zh_Hant."""
    return (language or "").replace("_", "-").partition("-")[0].lower()


def choose(language: str | None, references: Iterable[str]) -> Units:
    """Choose the units of all `references` of a data set: those of `language`, else what most of their letters say."""
    counts, letters = Counter[str](), 0
    for text in references:
        if text.isascii():
            latin = sum(map(str.isalpha, text))
            counts["latin"] += latin
            letters += latin
            continue
        letters += len(_LETTER.findall(text))
        counts["latin"] += len(_LATIN.findall(text))
        for each, pattern in _LETTERS.items():
            counts[each] += len(pattern.findall(text))
    latin = counts.pop("latin", 0) * 2 >= letters
    if language is not None:
        return Units(language, code(language) in UNSPACED, latin)
    if counts.total() * 2 <= letters:
        return Units(None, False, latin)
    if counts["ja"] > KANA * (counts["ja"] + counts["zh"]):
        counts["ja"] += counts.pop("zh")
    return Units(counts.most_common(1)[0][0], True, latin)
