"""Every recipe that ships: it loads, and trains two steps; all but the tiny ones after swapping only model size,
tokenizer and data source.
"""

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
    "marian": [
        *("encoder_layers=1", "decoder_layers=1", "encoder_attention_heads=2", "decoder_attention_heads=2"),
        *("d_model=16", "encoder_ffn_dim=32", "decoder_ffn_dim=32"),
    ],
    "t5": ["num_layers=1", "num_decoder_layers=1", "num_heads=2", "d_model=16", "d_kv=8", "d_ff=32"],
    "gpt_neox": [
        *("num_hidden_layers=1", "num_attention_heads=2", "hidden_size=16", "intermediate_size=32"),
        "max_position_embeddings=64",
    ],
    "bloom": ["n_layer=1", "n_head=2", "hidden_size=16"],
}
SMALLER["bart"] = [*SMALLER["marian"], "max_position_embeddings=64"]
SMALLER["roformer"] = SMALLER["bert"]
SMALLER["modernbert"] = [*SMALLER["bert"], 'layer_types=["full_attention"]']  # one for each layer
SMALLER["electra"] = [*SMALLER["bert"], "embedding_size=16"]


def test_all_recipes_are_found():
    assert set(bundled()) >= {"gpt2-small", "bert-base", "shakespeare-char", "tiny/gpt2", "tiny/bert"}
    assert set(bundled()) >= {"glue", "squad", "tiny/ending", "tiny/questions"}
    assert set(bundled()) >= {"ner", "swag", "summarization", "translation", "chat", "multi-task"}
    assert set(bundled()) >= {"tiny/tags", "tiny/choices", "tiny/summaries", "tiny/chats"}
    assert set(bundled()) >= {"t5-small", "bart-permute", "electra-small", "modernbert-continue", "roots-style"}
    assert set(bundled()) >= {"tiny/order", "tiny/infilling", "tiny/spans", "tiny/electra"}
    assert set(bundled()) >= {"chinese", "tiny/chinese"}


@pytest.mark.parametrize("name", bundled())
def test_a_recipe_says_how_to_launch_it_and_fits_on_a_page(name):
    lines = bundled()[name].read_text().splitlines()
    assert lines[0].startswith("# ")
    verb = "pretrain" if load(name).task in PRETRAINING else "finetune"
    assert any(line.strip("# ").startswith(f"llmkit {verb} recipes/{name}.toml") for line in lines)
    assert len(lines) <= 50
    assert load(name).to_toml()


FAMILY = {"seq2seq": "t5", "chat": "gpt2"}  # bert for the others
LINES = corpus(60).splitlines()
ROWS = {
    "text-classification": [{"text": line, "label": "odd" if i % 2 else "even"} for i, line in enumerate(LINES)],
    "question-answering": [
        {"question": f"where is {i}?", "context": line, "answers": [str(i)]} for i, line in enumerate(LINES)
    ],
    "token-classification": [{"tokens": line.split(), "tags": ["B-A"] + ["O"] * line.count(" ")} for line in LINES],
    "multiple-choice": [{"context": line, "choices": ["yes", "no", "perhaps"], "label": 1} for line in LINES],
    "seq2seq": [{"source": line, "target": line.upper()} for line in LINES],
    "chat": [{"prompt": line[:9], "completion": line[9:]} for line in LINES],
}


@pytest.mark.parametrize("name", [name for name in bundled() if load(name).task in ROWS and name not in TINY])
def test_a_recipe_fine_tunes_two_steps(name, workplace, base, llmkit, no_network):
    loaded = load(name)
    family = loaded.model.config.get("model_type", FAMILY.get(loaded.task, "bert"))
    (workplace / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS[loaded.task])))
    swaps = [f"model.config.{setting}" for setting in SMALLER[family]]
    if loaded.lora is not None:  # an adapter needs a model that was trained
        assert llmkit("pretrain", "causal.toml", "--output-dir", "causal").exit_code == 0
        swaps = ["model.name=causal", "data.validation_fraction=0.2"]
    elif loaded.model.name is not None:
        swaps += ["model.name=", f'model.config.model_type="{family}"', "data.validation_fraction=0.2"]
        swaps += [f"tokenizer.type={'wordpiece' if family == 'bert' else 'byte-bpe'}"]
    if loaded.lora is None:
        swaps += ["tokenizer.vocab_size=300"]
    if name == "translation":
        swaps += ["data.source_lang=", "data.target_lang=", "data.validation_fraction=0.2"]
    swaps += ["data.max_length=32"] + (["data.stride=8"] if loaded.task == "question-answering" else [])
    done = llmkit("finetune", name, *swaps, "data.path=rows.jsonl", "trainer.max_steps=2", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert no_network == []
    assert json.loads((workplace / "run/run.json").read_text())["metrics"]["eval_loss"] > 0


def test_several_tasks_train_two_steps(workplace, base, llmkit, no_network):
    (workplace / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS["text-classification"])))
    swaps = [f"model.name={base}"]
    for name in load("multi-task").tasks:
        swaps += [f"tasks.{name}.data.{key}" for key in ("path=rows.jsonl", "validation_fraction=0.2", "max_length=32")]
    done = llmkit("finetune", "multi-task", *swaps, "trainer.max_steps=2", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert no_network == []


@pytest.mark.parametrize("name", [name for name in bundled() if load(name).task in PRETRAINING and name not in TINY])
def test_a_recipe_trains_two_steps(name, workplace, llmkit, no_network):
    loaded = load(name)
    (workplace / "corpus.txt").write_text(corpus(400))
    named = (loaded.model.name or "").lower()
    family = loaded.model.config.get("model_type") or max((each for each in SMALLER if each in named), key=len)
    swaps = [f"model.config.{setting}" for setting in SMALLER[family]]
    if loaded.model.name is not None:
        kind = "wordpiece" if loaded.task in ("masked-lm", "replaced-token-detection") else "byte-bpe"
        swaps += ["model.name=", f'model.config.model_type="{family}"', "data.validation_fraction=0.2"]
        swaps += [f"tokenizer.type={kind}", f"tokenizer.vocab_size={500 if loaded.task == 'denoising' else 300}"]
    if loaded.data.clean is not None:  # a corpus of one short sentence a line is not what it wants to keep
        swaps += ["data.clean=", "data.validation_fraction=0.2"]
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
    verb, few = ("pretrain", []) if load(name).task in PRETRAINING else ("finetune", ["data.max_train_samples=200"])
    done = llmkit(verb, name, "trainer.max_steps=2", "data.max_eval_samples=4", *few, "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert no_network == []
    assert json.loads((workplace / "run/run.json").read_text())["metrics"]["eval_loss"] > 0
