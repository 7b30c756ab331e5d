"""Masked language modelling: some tokens are hidden, and the model reads both sides to guess them (BERT and its kind).

Devlin et al. 2018 (arXiv:1810.04805), section 3.1: 15 % of the tokens are chosen; of these 80 % are replaced by the
mask token, 10 % by a random token, 10 % stay as they are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from llmkit import metrics as measures
from llmkit.data.pack import TokenRow, Window
from llmkit.errors import UserError
from llmkit.recipe.schema import MaskedData
from llmkit.tasks.causal_lm import losses

__all__ = ["MODEL_CLASS", "collator", "losses", "metrics", "separator", "window"]

MODEL_CLASS = AutoModelForMaskedLM


def separator(tokenizer: Any) -> list[int]:
    """Nothing: a block holds running text, without separators strewn through it."""
    return []


def window(block_size: int) -> tuple[int, int]:
    """Length and stride in tokens: what fits between `[CLS]` and `[SEP]`."""
    return block_size - 2, block_size - 2


def collator(data: MaskedData, tokenizer: Any, seed: int) -> Callable[[list[Window]], dict[str, torch.Tensor]]:
    """Windows -> `input_ids`, `attention_mask` and `labels`, all [B, T]; labels are -100 where nothing is hidden.

    Special tokens in the text, such as `[UNK]`, are neither hidden nor drawn as random ones. Every draw comes from
    (seed, epoch, block): the same whatever the batch, the workers or the processes.
    """
    wanted = {"mask_token": "to hide tokens", "cls_token": "to begin a block", "sep_token": "to end one"}
    missing = [name for name in wanted if getattr(tokenizer, name) is None]
    if missing:
        raise UserError(
            f"the tokenizer has no {missing[0]} {wanted[missing[0]]}, as masked-lm needs",
            "use a tokenizer of a masked language model, or train one with [tokenizer]",
        )
    special = tokenizer.all_special_ids
    ordinary = np.setdiff1d(list(tokenizer.get_vocab().values()), special)
    mask_below = data.mask_replace_prob
    random_below = data.mask_replace_prob + data.random_replace_prob

    def collate(windows: list[Window]) -> dict[str, torch.Tensor]:
        shape = (len(windows), len(windows[0].ids) + 2)
        input_ids = np.empty(shape, np.int64)
        labels = np.full(shape, -100, np.int64)
        input_ids[:, 0], input_ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
        for b, window in enumerate(windows):
            ids = window.ids
            key = np.array([seed % 2**32 * 2**32 + window.epoch, window.index], np.uint64)
            draw = np.random.Generator(np.random.Philox(key=key))
            candidates = np.flatnonzero(np.isin(ids, special, invert=True))
            hidden = draw.permutation(candidates)[: max(1, round(data.mlm_probability * len(candidates)))]
            kind = draw.random(len(hidden))
            strangers = ordinary[draw.integers(len(ordinary), size=len(hidden))]
            labels[b, 1 + hidden] = ids[hidden]
            shown = np.where(kind < random_below, strangers, ids[hidden])
            input_ids[b, 1:-1] = ids
            input_ids[b, 1 + hidden] = np.where(kind < mask_below, tokenizer.mask_token_id, shown)
        batch = torch.from_numpy(input_ids)
        return {"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": torch.from_numpy(labels)}

    return collate


def metrics(sums: np.ndarray, row: TokenRow) -> dict[str, float]:
    """From the summed loss (nats) and the count of hidden tokens of each block, [N, 2]: loss and perplexity a token."""
    loss = measures.mean_loss(sums)
    return {"loss": loss, "perplexity": measures.perplexity(loss)}
