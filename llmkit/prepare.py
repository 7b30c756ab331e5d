"""Clean and tokenize what a recipe trains on, before it is trained, by many processes or on a cluster."""

import time
from contextlib import AbstractContextManager, nullcontext

from llmkit.data import engines
from llmkit.data.engines import Engine, Workers
from llmkit.data.text.tokenize import cores
from llmkit.disk import cache_dir
from llmkit.errors import UserError, quantity, say
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.schema import Recipe

SMALLEST = 10_000  # characters of a shard: with fewer, files cost more than text


def prepare(recipe: Recipe, engine: str, workers: int | None, shard_size: float | None) -> int:
    """Fill the cache with the text of `recipe`, cleaned and as tokens, and say what it holds.

    Args:
        recipe: A recipe that trains on running text.
        engine: "processes" or "ray".
        workers: The number of processes; None is one for each core.
        shard_size: Millions of characters that are cleaned at once; None is the default of Workers.

    Raises:
        UserError: The recipe has nothing to prepare, or cannot be trained.
    """
    if not isinstance(recipe.data, TextData):
        raise UserError(
            f"{recipe.task} reads rows, which are tokenized at each start",
            "llmkit prepare is for the running text that pretraining reads",
        )
    if recipe.data.streaming:
        raise UserError("data.streaming reads the text anew while it trains", "unset it, and it can be prepared")
    if engine == "ray" and workers is not None:
        raise UserError("--workers has no effect with --engine ray", "Ray uses all CPUs of its cluster")
    size = Workers.shard_size if shard_size is None else int(shard_size * 1e6)
    if size < SMALLEST:
        raise UserError(f"--shard-size must be {SMALLEST / 1e6:g} or more")
    number = cores() if workers is None else workers
    started = time.monotonic()
    from llmkit.training.assemble import assemble

    with _engine(engine, number) as run:
        assembly = assemble(recipe, recipe.trainer.get("seed", 42), workers=Workers(run, size))
    for number, line in enumerate(assembly.lines):
        say(f"{'' if number else 'data':8} {line}")
    for kind, remarks in (("note", assembly.notes), ("warning", assembly.warnings)):
        for remark in remarks:
            say(f"{kind:8} {remark}")
    seconds = quantity(round(time.monotonic() - started), "second")
    say(f"prepared in {seconds}: pretrain finds it in {cache_dir()}")
    return 0


def _engine(name: str, number: int) -> AbstractContextManager[Engine]:
    if name == "ray":
        return engines.on_ray()
    return nullcontext(engines.in_turn) if number == 1 else engines.processes(number)
