"""Imports go down one line only; heavy ones stay out of the rooms that `--help` enters."""

import ast
from functools import cache
from pathlib import Path

from conftest import ROOT

# From the command down to the errors: a module imports from its own layer and from those below. Rooms and files.
LAYERS = (
    ("__main__", "cli", "dry_run", "api", "new_recipe"),
    (
        "launch",
        "accelerate_launch",
        "launched",
        "machines",
        "prepare",
        "seeds",
        "children",
        "sweeps",
        "inference",
        "instead",
        "reports",
        "explain",
        "export",
        "serve",
        "doctor",
    ),
    ("training", "plan"),
    ("tasks",),
    ("speed",),
    ("models",),
    ("data",),
    ("runs",),
    (
        "recipe",
        "hub",
        "process",
        "remote",
        "stdout",
        "temporary",
        "last_resort",
        "accelerate_file",
        "worlds",
        "devices",
    ),
    ("metrics", "language", "errors", "disk", "terminal", "verified", ""),
)


@cache
def modules() -> dict[str, Path]:
    files = (ROOT / "llmkit").rglob("*.py")
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


@cache
def imported(file: Path) -> set[str]:
    """The llmkit modules that a file imports, inside functions too."""
    known = set(modules())
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "llmkit":
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in known}
            if any(f"{node.module}.{alias.name}" not in known for alias in node.names):
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found


def layer(name: str) -> int:
    """The number of the layer that a module is in, 0 at the top."""
    room = name.removeprefix("llmkit").removeprefix(".").split(".")[0]
    return next((number for number, rooms in enumerate(LAYERS) if room in rooms), -1)


def test_every_module_is_in_a_layer():
    assert [name for name in modules() if layer(name) < 0] == []


def test_imports_go_down_the_layers_only():
    upward = [
        f"{name} imports {other}"
        for name, file in modules().items()
        for other in imported(file)
        if layer(other) < layer(name)
    ]
    assert upward == []


def test_imports_run_in_no_circle():
    """Within a layer too."""
    left = {name: imported(file) - {name} for name, file in modules().items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_three_hops_from_the_command_to_training():
    """cli -> launch -> train, where Trainer.train() is called: nowhere else."""
    callers = [name for name, file in modules().items() if "trainer.train(" in file.read_text()]
    assert callers == ["llmkit.training.train"]
    assert "llmkit.launch" in imported(modules()["llmkit.cli.train"])
    assert "llmkit.training.train" in imported(modules()["llmkit.launch"])
