"""llmkit: pretrain, fine-tune and use language models, from one recipe, with one command.

From Python: `llmkit.finetune(task="text-classification", data="reviews.csv")` returns a `Run`; `llmkit.load(run)` a
`Model` that predicts, generates and evaluates. What `__all__` lists is public; everything else may change.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# What is imported when it is first used: `import llmkit` costs nothing.
_PUBLIC = {
    **dict.fromkeys(("Run", "Stopped", "finetune", "list_runs", "pretrain", "read_recipe"), "llmkit.api.runs"),
    **dict.fromkeys(("Model", "load"), "llmkit.api.models"),
    **dict.fromkeys(("RunError", "UserError"), "llmkit.errors"),
    "Recipe": "llmkit.recipe.schema",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llmkit' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
