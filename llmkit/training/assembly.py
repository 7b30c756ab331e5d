"""What a recipe becomes before there is a model, and the tokenizer of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Dataset

from llmkit.data.text.documents import Documents
from llmkit.models import added_tokens, tokenizer
from llmkit.models.config import positions
from llmkit.recipe.schema import Model, Recipe
from llmkit.tasks.trivial import Comparison
from llmkit.training.samples import Sampler


@dataclass(frozen=True)
class Assembly:
    """All that every process must agree on. The functions are what the Trainer is given."""

    config: Any
    tokenizer: Any
    unit: str  # what a batch counts: "blocks" or "examples"
    length: int | None  # tokens in each of them, where all have the same
    train: Dataset[Any] | None
    validation: Mapping[str, Dataset[Any]]
    collate: Callable[..., dict[str, torch.Tensor]]
    losses: Callable[..., torch.Tensor] | None  # of what predicts tokens: `llmkit.speed.fused_loss` has them
    preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None
    prepare_model: Callable[[Any], None] | None
    metrics: Callable[[Any, Any], dict[str, float]]
    lines: list[str]
    notes: list[str]
    warnings: list[str]
    record: dict[str, Any]
    create_model: Callable[[Model, int], tuple[Any, list[str]]] | None = None  # of a model that is made of several
    subtokens: Mapping[int, list[int]] = field(default_factory=dict)  # of each new token, those it was split into
    rows: int = 0  # of the training split, before some were held out
    validation_fraction: float | None = None  # what was held out of them, where the recipe left that to the rows
    judged_by: str = "loss"  # the metric by which the best checkpoint is chosen where nobody says which
    learned: Any = None  # what the training rows say for `compare`
    # (learned, stats, part) -> the result beside the trivial one
    compare: Callable[[Any, Any, Any], Comparison | None] | None = None
    example: str = ""  # a row's text, to try the model with
    sampler: Sampler | None = None  # of what the model writes while it learns
    all_learned: bool = False  # each position of a training batch has a label
    several: bool = False  # `validation` holds several things of equal standing: tasks, or sources


def load_tokenizer(recipe: Recipe, documents: Documents, config: Any) -> tuple[Any, dict[int, list[int]], list[str]]:
    """Load the tokenizer, for each token that is new in it what it was before, and notes."""
    segments = getattr(config, "type_vocab_size", 0) > 1
    found = tokenizer.load(recipe.tokenizer, recipe.model, recipe.task, documents, positions(config), segments=segments)
    return added_tokens.extend(found, recipe.tokenizer, documents)


def has_own_tokenizer(recipe: Recipe) -> bool:
    return recipe.tokenizer.type is not None or recipe.tokenizer.name is not None or recipe.model.name is None
