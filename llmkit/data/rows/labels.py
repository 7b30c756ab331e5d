"""Resolve what labels mean (one class, several classes, or a value) and check the whole column before training."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmkit.data.rows.examples import Encoded, refuse
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
SHOWN_NAMES = 10  # of the classes, in a message
INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")  # "01" is a name
FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?|nan", re.IGNORECASE)


@dataclass(frozen=True)
class LabelSpec:
    """What the labels of a model mean: the problem, and the names of its outputs in their order.

    `weights` are those of the classes in the loss. `positive` is the one of two classes that F1 is about: the second
    one in the data, wherever the model has it. `mean` is that of the training data's values, in a regression.
    """

    problem_type: str
    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    positive: int = 1
    mean: float = 0.0


def resolve_labels(
    data: ClassificationData,
    columns: Mapping[str, str],
    train: Encoded | None,
    validation: Mapping[str, Encoded],
    config: Any,
    fixed: bool,
) -> LabelSpec:
    """Resolve what the labels mean from the whole column, write it into `config`, and set `labels` of every part.

    The names are the recipe's, else the data set's own, else those that occur, sorted. A model that was a classifier of
    the same names keeps their order. With `fixed` the model is not trained, and its outputs mean what its config says.
    Raises UserError that names the rows whose label is missing, out of range or of the wrong kind.
    """
    parts = [*([train] if train is not None else []), *validation.values()]
    first = parts[0]
    problem = data.problem_type or (_problem_of(config) if fixed else None) or _problem_in(first.targets)
    width = indicator_width(first.targets) if problem == MULTI else None
    number_names = [meanings(data, part, columns["label"]) for part in parts]
    if problem == REGRESSION:
        label_spec = LabelSpec(REGRESSION, ("value",))
        if fixed and config.num_labels != 1:
            raise UserError(f"the model has {config.num_labels} classes, and the recipe asks for a regression")
        if data.label_names or data.class_weights:
            key = "label_names" if data.label_names else "class_weights"
            raise UserError(f"data.{key}: a regression has no classes", f"unset it: data.{key}=")
    else:
        model_names = names_in(config)
        data_names = data.label_names or number_names[0]
        if fixed:
            names = model_names or data_names or tuple(str(i) for i in range(config.num_labels))
            if len(names) != config.num_labels:
                raise UserError(
                    f"the model has {config.num_labels} classes and the data {len(names)}: {_listed(names)}"
                )
        else:
            names = tuple(data_names) if data_names else infer_names(first, problem, width)
            names = in_the_order_of(model_names, names)
        if len(set(names)) < len(names):
            raise UserError(f"data.label_names: {', '.join(names)} holds a name twice")
        if not names:
            raise UserError(f"{first.source.source}: not one row has a label", "is it the right column?")
        label_spec = LabelSpec(problem, names)
        if data_names and len(data_names) == 2:
            index = _index(names)
            second = data_names[1]
            label_spec = replace(label_spec, positive=index.get(second, index.get(second.casefold(), 1)))
    unknown = "the model does not know" if fixed else "no row of the training data has"
    if data.label_names and not fixed:
        unknown = "is not in data.label_names"
    for part, names_of_part in zip(parts, number_names, strict=True):
        part.labels = numbers(part, label_spec, names_of_part, width == len(label_spec.names), unknown)
    if train is not None:
        label_spec = replace(label_spec, weights=class_weights(data, label_spec, train))
        if problem == REGRESSION:
            assert train.labels is not None
            label_spec = replace(label_spec, mean=float(train.labels.mean()))
        _check_learnable(label_spec, train, validation)
    config.num_labels = len(label_spec.names)
    config.problem_type = label_spec.problem_type
    if problem != REGRESSION:
        config.id2label = dict(enumerate(label_spec.names))
        config.label2id = {name: number for number, name in enumerate(label_spec.names)}
    return label_spec


def _problem_of(config: Any) -> str | None:
    """Read the problem of a finished model from its config; None for classes, if it does not say how many a row has."""
    return getattr(config, "problem_type", None) or (REGRESSION if config.num_labels == 1 else None)


def _problem_in(targets: Sequence[Any]) -> str:
    """Infer the problem: multi-label if most rows have a list of labels (in a CSV, in brackets), else single-label."""
    lists = sum(isinstance(t, list | tuple) or (isinstance(t, str) and t.lstrip().startswith("[")) for t in targets)
    return MULTI if 2 * lists > len(targets) else SINGLE


def meanings(data: ClassificationData, part: Encoded, label: str) -> tuple[str, ...] | None:
    """Find the names that 0, 1, ... stand for in the column `label`; None where a number is itself a name.

    In a class column on the Hub, numbers stand for the data set's names; the recipe may put these into another order,
    or replace all of them. In any other column they stand for the recipe's names, unless those are numbers too. Raises
    UserError where the recipe has another number of names than the column has classes.
    """
    on_hub, in_recipe = part.source.class_names.get(label), data.label_names
    if on_hub is None:
        return None if in_recipe is None or any(INTEGER.fullmatch(name) for name in in_recipe) else in_recipe
    if in_recipe is None or set(map(str.casefold, in_recipe)) <= set(map(str.casefold, on_hub)):
        return tuple(on_hub)
    if len(in_recipe) != len(on_hub):
        raise UserError(
            f"data.label_names has {len(in_recipe)} names and column `{label}` {len(on_hub)} classes: {_listed(on_hub)}"
        )
    return in_recipe


def names_in(config: Any) -> tuple[str, ...] | None:
    """Read the class names of a model's config; None for those that transformers makes up (`LABEL_0`)."""
    id2label = getattr(config, "id2label", None) or {}
    names = tuple(str(id2label[i]) for i in sorted(id2label))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def in_the_order_of(model_names: Sequence[str] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """Sort the names as the model has them, if both are the same (but for upper and lower case)."""
    index = _index(model_names or ())
    numbers = [index.get(name, index.get(name.casefold(), -1)) for name in names]
    if sorted(numbers) != list(range(len(model_names or ()))):
        return names
    return tuple(name for _, name in sorted(zip(numbers, names, strict=True)))


def _index(names: Sequence[str]) -> dict[str, int]:
    """Map each name to its number, and its lower-case form too unless two names share it."""
    shared = Counter(name.casefold() for name in names)
    folded = {name.casefold(): number for number, name in enumerate(names) if shared[name.casefold()] == 1}
    return {**folded, **{name: number for number, name in enumerate(names)}}


def infer_names(part: Encoded, problem: str, width: int | None = None) -> tuple[str, ...]:
    """List the classes that occur, sorted; integers must be numbered without gaps, from 0 or 1.

    Names that differ in upper and lower case alone are one class, spelled as most rows have it (two classes, where
    data.label_names has both). Indicators of `width` classes have the names 0, 1, ... Raises UserError that names the
    rows with a label that cannot be used.
    """
    if width is not None:
        return tuple(map(str, range(width)))
    spellings: dict[str, Counter[str]] = {}
    mistakes: dict[int, str] = {}
    for row, target in enumerate(part.targets):
        try:
            for name in map(class_in, many(target) if problem == MULTI else [one(target)]):
                spellings.setdefault(name.casefold(), Counter())[name] += 1
        except ValueError as mistake:
            mistakes[row] = str(mistake)
    refuse(part.source, mistakes, "whose label cannot be used", _remedy(mistakes))
    _check_alike(part, problem)
    names = [max(counts, key=counts.__getitem__) for counts in spellings.values()]
    if not names or not all(map(INTEGER.fullmatch, names)):
        return tuple(sorted(names, key=str.casefold))
    integers = sorted(map(int, names))
    lowest = integers[0] if integers[0] in (0, 1) else 0
    astray = {str(value) for value in integers if not lowest <= value < lowest + len(integers)}
    for row, target in enumerate(part.targets if astray else ()):
        for value in many(target) if problem == MULTI else [target]:
            if class_in(value) in astray:
                mistakes[row] = f"label {value} is out of range{_hint_for_minus_one(value)}"
    listed = f", or say what is meant: data.label_names = {json.dumps([str(value) for value in integers])}"
    refuse(
        part.source,
        mistakes,
        "with a class out of range",
        f"{len(integers)} classes are numbered from {lowest} without a gap; mend the rows"
        + (listed if len(integers) <= SHOWN_NAMES else ""),
    )
    return tuple(map(str, integers))


def _check_alike(part: Encoded, problem: str) -> None:
    """Refuse numbers, and true and false, in a column whose other labels are names; in a CSV all are text."""
    a_name: str | None = None
    others: dict[int, str] = {}
    for row, target in enumerate(part.targets):
        for value in many(target) if problem == MULTI else [target]:
            if not isinstance(value, str):
                others[row] = f"label {json.dumps(value)} is a {type(value).__name__}"
            elif a_name is None and not INTEGER.fullmatch(value.strip()):
                a_name = value
    if a_name is not None:
        hint = f'such as "{a_name}"; mend the rows, or say what the numbers stand for: data.label_names'
        refuse(part.source, others, "whose label is no name, as others are", hint)


def numbers(
    part: Encoded, label_spec: LabelSpec, number_names: Sequence[str] | None, indicators: bool, unknown: str
) -> np.ndarray:
    """Convert labels to the model's numbers: [N] int64, [N, C] float32 for multi-label, [N] float32 for regression.

    `number_names` are what numbers in the data stand for (see `meanings`). With `indicators` every row says 0 or 1 for
    each class. `unknown` says, for messages, what is wrong with a label that `label_spec` does not have. Raises
    UserError that names the rows with a mistake.
    """
    mistakes: dict[int, str] = {}
    index = _index(label_spec.names)

    def number(value: Any) -> int:
        name = str(value).strip()
        if value is None or value == "" or name not in index:
            name = class_in(value)
        if number_names is not None and INTEGER.fullmatch(name):
            if not 0 <= int(name) < len(number_names):
                raise ValueError(
                    f"label {name} is out of range 0 to {len(number_names) - 1}{_hint_for_minus_one(name)}"
                )
            name = number_names[int(name)]
        class_number = index.get(name, index.get(name.casefold()))
        if class_number is None:
            raise ValueError(f'label "{name}", which {unknown}; there are {_listed(label_spec.names)}')
        return class_number

    converted: list[Any] = []
    for row, target in enumerate(part.targets):
        try:
            if label_spec.problem_type == REGRESSION:
                converted.append(_value(target))
            elif label_spec.problem_type == MULTI:
                vector = np.zeros(len(label_spec.names), np.float32)
                classes, bits = many(target), _bits(target)
                if indicators and (bits is None or len(bits) != len(vector)):
                    raise ValueError(f"labels {target}, where 0 or 1 for each of {len(vector)} classes is expected")
                if indicators:
                    vector[:] = bits
                else:
                    vector[[number(value) for value in classes]] = 1
                    if bits and vector.sum() < len(classes):
                        raise ValueError(
                            f"labels {target} name a class twice, and are not 0 or 1 for each of {len(vector)} classes"
                        )
                converted.append(vector)
            else:
                converted.append(number(one(target)))
        except ValueError as mistake:
            mistakes[row] = str(mistake)
    refuse(part.source, mistakes, "whose label cannot be used", _remedy(mistakes))
    if label_spec.problem_type == SINGLE:
        return np.array(converted, np.int64)
    # -100 means "no label" to Trainer, which would not count the row: take the next number instead.
    values = np.array(converted, np.float32)
    values[values == -100] = np.nextafter(np.float32(-100), np.float32(0))
    return values


def one(target: Any) -> Any:
    """Return the label of a single-label row; raise ValueError where it is a list."""
    if isinstance(target, list | tuple):
        raise ValueError(f"a list of labels, {target}, where one class is expected")
    return target


def many(target: Any) -> list[Any]:
    """List the labels of a multi-label row: a list, or in a CSV a JSON list or names separated by `|` or a comma.

    An empty list, or an empty cell of a CSV, means that no class applies. Raises ValueError where there is no list.
    """
    if isinstance(target, list | tuple):
        return list(target)
    if isinstance(target, str):
        if target.lstrip().startswith("["):
            try:
                return list(json.loads(target))
            except (ValueError, TypeError):
                raise ValueError(f"labels {target}: no JSON list") from None
        return [name.strip() for name in re.split(r"[|,]", target) if name.strip()]
    raise ValueError("no labels" if target is None else f"label {target!r}, where a list of labels is expected")


def indicator_width(targets: Sequence[Any]) -> int | None:
    """Count the classes, if every row says 0 or 1 for each ([0, 1, 1]); None where rows list the classes they have.

    One row does not show it: [0, 1] may be the classes 0 and 1, or the second of two. The column does. It holds
    indicators if all rows have the same length, of at least two, and nothing but 0 and 1 (0.0 and 1.0, false and true).
    As class numbers these would name a class twice, or give every row the same classes, and nothing could be learned.
    """
    width: int | None = None
    for target in targets:
        try:
            bits = _bits(target)
        except ValueError:  # reported when the labels are read
            continue
        if bits is None or len(bits) < 2 or len(bits) != (width or len(bits)):
            return None
        width = len(bits)
    return width


def _bits(target: Any) -> list[float] | None:
    """Return the values of a multi-label row, if each is 0 or 1."""
    values = many(target)
    return [float(value) for value in values] if all(value in (0, 1, "0", "1") for value in values) else None


def class_in(value: Any) -> str:
    """Read the name of a class from a row, without spaces around it; raise ValueError where it is none."""
    if value is None or not str(value).strip():
        raise ValueError("no label")
    if isinstance(value, float) or (isinstance(value, str) and FLOAT.fullmatch(value.strip())):
        raise ValueError(f"label {value} is a float, where a class is expected")
    if not isinstance(value, str | int):
        raise ValueError(f"label {value} is a {type(value).__name__}, where a class is expected")
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _hint_for_minus_one(value: Any) -> str:
    return " (often a row without a label: is this a test split?)" if str(value) == "-1" else ""


def _remedy(mistakes: Mapping[int, str]) -> str:
    messages = " ".join(mistakes.values())
    if "is a float" in messages:
        return 'classes are names or whole numbers (0, not 0.0); for a regression set data.problem_type = "regression"'
    if "the model does not know" in messages:
        return "mend the rows; what numbers stand for, data.label_names says: the name of 0, of 1, ..."
    if "no row of the training data has" in messages:
        return "take them out, or train on such rows too"
    return "mend the rows, or take them out"


def _value(target: Any) -> float:
    if target is None or target == "":
        raise ValueError("no value")
    try:
        value = math.nan if isinstance(target, bool) else float(target)
    except (TypeError, ValueError):
        raise ValueError(f"label {target!r} is no number, where a value is expected") from None
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise ValueError(f"label {target} is no finite number, where a value is expected")
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def class_weights(data: ClassificationData, label_spec: LabelSpec, train: Encoded) -> tuple[float, ...] | None:
    """Return the weight of each class, as `data.class_weights` sets it; None where it sets none.

    Raises UserError for a class that the data does not have, and for a weight below 0 or not finite.
    """
    wanted = data.class_weights
    if wanted is None or label_spec.problem_type == REGRESSION:
        return None
    if isinstance(wanted, str):
        counts = counts_of(train.labels, label_spec)
        return tuple(float(weight) for weight in len(train.targets) / (len(counts) * np.maximum(counts, 1)))
    unknown = [name for name in wanted if name not in label_spec.names]
    if unknown:
        raise UserError(
            f"data.class_weights: there is no class `{unknown[0]}`", f"the data has {_listed(label_spec.names)}"
        )
    below = [name for name, weight in wanted.items() if not 0 <= weight < math.inf]
    if below:
        raise UserError(f"data.class_weights: {wanted[below[0]]} for `{below[0]}`", "a weight is 0 or more")
    return tuple(float(wanted.get(name, 1.0)) for name in label_spec.names)


def counts_of(targets: Any, label_spec: LabelSpec) -> np.ndarray:
    """Count the rows in which each class occurs: [C]."""
    return np.bincount(targets, minlength=len(label_spec.names)) if targets.ndim == 1 else targets.sum(axis=0)


def _check_learnable(label_spec: LabelSpec, train: Encoded, validation: Mapping[str, Encoded]) -> None:
    assert train.labels is not None
    if len(np.unique(train.labels, axis=0)) < 2:
        value = "value" if label_spec.problem_type == REGRESSION else "label"
        raise UserError(
            f"{train.source.source}: every row has the {value} {train.targets[0]}: nothing can be learned",
            "is it the right column, and not one end of a sorted file?",
        )
    if label_spec.problem_type == SINGLE:
        absent = set(range(len(label_spec.names))) - set(train.labels.tolist())
        for part in validation.values():
            assert part.labels is not None
            only = {
                row: f'label "{label_spec.names[label]}" is in no row of the training data'
                for row, label in enumerate(part.labels.tolist())
                if label in absent
            }
            refuse(
                part.source, only, "with a class that only validation has", "take them out, or train on such rows too"
            )
