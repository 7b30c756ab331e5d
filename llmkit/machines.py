"""Several machines, or processes, that begin and end one run together.

Each gives a sign every second: that it lives, what it does, and at the end its exit code. The first, number 0, waits
until all are ready, and the others wait for the first; so each waits as long as the other lives, and no longer. Signs
are files on shared storage, or values in torch's store where a scheduler started the processes.
"""

import json
import platform
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from llmkit.errors import RunError, UserError, say
from llmkit.process import STOPPED

BEAT = 1.0  # seconds between two signs
SILENCE = 20.0  # seconds without a new sign after which another is given up
ARRIVAL = 600.0  # seconds in which the others must arrive at the first
FAREWELL = 10.0  # seconds that the first waits at the end for the others to read its exit code
FIRST_LINE, LINE = 3.0, 60.0  # seconds until a line says what is waited for, and between two of them
READY, GO, GONE = "ready", "training", "gone"
INTERRUPTED = (STOPPED, 130)


class Ended(UserError):
    """Another machine or process ended before this one had begun to train; `code` is its exit code."""

    def __init__(self, who: str, code: int, reason: str) -> None:
        super().__init__(f"{who} has ended with exit code {code}" + (f": {reason}" if reason else ""))
        self.code = code


class Board(Protocol):
    """Where signs are put and read."""

    member: str  # the word for those who give signs
    is_new: bool  # whether nothing that is older than this run can be read there

    def write(self, number: int, sign: dict[str, Any]) -> None: ...

    def read(self, number: int) -> dict[str, Any] | None: ...

    def missing(self) -> UserError: ...

    def close(self) -> None: ...


class Folder:
    """Signs of machines as files in a hidden folder beside the run directory, which the first makes and removes."""

    member, is_new = "machine", False

    def __init__(self, run: Path, first: bool) -> None:
        self.run, self.path, self.first = run, run.with_name(f".{run.name}.machines"), first
        if first:
            try:
                shutil.rmtree(self.path, ignore_errors=True)  # of a run that was killed
                self.path.mkdir(parents=True)
            except OSError as problem:
                raise UserError(
                    f"the output directory `{run}` cannot be written: {problem.strerror}",
                    "name another with --output-dir",
                ) from problem

    def write(self, number: int, sign: dict[str, Any]) -> None:
        with suppress(OSError):  # the folder is not there yet, or not any more
            draft = self.path / f".{number}.json"
            draft.write_text(json.dumps(sign))
            draft.replace(self.path / f"{number}.json")

    def read(self, number: int) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            for folder in (self.path.parent, self.path):
                next(folder.iterdir(), None)  # NFS looks for what is new in a folder when that is opened
            sign = json.loads((self.path / f"{number}.json").read_text())
            return sign if isinstance(sign, dict) else None
        return None

    def missing(self) -> UserError:
        there = self.path.is_dir()
        what = "given a sign in" if there else "made"
        return UserError(
            f"the first machine has not {what} `{self.path}` within {SILENCE:.0f} seconds",
            "start the first machine first, and then the others"
            if there
            else f"is `{self.run.parent}` on storage that all machines share, and has the first machine been started?",
        )

    def close(self) -> None:
        if self.first:
            shutil.rmtree(self.path, ignore_errors=True)


class Store:
    """Signs of processes as values in torch's store, which the launcher or process 0 serves."""

    member, is_new = "process", True

    def __init__(self, store: Any) -> None:
        self.store = store

    def write(self, number: int, sign: dict[str, Any]) -> None:
        with suppress(RuntimeError):  # process 0 is gone
            self.store.set(f"llmkit/{number}", json.dumps(sign))

    def read(self, number: int) -> dict[str, Any] | None:
        try:
            there = self.store.check([f"llmkit/{number}"])
            return dict(json.loads(self.store.get(f"llmkit/{number}"))) if there else None
        except RuntimeError as problem:
            raise RunError("process 0 is gone", "look at its output") from problem

    def missing(self) -> UserError:
        return RunError(f"process 0 has given no sign within {SILENCE:.0f} seconds", "look at its output")

    def close(self) -> None:
        pass


class Member:
    """One machine, or process, of a run."""

    def __init__(self, board: Board, number: int, size: int, talks: bool) -> None:
        self.board, self.number, self.size, self.talks = board, number, size, talks
        self._sign: dict[str, Any] = {"life": uuid.uuid4().hex, "host": platform.node(), "stage": "starting"}
        self._beats, self._lock, self._over = 0, threading.Lock(), threading.Event()
        self._seen: dict[int, tuple[Any, float]] = {}  # of each other: its newest sign, and when that came
        self._alive: set[int] = set()
        self._lost: set[int] = set()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def tell(self, **facts: Any) -> None:
        """Add facts to this one's sign, such as its stage."""
        with self._lock:
            self._sign.update(facts)
            self._beats += 1
            self.board.write(self.number, {**self._sign, "beat": self._beats})

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self.tell()

    def wait_for(self, other: int, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait as long as another lives, until its sign is as wanted; return that.

        Raises UserError where it gives no sign any more, and Ended where it has ended.
        """
        begun = told = time.monotonic()
        while True:
            sign = self._look(other)
            if sign is not None:
                if sign.get("code") is not None:
                    raise Ended(self._name(other, sign), int(sign["code"]), str(sign.get("reason", "")))
                if reached(sign):
                    return sign
            now, since = time.monotonic(), begun if sign is None else max(begun, self._seen[other][1])
            if now - since > (ARRIVAL if sign is None and self.number == 0 else SILENCE):
                self._lost.add(other)
                raise self._given_up(other, sign, now - since)
            if self.talks and now - told >= (FIRST_LINE if told == begun else LINE):
                told, stage = now, "it has given no sign yet" if sign is None else sign["stage"]
                say(f"waiting  for {self._name(other, sign)}: {stage} ({(now - begun) / 60:.0f} min)")
            time.sleep(BEAT / 4)

    def _look(self, other: int) -> dict[str, Any] | None:
        """Return the newest sign of another that is known to live: a file may be years old until it changes."""
        sign = self.board.read(other)
        if sign is not None and (other not in self._seen or sign != self._seen[other][0]):
            if other in self._seen or self.board.is_new:
                self._alive.add(other)
            self._seen[other] = (sign, time.monotonic())
        return self._seen[other][0] if other in self._alive else None

    def _name(self, other: int, sign: dict[str, Any] | None) -> str:
        return f"{self.board.member} {other}" + (f" ({sign['host']})" if sign else "")

    def _given_up(self, other: int, sign: dict[str, Any] | None, seconds: float) -> UserError:
        if sign is not None:
            return RunError(
                f"{self._name(other, sign)} has given no sign for {seconds:.0f} seconds; it was {sign['stage']}",
                "look at its output, then start all of them again, with --resume",
            )
        if other == 0:
            return self.board.missing()
        return RunError(
            f"{self._name(other, None)} has not arrived within {seconds / 60:.0f} minutes",
            f"start the same command on each {self.board.member}",
        )

    def meet(self) -> None:
        """Wait until all are ready to train."""
        self.tell(stage=READY)
        if self.number:
            self.wait_for(0, lambda sign: sign["stage"] == GO)
            return
        for other in range(1, self.size):
            self.wait_for(other, lambda sign: sign["stage"] == READY)
        self.tell(stage=GO)

    def leave(self, code: int, reason: str = "") -> int:
        """Tell the others this one's exit code, wait for theirs, and return the one that all should end with."""
        self.tell(stage="ended", code=code, reason=reason)
        agreed = self._follow(code) if self.number else self._dismiss(code)
        self._over.set()
        self._thread.join()
        self.tell(stage=GONE)
        self.board.close()
        return agreed

    def _follow(self, code: int) -> int:
        """Wait for the first, which may still write its report, and return its exit code where it has failed."""
        try:
            if 0 not in self._lost:
                self.wait_for(0, lambda sign: False)
        except Ended as first:
            return first.code or code
        except UserError:
            pass
        return code

    def _dismiss(self, code: int) -> int:
        """Wait until the others have read this exit code; return theirs where a signal to one of them was the cause."""
        until, codes, left = time.monotonic() + FAREWELL, {}, set(range(1, self.size)) - self._lost
        while left and time.monotonic() < until:
            for other in sorted(left):
                sign = self._look(other) or {}
                if sign.get("code") is not None:
                    codes[other] = int(sign["code"])
                if sign.get("stage") == GONE:
                    left.remove(other)
            time.sleep(BEAT / 10)
        stopped = [other for other in codes.values() if other in INTERRUPTED]
        return stopped[0] if code == 1 and stopped else code


@contextmanager
def joined(board: Board, number: int, size: int, talks: bool = True) -> Iterator[Member]:
    """Take part in a run as one of `size`, and tell the others of a mistake or an exit that ends this one.

    It says whom it waits for if it `talks`.
    """
    member = Member(board, number, size, talks)
    try:
        yield member
    except BaseException as problem:
        member.leave(*_outcome(problem))
        raise


def _outcome(problem: BaseException) -> tuple[int, str]:
    if isinstance(problem, UserError):
        return problem.code, problem.message
    if isinstance(problem, SystemExit):
        return int(problem.code or 0), ""
    return (130, "") if isinstance(problem, KeyboardInterrupt) else (1, type(problem).__name__)
