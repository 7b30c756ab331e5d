"""Suggest a task for a local data file from its first rows."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.data.files import (
    ROW_SUFFIXES,
    ReadOptions,
    beside,
    class_folders,
    expand,
    format_of,
    read_rows,
    settings_by_lines,
    split_name,
    suffix,
)
from llmkit.errors import UserError

LOOKED_AT = 20  # rows
LARGEST_JSON = 50_000_000  # bytes: unlike the other formats, JSON is read whole
PRETRAINING = "pretraining"

_TOKENS = {"tokens", "words", "token", "word"}
_TAGS = {"tags", "ner_tags", "pos_tags", "labels", "label", "ner", "tag", "pos", "upos", "chunk_tags"}
_SPANS = {"spans", "entities"}
_ANSWERS = {"answers", "answer", "answer_text"}
_CONTEXTS = {"context", "passage", "paragraph", "plot"}
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
        if disk.is_dir(Path(path)) and class_folders(Path(path)):
            return Suggestion("text-classification", "folders of text files")
        files = expand(path)
        row_files = [file for file in files if format_of(file) in ROW_SUFFIXES]
        if not row_files:
            return _of_texts(Path(path), files)
        for file in row_files[:1]:
            if suffix(file) != ".json" or file.stat().st_size <= LARGEST_JSON:
                return _of_rows([row for _, row in itertools.islice(read_rows(file), LOOKED_AT)])
    except (UserError, OSError):
        pass  # whoever trains on it is told what is wrong
    return Suggestion("text-classification")


def _of_texts(path: Path, texts: Sequence[Path]) -> Suggestion:
    """Take lines that show rows for what they hold, and any other text for running text.

    Of files whose lines belong together, and are not read as they are, the task that is told so is suggested.
    """
    inside = [file for file in path.rglob("*") if disk.is_file(file)] if disk.is_dir(path) else [path]
    if together := beside(inside, ReadOptions().encoding):
        return Suggestion("seq2seq", " beside ".join(f"`{file.name}`" for file in together))
    split_of = {
        file: split_name(file.relative_to(path) if disk.is_dir(path) else file) or ("",) for file in texts or inside
    }
    first = sorted(split_of, key=lambda file: split_of[file][0] != "train")
    if first and (settings := settings_by_lines(first[0], ReadOptions().encoding)):
        options = dict(setting.removeprefix("data.").split("=", 1) for setting in settings)
        read = ReadOptions(**{**options, **({"header": False} if "header" in options else {})})  # type: ignore[arg-type]
        found = _of_rows([row for _, row in itertools.islice(read_rows(first[0], read), LOOKED_AT)])
        if found.task == PRETRAINING:
            found = Suggestion("text-classification")
        return Suggestion(found.task, found.because or f"rows, by its lines ({' '.join(settings)})", settings)
    return Suggestion(PRETRAINING, "running text") if texts else Suggestion("text-classification")


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
    asked, answers, contexts = among({"question", "query"}), among(_ANSWERS), among(_CONTEXTS)
    numbered = [name for name in row if _NUMBERED_CHOICE.fullmatch(name)]
    choices = among(_CHOICES) or (numbered if len(numbered) > 1 else [])
    choices = choices or [name for name in asked if isinstance(row[name], Mapping) and "choices" in row[name]]
    if asked and contexts and answers and isinstance(row[answers[0]], bool):
        return "text-classification", [*asked[:1], *contexts[:1], *answers[:1]]
    if asked and not choices and ("context" in row or (contexts and answers)):
        return "question-answering", [*asked[:1], *contexts[:1], *answers[:1]]
    if qas := among({"qas", "paragraphs"}):
        return "question-answering", qas[:1]
    if choices:
        return "multiple-choice", choices if choices == numbered else choices[:1]
    if talks := among(_CONVERSATIONS):
        return "chat", talks[:1]
    if {"chosen", "rejected"} <= row.keys():
        return "chat", ["chosen", "rejected"]
    if "question" in row and among(_COMPLETIONS):
        return "chat", ["question", *among(_COMPLETIONS)[:1]]
    if among(_PROMPTS) and among(_COMPLETIONS):
        return "chat", [*among(_PROMPTS)[:1], *among(_COMPLETIONS)[:1]]
    if targets := [name for name in among(_TARGETS) if not _is_number(row[name])]:
        return "seq2seq", [*[name for name in row if isinstance(row[name], str) and name not in targets][:1], *targets]
    if len(row) == 2 and all(re.fullmatch(r"[a-z]{2}", name) and isinstance(row[name], str) for name in row):
        return "seq2seq", list(row)
    if {"question", "answer"} <= row.keys() and isinstance(row["answer"], str):
        return "chat", ["question", "answer"]
    if len(row) == 1 and among(_TEXTS):
        return PRETRAINING, list(row)
    return None


def _is_number(value: Any) -> bool:
    return re.fullmatch(r"[-+]?[\d.]+", str(value).strip()) is not None


def _are_spans(value: list[Any]) -> bool:
    """Tell whether a list holds spans of characters: [0, 5, "PER"], or tables with a start."""
    item = value[0]
    if isinstance(item, list):
        return len(item) == 3 and isinstance(item[0], int) and isinstance(item[1], int)
    return isinstance(item, dict) and bool(item.keys() & {"start", "start_offset", "begin"})
