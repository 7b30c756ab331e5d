"""Start training: in this process if one is enough, else through `accelerate launch`; claim the run directory."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from llmkit import accelerate_file, accelerate_launch, hub, last_resort, machines, process, stdout, verified, worlds
from llmkit.accelerate_launch import Launched
from llmkit.devices import accelerator, default_processes, one_gpu, one_gpu_each
from llmkit.errors import UserError, say
from llmkit.recipe import global_batch
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.paths import at_home
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.runs import checkpoint, compatibility, longer, mirror, rebuild
from llmkit.runs import directory as runs

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
        verified.restore((Path(os.environ[process.LAUNCH]) / verified.FILE).read_text())
        with FileLock(shared / runs.RANKS_LOCK) if os.environ.get("RANK") == "0" else nullcontext():
            with mirrored(recipe, shared) as copy:
                code = train.run(recipe, shared, resume, max_time, allowed, mirror=copy)
                if os.environ.get("RANK") == "0":
                    write_report(recipe, shared, code)
            if recipe.output_mirror is not None and os.environ.get("RANK") != "0":
                with FileLock(shared / runs.RANKS_LOCK):
                    pass  # the launcher would end the main process, which copies, where another ends with its code
            return code, shared
    if worlds.started_by() is not None:
        raise UserError(
            f"{worlds.started_by()} has started this program as one of several, and llmkit.pretrain and "
            "llmkit.finetune start their processes themselves",
            "start the program once, with processes=N; the commands do take part: "
            "torchrun --no-python llmkit pretrain RECIPE, srun llmkit pretrain RECIPE --launched",
        )
    file = None if accelerate_config is None else accelerate_file.read(accelerate_config)
    several = file is not None and file.machines > 1
    if several and recipe.output_dir is None:
        raise UserError(
            "several machines need one directory", "set --output-dir to a folder on storage that all of them share"
        )
    on_cpu = bool(recipe.trainer.get("use_cpu")) or (file is not None and file.on_cpu)
    count = processes if processes is not None else default_processes()
    if not on_cpu:
        here = count if file is None else file.processes_here(processes)
        one_gpu_each(here, "--processes" if file is None or processes is not None else "num_processes")
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
    launched: Launched,
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
        if resume:
            verify_checkpoint(directory)
        prepare(recipe)
        if member is not None:
            member.meet()
        return accelerate_launch.run(directory, directory / runs.LAUNCH_LOG, launched), directory


def _another(
    recipe: Recipe,
    launched: Launched,
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
    return accelerate_launch.run(directory, directory / f"launch-{member.number}.log", launched), directory


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


def verify_checkpoint(directory: Path) -> None:
    """Verify the checkpoint to resume from before the processes start, which then need not read all of its files."""
    checkpoint.newest(directory, runs.read_record(directory).get("id", ""))


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
