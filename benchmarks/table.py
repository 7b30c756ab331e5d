"""The figures of all works as one table in Markdown."""

from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

HEAD = ["work", "side", "figure", "llmkit / side", "by processor time", "peak memory", "llmkit / side"]
HEAD += ["to first step", "of peak", "metric"]


def table(records: Sequence[dict[str, Any]]) -> str:
    """A row for each side of each work; medians, and what was wanted of a ratio in brackets."""
    lines = [HEAD, ["---"] * len(HEAD)]
    for record in records:
        for number, (side, found) in enumerate(record["sides"].items()):
            rounds = found["rounds"]
            first = [each["first"] for each in rounds if each["first"] is not None]
            memory = median(each["memory"] for each in rounds)
            lines.append(
                [
                    "" if number else record["work"],
                    side,
                    f"{shown(median(each['figure'] for each in rounds))} {record['unit']}",
                    ratio(found["ratio"], found["wanted"], record["less"]) if number else "",
                    f"{found['processor_ratio']:.2f}" if number and found["processor_ratio"] else "",
                    f"{memory / 1e6:,.0f} MB",
                    ratio(found["memory_ratio"], found["memory_wanted"], True) if number else "",
                    f"{median(first):.1f} s" if first else "",
                    f"{found['share_of_peak']:.0%}" if found["share_of_peak"] else "",
                    ", ".join(metric(name, [each["metrics"][name] for each in rounds]) for name in record["metrics"]),
                ]
            )
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{rows}\n\n{measured(records)}\n"


def shown(figure: float) -> str:
    """Three digits or more: 12,345 or 0.0123."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def ratio(found: float, wanted: float | None, less: bool) -> str:
    if wanted is None:
        return f"{found:.2f}"
    met = found <= wanted if less else found >= wanted
    return f"{found:.2f} ({'at most' if less else 'at least'} {wanted:g}{'' if met else ', **missed**'})"


def metric(name: str, figures: Sequence[float]) -> str:
    """The mean over the seeds, with its standard deviation."""
    deviation = f" ± {stdev(figures):.4f}" if len(figures) > 1 else ""
    return f"{name} {mean(figures):.4f}{deviation}"


def measured(records: Sequence[dict[str, Any]]) -> str:
    """Where and when; works that were measured together share a line."""
    said: dict[str, list[str]] = {}
    for record in records:
        rounds = len(next(iter(record["sides"].values()))["rounds"])
        where = f"{record['date'][:10]}, {record['machine']}, {record['threads']} threads, commit {record['commit']}"
        quick = ", **--quick: these figures mean nothing**" if record["quick"] else ""
        peak = f"{record['peak_flops'] / 1e9:.0f}"
        said.setdefault(f"{where}{quick}", []).append(f"{record['work']} ({rounds} rounds, peak {peak} GFLOP/s)")
    return "\n\n".join(f"Measured on {where}: {', '.join(works)}." for where, works in said.items())
