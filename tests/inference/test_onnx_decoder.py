"""Generation in onnxruntime: what is kept, what falls back to torch, and weights that are evened out."""

import contextlib

import pytest
import torch
from conftest import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit import disk
from llmkit.errors import RunError, UserError
from llmkit.export import export, onnx_step
from llmkit.inference import onnx_decoder
from llmkit.models import loading


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the model `m` in it would be whole."""
    monkeypatch.setattr(disk, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(loading, "identity", lambda name: iter(["weights"]))
    monkeypatch.setattr(export, "whole", contextlib.nullcontext)
    return tmp_path


def test_without_onnxruntime_torch_computes_and_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(export, "ONNX", ("no_such_package",))
    assert onnx_decoder.load("m") is None
    assert "pip install 'llmkit[onnx]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (
            RunError("in onnxruntime perplexity +3.00% on 10 tokens", ""),
            "in onnxruntime perplexity +3.00% on 10 tokens",
        ),
        (NotImplementedError("no such operator"), "no such operator"),
    ],
)
def test_what_cannot_be_made_is_tried_once_and_said_each_time(problem, said, cache, monkeypatch, capsys):
    tried = []

    def make(run, name, draft):
        tried.append(name)
        (draft / onnx_step.FILE).write_text("half a graph")
        raise problem

    monkeypatch.setattr(onnx_decoder, "make", make)
    assert onnx_decoder.load("m") is None
    assert onnx_decoder.load("m") is None
    assert tried == ["m"]
    assert capsys.readouterr().err.count(f"int8     in torch: {said}") == 2
    assert not list(cache.glob(f"*/{onnx_step.FILE}"))


def test_a_full_disk_is_no_reason_for_another_way(cache, monkeypatch):
    def make(run, name, draft):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_decoder, "make", make)
    with pytest.raises((OSError, UserError), match="No space left"):
        onnx_decoder.load("m")
    assert not list(cache.glob("int8-*"))


def test_a_graph_is_made_once(cache, monkeypatch, capsys):
    monkeypatch.setattr(onnx_decoder, "make", lambda run, name, draft: "perplexity +0.10% on 10 tokens")
    monkeypatch.setattr(onnx_decoder, "in_onnxruntime", lambda kept: kept)
    assert onnx_decoder.load("m") == onnx_decoder.load("m")
    assert capsys.readouterr().err.count("perplexity +0.10% on 10 tokens") == 1


SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4}


@pytest.mark.parametrize(("kind", "sizes"), [("llama", SIZES), ("qwen3", SIZES), ("gpt2", GPT2)])
def test_evened_out_weights_compute_the_same_and_outputs_of_norms_are_alike(kind, sizes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=300, tie_word_embeddings=False, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    norms = [module for name, module in model.named_modules() if name.endswith(("layernorm", "ln_1", "ln_2", ".norm"))]
    for norm in norms:
        norm.weight.data[::16] *= 30  # channels that stand out
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = model(ids).logits
        onnx_step.even_out(model, ids)
        torch.testing.assert_close(model(ids).logits, before, atol=1e-4, rtol=1e-4)
    assert all(norm.weight.abs().max() / norm.weight.abs().median() < 10 for norm in norms)


def test_what_another_part_reads_is_left_as_it_was():
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma", vocab_size=300, **SIZES)  # its norms add 1
    model = AutoModelForCausalLM.from_config(config).eval()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.1, 2)
    ids = torch.arange(40)[None]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        onnx_step.even_out(model, ids)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], atol=1e-5, rtol=1e-4)


def test_attention_that_is_told_more_is_refused():
    with pytest.raises(UserError, match="the attention of Linear has sliding_window"):
        onnx_step.refuse(torch.nn.Linear(1, 1), {"sliding_window": 4, "softcap": None})


def test_texts_that_a_model_writes_are_the_same_each_time():
    config = AutoConfig.for_model("gpt2", vocab_size=len(byte_tokenizer()), n_positions=16, **GPT2)
    model = AutoModelForCausalLM.from_config(config).eval()
    state = torch.get_rng_state()
    texts = [onnx_decoder.written(model, byte_tokenizer()) for _ in range(2)]
    assert torch.equal(*texts)
    assert texts[0].shape == (onnx_decoder.ROWS, 16)
    assert torch.equal(torch.get_rng_state(), state)
