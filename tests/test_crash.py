"""A small part of `make crash`, on one process and on two: what was killed and gone on with ends as if left alone."""

import os

import forks
import pytest
from conftest import ROOT

CRASH = str(ROOT / "tests/crash.py")


def test_trainings_that_are_killed_go_on_to_the_same_weights_optimizer_and_losses():
    """A process of its own: it forks, which after other tests' threads would hang."""
    done = forks.run(CRASH, "causal-lm-2", "--every", "60", "--moments", "1", "--again", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [line.split() for line in done.stdout.splitlines()[1:]]
    assert row[:2] == ["causal-lm", "2"]
    _, _, points, kills, resumes, equal, _ = row
    assert equal == "yes"
    assert int(points) >= 2
    assert int(kills) >= int(points) + 1
    assert int(resumes) > int(points)


@pytest.mark.long
def test_a_run_that_ends_otherwise_is_told(tmp_path):
    """Random numbers that do not go on from where they were: dropout differs, and so do the weights."""
    first = "import llmkit.runs.state\nllmkit.runs.state.set_random_state = lambda found: None"
    words = ("lora-1", "--every", "30", "--moments", "0", "--again", "0")
    done = forks.run(CRASH, *words, first=first, env={**os.environ, "TMPDIR": str(tmp_path)})  # what differs is kept
    assert done.returncode == 1, done.stdout + done.stderr
    assert "adapter_model.safetensors differs" in done.stdout
    assert done.stdout.splitlines()[-2].split()[5] == "no"
    assert list(tmp_path.glob("llmkit-crash-*/lora-1/wrong-0/run/adapter_model.safetensors"))
