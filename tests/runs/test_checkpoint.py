"""Checkpoints on the disk: damage of every kind is named and passed over, and nobody else's checkpoint is touched."""

import os
import shutil
import signal
from collections import namedtuple

import pytest
from conftest import CAUSAL, losses, pretrained
from made_runs import MANIFEST

from llmkit.runs import checkpoint
from llmkit.runs import directory as runs
from llmkit.training.progress import MetricsFile

RUN = "0" * 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a recipe, its text and its run, whose checkpoints are of the steps 2, 4 and 6."""
    recipe = CAUSAL.replace("embd_pdrop = 0.0", "embd_pdrop = 0.1") + "save_steps = 2\nsave_total_limit = 3\n"
    return pretrained(tmp_path_factory.mktemp("trained"), "causal.toml", recipe, "run").parent


@pytest.fixture
def unfinished(trained, tmp_path, monkeypatch):
    """A copy of the run, as if it had been killed before its weights were written."""
    monkeypatch.chdir(trained)
    run = tmp_path / "copy"
    shutil.copytree("run", run)
    (run / "model.safetensors").unlink()
    runs.update_record(run, status="running")
    return run


def resume(llmkit, run, *argv):
    return llmkit("pretrain", "causal.toml", *argv, "--output-dir", str(run), "--resume")


def cut(path):
    """Half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """One bit in the middle of a file is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def made(directory, step, run=RUN, content="weights"):
    """A whole checkpoint of one file."""
    draft = checkpoint.begin(directory, step)
    (draft / "model.safetensors").write_text(content)
    return checkpoint.seal(draft, {**MANIFEST, "run": run, "step": step})


def left(directory):
    return sorted(path.name for path in directory.iterdir())


# ---- damage --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_what_training_goes_on_from_and_lists_it(trained):
    found = checkpoint.examine(trained / "run/checkpoint-6")
    assert isinstance(found, checkpoint.Checkpoint)
    assert found.step == 6
    names = {"model.safetensors", "optimizer.safetensors", "training.json", "process-0.json", "trainer_state.json"}
    assert names <= set(found.manifest["files"])
    assert set(found.manifest["files"]) == {path.name for path in found.path.iterdir()} - {"manifest.json"}
    assert not list(found.path.glob("*.pt")) + list(found.path.glob("*.bin"))  # no pickle


@pytest.mark.parametrize("damage", [os.remove, cut, flip], ids=["missing", "truncated", "one bit flipped"])
def test_damage_to_any_file_is_found_and_the_file_is_named(damage, trained, tmp_path):
    whole = trained / "run/checkpoint-6"
    for name in left(whole):
        shutil.copytree(whole, tmp_path / "checkpoint-6")
        damage(tmp_path / "checkpoint-6" / name)
        found = checkpoint.examine(tmp_path / "checkpoint-6")
        assert isinstance(found, str), name
        assert name in found
        shutil.rmtree(tmp_path / "checkpoint-6")


def test_no_byte_of_a_manifest_can_change_unseen(tmp_path):
    folder = made(tmp_path, 3)
    content = (folder / "manifest.json").read_bytes()
    written = checkpoint.read_manifest(folder)
    assert isinstance(written, dict)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        (folder / "manifest.json").write_bytes(changed)
        found = checkpoint.read_manifest(folder)
        assert isinstance(found, str) or found == written, place  # a blank more or less says nothing else


def test_going_on_passes_over_damage_says_which_and_ends_in_the_same_weights(unfinished, trained, llmkit):
    flip(unfinished / "checkpoint-6/model.safetensors")
    cut(unfinished / "checkpoint-4/optimizer.safetensors")
    done = resume(llmkit, unfinished)
    assert done.exit_code == 0, done.stderr
    assert "checkpoint skipped: checkpoint-6: model.safetensors has changed since it was written" in done.stderr
    assert "checkpoint skipped: checkpoint-4: optimizer.safetensors has " in done.stderr
    assert f"resuming from {unfinished}/checkpoint-2" in done.stderr
    whole = trained / "run"
    assert (unfinished / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(unfinished) == losses(whole)
    for step in (4, 6):  # written anew, over what was damaged
        assert isinstance(checkpoint.examine(unfinished / f"checkpoint-{step}"), checkpoint.Checkpoint)


def test_where_no_checkpoint_is_whole_none_is_touched(unfinished, llmkit):
    """To start anew would hide the weights that are there, and rotation would remove them."""
    for step in (2, 4, 6):
        (unfinished / f"checkpoint-{step}/training.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in unfinished.rglob("checkpoint-*/*")}
    done = resume(llmkit, unfinished)
    assert done.exit_code == 2
    assert f"error: no checkpoint in `{unfinished}` is intact" in done.stderr
    for step in (2, 4, 6):
        assert f"checkpoint-{step}: training.json is missing" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in unfinished.rglob("checkpoint-*/*")} == before


def test_what_was_passed_over_does_not_push_out_what_is_whole(unfinished, llmkit, monkeypatch):
    """Of the one checkpoint that is kept, the damaged one of step 6 is not it, though no other has a later step."""
    for step in (4, 6):
        flip(unfinished / f"checkpoint-{step}/model.safetensors")
    logged = MetricsFile.on_log

    def stop(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == 3:  # noted when step 4 is over
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", stop)
        assert resume(llmkit, unfinished, "trainer.save_total_limit=1").exit_code == 75
    done = resume(llmkit, unfinished)
    assert done.exit_code == 0, done.stderr
    assert f"resuming from {unfinished}/checkpoint-4" in done.stderr


def test_a_checkpoint_under_another_name_is_not_believed(tmp_path):
    made(tmp_path, 4).rename(tmp_path / "checkpoint-9")
    assert checkpoint.examine(tmp_path / "checkpoint-9") == "it is the checkpoint of step 4 under another name"


# ---- whose ---------------------------------------------------------------------------------------------------------


def test_a_strangers_checkpoint_is_neither_gone_on_from_nor_rotated_away(unfinished, llmkit):
    stranger = made(unfinished, 99, run="another")
    shutil.rmtree(unfinished / "checkpoint-6")
    done = resume(llmkit, unfinished, "trainer.save_total_limit=1")
    assert done.exit_code == 0, done.stderr
    assert "checkpoint skipped: checkpoint-99: it belongs to another run" in done.stderr
    assert f"resuming from {unfinished}/checkpoint-4" in done.stderr
    assert [folder.name for folder in checkpoint.folders(unfinished)] == ["checkpoint-99", "checkpoint-6"]
    assert isinstance(checkpoint.examine(stranger, "another"), checkpoint.Checkpoint)


def test_dates_say_nothing_about_which_checkpoint_is_the_newest(tmp_path):
    """A clock that was set back, or a copy: upstream would remove step 30, the last, and keep step 4."""
    for step, date in ((4, 3_000_000_000), (20, 2_000_000_000), (30, 1_000_000_000)):
        os.utime(made(tmp_path, step), (date, date))
    os.utime(made(tmp_path, 2, run="another"), (4_000_000_000, 4_000_000_000))
    found, wrong = checkpoint.newest(tmp_path, RUN)
    assert found is not None
    assert (found.step, wrong) == (30, [])
    checkpoint.rotate(tmp_path, RUN, 1, None)
    assert left(tmp_path) == ["checkpoint-2", "checkpoint-30"]


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 4, 5]),
        (0, 2, [1, 2, 3, 4, 5]),
        (2, None, [4, 5]),
        (2, 2, [2, 5]),
        (3, 2, [2, 4, 5]),
        (3, 4, [3, 4, 5]),
        (1, 2, [2, 5]),
        (1, 5, [5]),
        (9, 2, [1, 2, 3, 4, 5]),
        (2, 77, [4, 5]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(limit, best, kept, tmp_path):
    for step in range(1, 6):
        made(tmp_path, step)
    checkpoint.rotate(tmp_path, RUN, limit, best)
    assert left(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_rotation_leaves_what_it_cannot_read_and_what_is_no_checkpoint(tmp_path):
    for step in (1, 2, 3):
        made(tmp_path, step)
    (tmp_path / "checkpoint-2/manifest.json").write_text("{")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-0").mkdir()
    checkpoint.rotate(tmp_path, RUN, 1, None)
    assert left(tmp_path) == ["checkpoint-0", "checkpoint-2", "checkpoint-3", "checkpoint-best"]


# ---- what a killed run leaves --------------------------------------------------------------------------------------


def test_what_is_half_written_or_half_removed_is_no_checkpoint_and_is_swept(unfinished, llmkit):
    shutil.copytree(unfinished / "checkpoint-6", unfinished / ".draft-checkpoint-8")
    (unfinished / ".draft-checkpoint-8/manifest.json").unlink()
    shutil.copytree(unfinished / "checkpoint-2", unfinished / ".old-checkpoint-1")
    (unfinished / ".old-checkpoint-1/model.safetensors").unlink()
    (unfinished / ".notes").write_text("mine")
    done = resume(llmkit, unfinished)
    assert done.exit_code == 0, done.stderr
    assert f"resuming from {unfinished}/checkpoint-6" in done.stderr
    assert "checkpoint skipped" not in done.stderr
    hidden = [name for name in left(unfinished) if name.startswith(".")]
    assert ".notes" in hidden
    assert not [name for name in hidden if "checkpoint" in name]


def test_a_draft_becomes_a_checkpoint_all_at_once(tmp_path):
    draft = checkpoint.begin(tmp_path, 5)
    (draft / "model.safetensors").write_text("weights")
    (draft / "inside").mkdir()
    (draft / "inside/part.safetensors").write_text("more")
    assert checkpoint.folders(tmp_path) == []
    checkpoint.seal(draft, {**MANIFEST, "run": RUN, "step": 5})
    assert left(tmp_path) == ["checkpoint-5"]
    found = checkpoint.examine(tmp_path / "checkpoint-5", RUN)
    assert isinstance(found, checkpoint.Checkpoint)
    assert set(found.manifest["files"]) == {"model.safetensors", "inside/part.safetensors"}
    assert found.manifest["files"]["model.safetensors"]["bytes"] == len("weights")


def test_a_step_that_is_saved_again_takes_the_place_of_the_first(tmp_path):
    made(tmp_path, 5, content="old")
    again = made(tmp_path, 5, content="new")
    assert isinstance(checkpoint.examine(again, RUN), checkpoint.Checkpoint)
    assert (again / "model.safetensors").read_text() == "new"
    assert left(tmp_path) == ["checkpoint-5"]


def test_a_checkpoint_is_not_begun_where_there_is_no_room_for_it(tmp_path, monkeypatch):
    made(tmp_path, 1, content="x" * 1000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1199))
    with pytest.raises(OSError, match="MB are free"):
        checkpoint.begin(tmp_path, 2)
    assert left(tmp_path) == ["checkpoint-1"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1200))
    assert checkpoint.begin(tmp_path, 2).is_dir()
