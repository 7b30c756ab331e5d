"""Turn tokens into text as they come, and texts into the objects that OpenAI's clients read."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CONTEXT = 8  # tokens of the prompt that a first piece of text is decoded behind


@dataclass
class Text:
    """A text that grows by tokens; it ends before the first of `stops`.

    `behind` are the prompt's tokens that it is decoded together with: alone, SentencePiece tokenizers drop the space
    that a text begins with. An answer of a chat begins on its own.
    """

    decode: Callable[[list[int]], str]
    behind: list[int]
    stops: tuple[str, ...] = ()
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    sent: str = ""
    _whole: str = ""
    _window: list[int] = field(default_factory=list)  # the last tokens: some whose text is known, then those pending
    _known: int = 0

    def __post_init__(self) -> None:
        self._window = self.behind[-CONTEXT:]
        self._known = len(self._window)

    def add(self, token: int) -> None:
        """Add a token; sets `reason` where the text reaches a stop."""
        self.tokens.append(token)
        self._window.append(token)
        before, now = self.decode(self._window[: self._known]), self.decode(self._window)
        if len(now) <= len(before) or now.endswith("\ufffd"):  # nothing to see, or half a character
            return
        searched = max(0, len(self._whole) - max(map(len, self.stops), default=1) + 1)
        self._whole += now[len(before) :]
        self._window, self._known = self._window[self._known :], len(self._window) - self._known
        if any(self._whole.find(stop, searched) >= 0 for stop in self.stops):
            self.reason = "stop"

    def piece(self) -> str:
        """Return what can be sent now: not what may be the beginning of a stop."""
        withheld = max(map(len, self.stops), default=1) - 1
        piece = self._whole[len(self.sent) : max(len(self.sent), len(self._whole) - withheld)]
        self.sent += piece
        return piece

    def rest(self) -> str:
        """Return what is left to send at the end."""
        whole = self.whole()
        return whole[len(self.sent) :] if whole.startswith(self.sent) else ""

    def whole(self) -> str:
        """Return the whole text, decoded at once."""
        text = self.decode(self.behind + self.tokens)[len(self.decode(self.behind)) :]
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


@dataclass
class Answer:
    """The objects of one answer, whole or in pieces."""

    model: str
    chat: bool
    id: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        self.id, self.created = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}", int(time.time())

    def whole(self, texts: list[tuple[str, str]], usage: dict[str, int]) -> dict[str, Any]:
        """Return the answer with all texts, each with the reason it ended."""
        choices = [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}),
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(texts)
        ]
        return {**self._head("chat.completion" if self.chat else "text_completion"), "choices": choices, "usage": usage}

    def piece(self, index: int, text: str | None, reason: str | None = None, first: bool = False) -> dict[str, Any]:
        """Return a piece of the text number `index`; the first and the last may have none."""
        if self.chat:
            delta = {"role": "assistant", "content": ""} if first else {}
            content: dict[str, Any] = {"delta": delta | ({"content": text} if text else {})}
        else:
            content = {"text": text or ""}
        return {**self._chunk(), "choices": [{"index": index, **content, "logprobs": None, "finish_reason": reason}]}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the last piece, which counts tokens."""
        return {**self._chunk(), "choices": [], "usage": usage}

    def _chunk(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.chat else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Count tokens as OpenAI does."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
