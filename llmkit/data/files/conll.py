"""Read rows from CoNLL files: one word a line with its tags, blank lines between sentences."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files.lines import read_lines
from llmkit.data.files.options import Note, ReadOptions
from llmkit.errors import UserError

_NO_WORD = ("#", "-DOCSTART-")  # a line that begins so does not show how many columns there are


def read_conll(file: Path, options: ReadOptions, note: Note) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one row a sentence: `tokens` from the first column, `tags` from the last, `column_2` and on between them.

    Each line holds one word. Tabs separate its columns if the first word has any, else blanks. A blank line or
    `-DOCSTART-` ends a sentence. At its head, a line that begins with `#` is a comment unless it has all the columns.
    """
    first_word = next(
        (line for _, line in read_lines(file, options.encoding) if line.strip() and not line.startswith(_NO_WORD)), ""
    )
    tabs = "\t" in first_word

    def split(line: str) -> list[str]:
        """Split a line at tabs or blanks alone: a word may hold another space, one that does not break."""
        line = line.rstrip("\r\n")
        return line.split("\t") if tabs else [field for field in line.split(" ") if field]

    width = len(split(first_word))
    names = ["tokens", *(f"column_{number}" for number in range(2, width)), "tags"][:width]
    sentence: list[list[str]] = []  # the fields of each word
    first_line = 0
    for number, line in itertools.chain(read_lines(file, options.encoding), [(0, "")]):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence:
                yield f"line {first_line}", dict(zip(names, map(list, zip(*sentence, strict=True)), strict=True))
            sentence = []
            continue
        fields = split(line)
        # "# sent_id = 1" may have as many columns as a word.
        if line.startswith("#") and not sentence and (len(fields) != width or fields[2:3] == ["="]):
            continue
        if len(fields) != width:
            raise UserError(
                f"`{file}`, line {number}: {len(fields)} columns where the first word has {width}",
                f"one word a line; columns are set apart by {'tabs' if tabs else 'blanks'}, as those of the first word",
            )
        first_line = first_line if sentence else number
        sentence.append(fields)
