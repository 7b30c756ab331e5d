"""Rows become examples: token ids of every length in a few flat arrays, and batches padded to their longest."""

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
# Characters of a text that is cut to fewer tokens anyway: a tokenizer holds some 280 bytes for each of them.
LONGEST_TEXT = 2**20
SHOWN = 5  # mistakes in rows that one message names


class Ragged:
    """Sequences of integers of many lengths, end to end in one array."""

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
        """No more sequences are added."""
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
    """What rows have become before their labels are settled.

    `inputs` are the model's, one entry each example; `row` says which row an example came from (a long one may give
    several). By row: `targets` as they were read, `lengths` in tokens before anything was cut off (of the `beginning`
    of a text, where that is all that is read), a `key` that two rows share when their texts are the same; and which
    rows have no text at all (`empty`), or a target that no example holds (`unlearned`). `labels` are the targets as the
    model's numbers, once it is settled what they mean: one entry each example (labels of single tokens are in `inputs`
    instead). `tokenizer` is there for targets that are text. `copies` makes the altered copies of all rows that
    training learns from too; nothing but training calls it.
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
        for each in self.inputs.values():
            each.finish()
        return self


class Examples(Dataset[dict[str, Any]]):
    """Tokenized examples with their labels; item i is `{"input_ids": ..., "labels": ..., "index": i}`.

    For evaluation they stand in the order of their lengths, so that batches hold little padding: no metric depends on
    the order, and `index` says which example an output belongs to.
    """

    def __init__(self, encoded: Encoded, extra: Any = None, by_length: bool = False) -> None:
        self.inputs = encoded.inputs
        self.row = np.array(encoded.row, np.int64)
        self.labels = encoded.labels
        self.extra = extra  # what the task's metrics need beside the labels
        self.lengths = encoded.inputs["input_ids"].lengths if encoded.row else np.empty(0, np.int64)
        self.order = np.argsort(self.lengths, kind="stable") if by_length else np.arange(len(self.lengths))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch."""
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
    """Examples -> one tensor [B, T] for each input, padded on the right to the longest; `attention_mask` and labels.

    T is rounded up to `multiple` (8 suits the matrix units of a GPU). With `labelled_tokens` each token has a label,
    and labels are padded too, with -100; else an example has one, or one of each class.
    """
    whole = ("index",) if labelled_tokens else ("index", "labels")
    padding = {
        "labels": -100,
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
        "offset_start": -1,
        "offset_end": -1,  # nowhere
    }

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)
        longest = -(-longest // multiple) * multiple
        batch: dict[str, torch.Tensor] = {}
        for name in examples[0]:
            if name in whole:
                values = np.stack([np.asarray(example[name]) for example in examples])
                batch[name] = torch.from_numpy(values)
                continue
            table = np.full((len(examples), longest), padding.get(name, 0), np.int64)
            for b, example in enumerate(examples):
                table[b, : len(example[name])] = example[name]
            batch[name] = torch.from_numpy(table)
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        batch["attention_mask"] = (torch.arange(longest)[None, :] < lengths[:, None]).long()
        return batch

    return collate


def models_own(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the model is called with: a batch without its labels and what only the task uses."""
    return {name: values for name, values in batch.items() if name not in NOT_THE_MODELS}


class GroupedByLength(Sampler[int]):
    """A new random order each epoch in which neighbours are of like length: less padding, and exact on resume.

    As upstream's LengthGroupedSampler: stretches of 50 batches (fewer where there are few) are drawn at random and
    sorted by length. Unlike it, the batches stand in random order, and all follows from seed and epoch alone.
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
        draw = np.random.default_rng([self.seed, self.examples.epoch])
        order = draw.permutation(len(lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), size):
            stretch = order[start : start + size]
            stretch = stretch[np.argsort(-lengths[stretch], kind="stable")]
            batches += [stretch[i : i + self.batch_size] for i in range(0, len(stretch), self.batch_size)]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]  # only a stretch that is the last has one
        for number in draw.permutation(len(whole)):
            yield from whole[number].tolist()
        for batch in rest:
            yield from batch.tolist()


def chunks(rows: Iterable[Any], size: int = CHUNK) -> Iterator[list[Any]]:
    """Lists of `size` rows."""
    waiting = iter(rows)
    while chunk := list(islice(waiting, size)):
        yield chunk


def beginning(text: str, length: int) -> str:
    """As much of a text as its first `length` tokens may need; what is behind it is neither read nor counted."""
    return text[: max(LONGEST_TEXT, 16 * length)]


def key_of(*texts: str) -> int:
    """The same for the same texts."""
    return xxhash.xxh3_64_intdigest("\0".join(texts).encode())


def places(rows: Rows, wanted: Sequence[int]) -> list[str]:
    """Where the rows with these numbers stand, for messages."""
    last, found = max(wanted), {}
    for number, (place, _) in enumerate(islice(rows.read(), last + 1)):
        if number in wanted:
            found[number] = place
    return [found[number] for number in wanted]


def refuse(rows: Rows, mistakes: Mapping[int, str], what: str, hint: str) -> None:
    """Raise a UserError that names the first of the rows with a mistake; nothing if there is none."""
    if not mistakes:
        return
    first = sorted(mistakes)[:SHOWN]
    details = [f"{place}: {mistakes[number]}" for place, number in zip(places(rows, first), first, strict=True)]
    if len(mistakes) > SHOWN:
        details.append(f"and {len(mistakes) - SHOWN:,} more")
    count = len(mistakes)
    raise UserError(f"{rows.source}: {count:,} row{'s' * (count > 1)} {what}", hint, tuple(details))
