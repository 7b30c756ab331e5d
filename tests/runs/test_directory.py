"""Run directories: which is the newest, by times as they are written now and as they were."""

import json
from pathlib import Path

from llmkit.runs import directory as runs


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
    assert runs.as_seconds(runs.now()) > runs.as_seconds("2026-01-01T00:00:00.000+00:00") == 1767225600


def test_no_draft_of_a_killed_write_stays(tmp_path):
    files = ("run.json", "recipe.toml", "README.md", "report.html", "loss.svg", "predictions.jsonl.gz", ".holder.json")
    for name in files:
        (tmp_path / f".{name}.1234").write_text("half")
        (tmp_path / name).write_text("whole")
    (tmp_path / ".hidden.1234").write_text("mine")
    runs.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*files, ".hidden.1234"}
