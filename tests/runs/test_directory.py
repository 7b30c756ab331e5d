"""Run directories: which is the newest, by times as they are written now and as they were."""

import json
from pathlib import Path

import pytest

from llmkit.runs import directory as runs
from llmkit.runs import shape


def test_the_newest_run_is_found_among_times_of_both_kinds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, when in (("a", 1.0), ("a-2", "2026-01-01T00:00:00.000+00:00"), ("a-3", 2.0)):
        run = Path("runs", name)
        run.mkdir(parents=True)
        (run / "model.safetensors").touch()
        record = {"status": "finished", "task": "causal-lm", "started": when, "finished": when}
        (run / "run.json").write_text(json.dumps(record))
    assert runs.newest(Path("runs/a")) == Path("runs/a-2")
    assert runs.newest_finished("causal-lm") == Path("runs/a-2")
    assert runs.newest_finished("seq2seq", "chat") is None
    assert shape.as_seconds(runs.now()) > shape.as_seconds("2026-01-01T00:00:00.000+00:00") == 1767225600


def test_no_draft_of_a_killed_write_stays(tmp_path):
    files = ("run.json", "recipe.toml", "README.md", "report.html", "loss.svg", "predictions.jsonl.gz", ".holder.json")
    for name in files:
        (tmp_path / f".{name}.1234").write_text("half")
        (tmp_path / name).write_text("whole")
    (tmp_path / ".hidden.1234").write_text("mine")
    runs.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*files, ".hidden.1234"}


@pytest.mark.parametrize("clock", [lambda n: 1000.0, lambda n: 10**6 - 3600.0 * n], ids=["stands still", "goes back"])
def test_the_newest_run_is_told_by_a_count_and_not_by_the_clock(clock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ticks = iter(range(100))
    claimed = []

    def finish(run):
        (run / "model.safetensors").touch()
        facts = {"status": "finished", "task": "causal-lm", "finished": clock(next(ticks))}
        runs.update_record(run, **facts, order_finished=runs.next_in_order(run))

    for name in ("a", "b", "a", "b", "a"):
        claimed.append(runs.claim(f"runs/{name}", named=False))
        runs.update_record(claimed[-1], started=clock(next(ticks)))
    assert [run.name for run in claimed] == ["a", "b", "a-2", "b-2", "a-3"]
    assert runs.newest(Path("runs/a")) == Path("runs/a-3")
    for number in (4, 0, 3):
        finish(claimed[number])
        assert runs.newest_finished("causal-lm") == claimed[number]
    claimed[0].rename(tmp_path / "away")
    again = runs.claim("runs/a", named=False)  # the name is free again
    runs.update_record(again, started=clock(next(ticks)))
    assert runs.newest(Path("runs/a")) == again == Path("runs/a")


def test_a_run_with_a_count_is_newer_than_one_of_an_earlier_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/run.json").write_text('{"started": 2e9, "id": "x"}')
    run = runs.claim("runs/a", named=False)
    runs.update_record(run, started=1.0)
    assert runs.newest(Path("runs/a")) == run == Path("runs/a-2")


def test_where_runs_may_not_be_listed_the_count_goes_on_from_the_own(tmp_path, monkeypatch):
    run = runs.claim(str(tmp_path / "run"), named=True)

    def closed(_):
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", closed)
    assert runs.next_in_order(run) == 2
