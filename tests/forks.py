"""Processes of their own without the seconds that their imports take: each is forked from one that has made them."""

import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import connection, forkserver, get_context
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import IO, Any

LIBRARIES = ["datasets", "peft", "transformers.trainer"]  # none of llmkit: what is to load without it does
CONTEXT = get_context("forkserver")


class Fork:
    """`python WORDS`, begun in this folder; what tests need of subprocess.Popen.

    WORDS are `-m MODULE`, `-c CODE` or `FILE`, and arguments; `first` is code that comes before. Both streams are
    pipes, or go to `log`.
    """

    def __init__(
        self, *words: str, env: Mapping[str, str] | None = None, first: str = "", log: int | None = None
    ) -> None:
        CONTEXT.set_forkserver_preload(LIBRARIES)
        streams = [self._stream(log) for _ in range(2)]
        self.stdout, self.stderr = (reading for reading, _ in streams)
        told = (words, dict(os.environ if env is None else env), str(Path.cwd()), first)
        self.process = CONTEXT.Process(target=_be, args=(*told, *(writing for _, writing in streams)))
        self.process.start()
        for _, writing in streams:
            writing.close()
        self.pid = self.process.pid

    @staticmethod
    def _stream(log: int | None) -> tuple[IO[str] | None, connection.Connection]:
        if log is not None:
            return None, connection.Connection(os.dup(log), readable=False)
        reading, writing = CONTEXT.Pipe(duplex=False)
        return os.fdopen(os.dup(reading.fileno())), writing

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int:
        self.process.join()
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """The rest of stdout and of stderr, the longer one, once the process has ended; killed after `timeout`."""
        alarm = Timer(timeout, self.process.kill)
        alarm.start()
        with self.stdout, self.stderr:
            said = self.stderr.read()
            printed = self.stdout.read()
        self.wait()
        alarm.cancel()
        return printed, said

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
        self.communicate()


def run(*words: str, **options: Any) -> SimpleNamespace:
    """What subprocess.run would, of a process that is forked."""
    process = Fork(*words, **options)
    stdout, stderr = process.communicate()
    return SimpleNamespace(returncode=process.wait(), stdout=stdout, stderr=stderr)


class Ranks:
    """In the place of `subprocess.Popen(["accelerate", "launch", ...])`: its ranks, forked; all end when one fails."""

    def __init__(self, words: list[str], env: dict[str, str], stdout: IO[bytes], first: str = "", **_: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        count = words[words.index("--processes") + 1]
        words = ["-m", *words[words.index("llmkit") :]]
        self.ranks = []
        for rank in map(str, range(int(count))):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            self.ranks.append(Fork(*words, env={**env, **meeting, **place}, first=first, log=stdout.fileno()))
        self.returncode: int | None = None

    def wait(self) -> int:
        living = {rank.process.sentinel: rank for rank in self.ranks}
        while living:
            ended = [living.pop(sentinel) for sentinel in connection.wait(list(living))]
            if any(rank.wait() for rank in ended):
                for rank in living.values():
                    rank.send_signal(signal.SIGKILL)
        self.returncode = int(any(rank.wait() for rank in self.ranks))
        return self.returncode


def stop() -> None:
    """End the process that the others were forked from; no new one begins there."""
    forkserver._forkserver._stop()


def _be(
    words: tuple[str, ...],
    environment: dict[str, str],
    folder: str,
    first: str,
    stdout: connection.Connection,
    stderr: connection.Connection,
) -> None:
    for number, stream in enumerate((stdout, stderr), 1):
        os.dup2(stream.fileno(), number)
        stream.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # it may be another in this environment
    exec(first, {})
    kind, *rest = words
    sys.argv = [kind, *rest] if not kind.startswith("-") else rest
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(rest[0], {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")
