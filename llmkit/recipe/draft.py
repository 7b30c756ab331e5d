"""A recipe while it is being read: its values, where each came from, and every mistake found so far."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.recipe import schema, upstream
from llmkit.recipe.toml import Key, dotted, leaves, split_key
from llmkit.recipe.types import ANYTHING, Type, nearest

COMMAND_LINE = "command line"
TEXT = Type(frozenset({"str"}))
TABLE = Type(frozenset({"dict"}))
# What describes one data set, and is wrong for another.
OF_THE_PATH = ("name", "revision", "split", "data_files", "validation_split", "sources")


@dataclass
class Draft:
    source: Path
    values: dict[str, Any]
    lines: dict[Key, int]  # where a key stands in the file, as long as the file's value counts
    given: dict[Key, int] = field(default_factory=dict)  # the same for the command line: which of the overrides
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[tuple[int, int], str, str]] = field(default_factory=list)

    @property
    def task(self) -> Any:
        return self.values.get("task")

    def get(self, *key: str) -> Any:
        """The value that was set, or None."""
        value: Any = self.values
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def problem(self, key: Key, message: str) -> None:
        """Note a mistake, at the line of the key or of the nearest table around it."""
        for each in (key[:length] for length in range(len(key), 0, -1)):
            if each in self.lines:
                place = ((0, self.lines[each]), f"line {self.lines[each]}")
                break
            inside = [override for one, override in self.given.items() if one[: len(each)] == each]
            if inside:
                return self.complain(self.given.get(each, min(inside)), dotted(key), message)
        else:
            place = ((0, 10**9), "recipe")
        self.problems.append((*place, f"{dotted(key)}: {message}"))
        return None

    def complain(self, override: int, subject: str, message: str) -> None:
        """Note a mistake on the command line."""
        self.problems.append(((1, override), COMMAND_LINE, f"{subject}: {message}"))

    def report(self) -> tuple[str, ...]:
        """Every mistake, in the order of the file, then of the command line."""
        width = max((len(where) for _, where, _ in self.problems), default=0)
        ordered = sorted(self.problems, key=lambda problem: problem[0])
        return tuple(f"{where:<{width}}  {message}" for _, where, message in ordered)

    def origin(self, key: Key) -> str:
        if key in self.given:
            return COMMAND_LINE
        if key in self.lines:
            return f"recipe line {self.lines[key]}" if self.lines[key] else "--task"
        return "default"

    def adopt(self, key: Key, value: Any) -> None:
        """Set what `--task` stands for, as if the recipe said so; None takes the recipe's own value out."""
        self.unset(key)
        if value is not None:
            self.values.setdefault(key[0], {})[key[1]] = value
            self.lines[key] = 0

    def set(self, key: Key, value: Any, override: int) -> None:
        self.forget(key)
        table = self.values
        for part in key[:-1]:
            if not isinstance(table.get(part), dict):
                table[part] = {}
            table = table[part]
        table[key[-1]] = value
        below = leaves(value, key) if isinstance(value, dict) else {}
        self.given.update(dict.fromkeys((key, *below), override))

    def unset(self, key: Key) -> None:
        self.forget(key)
        table = self.get(*key[:-1]) if key[:-1] else self.values
        if isinstance(table, dict):
            table.pop(key[-1], None)

    def forget(self, key: Key) -> None:
        for places in (self.lines, self.given):
            for each in [each for each in places if each[: len(key)] == key]:
                del places[each]


def key_type(key: Key, task: object) -> Type | None:
    """What a key may hold; None if there is no such key, or if it is a table of the recipe."""
    table, rest = key[0], key[1:]
    if table == "tasks":
        return _part_type(rest)
    if not rest:
        return TEXT if table in ("task", "output_dir") else None
    if table in schema.UPSTREAM_TABLES:
        known = upstream.fields(schema.UPSTREAM_TABLES[table]).get(rest[0])
        found = known.type if known else None
    else:
        own = schema.own_tables(task).get(table)
        while own and len(rest) > 1:
            if rest[0] in schema.nested(own):
                own, rest = schema.nested(own)[rest[0]], rest[1:]
            elif rest[0] in schema.named(own) and len(rest) > 2:
                own, rest = schema.named(own)[rest[0]], rest[2:]
            else:
                break
        found = schema.field_types(own).get(rest[0]) if own else None
    for _ in rest[1:]:
        found = None if found is None or not found.kinds & {"dict", "any"} else found.entry or ANYTHING
    return found


def _part_type(rest: Key) -> Type | None:
    """The same for a key below [tasks.NAME], of whatever task that is."""
    if len(rest) == 2:
        return {"weight": Type(frozenset({"float"})), "task": TEXT, "recipe": TEXT}.get(rest[1])
    if len(rest) < 3 or rest[1] not in ("data", "evaluation"):
        return None
    return next(filter(None, (key_type(rest[1:], task) for task in schema.HEADED)), None)


def known_keys(task: object, name: str = "") -> Iterator[str]:
    """Every key of a recipe, dotted, down to the fields of its tables; of upstream's, where some may have this name."""
    yield from ("task", "output_dir")
    for of, table in schema.own_tables(task).items():
        yield from (f"{of}.{key}" for key in table.model_fields)
    for of, class_name in schema.UPSTREAM_TABLES.items():
        if name in upstream.text(class_name):  # parsing it takes 20 ms and more
            yield from (f"{of}.{key}" for key in upstream.fields(class_name))
    for of, table in schema.own_tables(task).items():
        for key, inside in schema.nested(table).items():
            yield from (f"{of}.{key}.{each}" for each in inside.model_fields)


def apply_overrides(draft: Draft, overrides: Sequence[str]) -> None:
    """Lay `table.key=VALUE` over the recipe, in the order given."""
    parsed: list[tuple[int, Key, str]] = []
    for number, override in enumerate(overrides):
        subject, equals, text = override.partition("=")
        try:
            key = split_key(subject)
        except ValueError:
            key = ()
        if equals and key:
            parsed.append((number, key, text))
        else:
            exists = key and key_type(key, draft.task)
            near = subject if exists else nearest(subject, known_keys(draft.task)) or "TABLE.KEY"
            draft.complain(number, override, f"not an override, write `{near}=VALUE`")
    task = next((text for _, key, text in reversed(parsed) if key == ("task",)), draft.task)
    paths = {key for _, key, text in parsed if len(key) > 1 and key[-1] == "path" and text}
    for key in paths:
        if key[-2] == "data" or key[:-2] == ("data", "sources"):
            _drop_description(draft, key[:-1])
    if any(key == ("model", "name") and text for _, key, text in parsed):
        _drop_architecture(draft)
    for number, key, text in parsed:
        kind = key_type(key, task)
        if not text and (kind or len(key) == 1):
            draft.unset(key)
            continue
        try:
            draft.set(key, read_value(text, kind, dotted(key)), number)
        except ValueError as mistake:
            draft.unset(key)
            draft.given[key] = number  # refused, but not missing
            draft.complain(number, dotted(key), str(mistake))


def _drop_description(draft: Draft, table: Key) -> None:
    data = draft.get(*table)
    dropped = [key for key in OF_THE_PATH if isinstance(data, dict) and key in data]
    for key in dropped:
        draft.unset((*table, key))
    if dropped:
        names = ", ".join(dotted((*table, key)) for key in dropped)
        draft.notes.append(f"{dotted(table)}.path is from the command line, so the recipe's {names} no longer counts")


def _drop_architecture(draft: Draft) -> None:
    """A model that is named brings its own architecture and tokenizer in place of those that the recipe builds."""
    if draft.get("model", "config", "model_type") is None:
        return
    for key in (("model", "config"), ("model", "init"), ("tokenizer",)):
        draft.unset(key)
    draft.notes.append(
        "model.name is from the command line, so the recipe's model.config and [tokenizer] no longer count"
    )


def read_value(text: str, kind: Type | None, key: str) -> Any:
    """What stands behind the `=`: text where only text can stand, else TOML. ValueError says what is wrong."""
    if kind and kind.text_only:
        return text
    try:
        table = tomllib.loads(f"value = {text}")
        parsed = table["value"] if len(table) == 1 else None
    except tomllib.TOMLDecodeError:
        parsed = None
    if parsed is not None and (kind is None or kind.admits(parsed) or not kind.takes_text):
        return parsed
    quoting = f"a string is quoted for TOML, and all of it for the shell: '{key}=\"{text}\"'"
    if kind is None:
        return text  # an unknown key: reported as such
    if kind.takes_text and text[:1] not in ("[", "{"):
        return text
    if kind.takes_text or kind.kinds & {"list", "dict", "any"}:
        if text[:1] in ("[", "{"):
            quoting = f'quote strings for TOML, and all of it for the shell: \'{key}=["a", "b"]\''
        raise ValueError(f"{text} is not TOML; {quoting}")
    raise ValueError(f"must be {kind}, not {text}")
