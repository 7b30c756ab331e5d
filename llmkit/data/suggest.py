"""Suggest a task for a local data file from its first rows."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data.files import ROW_SUFFIXES, TEXT_SUFFIXES, expand, read_rows, suffix
from llmkit.errors import UserError

LOOKED_AT = 20  # rows
LARGEST_JSON = 50_000_000  # bytes: unlike the other formats, JSON is read whole
PRETRAINING = "pretraining"

_TOKENS = {"tokens", "words", "token", "word"}
_TAGS = {"tags", "ner_tags", "pos_tags", "labels", "label", "ner", "tag", "pos", "upos", "chunk_tags"}
_SPANS = {"spans", "entities"}
_CHOICES = {"choices", "options", "endings", "choice"}
_NUMBERED_CHOICE = re.compile(r"(ending|choice|option|answer|sol)_?([0-9]|[a-d])|[a-d]")
_CONVERSATIONS = {"messages", "conversations", "conversation"}
_PROMPTS = {"instruction", "prompt"}
_COMPLETIONS = {"output", "response", "completion"}
_TARGETS = {"summary", "target", "highlights", "translation", "tgt", "abstract"}
_TEXTS = {"text", "content", "sentence", "document"}


@dataclass(frozen=True)
class Suggestion:
    """A task (a name that `--task` takes, or PRETRAINING), the settings that it needs, and what speaks for it."""

    task: str
    because: str = ""
    settings: tuple[str, ...] = ()


def suggest(path: str) -> Suggestion:
    """Suggest a task for a file, a folder or a glob; text-classification where nothing speaks for another."""
    try:
        files = expand(path)
        row_files = [file for file in files if suffix(file) in ROW_SUFFIXES]
        if files and not row_files:
            return _of_texts(Path(path))
        for file in row_files[:1]:
            if suffix(file) != ".json" or file.stat().st_size <= LARGEST_JSON:
                return _of_rows([row for _, row in itertools.islice(read_rows(file), LOOKED_AT)])
    except (UserError, OSError):
        pass  # whoever trains on it is told what is wrong
    return Suggestion("text-classification")


def _of_texts(path: Path) -> Suggestion:
    """Take a folder whose subfolders hold text files for classes, and any other text for running text."""
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
    in_folders = [folder for folder in folders if any(suffix(file) in TEXT_SUFFIXES for file in folder.iterdir())]
    splits = {"train", "valid", "validation", "val", "dev", "test"}
    if len(in_folders) > 1 and not all(folder.name.lower() in splits for folder in in_folders):
        return Suggestion("text-classification", "folders of text files")
    return Suggestion(PRETRAINING, "running text")


def _of_rows(rows: list[dict[str, Any]]) -> Suggestion:
    if not rows:
        return Suggestion("text-classification")
    first = {str(name).strip().lower(): value for name, value in rows[0].items()}
    names = {str(name).strip().lower(): str(name) for name in rows[0]}
    found = _of_columns(first)
    if found is None:
        return Suggestion("text-classification")
    task, columns = found
    because = ", ".join(f"`{names[column]}`" for column in columns)
    if task == "chat" and {"question", "answer"} == set(columns):
        settings = (f"data.prompt_column={names['question']}", f"data.completion_column={names['answer']}")
        return Suggestion(task, because, settings)
    return Suggestion(task, because)


def _of_columns(row: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Return the task that a row's columns show, and the columns that show it; None for any other."""

    def among(names: set[str]) -> list[str]:
        return [name for name in row if name in names]

    lists = [name for name, value in row.items() if isinstance(value, list) and value]
    tokens, tags = among(_TOKENS), among(_TAGS)
    if tokens and tags:
        return "token-classification", [*tokens[:1], *tags[:1]]
    if "text" in row and (spans := [name for name in lists if name in _SPANS | _TAGS and _are_spans(row[name])]):
        return "token-classification", ["text", spans[0]]
    if {"question", "context"} <= row.keys() and not among(_CHOICES):
        return "question-answering", ["question", "context", *among({"answers", "answer", "answer_text"})[:1]]
    if qas := among({"qas", "paragraphs"}):
        return "question-answering", qas[:1]
    if choices := among(_CHOICES):
        return "multiple-choice", choices[:1]
    numbered = [name for name in row if _NUMBERED_CHOICE.fullmatch(name)]
    if len(numbered) > 1:
        return "multiple-choice", numbered
    if talks := among(_CONVERSATIONS):
        return "chat", talks[:1]
    if among(_PROMPTS) and among(_COMPLETIONS):
        return "chat", [*among(_PROMPTS)[:1], *among(_COMPLETIONS)[:1]]
    if targets := among(_TARGETS):
        return "seq2seq", [*[name for name in row if isinstance(row[name], str) and name not in targets][:1], *targets]
    if len(row) == 2 and all(re.fullmatch(r"[a-z]{2}", name) and isinstance(row[name], str) for name in row):
        return "seq2seq", list(row)
    if {"question", "answer"} <= row.keys():
        return "chat", ["question", "answer"]
    if len(row) == 1 and among(_TEXTS):
        return PRETRAINING, list(row)
    return None


def _are_spans(value: list[Any]) -> bool:
    """Tell whether a list holds spans of characters: [0, 5, "PER"], or tables with a start."""
    item = value[0]
    if isinstance(item, list):
        return len(item) == 3 and isinstance(item[0], int) and isinstance(item[1], int)
    return isinstance(item, dict) and bool(item.keys() & {"start", "start_offset", "begin"})
