"""One process or many: in this process where one is enough, else through `accelerate launch`, with llmkit as parent.

The launcher turns every exit code of a rank into 1, under dozens of lines of its own, and kills ranks 30 s after a
signal. So the parent stays: it forwards signals to the ranks themselves, keeps the launcher's output in `launch.log`,
passes on what rank 0 says, and takes the exit code from a file that rank 0 writes.
"""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from llmkit import hub, process
from llmkit.errors import UserError, say
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.paths import at_home
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.runs import checkpoint, compatibility
from llmkit.runs import directory as runs
from llmkit.speed import cpu

DIRECTORY, TERMINAL = "LLMKIT_DIRECTORY", "LLMKIT_TERMINAL"


def start(
    recipe: Recipe,
    processes: int | None,
    accelerate_config: Path | None,
    resume: bool,
    max_time: int | None = None,
    allowed: Sequence[str] = (),
) -> int:
    """Train `recipe` on as many processes as were asked for, `max_time` seconds if that is given; the exit code.

    `allowed` are the keys in which the recipe may differ from the one that the run to resume began with.
    """
    if process.LAUNCH in os.environ:
        from filelock import FileLock

        from llmkit.training import train

        shared = Path(os.environ[DIRECTORY])
        with FileLock(shared / runs.RANKS_LOCK) if os.environ.get("RANK") == "0" else nullcontext():
            return train.run(recipe, shared, resume, max_time, allowed)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "llmkit was started by a launcher; it starts its processes itself",
            "llmkit pretrain RECIPE --processes N, or --accelerate-config FILE for several machines",
        )
    if accelerate_config is not None and not accelerate_config.is_file():
        raise UserError(f"--accelerate-config: there is no file `{accelerate_config}`", "make one: accelerate config")
    machine_rank = _machine_rank(accelerate_config)
    count = processes if processes is not None else default_processes()
    if accelerate_config is None and 1 < default_processes() < count:
        raise UserError(f"--processes {count}, and there are {default_processes()} GPUs")
    before = process.leave_early()
    try:
        directory = find_directory(recipe, resume, machine_rank, allowed)
        if directory is None:
            return 0
        if machine_rank:
            log = directory / f"launch-{machine_rank}.log"
            return _with_accelerate(directory, log, count, processes is not None, accelerate_config)
        before_us = runs.read_record(directory)
        with runs.held(directory):
            if runs.read_record(directory).get("started") != before_us.get("started"):
                raise UserError(f"another run was started in `{directory}` at this moment", "try again")
            checkpoint.adopt(directory)
            try:
                if count == 1 and accelerate_config is None:
                    return _alone(recipe, directory, resume, max_time, allowed)
                _prepare(recipe)
                log = directory / runs.LAUNCH_LOG
                return _with_accelerate(directory, log, count, processes is not None, accelerate_config)
            finally:
                runs.release(directory)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare(recipe: Recipe) -> None:
    """Clean, tokenize and pack before the processes start, which find it done: none waits for another and times out.

    What the Hub is asked for, it is asked here: all processes read one commit.
    """
    if recipe.model.name:
        hub.commit(recipe.model.name, recipe.model.revision)
    if recipe.tokenizer.name:
        hub.commit(recipe.tokenizer.name)
    from llmkit.data import files

    if isinstance(recipe.data, RowData) and not files.is_local(recipe.data):
        hub.check(recipe.data.path, "dataset", recipe.data.revision)
    if recipe.task not in PRETRAINING or getattr(recipe.data, "streaming", False):
        return
    from llmkit.training.assemble import assemble

    assemble(recipe, recipe.trainer.get("seed", 42))


def find_directory(recipe: Recipe, resume: bool, machine_rank: int = 0, allowed: Sequence[str] = ()) -> Path | None:
    """Where the run goes; None when the run to resume is finished already."""
    if machine_rank:  # the first machine has claimed it, on storage that all share
        if recipe.output_dir is None:
            raise UserError("several machines need one directory", "name it: --output-dir on storage that all share")
        shared = at_home(recipe.output_dir)
        for _ in range(600):
            if runs.is_run(shared):
                return shared
            time.sleep(1)
        raise UserError(f"the first machine has not made `{shared}` in ten minutes", "is the storage shared?")
    if resume:
        found = runs.newest(at_home(recipe.output_dir) if recipe.output_dir else runs.ROOT / recipe.name)
        if found is not None and runs.is_run(found):
            if runs.is_finished(found):
                say(f"`{found}` is finished: nothing to resume")
                return None
            compatibility.refuse(compatibility.since(found, recipe), allowed, found)
            return found
        say("nothing to resume: starting anew")
    named = recipe.origins.get("output_dir") == "command line"  # a recipe's own is numbered like runs/NAME
    return runs.claim(recipe.output_dir or str(runs.ROOT / recipe.name), named)


def default_processes() -> int:
    """One for each visible GPU; one where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


def one_gpu() -> None:
    """Show this process one GPU alone: of several, Trainer would wrap the model in nn.DataParallel."""
    import torch

    if torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _alone(recipe: Recipe, directory: Path, resume: bool, max_time: int | None, allowed: Sequence[str]) -> int:
    one_gpu()
    from llmkit.training import train

    return train.run(recipe, directory, resume, max_time, allowed)


# ---- the parent ----------------------------------------------------------------------------------------------------


def _with_accelerate(directory: Path, log_file: Path, count: int, counted: bool, config: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="llmkit-") as name:
        meeting = Path(name)  # the ranks' process ids, the pipe for what rank 0 says, its exit code
        os.mkfifo(meeting / "stderr")
        os.mkfifo(meeting / "alive")
        pipe = os.open(meeting / "stderr", os.O_RDWR)  # open for writing too: no end of file between two writers
        received: list[int] = []
        child: subprocess.Popen[bytes] | None = None

        def forward(number: int, frame: FrameType | None) -> None:
            if number != process.SAVING:
                received.append(number)
            if child is not None:
                _signal_ranks(meeting, child, number, at_once=len(received) > 1)

        before = {number: signal.signal(number, forward) for number in (*process.stopping(), process.SAVING)}
        alive = os.open(meeting / "alive", os.O_RDWR)  # ranks read from it, and find its end when we are gone
        ended = threading.Event()
        begun = log_file.stat().st_size if log_file.exists() else 0
        voice = threading.Thread(target=_pass_on, args=(pipe, ended))
        voice.start()
        try:
            with log_file.open("ab") as log:
                child = subprocess.Popen(
                    launch_command(meeting, count, counted, config),
                    env=environment(meeting, directory, count),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # the terminal's Ctrl-C reaches the ranks once, through us
                )
            if received:  # while the child was being started
                _signal_ranks(meeting, child, received[0], at_once=True)
            child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            ended.set()
            voice.join()
            os.close(pipe)
            os.close(alive)
        said = log_file.read_bytes()[begun:].decode(errors="replace")
        first, failed = _first_to_fail(said)
        status = meeting / "status"
        if status.is_file():
            code = int(status.read_text())
            if code == 1 and first > 0:  # what rank 0 died of is that another did
                _say_why(said, log_file, first, failed)
            return code
    if received:  # before training: there was nothing to save
        return 128 + received[1] if len(received) > 1 else 130 if received[0] == signal.SIGINT else process.STOPPED
    if child.returncode == 0:  # rank 0 is on another machine
        return 0
    if failed == process.STOPPED:  # a signal met it before there was anything to save
        return process.STOPPED
    _say_why(said, log_file, first, failed)
    return 1


def launch_command(meeting: Path, count: int, counted: bool, config: Path | None) -> list[str]:
    """`accelerate launch` with a config file always: without one it reads the user's default_config.yaml unasked."""
    if config is None:
        config = meeting / "accelerate.json"
        settings = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "MULTI_GPU",  # also on a CPU: `--cpu --num_processes 2` starts one (accelerate#2741)
            "num_processes": count,
            "num_machines": 1,
            "machine_rank": 0,
            "gpu_ids": "all",
            "main_process_port": _free_port(),
            "mixed_precision": "no",  # TrainingArguments decides
            "use_cpu": False,
            "debug": False,
        }
        config.write_text(json.dumps(settings))
    words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    if counted:
        words += ["--num_processes", str(count)]
    return [*words, "-m", "llmkit", *sys.argv[1:]]


def environment(meeting: Path, directory: Path, count: int) -> dict[str, str]:
    """What the ranks find in their environment."""
    import torch

    found = {**os.environ, process.LAUNCH: str(meeting), DIRECTORY: str(directory)}
    if not torch.cuda.is_available():
        found["ACCELERATE_USE_CPU"] = "true"  # else each rank believes that it is rank 0 of 1
        found.setdefault("OMP_NUM_THREADS", str(cpu.share(count)))
    if sys.stderr.isatty():
        found[TERMINAL] = str(shutil.get_terminal_size().columns)
    return found


def _machine_rank(config: Path | None) -> int:
    if config is None:
        return 0
    import yaml

    try:
        settings = yaml.safe_load(config.read_text())
        return int(settings.get("machine_rank") or 0)
    except (yaml.YAMLError, AttributeError, ValueError) as problem:
        raise UserError(
            f"--accelerate-config: `{config}` is no Accelerate configuration", "make one: accelerate config"
        ) from problem


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pass_on(pipe: int, ended: threading.Event) -> None:
    """Copy what rank 0 says to our stderr until the launcher has ended and nothing is left."""
    while True:
        ready, _, _ = select.select([pipe], [], [], 0.2)
        if ready:
            said = os.read(pipe, 1 << 16)
            with suppress(OSError):  # nobody listens any more: the ranks must not wait for a reader
                os.write(2, said)
        elif ended.is_set():
            return


def _signal_ranks(meeting: Path, child: subprocess.Popen[Any], number: int, at_once: bool) -> None:
    ranks = [int(file.name.removeprefix("rank-")) for file in meeting.glob("rank-*")]
    if number == process.SAVING and not ranks:
        return
    if at_once or not ranks:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        ranks = ranks if at_once else []
        number = signal.SIGKILL
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _first_to_fail(said: str) -> tuple[int, int]:
    """The rank that the launcher names as the cause, which it does last, and its exit code; -1 and 1 if none."""
    found = re.findall(r"rank +: (\d+) .*\n +exitcode +: (-?\d+) ", said)
    return (int(found[-1][0]), int(found[-1][1])) if found else (-1, 1)


def _say_why(said: str, log: Path, number: int, code: int) -> None:
    """No rank left word: show what they said last, and where the user can find the rest."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", as the kernel does when there is too little memory" if -code == signal.SIGKILL else ""
        say(f"error: process {number} of this run was killed by {name}{memory}; --resume goes on, and all is in {log}")
        return
    lines = said.splitlines()
    causes = [i for i, line in enumerate(lines) if ("Error" in line or "error: " in line) and "ChildFailed" not in line]
    shown = lines[max(0, causes[-1] - 4) : causes[-1] + 1] if causes else lines[-5:]
    say("\n".join([*shown, f"error: a process of this run failed; all it said is in {log}"]))
