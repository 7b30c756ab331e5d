"""The notebook runs in a real kernel, and Ctrl-C in a cell saves."""

from pathlib import Path

import pytest
from conftest import CAUSAL, ROOT, corpus

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::nbformat.warnings.MissingIDFieldWarning")


def run(notebook, folder: Path) -> None:
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(ROOT / "examples/python.ipynb", as_version=4)
    run(notebook, tmp_path)
    shown = [output.data["text/plain"] for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
             if output.output_type == "execute_result"]  # fmt: skip
    assert float(shown[1]) > 0.9
    assert "'label': 'disliked'" in shown[3]
    assert "runs/meals-short" in shown[-1]
    assert "did you mean `trainer.learning_rate" in printed(notebook.cells[-1])


def test_an_interrupted_cell_saves_and_raises_stopped(tmp_path):
    (tmp_path / "causal.toml").write_text(CAUSAL)
    (tmp_path / "corpus.txt").write_text(corpus())
    code = """
import _thread, os, pathlib, signal, threading, time
import llmkit

def interrupt():
    log = pathlib.Path("runs/long/metrics.jsonl")
    while not (log.exists() and log.read_text().count("\\n") > 3):
        time.sleep(0.02)
    os.killpg(os.getpgrp(), signal.SIGINT)  # as Jupyter's stop button does

threading.Thread(target=interrupt, daemon=True).start()
try:
    llmkit.pretrain("causal.toml", name="long", trainer={"max_steps": 100_000, "save_strategy": "no"})
except llmkit.Stopped as stopped:
    print("caught:", stopped)
"""
    cells = [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("print('the kernel is alive')")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    run(notebook, tmp_path)
    assert "caught: `runs/long` was stopped" in printed(notebook.cells[0])
    assert "the kernel is alive" in printed(notebook.cells[1])
    assert list((tmp_path / "runs/long").glob("checkpoint-*"))
