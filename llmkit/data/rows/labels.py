"""What labels mean: one class, several classes at once, or a value; checked over the whole column before training."""

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
class Labels:
    """What the labels of a model mean: the problem, and the names of its outputs in their order.

    `positive` is the one of two classes that F1 is about: the data's second, wherever the model has it. `mean` is that
    of the values of a regression's training data.
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
) -> Labels:
    """What the labels mean, from the whole column; written into `config`.

    The names are the recipe's, else the data set's own, else those that occur, sorted. A model that was a classifier of
    the same names keeps their order. `fixed`: the model is not trained, its outputs mean what its config says. Raises
    UserError that names the rows whose label is missing, out of range or of the wrong kind.
    """
    parts = [*([train] if train is not None else []), *validation.values()]
    first = parts[0]
    problem = data.problem_type or (_problem_of(config) if fixed else None) or _problem_in(first.targets)
    width = indicator_width(first.targets) if problem == MULTI else None
    meant = [meanings(data, part, columns["label"]) for part in parts]
    if problem == REGRESSION:
        labels = Labels(REGRESSION, ("value",))
        if fixed and config.num_labels != 1:
            raise UserError(f"the model has {config.num_labels} classes, and the recipe asks for a regression")
        if data.label_names or data.class_weights:
            key = "label_names" if data.label_names else "class_weights"
            raise UserError(f"data.{key}: a regression has no classes", f"unset it: data.{key}=")
    else:
        known = names_in(config)
        own = data.label_names or meant[0]
        if fixed:
            names = known or own or tuple(str(i) for i in range(config.num_labels))
            if len(names) != config.num_labels:
                raise UserError(
                    f"the model has {config.num_labels} classes and the data {len(names)}: {_listed(names)}"
                )
        else:
            names = tuple(own) if own else infer_names(first, problem, width)
            names = in_the_order_of(known, names)
        if len(set(names)) < len(names):
            raise UserError(f"data.label_names: {', '.join(names)} holds a name twice")
        if not names:
            raise UserError(f"{first.source.source}: not one row has a label", "is it the right column?")
        labels = Labels(problem, names)
        if own and len(own) == 2:
            index = _index(names)
            labels = replace(labels, positive=index.get(own[1], index.get(own[1].casefold(), 1)))
    unknown = "the model does not know" if fixed else "no row of the training data has"
    if data.label_names and not fixed:
        unknown = "is not in data.label_names"
    for part, ids in zip(parts, meant, strict=True):
        part.labels = numbers(part, labels, ids, width == len(labels.names), unknown)
    if train is not None:
        labels = replace(labels, weights=class_weights(data, labels, train))
        if problem == REGRESSION:
            assert train.labels is not None
            labels = replace(labels, mean=float(train.labels.mean()))
        _check_learnable(labels, train, validation)
    config.num_labels = len(labels.names)
    config.problem_type = labels.problem_type
    if problem != REGRESSION:
        config.id2label = dict(enumerate(labels.names))
        config.label2id = {name: number for number, name in enumerate(labels.names)}
    return labels


def _problem_of(config: Any) -> str | None:
    """What a model that is not trained was made for; None: classes, of which its config does not say how many a row."""
    return getattr(config, "problem_type", None) or (REGRESSION if config.num_labels == 1 else None)


def _problem_in(targets: Sequence[Any]) -> str:
    """Multi-label where most rows have a list of labels (in a CSV, one in brackets), else single-label."""
    lists = sum(isinstance(t, list | tuple) or (isinstance(t, str) and t.lstrip().startswith("[")) for t in targets)
    return MULTI if 2 * lists > len(targets) else SINGLE


def meanings(data: ClassificationData, part: Encoded, label: str) -> tuple[str, ...] | None:
    """The names that the numbers 0, 1, ... in the label column stand for; None where a number is a name itself.

    In a column of classes on the Hub they stand for the data set's names, which the recipe may put into another order
    or, all of them, replace. In any other column they stand for the recipe's names, unless those are numbers too.
    """
    on_hub, named = part.source.class_names.get(label), data.label_names
    if on_hub is None:
        return None if named is None or any(INTEGER.fullmatch(name) for name in named) else named
    if named is None or set(map(str.casefold, named)) <= set(map(str.casefold, on_hub)):
        return tuple(on_hub)
    if len(named) != len(on_hub):
        raise UserError(
            f"data.label_names has {len(named)} names and column `{label}` {len(on_hub)} classes: {_listed(on_hub)}"
        )
    return named


def names_in(config: Any) -> tuple[str, ...] | None:
    """The classes that a model's config names; None for the names that transformers makes up (`LABEL_0`)."""
    found = getattr(config, "id2label", None) or {}
    names = tuple(str(found[i]) for i in sorted(found))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def in_the_order_of(known: Sequence[str] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names in the order that a checkpoint has them in, if they are the same (but for upper and lower case)."""
    place = _index(known or ())
    places = [place.get(name, place.get(name.casefold(), -1)) for name in names]
    if sorted(places) != list(range(len(known or ()))):
        return names
    return tuple(name for _, name in sorted(zip(places, names, strict=True)))


def _index(names: Sequence[str]) -> dict[str, int]:
    """The number of each name, and of its lower-case form unless two names share it."""
    shared = Counter(name.casefold() for name in names)
    folded = {name.casefold(): number for number, name in enumerate(names) if shared[name.casefold()] == 1}
    return {**folded, **{name: number for number, name in enumerate(names)}}


def infer_names(part: Encoded, problem: str, width: int | None = None) -> tuple[str, ...]:
    """The classes that occur, sorted; integers must be numbered without gaps, from 0 or 1.

    Names that differ in upper and lower case alone are one class, spelled as most rows have it (two classes, where
    data.label_names has both). Indicators of `width` classes have the names 0, 1, ...
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
    names = [max(found, key=found.__getitem__) for found in spellings.values()]
    if not names or not all(map(INTEGER.fullmatch, names)):
        return tuple(sorted(names, key=str.casefold))
    whole = sorted(map(int, names))
    lowest = whole[0] if whole[0] in (0, 1) else 0
    astray = {str(value) for value in whole if not lowest <= value < lowest + len(whole)}
    for row, target in enumerate(part.targets if astray else ()):
        for value in many(target) if problem == MULTI else [target]:
            if class_in(value) in astray:
                mistakes[row] = f"label {value} is out of range{_untold(value)}"
    meant = f", or say what is meant: data.label_names = {json.dumps([str(value) for value in whole])}"
    refuse(
        part.source,
        mistakes,
        "with a class out of range",
        f"{len(whole)} classes are numbered from {lowest} without a gap; mend the rows"
        + (meant if len(whole) <= SHOWN_NAMES else ""),
    )
    return tuple(map(str, whole))


def _check_alike(part: Encoded, problem: str) -> None:
    """Refuse numbers, and true and false, in a column whose other labels are names; in a CSV all are text."""
    named: str | None = None
    others: dict[int, str] = {}
    for row, target in enumerate(part.targets):
        for value in many(target) if problem == MULTI else [target]:
            if not isinstance(value, str):
                others[row] = f"label {json.dumps(value)} is a {type(value).__name__}"
            elif named is None and not INTEGER.fullmatch(value.strip()):
                named = value
    if named is not None:
        hint = f'such as "{named}"; mend the rows, or say what the numbers stand for: data.label_names'
        refuse(part.source, others, "whose label is no name, as others are", hint)


def numbers(part: Encoded, labels: Labels, meant: Sequence[str] | None, indicators: bool, unknown: str) -> np.ndarray:
    """The labels as the model's numbers: [N] int64, [N, C] float32 for multi-label, [N] float32 for regression.

    `meant`: what numbers in the data stand for (see `meanings`); `unknown`: what a label is that is not in `labels`.
    Raises UserError with the rows.
    """
    mistakes: dict[int, str] = {}
    index = _index(labels.names)

    def number(value: Any) -> int:
        name = str(value).strip()
        if value is None or value == "" or name not in index:
            name = class_in(value)
        if meant is not None and INTEGER.fullmatch(name):
            if not 0 <= int(name) < len(meant):
                raise ValueError(f"label {name} is out of range 0 to {len(meant) - 1}{_untold(name)}")
            name = meant[int(name)]
        found = index.get(name, index.get(name.casefold()))
        if found is None:
            raise ValueError(f'label "{name}", which {unknown}; there are {_listed(labels.names)}')
        return found

    found: list[Any] = []
    for row, target in enumerate(part.targets):
        try:
            if labels.problem_type == REGRESSION:
                found.append(_value(target))
            elif labels.problem_type == MULTI:
                vector = np.zeros(len(labels.names), np.float32)
                several, bits = many(target), _bits(target)
                if indicators and (bits is None or len(bits) != len(vector)):
                    raise ValueError(f"labels {target}, where 0 or 1 for each of {len(vector)} classes is expected")
                if indicators:
                    vector[:] = bits
                else:
                    vector[[number(value) for value in several]] = 1
                    if bits and vector.sum() < len(several):
                        raise ValueError(
                            f"labels {target} name a class twice, and are not 0 or 1 for each of {len(vector)} classes"
                        )
                found.append(vector)
            else:
                found.append(number(one(target)))
        except ValueError as mistake:
            mistakes[row] = str(mistake)
    refuse(part.source, mistakes, "whose label cannot be used", _remedy(mistakes))
    if labels.problem_type == SINGLE:
        return np.array(found, np.int64)
    # -100 means "no label" to Trainer, which would not count the row: the number next to it is as good a value.
    values = np.array(found, np.float32)
    values[values == -100] = np.nextafter(np.float32(-100), np.float32(0))
    return values


def one(target: Any) -> Any:
    """The label of a single-label row."""
    if isinstance(target, list | tuple):
        raise ValueError(f"a list of labels, {target}, where one class is expected")
    return target


def many(target: Any) -> list[Any]:
    """The labels of a multi-label row: a list, or in a CSV a JSON list or names set apart by `|` or a comma.

    An empty list, or an empty cell of a CSV, is a row that no class applies to.
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
    """The number of classes, if every row says 0 or 1 for each ([0, 1, 1]); None where rows list the classes they have.

    One row cannot tell: [0, 1] may be the classes 0 and 1, or the second of two. The column can. It holds indicators
    where all rows have one length, two at least, and nothing but 0 and 1 in them (0.0 and 1.0, false and true): as
    class numbers they would name a class twice, or give every row the same classes, and nothing could be learned.
    """
    width: int | None = None
    for target in targets:
        try:
            bits = _bits(target)
        except ValueError:  # it has a message of its own when the labels are read
            continue
        if bits is None or len(bits) < 2 or len(bits) != (width or len(bits)):
            return None
        width = len(bits)
    return width


def _bits(target: Any) -> list[float] | None:
    """The values of a multi-label row, if each is 0 or 1."""
    values = many(target)
    return [float(value) for value in values] if all(value in (0, 1, "0", "1") for value in values) else None


def class_in(value: Any) -> str:
    """The name of a class as a row has it, without the spaces around it; ValueError where it is none."""
    if value is None or not str(value).strip():
        raise ValueError("no label")
    if isinstance(value, float) or (isinstance(value, str) and FLOAT.fullmatch(value.strip())):
        raise ValueError(f"label {value} is a float, where a class is expected")
    if not isinstance(value, str | int):
        raise ValueError(f"label {value} is a {type(value).__name__}, where a class is expected")
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _untold(value: Any) -> str:
    return " (often a row without a label: is this a test split?)" if str(value) == "-1" else ""


def _remedy(mistakes: Mapping[int, str]) -> str:
    said = " ".join(mistakes.values())
    if "is a float" in said:
        return 'classes are names or whole numbers (0, not 0.0); for a regression set data.problem_type = "regression"'
    if "the model does not know" in said:
        return "mend the rows; what numbers stand for, data.label_names says: the name of 0, of 1, ..."
    if "no row of the training data has" in said:
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


def class_weights(data: ClassificationData, labels: Labels, train: Encoded) -> tuple[float, ...] | None:
    """The weight of each class, as `data.class_weights` has them."""
    wanted = data.class_weights
    if wanted is None or labels.problem_type == REGRESSION:
        return None
    if isinstance(wanted, str):
        counts = counts_of(train.labels, labels)
        return tuple(float(weight) for weight in len(train.targets) / (len(counts) * np.maximum(counts, 1)))
    unknown = [name for name in wanted if name not in labels.names]
    if unknown:
        raise UserError(
            f"data.class_weights: there is no class `{unknown[0]}`", f"the data has {_listed(labels.names)}"
        )
    below = [name for name, weight in wanted.items() if not 0 <= weight < math.inf]
    if below:
        raise UserError(f"data.class_weights: {wanted[below[0]]} for `{below[0]}`", "a weight is 0 or more")
    return tuple(float(wanted.get(name, 1.0)) for name in labels.names)


def counts_of(targets: Any, labels: Labels) -> np.ndarray:
    """In how many rows each class occurs."""
    return np.bincount(targets, minlength=len(labels.names)) if targets.ndim == 1 else targets.sum(axis=0)


def _check_learnable(labels: Labels, train: Encoded, validation: Mapping[str, Encoded]) -> None:
    assert train.labels is not None
    if len(np.unique(train.labels, axis=0)) < 2:
        value = "value" if labels.problem_type == REGRESSION else "label"
        raise UserError(
            f"{train.source.source}: every row has the {value} {train.targets[0]}: nothing can be learned",
            "is it the right column, and not one end of a sorted file?",
        )
    if labels.problem_type == SINGLE:
        absent = set(range(len(labels.names))) - set(train.labels.tolist())
        for part in validation.values():
            assert part.labels is not None
            only = {
                row: f'label "{labels.names[label]}" is in no row of the training data'
                for row, label in enumerate(part.labels.tolist())
                if label in absent
            }
            refuse(
                part.source, only, "with a class that only validation has", "take them out, or train on such rows too"
            )
