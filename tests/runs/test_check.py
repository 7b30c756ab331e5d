"""`llmkit check`: what is whole, what is damaged, what a run can go on from."""

import json

import pytest

FINISHED = ("pretrain", "causal.toml", "trainer.save_steps=2", "--output-dir", "run")


@pytest.fixture
def run(workplace, llmkit):
    """A finished run with two checkpoints."""
    assert llmkit(*FINISHED).exit_code == 0
    return workplace / "run"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_finished_run_that_is_whole(run, llmkit):
    done = llmkit("check", "run")
    assert done.exit_code == 0
    assert done.stderr == ""
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines.keys() == {"run", "checkpoint-6", "checkpoint-4", "finished"}
    assert "intact" in lines["checkpoint-6"]
    assert "model.safetensors" in lines["finished"]


def test_finished_weights_with_one_flipped_bit(run, llmkit):
    flip(run / "model.safetensors")
    done = llmkit("check", "run")
    assert done.exit_code == 0  # it can go on from its last checkpoint, and write them again
    assert "damaged        model.safetensors has changed since it was written" in done.stdout
    assert "resumable      --resume goes on from checkpoint-6" in done.stdout


def test_a_damaged_checkpoint_is_named_and_the_one_before_counts(run, llmkit):
    (run / "model.safetensors").unlink()
    flip(run / "checkpoint-6/optimizer.safetensors")
    done = llmkit("check", "run")
    assert done.exit_code == 0
    assert "damaged        checkpoint-6: optimizer.safetensors has changed since it was written" in done.stdout
    assert "goes on from checkpoint-4 (step 4)" in done.stdout


def test_a_run_with_nothing_to_go_on_from(run, llmkit):
    (run / "model.safetensors").unlink()
    for step in (4, 6):
        (run / f"checkpoint-{step}/manifest.json").unlink()
    done = llmkit("check", "run")
    assert done.exit_code == 1
    assert "lost" in done.stdout
    assert done.stdout.count("it has no manifest.json, so it was not saved completely") == 2


def test_what_else_can_be_wrong_is_named(run, llmkit):
    (run / "recipe.toml").write_text("task = 3\n")
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 7, "lo')
    (run / ".draft-checkpoint-8").mkdir()
    done = llmkit("check", "run")
    assert done.exit_code == 1
    assert "damaged        recipe.toml: " in done.stdout
    assert "damaged        metrics.jsonl, line " in done.stdout
    assert "left over      .draft-checkpoint-8" in done.stdout
    (run / "run.json").write_text("{")
    done = llmkit("check", "run")
    assert "run.json cannot be read" in done.stdout


def test_a_program_is_told_the_state_and_what_to_resume_from(run, llmkit):
    def checked():
        done = llmkit("check", "run", "--json")
        assert done.stderr == ""
        return done.exit_code, json.loads(done.stdout)

    code, found = checked()
    assert (code, found["ok"], found["state"], found["damaged"]) == (0, True, "finished", [])
    assert [each["step"] for each in found["checkpoints"]] == [6, 4]
    assert "model.safetensors" in found["files"]
    flip(run / "checkpoint-6/optimizer.safetensors")
    (run / "model.safetensors").unlink()
    code, found = checked()
    assert (code, found["ok"], found["state"], found["resume_from"]) == (0, True, "resumable", "checkpoint-4")
    assert found["damaged"][0].startswith("checkpoint-6: optimizer.safetensors has changed")
    (run / "checkpoint-4/manifest.json").unlink()
    code, found = checked()
    assert (code, found["ok"], found["state"], found["resume_from"]) == (1, False, "lost", None)


def test_a_directory_that_is_no_run(workplace, llmkit):
    done = llmkit("check", ".")
    assert done.exit_code == 2
    assert "is not a run directory" in done.stderr


def test_the_finished_weights_are_listed_in_the_record(run):
    files = json.loads((run / "run.json").read_text())["files"]
    assert files["model.safetensors"]["bytes"] == (run / "model.safetensors").stat().st_size
    assert "metrics.jsonl" not in files


def test_weights_that_were_damaged_are_written_again(run, llmkit):
    before = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    done = llmkit(*FINISHED, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "resuming from run/checkpoint-6" in done.stderr
    assert (run / "model.safetensors").read_bytes() == before
    assert llmkit("check", "run").exit_code == 0
