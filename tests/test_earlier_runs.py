"""Runs of earlier code live on: they resume to the same losses, and are evaluated and predicted with as they were.

Each folder of `earlier_runs` is named after the commit whose code wrote it: a run that SIGTERM stopped (`stopped`, and
the metrics of the same run left alone, `whole.jsonl`) and a finished one (`finished`, and its `answers.jsonl`).
"""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, losses

from llmkit.data.rows import classification, splits
from llmkit.recipe import load
from llmkit.runs import compatibility

COMMITS = sorted(folder.name for folder in (ROOT / "tests/earlier_runs").iterdir())


@pytest.fixture(params=COMMITS)
def place(request, tmp_path, monkeypatch) -> Path:
    shutil.copytree(ROOT / "tests/earlier_runs" / request.param, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_stopped_run_resumes_to_the_losses_of_one_that_was_not_stopped(place, llmkit):
    done = llmkit("pretrain", "causal.toml", "--resume", "--output-dir", "stopped")
    assert done.exit_code == 0, done.stderr
    assert "resuming from stopped/checkpoint-5" in done.stderr
    expected = [entry["loss"] for entry in lines((place / "whole.jsonl").read_text()) if "loss" in entry]
    assert losses(place / "stopped") == pytest.approx(expected, rel=1e-3)
    record = json.loads((place / "stopped/run.json").read_text())
    assert (record["status"], record["steps"]) == ("finished", 6)


def test_a_finished_run_is_whole_and_gives_the_metrics_of_its_end(place, llmkit):
    assert llmkit("check", "finished").exit_code == 0
    done = llmkit("evaluate", "finished")
    assert done.exit_code == 0, done.stderr
    then = json.loads((place / "finished/run.json").read_text())["metrics"]
    figures = json.loads(done.stdout)
    assert figures == pytest.approx({key: then[key] for key in figures}, rel=1e-3)
    assert {"eval_loss", "eval_accuracy"} <= figures.keys()


def test_a_finished_run_predicts_what_it_predicted(place, llmkit):
    then = lines((place / "answers.jsonl").read_text())
    now = lines(llmkit("predict", "finished", *(answer["text"] for answer in then)).stdout)
    assert [answer["label"] for answer in now] == [answer["label"] for answer in then]
    assert [answer["score"] for answer in now] == pytest.approx([answer["score"] for answer in then], rel=1e-3)


def test_a_run_begun_before_rows_were_drawn_by_class_goes_on_with_its_own_rows(place):
    recipe = load("classes.toml")
    assert recipe.data.hold_out == "stratified"
    assert compatibility.since(Path("finished"), recipe) == []
    begun = compatibility.as_begun(recipe, Path("finished"))
    assert begun.data.hold_out == load("finished/recipe.toml").data.hold_out == "hash"
    now = splits.tables(begun.data, 42, classification)
    then = json.loads(Path("finished/run.json").read_text())["data"]
    assert now.train.fingerprint == then["fingerprint"]
    parts = {"train": now.train, **now.validation}
    assert {name: len(list(rows)) for name, rows in parts.items()} == {name: then[name]["rows"] for name in parts}


def test_a_run_of_texts_is_evaluated_on_what_it_held_out_when_data_seed_was_ignored(place):
    recipe, record = place / "stopped/recipe.toml", place / "stopped/run.json"
    recipe.write_text(recipe.read_text().replace("[data]\n", "[data]\nseed = 7\n", 1))
    begun = load(str(recipe))
    assert begun.data.seed is None
    assert "data.seed is left out" in " ".join(begun.notes)
    record.write_text(json.dumps({**json.loads(record.read_text()), "order_started": 1}))
    assert load(str(recipe)).data.seed == 7
