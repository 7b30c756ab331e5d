"""`--quantize int8` and `--precision` of predict and evaluate: what is refused, and what is kept. Exports are slow."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from llmkit.errors import UserError
from llmkit.export import export, onnx_compare, onnx_model
from llmkit.inference import precision
from llmkit.models import loading
from llmkit.training import arguments


@pytest.mark.parametrize("task", ["seq2seq", "causal-lm", "replaced-token-detection"])
def test_a_model_that_writes_is_refused(task):
    with pytest.raises(UserError, match=f"`m` is a model for {task}: in int8 there are text-classification"):
        precision.check("m", task, "int8")


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(UserError, match="cannot be combined"):
        precision.check("m", "text-classification", "int8", "bf16")
    with pytest.raises(UserError, match="int4 is for models that write text"):
        precision.check("m", "text-classification", "int4")


def test_without_onnxruntime_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(export, "ONNX", ("no_such_package",))
    with pytest.raises(UserError, match="--quantize int8 needs the package no_such_package") as refused:
        precision.check("m", "text-classification", "int8")
    assert refused.value.hint == "pip install 'llmkit[onnx]'"


def test_bf16_is_refused_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(arguments, "has_fast_bf16", lambda: False)
    with pytest.raises(UserError, match="this CPU has no fast bf16"):
        arguments.weights_in("bf16")
    monkeypatch.setattr(arguments, "has_fast_bf16", lambda: True)
    assert arguments.weights_in("bf16") == {"dtype": torch.bfloat16}
    assert arguments.weights_in("fp32") == {"dtype": torch.float32}


def test_the_file_is_made_once_for_the_same_weights(tmp_path, monkeypatch):
    from llmkit import disk

    made, weights = [], ["a"]

    def write(run, name, task, folder, quantize):
        made.append(weights[0])
        (folder / "model.onnx").write_text(weights[0])
        return ["compared", "try it"]

    monkeypatch.setattr(disk, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(loading, "identity", lambda name: iter(weights))
    monkeypatch.setattr(export, "whole", contextlib.nullcontext)
    monkeypatch.setattr(onnx_model, "write", write)
    first = precision.folder("m", "text-classification")
    assert precision.folder("m", "text-classification") == first
    weights[0] = "b"
    assert precision.folder("m", "text-classification") != first
    assert made == ["a", "b"]


def test_evaluation_in_int8_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "check", lambda *words: None)
    monkeypatch.setattr(precision, "folder", lambda *words: tmp_path)
    monkeypatch.setattr(onnx_compare, "forward_of", lambda *words: lambda **inputs: "int8")
    model = torch.nn.Linear(1, 1)
    with precision.in_int8("m", "text-classification")(model):
        assert model(input_ids=SimpleNamespace()) == "int8"
    assert "forward" not in vars(model)
