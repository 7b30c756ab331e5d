"""Start training: in this process if one is enough, else through `accelerate launch`, with llmkit as the parent.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from llmkit import accelerate_file, disk, hub, last_resort, machines, process, stdout, temporary, worlds
from llmkit.errors import UserError, say
from llmkit.recipe import global_batch
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.paths import at_home
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.runs import checkpoint, compatibility, longer, mirror, rebuild
from llmkit.runs import directory as runs
from llmkit.speed import cpu
from llmkit.terminal import TERMINAL, columns

PREPARING = "preparing data"


def start(
    recipe: Recipe,
    processes: int | None,
    accelerate_config: Path | None,
    resume: bool,
    max_time: int | None = None,
    allowed: Sequence[str] = (),
) -> tuple[int, Path | None]:
    """Train `recipe`; return the exit code and the run directory, None for a run to resume that is finished.

    Args:
        recipe: The recipe.
        processes: The number of processes; None is one a GPU.
        accelerate_config: An Accelerate configuration file.
        resume: Resume the newest run of this recipe's name.
        max_time: Seconds to train for; None leaves the length to the recipe.
        allowed: Keys in which the recipe may differ from that of the run to resume.

    Raises:
        UserError: The processes or the run directory cannot be had.
    """
    stdout.without_answer()
    if process.LAUNCH in os.environ:
        from filelock import FileLock

        from llmkit.training import train

        shared = Path(os.environ[process.DIRECTORY])
        last_resort.belongs_to(shared)
        with FileLock(shared / runs.RANKS_LOCK) if os.environ.get("RANK") == "0" else nullcontext():
            with mirrored(recipe, shared) as copy:
                code = train.run(recipe, shared, resume, max_time, allowed, mirror=copy)
                if os.environ.get("RANK") == "0":
                    write_report(recipe, shared, code)
            if recipe.output_mirror is not None and os.environ.get("RANK") != "0":
                with FileLock(shared / runs.RANKS_LOCK):
                    pass  # the launcher would end the main process, which copies, where another ends with its code
            return code, shared
    if worlds.find(told=False) is not None:
        raise UserError(
            "a launcher has started this program as one of several, and llmkit.pretrain starts its processes itself",
            "start it directly; the command does take part: torchrun --no-python llmkit pretrain RECIPE",
        )
    file = None if accelerate_config is None else accelerate_file.read(accelerate_config)
    several = file is not None and file.machines > 1
    if several and recipe.output_dir is None:
        raise UserError(
            "several machines need one directory", "set --output-dir to a folder on storage that all of them share"
        )
    on_cpu = bool(recipe.trainer.get("use_cpu")) or (file is not None and file.on_cpu)
    count = processes if processes is not None else default_processes()
    if accelerate_config is None and 1 < default_processes() < count:
        raise UserError(f"--processes {count}, but there are {default_processes()} GPUs")
    if count > 1 and not on_cpu and accelerator() == "mps":
        raise UserError("Apple's GPU trains in one process", "leave out --processes, or set trainer.use_cpu=true")
    if accelerate_config is None:
        global_batch.divide(recipe, count)
    launched = Launched(count, processes is not None, file, on_cpu)
    handlers = process.leave_early()
    try:
        if file is None or not several:
            return _first(recipe, launched, resume, max_time, allowed, None)
        begin = _first if file.machine_rank == 0 else _another
        board = machines.Folder(at_home(str(recipe.output_dir)), first=file.machine_rank == 0)
        try:
            with machines.joined(board, file.machine_rank, file.machines) as member:
                code, directory = begin(recipe, launched, resume, max_time, allowed, member)
                return member.leave(code), directory
        except machines.Ended as first:
            if first.code:
                raise
            return 0, None  # the run to resume is finished
    finally:
        process.handle(handlers)


def _first(
    recipe: Recipe,
    launched: "Launched",
    resume: bool,
    max_time: int | None,
    allowed: Sequence[str],
    member: machines.Member | None,
) -> tuple[int, Path | None]:
    """Train on the only machine, or on the first of several, which claims and holds the run directory."""
    directory = find_directory(recipe, resume, allowed)
    if directory is None:
        return 0, None
    with held(recipe, directory):
        if launched.count == 1 and launched.file is None:
            return _in_this_process(recipe, directory, resume, max_time, allowed), directory
        if member is not None:
            member.tell(directory=directory.name, stage=PREPARING)
        prepare(recipe)
        if member is not None:
            member.meet()
        return _with_accelerate(directory, directory / runs.LAUNCH_LOG, launched), directory


def _another(
    recipe: Recipe,
    launched: "Launched",
    resume: bool,
    max_time: int | None,
    allowed: Sequence[str],
    member: machines.Member,
) -> tuple[int, Path | None]:
    """Train on a machine that is not the first, in the directory that the first has claimed."""
    name = member.wait_for(0, lambda sign: "directory" in sign)["directory"]
    directory = at_home(str(recipe.output_dir)).with_name(name)
    last_resort.belongs_to(directory)
    member.tell(stage=PREPARING)
    prepare(recipe)
    member.meet()
    return _with_accelerate(directory, directory / f"launch-{member.number}.log", launched), directory


@contextmanager
def held(recipe: Recipe, directory: Path) -> Iterator[None]:
    """Hold the directory of a run that begins, and remove it again where nothing was trained."""
    last_resort.belongs_to(directory)
    unlocked_record = runs.read_record(directory)
    with runs.held(directory):
        if runs.read_record(directory).get("started") != unlocked_record.get("started"):
            raise UserError(f"another run was started in `{directory}` at the same moment", "try again")
        checkpoint.adopt(directory)
        try:
            if recipe.output_mirror is not None:
                mirror.check(recipe.output_mirror, runs.read_record(directory)["id"])
            yield
        finally:
            runs.release(directory)


def prepare(recipe: Recipe) -> None:
    """Clean, tokenize and pack into the cache before the processes start, so that none waits and times out.

    Also resolve the commits of what comes from the Hub, so that all processes read the same.
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


def find_directory(recipe: Recipe, resume: bool, allowed: Sequence[str] = ()) -> Path | None:
    """Find or claim the run's directory; return None if the run to resume is already finished.

    `resume` and `allowed` are those of `start`. Raises UserError for a directory that cannot be used.
    """
    if resume:
        first = at_home(recipe.output_dir) if recipe.output_dir else runs.ROOT / recipe.name
        if recipe.output_mirror is not None:
            mirror.pull(recipe.output_mirror, runs.newest(first) or first)
        for damaged in filter(rebuild.is_needed, runs.numbered(first)):
            rebuild.rebuild(damaged)
        newest = runs.newest(first)
        if newest is not None and runs.is_run(newest):
            if cut := compatibility.damage(newest):
                say(
                    f"warning  `{newest / runs.RECIPE_FILE}` is damaged ({cut}); its settings are in {runs.RECORD_FILE}"
                )
            if runs.is_finished(newest):
                if longer.is_asked(recipe, newest, allowed):
                    return newest
                if compatibility.tables_of(newest).get("report") and not (newest / runs.REPORT_FILE).exists():
                    runs.sweep(newest)
                    write_report(recipe, newest, 0)  # it was killed while it wrote that
                with mirrored(recipe, newest):
                    pass  # what is missing there is copied
                say(
                    f"`{newest}` is finished: nothing to resume; to train longer, set a larger trainer.max_steps "
                    "(or more epochs)"
                )
                return None
            begun = longer.LENGTH if "longer" in runs.read_record(newest) else ()  # killed when it became finished
            compatibility.refuse(compatibility.since(newest, recipe), [*allowed, *begun], newest)
            return newest
        say("nothing to resume: starting a new run")
    named = recipe.origins.get("output_dir") == "command line"  # a recipe's own is numbered like runs/NAME
    return runs.claim(recipe.output_dir or str(runs.ROOT / recipe.name), named)


def accelerator() -> str:
    """Return the kind of this machine's accelerator, such as cuda, xpu or mps; cpu where torch finds none."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def default_processes() -> int:
    """Return the number of visible GPUs, 1 where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


def one_gpu() -> None:
    """Hide all GPUs but one from this process: with several, Trainer would wrap the model in nn.DataParallel."""
    import torch

    if torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _in_this_process(
    recipe: Recipe, directory: Path, resume: bool, max_time: int | None, allowed: Sequence[str]
) -> int:
    one_gpu()
    from llmkit.training import train

    with mirrored(recipe, directory) as copy:
        code = train.run(recipe, directory, resume, max_time, allowed, mirror=copy)
        write_report(recipe, directory, code)
    return code


@contextmanager
def mirrored(recipe: Recipe, directory: Path) -> Iterator[mirror.Mirror | None]:
    """Yield what copies a run to its mirror, if it has one and this is its main process; complete that at the end."""
    if recipe.output_mirror is None or os.environ.get("RANK", "0") != "0":
        yield None
        return
    copy = mirror.Mirror(recipe.output_mirror, directory, runs.read_record(directory).get("id", ""))
    try:
        yield copy
    finally:
        if copy.is_begun or runs.is_finished(directory):
            copy.close(runs.is_finished(directory))


def write_report(recipe: Recipe, directory: Path, code: int) -> None:
    """Write the report of a run that is finished, unless its recipe says otherwise, or a sweep has stopped it."""
    if code == 0 and recipe.report.write is not False and process.stop_at() is None:
        from llmkit.reports import report

        report.write_behind(directory)


# ---- the parent ----------------------------------------------------------------------------------------------------


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


def _with_accelerate(directory: Path, log_file: Path, launched: Launched) -> int:
    if (
        launched.file is not None
        and launched.file.kind == "MULTI_GPU"
        and not launched.on_cpu
        and accelerator() == "cpu"
    ):
        say(f"warning  `{launched.file.path}` asks for GPUs (MULTI_GPU), and none is visible: training on the CPU")
    with temporary.folder() as meeting:  # for the ranks' process ids, the pipes, and rank 0's exit code
        (meeting / process.ASKED).write_text(json.dumps(launched.asked()))
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
            "main_process_port": _free_port(),
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


def _free_port() -> int:
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
