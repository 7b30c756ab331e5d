"""Read rows from lines that begin with their labels, as fastText has them: `__label__happy A fine day`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files.by_lines import LABEL
from llmkit.data.files.lines import read_lines
from llmkit.data.files.options import BadRow, Note, ReadOptions


def read_labelled_lines(file: Path, options: ReadOptions, note: Note) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Yield a row a line, `label` and `text`: a list of labels where a line of the file has several or none.

    A label is a word that begins with `__label__`, wherever it stands in its line.
    """
    several = any(
        len(_labels(line)) != 1
        for _, line in read_lines(file, options.encoding, options.max_document_bytes)
        if line.strip()
    )
    for number, line in read_lines(file, options.encoding, options.max_document_bytes):
        if line.strip():
            labels = _labels(line)
            text = " ".join(word for word in line.split() if not word.startswith(LABEL)) if labels else line.strip()
            yield f"line {number}", {"label": labels if several else labels[0], "text": text}


def _labels(line: str) -> list[str]:
    return [word.removeprefix(LABEL) for word in line.split() if word.startswith(LABEL)]
