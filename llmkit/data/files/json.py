"""Read rows from JSON: one object a line, or one value that is a table (see layouts.py)."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files import layouts, questions
from llmkit.data.files.archives import suffix
from llmkit.data.files.lines import UTF_16_HINT, read_lines, read_text
from llmkit.data.files.options import BadRow, Note, ReadOptions
from llmkit.errors import UserError

_OBJECT = re.compile(r"[\s,]*\{")  # the begin of one, and what may stand before it
HELD = 100  # lines that cannot be read at the beginning of a file, after which it is not one of JSON lines

Row = tuple[str, dict[str, Any] | BadRow]


def read_json_lines(file: Path, options: ReadOptions, note: Note) -> Iterator[Row]:
    """Yield the object on each line that is not blank; raise UserError where no line can be read.

    A list over many lines, or objects over many lines one after another, are read as what they are.
    """
    whole = _content_of_many_lines(file, options)
    if whole is None:
        yield from _read_by_line(file, options)
    else:
        yield from layouts.rows_of(whole, file, options.member, note) or ()


def _content_of_many_lines(file: Path, options: ReadOptions) -> Any:
    """Parse a file whose first line is no row, but the begin of one or of a list; None where that is not so."""
    first, second = _begin(file, options)
    closed = bool(second) and _is_json(first)
    listed, spread = first.startswith("["), first.startswith("{") and bool(second) and not second.startswith("{")
    if closed or not (listed or spread):
        return None
    try:
        return _content(file, options)[0]
    except UserError:
        if listed:
            raise
        return None


def _read_by_line(file: Path, options: ReadOptions) -> Iterator[Row]:
    """Yield the object on each line; of lines that hold an article or a paragraph, one row a question."""
    rows = _lines(file, options)
    first = list(itertools.islice(rows, 2))  # MRQA's files begin with a line on the file
    rows = itertools.chain(first, rows)
    if not any(questions.is_nested(row) for _, row in first):
        yield from rows
        return
    number = 0
    for place, row in rows:
        for question in questions.nested(row, place, number) if isinstance(row, dict) else [(place, row)]:
            number += not isinstance(question[1], BadRow)
            yield question


def _lines(file: Path, options: ReadOptions) -> Iterator[Row]:
    held: list[Row] | None = []  # bad lines before the first good one
    for number, line in read_lines(file, options.encoding, options.max_document_bytes):
        if not (text := line.strip()):
            continue
        row = _object(text)
        if held is None:
            yield f"line {number}", row
            continue
        held.append((f"line {number}", row))
        if not isinstance(row, BadRow):
            yield from held
            held = None
        elif len(held) == HELD:
            break
    if held and isinstance(bad := held[0][1], BadRow):
        raise UserError(f"`{file}`, {held[0][0]}: {bad.message}", bad.hint)


def _object(text: str) -> dict[str, Any] | BadRow:
    """Parse a line; a comma may stand behind the object."""
    try:
        row = _from_json(text.removesuffix(","))
    except _UnfitError as problem:
        return BadRow(str(problem), "one object per line is expected", problem.kind)
    except ValueError as problem:
        reason = str(problem).replace("line 1 column", "column")  # the message has the number of the line
        hint = UTF_16_HINT if "\0" in text else "one object per line is expected"
        return BadRow(f"not JSON ({reason})", hint, "not JSON")
    if isinstance(row, dict):
        return row
    return BadRow(
        f"expected an object, found {type(row).__name__}",
        'write a row as an object with its columns: {"text": "..."}',
        "not an object",
    )


class _UnfitError(ValueError):
    """Raised for text that is JSON, but cannot be meant as a row; `kind` says why in a few words."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def _from_json(text: str) -> Any:
    """Parse JSON; raise ValueError also where an object has a key twice or the nesting is too deep."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise _UnfitError("lists or objects are nested too deeply to read", "nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; refuse a key that occurs twice, of which Python keeps the last value in silence."""
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _UnfitError(f"the key `{twice}` occurs twice in one object", "a repeated key in one object")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)  # `json.loads` would make one for each line


def read_json(file: Path, options: ReadOptions, note: Note) -> Iterator[Row]:
    """Yield the rows of a value that is a table, or of JSON lines; of several splits, `options.member` or `train`."""
    content, one_line = _content(file, options)
    if content is _LINES:
        yield from _read_by_line(file, options)
        return
    if content is None:
        return
    rows = layouts.rows_of(content, file, options.member, note, one_line)
    if rows is None:  # one object on one line: a row
        yield from _read_by_line(file, options)
    else:
        yield from rows


def json_splits(file: Path, options: ReadOptions = ReadOptions()) -> tuple[str, ...]:  # noqa: B008 - it is frozen
    """Return the splits that a JSON file holds as members, such as `train` and `test`; of another file, none.

    `ReadOptions.member` chooses the one to read.
    """
    if suffix(file) != ".json" and options.format != "json":
        return ()
    content, _ = _content(file, options)
    return tuple(layouts.splits(content))


_LINES = object()  # stands for the content of a file of JSON lines


def _content(file: Path, options: ReadOptions) -> tuple[Any, bool]:
    """Parse a file, and tell whether it fills one line; None stands for an empty one."""
    first, second = _begin(file, options)
    if not first:
        return None, True
    if second and first.startswith("{") and _is_json(first):
        return _LINES, False
    text = read_text(file, options.encoding, options.max_document_bytes)
    try:
        return _from_json(text), not second
    except _UnfitError as problem:
        raise UserError(f"`{file}`: {problem}", "fix it, or write one object per line") from problem
    except ValueError as problem:
        if (objects := _objects(text)) is not None:
            return objects, False
        # JSON lines with a broken first line. Where one object fills many lines, another can open on the second line
        # only after a bracket.
        if first.startswith("{") and second.startswith("{") and not first.endswith("["):
            return _LINES, False
        raise UserError(f"`{file}`: not JSON ({problem})", "fix it there, or write one object per line") from problem


def _begin(file: Path, options: ReadOptions) -> tuple[str, str]:
    """Return the first two lines that are not blank, or "" for none."""
    lines = read_lines(file, options.encoding, options.max_document_bytes)
    filled = (line.strip() for _, line in lines if line.strip())
    first, second = next(filled, ""), next(filled, "")
    filled.close()
    return first, second


def _objects(text: str) -> list[Any] | None:
    """Parse objects one after another, with nothing but blanks and commas between them; None for any other text."""
    objects, position = list[Any](), 0
    try:
        while found := _OBJECT.match(text, position):
            value, position = _DECODER.raw_decode(text, found.end() - 1)
            objects.append(value)
    except (ValueError, RecursionError):
        return None
    return None if text[position:].strip(" \t\r\n,") else objects


def _is_json(line: str) -> bool:
    try:
        _from_json(line.removesuffix(","))
    except _UnfitError:
        return True
    except ValueError:
        return False
    return True
