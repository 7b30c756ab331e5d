"""Prompts that are written behind together are read in pieces of like length, so that little padding is computed.

Of 64 prompts of 4 to 168 tokens half of what one batch holds is padding, and reading takes as long as writing fifty
tokens behind them. What was read stands in memory that is as long as the texts will be: a cache that grows is copied
for each token.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import DynamicCache, GenerationMixin, PreTrainedModel

from llmkit.speed.length_groups import groups

# What `generate`, a model's forward and their outputs call the keys and values: `cache` from transformers 5.24 on.
_GIVEN = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _GIVEN else "past_key_values"

# Tokens: with a few rows a pass through SmolLM2-135M takes as long as computing so many (0.16 s for 4 tokens).
STARTING = 64.0
LONGER = 4  # times the longest prompt


def read(model: Any, prompts: Sequence[list[int]], config: Any) -> Any:
    """The keys and values of all but the last token of each prompt, on the right: what `model.generate` goes on from.

    None where it is not known to work or to win: on a GPU, for a single prompt, for beams, for texts much longer than
    the prompts (each token looks at all of the memory, the empty part too), for models that remember in another way or
    have adapters, and with a transformers whose caches are made in another way. Then upstream reads the batch whole.
    """
    longest = max(map(len, prompts))
    if model.device.type != "cpu" or 1 in (len(prompts), longest) or config.max_new_tokens > LONGER * longest:
        return None
    if not isinstance(model, PreTrainedModel):
        return None
    try:
        return _read(model, prompts, config) if _one_after_another(config) and _remembers_all(model) else None
    except (AttributeError, TypeError):  # what is private of a cache has moved
        return None


def _read(model: PreTrainedModel, prompts: Sequence[list[int]], config: Any) -> Any:
    longest = max(map(len, prompts))
    cache = transformers.StaticCache(config=model.config, max_cache_len=longest + config.max_new_tokens)
    longer = [row for row, prompt in enumerate(prompts) if len(prompt) > 1]
    for group in groups([len(prompts[row]) - 1 for row in longer], STARTING):
        rows = [longer[place] for place in group]
        part = DynamicCache(config=model.config)
        ids, mask = padded([prompts[row][:-1] for row in rows], 0)
        places, width = (mask.cumsum(1) - 1).clamp(min=0), ids.shape[1]
        with torch.no_grad():
            model.base_model(ids, attention_mask=mask, position_ids=places, use_cache=True, **{CACHE: part})
        for whole, piece in zip(cache.layers, part.layers, strict=True):
            if not whole.is_initialized:
                whole.lazy_initialization(
                    *(of[:1].expand(len(prompts), -1, -1, -1) for of in (piece.keys, piece.values))
                )
            whole.keys[rows, :, longest - 1 - width : longest - 1] = piece.keys
            whole.values[rows, :, longest - 1 - width : longest - 1] = piece.values
    for layer in cache.layers:
        layer.cumulative_length.fill_(longest - 1)
    return cache


def padded(prompts: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts with `pad` on the left, and the mask of what is not padding: both [prompts, longest]."""
    padding = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad] * number + prompt for number, prompt in zip(padding, prompts, strict=True)])
    return ids, (torch.arange(ids.shape[1]) >= torch.tensor(padding)[:, None]).long()


def _one_after_another(config: Any) -> bool:
    """One text for each prompt, by one pass for each token, from the prompt as it is."""
    modes = transformers.generation.GenerationMode
    plain = config.get_generation_mode() in (modes.GREEDY_SEARCH, modes.SAMPLE)
    asked = config.guidance_scale or config.token_healing or config.cache_implementation or config.use_cache is False
    return plain and config.num_return_sequences == 1 and not asked


def _remembers_all(model: PreTrainedModel) -> bool:
    """Upstream knows it to work with a static cache; each layer keeps every token; positions are what is passed."""
    config = model.config
    layers = DynamicCache(config=config).layers
    scaled = (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope")  # by length
    known = "position_ids" in inspect.signature(model.base_model.forward).parameters and not scaled
    fixed = model._can_compile_fullgraph and not getattr(config, "alibi", False)
    return (
        known
        and fixed
        and bool(layers)
        and all(type(layer) is transformers.cache_utils.DynamicLayer for layer in layers)
    )
