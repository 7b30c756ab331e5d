"""Read the rows of a recipe as a run does, of a data set on the Hub the first, and show them."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.data import files
from llmkit.data.display import Report, counted
from llmkit.data.rows import head
from llmkit.data.rows.reader import reader_of
from llmkit.data.rows.splits import tables
from llmkit.data.rows.table import Rows
from llmkit.dry_run.examples import show_examples
from llmkit.dry_run.size import Size
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.schema import Recipe
from llmkit.tasks.multi_task import MixedBatches, Mixture
from llmkit.training.assemble import assemble
from llmkit.training.own_rows import fit_to_rows


def read_rows(report: Report, recipe: Recipe, seed: int, world: int, timed: bool) -> Size:
    """Show the rows, or say what of them cannot be known; raise UserError where a run would.

    `world` is the number of processes; a run may be `timed`, so that it ends by the clock.
    """
    parts = {name: part.recipe(recipe) for name, part in recipe.tasks.items()} or {"": recipe}
    data = [part.data for part in parts.values() if isinstance(part.data, RowData)]
    local = all(map(files.is_local, data))
    from_hub = Heads(data)
    try:
        assembly = assemble(recipe, seed, from_hub=from_hub)
        several = {name: assemble(part, seed, from_hub=from_hub) for name, part in parts.items() if name}
    except head.UnreadError as unread:
        return Size(None, False, (*recipe.notes, f"{unread.message}, the most that a dry run downloads: not checked"))
    except UserError as fault:
        if local:
            raise
        for part, table in zip(parts.values(), data, strict=True):
            tables(table, seed, reader_of(part.task), from_hub=from_hub)
        # The columns are right, and the first rows of a sorted file may lack a label.
        return Size(None, False, (*recipe.notes, f"on the first rows alone, a run would say: {fault.message}"))
    for line in assembly.lines:
        report.add("" if line.startswith("  ") else "data", line)
    for name, counts in _label_counts(assembly.record):
        report.add("labels", f"{name}: {counts}")
    for name, each in (several or {"": assembly}).items():
        show_examples(report, parts[name].task, each, name or "examples")
    for warning in assembly.warnings:
        report.add("warning", warning)
    train: Any = assembly.train
    fitted = fit_to_rows(recipe, assembly, world, timed) if local else recipe
    if recipe.fits_rows and not local:
        assembly.notes.append("a run chooses epochs, batch size and evaluation by the number of rows")
    batch = fitted.trainer.get("per_device_train_batch_size", 8) * world
    number = len(MixedBatches(train, batch, seed, False)) if isinstance(train, Mixture) else len(train)
    return Size(
        number if local else None if several else from_hub.estimate(data[0], number),
        local,
        tuple(assembly.notes),
        None if several else assembly.config,
        fitted,
        assembly,
    )


class Heads:
    """Open the first rows of splits on the Hub, each once; all together download head.BYTES at most."""

    def __init__(self, data: Sequence[RowData]) -> None:
        self.limit = head.BYTES // max(1, sum(1 + len(_validation(each)) for each in data if not files.is_local(each)))
        self.opened: dict[tuple[str, str | None, str], head.Head] = {}

    def __call__(self, data: RowData, split: str) -> Rows:
        key = (data.path, data.name, split)
        if key not in self.opened:
            self.opened[key] = head.open_head(data, split, self.limit)
        return self.opened[key].rows

    def estimate(self, data: RowData, examples: int) -> int | None:
        """Estimate how many examples a run has, where the first rows of its training split gave `examples`."""
        first = self.opened[data.path, data.name, data.split]
        if first.total is None:
            return None
        share = 1 - (0 if _validation(data) else data.validation_fraction or 0)
        read, total = first.number * share, first.total * share
        if data.max_train_samples is not None:
            read, total = min(read, data.max_train_samples), min(total, data.max_train_samples)
        return round(total * examples / read)


def _validation(data: RowData) -> Sequence[str]:
    splits = data.validation_split or ()
    return (splits,) if isinstance(splits, str) else splits


def _label_counts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the labels of each part of the data with their counts, the frequent first."""
    tables = {f"{name} ": each["data"] for name, each in record.get("tasks", {}).items()} or {"": record["data"]}
    return [
        (f"{before}{name}", counted(counts, part["rows"]))
        for before, table in tables.items()
        for name, part in table.items()
        if isinstance(part, Mapping)
        and (counts := part.get("balance"))
        and not any(isinstance(value, float) for value in counts.values())
    ]
