"""Recognise preferences: answers of which one is better than another, or that are marked as good or bad."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmkit.data.rows import written_out
from llmkit.data.rows.cells import find_column, parsed
from llmkit.data.rows.messages import is_learned
from llmkit.data.rows.table import Rows, first_values, usual
from llmkit.errors import UserError

_BETTER = {"chosen", "preferred", "accepted", "better", "winner", "win"}
_WORSE = {"rejected", "dispreferred", "nonpreferred", "unpreferred", "worse", "loser", "lose"}
_CONVERSATIONS = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "instruction", "question", "query", "input")
_ANSWERS = ("completion", "response", "output", "answer")
_JUDGED = ("label", "labels", "kto_tag", "desirable", "is_chosen", "is_preferred", "preferred", "thumbs_up")
_COMPARED = re.compile(
    r"(responses?|answers?|completions?|outputs?|repl(?:y|ies)|generation|human_ref|model)[ _-]?([0-9a-z])"
)
_JUDGES = re.compile(r"better|preferr?ed|preference|winner|label|score|chosen|rank|vote|safer")


def refuse(rows: Rows) -> None:
    """Raise UserError where the rows hold preferences, with how to learn the good answers."""
    better, worse = _columns(rows, _BETTER), _columns(rows, _WORSE)
    if better and worse:
        raise UserError(
            f"{rows.source} holds preferences: `{better}` is the better and `{worse}` the worse answer of each row, "
            "but a chat model learns only one",
            f"to learn the better answers: {_chosen(rows, better)}",
        )
    if judged := _judged(rows):
        raise UserError(
            f"{rows.source} holds preferences: `{judged}` marks each answer as good or bad, but a chat model learns "
            "all of them",
            f"to learn only the good answers: data.weight_column={judged}",
        )
    compared = _compared(rows)
    if compared:
        listed = " and ".join(f"`{name}`" for name in compared)
        raise UserError(
            f"{rows.source} holds preferences: {listed} are answers of one row to compare, but a chat model "
            "learns only one",
            "put the better answer of each row into a separate column, and name it: data.completion_column=COLUMN",
        )


def _columns(rows: Rows, words: set[str]) -> str | None:
    """Find the column of answers whose name has one of these words."""
    for name in rows.columns:
        parts = re.split(r"[\W_]+", re.sub(r"\b(non|un|dis)[_-](?=preferred)", r"\1", _folded(name).replace("_", "-")))
        if words & set(parts) and any(isinstance(value, str | list | Mapping) for value in first_values(rows, name)):
            numbers = [value for value in first_values(rows, name) if isinstance(value, str) and _is_number(value)]
            if not numbers:
                return name
    return None


def _folded(name: str) -> str:
    return name.strip().casefold()


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*-?[\d.]+\s*", text))


def _chosen(rows: Rows, better: str) -> str:
    """Say how the better answers are learned."""
    value: Any = next((parsed(value) for value in first_values(rows, better) if value), None)
    messages = value if isinstance(value, list) else []
    if any(_role(message) in ("user", "human") for message in messages):
        return f"data.messages_column={better}"
    prompts = [name for name in usual(rows, (*_PROMPTS, *_CONVERSATIONS)) if name != better]
    if not prompts:
        if isinstance(value, str) and (mark := written_out.mark_of(rows, better)):
            return (
                f"`{better}` is already formatted as text, with marks such as `{mark}`: {written_out.way(better, mark)}"
            )
        return f"data.prompt_column=COLUMN data.completion_column={better}, where COLUMN is the column of the prompts"
    prompt = prompts[0]
    inner = parsed(next((value for value in first_values(rows, prompt) if value), None))
    if isinstance(inner, Mapping) and (key := find_column(list(inner), "messages")):
        prompt = f"{prompt}.{key}"
    return f"data.prompt_column={prompt} data.completion_column={better}"


def _role(message: Any) -> str:
    return _folded(str(message.get("role", message.get("from", "")))) if isinstance(message, Mapping) else ""


def _judged(rows: Rows) -> str | None:
    """Find a column that says true or false of each answer."""
    if not usual(rows, _CONVERSATIONS) and not (usual(rows, _PROMPTS) and usual(rows, _ANSWERS)):
        return None
    for name in usual(rows, _JUDGED):
        values = [value for value in first_values(rows, name) if value is not None and value != ""]
        if values and all(is_learned(value) is not None for value in values):
            return name
    return None


def _compared(rows: Rows) -> list[str]:
    """Find columns of numbered answers beside one that judges them."""
    by_stem: dict[str, list[str]] = {}
    for name in rows.columns:
        if found := _COMPARED.fullmatch(_folded(name)):
            by_stem.setdefault(found[1], []).append(name)
    for names in by_stem.values():
        if len(names) > 1 and any(_JUDGES.search(_folded(name)) for name in rows.columns if name not in names):
            return names
    return []
