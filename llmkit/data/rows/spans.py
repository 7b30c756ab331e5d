"""Turn the spans of characters that annotation tools mark in a text into its words and their tags."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import regex

from llmkit.data.files import BadRow, digest
from llmkit.data.rows.cells import ABSENT, parsed, value_at
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.table import Rows

# A word of a running text: letters, their marks and digits together; all else, and the characters of scripts that set
# no blanks between words, grapheme by grapheme. Joiners hold the letters of a Persian or Hindi word together.
ONE_BY_ONE = r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Thai}]"
WORDS = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}]--{ONE_BY_ONE}][\p{{M}}\u200c\u200d[\p{{L}}\p{{N}}]--{ONE_BY_ONE}]*|(?=\S)\X"
)

# Names of a span's parts, in any tool; the first that is there counts.
STARTS = ("start", "start_offset", "start_char", "start_idx", "begin")
ENDS = ("end", "end_offset", "end_char", "end_idx")
LABELS = ("label", "labels", "type", "entity_group", "entity_type", "tag", "entity")
UNLABELLED, NOT_ANNOTATED = "a span without a label", "not annotated"

# How offsets may be meant: what to add to the start and to the end, so that text[start:end] is the span.
CONVENTIONS = {
    (0, 0): "",
    (0, 1): "the end of a span is its last character",
    (-1, 0): "characters are counted from 1, and the end of a span is its last character",
    (-1, -1): "characters are counted from 1",
}
AGREE = 0.9  # the share of spans that must begin and end with a word for another convention than the usual one
MOST = 0.5  # the same where the spans' own texts show it; and the share below which the usual one is given up

ACCEPTED, NOT_ACCEPTED = "accept", ("reject", "ignore")  # what Prodigy's column `answer` says


@dataclass(frozen=True)
class Span:
    """A part of a text, text[start:end], with its label, and what it says there if the data tells."""

    start: int
    end: int
    label: str
    text: str | None = None


def spans_in(value: Any) -> list[Span] | None:
    """Read the spans in a cell, in the layout of any tool; None for what is no list of spans.

    Layouts are [start, end, label]; tables with a start, an end and a label (doccano, Prodigy, Label Studio's
    JSON-MIN); Label Studio's annotations; {label: {text: [[start, end]]}} (CLUENER); and points (Dataturks). Raises
    Unusable for a span that lacks a part.
    """
    value = parsed(value)
    if value is None or value == "":
        return []
    if isinstance(value, Mapping):
        return spans_in(value["entities"]) if "entities" in value else _by_label(value)
    if not isinstance(value, list | tuple):
        return None
    if _has_results(value):
        return _of_annotations(value)
    spans_of_value: list[Span] = []
    for entry in value:
        spans = _of_entry(entry)
        if spans is None:
            return None
        spans_of_value += spans
    return spans_of_value


def _of_entry(entry: Any) -> list[Span] | None:
    if isinstance(entry, list | tuple):
        if len(entry) != 3 or not all(map(_is_number, entry[:2])):
            return None
        start, end, label = entry
        return [_span(start, end, label)]
    if not isinstance(entry, Mapping):
        return None
    if isinstance(entry.get("value"), Mapping):  # of a result of Label Studio: also of choices and relations
        return (_of_entry(entry["value"]) or []) if "labels" in entry["value"] else []
    if "type" in entry and "from_id" in entry:
        return []
    label = _first(entry, LABELS)
    if isinstance(entry.get("points"), list):
        return [_span(point.get("start"), point.get("end"), label, point.get("text")) for point in entry["points"]]
    if not any(name in entry for name in STARTS) or not any(name in entry for name in ENDS):
        return None
    return [_span(_first(entry, STARTS), _first(entry, ENDS), label, entry.get("text"))]


def _of_annotations(value: Sequence[Any]) -> list[Span]:
    """Read the spans of Label Studio's `annotations`: of the only one, or of several that say the same."""
    entries = [entry for entry in value if isinstance(entry, Mapping) and not entry.get("was_cancelled")]
    found = [sorted(spans_in(entry.get("result")) or [], key=str) for entry in entries]
    if not found:
        raise Unusable(NOT_ANNOTATED, "there is no annotation")
    if any(spans != found[0] for spans in found):
        raise Unusable("annotations that differ", f"{len(found)} annotations mark different spans", "keep one of them")
    return found[0]


def _by_label(value: Mapping[Any, Any]) -> list[Span] | None:
    all_spans: list[Span] = []
    for label, marked in value.items():
        if marked is None:  # as Parquet fills in a label that the row does not have
            continue
        by_text = marked if isinstance(marked, Mapping) else {None: marked}
        for text, pairs in by_text.items():
            if pairs is None:
                continue
            if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
                return None
            all_spans += [_span(pair[0], pair[1], label, text) for pair in pairs]
    return all_spans


def _span(start: Any, end: Any, label: Any, text: Any = None) -> Span:
    if isinstance(label, list | tuple):
        if len(label) > 1:
            raise Unusable("a span with several labels", f"a span has {len(label)} labels: {_shown(label)}")
        label = label[0] if label else None
    if label is None or not str(label).strip():
        raise Unusable(UNLABELLED, UNLABELLED)
    if not _is_number(start) or not _is_number(end):
        raise Unusable(
            "a span without offsets", f"a span goes from {start!r} to {end!r}, where two numbers are expected"
        )
    return Span(int(start), int(end), str(label).strip(), text if isinstance(text, str) and text.strip() else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1


def _first(entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:5])) + ", ..." * (len(values) > 5)


# ---- a whole column ------------------------------------------------------------------------------------------------


def normalize(rows: Rows, text: str, column: str) -> Rows:
    """Let text[start:end] be the span in every row, as the whole column shows what its offsets mean.

    Rows that Prodigy's annotators did not accept are left out.
    """
    rows = _accepted(rows)
    shift, of_annotators = _look_through(rows, text, column)
    how = f"`{column}`: spans of characters become tags of words" + (f"; {CONVENTIONS[shift]}" if any(shift) else "")
    rows.notes[f"{rows.source}: {how}"] = how
    if not any(shift) and not of_annotators:
        return rows

    def read() -> Iterator[tuple[str, Any]]:
        for place, row in rows.read():
            if of_annotators and not isinstance(row, BadRow) and parsed(value_at(row, column)) == []:
                row = BadRow("there is no annotation", kind=NOT_ANNOTATED)
            elif any(shift):
                row = _shifted(row, column, shift)
            yield place, row

    return replace(rows, read=read, fingerprint=digest(rows.fingerprint, "spans", *shift))


def _has_results(value: Any) -> bool:
    """Tell whether a cell holds annotations of Label Studio, of which a text without any has not been annotated."""
    value = parsed(value)
    return isinstance(value, list) and any(isinstance(entry, Mapping) and "result" in entry for entry in value)


def _shifted(row: Any, column: str, shift: tuple[int, int]) -> Any:
    try:
        spans = None if isinstance(row, BadRow) else spans_in(value_at(row, column))
    except Unusable:  # said when the row is examined
        spans = None
    if spans is None:
        return row
    moved = [replace(span, start=span.start + shift[0], end=span.end + shift[1]) for span in spans]
    return {**row, column: [asdict(span) for span in moved]}


def _look_through(rows: Rows, text: str, column: str) -> tuple[tuple[int, int], bool]:
    """Find what the offsets mean, and whether Label Studio wrote the column.

    Offsets are seen by the spans' own texts; where there are none, by where words begin and end.
    """
    of_annotators = False
    fits: Counter[tuple[int, int]] = Counter()
    count = with_text = 0
    for _, row in rows.read():
        whole = None if isinstance(row, BadRow) else value_at(row, text)
        if not isinstance(whole, str):
            continue
        cell = value_at(row, column)
        of_annotators = of_annotators or _has_results(cell)
        try:
            spans = spans_in(cell)
        except Unusable:
            continue
        if not spans:
            continue
        starts, ends = _borders(whole) if any(span.text is None for span in spans) else (set[int](), set[int]())
        for span in spans:
            count += 1
            with_text += span.text is not None
            for shift in CONVENTIONS:
                start, end = span.start + shift[0], span.end + shift[1]
                if span.text is None:
                    fits[shift] += start in starts and end in ends and start < end
                else:
                    fits[shift] += _says(whole, start, end, span.text)
    best = max(CONVENTIONS, key=fits.__getitem__)  # the first of equals
    needed = MOST if 2 * with_text > count else AGREE
    clear = fits[best] > needed * count and fits[0, 0] < MOST * count
    return best if clear else (0, 0), of_annotators


def _borders(text: str) -> tuple[set[int], set[int]]:
    words = [match.span() for match in WORDS.finditer(text)]
    return {begin for begin, _ in words}, {end for _, end in words}


def _says(text: str, start: int, end: int, said: str) -> bool:
    return 0 <= start < end <= len(text) and text[start:end].strip() == said.strip()


def _accepted(rows: Rows) -> Rows:
    if "answer" not in rows.columns:
        return rows

    def read() -> Iterator[tuple[str, Any]]:
        count, first = 0, ""
        for place, row in rows.read():
            if not isinstance(row, BadRow) and row.get("answer") in NOT_ACCEPTED:
                count, first = count + 1, first or place
            else:
                yield place, row
        if count:
            note = f"{count:,} row{'s' * (count > 1)} left out: `answer` is not `{ACCEPTED}`, such as {first}"
            rows.notes[note] = f"answer: {count}"

    return replace(rows, read=read)


# ---- one row -------------------------------------------------------------------------------------------------------


def tag_words(text: str, cell: Any, tokens: Any = ABSENT) -> tuple[list[str], list[str], str | None]:
    """Cut a text into words and give each a tag in IOB2 by the spans in `cell`; also say what had to be mended, if any.

    Words are `tokens` (Prodigy's, each with its start and end) or those of WORDS, cut in two where a span begins or
    ends. Raises Unusable for spans that overlap, that mark no word, or that do not stand where they say.
    """
    spans = spans_in(cell)
    if spans is None:
        raise Unusable("not a list of spans", f'spans are expected, such as [[0, 4, "PER"]], not {cell!s:.60}')
    mended = None
    placed: dict[tuple[int, int, str], None] = {}
    for span in spans:
        start, end, moved = _located(text, span)
        mended = "a span occurs elsewhere in its text" if moved else mended
        placed[start, end, span.label] = None
    marks = sorted(placed)
    for (_, behind, label), (begin, _, other) in itertools.pairwise(marks):
        if begin < behind:
            raise Unusable(
                "spans that overlap",
                f"the spans {label} and {other} overlap at character {begin}",
                "a tagger gives each word one tag: keep one of the spans",
            )
    words = _tokens(tokens, text) or [match.span() for match in WORDS.finditer(text)]
    borders = sorted({border for start, end, _ in marks for border in (start, end)})
    pieces = _cut(words, borders)
    if len(pieces) > len(words):
        mended = mended or "a word is cut in two where a span begins or ends"
    tags, at = ["O"] * len(pieces), 0
    for start, end, label in marks:
        while at < len(pieces) and pieces[at][0] < start:
            at += 1
        first = at
        while at < len(pieces) and pieces[at][1] <= end:
            tags[at] = f"{'B' if at == first else 'I'}-{label}"
            at += 1
        if at == first:
            raise Unusable("a span that marks no word", f"the span {label} at character {start} marks no word")
    return [text[begin:end] for begin, end in pieces], tags, mended


def _located(text: str, span: Span) -> tuple[int, int, bool]:
    """Return where a span begins and ends, and whether that is elsewhere than it says."""
    start, end, said = span.start, span.end, (span.text or "").strip()
    moved = False
    if said and not _says(text, start, end, said):
        at = text.find(said)
        if at < 0 or text.find(said, at + 1) >= 0:
            raise Unusable(
                "a span is not where its offsets say",
                f'the span "{said:.40}" is not at character {start} of its text'
                + (", nor anywhere else" if at < 0 else ", but occurs more than once elsewhere"),
            )
        start, end, moved = at, at + len(said), True
    if not 0 <= start <= end <= len(text):
        raise Unusable(
            "a span outside its text",
            f"the span {span.label} goes from {start} to {end}, but the text has {len(text)} characters",
        )
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip()), moved


def _tokens(tokens: Any, text: str) -> list[tuple[int, int]] | None:
    """Return where Prodigy's tokens stand; None where they are none, or do not hold the whole text in its order."""
    if not isinstance(tokens, list) or not all(isinstance(token, Mapping) for token in tokens):
        return None
    places = [(token.get("start"), token.get("end")) for token in tokens]
    words, behind = [], 0
    for start, end in places:
        if not isinstance(start, int) or not isinstance(end, int) or not behind <= start <= end <= len(text):
            return None
        if text[behind:start].strip():
            return None
        if text[start:end].strip():
            words.append((start, end))
        behind = end
    return None if text[behind:].strip() else words


def _cut(words: Sequence[tuple[int, int]], borders: Sequence[int]) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    number = 0
    for begin, end in words:
        while number < len(borders) and borders[number] <= begin:
            number += 1
        while number < len(borders) and borders[number] < end:
            pieces.append((begin, borders[number]))
            begin = borders[number]
            number += 1
        pieces.append((begin, end))
    return pieces
