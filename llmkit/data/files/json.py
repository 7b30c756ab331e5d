"""Read rows from JSON: one object a line, a list of objects, or SQuAD's articles."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files.lines import UTF_16_HINT, read_lines, read_text
from llmkit.data.files.options import Note, ReadOptions
from llmkit.errors import UserError


def read_json_lines(file: Path, options: ReadOptions, note: Note) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the object on each line that is not blank."""
    first = ""
    for number, line in read_lines(file, options.encoding):
        if not line.strip():
            continue
        first = first or line.lstrip()[0]
        array = "a list of rows over many lines is read from a file that ends in .json" if first == "[" else ""
        try:
            row = _from_json(line.strip())
        except ValueError as problem:
            reason = str(problem).replace("line 1 column", "column")  # the message has the number of the line
            raise UserError(
                f"`{file}`, line {number}: {reason if isinstance(problem, _UnfitError) else f'not JSON ({reason})'}",
                UTF_16_HINT if "\0" in line else array or "one object a line is expected",
            ) from problem
        if not isinstance(row, dict):
            raise UserError(
                f"`{file}`, line {number}: an object is expected, this is a {type(row).__name__}",
                array or 'write a row as an object with its columns: {"text": "..."}',
            )
        yield f"line {number}", row


class _UnfitError(ValueError):
    """Raised for text that is JSON, but cannot be meant as a row."""


def _from_json(text: str) -> Any:
    """Parse JSON; raise ValueError also where an object has a key twice or the nesting is too deep."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise _UnfitError("lists or objects inside one another, too many to read") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; refuse a key that occurs twice, of which Python keeps the last value in silence."""
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _UnfitError(f"the key `{twice}` stands in one object twice")
    return members


def read_json(file: Path, options: ReadOptions, note: Note) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a list, of an object whose `data` is one or holds SQuAD's articles, or of JSON lines."""
    filled = (line.strip() for _, line in read_lines(file, options.encoding) if line.strip())
    first, second = next(filled, ""), next(filled, "")
    filled.close()
    if not first:
        return
    if second and first.startswith("{") and _is_json(first):
        yield from read_json_lines(file, options, note)
        return
    try:
        content = _from_json(read_text(file, options.encoding))
    except _UnfitError as problem:
        raise UserError(f"`{file}`: {problem}", "mend it, or write one object a line") from problem
    except ValueError as problem:
        # JSON lines with a broken first line. Where one object fills many lines, another can open on the second line
        # only after a bracket.
        if first.startswith("{") and second.startswith("{") and not first.endswith("["):
            yield from read_json_lines(file, options, note)
            return
        raise UserError(f"`{file}`: not JSON ({problem})", "mend it there, or write one object a line") from problem
    items = content.get("data") if isinstance(content, dict) else content
    if isinstance(content, dict) and not isinstance(items, list) and not second:
        yield from read_json_lines(file, options, note)  # there is one line
        return
    rows = items if isinstance(items, list) else []
    odd = [number for number, item in enumerate(rows, 1) if not isinstance(item, dict)]
    if 0 < len(odd) < len(rows):
        kind = type(rows[odd[0] - 1]).__name__
        raise UserError(
            f"`{file}`, item {odd[0]}: an object is expected, this is a {kind}",
            'write a row as an object with its columns: {"text": "..."}',
        )
    if not isinstance(items, list) or odd:
        raise UserError(
            f"`{file}`: a list of objects is expected, or one object a line",
            'such as [{"text": "..."}, ...], the same as {"data": [...]}, or SQuAD\'s format',
        )
    if isinstance(content, dict) and any("paragraphs" in item for item in items):
        yield from _squad(items, file)
    else:
        yield from ((f"item {index + 1}", row) for index, row in enumerate(items))


def _is_json(line: str) -> bool:
    try:
        _from_json(line)
    except _UnfitError:
        return True
    except ValueError:
        return False
    return True


def _squad(articles: list[dict[str, Any]], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one row a question, with the columns that SQuAD has on the Hub; without `answers` its row has none either.

    The format is that of https://rajpurkar.github.io/SQuAD-explorer/ in its versions 1.1 and 2.0.
    """

    def member(value: Any, key: str, kind: type, expected: str, place: str) -> Any:
        if not isinstance(value, dict) or type(value.get(key)) is not kind:
            mistake = f"not {expected}" if isinstance(value, dict) and key in value else "missing"
            raise UserError(
                f"`{file}`, {place}: `{key}` is {mistake}",
                "SQuAD's format is data > paragraphs > context, qas > id, question, answers > text, answer_start",
            )
        return value[key]

    number = 0
    for article_number, article in enumerate(articles, 1):
        place = f"article {article_number}"
        for paragraph_number, paragraph in enumerate(member(article, "paragraphs", list, "a list", place), 1):
            place = f"article {article_number}, paragraph {paragraph_number}"
            context = member(paragraph, "context", str, "text", place)
            for entry in member(paragraph, "qas", list, "a list", place):
                number += 1
                name = str((isinstance(entry, dict) and entry.get("id")) or number)
                here = f"{place}, question {name}"
                question = member(entry, "question", str, "text", here)
                row = {"id": name, "title": article.get("title", ""), "context": context, "question": question}
                if "answers" in entry or entry.get("is_impossible"):
                    answers = [] if entry.get("is_impossible") else member(entry, "answers", list, "a list", here)
                    row["answers"] = {
                        "text": [member(answer, "text", str, "text", here) for answer in answers],
                        "answer_start": [
                            member(answer, "answer_start", int, "a whole number", here) for answer in answers
                        ],
                    }
                yield f"question {name}", row
