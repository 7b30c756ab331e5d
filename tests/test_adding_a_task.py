"""docs/adding-a-task.md: its task, added to a copy of llmkit, trains, is evaluated, predicts and merges."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, corpus

PAGE = (ROOT / "docs/adding-a-task.md").read_text()
RECORD, TASK, RECIPE = (code for _, code in re.findall(r"```(python|toml)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = """
import sys
from typer.testing import CliRunner
from llmkit.cli import app

short = ["trainer.max_steps=6", "trainer.learning_rate=1e-2", "trainer.eval_strategy=no", "model.name=base"]
for words in (
    ["finetune", "--task", "rating", "data.path=ratings.csv", *short, "--output-dir", "whole"],
    ["finetune", "recipes/rating.toml", "data.path=ratings.csv", *short, "lora.r=4", "--output-dir", "adapter"],
    ["evaluate", "whole", "--output", "wrong.jsonl"],
    ["merge", "adapter", "--output", "merged"],
    *(["predict", model, "the fox saw a hen", "an owl"] for model in ("whole", "adapter", "merged")),
):
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    print(done.stderr, file=sys.stderr)
    if done.exit_code:
        sys.exit(" ".join(words))
    if words[0] in ("evaluate", "predict"):
        print(" ".join(done.stdout.split("\\n")))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of llmkit with the task of the page: one entry, one file, one recipe."""
    house = tmp_path_factory.mktemp("house")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "llmkit", house / "llmkit", ignore=ignore)
    shutil.copytree(ROOT / "recipes", house / "recipes", ignore=ignore)
    records = house / "llmkit/recipe/tasks.py"
    begin = "TASKS: dict[str, TaskRecord] = {\n"
    records.write_text(records.read_text().replace(begin, begin + RECORD))
    (house / "llmkit/tasks/text_rating.py").write_text(TASK)
    (house / "recipes/rating.toml").write_text(RECIPE)
    return house


def test_the_task_trains_is_evaluated_predicts_and_merges(house, base):
    (house / "base").symlink_to(base)
    lines = [f"{line.split(' at ')[0]},{0.9 if 'fox' in line[:8] else 0.1}" for line in corpus(120).splitlines()]
    (house / "ratings.csv").write_text("text,rating\n" + "\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures, *predictions = done.stdout.splitlines()
    found = json.loads(figures)
    assert found.keys() == {"eval_loss", "eval_mean_absolute_error", "eval_pearson", "trivial"}
    assert 0.1 < found["trivial"]["eval_mean_absolute_error"] < 0.3  # one rating in five is 0.9, the others are 0.1
    assert "(always 0.2" in done.stderr
    rows = [json.loads(line) for line in (house / "wrong.jsonl").read_text().splitlines()]
    errors = [abs(row["prediction"] - row["truth"]) for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert sum(errors) / len(errors) == pytest.approx(found["eval_mean_absolute_error"], abs=1e-5)
    whole, adapter, merged = ([float(n) for n in re.findall(r'"(?:rating|value)": ([^}]+)}', p)] for p in predictions)
    assert all(0 < rating < 1 for rating in (*whole, *adapter))
    # A merged model is no run any more, and a classifier of one output gives its logit.
    assert adapter == pytest.approx([1 / (1 + math.exp(-logit)) for logit in merged], abs=1e-5)
    assert "try it: llmkit predict whole 'the " in done.stderr  # a row of its data


@pytest.mark.long
def test_a_misspelt_member_is_an_error_of_the_type_checker(house):
    """As a feature that is silently off it would be found by nobody."""
    file = house / "llmkit/tasks/text_rating.py"
    checker = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    for old, new, problem in (  # each of another length: mypy takes a file of the same size and second for unchanged
        ("def losses(", "def loses(", "losses"),
        ("prepare_model = None", "prepare_modell = None", "prepare_model"),
        ("def postprocess(", "def post_process_row(", "postprocess"),
        ("evaluation: bool) -> Examples", "evaluation: str) -> Examples", "examples"),
    ):
        file.write_text(TASK.replace(old, new))
        done = subprocess.run(checker, cwd=house, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        assert problem in done.stdout and '"RowTask"' in done.stdout
    file.write_text(TASK)
    assert subprocess.run(checker, cwd=house, capture_output=True).returncode == 0
