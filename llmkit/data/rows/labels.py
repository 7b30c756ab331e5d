"""Resolve what labels mean (one class, several classes, or a value) and check the whole column before training."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from llmkit.data.rows.cells import JOINED, parsed
from llmkit.data.rows.examples import Encoded, places, refuse
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.targets import distinct
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
SHOWN_NAMES = 10  # of the classes, in a message
INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")  # "01" is a name
WHOLE = re.compile(r"([+-]?\d{1,18})\.0*")  # a whole number as pandas writes it beside missing ones
FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?", re.IGNORECASE)
UNKNOWN = -100  # the label of a row whose class the model does not have: Trainer takes no loss of it
FRACTIONS = (
    'if they are values, set data.problem_type = "regression"; if each number is a class, list them all in '
    'data.label_names, such as ["0.5", "1.0"]'
)


@dataclass(frozen=True)
class LabelSpec:
    """What the labels of a model mean: the problem, and the names of its outputs in their order.

    `weights` are those of the classes in the loss. `positive` is the one of two classes that F1 is about: the second
    one in the data, wherever the model has it. `mean` is that of the training data's values, in a regression.
    `thresholds` are the probabilities above which a multi-label model says that a class applies, one half by default.
    `unknown` are the rows of a part to evaluate on with a class that the model does not have.
    """

    problem_type: str
    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    positive: int = 1
    mean: float = 0.0
    thresholds: tuple[float, ...] | None = None
    unknown: tuple[int, ...] = ()


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
    A class that only the data to evaluate on has is counted wrong, with a warning. Raises UserError that names the rows
    whose label is missing, out of range or of the wrong kind.
    """
    parts = [*([train] if train is not None else []), *validation.values()]
    first = parts[0]
    several = columns_of_labels(data, columns["label"])
    problem = data.problem_type or (_problem_of(config) if fixed else None) or problem_in(data, first.targets)
    width = indicator_width(first.targets) if problem == MULTI and not several else None
    number_names = [meanings(data, part, columns["label"]) for part in parts]
    base = first_number(data, chain.from_iterable(distinct(part.targets).values for part in parts))
    if problem == REGRESSION:
        label_spec = LabelSpec(REGRESSION, ("value",))
        if fixed and config.num_labels != 1:
            raise UserError(f"the model has {config.num_labels} classes, but the recipe asks for regression")
        for key in ("label_names", "class_weights", "threshold"):
            if getattr(data, key):
                raise UserError(f"data.{key}: regression has no classes", f"unset it: data.{key}=")
    else:
        model_names = names_in(config)
        data_names = data.label_names or number_names[0] or several
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
            raise UserError(f"data.label_names holds a name twice: {', '.join(names)}")
        if not names:
            raise UserError(f"{first.source.source}: no row has a label", "is it the right column?")
        label_spec = LabelSpec(problem, names)
        if data_names and len(data_names) == 2:
            index = index_of(names)
            second = data_names[1]
            label_spec = replace(label_spec, positive=index.get(second, index.get(second.casefold(), 1)))
        label_spec = replace(label_spec, thresholds=_thresholds(data, label_spec, config if fixed else None))
    unknown = "the model does not know" if fixed else "no row of the training data has"
    if data.label_names and not fixed:
        unknown = "is not in data.label_names"
    for part, names_of_part in zip(parts, number_names, strict=True):
        meant = numbered(names_of_part, 0 if columns["label"] in part.source.class_names else base)
        part.labels = numbers(part, label_spec, meant, width == len(label_spec.names), unknown, part is train)
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
    if label_spec.thresholds is not None:
        config.threshold = dict(zip(label_spec.names, label_spec.thresholds, strict=True))
    elif hasattr(config, "threshold"):  # that of the classifier which this one was made from
        del config.threshold
    return label_spec


def _problem_of(config: Any) -> str | None:
    """Read the problem of a finished model from its config; None for classes, if it does not say how many a row has."""
    return getattr(config, "problem_type", None) or (REGRESSION if config.num_labels == 1 else None)


def columns_of_labels(data: ClassificationData, column: str) -> tuple[str, ...] | None:
    """List the columns that say 0 or 1 of one label each, which are its names; None where one column has the label."""
    several = not isinstance(data.label_column, str) and JOINED in column
    return tuple(column.split(JOINED)) if several else None


def problem_in(data: ClassificationData, targets: Sequence[Any]) -> str:
    """Infer the problem: multi-label if most rows have a list of labels (in a CSV, in brackets), else single-label."""
    if data.label_separator is not None:
        return MULTI
    brackets = "[" if data.hold_out == "hash" else "[({"  # a run of an earlier version takes "(0, 1)" for a name

    def is_list(target: Any) -> bool:
        if not isinstance(target, str):
            return isinstance(target, list | tuple)
        first = target.lstrip()[:1]
        return first == "[" or (first != "" and first in brackets and list_in(target) is not None)

    each = distinct(targets)
    lists = np.fromiter(map(is_list, each.values), bool, len(each.values))
    return MULTI if 2 * int(lists[each.which].sum()) > len(targets) else SINGLE


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
    index = index_of(model_names or ())
    numbers = [index.get(name, index.get(name.casefold(), -1)) for name in names]
    if sorted(numbers) != list(range(len(model_names or ()))):
        return names
    return tuple(name for _, name in sorted(zip(numbers, names, strict=True)))


def index_of(names: Sequence[str]) -> dict[str, int]:
    """Map each name to its number, and its lower-case form too unless two names share it."""
    shared = Counter(name.casefold() for name in names)
    folded = {name.casefold(): number for number, name in enumerate(names) if shared[name.casefold()] == 1}
    return {**folded, **{name: number for number, name in enumerate(names)}}


def first_number(data: ClassificationData, targets: Iterable[Any]) -> int:
    """Return the number of the first of `data.label_names`: 1 where the labels are 1 to n and never 0, else 0."""
    names = data.label_names
    if names is None or any(INTEGER.fullmatch(name) for name in names):
        return 0
    found: set[int] = set()
    for text in {str(value).strip() for target in distinct(targets).values for value in scalars(target)}:
        whole = WHOLE.fullmatch(text)
        if whole or INTEGER.fullmatch(text):
            found.add(int(whole[1] if whole else text))
    return int(bool(found) and min(found) == 1 and max(found) == len(names))


def scalars(target: Any) -> list[Any]:
    """List the labels of a row, be it one or a list, whatever the problem is."""
    values = list_in(target) if isinstance(target, str) and target.lstrip()[:1] in tuple("[({") else target
    return list(values) if isinstance(values, list | tuple) else [target]


def numbered(names: Sequence[str] | None, base: int = 0) -> dict[int, str] | None:
    """Map each number from `base` on to the name that it stands for; None where there are no names."""
    return None if names is None else dict(enumerate(names, base))


def infer_names(part: Encoded, problem: str, width: int | None = None) -> tuple[str, ...]:
    """List the classes that occur, sorted, numbers by their value.

    Names that differ in upper and lower case alone are one class, spelled as most rows have it (two classes, where
    data.label_names has both). Indicators of `width` classes have the names 0, 1, ... Raises UserError that names the
    rows with a label that cannot be used.
    """
    if width is not None:
        return tuple(map(str, range(width)))
    spellings: dict[str, Counter[str]] = {}
    mistakes: dict[int, str] = {}  # by the target's place among the different ones
    targets = distinct(part.targets)
    counts = np.bincount(targets.which, minlength=len(targets.values)).tolist()
    for number, (target, count) in enumerate(zip(targets.values, counts, strict=True)):
        try:
            for name in map(class_in, many(target) if problem == MULTI else [one(target)]):
                spellings.setdefault(name.casefold(), Counter())[name] += count
        except ValueError as mistake:
            mistakes[number] = str(mistake)
    refuse(part.source, targets.by_row(mistakes), "whose label cannot be used", REMEDY)
    names = [max(written, key=written.__getitem__) for written in spellings.values()]
    if names and all(map(INTEGER.fullmatch, names)):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names, key=str.casefold))


def numbers(
    part: Encoded,
    label_spec: LabelSpec,
    meant: Mapping[int, str] | None,
    indicators: bool,
    unknown: str,
    training: bool = False,
) -> np.ndarray:
    """Convert labels to the model's numbers: [N] int64, [N, C] float32 for multi-label, [N] float32 for regression.

    Args:
        part: the rows, with their targets as they were read.
        label_spec: what the labels mean.
        meant: what numbers in the data stand for (see `meanings`).
        indicators: every row says 0 or 1 for each class.
        unknown: says, for messages, what is wrong with a class that `label_spec` does not have.
        training: refuse such a class. Else its rows are `part.unknown`, and of one class a row they have UNKNOWN.

    Raises:
        UserError: names the rows with a mistake; or no row has a class that `label_spec` has.
    """
    index = index_of(label_spec.names)

    def number(value: Any) -> int | None:
        name = str(value).strip()
        if value is None or value == "" or name not in index:
            name = class_in(value)
        if meant is not None and INTEGER.fullmatch(name):
            if int(name) not in meant:
                raise ValueError(f"label {name} is out of range {min(meant)} to {max(meant)}{_test_split(name)}")
            name = meant[int(name)]
        class_number = index.get(name, index.get(name.casefold()))
        if class_number is None:
            unknown_in[place] = name
        return class_number

    converted: list[Any] = []
    # By the place of a target among the different ones: what is wrong with it, and the last class that there is not.
    wrong_in: dict[int, str] = {}
    unknown_in: dict[int, str] = {}
    targets = distinct(part.targets)
    for place, target in enumerate(targets.values):
        try:
            if label_spec.problem_type == REGRESSION:
                converted.append(value_in(target))
            elif label_spec.problem_type == MULTI:
                vector = np.zeros(len(label_spec.names), np.float32)
                classes, bits = many(target), bits_in(target)
                if indicators and (bits is None or len(bits) != len(vector)):
                    raise ValueError(f"labels {target}: 0 or 1 is expected for each of {len(vector)} classes")
                if indicators:
                    vector[:] = bits
                else:
                    found = [known for value in classes if (known := number(value)) is not None]
                    vector[found] = 1
                    if bits and vector.sum() < len(found):
                        raise ValueError(
                            f"labels {target} name a class twice, and are not 0 or 1 for each of {len(vector)} classes"
                        )
                converted.append(vector)
            else:
                known = number(one(target))
                converted.append(UNKNOWN if known is None else known)
        except ValueError as mistake:
            wrong_in[place] = str(mistake)
    mistakes, strange = targets.by_row(wrong_in), targets.by_row(unknown_in)
    there = f"the classes are {_listed(label_spec.names)}"
    if strange and (training or len(strange) == len(part.targets)):
        mistakes |= {row: f'label "{name}", which {unknown}; {there}' for row, name in strange.items()}
    hint = NUMBERS if any(map(INTEGER.fullmatch, strange.values())) else OTHER_NAMES if strange else REMEDY
    refuse(part.source, mistakes, "whose label cannot be used", hint)
    if strange:
        part.unknown = sorted(strange)
        named = _listed([f"{name} ({count:,})" for name, count in Counter(strange.values()).most_common()])
        part.warnings.append(
            f"{len(strange):,} row{'s have' if len(strange) > 1 else ' has'} a label that {unknown} ({named}) and "
            f"count{'s' * (len(strange) == 1)} as wrong, such as {places(part.source, part.unknown[:1])[0]}; {there}"
        )
    if label_spec.problem_type == SINGLE:
        return np.array(converted, np.int64)[targets.which]
    # -100 means "no label" to Trainer, which would not count the row: take the next number instead.
    values = np.array(converted, np.float32)[targets.which]
    values[values == -100] = np.nextafter(np.float32(-100), np.float32(0))
    return values


def one(target: Any) -> Any:
    """Return the label of a single-label row; raise Unusable where it is a list."""
    if isinstance(target, list | tuple):
        raise Unusable("a list of labels", f"a list of labels, {target}, where one class is expected", REMEDY)
    return target


def many(target: Any) -> list[Any]:
    """List the labels of a multi-label row: a list, in a CSV as JSON or Python writes it, or names between `|` or `,`.

    An empty list, or an empty cell of a CSV, means that no class applies. Raises Unusable where there is no list.
    """
    if isinstance(target, list | tuple):
        return list(target)
    if isinstance(target, str):
        if (found := list_in(target)) is not None:
            return list(found)
        if target.lstrip().startswith("["):
            raise Unusable("a list that cannot be read", f"labels {target}: not a list in JSON or Python", REMEDY)
        return [name.strip() for name in re.split(r"[|,]", target) if name.strip()]
    raise Unusable(
        "not a list of labels",
        "no labels" if target is None else f"label {target!r}, where a list of labels is expected",
        REMEDY,
    )


@lru_cache(2**14)
def list_in(text: str) -> tuple[Any, ...] | None:
    """Read the list that a cell holds, as JSON, Python or NumPy writes it; None where it holds none."""
    found = parsed(text)
    return tuple(found) if isinstance(found, list) else None


def indicator_width(targets: Sequence[Any], few: int = 0) -> int | None:
    """Count the classes, if every row says 0 or 1 for each ([0, 1, 1]); None where rows list the classes they have.

    One row does not show it: [0, 1] may be the classes 0 and 1, or the second of two. The column does. It holds
    indicators if all rows but `few` have the same length, of at least two, and nothing but 0 and 1 (0.0 and 1.0, false
    and true). As class numbers these would name a class twice, or give every row the same classes, and nothing could be
    learned.
    """
    widths = Counter[int]()
    odd = 0
    for target in targets:
        try:
            bits = bits_in(target)
        except ValueError:  # reported when the labels are read
            continue
        if bits is None:
            odd += 1
        else:
            widths[len(bits)] += 1
        if odd > few:
            return None
    width, rows = max(widths.items(), key=lambda item: item[1], default=(0, 0))
    return width if width > 1 and odd + widths.total() - rows <= few else None


def bits_in(target: Any) -> list[float] | None:
    """Return the values of a multi-label row, if each is 0 or 1."""
    values = many(target)
    return [float(value) for value in values] if all(value in (0, 1, "0", "1") for value in values) else None


def class_in(value: Any) -> str:
    """Read the name of a class, without blanks around it and 1.0 as 1; raise Unusable where it is none."""
    name = "" if value is None or value != value else str(value).strip()
    if name.casefold() in ("", "nan"):
        raise Unusable("no label", "no label", NO_LABEL)
    if not isinstance(value, str | int | float):
        raise Unusable("no class", f"label {value} is a {type(value).__name__}, where a class is expected", REMEDY)
    if isinstance(value, bool):
        return name.lower()
    if whole := WHOLE.fullmatch(name):
        return str(int(whole[1]))
    if isinstance(value, float) or FLOAT.fullmatch(name):
        raise Unusable("a number with a fraction", f"label {value} is a float, where a class is expected", FRACTIONS)
    return name


def value_in(target: Any) -> float:
    """Read the value of a regression; raise Unusable where there is none."""
    if target is None or target == "":
        raise Unusable("no value", "no value", NO_LABEL)
    try:
        value = math.nan if isinstance(target, bool) else float(target)
    except (TypeError, ValueError):
        raise Unusable("not a number", f"label {target!r} is not a number, where a value is expected") from None
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise Unusable("not a finite number", f"label {target} is not a finite number, where a value is expected")
    return value


def _test_split(name: str) -> str:
    return " (often a row without a label: is this a test split?)" if name == "-1" else ""


NO_LABEL = "is it the right column (data.label_column), and not a test split?"
NUMBERS = 'data.label_names says what the numbers stand for, from 0 on, such as ["bad", "good"]'
OTHER_NAMES = "is it the right column (data.label_column), and data of the same classes?"
REMEDY = "write one class per row, a name or a whole number; for several classes, a list"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def _thresholds(data: ClassificationData, label_spec: LabelSpec, finished: Any) -> tuple[float, ...] | None:
    """Return the threshold of each class, as `data.threshold` or the config of a `finished` model sets it."""
    wanted = data.threshold
    if wanted is not None and label_spec.problem_type != MULTI:
        raise UserError(
            "data.threshold: each row of this data has one class, so the most probable one is predicted",
            "unset it (data.threshold=); for rows with several classes, set data.problem_type = "
            '"multi_label_classification"',
        )
    if wanted is None:
        return thresholds_in(finished, label_spec.names)
    if isinstance(wanted, float | int):
        return (float(wanted),) * len(label_spec.names)
    unknown = [name for name in wanted if name not in label_spec.names]
    if unknown:
        raise UserError(
            f"data.threshold: there is no class `{unknown[0]}`", f"the data has {_listed(label_spec.names)}"
        )
    return tuple(float(wanted.get(name, 0.5)) for name in label_spec.names)


def thresholds_in(config: Any, names: Sequence[str]) -> tuple[float, ...] | None:
    """Read the thresholds of a finished model from its config; None where it has none."""
    saved = getattr(config, "threshold", None)
    return tuple(float(saved.get(name, 0.5)) for name in names) if isinstance(saved, Mapping) else None


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
        raise UserError(f"data.class_weights: {wanted[below[0]]} for `{below[0]}`", "a weight must be 0 or more")
    weights = tuple(float(wanted.get(name, 1.0)) for name in label_spec.names)
    if not np.dot(weights, counts_of(train.labels, label_spec)):
        raise UserError("data.class_weights: every class of the training data has the weight 0", "nothing would count")
    return weights


def counts_of(targets: Any, label_spec: LabelSpec) -> np.ndarray:
    """Count the rows in which each class occurs: [C]."""
    if targets.ndim > 1:
        return np.asarray(targets.sum(axis=0))
    return np.bincount(targets[targets != UNKNOWN], minlength=len(label_spec.names))


def _check_learnable(label_spec: LabelSpec, train: Encoded, validation: Mapping[str, Encoded]) -> None:
    assert train.labels is not None
    if len(np.unique(train.labels, axis=0)) < 2:
        value = "value" if label_spec.problem_type == REGRESSION else "label"
        raise UserError(
            f"{train.source.source}: every row has the {value} {train.targets[0]}: there is nothing to learn",
            "is it the wrong column, or one end of a sorted file?",
        )
    if label_spec.problem_type == SINGLE:
        absent = set(range(len(label_spec.names))) - set(train.labels.tolist())
        for part in validation.values():
            assert part.labels is not None
            only = [row for row, label in enumerate(part.labels.tolist()) if label in absent]
            if only:
                named = _listed([label_spec.names[label] for label in sorted(set(part.labels[only].tolist()))])
                part.warnings.append(
                    f"{len(only):,} row{'s have' if len(only) > 1 else ' has'} a label that is in no row of the "
                    f"training data ({named}), such as {places(part.source, only[:1])[0]}"
                )
