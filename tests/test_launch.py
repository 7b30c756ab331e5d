"""Several processes: the same losses as one, signals and exit codes that come through the launcher."""

import json
import os
import platform
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch
from conftest import CLASSIFY, corpus, losses
from forks import Fork
from transformers import TrainerControl, TrainerState

import llmkit
from llmkit import accelerate_launch, devices, launch, launched, worlds
from llmkit.accelerate_file import AccelerateFile
from llmkit.errors import UserError
from llmkit.process import DIRECTORY
from llmkit.recipe import load
from llmkit.runs import directory as runs
from llmkit.training import arguments
from llmkit.training.signals import StopOnSignal

HALF = "trainer.per_device_train_batch_size=4"
BATCH_OF_TWO = (HALF, "--processes", "2")


PRETRAIN = ("-m", "llmkit", "pretrain")


def wait_for(path: Path, process: Fork) -> None:
    for _ in range(6000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


@pytest.mark.parametrize("kind", ["causal", pytest.param("masked", marks=pytest.mark.long)])
def test_two_processes_train_to_the_losses_of_one(kind, workplace, llmkit, two_processes):
    (workplace / "corpus.txt").write_text(corpus(400))
    words = ("pretrain", f"{kind}.toml", "trainer.max_steps=20")
    assert llmkit(*words, "--output-dir", "one").exit_code == 0
    done = two_processes(*words, HALF, "--output-dir", "two")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert "4 blocks x 2 processes x 16 = 128 tokens" in done.stderr
    assert done.stderr.count("finished in") == 1
    one, two = losses(workplace / "one"), losses(workplace / "two")
    assert len(one) == 20
    assert two == pytest.approx(one, rel=1e-5)
    metrics = [json.loads((workplace / run / "run.json").read_text())["metrics"] for run in ("one", "two")]
    assert metrics[1]["eval_loss"] == pytest.approx(metrics[0]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_a_signal_reaches_the_ranks_and_the_exit_code_comes_back(number, code, workplace, two_processes):
    """The launcher alone would turn every exit code into 1."""
    process = Fork(*PRETRAIN, "causal.toml", "trainer.max_steps=100000", *BATCH_OF_TWO)
    try:
        wait_for(workplace / "runs/causal/metrics.jsonl", process)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:  # the second signal ends the ranks at once
            process.send_signal(number)
            process.send_signal(number)
    assert process.returncode == code, said
    run = workplace / "runs/causal"
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    checkpoint = next(run.glob("checkpoint-*"))
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"stopped at step {step}" in said
    steps = ("--allow-change", "trainer.max_steps", f"trainer.max_steps={step + 2}")
    done = two_processes("pretrain", "causal.toml", HALF, "--resume", *steps)
    assert done.exit_code == 0, done.stderr
    assert f"resuming from runs/causal/checkpoint-{step}" in done.stderr


def test_a_signal_that_comes_while_the_ranks_agree_is_not_lost(monkeypatch):
    """A rank waits for the others most of its time inside that exchange, and Python's handlers run when it returns."""
    stop, control = StopOnSignal(), TrainerControl()
    args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    arrivals = iter([signal.SIGTERM])

    def exchange(agreed, operation):
        for number in arrivals:
            signal.raise_signal(number)

    monkeypatch.setattr(torch.distributed, "all_reduce", exchange)
    with stop.watching():
        for step in (1, 2):
            stop.on_step_end(args, TrainerState(global_step=step, max_steps=9), control)
            assert control.should_training_stop == (step == 2)
    assert stop.signal == signal.SIGTERM


def test_a_mistake_found_by_the_ranks_is_said_once_with_exit_code_2(workplace):
    done = forks.run(*PRETRAIN, "causal.toml", "data.block_size=64", *BATCH_OF_TWO)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "is more than the 32 positions of the model" in done.stderr
    assert not (workplace / "runs").exists()


@pytest.mark.long
def test_a_crash_in_one_rank_is_shown_with_its_cause(workplace):
    """Rank 1 dies of what only it sees: the user reads why, and not the launcher's forty lines."""
    (workplace / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import llmkit.runs.environment\n"
        "    def broken(): raise RuntimeError('the disk of rank 1 is on fire')\n"
        "    llmkit.runs.environment.surroundings = broken\n"
    )
    env = {**os.environ, "PYTHONPATH": str(workplace)}
    done = forks.run(*PRETRAIN, "causal.toml", *BATCH_OF_TWO, env=env)
    assert done.returncode == 1
    end = done.stderr.splitlines()[-6:]
    assert any("the disk of rank 1 is on fire" in line for line in end)
    assert end[-1].startswith("error: a process of this run failed")


def test_the_users_default_config_is_not_read(tmp_path):
    words = accelerate_launch.launch_command(tmp_path, accelerate_launch.Launched(4))
    settings = json.loads(Path(words[words.index("--config_file") + 1]).read_text())
    assert settings["num_processes"] == 4
    assert settings["mixed_precision"] == "no"
    assert words[words.index("--num_processes") + 1] == "4"
    mine = tmp_path / "mine.yaml"
    words = accelerate_launch.launch_command(tmp_path, accelerate_launch.Launched(4, False, AccelerateFile(mine, {})))
    assert words[words.index("--config_file") + 1] == str(mine)
    assert "--num_processes" not in words


def test_ranks_on_a_cpu_are_told_so_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("llmkit.speed.cpu.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = accelerate_launch.environment(tmp_path, Path("runs/x"), count=2)
    assert found["ACCELERATE_USE_CPU"] == "true"
    assert found["OMP_NUM_THREADS"] == "4"
    assert found[DIRECTORY] == "runs/x"


@pytest.mark.parametrize(
    "words", [("--seeds", "2"), ("--sweep", "trainer.learning_rate=1e-3,1e-2"), ("--processes", "3")]
)
def test_started_by_a_launcher_llmkit_trains_one_run_of_its_processes(words, workplace, llmkit, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    done = llmkit("pretrain", "causal.toml", *words)
    assert done.exit_code == 2
    assert "torchrun has started" in done.stderr
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize(
    ("launcher", "variables"),
    [
        ("torchrun", {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}),
        ("srun", {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}),
        ("mpirun", {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}),
    ],
)
@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_python_program_under_a_launcher_is_refused(verb, launcher, variables, workplace, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (workplace / "classify.toml").write_text(CLASSIFY)
    (workplace / "rows.csv").write_text("text,label\nthe fox,1\n")
    recipe = {"pretrain": "causal.toml", "finetune": "classify.toml"}[verb]
    with pytest.raises(UserError, match=f"{launcher} has started this program as one of several") as refused:
        getattr(llmkit, verb)(recipe)
    assert "start the program once, with processes=N" in refused.value.hint
    assert not (workplace / "runs").exists()


def test_processes_that_would_share_a_gpu_are_refused(workplace, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="--processes: 2 processes on this machine, but 1 GPU") as refused:
        launch.start(load("causal.toml"), 2, None, False)
    assert "start 1;" in refused.value.hint
    file = tmp_path / "accelerate.json"
    file.write_text('{"distributed_type": "MULTI_GPU", "num_processes": 8, "num_machines": 2, "machine_rank": 0}')
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    shared = load("causal.toml", (), str(tmp_path / "run"))
    with pytest.raises(UserError, match="num_processes: 4 processes on this machine, but 2 GPUs"):
        launch.start(shared, None, file, False)
    devices.one_gpu_each(2, "--processes")
    assert not (workplace / "runs").exists()


SHARED = worlds.World("srun", 1, 2, 1, 2, "127.0.0.1", 29500)


@pytest.mark.parametrize(
    ("gpus", "own"), [(0, None), (2, None), (1, "GPU-7")], ids=["a CPU", "as many as processes", "one that it sees"]
)
def test_a_process_that_sees_one_gpu_takes_that(gpus, own, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(uuid=f"GPU-{7 + number}"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert launched.bound_gpu(SHARED) == own
    assert os.environ["LOCAL_RANK"] == ("1" if own is None else "0")


def test_processes_of_a_launcher_that_see_too_few_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(UserError, match="srun: 4 processes on this machine, but 2 GPUs"):
        launched.bound_gpu(worlds.World("srun", 1, 4, 1, 4, "127.0.0.1", 29500))


def test_processes_that_see_the_same_gpu_are_refused(workplace, monkeypatch):
    """The second to take it says so; the first is told why it ends."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(launched, "_store", lambda world: store)
    monkeypatch.setattr(launched, "enter", lambda world, on_cpu: None)
    monkeypatch.setattr(launched, "bound_gpu", lambda world: "GPU-7")
    monkeypatch.setattr("llmkit.machines.FAREWELL", 0.1)
    monkeypatch.setattr("llmkit.machines.SILENCE", 0.1)
    store.add(f"llmkit/gpu/{platform.node()}/GPU-7", 1)
    with pytest.raises(UserError, match="process 1 has the same GPU as another process"):
        launched.train(load("causal.toml"), SHARED, None, False, None, ())
    assert json.loads(store.get("llmkit/1"))["code"] == 2


def test_the_log_that_an_error_names_stays_and_the_directory_can_be_used(workplace):
    run = runs.claim("runs/x", named=True)
    (run / "launch.log").write_text("it crashed\n")
    runs.keep_log(run)
    runs.release(run)
    assert [path.name for path in run.iterdir()] == ["launch.log"]
    assert runs.claim("runs/x", named=True) == run
    (run / "launch-1.log").write_text("it waited\n")
    runs.release(run)
    assert run.exists()  # it was there before
    assert not list(run.iterdir())


def test_a_rank_that_does_not_see_the_others_stops(workplace, monkeypatch):

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState.__init__", lambda self, *a, **k: None, raising=True)
    monkeypatch.setattr("accelerate.PartialState.num_processes", 1, raising=False)
    monkeypatch.setattr("transformers.TrainingArguments.world_size", property(lambda self: 1))
    monkeypatch.setattr("transformers.TrainingArguments.device", property(lambda self: None))
    with pytest.raises(RuntimeError, match="2 processes and this one sees 1"):
        arguments.training_arguments({}, workplace)


def test_several_machines_need_one_directory(workplace, llmkit):
    (workplace / "second.yaml").write_text("machine_rank: 1\nnum_machines: 2\nnum_processes: 2\n")
    done = llmkit("pretrain", "causal.toml", "--accelerate-config", "second.yaml")
    assert done.exit_code == 2
    assert "--output-dir" in done.stderr
    (workplace / "broken.yaml").write_text("[1, 2]")
    done = llmkit("pretrain", "causal.toml", "--accelerate-config", "broken.yaml")
    assert done.exit_code == 2
    assert "is not an Accelerate configuration" in done.stderr


@pytest.mark.long
def test_an_accelerate_file_decides_the_number_of_processes(workplace):
    (workplace / "two.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 1\n"
        "machine_rank: 0\ngpu_ids: all\nmain_process_port: 0\n"
    )
    words = ("causal.toml", "trainer.max_steps=2", "--accelerate-config", "two.yaml")
    done = forks.run(*PRETRAIN, *words)
    assert done.returncode == 0, done.stderr + (workplace / "runs/causal/launch.log").read_text()
    assert json.loads((workplace / "runs/causal/run.json").read_text())["processes"] == 2
