"""Output layer and loss in one: the same losses and gradients as from all the logits, which are never there."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    T5Config,
    set_seed,
)

from llmkit.speed import fused_loss
from llmkit.speed.fused_loss import FusedLMLoss

WORDS, B, T = 297, 3, 10
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SEQUENCES = {"d_model": 16, "decoder_start_token_id": 0, "pad_token_id": 0}
LAYERS = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
FEED = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
# Each architecture, and whether its logits are what its output layer gives.
KINDS = {
    "gpt2": (AutoModelForCausalLM, GPT2Config(vocab_size=WORDS, n_layer=2, n_head=2, n_embd=16), True),
    "llama": (AutoModelForCausalLM, LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **SIZES), True),
    "bert": (AutoModelForMaskedLM, BertConfig(vocab_size=WORDS, **SIZES), True),
    "t5": (
        AutoModelForSeq2SeqLM,
        T5Config(vocab_size=WORDS, d_ff=32, d_kv=8, num_layers=2, num_heads=2, **SEQUENCES),
        True,
    ),
    "bart": (AutoModelForSeq2SeqLM, BartConfig(vocab_size=WORDS, **SEQUENCES, **LAYERS, **FEED), False),
    "gemma2": (
        AutoModelForCausalLM,
        Gemma2Config(vocab_size=WORDS, num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.0, **SIZES),
        False,
    ),
}


def made(kind):
    set_seed(0)
    of, config, _ = KINDS[kind]
    return of.from_config(config).eval()


def batch_of(kind):
    draw = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(1, WORDS, (2, B, T), generator=draw)
    labels = labels.clone()
    labels[0, 2:5] = labels[2] = -100
    inputs = {"input_ids": ids}
    return inputs | ({"decoder_input_ids": ids} if KINDS[kind][0] is AutoModelForSeq2SeqLM else {}), labels


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [each.grad.clone() for each in model.parameters() if each.grad is not None]


@pytest.fixture(autouse=True)
def in_small_pieces(monkeypatch):
    monkeypatch.setattr(fused_loss, "AT_ONCE", 4 * WORDS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("fused", "skip"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_all_logits(kind, fused, skip, smoothing):
    model, (inputs, labels) = made(kind), batch_of(kind)
    found = FusedLMLoss(model, fused, skip)
    assert (found.layer is not None) == (KINDS[kind][2] and (fused or skip))
    logits = model(**inputs).logits
    wanted = F.cross_entropy(logits.mT, labels, reduction="none", label_smoothing=smoothing)
    expected = gradients(model, wanted.sum())
    torch.testing.assert_close(found.losses(model, inputs, labels, smoothing), wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(found.losses(model, inputs, labels, smoothing), wanted, rtol=1e-5, atol=1e-6)
    total = found.losses(model, inputs, labels, smoothing, summed=True)
    assert total.item() == pytest.approx(wanted.sum().item(), rel=1e-6)
    torch.testing.assert_close(gradients(model, total), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(**inputs).logits, logits, rtol=0, atol=0)  # nothing stays changed


def largest_kept(model, inputs, labels, **switches):
    """The most numbers of one tensor that the backward pass would need."""
    found, sizes = FusedLMLoss(model, **switches), []
    with saved_tensors_hooks(lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor):
        found.losses(model, inputs, labels, summed=True)
    return max(sizes)


def test_the_logits_are_not_kept():
    model, (inputs, labels) = made("gpt2"), batch_of("gpt2")
    assert largest_kept(model, inputs, labels, fused=False, skip=False) == B * T * WORDS
    assert largest_kept(model, inputs, labels, fused=False, skip=True) == int((labels != -100).sum()) * WORDS
    assert largest_kept(model, inputs, labels, fused=True, skip=False) < B * T * WORDS / 2


def test_a_batch_without_a_label_has_no_loss_and_no_gradient():
    model, (inputs, labels) = made("bert"), batch_of("bert")
    nothing = torch.full_like(labels, -100)
    found = FusedLMLoss(model)
    loss = found.losses(model, inputs, nothing, summed=True)
    assert loss.item() == 0
    assert all(not bool(each.any()) for each in gradients(model, loss))
    assert found.losses(model, inputs, nothing).tolist() == torch.zeros(B, T).tolist()


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_where_every_token_is_predicted_no_position_is_left_out(kind, summed):
    model, (inputs, labels) = made(kind), batch_of(kind)
    labels = labels.clamp(min=0)
    logits = model(**inputs).logits
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(B, T)
    found = FusedLMLoss(model).losses(model, inputs, labels, summed=summed)
    torch.testing.assert_close(found, losses.sum() if summed else losses)
    expected = gradients(model, losses.sum())
    torch.testing.assert_close(gradients(model, FusedLMLoss(model).losses(model, inputs, labels).sum()), expected)


def test_positions_that_have_no_label_to_them_are_refused():
    """What prompt tuning puts in front would shift all others."""
    model, (inputs, labels) = made("gpt2"), batch_of("gpt2")

    def longer(input_ids):
        return model(torch.cat([input_ids[:, :2], input_ids], dim=1))

    with pytest.raises(RuntimeError, match="shape"):
        FusedLMLoss(model).losses(longer, inputs, labels)


def test_an_adapter_on_the_output_layer_is_not_passed_by():
    model, (inputs, labels) = made("llama"), batch_of("llama")
    around = FusedLMLoss(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    assert around.layer is not None
    adapted = get_peft_model(made("llama"), LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    found = FusedLMLoss(adapted)
    assert found.layer is None
    assert found.skip  # `logits_to_keep` does without them all the same
    wanted = F.cross_entropy(adapted(**inputs).logits.mT, labels, reduction="none")
    torch.testing.assert_close(found.losses(adapted, inputs, labels), wanted, rtol=1e-5, atol=1e-6)


def test_under_autocast_the_output_layer_multiplies_in_half_precision(monkeypatch):
    """And the losses are added up in fp32: a sum in half precision has three digits."""
    model, (inputs, labels) = made("gpt2"), batch_of("gpt2")
    with torch.autocast("cpu", torch.bfloat16):
        wanted = FusedLMLoss(model, fused=False).losses(model, inputs, labels, summed=True).item()
    kinds, sound = [], F.linear_cross_entropy

    def noted(hidden, weight, *args, **kwargs):
        kinds.append((hidden.dtype, weight.dtype))
        return sound(hidden, weight, *args, **kwargs)

    monkeypatch.setattr(F, "linear_cross_entropy", noted)
    with torch.autocast("cpu", torch.bfloat16):
        found = FusedLMLoss(model).losses(model, inputs, labels, summed=True)
        with torch.no_grad():
            evaluated = FusedLMLoss(model).losses(model, inputs, labels).sum()
    assert kinds == [(torch.bfloat16, torch.bfloat16)]
    assert found.dtype == evaluated.dtype == torch.float32
    assert found.item() == pytest.approx(wanted, rel=2**-9)  # each is rounded to half precision, the sum is not
    assert evaluated.item() == pytest.approx(wanted, rel=1e-6)
    assert all(bool(each.isfinite().all()) for each in gradients(model, found))


def test_a_layer_that_something_else_has_taken_hold_of_is_left_alone():
    model = made("gpt2")
    model.lm_head.forward = model.lm_head.forward
    assert FusedLMLoss(model).layer is None


@pytest.mark.parametrize("padding", [0, 1])
def test_the_output_layer_is_found_without_a_word_on_padding(padding):
    """Upstream warns of padding without an attention mask by the ids that it sees."""
    config = BertConfig(vocab_size=8, pad_token_id=padding, **SIZES)
    model = AutoModelForMaskedLM.from_config(config)
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert fused_loss.output_layer(model) is not None
    assert seen
    assert not any((ids == padding).any() for ids in seen)
