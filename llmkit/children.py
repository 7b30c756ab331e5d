"""Run llmkit's own command as a child: a training that is one of several, and affects none of the others."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import IO

from llmkit import process

EMPTY: Mapping[str, str] = MappingProxyType({})


def run(words: Sequence[str], variables: Mapping[str, str] = EMPTY, stdout: IO[bytes] | None = None) -> int:
    """Run `llmkit WORDS` with these environment variables; return its exit code, 128 + N where signal N killed it.

    What it prints goes to `stdout`, by default this process's.
    The signals that end a run are forwarded, and a child whose parent is killed ends itself as by SIGTERM.
    """
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    handlers = process.handle(dict.fromkeys(process.stopping(), forward))
    reading, writing = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "llmkit", *words],
            env={**process.child_environment(), process.PARENT: str(reading), **variables},
            stdout=stdout,
            pass_fds=(reading,),
            start_new_session=True,  # the terminal's Ctrl-C reaches it once, through us
        )
        if received:  # while it was being started
            child.send_signal(received[0])
        code = child.wait()
        if received and code == 0:  # it had taken its last step; the next run is not wanted
            return 130 if received[0] == signal.SIGINT else process.STOPPED
        return code if code >= 0 else 128 - code
    finally:
        os.close(reading)
        os.close(writing)
        process.handle(handlers)
