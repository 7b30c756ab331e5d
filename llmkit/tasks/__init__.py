"""One file per task, each of the same shape: windows or rows -> features, collator, model class, loss, metrics."""

from types import ModuleType


def module(task: str) -> ModuleType:
    """The file of a task: the one place where `task` becomes code."""
    from importlib import import_module

    return import_module(f"llmkit.tasks.{task.replace('-', '_')}")
