"""Denoising: a text is corrupted, and an encoder-decoder learns to write what it was before (BART, T5 and their kind).

There are three ways to corrupt it, each with its weight. Permutation: its sentences, or its tokens, stand in another
order. Infilling: spans of tokens, of lengths that follow a Poisson distribution, give way to one mask each (both: Lewis
et al. 2019, arXiv:1910.13461, section 2.2). Span corruption: spans give way to sentinels, and only what stood there is
to be written (Raffel et al. 2019, arXiv:1910.10683, section 3.1.4).
"""

import re
from collections.abc import Callable
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmkit import metrics as measures
from llmkit.data.text import corruption
from llmkit.data.text.boundaries import Vocabulary, sentence_starts, vocabulary
from llmkit.data.text.pack import BlockSpec, TokenStream, Window
from llmkit.errors import UserError
from llmkit.models.config import choose_block_size, positions
from llmkit.recipe.data_tables import DenoisingData
from llmkit.tasks import seq2seq

if TYPE_CHECKING:
    from llmkit.tasks import denoising
    from llmkit.tasks.task import TextTask

    task: TextTask = denoising

# What this task does without (`tasks/task.py`).
LABEL_OFFSET = evaluation_windows = losses = preprocess_logits_for_metrics = trivial = None
create_model = load_model = None

WAYS = ("permutation", "infilling", "span_corruption")
_BLANKS = re.compile(r"(\s*)(.*?)(\s*)\Z", re.DOTALL)  # before a text, the text, behind it


def document_separator(tokenizer: Any) -> list[int]:
    """Return nothing: each example is a document, or a piece of one."""
    return []


def block_spec(data: DenoisingData, block_size: int) -> BlockSpec:
    """Return what fits between a token that begins a text and one that ends it, of one document alone."""
    return BlockSpec(block_size - 2, block_size - 2, within_documents=True)


def collator(
    data: DenoisingData, tokenizer: Any, config: Any, seed: int
) -> Callable[[list[Window]], dict[str, torch.Tensor]]:
    """Windows -> `input_ids` and `attention_mask` [B, S], of the corrupted texts; `labels` [B, T], what is to be
    written; `decoder_input_ids` [B, T], at each position the label before it.

    Both stand between the tokens that the tokenizer sets around a text, and are cut off where the model has no more
    positions: spans with a mean length below 1 add more masks than they hide tokens. Special tokens in the text stay as
    they are. A text of one sentence has no other order, and is copied. Every draw, that of the way included, comes from
    (seed, epoch, example): the same whatever the batch, the workers or the processes.
    """
    before, after = _frame(tokenizer)
    table = data.corruption
    weights = np.array([getattr(table, way) for way in WAYS])
    weights /= weights.sum()
    mask = _mask(tokenizer) if table.infilling else -1
    sentinels = _sentinels(tokenizer) if table.span_corruption else np.empty(0, np.int64)
    known = vocabulary(tokenizer)
    limit = positions(config)
    room = None if limit is None else limit - len(after)
    pad = seq2seq.collator(tokenizer, config, 8 if torch.cuda.is_available() else 1)

    def corrupted(window: Window) -> tuple[np.ndarray, np.ndarray]:
        rng, ids = corruption.generator(seed, window.epoch, window.index), window.ids
        allowed = ~known.special[ids]
        way = rng.choice(WAYS, p=weights)
        if way == "span_corruption":
            density, mean = table.noise_density, table.mean_noise_span_length
            return corruption.span_corruption(rng, ids, allowed, density, mean, sentinels)
        if way == "infilling":
            return corruption.infill(rng, ids, allowed, table.mask_probability, table.poisson_lambda, mask)[0], ids
        if table.permute == "tokens":
            return corruption.permute(rng, ids, np.ones(len(ids), bool), allowed)[0], ids
        return permute_sentences(rng, ids, tokenizer, known), ids

    def framed(ids: np.ndarray) -> np.ndarray:
        return np.concatenate([np.concatenate([before, ids])[:room], after])

    def collate(windows: list[Window]) -> dict[str, torch.Tensor]:
        pairs = [map(framed, corrupted(window)) for window in windows]
        return pad([{"input_ids": source, "labels": target} for source, target in pairs])

    return collate


def permute_sentences(
    rng: np.random.Generator, ids: np.ndarray, tokenizer: Any, kinds_of_tokens: Vocabulary
) -> np.ndarray:
    """Return the sentences of ids [T] in another order, as the tokenizer reads a text in which they stand so: [T'].

    The blanks around them keep their places. In byte-level tokens a blank belongs to the word behind it, and only the
    first word of a text has none: moved as it is, it would tell that its sentence was the first. An unknown token moves
    with its sentence, other special tokens keep their places.
    """
    starts, movable = (
        sentence_starts(ids, kinds_of_tokens),
        ~kinds_of_tokens.special[ids] | (ids == tokenizer.unk_token_id),
    )
    blank = [not kinds.strip("bn") for kinds in kinds_of_tokens.kinds[ids]]  # alone in its token
    for at in np.flatnonzero(starts & movable)[::-1]:
        while at > 1 and blank[at - 1]:  # it is read with what stands behind it
            starts[at - 1 : at + 1] = True, False
            at -= 1
    _, order = corruption.permute(rng, ids, starts, movable)
    parts = np.split(ids, np.flatnonzero(starts)[1:])
    texts = [_BLANKS.findall(tokenizer.decode(part, clean_up_tokenization_spaces=False))[0] for part in parts]
    moved = []
    for (before, _, behind), number in zip(texts, (np.cumsum(starts) - 1)[order[starts[order]]], strict=True):
        there, text = parts[number], texts[number][1]
        if (before, text, behind) != texts[number] and _read(tokenizer, "".join(texts[number])) == there.tolist():
            there = np.array(_read(tokenizer, before + text + behind), np.int64)
        moved.append(there)
    return np.concatenate(moved)


def _read(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _frame(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before a text and behind it, the last of which the model learns to stop by."""
    frame = tokenizer("")["input_ids"]
    if tokenizer.eos_token_id is None or frame[-1:] != [tokenizer.eos_token_id]:
        raise UserError(
            "the tokenizer adds no end-of-sequence token to a text: the model would not learn to stop",
            "use that of an encoder-decoder without language codes (tokenizer.name), or train one (tokenizer.type)",
        )
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token", "use a tokenizer that has one: tokenizer.name")
    return np.array(frame[:-1], np.int64), np.array(frame[-1:], np.int64)


def _mask(tokenizer: Any) -> int:
    if tokenizer.mask_token_id is None:
        raise UserError(
            "infilling needs a mask token, and the tokenizer has none",
            "use one with a mask token, such as BART's (tokenizer.name), or train one (tokenizer.type); or set another "
            "corruption (data.corruption)",
        )
    return int(tokenizer.mask_token_id)


def _sentinels(tokenizer: Any) -> np.ndarray:
    """The ids of `<extra_id_0>`, `<extra_id_1>` and so on, as far as there are such tokens."""
    entries = tokenizer.get_vocab()
    sentinel_ids = [entries[name] for name in takewhile(entries.__contains__, (f"<extra_id_{i}>" for i in count()))]
    if len(sentinel_ids) < 2:
        raise UserError(
            "span corruption needs sentinel tokens (<extra_id_0>, <extra_id_1>, ...), and the tokenizer has none",
            "use one with sentinels, such as T5's (tokenizer.name), or train one (tokenizer.type); or set another "
            "corruption (data.corruption)",
        )
    return np.array(sentinel_ids, np.int64)


def prepare_model(model: Any, data: DenoisingData) -> None:
    """Write into the model's generation settings, which are saved with it, that it may write as much as it reads."""
    settings = model.generation_config
    if settings.max_new_tokens is None and settings.max_length is None:
        settings.max_new_tokens = choose_block_size(data.block_size, model.config)


def metrics(sums: np.ndarray, tokens: TokenStream) -> dict[str, float]:
    """From each example's summed loss (nats) and its count of target tokens, [N, 2]: loss and perplexity a token."""
    loss = measures.mean_loss(sums)
    return {"loss": loss, "perplexity": measures.perplexity(loss)}
