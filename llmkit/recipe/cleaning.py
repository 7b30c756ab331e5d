"""[data.clean]: what is done to text before a model learns from it. Everything is off until it is asked for."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from llmkit.recipe.table import Table

PERSONAL_DATA = ("email", "iban", "card", "ip", "phone")  # what stands further to the front wins where two overlap

# The keys that say more about another one, which must then be there.
_SWITCHES = {
    **dict.fromkeys(("c4_min_words_per_line", "c4_min_sentences", "c4_bad_words"), ("c4",)),
    **dict.fromkeys(("gopher_min_words", "gopher_max_words", "gopher_min_mean_word_length"), ("gopher",)),
    **dict.fromkeys(("gopher_max_mean_word_length", "gopher_max_symbols", "gopher_max_bullet_lines"), ("gopher",)),
    **dict.fromkeys(("gopher_max_ellipsis_lines", "gopher_min_alphabetic", "gopher_min_stop_words"), ("gopher",)),
    **dict.fromkeys(("gopher_max_duplicates", "gopher_max_top_ngrams"), ("gopher_repetition",)),
    "gopher_max_duplicate_ngrams": ("gopher_repetition",),
    "language_confidence": ("languages",),
    "presidio_language": ("presidio",),
    "personal_data_tag": ("personal_data", "presidio"),
    "phone_regions": ("personal_data",),
    **dict.fromkeys(("overlap_ngram", "overlap_share"), ("overlap",)),
    **dict.fromkeys(("near_threshold", "near_ngram"), ("near_duplicates",)),
}


class Clean(Table):
    """Cleaning of running text; the steps follow in the order of the keys, and each is counted and reported."""

    # Changes to the text of a document.
    html: bool = Field(
        default=False,
        description="Turn HTML into the text that a reader sees, without scripts, navigation and forms; documents "
        "without tags and entities stay as they are.",
    )
    repair: bool = Field(
        default=False,
        description="Mend text that was decoded wrongly, such as `cafÃ©` for `café` (ftfy).",
    )
    normal_form: Literal["NFC", "NFKC"] | None = Field(
        default=None,
        description="The Unicode normal form; by default NFC with `repair`, else the text's own. NFKC also makes "
        "full-width letters and Chinese punctuation narrow.",
    )
    control_characters: bool = Field(
        default=False,
        description="Remove characters that nobody sees or knows: control, zero-width, direction marks, private use, "
        "unassigned, and the replacement character.",
    )
    whitespace: bool = Field(
        default=False,
        description="One kind of line end and blank, no two blanks and no two empty lines in a row, none at the edge "
        "of a line; the indentation of code is lost.",
    )
    boilerplate: bool = Field(
        default=False,
        description="Drop the lines that belong to a web page and not to its text: menus, notices about cookies and "
        "rights, invitations to share, subscribe or log in; English and Chinese.",
    )
    boilerplate_patterns: tuple[str, ...] = Field(
        default=(), description="Regular expressions: a line in which one of them is found is dropped."
    )

    # Documents that are not good enough.
    c4: bool = Field(
        default=False, description="The rules for lines and pages of C4 (Raffel et al. 2019, arXiv:1910.10683)."
    )
    c4_min_words_per_line: int = Field(default=5, ge=0, description="With `c4`: a shorter line is dropped.")
    c4_min_sentences: int = Field(default=3, ge=0, description="With `c4`: a page with fewer sentences is dropped.")
    c4_bad_words: str | tuple[str, ...] | None = Field(
        default=None,
        description="With `c4`: a page with one of these words is dropped; a file with one on each line, or an array.",
    )
    gopher: bool = Field(
        default=False, description="The quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, section A1.1)."
    )
    gopher_min_words: int = Field(default=50, ge=0, description="With `gopher`: words in a document, at least.")
    gopher_max_words: int = Field(default=100_000, ge=1, description="With `gopher`: words in a document, at most.")
    gopher_min_mean_word_length: float = Field(
        default=3.0, ge=0, description="With `gopher`: characters in a word on average, at least (text with spaces)."
    )
    gopher_max_mean_word_length: float = Field(
        default=10.0, gt=0, description="With `gopher`: characters in a word on average, at most (text with spaces)."
    )
    gopher_max_symbols: float = Field(
        default=0.1, ge=0, description="With `gopher`: hash signs for each word, and ellipses for each word, at most."
    )
    gopher_max_bullet_lines: float = Field(
        default=0.9, ge=0, le=1, description="With `gopher`: the share of lines that begin with a bullet, at most."
    )
    gopher_max_ellipsis_lines: float = Field(
        default=0.3, ge=0, le=1, description="With `gopher`: the share of lines that end in an ellipsis, at most."
    )
    gopher_min_alphabetic: float = Field(
        default=0.8, ge=0, le=1, description="With `gopher`: the share of words with a letter in them, at least."
    )
    gopher_min_stop_words: int = Field(
        default=2,
        ge=0,
        description="With `gopher`: how many of the, be, to, of, and, that, have, with must occur (in Chinese, of such "
        "words as 的 and 是); 0 for other languages.",
    )
    gopher_repetition: bool = Field(
        default=False, description="Gopher's rules against repetition (the same paper, table A1)."
    )
    gopher_max_duplicates: tuple[float, ...] = Field(
        default=(0.30, 0.30, 0.20, 0.20),
        description="With `gopher_repetition`: the share of repeated lines, of repeated paragraphs, and of the "
        "characters in each of them, at most.",
    )
    gopher_max_top_ngrams: tuple[float, ...] = Field(
        default=(0.20, 0.18, 0.16),
        description="With `gopher_repetition`: the share of characters in the most frequent n-gram of 2, 3, 4 words.",
    )
    gopher_max_duplicate_ngrams: tuple[float, ...] = Field(
        default=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
        description="With `gopher_repetition`: the share of characters in repeated n-grams of 5, 6, ..., 10 words.",
    )
    languages: tuple[str, ...] = Field(
        default=(), description='Keep documents in these languages only (ISO 639-1), such as `["en", "zh"]`.'
    )
    language_confidence: float = Field(
        default=0.5, ge=0, le=1, description="With `languages`: how sure the choice must be (py3langid)."
    )

    # What a model should not repeat, and what a model is not to see.
    personal_data: tuple[str, ...] = Field(
        default=(), description='Mask these kinds of personal data: any of `["email", "iban", "card", "ip", "phone"]`.'
    )
    presidio: bool = Field(
        default=False, description="Mask what Microsoft Presidio finds too, such as names (`llmkit[presidio]`)."
    )
    presidio_language: str = Field(default="en", description="With `presidio`: the language of the text.")
    personal_data_tag: str = Field(
        default="<{kind}>", description="What stands in their place; `{kind}` becomes EMAIL, IBAN, CARD, IP or PHONE."
    )
    phone_regions: tuple[str, ...] = Field(
        default=("US", "CN"),
        description="The countries (ISO 3166) whose telephone numbers are known without their `+` code too.",
    )
    stop_words: str | tuple[str, ...] | None = Field(
        default=None,
        description='Remove these words: `"en"` or `"zh"` for a short list of ours, a file with one on each line, or '
        "an array.",
    )

    # Length, after all of the above.
    min_characters: int | None = Field(default=None, ge=1, description="Drop documents with fewer characters.")
    max_characters: int | None = Field(default=None, ge=1, description="Drop documents with more characters.")
    min_words: int | None = Field(
        default=None, ge=1, description="Drop documents with fewer words; a Chinese character counts as a word."
    )
    max_words: int | None = Field(default=None, ge=1, description="Drop documents with more words.")

    # What needs all documents.
    exact_duplicates: bool = Field(
        default=False, description="Keep the first of several documents that are the same, within one source."
    )
    overlap: bool = Field(
        default=False, description="Drop documents that share text with the validation data, that of all sources."
    )
    overlap_ngram: int = Field(
        default=13,
        ge=1,
        description="With `overlap`: words in a row that count as shared text; in Chinese, characters.",
    )
    overlap_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="With `overlap`: the share of a document's n-grams that may be shared; 0 drops it for one.",
    )
    near_duplicates: bool = Field(
        default=False,
        description="Keep the first of several documents of one source that are nearly the same (MinHash, verified).",
    )
    near_threshold: float = Field(
        default=0.8,
        ge=0.3,
        le=1,
        description="With `near_duplicates`: how alike they are, as the Jaccard similarity of their n-grams.",
    )
    near_ngram: int = Field(default=5, ge=1, description="With `near_duplicates`: words in an n-gram.")

    @field_validator(
        *("boilerplate_patterns", "c4_bad_words", "gopher_max_duplicates", "gopher_max_top_ngrams"),
        *("gopher_max_duplicate_ngrams", "languages", "personal_data", "phone_regions", "stop_words"),
        mode="before",
    )
    @classmethod
    def _unchangeable(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator(*_SWITCHES)
    @classmethod
    def _not_alone(cls, value: Any, info: Any) -> Any:
        switches = _SWITCHES[info.field_name]
        if value != cls.model_fields[info.field_name].default and not any(info.data.get(key) for key in switches):
            raise ValueError(f"means nothing without {' or '.join(f'`{key}`' for key in switches)}")
        return value

    @field_validator("boilerplate_patterns")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as problem:
                raise ValueError(f'"{pattern}" is no regular expression: {problem}') from None
        return value

    @field_validator("gopher_max_duplicates", "gopher_max_top_ngrams", "gopher_max_duplicate_ngrams")
    @classmethod
    def _as_many_as_in_the_paper(cls, value: tuple[float, ...], info: Any) -> tuple[float, ...]:
        wanted = len(cls.model_fields[info.field_name].default)
        if len(value) != wanted:
            raise ValueError(f"must be {wanted} numbers, not {len(value)}")
        return value

    @field_validator("languages")
    @classmethod
    def _codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not re.fullmatch("[a-z]{2}", code):
                raise ValueError(f'"{code}" is no ISO 639-1 code such as "en" or "zh"')
        return value

    @field_validator("phone_regions")
    @classmethod
    def _regions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not re.fullmatch("[A-Z]{2}", code):
                raise ValueError(f'"{code}" is no ISO 3166 code such as "US" or "CN"')
        return value

    @field_validator("personal_data")
    @classmethod
    def _kinds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for kind in value:
            if kind not in PERSONAL_DATA:
                raise ValueError(f'"{kind}" is none of {", ".join(PERSONAL_DATA)}')
        return value
