"""Divide the examples of a step among processes and micro-batches (`data.global_batch_size`)."""

from typing import Any

from llmkit.errors import UserError
from llmkit.recipe.schema import Recipe

KEY = "data.global_batch_size"


def divide(recipe: Recipe, processes: int) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of [trainer] that make each step learn from `data.global_batch_size` examples, and notes.

    Nothing where the recipe lacks that key. Raises UserError where it cannot be divided, or gradient accumulation does
    not agree.
    """
    total = None if recipe.data is None else recipe.data.global_batch_size
    if total is None:
        return {}, []
    asked = recipe.trainer.get("per_device_train_batch_size")
    accumulated = recipe.trainer.get("gradient_accumulation_steps")
    among = f"{processes} process{'es' * (processes != 1)}"
    if total % processes:
        raise UserError(
            f"{KEY} = {total} cannot be divided evenly among {among}",
            f"{KEY}={_multiple(total, processes)}, or --processes {_divisor(total, processes)}",
        )
    share = total // processes  # examples of a process in each step
    if accumulated is not None:
        size = share // accumulated if asked is None else asked
        if size * accumulated != share:
            of_batches = "" if asked is None else f" and trainer.per_device_train_batch_size = {asked}"
            raise UserError(
                f"{KEY} = {total} does not agree with trainer.gradient_accumulation_steps = {accumulated}{of_batches} "
                f"on {among}",
                "leave out gradient_accumulation_steps: it follows from the others",
            )
        return _settings(size, accumulated), []
    if asked is None:
        size = _divisor(share, 8)
        return _settings(size, share // size), []
    if asked > share:
        return _settings(share, 1), [f"batches of {share} instead of {asked}: {KEY} = {total} on {among}"]
    if share % asked:
        raise UserError(
            f"{KEY} = {total} on {among} is {share} each, not a multiple of trainer.per_device_train_batch_size = "
            f"{asked}",
            f"trainer.per_device_train_batch_size={_divisor(share, asked)}, or "
            f"{KEY}={_multiple(total, asked * processes)}",
        )
    return _settings(asked, share // asked), []


def _settings(size: int, accumulated: int) -> dict[str, Any]:
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}


def _divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` up to `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def _multiple(number: int, of: int) -> int:
    """Return the multiple of `of` that is nearest to `number`."""
    return max(1, round(number / of)) * of
