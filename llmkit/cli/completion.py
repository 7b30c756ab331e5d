"""What a shell can complete: words for arguments and options, without pydantic, torch or a network.

A shell's script (SCRIPTS) calls `llmkit` with the words before the cursor and LLMKIT_COMPLETE set to its name; `answer`
prints what could follow, one a line. Click finds out whose value is wanted, and asks the functions below.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.completion import shell_completion  # type: ignore[attr-defined]

from llmkit import disk

ASKED, BREAKS = "LLMKIT_COMPLETE", "LLMKIT_BREAKS"  # environment variables: the shell; bash's COMP_WORDBREAKS
ROOT = Path(__file__).parents[1]
Words = Iterable[str | tuple[str, str]]  # with what each means
BASH = """\
_llmkit_completion() {
    local -x LLMKIT_COMPLETE=bash LLMKIT_BREAKS="$COMP_WORDBREAKS"
    mapfile -t COMPREPLY < <("$1" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then compopt -o nospace; fi
}
complete -F _llmkit_completion llmkit
"""
ZSH = """\
#compdef llmkit
_llmkit() {
    local value help
    local -a whole open
    while IFS=$'\\t' read -r value help; do
        if [[ $value == *[=./] ]]; then open+=("${value//:/\\\\:}:$help"); else whole+=("${value//:/\\\\:}:$help"); fi
    done < <(LLMKIT_COMPLETE=zsh "${(Q)words[1]}" "${(@Q)words[2,CURRENT]}" 2>/dev/null)
    (( $#whole )) && _describe -V llmkit whole
    (( $#open )) && _describe -V llmkit open -S ''
}
if [[ $funcstack[1] == _llmkit ]]; then _llmkit "$@"; else compdef _llmkit llmkit; fi
"""
FISH = """\
function __llmkit_complete
    set -lx LLMKIT_COMPLETE fish
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    $words[1] $words[2..-1] "$current" 2>/dev/null
end
complete -c llmkit -f -k -a '(__llmkit_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

# ---- the words of a key ----------------------------------------------------------------------------------------------


@cache
def known() -> dict[str, Any]:
    """Return the recipes, tasks, keys and columns that there are; from a cache while nothing of it has changed."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    file, stamp = Path(home, "llmkit", "completion.json").expanduser(), _stamp()
    with suppress(OSError, ValueError):
        kept = json.loads(file.read_text())
        if isinstance(kept, dict) and kept.get("stamp") == stamp:
            return kept
    found = {"stamp": stamp, **_collected()}
    with suppress(OSError):  # next time it is collected again
        file.parent.mkdir(parents=True, exist_ok=True)
        with disk.drafted(file, synced=False) as out:
            out.write(json.dumps(found).encode())
    return found


def _stamp() -> list[Any]:
    """Return what the cached words follow from: llmkit's files, and the versions of the libraries with their fields."""
    own = [ROOT / name for name in ("recipe", "cli", "reports", "export")]
    files = [file for folder in own for file in folder.glob("*.py")]
    files += [file for folder in (ROOT, ROOT.parent) for file in folder.glob("recipes/**/*.toml")]
    stamp: list[Any] = [[str(file), file.stat().st_mtime_ns] for file in sorted(files)]
    for package in ("transformers", "peft"):
        spec = find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            stamp += sorted(str(path) for path in Path(folder).parent.glob(f"{package}-*.dist-info"))
    return stamp


def _collected() -> dict[str, Any]:
    from llmkit.export.push import INCLUDED
    from llmkit.recipe import bundled, catalogue, schema
    from llmkit.recipe.shortcuts import NAMED
    from llmkit.recipe.toml import toml_value
    from llmkit.reports.runs import COLUMNS

    texts = {name: path.read_text() for name, path in bundled().items()}
    recipes = {
        name: (tomllib.loads(text)["task"], text.partition("\n")[0].removeprefix("# ")) for name, text in texts.items()
    }
    keys = []
    for key in catalogue.recipe_keys():
        values = [value if isinstance(value, str) else toml_value(value) for value in key.type.values]
        values += ["true", "false"] if "bool" in key.type.kinds else []
        keys.append((key.name, key.tasks, values, re.split(r"(?<=\.) ", key.meaning)[0]))
    tasks = {name: recipes[recipe][0] for name, (recipe, _) in NAMED.items()} | {"chat": "chat"}
    return {
        "recipes": recipes,
        "tasks": tasks,
        "pretraining": schema.PRETRAINING,
        "keys": keys,
        "tables": catalogue.tables(),
        "columns": COLUMNS,
        "included": list(INCLUDED),
    }


def _names(keys: Sequence[Sequence[Any]], typed: str, end: str) -> Iterator[tuple[str, str]]:
    """Yield how a dotted key may go on: up to its next dot, or as a whole, with `end` behind it."""
    *above, _ = typed.split(".")
    for name, _, _, meaning in keys:
        parts = name.split(".")
        if len(parts) > len(above) and all(own in ("NAME", got) for own, got in zip(parts, above, strict=False)):
            last = parts[len(above)]
            if last != "NAME":
                whole = len(parts) == len(above) + 1
                table = known()["tables"].get(last, "") if not above else ""
                yield ".".join([*above, last]) + (end if whole else "."), meaning if whole else table


def _settings(keys: Sequence[Sequence[Any]], typed: str) -> Iterator[str | tuple[str, str]]:
    """Yield how a setting KEY=VALUE may go on."""
    name, equals, value = typed.partition("=")
    if not equals:
        yield from _names(keys, typed, "=")
        return
    parts = name.split(".")
    for key, _, values, _ in keys:
        own = key.split(".")
        if len(own) == len(parts) and all(part in ("NAME", got) for part, got in zip(own, parts, strict=True)):
            yield from (f"{name}={each}" for each in values)
    if name == "task":
        yield from (f"task={task}" for task in dict.fromkeys(known()["tasks"].values()))
    if parts[-1] in ("path", "data_files", "stop_words", "c4_bad_words") or name.endswith((".name", "output_dir")):
        yield from (f"{name}={path}" for path in (*(_runs() if parts[0] == "model" else ()), *_paths(value)))


def _task_of(ctx: typer.Context) -> str | None:
    """Name the task that a command is for, as far as its words tell."""
    task, recipe, model = (ctx.params.get(name) for name in ("task", "recipe", "model"))
    if task is not None:
        return known()["tasks"].get(task)
    with suppress(OSError, ValueError, KeyError):
        if recipe in known()["recipes"]:
            return str(known()["recipes"][recipe][0])
        if recipe is not None and "=" not in recipe:
            return str(tomllib.loads(Path(recipe).expanduser().read_text())["task"])
        if model is not None:
            record = next(path for path in (Path(model), Path("runs", model)) if (path / "run.json").is_file())
            return str(json.loads((record / "run.json").read_text())["task"])
    return None


def _keys(ctx: typer.Context) -> list[Sequence[Any]]:
    """Return the keys that a command takes."""
    task, verb = _task_of(ctx), ctx.info_name
    return [
        key
        for key in known()["keys"]
        if (task is None or not key[1] or task in key[1]) and (verb != "data" or key[0].startswith("data."))
    ]


# ---- what the parameters ask for -------------------------------------------------------------------------------------


def overrides(ctx: typer.Context, incomplete: str) -> Words:
    """Settings of a recipe."""
    return _settings(_keys(ctx), incomplete)


def recipe_or_override(ctx: typer.Context, incomplete: str) -> Words:
    """A recipe, and with --task or an evaluated run also a setting."""
    if "=" in incomplete or ctx.params.get("task") or ctx.params.get("model"):
        yield from overrides(ctx, incomplete)
    yield from ((name, about) for name, (task, about) in known()["recipes"].items() if _is_for(ctx.info_name, task))
    yield from (path for path in _paths(incomplete) if path.endswith((".toml", "/")))


def recipe_names() -> Words:
    """Bundled recipes."""
    return [(name, about) for name, (_, about) in known()["recipes"].items()]


def tasks(ctx: typer.Context) -> Words:
    """What --task takes."""
    return [name for name, task in known()["tasks"].items() if _is_for(ctx.info_name, task)]


def _is_for(verb: str | None, task: str) -> bool:
    return verb not in ("pretrain", "finetune") or (task in known()["pretraining"]) == (verb == "pretrain")


def key_names(incomplete: str) -> Words:
    """Keys and tables, without a value."""
    return [(name.removesuffix("=="), about) for name, about in _names(known()["keys"], incomplete, "==")]


def generation_settings(incomplete: str) -> Words:
    """Fields of GenerationConfig."""
    of_table = [key for key in known()["keys"] if key[0].startswith("generation.")]
    for each in _settings(of_table, f"generation.{incomplete}"):
        text, about = (each, "") if isinstance(each, str) else each
        yield text.removeprefix("generation."), about


def columns(incomplete: str) -> Words:
    """Columns of `llmkit runs`, in either order."""
    return [sign + name for sign in ("", "-") for name in known()["columns"]]


def conditions(incomplete: str) -> Words:
    """Columns of `llmkit runs`, and keys of a recipe, with what they are to be."""
    yield from (f"{name}=" for name in known()["columns"])
    yield from _settings(known()["keys"], incomplete)


def runs(incomplete: str) -> Words:
    """Runs by name, and folders."""
    yield from _runs()
    yield from (path for path in _paths(incomplete) if path.endswith("/"))


def files(incomplete: str) -> Words:
    """Files and folders."""
    return _paths(incomplete)


def included() -> Words:
    """What --include adds to a model on the Hub."""
    return known()["included"]


def _runs() -> Iterator[str]:
    with suppress(OSError):
        yield from sorted(entry.name for entry in os.scandir("runs") if Path(entry.path, "run.json").is_file())


def _paths(typed: str) -> Iterator[str]:
    """Yield the files and the folders (with a slash) whose paths begin with what was typed."""
    folder, name = os.path.split(typed)
    begin = typed.removesuffix(name) if name else typed
    with suppress(OSError):
        for entry in sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name):  # noqa: PTH111
            if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
                yield begin + entry.name + ("/" if entry.is_dir() else "")


# ---- the shells ------------------------------------------------------------------------------------------------------


class Completion(shell_completion.ShellComplete):
    """What follows on a line of a shell."""

    source_template = "%(script)s"

    def __init__(self, shell: str, words: list[str], cli: Any, breaks: str = "") -> None:
        """`words` are those behind the command, the last one unfinished; of bash the whole line up to the cursor."""
        self.shell, self.breaks, self.line = shell, breaks, ""
        if shell == "bash":
            self.line = words[0]
            words = shell_completion.split_arg_string(self.line)[1:]
            words += [""] if self.line[-1:].isspace() or not words else []
        name = "llmkit"
        while words[1:] and words[0] in getattr(cli, "commands", {}):  # not left to click, which would load pydantic
            name, *words = words
            cli = cli.commands[name]
        super().__init__(cli, {}, name, ASKED)
        self.words = words or [""]

    def source_vars(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {"script": SCRIPTS[self.shell]}

    def get_completion_args(self) -> tuple[list[str], str]:
        return self.words[:-1], self.words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[Any]:
        if hasattr(self.cli, "commands") and any(not word.startswith("-") for word in args):
            return []  # behind a command that there is not
        found = {each.value: each for each in reversed(super().get_completions(args, incomplete))}
        option, equals, _ = incomplete.partition("=")
        for each in found.values():
            if equals and option.startswith("-"):  # click has taken --option=VALUE apart
                each.value = f"{option}={each.value}"
        return list(found.values())[::-1]

    def format_completion(self, item: Any) -> str:
        if self.shell != "bash":
            return "\t".join(filter(None, [item.value, " ".join((item.help or "").split())]))
        typed, value = self.words[-1], str(item.value)
        if self.line.split()[-1:] and self.line.split()[-1][0] in "'\"":
            return value  # quotes are open: the word is whole, and is closed by the shell
        cut = max((typed.rfind(mark) for mark in "=:" if mark in self.breaks), default=-1) + 1
        return re.sub(r"([\s\\'\"$`&|;<>()*?\[\]#!{}])", r"\\\1", value[cut:])


def answer(app: typer.Typer, shell: str, words: list[str]) -> None:
    """Print what could follow on a shell's line; nothing where that fails, as the line is still being typed."""
    with suppress(Exception, SystemExit):
        cli = typer.main.get_command(app)
        if found := Completion(shell, words, cli, os.environ.get(BREAKS, "")).complete():
            print(found)  # noqa: T201
