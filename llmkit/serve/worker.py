"""Run jobs on a model in one thread: those that arrive together and ask for the same are run together."""

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from llmkit.errors import UserError, say

WINDOW = 0.005  # seconds without a new job after which a batch begins
GATHERING = 0.05  # seconds that the oldest job waits for others at most


class Busy(Exception):
    """As many jobs wait as may."""


@dataclass(eq=False)
class Job:
    """What the model is asked; jobs of equal `key` may be run together.

    `rows` and `tokens` are its size: rows of a batch, and the longest row's tokens. Events go to `queue`, each behind
    the `index`: what `Worker.run` puts there, an exception, or None at the end. Set `gone` where nobody waits for it
    any longer.
    """

    key: Hashable
    rows: int
    tokens: int
    queue: asyncio.Queue[tuple[int, Any]]
    index: int = 0
    gone: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


def put(events: Sequence[tuple[Job, Any]]) -> None:
    """Put events into the queues of jobs, from the thread of the model."""

    def now() -> None:
        for job, event in events:
            job.queue.put_nowait((job.index, event))

    if events:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            events[0][0].loop.call_soon_threadsafe(now)


class Worker:
    """The thread that owns the model, and the jobs that wait for it, the oldest first."""

    def __init__(self, run: Callable[[list[Any]], None], most_rows: int, most_tokens: int, most_waiting: int) -> None:
        """Make a worker.

        Args:
            run: Runs a batch of jobs, and puts their events, the end included.
            most_rows: Rows of a batch.
            most_tokens: Tokens of a batch, padding included.
            most_waiting: Rows that may wait.
        """
        self.run, self.most_rows, self.most_tokens, self.most_waiting = run, most_rows, most_tokens, most_waiting
        self.batches = self.rows = 0
        self.running: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of rows that wait."""
        return sum(job.rows for job in tuple(self._waiting) if not job.gone)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for the model; raise Busy, and take none of them, where there is no room for all."""
        with self._changed:
            if self._closed or self.waiting + sum(job.rows for job in jobs) > self.most_waiting:
                raise Busy
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self, seconds: float = 10) -> None:
        """End the thread: what waits is dropped, what runs ends at its next token."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self.running):
                job.gone = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while jobs := self._next():
            self.batches += 1
            self.rows += sum(job.rows for job in jobs)
            try:
                self.run(jobs)
            except UserError as mistake:
                put([(job, mistake) for job in jobs])
            except Exception as problem:
                say("error: a request failed:", *traceback.format_exc().splitlines())
                put([(job, problem) for job in jobs])
            with self._changed:
                self.running = []

    def _next(self) -> list[Job]:
        """Wait for jobs, a moment for more of them, and take those that can run with the oldest; none at the end."""
        with self._changed:
            while not self._drop_gone() and not self._closed:
                self._changed.wait()
            latest = monotonic() + GATHERING
            while not self._closed and (left := latest - monotonic()) > 0:
                if not self._changed.wait(min(WINDOW, left)):
                    break
            if self._closed or not self._drop_gone():
                return [] if self._closed else self._next()
            first = self._waiting[0]
            taken, rows, tokens = [], 0, 0
            for job in self._waiting:
                longest = max(tokens, job.tokens)
                fits = rows + job.rows <= self.most_rows and (rows + job.rows) * longest <= self.most_tokens
                if job is first or (job.key == first.key and fits):
                    taken.append(job)
                    rows, tokens = rows + job.rows, longest
            chosen = set(taken)
            self._waiting = deque(job for job in self._waiting if job not in chosen)
            self.running = taken
            return taken

    def _drop_gone(self) -> bool:
        """Forget the jobs that nobody waits for; return whether there are others."""
        self._waiting = deque(job for job in self._waiting if not job.gone)
        return bool(self._waiting)
