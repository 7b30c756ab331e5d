"""The loop of a sweep: what is trained and in which order, what is passed over, and what the same line goes on with."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from forks import Fork

from llmkit import children, process
from llmkit.recipe import load
from llmkit.runs import directory as runs

GRID = (
    "finetune",
    "rows.toml",
    "--sweep",
    "trainer.learning_rate=1e-3,1e-2,3e-2",
    "--sweep",
    "trainer.weight_decay=0,1",
)
NAMES = [f"learning_rate={rate},weight_decay={decay}" for rate in ("0.001", "0.01", "0.03") for decay in (0, 1)]
FOLDER = Path("runs/rows-sweep")


def by_rate(recipe, share):
    """The best rate in the end is 1e-2, and after a third of the steps it is 3e-2."""
    rate, seed = recipe.trainer["learning_rate"], recipe.trainer.get("seed", 42)
    late = 1 - abs(math.log10(rate) + 2) / 10
    early = 0.5 + rate
    return round((late if share == 1 else early) - recipe.trainer["weight_decay"] / 100 + (seed - 42) / 1000, 6)


def table(done):
    lines = done.stderr.splitlines()
    head = next(i for i, line in enumerate(lines) if "eval_accuracy  " in line and "status" in line)
    return lines[head : head + 7]


def summary(folder=FOLDER):
    return json.loads((folder / "sweep.json").read_text())


def test_each_trial_is_the_command_itself_and_the_best_is_found(llmkit, trained):
    trained.accuracy = by_rate
    done = llmkit(*GRID, "--seeds", "2", "data.max_length=20")
    assert done.exit_code == 0, done.stderr
    assert trained.calls == [(name, seed, "1") for name in NAMES for seed in (42, 43)]
    assert trained.words[1] == [
        *("finetune", "rows.toml", "data.max_length=20", "trainer.learning_rate=0.001", "trainer.weight_decay=0"),
        *("report.write=false", "trainer.seed=43", "data.seed=42", "--output-dir", f"{FOLDER}/{NAMES[0]}/seed-43"),
    ]
    assert [line.split()[:4] for line in table(done)[1:3]] == [
        ["1", "0.01", "0", "1.0005"],
        ["2", "0.01", "1", "0.9905"],
    ]
    assert "best     learning_rate=0.01,weight_decay=0: eval_accuracy 1.0005 ± 0.0007 (2 seeds)" in done.stderr
    assert "chosen on these validation rows" in done.stderr
    best = load(f"{FOLDER}/best.toml")
    assert (best.trainer["learning_rate"], best.trainer["seed"], best.data.seed) == (1e-2, 42, 42)
    assert best.report.write is None and best.sweep is None and best.output_dir is None
    assert "on the validation rows by which it was chosen" in (FOLDER / "best.toml").read_text()
    kept = summary()
    assert (kept["status"], kept["metric"], kept["best"]) == ("finished", "eval_accuracy", NAMES[2])
    assert kept["results"][0]["values"] == [1.0, 1.001]
    assert "<svg" in (FOLDER / "sweep.svg").read_text()


def test_the_same_line_has_nothing_left_to_do(llmkit, trained):
    trained.accuracy = by_rate
    first = llmkit(*GRID)
    before, calls = summary(), list(trained.calls)
    second = llmkit(*GRID)
    assert (second.exit_code, trained.calls, summary()) == (0, calls, before)
    assert table(second) == table(first)
    assert not Path("runs/rows-sweep-2").exists()


@pytest.mark.parametrize("halving", [(), ("--halving", "3")])
@pytest.mark.parametrize("end_after", [0, 1, 3, 6, 7])
def test_ended_at_any_moment_it_comes_to_the_same(end_after, halving, llmkit, trained):
    trained.accuracy = by_rate
    whole = llmkit(*GRID, *halving, "--output-dir", "whole")
    expected, calls = summary(Path("whole")), list(trained.calls)
    trained.calls.clear()
    trained.end_after = end_after
    llmkit(*GRID, *halving, "--output-dir", "ended")
    trained.end_after = None
    done = llmkit(*GRID, *halving, "--output-dir", "ended")
    assert done.exit_code == 0, done.stderr
    assert table(done) == table(whole)
    assert summary(Path("ended")) == expected
    assert trained.calls == calls  # nothing twice
    assert (Path("ended") / "best.toml").read_text() == (Path("whole") / "best.toml").read_text()


def test_of_three_the_best_goes_on(llmkit, trained):
    trained.accuracy = by_rate
    done = llmkit(*GRID, "--halving", "3")
    assert done.exit_code == 0, done.stderr
    assert trained.calls == [*((name, 42, "1/3") for name in NAMES), (NAMES[4], 42, "1"), (NAMES[5], 42, "1")]
    assert "promoted 2 trials of 6, to all of their steps:" in done.stderr
    states = [(each["name"], each["status"], each["steps"]) for each in summary()["results"]]
    assert states[:2] == [(NAMES[4], "finished", [9]), (NAMES[5], "finished", [9])]
    assert states[2:] == [(name, "stopped at 1/3", [3]) for name in (NAMES[2], NAMES[0], NAMES[3], NAMES[1])]
    again = llmkit(*GRID, "--halving", "3")  # ranked by what they were then, though two have ended better since
    assert table(again) == table(done)


def test_trials_are_ranked_by_the_mean_over_seeds_and_equals_stay_in_order(llmkit, trained):
    trained.accuracy = lambda recipe, share: {42: 0.9, 43: 0.5}[recipe.trainer["seed"]] if "1e-03" else 0
    llmkit(*GRID, "--seeds", "2")
    assert [each["name"] for each in summary()["results"]] == NAMES
    assert summary()["results"][0]["mean"] == pytest.approx(0.7)


def test_where_the_order_decides_who_goes_on_that_is_said(llmkit, trained):
    trained.accuracy = by_rate
    assert "the same eval_accuracy" not in llmkit(*GRID, "--halving", "3").stderr
    trained.accuracy = lambda recipe, share: 0.5
    done = llmkit(*GRID, "--halving", "3", "--name", "flat")
    assert "warning  6 trials have the same eval_accuracy, and their order decided" in done.stderr
    assert "trainer.metric_for_best_model=loss tells more" in done.stderr


def test_less_is_better_where_the_metric_says_so(llmkit, trained):
    trained.accuracy = by_rate
    words = ("trainer.metric_for_best_model=accuracy", "trainer.greater_is_better=false")
    done = llmkit(*GRID, *words)
    assert summary()["best"] == NAMES[1], done.stderr


def test_a_failed_trial_is_noted_and_the_sweep_goes_on(llmkit, trained):
    trained.accuracy = by_rate
    trained.code = lambda recipe: 137 if recipe.trainer["learning_rate"] == 1e-2 else 0
    done = llmkit(*GRID, "--seeds", "2")
    assert done.exit_code == 1
    assert f"{NAMES[2]}, seed 42, failed with exit code 137" in done.stderr
    assert [call for call in trained.calls if call[0] == NAMES[2]] == [(NAMES[2], 42, "1")]  # no other seed: no mean
    assert "2 trials failed; the same line tries again" in done.stderr
    assert [each["status"] for each in summary()["results"]] == [*["finished"] * 4, *["failed"] * 2]
    trained.code = lambda recipe: 0
    assert llmkit(*GRID, "--seeds", "2").exit_code == 0
    assert summary()["best"] == NAMES[2]


def test_a_mistake_that_is_not_the_values_ends_it_soon(llmkit, trained):
    trained.code = lambda recipe: 2
    done = llmkit(*GRID)
    assert done.exit_code == 2
    assert "the first 2 runs of the sweep cannot start" in done.stderr
    assert len(trained.calls) == 2


def test_when_all_fail_there_is_no_best(llmkit, trained):
    trained.code = lambda recipe: 1
    done = llmkit(*GRID)
    assert done.exit_code == 1
    assert "every trial failed" in done.stderr


@pytest.mark.parametrize("code", [75, 130])
def test_a_signal_stops_the_sweep_with_its_code(code, llmkit, trained):
    trained.code = lambda recipe: code if recipe.trainer["learning_rate"] == 1e-2 else 0
    done = llmkit(*GRID)
    assert done.exit_code == code
    assert "the same line goes on with it" in done.stderr
    assert [name for name, *_ in trained.calls] == NAMES[:3]
    assert summary()["status"] == "running"


def test_a_signal_behind_the_last_step_of_a_run_stops_the_sweep_too(llmkit, trained, monkeypatch):
    """Then children.run says 130 of a run that is finished."""
    whole = trained.run
    monkeypatch.setattr(children, "run", lambda *asked, **options: whole(*asked, **options) or 130)
    done = llmkit(*GRID)
    assert done.exit_code == 130
    assert len(trained.calls) == 1


def test_without_validation_data_it_ends_after_the_first(llmkit, trained, monkeypatch):
    monkeypatch.setattr("llmkit.sweeps.results.headline", lambda record: (None, None))
    done = llmkit(*GRID)
    assert done.exit_code == 1
    assert "the first run has no validation data" in done.stderr
    assert len(trained.calls) == 1


def test_another_sweep_gets_another_folder_and_a_named_one_is_refused(llmkit, trained):
    assert llmkit(*GRID).exit_code == 0
    assert llmkit(*GRID, "trainer.warmup_steps=2").exit_code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["rows-sweep", "rows-sweep-2"]
    assert llmkit(*GRID, "trainer.warmup_steps=2").exit_code == 0
    assert not Path("runs/rows-sweep-3").exists()
    done = llmkit(*GRID, "--seeds", "2", "trainer.warmup_steps=2", "--output-dir", str(FOLDER))
    assert done.exit_code == 2
    assert "already contains another sweep" in done.stderr
    assert "sweep.seeds: 1 -> 2" in done.stderr and "trainer.warmup_steps: None -> 2" in done.stderr
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("")
    assert "already contains other files" in llmkit(*GRID, "--output-dir", "mine").stderr
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


def test_only_one_process_runs_a_sweep(llmkit, trained):
    FOLDER.mkdir(parents=True)
    with FileLock(FOLDER / ".lock"):
        done = llmkit(*GRID)
    assert done.exit_code == 2
    assert "another process runs the sweep" in done.stderr
    assert llmkit(*GRID).exit_code == 0  # and what it left is no other sweep's


def test_it_waits_for_the_child_of_a_sweep_that_was_killed(llmkit, trained, monkeypatch):
    held = [{"pid": 7}, {"pid": 7}]
    monkeypatch.setattr("llmkit.runs.directory.holder", lambda directory: held.pop() if held else {})
    done = llmkit(*GRID)
    assert done.exit_code == 0
    assert done.stderr.count("waiting for process 7, which still trains in") == 1


def test_the_best_alone_is_evaluated_on_the_test_split(llmkit, trained):
    Path("data").mkdir()
    for name in ("train", "valid", "test"):
        Path("rows.csv").rename("data/train.csv") if name == "train" else Path(f"data/{name}.csv").write_text(
            Path("data/train.csv").read_text()
        )
    trained.accuracy = by_rate
    done = llmkit(*GRID, "data.path=data", "data.validation_fraction=")
    assert done.exit_code == 0, done.stderr
    assert trained.calls[6:] == [(f"{FOLDER}/{NAMES[2]}/seed-42", 0, "test")]
    assert trained.words[-1][2:] == ["data.validation_split=test", "data.max_eval_samples="]
    assert "test     eval_accuracy 0.2500 on the split `test`, by which nothing was chosen" in done.stderr
    assert summary()["test"]["metrics"] == [{"eval_accuracy": 0.25}]
    calls = len(trained.calls)
    assert llmkit(*GRID, "data.path=data", "data.validation_fraction=").exit_code == 0
    assert len(trained.calls) == calls  # not again


def test_pretraining_is_swept_too(llmkit, trained, workplace):
    trained.accuracy = lambda recipe, share: recipe.trainer["learning_rate"]
    done = llmkit("pretrain", "causal.toml", "--sweep", "trainer.learning_rate=1e-3,1e-2", "--name", "lm")
    assert done.exit_code == 0, done.stderr
    assert trained.words[0][:2] == ["pretrain", "causal.toml"]
    assert Path("runs/lm-sweep/best.toml").is_file()


@pytest.mark.long
def test_a_real_sweep_whose_promoted_trial_is_the_run_left_alone(llmkit, place, monkeypatch):
    """The runs are forked: no imports to wait for."""

    def popen(words, env, **_):
        return Fork(*words[1:], env={key: value for key, value in env.items() if key != process.PARENT}, log=2)

    monkeypatch.setattr(children, "subprocess", SimpleNamespace(Popen=popen))
    done = llmkit("finetune", "rows.toml", "--sweep", "trainer.learning_rate=1e-9,5e-3", "--halving", "2")
    assert done.exit_code == 0, done.stderr
    alone = llmkit("finetune", f"{FOLDER}/best.toml", "--output-dir", "alone")
    assert alone.exit_code == 0, alone.stderr
    name = summary()["best"]
    run, other = FOLDER / name / "seed-42", FOLDER / ({"learning_rate=1e-09", "learning_rate=0.005"} - {name}).pop()
    assert (run / "model.safetensors").read_bytes() == Path("alone/model.safetensors").read_bytes()
    assert runs.read_record(run)["rungs"]["1/2"]["step"] == 5
    assert [path.parent.name for path in other.rglob("model.safetensors")] == ["checkpoint-5"]
    assert not runs.is_finished(other / "seed-42")
