"""Find the rows in a JSON value: a list of objects, pandas' orientations, columns, splits, and nested questions."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from llmkit.data.files import questions
from llmkit.data.files.names import split_name
from llmkit.data.files.options import BadRow, Note
from llmkit.errors import UserError

Row = tuple[str, dict[str, Any] | BadRow]

# Members that hold the rows wherever they stand. Another is taken for them only in an object over many lines: on one
# line it may be a list in the only row of JSON lines.
WRAPPERS = ("data", "rows", "examples", "records", "items", "instances", "samples", "results", "dataset", "questions")
TURNS = ({"role"}, {"from"})  # a list of objects with these keys is a conversation, and its object a row
KEYED = 10  # this many rows at least, with names that are no numbers, show columns by row


def rows_of(content: Any, file: Path, member: str | None, note: Note, one_line: bool = False) -> Iterator[Row] | None:
    """Yield the rows of a JSON value; return None for an object on one line which is a row itself.

    Of an object whose members are splits, read `member`, or without it `train`. `note` is told what was found where
    it is no list of objects. Raises UserError where there are no rows to be found.
    """
    by_split = splits(content)
    if by_split:
        chosen = member or ("train" if "train" in by_split else next(iter(by_split)) if len(by_split) == 1 else "")
        if chosen not in by_split:
            raise UserError(
                f"`{file}` holds {', '.join(f'`{name}`' for name in by_split)}, but no `{chosen or 'train'}`",
                "choose one with data.split and data.validation_split",
            )
        if not member:
            others = [name for name in by_split if name != chosen]
            note(
                f"`{file}`: read as the split `{chosen}`"
                + (f"; not read: {', '.join(f'`{name}`' for name in others)}" if others else "")
            )
        return rows_of(by_split[chosen], file, None, note)
    if isinstance(content, list):
        return _list(content, file)
    if isinstance(content, dict):
        return _object(content, file, note, one_line)
    raise _no_table(file)


def splits(content: Any) -> dict[str, Any]:
    """Find the members of a JSON value that are splits, `train` and the like, each of them a table."""
    if not isinstance(content, dict):
        return {}
    named = {
        name: value
        for name, value in content.items()
        if _is_rows(value) or (isinstance(value, dict) and (_is_columns(value) or _is_rows(value.get("data"))))
    }
    found: dict[str, Any] = {}
    for name, value in named.items():
        if (split := split_name(PurePath(name))) is None or split[0] in found:
            return {}
        found[split[0]] = value
    return found


def _list(items: list[Any], file: Path) -> Iterator[Row]:
    if questions.is_c3(items):
        return questions.c3(items)
    odd = [number for number, item in enumerate(items, 1) if not isinstance(item, dict)]
    if 0 < len(odd) < len(items):
        return _mixed(items)
    if odd:
        if all(isinstance(item, list) for item in items):
            raise UserError(
                f"`{file}`: a list of lists has no column names",
                "write a list of objects, as pandas does with to_json(orient='records')",
            )
        raise _no_table(file)
    if items and _is_rows(items[0].get("paragraphs")) and "qas" in items[0]["paragraphs"][0]:
        return questions.squad(items, file)
    if items and isinstance(items[0].get("qas"), list):
        return questions.paragraphs(items)
    if items and questions.is_race(items[0]):
        return (row for index, item in enumerate(items, 1) for row in questions.race(item, f"item {index}"))
    return ((f"item {index}", row) for index, row in enumerate(items, 1))


def _mixed(items: list[Any]) -> Iterator[Row]:
    for index, item in enumerate(items, 1):
        yield (
            f"item {index}",
            item
            if isinstance(item, dict)
            else BadRow(
                f"expected an object, found {type(item).__name__}",
                'write a row as an object with its columns: {"text": "..."}',
                "not an object",
            ),
        )


def _object(content: dict[str, Any], file: Path, note: Note, one_line: bool) -> Iterator[Row] | None:
    data = content.get("data")
    if isinstance(data, list) and any(isinstance(item, dict) and "paragraphs" in item for item in data):
        _name_others(content, ["data"], file, note)
        return questions.squad(data, file)
    if questions.is_nested(content):
        return questions.nested(content, "item 1", 0)
    if questions.is_race(content):
        return questions.race(content, "")
    names = content.get("columns")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        note(f"`{file}`: rows of `data` with the names in `columns`")
        _name_others(content, ["columns", "data", "index"], file, note)
        return _split(names, data)
    if isinstance(content.get("schema"), dict) and _is_rows(data):
        return _list(*_without_index(content, file, note))
    if isinstance(data, list) and not (_is_columns(content) and len(content) > 1):
        _name_others(content, ["data"], file, note)
        return _list(data, file)
    if _is_columns(content):
        note(f"`{file}`: an object of lists of one length: each is a column ({', '.join(content)})")
        return _columns(content)
    if keyed := _keyed(content):
        note(f"`{file}`: {keyed[0]}")
        return keyed[1]
    return _wrapped(content, file, note, one_line)


def _wrapped(content: dict[str, Any], file: Path, note: Note, one_line: bool) -> Iterator[Row] | None:
    """Yield the rows in the only member that is a list of objects."""
    lists = [name for name, value in content.items() if _is_rows(value) and not _is_conversation(value)]
    known = [name for name in lists if name in WRAPPERS]
    chosen = known or ([] if one_line else lists)
    if len(chosen) == 1:
        others = ", ".join(f"`{name}`" for name in content if name != chosen[0])
        note(f"`{file}`: the rows are those in `{chosen[0]}`" + (f"; not read: {others}" if others else ""))
        return _list(content[chosen[0]], file)
    if one_line:
        return None
    if len(lists) > 1:
        raise UserError(
            f"`{file}`: which list holds the rows, {' or '.join(f'`{name}`' for name in lists)}?",
            "write the rows to a separate file, one object per line",
        )
    raise _no_table(file)


def _name_others(content: Mapping[str, Any], read: Sequence[str], file: Path, note: Note) -> None:
    if others := ", ".join(f"`{name}`" for name in content if name not in read):
        note(f"`{file}`: not read: {others}")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _is_conversation(items: list[dict[str, Any]]) -> bool:
    return any(all(keys <= set(item) for item in items) for keys in TURNS)


def _is_columns(content: Mapping[str, Any]) -> bool:
    """Tell whether all members are lists of one length, and not one list of objects alone."""
    values = list(content.values())
    if not values or not all(isinstance(value, list) for value in values):
        return False
    return len(set(map(len, values))) == 1 and bool(values[0]) and not all(map(_is_rows, values))


def _columns(content: Mapping[str, list[Any]]) -> Iterator[Row]:
    for number, values in enumerate(zip(*content.values(), strict=True), 1):
        yield f"row {number}", dict(zip(content, values, strict=True))


def _split(names: list[Any], data: list[list[Any]]) -> Iterator[Row]:
    columns = list(map(str, names))
    for number, values in enumerate(data, 1):
        if len(values) == len(columns):
            yield f"row {number}", dict(zip(columns, values, strict=True))
        else:
            message = f"{len(values)} values, but `columns` has {len(columns)}"
            yield (
                f"row {number}",
                BadRow(message, "give each row a value for each column", "too few or too many values"),
            )


def _without_index(content: dict[str, Any], file: Path, note: Note) -> tuple[list[dict[str, Any]], Path]:
    """Take pandas' index, which `orient="table"` writes as a column, out of the rows."""
    keys = content["schema"].get("primaryKey")
    if keys != ["index"]:
        return content["data"], file
    note(f"`{file}`: `index`, which numbers the rows, is not read")
    return [{name: value for name, value in row.items() if name != "index"} for row in content["data"]], file


def _keyed(content: dict[str, Any]) -> tuple[str, Iterator[Row]] | None:
    """Read {column: {row: value}}, or {row: {column: value}}; the names of rows are numbers or, of the two, more."""
    members = list(content.values())
    if not members or not all(isinstance(member, dict) and member for member in members):
        return None
    inner = list(members[0])
    alike = all(member.keys() == members[0].keys() for member in members)
    if alike and (_numbers(inner) or (not _numbers(content) and len(inner) >= max(KEYED, len(content)))):
        return (
            f"an object of columns, each with a value by row ({', '.join(content)})",
            (
                (f"row {number}", {name: member[key] for name, member in content.items()})
                for number, key in enumerate(inner, 1)
            ),
        )
    if _numbers(content):
        return "an object of rows by number", ((f"row {key}", row) for key, row in content.items())
    if len(content) >= max(KEYED, len(inner)):
        return (
            "an object of rows by name, which is the column `id` where a row has none",
            ((f"row {key}", {"id": key, **row}) for key, row in content.items()),
        )
    return None


def _numbers(names: Any) -> bool:
    return all(name.lstrip("-").isdecimal() for name in names)


def _no_table(file: Path) -> UserError:
    return UserError(
        f"`{file}`: expected a list of objects, or one object per line",
        'such as [{"text": "..."}, ...], the same list in {"data": [...]}, or SQuAD\'s format',
    )
