"""Put the result of a run beside the trivial one: learned from the training rows, compared on those evaluated."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from transformers import TrainerState, TrainingArguments

from llmkit import metrics as measures
from llmkit.data.rows.batches import Examples
from llmkit.data.rows.examples import Encoded
from llmkit.data.text import pack
from llmkit.tasks.task import RowTask, TextTask
from llmkit.tasks.trivial import FEWEST_ROWS, FREQUENCIES, Comparison, Frequencies, Trivial, compare

UNIGRAM = "unigram model"
READ = 2000  # blocks of the training data, at most, that a unigram model is counted on
AT_ONCE = 16  # blocks that are made into a batch
RISE = 1.2  # the last evaluation loss over the lowest, above which a model memorizes
MEMORIZED = 1 / 2  # the training loss at the end over the evaluation loss, below which a model memorizes
RIGHT = ("eval_accuracy", "eval_f1")  # shares of right answers, of which the first that there is tells
FEW_STEPS = 200
SMALL = 8  # examples in a batch
HIGH_RATE = 1e-4  # a learning rate that is not raised further
MOST_LABELS = 200  # kinds of them that `run.json` keeps the counts of


@dataclass(frozen=True)
class Learned:
    """What is known of the training rows: the task's trivial answer, and how often each label occurs."""

    answer: Mapping[str, Any]
    frequencies: Frequencies | None = None
    tokens: bool = False  # the labels are tokens

    @classmethod
    def of(cls, task: RowTask, train: Encoded, label_spec: Any, num_labels: int) -> "Learned":
        """Look at the labels of the training rows."""
        answer = {} if task.trivial_answer is None else task.trivial_answer(train, label_spec)
        labels = train.inputs["labels"].values if train.labels is None else train.labels
        if not np.issubdtype(labels.dtype, np.integer):
            return cls(answer)
        tokens = train.tokenizer is not None
        return cls(answer, Frequencies.of([labels], len(train.tokenizer) if tokens else num_labels), tokens)

    def record(self) -> dict[str, Any]:
        """Return what `run.json` keeps of it."""
        found = self.frequencies
        if found is None or self.tokens or len(found.labels) > MOST_LABELS:
            return dict(self.answer)
        counts = dict(zip(map(str, found.labels.tolist()), found.counts.tolist(), strict=True))
        return {**self.answer, "label_counts": counts, "num_labels": found.size}

    @classmethod
    def from_record(cls, recorded: Mapping[str, Any]) -> "Learned | None":
        """Read what `record` returned; None for a run without it."""
        if not recorded:
            return None
        counts = recorded.get("label_counts")
        if counts is None:
            return cls(recorded)
        labels = np.array([int(label) for label in counts])
        return cls(recorded, Frequencies(labels, np.array(list(counts.values())), int(recorded["num_labels"])))


def compare_rows(
    task: RowTask, wanted: tuple[str, ...], further: Mapping[str, Any], learned: Learned, stats: np.ndarray, part: Any
) -> Comparison | None:
    """Compare what was kept of the rows of one part, [N, 2 + K], with the trivial answer; None where it has none."""
    losses, name = None, UNIGRAM if learned.tokens else FREQUENCIES
    answer: Trivial | None = None
    if wanted and task.trivial is not None:
        kept = stats if task.preprocess_logits_for_metrics is None else stats[:, 2:]
        answer = task.trivial(learned.answer, kept, part)
        losses = answer.losses
    if losses is not None:
        assert answer is not None
        name = answer.named.get("loss", answer.says)
    elif learned.frequencies is not None:
        losses = _example_losses(learned.frequencies, part)
    values: dict[str, tuple[str, float]] = {}
    if losses is not None:
        values["loss"] = name, measures.mean_loss(losses)
        if task.preprocess_logits_for_metrics is None:
            values |= {key: (name, value) for key, value in task.metrics(losses, part).items() if key in wanted}
    if answer is not None:
        figures = dict(answer.metrics)
        if further:
            _, references = task.predictions_and_references(stats[:, 2:], part)
            for metric in further.values():
                figures |= metric.compute(predictions=answer.predictions, references=references) or {}
        own = {*wanted, *(figures.keys() - answer.metrics.keys())}
        values |= {
            key: (answer.named.get(key, answer.says), float(value))
            for key, value in figures.items()
            if key in own and isinstance(value, int | float)
        }
    rows = {} if answer is None else {key: sides for key, sides in answer.rows.items() if key in values}
    if not rows and losses is not None:
        rows = {"loss": (stats[:, :2].astype(np.float64), losses)}
    return compare(values, rows) if values else None


def _example_losses(frequencies: Frequencies, part: Examples) -> np.ndarray:
    """The summed loss and the count of labels of each example, in the order of `part`."""
    if part.labels is not None:
        return frequencies.stats(part.labels[part.order])
    labels = part.inputs["labels"]
    return np.concatenate([frequencies.stats(labels[index][None]) for index in part.order.tolist()])


def text_comparison(
    task: TextTask, collate: Callable[..., Mapping[str, Any]], train: Any, vocabulary: int
) -> Callable[[np.ndarray, Any], Comparison]:
    """(stats [N, 2 + K], blocks) -> the comparison with a unigram model of the training data, as it is learned from."""

    @cache
    def frequencies() -> Frequencies:
        return Frequencies.of(_labels(collate, _training_windows(train)), vocabulary)

    def beside(stats: np.ndarray, part: Any) -> Comparison:
        windows = (part[index] for index in range(len(part)))
        unigram = np.concatenate([frequencies().stats(labels) for labels in _labels(collate, windows)])
        trivial = unigram if task.trivial is None else task.trivial(stats.astype(np.float64), unigram)
        values = {key: (UNIGRAM, value) for key, value in task.metrics(trivial, part.tokens).items()}
        return compare(values, {"loss": (stats[:, :2].astype(np.float64), trivial[:, :2])})

    return beside


def _training_windows(train: Any) -> Iterator[pack.Window]:
    """READ blocks, from all over the data, as its first epoch has them; of a stream the first ones."""
    if isinstance(train, pack.Endless):
        train.stream.set_epoch(0)
        yield from islice(train.stream, READ)
        return
    for index in np.unique(np.linspace(0, len(train) - 1, min(READ, len(train))).astype(int)).tolist():
        yield replace(train[index], epoch=0)


def _labels(collate: Callable[..., Mapping[str, Any]], windows: Iterator[pack.Window]) -> Iterator[np.ndarray]:
    while batch := list(islice(windows, AT_ONCE)):
        yield collate(batch)["labels"].numpy()


# ---- in words and in the record ------------------------------------------------------------------------------------


def record(found: Mapping[str, Comparison]) -> dict[str, Any]:
    """Return what `run.json` keeps, by metric: the trivial answer, its value, and the interval of the difference.

    `found` are the comparisons by what their metrics begin with, such as `eval`. `better` is by that too.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for prefix, each in found.items():
        for key, (name, value) in each.values.items():
            metrics[f"{prefix}_{key}"] = {"answer": name, "value": value}
            if key in each.intervals and each.num_rows >= FEWEST_ROWS:
                metrics[f"{prefix}_{key}"]["better_by"] = list(each.intervals[key])
    return {"metrics": metrics, "better": {prefix: each.better for prefix, each in found.items()}}


def beside(key: str, value: float, about: Mapping[str, Any]) -> str:
    """Write a metric, with the trivial answer's in brackets."""
    trivial = about.get("metrics", {}).get(key)
    return f"{key} {value:.4f}" + (f" ({trivial['answer']}: {trivial['value']:.4f})" if trivial else "")


def verdicts(comparisons: Mapping[str, Comparison]) -> Iterator[tuple[bool, str]]:
    """Yield (whether it is a warning, what to say) of each part that is not shown to be better."""
    for prefix, each in comparisons.items():
        if each.better is None:
            rows = f"{each.num_rows} row{'s' * (each.num_rows != 1)}"
            yield (
                False,
                f"{prefix}: {rows} cannot show whether the model beats the baseline; use at least {FEWEST_ROWS}",
            )
        elif not each.better:
            intervals = " and ".join(
                f"in {prefix}_{key} {low:+.4f} to {high:+.4f}" for key, (low, high) in each.intervals.items()
            )
            yield True, f"no better than the baseline: the difference is {intervals} (95 % interval, + is better)"


def did_not_fall(history: Sequence[Mapping[str, float]]) -> tuple[float, float] | None:
    """Return the mean training loss of the first and of the last quarter of the log where it is not lower at the end.

    None also where fewer than four were logged.
    """
    first, last = _first_and_last(history)
    return None if last < first or math.isnan(first) else (first, last)


def _first_and_last(history: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Return the mean training loss of the first and of the last quarter of the log; NaN if it has fewer than four."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if not (quarter := len(losses) // 4):
        return math.nan, math.nan
    return float(np.mean(losses[:quarter])), float(np.mean(losses[-quarter:]))


def rose(history: Sequence[Mapping[str, float]]) -> tuple[int, float, float] | None:
    """Return the step of the lowest evaluation loss, that loss and the last one, where that is RISE times as high."""
    losses = [(int(entry["step"]), entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if not losses:
        return None
    step, lowest = min(losses, key=lambda each: each[1])
    return (step, lowest, losses[-1][1]) if losses[-1][1] > RISE * lowest > 0 else None


def _held(history: Sequence[Mapping[str, float]], step: int) -> tuple[str, float, float] | None:
    """Return a share of right answers that is as high at the end as at `step`, as name, then and now; else None."""
    evaluated = [entry for entry in history if "eval_loss" in entry]
    for name in RIGHT:
        values = {int(entry["step"]): entry[name] for entry in evaluated if name in entry}
        if step in values:
            then, now = values[step], list(values.values())[-1]
            return (name, then, now) if now >= then else None
    return None


def judge(
    args: TrainingArguments, state: TrainerState, found: Mapping[str, Comparison], global_batch: int | None = None
) -> tuple[list[tuple[bool, str]], str]:
    """Say where the result is no better than the trivial one, or the loss did not fall, and what to try.

    `global_batch` is `data.global_batch_size`, where the recipe has it.
    """
    flat, found_rise, said = did_not_fall(state.log_history), rose(state.log_history), list(verdicts(found))
    if flat is not None:
        said.append((True, f"the training loss did not fall: {flat[0]:.4f} at first, {flat[1]:.4f} at the end"))
    if found_rise:
        step, lowest, last = found_rise
        about = f"eval_loss was lowest at step {step:,} ({lowest:.4f}) and is {last:.4f} at the end"
        if (held := _held(state.log_history, step)) is not None:
            name, then, now = held
            said.append((False, f"{about}; {name} did not fall ({then:.4f}, {now:.4f}): only the scores are too sure"))
        else:
            said.append((False, f"{about}: the model memorizes its training data; more data or fewer epochs may help"))
    evaluated = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    training, evaluation = _first_and_last(state.log_history)[1], evaluated[-1] if evaluated else math.nan
    losses = f"{training:.4f}" + (f", on held-out rows {evaluation:.4f}" if evaluated else "")
    memorizes = found_rise is not None or training < MEMORIZED * evaluation
    return said, to_try(args, state.global_step, flat is None, memorizes, losses, global_batch)


def to_try(
    args: TrainingArguments, steps: int, fell: bool, memorizes: bool, losses: str, global_batch: int | None = None
) -> str:
    """Name two things that may help, by what the run had.

    Args:
        args: its settings.
        steps: how many it took.
        fell: the training loss is lower at the end than at first.
        memorizes: the training loss is far below the evaluation loss, or that rose.
        losses: both, at the end, in words.
        global_batch: `data.global_batch_size`, where the recipe has it: then a batch is made smaller by that key.
    """
    epochs, rate = args.num_train_epochs, args.learning_rate
    key, size, small = "trainer.per_device_train_batch_size", args.per_device_train_batch_size, SMALL
    if global_batch is not None:
        key, size, small = "data.global_batch_size", global_batch, SMALL * args.world_size

    def scaled(times: float) -> str:
        if args.max_steps > 0:
            return f"trainer.max_steps={max(1, round(times * steps))}"
        return f"trainer.num_train_epochs={max(1, round(times * epochs))}"

    if steps < FEW_STEPS:
        longer = scaled(min(10, max(2, math.ceil(FEW_STEPS / max(1, steps)))))
        other = f"{key}={small}" if size > small else f"trainer.learning_rate={3 * rate:.0e}"
        return f"try {longer} ({steps} step{'s' * (steps != 1)} may be too few), {other}"
    if not fell:
        other = rate / 5 if rate >= HIGH_RATE else 3 * rate
        return f"try trainer.learning_rate={other:.0e}; check that each label belongs to its text"
    if memorizes:
        fewer = scaled(0.5) if epochs > 1 or args.max_steps > 0 else f"trainer.learning_rate={rate / 3:.0e}"
        return (
            f"the model memorizes its training data (loss {losses}): try {fewer}, or more rows; "
            "check that each label belongs to its text"
        )
    faster = f"trainer.learning_rate={3 * rate:.0e}" if rate < HIGH_RATE else f"{key}={small}" * (size > small)
    return (
        f"the model has learned too little (training loss {losses}): "
        f"try {', '.join(filter(None, (scaled(2), faster)))}, or more rows; check that each label belongs to its text"
    )
