"""Text classification: one text or a pair, and a class, several classes at once, or a number (regression)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from llmkit import metrics as measures
from llmkit.data.rows import augment, classification
from llmkit.data.rows.batches import Examples, models_own
from llmkit.data.rows.examples import Encoded, chunks, column_texts, kept, key_of
from llmkit.data.rows.labels import MULTI, REGRESSION, SINGLE, UNKNOWN, LabelSpec, counts_of, thresholds_in
from llmkit.data.rows.labels import resolve_labels as resolve_labels  # what labels mean is part of the contract
from llmkit.data.rows.reader import RowReader, Unusable
from llmkit.data.rows.table import Rows
from llmkit.data.rows.tokenize import RowTokenizer
from llmkit.errors import UserError, say
from llmkit.recipe.data_tables import ClassificationData
from llmkit.tasks.task import Result, Results
from llmkit.tasks.trivial import (
    FREQUENCIES,
    MOST_CLASSES,
    Trivial,
    agreement_rows,
    correlation_rows,
    mean_rows,
    overlap_rows,
)

if TYPE_CHECKING:
    from llmkit.tasks import text_classification
    from llmkit.tasks.task import RowTask

    task: RowTask = text_classification

reader: RowReader = classification  # how its rows are read

# What this task does without (`tasks/task.py`).
collator = LONGEST_INPUT = references = None


UNKNOWN_CLASS = "(unknown to the model)"  # what a class is called that only the data to evaluate on has
METRICS_OF = {
    SINGLE: ("accuracy", "f1", "matthews_correlation"),
    MULTI: ("accuracy", "f1", "f1_macro"),
    REGRESSION: ("pearson", "spearmanr", "mean_squared_error"),
}
METRICS = tuple(dict.fromkeys(name for names in METRICS_OF.values() for name in names))


# ---- rows -> features ----------------------------------------------------------------------------------------------


def encode(rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: ClassificationData, length: int) -> Encoded:
    """Tokenize every row, cut to `length` tokens (of a pair, the longer text first), with its label as it was read."""
    done = Encoded(rows)
    if data.truncation_side is not None:
        tokenizer.truncation_side = data.truncation_side
        tokenizer.init_kwargs["truncation_side"] = data.truncation_side  # what is saved
    first, second, label = columns["text"], columns.get("text_pair"), columns.get("label")
    tokenize = RowTokenizer(tokenizer, length)
    same: dict[str, str] = {}  # the labels that are text, each of them once
    for chunk in chunks(rows.read()):
        texts = column_texts(chunk, first)
        pairs = column_texts(chunk, second) if second else None
        number = len(done.keys)
        done.row.extend(range(number, number + len(chunk)))
        done.keys.extend(key_of(*each) for each in zip(*filter(None, [texts, pairs]), strict=True))
        texts = [kept(text, length, tokenizer) for text in texts]
        pairs = pairs and [kept(text, length, tokenizer) for text in pairs]
        done.add_tokenized(tokenize(texts, pairs))
        for i, text in enumerate(texts):
            if not text.strip() and not (pairs is not None and pairs[i].strip()):
                done.empty.append(number + i)
        if label is not None:
            for place, row in chunk:
                try:
                    value = classification.target_in(row, columns, data)
                except Unusable as fault:
                    raise UserError(f"{place}: {fault}", fault.hint) from fault
                done.targets.append(same.setdefault(value, value) if type(value) is str else value)
    if data.augment is not None:
        table, inputs = data.augment, {role: name for role, name in columns.items() if role != "label"}
        done.copies = lambda: encode(augment.copies(done.source, inputs, table), inputs, tokenizer, data, length)
    return done.finish()


def examples(encoded: Encoded, label_spec: LabelSpec, evaluation: bool) -> Examples:
    """Return the rows as the model's inputs and labels; for training, with their altered copies behind them."""
    if evaluation or encoded.copies is None:
        return Examples(encoded, replace(label_spec, unknown=tuple(encoded.unknown)), by_length=evaluation)
    assert encoded.labels is not None
    copies = encoded.copies()
    rows = np.asarray(copies.row) % len(encoded.keys)
    whole = Encoded(encoded.source, labels=np.concatenate([encoded.labels, encoded.labels[rows]]))
    whole.row.extend(np.concatenate([encoded.row, rows]))
    for name in encoded.inputs:
        for part in (encoded, copies):
            whole.input(name).extend(part.inputs[name].values, part.inputs[name].lengths)
    return Examples(whole.finish(), label_spec)


def prepare_model(model: Any, label_spec: LabelSpec) -> None:
    """Let the new head of a regression begin at the mean of the values: it would take hundreds of steps to get there.

    A head that is new has biases of zero.
    """
    if label_spec.problem_type == REGRESSION:
        heads = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1)
        for head in heads:
            if head.bias is not None and not head.bias.any():
                torch.nn.init.constant_(head.bias, label_spec.mean)


def record(label_spec: LabelSpec) -> dict[str, Any]:
    """Return what the run's record says: of two classes, whose F1 is measured. The model's config has the rest."""
    two = label_spec.problem_type == SINGLE and len(label_spec.names) == 2
    return {"f1_of": label_spec.names[label_spec.positive]} if two else {}


def metric_names(label_spec: LabelSpec) -> tuple[str, ...]:
    """Name the metrics that fit these labels."""
    return METRICS_OF[label_spec.problem_type]


def label_counts(part: Encoded, label_spec: LabelSpec) -> dict[str, Any]:
    """Count how often each class occurs; of a regression the range of its values."""
    assert part.labels is not None
    if label_spec.problem_type == REGRESSION:
        return {"min": float(part.labels.min()), "mean": float(part.labels.mean()), "max": float(part.labels.max())}
    return {name: int(n) for name, n in zip(label_spec.names, counts_of(part.labels, label_spec), strict=True)}


# ---- loss, predictions, metrics ------------------------------------------------------------------------------------


def losses(
    outputs: Any,
    batch: Mapping[str, torch.Tensor],
    label_spec: LabelSpec,
    training: bool = False,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of each label (nats; squared error of a regression), [B] or [B, C]; class weights only in training.

    A row's loss is weighted by its class; of a multi-label row, each class that it has. Weighted losses are still
    divided by the number of labels, so that accumulation changes nothing.
    """
    logits, labels = outputs.logits.float(), batch["labels"]
    weights = torch.tensor(label_spec.weights, device=logits.device) if training and label_spec.weights else None
    if label_spec.problem_type == REGRESSION:
        return (logits.squeeze(-1) - labels) ** 2
    if label_spec.problem_type == MULTI:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none", pos_weight=weights)
    found = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing if training else 0.0)
    return found if weights is None else found * weights[labels]


def preprocess_logits_for_metrics(
    model: Any, outputs: Any, batch: Mapping[str, torch.Tensor], label_spec: LabelSpec
) -> torch.Tensor:
    """Return what is needed of the outputs, [B, K]: the value of a regression; else what is chosen and how probably.

    That is the class and its probability, [B, 2]; of several classes first all decisions, then all probabilities.
    """
    logits = outputs.logits.float()
    chosen = decide(logits, label_spec)
    if label_spec.problem_type == REGRESSION:
        return chosen
    if label_spec.problem_type == MULTI:
        return torch.cat([chosen, logits.sigmoid()], dim=1)
    return torch.cat([chosen, logits.softmax(dim=-1).amax(dim=-1, keepdim=True)], dim=1)


def decide(logits: torch.Tensor, label_spec: LabelSpec) -> torch.Tensor:
    """Logits [B, C] -> the class with the highest [B, 1], the classes above their threshold [B, C], or the value."""
    if label_spec.problem_type == REGRESSION:
        return logits
    if label_spec.problem_type == MULTI:
        if label_spec.thresholds is None:
            return (logits > 0).float()
        return (logits > torch.tensor(label_spec.thresholds, dtype=logits.dtype, device=logits.device).logit()).float()
    return logits.argmax(dim=-1, keepdim=True).float()


def metrics(kept: np.ndarray, part: Examples) -> dict[str, float]:
    """Compute the figures of the task from what was kept of every example, in the order of `part`."""
    predictions, references = predictions_and_references(kept, part)
    label_spec: LabelSpec = part.extra
    if label_spec.problem_type == MULTI and len(predictions) and not predictions.any() and _first_process():
        above = "0.5" if label_spec.thresholds is None else "its data.threshold"
        say(
            f"warning  no class exceeds {above} in any of {len(predictions):,} rows, so none is predicted: train "
            "longer, or lower data.threshold"
        )
    return _figures(predictions, references, label_spec)


def _figures(predictions: np.ndarray, references: np.ndarray, label_spec: LabelSpec) -> dict[str, float]:
    """All metrics that fit the labels, from both sides as `predictions_and_references` gives them."""
    if label_spec.problem_type == REGRESSION:
        return {
            "pearson": measures.pearson(predictions, references),
            "spearmanr": measures.spearmanr(predictions, references),
            "mean_squared_error": measures.mean_squared_error(predictions, references),
        }
    if label_spec.problem_type == MULTI:
        return {
            "accuracy": measures.subset_accuracy(predictions, references),
            "f1": measures.multilabel_f1(predictions, references, "micro"),
            "f1_macro": measures.multilabel_f1(predictions, references, "macro"),
        }
    if len(label_spec.names) == 2:
        f1 = measures.f1(
            (predictions == label_spec.positive).astype(int), (references == label_spec.positive).astype(int)
        )
    else:
        f1 = measures.f1(predictions, references, "macro")
    return {
        "accuracy": measures.accuracy(predictions, references),
        "f1": f1,
        "matthews_correlation": measures.matthews_correlation(predictions, references),
    }


def _first_process() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def predictions_and_references(kept: np.ndarray, part: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as a metric takes them: ints [N], bools [N, C], or floats [N].

    Classes that the model does not have are one more class, which it never predicts: the number UNKNOWN, or a column.
    """
    assert part.labels is not None
    references = part.labels[part.order]
    label_spec: LabelSpec = part.extra
    if label_spec.problem_type == REGRESSION:
        return kept[:, 0].astype(np.float64), references.astype(np.float64)
    if label_spec.problem_type == MULTI:
        kept = kept[:, : len(label_spec.names)]
        if not label_spec.unknown:
            return kept > 0.5, references > 0.5
        unknown = np.isin(part.row[part.order], label_spec.unknown)[:, None]
        none = np.zeros_like(unknown)
        return np.concatenate([kept > 0.5, none], axis=1), np.concatenate([references > 0.5, unknown], axis=1)
    return kept[:, 0].astype(np.int64), references


def results(kept: np.ndarray, part: Examples, columns: Mapping[str, str]) -> Results:
    """What each row is and what it was taken for; of a regression, how far off it is."""
    label_spec: LabelSpec = part.extra
    found, gold = predictions_and_references(kept, part)
    rows = part.row[part.order].tolist()
    if label_spec.problem_type == REGRESSION:
        values = zip(rows, gold.tolist(), found.tolist(), strict=True)
        return Results(
            Result(row, {"truth": true, "prediction": value, "difference": value - true}, (abs(value - true),))
            for row, true, value in values
        )
    if label_spec.problem_type == MULTI:
        names = [*label_spec.names, *[UNKNOWN_CLASS] * (found.shape[1] - len(label_spec.names))]
        scores = kept[:, len(label_spec.names) :]
        return Results((_of_several(*each, names) for each in zip(rows, gold, found, scores, strict=True)), names)
    name_of = {UNKNOWN: UNKNOWN_CLASS, **dict(enumerate(label_spec.names))}
    used = [name_of[number] for number in np.union1d(found, gold).tolist()]

    def result(row: int, true: int, chosen: int, score: float) -> Result:
        wrong = true != chosen
        said = {"truth": name_of[true], "prediction": name_of[chosen], "score": score, "right": not wrong}
        return Result(row, said, (wrong, score if wrong else -score), [(name_of[true], name_of[chosen])])

    return Results(map(result, rows, gold.tolist(), found.tolist(), kept[:, 1].tolist()), used)


def _of_several(row: int, gold: np.ndarray, predicted: np.ndarray, scores: np.ndarray, names: Sequence[str]) -> Result:
    """The result of a row with several classes, whose rank is how sure its surest wrong decision is."""
    truth, chosen = ([name for name, yes in zip(names, side, strict=True) if yes] for side in (gold, predicted))
    sure = np.where(predicted[: len(scores)], scores, 1 - scores)
    wrong = gold != predicted
    said = {
        "truth": truth,
        "prediction": chosen,
        "scores": {name: round(score, 6) for name, score in zip(names, scores.tolist(), strict=False)},
        "right": not wrong.any(),
    }
    surest = max([*sure[wrong[: len(scores)]].tolist(), 0.0])  # 0 where all that is wrong is a class it does not have
    decisions = [
        (name if true else None, name if yes else None)
        for name, true, yes in zip(names, gold, predicted, strict=True)
        if true or yes
    ]
    return Result(row, said, (bool(wrong.any()), surest), decisions)


def trivial_answer(train: Encoded, label_spec: LabelSpec) -> dict[str, Any]:
    """The most frequent class, or the mean of the values.

    Of several classes a row, the set of them that is most frequent, and the set that has the best F1 if it is always
    the answer (`f1`); `shares` are the classes' shares of the rows, none of them 0 or 1.
    """
    labels, names = train.labels, label_spec.names
    assert labels is not None
    if label_spec.problem_type == REGRESSION:
        return {"value": float(labels.mean())}
    if label_spec.problem_type == SINGLE:
        return {"label": names[int(counts_of(labels, label_spec).argmax())]}
    sets, counts = np.unique(labels > 0.5, axis=0, return_counts=True)
    shares = labels.mean(axis=0, dtype=np.float64)
    order = np.argsort(-shares, kind="stable")
    by_size = 2 * np.cumsum(shares[order]) / (1 + np.arange(len(names)) + shares.sum())
    best = sorted(order[: 1 + int(by_size.argmax())].tolist())
    return {
        "labels": [name for name, has in zip(names, sets[counts.argmax()], strict=True) if has],
        "f1": [names[number] for number in best],
        "shares": ((len(labels) * shares + 0.5) / (len(labels) + 1)).tolist(),
    }


def trivial(known: Mapping[str, Any], kept: np.ndarray, part: Examples) -> Trivial:
    """Always the most frequent class, the mean of the values, or the most frequent set of classes."""
    label_spec: LabelSpec = part.extra
    predictions, references = predictions_and_references(kept, part)
    assert part.labels is not None
    labels = part.labels[part.order]
    if label_spec.problem_type == REGRESSION:
        always = np.full_like(predictions, known["value"])
        squares = (always - references) ** 2
        return Trivial(
            f"always {known['value']:.4g}",
            {"pearson": 0.0, "spearmanr": 0.0, "mean_squared_error": float(squares.mean())},
            always,
            {
                "mean_squared_error": (mean_rows((predictions - references) ** 2), mean_rows(squares)),
                "pearson": (correlation_rows(predictions, references), correlation_rows(always, references)),
            },
            mean_rows(squares),
        )
    if label_spec.problem_type == SINGLE:
        always = np.full_like(predictions, label_spec.names.index(known["label"]))
        rows = {"accuracy": (mean_rows(predictions == references), mean_rows(always == references))}
        if len(label_spec.names) <= MOST_CLASSES:
            rows["matthews_correlation"] = agreement_rows(predictions, references), agreement_rows(always, references)
        return Trivial(f'always "{known["label"]}"', _figures(always, references, label_spec), always, rows)

    def constant(chosen: list[str]) -> np.ndarray:
        has = [name in chosen for name in label_spec.names]
        return np.tile(np.array(has + [False] * (predictions.shape[1] - len(has))), (len(predictions), 1))

    always, by_f1, shares = constant(known["labels"]), constant(known["f1"]), np.array(known["shares"])
    right, trivially = ((side == references).all(axis=1) for side in (predictions, always))
    each = -(labels * np.log(shares) + (1 - labels) * np.log(1 - shares))
    said = {key: 'always "' + '", "'.join(known[key]) + '"' if known[key] else "no class" for key in ("labels", "f1")}
    return Trivial(
        said["labels"],
        {**_figures(by_f1, references, label_spec), "accuracy": measures.subset_accuracy(always, references)},
        always,
        {
            "accuracy": (mean_rows(right), mean_rows(trivially)),
            "f1": (overlap_rows(predictions, references), overlap_rows(by_f1, references)),
        },
        np.stack([each.sum(axis=1), np.full(len(each), len(shares))], axis=1),
        {"f1": said["f1"], "f1_macro": said["f1"], "loss": FREQUENCIES},
    )


def label_spec_from_config(
    config: Any, record: Mapping[str, Any], data: ClassificationData, tokenizer: Any
) -> LabelSpec:
    """Return what the outputs of a finished model mean, from its config."""
    problem = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)
    names = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return LabelSpec(problem, names, thresholds=thresholds_in(config, names) if problem == MULTI else None)


def forward_for_predict(model: Any, batch: Mapping[str, torch.Tensor], label_spec: LabelSpec) -> torch.Tensor:
    """Compute what `postprocess` needs of the model, [B, 1 + C]: the example, and its logits."""
    return torch.cat([batch["index"][:, None].double(), model(**models_own(batch)).logits.double()], dim=1)


def postprocess(kept: np.ndarray, part: Examples, label_spec: LabelSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, what `predict` says of it): a label with its probability and those of all, several labels, or a value."""
    logits = torch.from_numpy(kept[:, 1:])
    chosen = decide(logits, label_spec)
    scores = logits.sigmoid() if label_spec.problem_type == MULTI else logits.softmax(dim=-1)
    for i, index in enumerate(kept[:, 0]):
        row = int(part.row[int(index)])
        if label_spec.problem_type == REGRESSION:
            yield row, {"value": round(float(logits[i, 0]), 6)}
            continue
        by_name = {name: round(score, 6) for name, score in zip(label_spec.names, scores[i].tolist(), strict=True)}
        if label_spec.problem_type == MULTI:
            yield (
                row,
                {"labels": [n for n, yes in zip(label_spec.names, chosen[i], strict=True) if yes], "scores": by_name},
            )
        else:
            name = label_spec.names[int(chosen[i])]
            yield row, {"label": name, "score": by_name[name], "scores": by_name}
