"""Optuna is asked for one trial after the other, told all that came before, and repeats itself when a sweep goes on."""

import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from llmkit.sweeps import tpe
from llmkit.sweeps.space import Axis


class Study:
    """In the place of Optuna's, which is an extra: it notes what it is told, and asks for the middle of each range."""

    made: ClassVar[list["Study"]] = []

    def __init__(self, direction, sampler):
        self.direction, self.sampler, self.told = direction, sampler, []
        self.made.append(self)

    def add_trial(self, trial):
        self.told.append(trial)

    def ask(self, distributions):
        drawn = {key: each["low"] if "low" in each else each["of"][-1] for key, each in distributions.items()}
        drawn |= {"lr": 3.14159e-4 * (1 + len(self.told))} if "lr" in drawn else {}
        return SimpleNamespace(params=drawn)


@pytest.fixture
def optuna(monkeypatch):
    module, distributions = ModuleType("optuna"), ModuleType("optuna.distributions")
    distributions.CategoricalDistribution = lambda of: {"of": list(of)}
    distributions.IntDistribution = lambda low, high, log: {"low": low, "high": high, "log": log, "whole": True}
    distributions.FloatDistribution = lambda low, high, log: {"low": low, "high": high, "log": log, "whole": False}
    module.distributions, module.create_study = distributions, Study
    module.logging = SimpleNamespace(set_verbosity=lambda level: None, WARNING=30)
    module.samplers = SimpleNamespace(TPESampler=lambda seed: seed)
    states = SimpleNamespace(COMPLETE="complete", FAIL="fail")
    module.trial = SimpleNamespace(TrialState=states, create_trial=lambda **trial: trial)
    monkeypatch.setitem(sys.modules, "optuna", module)
    monkeypatch.setitem(sys.modules, "optuna.distributions", distributions)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    Study.made = []
    return module


def test_it_is_told_what_came_before_and_asked_for_one_more(optuna):
    over = [Axis("lr", low=1e-5, high=1e-1), Axis("r", (8, [1, 2])), Axis("n", low=1, high=9)]
    seen = [({"lr": 1e-3, "r": [1, 2], "n": 4}, 0.9), ({"lr": 1e-2, "r": 8, "n": 5}, None)]
    asked = tpe.ask(over, seen, less=False, seed=42)
    assert asked == {"lr": 9.42e-4, "r": [1, 2], "n": 1}  # three digits
    (study,) = Study.made
    assert study.direction == "maximize"
    assert [(trial["params"], trial["value"], trial["state"]) for trial in study.told] == [
        ({"lr": 1e-3, "r": 1, "n": 4}, 0.9, "complete"),
        ({"lr": 1e-2, "r": 0, "n": 5}, None, "fail"),
    ]
    assert study.told[0]["distributions"]["lr"] == {"low": 1e-5, "high": 1e-1, "log": True, "whole": False}
    assert study.told[0]["distributions"]["n"] == {"low": 1, "high": 9, "log": False, "whole": True}
    tpe.ask(over, seen, less=True, seed=42)
    tpe.ask(over, seen[:1], less=True, seed=42)
    assert Study.made[1].direction == "minimize"
    assert Study.made[0].sampler == Study.made[1].sampler != Study.made[2].sampler


def test_a_sweep_asks_trial_by_trial_and_goes_on(optuna, llmkit, trained):
    words = ("finetune", "rows.toml", "--sweep", "trainer.learning_rate=1e-5..1e-1", "--sampler", "optuna-tpe")
    optuna.create_study = lambda direction, sampler: Asked(direction, sampler)
    trained.accuracy = lambda recipe, share: recipe.trainer["learning_rate"]
    trained.end_after = 2
    llmkit(*words, "--trials", "4", "--output-dir", "s")
    trained.end_after = None
    done = llmkit(*words, "--trials", "4", "--output-dir", "s")
    assert done.exit_code == 0, done.stderr
    assert [name for name, *_ in trained.calls] == [f"learning_rate=0.0{n}" for n in (1, 2, 3, 4)]
    assert "best     learning_rate=0.04: eval_accuracy 0.0400" in done.stderr
    assert "s: 4 trials, 4 runs" in done.stderr


def test_a_failed_trial_is_told_as_such(optuna, llmkit, trained):
    words = ("finetune", "rows.toml", "--sweep", "trainer.learning_rate=1e-5..1e-1", "--sampler", "optuna-tpe")
    optuna.create_study = lambda direction, sampler: Asked(direction, sampler)
    trained.code = lambda recipe: 137 if recipe.trainer["learning_rate"] == 0.01 else 0
    done = llmkit(*words, "--trials", "3")
    assert done.exit_code == 1, done.stderr
    assert [trial["state"] for trial in Study.made[-1].told[:2]] == ["fail", "complete"]


class Asked(Study):
    """It asks for 0.01, and each time for 0.01 more; after two trials once more for the second."""

    def ask(self, distributions):
        number = len(self.told) + 1
        if number == 3:
            return SimpleNamespace(params={"trainer.learning_rate": 0.02})
        return SimpleNamespace(params={"trainer.learning_rate": (number if number < 3 else number - 1) / 100})
