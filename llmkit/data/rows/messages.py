"""Read messages in the shapes that they come in: OpenAI's and ShareGPT's, pairs, parts of text, calls of tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.data.rows.cells import parsed
from llmkit.data.rows.reader import Unusable

ROLES = ("system", "developer", "user", "assistant", "tool")
CALL = "function_call"
USUAL_ROLES = {role: role for role in (*ROLES, CALL)} | {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_call": CALL,
}
HINT = (
    "a conversation is a list of messages: user and assistant take turns after an optional system message, "
    "the last message is the assistant's, and none is empty"
)
_WHO, _WHAT = ("role", "from", "speaker"), ("content", "value", "text")
_WEIGHTS = ("weight", "train", "loss")
_LEARNED = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_TEXT_PARTS = ("text", "input_text", "output_text")
PARTS_JOINED = "the parts of a message joined by line breaks"


@dataclass
class Turn:
    """A message as the chat template takes it, whether it is to be learned, and what was mended to read it."""

    message: dict[str, Any]
    learned: bool = False
    mended: str | None = None

    @property
    def role(self) -> str:
        return str(self.message["role"])

    @property
    def empty(self) -> bool:
        """Whether it says nothing; an empty system message is one that says so."""
        return not self.message.get("tool_calls") and not self.message["content"].strip() and self.role != "system"


def unusable(kind: str, message: str, hint: str = HINT) -> Unusable:
    return Unusable(kind, message, hint)


def roles(role_map: Mapping[str, str] | None) -> dict[str, str]:
    """Return the role that each name stands for, the usual names and those of `role_map`."""
    return USUAL_ROLES | {_folded(name): USUAL_ROLES.get(role, role) for name, role in (role_map or {}).items()}


def turns_of(value: Any, column: str, names: Mapping[str, str] | None, weights: bool = True) -> list[Turn]:
    """Read a list of messages, also as JSON or Python write it; a single message is a list of one.

    `column` is the one that holds it. `names` has the role of each name; with None, anyone is a user. With `weights`, a
    message with `weight`, `train` or `loss` 0 is not learned; else these are left to the chat template. Raises Unusable
    for what is no list of messages.
    """
    value = parsed(value)
    if isinstance(value, str):
        raise unusable("not JSON", f"`{column}` holds text that is not JSON")
    if isinstance(value, Mapping):
        value = _listed(value)
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        message = "a conversation is a list of messages, each with `role` and `content`"
        raise unusable("not a list of messages", message)
    return [turn for number, each in enumerate(value, 1) for turn in _turns(each, f"message {number}", names, weights)]


def text_turn(role: str, value: Any) -> Turn:
    """Read what stands in a column of this role as one message."""
    return _turn({"role": role, "content": value}, f"the {role}'s message", USUAL_ROLES, weights=False)


def history_of(value: Any, column: str, names: Mapping[str, str] | None, weights: bool) -> list[Turn]:
    """Read the turns before a prompt: pairs of a question and its answer, or messages."""
    value = parsed(value)
    if not value:
        return []
    if isinstance(value, list) and all(isinstance(pair, list | tuple) for pair in value):
        if any(len(pair) != 2 for pair in value):
            raise unusable("no pairs in its history", "its history is not made of pairs of a question and an answer")
        messages = [
            text_turn(role, text) for pair in value for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        for turn in messages:
            turn.learned = turn.role == "assistant"
        return messages
    return turns_of(value, column, names, weights)


def tools_of(value: Any) -> list[dict[str, Any]]:
    """Read a list of tools, or JSON of it, as `apply_chat_template` takes them: each with its `type` and `function`."""
    value = parsed(value)
    if value is None or value == "" or value == []:
        return []
    listed = [parsed(tool) for tool in value] if isinstance(value, list) else [value]
    if not all(isinstance(tool, Mapping) for tool in listed):
        raise unusable(
            "not a list of tools", "its tools are not a list of tables, or JSON of one", "each tool must be a table"
        )
    return [
        _without_none(tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool})
        for tool in listed
    ]


def _without_none(value: Any) -> Any:
    """Leave out what is None: Parquet gives each table the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _listed(value: Mapping[str, Any]) -> list[Any]:
    """Turn a table of lists, as which Parquet may hold messages, into a list of tables."""
    columns = [each for each in value.values() if each is not None]
    if columns and all(isinstance(each, list) for each in columns) and any(key in value for key in _WHO):
        number = max(map(len, columns))
        if any(len(each) != number for each in columns):
            raise unusable("not a list of messages", "its messages have different numbers of roles and contents")
        return [{key: each[i] for key, each in value.items() if each is not None} for i in range(number)]
    return [value]


def _turns(each: Mapping[str, Any], place: str, names: Mapping[str, str] | None, weights: bool) -> Iterator[Turn]:
    """Read a message, or several that stand in one table under the names of their roles."""
    fields = {key: value for key, value in each.items() if value is not None}
    if any(key in fields for key in _WHO):
        yield _turn(fields, place, names, weights)
    elif fields and names is not None and all(_folded(key) in names for key in fields):
        for who, content in fields.items():
            yield _turn({"role": who, "content": content}, place, names, weights)
    else:
        shown = ", ".join(fields) or "nothing"
        raise unusable("unknown role", f"{place} has no role; it has {shown}")


def _turn(fields: Mapping[str, Any], place: str, names: Mapping[str, str] | None, weights: bool) -> Turn:
    rest = dict(fields)
    who = rest.pop(next(key for key in _WHO if key in rest))
    content = rest.pop(next((key for key in _WHAT if key in rest), "content"), None)
    role = "user" if names is None else names.get(_folded(who))
    if role is None:
        raise unusable(
            "unknown role",
            f"{place} has the role {who!r}; the roles are {', '.join(ROLES)}",
            f'set data.role_map={{"{who}" = "user"}} to say which role it is: user, assistant, tool, ...',
        )
    learned = _learned(rest, place) if weights else True
    calls = [*_calls(rest.pop("function_call", None), place), *_calls(rest.pop("tool_calls", None), place)]
    if role == CALL:
        role, calls, content = "assistant", _calls(content, place) or _no_call(place), ""
    mended = None
    if isinstance(content, list):
        content, mended = _joined(content, f"{place}, the {role}'s,")
    elif isinstance(content, Mapping) and role == "tool":
        content = json.dumps(content, ensure_ascii=False)
    elif content is not None and not isinstance(content, str):
        fault = f"{place}, the {role}'s, holds {type(content).__name__}, not text"
        raise unusable("a message is not text", fault)
    message = {"role": role, "content": content or "", **rest}
    if calls:
        message["tool_calls"] = calls
    return Turn(message, role == "assistant" and learned, mended)


def _folded(name: Any) -> str:
    return str(name).strip().casefold()


def _learned(fields: dict[str, Any], place: str) -> bool:
    """Take the weight of a message out of it; tell whether it is learned."""
    weights = {key: fields.pop(key) for key in _WEIGHTS if key in fields}
    for key, value in weights.items():
        if is_learned(value) is None:
            raise unusable(
                "a weight that is neither 0 nor 1", f"{place} has the {key} {value!r}, where 0 or 1 is expected", ""
            )
    return all(is_learned(value) for value in weights.values())


def teaches_nothing(value: Any, names: Mapping[str, str]) -> bool:
    """Tell whether messages have answers, and weights by which none of them is learned."""
    if isinstance(value, str) and not any(weight in value for weight in _WEIGHTS):
        return False
    value = parsed(value)
    value = value if isinstance(value, list) else [value]
    if not any(isinstance(message, Mapping) and any(key in message for key in _WEIGHTS) for message in value):
        return False
    try:
        answers = [turn for turn in turns_of(value, "", names) if turn.role == "assistant"]
    except Unusable:
        return False
    return bool(answers) and not any(turn.learned for turn in answers)


def is_learned(value: Any) -> bool | None:
    """Tell what a weight says: 1 or true is learned, 0 or false not; None for any other value."""
    return _LEARNED.get(_folded(value))


def _joined(parts: Sequence[Any], place: str) -> tuple[str, str | None]:
    """Join the parts of a message; return the text, and what was mended where there are several."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif (
            isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS and isinstance(part.get("text"), str)
        ):
            texts.append(part["text"])
        else:
            kind = str(part.get("type", "?") if isinstance(part, Mapping) else type(part).__name__)
            kind = "image" if "image" in kind else kind
            raise unusable(
                f"a message holds more than text: {kind}",
                f"{place} holds a part of type {kind}",
                "a language model reads only text: no images, audio or files",
            )
    return "\n".join(texts), PARTS_JOINED if len(texts) > 1 else None


def _calls(value: Any, place: str) -> list[dict[str, Any]]:
    """Read calls of tools: one or a list, in JSON or as tables, as `apply_chat_template` takes them."""
    value = parsed(value)
    if not value:
        return []
    calls = []
    for call in [parsed(each) for each in value] if isinstance(value, list) else [value]:
        call = {key: each for key, each in call.items() if each is not None} if isinstance(call, Mapping) else {}
        call = call if "function" in call else {"type": "function", "function": call}
        function = call["function"]
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            _no_call(place)
        arguments = parsed(function.get("arguments", function.get("parameters", {})))
        function = {"name": function["name"], "arguments": {} if arguments in (None, "") else arguments}
        calls.append({"type": "function", **call, "function": function})
    return calls


def _no_call(place: str) -> list[dict[str, Any]]:
    message = f"{place} calls a tool, but not as JSON with its `name` and `arguments`"
    raise unusable("a tool call that cannot be read", message, 'a tool call is {"name": ..., "arguments": {...}}')


def check_text(turn: Turn, place: str) -> None:
    """Raise Unusable for a message that says nothing, or that no tokenizer can read."""
    if turn.empty:
        kind = "empty answer" if turn.role == "assistant" else "empty message"
        raise unusable(kind, f"{place}, the {turn.role}'s, is empty")
    try:
        turn.message["content"].encode()
    except UnicodeEncodeError:
        fault = f"{place}, the {turn.role}'s, holds half a character (a lone surrogate)"
        raise unusable("half a character", fault) from None
