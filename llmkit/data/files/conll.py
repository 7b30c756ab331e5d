"""Rows of CoNLL: one word a line with its tags, sentences set apart by blank lines."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files.lines import read_lines
from llmkit.errors import UserError

_NO_WORD = ("#", "-DOCSTART-")  # a line of a CoNLL file that begins so tells nothing of its columns


def read_conll(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one row a sentence: `tokens` from the first column, `tags` from the last, `column_2` and on between them.

    One word a line, its columns set apart by tabs if the first word has any, else by blanks; sentences end at blank
    lines and at `-DOCSTART-`. A line that heads a sentence with a `#` is a comment unless it has all the columns.
    """
    begin = next((line for _, line in read_lines(file, encoding) if line.strip() and not line.startswith(_NO_WORD)), "")
    tabs = "\t" in begin

    def cut(line: str) -> list[str]:
        """No other space sets columns apart: a word may hold one that does not break."""
        line = line.rstrip("\r\n")
        return line.split("\t") if tabs else [field for field in line.split(" ") if field]

    width = len(cut(begin))
    names = ["tokens", *(f"column_{number}" for number in range(2, width)), "tags"][:width]
    words: list[list[str]] = []
    begins = 0
    for number, line in itertools.chain(read_lines(file, encoding), [(0, "")]):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                yield f"line {begins}", dict(zip(names, map(list, zip(*words, strict=True)), strict=True))
            words = []
            continue
        fields = cut(line)
        # "# sent_id = 1" may have as many columns as a word.
        if line.startswith("#") and not words and (len(fields) != width or fields[2:3] == ["="]):
            continue
        if len(fields) != width:
            raise UserError(
                f"`{file}`, line {number}: {len(fields)} columns where the first word has {width}",
                f"one word a line; columns are set apart by {'tabs' if tabs else 'blanks'}, as those of the first word",
            )
        begins = begins if words else number
        words.append(fields)
