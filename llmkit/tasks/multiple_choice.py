"""Multiple choice: which of several endings or answers is right (SWAG, HellaSwag, C3, RACE, COPA, ARC).

Each choice is read together with what stands before it and given one score; the softmax over the choices of a row says
how likely each of them is (Devlin et al. 2018, arXiv:1810.04805, section 4.4).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmkit import metrics as measures
from llmkit.data.rows import choices
from llmkit.data.rows.batches import Examples, models_own
from llmkit.data.rows.choices import LETTERS, SHOWN, read_beginnings, read_choices
from llmkit.data.rows.examples import Encoded, chunks, key_of, refuse
from llmkit.data.rows.reader import RowReader
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChoiceData

if TYPE_CHECKING:
    from llmkit.tasks import multiple_choice
    from llmkit.tasks.task import RowTask

    task: RowTask = multiple_choice

reader: RowReader = choices  # how its rows are read

# What this task does without (`tasks/task.py`).
LONGEST_INPUT = prepare_model = None

METRICS = ("accuracy",)
# Their heads judge a choice by its last token, which is padding, where the configuration does not say otherwise
# (modeling_roformer.py, RoFormerSequenceSummary).
LAST_BY_DEFAULT = ("convbert", "roformer")
# What an answer may be, in the order in which it is taken for it.
KINDS = {"name": "the name", "number": "the number", "letter": "the letter", "text": "the text"}
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
    mistakes: dict[int, str] = {}
    sizes: list[list[int]] = []
    for chunk in chunks(rows.read()):
        begins = len(done.targets)
        firsts: list[str] = []
        seconds: list[str] = []
        for place, row in chunk:
            first, beginning = read_beginnings(row, columns, place)
            choices: list[str] = []
            names: list[str] | None = None
            try:
                choices, names = read_choices(row, columns, place)
            except ValueError as mistake:
                mistakes[len(done.targets)] = str(mistake)
            if "answer" in columns and columns["answer"] not in row:
                raise UserError(
                    f"{place}: no `{columns['answer']}`; the row has {', '.join(row)}", "every row needs an answer"
                )
            if not first and not beginning:
                done.empty.append(len(done.targets))
            done.row.append(len(done.targets))
            done.keys.append(key_of(first, beginning, *choices))
            done.targets.append((choices, names, row.get(columns.get("answer", ""))))
            firsts += [first] * len(choices)
            seconds += [f"{beginning} {choice}" if beginning else choice for choice in choices]
        if not mistakes:
            sizes += _add_choices(
                done, [len(each[0]) for each in done.targets[begins:]], firsts, seconds, tokenizer, length
            )
    refuse(
        rows,
        mistakes,
        "whose choices cannot be used",
        'they are a list of texts (in a CSV JSON: ["a", "b"]), a table of `text` and `label`, or one column for each',
    )
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
    """Resolve the labels of every part, the number of the right choice: all answers are read in one way.

    That way is the first of KINDS that all can be read in, else the one that most can. Raises UserError that names the
    rows with an answer that is missing or none of the choices.
    """
    if config.model_type in LAST_BY_DEFAULT and not hasattr(config, "summary_type"):
        config.summary_type = "first"
    parts = [*([train] if train is not None else []), *validation.values()]
    read = [[readings(*target) for target in part.targets] for part in parts]
    counts = {kind: sum(kind in each for each in chain.from_iterable(read)) for kind in KINDS}
    meant = max(KINDS, key=lambda kind: counts[kind]) if any(counts.values()) else "number"  # of several, the first
    for part, found in zip(parts, read, strict=True):
        mistakes = {
            number: _mistake(answer, choices, each, meant)
            for number, (each, (choices, _, answer)) in enumerate(zip(found, part.targets, strict=True))
            if meant not in each
        }
        numbers = [_number(answer) for _, _, answer in part.targets]
        hint = "an answer is the number of a choice, from 0, its letter (A, B, ...), its label or its text"
        if meant == "number" and all(number is not None and number > 0 for number in numbers):
            hint = "choices are numbered from 0, and these seem to count from 1: take 1 off, or write letters, A for 1"
        refuse(part.source, mistakes, "whose answer cannot be used", hint)
        part.labels = np.array([each[meant] for each in found], np.int64)
    return ChoiceSpec()


def readings(choices: Sequence[str], names: Sequence[str] | None, answer: Any) -> dict[str, int]:
    """Return the number of the choice that an answer means, by each of KINDS that it can be read as.

    Where the data has names for the choices, an answer is never the number or the letter of one: theirs may differ.
    """
    text = str(answer).strip()
    found = {}
    if names is not None and text in names:
        found["name"] = names.index(text)
    number = _number(answer)
    if names is None and number is not None and 0 <= number < len(choices):
        found["number"] = number
    if names is None and len(text) == 1 and text.upper() in LETTERS[: len(choices)]:
        found["letter"] = LETTERS.index(text.upper())
    if answer is not None and text and text in choices:
        found["text"] = choices.index(text)
    return found


def _number(answer: Any) -> int | None:
    """The whole number that an answer is; pandas writes 1.0 for 1 in a CSV where a row has none."""
    if not re.fullmatch(r"-?\d{1,9}(\.0)?", str(answer).strip()):
        return None
    return int(float(answer))


def _mistake(answer: Any, choices: Sequence[str], found: Mapping[str, int], meant: str) -> str:
    if answer is None or not str(answer).strip():
        return "no answer (is this a test split?)"
    number = _number(answer)
    shown = str(answer).strip()
    shown = f'answer "{shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."}"'
    if found:
        return (
            f"{shown} is {KINDS[min(found, key=list(KINDS).index)]} of a choice, where other rows have {KINDS[meant]}"
        )
    if number is not None and meant == "number":
        untold = " (often a row without an answer: is this a test split?)" if number == -1 else ""
        return f"answer {number} is out of range 0 to {len(choices) - 1}{untold}"
    return f"{shown} is none of its {len(choices)} choices"


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
    """Return what the metrics need of the outputs: the number of the likeliest choice, [B, 1]."""
    return _chances(outputs, batch)[0].argmax(dim=1, keepdim=True).float()


def metrics(kept: np.ndarray, part: Examples) -> dict[str, float]:
    """Compute the share of rows whose right choice was found, from what was kept of every row."""
    return {"accuracy": measures.accuracy(*predictions_and_references(kept, part))}


def predictions_and_references(kept: np.ndarray, part: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as a metric takes them: the numbers of choices, [N]."""
    assert part.labels is not None
    return kept[:, 0].astype(np.int64), part.labels[part.order]


def label_spec_from_config(config: Any, record: Mapping[str, Any], data: ChoiceData, tokenizer: Any) -> ChoiceSpec:
    """A finished model has nothing to say beside its scores."""
    return ChoiceSpec()


def forward_for_predict(model: Any, batch: Mapping[str, torch.Tensor], label_spec: ChoiceSpec) -> torch.Tensor:
    """What `postprocess` needs of the model, [B, 1 + W]: the example, and the probability of each choice (0: none)."""
    chances = _chances(model(**models_own(batch)), batch)[0].double().exp()
    found = torch.zeros(batch["choices"].shape, dtype=torch.float64, device=chances.device)
    found[:, : chances.shape[1]] = chances
    return torch.cat([batch["index"][:, None].double(), found], dim=1)


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
