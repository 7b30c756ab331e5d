"""Hold a recipe while it is read: its values, their origins, and every mistake so far."""

import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import Place, UserError
from llmkit.recipe.keys import key_type, known_keys
from llmkit.recipe.synonyms import replacement
from llmkit.recipe.toml import Key, dotted, leaves, parse, split_key
from llmkit.recipe.types import Type, nearest

COMMAND_LINE = "command line"
TABLE = Type(frozenset({"dict"}))
# Keys that describe one data set, and are wrong for another.
SHOWN = 100  # mistakes
SEARCHED = 50  # unknown words for which a near one is searched: each search takes milliseconds
MOST_OVERRIDES = 1000
OF_THE_PATH = ("name", "revision", "split", "data_files", "validation_split", "sources")


@dataclass
class Draft:
    """A recipe that is being read, with the origin of each key and the mistakes found so far."""

    source: Path
    values: dict[str, Any]
    lines: dict[Key, int]  # the line of each key whose value is the file's; 0 for --task
    given: dict[Key, int] = field(default_factory=dict)  # the index of the override of each key on the command line
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[tuple[int, int], str, str]] = field(default_factory=list)
    typed: dict[str, str] = field(default_factory=dict)  # the data's paths as they were typed, by what they resolve to
    apart: int = 0  # how many of the problems are of one key alone; the others are of keys that do not go together
    overrides: Sequence[str] = ()  # the arguments that `given` counts
    fits_rows: bool = False  # whether what it lacks is chosen by the rows
    fits_machine: bool = True  # whether the precision is chosen by the machine, if it says nothing of that
    searched: int = 0

    @property
    def task(self) -> Any:
        return self.values.get("task")

    def get(self, *key: str) -> Any:
        """Return the value of a key, or None."""
        value: Any = self.values
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def written(self, key: Key) -> str | None:
        """Return the text of a key's value on the command line; None where it is not from there."""
        override = self.given.get(key, len(self.overrides))
        return self.overrides[override].partition("=")[2] if override < len(self.overrides) else None

    def problem(self, key: Key, message: str) -> None:
        """Record a mistake, at the line of the key or of the nearest table around it."""
        for ancestor in (key[:length] for length in range(len(key), 0, -1)):
            if ancestor in self.lines:
                order_and_origin = ((0, self.lines[ancestor]), f"line {self.lines[ancestor]}")
                break
            overrides = [
                override for overridden, override in self.given.items() if overridden[: len(ancestor)] == ancestor
            ]
            if overrides:
                return self.complain(self.given.get(ancestor, min(overrides)), dotted(key), message)
        else:
            order_and_origin = ((0, 10**9), "recipe")
        self.problems.append((*order_and_origin, f"{dotted(key)}: {message}"))
        return None

    def complain(self, override: int, subject: str, message: str) -> None:
        """Record a mistake in the override with this index; `subject` begins the message."""
        self.problems.append(((1, override), COMMAND_LINE, f"{subject}: {message}"))

    def may_search(self) -> bool:
        """Count a search for what an unknown word meant; tell whether it may be made."""
        self.searched += 1
        return self.searched <= SEARCHED

    def report(self, places: bool = True) -> tuple[str, ...]:
        """Format the mistakes, in the order of the file, then of the command line; with `places`, where each is."""
        width = max((len(where) for _, where, _ in self.problems), default=0)
        ordered = sorted(self.problems, key=lambda problem: problem[0])
        more = (f"and {len(ordered) - SHOWN:,} more",) if len(ordered) > SHOWN else ()
        shown = ordered[:SHOWN]
        return (*(f"{where:<{width}}  {message}" if places else message for _, where, message in shown), *more)

    def mistakes(self, file: str) -> tuple[tuple[str, Place | None], ...]:
        """Return every mistake with its place; `file` is the recipe as the user named it."""
        found = list[tuple[str, Place | None]]()
        for _, where, message in sorted(self.problems, key=lambda problem: problem[0]):
            line = int(where.split()[1]) if where.startswith("line ") else None
            found.append((message, Place(file if line else None, line, message.partition(":")[0])))
        return tuple(found)

    def origin(self, key: Key) -> str:
        """Name where a key's value comes from."""
        if key in self.given:
            return COMMAND_LINE
        if key in self.lines:
            return f"recipe line {self.lines[key]}" if self.lines[key] else "--task"
        return "default"

    def adopt(self, key: Key, value: Any) -> None:
        """Set a key as `--task` asks, as if the recipe had set it; None removes the recipe's own value."""
        self.unset(key)
        if value is not None:
            self.values.setdefault(key[0], {})[key[1]] = value
            self.lines[key] = 0

    def set(self, key: Key, value: Any, override: int) -> None:
        """Set a key from the command line; `override` is the index of its argument.

        What stands where a table is wanted stays there, and is a mistake.
        """
        table = self.values
        for length, part in enumerate(key[:-1], 1):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                self.given[key] = override  # refused, but not missing
                for _, message in TABLE.mistakes(table, key[:length]):
                    self.complain(override, dotted(key), f"{dotted(key[:length])} {message}")
                return
        self.forget(key)
        table[key[-1]] = value
        below = leaves(value, key) if isinstance(value, dict) else {}
        self.given.update(dict.fromkeys((key, *below), override))

    def unset(self, key: Key) -> None:
        """Remove a key and its origin."""
        self.forget(key)
        table = self.get(*key[:-1]) if key[:-1] else self.values
        if isinstance(table, dict):
            table.pop(key[-1], None)

    def forget(self, key: Key) -> None:
        """Remove the origins of a key and of everything below it."""
        for positions in (self.lines, self.given):
            for held in [held for held in positions if held[: len(key)] == key]:
                del positions[held]


def apply_overrides(draft: Draft, overrides: Sequence[str]) -> None:
    """Apply `table.key=VALUE` overrides to the recipe, in order."""
    if len(overrides) > MOST_OVERRIDES:
        raise UserError(f"there are {len(overrides):,} settings on the command line", "write them into a recipe")
    draft.overrides = overrides
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
            meant = _meant(override, key, draft.task) if draft.may_search() else "write `TABLE.KEY=VALUE`"
            draft.complain(number, override, f"not an override, {meant}")
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


def _meant(argument: str, key: Key, task: object) -> str:
    """Say what to write for an argument that is no `KEY=VALUE`."""
    if argument.endswith(".toml"):
        return "and a run has one recipe"
    if disk.exists(argument):
        return f"did you mean `{shlex.quote(f'data.path={argument}')}`?"
    if key and key_type(key, task):
        return f"write `{argument}=VALUE`"
    meant = replacement(key, None, task) if key else ""
    meant = meant or nearest(argument, known_keys(task)) or "TABLE.KEY"
    return f"write `{meant}" + (" VALUE`" if meant.startswith("--") else "=VALUE`")


def _drop_description(draft: Draft, table: Key) -> None:
    data = draft.get(*table)
    dropped = [key for key in OF_THE_PATH if isinstance(data, dict) and key in data]
    for key in dropped:
        draft.unset((*table, key))
    if dropped:
        names = ", ".join(dotted((*table, key)) for key in dropped)
        draft.notes.append(f"{dotted(table)}.path is set on the command line: ignoring the recipe's {names}")


def _drop_architecture(draft: Draft) -> None:
    """Drop the recipe's own architecture and tokenizer, as a named model brings its own."""
    if draft.get("model", "config", "model_type") is None:
        return
    for key in (("model", "config"), ("model", "init"), ("tokenizer",)):
        draft.unset(key)
    draft.notes.append("model.name is set on the command line: ignoring the recipe's model.config and [tokenizer]")


def read_value(text: str, kind: Type | None, key: str) -> Any:
    """Parse an override's value: as text if `kind` allows only text, else as TOML.

    `key` is named in the ValueError that says what is wrong.
    """
    if kind and kind.text_only:
        return text
    try:
        table = parse(f"value = {text}")
        parsed = table["value"] if len(table) == 1 else None
    except tomllib.TOMLDecodeError:
        parsed = None
    if parsed is not None and (kind is None or kind.admits(parsed) or not kind.takes_text):
        return parsed
    advice = f"quote a string for TOML, and the whole argument for the shell: '{key}=\"{text}\"'"
    if kind is None:
        return text  # an unknown key: reported as such
    if kind.takes_text and text[:1] not in ("[", "{"):
        return text
    if kind.takes_text or kind.kinds & {"list", "dict", "any"}:
        if text[:1] in ("[", "{"):
            advice = f'quote strings for TOML, and the whole argument for the shell: \'{key}=["a", "b"]\''
        raise ValueError(f"{text} is not TOML; {advice}")
    raise ValueError(f"must be {kind}, not {text}")
