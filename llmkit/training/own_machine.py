"""Choose bf16 on a CPU that was measured to be faster at it, for a recipe that says nothing of precision."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from llmkit import process
from llmkit.recipe.schema import Recipe
from llmkit.recipe.table import ReadOnly
from llmkit.speed import bf16, length_groups
from llmkit.training.arguments import has_fast_bf16, launched_precision

COMMAND = "llmkit doctor --measure"
# What a process knows of its machine, beside a ratio that was measured; the least of all processes' counts.
NOTHING, NO_BF16, TOO_SMALL = -2.0, -1.0, 0.0


def fit_to_machine(
    recipe: Recipe, config: Any, train: Any, length: int | None, settings: Mapping[str, Any], why: str
) -> tuple[Recipe, str]:
    """Return `recipe` with `trainer.bf16` where every process's machine was measured to be faster with it, and why.

    Args:
        recipe: What it says of precision is kept; without `fits_machine` it is returned as it is.
        config: The model's.
        train: The training data, whose rows have `lengths` where `length` is None.
        length: The tokens of each block.
        settings: [trainer], with the batches of a process.
        why: Why its precision is what it is so far.
    """
    on_gpu = torch.cuda.is_available() and not settings.get("use_cpu")
    by_others = launched_precision() or {"mixed_precision", "strategy"} & process.asked().keys()
    if not recipe.fits_machine or on_gpu or by_others or {"fsdp", "deepspeed"} & settings.keys():
        return recipe, why
    tokens = _tokens_at_once(recipe, config, train, length, settings)
    if tokens is None:
        return recipe, why
    ratio = _least(_measured(getattr(config, "hidden_size", None), tokens))
    if ratio == NO_BF16:
        return recipe, why
    if ratio == NOTHING:
        return recipe, f"this CPU has bf16 too: {COMMAND}"
    if ratio == TOO_SMALL:
        return recipe, f"smaller than what {COMMAND} found bf16 faster for"
    if ratio < bf16.MARGIN:
        return recipe, f"bf16 was measured at {ratio:.2f} times the speed of fp32 on this CPU"
    origin = f"from {COMMAND}: {ratio:.2f} times as fast"
    trainer, origins = {**recipe.trainer, "bf16": True}, {**recipe.origins, "trainer.bf16": origin}
    update = {"trainer": ReadOnly(trainer), "origins": ReadOnly(origins), "fits_machine": False}
    return recipe.model_copy(update=update), f"measured at {ratio:.2f} times the speed of fp32 on this CPU"


def _measured(hidden: int | None, tokens: float) -> float:
    """Look up this machine's ratio for a model of this width and so many tokens at once."""
    if not has_fast_bf16():
        return NO_BF16
    table = bf16.kept()
    if table is None:
        return NOTHING
    return (None if hidden is None else bf16.speedup(table, hidden, tokens)) or TOO_SMALL


def _least(ratio: float) -> float:
    """Return the least of all processes' ratios, so that they train alike wherever each was started."""
    if not torch.distributed.is_initialized():
        return ratio
    ratios: list[float] = [ratio] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ratios, ratio)
    return min(ratios)


def _tokens_at_once(
    recipe: Recipe, config: Any, train: Any, length: int | None, settings: Mapping[str, Any]
) -> float | None:
    """Return the tokens of a forward pass; of several tasks, of the one with the fewest. None for unread rows."""
    batch = settings.get("per_device_train_batch_size", 8)
    if length is not None:
        return float(batch * length)
    lengths = [getattr(part, "lengths", None) for part in getattr(train, "parts", [train])]
    found = [_of_rows(recipe, config, each, batch) for each in lengths if each is not None and len(each)]
    return min(found) if len(found) == len(lengths) else None


def _of_rows(recipe: Recipe, config: Any, lengths: np.ndarray, batch: int) -> float:
    """Return the tokens of a forward pass over rows: of a batch of usual ones, split as in training."""
    usual = np.quantile(lengths, (np.arange(batch) + 0.5) / batch)
    if recipe.speed.split_batches is False:
        return float(usual.sum())
    layers = 12 * getattr(config, "hidden_size", 1) ** 2 * getattr(config, "num_hidden_layers", 1)
    return float(usual.sum()) / len(length_groups.groups(usual, length_groups.launch_cost(6 * layers)))
