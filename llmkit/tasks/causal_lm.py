"""Causal language modelling: every position predicts the token that follows it (GPT-2 and its kind)."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llmkit import metrics as measures
from llmkit.data.text.pack import BlockSpec, EvaluationWindows, TokenStream, Window
from llmkit.errors import UserError
from llmkit.models.config import choose_block_size
from llmkit.models.loading import without_adapter
from llmkit.recipe.data_tables import CausalData

if TYPE_CHECKING:
    from llmkit.tasks import causal_lm
    from llmkit.tasks.task import TextTask

    task: TextTask = causal_lm

# What this task does without (`tasks/task.py`).
losses = preprocess_logits_for_metrics = trivial = create_model = load_model = None

LABEL_OFFSET = 1  # a window's token t predicts the one behind it


def document_separator(tokenizer: Any) -> list[int]:
    """Return the ids between documents: where the model learns to stop, and what its tokenizer begins a text with."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-text token to separate documents",
            'use a tokenizer that has one, or train one: tokenizer.type = "byte-bpe"',
        )
    begin = tokenizer.bos_token_id
    begins = begin != tokenizer.eos_token_id and tokenizer("")["input_ids"][:1] == [begin]
    return [tokenizer.eos_token_id, begin] if begins else [tokenizer.eos_token_id]


def block_spec(data: CausalData, block_size: int) -> BlockSpec:
    """`block_size` inputs and, one further, the `block_size` tokens to predict, of which `stride` are new."""
    if data.stride is not None and data.stride > block_size:
        raise UserError(
            f"data.stride = {data.stride} exceeds a window of {block_size} tokens: some tokens would never be "
            "predicted",
            "lower it to data.block_size or less",
        )
    return BlockSpec(block_size + 1, data.stride or block_size)


def evaluation_windows(
    tokens: TokenStream, data: CausalData, spec: BlockSpec, limit: int | None, tokenizer: Any
) -> Dataset[Window]:
    """Cut `tokens` into the windows that `llmkit evaluate` measures."""
    return EvaluationWindows(tokens, spec, limit)


def collator(
    data: CausalData, tokenizer: Any, config: Any, seed: int
) -> Callable[[list[Window]], dict[str, torch.Tensor]]:
    """Windows -> `input_ids` and `labels`, both [B, T]; `labels[b, t]` is the token after `input_ids[b, t]`.

    With a stride every window but the first has labels for those tokens alone that no earlier one predicts. Where
    documents are kept apart there are `position_ids` too, which begin anew with each (and with the padding behind a
    short window), and no document's first token is predicted: nothing that it is to see stands before it. Of two tokens
    between documents the second belongs to the next one, which it begins.
    """
    seen = 0 if data.stride is None else choose_block_size(data.block_size, config) - data.stride
    between = document_separator(tokenizer) if data.pack == "isolated" else []

    def begins(window: Window) -> np.ndarray:
        """Return where in a window, behind its first token, something begins that must not see what is before it."""
        starts = window.starts - (len(between) - 1)
        if len(between) > 1 and window.ids[-2:].tolist() == between:  # the next one's begin, which is cut off here
            starts = np.append(starts, len(window.ids) - 1)
        return starts[starts > 0]

    def collate(windows: list[Window]) -> dict[str, torch.Tensor]:
        length = max(len(window.ids) for window in windows)
        whole = all(len(window.ids) == length for window in windows)
        ids = np.stack([w.ids if whole else np.pad(w.ids, (0, length - len(w.ids)), "edge") for w in windows])
        labels = ids[:, 1:].copy()
        for b, window in enumerate(windows):
            labels[b, len(window.ids) - 1 :] = -100
            labels[b, : seen if window.index else 0] = -100
        batch = {"input_ids": ids[:, :-1].copy(), "labels": labels}
        if between:
            fresh = np.zeros(ids.shape, np.int64)
            for b, window in enumerate(windows):
                fresh[b, [*begins(window), len(window.ids) - 1]] = 1
                labels[b, begins(window) - 1] = -100
            places = np.arange(length)
            batch["position_ids"] = (places - np.maximum.accumulate(fresh * places, axis=1))[:, :-1].copy()
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    return collate


def prepare_model(model: Any, data: CausalData) -> None:
    """Refuse to keep documents apart in a model that would let them mix."""
    if data.pack == "isolated" and not keeps_apart(model):
        raise UserError(
            f'data.pack = "isolated": {type(model).__name__} lets a document see the earlier ones in its block',
            'use data.pack = "running", or an architecture without recurrence that takes position_ids',
        )


def keeps_apart(model: Any) -> bool:
    """Whether the second of two texts in one input gets the logits that it gets alone, to a hundredth of their size.

    Recurrent layers carry the first into the second, whatever the positions say. What cannot be run here is believed:
    flash attention needs a GPU, and weights that are spread over machines are not all here.
    """
    inner = without_adapter(model)
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return False
    if "flash" in str(inner.config._attn_implementation) or not all(p.numel() for p in inner.parameters()):
        return True
    ids = torch.arange(6, device=model.device)[None] % inner.config.get_text_config().vocab_size
    training = model.training
    model.eval()
    with torch.inference_mode():
        both = model(input_ids=ids, position_ids=torch.arange(6, device=ids.device)[None] % 3, use_cache=False).logits
        alone = model(input_ids=ids[:, 3:], use_cache=False).logits
    model.train(training)
    return bool((both[:, 3:] - alone).norm() <= 0.01 * alone.norm())


def metrics(sums: np.ndarray, tokens: TokenStream) -> dict[str, float]:
    """Compute from each window's summed loss (nats) and count, [N, 2]: loss a token, perplexity, bits a byte of text.

    The bits of a text are those of its tokens and of the separators that end its documents, which are predicted as any
    token is. Every token counts with the mean loss, those too that were in no window or had no label (of running text,
    the first one; `tokens` is without it where all others were predicted).
    """
    loss = measures.mean_loss(sums)
    figures = {"loss": loss, "perplexity": measures.perplexity(loss)}
    if tokens.num_bytes:
        figures["bits_per_byte"] = measures.bits_per_byte(loss, len(tokens.ids), tokens.num_bytes)
    return figures
