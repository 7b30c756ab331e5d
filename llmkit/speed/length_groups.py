"""A batch of rows is learned from in pieces of like length: what is padding in the whole of it is not computed.

The gradient of the step is the sum of those of the pieces, and so that of the batch: which rows make up a step is left
to chance, unlike in batches that are grouped by length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

# What a pass through a model costs beside its tokens, in floating-point operations. Of MiniLM on one core, a piece of
# 32 rows of SST-2 costs as much as 32 to 128 tokens: with 8 the step took a third longer.
STARTING = 4e9
FEWEST = 16.0  # tokens: reading the weights takes as long as using them for so many
WRITTEN = ("labels", "decoder_input_ids")  # what is as long as a decoder's output


def cost_of_starting(flops_per_token: float) -> float:
    """How many tokens take as long as a pass through a model takes to start."""
    return max(FEWEST, STARTING / flops_per_token)


def pieces(batch: dict[str, Any], starting: float, decodes: bool = False) -> list[dict[str, Any]]:
    """The rows of a batch, B of them padded on the right, as the batches that take the least time together.

    `attention_mask` [B, ..., T] says how long each row is, in a model that `decodes` the labels [B, S] too. A piece
    costs its rows times its longest row, and `starting`, both in tokens.
    """
    mask = batch["attention_mask"]
    read = _lengths(mask.flatten(1, -2).amax(1) if mask.dim() > 2 else mask)
    written = _lengths(batch["labels"] != -100) if decodes else np.zeros_like(read)
    total = (read + written) * mask[0].numel() // mask.shape[-1]
    together = groups(total, starting)
    if len(together) == 1:
        return [batch]
    tensors = {name: values for name, values in batch.items() if torch.is_tensor(values)}
    found = []
    for rows in together:
        longest, chosen = (int(read[rows].max()), int(written[rows].max())), torch.from_numpy(rows)
        parts = {name: _trimmed(name, each[chosen], mask.shape, *longest, decodes) for name, each in tensors.items()}
        found.append(batch | parts)
    return found


def groups(lengths: Sequence[int] | np.ndarray, starting: float) -> list[np.ndarray]:
    """The numbers of the rows that make a piece each, by length, so that the pieces cost the least together."""
    order = np.argsort(lengths, kind="stable")
    return np.split(order, cuts(np.asarray(lengths)[order], starting)[:-1])


def cuts(lengths: np.ndarray, starting: float) -> list[int]:
    """Where each piece of rows ends, whose lengths ascend, so that the pieces cost the least together."""
    best, last = np.zeros(len(lengths) + 1), np.zeros(len(lengths) + 1, np.int64)
    for end in range(1, len(lengths) + 1):
        costs = best[:end] + np.arange(end, 0, -1) * lengths[end - 1] + starting
        last[end] = costs.argmin()
        best[end] = costs[last[end]]
    ends = [len(lengths)]
    while last[ends[-1]]:
        ends.append(int(last[ends[-1]]))
    return ends[::-1]


def _lengths(mask: torch.Tensor) -> np.ndarray:
    """Up to and with the last 1 of each row of a mask [B, T]; 1 at least."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool() * places).amax(1).clamp(min=1).cpu().numpy()


def _trimmed(
    name: str, values: torch.Tensor, shape: torch.Size, read: int, written: int, decodes: bool
) -> torch.Tensor:
    """The rows of one tensor without the columns that are padding in all of them."""
    if decodes and name in WRITTEN:
        return values[:, :written]
    if values.shape[1:] != shape[1:]:
        return values
    if name == "labels" and not bool((values[..., read:] == -100).all()):  # a label for each class, by chance as many
        return values
    return values[..., :read]
