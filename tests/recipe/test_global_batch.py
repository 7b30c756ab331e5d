"""A step learns from as many examples, whatever the number of processes."""

import json

import pytest

from llmkit.errors import UserError
from llmkit.recipe import bundled, load
from llmkit.recipe.global_batch import divide

SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")


def divided(processes, *overrides, recipe="causal.toml"):
    settings, notes = divide(load(recipe, overrides), processes)
    return tuple(settings.get(key) for key in SIZES), notes


@pytest.mark.parametrize(
    ("processes", "overrides", "sizes"),
    [
        (1, [], (None, None)),
        (1, ["data.global_batch_size=32"], (8, 4)),
        (2, ["data.global_batch_size=32"], (8, 2)),
        (4, ["data.global_batch_size=32"], (8, 1)),
        (8, ["data.global_batch_size=32"], (4, 1)),
        (2, ["data.global_batch_size=32", "trainer.gradient_accumulation_steps=2"], (8, 2)),
        (1, ["data.global_batch_size=12", "trainer.per_device_train_batch_size="], (6, 2)),
    ],
)
def test_a_step_is_divided_among_processes_and_micro_batches(processes, overrides, sizes, workplace):
    found, notes = divided(processes, *overrides)
    assert found == sizes
    assert notes == (["batches of 4 instead of 8: data.global_batch_size = 32 on 8 processes"] if sizes[0] == 4 else [])


@pytest.mark.parametrize(
    ("processes", "overrides", "said"),
    [
        (3, ["data.global_batch_size=32"], "cannot be divided evenly among 3 processes"),
        (1, ["data.global_batch_size=30"], "is 30 each, not a multiple of trainer.per_device_train_batch_size = 8"),
        (1, ["data.global_batch_size=32", "trainer.gradient_accumulation_steps=2"], "does not agree"),
    ],
)
def test_what_cannot_be_divided_is_refused(processes, overrides, said, workplace):
    with pytest.raises(UserError, match=said) as refused:
        divided(processes, *overrides)
    assert refused.value.hint


@pytest.mark.parametrize("name", bundled())
def test_a_bundled_recipe_makes_the_same_steps_on_one_process_and_on_several(name):
    recipe = load(name)
    if recipe.task == "multi-task":
        return
    total = recipe.data.global_batch_size
    for processes in (1, 2, 4):
        settings, _ = divide(recipe, processes)
        assert processes * settings[SIZES[0]] * settings[SIZES[1]] == total
    warmup = recipe.trainer.get("warmup_steps", 0)
    assert 0 <= warmup < 1 and recipe.trainer.get("lr_scheduler_kwargs", {}).get("num_decay_steps", 0) < 1


def test_gpt2_small_trains_10_billion_tokens_on_one_process_too():
    recipe = load("gpt2-small")
    for processes, sizes in ((1, (16, 32)), (8, (16, 4)), (64, (8, 1))):
        assert divided(processes, recipe="gpt2-small")[0] == sizes
    assert recipe.data.global_batch_size * recipe.data.block_size * recipe.trainer["max_steps"] == 9_961_472_000


def test_a_batch_of_the_command_line_comes_before_a_bundled_recipes(workplace):
    recipe = load("glue", ["trainer.per_device_train_batch_size=8"])
    assert recipe.data.global_batch_size is None
    assert any("data.global_batch_size=32 keeps the recipe's" in note for note in recipe.notes)
    both = load("glue", ["trainer.per_device_train_batch_size=8", "data.global_batch_size=64"])
    assert both.data.global_batch_size == 64 and not both.notes
    own_rows = load("glue", ["data.path=org/mine", "trainer.per_device_train_batch_size=8"])
    assert own_rows.data.global_batch_size is None and not any("global_batch_size" in note for note in own_rows.notes)
    mine = load("causal.toml", ["trainer.per_device_train_batch_size=8", "data.global_batch_size=64"])
    assert mine.data.global_batch_size == 64


def test_a_run_accumulates_and_says_so_and_its_recipe_holds_the_step(workplace, llmkit):
    words = ("pretrain", "causal.toml", "data.global_batch_size=32", "trainer.max_steps=2")
    done = llmkit(*words)
    assert done.exit_code == 0, done.stderr
    assert "8 blocks x 4 accumulated" in done.stderr
    assert load("runs/causal/recipe.toml").data.global_batch_size == 32
    manifest = json.loads((workplace / "runs/causal/checkpoint-2/manifest.json").read_text())
    assert manifest["batch"] == 32
    shown = llmkit(*words, "--processes", "2", "--dry-run").stderr
    assert "8 blocks x 2 accumulated x 2 processes x 16 = 512" in " ".join(shown.split())


def test_processes_that_cannot_share_a_step_are_refused_before_anything_is_written(workplace, llmkit):
    done = llmkit("pretrain", "causal.toml", "data.global_batch_size=32", "--processes", "3")
    assert done.exit_code == 2
    assert "--processes 2" in done.stderr
    assert not (workplace / "runs").exists()


def test_a_run_that_was_begun_without_keeps_its_batches(workplace, llmkit):
    from llmkit.runs import compatibility

    recipe = workplace / "mine.toml"
    recipe.write_text((workplace / "causal.toml").read_text())
    assert llmkit("pretrain", "mine.toml", "trainer.max_steps=2", "--output-dir", "run").exit_code == 0
    recipe.write_text(recipe.read_text().replace("[trainer]", "global_batch_size = 64\n[trainer]"))
    now = load("mine.toml", ["trainer.max_steps=2"])
    assert now.data.global_batch_size == 64
    begun = compatibility.as_begun(now, workplace / "run")
    assert begun.data.global_batch_size is None and "keeps its batches" in begun.notes[-1]
    assert compatibility.since(workplace / "run", now) == []


def test_a_share_that_is_as_many_steps_is_no_change():
    from llmkit.runs.compatibility import changes

    def tables(warmup, decay):
        settings = {"num_decay_steps": decay, "decay_type": "linear"}
        return {"trainer": {"max_steps": 1600, "warmup_steps": warmup, "lr_scheduler_kwargs": settings}}

    assert changes(tables(50, 560), tables(0.03125, 0.35)) == []
    assert [key for key, *_ in changes(tables(50, 560), tables(0.05, 0.35))] == ["trainer.warmup_steps"]
