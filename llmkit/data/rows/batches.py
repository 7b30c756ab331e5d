"""Make tokenized rows into batches, padded to their longest example; group examples of similar length."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from llmkit.data.rows.examples import Encoded

NOT_THE_MODELS = ("labels", "index", "offset_start", "offset_end", "choices", "weights")


class Examples(Dataset[dict[str, Any]]):
    """Tokenized examples with their labels; item i is `{"input_ids": ..., "labels": ..., "index": i}`.

    With `by_length`, for evaluation, they are sorted by length, so that batches hold little padding: no metric depends
    on the order, and `index` says which example an output belongs to. `extra` is what the metrics need beside labels,
    `source` has the rows that `row` numbers, and `keys` a hash of the texts of each of them.
    """

    def __init__(self, encoded: Encoded, extra: Any = None, by_length: bool = False) -> None:
        self.source = encoded.source
        self.inputs = encoded.inputs
        self.row = np.asarray(encoded.row, np.int64)
        self.keys = encoded.keys
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
