"""Weights in int8: near those in fp32, the same in any batch, for every kind of linear layer; what is refused."""

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer
from tiny_models import LABELS, classifier, refused, trainable
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D
from typer.testing import Result

from llmkit.errors import UserError
from llmkit.export import export
from llmkit.models import loading, quantization
from llmkit.models.config import load_config
from llmkit.models.weights import create_model
from llmkit.recipe.schema import Model


def made() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    size = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=2, n_positions=32, **size)).eval()


def trained() -> tuple[GPT2LMHeadModel, torch.Tensor]:
    """A GPT-2 that has learned to count, and what it has learned from, [B, T]."""
    model = made()
    ids = (torch.arange(16)[None, :] + torch.arange(0, 60, 4)[:, None]) % 64
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(25):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, ids


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_a_layer_is_near_the_one_in_fp32(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 80) if kind == "Linear" else Conv1D(80, 48)
    nn.init.normal_(layer.bias)
    small = quantization.on_cpu(nn.Sequential(nn.Embedding(1, 48), layer), "x", "int8")
    assert type(small[1]) is quantization.Int8Linear
    x = torch.randn(3, 5, 48)
    with torch.inference_mode():
        there, here = layer(x), small[1](x)
    assert here.shape == there.shape == (3, 5, 80)
    assert 0 < (here - there).norm() / there.norm() < 0.02


def test_a_row_is_the_same_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    small = quantization.Int8Linear(quantization.Int8Matmul([torch.randn(80, 48)], [None]), 0)
    x = torch.randn(4, 48)
    x[1] *= 1000  # with one scale for all, the other rows would be zeros
    x[2] = 0
    with torch.inference_mode():
        together = small(x)
        for row in range(4):
            assert torch.equal(together[row], small(x[row : row + 1])[0])
    assert together[0].abs().max() > 1 and together[2].abs().max() == 0


def test_layers_of_one_x_are_multiplied_together_and_each_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = LlamaConfig(num_key_value_heads=2, num_hidden_layers=2, attention_bias=True, **size)
    model = LlamaForCausalLM(config).eval()
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(bias)
    ids = torch.randint(64, (2, 9))
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    with torch.inference_mode():
        there = model(input_ids=ids).logits
        small = quantization.on_cpu(model, "x", "int8")
        here = small(input_ids=ids).logits
    assert (here - there).norm() / there.norm() < 0.05
    made = {layer.matmul for layer in small.modules() if type(layer) is quantization.Int8Linear}
    assert sorted(len(product.sizes) for product in made) == sorted([3, 1, 2, 1] * 2 + [1])  # q k v, o, gate up, down
    assert sum(len(product.sizes) for product in made) == len(layers)
    calls: list[int] = []
    monkeypatch.setattr(torch, "_int_mm", lambda *args, real=torch._int_mm: (calls.append(1), real(*args))[1])
    with torch.inference_mode():
        assert torch.equal(small(input_ids=ids).logits, here)
    assert len(calls) == len(made)


@pytest.mark.parametrize("gone", ["_int_mm", "_version"])
def test_without_torchs_private_means_the_same_is_written(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(64, (2, 9))

    def written() -> tuple[torch.Tensor, torch.Tensor]:
        small = quantization.on_cpu(made(), "x", "int8")
        more = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            return small(input_ids=ids).logits, small.generate(ids, **more)

    expected = written()
    if gone == "_int_mm":
        monkeypatch.delattr(torch, gone)
    else:
        monkeypatch.setattr(torch.Tensor, gone, property(lambda tensor: object.__getattribute__(tensor, "gone")))
    assert not hasattr(torch if gone == "_int_mm" else ids, gone)
    for here, there in zip(written(), expected, strict=True):
        assert torch.equal(here, there)


def test_what_was_made_of_an_x_is_not_given_for_another() -> None:
    torch.manual_seed(0)
    product = quantization.Int8Matmul([torch.randn(8, 4), torch.randn(6, 4)], [None, torch.randn(6)])
    x, other = torch.randn(3, 4), torch.randn(3, 4)
    product.for_layer(x, 0)
    second = product.for_layer(other, 1)
    assert torch.equal(second, product.for_layer(other.clone(), 1)) and not torch.equal(second, product.for_layer(x, 1))
    assert torch.equal(product.for_layer(x, 0), product.for_layer(x, 0))  # one layer, twice
    assert product._input is x and not product._outputs.keys() & {0}
    product.for_layer(x, 1)
    assert product._input is None and not product._outputs  # nothing is kept that is not waited for


def test_an_x_that_is_changed_in_place_between_two_layers_is_two() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(1, 8)
            self.first, self.second, self.third = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embedding(ids).detach() * 1
            y: torch.Tensor = self.first(x) + self.second(x)
            x += 1
            return y + self.third(x)

    torch.manual_seed(0)
    model = Changing()
    ids = torch.zeros((1, 1), dtype=torch.long)
    with torch.inference_mode():
        there = model(ids)
        small = quantization.on_cpu(model, "x", "int8")
        here = small(ids)
    assert small.first.matmul is small.second.matmul is not small.third.matmul
    assert (here - there).norm() / there.norm() < 0.02


def test_perplexity_stays_and_the_tied_embedding_is_left() -> None:
    model, ids = trained()
    with torch.inference_mode():
        there = model(input_ids=ids, labels=ids)
        before = model.transformer.wte.weight.clone()
        small = quantization.on_cpu(model, "x", "int8")
        here = small(input_ids=ids, labels=ids)
    assert torch.equal(small.transformer.wte.weight, before)
    assert type(small.lm_head) is quantization.Int8Linear
    assert not [m for m in small.modules() if type(m) in (nn.Linear, Conv1D)]
    assert (here.logits - there.logits).norm() / there.logits.norm() < 0.05
    assert abs(here.loss - there.loss) < 0.02  # perplexity within 2 percent


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="int4 needs a CUDA GPU"):
        quantization.on_cpu(made(), "x", "int4")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes"):
        quantization.on_gpu("int8")


def test_what_a_gpu_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    eight, four = (quantization.on_gpu(kind)["quantization_config"] for kind in ("int8", "int4"))
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == (True, "nf4", torch.bfloat16)
    assert quantization.on_gpu("int8")["device_map"] == {"": 0}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPT-2 with a tokenizer, where there is no onnxruntime: torch computes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "ONNX", ("no_such_package",))
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    size = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2}
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=64, **size)).save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    return tmp_path


WORDS = ("max_new_tokens=8", "do_sample=false", "--quantize", "int8", "--model")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_the_command_writes_in_int8_with_an_adapter_too(place: Path, llmkit: Callable[..., Result]) -> None:
    from peft import LoraConfig, get_peft_model

    plain = llmkit("generate", "A cat", *WORDS, "gpt2")
    hint = "int8     in torch; faster with onnxruntime: pip install 'llmkit[onnx]'\n"
    assert (plain.exit_code, plain.stderr) == (0, hint)
    base = GPT2LMHeadModel.from_pretrained("gpt2")
    torch.manual_seed(1)
    get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, lora_alpha=64)).save_pretrained("adapter")
    adapted = llmkit("generate", "A cat", *WORDS, "adapter")
    assert adapted.exit_code == 0 and adapted.stdout != plain.stdout


def test_weights_that_are_quantized_already_are_refused(place: Path, llmkit: Callable[..., Result]) -> None:
    shutil.copytree("gpt2", "again")
    config = json.loads(Path("gpt2/config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    Path("again/config.json").write_text(json.dumps(config))
    said = llmkit("generate", "A cat", *WORDS, "again")
    assert said.exit_code == 2 and "the weights of `again` are quantized already" in said.stderr


def test_four_bits_need_a_gpu_and_bitsandbytes(base, monkeypatch, no_network):
    table = Model(name="some/where", load_in_4bit=True)
    config = AutoConfig.from_pretrained(base("llama"))
    make = (create_model, table, config, AutoModelForCausalLM, 0, {}, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs a CUDA GPU" in refused(*make)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "pip install bitsandbytes" in refused(*make)
    assert no_network == []


@pytest.mark.parametrize(("bf16", "compute"), [(True, torch.bfloat16), (False, torch.float16)])
def test_four_bits_are_asked_for_as_in_qlora(bf16, compute, base, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    asked = {}

    class Boundary:  # from_pretrained up to where bitsandbytes would begin
        from_config = AutoModelForSequenceClassification.from_config

        @staticmethod
        def from_pretrained(name, quantization_config, **options):
            asked.update(vars(quantization_config), load_in_4bit=quantization_config.load_in_4bit)
            return AutoModelForSequenceClassification.from_pretrained(name, **options)

    table = Model(name=base("distilbert"), load_in_4bit=True)
    config, _ = load_config(table, finetuning=True)
    model, _ = create_model(table, config, Boundary, 0, {}, task_type="SEQ_CLS")
    assert asked["load_in_4bit"]
    assert asked["bnb_4bit_quant_type"] == "nf4"
    assert asked["bnb_4bit_use_double_quant"]
    assert asked["bnb_4bit_compute_dtype"] == compute
    assert set(asked["llm_int8_skip_modules"]) == {"pre_classifier", "classifier", "distilbert.pooler"}
    assert all(".lora_" in name or "classifier" in name for name in trainable(model))


def test_four_bits_leave_no_trace_in_the_saved_configuration(base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.config.quantization_config = {"load_in_4bit": True}
    loading.save_config(model, tmp_path)
    saved = AutoConfig.from_pretrained(tmp_path / loading.ADAPTED_CONFIG)
    assert not hasattr(saved, "quantization_config")
    assert saved.id2label == LABELS["id2label"]
    assert saved.architectures == ["BertForSequenceClassification"]
