"""Read TOML within bounds, find the line of a key in it, and write it; `tomllib` does none of these."""

import json
import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

Key = tuple[str, ...]  # the path of a value: table, key, key of a table inside

DEEPEST = 40  # tables and arrays inside of each other
_WHOLE = range(-(2**63), 2**63)  # what TOML's own integers can be

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}#\n]*")


def parse(text: str) -> dict[str, Any]:
    """Read TOML; raise TOMLDecodeError too for what is nested too deeply, and for integers of more than 64 bits."""
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError(f"arrays or tables are nested more than {DEEPEST} deep") from None
    except ValueError as problem:
        if isinstance(problem, tomllib.TOMLDecodeError):
            raise
        raise tomllib.TOMLDecodeError("an integer has more than 64 bits") from None  # Python reads 4300 digits at most
    level: list[Any] = [values]
    for _ in range(DEEPEST):
        level = [each for one in level for each in (one.values() if isinstance(one, dict) else one)]
        if any(isinstance(each, int) and each not in _WHOLE for each in level):
            raise tomllib.TOMLDecodeError("an integer has more than 64 bits")
        level = [each for each in level if isinstance(each, dict | list)]
    if level:
        raise tomllib.TOMLDecodeError(f"arrays or tables are nested more than {DEEPEST} deep")
    return values


def key_lines(text: str) -> dict[Key, int]:
    """Find the line, from 1, on which each table and key first occurs. `text` must be TOML that `tomllib` accepts."""
    lines: dict[Key, int] = {}
    table: Key = ()
    at = _skip(text, 0)
    while at < len(text):
        if text[at] == "[":
            start, at = at, at + (2 if text.startswith("[[", at) else 1)
            table, at = _read_key(text, at)
            _record(lines, table, 0, text, start)
            at = text.index("]", at) + (2 if text.startswith("[[", start) else 1)
        else:
            at = _read_pair(text, at, table, lines)
        at = _skip(text, at)
    return lines


def _skip(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


@lru_cache(maxsize=1)
def _ends(text: str) -> list[int]:
    return [match.start() for match in re.finditer("\n", text)]


def _record(lines: dict[Key, int], path: Key, known: int, text: str, at: int) -> None:
    line = bisect_left(_ends(text), at) + 1
    for length in range(known + 1, len(path) + 1):
        lines.setdefault(path[:length], line)


def _read_key(text: str, at: int) -> tuple[Key, int]:
    """Read a dotted key; return it and the position behind it."""
    parts: list[str] = []
    while True:
        at = _skip(text, at)
        quoted = _STRING.match(text, at)
        bare = quoted or _BARE.match(text, at)
        if bare is None:
            raise ValueError(f"no key at position {at}")
        parts.append(next(iter(tomllib.loads(f"{bare.group()} = 0"))) if quoted else bare.group())
        at = _skip(text, bare.end())
        if not text.startswith(".", at):
            return tuple(parts), at
        at += 1


def _read_pair(text: str, at: int, table: Key, lines: dict[Key, int]) -> int:
    key, behind = _read_key(text, at)
    _record(lines, table + key, len(table), text, at)
    return _read_value(text, text.index("=", behind) + 1, table + key, lines)


def _read_value(text: str, at: int, path: Key, lines: dict[Key, int]) -> int:
    at = _skip(text, at)
    if text[at] == "[":
        at = _skip(text, at + 1)
        while text[at] != "]":
            at = _skip(text, _read_value(text, at, path, {}))  # the keys of a table inside an array have no dotted path
            at = _skip(text, at + 1) if text[at] == "," else at
        return at + 1
    if text[at] == "{":
        at = _skip(text, at + 1)
        while text[at] != "}":
            at = _skip(text, _read_pair(text, at, path, lines))
            at = _skip(text, at + 1) if text[at] == "," else at
        return at + 1
    token = _STRING.match(text, at) or _SCALAR.match(text, at)
    return token.end() if token else at


def split_key(text: str) -> Key:
    """Split a dotted key such as `lora.rank_pattern."^layers.0"`; raise ValueError if it is none."""
    parts, end = _read_key(text, 0)
    if end != len(text):
        raise ValueError(f"not a dotted key: {text}")
    return parts


def is_key(text: str) -> bool:
    """Tell whether a text is a dotted key."""
    try:
        return bool(split_key(text))
    except ValueError:
        return False


def dotted(path: Key) -> str:
    """Join a key's parts with dots, quoted where TOML requires it."""
    return ".".join(part if _BARE.fullmatch(part) else _quoted(part) for part in path)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_value(value: Any) -> str:
    """Write one value as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{dotted((key,))} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)


def leaves(values: Mapping[str, Any], above: Key = ()) -> dict[Key, Any]:
    """Flatten nested tables into values by path, below `above`; an empty table is a value."""
    paths: dict[Key, Any] = {}
    for key, value in values.items():
        path = (*above, key)
        paths.update(leaves(value, path) if isinstance(value, Mapping) and value else {path: value})
    return paths
