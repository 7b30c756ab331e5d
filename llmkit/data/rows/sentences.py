"""Build sentences of tables that have one word a row."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmkit.data.files import BadRow, digest
from llmkit.data.rows.cells import ABSENT, JOINED, value_at
from llmkit.data.rows.table import HEAD, Rows
from llmkit.errors import UserError

# Names of columns that number sentences, and of those that number documents, in lower case without other characters.
SENTENCES = (
    *("sentenceid", "sentid", "sentence", "sent", "sentenceidx", "sentidx", "sentenceindex", "sentenceno", "sid"),
    *("sentencenumber", "sentencenum", "sentencenr", "utteranceid", "uttid", "sequenceid", "seqid", "tweetid"),
)
DOCUMENTS = ("docid", "documentid", "doc", "document", "docidx", "articleid", "fileid", "filename")
NEARLY_ALL = 0.9
SINGLE = re.compile(r"(?!\[.+\]$)\S+")  # one word, and not a list of words in brackets

KEY = "set data.sentence_column to the column that says which sentence a word belongs to"


def blank(value: Any) -> bool:
    """Tell whether a cell is empty: also None, and not-a-number, which pandas writes for it."""
    return value is ABSENT or value is None or value != value or (isinstance(value, str) and not value.strip())


def head(rows: Rows) -> list[Mapping[str, Any]]:
    """Return the first rows that can be read."""
    return [row for _, row in itertools.islice(rows.read(), HEAD) if not isinstance(row, BadRow)]


def one_word_a_row(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
    """Tell whether nearly all of the rows hold a single word and, where there is a column of tags, a single tag."""
    for role in ("tokens", "tags"):
        values = [value_at(row, columns[role]) for row in rows] if role in columns else [1]
        values = [value for value in values if not blank(value)]
        single = sum(
            isinstance(value, int) or bool(isinstance(value, str) and SINGLE.fullmatch(value.strip()))
            for value in values
        )
        if not values or single < NEARLY_ALL * len(values):
            return False
    return True


def find_sentence_column(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Find the columns that tell sentences apart: by their names, else by what they hold; raise UserError for two.

    Such a column changes from one sentence to the next and comes back to no earlier value, or it is empty but for the
    first word of each sentence.
    """
    plain = {name: re.sub("[^a-z0-9]", "", name.casefold()) for name in names}
    by_name = [name for wanted in SENTENCES for name in names if plain[name] == wanted][:1]
    documents = [name for wanted in DOCUMENTS for name in names if plain[name] == wanted][:1]
    if by_name or documents:
        return documents + by_name
    fits = [name for name in names if tells_sentences(rows, name)]
    if len(fits) > 1:
        raise UserError(f"{' and '.join(f'`{name}`' for name in fits)} could both tell sentences apart", KEY)
    return fits


def tells_sentences(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [value_at(row, name) for row in rows]
    if not values or blank(values[0]) or any(isinstance(value, list | dict | float) for value in values):
        return False
    given = [value for value in values if not blank(value)]
    runs = [value for value, _ in itertools.groupby(given)]
    return 2 <= len(runs) <= len(values) / 2 and len(set(runs)) == len(runs)


def group(rows: Rows, by: Sequence[str], names: Sequence[str]) -> Rows:
    """Make one row of each run of rows with the same values in the columns `by`; of all others a list.

    Empty rows end a sentence too; without `by`, so do empty lines, which show in the numbers of lines. An empty cell of
    `by` stands for the value above. `names` are the columns of the words and, where they are read, of their tags.
    """

    def read() -> Iterator[tuple[str, Any]]:
        yield from _sentences(rows, by, names)

    how = (
        "sentences are the rows of one " + JOINED.join(f"`{name}`" for name in by) if by else "empty rows end sentences"
    )
    rows.notes[f"{rows.source}: one word per row; {how}"] = how
    grouped = replace(rows, read=read, fingerprint=digest(rows.fingerprint, "sentences", *by, "", *names))
    first = [row for _, row in itertools.islice(read(), HEAD) if not isinstance(row, BadRow)]
    if len(names) > 1 and sum(len(row[names[0]]) == 1 for row in first) > NEARLY_ALL * len(first):
        raise UserError(
            f"{rows.source}: nearly all sentences would have one word; {how}",
            f"{KEY}: {', '.join(rows.columns)}",
        )
    return grouped


def has_gaps(rows: Rows) -> bool:
    """Tell whether empty rows or empty lines stand between the first rows."""
    before = ("", 0)
    for place, row in itertools.islice(rows.read(), HEAD):
        if (not isinstance(row, BadRow) and all(map(blank, row.values()))) or _gap(before, _number(place)):
            return True
        before = _number(place)
    return False


def _number(place: str) -> tuple[str, int]:
    """Divide "`a.csv`, line 7" into what stands before the number of the line, and that number; 0 for no line."""
    before = place.rstrip("0123456789")
    return before, int(place[len(before) :]) if before.endswith("line ") else 0


def _gap(before: tuple[str, int], number: tuple[str, int]) -> bool:
    return before[0] == number[0] and number[1] > before[1] + 1 > 1


def _sentences(rows: Rows, by: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    words: list[Mapping[str, Any]] = []
    place, number = "", ("", 0)
    nothing = key = ("",) * len(by)
    broken: BadRow | None = None  # a row of the sentence that cannot be read
    just_broken = False  # such a row may have begun the sentence that follows
    seen: set[int] = set()
    again, first_again = 0, ""
    for where, row in _with_end(rows.read()):
        before, number = number, _number(where)
        if before[0] != number[0]:  # another file
            key = nothing
        bad = isinstance(row, BadRow)
        empty = not bad and all(blank(value_at(row, name)) for name in names)
        own = key if bad else _values(row, by, key)
        ends = empty or before[0] != number[0] or (not by and _gap(before, number))
        if ends or own != key:
            carried = broken if just_broken and not ends else None
            if broken is not None and (words or carried is None):
                yield place, replace(broken, kind="a word that cannot be read")
            elif words and broken is None:
                yield place, _joined(words, by, key, names)
            words, place, broken = [], "" if carried is None else place, carried
        just_broken = bad
        if bad:
            broken, place = row, place or where
        elif not empty:
            if own != key:
                known = hash((number[0], str(own)))
                again, first_again = again + (known in seen), first_again or (where if known in seen else "")
                seen.add(known)
            key, place = own, place or where
            words.append(row)
    if again:
        note = f"{again:,} sentence{'s begin' if again > 1 else ' begins'} with an id that was used before"
        why = "only consecutive rows form one sentence"
        rows.notes[f"{note}, such as {first_again}: {why}"] = f"again: {again}"


def _values(row: Mapping[str, Any], by: Sequence[str], above: Sequence[Any]) -> tuple[Any, ...]:
    values = [value_at(row, name) for name in by]
    return tuple(old if blank(value) else value for old, value in zip(above, values, strict=True))


def _with_end(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the rows, and an empty one behind the last."""
    yield from rows
    yield "", {}


def _joined(
    words: Sequence[Mapping[str, Any]], by: Sequence[str], key: Sequence[Any], names: Sequence[str]
) -> dict[str, Any]:
    lists = {name: [row.get(name) for row in words] for name in words[0]}
    values = {name: [value_at(row, name) for row in words] for name in names}
    stripped = {name: [v.strip() if isinstance(v, str) else v for v in column] for name, column in values.items()}
    return {**lists, **stripped, **dict(zip(by, key, strict=True))}
