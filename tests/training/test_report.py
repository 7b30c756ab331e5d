"""What a run says at its end: the loss of its last part, the best step, figures by name, a row to try it with."""

import json
from pathlib import Path

import pytest
from conftest import MASKED, REST, corpus

from llmkit.training.model_card import said
from llmkit.training.report import last_loss

RECIPE = (
    MASKED.removesuffix(REST).replace("masked-lm", "text-classification")
    + """[data]
path = "animals.csv"
validation_fraction = 0.2
[trainer]
max_steps = 6
per_device_train_batch_size = 8
logging_steps = 2
eval_strategy = "steps"
eval_steps = 2
save_steps = 2
load_best_model_at_end = true
"""
)


@pytest.mark.parametrize(
    ("losses", "mean", "steps"),
    [
        ({}, 0.0, 0),
        ({1: 5.0}, 5.0, 1),
        ({10: 5.0, 20: 3.0, 40: 2.0}, 2.0, 20),
        ({1: 9.0, 90: 5.0, 94: 4.0, 96: 2.0, 98: 1.0, 100: 1.0}, 2.4, 10),
    ],
)
def test_the_last_loss_is_the_mean_of_the_last_tenth_of_the_steps(losses, mean, steps):
    log = [{"step": step, "loss": loss} for step, loss in losses.items()]
    assert last_loss([*log, {"step": 100, "eval_loss": 7.0}]) == (pytest.approx(mean), steps)


def test_figures_are_called_by_what_they_are():
    assert said("last_train_loss", {"last_train_loss_steps": 1}, {}) == "loss of the last step"
    assert said("last_train_loss", {"last_train_loss_steps": 20}, {}) == "loss of the last 20 steps"
    assert said("eval_f1", {}, {"f1_of": "good"}) == 'eval_f1 of "good"'
    assert said("eval_f1", {}, {}) == "eval_f1"


def test_the_end_of_a_run_tells_the_best_step_the_class_of_f1_and_a_row_to_try(llmkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line.split(" at ")[0] + ", it's said" for line in corpus(60).splitlines()]
    rows = [f'"{line}",{"fox" if "fox" in line else "other"}' for line in lines]
    Path("animals.csv").write_text("\n".join(["text,label", *rows]))
    Path("animals.toml").write_text(RECIPE)
    done = llmkit("finetune", "animals.toml")
    assert done.exit_code == 0, done.stderr
    record = json.loads(Path("runs/animals/run.json").read_text())
    entries = [json.loads(line) for line in Path("runs/animals/metrics.jsonl").read_text().splitlines()]
    evaluated = {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}
    best = min(evaluated, key=evaluated.__getitem__)
    assert record["best"] == {"step": best, "metric": "eval_loss", "value": evaluated[best], "kept": True}
    assert f"best     step {best}, by eval_loss {evaluated[best]:.4f}; its weights are kept" in done.stderr
    finished = done.stderr[done.stderr.index("finished in") : done.stderr.index("best     step")]
    last = [entry["loss"] for entry in entries if "loss" in entry][-1]
    assert f"loss of the last 2 steps {last:.4f}" in finished
    assert "train_loss" not in finished
    assert record["metrics"]["train_loss"] > 0  # upstream's, under its name
    assert 'eval_f1 of "other"' in finished
    assert '| eval_f1 of "other" |' in Path("runs/animals/README.md").read_text()
    assert 'eval_f1 is that of the class "other"' in llmkit("evaluate", "animals").stderr
    tried = done.stderr.rpartition("try it: llmkit predict runs/animals ")[2].strip()
    assert tried.startswith("'the ")
    assert "it'\"'\"'s" in tried  # quoted for the shell
    assert all(entry["examples_per_second"] > 0 for entry in entries if "loss" in entry)


def test_one_of_a_kind_is_not_called_by_its_plural(llmkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("animals.csv").write_text("text,label\nthe fox,fox\nthe hen,other\nthe owl,other\n")
    Path("animals.toml").write_text(RECIPE.replace("batch_size = 8", "batch_size = 1").replace("0.2", "0.34"))
    done = llmkit("finetune", "animals.toml", "trainer.max_steps=1", "trainer.eval_steps=1", "trainer.save_steps=1")
    assert done.exit_code == 0, done.stderr
    assert "validation: 1 row," in done.stderr
    assert "training 1 step of 1 example" in done.stderr
    assert "1 rows" not in done.stderr
