"""Sweeps whose runs are not trained: each leaves the record that a training would, by a formula."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import MASKED, REST, corpus

from llmkit import children, process
from llmkit.recipe import load
from llmkit.runs import directory as runs

RECIPE = (
    MASKED.removesuffix(REST).replace("masked-lm", "text-classification")
    + """[data]
path = "rows.csv"
validation_fraction = 0.3
[trainer]
max_steps = 9
per_device_train_batch_size = 8
learning_rate = 5e-3
"""
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.toml").write_text(RECIPE)
    rows = [f"{line},{'fox' if line.startswith('the fox') else 'none'}\n" for line in corpus(120).splitlines()]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass
class Trained:
    """What the children of a sweep were asked for, and what they do."""

    accuracy: Callable[[Any, float], float] = lambda recipe, share: 0.5
    code: Callable[[Any], int] = lambda recipe: 0
    calls: list[tuple[str, int, str]] = field(default_factory=list)  # the trial, the seed and the share of the steps
    words: list[list[str]] = field(default_factory=list)
    end_after: int | None = None  # calls, as kill -9 would: all that was written stays, and nothing comes after

    def run(self, words: list[str], variables: Any = None, stdout: Any = None) -> int:
        if len(self.calls) == self.end_after:
            raise SystemExit
        self.words.append(list(words))
        if words[0] == "evaluate":
            self.calls.append((words[1], 0, "test"))
            stdout.write(json.dumps({"eval_accuracy": 0.25}).encode())
            return 0
        directory = Path(words[words.index("--output-dir") + 1])
        recipe = load(words[1], words[2 : words.index("--output-dir")])
        share = (variables or {}).get(process.STOP_AT, "1")
        seed = recipe.trainer.get("seed", 42)
        assert ("--resume" in words) == directory.exists()
        self.calls.append((directory.parent.name, seed, share))
        if code := self.code(recipe):
            return code
        directory.mkdir(exist_ok=True)
        (directory / "recipe.toml").write_text(recipe.to_toml())
        top, _, bottom = share.partition("/")
        part = int(top) / int(bottom or 1)
        metrics = {"eval_loss": 0.5, "eval_accuracy": self.accuracy(recipe, part)}
        settings = {"trainer": dict(recipe.trainer)}
        record = {"task": recipe.task, **runs.read_record(directory), "settings": settings}
        if part < 1:
            rungs = {**record.get("rungs", {}), share: {"step": round(9 * part), **metrics}}
            runs.write_json(directory / "run.json", {**record, "status": "stopped", "rungs": rungs})
            return 0
        (directory / "model.safetensors").write_bytes(b"weights")
        runs.write_json(directory / "run.json", {**record, "status": "finished", "steps": 9, "metrics": metrics})
        return 0


@pytest.fixture
def trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    made = Trained()
    monkeypatch.setattr(children, "run", made.run)
    return made
