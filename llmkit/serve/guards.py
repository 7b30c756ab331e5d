"""What stands before every request: whose it may be, how large, and how long anything may take."""

import asyncio
import hmac
import ipaddress
import json
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmkit.errors import UserError, say
from llmkit.serve.metrics import Metrics
from llmkit.serve.requests import Refusal
from llmkit.serve.worker import Busy

BODY_SECONDS = 30.0  # for a request's body to arrive
SEND_SECONDS = 60.0  # for a client to take what is sent
SMALL = 65_536  # bytes of a body that anybody may send at any time
LARGE_AT_ONCE = 16  # larger bodies that are read at a time
READ_OVER = 33_554_432  # bytes of a body too large that are read, and dropped, so that its client hears why
OPEN = {"/", "/health"}  # paths without a key


@dataclass
class Guard:
    """The outermost application: refuses what is not for this server, and answers what fails.

    `key` is the secret that clients send, if there is one; `hosts` are names beside localhost and addresses; `origins`
    are those of other sites' pages; `paths` are those that are counted by name.
    """

    app: ASGIApp
    metrics: Metrics
    key: str | None
    hosts: Sequence[str]
    origins: Sequence[str]
    paths: Sequence[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = monotonic(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        try:
            refusal = self._refusal(scope)
            await (self.app if refusal is None else refusal_of(refusal))(scope, receive, sent)
        except* (ClientDisconnect, TimeoutError, OSError):  # uvicorn closes the connection of who takes nothing
            self.metrics.gone += 1
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.count(path, status or 499, monotonic() - began)
        return None

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Refuse a request under a foreign name, from another site's page, or without the key."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own(host):
            name = _name_in(host)
            message = f"the server does not answer to the name `{name}`: start it with --allow-host {name}"
            return Refusal(403, message, code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host and origin not in self.origins:
            return Refusal(
                403,
                f"pages of `{origin}` may not use this server: start it with --allow-origin {origin}",
                code="origin_not_allowed",
            )
        if self.key is None or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return None
        given = headers.get("authorization", "").partition(" ")[2].strip()
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            message = "the key is missing or wrong: send `Authorization: Bearer KEY`"
            return Refusal(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a Host header is safe: a page of another site cannot make its own name one of these."""
        name = _name_in(host)
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return name == "localhost" or name in self.hosts


def _name_in(host: str) -> str:
    """Return the name in a Host header, without its port."""
    with suppress(ValueError):
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    return ""


def refusal_of(problem: BaseException) -> Response:
    """Write an error as OpenAI does; what is nobody's mistake goes to stderr."""
    refusal = as_refusal(problem)
    return JSONResponse(refusal.as_object(), refusal.status, refusal.headers)


def as_refusal(problem: BaseException) -> Refusal:
    """Return what a client is told of an error."""
    if isinstance(problem, Refusal):
        return problem
    if isinstance(problem, Busy):
        return Refusal(429, "too many requests wait: try again in a moment", code="busy", headers={"Retry-After": "1"})
    if isinstance(problem, UserError):
        return Refusal(400, problem.message + (f"; {problem.hint}" if problem.hint else ""))
    say("error: a request failed:", *"".join(traceback.format_exception(problem)).splitlines())
    return Refusal(500, "the server failed; its log says why")


class Bodies:
    """Reads bodies as JSON: `most` bytes each at most, and few large ones at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    async def read(self, request: Request) -> Any:
        """Read a body; Refusal where it is no JSON, too large or too slow."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "the body must be JSON: send `Content-Type: application/json`")
        told = request.headers.get("content-length", "")
        size = int(told) if told.isdecimal() else None
        if size is not None and size > self.most and (size > READ_OVER or "expect" in request.headers):
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                if size is not None and size <= SMALL:
                    body = await self.collected(request)
                else:
                    async with self._large:
                        body = await self.collected(request)
        except TimeoutError as problem:
            raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from problem
        try:
            value = json.loads(body)
            if b"\\ud" in body.lower():
                json.dumps(value, ensure_ascii=False).encode()
        except RecursionError as problem:
            raise Refusal(400, "the body is nested too deep") from problem
        except UnicodeEncodeError as problem:
            raise Refusal(400, "the body has half a character in it: a surrogate without its other half") from problem
        except ValueError as problem:
            raise Refusal(400, f"the body is not JSON: {problem}") from problem
        return value

    async def collected(self, request: Request) -> bytes:
        body, length = bytearray(), 0
        async for piece in request.stream():
            length += len(piece)
            if length > READ_OVER:
                break
            if length <= self.most:
                body += piece
            else:
                body.clear()
        if length > self.most:
            raise self._too_large()
        return bytes(body)

    def _too_large(self) -> Refusal:
        return Refusal(
            413, f"the body is larger than {self.most:,} bytes", code="body_too_large", headers={"Connection": "close"}
        )
