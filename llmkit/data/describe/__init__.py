"""Describe a local file or folder without a recipe: what is in it, as a task reads it, and the command to train on it.

It needs neither torch nor a network, and reads no more of a large file than a sample.
"""

import glob
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from llmkit import disk
from llmkit.data import files
from llmkit.data.describe.rows import describe_rows
from llmkit.data.describe.texts import describe_texts
from llmkit.data.display import Report
from llmkit.data.suggest import PRETRAINING, Suggestion, suggest
from llmkit.errors import UserError, scrub
from llmkit.recipe import load
from llmkit.recipe.addresses import fetched
from llmkit.recipe.paths import at_home, local_copy
from llmkit.recipe.schema import PRETRAINING as TEXT_TASKS
from llmkit.recipe.shortcuts import LARGER, SMALL
from llmkit.recipe.tasks import TASKS
from llmkit.remote import scheme_of
from llmkit.terminal import laid_out

LEFT = 11  # columns of what stands before a line
# Keys that a hint asks for; a second text is never needed.
_CHOSEN = re.compile(r"data\.(\w+_column)=([\w.-]+)")  # keys that a hint sets
_ASKED = re.compile(r"data\.((?!text_pair)\w+_column|source_lang|target_lang)\b")


def describe(path: str, task: str | None, overrides: Sequence[str]) -> list[str]:
    """Describe what a path or an address holds, as `task` reads it, or else the task that its columns suggest.

    `overrides` are settings of [data], which the command to train with repeats. Raises UserError where there is nothing
    to describe.
    """
    local = local_path(path)
    found = Suggestion(task) if task is not None else suggest(local)
    given = {setting.partition("=")[0] for setting in overrides}
    settings = [f"data.path={path}", *overrides]
    settings += [setting for setting in found.settings if setting.partition("=")[0] not in given]
    recipe = fetched(load(SMALL, settings) if found.task == PRETRAINING else load(None, settings, task=found.task))
    path, settings = scrub(path), [scrub(setting) for setting in settings]
    assert recipe.data is not None
    lines = list[str]()
    report = Report(LEFT, lines.append, sys.stdout, {recipe.data.path: path})
    if recipe.task in TEXT_TASKS:
        describe_texts(report, recipe, found, path, suggested=task is None)
        name = found.task if found.task not in (PRETRAINING, "causal-lm", "masked-lm") else SMALL
        lines += _command(["pretrain", name], settings, None)
        if name == SMALL:
            lines.append(laid_out(f"or a larger model, with {LARGER} in place of {SMALL}", sys.stdout))
        return lines
    fault = describe_rows(report, recipe, found, path, suggested=task is None)
    if fault is not None:
        report.add("refused", fault.message)
        for detail in fault.details:
            report.add("", detail)
        if fault.hint:
            report.add("hint", fault.hint)
    return lines + _command(["finetune", "--task", found.task], settings, fault)


def local_path(path: str) -> str:
    """Return a path, or that of the local copy of an address; raise UserError where there is nothing."""
    if scheme_of(path):
        return local_copy(path)
    local = at_home(path)
    if local.suffix == ".toml" and disk.is_file(local):
        raise UserError(f"`{path}` is a recipe", f"`llmkit finetune {shlex.quote(path)} --dry-run` shows its data")
    if disk.exists(local) or (glob.has_magic(path) and glob.glob(str(local))):  # noqa: PTH207
        return path
    near = files.nearest(local.name, _names_beside(local))
    if path.count("/") == 1 and not disk.exists(local.parent):
        near = "for a data set on the Hub, run a recipe with `--dry-run`: it shows the first rows"
    raise UserError(f"there is no file or folder `{path}`", near.strip())


def _names_beside(path: Path) -> list[str]:
    try:
        return [file.name for file in path.parent.iterdir()]
    except OSError:
        return []


def _command(words: list[str], settings: list[str], fault: UserError | None) -> list[str]:
    """Write the command to train with, and the keys that the hint of `fault` asks for, COLUMN where it has no value."""
    hint = fault.hint if fault is not None else ""
    asked = list(dict.fromkeys(_ASKED.findall(hint)))
    if words[-1] in TASKS:  # a hint may name another command with keys of its own
        asked = [key for key in asked if key in TASKS[words[-1]].data.model_fields]
    chosen = dict(_CHOSEN.findall(hint))
    set_already = {setting.partition("=")[0] for setting in settings}
    unset = [f"data.{key}={chosen.get(key, 'COLUMN')}" for key in asked if f"data.{key}" not in set_already]
    if any(each.endswith("=COLUMN") for each in unset):
        then = ", replacing COLUMN with the name of a column"
    else:
        then = ", once that is fixed" if fault and not unset else ""
    lines = f"train with{then}", f"  {shlex.join(['llmkit', *words, *settings, *unset])}"
    return [laid_out(line, sys.stdout) for line in lines]
