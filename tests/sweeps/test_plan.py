"""What a sweep asks for: trials from the command line and the recipe, how far each goes, every mistake before any."""

import importlib.util
from pathlib import Path

import pytest

from llmkit.recipe import load

RATES = ("--sweep", "trainer.learning_rate=1e-3,1e-2")


def refused(llmkit, *words):
    done = llmkit("finetune", "rows.toml", *words)
    assert done.exit_code == 2, done.stderr
    assert not Path("runs").exists()
    return done.stderr


def test_every_mistake_is_named_before_anything_starts(llmkit, trained):
    said = refused(
        llmkit,
        *(
            "--sweep",
            "trainer.learning_rate=1e-3,-1",
            "--sweep",
            "trainer.wieght_decay=0,1",
            "--sweep",
            "data.seed=8..16",
        ),
        *("--sweep", "data.max_length=0,8", "trainer.learning_rate=5", "--sampler", "grid"),
    )
    assert "5 problems in the sweep" in said
    for mistake in (
        "trainer.wieght_decay: unknown key, did you mean `trainer.weight_decay`",
        "data.seed: a range has no end of values: give --trials N, or list the values",
        "trainer.learning_rate: is both set and swept",
        "trainer.learning_rate: must be at least 0, not -1  (trial learning_rate=-1",
        "data.max_length: must be at least",
    ):
        assert mistake in said
    assert trained.calls == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trials", "3"), "there is nothing to sweep: give --sweep KEY=VALUES"),
        ((*RATES, "--sampler", "random"), "--sampler random needs --trials N"),
        ((*RATES, "--sampler", "grid", "--trials", "2"), "--trials does not go with --sampler grid"),
        ((*RATES, "--halving", "3"), "--halving 3 needs as many trials, and there are 2"),
        ((*RATES, "--halving", "2", "--max-time", "9s"), "--halving does not go with --max-time"),
        (("--sweep", "trainer.seed=1,2"), "repeat each trial with several seeds: --seeds N"),
        (("--sweep", "trainer.learning_rate=1e-9..1e9", "--trials", "3", "trainer.x=1"), "trainer.x"),
        (("--sweep", "trainer.warmup_steps=-1..1", "--trials", "1"), "must be at least 0, not -1"),
    ],
)
def test_what_does_not_go_together_is_refused(words, said, llmkit, trained):
    assert said in refused(llmkit, *words)


def test_optuna_is_an_extra(llmkit, trained, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    said = refused(llmkit, *RATES, "--sampler", "optuna-tpe", "--trials", "3", "--halving", "2")
    assert "--sampler optuna-tpe needs Optuna: pip install 'llmkit[optuna]'" in said
    assert "--halving does not go with --sampler optuna-tpe" in said


def test_a_recipe_has_its_sweep(llmkit, trained):
    Path("swept").mkdir()
    Path("swept/near.txt").write_text("")
    table = (
        '[sweep]\nseeds = 2\n[sweep.over]\ntrainer.learning_rate = [1e-3, 1e-2]\n"model.name" = ["near.txt", "far"]\n'
    )
    Path("swept/mine.toml").write_text(Path("rows.toml").read_text().replace("rows.csv", "../rows.csv") + table)
    done = llmkit("finetune", "swept/mine.toml", "--sweep", "trainer.learning_rate=5e-3")
    assert done.exit_code == 0, done.stderr
    near = str(Path("swept/near.txt").absolute())
    assert [word for words in trained.words for word in words if word.startswith("model.name")] == [
        *([f"model.name={near}"] * 2),
        *(["model.name=far"] * 2),
    ]
    assert all("sweep=" in words for words in trained.words)
    assert {seed for _, seed, _ in trained.calls} == {42, 43}
    assert load("swept/mine.toml", ["sweep="]).sweep is None


def test_a_recipe_whose_sweep_is_empty_or_misspelt_is_refused(llmkit, trained):
    recipe = Path("rows.toml").read_text()
    Path("rows.toml").write_text(f"{recipe}[sweep]\nseeds = 2\n")
    assert "there is nothing to sweep" in refused(llmkit)
    Path("rows.toml").write_text(f"{recipe}[sweep]\ntrails = 2\nhalving = 1\n")
    said = refused(llmkit)
    assert "sweep.trails: unknown key, did you mean `trials`" in said
    assert "sweep.halving: must be at least 2, not 1" in said


@pytest.mark.parametrize(
    ("trials", "halving", "rungs"),
    [
        (1, None, "1 of 1"),
        (9, 3, "9 to 1/9, 3 to 1/3, 1 of 1"),
        (6, 3, "6 to 1/3, 2 of 1"),
        (3, 3, "3 to 1/3, 1 of 1"),
        (30, 3, "30 to 1/9, 10 to 1/3, 3 of 1"),
        (4, 2, "4 to 1/4, 2 to 1/2, 1 of 1"),
    ],
)
def test_halving_has_three_rungs_where_trials_suffice(trials, halving, rungs, place):
    from llmkit.sweeps import plan

    options = {"trials": trials, "halving": halving, "sampler": None, "seeds": None}
    over = ["trainer.learning_rate=1e-5..1e-3"]
    made = plan.make(
        load("rows.toml"), over, options, ["finetune", "rows.toml"], lambda words: load("rows.toml", words)
    )
    said = ", ".join(f"{number} {'of' if share == 1 else 'to'} {share}" for share, number in made.rungs)
    assert said == rungs


def test_a_dry_run_lists_the_trials_and_their_steps(llmkit, place):
    words = ("trainer.max_steps=", "--sweep", "trainer.num_train_epochs=1,2", "--sweep", "trainer.weight_decay=0,1")
    done = llmkit("finetune", "rows.toml", *words, "--seeds", "2", "--dry-run")
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "sweep 4 trials x 2 seeds = 8 runs (grid)" in said
    assert "num_train_epochs=1,weight_decay=1 11 steps num_train_epochs=2,weight_decay=0 22 steps" in said
    assert "steps in all 132" in said  # 2 seeds x (11 + 11 + 22 + 22)
    assert load_text(done.stdout).sweep.over["trainer.weight_decay"] == [0, 1]
    done = llmkit("finetune", "rows.toml", *RATES, "--halving", "2", "--dry-run")
    said = " ".join(done.stderr.split())
    assert "halving 2 to 1/2, 1 to the end" in said
    assert "steps in all 14" in said  # 2 x 5 and 4 more
    assert not Path("runs").exists()


def load_text(text):
    Path("again.toml").write_text(text)
    return load("again.toml")
