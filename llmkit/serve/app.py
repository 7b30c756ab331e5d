"""The application: a model's predictions or texts, in OpenAI's shape and its own, and a page to try it on."""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llmkit.errors import UserError
from llmkit.inference import chat, generate
from llmkit.serve import answers, requests
from llmkit.serve.engines import Ended, Predictor, RowsJob, TextJob, Writer, rows_of
from llmkit.serve.guards import Bodies, Guard, as_refusal, refusal_of
from llmkit.serve.metrics import Metrics
from llmkit.serve.requests import Refusal
from llmkit.serve.worker import Job, Worker

PAGE = Path(__file__).with_name("page.html")
T = TypeVar("T")
Action = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and who may send one."""

    max_tokens: int
    max_body: int
    key: str | None = None
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()


@dataclass
class Service:
    """A model that is served: the `engine` that its `worker` runs, under the name `id`.

    `about` is what else `/v1/models` says of it.
    """

    id: str
    engine: Writer | Predictor
    worker: Worker
    limits: Limits
    about: Mapping[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.limits.max_body)

    # ---- what it is ------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """Say that the server answers."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """List the model."""
        model = {"id": self.id, "object": "model", "created": self.started, "owned_by": "llmkit", **self.about}
        asked = request.path_params.get("model")
        if asked is None:
            return JSONResponse({"object": "list", "data": [model]})
        self._check_model(asked)
        return JSONResponse(model)

    async def counted(self, request: Request) -> Response:
        """Give the figures for Prometheus."""
        text = self.metrics.text(self.worker, self.engine.written)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def _check_model(self, asked: str | None) -> None:
        if asked not in (None, "", self.id):
            raise Refusal(404, f"there is no model `{asked}`: this server has `{self.id}`", "model", "model_not_found")

    # ---- predictions -----------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        """Predict for one row or for several, as `llmkit predict` does."""
        body = await self.bodies.read(request)
        if isinstance(self.engine, Writer):
            raise Refusal(404, f"`{self.id}` is a causal language model: POST /v1/completions")
        rows = rows_of(body)
        names = tuple(dict.fromkeys(name for row in rows for name in row))
        job = RowsJob(key=names, rows=len(rows), tokens=0, queue=asyncio.Queue(), table=rows)
        self.worker.submit([job])
        _, found = await self.unless_gone(request, [job], job.queue.get())
        if isinstance(found, BaseException):
            raise found
        if isinstance(body, list):
            return JSONResponse(found)
        if "error" in found[0]:
            raise Refusal(400, found[0]["error"])
        return JSONResponse(found[0])

    # ---- texts -----------------------------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        """Continue prompts, as OpenAI's `/v1/completions`."""
        return await self._write(request, False)

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation, as OpenAI's `/v1/chat/completions`."""
        return await self._write(request, True)

    async def _write(self, request: Request, in_chat: bool) -> Response:
        body = await self.bodies.read(request)
        if not isinstance(self.engine, Writer):
            raise Refusal(404, f"`{self.id}` writes no text: POST /predict")
        if in_chat:
            chat.check_template(self.engine.session)
        wanted = requests.read(body, in_chat)
        self._check_model(wanted.model)
        prompts = await asyncio.to_thread(self._tokens, wanted, in_chat)
        jobs, queue = self._jobs(wanted, prompts)
        decode = self._decode
        texts = [answers.Text(decode, [] if in_chat else job.prompt, wanted.stops) for job in jobs]
        self.worker.submit(jobs)
        self.metrics.prompt_tokens += sum(map(len, prompts))
        first = await self.unless_gone(request, jobs, queue.get())
        if isinstance(first[1], BaseException):
            raise first[1]
        events = _events(queue, first, jobs, texts, bool(wanted.stops) or wanted.stream)
        answer = answers.Answer(self.id, in_chat)
        echoes = [decode(job.prompt) if wanted.echo else "" for job in jobs]
        num_prompt = sum(map(len, prompts))
        if wanted.stream:
            pieces = self.pieces(answer, events, texts, echoes, num_prompt, wanted.usage)
            return _Events(pieces, jobs, self.metrics)
        await self.unless_gone(request, jobs, _all(events))
        written = [(echo + text.whole(), text.reason or "stop") for echo, text in zip(echoes, texts, strict=True)]
        counted = answers.usage(num_prompt, sum(len(text.tokens) for text in texts))
        return JSONResponse(answer.whole(written, counted))

    def _tokens(self, wanted: requests.Wanted, in_chat: bool) -> list[list[int]]:
        """Turn prompts into tokens; a conversation without a system message gets the model's own."""
        assert isinstance(self.engine, Writer)
        session = self.engine.session
        if in_chat:
            [messages] = wanted.prompts
            system = chat.system_prompt_of(session, None) if messages[0]["role"] != "system" else None
            begin = [{"role": "system", "content": system}] if system else []
            return [chat.render([*begin, *messages], session)]
        size = session.model.config.get_text_config().vocab_size
        for prompt in wanted.prompts:
            if not isinstance(prompt, str) and not all(0 <= token < size for token in prompt):
                raise Refusal(400, f"prompt: a token is outside of the vocabulary of {size:,}", "prompt")
        return [generate.encode(each, session.tokenizer) if isinstance(each, str) else each for each in wanted.prompts]

    def _jobs(self, wanted: requests.Wanted, prompts: Sequence[list[int]]) -> tuple[list[TextJob], Any]:
        """Make a job of each text that is asked for; Refusal where it does not fit the model or the limits."""
        assert isinstance(self.engine, Writer)
        most, asked = self.limits.max_tokens, wanted.max_tokens
        if asked is not None and asked > most:
            raise Refusal(400, f"max_tokens: this server allows {most:,} (--max-tokens), not {asked:,}", "max_tokens")
        config = self.engine.config(wanted.options | ({} if asked is None else {"max_new_tokens": asked}))
        queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        jobs: list[TextJob] = []
        for prompt in prompts:
            try:
                tokens, allowed = generate.new_tokens(config, self.engine.session.model, len(prompt))
            except UserError as mistake:
                raise Refusal(400, mistake.message, "prompt", "context_length_exceeded") from mistake
            if asked is not None and allowed < asked:
                raise Refusal(
                    400,
                    f"max_tokens: behind a prompt of {len(prompt):,} tokens the model has room for {allowed:,}, not "
                    f"for {asked:,}",
                    "max_tokens",
                    "context_length_exceeded",
                )
            limit = min(tokens, allowed, most)
            for _ in range(wanted.choices):
                key, live = self.engine.key(config, prompt, wanted.seed)
                size: dict[str, Any] = {"rows": 1, "tokens": len(prompt) + limit, "queue": queue, "index": len(jobs)}
                jobs.append(
                    TextJob(key=key, prompt=prompt, config=config, limit=limit, seed=wanted.seed, live=live, **size)
                )
        if wanted.seed is not None:  # the choices of one request draw one after another
            for job in jobs[1:]:
                job.seed = (wanted.seed + job.index) % 2**63
        return jobs, queue

    def _decode(self, tokens: list[int]) -> str:
        assert isinstance(self.engine, Writer)
        return str(self.engine.session.tokenizer.decode(tokens, skip_special_tokens=True))

    async def pieces(
        self,
        answer: answers.Answer,
        events: AsyncIterator[int],
        texts: Sequence[answers.Text],
        echoes: Sequence[str],
        num_prompt: int,
        with_usage: bool,
    ) -> AsyncIterator[str]:
        """Yield the events of a stream, up to its `[DONE]`."""
        try:
            for index, echo in enumerate(echoes):
                if answer.chat or echo:
                    yield _event(answer.piece(index, echo, first=True))
            async for index in events:
                text = texts[index]
                if piece := text.piece() if text.reason is None else text.rest():
                    yield _event(answer.piece(index, piece))
                if text.reason is not None:
                    yield _event(answer.piece(index, None, text.reason))
            if with_usage:
                yield _event(answer.usage(answers.usage(num_prompt, sum(len(text.tokens) for text in texts))))
        except Exception as problem:
            yield _event(as_refusal(problem).as_object())
        yield "data: [DONE]\n\n"

    async def unless_gone(self, request: Request, jobs: Sequence[Job], work: Awaitable[T]) -> T:
        """Wait for `work`; where the client goes away first, free its rows and raise ClientDisconnect."""
        done = False
        waiting, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
            done = True
            return waiting.result()
        finally:
            for task in (waiting, gone):
                task.cancel()
            if not done:
                for job in jobs:
                    job.gone = True


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    queue: asyncio.Queue[tuple[int, Any]],
    first: tuple[int, Any],
    jobs: Sequence[Job],
    texts: Sequence[answers.Text],
    as_they_come: bool,
) -> AsyncIterator[int]:
    """Yield the number of each text that has grown or ended; without `as_they_come` tokens are only collected."""
    left = set(range(len(jobs)))
    item: tuple[int, Any] | None = first
    while left:
        index, event = await queue.get() if item is None else item
        item = None
        text = texts[index]
        if isinstance(event, BaseException):
            raise event
        if index not in left:  # it has reached a stop
            continue
        if isinstance(event, Ended):
            text.reason = event.reason
        elif as_they_come:
            text.add(event)
        else:
            text.tokens.append(event)
        if text.reason is not None:
            left.remove(index)
            jobs[index].gone = True
        yield index


async def _all(events: AsyncIterator[int]) -> None:
    async for _ in events:
        pass


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


class _Events(StreamingResponse):
    """A stream of events; however it ends, its rows are free."""

    def __init__(self, pieces: AsyncIterator[str], jobs: Sequence[Job], metrics: Metrics) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(pieces, media_type="text/event-stream", headers=headers)
        self.jobs, self.metrics = jobs, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.metrics.gone += not all(job.gone for job in self.jobs)  # as it is of a text that has ended
            for job in self.jobs:
                job.gone = True


# ---- the whole -----------------------------------------------------------------------------------------------------


def application(service: Service) -> ASGIApp:
    """Put the routes of a service behind its guard."""
    page = PAGE.read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def home(request: Request) -> Response:
        secure = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(page, headers=secure)

    routes: list[tuple[str, str, Action]] = [
        ("/", "GET", home),
        ("/health", "GET", service.health),
        ("/metrics", "GET", service.counted),
        ("/v1/models", "GET", service.models),
        ("/v1/models/{model:path}", "GET", service.models),
        ("/predict", "POST", service.predict),
        ("/v1/completions", "POST", service.completions),
        ("/v1/chat/completions", "POST", service.chat_completions),
    ]

    def answered(action: Action) -> Action:
        async def answer(request: Request) -> Response:
            try:
                return await action(request)
            except ClientDisconnect:
                service.metrics.gone += 1
                return Response(status_code=499)
            except Exception as problem:
                return refusal_of(problem)

        return answer

    async def no_such(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        endpoints = ", ".join(f"{method} {path}" for path, method, _ in routes if "{" not in path)
        return refusal_of(Refusal(problem.status_code, f"there is no {request.method} {request.url.path}: {endpoints}"))

    cross = Middleware(
        CORSMiddleware,
        allow_origins=list(service.limits.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )
    inner = Starlette(
        routes=[Route(path, answered(action), methods=[method]) for path, method, action in routes],
        middleware=[cross] if service.limits.origins else [],
        exception_handlers={HTTPException: no_such},
    )
    limits = service.limits
    paths = [path for path, _, _ in routes]
    return Guard(inner, service.metrics, limits.key, limits.hosts, limits.origins, paths)
