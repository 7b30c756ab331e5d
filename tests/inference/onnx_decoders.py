"""Tiny models that write, in int8 in onnxruntime: `make exports`. Half a minute each, most of it tracing."""

import copy

import pytest
import torch
from conftest import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from llmkit import disk
from llmkit.inference import generate, onnx_decoder, prefill

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "llama": {**SIZES, "tie_word_embeddings": True},
    "qwen2": {**SIZES, "use_sliding_window": False},
    "qwen3": {**SIZES, "use_sliding_window": False},
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 128},
}
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]


@pytest.fixture(scope="module", params=CONFIGS)
def session(request, tmp_path_factory):
    """A session of a random model, and the model itself."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **CONFIGS[request.param])
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # probabilities that differ, as those of a trained model do
        parameter.data.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "cache_dir", lambda: folder / "cache")
        loaded = generate.load(str(folder), "causal-lm", {}, 0, "int8")
        again = onnx_decoder.folder(str(folder))
    assert onnx_decoder.of(loaded.model) is not None, (again / onnx_decoder.REFUSED).read_text()
    return loaded, model


def written(session, prompts, **options):
    """What each prompt is continued with; without padding."""
    config = GenerationConfig(max_new_tokens=20, pad_token_id=0, eos_token_id=None, **options)
    cache = prefill.read(session.model, prompts, config)
    ids = generate.write(session, prompts, config, **({} if cache is None else {prefill.CACHE: cache}))
    return ids[:, max(map(len, prompts)) :].tolist()


def test_logits_are_nearly_the_models_with_and_without_padding_and_cache(session):
    loaded, model = session
    ids, mask = prefill.padded(PROMPTS, 0)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ours, theirs = (
        each(ids, attention_mask=mask, position_ids=positions, use_cache=True) for each in (model, loaded.model)
    )
    assert (ours.logits - theirs.logits)[mask.bool()].std() < 0.05 * ours.logits.std()
    for new in (1, 3):  # several tokens behind a cache too
        mask = torch.cat([mask, torch.ones(len(mask), new, dtype=torch.long)], 1)
        further = {
            "input_ids": torch.arange(20, 20 + len(mask) * new).view(-1, new),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1)[:, -new:],
        }
        ours = model(**further, past_key_values=ours.past_key_values)
        theirs = loaded.model(**further, past_key_values=theirs.past_key_values)
        assert (ours.logits - theirs.logits).std() < 0.05 * ours.logits.std()


def test_a_batch_writes_what_each_prompt_writes_alone(session):
    loaded, _ = session
    together = written(loaded, PROMPTS, do_sample=False)
    assert together == [written(loaded, [prompt], do_sample=False)[0] for prompt in PROMPTS]
    assert len({tuple(text) for text in together}) == len(PROMPTS)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}, {"cache_implementation": "static"}],
    ids=str,
)
def test_greedy_text_does_not_hang_on_how_it_is_computed(session, options):
    loaded, _ = session
    assert written(loaded, PROMPTS[:1], do_sample=False, **options) == written(loaded, PROMPTS[:1], do_sample=False)


def test_an_assistant_changes_no_greedy_text(session):
    loaded, _ = session
    helped = copy.copy(loaded)
    helped.generate_options = {"assistant_model": loaded.model}
    config = GenerationConfig(max_new_tokens=20, pad_token_id=0, eos_token_id=None, do_sample=False)
    assert torch.equal(generate.write(helped, PROMPTS[:1], config), generate.write(loaded, PROMPTS[:1], config))


def test_beams_with_a_cache_are_those_without(session):
    loaded, _ = session
    options = {"do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    assert written(loaded, PROMPTS, **options) == written(loaded, PROMPTS, **options, use_cache=False)


def test_a_seed_gives_the_same_samples(session):
    loaded, _ = session
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(written(loaded, PROMPTS[:2], do_sample=True, num_return_sequences=3))
    assert texts[0] == texts[1] != texts[2]


def test_a_cache_goes_on_where_an_answer_ended(session):
    loaded, _ = session
    config = GenerationConfig(
        max_new_tokens=70, pad_token_id=0, eos_token_id=None, do_sample=False, return_dict_in_generate=True
    )
    first = generate.write(loaded, PROMPTS[:1], config)
    longer = [*first.sequences[0].tolist(), 30, 31, 32]
    config = GenerationConfig(max_new_tokens=20, pad_token_id=0, eos_token_id=None, do_sample=False)
    ongoing = generate.write(loaded, [longer], config, **{prefill.CACHE: first[prefill.CACHE]})
    assert torch.equal(ongoing, generate.write(loaded, [longer], config))


def test_guidance_calls_the_model_itself(session):
    loaded, _ = session
    assert written(loaded, PROMPTS[:1], do_sample=False, guidance_scale=2.0)
