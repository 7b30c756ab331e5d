"""Run a sweep: each trial the ordinary command as a child, into a folder that says all that is needed to go on."""

import json
import math
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from llmkit import children, disk, process, seeds
from llmkit.errors import RunError, UserError, quantity, say
from llmkit.recipe.paths import at_home
from llmkit.recipe.schema import PRECISION
from llmkit.reports.tables import render
from llmkit.runs import compatibility
from llmkit.runs import directory as runs
from llmkit.sweeps import results, space
from llmkit.sweeps.plan import TPE, Plan
from llmkit.sweeps.results import Score
from llmkit.sweeps.space import Trial
from llmkit.terminal import columns, put

STOPPED = (process.STOPPED, 130)  # exit codes of a child that a signal ended
NO_METRIC = "the first run has no validation data, so trials cannot be compared"
MISTAKEN = 2  # trials in a row from the first that are refused as a user's mistake: then it is not the values'
TRIES = 100  # at a trial that was not there before


class Stopped(Exception):
    """A signal ended a run, with this exit code."""

    def __init__(self, code: int) -> None:
        self.code = code


def run(plan: Plan, output_dir: str | None) -> int:
    """Train every trial, or go on with a sweep of the same plan, and say which is the best; return the exit code.

    It is 1 where a trial failed, and that of a run which a signal ended.
    """
    directory = find_directory(plan, output_dir)
    with _alone(directory):
        sweep = Sweep(plan, directory)
        try:
            return sweep.finish(sweep.train())
        except Stopped as stop:
            say(f"the sweep is stopped; the same line goes on with it: `{directory}`")
            return stop.code


def question(plan: Plan) -> dict[str, Any]:
    """Return what makes a sweep what it is, for the same line to go on with it."""
    tables = tomllib.loads(plan.recipe.model_copy(update={"output_dir": None, "sweep": None}).to_toml())
    table = {"seeds": 1, **plan.table.model_dump(exclude_none=True)}
    asked: dict[str, Any] = json.loads(json.dumps({"recipe": tables, "sweep": table}, default=str))
    return asked


def find_directory(plan: Plan, output_dir: str | None) -> Path:
    """Find the folder of the sweep that `plan` is, else make one: `output_dir`, or `NAME-sweep`, `-2` and so on.

    Raises UserError for a folder that was named and holds something else.
    """
    recipe = plan.recipe
    first = directory = at_home(output_dir or f"{recipe.output_dir or runs.ROOT / recipe.name}-sweep")
    number = 1
    while disk.exists(directory) and (changes := _changes(directory, question(plan))) is not None:
        if output_dir is not None:
            raise UserError(
                f"the output directory `{output_dir}` already contains {'another sweep' if changes else 'other files'}",
                "name another with --output-dir, or leave it out",
                changes,
            )
        number += 1
        directory = first.with_name(f"{first.name}-{number}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(
            f"the output directory `{directory}` cannot be written: {problem.strerror}", "name another: --output-dir"
        ) from problem
    return directory


def _changes(directory: Path, asked: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Say in what a sweep differs from what is `asked` now; None if in nothing, () where it is no sweep."""
    before = runs.read_sweep(directory).get("asked")
    if before is None:
        is_empty = disk.is_dir(directory) and all(path.name.startswith(".") for path in directory.iterdir())
        return None if is_empty else ()  # nothing but what a sweep leaves that is killed at its start
    differ = [*compatibility.differences(before["sweep"], asked["sweep"], "sweep")]
    of_recipe = compatibility.differences(before["recipe"], asked["recipe"])
    differ += [each for each in of_recipe if each[0].startswith("data.") or not compatibility.is_free(each[0])]
    return tuple(f"{key}: {one} -> {other}" for key, one, other in differ) or None


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(directory / runs.LOCK_FILE, timeout=0):
            yield
    except Timeout:
        raise UserError(f"another process runs the sweep in `{directory}`", "wait for it, or stop it") from None


class Sweep:
    """The trials of a sweep in its folder. What is done is read from the runs' own records, and never kept twice."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan, self.directory = plan, directory
        self.metric: tuple[str, bool] | None = None
        self.refused = 0  # trials in a row that were refused as a mistake, before one was not
        self.trained = 0
        self.trials = list(plan.trials)
        if plan.table.sampler == TPE:
            kept = runs.read_sweep(directory).get("trials", [])
            self.trials = [Trial(each["name"], each["settings"]) for each in kept]
        self._keep(status="running")
        whole = plan.number * len(plan.seeds)
        say(f"sweep    {directory}: {quantity(plan.number, 'trial')}, {quantity(whole, 'run')}")
        if plan.number < (plan.table.trials or 0):
            say(f"note     no more than {plan.number} different trials can be made of these values")

    def _keep(self, **facts: Any) -> None:
        """Write sweep.json."""
        trials = [{"name": trial.name, "settings": dict(trial.settings)} for trial in self.trials]
        kept = {**runs.read_sweep(self.directory), "asked": question(self.plan), "trials": trials, **facts}
        runs.write_json(self.directory / runs.SWEEP_FILE, kept)

    def train(self) -> list[Score]:
        """Train all trials as far as they are promoted; return them, the best first."""
        behind: list[Score] = []  # those that were not promoted, the best first
        rungs = self.plan.rungs
        candidates: list[Trial] | None = None
        for place, (share, number) in enumerate(rungs):
            trials = (
                self._asked() if candidates is None and self.plan.table.sampler == TPE else candidates or self.trials
            )
            for count, trial in enumerate(trials, 1):
                for seed in self.plan.seeds:
                    if not self._run(trial, seed, share, f"{count} of {number}"):
                        break  # it has no mean any more
            scores = self.scores(candidates or self.trials, share)
            if place + 1 == len(rungs):
                return [*scores, *behind]
            on = rungs[place + 1][1]
            behind = [*scores[on:], *behind]
            candidates = [each.trial for each in scores[:on] if not math.isnan(each.mean)]
            say(f"promoted {quantity(len(candidates), 'trial')} of {number}, to {_share(rungs[place + 1][0])}:")
            for each in scores[:on]:
                say(f"         {each.trial.name}: {results.said(each, self.metric_name)}")
            if scores[on - 1].mean == scores[on].mean:
                equal = sum(each.mean == scores[on].mean for each in scores)
                say(
                    f"warning  {equal} trials have the same {self.metric_name}, and their order decided: "
                    "after so few steps it tells little; trainer.metric_for_best_model=loss tells more"
                )
        raise AssertionError("there is a last rung")

    @property
    def metric_name(self) -> str:
        """Return the name of the metric that counts."""
        assert self.metric is not None
        return self.metric[0]

    def scores(self, trials: Sequence[Trial], share: Fraction) -> list[Score]:
        """Return what trials have reached after this share of their steps, the best first."""
        if self.metric is None:
            self.metric = results.metric_of(self.plan, self.directory)
        name, less = self.metric or ("", False)
        scores = [results.score(self.plan, self.directory, each, share, name) for each in trials]
        if all(math.isnan(each.mean) for each in scores):
            raise RunError("every trial failed", "see what each says above; the same line tries them again")
        return results.ranked(scores, less)

    def _asked(self) -> Iterator[Trial]:
        """Yield the trials that there are, and then those that Optuna asks for."""
        from llmkit.sweeps import tpe

        yield from list(self.trials)
        repeated: list[tuple[dict[str, Any], float | None]] = []
        while len(self.trials) < self.plan.number and len(repeated) < TRIES:
            seen: dict[str, tuple[dict[str, Any], float | None]] = {}
            self.metric = self.metric or results.metric_of(self.plan, self.directory)
            if self.metric is not None:
                of_trials = {each.trial.name: each.mean for each in self.scores(self.trials, Fraction(1))}
                seen = {
                    trial.name: (
                        dict(trial.settings),
                        None if math.isnan(of_trials[trial.name]) else of_trials[trial.name],
                    )
                    for trial in self.trials
                }
            seen = seen or {trial.name: (dict(trial.settings), None) for trial in self.trials}  # all have failed
            less = self.metric is not None and self.metric[1]
            settings = tpe.ask(self.plan.axes, [*seen.values(), *repeated], less, self.plan.seeds[0])
            same = next((each for each in seen.values() if each[0] == settings), None)
            if same is not None:
                repeated.append(same)
                continue
            self.trials.append(Trial(space.name(settings, list(seen)), settings))
            self._keep()
            yield self.trials[-1]

    def _run(self, trial: Trial, seed: int, share: Fraction, place: str) -> bool:
        """Train a run to a share of its steps, unless it has come so far; return whether it has.

        Raises Stopped where a signal ends it.
        """
        directory = self.directory / trial.name / f"seed-{seed}"
        self._wait(directory)
        if results.record_at(directory, share):
            self.trained += 1
            return True
        recipe, several = self.plan.recipe, len(self.plan.seeds) > 1
        settings = [*trial.overrides(recipe.task), *seeds.quiet(recipe)]
        if several:
            settings += [f"trainer.seed={seed}", *seeds.same_split(recipe)]
        resume = ["--resume"] if disk.exists(directory) else []
        if not resume and not {f"trainer.{key}" for key in PRECISION} & trial.settings.keys():
            settings += seeds.same_precision(recipe, directory.with_name(f"seed-{self.plan.seeds[0]}"))
        say("", f"trial    {place}: {trial.name}" + (f", seed {seed}" if several else "") + _until(share))
        directory.parent.mkdir(exist_ok=True)
        stop_at = {} if share == 1 else {process.STOP_AT: str(share)}
        words = [*self.plan.words, *settings, "--output-dir", str(directory), *resume]
        code = children.run(words, stop_at)
        if code in STOPPED:
            raise Stopped(code)
        if results.record_at(directory, share):
            self.trained += 1
            if self.metric is None and (metric := results.metric_of(self.plan, self.directory)) is None:
                raise RunError(NO_METRIC, "hold rows out: data.validation_fraction=0.1")
            self.metric = self.metric or metric
            return True
        self.refused = self.refused + 1 if code == 2 and self.trained == 0 else 0
        say(f"warning  {trial.name}" + (f", seed {seed}," if several else "") + f" failed with exit code {code}")
        if self.refused == MISTAKEN or (self.refused and self.plan.number == 1):
            raise UserError(
                f"the first {quantity(self.refused, 'run')} of the sweep cannot start", "correct what is said above"
            )
        return False

    def _wait(self, directory: Path) -> None:
        """Wait for a process that still trains there: the child of a sweep that was killed is about to stop."""
        told = False
        while (holder := runs.holder(directory)) and holder.get("pid"):
            if not told:
                say(f"waiting for process {holder['pid']}, which still trains in `{directory}`")
            told = True
            time.sleep(0.2)

    def finish(self, scores: Sequence[Score]) -> int:
        """Say what came of it; return the exit code."""
        best, metric = scores[0], self.metric_name
        recipe = results.write_best(self.plan, self.directory, best, metric, len(scores))
        picture = results.write_picture(self.plan, self.directory, scores, metric)
        kept = [results.summary(each) for each in scores]
        self._keep(metric=metric, best=best.trial.name, results=kept)
        table, names = results.rows(scores, metric)
        put("", render(table, names, "table", columns(sys.stderr)).rstrip())
        say("", f"best     {best.trial.name}: {results.said(best, metric)}; chosen on these validation rows")
        test = self._test(best)
        self._keep(status="finished", test=test)
        if test is not None:
            of_metric = tuple(each[metric] for each in test["metrics"] if metric in each)
            whole = Score(best.trial, of_metric, (), "finished")
            say(f"test     {results.said(whole, metric)} on the split `{test['split']}`, by which nothing was chosen")
        say(f"written  {recipe} and {picture}", f"try it: llmkit compare {self.directory} --format latex")
        failed = sum(each.status == "failed" for each in scores)
        if failed:
            say(f"warning  {quantity(failed, 'trial')} failed; the same line tries again")
        return 1 if failed else 0

    def _test(self, best: Score) -> dict[str, Any] | None:
        """Evaluate the best trial, and no other, on the test split of the data; None where there is none."""
        try:
            split = results.test_split(self.plan.recipe)
        except UserError as problem:  # of the Hub: the trials are trained all the same
            say(f"note     whether the data has a test split is not known: {problem.message}")
            return None
        kept: dict[str, Any] | None = runs.read_sweep(self.directory).get("test")
        if split is None or (kept and kept["name"] == best.trial.name):
            return kept
        found = []
        for seed in self.plan.seeds:
            run = self.directory / best.trial.name / f"seed-{seed}"
            words = ["evaluate", str(run), f"data.validation_split={split}", "data.max_eval_samples="]
            say("", f"test     {run} on the split `{split}`")
            with tempfile.TemporaryFile() as answer:
                code = children.run(words, stdout=answer)
                answer.seek(0)
                text = answer.read()
            if code in STOPPED:
                raise Stopped(code)
            if code:
                say(f"note     the best is not evaluated on the split `{split}`, as that ends with exit code {code}")
                return None
            found.append(json.loads(text))
        return {"name": best.trial.name, "split": split, "metrics": found}


def _share(share: Fraction) -> str:
    return "all of their steps" if share == 1 else f"{share} of their steps"


def _until(share: Fraction) -> str:
    return "" if share == 1 else f", to {share} of its steps"
