"""Run `accelerate launch` as a child, with llmkit as the parent.

The launcher turns every exit code of a rank into 1, hides it under dozens of lines of its own, and kills ranks 30 s
after a signal. So the parent stays: it forwards signals to the ranks themselves, writes the launcher's output to
`launch.log`, relays rank 0's stderr, and takes the exit code from a file that rank 0 writes.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from llmkit import accelerate_file, disk, process, temporary, verified
from llmkit.devices import accelerator
from llmkit.errors import say
from llmkit.runs import directory as runs
from llmkit.speed import cpu
from llmkit.terminal import TERMINAL, columns


@dataclass(frozen=True)
class Launched:
    """What `accelerate launch` is to start: `count` processes, which the user gave if `counted`, else the `file`."""

    count: int
    counted: bool = True
    file: accelerate_file.AccelerateFile | None = None
    on_cpu: bool = False

    def asked(self) -> dict[str, Any]:
        """Return what each rank compares itself with."""
        of_file = {} if self.file is None else self.file.asked()
        own = {"processes": self.count} if self.counted or self.file is None else {}
        return {**of_file, **own, **({"device": "cpu"} if self.on_cpu else {})}


def run(directory: Path, log_file: Path, launched: Launched) -> int:
    """Train in the processes that `launched` names, and return the exit code; the launcher writes into `log_file`."""
    if (
        launched.file is not None
        and launched.file.kind == "MULTI_GPU"
        and not launched.on_cpu
        and accelerator() == "cpu"
    ):
        say(f"warning  `{launched.file.path}` asks for GPUs (MULTI_GPU), and none is visible: training on the CPU")
    with temporary.folder() as meeting:  # for the ranks' process ids, the pipes, and rank 0's exit code
        (meeting / process.ASKED).write_text(json.dumps(launched.asked()))
        (meeting / verified.FILE).write_text(verified.save())
        os.mkfifo(meeting / "stderr")
        os.mkfifo(meeting / "alive")
        pipe = os.open(meeting / "stderr", os.O_RDWR)  # also for writing: no end of file between two writers
        received: list[int] = []
        child: subprocess.Popen[bytes] | None = None

        def forward(signal_number: int, frame: FrameType | None) -> None:
            if signal_number != process.SAVING:
                received.append(signal_number)
            if child is not None:
                _signal_ranks(meeting, child, signal_number, at_once=len(received) > 1)

        handlers = process.handle(dict.fromkeys((*process.stopping(), process.SAVING), forward))
        alive = os.open(meeting / "alive", os.O_RDWR)  # ranks read from it until it closes with this process
        ended = threading.Event()
        log_start = log_file.stat().st_size if disk.exists(log_file) else 0
        relay = threading.Thread(target=_relay_stderr, args=(pipe, ended))
        relay.start()
        try:
            with log_file.open("ab") as log:
                child = subprocess.Popen(
                    launch_command(meeting, launched),
                    env=environment(meeting, directory, launched.count, launched.on_cpu),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # the terminal's Ctrl-C reaches the ranks once, through us
                )
            if received:  # while the child was being started
                _signal_ranks(meeting, child, received[0], at_once=True)
            child.wait()
        finally:
            process.handle(handlers)
            ended.set()
            relay.join()
            os.close(pipe)
            os.close(alive)
        log_text = log_file.read_bytes()[log_start:].decode(errors="replace")
        first, failed = _first_to_fail(log_text)
        status = meeting / "status"
        if disk.is_file(status):
            code = int(status.read_text())
            if code == 1 and first > 0:  # another rank failed first, which made rank 0 fail
                _report_failure(log_text, log_file, first, failed)
            return code
    if received:  # before training: there was nothing to save
        return 128 + received[1] if len(received) > 1 else 130 if received[0] == signal.SIGINT else process.STOPPED
    if child.returncode == 0:  # rank 0 is on another machine
        return 0
    if failed == process.STOPPED:  # a signal came before there was anything to save
        return process.STOPPED
    _report_failure(log_text, log_file, first, failed)
    return 1


def launch_command(meeting: Path, launched: Launched) -> list[str]:
    """Build the command line of `accelerate launch`; `meeting` is the folder shared with the ranks.

    It always names a config file: without one, accelerate would read the user's default_config.yaml.
    """
    config = None if launched.file is None else launched.file.path
    if config is None:
        config = meeting / "accelerate.json"
        settings = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "MULTI_GPU",  # also on a CPU: `--cpu --num_processes 2` starts one (accelerate#2741)
            "num_processes": launched.count,
            "num_machines": 1,
            "machine_rank": 0,
            "gpu_ids": "all",
            "main_process_port": free_port(),
            "mixed_precision": "no",  # TrainingArguments decides
            "use_cpu": False,
            "debug": False,
        }
        config.write_text(json.dumps(settings))
    argv = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    argv += ["--log_dir", str(meeting / "elastic")]  # torch's own folder, which else stays in the temporary one
    argv += [] if launched.file is None else launched.file.flags()
    if launched.counted:
        argv += ["--num_processes", str(launched.count)]
    return [*argv, "-m", "llmkit", *sys.argv[1:]]


def environment(meeting: Path, directory: Path, count: int, on_cpu: bool = False) -> dict[str, str]:
    """Return the environment of the ranks; `meeting` is the folder shared with them, `count` their number.

    They train on the CPU where that is asked for (`on_cpu`), or where there is no accelerator.
    """
    variables = process.child_environment() | {process.LAUNCH: str(meeting), process.DIRECTORY: str(directory)}
    if on_cpu or accelerator() == "cpu":
        variables["ACCELERATE_USE_CPU"] = "true"  # else each rank believes that it is rank 0 of 1
        variables.setdefault("OMP_NUM_THREADS", str(cpu.share(count)))
    if width := columns(sys.stderr):
        variables[TERMINAL] = str(width)
    return variables


def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _relay_stderr(pipe: int, ended: threading.Event) -> None:
    """Copy rank 0's stderr from `pipe` to this process's, until the launcher has ended and nothing is left."""
    while True:
        ready, _, _ = select.select([pipe], [], [], 0.2)
        if ready:
            data = os.read(pipe, 1 << 16)
            with suppress(OSError):  # stderr is closed: keep reading, as the ranks must not block
                os.write(2, data)
        elif ended.is_set():
            return


def _signal_ranks(meeting: Path, child: subprocess.Popen[Any], signal_number: int, at_once: bool) -> None:
    ranks = [int(file.name.removeprefix("rank-")) for file in meeting.glob("rank-*")]
    if signal_number == process.SAVING and not ranks:
        return
    if at_once or not ranks:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        ranks = ranks if at_once else []
        signal_number = signal.SIGKILL
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def _first_to_fail(log_text: str) -> tuple[int, int]:
    """Find the rank that the launcher names last, as the cause, and its exit code; -1 and 1 if it names none."""
    failures = re.findall(r"rank +: (\d+) .*\n +exitcode +: (-?\d+) ", log_text)
    return (int(failures[-1][0]), int(failures[-1][1])) if failures else (-1, 1)


def _report_failure(log_text: str, log: Path, rank: int, code: int) -> None:
    """Report a failure that no rank reported itself: the end of the log, and where the rest is.

    `rank` failed with the exit code `code`, which is below 0 for a signal.
    """
    runs.keep_log(log.parent)
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        say(
            f"error: process {rank} of this run was killed by {name}{memory}; --resume goes on; "
            f"its full output is in {log}"
        )
        return
    lines = log_text.splitlines()
    causes = [i for i, line in enumerate(lines) if ("Error" in line or "error: " in line) and "ChildFailed" not in line]
    excerpt = lines[max(0, causes[-1] - 4) : causes[-1] + 1] if causes else lines[-5:]
    say(*excerpt, f"error: a process of this run failed; its full output is in {log}")
