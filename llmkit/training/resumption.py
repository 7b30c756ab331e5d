"""Choose the checkpoint that `--resume` goes on from, and refuse what cannot go on from it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import UserError, say
from llmkit.recipe.schema import ADAMW
from llmkit.runs import checkpoint, compatibility
from llmkit.runs import directory as runs
from llmkit.runs.longer import LENGTH
from llmkit.training import strategy
from llmkit.training.schedule import DECAYING, Schedule
from llmkit.training.trainer import Trainer

# What decides which state an optimizer has, and for which groups of weights.
STATE = ("trainer.optim", *(f"optimizer.{key}" for key in ("name", "head_learning_rate", "layer_decay", "ema")))


@dataclass(frozen=True)
class Resumption:
    """What a run goes on from: its checkpoint (None: anew), the keys that differ, and what to say of the schedule."""

    start: checkpoint.Checkpoint | None = None
    changed: tuple[str, ...] = ()
    schedule_note: str = ""

    @property
    def is_longer(self) -> bool:
        """Tell whether another length of training was asked for."""
        return any(key in LENGTH for key in self.changed)

    @property
    def new_schedule(self) -> bool:
        """Tell whether the learning rate follows the recipe anew, and not the state of the checkpoint."""
        return any(key.startswith(("trainer.", "optimizer.")) and key not in LENGTH for key in self.changed)


def find_resumption(
    trainer: Trainer, directory: Path, record: Mapping[str, Any], schedule: Schedule, steps: int, allowed: Sequence[str]
) -> Resumption:
    """Find the checkpoint in `directory` that `trainer` goes on from, `steps` long in all.

    `record` is the run's own, `allowed` are keys in which the recipe may differ from it. Raises UserError where the
    recipe is another one, asks for less than has been made, or where nothing whole is left to go on from.
    """
    last = trainer.of_first(lambda: find_checkpoint(directory, record.get("id", "")))
    finished = runs.is_finished(directory)
    if last is None:
        if finished:
            raise UserError(
                f"`{directory}` has no checkpoint to resume from",
                f"start a new run from its weights: model.name={directory}",
            )
        return Resumption()
    start = last
    if finished or "longer" in record:
        allowed = [*allowed, *LENGTH]
        if schedule.kind == DECAYING:
            start = trainer.of_first(lambda: before_decay(last, schedule, steps)) or last
    strategy.refuse_other_state(trainer, start)
    begun_with = {"optimizer": ADAMW, **start.manifest["fingerprints"]}
    changes = compatibility.changes(begun_with, trainer.fingerprints)
    compatibility.refuse(changes, allowed, directory)
    begun = start.manifest["epoch"] + (start.manifest["samples"] > 0)
    args = trainer.args
    if start.step > steps if args.max_steps > 0 else begun > math.ceil(args.num_train_epochs):
        raise UserError(
            f"`{start.path}` is already past the end of the training asked for",
            "train for longer, or move the later checkpoints away",
        )
    changed = tuple(key for key, *_ in changes)
    if kept := [key for key in changed if key in STATE]:
        said = "the optimizer cannot be changed: the saved state belongs to another one"
        raise UserError(said, f"keep {', '.join(kept)}")
    if any(key.startswith("trainer.") and key not in LENGTH for key in changed) and strategy.schedules_itself(trainer):
        raise UserError(
            "DeepSpeed's configuration has an optimizer or a scheduler of its own, which keeps its learning rate",
            "leave `optimizer` and `scheduler` out of it, and set both by [trainer]",
        )
    notes = []
    if finished and (planned := planned_steps(start.path)) != steps:
        notes.append(schedule.longer(planned, steps, start.step))
    if start.step < last.step:
        notes.append(f"the steps from {start.path.name} to {last.path.name} were the decay, and are trained again")
    return Resumption(start, changed, "; ".join(notes))


def find_checkpoint(directory: Path, run: str) -> checkpoint.Checkpoint | None:
    """Find the newest whole checkpoint; raises UserError where there are some and none is whole."""
    newest, damaged = checkpoint.newest(directory, run)
    for problem in damaged:
        say(f"warning  checkpoint skipped: {problem}")
    if newest is None and damaged:  # starting anew would hide them
        raise UserError(
            f"no checkpoint in `{directory}` is intact",
            "start a new run, from their weights if you like: model.name=.../checkpoint-N",
            tuple(damaged),
        )
    return newest


def before_decay(last: checkpoint.Checkpoint, schedule: Schedule, steps: int) -> checkpoint.Checkpoint | None:
    """Find the newest checkpoint whose learning rate had not begun to fall, or falls as in a run of `steps`."""

    def usable(folder: Path) -> bool:
        try:
            step = int(folder.name.removeprefix(checkpoint.PREFIX))
            return step <= last.step and schedule.is_same(planned_steps(folder), steps, step, warm=True)
        except (OSError, ValueError, KeyError):
            return False

    return checkpoint.newest(last.path.parent, last.manifest["run"], usable)[0]


def planned_steps(folder: Path) -> int:
    """Return the length of the run that a checkpoint is of, as it was planned then."""
    return int(json.loads((folder / checkpoint.TRAINER_STATE).read_text())["max_steps"])
