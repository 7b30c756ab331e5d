"""Figures that say how good a model is, in numpy."""

import math

import numpy as np


def mean_loss(sums: np.ndarray) -> float:
    """Loss in nats a token, from rows of (summed loss, number of tokens), [N, 2]: each token weighs the same."""
    total, count = sums.astype(np.float64).sum(axis=0)
    return float(total / count) if count else math.nan


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """Loss in nats a token as bits for each UTF-8 byte of text: comparable between tokenizers."""
    return loss / math.log(2) * num_tokens / num_bytes
