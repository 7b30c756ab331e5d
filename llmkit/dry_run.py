"""Calculate a recipe's size before training: parameters, tokens a step, steps, warm-up."""

from dataclasses import replace
from typing import Any

from llmkit import tasks
from llmkit.errors import say
from llmkit.models.config import choose_block_size, load_config
from llmkit.models.weights import num_parameters
from llmkit.recipe.data_tables import ChatData, TextData
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.recipe.tasks import TASKS


def explain(recipe: Recipe, processes: int | None, max_time: str | None = None) -> None:
    """Print the arithmetic of `recipe` to stderr, without allocating the model; raise UserError as the run would.

    `processes` and `max_time` are the command line's.
    """
    from llmkit.launch import default_processes

    rows = recipe.task not in PRETRAINING
    config, notes = load_config(recipe.model, finetuning=rows)
    trains_tokenizer = recipe.tokenizer.type is not None
    if trains_tokenizer and "vocab_size" not in recipe.model.config:
        config.vocab_size = recipe.tokenizer.vocab_size
    settings = recipe.trainer
    world = processes if processes is not None else default_processes()
    batch = settings.get("per_device_train_batch_size", 8)
    accumulated = settings.get("gradient_accumulation_steps", 1)
    unit, length = "examples", 1
    if isinstance(recipe.data, TextData):
        unit, length = "blocks", choose_block_size(recipe.data.block_size, config)
    total = batch * accumulated * world * length
    examples_or_tokens = "examples" if rows else "tokens"
    count = num_parameters(recipe.model, config, tasks.model_class(recipe.task))
    lines = [
        f"parameters     {count:,}"
        + (f" (at most: the vocabulary may stay below {config.vocab_size:,})" if trains_tokenizer else "")
        + (TASKS[recipe.task].uncounted if recipe.task in TASKS else ", without the heads"),
        f"{examples_or_tokens + ' a step':14} {batch} {unit} x {accumulated} accumulated x {world} processes"
        + (f" = {total:,}" if rows else f" x {length} = {total:,}"),
    ]
    steps = settings.get("max_steps", -1)
    if max_time is not None:
        lines.append(f"steps          as many as there is time for in {max_time}")
    elif steps > 0:
        lines.append(f"steps          {steps:,}, {steps * total:,} {examples_or_tokens} in all")
    else:
        lines.append(f"steps          as many as {settings.get('num_train_epochs', 3):g} epochs of the data have")
    warmup = settings.get("warmup_steps", 0)
    share = f"{warmup:.1%} of the steps" if 0 < warmup < 1 else f"{warmup:,} steps"
    peak = settings.get("learning_rate", 5e-5)
    lines.append(f"learning rate  up to {peak:g} over {share}, then {settings.get('lr_scheduler_type', 'linear')}")
    lines += [f"note           {note}" for note in (*recipe.notes, *notes)]
    if isinstance(recipe.data, ChatData) and not trains_tokenizer:
        lines += ["example        the first row, what is learned in [[brackets]]", _conversation(recipe, config)]
    say("\n".join(lines))


def _conversation(recipe: Recipe, config: Any) -> str:
    """Show the first row of the data as the model reads it."""
    from llmkit.data.rows.splits import tables
    from llmkit.data.text.documents import Documents
    from llmkit.models.tokenizer import load as load_tokenizer
    from llmkit.tasks import chat
    from llmkit.tasks.inputs import choose_length

    data = recipe.data
    assert isinstance(data, ChatData)
    rows = tables(data, recipe.trainer.get("seed", 42), chat.reader).train
    assert rows is not None
    first = next(rows.read())
    first_row = replace(rows, read=lambda: iter([first]))
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model, recipe.task, Documents(lambda: iter(()), "", ""), None)
    length = choose_length(data.max_length, config, chat.LONGEST_INPUT)
    columns = chat.reader.resolve_columns(data, first_row)
    return chat.shown(chat.encode(first_row, columns, tokenizer, data, length), 0, tokenizer)
