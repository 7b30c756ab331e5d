"""Rows of tagging: which column is which, how words and their tags are read, and what can be wrong with a row."""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import regex

from llmkit.data.files import text_of
from llmkit.data.rows.reader import Examined, Unusable, by_rarest
from llmkit.data.rows.table import Rows, need
from llmkit.errors import UserError
from llmkit.recipe.data_tables import TaggingData

if TYPE_CHECKING:
    from llmkit.data.rows import tagging
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = tagging


LABEL_ROLES = ("tags",)  # the roles of columns that only training and evaluation read
TOKENS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "ner", "pos_tags", "chunk_tags", "upos")  # the first that is there counts
# A word of a running text: letters, their marks and digits together; all else, and the characters of scripts that set
# no blanks between words, grapheme by grapheme. Joiners hold the letters of a Persian or Hindi word together.
ONE_BY_ONE = r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Thai}]"
WORDS = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}]--{ONE_BY_ONE}][\p{{M}}\u200c\u200d[\p{{L}}\p{{N}}]--{ONE_BY_ONE}]*|(?=\S)\X"
)
# A cell that is meant as a list: in Python's or numpy's own writing it must not pass for words set apart by blanks.
LIST = regex.compile(r"""\s*\[\s*['"\d-].*\]\s*""", regex.DOTALL)


class Sentence(NamedTuple):
    """What `predict` asks about: a text, where its words stand in it, and whether they came as a list."""

    text: str
    spans: list[tuple[int, int]]
    listed: bool


def resolve_columns(data: TaggingData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column is the `tokens` and the `tags`; without labels, a column `text` will do for the tokens."""
    found: dict[str, str] = {}
    roles = [("tokens", data.tokens_column, TOKENS), ("tags", data.tags_column, TAGS)]
    for role, named, usual in roles if labelled else roles[:1]:
        known = [name for name in ((named,) if named else usual) if name in rows.columns]
        if not known and not labelled and "text" in rows.columns:
            return {"text": "text"}
        found[role] = known[0] if known else named or usual[0]
        need(rows, found[role], role)
    return found


def read_words(place: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[str], Any]:
    """The words of a row, and its tags or, where there is no column of them, its Sentence; ValueError for no words."""
    if "text" in columns:
        text = text_of(row, columns["text"], place)
        spans = [match.span() for match in WORDS.finditer(text)]
        return [text[begin:end] for begin, end in spans], Sentence(text, spans, listed=False)
    for column in columns.values():
        if column not in row:
            raise UserError(f"{place}: no `{column}`; the row has {', '.join(row)}", "every row needs that column")
    words = _words(row[columns["tokens"]], columns["tokens"])
    if "tags" in columns:
        tags = _listed(row[columns["tags"]], columns["tags"])
        if len(tags) != len(words):
            raise ValueError(f"{len(words)} words in `{columns['tokens']}` and {len(tags)} tags in `{columns['tags']}`")
        return words, tags
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    spans = [(end - 1 - len(word), end - 1) for end, word in zip(ends, words, strict=True)]
    return words, Sentence(" ".join(words), spans, listed=True)


def _words(value: Any, column: str) -> list[str]:
    words = _listed(value, column)
    if isinstance(value, str) and not all(isinstance(word, str) for word in words):
        return value.split()  # "[1]" is a word, and a list of numbers in JSON
    for number, word in enumerate(words, 1):
        if not isinstance(word, str):
            raise ValueError(f"word {number} of `{column}` is {word!r}, and not text")
    return words


def _listed(value: Any, column: str) -> list[Any]:
    """A list, or the one that a CSV's cell holds: as JSON, or set apart by blanks."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        raise ValueError(f"`{column}` holds {type(value).__name__}, where a list is expected")
    if not LIST.fullmatch(value):
        return [] if value.strip() == "[]" else value.split()
    try:
        return list(json.loads(value))
    except ValueError:
        raise ValueError(f"`{column}` begins and ends like a list and is not JSON: {value:.40}") from None


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """What a tokenizer of one's own is trained on. A row that cannot be read is refused by `encode`, with its place."""
    try:
        yield " ".join(_words(row.get(columns["tokens"]), columns["tokens"]))
    except ValueError:
        return


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: TaggingData, evaluation: bool) -> Examined:
    """Read the words of a row and their tags, which are as many."""
    try:
        _, target = read_words("", row, columns)
    except UserError as fault:
        raise Unusable(fault.message.removeprefix(": "), fault.message.removeprefix(": ")) from fault
    except ValueError as fault:
        raise Unusable("words and tags do not fit", str(fault)) from fault
    return Examined(target if "tags" in columns else None)


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: TaggingData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw the rows of each tag in its share, those of rare tags first."""
    return by_rarest([list(map(str, tags)) for tags in targets]), {}
