"""What a recipe takes, for people and for programs: `llmkit plan`. docs/reference/json.md has the record's fields."""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmkit.data.display import Report
from llmkit.errors import UserError, in_bytes, quantity
from llmkit.plan import closed_form, gpus
from llmkit.plan.outlook import Outlook
from llmkit.recipe.schema import PRETRAINING

LEFT = 16  # columns of what stands before a line
WORTH = 60  # seconds on one GPU, below which paper says nothing: so small a model does not fill it
TRIES = 4  # micro-batches that are traced to find the largest


def plan(outlook: Outlook, memory: float | None, measured: bool, price: float | None) -> dict[str, Any]:
    """Find out what a recipe takes.

    Args:
        outlook: Its arithmetic.
        memory: Bytes into which a micro-batch should fit; None asks for none.
        measured: Train ten steps.
        price: Of the machine, an hour.

    Returns:
        The record.

    Raises:
        UserError: As the run would.
    """
    from llmkit.training.arguments import training_arguments

    recipe = outlook.recipe
    base = _resident()
    args = training_arguments({k: v for k, v in outlook.settings.items() if k not in _OF_ROWS}, Path(recipe.name))
    formula = _closed_form(outlook)
    traced, notes = None, list(outlook.notes)
    tracer = _tracer(outlook, args)
    try:
        traced = tracer()
    except UserError as problem:
        notes.append(f"{problem.message}: {problem.hint}")
    steps, unit = outlook.steps, "tokens" if recipe.task in PRETRAINING else "examples"
    flops = None if traced is None else traced.flops * outlook.processes
    flops = formula.flops if flops is None and formula is not None else flops
    share = _mean_share(outlook)
    record: dict[str, Any] = {
        "recipe": recipe.name,
        "task": recipe.task,
        "model": str(outlook.config.model_type),
        "parameters": _parameters(traced, formula),
        "data": {
            "unit": "blocks" if recipe.task in PRETRAINING else "examples",
            "number": outlook.number,
            "exact": outlook.exact,
            "block_size": outlook.length if recipe.task in PRETRAINING else None,
        },
        "batch": {
            "size": outlook.batch,
            "accumulated": outlook.accumulated,
            "processes": outlook.processes,
            "per_step": outlook.a_step,
            "unit": unit,
        },
        "steps": steps,
        "precision": next((name for name in ("bf16", "fp16") if outlook.settings.get(name)), "fp32"),
        "memory": _memory(traced, formula, base),
        "disk": None
        if formula is None
        else {
            "model": formula.model_bytes,
            "checkpoint": formula.checkpoint_bytes,
            "checkpoints": formula.checkpoints,
            "total": formula.disk,
        },
        "flops": {
            "step": flops,
            "total": None if flops is None or steps is None else flops * steps * share,
        },
        "fits": None,
        "measured": None,
        "gpus": [],
    }
    if memory is not None:
        record["fits"] = _fits(memory, outlook, args, traced, tracer, notes)
    if record["flops"]["total"] and traced is not None:
        of_batch = traced.memory["activations"]
        held = traced.memory["weights"] + traced.memory["optimizer"] + traced.memory["average"] + 4 * traced.trained
        record["gpus"] = [vars(each) for each in gpus.on_paper(record["flops"]["total"], held, of_batch)]
    if measured:
        record["measured"] = _measured(outlook, price)
    record["notes"] = list(dict.fromkeys(notes))
    return record


_OF_ROWS = ("load_best_model_at_end",)  # which wants what a run chooses for evaluation


def _tracer(outlook: Outlook, args: Any) -> Callable[..., Any]:
    """Return what traces the recipe with some arguments of [trainer] changed."""

    def trace(**changes: Any) -> Any:
        from llmkit.plan.trace import trace as trace_steps

        changed = copy.copy(args)
        for key, value in changes.items():
            setattr(changed, key, value)
        processes = 1 if changed.fsdp or changed.deepspeed else outlook.processes
        return trace_steps(outlook.recipe, outlook.config, changed, outlook.assembly, processes)

    return trace


def _closed_form(outlook: Outlook) -> closed_form.Needs | None:
    config, settings = outlook.config.to_dict(), outlook.settings
    return closed_form.of_config(outlook.recipe, config, settings, outlook.processes, outlook.longest)


def _parameters(traced: Any, formula: closed_form.Needs | None) -> dict[str, int] | None:
    known = traced or formula
    return None if known is None else {"all": known.parameters, "trained": known.trained}


def _memory(traced: Any, formula: closed_form.Needs | None, base: int | None) -> dict[str, Any]:
    """Return the bytes by kind, of the trace where there is one; logits are among the activations there."""
    logits = None if formula is None else formula.memory["logits"]
    libraries = {"libraries": base}
    if traced is not None:
        logits = None if logits is None else min(logits, traced.memory["activations"])
        split = {} if logits is None else {"activations": traced.memory["activations"] - logits, "logits": logits}
        return {"by": "trace", **traced.memory, **split, "peak": traced.peak, **libraries}
    if formula is not None:
        return {"by": "closed form", **formula.memory, "peak": formula.peak, **libraries}
    return {"by": None, "peak": None, **libraries}


def _mean_share(outlook: Outlook) -> float:
    """Return the mean length of a row as a share of the longest batch's, which was traced; 1 for blocks."""
    lengths = getattr(getattr(outlook.assembly, "train", None), "lengths", None)
    if lengths is None or not len(lengths):
        return 1.0
    longest = sorted(lengths.tolist(), reverse=True)[: outlook.batch]
    return float(lengths.mean()) / (sum(longest) / len(longest))


def _resident() -> int | None:
    """Return the bytes that this process holds now, with the libraries that training needs; None where unknown."""
    import transformers.trainer  # noqa: F401

    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ImportError):
        return None


def _fits(
    memory: float, outlook: Outlook, args: Any, traced: Any, tracer: Callable[..., Any], notes: list[str]
) -> dict[str, Any]:
    """Find the largest micro-batch whose tensors fit into `memory`, and what changes if that of the recipe does not."""
    found: dict[str, Any] = {"memory": int(memory), "largest": None, "overrides": [], "changes": []}
    if traced is None:
        return found
    size = args.per_device_train_batch_size
    rows = None if outlook.assembly is None else len(outlook.assembly.train)
    try:
        found["largest"] = _largest(memory, size, traced, tracer, rows)
        if found["largest"] < size:
            found["changes"] = list(_changes(memory, args, tracer))
    except UserError as problem:
        notes.append(problem.message)
    largest = found["largest"]
    if largest:
        of_a_step = size * args.gradient_accumulation_steps
        best = max(each for each in range(1, min(largest, of_a_step) + 1) if of_a_step % each == 0)
        found["overrides"] = [
            f"trainer.per_device_train_batch_size={best}",
            f"trainer.gradient_accumulation_steps={of_a_step // best}",
        ]
    return found


def _largest(memory: float, size: int, traced: Any, tracer: Callable[..., Any], rows: int | None) -> int:
    """Find the largest micro-batch: a straight line through two, and a trace of what it says; 0 where one is too large.

    Of rows no more than there are can be tried.
    """
    most = rows or 2**20
    known = {size: traced.peak}
    other = min(2 * size, most) if 2 * size <= most else max(1, size // 2)
    if other != size:
        known[other] = tracer(per_device_train_batch_size=other).peak
    for _ in range(TRIES):
        (a, low), (b, high) = sorted(known.items())[-2:] if len(known) > 1 else [(0, 0), (size, traced.peak)]
        slope = max(1.0, (high - low) / (b - a))
        guess = min(most, max(1, int(b + (memory - high) / slope)))
        if guess in known:
            break
        known[guess] = tracer(per_device_train_batch_size=guess).peak
    fitting = [each for each, peak in known.items() if peak <= memory]
    return max(fitting, default=0)


def _changes(memory: float, args: Any, tracer: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Yield what makes a step smaller, with its peak as it is traced."""
    tried: list[tuple[str, dict[str, Any]]] = []
    if not args.activation_checkpointing:
        tried.append(("trainer.activation_checkpointing=true", {"activation_checkpointing": True}))
    if not args.bf16:
        tried.append(("trainer.bf16=true", {"bf16": True}))
    tried.append(("trainer.per_device_train_batch_size=1", {"per_device_train_batch_size": 1}))
    if not args.activation_checkpointing:
        both: dict[str, Any] = {"activation_checkpointing": True, "per_device_train_batch_size": 1}
        tried.append(("trainer.per_device_train_batch_size=1 trainer.activation_checkpointing=true", both))
    for override, changes in tried:
        peak = tracer(**changes).peak
        yield {"override": override, "peak": peak, "fits": peak <= memory}


def _measured(outlook: Outlook, price: float | None) -> dict[str, Any]:
    from llmkit.plan.measure import STEPS, measure

    found = measure(outlook.recipe)
    total = None if outlook.steps is None else found.step * outlook.steps
    return {
        "steps": STEPS,
        "step_seconds": found.step,
        "fastest": min(found.seconds),
        "slowest": max(found.seconds),
        "processor_seconds": found.processor_seconds,
        "per_second": outlook.batch * outlook.accumulated * outlook.length / found.step,
        "peak_bytes": found.peak_bytes,
        "total_seconds": total,
        "cost": None if price is None or total is None else price * total / 3600,
    }


# ---- in words ------------------------------------------------------------------------------------------------------


def show(record: Mapping[str, Any], in_json: bool) -> None:
    """Write the record to stdout: as one object of JSON, or in words."""
    if in_json:
        print(json.dumps(record, indent=2))  # noqa: T201
        return
    report = Report(LEFT, print, sys.stdout)
    for name, text in _words(record):
        report.add(name, text)
    if any(row["seconds"] > WORTH for row in record["gpus"]):
        report.lines("on paper", _table(record["gpus"]))


def _words(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "recipe", f"{record['recipe']} ({record['task']}, {record['model']}, {record['precision']})"
    if counts := record["parameters"]:
        part = "all" if counts["all"] == counts["trained"] else f"{counts['trained']:,} of them"
        yield "parameters", f"{counts['all']:,}, {part} trained"
    data, batch = record["data"], record["batch"]
    if data["number"] is not None:
        about = "" if data["exact"] else "about "
        each = f" of {data['block_size']:,} tokens" if data["block_size"] else ""
        yield "data", f"{about}{data['number']:,} {data['unit']}{each}"
    each = f" x {data['block_size']:,}" if data["block_size"] else ""
    made_of = quantity(batch["size"], data["unit"].removesuffix("s"))
    times = (
        f" x {batch['accumulated']} accumulated x {quantity(batch['processes'], 'process').replace('ss', 'sses', 1)}"
    )
    times = times if batch["processes"] > 1 else f" x {batch['accumulated']} accumulated"
    yield "a step", f"{made_of}{times}{each} = {batch['per_step']:,} {batch['unit']}"
    if record["steps"] is not None:
        yield "steps", f"{record['steps']:,}"
    yield from _memory_in_words(record["memory"])
    if files := record["disk"]:
        kept = f", {quantity(files['checkpoints'], 'checkpoint')} of {in_bytes(files['checkpoint'])}"
        yield (
            "disk",
            f"{in_bytes(files['total'])}: the model {in_bytes(files['model'])}" + kept * bool(files["checkpoints"]),
        )
    if (flops := record["flops"])["step"]:
        total = "" if flops["total"] is None else f", {flops['total']:.3g} in all"
        yield "compute", f"{flops['step']:.3g} operations a step{total}"
    if (timed := record["measured"]) is not None:
        yield from _measured_in_words(timed, batch["unit"])
    if (fits := record["fits"]) is not None:
        yield from _fits_in_words(fits, batch)
    for note in record["notes"]:
        yield "note", note


def _memory_in_words(memory: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if memory["peak"] is None:
        return
    kinds = ("weights", "gradients", "buckets", "optimizer", "average", "activations", "logits")
    parts = ", ".join(f"{name} {in_bytes(memory[name])}" for name in kinds if memory.get(name))
    how = "traced" if memory["by"] == "trace" else "by formula"
    yield "memory", f"{in_bytes(memory['peak'])} at the peak of a step ({how}): {parts}"
    if memory["libraries"]:
        yield "", f"on a CPU {in_bytes(memory['libraries'])} of Python and libraries besides"
        yield "", "and, with room for it, freed memory that is kept: a tenth to a half more"


def _measured_in_words(timed: Mapping[str, Any], unit: str) -> Iterator[tuple[str, str]]:
    between = f"{timed['fastest']:.3g} to {timed['slowest']:.3g}"
    yield (
        "measured",
        f"{timed['step_seconds']:.3g} s a step ({between}, {timed['steps']} steps), "
        f"{timed['per_second']:,.0f} {unit}/s, {in_bytes(timed['peak_bytes'])} of the process",
    )
    if timed["total_seconds"] is not None:
        cost = "" if timed["cost"] is None else f", which costs {timed['cost']:,.2f}"
        yield "", f"{duration(timed['total_seconds'])} of training without evaluation and saving{cost}"


def _fits_in_words(fits: Mapping[str, Any], batch: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    memory, largest = in_bytes(fits["memory"]), fits["largest"]
    if largest is None:
        return
    if largest >= batch["size"]:
        yield "fits", f"{memory} hold the tensors of a micro-batch of {largest:,}; the recipe's has {batch['size']:,}"
    elif largest:
        yield "fits", f"not in {memory}, which hold a micro-batch of {largest:,}; the recipe's has {batch['size']:,}"
    else:
        yield "fits", f"not in {memory}, not even a micro-batch of one"
    if fits["overrides"] and not fits["overrides"][0].endswith(f"={batch['size']}"):
        yield "", f"as many examples a step: {' '.join(fits['overrides'])}"
    for change in fits["changes"]:
        yield "", f"{change['override']}: {in_bytes(change['peak'])}{', fits' if change['fits'] else ''}"


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Write how long it takes on GPUs."""
    counts = list(dict.fromkeys(row["count"] for row in rows))
    yield f"{'':10}" + "".join(f"{f'{count} GPU' + 's' * (count > 1):>15}" for count in counts)
    for name in dict.fromkeys(row["gpu"] for row in rows):
        cells = [row for row in rows if row["gpu"] == name]
        shown = (
            "does not fit"
            if row["way"] is None
            else duration(row["seconds"]) + ("" if row["count"] == 1 else f" {row['way']}")
            for row in cells
        )
        yield f"{name:10}" + "".join(f"{text:>15}" for text in shown)
    yield f"at {gpus.UTILISATION:.0%} of the bf16 peak, nothing for what GPUs tell one another: paper"


def duration(seconds: float) -> str:
    """Write a time in its two largest units: `42 s`, `3 min`, `5.2 h`, `12 days`."""
    for limit, unit, divisor in ((1, "s", 1.0), (90, "s", 1.0), (5400, "min", 60.0), (172_800, "h", 3600.0)):
        if seconds < limit:
            value = seconds / divisor
            return "under 1 s" if limit == 1 else f"{value:.1f} {unit}" if unit == "h" else f"{value:.0f} {unit}"
    return f"{seconds / 86400:,.1f} days"


def in_memory(text: str) -> float:
    """Read a size such as 24GB, 24G or 800MB as bytes; raise UserError for anything else."""
    units = {"mb": 1e6, "m": 1e6, "gb": 1e9, "g": 1e9, "gib": 2**30, "mib": 2**20}
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    try:
        size = float(number) * units[text[len(number) :].lower()]
    except (KeyError, ValueError):
        size = 0
    if not 0 < size < 1e18:
        raise UserError(f"--memory: `{text}` is not a size", "write it as 24GB or 800MB")
    return size
