"""Read texts that stand in one folder a class, as 20 Newsgroups and IMDB come."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from llmkit import disk
from llmkit.data.files.archives import suffix
from llmkit.data.files.lines import read_text
from llmkit.data.files.names import is_about, split_name
from llmkit.data.files.options import Note, ReadOptions
from llmkit.data.files.rows import ROW_SUFFIXES

UNLABELLED = ("unsup", "unsupervised", "unlabeled", "unlabelled")  # folders of texts without a class


def is_class_folders(path: Path) -> bool:
    """Tell whether a folder holds texts in one folder a class, perhaps in a folder for each split."""
    return bool(class_folders(path))


def class_folders(path: Path) -> dict[str, dict[str, list[Path]]]:
    """List the text files by split and class, {split: {class: files}}; {} where a folder is not one of classes.

    The classes are two folders at least, with text files of .txt or no suffix in them; without folders for splits the
    only one is `train`. Files with rows anywhere in it show another thing.
    """
    if not disk.is_dir(path) or any(suffix(file) in ROW_SUFFIXES for file in path.rglob("*") if disk.is_file(file)):
        return {}
    named = {folder: split_name(folder.relative_to(path)) for folder in _folders(path)}
    by_split = {split[0]: _classes(folder) for folder, split in named.items() if split}
    if "train" in by_split or (by_split and all(len(classes) > 1 for classes in by_split.values())):
        found = {split: classes for split, classes in by_split.items() if classes}
        return found if all(len(classes) > 1 for classes in found.values()) else {}
    classes = _classes(path)
    return {"train": classes} if len(classes) > 1 else {}


def beside_classes(path: Path, classes: Mapping[str, Mapping[str, list[Path]]]) -> list[Path]:
    """List the files of such a folder that are no texts of a class; not those in folders of texts without one."""
    texts = {file for named in classes.values() for files in named.values() for file in files}
    found = []
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path).parts
        hidden = any(part.startswith(".") or part.lower() in UNLABELLED for part in inside)
        if disk.is_file(file) and file not in texts and not hidden:
            found.append(file)
    return found


def read_class_folders(
    path: Path, options: ReadOptions, note: Note, classes: Mapping[str, list[Path]]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a row a file, `text` and `label`, with its path in the folder; the files of a class stand together.

    `classes` are those of one split, as `class_folders` lists them.
    `note` is told which folders are left out, for they say that their texts have no class. Raises UserError for a byte
    that is not of the encoding.
    """
    without = sorted(folder for folder in path.rglob("*") if folder.name.lower() in UNLABELLED and disk.is_dir(folder))
    if without:
        listed = ", ".join(str(folder.relative_to(path)) for folder in without)
        note(f"`{path}`: not read, for their texts have no class: {listed}")
    for label, files in classes.items():
        for file in files:
            text = read_text(file, options.encoding, options.max_document_bytes).replace("\r\n", "\n")
            yield str(file.relative_to(path)), {"text": text, "label": label}


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if disk.is_dir(folder) and not folder.name.startswith("."))


def _classes(path: Path) -> dict[str, list[Path]]:
    found = {folder.name: _texts(folder) for folder in _folders(path) if folder.name.lower() not in UNLABELLED}
    return {label: files for label, files in found.items() if files}


def _texts(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if disk.is_file(file)
        and not file.name.startswith(".")
        and not is_about(file.name)
        and (suffix(file) in (".txt", ".text", "") or suffix(file)[1:].isdecimal())
    )
