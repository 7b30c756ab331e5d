"""What is swept: keys with their values or ranges, and the trials that are drawn from them."""

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.recipe.draft import read_value
from llmkit.recipe.keys import key_type, known_keys
from llmkit.recipe.toml import dotted, leaves, split_key, toml_value
from llmkit.recipe.types import Type, nearest

DECADE = 10  # a range whose ends differ by this factor or more is drawn by its logarithm
DIGITS = 3  # significant ones of a number that is drawn
LONGEST_NAME = 100  # characters of a trial's folder
NEVER = {
    "trainer.seed": "repeat each trial with several seeds: --seeds N",
    "output_mirror": "a mirror is the copy of one run; leave it out",
    "output_dir": "each trial has a folder of its own; name that of the sweep: --output-dir DIR",
    "task": "a sweep is of one task; compare several with llmkit compare",
    "trainer.metric_for_best_model": "the trials are compared by one metric",
}
_NUMBER = r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class Axis:
    """A key that is swept: over `values`, or where there are none over the numbers from `low` to `high`."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0

    @property
    def whole(self) -> bool:
        """Tell whether a range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def log(self) -> bool:
        """Tell whether the numbers differ by so much that their logarithm counts."""
        low, high = self.low, self.high
        if self.values:
            if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values):
                return False
            low, high = min(self.values), max(self.values)
        return low > 0 and high / low >= DECADE

    def draw(self, rng: random.Random) -> Any:
        """Draw a value."""
        if self.values:
            return rng.choice(self.values)
        if self.whole:
            if self.log:
                return min(int(self.high), int(math.exp(rng.uniform(math.log(self.low), math.log(self.high + 1)))))
            return rng.randint(int(self.low), int(self.high))
        if self.log:
            return self.rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.rounded(rng.uniform(self.low, self.high))

    def rounded(self, value: float) -> float:
        """Round to DIGITS, within the range."""
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))

    def probes(self) -> tuple[Any, ...]:
        """Return the values that show whether all of them can be: each of a list, the ends of a range."""
        return self.values or (self.low, self.high)


@dataclass(frozen=True)
class Trial:
    """The settings of a trial by dotted key, and its name, which is that of its folder."""

    name: str
    settings: Mapping[str, Any]

    def overrides(self, task: str) -> list[str]:
        """Return the settings as the command line takes them."""
        return [f"{key}={_as_typed(key, value, task)}" for key, value in self.settings.items()]


def values_of(argument: str, task: str) -> tuple[str, Any]:
    """Read `KEY=VALUES` of the command line: values apart by commas, or a range; raise ValueError for what is neither.

    Returns the key, and what [sweep.over] has under it.
    """
    key, equals, text = argument.partition("=")
    if not equals or not text:
        raise ValueError(f"{argument}: write KEY=VALUE,VALUE,... or KEY=LOW..HIGH")
    kind = _type(key, task)
    if _RANGE.fullmatch(text) and not kind.text_only:
        return key, text
    texts = apart(text)
    if not all(texts):
        raise ValueError(f"{key}: there is nothing between two commas, or behind the last")
    try:
        return key, [read_value(each, kind, key) for each in texts]
    except ValueError as mistake:
        raise ValueError(f"{key}: {mistake}") from None


def apart(text: str) -> list[str]:
    """Split a text at its commas, but for those in brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += 0 if quote else (character in "[{") - (character in "]}")
        if character == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def axes(over: Mapping[str, Any], task: str) -> tuple[list[Axis], list[str]]:
    """Read [sweep.over], whose keys are dotted or tables; return the axes, and every mistake."""
    swept: list[Axis] = []
    mistakes: list[str] = []
    for path, value in leaves(over).items():
        key = ".".join(path)
        try:
            swept.append(_axis(key, value, task))
        except ValueError as mistake:
            mistakes.append(str(mistake))
    twice = {axis.key for axis in swept if [other.key for other in swept].count(axis.key) > 1}
    return swept, mistakes + [f"{key}: is swept twice" for key in sorted(twice)]


def _axis(key: str, value: Any, task: str) -> Axis:
    kind = _type(key, task)
    if isinstance(value, str) and (ends := _RANGE.fullmatch(value)):
        whole = "int" in kind.kinds and all(re.fullmatch(r"[-+]?[\d_]+", end) for end in ends.groups())
        if not whole and "float" not in kind.kinds and "any" not in kind.kinds:
            raise ValueError(f"{key}: must be {kind}, and {value} is a range of numbers")
        low, high = (int(end) if whole else float(end) for end in ends.groups())
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"{key}: a range goes from a smaller number to a larger one, not {value}")
        return Axis(key, low=low, high=high)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{key}: must be an array of values or a range such as 1e-5..1e-3, not {toml_value(value)}")
    same = [toml_value(each) for each in value]
    if repeated := next((text for text in same if same.count(text) > 1), ""):
        raise ValueError(f"{key}: {repeated} is there twice")
    return Axis(key, tuple(value))


def _type(key: str, task: str) -> Type:
    """Return the type of a key that can be swept; raise ValueError for one that cannot."""
    try:
        path = split_key(key)
    except ValueError:
        raise ValueError(f"{key}: is not a key of a recipe") from None
    name = dotted(path)
    if name in NEVER or path[0] in ("sweep", "report"):
        raise ValueError(f"{name}: is not swept; {NEVER.get(name, 'it changes no result')}")
    kind = key_type(path, task)
    if kind is None:
        close = nearest(name, known_keys(task))
        raise ValueError(f"{name}: unknown key" + (f", did you mean `{close}`?" if close else ""))
    return kind


def grid(over: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Yield all combinations, the last key varying fastest."""
    for values in itertools.product(*(axis.values for axis in over)):
        yield {axis.key: value for axis, value in zip(over, values, strict=True)}


def at_random(over: Sequence[Axis], number: int, seed: int) -> list[dict[str, Any]]:
    """Draw trials, no two alike; fewer where there are not so many."""
    rng = random.Random(f"{seed} sweep")
    if all(axis.values for axis in over):
        every = list(grid(over))
        return [every[i] for i in rng.sample(range(len(every)), min(number, len(every)))]
    drawn: dict[str, dict[str, Any]] = {}
    for _ in range(100 * number):
        settings = {axis.key: axis.draw(rng) for axis in over}
        drawn.setdefault(repr(settings), settings)
        if len(drawn) == number:
            break
    return list(drawn.values())


def name(settings: Mapping[str, Any], others: Sequence[str] = ()) -> str:
    """Return a name for a trial that is safe in every file system, and none of `others`."""
    keys = short_keys(list(settings))
    text = ",".join(f"{keys[key]}={_safe(value)}" for key, value in settings.items())
    taken = {other.lower() for other in others}
    if len(text) > LONGEST_NAME or text.lower() in taken:
        digest = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:8]
        text = f"{text[: LONGEST_NAME - 9]}~{digest}"
    return text


def named(settings: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """Make trials of their settings."""
    trials: list[Trial] = []
    for each in settings:
        trials.append(Trial(name(each, [trial.name for trial in trials]), each))
    return trials


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key, where no other ends alike, else all of it."""
    last = {key: split_key(key)[-1] for key in keys}
    return {key: short if list(last.values()).count(short) == 1 else key for key, short in last.items()}


def _safe(value: Any) -> str:
    if isinstance(value, int | float):
        return toml_value(value)
    text = value if isinstance(value, str) else toml_value(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or "empty"


def _as_typed(key: str, value: Any, task: str) -> str:
    kind = key_type(split_key(key), task)
    return value if kind is not None and kind.text_only and isinstance(value, str) else toml_value(value)
