"""`--task NAME`: every name loads as the recipe and settings it stands for, and what is laid over it still wins."""

import pytest

from llmkit.errors import UserError
from llmkit.recipe import load
from llmkit.recipe.shortcuts import NAMED

OWN_DATA = ("text-classification", "question-answering", "token-classification", "multiple-choice", "seq2seq")
MEASURED = ("causal-lm", "masked-lm")  # for `llmkit evaluate`, on any model and text
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")


def value(recipe, key):
    table, _, field = key.partition(".")
    content = getattr(recipe, table)
    found = content[field] if table == "trainer" else getattr(content, field)
    return list(found) if isinstance(found, tuple) else found


def test_every_task_that_was_promised_has_a_name():
    assert set(NAMED) == {*GLUE, "squad", "squad_v2", "wnut_17", "conll2003", *OWN_DATA, *MEASURED}


@pytest.mark.parametrize("name", [name for name in NAMED if name not in (*OWN_DATA, *MEASURED)])
def test_a_name_loads_as_what_it_stands_for(name, tmp_path):
    recipe = load(None, [], task=name, verb="finetune")
    assert recipe.name == name
    for key, wanted in NAMED[name][1].items():
        assert value(recipe, key) == wanted
        assert recipe.origins[key] == "--task"
    (tmp_path / "again.toml").write_text(recipe.to_toml(comments=True))
    assert load(str(tmp_path / "again.toml")) == recipe
    assert recipe.to_toml(comments=True).count("# --task") == len(NAMED[name][1])


def test_glue_is_each_of_its_tasks_with_their_own_metric():
    """Wang et al. 2018 (arXiv:1804.07461), table 1."""
    recipes = {name: load(None, [], task=name) for name in GLUE}
    assert {(recipe.task, recipe.data.path) for recipe in recipes.values()} == {("text-classification", "nyu-mll/glue")}
    assert {name: recipe.data.name for name, recipe in recipes.items()} == {name: name for name in GLUE}
    accuracy = {name for name, recipe in recipes.items() if recipe.evaluation.metrics == ("accuracy",)}
    assert accuracy == {"sst2", "mnli", "qnli", "rte", "wnli"}
    assert recipes["cola"].evaluation.metrics == ("matthews_correlation",)
    assert set(recipes["mrpc"].evaluation.metrics) == set(recipes["qqp"].evaluation.metrics) == {"accuracy", "f1"}
    assert set(recipes["stsb"].evaluation.metrics) == {"pearson", "spearmanr"}
    assert [name for name, recipe in recipes.items() if recipe.data.problem_type == "regression"] == ["stsb"]
    assert recipes["mnli"].data.validation_split == ("validation_matched", "validation_mismatched")


def test_what_has_a_recipe_of_its_own_goes_by_the_recipes_name():
    tasks = {"summarization": "seq2seq", "translation": "seq2seq", "chat": "chat", "swag": "multiple-choice"}
    assert {name: load(None, [], task=name).task for name in tasks} == tasks
    assert load(None, [], task="wnut_17").data.path == "leondz/wnut_17"


def test_squad_in_both_versions():
    assert load(None, [], task="squad").data.path == "rajpurkar/squad"
    assert load(None, [], task="squad_v2").data.path == "rajpurkar/squad_v2"


@pytest.mark.parametrize("name", OWN_DATA)
def test_a_plain_task_is_for_ones_own_data(name, tmp_path):
    with pytest.raises(UserError) as refused:
        load(None, [], task=name)
    assert "data.path: required" in str(refused.value)
    (tmp_path / "mine.csv").write_text("text,label\n")
    recipe = load(None, [f"data.path={tmp_path}/mine.csv"], task=name)
    assert (recipe.task, recipe.data.path, recipe.data.name) == (name, f"{tmp_path}/mine.csv", None)
    assert recipe.evaluation.metrics is None
    assert recipe.notes == ()


def test_ones_own_data_takes_the_place_of_the_tasks(tmp_path):
    (tmp_path / "mine.csv").write_text("text,label\n")
    recipe = load(None, [f"data.path={tmp_path}/mine.csv"], task="sst2")
    assert recipe.data.name is None
    assert "ignoring the recipe's data.name" in recipe.notes[0]
    assert recipe.origins["data.name"] == "default"
    several = load(None, [f"data.path={tmp_path}/mine.csv"], task="mnli")
    assert (several.data.name, several.data.validation_split) == (None, None)


def test_the_command_line_wins_over_the_name():
    recipe = load(None, ["data.name=rte", "trainer.num_train_epochs=7"], task="sst2")
    assert (recipe.data.name, recipe.trainer["num_train_epochs"]) == ("rte", 7)
    assert recipe.origins["data.name"] == recipe.origins["trainer.num_train_epochs"] == "command line"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "sst3"], "did you mean `sst2`?"),
        (["--task", "squadv2"], "did you mean `squad_v2`?"),
        (["--task", "nosuchthing"], "choose from cola, sst2, mrpc"),
        (["--task", "mine.toml"], "to use it as a recipe, leave out --task: llmkit finetune mine.toml"),
        (["glue", "--task", "sst2"], "`glue` and --task sst2 each name a recipe"),
        (["mine.toml", "--task", "sst2"], "`mine.toml` and --task sst2 each name a recipe"),
        ([], "no recipe is given"),
        (["data.path=a.csv"], "no recipe is given"),
        (["gpt2-small"], "llmkit pretrain gpt2-small"),
        (["--task", "bert-base"], "llmkit pretrain bert-base"),
        (["--task", "text-classification"], "data.path: required"),
    ],
)
def test_what_is_no_task_is_refused_with_the_remedy(words, said, llmkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = llmkit("finetune", *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_pretraining_sends_fine_tuning_away(llmkit):
    done = llmkit("pretrain", "glue")
    assert done.exit_code == 2
    assert "llmkit finetune glue" in done.stderr


def test_a_bundled_recipe_goes_by_its_short_name():
    recipe = load(None, [], task="ending")
    assert recipe == load("tiny/ending")
    assert recipe.name == "ending"
    assert load(None, [], task="glue") == load("glue")


def test_one_override_makes_an_adapter():
    assert load(None, [], task="sst2").lora is None
    recipe = load(None, ["lora.r=8"], task="sst2")
    assert recipe.lora == {"r": 8}
    assert "[lora]\nr = 8  # command line" in recipe.to_toml(comments=True)


def test_a_model_that_is_named_brings_architecture_and_tokenizer():
    recipe = load(None, ["model.name=org/name", "lora.r=8"], task="ending")
    assert (recipe.model.name, recipe.model.init, dict(recipe.model.config)) == ("org/name", "pretrained", {})
    assert recipe.tokenizer.type is None
    assert recipe.notes == (
        "model.name is set on the command line: ignoring the recipe's model.config and [tokenizer]",
    )
    with pytest.raises(UserError, match="problem"):  # an adapter on random weights
        load(None, ["lora.r=8"], task="ending")


def test_a_bundled_recipes_stride_never_makes_an_override_an_error():
    """128 of 384 tokens: in proportion, and only where it does not fit; one of the user's own stays."""
    recipe = load(None, ["data.path=x", "data.max_length=128"], task="squad_v2")
    assert recipe.data.stride == 42
    assert "data.stride is now 42: the recipe's 128 is too large for data.max_length = 128" in recipe.notes
    for words, stride in ((["data.max_length=512"], 128), (["data.max_length=128", "data.stride=60"], 60), ([], 128)):
        assert load(None, words, task="squad_v2").data.stride == stride
