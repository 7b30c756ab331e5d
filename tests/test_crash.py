"""A small part of `make crash`, on one process and on two: what was killed and gone on with ends as if left alone."""

import os
import subprocess
import sys
from pathlib import Path

CRASH = Path(__file__).with_name("crash.py")


def test_trainings_that_are_killed_go_on_to_the_same_weights_optimizer_and_losses():
    """A process of its own: it forks, which after other tests' threads would hang."""
    words = ("causal-lm-1", "lora-2", "--every", "40", "--moments", "1", "--again", "1")
    done = subprocess.run([sys.executable, str(CRASH), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["causal-lm", "1"], ["lora", "2"]]
    for _, _, points, kills, resumes, equal, _ in rows:
        assert equal == "yes"
        assert int(points) >= 2
        assert int(kills) >= int(points) + 2
        assert int(resumes) > int(points)


def test_a_run_that_ends_otherwise_is_told(tmp_path):
    """Random numbers that do not go on from where they were: dropout differs, and so do the weights."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.argv[0].endswith('crash.py'):\n"
        "    import llmkit.runs.state\n"
        "    llmkit.runs.state.set_random_state = lambda found: None\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    env |= {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}  # what differs is kept
    words = ("lora-1", "--every", "30", "--moments", "0", "--again", "0")
    done = subprocess.run([sys.executable, str(CRASH), *words], capture_output=True, text=True, env=env)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "adapter_model.safetensors differs" in done.stdout
    assert done.stdout.splitlines()[-2].split()[5] == "no"
    assert list(tmp_path.glob("llmkit-crash-*/lora-1/wrong-0/run/adapter_model.safetensors"))
