"""How the rows of any task become batches: how long an input is, what pads it, and the collator."""

from collections.abc import Callable
from typing import Any

import torch

from llmkit.data.rows import batches
from llmkit.errors import UserError
from llmkit.models.config import positions
from llmkit.tasks.task import RowTask

LONGEST_INPUT = 512  # tokens of a row where the recipe does not say: what encoders of BERT's kind read at most


def choose_collator(task: RowTask, tokenizer: Any, config: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """Choose the task's own, where its batches are more than one row of tokens an example, else the common one."""
    multiple = 8 if torch.cuda.is_available() else 1
    if task.collator is not None:
        return task.collator(tokenizer, config, multiple)
    return batches.collator(tokenizer, multiple)


def fit_for_batches(tokenizer: Any, config: Any) -> None:
    """Inputs of several lengths need a token to pad with; a GPT-2 that has none takes its end-of-text token."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token", "use a tokenizer that has one: tokenizer.name")
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id


def choose_length(wanted: int | None, config: Any, longest: int = LONGEST_INPUT) -> int:
    """`data.max_length`, or as many tokens as the model has positions, `longest` at most."""
    limit = positions(config)
    if wanted is None:
        return min(limit or longest, longest)
    if limit is not None and wanted > limit:
        raise UserError(
            f"data.max_length = {wanted} is more than the {limit} positions of the model", "lower data.max_length"
        )
    return wanted
