"""`--seeds N`: a run for each seed, their mean and deviation, going on after a stop, and whose exit code it is."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import MASKED, REST, corpus
from forks import Fork

from llmkit import children, seeds
from llmkit.data.rows import classification, splits
from llmkit.data.text import sources
from llmkit.errors import UserError
from llmkit.recipe import load

RECIPE = (
    MASKED.removesuffix(REST).replace("masked-lm", "text-classification")
    + """[data]
path = "rows.csv"
validation_fraction = 0.3
[trainer]
max_steps = 4
per_device_train_batch_size = 8
save_steps = 2
learning_rate = 5e-3
"""
)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "rows.toml").write_text(RECIPE)
    rows = [f"{line},{'fox' if line.startswith('the fox') else 'none'}\n" for line in corpus(120).splitlines()]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def forked(monkeypatch) -> None:
    """The runs are forked: no imports to wait for."""
    popen = SimpleNamespace(Popen=lambda words, **_: Fork(*words[1:], log=2))
    monkeypatch.setattr(children, "subprocess", popen)


def record(folder: str) -> dict:
    return json.loads(Path(folder, "run.json").read_text())


def test_two_seeds_and_going_on_after_the_first(llmkit, place, forked):
    line = ("finetune", "rows.toml", "--seeds", "2", "trainer.seed=7")
    done = llmkit(*line)
    assert done.exit_code == 0
    assert sorted(p.name for p in Path("runs/rows").iterdir()) == ["seed-7", "seed-8", "seeds.json"]
    for seed in (7, 8):
        assert load(f"runs/rows/seed-{seed}/recipe.toml").trainer["seed"] == seed
    summary = json.loads(Path("runs/rows/seeds.json").read_text())
    runs = [record(f"runs/rows/seed-{seed}")["metrics"] for seed in (7, 8)]
    assert summary["seeds"] == [7, 8]
    assert sorted(summary["metrics"]) == ["eval_accuracy", "eval_f1", "eval_loss", "eval_matthews_correlation"]
    for key, found in summary["metrics"].items():
        values = [metrics[key] for metrics in runs]
        assert found["values"] == values
        assert found["mean"] == pytest.approx(statistics.mean(values))
        assert found["std"] == pytest.approx(statistics.stdev(values))
    loss = summary["metrics"]["eval_loss"]
    assert loss["std"] > 0
    assert f"{loss['mean']:.4f} +- {loss['std']:.4f}" in done.stderr

    first = Path("runs/rows/seed-7/model.safetensors").stat().st_mtime_ns
    Path("runs/rows/seeds.json").unlink()
    Path("runs/rows/seed-8").rename("before")
    assert llmkit(*line, "--resume").exit_code == 0
    assert Path("runs/rows/seed-7/model.safetensors").stat().st_mtime_ns == first
    assert json.loads(Path("runs/rows/seeds.json").read_text()) == summary  # the second run again, to the last bit
    assert record("runs/rows/seed-8")["started"] > record("before")["started"]
    assert not Path("runs/rows-2").exists()


def test_the_exit_code_of_a_run_that_fails_comes_through_and_leaves_nothing(llmkit, place, forked, capfd):
    rows = Path("rows.csv").read_text().splitlines()
    Path("rows.csv").write_text("\n".join([*rows[:2], *["a text without a label,"] * 9, *rows[2:]]) + "\n")
    done = llmkit("finetune", "rows.toml", "--seeds", "3")
    assert done.exit_code == 2
    assert capfd.readouterr().err.count("line 3: no label") == 1  # the other seeds are not tried
    assert not Path("runs/rows").exists()


def test_ctrl_c_stops_the_run_with_a_checkpoint_and_the_others_are_not_begun(place):
    argv = [*("finetune", "rows.toml", "--seeds", "2", "trainer.max_steps=100000"), "trainer.save_steps=50000"]
    parent = subprocess.Popen([sys.executable, "-m", "llmkit", *argv], stderr=subprocess.PIPE, text=True)
    begun = Path("runs/rows/seed-42/metrics.jsonl")
    while not begun.exists() or not begun.read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGINT)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "--resume goes on from there" in said
    assert list(Path("runs/rows/seed-42").glob("checkpoint-*"))
    assert record("runs/rows/seed-42")["status"] == "stopped"
    assert [p.name for p in Path("runs/rows").iterdir()] == ["seed-42"]


def test_a_dry_run_runs_nothing(llmkit, place):
    done = llmkit("finetune", "rows.toml", "--seeds", "2", "--dry-run")
    assert done.exit_code == 0
    (place / "again.toml").write_text(done.stdout)
    assert load("again.toml") == load("rows.toml")
    assert not Path("runs").exists()


def test_the_same_line_twice_makes_another_folder(place):
    recipe = load("rows.toml")
    assert seeds.choose_directory(recipe, None, resume=False) == Path("runs/rows")
    Path("runs/rows/seed-42").mkdir(parents=True)
    assert seeds.choose_directory(recipe, None, resume=False) == Path("runs/rows-2")
    assert seeds.choose_directory(recipe, None, resume=True) == Path("runs/rows")
    Path("runs/rows-2/seed-42").mkdir(parents=True)
    assert seeds.choose_directory(recipe, None, resume=True) == Path("runs/rows-2")
    assert seeds.choose_directory(load("rows.toml", ["output_dir=runs/x"]), None, resume=True) == Path("runs/x")


def test_a_named_folder_that_is_in_use_is_refused(place):
    recipe = load("rows.toml")
    Path("mine").mkdir()
    assert seeds.choose_directory(recipe, "mine", resume=False) == Path("mine")
    Path("mine/seed-42").mkdir()
    with pytest.raises(UserError, match="`mine` already contains other files"):
        seeds.choose_directory(recipe, "mine", resume=False)
    assert seeds.choose_directory(recipe, "mine", resume=True) == Path("mine")
    Path("mine/run.json").write_text("{}")
    with pytest.raises(UserError, match="is a single run, not a group of runs"):
        seeds.choose_directory(recipe, "mine", resume=True)


def test_the_deviation_is_that_of_a_sample():
    values = [0.5, 0.25, 0.75, 0.1]
    assert seeds.deviation(values) == pytest.approx(statistics.stdev(values))
    assert seeds.deviation([0.5]) == 0
    assert seeds.deviation([0.5, float("nan")]) != seeds.deviation([0.5, float("nan")])


@pytest.fixture
def held_out(monkeypatch) -> dict[str, list]:
    """The rows that each run of `--seeds` would hold out, by its directory; nothing is trained."""
    found: dict[str, list] = {}

    def run(argv) -> int:
        words = list(argv[1:])
        directory = Path(words[words.index("--output-dir") + 1])
        recipe = load(words[0], [word for word in words if "=" in word])
        read = splits.tables(recipe.data, recipe.trainer["seed"], classification)
        found[directory.name] = list(read.validation["validation"].read())
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run.json").write_text(json.dumps({"metrics": {"eval_loss": 1.0}}))
        return 0

    monkeypatch.setattr(children, "run", run)
    return found


@pytest.mark.parametrize("setting", [(), ("data.seed=5",), ("trainer.seed=7",)])
def test_every_seed_holds_out_the_same_rows(setting, place, held_out):
    recipe = load("rows.toml", list(setting))
    assert seeds.repeat(recipe, 3, ["finetune", "rows.toml", *setting], "runs", resume=False) == 0
    first, *others = held_out.values()
    assert len(first) == 36
    assert [first, first] == others
    assert len(held_out) == 3


def test_pretraining_is_repeated_and_holds_out_the_same_documents(llmkit, workplace, forked):
    done = llmkit("pretrain", "causal.toml", "--seeds", "2", "trainer.max_steps=2")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(Path("runs/causal/seeds.json").read_text())
    assert summary["seeds"] == [42, 43]
    assert summary["metrics"]["eval_loss"]["std"] > 0
    found = [record(f"runs/causal/seed-{seed}")["data"] for seed in (42, 43)]
    assert found[0] == found[1]  # with the fingerprints of both parts
    assert load("runs/causal/seed-43/recipe.toml").data.seed == 42


def test_data_seed_keeps_the_documents_held_out(workplace):
    def held(*settings: str) -> list[str]:
        recipe = load("causal.toml", settings)
        return list(sources.corpora(recipe.data, recipe.trainer.get("seed", 42))[""].validation)

    assert held("data.seed=42", "trainer.seed=7") == held() != held("trainer.seed=7")
    assert held("data.seed=7") == held("trainer.seed=7")


def test_runs_that_held_out_rows_of_their_own_go_on_with_these(place, held_out):
    """A run of an earlier version has no data.seed in its recipe."""
    assert seeds.repeat(load("rows.toml"), 2, ["finetune", "rows.toml"], "runs", resume=False) == 0
    (same, _) = held_out.values()
    Path("runs/seed-42/recipe.toml").write_text(load("rows.toml", ["data.seed=42"]).to_toml())
    Path("runs/seed-43/recipe.toml").write_text(load("rows.toml", ["trainer.seed=43"]).to_toml())
    assert seeds.repeat(load("rows.toml"), 2, ["finetune", "rows.toml"], "runs", resume=True) == 0
    assert held_out["seed-42"] == same
    own = splits.tables(load("rows.toml").data, 43, classification).validation["validation"]
    assert held_out["seed-43"] == list(own.read()) != same


@pytest.mark.parametrize(
    ("recipe", "own"),
    [
        ('[data]\npath = "a"\n', True),
        ('[data]\npath = "a"\nseed = 42\n', False),
        ('[tasks.a.data]\npath = "a"\nseed = 42\n[tasks.b.data]\npath = "b"\nseed = 42\n', False),
        ('[tasks.a.data]\npath = "a"\nseed = 42\n[tasks.b.data]\npath = "b"\n', True),
        ("[trainer]\nseed = 42\n", False),
        (None, False),
    ],
)
def test_by_its_recipe_a_run_splits_by_its_own_seed_or_by_the_first(recipe, own, tmp_path):
    if recipe is not None:
        (tmp_path / "recipe.toml").write_text(recipe)
    assert seeds._splits_by_own_seed(tmp_path) is own
