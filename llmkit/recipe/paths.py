"""Resolve paths: in a recipe relative to the recipe, on the command line relative to the working directory."""

import glob
import os.path
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit import disk, remote
from llmkit.errors import UserError, scrub
from llmkit.recipe.draft import COMMAND_LINE, Draft
from llmkit.recipe.toml import Key, dotted, split_key

# With one of these suffixes or prefixes a string is a path and not a Hub id.
DATA_SUFFIXES = (
    *(".txt", ".text", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather"),
    *(".fasttext", ".conll", ".bio", ".iob", ".iob2", ".bmes"),
)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
SUFFIXES = (*DATA_SUFFIXES, *COMPRESSED)
WORD_LISTS: dict[str, tuple[str, ...]] = {"stop_words": ("en", "zh"), "c4_bad_words": ()}  # names that are no file
STARTS = ("./", "../", "/", "~")
_HUB = re.compile(r"(?:datasets/|spaces/|models/)?([\w.-]+/[\w.-]+)")
_HUB_REPOSITORY = re.compile(_HUB.pattern + r"(?:@[^/]*)?/?(?:(?:tree|blob)/.*)?")  # all of it, and no file in it
_HUB_HOST = re.compile(r"(?:www\.)?(?:huggingface\.co|hf\.co)/")


def address(text: str, written: bool = False) -> UserError | None:
    """Return the mistake that `text` is the address of something on another machine; None where it is none.

    With `written` it is the place of something to write.
    """
    if not (scheme := remote.scheme_of(text)):
        return None
    rest, shown = remote.whole(text).partition("://")[2], scrub(remote.whole(text))
    if scheme == "file":
        hint = f"write the path alone: {rest}"
    elif written:
        hint = "write to a folder on this machine; output_mirror copies a run from there"
    elif repository := _HUB.match(_on_hub(scheme, rest)):
        hint = f"for the Hub write the id alone: {repository[1]}"
    else:
        hint = "download it, and name the copy"
    does = "writes only to paths on this machine" if written else "reads only data from addresses"
    return UserError(f"`{shown}` is an address, and llmkit {does}", hint)


def refuse_address(text: str, written: bool = False) -> None:
    """Raise UserError for the address of something on another machine."""
    if mistake := address(text, written):
        raise mistake


def data_address(text: str) -> UserError | None:
    """Return what is wrong with an address as that of data; None where nothing is, or it is no address."""
    scheme = remote.scheme_of(text)
    rest, shown = remote.whole(text).partition("://")[2], scrub(remote.whole(text))
    if not scheme or scheme == "file":
        return address(text)
    if scheme not in remote.SCHEMES or "::" in text:
        known = ", ".join(f"{each}://" for each in remote.SCHEMES)
        return UserError(f"`{shown}` is an address that llmkit cannot read", f"it reads {known}; or name a copy")
    if repository := _HUB_REPOSITORY.fullmatch(_on_hub(scheme, rest)):
        return UserError(f"`{shown}` is a repository of the Hub", f"for the Hub write the id alone: {repository[1]}")
    if command := remote.missing_package(scheme):
        return UserError(f"`{shown}`: a package that reads {scheme}:// is missing", command)
    return None


def _mirror_mistake(text: str) -> str:
    """Say what is wrong with the address of a mirror; "" where nothing is."""
    found = remote.ADDRESS.match(text)
    scheme = found[1].lower() if found else ""
    if scheme not in remote.MIRRORS or "::" in text:
        also = "; for the Hub, `llmkit push` uploads the finished model" if scheme == "hf" else ""
        return f"must be an address that begins with {', '.join(f'{each}://' for each in remote.MIRRORS)}{also}"
    if scrub(text) != text:
        return "must hold no password or key: this machine's login to the store is used"
    command = remote.missing_package(scheme)
    return f"a package that writes {scheme}:// is missing; {command}" if command else ""


def _on_hub(scheme: str, rest: str) -> str:
    """Return the part of an address behind the Hub's name; "" where it is not on the Hub."""
    if scheme == "hf":
        return "" if rest.startswith("buckets/") else rest
    return rest[host.end() :] if (host := _HUB_HOST.match(rest)) else ""


def local_copy(text: str) -> str:
    """Return the path of the local copy of what stands at an address, fetched where it is not in the cache.

    A path stays what it is. Raises UserError for an address that llmkit cannot read.
    """
    if not remote.scheme_of(text):
        return text
    if mistake := data_address(text):
        raise mistake
    return remote.fetch(text)


def resolve_paths(draft: Draft) -> None:
    """Make every path in the draft absolute; report those that are clearly paths and do not exist."""
    sources = draft.get("data", "sources")
    origins: list[Key] = [("data",)]
    origins += [("data", "sources", name) for name in (sources if isinstance(sources, dict) else ())]
    models: list[Key] = [("model", "name"), ("model", "generator", "name"), ("tokenizer", "name")]
    for key in (*models, *((*origin, "path") for origin in origins)):
        if isinstance(value := draft.get(*key), str):
            resolved = draft.get(*key[:-1])[key[-1]] = _resolve(draft, key, value, [_base(draft, key)])
            if key[0] == "data" and resolved != value and not Path(value).is_absolute():
                draft.typed[resolved] = value
    if isinstance(value := draft.get("output_dir"), str) and (mistake := address(value, written=True)):
        draft.problem(("output_dir",), f"{mistake.message}; {mistake.hint}")
    if isinstance(value := draft.get("output_mirror"), str) and (reason := _mirror_mistake(value)):
        draft.problem(("output_mirror",), reason)
    for key in ((*origin, "clean", listed) for origin in origins for listed in WORD_LISTS):
        if isinstance(value := draft.get(*key), str) and value not in WORD_LISTS[key[-1]]:
            draft.get(*key[:-1])[key[-1]] = _resolve(draft, key, value, [_base(draft, key)], hub=False)
    for origin in origins:
        files, data = draft.get(*origin, "data_files"), draft.get(*origin, "path")
        if files is not None and isinstance(data, str) and not _on_the_hub(data) and not remote.scheme_of(data):
            key = (*origin, "data_files")
            inside = [Path(data)] if disk.is_dir(Path(data)) else []  # load_dataset looks into the folder
            draft.get(*origin)["data_files"] = _resolve_each(draft, key, files, [*inside, _base(draft, key)])
        else:
            _check_addresses(draft, (*origin, "data_files"), files, isinstance(data, str) and _on_the_hub(data))


def find_data(draft: Draft, resolved: Mapping[str, str]) -> None:
    """Find the data of a run from its recipe, which has paths as they were typed.

    `resolved` are the run's absolute paths by key. On another machine, to which the run was copied, the data is where
    it was typed from: in the working directory, or beside `runs/`.
    """
    for name, path in resolved.items():
        key = split_key(name)
        typed = draft.get(*key)
        if not isinstance(typed, str) or Path(typed).is_absolute() or remote.scheme_of(typed):
            continue
        elsewhere = [os.path.normpath(base / typed) for base in (Path.cwd(), draft.source.parents[2])]
        found = next((place for place in (path, *elsewhere) if disk.exists(place) or disk.first_match(place)), path)
        if found != path:
            draft.notes.append(f"{name}: `{path}` is not on this machine; reading `{found}` instead")
        draft.get(*key[:-1])[key[-1]] = found
        draft.typed[found] = typed


def _base(draft: Draft, key: Key) -> Path:
    return Path.cwd() if draft.origin(key) == COMMAND_LINE else draft.source.parent


def _on_the_hub(path: str) -> bool:
    """Whether `path` is a repository on the Hub, in which `data_files` are names."""
    return path.count("/") == 1 and not path.startswith("/")


def _check_addresses(draft: Draft, key: Key, names: Any, on_hub: bool) -> None:
    """Report the addresses among the names of files below data.path that cannot be read, or are in a data set's place.

    Names that are none are those of files in the data set `on_hub`, or in the folder whose address data.path is.
    """
    for name in names.values() if isinstance(names, dict) else names if isinstance(names, list) else [names]:
        if isinstance(name, list):
            _check_addresses(draft, key, name, on_hub)
        elif isinstance(name, str) and remote.scheme_of(name):
            if mistake := data_address(name):
                draft.problem(key, f"{mistake.message}; {mistake.hint}")
            elif on_hub:
                shown = scrub(remote.whole(name))
                draft.problem(key, f"`{shown}` is an address, and data.path is on the Hub; write it as data.path too")


def _resolve_each(draft: Draft, key: Key, value: Any, bases: list[Path]) -> Any:
    if isinstance(value, str):
        return _resolve(draft, key, value, bases)
    if isinstance(value, list):
        return [_resolve_each(draft, key, entry, bases) for entry in value]
    if isinstance(value, dict):
        return {name: _resolve_each(draft, (*key, name), entry, bases) for name, entry in value.items()}
    draft.problem(key, "must be a path or an array of paths")
    return value


def at_home(text: str) -> Path:
    """Expand a leading `~`; `Path.expanduser` raises where there is no such user."""
    return Path(os.path.expanduser(text))  # noqa: PTH111


def _resolve(draft: Draft, key: Key, text: str, bases: list[Path], hub: bool = True) -> str:
    if not text:
        return text
    if remote.scheme_of(text):
        if mistake := data_address(text) if key[0] == "data" and "clean" not in key else address(text):
            draft.problem(key, f"{mistake.message}; {mistake.hint}")
        return text
    expanded = str(at_home(text))
    pattern = glob.has_magic(text)
    for base in bases:
        plain = os.path.normpath(base / expanded)  # not resolved: what a link points to may have another suffix
        if disk.exists(plain):
            return plain
        magic = os.path.normpath(Path(glob.escape(str(base))) / expanded)
        if pattern and disk.first_match(magic):
            return magic
    relative = not Path(expanded).is_absolute()
    on_command_line = draft.origin(key) == COMMAND_LINE
    if pattern or not hub or text.lower().endswith(SUFFIXES) or text.startswith(STARTS) or text.count("/") > 1:
        problem = "no file matches" if pattern else "there is no file or folder"
        base_note = (
            ", taken relative to the " + ("working directory" if on_command_line else "recipe") if relative else ""
        )
        draft.problem(key, f"{problem} {os.path.normpath(bases[0] / expanded)}{base_note}")
    elif not on_command_line and disk.exists(expanded):
        draft.notes.append(
            f"{dotted(key)}: `{text}` is taken as a Hub id; what has that name in the working directory is ignored, "
            "because paths in a recipe are relative to the recipe"
        )
    return text
