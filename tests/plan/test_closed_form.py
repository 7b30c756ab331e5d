"""What a training takes, in closed form: equal to what the models have and hold."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import CAUSAL, ROOT
from transformers.training_args import OptimizerNames

from llmkit.models.trainable import freeze
from llmkit.plan import architectures, closed_form
from llmkit.recipe.schema import Optimizer
from llmkit.training.optimizer import hidden_matrices

# Small, and with no two sizes alike.
ENCODER = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "vocab_size": 301,
    "max_position_embeddings": 37,
}
LLAMA = {**ENCODER, "num_key_value_heads": 2, "head_dim": 12, "pad_token_id": 0}
T5 = {
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 80,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "vocab_size": 301,
}
BART = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 301,
    "max_position_embeddings": 37,
    "pad_token_id": 1,
}
CONFIGS = {
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 37, "vocab_size": 301},
    "gpt_neox": ENCODER,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "bert": ENCODER,
    "roberta": ENCODER,
    "xlm-roberta": ENCODER,
    "distilbert": {
        "dim": 48,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 80,
        "vocab_size": 301,
        "max_position_embeddings": 37,
    },
    "electra": {**ENCODER, "embedding_size": 24},
    "roformer": {**ENCODER, "embedding_size": 24},
    "modernbert": {**ENCODER, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    "t5": T5,
    "mt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "bart": BART,
    "marian": {**BART, "decoder_start_token_id": 1},
}
DECODERS = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
HEADS = {
    **dict.fromkeys(DECODERS, ("AutoModelForCausalLM", "AutoModelForSequenceClassification")),
    **dict.fromkeys(("t5", "mt5", "bart", "marian"), ("AutoModelForSeq2SeqLM",)),
}
ON_ENCODERS = (
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_parameters_are_those_of_the_model(kind, tied):
    keys = {**CONFIGS[kind], **({"tie_word_embeddings": tied} if kind in DECODERS else {})}
    config = transformers.AutoConfig.for_model(kind, **keys)
    for auto in HEADS.get(kind, ON_ENCODERS):
        with torch.device("meta"):
            model = getattr(transformers, auto).from_config(config)
        found = architectures.model_of({"model_type": kind, **keys}, auto)
        assert found is not None
        assert found.parameters == sum(p.numel() for p in model.parameters()), auto
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert closed_form._trained(found, "all", None)[1] == trained
        if found.head and not found.vocabulary:
            freeze(model, "head", set())
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            assert closed_form._trained(found, "head", None)[1] == trained, auto


def test_what_config_lacks_has_the_default_of_transformers():
    model = transformers.AutoConfig.for_model("gpt2")
    found = architectures.model_of({"model_type": "gpt2"}, "AutoModelForCausalLM")
    assert found is not None
    assert (found.parameters, found.stacks[0].layers, found.dropout) == (124_439_808, model.n_layer, (0.1, 0.1))
    by_other_names = {"model_type": "gpt2", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = architectures.model_of(by_other_names, "AutoModelForCausalLM")
    assert small is not None
    assert (small.stacks[0].hidden, small.stacks[0].layers) == (48, 2)


def test_an_architecture_that_is_not_known_has_no_closed_form():
    assert architectures.model_of({"model_type": "mamba"}, "AutoModelForCausalLM") is None
    assert architectures.model_of({"model_type": "bert", "hidden_size": "wide"}, "AutoModelForMaskedLM") is None


def test_the_closed_form_needs_no_torch(tmp_path):
    (tmp_path / "recipe.toml").write_text(CAUSAL)
    (tmp_path / "corpus.txt").write_text("a b c\n" * 100)
    program = """
import sys
from llmkit.recipe import load
recipe = load("recipe.toml", [], None, None, "pretrain")
from llmkit.plan import closed_form
print(closed_form.of_recipe(recipe).parameters, "torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.split()[1:] == ["False", "False"], done.stderr


def test_the_memory_of_a_training_is_what_it_then_holds():
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    state = [value for each in optimizer.state.values() for name, value in each.items() if name != "step"]
    held = {
        "weights": sum(each.nbytes for each in model.parameters()),
        "gradients": sum(each.grad.nbytes for each in trained),
        "optimizer": sum(each.nbytes for each in state),
    }
    counts = (sum(map(torch.numel, model.parameters())), sum(map(torch.numel, trained)))
    assert closed_form.held(*counts, "adamw_torch_fused") == held
    assert closed_form.held(*counts, "adafactor") == {name: held[name] for name in ("weights", "gradients")}
    assert "optimizer" not in closed_form.held(*counts, "adamw_8bit")
    assert "optimizer" not in closed_form.held(*counts, "sgd")  # it keeps one with momentum alone
    assert set(closed_form.MOMENTS) < set(OptimizerNames)


@pytest.mark.parametrize(("kind", "auto"), [("gpt2", "AutoModelForCausalLM"), ("bert", "AutoModelForMaskedLM")])
def test_muon_keeps_one_number_for_each_hidden_weight_and_an_average_one_more(kind, auto):
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(kind, **CONFIGS[kind]))
    hidden = hidden_matrices(model)
    spared = sum(each.numel() for each in model.parameters() if id(each) in hidden)
    found = architectures.model_of({"model_type": kind, **CONFIGS[kind]}, auto)
    batch = closed_form.Batch(2, 8)
    plain = closed_form.needs(found, batch)
    table = Optimizer(name="muon", ema=0.9)
    needs = closed_form.needs(found, replace(batch, optimizer=table))
    assert plain.memory["optimizer"] - needs.memory["optimizer"] == 4 * spared > 0
    assert needs.memory["average"] == 4 * needs.trained
    assert needs.peak - plain.peak == 4 * (needs.trained - spared)
    assert needs.checkpoint_bytes - plain.checkpoint_bytes == 4 * (needs.trained - spared)
    assert "optimizer" not in closed_form.held(10, 10, "adamw_torch_fused", table)  # its matrices are not known


def test_several_processes_hold_the_gradients_twice_in_buckets_of_ddp():
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 300}
    model = architectures.model_of(config, "AutoModelForCausalLM")
    one, two = (closed_form.needs(model, closed_form.Batch(8, 16, processes=count)) for count in (1, 2))
    assert "buckets" not in one.memory
    assert two.memory["buckets"] == one.memory["gradients"]
    assert two.peak - one.peak == one.memory["gradients"]


def test_bytes_are_written_in_one_unit():
    assert [closed_form.in_bytes(count) for count in (3_650_568, 90_855_944, 1_500_000_000)] == [
        "3.7 MB",
        "91 MB",
        "1.5 GB",
    ]
