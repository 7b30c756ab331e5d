"""Multiple choice: which of several endings or answers is right (SWAG, HellaSwag, C3, RACE, COPA, ARC).

Each choice is read together with what stands before it and given one score; the softmax over the choices of a row says
how likely each of them is (Devlin et al. 2018, arXiv:1810.04805, section 4.4).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmkit import metrics as measures
from llmkit.data.rows import choices
from llmkit.data.rows.batches import Examples, models_own
from llmkit.data.rows.choices import (
    ANSWER_HINT,
    CLEAR,
    FROM_ONE,
    kind_meant,
    misfit,
    read_beginnings,
    read_choices,
    readings,
)
from llmkit.data.rows.examples import Encoded, chunks, key_of, located, refuse
from llmkit.data.rows.reader import RowReader
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChoiceData
from llmkit.tasks.task import Result, Results
from llmkit.tasks.trivial import Trivial, mean_rows

if TYPE_CHECKING:
    from llmkit.tasks import multiple_choice
    from llmkit.tasks.task import RowTask

    task: RowTask = multiple_choice

reader: RowReader = choices  # how its rows are read

# What this task does without (`tasks/task.py`).
LONGEST_INPUT = references = prepare_model = None

METRICS = ("accuracy",)
# Their heads judge a choice by its last token, which is padding, where the configuration does not say otherwise
# (modeling_roformer.py, RoFormerSequenceSummary).
LAST_BY_DEFAULT = ("convbert", "roformer")
NONE = -1  # in `choices`: the row has no such choice


@dataclass(frozen=True)
class ChoiceSpec:
    """The texts of the choices by row, for `predict`."""

    choices: Sequence[Sequence[str]] = ()


# ---- rows -> features ----------------------------------------------------------------------------------------------


def encode(rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: ChoiceData, length: int) -> Encoded:
    """Tokenize every row: its choices end to end, each behind the context and the question, in `length` tokens at most.

    Beside the inputs of the model: `choices`, how many tokens each choice has, NONE where another row has one more.
    What is too long loses the beginning of its context, and once that is gone the end of the choice. The length of a
    row is that of its longest choice with all that stands before it.
    Targets are (the choices, what the data calls them if it does, the answer as it was read).
    """
    done = Encoded(rows)
    sizes: list[list[int]] = []
    for chunk in chunks(rows.read()):
        begins = len(done.targets)
        firsts: list[str] = []
        seconds: list[str] = []
        for place, row in chunk:
            with located(place):
                first, beginning = read_beginnings(row, columns)
                choices, names = read_choices(row, columns)
            if not first and not beginning:
                done.empty.append(len(done.targets))
            done.row.append(len(done.targets))
            done.keys.append(key_of(first, beginning, *choices))
            done.targets.append((choices, names, row.get(columns.get("answer", ""))))
            firsts += [first] * len(choices)
            seconds += [f"{beginning} {choice}" if beginning else choice for choice in choices]
        counts = [len(choices) for choices, _, _ in done.targets[begins:]]
        sizes += _add_choices(done, counts, firsts, seconds, tokenizer, length)
    widest = max(map(len, sizes), default=0)
    for each in sizes:
        done.add("choices", each + [NONE] * (widest - len(each)))
    return done.finish()


def _add_choices(
    done: Encoded, counts: list[int], firsts: list[str], seconds: list[str], tokenizer: Any, length: int
) -> list[list[int]]:
    """Tokenize the pairs, `counts` of them a row, and add them to `done`; how many tokens each has, by row."""
    read = tokenizer(
        firsts,
        seconds,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_special_tokens_mask=True,
        verbose=False,
    )
    special = read.pop("special_tokens_mask")
    whole = [len(ids) for ids in read["input_ids"]]
    long = [i for i, size in enumerate(whole) if size > length]
    if long:
        alone = tokenizer([seconds[i] for i in long], add_special_tokens=False, verbose=False)["input_ids"]
        for i, own in zip(long, alone, strict=True):
            stays = _staying(special[i], len(own), length)
            for name in read:
                read[name][i] = [read[name][i][position] for position in stays]
    sizes = []
    behind = np.cumsum(counts).tolist()
    for begin, end in zip([0, *behind], behind, strict=False):
        for name in read:
            done.add(name, list(chain.from_iterable(read[name][begin:end])))
        sizes.append([len(ids) for ids in read["input_ids"][begin:end]])
        longest = max(whole[begin:end])
        done.lengths.append(longest)
        done.cut.append(max(0, longest - length))
    return sizes


def _staying(special: Sequence[int], own: int, length: int) -> list[int]:
    """The positions of a pair that stay, where its second text has `own` tokens and all of it must be `length` long."""
    inside = [position for position, mask in enumerate(special) if not mask]
    excess = len(special) - length
    first = min(excess, max(0, len(inside) - own))
    gone = {*inside[:first], *inside[len(inside) - (excess - first) :]}
    return [position for position in range(len(special)) if position not in gone]


# ---- answers -------------------------------------------------------------------------------------------------------


def resolve_labels(
    data: ChoiceData,
    columns: Mapping[str, str],
    train: Encoded | None,
    validation: Mapping[str, Encoded],
    config: Any,
    fixed: bool,
) -> ChoiceSpec:
    """Resolve the labels of every part, the place of the right choice: all answers are read in one way.

    That way is the first of KINDS that all can be read in, else the one that most can. Whether numbers count from 1 is
    written into the model's configuration, for rows that do not show it. Raises UserError where that is not clear, and
    for rows whose answers are not read as those of other parts are.
    """
    if config.model_type in LAST_BY_DEFAULT and not hasattr(config, "summary_type"):
        config.summary_type = "first"
    parts = [*([train] if train is not None else []), *validation.values()]
    base = data.answer_base if data.answer_base is not None or not fixed else getattr(config, "answer_base", None)
    read = [[readings(choices, names, answer, base) for choices, names, answer in part.targets] for part in parts]
    pooled = list(chain.from_iterable(read))
    meant = kind_meant(pooled)
    if meant == "counted":
        if sum("counted" in each for each in pooled) < CLEAR:
            raise UserError(
                f"{parts[0].source.source}: it seems that {FROM_ONE}",
                "if so, set data.answer_base = 1; if they count from 0 and some are wrong, set data.answer_base = 0",
            )
        base = 1
    if base and not fixed:
        config.answer_base = base
    for part, chosen in zip(parts, read, strict=True):
        mistakes = {
            number: misfit(answer, len(choices), each, meant, base or 0)
            for number, (each, (choices, _, answer)) in enumerate(zip(chosen, part.targets, strict=True))
            if meant not in each
        }
        refuse(part.source, mistakes, "whose answer cannot be used", ANSWER_HINT)
        part.labels = np.array([each[meant] for each in chosen], np.int64)
    return ChoiceSpec()


def examples(encoded: Encoded, label_spec: ChoiceSpec, evaluation: bool) -> Examples:
    """Return the rows as the model's inputs and labels; as long as a row counts what it takes in a batch."""
    found = Examples(encoded, replace(label_spec, choices=[choices for choices, _, _ in encoded.targets]))
    if len(found):
        sizes = encoded.inputs["choices"].values.reshape(len(encoded.row), -1)
        found.lengths = (sizes.max(axis=1) * (sizes != NONE).sum(axis=1)).astype(np.int64)
    if evaluation:
        found.order = np.argsort(found.lengths, kind="stable")
    return found


def collator(
    tokenizer: Any, config: Any, multiple: int = 1
) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Examples -> one tensor [B, C, T] for each input, padded to the longest choice, rounded up to `multiple`.

    C is the most choices of a row. A choice that a row does not have is padding with one token to attend to, for a
    softmax over nothing is no number. `choices` is [B, W], where W is the most choices of a row in all the data.
    """
    padding = {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
    }
    left = tokenizer.padding_side == "left"  # XLNet's score is read off the last token

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sizes = np.stack([example["choices"] for example in examples]).astype(np.int64)
        most = int((sizes != NONE).sum(axis=1).max())
        longest = -(-max(1, int(sizes.max())) // multiple) * multiple
        batch = {"choices": torch.from_numpy(sizes)}
        for name in ("index", "labels"):
            if name in examples[0]:
                batch[name] = torch.from_numpy(np.stack([np.asarray(example[name]) for example in examples]))
        mask = np.zeros((len(examples), most, longest), np.int64)
        inputs = [name for name in examples[0] if name not in ("choices", "index", "labels")]
        tables = {name: np.full(mask.shape, padding.get(name, 0), np.int64) for name in inputs}
        for b in range(len(examples)):
            start = 0
            for c, size in enumerate(sizes[b, :most].tolist()):
                at = longest - max(1, size) if left else 0
                mask[b, c, at : at + max(1, size)] = 1
                if size > 0:
                    for name in inputs:
                        tables[name][b, c, at : at + size] = examples[b][name][start : start + size]
                    start += size
        batch |= {name: torch.from_numpy(table) for name, table in tables.items()}
        batch["attention_mask"] = torch.from_numpy(mask)
        return batch

    return collate


def record(label_spec: ChoiceSpec) -> dict[str, Any]:
    """Return what the run's record says for `predict`: nothing."""
    return {}


def metric_names(label_spec: ChoiceSpec) -> tuple[str, ...]:
    """Name the metrics that fit the data."""
    return METRICS


def label_counts(part: Encoded, label_spec: ChoiceSpec) -> dict[str, Any]:
    """Count how often the choice of each number is the right one."""
    assert part.labels is not None
    counts = np.bincount(part.labels, minlength=max(len(choices) for choices, _, _ in part.targets))
    return {f"choice {number}": int(count) for number, count in enumerate(counts)}


# ---- loss, predictions, metrics ------------------------------------------------------------------------------------


def _chances(outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of each choice's probability, [B, C], and which of them the rows have."""
    logits = outputs.logits.float()
    there = batch["choices"][:, : logits.shape[1]] != NONE
    return logits.masked_fill(~there, -torch.inf).log_softmax(dim=1), there


def losses(
    outputs: Any,
    batch: Mapping[str, torch.Tensor],
    label_spec: ChoiceSpec,
    training: bool = False,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy (nats) of the right choice among those of the row, [B]."""
    chances, there = _chances(outputs, batch)
    right = chances.gather(1, batch["labels"][:, None]).squeeze(1)
    smoothing = label_smoothing if training else 0.0
    if not smoothing:
        return -right
    evenly = chances.masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1)
    return -(1 - smoothing) * right - smoothing * evenly


def preprocess_logits_for_metrics(
    model: Any, outputs: Any, batch: Mapping[str, torch.Tensor], label_spec: ChoiceSpec
) -> torch.Tensor:
    """Return what is needed of the outputs, [B, 2]: the number of the likeliest choice, and its probability."""
    best = _chances(outputs, batch)[0].max(dim=1)
    return torch.stack([best.indices.float(), best.values.exp()], dim=1)


def metrics(kept: np.ndarray, part: Examples) -> dict[str, float]:
    """Compute the share of rows whose right choice was found, from what was kept of every row."""
    return {"accuracy": measures.accuracy(*predictions_and_references(kept, part))}


def predictions_and_references(kept: np.ndarray, part: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as a metric takes them: the numbers of choices, [N]."""
    assert part.labels is not None
    return kept[:, 0].astype(np.int64), part.labels[part.order]


def results(kept: np.ndarray, part: Examples, columns: Mapping[str, str]) -> Results:
    """The right choice and the one taken, by number and text."""
    predictions, gold = predictions_and_references(kept, part)

    def result(row: int, true: int, chosen: int, score: float) -> Result:
        choices, wrong = part.extra.choices[row], true != chosen
        said = {
            "truth": true,
            "true_text": choices[true],
            "prediction": chosen,
            "text": choices[chosen],
            "score": score,
            "right": not wrong,
        }
        return Result(row, said, (wrong, score if wrong else -score))

    rows = part.row[part.order].tolist()
    return Results(map(result, rows, gold.tolist(), predictions.tolist(), kept[:, 1].tolist()))


def trivial_answer(train: Encoded, label_spec: ChoiceSpec) -> dict[str, Any]:
    """The place at which the right choice stands most often."""
    assert train.labels is not None
    return {"choice": int(np.bincount(train.labels).argmax())}


def trivial(known: Mapping[str, Any], kept: np.ndarray, part: Examples) -> Trivial:
    """Always the choice at the same place; wrong in a row that has fewer."""
    predictions, references = predictions_and_references(kept, part)
    always = np.full_like(predictions, known["choice"])
    rows = {"accuracy": (mean_rows(predictions == references), mean_rows(always == references))}
    return Trivial(
        f"always choice {known['choice']}", {"accuracy": measures.accuracy(always, references)}, always, rows
    )


def label_spec_from_config(config: Any, record: Mapping[str, Any], data: ChoiceData, tokenizer: Any) -> ChoiceSpec:
    """A finished model has nothing to say beside its scores."""
    return ChoiceSpec()


def forward_for_predict(model: Any, batch: Mapping[str, torch.Tensor], label_spec: ChoiceSpec) -> torch.Tensor:
    """What `postprocess` needs of the model, [B, 1 + W]: the example, and the probability of each choice (0: none)."""
    chances = _chances(model(**models_own(batch)), batch)[0].double().exp()
    padded = torch.zeros(batch["choices"].shape, dtype=torch.float64, device=chances.device)
    padded[:, : chances.shape[1]] = chances
    return torch.cat([batch["index"][:, None].double(), padded], dim=1)


def postprocess(kept: np.ndarray, part: Examples, label_spec: ChoiceSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, what `predict` says of it): the number of the likeliest choice, its text, and the probabilities of all."""
    for values in kept:
        row = int(part.row[int(values[0])])
        choices = part.extra.choices[row]
        scores = values[1 : 1 + len(choices)]
        best = int(scores.argmax())
        yield (
            row,
            {
                "choice": best,
                "text": choices[best],
                "score": round(float(scores[best]), 6),
                "scores": [round(float(score), 6) for score in scores],
            },
        )
