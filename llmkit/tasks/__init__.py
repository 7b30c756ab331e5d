"""One file per task, each of the same shape: windows or rows -> features, collator, model class, loss, metrics."""

from types import ModuleType


def module(task: str) -> ModuleType:
    """The file of a task: the one place where `task` becomes code."""
    from llmkit.tasks import causal_lm, masked_lm

    return {"causal-lm": causal_lm, "masked-lm": masked_lm}[task]
