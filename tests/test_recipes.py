"""Every recipe that ships: it loads, and trains two steps after swapping only model size, tokenizer and data source."""

import json

import pytest
from conftest import corpus

from llmkit.recipe import bundled, load

TINY = [name for name in bundled() if name.startswith("tiny/")]
SMALLER = {
    "gpt2": ["n_layer=1", "n_head=2", "n_embd=16", "n_positions=64"],
    "bert": [
        *("num_hidden_layers=1", "num_attention_heads=2", "hidden_size=16", "intermediate_size=32"),
        "max_position_embeddings=64",
    ],
}


def test_all_recipes_are_found():
    assert set(bundled()) >= {"gpt2-small", "bert-base", "shakespeare-char", "tiny/gpt2", "tiny/bert"}


@pytest.mark.parametrize("name", bundled())
def test_a_recipe_says_how_to_launch_it_and_fits_on_a_page(name):
    lines = bundled()[name].read_text().splitlines()
    assert lines[0].startswith("# ")
    assert any(line.strip("# ").startswith(f"llmkit pretrain recipes/{name}.toml") for line in lines)
    assert len(lines) <= 50
    assert load(name).to_toml()


@pytest.mark.parametrize("name", bundled())
def test_a_recipe_trains_two_steps(name, workplace, llmkit, no_network):
    loaded = load(name)
    (workplace / "corpus.txt").write_text(corpus(400))
    family = "bert" if loaded.task == "masked-lm" else "gpt2"
    swaps = [f"model.config.{setting}" for setting in SMALLER[family]]
    if loaded.model.name is not None:
        kind = "wordpiece" if family == "bert" else "byte-bpe"
        swaps += ["model.name=", f'model.config.model_type="{family}"', "data.validation_fraction=0.2"]
        swaps += [f"tokenizer.type={kind}", "tokenizer.vocab_size=300"]
    done = llmkit(
        *("pretrain", name, *swaps, "data.path=corpus.txt", "data.sample_by=line", "data.block_size=16"),
        *("trainer.max_steps=2", "--output-dir", "run"),
    )
    assert done.exit_code == 0, done.stderr
    assert no_network == []
    assert json.loads((workplace / "run/run.json").read_text())["metrics"]["eval_loss"] > 0


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_makes_no_network_call(name, workplace, llmkit, no_network):
    """Unchanged but for its length: its own model, tokenizer and stories."""
    done = llmkit("pretrain", name, "trainer.max_steps=2", "data.max_eval_samples=4", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert no_network == []
