"""Turn rows into examples: keep token ids of any length in a few flat arrays, and pad batches to their longest."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
import xxhash
from torch.utils.data import Dataset, Sampler

from llmkit.data.rows.table import Rows
from llmkit.errors import UserError

CHUNK = 1000  # rows that are tokenized at once
NOT_THE_MODELS = ("labels", "index", "offset_start", "offset_end", "choices", "weights")
# Characters that are read of a text that is cut to fewer tokens anyway: a tokenizer needs some 280 bytes for each.
LONGEST_TEXT = 2**20
SHOWN = 5  # mistakes in rows that one message names


class Ragged:
    """Sequences of integers of any length, end to end in one array."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._blocks: list[np.ndarray] = []  # many parts in one: a small array costs more than its numbers
        self._lengths: list[int] = []

    def append(self, sequence: Sequence[int] | np.ndarray) -> None:
        self._parts.append(np.asarray(sequence, np.int32))
        self._lengths.append(len(sequence))
        if len(self._parts) == CHUNK:
            self._blocks.append(np.concatenate(self._parts))
            self._parts.clear()

    def finish(self) -> None:
        """Join all sequences into one array; no more are added."""
        self.lengths = np.array(self._lengths, np.int64)
        self.bounds = np.concatenate([[0], np.cumsum(self.lengths)])
        self.values = np.concatenate([np.empty(0, np.int32), *self._blocks, *self._parts])
        self._parts, self._blocks = [], []

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.bounds[index] : self.bounds[index + 1]]


@dataclass
class Encoded:
    """Tokenized rows, before their labels are resolved.

    By example: `inputs` of the model, and `row`, the number of the row that the example came from (a long row may give
    several). By row: `targets` as they were read; `lengths` in tokens before anything was cut off (of the `beginning`
    of a text, where no more is read); `cut`, the tokens that were cut off; and `keys`, which are equal for rows with
    the same texts. Numbers of rows: `empty` have no text at all, `unlearned` a target that no example holds.

    `labels` are the targets as the model's numbers, one entry each example, once they are resolved (labels of single
    tokens are in `inputs` instead). `tokenizer` is set where targets are text. `copies` makes the altered copies of all
    rows, for training alone.
    """

    source: Rows
    inputs: dict[str, Ragged] = field(default_factory=dict)
    row: list[int] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    unlearned: list[int] = field(default_factory=list)
    labels: np.ndarray | None = None
    tokenizer: Any = None
    copies: "Callable[[], Encoded] | None" = None

    def add(self, name: str, sequence: Sequence[int] | np.ndarray) -> None:
        if name not in self.inputs:
            self.inputs[name] = Ragged()
        self.inputs[name].append(sequence)

    def finish(self) -> "Encoded":
        for sequences in self.inputs.values():
            sequences.finish()
        return self


class Examples(Dataset[dict[str, Any]]):
    """Tokenized examples with their labels; item i is `{"input_ids": ..., "labels": ..., "index": i}`.

    With `by_length`, for evaluation, they are sorted by length, so that batches hold little padding: no metric depends
    on the order, and `index` says which example an output belongs to. `extra` is what the metrics need beside labels.
    """

    def __init__(self, encoded: Encoded, extra: Any = None, by_length: bool = False) -> None:
        self.inputs = encoded.inputs
        self.row = np.array(encoded.row, np.int64)
        self.labels = encoded.labels
        self.extra = extra
        self.lengths = encoded.inputs["input_ids"].lengths if encoded.row else np.empty(0, np.int64)
        self.order = np.argsort(self.lengths, kind="stable") if by_length else np.arange(len(self.lengths))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called at its start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = int(self.order[position])
        example: dict[str, Any] = {name: values[index] for name, values in self.inputs.items()}
        example["index"] = index
        if self.labels is not None:
            example["labels"] = self.labels[index]
        return example


def collator(
    tokenizer: Any, multiple: int = 1, labelled_tokens: bool = False
) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Make the collator: examples -> one tensor [B, T] for each input, with `attention_mask` and labels.

    Inputs are padded on the right to the longest example, and T is rounded up to `multiple` (8 suits the matrix units
    of a GPU). With `labelled_tokens` each token has a label, and labels are padded too, with -100; else an example has
    one label, or one for each class.
    """
    unpadded = ("index",) if labelled_tokens else ("index", "labels")
    padding = {
        "labels": -100,
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
        "offset_start": -1,
        "offset_end": -1,  # outside the text
    }

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)
        longest = -(-longest // multiple) * multiple
        batch: dict[str, torch.Tensor] = {}
        for name in examples[0]:
            if name in unpadded:
                values = np.stack([np.asarray(example[name]) for example in examples])
                batch[name] = torch.from_numpy(values)
                continue
            padded = np.full((len(examples), longest), padding.get(name, 0), np.int64)
            for b, example in enumerate(examples):
                padded[b, : len(example[name])] = example[name]
            batch[name] = torch.from_numpy(padded)
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        batch["attention_mask"] = (torch.arange(longest)[None, :] < lengths[:, None]).long()
        return batch

    return collate


def models_own(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Select the model's inputs: a batch without its labels and without what only the task uses."""
    return {name: values for name, values in batch.items() if name not in NOT_THE_MODELS}


class GroupedByLength(Sampler[int]):
    """Shuffle examples each epoch so that those of one batch are of similar length: less padding, and exact on resume.

    As in upstream's LengthGroupedSampler, stretches of 50 batches (fewer where there are few) are drawn at random and
    sorted by length. Unlike there, the batches come in random order, and all follows from seed and epoch alone.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[int]:
        lengths = self.examples.lengths
        size = max(1, min(len(lengths) // (4 * self.batch_size), 50)) * self.batch_size
        rng = np.random.default_rng([self.seed, self.examples.epoch])
        order = rng.permutation(len(lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), size):
            stretch = order[start : start + size]
            stretch = stretch[np.argsort(-lengths[stretch], kind="stable")]
            batches += [stretch[i : i + self.batch_size] for i in range(0, len(stretch), self.batch_size)]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]  # only the last stretch may have one
        for number in rng.permutation(len(whole)):
            yield from whole[number].tolist()
        for batch in rest:
            yield from batch.tolist()


def chunks(rows: Iterable[Any], size: int = CHUNK) -> Iterator[list[Any]]:
    """Yield lists of `size` rows."""
    waiting = iter(rows)
    while chunk := list(islice(waiting, size)):
        yield chunk


def beginning(text: str, length: int) -> str:
    """Cut a text to what its first `length` tokens may need; the rest is neither tokenized nor counted."""
    return text[: max(LONGEST_TEXT, 16 * length)]


def key_of(*texts: str) -> int:
    """Hash texts: the same key for the same texts."""
    return xxhash.xxh3_64_intdigest("\0".join(texts).encode())


def places(rows: Rows, wanted: Sequence[int]) -> list[str]:
    """List where the rows with these numbers stand, for messages."""
    last, by_number = max(wanted), {}
    for number, (place, _) in enumerate(islice(rows.read(), last + 1)):
        if number in wanted:
            by_number[number] = place
    return [by_number[number] for number in wanted]


def refuse(rows: Rows, mistakes: Mapping[int, str], what: str, hint: str) -> None:
    """Raise a UserError that names the first rows with a mistake; do nothing if there is none.

    `mistakes` are by number of row; `what` follows the count of rows in the message.
    """
    if not mistakes:
        return
    first = sorted(mistakes)[:SHOWN]
    details = [f"{place}: {mistakes[number]}" for place, number in zip(places(rows, first), first, strict=True)]
    if len(mistakes) > SHOWN:
        details.append(f"and {len(mistakes) - SHOWN:,} more")
    count = len(mistakes)
    raise UserError(f"{rows.source}: {count:,} row{'s' * (count > 1)} {what}", hint, tuple(details))
