"""Masked language modelling: some tokens are hidden, and the model reads both sides to guess them (BERT and its kind).

Devlin et al. 2018 (arXiv:1810.04805), section 3.1: 15 % of the tokens are chosen; of these 80 % are replaced by the
mask token, 10 % by a random token, 10 % stay as they are. What is chosen are tokens, whole words, or spans of words
(Joshi et al. 2020, arXiv:1907.10529).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llmkit import metrics as measures
from llmkit.data.text import corruption
from llmkit.data.text.boundaries import vocabulary, word_starts
from llmkit.data.text.pack import BlockSpec, EvaluationWindows, TokenStream, Window
from llmkit.errors import UserError
from llmkit.recipe.data_tables import MaskedData

if TYPE_CHECKING:
    from llmkit.tasks import masked_lm
    from llmkit.tasks.task import TextTask

    task: TextTask = masked_lm

# What this task does without (`tasks/task.py`).
losses = preprocess_logits_for_metrics = trivial = prepare_model = create_model = load_model = None

LABEL_OFFSET = -1  # before a window's tokens stands [CLS]


def document_separator(tokenizer: Any) -> list[int]:
    """Return nothing: a block holds running text, without separators strewn through it."""
    return []


def block_spec(data: MaskedData, block_size: int) -> BlockSpec:
    """Return what fits between `[CLS]` and `[SEP]`."""
    return BlockSpec(block_size - 2, block_size - 2)


def need_tokens(tokenizer: Any, task: str) -> None:
    """Raise UserError for a tokenizer without what blocks of hidden tokens are made with."""
    wanted = {"mask_token": "to hide tokens", "cls_token": "to begin a block", "sep_token": "to end one"}
    missing = [name for name in wanted if getattr(tokenizer, name) is None]
    if missing:
        raise UserError(
            f"the tokenizer has no {missing[0]} {wanted[missing[0]]}, which {task} needs",
            "use the tokenizer of a masked language model, or train one with [tokenizer]",
        )


class PseudoLikelihoodBlocks(Dataset[Window]):
    """Repeat every block once for each token that is not special; `Window.index` is the position of the hidden one.

    `tokens` is what is predicted of the data, and `special` bool [V].
    """

    def __init__(self, tokens: TokenStream, spec: BlockSpec, limit: int | None, special: np.ndarray) -> None:
        self._blocks = EvaluationWindows(tokens, spec, limit)
        self._stride = spec.stride
        self._positions = np.flatnonzero(~special[tokens.ids[: self._blocks.num_tokens]])
        self.tokens = self.stream = tokens
        self.num_blocks, self.tail = self._blocks.num_blocks, self._blocks.tail

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: an evaluation is the same every time."""

    def __len__(self) -> int:
        return len(self._positions)

    def begin(self, index: int) -> int:
        """Return the place in the stream of the first token of what a window is."""
        return self._blocks.begin(int(self._positions[index]) // self._stride)

    def __getitem__(self, index: int) -> Window:
        block, position = divmod(int(self._positions[index]), self._stride)
        return replace(self._blocks[block], index=position)


def evaluation_windows(
    tokens: TokenStream, data: MaskedData, spec: BlockSpec, limit: int | None, tokenizer: Any
) -> Dataset[Window]:
    """Cut `tokens` into the windows that `llmkit evaluate` measures."""
    if data.masking == "each":
        return PseudoLikelihoodBlocks(tokens, spec, limit, vocabulary(tokenizer).special)
    return EvaluationWindows(tokens, spec, limit)


def collator(
    data: MaskedData, tokenizer: Any, config: Any, seed: int
) -> Callable[[list[Window]], dict[str, torch.Tensor]]:
    """Windows -> `input_ids`, `attention_mask` and `labels`, all [B, T]; labels are -100 where nothing is hidden.

    Special tokens in the text, such as `[UNK]`, are neither hidden nor drawn as random ones. Every draw comes from
    (seed, epoch, block): the same whatever the batch, the workers or the processes. With `masking = "each"` chance has
    no part: the one token that a window names is hidden (Salazar et al. 2020, arXiv:1910.14659), so that the loss is
    the mean negative pseudo-log-likelihood of a token.
    """
    need_tokens(tokenizer, "masked-lm")
    properties = vocabulary(tokenizer)

    def choose(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
        allowed = ~properties.special[ids]
        if data.masking == "token":
            return corruption.choose_tokens(rng, np.flatnonzero(allowed), data.mlm_probability)
        starts = word_starts(ids, properties)
        if data.masking == "whole-word":
            return corruption.choose_words(rng, starts, allowed, data.mlm_probability)
        return corruption.choose_spans(rng, starts, allowed, data.mlm_probability, data.mean_span_length)

    def hide(window: Window) -> tuple[np.ndarray, np.ndarray]:
        rng = corruption.generator(seed, window.epoch, window.index)
        if data.masking == "each":
            position = np.array([window.index])
            return corruption.mask(rng, window.ids, position, tokenizer.mask_token_id, properties.ordinary, 1.0, 0.0)
        chosen = choose(rng, window.ids)
        shares = (data.mask_replace_prob, data.random_replace_prob)
        return corruption.mask(rng, window.ids, chosen, tokenizer.mask_token_id, properties.ordinary, *shares)

    def collate(windows: list[Window]) -> dict[str, torch.Tensor]:
        lengths = np.array([len(window.ids) for window in windows])
        shape = (len(windows), lengths.max() + 2)
        input_ids = np.full(shape, tokenizer.pad_token_id or 0, np.int64)  # behind a window that is short
        labels = np.full(shape, -100, np.int64)
        input_ids[:, 0] = tokenizer.cls_token_id
        for b, window in enumerate(windows):
            inside = slice(1, 1 + lengths[b])
            input_ids[b, inside], labels[b, inside] = hide(window)
            input_ids[b, 1 + lengths[b]] = tokenizer.sep_token_id
        attention_mask = (np.arange(shape[1]) < lengths[:, None] + 2).astype(np.int64)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    return collate


def metrics(sums: np.ndarray, tokens: TokenStream) -> dict[str, float]:
    """From the summed loss (nats) and the count of hidden tokens of each block, [N, 2]: loss and perplexity a token."""
    loss = measures.mean_loss(sums)
    return {"loss": loss, "perplexity": measures.perplexity(loss)}
