"""Weights that are new are named and drawn from the seed; no other size is made to fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import NEW, classifier, refused
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from llmkit.models.config import load_config
from llmkit.models.weights import create_model
from llmkit.recipe.schema import Model
from llmkit.recipe.table import ReadOnly


@pytest.mark.parametrize("kind", NEW)
def test_new_weights_are_named_and_drawn_from_the_seed(kind, base):
    model, notes = classifier(base(kind), seed=7)
    assert len(notes) == 1
    assert set(notes[0].removeprefix("newly initialized: ").split(", ")) == NEW[kind]
    stored = load_file(Path(base(kind), "model.safetensors"))
    fresh = dict(model.named_parameters())
    for name in [name for name in fresh if name in stored]:
        assert torch.equal(fresh.pop(name), stored[name]), name
    assert all(any(name.startswith(f"{module}.") for module in NEW[kind]) for name in fresh)
    again, other = (dict(classifier(base(kind), seed=seed)[0].named_parameters()) for seed in (7, 8))
    weights = [name for name in fresh if fresh[name].std() > 0]  # biases are zero
    assert weights
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    assert not any(torch.equal(fresh[name], other[name]) for name in weights)


def test_a_tensor_that_only_pretraining_gives_must_be_there(base, tmp_path):
    weights = load_file(Path(base("bert"), "model.safetensors"))
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    AutoConfig.from_pretrained(base("bert")).save_pretrained(tmp_path)
    assert "lack 1 tensors that BertForSequenceClassification needs" in refused(classifier, str(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_head_of_another_size_is_new(kind, base, tmp_path):
    five = AutoModelForSequenceClassification.from_pretrained(base(kind), num_labels=5)
    five.save_pretrained(tmp_path)
    model, notes = classifier(str(tmp_path))
    head = {"bert": "classifier", "roberta": "classifier.out_proj"}[kind]
    assert notes[0].startswith(f"newly initialized: {head} (")
    assert f"{head}.weight is [5, 16] in the weights and [3, 16] in this model" in notes[0]
    kept = five.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items() if head not in name)
    assert model.get_submodule(head).weight.std() > 0


def test_no_other_size_is_made_to_fit(base):
    table = Model(name=base("bert"), config=ReadOnly({"max_position_embeddings": 12}))
    config, _ = load_config(table)
    said = refused(create_model, table, config, AutoModelForSequenceClassification, 0, task_type="SEQ_CLS")
    assert "bert.embeddings.position_embeddings.weight is [24, 16] in the weights and [12, 16] in this model" in said
    table = Model(name=base("llama"), config=ReadOnly({"vocab_size": 50}))
    config, _ = load_config(table)
    assert "lm_head.weight is [40, 16]" in refused(create_model, table, config, AutoModelForCausalLM, 0, generation={})
