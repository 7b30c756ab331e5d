"""Rows of conversations: which column is which, whose turn it is, and what can be wrong with a row."""

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.data.rows.cells import ABSENT, find_column, value_at
from llmkit.data.rows.reader import Examined, Unusable
from llmkit.data.rows.table import Rows, need, usual
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChatData

if TYPE_CHECKING:
    from llmkit.data.rows import conversations
    from llmkit.data.rows.reader import RowReader

    reader: RowReader = conversations


LABEL_ROLES = ("completion",)  # the roles of columns that only training and evaluation read
reshape = None  # rows are read as they come
MESSAGES, PROMPTS, COMPLETIONS = (
    ("messages", "conversations"),
    ("prompt", "instruction"),
    ("completion", "response", "output"),
)
ROLES = ("system", "user", "assistant", "tool")
HINT = (
    "a conversation is a list of messages: user and assistant take turns behind an optional system message, "
    "the last is the assistant's, and none is empty"
)
SHAREGPT = {"human": "user", "gpt": "assistant"}
# Each role by its first letter: the user and the assistant take turns, who may use tools before it answers.
IN_TURNS = re.compile("s?(ua(t+a)*)+")


def resolve_columns(data: ChatData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Choose which column holds the `messages`, or which the `prompt`, perhaps its `input`, and the `completion`."""
    columns = rows.columns
    wanted = {
        "messages": data.messages_column,
        "prompt": data.prompt_column,
        "input": data.input_column,
        "completion": data.completion_column,
    }
    needed = {"prompt", "completion"} if labelled else {"prompt"}
    found = {role: name for role, name in wanted.items() if name is not None and (labelled or role != "completion")}
    found = {role: need(rows, name, role) for role, name in found.items()}
    if "messages" in found and len(found) > 1:
        others = " and ".join(f"data.{role}_column" for role in found if role != "messages")
        raise UserError(
            f"data.messages_column holds whole conversations, and {others} a part of one",
            f"take out {others}, or data.messages_column",
        )
    conversations = usual(rows, MESSAGES)
    if not found and conversations:
        found["messages"] = conversations[0]
    if "messages" in found:
        return found
    for role, names in (("prompt", PROMPTS), ("completion", COMPLETIONS)):
        if role not in needed:
            continue
        known = [name for name in usual(rows, names) if name not in found.values()]
        if role not in found and known:
            found[role] = known[0]
    about = find_column(columns, "input")
    if about is not None and found.get("prompt") == find_column(columns, "instruction"):
        found.setdefault("input", about)
    if not needed <= found.keys():
        raise UserError(
            f"{rows.source}: which column holds the conversations, or which the prompts and the answers?",
            f"set data.messages_column, or data.prompt_column and data.completion_column, to: {', '.join(columns)}",
        )
    return found


def conversation(
    row: Mapping[str, Any], columns: Mapping[str, str], system_prompt: str | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Read the messages of a row, and how many of them are the prompt, whose answers are not learned.

    Raises Unusable for what is no conversation: it is empty, a message is, or the roles are not in turn.
    """
    values = {role: value_at(row, name) for role, name in columns.items()}
    missing = [columns[role] for role, value in values.items() if value is ABSENT and role != "input"]
    if missing:
        raise _unusable(f"no `{missing[0]}`", f"no `{missing[0]}`; the row has {', '.join(row) or 'nothing'}")
    if "messages" in columns:
        value = values["messages"]
        try:
            found = _messages(json.loads(value) if isinstance(value, str) else value)
        except json.JSONDecodeError:
            raise _unusable("not JSON", f"`{columns['messages']}` holds text that is not JSON") from None
        given = 0
    else:
        prompt, about = values["prompt"], values.get("input")
        if isinstance(about, str) and about.strip():
            if not isinstance(prompt, str):
                fault = f"`{columns['prompt']}` is no text, to which `{columns['input']}` could be added"
                raise _unusable("no text", fault)
            prompt = f"{prompt}\n\n{about}"
        found = _messages(prompt, "user")
        given = len(found)
        found += _messages(values["completion"], "assistant")
        if len(found) == given:
            raise _unusable("empty answer", "the answer is empty")
    if not found:
        raise _unusable("empty conversation", "the conversation is empty")
    for number, message in enumerate(found, 1):
        _check(message, f"message {number}")
    roles = [message["role"] for message in found]
    if not IN_TURNS.fullmatch("".join(role[0] for role in roles)):
        shown = ", ".join(roles[:6]) + (f" and {len(roles) - 6} more" if len(roles) > 6 else "")
        raise _unusable("roles out of turn", f"the roles are not in turn: {shown}")
    if system_prompt is not None and roles[0] != "system":
        found.insert(0, {"role": "system", "content": system_prompt})
        given += given > 0
    return found, given


def _messages(value: Any, role: str = "") -> list[dict[str, Any]]:
    """A list of messages, or the one that a text in a column of this role is; ShareGPT's names become the usual ones.

    Whatever else a message has (`tool_calls`, `name`) is the template's to use.
    """
    if role and not isinstance(value, list):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        message = "a conversation is a list of messages, each with `role` and `content`"
        raise _unusable("no list of messages", message)
    found = []
    for each in value:
        if "from" in each:
            who = each["from"]
            found.append({"role": SHAREGPT.get(str(who), who), "content": each.get("value")})
        else:
            found.append({key: part for key, part in each.items() if part is not None})
    return found


def _check(message: Mapping[str, Any], place: str) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise _unusable("unknown role", f"{place} has the role {role!r}; there are {', '.join(ROLES)}")
    if content is None and message.get("tool_calls"):
        return
    if content is not None and not isinstance(content, str):
        raise _unusable("a message is no text", f"{place}, the {role}'s, holds {type(content).__name__}, not text")
    if not (content or "").strip() and not message.get("tool_calls"):
        raise _unusable("empty answer" if role == "assistant" else "empty message", f"{place}, the {role}'s, is empty")
    try:
        (content or "").encode()
    except UnicodeEncodeError:
        fault = f"{place}, the {role}'s, holds half a character (a lone surrogate)"
        raise _unusable("half a character", fault) from None


def _unusable(kind: str, message: str) -> Unusable:
    return Unusable(kind, message, HINT)


def texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """Yield what a tokenizer of one's own is trained on: the messages. What is no conversation is refused later."""
    try:
        found, _ = conversation(row, columns)
    except Unusable:
        return
    yield from (message.get("content") or "" for message in found)


def examine(row: Mapping[str, Any], columns: Mapping[str, str], data: ChatData, evaluation: bool) -> Examined:
    """Read the messages of a row."""
    conversation(row, columns)
    return Examined()


def strata(
    targets: Sequence[Any], rows: Rows, columns: Mapping[str, str], data: ChatData
) -> tuple[Sequence[Hashable], Mapping[int, Unusable]]:
    """Draw from all rows alike."""
    return [None] * len(targets), {}
