"""Tasks: one file for each, which keeps the contract in `task.py`; what it is to the rest is in `recipe/tasks.py`."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from llmkit.recipe.tasks import TASKS

if TYPE_CHECKING:
    from llmkit.tasks.task import RowTask, TextTask


def row_task(name: str) -> "RowTask":
    """Return the file of a task that learns from rows: one of two places where `task` becomes code."""
    return cast("RowTask", _module(name))


def text_task(name: str) -> "TextTask":
    """Return the file of a task that learns from running text: the other place."""
    return cast("TextTask", _module(name))


def _module(name: str) -> ModuleType:
    return import_module(f"llmkit.tasks.{name.replace('-', '_')}")


def model_class(name: str) -> Any:
    """Return transformers' class of a task's models; of several tasks at once, that of the encoder which they share."""
    import transformers

    return getattr(transformers, TASKS[name].auto_class if name in TASKS else "AutoModel")
