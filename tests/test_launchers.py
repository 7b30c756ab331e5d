"""What another launcher left in the environment is not used, and said; of a world that it made whole nothing is."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from llmkit import process

LEFT = [
    {"LOCAL_RANK": "0"},
    {"WORLD_SIZE": "1", "MASTER_ADDR": "node7"},
    {"ACCELERATE_USE_DEEPSPEED": "true"},
    {"WORLD_SIZE": "x"},
    {"RANK": "0", "WORLD_SIZE": "2"},  # nobody to meet
    {"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    {"ACCELERATE_MIXED_PRECISION": "fp8", "FSDP_VERSION": "9", "ACCELERATE_USE_CPU": "?"},
    {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "PARALLELISM_CONFIG_TP_SIZE": "4"},
    {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMI_RANK": "\u00b2"},
]
WHOLE = [
    {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    {"PMI_RANK": "0", "PMI_SIZE": "2"},
    {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"},
]
OWN = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NCCL_DEBUG": "INFO", "ACCELERATE_LOG_LEVEL": "error"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in os.environ:
        if process._OF_LAUNCHERS.fullmatch(name):
            monkeypatch.delenv(name)
    monkeypatch.delenv(process.LAUNCH, raising=False)
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("left", LEFT, ids=map(str, LEFT))
def test_what_is_left_over_is_dropped_with_a_note(left, monkeypatch, capsys):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    process.ignore_launchers()
    said = capsys.readouterr().err
    assert not left.keys() & os.environ.keys()
    assert said.startswith(f"note     not used: {min(left)}")
    assert said.count("\n") == 1
    assert os.environ.keys() >= OWN.keys()
    process.ignore_launchers()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("world", WHOLE, ids=map(str, WHOLE))
def test_a_world_that_a_launcher_made_stays_for_the_command_to_take_part(world, monkeypatch, capsys):
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    process.ignore_launchers()
    assert capsys.readouterr().err == ""
    assert os.environ.keys() >= world.keys()


@pytest.mark.parametrize("world", WHOLE[1:], ids=map(str, WHOLE[1:]))
def test_processes_of_mpirun_are_refused_until_it_is_told(world, monkeypatch, workplace, llmkit):
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    done = llmkit("pretrain", "causal.toml")
    assert done.exit_code == 2
    assert "--launched" in done.stderr
    assert not (workplace / "runs").exists()


def test_our_own_processes_keep_theirs(monkeypatch, capsys):
    monkeypatch.setenv(process.LAUNCH, "/somewhere")
    monkeypatch.setenv("LOCAL_RANK", "0")
    process.ignore_launchers()
    assert os.environ["LOCAL_RANK"] == "0"


def run(**variables):
    words = [sys.executable, "-m", "llmkit", "pretrain", "nowhere"]
    env = {**os.environ, **variables}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_a_command_says_so_before_anything_else():
    done = run(LOCAL_RANK="0", WORLD_SIZE="x")
    assert done.returncode == 2
    assert done.stderr.startswith("note     not used: LOCAL_RANK, WORLD_SIZE, of another launcher; llmkit starts its ")


def test_a_process_whose_parent_is_gone_trains_nothing(tmp_path):
    done = run(LLMKIT_LAUNCH=str(tmp_path / "gone"))
    assert done.returncode == process.STOPPED
    assert done.stderr == "error: the process that started this one is gone; or unset LLMKIT_LAUNCH, if none did\n"
