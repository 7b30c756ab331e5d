"""What torchrun, a PyTorchJob, srun and mpirun say in the environment."""

import pytest

from llmkit import worlds
from llmkit.errors import UserError
from llmkit.worlds import World

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
HYDRA = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}


def test_torchrun_needs_no_telling_and_neither_does_a_pytorch_job():
    local = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert worlds.find(False, TORCH | local) == World("torchrun", 3, 4, 1, 2, "gpu1", 29500)
    assert worlds.find(False, TORCH) == World("torchrun", 3, 4, 0, 1, "gpu1", 29500)
    assert worlds.find(True, TORCH | STEP) == worlds.find(False, TORCH)  # srun torchrun


def test_a_step_of_srun_when_it_is_told():
    found = worlds.find(True, STEP)
    assert (found.rank, found.size, found.local_rank, found.local_size, found.address) == (3, 5, 1, 2, "gpu07")
    assert worlds.find(True, STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}).port == found.port
    assert worlds.find(True, STEP | {"SLURM_JOB_ID": "8"}).port != found.port
    assert worlds.find(True, STEP | {"MASTER_ADDR": "ib7", "MASTER_PORT": "1234"}).variables() == {
        "RANK": "3",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "ib7",
        "MASTER_PORT": "1234",
    }


@pytest.mark.parametrize("kind", [OPEN_MPI, HYDRA])
def test_processes_of_mpirun_when_it_is_told(kind):
    found = worlds.find(True, kind)
    assert (found.launcher, found.address) == ("mpirun", "127.0.0.1")
    assert found.local_size == found.size
    assert worlds.LOWEST_PORT <= found.port < worlds.LOWEST_PORT + worlds.PORTS
    assert worlds.find(True, kind | {"PMIX_NAMESPACE": "prterun-1@1"}).port != found.port


def test_mpirun_on_several_machines_needs_an_address():
    several = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    with pytest.raises(UserError) as refused:
        worlds.find(True, several)
    assert "MASTER_ADDR" in refused.value.hint
    assert worlds.find(True, several | {"MASTER_ADDR": "gpu1"}).address == "gpu1"


@pytest.mark.parametrize("kind", [STEP, OPEN_MPI, HYDRA])
def test_several_tasks_are_refused_unless_it_is_told(kind):
    with pytest.raises(UserError, match="each would train a run of its own") as refused:
        worlds.find(False, kind)
    assert "--launched" in refused.value.hint
    assert "--processes" in refused.value.hint


ALONE = {
    "nothing": {},
    "the batch step": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "4(x2)"},
    "the batch step by its number": STEP | {"SLURM_STEP_ID": "4294967291"},
    "salloc": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},
    "a step of one": {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
    "one of torchrun": {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    "half of torchrun": {"RANK": "0", "WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("kind", ALONE)
def test_alone_after_all(kind):
    assert worlds.find(False, ALONE[kind]) is None


def test_told_of_a_launcher_that_is_not_there():
    assert worlds.find(True, ALONE["a step of one"]) is None
    assert worlds.find(True, ALONE["one of torchrun"]) is None
    with pytest.raises(UserError, match="no launcher has started this process"):
        worlds.find(True, ALONE["salloc"])


def test_variables_that_contradict_each_other():
    with pytest.raises(UserError, match="SLURM_NODEID=9"):
        worlds.find(True, STEP | {"SLURM_NODEID": "9"})
    with pytest.raises(UserError, match="OMPI_COMM_WORLD_RANK=4"):
        worlds.find(True, OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "4"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("gpu[07-09,12],cpu1", "gpu07"), ("a1,b2", "a1"), ("r[1,3]-n2,x", "r1-n2"), ("n-4", "n-4")],
)
def test_the_first_node_of_a_list(nodes, first):
    assert worlds.first_node(nodes) == first


def test_tasks_on_each_node():
    assert worlds.tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert worlds.tasks_per_node("4") == [4]
    assert worlds.tasks_per_node("") == []
