"""A finished model again: whole, in fp32, and never with weights that are made up."""

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import classifier, outputs, refused
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
)

from llmkit.models import loading


def test_a_whole_model_comes_back_in_fp32(base, tmp_path):
    model, _ = classifier(base("bert"))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again = loading.load_model(str(tmp_path), AutoModelForSequenceClassification)
    assert again.dtype == torch.float32
    assert not again.training
    assert_close(outputs(again), outputs(model.float()))
    config = AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    assert loading.load_model(str(tmp_path), type(model), config).config._attn_implementation == "eager"


def test_random_weights_are_never_passed_off_as_a_model(base, tmp_path):
    said = refused(loading.load_model, base("bert"), AutoModelForSequenceClassification)
    assert "do not fit BertForSequenceClassification: 4 tensors" in said
    five = AutoModelForSequenceClassification.from_pretrained(base("roberta"), num_labels=5)
    five.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_labels=2)
    said = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification, config)
    assert "such as classifier.out_proj.bias" in said


@pytest.mark.parametrize("lost", ["classifier.weight", "query.lora_A"])
def test_an_adapter_that_lacks_a_tensor_is_refused(lost, base, tmp_path):
    model, _ = classifier(base("electra"), lora={})
    model.save_pretrained(tmp_path)
    loading.save_config(model, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in weights if lost in name or lost in name.replace("out_proj.", ""))
    del weights[name]
    save_file(weights, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    said = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification)
    assert f"1 tensors are missing or differ in shape from its configuration, such as {name[17:]}" in said


def test_what_an_adapter_was_trained_on_and_did_not_save_is_not_made_up(base, tmp_path):
    plain = AutoModelForSequenceClassification.from_pretrained(base("bert"))  # with a random pooler
    peft.get_peft_model(plain, peft.LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    said = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification)
    assert "2 tensors are missing or differ in shape from its configuration, such as bert.pooler" in said


def test_an_adapter_whose_base_has_gone_says_so(base, tmp_path, no_network):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(settings.read_text().replace(base("bert"), str(tmp_path / "gone")))
    said = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification)
    assert f"the base model of the adapter `{tmp_path}`: " in said
    assert str(tmp_path / "gone") in said
