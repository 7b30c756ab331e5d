"""One run of two processes that another launcher has started, and of two machines that share a folder: on this host.

`make distributed` runs it: each test starts several trainings, over gloo. No Slurm and no MPI is here: their variables
are set by hand, as they set them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import CAUSAL, ROOT, corpus, losses
from safetensors.torch import load_file

from llmkit import machines, worlds
from llmkit.accelerate_launch import free_port
from llmkit.process import _OF_LAUNCHERS

LLMKIT = (sys.executable, "-m", "llmkit")
RECIPE = ("pretrain", "causal.toml", "report.write=false", "trainer.per_device_train_batch_size=4")
ENDLESS = ("trainer.max_steps=100000", "trainer.save_steps=100000")
PATIENCE = 240


def variables(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not _OF_LAUNCHERS.fullmatch(name)}
    return {**own, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


def slurm(rank: int, job: int) -> dict[str, str]:
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    return {**step, "SLURM_JOB_ID": str(job), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def open_mpi(rank: int, job: int) -> dict[str, str]:
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
    ranks = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    return {**dict.fromkeys(names, "2"), **dict.fromkeys(ranks, str(rank)), "PMIX_NAMESPACE": f"prterun-{job}@1"}


def hydra(rank: int, job: int) -> dict[str, str]:
    ranks = dict.fromkeys(("PMI_RANK", "MPI_LOCALRANKID"), str(rank))
    return {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2", "HYDRA_JOBID": str(job), **ranks}


def pytorch_job(rank: int, job: int) -> dict[str, str]:
    port = str(worlds.LOWEST_PORT + job % worlds.PORTS)
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


WORLDS = {"srun": slurm, "Open MPI": open_mpi, "Hydra": hydra, "PyTorchJob": pytorch_job}


def begin(*words: str, folder: Path | None = None, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        words, cwd=folder, env=variables(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(*processes: subprocess.Popen) -> tuple[list[int], list[str]]:
    """Their exit codes, and what they said."""
    said = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    return [process.returncode for process in processes], said


def world(kind: str, *words: str, told: bool = True) -> list[subprocess.Popen]:
    launched = ("--launched",) if told and kind != "PyTorchJob" else ()
    job = free_port()  # a number that no other has
    return [begin(*LLMKIT, *RECIPE, *launched, *words, **WORLDS[kind](rank, job)) for rank in range(2)]


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(run, "model.safetensors"))


def same(run: str | Path, other: str | Path) -> bool:
    one, two = weights(run), weights(other)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def wait_for(path: Path, *processes: subprocess.Popen) -> None:
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert all(process.poll() is None for process in processes), end(*processes)
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.05)


@contextmanager
def killed_at_last(processes: list[subprocess.Popen]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a recipe, and the run of two processes that llmkit starts itself."""
    place = tmp_path_factory.mktemp("worlds")
    (place / "corpus.txt").write_text(corpus(400))
    (place / "causal.toml").write_text(CAUSAL)
    codes, said = end(begin(*LLMKIT, *RECIPE, "--processes", "2", "--output-dir", "own", folder=place))
    assert codes == [0], said
    return place


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_an_accelerate_file_for_several_processes_of_a_cpu_starts_them(place):
    """Accelerate alone would start one, with half the batch."""
    kind = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "num_processes": 2}
    kind |= {"num_machines": 1, "machine_rank": 0, "mixed_precision": "no", "use_cpu": True, "main_process_port": 0}
    Path("cpus.json").write_text(json.dumps(kind))
    codes, said = end(begin(*LLMKIT, *RECIPE, "--accelerate-config", "cpus.json", "--name", "cpus"))
    assert codes == [0], said
    run = json.loads(Path("runs/cpus/run.json").read_text())
    assert (run["processes"], run["strategy"], run["device"]) == (2, "DDP", "cpu:0")
    assert same("own", "runs/cpus")


def test_an_accelerate_file_that_offloads_fsdp_is_refused_where_there_is_no_gpu(place):
    kind = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "num_processes": 2, "num_machines": 1}
    kind |= {"machine_rank": 0, "mixed_precision": "no", "use_cpu": True, "main_process_port": 0}
    kind |= {"fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}}
    Path("offload.json").write_text(json.dumps(kind))
    codes, said = end(begin(*LLMKIT, *RECIPE, "--accelerate-config", "offload.json", "--name", "offload"))
    assert codes == [2], said
    assert "FSDP was asked for, and Accelerate has dropped it: there is no GPU here" in said[0]
    assert not Path("runs/offload").exists()


READING = """
import os, pathlib
from llmkit.data.text import pack
read = pack.Endless.__iter__
pack.Endless.__iter__ = lambda self: pathlib.Path("read-by-" + os.environ["RANK"]).touch() or read(self)
"""


def test_a_stream_is_read_by_the_first_process_alone(place, llmkit, two_processes):
    """It gives the others their blocks, in the order in which one process has them; also when the run is resumed."""
    words = ("pretrain", "causal.toml", "report.write=false", "data.streaming=true", "samples.prompts=[]")
    words += ("trainer.lr_scheduler_type=constant", "model.config.attn_pdrop=0.0", "trainer.save_steps=4")
    assert llmkit(*words, "trainer.max_steps=6", "--output-dir", "one").exit_code == 0
    half = (*words, "trainer.per_device_train_batch_size=4", "--output-dir", "two")
    done = two_processes(*half, "trainer.max_steps=4", first=READING)
    assert done.exit_code == 0, done.stderr
    done = two_processes(*half, "trainer.max_steps=6", "--resume", first=READING)
    assert done.exit_code == 0, done.stderr
    assert losses(Path("two")) == pytest.approx(losses(Path("one")), rel=1e-5)
    assert [path.name for path in Path().glob("read-by-*")] == ["read-by-0"]


def test_torchrun_trains_one_run(place):
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    codes, said = end(begin(sys.executable, *words, "-m", "llmkit", *RECIPE, "--name", "torchrun"))
    assert codes == [0], said
    assert said[0].count("finished in") == 1
    assert [run.name for run in Path("runs").glob("torchrun*")] == ["torchrun"]
    assert same("own", "runs/torchrun")


@pytest.mark.parametrize("kind", WORLDS)
def test_two_processes_of_a_launcher_train_one_run(kind, place):
    name = kind.replace(" ", "-")
    codes, said = end(*world(kind, "--name", name))
    assert codes == [0, 0], said
    assert [text.count("finished in") for text in said] == [1, 0]
    assert [run.name for run in Path("runs").glob(f"{name}*")] == [name]
    assert json.loads(Path("runs", name, "run.json").read_text())["processes"] == 2
    assert same("own", f"runs/{name}")


@pytest.mark.parametrize("kind", ["srun", "Open MPI", "Hydra"])
def test_without_being_told_each_is_refused(kind, place):
    codes, said = end(*world(kind, "--name", "refused", told=False))
    assert codes == [2, 2]
    assert all("--launched" in text for text in said)
    assert not Path("runs/refused").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_process_ends_all_with_a_checkpoint(rank, place):
    processes = world("srun", "--output-dir", f"stopped-{rank}", *ENDLESS)
    run = Path(f"stopped-{rank}")
    with killed_at_last(processes):
        wait_for(run / "metrics.jsonl", *processes)
        processes[rank].send_signal(signal.SIGTERM)
        codes, said = end(*processes)
    assert codes == [75, 75], said
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    step = next(run.glob("checkpoint-*")).name.removeprefix("checkpoint-")
    more = (f"trainer.max_steps={int(step) + 2}", "--allow-change", "trainer.max_steps")
    codes, said = end(*world("srun", "--output-dir", str(run), ENDLESS[1], *more, "--resume"))
    assert codes == [0, 0], said
    assert f"checkpoint-{step}" in said[0]


def test_the_sbatch_file_trains_one_run_and_asks_for_more_time_when_it_is_stopped(place, tmp_path):
    """A `srun` and a `scontrol` of ours: two tasks with Slurm's variables, and a note of what was asked."""
    script = (ROOT / "examples/clusters/slurm.sbatch").read_text()
    (tmp_path / "job.sh").write_text(script.replace("gpt2-small", " ".join((*RECIPE[1:], *ENDLESS))))
    env = [f"{name}={value}" for name, value in slurm(7, free_port()).items() if value != "7"]
    start = f'env {" ".join(env)} SLURM_PROCID=$rank SLURM_LOCALID=$rank "${{@:2}}" & pids+=($!)'
    (tmp_path / "srun").write_text(
        f"#!/bin/bash\npids=()\nfor rank in 0 1; do {start}; done\n"
        "trap 'kill -TERM ${pids[1]}' TERM\nwait ${pids[0]}; wait ${pids[0]}; one=$?; wait ${pids[1]}; two=$?\n"
        "[ $one -gt $two ] && exit $one || exit $two\n"
    )
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join((str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]))
    run = tmp_path / "run"
    job = begin("bash", str(tmp_path / "job.sh"), PATH=path, RUN=str(run), SLURM_JOB_ID="4711")
    with killed_at_last([job]):
        wait_for(run / "metrics.jsonl", job)
        children = subprocess.run(["pgrep", "-P", str(job.pid), "srun"], capture_output=True, text=True, check=True)
        os.kill(int(children.stdout), signal.SIGTERM)  # as Slurm does before the time is over
        codes, said = end(job)
    assert codes == [75], said
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert list(run.glob("checkpoint-*"))


def test_a_mistake_that_process_0_finds_ends_the_other_at_once(place):
    begun = time.monotonic()
    codes, said = end(*world("srun", "--output-dir", "own"))
    assert codes == [2, 2], said
    assert "already contains another run" in said[0]
    assert time.monotonic() - begun < 30


# ---- machines --------------------------------------------------------------------------------------------------------


def machine(number: int, port: int, folder: Path, *words: str) -> subprocess.Popen:
    """One of two machines of a process each: its own working directory, cache and copy of the data."""
    own = folder / f"machine-{number}"
    own.mkdir(exist_ok=True)
    (own / "corpus.txt").write_text(corpus(400))
    (own / "causal.toml").write_text(CAUSAL)
    settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "mixed_precision": "no"}
    settings |= {"num_processes": 2, "num_machines": 2, "machine_rank": number, "rdzv_backend": "static"}
    settings |= {"main_process_ip": "127.0.0.1", "main_process_port": port, "same_network": True, "use_cpu": False}
    (own / "accelerate.yaml").write_text(json.dumps(settings))
    words = (*LLMKIT, *RECIPE, "--accelerate-config", "accelerate.yaml", *words)
    return begin(*words, folder=own, HF_HOME=str(own / "home"))


def test_two_machines_train_one_run_and_each_prepares_once(place, tmp_path):
    port, output = free_port(), ("--output-dir", str(tmp_path / "shared/run"))
    (tmp_path / "shared").mkdir()
    codes, said = end(*(machine(number, port, tmp_path, *output) for number in range(2)))
    assert codes == [0, 0], said
    assert [text.count("finished in") for text in said] == [1, 0]
    assert same("own", tmp_path / "shared/run")
    caches = [tmp_path / f"machine-{number}/home" for number in range(2)]
    prepared = [sorted(path.relative_to(cache) for path in cache.rglob("tokens.bin")) for cache in caches]
    assert prepared[0] == prepared[1]
    assert len(prepared[0]) == 2  # for training and for validation
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["run"]


@pytest.mark.parametrize("number", [0, 1])
def test_sigterm_to_one_machine_ends_both_with_75(number, place, tmp_path):
    port, run = free_port(), tmp_path / "shared/run"
    run.parent.mkdir()
    processes = [machine(each, port, tmp_path, "--output-dir", str(run), *ENDLESS) for each in range(2)]
    with killed_at_last(processes):
        wait_for(run / "metrics.jsonl", *processes)
        processes[number].send_signal(signal.SIGTERM)
        codes, said = end(*processes)
    assert codes == [75, 75], said
    assert list(run.glob("checkpoint-*"))


def test_a_recipe_that_the_first_machine_refuses_ends_the_second_at_once(place, tmp_path):
    run = tmp_path / "shared/run"
    run.mkdir(parents=True)
    (run / "diary.txt").write_text("mine")
    begun = time.monotonic()
    codes, said = end(*(machine(number, 1, tmp_path, "--output-dir", str(run)) for number in range(2)))
    assert codes == [2, 2], said
    assert "already contains other files" in said[0]
    assert "already contains other files" in said[1]
    assert time.monotonic() - begun < 30


def test_storage_that_is_not_shared_is_said_within_half_a_minute(place, tmp_path):
    second = machine(1, 1, tmp_path, "--output-dir", str(tmp_path / "nowhere/run"))
    assert second.stderr.readline() == "waiting  for machine 0: it has given no sign yet (0 min)\n"
    begun = time.monotonic()
    codes, said = end(second)
    assert codes == [2]
    assert "on storage that all machines share" in said[0]
    assert time.monotonic() - begun < 30


def test_a_first_machine_that_falls_silent_is_said_within_half_a_minute(place, tmp_path):
    run = tmp_path / "shared/run"
    run.parent.mkdir()
    board = machines.Folder(run, first=True)
    second = machine(1, 1, tmp_path, "--output-dir", str(run))
    sign = {"host": "gpu7", "stage": "preparing data"}
    with killed_at_last([second]):
        for beat in range(10000):
            if board.read(1) is not None and beat % 40 == 0:  # it has begun to wait
                break
            board.write(0, {**sign, "beat": beat})
            time.sleep(0.1)
        silent = time.monotonic()
        codes, said = end(second)
    assert codes == [1], said
    assert "machine 0 (gpu7) has given no sign for 20 seconds; it was preparing data" in said[0]
    assert time.monotonic() - silent < 30
