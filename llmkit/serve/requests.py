"""Read what OpenAI's clients send, strictly: what cannot be done is refused, never dropped."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_CHOICES = 16
# What changes nothing about the answer here.
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# What is not built, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Refusal(Exception):
    """A request that is answered with an error, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def as_object(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass
class Wanted:
    """A request for texts: `options` are fields of GenerationConfig."""

    prompts: list[Any]  # texts, lists of tokens or, of a chat, one list of messages
    options: dict[str, Any]
    max_tokens: int | None
    seed: int | None
    choices: int = 1
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    echo: bool = False
    model: str | None = None
    mistakes: list[tuple[str, str]] = field(default_factory=list)


def read(body: Any, chat: bool) -> Wanted:
    """Read a request for completions or, with `chat`, for an answer; Refusal with all of its mistakes at once."""
    if not isinstance(body, dict):
        raise Refusal(400, "the body is not a JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    mistakes: list[tuple[str, str]] = []

    def take(name: str, fits: Callable[[Any], bool], needed: str, default: Any = None) -> Any:
        value = given.pop(name, default)
        if value is not default and not fits(value):
            mistakes.append((name, f"{name}: {needed} is needed, not {_short(value)}"))
            return default
        return value

    options: dict[str, Any] = {}
    temperature = take("temperature", lambda v: _number(v) and 0 <= v <= 100, "a number from 0")
    if temperature is not None:
        options |= {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": float(temperature)}
    top_p = take("top_p", lambda v: _number(v) and 0 < v <= 1, "a number above 0, up to 1")
    top_k = take("top_k", lambda v: _whole(v) and v >= -1, "a whole number")
    min_p = take("min_p", lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1")
    penalty = take("repetition_penalty", lambda v: _number(v) and 0 < v <= 100, "a number above 0")
    if penalty is not None:
        options["repetition_penalty"] = float(penalty)
    if temperature != 0:  # greedy search looks at none of these
        options |= {"top_p": float(top_p)} if top_p is not None else {}
        options |= {"top_k": max(top_k, 0)} if top_k is not None else {}
        options |= {"min_p": float(min_p)} if min_p is not None else {}
    limits = [
        take(name, lambda v: _whole(v) and v >= 1, "a whole number from 1")
        for name in ("max_completion_tokens", "max_tokens")
    ]
    stops = take("stop", _stops, "a text, or up to 16 of them,", ())
    stream_options = take("stream_options", lambda v: isinstance(v, dict), "an object", {})
    wanted = Wanted(
        prompts=_messages(given, mistakes) if chat else _prompts(given, mistakes),
        options=options,
        max_tokens=next((limit for limit in limits if limit is not None), None),
        seed=take("seed", lambda v: _whole(v) and -(2**63) <= v < 2**63, "a whole number"),
        choices=take("n", lambda v: _whole(v) and 1 <= v <= MOST_CHOICES, f"1 to {MOST_CHOICES}", 1),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        stream=take("stream", lambda v: isinstance(v, bool), "true or false", False),
        usage=bool(stream_options.get("include_usage")),
        echo=not chat and take("echo", lambda v: isinstance(v, bool), "true or false", False),
        model=take("model", lambda v: isinstance(v, str), "a text"),
    )
    for name, value in given.items():
        if name in IGNORED or value in NEUTRAL.get(name, ()) or (name == "logprobs" and chat and value is False):
            continue
        known = (
            f"{name}: {_short(value)} is not possible here" if name in NEUTRAL else f"there is no field {_short(name)}"
        )
        mistakes.append((name, known))
    if mistakes:
        raise Refusal(400, "; ".join(message for _, message in mistakes), mistakes[0][0])
    return wanted


def _prompts(given: dict[str, Any], mistakes: list[tuple[str, str]]) -> list[Any]:
    prompt = given.pop("prompt", None)
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(_whole, prompt))):
        prompt = [prompt]
    fits = isinstance(prompt, list) and 0 < len(prompt) <= MOST_CHOICES
    if not fits or not all(
        isinstance(each, str) or (isinstance(each, list) and all(map(_whole, each))) for each in prompt
    ):
        mistakes.append(("prompt", f"prompt: a text, a list of tokens, or up to {MOST_CHOICES} of either are needed"))
        return []
    if not all(prompt):
        mistakes.append(("prompt", "prompt: it is empty"))
    return prompt


def _messages(given: dict[str, Any], mistakes: list[tuple[str, str]]) -> list[Any]:
    messages, read = given.pop("messages", None), []
    if not isinstance(messages, list) or not messages:
        mistakes.append(("messages", "messages: a list of objects with `role` and `content` is needed"))
        return []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        ):
            content = "".join(part["text"] for part in content)
        if not isinstance(role, str) or role not in ROLES:
            mistakes.append(("messages", f"{where}.role: one of {', '.join(ROLES)} is needed, not {_short(role)}"))
        elif not isinstance(content, str):
            mistakes.append(("messages", f"{where}.content: a text is needed, not {_short(content)}"))
        else:
            read.append({"role": ROLES[role], "content": content})
    return [read]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stops(value: Any) -> bool:
    several = isinstance(value, list) and len(value) <= 16 and all(isinstance(each, str) and each for each in value)
    return (isinstance(value, str) and bool(value)) or several


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
