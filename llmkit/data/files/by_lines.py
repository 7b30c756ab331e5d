"""Tell by its lines how to read a file whose name does not say that it holds rows: a table, tags, JSON or labels."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePath

from llmkit.data.files.archives import is_compressed
from llmkit.data.files.conll import looks_like_conll
from llmkit.data.files.header import looks_like_data
from llmkit.data.files.lines import read_lines
from llmkit.data.files.names import is_about, split_name
from llmkit.errors import UserError

LOOKED_AT = 1000  # lines
FEWEST = 10  # of them that show something
SHARE = 0.95  # of the lines that have as many fields as most of them
MOST_LABELS = 50
LABEL = "__label__"  # as fastText marks the labels of a line
_DELIMITERS = ";|@"  # beside tabs: of two fields, one of which is a label
_WORD = re.compile(r"[\w:.-]+")


def settings_by_lines(file: Path, encoding: str) -> tuple[str, ...]:
    """Return the settings of [data] that read a file as what its lines show; () where they show running text."""
    lines = _first(file, encoding)
    if len(lines) < FEWEST:
        return ()
    if all(line.startswith("{") and line.endswith("}") for line in lines):
        return ("data.format=jsonl",)
    if looks_like_conll(file, encoding):
        return ("data.format=conll",)
    if sum(line.startswith(LABEL) for line in lines) >= SHARE * len(lines):
        return ("data.format=fasttext",)
    if (tabs := Counter(line.count("\t") for line in lines).most_common(1)[0]) and tabs[0]:
        rows = [line.split("\t") for line in lines if line.count("\t") == tabs[0]]
        if len(rows) >= SHARE * len(lines):
            return ("data.format=tsv", *_header(rows))
    for delimiter in _DELIMITERS:
        rows = [line.split(delimiter) for line in lines]
        if all(len(row) == 2 for row in rows) and any(map(_are_labels, zip(*rows, strict=True))):
            return ("data.format=csv", f"data.delimiter={delimiter}", *_header(rows))
    return ()


def advice_by_lines(file: Path, encoding: str) -> str:
    """Say what the lines of a file look like and how to read it, as the end of a hint; "" where they show nothing."""
    try:
        if settings := settings_by_lines(file, encoding):
            return f"by its lines: {' '.join(settings)}"
        lines = _first(file, encoding)
    except (UserError, OSError):
        return ""
    first = [line.split(maxsplit=1) for line in lines]
    if len(lines) >= FEWEST and all(len(each) == 2 for each in first) and _are_labels([label for label, _ in first]):
        return (
            f"if the first word of each line (`{first[0][0]}`) is its label, put a tab after it: "
            f"sed 's/ /\\t/' {file.name} > {file.name}.tsv, and set data.header=false"
        )
    return ""


def beside(files: Sequence[Path], encoding: str) -> tuple[Path, ...]:
    """Find files whose lines belong together, the first of one to the first of the other; () where there are none.

    They are two of one split (or folder) with as many lines, whose names differ in one part: `train.de`, `train.en`.
    """
    by_split: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        if not is_about(file.name) and not is_compressed(file):
            split = (split_name(PurePath(file.name)) or ("",))[0]
            by_split.setdefault((file.parent, split), []).append(file)
    for group in sorted(by_split.values(), key=lambda group: "train" not in str(group[0])):
        if len(group) == 2:
            try:
                counts = {sum(1 for _ in read_lines(file, encoding)) for file in group}
            except (UserError, OSError):
                continue
            if len(counts) == 1 and counts.pop() >= FEWEST:
                return tuple(group)
    return ()


def advice_beside(files: Sequence[Path]) -> str:
    """Say how to make one table of files whose lines belong together."""
    parts = [re.split(r"[-_.]", file.name) for file in files]
    names = [next((part for part in each if part not in other), "a") for each, other in (parts, parts[::-1])]
    listed = " and ".join(f"`{file.name}`" for file in files)
    joined = " ".join(file.name for file in files)
    table = f"{(split_name(PurePath(files[0].name)) or ('train',))[0]}.tsv"
    return (
        f"{listed} have the same number of lines: if they belong together line by line, join them into a table: "
        f'paste {joined} > {table}, and set data.header=false data.column_names=\'["{names[0]}", "{names[1]}"]\''
    )


def _first(file: Path, encoding: str) -> list[str]:
    found = (line.rstrip("\r\n") for _, line in read_lines(file, encoding))
    return list(islice((line for line in found if line.strip()), LOOKED_AT))


def _header(rows: Sequence[list[str]]) -> tuple[str, ...]:
    return ("data.header=false",) if looks_like_data([field.strip() for field in rows[0]], rows[1:]) else ()


def _are_labels(fields: Sequence[str]) -> bool:
    """Tell whether there are few different ones, each a word that comes back."""
    counts = Counter(fields)
    few = 2 <= len(counts) <= MOST_LABELS and 4 * len(counts) <= len(fields)
    return few and all(_WORD.fullmatch(field.strip()) for field in counts)
