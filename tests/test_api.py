"""llmkit from Python: the command line's own results and words, and a caller's process that stays as it was."""

import gc
import json
import os
import pkgutil
import random
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import datasets
import forks
import numpy as np
import pandas as pd
import peft  # noqa: F401  imported before: libraries add filters of warnings once
import pytest
import torch
from conftest import ROOT
from predictions import BERT, TRAINER
from transformers import logging

import llmkit as lk
from llmkit import process

CLASSES = f'task = "text-classification"\n{BERT}[data]\npath = "rows.csv"\n{TRAINER}'.replace(
    "max_steps = 80", "max_steps = 6"
)
ROWS = [{"text": f"it was {word} number {i}", "label": label} for i in range(12) for word, label in
        (("good", "pos"), ("bad", "neg"))]  # fmt: skip


@pytest.fixture
def rows(workplace) -> pd.DataFrame:
    """Rows to classify, and a recipe that reads them from a file."""
    frame = pd.DataFrame(ROWS)
    frame.to_csv("rows.csv", index=False)
    Path("classes.toml").write_text(CLASSES)
    return frame


def weights(run: Path | str) -> bytes:
    return (Path(run) / "model.safetensors").read_bytes()


def caller() -> dict:
    """What belongs to the caller of a function."""
    return {
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in (*process.stopping(), signal.SIGCHLD)},
        "threads": torch.get_num_threads(),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "warnings": list(warnings.filters),
        "collector": gc.isenabled(),
        "argv": list(sys.argv),
        "logging": (logging.get_verbosity(), logging.is_progress_bar_enabled()),
        "folder": Path.cwd(),
        "guest": process.is_guest,
    }


def test_no_public_name_is_that_of_a_submodule():
    modules = [name for _, name, _ in pkgutil.walk_packages(lk.__path__, "llmkit.") if name != "llmkit.__main__"]
    for name in modules:
        import_module(name)
    public = set(lk.__all__) - {"__version__"}
    assert public & {name.split(".")[1] for name in modules} == set()
    for name in public:
        assert callable(getattr(lk, name)), name
        assert name in dir(lk)
    with pytest.raises(AttributeError, match="has no attribute 'finetun'"):
        _ = lk.finetun


def test_what_is_typed_is_what_is_there():
    stub = (Path(lk.__file__).parent / "__init__.pyi").read_text()
    declared = {line.split()[-1] for line in stub.splitlines() if " import " in line}
    assert declared == set(lk.__all__) - {"__version__"}


def test_importing_llmkit_imports_no_library():
    code = "import sys, llmkit; print([n for n in ('torch', 'transformers', 'typer', 'pydantic') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_run_from_python_has_the_weights_of_the_commands(workplace, llmkit):
    assert llmkit("pretrain", "causal.toml", "trainer.learning_rate=3e-3", "--output-dir", "a").exit_code == 0
    before = caller()
    run = lk.pretrain("causal.toml", trainer={"learning_rate": 3e-3}, output_dir="b")
    assert caller() == before
    assert run == lk.Run(Path("b"))
    assert weights("a") == weights("b")
    assert run.metrics["eval_loss"] == json.loads(Path("a/run.json").read_text())["metrics"]["eval_loss"]
    assert run.record["command"] == [
        "llmkit",
        "pretrain",
        "causal.toml",
        "trainer.learning_rate=0.003",
        "--output-dir",
        "b",
    ]
    assert list(run.history["step"])[:2] == [1, 2]


@pytest.mark.parametrize("kind", ["path", "keys", "frame", "list", "dataset"])
def test_rows_in_memory_train_as_those_of_a_file(rows, llmkit, kind):
    assert llmkit("finetune", "classes.toml", "--output-dir", "a").exit_code == 0
    data = {
        "path": Path("rows.csv"),
        "keys": {"path": "rows.csv", "text_column": "text"},
        "frame": rows,
        "list": ROWS,
        "dataset": datasets.Dataset.from_list(ROWS),
    }[kind]
    run = lk.finetune("classes.toml", data=data, output_dir="b")
    assert weights("a") == weights("b")
    assert run.load().evaluate()["eval_loss"] == pytest.approx(run.metrics["eval_loss"])


def test_data_that_is_none_is_refused(rows):
    with pytest.raises(lk.UserError, match="llmkit reads no int"):
        lk.finetune("classes.toml", data=3)


def test_a_recipe_with_a_sweep_is_left_to_the_command(rows, tmp_path):
    table = {"over": {"trainer.learning_rate": [1e-5, 1e-4]}}
    with pytest.raises(lk.UserError, match="has a \\[sweep\\], which is many runs"):
        lk.finetune(task="text-classification", data=rows, sweep=table, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mistakes_have_the_words_of_the_command(rows, llmkit):
    said = llmkit("finetune", "classes.toml", "trainer.learning_rat=1", "data.max_length=none").stderr
    with pytest.raises(lk.UserError) as caught:
        lk.finetune("classes.toml", trainer={"learning_rat": 1}, data={"max_length": "none"})
    told = set(str(caught.value).splitlines())
    assert {line for line in said.splitlines() if "learning_rat" in line} <= told
    with pytest.raises(lk.UserError, match="each name a recipe"):
        lk.finetune("classes.toml", task="sst2")
    with pytest.raises(lk.UserError, match="no recipe is given"):
        lk.pretrain()


def test_a_failure_gives_back_what_was_changed(rows):
    before = caller()
    with pytest.raises(lk.UserError):
        lk.finetune("classes.toml", data="no-such.csv", trainer={"seed": 7})
    with pytest.raises(lk.UserError):
        lk.load("nowhere/at/all")
    assert caller() == before


def test_none_removes_a_key_and_numbers_of_numpy_are_numbers(rows):
    recipe = lk.read_recipe("classes.toml", trainer={"max_steps": None, "learning_rate": np.float32(0.5)})
    assert isinstance(recipe, lk.Recipe)
    assert "max_steps" not in recipe.trainer
    assert recipe.trainer["learning_rate"] == 0.5


def test_predictions_are_those_of_the_command(rows, llmkit):
    run = lk.finetune("classes.toml", output_dir="run")
    said = llmkit("predict", "run", "it was good", "it was bad").stdout
    expected = [json.loads(line) for line in said.splitlines()]
    before = caller()
    model = lk.load("run")
    assert caller() == before
    assert model.task == "text-classification"
    assert [model.predict(text) for text in ("it was good", "it was bad")] == expected
    assert model.predict(["it was good", {"text": "it was bad"}]) == expected
    frame = model.predict(rows.set_index(rows.index + 5))
    assert list(frame.columns[:2]) == ["text", "label"]
    assert set(frame["predicted_label"]) <= {"pos", "neg"}
    assert list(frame.index) == list(rows.index + 5)
    with pytest.raises(lk.UserError, match="row 1"):
        model.predict([{"other": 3}, {"text": ""}])
    with pytest.raises(lk.UserError, match="not a causal language model"):
        model.generate("it was")
    assert run.load().name == "run"


def test_a_precision_is_that_of_the_commands(rows, llmkit, capsys):
    lk.finetune("classes.toml", output_dir="run")
    said = llmkit("predict", "run", "it was good", "--precision", "bf16").stdout
    expected = json.loads(llmkit("evaluate", "run", "data.path=rows.csv", "--precision", "bf16").stdout)
    model = lk.load("run", precision="bf16")
    capsys.readouterr()
    assert model.predict("it was good") == json.loads(said)
    assert "weights in bf16" in capsys.readouterr().err
    assert model.evaluate(rows) == expected
    assert expected["precision"] == "bf16"


def test_evaluation_is_that_of_the_command(rows, llmkit):
    lk.finetune("classes.toml", output_dir="run")
    expected = json.loads(llmkit("evaluate", "run", "data.path=rows.csv").stdout)
    assert lk.load("run").evaluate(rows, output="rows-out.csv") == expected
    with pytest.raises(lk.UserError, match="already exists"):
        lk.load("run").evaluate(rows, output="rows-out.csv")
    assert lk.load("run").evaluate(rows, output="rows-out.csv", overwrite=True) == expected
    assert len(pd.read_csv("rows-out.csv")) == len(rows)


def test_texts_are_those_of_the_command(workplace, llmkit):
    run = lk.pretrain("causal.toml", output_dir="run")
    said = llmkit("generate", "the fox", "--model", "run", "--seed", "1", "max_new_tokens=5").stdout
    model = run.load()
    before = caller()
    assert model.generate("the fox", seed=1, max_new_tokens=5) == said.rstrip("\n")
    assert len(model.generate("the fox", max_new_tokens=5, num_return_sequences=2)) == 2
    assert caller() == before
    with pytest.raises(lk.UserError, match="max_new_token: not a field"):
        model.generate("the fox", max_new_token=5)
    with pytest.raises(lk.UserError, match="chat template"):
        model.chat("Who are you?")
    with pytest.raises(lk.UserError, match="it generates text"):
        model.predict("the fox")
    with pytest.raises(lk.UserError, match="precision is for predict and evaluate"):
        lk.load("run", precision="bf16").generate("the fox")


def test_ctrl_c_saves_and_raises_stopped(workplace):
    steps = {"max_steps": 2_000, "save_strategy": "no", "logging_steps": 1}
    begun = Path("runs/long/metrics.jsonl")

    def interrupt() -> None:
        while not (begun.exists() and begun.read_text().count("\n") > 3):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    before = caller()
    with pytest.raises(lk.Stopped) as caught:
        lk.pretrain("causal.toml", name="long", trainer=steps)
    thread.join()
    assert caller() == before
    assert caught.value.run.directory == Path("runs/long")
    assert caught.value.run.record["status"] == "stopped"
    assert list(Path("runs/long").glob("checkpoint-*"))
    assert "resume=True" in str(caught.value)


def test_a_second_ctrl_c_does_not_end_the_callers_process(monkeypatch):
    monkeypatch.setattr(process, "is_guest", True)
    with pytest.raises(KeyboardInterrupt):
        process.leave_at_once(signal.SIGINT)


def test_a_run_in_another_thread_is_like_any(workplace):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(lk.pretrain("causal.toml", output_dir="a")))
    thread.start()
    thread.join()
    assert runs == [lk.Run(Path("a"))]
    lk.pretrain("causal.toml", output_dir="b")
    assert weights("a") == weights("b")


def test_a_finished_run_is_found_again(workplace):
    run = lk.pretrain("causal.toml")
    assert run.directory == Path("runs/causal")
    assert lk.pretrain("causal.toml", resume=True) == run


def test_several_processes_are_children_of_this_one(workplace, monkeypatch):
    launched = SimpleNamespace(Popen=partial(forks.Ranks, first=""), DEVNULL=None)
    monkeypatch.setattr("llmkit.accelerate_launch.subprocess", launched)
    before = caller()
    run = lk.pretrain("causal.toml", processes=2, output_dir="run")
    assert caller() == before
    assert run.record["processes"] == 2
    assert run.record["status"] == "finished"


def test_runs_are_listed_in_a_frame(workplace):
    assert list(lk.list_runs()["run"]) == []
    lk.pretrain("causal.toml", name="one")
    frame = lk.list_runs()
    assert list(frame["run"]) == ["runs/one"]
    assert list(frame["metric"]) == ["eval_perplexity"]
    assert frame["time"].dtype.kind in "fi"


@pytest.mark.alone
def test_importing_llmkit_takes_less_than_a_tenth_of_a_second():
    def seconds(code: str) -> float:
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.monotonic() - started

    assert min(seconds("import llmkit") for _ in range(5)) - min(seconds("") for _ in range(5)) < 0.1


def test_the_cells_of_the_notebook_run(workplace, monkeypatch):
    cells = json.loads((ROOT / "examples/python.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # they would age
    names: dict = {}
    short = {"num_train_epochs": 1, "max_steps": 2}
    real = lk.finetune
    monkeypatch.setattr(
        lk, "finetune", lambda *a, trainer, **more: real(*a, trainer={**trainer, **short}, **more), raising=False
    )
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["run"].directory == Path("runs/meals")


def test_python_in_the_pages_names_what_is_there():
    for page in (ROOT / "docs").rglob("*.md"):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            if "llmkit." not in block:  # a part of a file
                continue
            compile(block, str(page), "exec")
            assert set(re.findall(r"llmkit\.(\w+)\b(?=\()", block)) <= set(lk.__all__), page


def test_an_evaluation_on_the_file_that_was_trained_on_is_warned_of(rows, capsys):
    model = lk.finetune("classes.toml", output_dir="run").load()
    capsys.readouterr()
    model.evaluate("rows.csv")
    assert "the model was trained on rows of this file" in capsys.readouterr().err
    rows.to_csv("further.csv", index=False)
    model.evaluate("further.csv")
    assert "trained on" not in capsys.readouterr().err


def test_a_finished_adapter_is_whole(workplace, llmkit):
    lk.pretrain("causal.toml", output_dir="base")
    lk.pretrain("causal.toml", model={"name": "base"}, lora={"r": 2}, trainer={"max_steps": 2}, output_dir="run")
    done = llmkit("check", "run")
    assert done.exit_code == 0
    assert "damaged" not in done.stdout
    assert "README.md" not in json.loads(Path("run/run.json").read_text())["files"]
