"""The contract of a task: every task has a record and a file, and says which protocol its file keeps."""

import ast

import pytest
from conftest import ROOT

from llmkit import tasks
from llmkit.recipe.tasks import TASKS

FILES = ROOT / "llmkit/tasks"
SHARED = {"__init__", "task", "inputs", "multi_task", "trivial", "encode_once"}


def test_every_task_has_a_record_and_a_file():
    files = {file.stem.replace("_", "-") for file in FILES.glob("*.py") if file.stem not in SHARED}
    assert files == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_which_protocol_it_keeps(name):
    """Which mypy then checks: a member that is missing or misspelt is an error."""
    file = FILES / f"{name.replace('-', '_')}.py"
    stated = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.AnnAssign)]
    protocol = {"rows": "RowTask", "text": "TextTask"}[TASKS[name].reads]
    assert [ast.unparse(node) for node in stated if ast.unparse(node.target) == "task"] == [
        f"task: {protocol} = {file.stem}"
    ]


@pytest.mark.parametrize("name", TASKS)
def test_what_a_task_predicts_with_is_there_whole_or_not_at_all(name):
    if TASKS[name].reads == "rows":
        task = tasks.row_task(name)
        parts = (task.label_spec_from_config, task.forward_for_predict, task.postprocess)
        assert [part is None for part in parts] == [name == "chat"] * 3
