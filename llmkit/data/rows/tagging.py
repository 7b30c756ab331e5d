"""Rows of tagging: which column is which, how words and their tags are read, and what can be wrong with a row.

A row is a list of words and one of tags; a single word, of which `sentences` builds sentences; or a text in which spans
of characters are marked, which `spans` turns into words and tags.
"""

import ast
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import regex

from llmkit.data.files import BadRow
from llmkit.data.rows import labels, spans
from llmkit.data.rows.cells import ABSENT, JOINED, parsed, value_at
from llmkit.data.rows.examples import Encoded
from llmkit.data.rows.reader import Examined, Unusable, by_rarest, text_in
from llmkit.data.rows.sentences import (
    KEY,
    NEARLY_ALL,
    blank,
    find_sentence_column,
    group,
    has_gaps,
    head,
    one_word_a_row,
    tells_sentences,
)
from llmkit.data.rows.spans import WORDS
from llmkit.data.rows.table import Rows, need, usual
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData, TaggingData

if TYPE_CHECKING:
    from llmkit.data.rows import tagging
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = tagging


LABEL_ROLES = ("tags", "sentence")  # the roles of columns that only training and evaluation read
TOKENS = ("tokens", "words", "token", "word", "form")
# The first that is there counts.
TAGS = (
    *("ner_tags", "tags", "labels", "ner", "pos_tags", "chunk_tags", "upos", "tag", "label", "ner_tag"),
    *("entities", "spans", "annotations", "annotation", "pos_tag", "pos", "xpos", "chunk_tag", "chunk"),
)
TEXTS = ("text", "sentence", "content", "sentences", "data.text", "raw_text", "document")
ONLY_SPANS = ("entities", "spans", "annotations", "annotation")  # columns that hold spans where they hold anything
LOOKED_THROUGH = 1000  # rows in which a span is searched for
# A cell that is meant as a list: in Python's or numpy's own writing it must not pass for words set apart by blanks.
LIST = regex.compile(r"""\s*\[\s*['"\d-].*\]\s*""", regex.DOTALL)
_ITEM = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|-?\d++(?:\.\d*+)?)"""
ITEM, NUMPY = (
    regex.compile(_ITEM, regex.DOTALL),
    regex.compile(rf"\s*\[\s*{_ITEM}(?:\s+{_ITEM})+\s*\]\s*", regex.DOTALL),
)
TAG = regex.compile(r"O|[BIELSUM](?:-.+)?")  # a tag of entities
PREFIX = regex.compile(r"[BIELSUM]-(?=.)")
INTEGER = regex.compile(r"0|-?[1-9]\d{0,17}")  # "01" is a name
FLOAT = regex.compile(r"([+-]?\d+)\.(\d*)")
UNTAGGED = "-100"  # the tag of a word that has none, as in what was made ready for a model


class Sentence(NamedTuple):
    """What `predict` asks about: a text, where its words stand in it, and whether they came as a list."""

    text: str
    spans: list[tuple[int, int]]
    listed: bool


# ---- columns -------------------------------------------------------------------------------------------------------


def resolve_columns(data: TaggingData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose the columns of the `tokens` and the `tags`, and of the `sentence` where a row is one word.

    Where the tags are spans, and without labels where there are no tokens, there is a `text` instead of tokens.
    """
    if not labelled:
        known = usual(rows, [data.tokens_column] if data.tokens_column else TOKENS)
        if not known and (text := usual(rows, ["text"])):
            return {"text": text[0]}
        return {"tokens": known[0] if known else need(rows, data.tokens_column or TOKENS[0], "tokens")}
    first = head(rows)
    tokens = need(rows, data.tokens_column, "tokens") if data.tokens_column else None
    tags = need(rows, data.tags_column, "tags") if data.tags_column else _find_tags(rows, first)
    if _holds_spans(rows, tags):
        return {"text": tokens or _find_text(rows, first, tags), "tags": tags}
    columns = {"tokens": tokens or _find_tokens(rows, first, tags), "tags": tags}
    if data.sentence_column:
        named = [data.sentence_column] if isinstance(data.sentence_column, str) else data.sentence_column
        columns["sentence"] = JOINED.join(need(rows, name, "sentence") for name in named)
    elif one_word_a_row(first, columns) and (by := _find_sentence_column(rows, columns)):
        columns["sentence"] = JOINED.join(by)
    return columns


def _find_sentence_column(rows: Rows, columns: Mapping[str, str]) -> list[str]:
    return find_sentence_column(head(rows), [name for name in rows.columns if name not in columns.values()])


def _find_tags(rows: Rows, first: Sequence[Mapping[str, Any]]) -> str:
    named = usual(rows, TAGS)
    if not usual(rows, TOKENS):  # a text, of which a label may be a class, and not that of spans
        marked = [name for name in named or rows.columns if _holds_spans(rows, name)]
        if marked and (named or len(marked) == 1):
            return marked[0]
    if named:
        return named[0]
    fits = [name for name in rows.columns if _are_tags([tag for row in first for tag in _items(row, name)])]
    return fits[0] if len(fits) == 1 else need(rows, TAGS[0], "tags")


def _are_tags(values: Sequence[Any]) -> bool:
    """Tell whether nearly all values are tags of entities."""
    tags = [value for value in values if isinstance(value, str) and TAG.fullmatch(value)]
    return len(set(tags)) > 1 and len(tags) > NEARLY_ALL * len(values)


def _holds_spans(rows: Rows, column: str) -> bool:
    """Tell whether the first cell of a column that is not empty holds spans of characters."""
    for _, row in itertools.islice(rows.read(), LOOKED_THROUGH):
        value = ABSENT if isinstance(row, BadRow) else value_at(row, column)
        try:
            found = None if value is ABSENT else spans.spans_in(value)
        except Unusable:
            return True
        if found:
            return True
        if found is None and value is not ABSENT:
            return False
    return column.strip().casefold() in ONLY_SPANS and not usual(rows, TOKENS)


def _find_text(rows: Rows, first: Sequence[Mapping[str, Any]], tags: str) -> str:
    for name in TEXTS:
        if any(isinstance(value_at(row, name), str) for row in first):
            return need(rows, name, "tokens")
    fits = [name for name in rows.columns if name != tags and _are_texts([row.get(name) for row in first])]
    return fits[0] if len(fits) == 1 else need(rows, TEXTS[0], "tokens")


def _are_texts(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values) and any(" " in value for value in values)


def _find_tokens(rows: Rows, first: Sequence[Mapping[str, Any]], tags: str) -> str:
    """Find the words: by name, else the only column with as many texts in each row as there are tags."""
    if named := usual(rows, TOKENS):
        return named[0]
    numbers = [len(_items(row, tags)) for row in first]
    fits = []
    for name in rows.columns:
        words = [_items(row, name) for row in first]
        texts = [word for found in words for word in found if isinstance(word, str) and not word.isdigit()]
        same = sum(len(found) == number for found, number in zip(words, numbers, strict=True))
        enough = same >= NEARLY_ALL * len(first) and len(texts) >= NEARLY_ALL * sum(numbers) > 0
        if name != tags and enough and not _are_tags(texts) and not tells_sentences(first, name):
            fits.append(name)
    plain = [name for name in usual(rows, TEXTS) if name in fits] or fits
    return plain[0] if len(plain) == 1 else need(rows, TOKENS[0], "tokens")


def _items(row: Mapping[str, Any], column: str) -> list[Any]:
    """List what a cell holds; nothing where it holds no list."""
    try:
        return _listed(value_at(row, column), column)
    except ValueError:
        return []


def reshape(rows: Rows, columns: Mapping[str, str], data: TaggingData) -> Rows:
    """Build sentences of words that have a row each; let the offsets of spans mean the same in any data.

    Raises UserError where rows to train on or to evaluate with are single words, and nothing tells sentences apart.
    """
    if "text" in columns:
        return spans.normalize(rows, columns["text"], columns["tags"]) if "tags" in columns else rows
    names = [columns[role] for role in ("tokens", "tags") if role in columns]
    first = head(rows)
    if any(isinstance(value_at(row, names[0]), list | tuple) for row in first):
        return rows
    by = columns["sentence"].split(JOINED) if "sentence" in columns else []
    if not by or any(all(blank(value_at(row, name)) for row in first) for name in by):
        if not one_word_a_row(first, columns):
            return rows
        by = _find_sentence_column(rows, columns)
    if not by and "tags" not in columns:  # to predict for words that may stand alone
        return rows
    others = [name for name in rows.columns if name not in names]
    if not by and not has_gaps(rows):
        raise UserError(
            f"{rows.source}: column `{columns['tokens']}` holds one word per row, and no column tells sentences apart",
            f"{KEY}{', one of: ' if others else '; there is no other column'}{', '.join(others)}; "
            'if every row is a sentence of its own, write its words as a list: ["word"]',
        )
    return group(rows, by, names)


# ---- rows ----------------------------------------------------------------------------------------------------------


def read_words(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[str], Any]:
    """Read the words of a row, and its tags or, where there is no column of them, its Sentence; raise Unusable."""
    words, target, _ = _read(row, columns)
    return words, target


def _read(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[str], Any, str | None]:
    """Read the same, and what had to be mended, if anything."""
    if "text" in columns:
        text = text_in(row, columns["text"])
        if "tags" in columns:
            return spans.tag_words(text, _cell(row, columns["tags"]), row.get("tokens"))
        places = [match.span() for match in WORDS.finditer(text)]
        return [text[begin:end] for begin, end in places], Sentence(text, places, listed=False), None
    try:
        words = _words(_cell(row, columns["tokens"]), columns["tokens"])
        tags = _listed(_cell(row, columns["tags"]), columns["tags"]) if "tags" in columns else None
    except Unusable:
        raise
    except ValueError as fault:
        raise Unusable("not a list of words or tags", str(fault), LISTS) from fault
    if tags is not None:
        if len(tags) != len(words):
            number = f"{len(words)} words in `{columns['tokens']}` and {len(tags)} tags in `{columns['tags']}`"
            raise Unusable("words and tags differ in number", number, LISTS)
        return words, tags, None
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    places = [(end - 1 - len(word), end - 1) for end, word in zip(ends, words, strict=True)]
    return words, Sentence(" ".join(words), places, listed=True), None


LISTS = "tokens and tags must be two lists of the same length; in a CSV, lists or words separated by spaces"


def _cell(row: Mapping[str, Any], column: str) -> Any:
    value = value_at(row, column)
    if value is ABSENT:
        raise Unusable(f"no `{column}`", f"no `{column}`; the row has {', '.join(row) or 'nothing'}")
    return value


def _words(value: Any, column: str) -> list[str]:
    words = _listed(value, column)
    if isinstance(value, str) and words and all(isinstance(word, int | float) for word in words):
        return value.split()  # "[1]" is a word, and a list of numbers in JSON
    for number, word in enumerate(words, 1):
        if not isinstance(word, str):
            raise ValueError(f"word {number} of `{column}` is {word!r}, and not text")
        if not word.isascii():
            text_in({column: word}, column)
    return words


def _listed(value: Any, column: str) -> list[Any]:
    """Return a list, or the one in a cell: as JSON, Python or numpy writes it, or set apart by blanks; or a number."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, int):  # the tag of the only word
        return [value]
    if not isinstance(value, str):
        raise ValueError(f"`{column}` holds {type(value).__name__}, where a list is expected")
    if not LIST.fullmatch(value):
        return [] if value.strip() == "[]" else value.split()
    if NUMPY.fullmatch(value):  # before Python, to which 'a' 'b' is one word
        return [ast.literal_eval(item) for item in ITEM.findall(value)]
    items = parsed(value)
    if not isinstance(items, list):
        raise ValueError(f"`{column}` begins and ends like a list but cannot be read as one: {value:.40}")
    return items


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """What a tokenizer of one's own is trained on. A row that cannot be read is refused by `encode`, with its place."""
    try:
        yield " ".join(read_words(row, {role: name for role, name in columns.items() if role in ("text", "tokens")})[0])
    except Unusable:
        return


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: TaggingData, evaluation: bool) -> Examined:
    """Read the words of a row and their tags, which are as many."""
    words, tags, mended = _read(row, columns)
    if "tags" not in columns:
        return Examined()
    if not "".join(words).strip():
        raise Unusable("no words", "there are no words")
    return Examined([_read_tag(tag, number) for number, tag in enumerate(tags, 1)], mended)


def _read_tag(tag: Any, number: int) -> str:
    try:
        return tag_in(tag)
    except ValueError as fault:
        kind = "a word without a tag" if str(fault) == "no tag" else "an invalid tag"
        raise Unusable(kind, f"word {number}: {fault}") from fault


# ---- tags ----------------------------------------------------------------------------------------------------------


def tag_in(value: Any) -> str:
    """Read a tag, without blanks around it and 1.0 as 1; raise ValueError where it is none."""
    if value is None or value != value or not str(value).strip():
        raise ValueError("no tag")
    name = str(value).lower() if isinstance(value, bool) else str(value).strip()
    if not isinstance(value, str | int | float):
        raise ValueError(f"tag {name} is a {type(value).__name__}, where a name or a number is expected")
    if number := FLOAT.fullmatch(name):
        if number[2].strip("0"):
            raise ValueError(f"tag {name} is not a whole number")
        name = str(int(number[1]))
    return name


def meanings(data: TaggingData, rows: Rows, column: str) -> tuple[str, ...] | None:
    """Find the names that 0, 1, ... stand for in the column of tags; None where a number is itself a name."""
    return labels.meanings(ClassificationData(path="-", label_names=data.label_names), Encoded(rows), column)


def name_of(tag: str, meant: Sequence[str] | None) -> str:
    """Name a tag that may be a number, which `meant` explains; raise ValueError for a number out of range."""
    if tag == UNTAGGED or not INTEGER.fullmatch(tag) or (meant is None and not tag.startswith("-")):
        return tag
    if not 0 <= int(tag) < len(meant or ()):
        raise ValueError(f"tag {tag} is out of range" + (f" 0 to {len(meant) - 1}" if meant else ""))
    assert meant is not None
    return meant[int(tag)]


def names_in_recipe(data: TaggingData, columns: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the tags that the recipe names; of types of entities, as spans have them, the tags in IOB2."""
    names = data.label_names
    if names is None or "text" not in columns or any(PREFIX.match(name) for name in names):
        return names
    return tuple(dict.fromkeys(["O", *(f"{letter}-{kind}" for kind in names if kind != "O" for letter in "BI")]))


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: TaggingData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw the rows of each type of entity, or of each tag, in its share, those of rare ones first.

    A row is unusable for a tag that neither the recipe nor the data set's own list of tags has.
    """
    meant = meanings(data, rows, columns["tags"])
    known = names_in_recipe(data, columns) or meant
    sets: list[Iterable[Hashable]] = []
    unusable: dict[int, Unusable] = {}
    for index, tags in enumerate(targets):
        named: set[str] = set()
        for tag in dict.fromkeys(tags):
            try:
                named.add(name_of(tag, meant))
            except ValueError as fault:
                unusable[index] = Unusable("a tag out of range", f"word {tags.index(tag) + 1}: {fault}", NUMBERS)
        strange = [] if known is None else sorted(named - {UNTAGGED, *known})
        if strange and index not in unusable:
            whose = "data.label_names" if data.label_names else "the names of the column"
            unusable[index] = Unusable(f"a tag that is not in {whose}", f'tag "{strange[0]}" is not in {whose}')
        sets.append({PREFIX.sub("", name) for name in named - {UNTAGGED, "O"}})
    return by_rarest(sets), unusable


NUMBERS = "tags are names or whole numbers from 0; data.label_names says what the numbers stand for"
