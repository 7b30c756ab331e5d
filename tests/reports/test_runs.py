"""`llmkit runs`: what is under runs/, from the records alone."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmkit.cli import app
from llmkit.reports import runs as listing


def write(path: Path, **facts):
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(facts))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = datetime.now(UTC)
    settings = {"model": {"name": "bert-tiny"}, "trainer": {"learning_rate": 3e-5, "metric_for_best_model": "f1"}}
    metrics = {"eval_loss": 0.4, "eval_accuracy": 0.8, "eval_f1": 0.7, "eval_runtime": 3.0}
    write(
        tmp_path / "runs/a",
        task="text-classification",
        status="finished",
        steps=40,
        seconds=125.0,
        started=(now - timedelta(hours=3)).isoformat(),
        settings=settings,
        metrics=metrics,
    )
    scratch = {"model": {"config": {"model_type": "gpt2"}}, "trainer": {"learning_rate": 1e-3}}
    write(
        tmp_path / "runs/b",
        task="causal-lm",
        status="running",
        started=(now - timedelta(seconds=10)).isoformat(),
        settings=scratch,
    )
    write(
        tmp_path / "runs/old",  # as versions before `settings` and ISO times wrote it
        task="token-classification",
        status="finished",
        started=now.timestamp() - 3 * 86_400,
        metrics={"eval_loss": 1.0, "eval_precision": 0.1, "eval_recall": 0.2, "eval_f1": 0.15},
    )
    write(tmp_path / "runs/seeds/seed-1", task="text-classification", status="failed", settings=settings)
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "runs/readme.txt").write_text("mine")
    return tmp_path


def listed(*words):
    done = CliRunner().invoke(app, ["runs", *words])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_every_run_is_listed_with_what_counts(place):
    lines = [line.split() for line in listed().splitlines()]
    assert [line[0] for line in lines] == ["run", "runs/b", "runs/a", "runs/old", "runs/seeds/seed-1"]
    assert lines[2][1:] == [
        "text-classification",
        "bert-tiny",
        "finished",
        "40",
        "3",
        "h",
        "2",
        "min",
        "eval_f1",
        "0.7000",
    ]
    assert lines[1][1:] == ["causal-lm", "gpt2", "interrupted", "10", "s"]  # no process holds it
    assert lines[3][1:] == ["token-classification", "finished", "3", "d", "eval_f1", "0.1500"]


def test_runs_are_sorted_and_filtered(place):
    names = [row["run"] for row in json.loads(listed("--sort=-value", "--json"))["runs"]]
    assert names == ["runs/a", "runs/old", "runs/b", "runs/seeds/seed-1"]
    assert listed("--format", "json") == listed("--json")
    filtered = listed("--filter", "trainer.learning_rate=3e-5", "--filter", "status=finished", "--format", "csv")
    assert [line.split(",")[0] for line in filtered.splitlines()] == ["run", "runs/a"]
    assert "125.0" in filtered


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder `nowhere`"),
        (["runs/notes"], "`runs/notes` holds no runs"),
        (["--sort", "loss"], "--sort: there is no column `loss`"),
        (["--filter", "task"], "--filter: `task` has no `=`"),
        (["--filter", "trainer.lr=1"], "--filter: no run has `trainer.lr`"),
        (["--format", "html"], "--format"),
    ],
)
def test_mistakes_are_answered(place, words, message):
    done = CliRunner().invoke(app, ["runs", *words])
    assert done.exit_code == 2
    assert message in done.stderr


def test_the_runs_of_a_sweep_are_listed_from_outside_and_inside(place):
    folder = place / "runs/a-sweep"
    rung = {"1/9": {"step": 1, "eval_accuracy": 0.1}, "1/3": {"step": 3, "eval_loss": 0.5, "eval_accuracy": 0.6}}
    write(folder / "r=8/seed-42", task="text-classification", status="stopped", rungs=rung)
    write(
        folder / "r=16/seed-42", task="text-classification", status="finished", steps=9, metrics={"eval_accuracy": 0.7}
    )
    (folder / "sweep.json").write_text(json.dumps({"trials": [{"name": "r=8"}, {"name": "r=16"}, {"name": "r=32"}]}))
    for words in ((), ("runs/a-sweep",)):
        rows = {row["run"]: row for row in json.loads(listed(*words, "--format", "json"))["runs"]}
        stopped, whole = rows["runs/a-sweep/r=8/seed-42"], rows["runs/a-sweep/r=16/seed-42"]
        assert (stopped["steps"], stopped["metric"], stopped["value"]) == (3, "eval_accuracy", 0.6)
        assert (whole["steps"], whole["value"]) == (9, 0.7)
    assert len(rows) == 2


def test_damaged_records_are_listed_too(place):
    (place / "runs/b/run.json").write_text("{")
    assert "unreadable" in listed()


def test_a_thousand_runs_are_described_in_less_than_a_second(place):
    record = (place / "runs/a/run.json").read_text()
    for number in range(1_000):
        folder = place / f"many/{number}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(record)
    began = time.process_time()
    assert len(listed("many").splitlines()) == 1_001
    assert time.process_time() - began < 1


def test_torch_is_not_loaded(place):
    code = "import sys; from llmkit.reports.runs import list_runs; list_runs(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=place)


def test_durations_are_written_with_one_unit():
    assert [listing.duration(s) for s in (0.4, 59, 60, 5_000, 7_200, 100_000, 200_000)] == [
        *("0 s", "59 s", "1 min", "1 h", "2 h", "28 h", "2 d"),
    ]
