"""Rows of conversations: which column is which, the messages in a row, and what can be wrong with it.

`finetune` and `generate --chat --input` read with `conversation` alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmkit.data.files import BadRow, digest
from llmkit.data.rows import preferences, written_out
from llmkit.data.rows.cells import ABSENT, find_column, parsed, value_at
from llmkit.data.rows.messages import (
    Turn,
    check_text,
    history_of,
    is_learned,
    roles,
    teaches_nothing,
    text_turn,
    tools_of,
    turns_of,
    unusable,
)
from llmkit.data.rows.reader import Examined, Unusable
from llmkit.data.rows.table import Rows, first_values, need, usual
from llmkit.data.rows.turns import mend
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChatData

if TYPE_CHECKING:
    from llmkit.data.rows import conversations
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = conversations


LABEL_ROLES = ("completion", "weight")  # the roles of columns that only training and evaluation read
MESSAGES = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction", "question", "query", "input")
COMPLETIONS = ("completion", "response", "output", "answer")
INPUTS = ("input", "context")
BESIDE = {
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "tools": ("tools", "functions"),
}


@dataclass(frozen=True)
class Conversation:
    """The messages of a row, as `apply_chat_template` takes them.

    `learned` tells of each message whether it is an answer to learn. `tools` are the tools that there are; `mended`
    says what was mended, if anything.
    """

    messages: list[dict[str, Any]]
    learned: list[bool]
    tools: list[dict[str, Any]]
    mended: str | None = None


# ---- columns ---------------------------------------------------------------------------------------------------------


def resolve_columns(data: ChatData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column holds the `messages`, or which the `prompt`, perhaps its `input`, and the `completion`.

    Beside them, what holds the `system` message, the `history`, the `tools` and the `weight`.
    """
    wanted = {
        role: getattr(data, f"{role}_column")
        for role in ("messages", "prompt", "input", "completion", *BESIDE, "weight")
        if labelled or role not in LABEL_ROLES
    }
    columns = {role: need(rows, name, role) for role, name in wanted.items() if name is not None}
    parts = [role for role in ("prompt", "input", "completion") if role in columns]
    if "messages" in columns and parts:
        others = " and ".join(f"data.{role}_column" for role in parts)
        raise UserError(
            f"data.messages_column is for whole conversations, and {others} for a part of one",
            f"remove {others}, or data.messages_column",
        )
    if labelled and not columns.keys() & {"messages", "completion", "weight"}:
        preferences.refuse(rows)
    conversations = usual(rows, MESSAGES)
    if conversations and not parts:
        columns.setdefault("messages", conversations[0])
    if "messages" not in columns:
        _find_pair(columns, rows, data, labelled)
    elif columns["messages"] in rows.columns:
        written_out.refuse(rows, [columns["messages"]])
    for role, names in BESIDE.items() if data.companions else ():
        candidates = [name for name in usual(rows, names) if name not in columns.values() and _fits(role, rows, name)]
        if candidates:
            columns.setdefault(role, candidates[0])
    return columns


def _fits(role: str, rows: Rows, name: str) -> bool:
    """Tell whether a column with the usual name of a companion holds one, by its first rows."""
    return all(_is_companion(role, value) for value in first_values(rows, name))


def _is_companion(role: str, value: Any) -> bool:
    if value is None or value == "":
        return True
    return isinstance(value, str | list) if role == "system" else isinstance(parsed(value), list | Mapping)


def _find_pair(found: dict[str, str], rows: Rows, data: ChatData, labelled: bool) -> None:
    """Find the columns of the prompt, of what it is about, and of the answer."""
    needed = {"prompt": PROMPTS, "completion": COMPLETIONS} if labelled else {"prompt": PROMPTS}
    for role, names in needed.items():
        known = [name for name in usual(rows, names) if name not in found.values()]
        if role not in found and known:
            plain = [name for name in known if not written_out.mark_of(rows, name)] if len(known) > 1 else []
            found[role] = (plain or known)[0]
    if not needed.keys() <= found.keys():
        written_out.refuse(rows, rows.columns)
        raise UserError(
            f"{rows.source}: which column holds the conversations, or which hold the prompts and the answers?",
            f"set data.messages_column, or data.prompt_column and data.completion_column, choosing from: "
            f"{', '.join(rows.columns)}",
        )
    if not data.companions and found["prompt"] != find_column(rows.columns, "instruction"):
        return
    taken = {part for name in found.values() for part in (name, name.partition(".")[0])}
    about = [name for name in usual(rows, INPUTS if data.companions else INPUTS[:1]) if name not in taken]
    if about:
        found.setdefault("input", about[0])


def reshape(rows: Rows, columns: Mapping[str, str], data: ChatData) -> Rows:
    """Leave out the rows that are marked as not to be learned, by their messages or by `data.weight_column`.

    What stands beside a conversation may be missing in a file of several.
    """
    if not data.companions:
        return rows
    beside = {name: None for role, name in columns.items() if role in BESIDE or role == "input"}
    heads = {file: {**beside, **head} for file, head in rows.heads.items()}
    how = sorted((data.role_map or {}).items())
    rows = replace(rows, heads=heads, fingerprint=digest(rows.fingerprint, "conversations", how))
    read_all, notes, names = rows.read, rows.notes, roles(data.role_map)
    weight, answers = columns.get("weight"), columns.get("messages", columns.get("completion", ""))

    def read() -> Iterator[tuple[str, Any]]:
        by_column = by_messages = used = 0
        for place, row in read_all():
            if isinstance(row, BadRow):
                yield place, row
            elif weight is not None and is_learned(value_at(row, weight)) is False:
                by_column += 1
            elif teaches_nothing(value_at(row, answers), names):
                by_messages += 1
            else:
                used += 1
                yield place, row
        if not used and by_column + by_messages:
            raise UserError(
                f"{rows.source}: nothing to learn: all {by_column + by_messages:,} rows are marked as not to be "
                "learned",
                f"{f'`{weight}`, or ' * (weight is not None)}`weight`, `train` or `loss` of a message marks this "
                "by 0 or "
                "false",
            )
        for number, which in (
            (by_column, f"with `{weight}` 0 or false left out (data.weight_column)"),
            (by_messages, "left out: each answer is marked as not to be learned"),
        ):
            if number:
                text = f"{number:,} row{'s' * (number > 1)} {which}"
                notes[f"{rows.source}: {text}"] = text

    return replace(rows, read=read)


# ---- rows ------------------------------------------------------------------------------------------------------------


def conversation(
    row: Mapping[str, Any], columns: Mapping[str, str], data: ChatData, answered: bool = True
) -> Conversation:
    """Read the messages of a row, and which of them are learned.

    The answers in a prompt are given, and not learned. A conversation that is not `answered` ends before the answer
    that is to be written. Raises Unusable for what is no conversation: it is empty, a message is, or the roles are out
    of turn in a way that takes a guess.
    """
    names = roles(data.role_map)
    turns, tools = _read(row, columns, data, names, answered)
    if not turns:
        raise unusable("empty conversation", "the conversation is empty")
    parts = [turn.mended for turn in turns if turn.mended]
    turns, mended = mend(turns, answered)
    for number, turn in enumerate(turns, 1):
        check_text(turn, f"message {number}")
    if data.system_prompt is not None and turns[0].role not in ("system", "developer"):
        turns.insert(0, text_turn("system", data.system_prompt))
    kinds = dict.fromkeys([*parts, *mended])
    return Conversation(
        [turn.message for turn in turns], [turn.learned for turn in turns], tools, " and ".join(kinds) or None
    )


def _read(
    row: Mapping[str, Any], columns: Mapping[str, str], data: ChatData, names: Mapping[str, str] | None, answered: bool
) -> tuple[list[Turn], list[dict[str, Any]]]:
    """Read the turns of a row as they come, and its tools."""
    columns = dict(columns)
    if data.companions:  # the first rows may not have them all
        for role, usual_names in BESIDE.items():
            name = None if role in columns else next((name for name in usual_names if name in row), None)
            if name is not None and name not in columns.values() and _is_companion(role, row[name]):
                columns[role] = name
    values = {role: value_at(row, name) for role, name in columns.items()}
    values = {role: None if value is ABSENT and role in (*BESIDE, "input") else value for role, value in values.items()}
    missing = [columns[role] for role, value in values.items() if value is ABSENT]
    if missing:
        raise unusable(f"no `{missing[0]}`", f"no `{missing[0]}`; the row has {', '.join(row) or 'nothing'}")
    weights = data.companions
    found: list[Turn] = []
    if (system := values.get("system")) is not None and system != "":
        found.append(text_turn("system", system))
    found += history_of(values.get("history"), columns.get("history", ""), names, weights)
    if "messages" in columns:
        found += turns_of(values["messages"], columns["messages"], names, weights)
        if len(found) > 1 and found[0].message == found[1].message and found[0].role == "system":
            del found[0]  # the column repeats the message
    else:
        prompt, about = values["prompt"], values.get("input")
        if isinstance(about, str) and about.strip():
            if not isinstance(prompt, str):
                fault = f"`{columns['prompt']}` is not text, so `{columns['input']}` cannot be added to it"
                raise unusable("no text", fault)
            prompt = f"{prompt}\n\n{about}"
        asked = _part(prompt, "user", columns["prompt"], names, weights)
        found += [replace(turn, learned=False) for turn in asked]
        if answered:
            answer = _part(values["completion"], "assistant", columns["completion"], names, weights)
            if not answer:
                raise unusable("empty answer", "the answer is empty")
            found += answer
    return found, tools_of(values.get("tools"))


def _part(value: Any, role: str, column: str, names: Mapping[str, str] | None, weights: bool) -> list[Turn]:
    """Read a column that holds messages, or a text that is one of this role."""
    if isinstance(value, list | Mapping):
        return turns_of(value, column, names, weights)
    return [text_turn(role, value)]


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """Yield what a tokenizer of one's own is trained on: the messages. What is no conversation is refused later."""
    try:
        found, _ = _read(row, columns, ChatData(path="-", companions=False), None, "completion" in columns)
    except Unusable:
        return
    yield from (turn.message["content"] for turn in found)


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: ChatData, evaluation: bool) -> Examined:
    """Read the messages of a row."""
    found = conversation(row, columns, data)
    if not any(found.learned):
        message = "none of its answers is learned: each has weight 0, or `train` or `loss` false"
        raise unusable("nothing to learn, by its weights", message, "")
    return Examined(mended=found.mended)


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: ChatData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw from all rows alike."""
    return [None] * len(targets), {}
