"""Splits a batch of rows into microbatches of like length: what is padding in the whole of it is not computed.

The gradient of the step is the sum of theirs, and so that of the batch: which rows make up a step is left to chance,
unlike in batches that are grouped by length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

# What a pass through a model costs beside its tokens, in floating-point operations. Of MiniLM on one core, a microbatch
# of 32 rows of SST-2 costs as much as 32 to 128 tokens: with 8 the step took a third longer.
LAUNCH_COST = 4e9
FEWEST = 16.0  # tokens: reading the weights takes as long as using them for so many
WRITTEN = ("labels", "decoder_input_ids")  # what is as long as a decoder's output


def launch_cost(flops_per_token: float) -> float:
    """Return how many tokens take as long as a pass through a model takes to start."""
    return max(FEWEST, LAUNCH_COST / flops_per_token)


def microbatches(batch: dict[str, Any], launch_cost: float, decodes: bool = False) -> list[dict[str, Any]]:
    """Split a batch into those that take the least time together, each of rows of like length.

    Args:
        batch: B rows, padded on the right. `attention_mask` [B, ..., T] says how long each of them is.
        launch_cost: what a microbatch costs beside its rows times its longest row, in tokens.
        decodes: a decoder writes the labels [B, S], whose length counts too.

    Returns:
        Batches of the same keys, without the columns that are padding in all of their rows; what is no tensor is in
        each of them.
    """
    mask = batch["attention_mask"]
    read = _lengths(mask.flatten(1, -2).amax(1) if mask.dim() > 2 else mask)
    written = _lengths(batch["labels"] != -100) if decodes else np.zeros_like(read)
    total = (read + written) * mask[0].numel() // mask.shape[-1]
    split = groups(total, launch_cost)
    if len(split) == 1:
        return [batch]
    tensors = {name: values for name, values in batch.items() if torch.is_tensor(values)}
    parts = []
    for rows in split:
        longest, chosen = (int(read[rows].max()), int(written[rows].max())), torch.from_numpy(rows)
        trimmed = {
            name: _trimmed(name, values[chosen], mask.shape, *longest, decodes) for name, values in tensors.items()
        }
        parts.append(batch | trimmed)
    return parts


def groups(lengths: Sequence[int] | np.ndarray, launch_cost: float) -> list[np.ndarray]:
    """Split rows of these lengths into groups of least total cost; return the numbers of the rows of each."""
    order = np.argsort(lengths, kind="stable")
    return np.split(order, cuts(np.asarray(lengths)[order], launch_cost)[:-1])


def cuts(lengths: np.ndarray, launch_cost: float) -> list[int]:
    """Split rows, sorted by length, into contiguous groups of least total cost; return each group's end index.

    A group costs its rows times its longest row, and `launch_cost`, both in tokens. Dynamic programme, O(n^2).
    """
    best, last = np.zeros(len(lengths) + 1), np.zeros(len(lengths) + 1, np.int64)
    for end in range(1, len(lengths) + 1):
        costs = best[:end] + np.arange(end, 0, -1) * lengths[end - 1] + launch_cost
        last[end] = costs.argmin()
        best[end] = costs[last[end]]
    ends = [len(lengths)]
    while last[ends[-1]]:
        ends.append(int(last[ends[-1]]))
    return ends[::-1]


def _lengths(mask: torch.Tensor) -> np.ndarray:
    """Count the columns up to and with the last 1 of each row of a mask [B, T]; 1 at least."""
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool() * numbers).amax(1).clamp(min=1).cpu().numpy()


def _trimmed(
    name: str, values: torch.Tensor, shape: torch.Size, read: int, written: int, decodes: bool
) -> torch.Tensor:
    """Leave out the columns of a tensor that are padding in all of its rows, of which the longest are so long."""
    if decodes and name in WRITTEN:
        return values[:, :written]
    if values.shape[1:] != shape[1:]:
        return values
    if name == "labels" and not bool((values[..., read:] == -100).all()):  # a label for each class, by chance as many
        return values
    return values[..., :read]
