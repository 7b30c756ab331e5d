"""Prefill the cache of a batch of prompts in groups of like length, so that little padding is computed.

In a batch of 64 prompts of 4 to 168 tokens half of the positions are padding, and prefilling it takes as long as
generating fifty tokens. The cache is allocated for the full length of the texts: one that grows is copied for each
token.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import transformers
from transformers import DynamicCache, GenerationMixin, PreTrainedModel

from llmkit.inference import onnx_decoder
from llmkit.speed.length_groups import groups

# What `generate`, a model's forward and their outputs call the keys and values: `cache` from transformers 5.24 on.
_GIVEN = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _GIVEN else "past_key_values"

# The fixed cost of a forward pass, in tokens: measured with a few rows on SmolLM2-135M (0.16 s for 4 tokens).
LAUNCH_COST = 64.0
LONGER = 4  # new tokens, as a multiple of the longest prompt, up to which prefilling in groups wins


def read(model: Any, prompts: Sequence[list[int]], config: Any) -> Any:
    """Compute the keys and values of all but the last token of each prompt, right-aligned, for `model.generate`.

    Returns None where that is not known to work or to be faster: on a GPU, for a single prompt, for beam search, for
    texts much longer than the prompts (each token attends to the whole cache, its empty part too; not in onnxruntime),
    for models with another kind of cache or with an adapter, and with a transformers whose caches are made in another
    way. Then upstream reads the whole batch.
    """
    longest = max(map(len, prompts))
    if model.device.type != "cpu" or 1 in (len(prompts), longest):
        return None
    if config.max_new_tokens > LONGER * longest and onnx_decoder.of(model) is None:
        return None
    if not isinstance(model, PreTrainedModel):
        return None
    try:
        return _read(model, prompts, config) if _one_token_at_a_time(config) and _caches_every_token(model) else None
    except (AttributeError, TypeError):  # what is private of a cache has moved
        return None


def _read(model: PreTrainedModel, prompts: Sequence[list[int]], config: Any) -> Any:
    longest = max(map(len, prompts))
    decoder = onnx_decoder.of(model)
    if decoder is None:
        body = model.base_model
        cache = transformers.StaticCache(config=model.config, max_cache_len=longest + config.max_new_tokens)
    else:
        body = partial(model, logits_to_keep=1)
        cache = decoder.new_cache(len(prompts), longest - 1, config.max_new_tokens + 1)
    longer = [row for row, prompt in enumerate(prompts) if len(prompt) > 1]
    for group in groups([len(prompts[row]) - 1 for row in longer], LAUNCH_COST):
        rows = [longer[index] for index in group]
        group_cache = DynamicCache(config=model.config)
        ids, mask = padded([prompts[row][:-1] for row in rows], 0)
        positions, width = (mask.cumsum(1) - 1).clamp(min=0), ids.shape[1]
        with torch.no_grad():
            body(ids, attention_mask=mask, position_ids=positions, use_cache=True, **{CACHE: group_cache})
        for layer, group_layer in zip(cache.layers, group_cache.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(
                    *(states[:1].expand(len(prompts), -1, -1, -1) for states in (group_layer.keys, group_layer.values))
                )
            layer.keys[rows, :, longest - 1 - width : longest - 1] = group_layer.keys
            layer.values[rows, :, longest - 1 - width : longest - 1] = group_layer.values
    for layer in cache.layers if decoder is None else ():
        layer.cumulative_length.fill_(longest - 1)
    return cache


def padded(prompts: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts on the left with `pad`; return the ids and the attention mask, both [prompts, longest]."""
    padding = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad] * length + prompt for length, prompt in zip(padding, prompts, strict=True)])
    return ids, (torch.arange(ids.shape[1]) >= torch.tensor(padding)[:, None]).long()


def _one_token_at_a_time(config: Any) -> bool:
    """Whether `config` generates one text for each prompt, one token a pass, from the prompt as it is."""
    modes = transformers.generation.GenerationMode
    supported_mode = config.get_generation_mode() in (modes.GREEDY_SEARCH, modes.SAMPLE)
    other_settings = (
        config.guidance_scale or config.token_healing or config.cache_implementation or config.use_cache is False
    )
    return supported_mode and config.num_return_sequences == 1 and not other_settings


def _caches_every_token(model: PreTrainedModel) -> bool:
    """Whether the model supports a static cache, every layer caches every token, and positions can be passed."""
    config = model.config
    layers = DynamicCache(config=config).layers
    scaled = (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope")  # by length
    takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters and not scaled
    static = model._can_compile_fullgraph and not getattr(config, "alibi", False)
    dynamic = transformers.cache_utils.DynamicLayer
    return takes_positions and static and bool(layers) and all(type(layer) is dynamic for layer in layers)
