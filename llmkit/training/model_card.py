"""The model card of a finished run: `README.md` in the Hub's format."""

import os.path
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import quantity
from llmkit.metrics import evaluation_metrics
from llmkit.models.loading import ADAPTED_CONFIG
from llmkit.recipe.schema import Recipe
from llmkit.recipe.tasks import TASKS
from llmkit.runs import directory as runs

HERE = "  # this folder, or the Hub id under which it is published"


def figures(metrics: dict[str, float]) -> list[str]:
    """Return the metrics worth showing: the losses and what the task measures.

    Of the training that is the loss of its last part: upstream's `train_loss` is a mean over all of it, the first steps
    too, and would stand above or below the evaluation's for no other reason.
    """
    loss = next((key for key in ("last_train_loss", "train_loss") if key in metrics), None)
    return [*([loss] if loss else []), *evaluation_metrics(metrics)]


def said(key: str, metrics: dict[str, float], facts: dict[str, Any]) -> str:
    """Name a figure: with the class that F1 is measured of, and the steps that the loss is the mean of."""
    if key == "last_train_loss":
        steps = int(metrics["last_train_loss_steps"])
        return f"loss of the last {quantity(steps, 'step')}" if steps > 1 else "loss of the last step"
    of_class = key.endswith("_f1") and facts.get("f1_of")
    return f'{key} of "{of_class}"' if of_class else key


def write_model_card(recipe: Recipe, directory: Path, metrics: dict[str, float], facts: dict[str, Any]) -> None:
    """`README.md` in the Hub's format: what the model is, what it learned from, how well, and how to load it."""
    record = TASKS[recipe.task]
    assert recipe.data is not None  # each of several tasks has a card of its own
    head = ["---", f"library_name: {'transformers' if recipe.lora is None else 'peft'}", "tags: [llmkit]"]
    several = getattr(recipe.data, "sources", {})
    read = {name: (source.path, facts["data"][name]) for name, source in several.items()} or {
        "": (recipe.data.path, facts["data"])
    }
    from_hub = [path for path, about in read.values() if about["revision"] is not None]
    hub_model = recipe.model.init == "pretrained" and recipe.model.name and not disk.exists(Path(recipe.model.name))
    if hub_model:
        head.append(f"base_model: {recipe.model.name}")
    if from_hub:
        head.append(f"datasets: [{', '.join(dict.fromkeys(from_hub))}]")
    if record.pipeline is not None:
        head.append(f"pipeline_tag: {record.pipeline}")
    sources = ", ".join(
        f"`{path if about['revision'] is not None else Path(recipe.as_address(path)).name}`"
        for path, about in read.values()
    )
    trivial = facts["trivial"]["metrics"]
    rows = [
        f"| {said(key, metrics, facts)} | {metrics[key]:.4f} | "
        + (f"{trivial[key]['answer'].replace('|', '&#124;')}: {trivial[key]['value']:.4f} |" if key in trivial else "|")
        for key in figures(metrics)
    ]
    base = recipe.model.name if recipe.lora is not None else None
    if base and disk.exists(Path(base)):
        base = _here(Path(base))
    text = f"""# {directory.name}

A {recipe.task} model of {facts["parameters"]:,} parameters, {facts["trainable_parameters"]:,} of them trained on
{sources} with llmkit {facts["llmkit"]} in {facts["precision"]} on {facts["processes"]} process\
{"es" if facts["processes"] > 1 else ""}. `recipe.toml` is the recipe and `run.json` the record: versions, machine,
data, metrics.

| metric | value | baseline |
| --- | --- | --- |
{chr(10).join(rows)}

```python
{loading(_here(directory), record.auto_class, base, HERE)}
```
"""
    (directory / runs.CARD_FILE).write_text("\n".join([*head, "---", "", text]))


def loading(path: str, auto_class: str, base: str | None = None, comment: str = "") -> str:
    """Return the Python that loads the model at `path`, a folder or a Hub id, and its tokenizer.

    `base` is what an adapter adapts; `comment` goes behind the path.
    """
    where = f'path = "{path}"{comment}'
    if base is None:
        return f"""from transformers import {auto_class}, AutoTokenizer

{where}
model = {auto_class}.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)"""
    return f"""from peft import PeftModel
from transformers import AutoConfig, {auto_class}, AutoTokenizer

{where}
config = AutoConfig.from_pretrained(f"{{path}}/{ADAPTED_CONFIG}")
base = {auto_class}.from_pretrained("{base}", config=config)
model = PeftModel.from_pretrained(base, path)
tokenizer = AutoTokenizer.from_pretrained(path)"""


def _here(folder: Path) -> str:
    """Name a folder so that it is never taken for a Hub id: by `./`, or by its whole path outside of this one."""
    absolute, here = Path(os.path.abspath(folder)), Path.cwd()  # noqa: PTH100 - links stay as they are
    return f"./{absolute.relative_to(here).as_posix()}" if absolute.is_relative_to(here) else absolute.as_posix()
