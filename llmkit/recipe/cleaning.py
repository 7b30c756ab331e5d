"""[data.clean]: how to clean text before training. Every step is off by default."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from llmkit.recipe.table import Table

PERSONAL_DATA = ("email", "iban", "card", "ip", "phone")  # the earlier kind wins where two matches overlap

# Keys that need another one: each with those of which one must be set.
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
    """Clean running text; the steps run in the order of the keys, and each is counted and reported."""

    # Changes to the text of a document.
    html: bool = Field(
        default=False,
        description="Turn HTML into the text that a reader sees, without scripts, navigation and forms; documents "
        "without tags and entities stay as they are.",
    )
    repair: bool = Field(
        default=False, description="Repair text that was decoded wrongly, such as `cafÃ©` for `café` (ftfy)."
    )
    normal_form: Literal["NFC", "NFKC"] | None = Field(
        default=None,
        description="Convert to this Unicode normal form; by default NFC with `repair`, else none. NFKC also makes "
        "full-width letters and Chinese punctuation narrow.",
    )
    control_characters: bool = Field(
        default=False,
        description="Remove invisible or meaningless characters: control, zero-width, direction marks, private use, "
        "unassigned, and the replacement character.",
    )
    whitespace: bool = Field(
        default=False,
        description="Use one kind of line end and space, collapse repeated spaces and empty lines, and strip "
        "spaces from the ends of each line; the indentation of code is lost.",
    )
    boilerplate: bool = Field(
        default=False,
        description="Drop lines that belong to a web page and not to its text: menus, notices about cookies and "
        "rights, invitations to share, subscribe or log in; English and Chinese.",
    )
    boilerplate_patterns: tuple[str, ...] = Field(
        default=(), description="Drop lines in which any of these regular expressions matches."
    )

    # Documents that are not good enough.
    c4: bool = Field(
        default=False, description="Apply C4's rules for lines and pages (Raffel et al. 2019, arXiv:1910.10683)."
    )
    c4_min_words_per_line: int = Field(default=5, ge=0, description="With `c4`: drop lines with fewer words than this.")
    c4_min_sentences: int = Field(default=3, ge=0, description="With `c4`: drop pages with fewer sentences than this.")
    c4_bad_words: str | tuple[str, ...] | None = Field(
        default=None,
        description="With `c4`: drop pages with any of these words: a file with one word per line, or an array.",
    )
    gopher: bool = Field(
        default=False, description="Apply Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, section A1.1)."
    )
    gopher_min_words: int = Field(
        default=50, ge=0, description="With `gopher`: the minimum number of words in a document."
    )
    gopher_max_words: int = Field(
        default=100_000, ge=1, description="With `gopher`: the maximum number of words in a document."
    )
    gopher_min_mean_word_length: float = Field(
        default=3.0,
        ge=0,
        description="With `gopher`: the minimum mean length of words in characters (text with spaces).",
    )
    gopher_max_mean_word_length: float = Field(
        default=10.0,
        gt=0,
        description="With `gopher`: the maximum mean length of words in characters (text with spaces).",
    )
    gopher_max_symbols: float = Field(
        default=0.1,
        ge=0,
        description="With `gopher`: the maximum ratio of hash signs to words, and of ellipses to words.",
    )
    gopher_max_bullet_lines: float = Field(
        default=0.9, ge=0, le=1, description="With `gopher`: the maximum share of lines that begin with a bullet."
    )
    gopher_max_ellipsis_lines: float = Field(
        default=0.3, ge=0, le=1, description="With `gopher`: the maximum share of lines that end in an ellipsis."
    )
    gopher_min_alphabetic: float = Field(
        default=0.8, ge=0, le=1, description="With `gopher`: the minimum share of words that contain a letter."
    )
    gopher_min_stop_words: int = Field(
        default=2,
        ge=0,
        description="With `gopher`: how many of the words the, be, to, of, and, that, have, with must occur (in "
        "Chinese, words such as 的 and 是); use 0 for other languages.",
    )
    gopher_repetition: bool = Field(
        default=False, description="Apply Gopher's rules against repetition (the same paper, table A1)."
    )
    gopher_max_duplicates: tuple[float, ...] = Field(
        default=(0.30, 0.30, 0.20, 0.20),
        description="With `gopher_repetition`: the maximum share of repeated lines, of repeated paragraphs, and of "
        "the characters in each of them.",
    )
    gopher_max_top_ngrams: tuple[float, ...] = Field(
        default=(0.20, 0.18, 0.16),
        description="With `gopher_repetition`: the maximum share of characters in the most frequent n-gram of 2, 3, 4 "
        "words.",
    )
    gopher_max_duplicate_ngrams: tuple[float, ...] = Field(
        default=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
        description="With `gopher_repetition`: the maximum share of characters in repeated n-grams of 5, 6, ..., 10 "
        "words.",
    )
    languages: tuple[str, ...] = Field(
        default=(), description='Keep only documents in these languages (ISO 639-1), such as `["en", "zh"]`.'
    )
    language_confidence: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="With `languages`: how confident language identification must be (py3langid).",
    )

    # What a model should not repeat, and what a model is not to see.
    personal_data: tuple[str, ...] = Field(
        default=(), description='Mask these kinds of personal data: any of `["email", "iban", "card", "ip", "phone"]`.'
    )
    presidio: bool = Field(
        default=False, description="Also mask what Microsoft Presidio finds, such as names (`llmkit[presidio]`)."
    )
    presidio_language: str = Field(default="en", description="With `presidio`: the language of the text.")
    personal_data_tag: str = Field(
        default="<{kind}>",
        description="The text that replaces personal data; `{kind}` becomes EMAIL, IBAN, CARD, IP or PHONE.",
    )
    phone_regions: tuple[str, ...] = Field(
        default=("US", "CN"),
        description="Countries (ISO 3166) whose telephone numbers are recognized without their `+` code too.",
    )
    stop_words: str | tuple[str, ...] | None = Field(
        default=None,
        description='Remove these words: `"en"` or `"zh"` for a short built-in list, a file with one word per line, or '
        "an array.",
    )

    # Length, after all of the above.
    min_characters: int | None = Field(
        default=None, ge=1, description="Drop documents with fewer characters than this."
    )
    max_characters: int | None = Field(default=None, ge=1, description="Drop documents with more characters than this.")
    min_words: int | None = Field(
        default=None,
        ge=1,
        description="Drop documents with fewer words than this; a Chinese character counts as a word.",
    )
    max_words: int | None = Field(default=None, ge=1, description="Drop documents with more words than this.")

    # What needs all documents.
    exact_duplicates: bool = Field(
        default=False, description="Keep only the first of identical documents, within one source."
    )
    overlap: bool = Field(
        default=False, description="Drop documents that share text with the validation data of any source."
    )
    overlap_ngram: int = Field(
        default=13,
        ge=1,
        description="With `overlap`: how many words in a row count as shared text; in Chinese, characters.",
    )
    overlap_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="With `overlap`: the largest share of a document's n-grams that may overlap; with 0, one drops it.",
    )
    near_duplicates: bool = Field(
        default=False,
        description="Keep only the first of nearly identical documents, within one source (MinHash, verified).",
    )
    near_threshold: float = Field(
        default=0.8,
        ge=0.3,
        le=1,
        description="With `near_duplicates`: how similar documents must be, as the Jaccard similarity of their "
        "n-grams.",
    )
    near_ngram: int = Field(default=5, ge=1, description="With `near_duplicates`: the number of words in an n-gram.")

    @field_validator(*_SWITCHES)
    @classmethod
    def _not_alone(cls, value: Any, info: Any) -> Any:
        switches = _SWITCHES[info.field_name]
        if value != cls.model_fields[info.field_name].default and not any(info.data.get(key) for key in switches):
            raise ValueError(f"has no effect without {' or '.join(f'`{key}`' for key in switches)}")
        return value

    @field_validator("boilerplate_patterns")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as problem:
                raise ValueError(f'"{pattern}" is not a valid regular expression: {problem}') from None
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
                raise ValueError(f'"{code}" is not an ISO 639-1 code such as "en" or "zh"')
        return value

    @field_validator("phone_regions")
    @classmethod
    def _regions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not re.fullmatch("[A-Z]{2}", code):
                raise ValueError(f'"{code}" is not an ISO 3166 code such as "US" or "CN"')
        return value

    @field_validator("personal_data")
    @classmethod
    def _kinds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for kind in value:
            if kind not in PERSONAL_DATA:
                raise ValueError(f'"{kind}" is not one of {", ".join(PERSONAL_DATA)}')
        return value
