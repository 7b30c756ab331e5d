"""Answer a mistaken command with the one that was meant: data in the recipe's place, options that do not exist."""

import glob
import os.path
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from llmkit import disk
from llmkit.errors import UserError, scrub
from llmkit.recipe import schema, upstream
from llmkit.recipe.keys import key_type
from llmkit.recipe.paths import SUFFIXES, at_home
from llmkit.recipe.shortcuts import LARGER, SMALL
from llmkit.recipe.synonyms import advised, assignment, generation_replacement, is_secret, replacement
from llmkit.recipe.toml import split_key
from llmkit.recipe.types import nearest

_WHICH = "name one, or --task NAME such as --task sst2"

# ---- data in the recipe's place --------------------------------------------------------------------------------------


def is_data(argument: str) -> bool:
    """Tell whether an argument is a data file, a folder or a glob that matches, and not a recipe."""
    path = at_home(argument)
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a name too long
        return argument.lower().endswith(SUFFIXES)
    return os.path.isdir(path) or (glob.has_magic(argument) and bool(glob.glob(str(path))))  # noqa: PTH112, PTH207


def refuse_data(
    verb: str, recipe: str | None, overrides: Sequence[str], task: str | None = None, model: str | None = None
) -> None:
    """Raise UserError, with the command to type, where data stands in the recipe's place or in that of a task.

    Args:
        verb: The command.
        recipe: Its recipe, if one was given.
        overrides: The arguments behind the recipe: further files, or settings, which are kept.
        task: The command line's --task.
        model: Of `evaluate`: the model.
    """
    settings = [scrub(argument) for argument in overrides if "=" in argument]
    wrong = [argument for argument in (task, recipe) if argument is not None and is_data(argument)]
    if not wrong:
        return
    named = wrong[0]
    path = at_home(named)
    if disk.is_file(path / "recipe.toml"):
        recipe_of_run = str(path / "recipe.toml")
        raise UserError(
            f"`{named}` is a run directory, not a recipe",
            shlex.join(["llmkit", verb, recipe_of_run, *map(scrub, overrides)]),
        )
    if disk.is_file(path / "config.json"):
        raise UserError(
            f"`{named}` is a model, not a recipe",
            f"name a recipe, and set the model by a key: llmkit {verb} RECIPE {assignment('model.name', named)}",
        )
    others = [argument for argument in overrides if "=" not in argument and is_data(argument)]
    files = [*wrong, *others]
    kind = "folder" if os.path.isdir(path) else "data file"  # noqa: PTH112
    raise UserError(
        f"`{named}` is a {kind}, not a " + ("task" if named == task else "recipe"),
        *_advice(verb, files, settings, task if task not in wrong else None, model),
    )


def ask_for_recipe(verb: str, settings: list[str]) -> NoReturn:
    """Raise UserError for a command without a recipe, with the command to type where the settings name local data."""
    paths = [setting.partition("=")[2] for setting in settings if setting.startswith("data.path=")]
    commands: tuple[str, ...] = ()
    hint = f"name one, such as {SMALL}" if verb == "pretrain" else _WHICH
    if paths and is_data(paths[-1]):
        hint, commands = _advice(verb, paths[-1:], list(map(scrub, settings)), None, None)
    raise UserError("no recipe is given", hint, commands)


def _advice(
    verb: str, files: Sequence[str], settings: list[str], task: str | None, model: str | None
) -> tuple[str, tuple[str, ...]]:
    """Return the hint, and the commands that are shown above it."""
    if not any(setting.startswith("data.path=") for setting in settings):
        settings = [*_data_settings(files), *settings]
    look = shlex.join(["llmkit", "data", files[0]])
    if model is not None:
        words = [model, *(["--task", task] if task else []), *settings]
        return f"`{look}` shows what it holds", (f"evaluate on it: {shlex.join(['llmkit', verb, *words])}",)
    hint = ""
    if verb == "finetune":
        if task is None:
            from llmkit.data.suggest import PRETRAINING, suggest

            found = suggest(files[0])
            task = found.task
            settings += found.settings
            if task == PRETRAINING:
                verb = "pretrain"
                hint = f"it holds {found.because}, which is for pretraining; to fine-tune on rows, add --task TASK"
            elif found.because:
                hint = f"{found.because}: that looks like {task}; for another task, use --task"
            else:
                hint = "for another task, use --task, such as token-classification or seq2seq"
        if verb == "finetune":
            train = shlex.join(["llmkit", "finetune", "--task", task, *settings])
            return hint, (f"train on it:       {train}", f"see what it holds: {look}")
    train = shlex.join(["llmkit", "pretrain", SMALL, *settings])
    larger = f"a larger model: `{LARGER}` in place of `{SMALL}`"
    return "; ".join(filter(None, (hint, larger))), (f"train on it:       {train}", f"see what it holds: {look}")


def _data_settings(files: Sequence[str]) -> list[str]:
    """Return the settings that name exactly these files: a path, a glob that matches no other, or a list."""
    if len(files) == 1:
        return [f"data.path={files[0]}"]
    folder, suffix = os.path.commonpath([os.path.dirname(file) or "." for file in files]), Path(files[0]).suffix  # noqa: PTH120
    pattern = f"{folder}/*{suffix}" if folder != "." else f"*{suffix}"
    if sorted(map(os.path.normpath, glob.glob(pattern))) == sorted(map(os.path.normpath, files)):  # noqa: PTH207
        return [f"data.path={pattern}"]
    names = ", ".join(f'"{os.path.relpath(file, folder)}"' for file in files)
    return [f"data.path={folder}", f"data.data_files=[{names}]"]


# ---- options that do not exist ---------------------------------------------------------------------------------------

_OPTION = re.compile(r"--?[A-Za-z][\w.-]*")
_POSITIONAL = {"recipe": "RECIPE", "config": "RECIPE", "config_file": "RECIPE", "recipe_file": "RECIPE"}
# Words for options of the commands that use a model.
_INFERENCE = {
    **dict.fromkeys(("file", "files", "data", "input_file", "in", "i", "csv", "texts", "prompts"), "--input"),
    **dict.fromkeys(("out", "o", "output_file", "outfile", "output_dir", "save"), "--output"),
    **dict.fromkeys(("m", "model_name", "model_path", "model_name_or_path"), "--model"),
    **dict.fromkeys(("random_seed", "random_state"), "--seed"),
    **dict.fromkeys(("force", "f", "y", "yes", "overwrite_output", "clobber"), "--overwrite"),
}


_UNKNOWN = "unknown"


class Known(NamedTuple):
    """An option that a command has."""

    name: str
    is_flag: bool


def refuse_options(verb: str, arguments: Sequence[str], known: dict[str, Known]) -> None:
    """Raise UserError where an option is none of the command's, with what to type instead.

    Args:
        verb: The command.
        arguments: What was typed behind it.
        known: The command's options by each of their names.
    """
    kept: list[str] = []
    mistakes: list[str] = []
    options: list[str] = []
    settings: list[str] = []
    rest = list(arguments)
    unknown = left_out = False
    while rest:
        token = rest.pop(0)
        if token == "--":
            kept += [token, *rest]
            break
        name, equals, text = token.partition("=")
        if name in known:
            kept.append(token)
            if not known[name].is_flag and not equals and rest:
                kept.append(rest.pop(0))
            continue
        if not _OPTION.fullmatch(name):
            kept.append(token)
            continue
        follows = rest[0] if rest and not rest[0].startswith("--") and not _is_setting(rest[0]) else None
        value = text if equals else follows
        found = _instead(verb, name, value, known)
        if not equals and follows is not None and found.takes_value:
            rest.pop(0)
        if is_secret(name):
            found = _Instead([], reason="no secrets on a command line; log in with `hf auth login`")
            value, token = None, name
        shown = token if equals or not found.takes_value or value is None else f"{token} {shlex.quote(value)}"
        mistakes.append(f"{shown}: " + (found.reason or f"write `{shlex.join(found.words)}`"))
        unknown = unknown or found.reason == _UNKNOWN
        left_out = left_out or not found.words
        if found.first:
            kept.insert(0, found.words[0])
        elif found.words and found.words[0].startswith("--"):
            options += found.words
        else:
            settings += found.words
    if not mistakes:
        return
    command = shlex.join(["llmkit", *verb.split(), *kept, *options, *settings])
    if unknown:
        command = f"llmkit {verb} --help lists its options"
    elif left_out:
        command = f"without that: {command}"
    raise UserError(
        f"llmkit {verb} has no such option{'s' * (len(mistakes) > 1)}",
        scrub(command),
        tuple(map(scrub, mistakes)),
    )


def refuse_file_as_text(model: str, texts: Sequence[str]) -> None:
    """Raise UserError where the one text to predict for is a data file."""
    if len(texts) == 1 and texts[0].lower().endswith(SUFFIXES) and disk.is_file(Path(texts[0])):
        command = shlex.join(["llmkit", "predict", model, "--input", texts[0]])
        raise UserError(f"`{texts[0]}` is a file, but a text is expected here", command)


class _Instead(NamedTuple):
    words: list[str]  # what to type; nothing where that is not known
    takes_value: bool = True
    reason: str = ""
    first: bool = False  # it stands in the recipe's place


def _is_setting(text: str) -> bool:
    return re.match(r"[A-Za-z_][\w.-]*=", text) is not None


def _instead(verb: str, option: str, value: str | None, known: dict[str, Known]) -> _Instead:
    """Find what stands for an option that the command does not have."""
    word = option.lstrip("-").replace("-", "_").lower()
    same = next((name for name in known if name.lstrip("-").replace("-", "_") == word), "")
    if not same and verb in ("predict", "generate", "evaluate", "merge"):
        same = _INFERENCE.get(word, "")
    if same in known:
        return _option(known[same], value)
    if verb in ("pretrain", "finetune", "evaluate"):
        return _setting(verb, word, option.lstrip("-"), value, known)
    if verb == "generate" and (field := generation_replacement(word)):
        return _assigned(field, value, upstream.fields("GenerationConfig")[field].type.kinds == {"bool"})
    if verb == "predict" and word.endswith("column"):
        return _Instead([], reason="rename the columns of the file to those that the model was trained on")
    return _close(option, value, known)


def _setting(verb: str, word: str, written: str, value: str | None, known: dict[str, Known]) -> _Instead:
    if word in _POSITIONAL or (word == "task" and "--task" not in known):
        return _Instead([value or "RECIPE"], first=True)
    if verb == "evaluate" and word == "model":
        return _Instead([value or "MODEL"], first=True)
    task = "causal-lm" if verb == "pretrain" else "text-classification"
    if "." in written:
        meant = (
            written if key_type(tuple(written.split(".")), task) else replacement(tuple(written.split(".")), None, task)
        )
        return (
            _assigned(meant, value, False)
            if meant and not meant.startswith("--")
            else _close(f"--{written}", value, known)
        )
    flag = value if value is not None else "true"
    meant = replacement((word,), flag, task) or ""
    if not meant:
        tasks = schema.PRETRAINING if verb == "pretrain" else [t for t in schema.TASKS if t not in schema.PRETRAINING]
        meant = next(filter(None, (replacement((word,), flag, other) for other in tasks)), "")
    target = shlex.split(meant)[0] if meant else ""
    if target in known:
        return _option(known[target], value)
    refusal = upstream.refusal("TrainingArguments", word, flag)
    if refusal and (not target or target.startswith(f"trainer.{word}=")):
        override = shlex.split(advised("trainer", refusal))
        return _Instead(override, value is not None and value in "".join(override), "" if override else refusal)
    if not target or target.startswith("--"):
        return _close(f"--{written}", value, known)
    key = target.partition("=")[0]
    kind = key_type(split_key(key), task)
    is_flag = kind is not None and kind.kinds == {"bool"} and str(value).lower() not in ("true", "false")
    if is_flag and word not in ("precision", "mixed_precision", "dtype", "torch_dtype", "half_precision"):
        return _Instead([f"{key}=true"], takes_value=False)
    return _Instead([target])


def _assigned(key: str, value: str | None, is_flag: bool) -> _Instead:
    if is_flag and str(value).lower() not in ("true", "false"):
        return _Instead([f"{key}=true"], takes_value=False)
    return _Instead([f"{key}={'VALUE' if value is None else value.lower() if is_flag else value}"])


def _option(option: Known, value: str | None) -> _Instead:
    if option.is_flag:
        return _Instead([option.name], takes_value=str(value).lower() in ("true", "yes", "1"))
    return _Instead([option.name, value if value is not None else "VALUE"])


def _close(option: str, value: str | None, known: dict[str, Any]) -> _Instead:
    """Take an option for a misspelt one; else give no advice."""
    if close := nearest(option, known):
        return _option(known[close], value)
    return _Instead([], reason=_UNKNOWN, takes_value=False)
