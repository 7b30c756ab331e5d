"""Several tasks at once: one encoder under a head for each, and batches of one task each, mixed by weight.

Caruana 1997 (doi:10.1023/A:1007379606734), hard parameter sharing. Each task keeps its own rows, loss and metrics: they
are those of its file in this folder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from llmkit.data.rows.batches import Examples, GroupedByLength
from llmkit.errors import UserError
from llmkit.models.weights import count_parameters, create_model
from llmkit.recipe.schema import Model


@dataclass(frozen=True)
class Part:
    """One of the tasks: what `weight` it has among the batches (None: that of its rows), and what training is given."""

    name: str
    model_class: Any
    weight: float | None
    config: Any
    train: Examples | None
    collate: Callable[..., dict[str, torch.Tensor]]
    losses: Callable[..., torch.Tensor] | None
    preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None
    prepare_model: Callable[[Any], None] | None


# ---- the model -----------------------------------------------------------------------------------------------------


class SharedEncoder(torch.nn.Module):
    """One encoder, and the heads of several models that were built on it.

    `heads` holds each task's whole model but for its encoder, which stands here once: so every weight is saved once.
    """

    def __init__(self, whole: Mapping[str, Any]) -> None:
        super().__init__()
        # Some heads need no pooler, and their encoders have none: the fullest one serves all.
        fullest = max(whole.values(), key=lambda model: sum(p.numel() for p in model.base_model.parameters()))
        self.config = fullest.config
        self.encoder = fullest.base_model
        self.heads = torch.nn.ModuleDict(whole)
        for model in whole.values():
            del model._modules[model.base_model_prefix]
            model.__dict__[model.base_model_prefix] = self.encoder  # found as an attribute, and no module of its own

    def forward(self, task: str, **inputs: torch.Tensor) -> Any:
        """Return the outputs of `task`'s model."""
        return self.heads[task](**inputs)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count as transformers counts them."""
        return count_parameters(self, only_trainable, exclude_embeddings)

    def save_each(self, directory: Path, tokenizer: Any) -> None:
        """Write each task's model, encoder and all, into a folder of its name, in Hugging Face's layout."""
        for name, model in self.heads.items():
            prefix = model.base_model_prefix
            del model.__dict__[prefix]
            model._modules = {prefix: self.encoder, **model._modules}
            try:
                model.save_pretrained(directory / name)
            finally:
                del model._modules[prefix]
                model.__dict__[prefix] = self.encoder
            tokenizer.save_pretrained(directory / name)


def create(table: Model, parts: Sequence[Part], seed: int) -> tuple[SharedEncoder, list[str]]:
    """Create the shared encoder under the parts' heads, and notes on what is new in it."""
    whole, notes = {}, []
    for part in parts:
        model, made = create_model(table, part.config, part.model_class, seed)
        if model.base_model is model:
            raise UserError(f"[model]: {type(model).__name__} does not separate its head from its layers")
        if part.prepare_model is not None:
            part.prepare_model(model)
        whole[part.name] = model
        notes += [f"{part.name}: {note}" for note in made]
    return SharedEncoder(whole), notes


# ---- data ----------------------------------------------------------------------------------------------------------


class Mixture(Dataset[dict[str, Any]]):
    """The training examples of all parts, one part behind the other; `task` says which part an example is of."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.names = [part.name for part in parts]
        self.parts: list[Examples] = [part.train for part in parts if part.train is not None]
        self.ends = np.cumsum([len(each) for each in self.parts])
        sizes = np.array([len(each) for each in self.parts])
        given = [part.weight for part in parts]
        # All have a weight or none; then every row is seen once.
        weights = sizes if None in given else np.array(given, float)
        self.shares = weights / weights.sum()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        first = int(self.ends[number]) - len(self.parts[number])
        return {**self.parts[number][index - first], "task": self.names[number]}


class MixedBatches(Sampler[int]):
    """Batches of one task each, in an order that follows from seed and epoch alone.

    An epoch has as many batches as all the data fills, each task its share of them, one at least: the rows of a small
    one with a large share come again, in a new order.
    """

    def __init__(self, examples: Mixture, batch_size: int, seed: int, by_length: bool) -> None:
        self.examples, self.batch_size, self.seed, self.by_length = examples, batch_size, seed, by_length
        total = sum(-(-len(part) // batch_size) for part in examples.parts)
        self.counts = np.maximum(1, np.round(examples.shares * total)).astype(int)

    def __len__(self) -> int:
        return int(self.counts.sum()) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        epoch = self.examples.epoch
        draw = np.random.default_rng([self.seed, epoch])
        batches = [self._batches(number, count) for number, count in enumerate(self.counts)]
        for number in draw.permutation(np.repeat(np.arange(len(batches)), self.counts)):
            yield from next(batches[number])

    def _batches(self, number: int, count: int) -> Iterator[list[int]]:
        """`count` full batches of one part: pass after pass over its rows, from where earlier epochs have come to."""
        part = self.examples.parts[number]
        first = int(self.examples.ends[number]) - len(part)
        behind = self.examples.epoch * count * self.batch_size  # rows drawn in earlier epochs
        passed, offset = divmod(behind, len(part))
        waiting: list[int] = []
        for _ in range(count):
            while len(waiting) < self.batch_size:
                waiting += self._order(number, passed)[offset:]
                passed, offset = passed + 1, 0
            yield [first + index for index in waiting[: self.batch_size]]
            waiting = waiting[self.batch_size :]

    def _order(self, number: int, passed: int) -> list[int]:
        part, seed = self.examples.parts[number], self.seed + number
        if not self.by_length:
            return np.random.default_rng([seed, passed, 1]).permutation(len(part)).tolist()
        part.set_epoch(passed)
        return list(GroupedByLength(part, self.batch_size, seed))


# ---- batches, loss, metrics ----------------------------------------------------------------------------------------


def collator(parts: Sequence[Part]) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Examples of one task -> its batch, with the `task`'s name."""
    collate_of = {part.name: part.collate for part in parts}

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        name = examples[0]["task"]
        return {**collate_of[name]([{k: v for k, v in e.items() if k != "task"} for e in examples]), "task": name}

    return collate


def losses(parts: Sequence[Part]) -> Callable[..., torch.Tensor]:
    """Compute the loss of each label of a batch, as its task has it."""
    losses_of = {part.name: part.losses for part in parts if part.losses is not None}
    return lambda outputs, batch, **options: losses_of[batch["task"]](outputs, batch, **options)


def preprocess_logits_for_metrics(parts: Sequence[Part]) -> Callable[..., torch.Tensor]:
    """Return what the metrics of a batch's task need of the outputs."""
    functions = {part.name: part.preprocess_logits_for_metrics for part in parts}

    def preprocess(model: Any, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        function = functions[batch["task"]]
        if function is None:  # of a task whose recipe asks for no metrics
            return torch.empty(len(batch["labels"]), 0, device=batch["labels"].device)
        return function(model, outputs, batch)

    return preprocess


class Named(Dataset[dict[str, Any]]):
    """The validation examples of one part, each with its `task`."""

    def __init__(self, name: str, examples: Examples) -> None:
        self.name, self.examples = name, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.examples[position], "task": self.name}
