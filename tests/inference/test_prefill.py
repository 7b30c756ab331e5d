"""Prompts that are read in pieces are gone on with as if they had been read in one batch, with padding."""

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
)
from transformers.generation import GenerationConfig

from llmkit.inference import prefill
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
    more = {} if cache is None else {"past_key_values": cache}
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
    monkeypatch.setattr(prefill, "STARTING", 2.0)
    assert len(groups(LENGTHS, prefill.STARTING)) > 2
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
