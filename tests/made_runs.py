"""Run directories written by hand, with what a training leaves there: for tests of what reads them."""

import json
import math
from pathlib import Path

from llmkit.runs import predictions

RECIPE = """\
# resolved from "mine.toml"
task = "{task}"  # recipe line 1

[model]
name = "base"  # command line
init = "pretrained"  # default

[data]
path = "rows.csv"  # recipe line 5

[trainer]
learning_rate = 5e-05  # recipe line 9
logging_steps = 10  # default
{report}"""
RECORD = {
    "status": "finished",
    "llmkit": "0.1.0",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "git_commit": "1d08f9a2b3c4d5e6f",
    "command": ["llmkit", "finetune", "mine.toml"],
    "machine": {"system": "Linux", "processor": "A processor", "cores": 2},
    "started": "2026-11-29T10:00:00.000+00:00",
    "finished": "2026-11-29T10:02:05.000+00:00",
    "seconds": 125.4,
    "processes": 1,
    "device": "cpu",
    "precision": "fp32",
    "parameters": 22_714_000,
    "trainable_parameters": 22_714_000,
    "speed": {"fused_loss": False, "fast_dropout": True, "attn_implementation": "sdpa", "threads": 2},
    "steps": 200,
}
SPEEDS = {"train_runtime": 110.2, "train_samples_per_second": 58.1, "train_steps_per_second": 1.815}
SPEEDS |= {"total_flos": 2.1e13, "peak_memory_bytes": 1_234_567_890, "saving_seconds": 1.25}

FILE = {"bytes": 7, "xxh3_128": "0" * 32}  # as a record and a manifest describe one
# What a manifest has beside its run and step.
MANIFEST = {
    "epoch": 0,
    "samples": 0,
    "samples_seen": 0,
    "batch": 1,
    "processes": 1,
    "metrics_bytes": 0,
    "fingerprints": {},
}


def write(
    directory: Path,
    task: str,
    metrics: dict,
    rows: list[dict] | None = None,
    report: str = "",
    steps: int = 200,
    every: int = 10,
    evaluated: int = 50,
    **record: object,
) -> Path:
    """Write a finished run: `rows` are those of `predictions.jsonl.gz`, `report` is the recipe's table."""
    directory.mkdir(parents=True)
    (directory / "recipe.toml").write_text(RECIPE.format(task=task, report=report))
    if rows is not None:
        predictions.write(directory, map(predictions.as_line, rows))
    said = {"metrics": {**SPEEDS, **metrics, "last_train_loss": 0.2117, "last_train_loss_steps": 20}, **record}
    (directory / "run.json").write_text(json.dumps({**RECORD, "task": task, "name": directory.name, **said}))
    with (directory / "metrics.jsonl").open("w") as log:
        for step in range(every, steps + 1, every):
            entry = {"step": step, "time": 1e9 + step, "loss": 0.2 + math.exp(-step / (steps / 4))}
            entry |= {"grad_norm": 1 + math.sin(step), "learning_rate": 5e-5 * (1 - step / steps)}
            log.write(json.dumps({**entry, "tokens_per_second": 900.0 + step % 7, "epoch": step / 100}) + "\n")
            if step % evaluated == 0:
                share = step / steps
                now = {key: value * (2 - share) if "loss" in key else value * share for key, value in metrics.items()}
                log.write(json.dumps({"step": step, "time": 1e9 + step, **now, "eval_runtime": 0.5}) + "\n")
    return directory


def part(counts: dict[str, int], rows: int) -> dict:
    """What `run.json` says of one part of the rows."""
    lengths = {"edges": list(range(4, 64, 2)), "counts": [rows // 29] * 29}
    quantiles = {"min": 4, "5%": 6, "50%": 30, "95%": 58, "max": 61}
    return {
        "rows": rows,
        "examples": rows,
        "tokens": 30 * rows,
        "lengths": quantiles,
        "length_histogram": lengths,
        "truncated_rows": 3,
        "truncated_tokens": 80,
        "empty_rows": 0,
        "duplicate_rows": 2,
        "balance": counts,
    }


def classifier(directory: Path, **options: object) -> Path:
    """A classifier of three classes: 60 rows of which every fourth is wrong, the surest mistakes first."""
    names, rows, worst = ("bad", "fair", "good & <great>"), [], []
    for i in range(60):
        wrong = i % 4 == 0
        truth, found = names[i % 3], names[(i + wrong) % 3]
        row = {"row": i, "key": f"{i:016x}", "truth": truth, "prediction": found, "score": round(0.4 + i / 100, 2)}
        rows.append({**row, "right": not wrong, "loss": round(0.1 + i / 50, 4)})
        worst += [rows[-1]] if wrong else []
    for number, row in enumerate(sorted(worst, key=lambda row: -row["score"]), 1):
        row |= {"worst": number, "columns": {"text": f"SECRET <b>text</b> & words of row {row['row']}\x07"}}
    metrics = {"eval_loss": 0.4321, "eval_accuracy": 0.75, "eval_f1": 0.7512}
    answer = 'always "bad"'
    trivial = {
        "eval_loss": {"answer": "label frequencies as of a long name", "value": 1.0986},
        "eval_accuracy": {"answer": answer, "value": 0.3333, "better_by": [0.31, 0.52]},
    }
    about = {
        "validation": {"prefix": "eval", "task": "text-classification", "rows": 60, "classes": names, "unit": "rows"}
    }
    options.setdefault("rows", rows)
    return write(
        directory,
        "text-classification",
        metrics,
        predictions=about,
        trivial={"metrics": trivial, "better": {"eval": True}},
        data={
            "fingerprint": "f",
            "train": part({"bad": 900, "fair": 400, "good & <great>": 300}, 1600),
            "validation": part({"bad": 20, "fair": 20, "good & <great>": 20}, 60),
        },
        best={"step": 150, "metric": "eval_accuracy", "value": 0.76, "kept": True},
        verdicts=[{"warning": True, "says": "the training loss did not fall"}],
        **options,
    )


def language_model(directory: Path, **options: object) -> Path:
    """A GPT: no rows, and samples through training."""
    metrics = {"eval_loss": 1.2345, "eval_perplexity": 3.4367, "eval_bits_per_byte": 0.789}
    text = {"documents": 4000, "bytes": 900_000, "tokens": 250_000, "blocks": 1953, "tail": 17}
    text["length_histogram"] = {"edges": [1, 2, 4, 8, 16, 32, 64, 128], "counts": [1, 5, 60, 400, 2000, 1500, 34]}
    made = write(
        directory,
        "causal-lm",
        metrics,
        trivial={"metrics": {"eval_loss": {"answer": "unigram model", "value": 5.1}}, "better": {"eval": True}},
        data={"fingerprint": "f", "train": text, "validation": {**text, "documents": 80}},
        **options,
    )
    with (made / "metrics.jsonl").open("a") as log:
        for step in (50, 100, 150, 200):
            samples = [{"prompt": "Once upon a time", "text": f"there was a cat <{step}>"}]
            log.write(json.dumps({"step": step, "samples": samples}) + "\n")
    return made
