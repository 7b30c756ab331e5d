"""Fill the page of a report: how a run went, its curves, and a section each for its rows and its data."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmkit.metrics import evaluation_metrics
from llmkit.reports import pictures
from llmkit.reports.contents import Contents
from llmkit.reports.curves import Log
from llmkit.reports.data_section import data_section
from llmkit.reports.formatting import cut, described, figure, lasting, sentence, size, when
from llmkit.reports.pictures import Line, Picture
from llmkit.reports.rows_section import rows_section

SHOWN_SAMPLES = 8  # times at which samples are shown
CURVES = 6  # metrics that have a picture
# The tasks whose words can be weighed.
EXPLAINED = ("text-classification", "token-classification", "multiple-choice", "question-answering")
TITLES = {"learning_rate": "Learning rate", "grad_norm": "Gradient norm"}


def render(contents: Contents, loss: Picture | None) -> str:
    """Make the page."""
    return fill("page.html", page(contents, loss))


def fill(template: str, shown: Mapping[str, Any]) -> str:
    """Fill a template of this folder with what it shows."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(here),
    )
    made.filters |= {"figure": figure, "thousands": lambda number: f"{number:,}"}
    return made.get_template(template).render(css=(here / "page.css").read_text(), **shown) + "\n"


def page(contents: Contents, loss: Picture | None) -> dict[str, Any]:
    """Return what the template shows."""
    record = contents.record
    return {
        "name": contents.directory.absolute().name,
        "commit": record.get("git_commit"),
        "lead": list(_lead(record)),
        "verdicts": record.get("verdicts", []),
        "results": list(_results(contents)),
        "best": _best(record),
        "learning": list(_learning(contents, loss)),
        "log": contents.log,
        "evaluations": _evaluations(contents.log),
        "samples": _samples(contents.log),
        "rows": contents.settings.rows,
        "explained": EXPLAINED,
        "parts": [rows_section(part, number, len(contents.parts)) for number, part in enumerate(contents.parts)],
        "data": list(data_section(record)),
        "machine": list(_machine(contents)),
        "recipe": contents.recipe,
        "versions": [
            ("llmkit", record.get("llmkit")),
            ("Python", record.get("python")),
            *record.get("packages", {}).items(),
        ],
        "command": " ".join(record.get("command", [])),
    }


def _lead(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what comes first: the facts of a run in a few words."""
    status = {"finished": "finished", "running": "not finished", "failed": "failed"}
    yield "state", status.get(record.get("status", ""), record.get("status", "unknown"))
    if problem := record.get("problem"):
        yield "problem", str(problem)
    if task := record.get("task"):
        yield "task", task
    if "finished" in record and (ended := when(record["finished"])):
        yield "ended", ended
    if "seconds" in record:
        yield "time", lasting(record["seconds"])
    if "steps" in record:
        yield "steps", f"{record['steps']:,}"
    if "parameters" in record:
        trained = record.get("trainable_parameters", record["parameters"])
        part = "" if trained == record["parameters"] else f", {trained:,} trained"
        yield "parameters", f"{record['parameters']:,}{part}"
    if "device" in record:
        count = record.get("processes", 1)
        yield "device", f"{record['device']}, {record.get('precision', '')}" + (f", {count} processes" * (count > 1))


def _results(contents: Contents) -> Iterator[dict[str, Any]]:
    """Yield each metric with the trivial answer's, and the interval of the difference."""
    metrics, trivial = contents.metrics, contents.trivial
    if "last_train_loss" in metrics:
        steps = int(metrics.get("last_train_loss_steps", 1))
        name = "training loss of the last step" if steps == 1 else f"training loss of the last {steps:,} steps"
        yield {"name": name, "value": figure(float(metrics["last_train_loss"])), "answer": "", "trivial": "", "by": ""}
    for key, value in evaluation_metrics(metrics).items():
        about = trivial.get(key, {})
        low, high = about.get("better_by", (None, None))
        by = "" if low is None else f"{low:+.4f} to {high:+.4f}"
        yield {
            "name": key,
            "value": figure(float(value)) if isinstance(value, int | float) else str(value),
            "answer": about.get("answer", ""),
            "trivial": figure(float(about["value"])) if about else "",
            "by": by,
        }


def _best(record: Mapping[str, Any]) -> str:
    best = record.get("best")
    if not best:
        return ""
    kept = "The finished model has its weights." if best.get("kept") else "The finished model has the last weights."
    return f"Best at step {best['step']:,}, by {best['metric']} {figure(best['value'])}. {kept}"


def _learning(contents: Contents, loss: Picture | None) -> Iterator[Picture]:
    """Yield the pictures over steps: loss, metrics, learning rate, gradient norm, speed."""
    if loss is not None:
        yield loss
    log, trivial = contents.log, contents.trivial
    several = [key for key, curve in log.curves.items() if key.startswith("eval_") and len(curve.steps) > 1]
    for number, key in enumerate([key for key in several if key != "eval_loss"][:CURVES]):
        about = trivial.get(key)
        level = None if about is None else (about["answer"], about["value"])
        descriptions = [described(key, log.curves[key])] + ([f"{level[0]}: {figure(level[1])}"] if level else [])
        lines = [Line("evaluation", log.curves[key], True)]
        yield pictures.lines(f"metric{number}", key, sentence(descriptions), lines, level)
    for number, key in enumerate(key for key in log.curves if key in TITLES or key.endswith("_per_second")):
        if not key.startswith("eval_"):
            title = TITLES.get(key, key.removesuffix("_per_second").capitalize() + " a second")
            shows = sentence([described(title, log.curves[key])])
            lines = [Line(title, log.curves[key])]
            yield pictures.lines(f"curve{number}", title, shows, lines, scaled=key == "grad_norm")


def _evaluations(log: Log) -> dict[str, Any]:
    """Return the table of all evaluations, of many those at even distances."""
    keys = list(dict.fromkeys(key for each in log.evaluations for key in each if key != "step"))
    chosen = log.evaluations
    if len(chosen) > 50:
        chosen = [chosen[round(i * (len(chosen) - 1) / 49)] for i in range(50)]
    rows = [[f"{each['step']:,}", *(figure(each[key]) if key in each else "" for key in keys)] for each in chosen]
    return {"keys": [key.removeprefix("eval_") for key in keys], "rows": rows, "of": len(log.evaluations)}


def _samples(log: Log) -> list[dict[str, Any]]:
    """Return the samples through training, of many those at even distances: step, and texts with their prompts."""
    chosen = log.samples
    if len(chosen) > SHOWN_SAMPLES:
        last = len(chosen) - 1
        chosen = [chosen[round(i * last / (SHOWN_SAMPLES - 1))] for i in range(SHOWN_SAMPLES)]
    return [
        {
            "step": f"{step:,}",
            "texts": [tuple(cut(str(each.get(key, ""))) for key in ("prompt", "text", "target")) for each in samples],
        }
        for step, samples in chosen
    ]


def _machine(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield speed, memory and what was switched on."""
    record, metrics = contents.record, contents.record.get("metrics", {})
    for key, name in (
        ("train_tokens_per_second", "tokens a second"),
        ("train_samples_per_second", "examples a second"),
        ("train_steps_per_second", "steps a second"),
    ):
        if key in metrics:
            yield f"training, {name}", f"{metrics[key]:,.4g}"
    if "train_runtime" in metrics:
        yield "training", lasting(metrics["train_runtime"])
    if metrics.get("saving_seconds"):
        yield "saving of checkpoints", lasting(metrics["saving_seconds"])
    if "seconds" in record:
        yield "whole run", lasting(record["seconds"])
    if "peak_memory_bytes" in metrics:
        yield "most memory", size(metrics["peak_memory_bytes"])
    if metrics.get("total_flos"):
        yield "floating point operations", f"{metrics['total_flos']:.3g}"
    machine = record.get("machine", {})
    yield from ((key, str(value)) for key, value in machine.items() if value)
    for key, value in record.get("speed", {}).items():
        if value not in (None, False):
            yield key.replace("_", " "), "on" if value is True else str(value)
