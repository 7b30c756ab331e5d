"""Kill trainings at each write point of a save and at random moments; gone on with, they must end as if left alone.

And swap the text of a training while it is prepared: the next one must learn from what it names.

`make crash` does all of it, `python tests/crash.py lora-1 --every 9 --moments 2` a part. A fresh interpreter needs
seconds for its imports, so they are made once and each start is a fork; of two processes the ranks are forked in the
place of `accelerate launch`. Nothing in llmkit knows of this: a killed process counts its own file-system events
(PEP 578) and ends itself at the one that it was told.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

for threads in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):  # a fork has none of its parent's
    os.environ[threads] = "1"

from conftest import CAUSAL, CLASSIFY, MASKED, corpus  # noqa: E402

# Which arguments of an event of PEP 578 are the path and the folder (an open one) that it starts from.
EVENTS = {"os.mkdir": (0, 2), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.rename": (1, 3), "os.truncate": (0, None)}
SEED = 20
LAST = 12  # steps
SAVED = 8  # the step whose save is looked at closely: one checkpoint is there before, and goes when it is done
RUN = "run"  # the run directory
PATIENCE = 300.0  # seconds after which a start hangs
ORPHANS = 30.0  # seconds after which a rank should have noticed that its parent is gone
REST = (
    *("trainer.max_steps=12", "trainer.save_steps=4", "trainer.logging_steps=3", "trainer.save_total_limit=1"),
    *("trainer.eval_strategy=steps", "trainer.eval_steps=5", "trainer.gradient_accumulation_steps=2"),
    *("trainer.per_device_eval_batch_size=2", "--output-dir", RUN),
)
GPT2 = ("model.config.embd_pdrop=0.1", "model.config.resid_pdrop=0.1", "model.config.attn_pdrop=0.1")
BERT = ("model.config.hidden_dropout_prob=0.1", "model.config.attention_probs_dropout_prob=0.1")
FINETUNE = CLASSIFY + "[trainer]\nlearning_rate = 1e-3\n"
TASKS = {
    "causal-lm": ("pretrain", "causal.toml", "samples.max_new_tokens=2", *GPT2),  # so few that each evaluation has some
    "masked-lm": ("pretrain", "masked.toml", *BERT),
    "text-classification": ("finetune", "classify.toml", *BERT),
    "lora": (
        *("pretrain", "causal.toml", "model.config=", "tokenizer=", "model.name=gpt2", "model.init=pretrained"),
        *("lora.r=4", "lora.lora_dropout=0.1", *GPT2),
    ),
}
ROUNDS = 10  # in which a text is swapped
SWAP = "swap"
STREAM = ("data.streaming=true", "data.buffer_size=8", "data.max_eval_samples=4")


@dataclass(frozen=True)
class Training:
    """What is trained; `fresh` starts new interpreters by the real command in the place of forks."""

    name: str
    words: tuple[str, ...]
    processes: int = 1
    fresh: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}-{self.processes}"

    @property
    def command(self) -> tuple[str, ...]:
        batch = f"trainer.per_device_train_batch_size={4 // self.processes}"
        several = () if self.processes == 1 else ("--processes", str(self.processes))
        return (*self.words, *REST, batch, *several)


TRAININGS = [Training(name, words, processes) for processes in (1, 2) for name, words in TASKS.items()]
FURTHER = [
    Training("workers", (*TASKS["masked-lm"], "trainer.dataloader_num_workers=2")),
    Training("by-length", (*TASKS["text-classification"], "trainer.train_sampling_strategy=group_by_length")),
    Training("stream", (*TASKS["causal-lm"], *STREAM)),
    Training("noise", (*TASKS["causal-lm"], "trainer.neftune_noise_alpha=10")),
    Training("fresh", TASKS["masked-lm"], fresh=True),
    Training("fresh", TASKS["causal-lm"], 2, fresh=True),
]


# ---- in a process that is started ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Just before the event of this number in a process; `half` of what it wrote since the one before is there."""

    who: str  # "parent", "rank-0", "rank-1"
    number: int
    half: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to happen in a start beside training."""

    point: Point | None = None
    events: Path | None = None  # a folder in which each process lists its events
    terminate: str | None = None  # who gets a SIGTERM in the first evaluation


class Watch:
    """Counts what a process does to the files of a directory, and ends the process at one point of it.

    A point is worth a kill where the files are not as they were at the one before, fsync or not.
    """

    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def __init__(self, who: str, directory: Path, plan: Plan) -> None:
        self.who, self.directory, self.process = who, directory.absolute(), os.getpid()
        self.kill = plan.point if plan.point is not None and plan.point.who == who else None
        self.count, self.busy = 0, False
        self.opened: dict[str, str] = {}  # files that this process opened to write, and how
        self.before = self.files()
        self.log = None if plan.events is None else os.open(plan.events / who, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        fsync = os.fsync

        def watched(handle: int) -> None:
            self.event("fsync", str(Path(f"/proc/self/fd/{handle}").readlink()))
            fsync(handle)

        os.fsync = watched
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy or os.getpid() != self.process:  # a data worker is none of this
            return
        if event == "open":
            path, mode, flags = args
            if isinstance(path, str | bytes | Path) and flags & self.WRITING:
                self.event("open", os.fsdecode(path))
                self.opened[str(Path(os.fsdecode(path)).absolute())] = mode or ""
        elif event in EVENTS:
            path, folder = EVENTS[event]
            inside = -1 if folder is None or len(args) <= folder else args[folder]
            within = Path.cwd() if inside in (-1, None) else Path(f"/proc/self/fd/{inside}").readlink()
            self.event(event, str(within / os.fsdecode(args[path])))

    def event(self, kind: str, path: str) -> None:
        if self.busy or not Path(path).absolute().is_relative_to(self.directory):
            return
        self.busy = True
        self.count += 1
        now = self.files()
        before = {node: (size, date) for node, size, date in self.before.values()}
        written = {
            file: size
            for file, (node, size, date) in now.items()
            if size and before.get(node) != (size, date) and self.is_own(file)
            if "+" not in self.opened.get(file, "")  # cut short, which is done at once
            if not Path(file).parent.name.startswith("checkpoint-")  # rank 0 has synced it, and then given it that name
        }
        if self.kill is not None and self.kill.number == self.count:
            for file, size in written.items() if self.kill.half else ():
                old = self.before[file][1] if "a" in self.opened.get(file, "") and file in self.before else 0
                os.truncate(file, old + (size - old) // 2)
            os.kill(self.process, signal.SIGKILL)
        if self.log is not None:
            name = os.path.relpath(path, self.directory)
            entry = [self.count, kind, name, now != self.before or self.count == 1, bool(written)]
            os.write(self.log, f"{json.dumps(entry)}\n".encode())
        self.before, self.busy = now, False

    def is_own(self, file: str) -> bool:
        """Libraries in Rust open files unseen: what rank 0 does not know is its own."""
        return self.who == "rank-0" or file in self.opened or Path(file).stem == self.who.replace("rank", "process")

    def files(self) -> dict[str, tuple[int, int, int]]:
        """Inode, size and date of each file, and of each folder its inode alone; others write there too."""
        found = {}
        for folder, folders, files in os.walk(self.directory):
            for name in (*folders, *files):
                with suppress(FileNotFoundError):
                    about = (path := Path(folder, name)).stat()
                    changing = (about.st_size, about.st_mtime_ns) if name in files else (0, 0)
                    found[str(path)] = (about.st_ino, *changing)
        return found


def become(words: Sequence[str], who: str, plan: Plan, output: Path) -> NoReturn:
    """Be `llmkit WORDS` from here on."""
    try:
        said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = ["llmkit", *words]
        Watch(who, Path(RUN), plan)
        if plan.terminate == who:
            _terminate_in_evaluation()
        from llmkit.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stderr.flush()
    os._exit(code)


def _terminate_in_evaluation() -> None:
    from llmkit.training.signals import StopOnSignal

    upstream, seen = StopOnSignal.on_prediction_step, []

    def on_prediction_step(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(True)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        upstream(self, *args, **kwargs)

    StopOnSignal.on_prediction_step = on_prediction_step


class Launcher:
    """In the place of `subprocess.Popen(["accelerate", "launch", ...])`: forks the ranks, and ends all when one fails.

    Itself it is forked at once, while this process has neither threads nor a model.
    """

    def __init__(self, plan: Plan) -> None:
        ask, self.told = os.pipe()
        self.pid = os.fork()
        self.returncode: int | None = None
        if self.pid == 0:
            os.close(self.told)
            os.setsid()
            Path("launcher").write_text(str(os.getpid()))
            with os.fdopen(ask) as asked:
                line = asked.readline()
            os._exit(self._launch(json.loads(line), plan) if line else 0)
        os.close(ask)

    def popen(self, words: Sequence[str], env: dict[str, str], stdout: Any, **rest: Any) -> "Launcher":
        told = {"words": list(words[words.index("llmkit") + 1 :]), "environment": env, "log": stdout.name}
        os.write(self.told, f"{json.dumps(told)}\n".encode())
        return self

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    @staticmethod
    def _launch(told: dict[str, Any], plan: Plan) -> int:
        from llmkit import accelerate_launch

        count = int(told["words"][told["words"].index("--processes") + 1])
        port = str(accelerate_launch.free_port())
        ranks = set()
        for rank in range(count):
            process = os.fork()
            if process == 0:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({**told["environment"], **meeting, **{key: str(n) for key, n in place.items()}})
                become(told["words"], f"rank-{rank}", plan, Path(told["log"]))
            ranks.add(process)
        code = 0
        while ranks:
            process, status = os.wait()
            ranks.discard(process)
            if status and not code:
                code = 1
                for other in ranks:
                    os.kill(other, signal.SIGKILL)
        return code


# ---- starting and killing ------------------------------------------------------------------------------------------


class Start:
    """`llmkit` begun in this folder."""

    def __init__(self, training: Training, resume: bool, plan: Plan | None = None) -> None:
        plan = plan or Plan()
        words = [*training.command, *(["--resume"] if resume else [])]
        self.output = Path("said.log")
        self.offset = self.output.stat().st_size if self.output.exists() else 0
        Path("launcher").unlink(missing_ok=True)
        self.began = time.monotonic()
        self.ended = False
        if training.fresh:
            with self.output.open("ab") as said:
                command = [sys.executable, "-m", "llmkit", *words]
                self.pid = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True).pid
            return
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            who = "rank-0"
            if training.processes > 1:
                from llmkit import accelerate_launch

                who, accelerate_launch.subprocess = "parent", SimpleNamespace(Popen=Launcher(plan).popen, DEVNULL=None)
            become(words, who, plan, self.output)
        with suppress(PermissionError):  # whoever comes first; it may be another program's already
            os.setpgid(self.pid, self.pid)

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """The exit code, negative after a signal; None if it did not end in so many seconds."""
        until = time.monotonic() + seconds
        while True:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            if process:
                self.ended = True
                self.seconds = time.monotonic() - self.began
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                return None
            time.sleep(0.005)

    def kill(self, alone: bool = False) -> None:
        """SIGKILL for all of it, or for the first process `alone`: the others are to notice that it is gone."""
        if self.ended:
            return
        if alone:
            os.kill(self.pid, signal.SIGKILL)
        for group in [] if alone else [self.pid, *launched()]:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.wait()

    def said(self) -> str:
        return self.output.read_bytes()[self.offset :].decode(errors="replace")


def launched() -> list[int]:
    """The process groups of the launcher of this folder."""
    return [int(text) for file in Path().glob("launcher") if (text := file.read_text())]


def lives(group: int) -> bool:
    """Whether a process of this group has not ended; one that nobody has waited for has."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


class Differs(Exception):
    """A run that was killed did not come to what the other came to."""


def finish(training: Training, saved: bool) -> None:
    """Go on with a run that was killed, to its end; where something was `saved` not from the beginning."""
    start = Start(training, resume=True)
    code = start.wait()
    if code is None:
        start.kill()
        raise Differs(f"--resume hangs\n{start.said()}")
    if code:
        raise Differs(f"--resume ended with {code}\n{start.said()}")
    if saved and "resuming from" not in start.said() and "is finished" not in start.said():
        raise Differs(f"--resume began anew, and there was a checkpoint\n{start.said()}")


# ---- what a run came to --------------------------------------------------------------------------------------------


def timeless(figures: dict[str, Any]) -> dict[str, Any]:
    """Without what measures time or memory; also of a dictionary as `llmkit.runs.state` writes it, in pairs."""
    ends = ("time", "_per_second", "_seconds", "_memory_bytes")
    if list(figures) == ["dict"]:
        return {"dict": [pair for pair in figures["dict"] if not str(pair[0]).endswith(ends)]}
    return {key: value for key, value in figures.items() if not key.endswith(ends)}


def outcome(run: Path) -> dict[str, Any]:
    """All that must not depend on whether a run was killed: contents by name."""
    found: dict[str, Any] = {}
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (run / name).exists():
            found[name] = (run / name).read_bytes()
    for number, line in enumerate((run / "metrics.jsonl").read_text().splitlines(), 1):
        found[f"metrics.jsonl, line {number}"] = timeless(json.loads(line))
    for file in sorted((run / f"checkpoint-{LAST}").iterdir()):
        name = f"{file.parent.name}/{file.name}"
        if file.name == "trainer_state.json":
            state = json.loads(file.read_text())
            found[name] = {**state, "log_history": [timeless(entry) for entry in state["log_history"]]}
        elif file.name == "training.json":
            found[name] = json.loads(file.read_text(), object_hook=timeless)
        elif file.name == "manifest.json":
            of_time = ("run", "record", "checksum", "metrics_bytes", "files")
            manifest = json.loads(file.read_text())
            found[name] = {key: value for key, value in manifest.items() if key not in of_time}
            found[f"{name}, files"] = list(manifest["files"])
        else:
            found[name] = file.read_bytes()
    record = json.loads((run / "run.json").read_text())
    found["run.json"] = {"status": record["status"], "metrics": timeless(record["metrics"])}
    # A holder that is gone is nobody's: the ranks may finish without the parent that would have cleared it away.
    found["its files"] = sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.name != ".holder.json")
    return found


def compare(expected: dict[str, Any]) -> None:
    """Raises Differs where the run is not as `expected`."""
    try:
        got = outcome(Path(RUN))
    except (OSError, ValueError, KeyError) as problem:
        raise Differs(f"what it left cannot be read: {problem!r}") from problem
    for name in dict.fromkeys((*expected, *got)):
        one, other = expected.get(name), got.get(name)
        if one != other:
            if isinstance(one, list) and isinstance(other, list):
                one, other = sorted(set(one) - set(other)), sorted(set(other) - set(one))
            shown = "" if isinstance(one or other, bytes) else f": {other}, left alone {one}"
            raise Differs(f"{name} differs{shown}")


# ---- trials --------------------------------------------------------------------------------------------------------


class Trials:
    """All that is done to one training, in a folder of its own."""

    def __init__(self, training: Training, bases: Path, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.counted = self.kills = self.resumes = 0
        self.wrong: list[str] = []
        folder.mkdir()
        os.chdir(folder)
        for file in bases.iterdir():
            (folder / file.name).symlink_to(file)
        self.began = time.monotonic()
        self.expected, self.seconds = None, 0.0
        if training.fresh:
            start = Start(training, resume=False)
            if start.wait():
                raise SystemExit(f"{training.label} does not even run:\n{start.said()}")
            self.seconds = start.seconds
        else:
            self.events = self.watch(resume=False)
        self.expected = outcome(Path(RUN))

    def watch(self, resume: bool) -> dict[str, list[Any]]:
        """The events of a start that is left alone, by process."""
        shutil.rmtree("events", ignore_errors=True)
        Path("events").mkdir()
        start = Start(self.training, resume, Plan(events=Path("events").absolute()))
        if start.wait():
            raise SystemExit(f"{self.training.label} does not even run:\n{start.said()}")
        self.seconds = self.seconds or start.seconds
        files = sorted(Path("events").iterdir())
        return {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}

    def trial(self, what: str, act: Callable[[], None], saved: bool = False) -> None:
        """One run that `act` begins and kills, gone on with to its end, and compared; what fails is kept."""
        shutil.rmtree(RUN, ignore_errors=True)
        Path("said.log").unlink(missing_ok=True)
        try:
            act()
            self.resumes += 1
            left = launched()
            finish(self.training, saved)
            compare(self.expected)
            self.end(left)
        except Differs as problem:
            kept = self.folder / f"wrong-{len(self.wrong)}"
            kept.mkdir()
            for path in (RUN, "said.log"):
                if Path(path).exists():
                    shutil.move(path, kept)
            self.wrong.append(f"{self.training.label}, killed {what}: {problem} ({kept})")
            tell(f"  {self.wrong[-1]}")

    def end(self, left: list[int]) -> None:
        """The ranks of a parent that was killed do not live on."""
        until = time.monotonic() + ORPHANS
        while living := [group for group in left if lives(group)]:
            if time.monotonic() > until:
                for group in living:
                    os.killpg(group, signal.SIGKILL)
                raise Differs(f"ranks live {ORPHANS:.0f} s longer than their parent, and would for ever")
            time.sleep(0.1)

    def points(self, events: dict[str, list[Any]], parts: Sequence[str]) -> list[tuple[Point, str, str]]:
        """The points of these parts of a start, in each process, with the part and a name.

        The parts: "beginning", the saves by their step, and "end", which begins with the export.
        """
        found = []
        for who, seen in events.items():
            part = "beginning"
            for number, kind, name, changed, written in seen:
                if name.startswith(".draft-"):
                    part = (
                        name.split("/")[0].removeprefix(".draft-").removeprefix("checkpoint-").replace("model", "end")
                    )
                if part in parts:
                    halves = ([False] if changed else []) + ([True] if written else [])
                    words = {False: "before", True: "half way to"}
                    found += [
                        (Point(who, number, half), part, f"{who}, {words[half]} {kind} {name} ({number})")
                        for half in halves
                    ]
        return found

    def at_points(self, every: int, beginning_and_end: bool) -> None:
        """At each point of a save; of the beginning and the end too, and of what a start that goes on does first."""
        parts = ("beginning", str(SAVED), "end") if beginning_and_end else (str(SAVED),)
        for point, part, where in self.points(self.events, parts)[::every]:
            self.counted += 1
            saved = part != "beginning"
            self.trial(f"at {where}", lambda point=point: self._kill_at(point, resume=False), saved)
        if beginning_and_end:
            behind = self.behind_save()
            self.going_on(lambda: self._kill_at(behind, resume=False), "beginning", every)
            self.going_on(self.stop_in_evaluation, "5", every)  # where it saves again what was saved then

    def going_on(self, stop: Callable[[], None], part: str, every: int) -> None:
        """At each point of a part of a start that goes on with what `stop` begins and ends."""
        shutil.rmtree(RUN, ignore_errors=True)
        stop()
        for point, _, where in self.points(self.watch(resume=True), (part,))[::every]:
            self.counted += 1

            def act(point: Point = point) -> None:
                stop()
                self._kill_at(point, resume=True)

            self.trial(f"going on, at {where}", act, saved=True)

    def behind_save(self) -> Point:
        """Where the first line is written to metrics.jsonl after the save at SAVED, half of it."""
        events = self.events["rank-0"]
        saving = max(number for number, _, name, *_ in events if name.startswith(f".draft-checkpoint-{SAVED}"))
        lines = [n for n, kind, name, *_ in events if (kind, name) == ("open", "metrics.jsonl") and n > saving]
        return Point("rank-0", lines[0] + 1, half=True)

    def _kill_at(self, point: Point, resume: bool) -> None:
        start = Start(self.training, resume, Plan(point))
        code = start.wait()
        if not code:  # -9, and 1 of its parent
            start.kill()
            raise Differs(f"the point was not reached: exit code {code}\n{start.said()}")
        self.kills += 1

    def at_moments(self, number: int) -> None:
        """At `number` random moments; of several processes every other time the parent alone."""
        rng = random.Random(f"{SEED} {self.training.label}")
        until = self.kills + number
        while self.kills < until:
            alone = self.training.processes > 1 and (until - self.kills) % 2 == 0
            after = rng.uniform(0, self.seconds)
            whom = "its parent alone" if alone else "all of it"
            self.trial(f"after {after:.2f} s, {whom}", lambda after=after, alone=alone: self._kill_after(after, alone))

    def _kill_after(self, seconds: float, alone: bool = False, resume: bool = False) -> bool:
        start = Start(self.training, resume)
        code = start.wait(seconds)
        if code is None:
            start.kill(alone)
            self.kills += 1
        elif code:
            raise Differs(f"ended with {code}\n{start.said()}")
        return code is None

    def again_and_again(self, number: int) -> None:
        """One run that is killed so many times in a row before it is left alone."""
        rng = random.Random(f"{SEED} {self.training.label} again")

        def act() -> None:
            while not all(self._kill_after(rng.uniform(0, 0.7) * self.seconds, resume=n > 0) for n in range(number)):
                shutil.rmtree(RUN)  # it was through before

        self.trial(f"{number} times in a row", act)

    def stop_in_evaluation(self) -> None:
        """SIGTERM for one of the processes while it evaluates: exit code 75, and what was learned is saved."""
        start = Start(self.training, resume=False, plan=Plan(terminate=f"rank-{self.training.processes - 1}"))
        code = start.wait()
        if code != 75 or not Path(RUN, "checkpoint-5").is_dir():
            start.kill()
            raise Differs(f"SIGTERM in the evaluation at step 5: exit code {code}\n{start.said()}")

    def row(self) -> str:
        numbers = f"{self.training.processes:9} {self.counted:12} {self.kills:6} {self.resumes:8}"
        equal = "no" if self.wrong else "yes"
        return f"{self.training.name:20} {numbers}  {equal:9} {time.monotonic() - self.began:7.0f}"


def tale(animal: str) -> str:
    return "".join(f"the {animal} number {i} of {i * i % 977} saw the {animal} {i % 7}\n" for i in range(6_000))


def swaps(bases: Path, folder: Path) -> list[str]:
    """Begin a training on one text, move another over it, and train again on the first: none learns from both.

    Each round has a cache of its own, as HF_HOME would give it.
    """
    from huggingface_hub import constants

    folder.mkdir()
    os.chdir(folder)
    for file in bases.iterdir():
        (folder / file.name).symlink_to(file)
    Path("said.log").touch()
    training = Training(SWAP, ("pretrain", "causal.toml", "data.path=tale.txt", "data.max_eval_samples=4"))
    began, wrong, refused = time.monotonic(), [], 0

    def put(animal: str) -> None:
        Path("other.txt").write_text(tale(animal))
        Path("other.txt").replace("tale.txt")

    def left_alone() -> tuple[dict[str, Any], float]:
        """What a training came to, and the seconds that its preparation took."""
        start = Start(training, resume=False)
        while (code := start.wait(0)) is None and "training " not in start.said():
            time.sleep(0.005)
        seconds = time.monotonic() - start.began
        if start.wait() if code is None else code:
            raise Differs(start.said())
        return outcome(Path(RUN)), seconds

    def fresh(name: str) -> None:
        constants.HF_HOME = str(folder / name)
        shutil.rmtree(RUN, ignore_errors=True)

    expected, seconds = {}, 0.0  # the longer of the two
    for animal in ("fox", "hen"):
        fresh(animal)
        put(animal)
        expected[animal], took = left_alone()
        seconds = max(seconds, took)
    for number in range(ROUNDS):
        fresh(f"round-{number}")
        put("fox")
        start = Start(training, resume=False)
        time.sleep(seconds * number / ROUNDS)
        put("hen")
        code = start.wait()
        refused += code == 2
        if code == 0 and outcome(Path(RUN)) not in expected.values():
            wrong.append(f"{SWAP}, round {number}: it learned from both texts")
        if code not in (0, 2) or (code == 2 and "changed while it was being read" not in start.said()):
            wrong.append(f"{SWAP}, round {number}: ended with {code}\n{start.said()}")
        put("fox")
        shutil.rmtree(RUN, ignore_errors=True)
        try:
            if left_alone()[0] != expected["fox"]:
                wrong.append(f"{SWAP}, round {number}: what came next did not learn from the text that it names")
        except Differs as problem:
            wrong.append(f"{SWAP}, round {number}: what came next ended badly\n{problem}")
    if not refused:
        wrong.append(f"{SWAP}: it was never noticed")
    for line in wrong:
        tell(f"  {line}")
    rounds = f"{ROUNDS} rounds, {refused} refused"
    tell(f"{SWAP:20} {1:9} {rounds:>29} {'no' if wrong else 'yes':9} {time.monotonic() - began:7.0f}")
    return wrong


def tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def prepare(folder: Path) -> None:
    """Recipes, data, and a pretrained GPT-2 and BERT."""
    folder.mkdir()
    os.chdir(folder)
    (folder / "causal.toml").write_text(CAUSAL)
    (folder / "masked.toml").write_text(MASKED)
    (folder / "classify.toml").write_text(FINETUNE)
    (folder / "corpus.txt").write_text(corpus(60))
    texts = [f"{line.split(' at ')[0]}{' again' * (i % 7)}" for i, line in enumerate(corpus(80).splitlines())]
    rows = [f"{text},{'fox' if 'fox' in text[:8] else 'none'}" for text in texts]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    for recipe, name in (("causal.toml", "gpt2"), ("masked.toml", "bert")):
        child = os.fork()
        if child == 0:
            become(("pretrain", recipe, "trainer.max_steps=2", "--output-dir", name), "base", Plan(), Path("said.log"))
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"there is no {name}:\n{Path('said.log').read_text()}")
    Path("said.log").unlink()


def main() -> int:
    trainings = {training.label: training for training in (*TRAININGS, *FURTHER)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("labels", nargs="*", metavar="TRAINING", help=", ".join([*trainings, SWAP]))
    parser.add_argument("--every", type=int, default=1, help="of the write points take every so many")
    parser.add_argument("--moments", type=int, default=20, help="kill at so many random moments")
    parser.add_argument("--again", type=int, default=5, help="kill one run so often in a row")
    chosen = parser.parse_args()
    if unknown := set(chosen.labels) - {*trainings, SWAP}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")

    import peft  # noqa: F401  (with all that these import: each start finds it here)
    import transformers.trainer  # noqa: F401

    import llmkit.training.train  # noqa: F401

    place = Path(tempfile.mkdtemp(prefix="llmkit-crash-"))
    prepare(place / "bases")
    wrong: list[str] = []
    tell(f"{'task':20} processes write points  kills  resumes  all equal seconds")
    for label in chosen.labels or [*trainings, SWAP]:
        if label == SWAP:
            wrong += swaps(place / "bases", place / label)
            os.chdir(place)
            continue
        training = trainings[label]
        trials = Trials(training, place / "bases", place / label)
        if training in FURTHER:
            trials.at_moments(min(2 if training.fresh else 5, chosen.moments))
        else:
            trials.at_points(chosen.every, beginning_and_end=training.name == "causal-lm")
            trials.at_moments(chosen.moments)
            if chosen.again:
                trials.again_and_again(chosen.again)
            trials.trial("by SIGTERM in an evaluation", trials.stop_in_evaluation, saved=True)
        wrong += trials.wrong
        tell(trials.row())
        os.chdir(place)
        if not trials.wrong:
            shutil.rmtree(trials.folder)
    if wrong:
        tell(f"{len(wrong)} differ; what they left is in {place}")
        return 1
    os.chdir("/")
    for folder in (place, Path(os.environ["HF_HOME"])):
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
