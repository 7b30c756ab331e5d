"""Causal language modelling: every position predicts the token that follows it (GPT-2 and its kind)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from llmkit import metrics as measures
from llmkit.data.pack import TokenRow, Window
from llmkit.errors import UserError
from llmkit.recipe.schema import TextData

MODEL_CLASS = AutoModelForCausalLM
PEFT_TYPE = "CAUSAL_LM"


def separator(tokenizer: Any) -> list[int]:
    """What stands between documents: where the model learns to stop, and what its tokenizer begins a text with."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-text token to set documents apart",
            'use one that has, or train one: tokenizer.type = "byte-bpe"',
        )
    begin = tokenizer.bos_token_id
    begins = begin != tokenizer.eos_token_id and tokenizer("")["input_ids"][:1] == [begin]
    return [tokenizer.eos_token_id, begin] if begins else [tokenizer.eos_token_id]


def window(block_size: int) -> tuple[int, int]:
    """Length and stride in tokens: `block_size` inputs and, one further, the `block_size` tokens to predict."""
    return block_size + 1, block_size


def collator(data: TextData, tokenizer: Any, seed: int) -> Callable[[list[Window]], dict[str, torch.Tensor]]:
    """Windows -> `input_ids` and `labels`, both [B, T]; `labels[b, t]` is the token after `input_ids[b, t]`."""

    def collate(windows: list[Window]) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(np.stack([window.ids for window in windows]))
        return {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}

    return collate


def losses(
    outputs: Any, batch: Mapping[str, torch.Tensor], training: bool = False, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy (nats) of the labels [B, T] under the logits [B, T, V]; 0 where a label is -100."""
    labels = batch["labels"]
    smoothing = label_smoothing if training else 0.0
    logits = outputs.logits.flatten(0, 1).float()
    found = F.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="none", label_smoothing=smoothing)
    return found.view(labels.shape)


def metrics(sums: np.ndarray, row: TokenRow) -> dict[str, float]:
    """From each block's summed loss (nats) and count, [N, 2]: loss a token, perplexity, bits a byte of text."""
    loss = measures.mean_loss(sums)
    found = {"loss": loss, "perplexity": measures.perplexity(loss)}
    if row.num_bytes:
        found["bits_per_byte"] = measures.bits_per_byte(loss, len(row.ids), row.num_bytes)
    return found
