"""Every recipe that ships: it loads, and trains two steps after swapping only model size, tokenizer and data source."""

import json

import pytest
from conftest import corpus

from llmkit.recipe import bundled, load
from llmkit.recipe.schema import PRETRAINING

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
    assert set(bundled()) >= {"glue", "squad", "tiny/ending", "tiny/questions"}


@pytest.mark.parametrize("name", bundled())
def test_a_recipe_says_how_to_launch_it_and_fits_on_a_page(name):
    lines = bundled()[name].read_text().splitlines()
    assert lines[0].startswith("# ")
    verb = "pretrain" if load(name).task in PRETRAINING else "finetune"
    assert any(line.strip("# ").startswith(f"llmkit {verb} recipes/{name}.toml") for line in lines)
    assert len(lines) <= 50
    assert load(name).to_toml()


@pytest.mark.parametrize("name", [name for name in bundled() if load(name).task not in PRETRAINING])
def test_a_recipe_fine_tunes_two_steps(name, workplace, llmkit, no_network):
    loaded = load(name)
    if loaded.task == "text-classification":
        rows = [f"{line},{'even' if i % 2 else 'odd'}" for i, line in enumerate(corpus(60).splitlines())]
        (workplace / "rows.csv").write_text("\n".join(["text,label", *rows]))
    else:
        rows = [
            {"question": f"where is {i}?", "context": t, "answers": str(i)}
            for i, t in enumerate(corpus(60).splitlines())
        ]
        (workplace / "rows.csv").write_text(
            "question,context,answers\n" + "\n".join(",".join(r.values()) for r in rows)
        )
    swaps = [f"model.config.{setting}" for setting in SMALLER["bert"]]
    if loaded.model.name is not None:
        swaps += ["model.name=", 'model.config.model_type="bert"', "data.validation_fraction=0.2"]
        swaps += ["tokenizer.type=wordpiece", "tokenizer.vocab_size=300"]
    swaps += ["data.max_length=32"] + (["data.stride=8"] if loaded.task == "question-answering" else [])
    done = llmkit("finetune", name, *swaps, "data.path=rows.csv", "trainer.max_steps=2", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert no_network == []
    assert json.loads((workplace / "run/run.json").read_text())["metrics"]["eval_loss"] > 0


@pytest.mark.parametrize("name", [name for name in bundled() if load(name).task in PRETRAINING])
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
    verb = "pretrain" if load(name).task in PRETRAINING else "finetune"
    done = llmkit(verb, name, "trainer.max_steps=2", "data.max_eval_samples=4", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert no_network == []
