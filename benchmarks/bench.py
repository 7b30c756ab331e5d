"""llmkit beside what people use today, both in one run, by turns.

    python benchmarks/bench.py [WORK ...] [--repeats 3] [--quick] [--output runs/bench]

Without a WORK all of them, which takes hours; `start-up` stands for every `start-up/...`. In each round the sides run
by turns of a second, with one seed, in the next round with another. Ratios are the medians of those of the rounds.
A work whose sides have not done the same (parameters, steps, examples, and in the mean the same metric) gets no row,
and the exit code is 1. `--quick` is to try whether all runs, in a few minutes: its figures mean nothing.

Each work leaves a JSON file with every figure in the output folder; `table.md` and `plot.svg` are made of those that
are there.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import measure
from measure import Failed
from picture import picture
from table import table
from works import WORKS, Outcome, Work, missing

Rounds = Mapping[str, Sequence[Outcome]]  # by side


def perform(name: str, work: Work, repeats: int) -> dict[str, list[Outcome]]:
    """Every side, as often as asked for; each run in a folder of its own that is gone afterwards."""
    found: dict[str, list[Outcome]] = {side: [] for side in work.sides}
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        if work.prepare is not None:
            work.prepare(Path(place))
        for number in range(repeats * work.times):
            order = [*work.sides][:: -1 if number % 2 else 1]
            for side, outcome in together(work, order, Path(place), number + 1).items():
                found[side].append(outcome)
                said = {key: round(value, 4) for key, value in outcome.metrics.items() if key in work.spread}
                tell(f"{name} {number + 1}: {side}: {outcome.figure:.4g} {work.unit} {said or ''}")
    return found


def together(work: Work, order: Sequence[str], place: Path, seed: int) -> dict[str, Outcome]:
    """One round; where a side fails, or somebody breaks it off, no command goes on."""
    pool = ThreadPoolExecutor(len(order) if work.by_turns else 1)
    jobs = {}
    try:
        for number, side in enumerate(order):
            folder = place / f"side-{number}"
            folder.mkdir()
            jobs[side] = pool.submit(work.sides[side], folder, seed)
        ended, _ = wait(jobs.values(), return_when=FIRST_EXCEPTION)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(job.done() for job in jobs.values()):
            measure.end_all()
            time.sleep(0.1)
    for job in ended:
        job.result()  # raises what it raised
    for folder in place.glob("side-*"):
        shutil.rmtree(folder)
    return {side: job.result() for side, job in jobs.items()}


def compare(work: Work, found: Rounds) -> None:
    """Raise Failed where the sides have not done the same work."""
    (first, ours), *others = found.items()
    for side, theirs in others:
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
            if one.counts != other.counts:
                raise Failed(f"round {number}: {first} did {dict(one.counts)}, {side} {dict(other.counts)}")
        for metric, spread in work.spread.items():
            here, there = (mean(outcome.metrics[metric] for outcome in each) for each in (ours, theirs))
            if not abs(here - there) <= spread:
                raise Failed(f"{metric} is {here:.5f} by {first} and {there:.5f} by {side}: {spread:g} apart at most")
    if work.alike is not None:
        left, right, share = work.alike
        for one, other in zip(found[left], found[right], strict=True):
            same = mean(a == b for a, b in zip(one.texts, other.texts, strict=True))
            if same < share:
                raise Failed(f"{left} and {right} wrote the same in {same:.0%} of the texts: {share:.0%} at least")


def record(name: str, work: Work, found: Rounds, quick: bool, before: float) -> dict[str, Any]:
    """All that the table and the plot are made of, and every single figure; `before` is the peak before the rounds."""
    after, threads = measure.peak()
    peak = max(before, after)
    ours = next(iter(found.values()))
    sides = {}
    for side, outcomes in found.items():
        least = work.wanted.get(side, (None, None))
        share = None
        if work.operations is not None:
            shares = [work.operations(one.figure, of.length) for one, of in zip(outcomes, ours, strict=True)]
            share = sorted(shares)[len(shares) // 2] / peak
        used = [(o.processor, other.processor) for o, other in zip(ours, outcomes, strict=True)]
        sides[side] = {
            "processor_ratio": None if None in chain(*used) else measure.median_ratio(*zip(*used, strict=True)),
            "ratio": measure.median_ratio([o.figure for o in ours], [o.figure for o in outcomes]),
            "memory_ratio": measure.median_ratio([o.memory for o in ours], [o.memory for o in outcomes]),
            "wanted": least[0],
            "memory_wanted": least[1],
            "share_of_peak": share or None,
            "rounds": [asdict(outcome) for outcome in outcomes],
        }
    about = {"machine": measure.machine(), "threads": threads, "peak_flops": peak, "commit": commit()}
    when = {"date": time.strftime("%Y-%m-%d %H:%M"), "quick": quick}
    shown = {"work": name, "unit": work.unit, "less": work.less, "metrics": [*work.spread]}
    return {**shown, **when, **about, "sides": sides}


def commit() -> str | None:
    """The commit of the code that was measured, with a `+` where files differ from it."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() or None


def chosen(words: Sequence[str]) -> list[str]:
    """The works that are meant; an unknown one ends the program."""
    found = [name for word in words for name in WORKS if name == word or name.startswith(f"{word}/")]
    unknown = [word for word in words if not any(name == word or name.startswith(f"{word}/") for name in WORKS)]
    if unknown:
        sys.exit(f"error: no work is called {unknown[0]}\nhint: there are {', '.join(WORKS)}")
    return found or [*WORKS]


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each work")
    parser.add_argument("--quick", action="store_true", help="sizes at which nothing is measured, one round")
    parser.add_argument("--output", type=Path, help="a folder  [default: runs/bench, or runs/bench-quick]")
    options = parser.parse_args()
    for each in (signal.SIGINT, signal.SIGTERM):  # in the background too, where a shell has the first ignored
        signal.signal(each, signal.default_int_handler)
    names = chosen(options.works)
    output: Path = options.output or Path("runs/bench-quick" if options.quick else "runs/bench")
    output.mkdir(parents=True, exist_ok=True)
    tell(f"{measure.machine()}; load {os.getloadavg()[0]:.1f}")
    failures = []
    for name in names:
        lacking = missing(name)
        if lacking:
            tell(f"{name}: left out, for {lacking} is not installed")
            continue
        file = output / f"{name.replace('/', '-')}.json"
        file.unlink(missing_ok=True)  # of an earlier time: what is wrong now was not then
        work = WORKS[name](options.quick)
        try:
            peak, _ = measure.peak()
            found = perform(name, work, 1 if options.quick else options.repeats)
            compare(work, found)
        except Failed as problem:
            failures.append(f"{name}: {problem}")
            tell(f"error: {failures[-1]}")
            continue
        file.write_text(json.dumps(record(name, work, found, options.quick, peak), indent=1) + "\n")
    places = {name.replace("/", "-"): number for number, name in enumerate(WORKS)}
    files = sorted(output.glob("*.json"), key=lambda file: places.get(file.stem, len(places)))
    records = [json.loads(file.read_text()) for file in files]
    (output / "table.md").write_text(table(records))
    (output / "plot.svg").write_text(picture(records))
    print(table(records), end="")
    for failure in failures:
        tell(f"error: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
