"""Prompts that are read in pieces are gone on with as if they had been read in one batch, with padding."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
    cache_utils,
)
from transformers.generation import GenerationConfig, GenerationMode

from llmkit.inference import batch, generate, prefill
from llmkit.speed.length_groups import groups

LENGTHS = (1, 9, 4, 9, 30, 2, 3, 28)
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT2 = GPT2Config(
    vocab_size=50, n_layer=2, n_embd=32, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1, initializer_range=0.5
)
GROUPED = LlamaConfig(**SMALL, num_key_value_heads=2, initializer_range=0.5)


def made(kind, config):
    torch.manual_seed(0)
    return kind(config).eval()


@pytest.fixture
def prompts():
    torch.manual_seed(1)
    return [torch.randint(2, 50, (length,)).tolist() for length in LENGTHS]


def settings(**more):
    return GenerationConfig(
        **{
            "max_new_tokens": 12,
            "do_sample": False,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "num_beams": 1,
            "num_return_sequences": 1,
            **more,
        }
    )


def written(model, prompts, config, cache=None):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    more = {} if cache is None else {prefill.CACHE: cache}
    torch.manual_seed(2)
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        output_scores=True,
        return_dict_in_generate=True,
        **more,
    )
    return found.sequences[:, longest:], torch.stack(found.scores)


@pytest.mark.parametrize("config", [settings(), settings(do_sample=True), settings(repetition_penalty=1.3)])
@pytest.mark.parametrize(
    ("kind", "model_config"),
    [
        (GPT2LMHeadModel, GPT2),
        (LlamaForCausalLM, GROUPED),
        (Qwen3ForCausalLM, Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, initializer_range=0.5)),
        (GPTNeoXForCausalLM, GPTNeoXConfig(**SMALL, initializer_range=0.5)),
        (FalconForCausalLM, FalconConfig(**SMALL, initializer_range=0.5)),
        (OPTForCausalLM, OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, pad_token_id=0, init_std=0.5)),
    ],
)
def test_what_is_written_is_the_same(kind, model_config, config, prompts, monkeypatch):
    monkeypatch.setattr(prefill, "LAUNCH_COST", 2.0)
    assert len(groups(LENGTHS, prefill.LAUNCH_COST)) > 2
    model = made(kind, model_config)
    cache = prefill.read(model, prompts, config)
    assert cache is not None
    sequences, scores = written(model, prompts, config, cache)
    alike, expected = written(model, prompts, config)
    assert sequences.equal(alike)
    finite = expected.isfinite()
    torch.testing.assert_close(scores[finite], expected[finite], rtol=1e-4, atol=1e-5)


def test_of_prompts_of_one_token_nothing_is_read():
    assert prefill.read(made(GPT2LMHeadModel, GPT2), [[5], [6]], settings(max_new_tokens=3)) is None


def test_a_prompt_of_one_token_is_not_read_and_no_token_twice(prompts):
    seen = []
    model = made(GPT2LMHeadModel, GPT2)
    model.transformer.register_forward_pre_hook(lambda _, words: seen.append(tuple(words[0].shape)))
    prefill.read(model, prompts, settings())
    assert sum(rows for rows, _ in seen) == 7
    assert sum(rows * width for rows, width in seen) < 7 * 29 / 2  # what one batch would hold


@pytest.mark.parametrize(
    ("kind", "model_config", "more", "count"),
    [
        (GPT2LMHeadModel, GPT2, {}, 1),  # nothing to save
        (GPT2LMHeadModel, GPT2, {"num_beams": 2}, 8),
        (GPT2LMHeadModel, GPT2, {"num_return_sequences": 2, "do_sample": True}, 8),
        (GPT2LMHeadModel, GPT2, {"use_cache": False}, 8),
        (GPT2LMHeadModel, GPT2, {"cache_implementation": "static"}, 8),
        (GPT2LMHeadModel, GPT2, {"guidance_scale": 1.5}, 8),
        (GPT2LMHeadModel, GPT2, {"token_healing": True}, 8),
        (GPT2LMHeadModel, GPT2, {"max_new_tokens": 200}, 8),  # much longer than the prompts
        # Its local layers look back from the end of the memory; the next takes no cache, the third no static one.
        (
            GPTNeoForCausalLM,
            GPTNeoConfig(
                vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
            ),
            {},
            8,
        ),
        (OpenAIGPTLMHeadModel, OpenAIGPTConfig(vocab_size=50, n_embd=32, n_layer=1, n_head=2), {}, 8),
        (FalconForCausalLM, FalconConfig(**SMALL, alibi=True), {}, 8),
        (BloomForCausalLM, BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2), {}, 8),  # has no positions
        (MistralForCausalLM, MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8), {}, 8),  # forgets
    ],
)
def test_elsewhere_the_batch_is_left_to_upstream(kind, model_config, more, count, prompts):
    assert prefill.read(made(kind, model_config), prompts[:count], settings(**more)) is None


MEANS = {
    "StaticCache": StaticCache,
    "cache_utils": SimpleNamespace(DynamicLayer=cache_utils.DynamicLayer),
    "generation": SimpleNamespace(GenerationMode=GenerationMode),
}


def renamed(layer):
    raise AttributeError("it has another name now")


@pytest.fixture(
    params=["StaticCache", "cache_utils", "generation", "cumulative_length", "lazy_initialization", "graph"]
)
def gone(request, monkeypatch):
    """What a release of transformers may take away of that from which `prefill` builds its cache."""
    if request.param in MEANS:
        less = {name: each for name, each in MEANS.items() if name != request.param}
        monkeypatch.setattr(prefill, "transformers", SimpleNamespace(**less))
    elif request.param == "cumulative_length":
        monkeypatch.setattr(
            cache_utils.StaticLayer, "cumulative_length", property(renamed, lambda *_: None), raising=False
        )
    elif request.param == "lazy_initialization":
        monkeypatch.setattr(cache_utils.StaticLayer, "lazy_initialization", lambda layer, states: None)
    else:
        monkeypatch.setattr(LlamaForCausalLM, "_can_compile_fullgraph", property(renamed))
    return request.param


@pytest.fixture
def before(prompts, monkeypatch):
    """What is written from a cache that was read in pieces, sampled."""
    monkeypatch.setattr(prefill, "LAUNCH_COST", 2.0)
    assert prefill.read(made(LlamaForCausalLM, GROUPED), prompts, settings()) is not None
    return completions(prompts)


def completions(prompts):
    session = generate.GenerationSession("tiny", made(LlamaForCausalLM, GROUPED), None, {})
    torch.manual_seed(2)
    return batch._generate_within_memory(session, prompts, settings(do_sample=True))


def test_without_upstreams_private_means_the_same_is_written(before, gone, prompts):
    """Only slower: upstream reads the batch whole, into a cache of its own."""
    assert prefill.read(made(LlamaForCausalLM, GROUPED), prompts, settings()) is None
    assert completions(prompts) == before
