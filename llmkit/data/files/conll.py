"""Read rows from CoNLL files: one word a line with its tags, blank lines between sentences."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files.fields import Tally
from llmkit.data.files.lines import read_lines
from llmkit.data.files.options import BadRow, Note, ReadOptions

_NO_WORD = ("#", "-DOCSTART-")  # a line that begins so does not show how many columns there are
COUNTED_WORDS = 50  # of them that show whether the first column counts
SNIFFED_LINES = 1000
SNIFFED_SHARE = 0.95  # of the words among them that have the same number of columns


def read_conll(file: Path, options: ReadOptions, note: Note) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Yield one row a sentence: `tokens` from the first column, `tags` from the last, `column_2` and on between them.

    Each line holds one word. Tabs separate its columns if the first word has any, else blanks. A blank line or
    `-DOCSTART-` ends a sentence. At its head, a line that begins with `#` is a comment unless it has all the columns.
    A sentence with a line of another number of columns is a BadRow. Where the first column counts the words, it is
    `number`, and the second is `tokens`.
    """
    words = (
        line
        for _, line in read_lines(file, options.encoding, options.max_document_bytes)
        if line.strip() and not line.startswith(_NO_WORD)
    )
    first_words = list(itertools.islice(words, COUNTED_WORDS)) or [""]
    tabs = "\t" in first_words[0]
    width = len(_fields(first_words[0], tabs))
    names = ["tokens", *(f"column_{number}" for number in range(2, width)), "tags"][:width]
    if width > 2 and _count([_fields(line, tabs)[0] for line in first_words]):
        names[:2] = ["number", "tokens"]
        note(f"`{file}`: the first column counts the words, and the second is taken for them")
    sentence: list[list[str]] = []  # the fields of each word
    bad: tuple[str, BadRow] | None = None
    first_line = 0
    unread = Tally()
    for number, line in itertools.chain(read_lines(file, options.encoding, options.max_document_bytes), [(0, "")]):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if line.strip():
                unread.add("of -DOCSTART-", f"line {number}")
            if bad:
                yield bad
            elif sentence:
                yield f"line {first_line}", dict(zip(names, map(list, zip(*sentence, strict=True)), strict=True))
            sentence, bad = [], None
            continue
        fields = _fields(line, tabs)
        # "# sent_id = 1" may have as many columns as a word.
        if line.startswith("#") and not sentence and (len(fields) != width or fields[2:3] == ["="]):
            unread.add("of comments", f"line {number}")
            continue
        if len(fields) != width and not bad:
            bad = (
                f"line {number}",
                BadRow(
                    f"{len(fields)} columns, but the first word has {width}",
                    "write one word per line, with its columns separated by "
                    f"{'tabs' if tabs else 'spaces'}, as for the first word",
                    "a line with more or fewer columns",
                ),
            )
        first_line = first_line if sentence else number
        sentence.append(fields)
    for kind, count in unread.counts.items():
        note(f"`{file}`: not read: {count:,} line{'s' * (count > 1)} {kind}, such as {unread.first[kind]}")


def _fields(line: str, tabs: bool) -> list[str]:
    """Split a line at tabs or blanks alone: a word may hold another space, one that does not break."""
    line = line.rstrip("\r\n")
    return line.split("\t") if tabs else [field for field in line.split(" ") if field]


def _count(column: list[str]) -> bool:
    """Tell whether a column counts the words of each sentence from 1."""
    if not {"1", "2"} <= set(column) or not all(number.isdecimal() for number in column):
        return False
    return column[0] == "1" and all(
        number in ("1", str(int(before) + 1)) for before, number in itertools.pairwise(column)
    )


def looks_like_conll(file: Path, encoding: str) -> bool:
    """Tell by the first lines whether each holds a word and its tags, with blank lines between sentences."""
    lines = [line for _, line in itertools.islice(read_lines(file, encoding), SNIFFED_LINES)]
    while lines and not lines[-1].strip():  # a blank line at the end stands between nothing
        lines.pop()
    words = [line for line in lines if line.strip() and not line.startswith(_NO_WORD)]
    if not words or words[0].startswith(("{", "[")) or all(line.strip() for line in lines):
        return False
    tabs = "\t" in words[0]
    ((width, count),) = Counter(len(_fields(line, tabs)) for line in words).most_common(1)
    return width > 1 and count >= SNIFFED_SHARE * len(words)
