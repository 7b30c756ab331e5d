"""bf16 is chosen where this machine was measured to be faster at it, and nowhere else; what is begun stays."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import losses

from llmkit import seeds
from llmkit.errors import UserError
from llmkit.recipe import load
from llmkit.runs import compatibility
from llmkit.speed import bf16
from llmkit.training import arguments, own_machine
from llmkit.training.own_machine import fit_to_machine

FAST = {(hidden, tokens): 2.0 for hidden in (16, 64) for tokens in (16, 4096)}


@pytest.fixture(autouse=True)
def of_its_own(tmp_path, monkeypatch):
    """A processor that has bf16, with a cache of its own and nothing measured."""
    monkeypatch.setattr(bf16, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(own_machine, "has_fast_bf16", lambda: True)
    monkeypatch.setattr(arguments, "has_fast_bf16", lambda: True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


@pytest.fixture
def measured():
    """Keep a table in which bf16 is twice as fast."""
    bf16.keep(FAST)


def recipe_of(run):
    return tomllib.loads(Path(run, "recipe.toml").read_text())


def chosen(recipe, hidden=32, tokens=1024, **settings):
    """Return whether bf16 is chosen, and why or why not."""
    config = SimpleNamespace(hidden_size=hidden, num_hidden_layers=2)
    settings = {"per_device_train_batch_size": 8, **recipe.trainer, **settings}
    fitted, why = fit_to_machine(recipe, config, None, tokens // 8, settings, "as ever")
    return fitted.trainer.get("bf16"), why


def train(llmkit, *words, name="run"):
    done = llmkit("pretrain", "causal.toml", *words, "--output-dir", name)
    assert done.exit_code == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("hidden", "tokens", "ratio"),
    [
        (128, 256, 1.1),
        (128, 300, 1.1),
        (200, 300, 0.9),
        (128, 9999, 3.0),
        (999, 2000, 2.0),
        (64, 512, None),
        (128, 9, None),
    ],
)
def test_the_least_ratio_around_a_size_counts(hidden, tokens, ratio):
    table = {(128, 256): 1.1, (128, 1024): 3.0, (256, 256): 0.9, (256, 1024): 2.0}
    assert bf16.speedup(table, hidden, tokens) == ratio


def test_a_table_is_this_machine_s_alone(monkeypatch):
    assert bf16.kept() is None
    bf16.keep(FAST)
    assert bf16.kept() == FAST
    file, here = bf16.file(), bf16.machine()
    for changed in ({"threads": 99}, {"torch": "0.1"}, {"processor": "another"}):
        with monkeypatch.context() as patched:
            patched.setattr(bf16, "machine", lambda changed=changed: {**here, **changed})
            assert bf16.kept() is None
    file.write_text(file.read_text()[:50])
    assert bf16.kept() is None


def test_small_steps_are_timed_in_both(monkeypatch):
    monkeypatch.setattr(bf16, "HIDDEN", (64,))
    monkeypatch.setattr(bf16, "TOKENS", (8, 16))
    monkeypatch.setattr(bf16, "ROUNDS", 1)
    monkeypatch.setattr(bf16, "SECONDS", 0.0)
    told = []
    table = bf16.measure(lambda *each: told.append(each))
    assert list(table) == [(64, 8), (64, 16)] and all(ratio > 0 for ratio in table.values())
    assert told == [(*size, ratio) for size, ratio in table.items()]


def test_a_machine_that_was_not_measured_trains_in_fp32_and_names_the_command(workplace):
    precision, why = chosen(load("causal.toml"))
    assert precision is None
    assert "llmkit doctor --measure" in why


def test_bf16_is_chosen_from_a_clear_margin_on(workplace):
    for ratio, expected in ((0.7, None), (bf16.MARGIN - 0.01, None), (bf16.MARGIN, True), (2.0, True)):
        bf16.keep({**FAST, (64, 4096): ratio})
        precision, why = chosen(load("causal.toml"))
        assert precision is expected
        assert f"{ratio:.2f}" in why


def test_a_model_below_all_that_was_measured_trains_in_fp32(workplace, measured):
    assert chosen(load("causal.toml"), hidden=8)[0] is None
    assert chosen(load("causal.toml"), hidden=None)[0] is None


@pytest.mark.parametrize("key", ["bf16", "fp16", "bf16_full_eval", "fp16_full_eval"])
@pytest.mark.parametrize("value", ["true", "false"])
def test_a_recipe_that_says_its_precision_keeps_it(key, value, workplace, measured):
    recipe = load("causal.toml", [f"trainer.{key}={value}"])
    assert chosen(recipe) == (recipe.trainer.get("bf16"), "as ever")


def test_a_processor_without_bf16_never_trains_in_it(workplace, measured, monkeypatch):
    monkeypatch.setattr(own_machine, "has_fast_bf16", lambda: False)
    assert chosen(load("causal.toml")) == (None, "as ever")


@pytest.mark.parametrize("asked", [{"mixed_precision": "no"}, {"mixed_precision": "bf16"}, {"strategy": "FSDP"}])
def test_an_accelerate_file_comes_first(asked, workplace, measured, monkeypatch):
    monkeypatch.setattr("llmkit.process.asked", lambda: {"processes": 2, "device": "cpu"})
    assert chosen(load("causal.toml"))[0]
    monkeypatch.setattr("llmkit.process.asked", lambda: asked)
    assert chosen(load("causal.toml")) == (None, "as ever")


def test_half_precision_from_the_launcher_comes_first(workplace, measured, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert chosen(load("causal.toml")) == (None, "as ever")


def test_every_process_must_have_been_measured_faster(workplace, measured, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)

    def other(ratio):
        def gather(ratios, own):
            ratios[:] = [own, ratio]

        monkeypatch.setattr("torch.distributed.all_gather_object", gather)
        return chosen(load("causal.toml"))[0]

    assert other(1.5) is True
    assert [other(ratio) for ratio in (own_machine.NOTHING, own_machine.NO_BF16, 1.0)] == [None] * 3


def test_rows_count_by_their_usual_length_in_the_parts_that_batches_are_split_into(workplace):
    recipe, config = load("causal.toml"), SimpleNamespace(hidden_size=384, num_hidden_layers=6)
    rows = SimpleNamespace(lengths=np.array([5] * 50 + [500] * 50))
    settings = {"per_device_train_batch_size": 4}
    assert own_machine._tokens_at_once(recipe, config, rows, None, settings) == (2 * 5 + 2 * 500) / 2
    whole = recipe.model_copy(update={"speed": recipe.speed.model_copy(update={"split_batches": False})})
    assert own_machine._tokens_at_once(whole, config, rows, None, settings) == 2 * 5 + 2 * 500
    tasks = SimpleNamespace(parts=[rows, SimpleNamespace(lengths=np.array([7] * 9))])
    assert own_machine._tokens_at_once(recipe, config, tasks, None, settings) == 4 * 7
    assert own_machine._tokens_at_once(recipe, config, SimpleNamespace(), None, settings) is None


def test_a_run_trains_in_what_was_measured_faster_and_says_so(workplace, llmkit, measured):
    said = train(llmkit)
    assert "bf16 (measured at 2.00 times the speed of fp32 on this CPU)" in said
    assert "bf16 = true  # from llmkit doctor --measure: 2.00 times as fast\n" in Path("run/recipe.toml").read_text()
    record = json.loads(Path("run/run.json").read_text())
    assert record["precision"] == "bf16"
    assert record["settings"]["trainer"]["bf16"] is True
    train(llmkit, "trainer.bf16=true", name="asked")
    assert losses(workplace / "run") == losses(workplace / "asked")


def test_what_a_dry_run_and_a_plan_show_is_what_a_run_does(workplace, llmkit, measured):
    done = llmkit("pretrain", "causal.toml", "--dry-run")
    assert "bf16 (measured at 2.00 times the speed of fp32 on this CPU)" in done.stderr
    assert tomllib.loads(done.stdout)["trainer"]["bf16"] is True
    assert json.loads(llmkit("plan", "causal.toml", "--json").stdout)["precision"] == "bf16"


@pytest.mark.parametrize("first", [None, FAST])
def test_what_is_begun_stays_in_its_precision(first, workplace, llmkit):
    if first is not None:
        bf16.keep(first)
    train(llmkit, "trainer.save_steps=3")
    for change in (FAST, dict.fromkeys(FAST, 0.5)):
        bf16.keep(change)
        begun = compatibility.as_begun(load("causal.toml"), Path("run"))
        assert chosen(begun)[0] is (None if first is None else True)
        assert compatibility.since(Path("run"), load("causal.toml", ["trainer.save_steps=3"])) == []
        assert chosen(load("run/recipe.toml"))[0] is (None if first is None else True)  # a saved recipe as well


def test_a_run_that_was_begun_in_fp32_goes_on_in_fp32_to_the_same_weights(workplace, llmkit):
    train(llmkit, "trainer.max_steps=3", "trainer.lr_scheduler_type=constant", name="run")
    bf16.keep(FAST)
    longer = ("trainer.max_steps=6", "trainer.lr_scheduler_type=constant")
    done = llmkit("pretrain", "causal.toml", *longer, "--output-dir", "run", "--resume")
    assert done.exit_code == 0, done.stderr
    assert recipe_of("run")["trainer"].get("bf16") is None
    train(llmkit, *longer, "trainer.bf16=false", name="apart")
    assert losses(workplace / "run") == losses(workplace / "apart")


@pytest.mark.parametrize("first", [None, FAST])
def test_seeds_train_in_the_precision_of_the_first(first, workplace, llmkit):
    recipe = load("causal.toml")
    assert seeds.same_precision(recipe, Path("run")) == []
    if first is not None:
        bf16.keep(first)
    train(llmkit, "trainer.max_steps=1")
    bf16.keep(dict.fromkeys(FAST, 0.5) if first else FAST)
    assert seeds.same_precision(recipe, Path("run")) == [f"trainer.bf16={'false' if first is None else 'true'}"]
    assert seeds.same_precision(load("causal.toml", ["trainer.bf16=false"]), Path("run")) == []
    (workplace / "run/run.json").write_text(Path("run/run.json").read_text().replace('"cpu"', '"cuda"'))
    assert seeds.same_precision(recipe, Path("run")) == []  # there no measurement decides


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        bf16.keep(FAST)
