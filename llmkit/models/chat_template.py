"""What the chat template of a tokenizer writes, and what of a conversation it knows: found out by rendering."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import TemplateError

from llmkit.data.rows.conversations import Conversation
from llmkit.data.rows.reader import Unusable
from llmkit.errors import in_words

PROBE = "qVzW"  # stands for a text where only the template around it matters
DEVELOPER = "the role `developer` read as `system`, which the chat template knows"
WITHOUT_TOOLS = (
    "choose a model whose chat template writes `tools` and `tool_calls`, as Qwen/Qwen2.5-0.5B-Instruct does "
    "(model.name), or a tokenizer with such a chat_template.jinja (tokenizer.name)"
)
_OWN = ("role", "content", "tool_calls")
_Message = dict[str, Any]
_USER: _Message = {"role": "user", "content": "?"}
_ASSISTANT: _Message = {"role": "assistant", "content": "!"}
_TOOL: _Message = {
    "type": "function",
    "function": {
        "name": PROBE,
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"n": {"type": "number", "description": "A number."}}},
    },
}
_CALL: _Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": PROBE, "arguments": {"n": 1}}}],
}
_RESULT: _Message = {"role": "tool", "name": PROBE, "tool_call_id": "call00001", "content": "2"}


class Fitted(NamedTuple):
    """A conversation as a template can write it, each message with whether it is learned.

    `mended` is what was changed, `unused` what the template has no place for.
    """

    messages: list[dict[str, Any]]
    learned: list[bool]
    tools: list[dict[str, Any]] | None
    mended: str | None
    unused: tuple[str, ...]


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._used: dict[tuple[str, str], bool] = {}

    def write(self, messages: Sequence[dict[str, Any]], tools: Any = None, asking: bool = False) -> str:
        """Return the text that the template makes of messages; `asking`: with the generation prompt behind it.

        Raises ValueError where it refuses them.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tools=tools or None, tokenize=False, add_generation_prompt=asking
                )
            )
        except TemplateError as problem:
            raise ValueError(f"the chat template refuses it: {' '.join(str(problem).split())}") from problem
        except Exception as problem:  # it is a program: it can divide by zero
            raise ValueError(f"the chat template fails on it: {in_words(problem)}") from problem

    def fit(self, conversation: Conversation) -> Fitted:
        """Fit a conversation to the template; raise Unusable where it has calls of tools and the template has not."""
        messages, tools = conversation.messages, conversation.tools or None
        unused: dict[str, None] = {}
        if any("tool_calls" in message for message in messages) and not self.knows_calls:
            raise Unusable(
                "tool calls, which the chat template leaves out",
                "the assistant calls a tool, but the chat template does not support tool calls",
                WITHOUT_TOOLS,
            )
        if tools and not self.knows_tools:
            tools = None
            unused["`tools`"] = None
        mended = None
        if any(message["role"] == "developer" for message in messages) and not self.knows_developer:
            messages, mended = _as_system(messages), DEVELOPER
        for message in messages:
            for key in message:
                if key not in _OWN and not self._uses(message["role"], key, message[key]):
                    unused[f"`{key}` of a message"] = None
        learned = conversation.learned[len(conversation.messages) - len(messages) :]  # one may have joined the first
        return Fitted(messages, learned, tools, mended, tuple(unused))

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it writes the list of tools."""
        return self._shows([_USER], [_TOOL]) or self._shows([{"role": "system", "content": "?"}, _USER], [_TOOL])

    @cached_property
    def knows_calls(self) -> bool:
        """Whether it writes calls of tools."""
        call = [_USER, _CALL]
        plain = {**_RESULT, "name": "x"}
        return any(self._shows(messages, None) for messages in (call, [*call, plain], [*call, plain, _ASSISTANT]))

    @cached_property
    def knows_developer(self) -> bool:
        """Whether it has the role `developer`, and does not just write out any role."""
        try:
            own, other = (
                self.write([{"role": role, "content": PROBE}, _USER, _ASSISTANT]) for role in ("developer", "kMxQ")
            )
        except ValueError:
            return self._shows([{"role": "developer", "content": PROBE}, _USER, _ASSISTANT], None)
        return PROBE in own and own.replace("developer", "kMxQ") != other

    def _shows(self, messages: list[dict[str, Any]], tools: Any) -> bool:
        try:
            return PROBE in self.write(messages, tools)
        except ValueError:
            return False

    def _uses(self, role: str, key: str, value: Any) -> bool:
        """Tell whether the template writes another text for a message of this role with `key`; by the first value."""
        if (role, key) not in self._used:
            self._used[role, key] = self._differs(role, key, value)
        return self._used[role, key]

    def _differs(self, role: str, key: str, value: Any) -> bool:
        message = {"role": role, "content": PROBE}
        around: dict[str, tuple[list[_Message], list[_Message]]] = {
            "assistant": ([_USER], []),
            "tool": ([_USER, _CALL], [_ASSISTANT]),
            "user": ([], [_ASSISTANT]),
        }
        before, behind = around.get(role, ([], [_USER, _ASSISTANT]))
        try:
            plain, with_key = (self.write([*before, each, *behind]) for each in (message, {**message, key: value}))
        except ValueError:
            return True  # it looks at the key, if only to refuse it
        return plain != with_key


def _as_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rename the developer's message, and join it to a system message before it."""
    found: list[dict[str, Any]] = []
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        if found and role == found[-1]["role"] == "system":
            texts = [text for text in (found[-1]["content"], message["content"]) if text.strip()]
            found[-1] = {**found[-1], "content": "\n\n".join(texts)}
        else:
            found.append({**message, "role": role})
    return found
