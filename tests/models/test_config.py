"""The configuration of a model to start from, and to go on with."""

import pytest
from tiny_models import classifier, refused
from transformers import (
    AutoConfig,
)

from llmkit.models.config import load_config
from llmkit.recipe.schema import Model
from llmkit.recipe.table import ReadOnly


def test_attention_dropout_goes_in_pretraining_and_stays_in_finetuning(base):
    pretraining, notes = load_config(Model(name=base("bert")))
    assert pretraining.attention_probs_dropout_prob == 0
    assert len(notes) == 1
    finetuning, notes = load_config(Model(name=base("bert")), finetuning=True)
    assert finetuning.attention_probs_dropout_prob == 0.1
    assert notes == []


def test_an_adapter_is_no_model_to_start_from(base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path)
    said = refused(load_config, Model(name=str(tmp_path)))
    assert "is an adapter" in said
    assert f"llmkit merge {tmp_path} --output DIR, then model.name=DIR" in said


@pytest.mark.parametrize("layers", [1, 4, 25])
def test_another_number_of_layers_goes_on_with_the_pattern_of_the_architecture(layers):
    table = Model(config=ReadOnly({"model_type": "modernbert", "num_hidden_layers": layers}), init="scratch")
    config, _ = load_config(table)
    assert config.layer_types == AutoConfig.for_model("modernbert", num_hidden_layers=layers).layer_types
