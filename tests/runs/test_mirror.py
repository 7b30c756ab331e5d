"""A run is copied to an address while it trains, and goes on from there on another machine as if never interrupted."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import CAUSAL, corpus, losses, pretrained
from made_runs import MANIFEST

from llmkit.errors import UserError
from llmkit.runs import checkpoint, mirror
from llmkit.runs import directory as runs

RUN = "0" * 32
RECIPE = CAUSAL.replace("embd_pdrop = 0.0", "embd_pdrop = 0.1") + "save_steps = 2\nsave_total_limit = 2\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run without a mirror, which nothing interrupted."""
    return pretrained(tmp_path_factory.mktemp("whole"), "causal.toml", RECIPE, "run")


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "causal.toml").write_text(RECIPE)
    (tmp_path / "corpus.txt").write_text(corpus())
    monkeypatch.chdir(tmp_path)
    return f"file://{tmp_path}/mirror"


def train(llmkit, place, run, *words):
    return llmkit("pretrain", "causal.toml", f"output_mirror={place}", "--output-dir", run, *words)


def same(run, other):
    """What must not depend on whether a run was interrupted."""
    weights = [(folder / "model.safetensors").read_bytes() for folder in (Path(run), Path(other))]
    assert weights[0] == weights[1]
    assert losses(Path(run)) == losses(Path(other))
    for step in [folder.name for folder in checkpoint.folders(Path(run))]:
        manifests = [checkpoint.read_manifest(Path(each, step))["files"] for each in (run, other)]
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert manifests[0][name] == manifests[1][name]


def at_once(self, *rule):
    """Copy before the training goes on, so that a test knows what is there."""
    self._rule = rule
    self.bring_up_to_date()


def killed(llmkit, place, run, before):
    """Train in a child process, which is killed when it is about to copy the file that ends in `before`."""
    child = os.fork()
    if not child:
        put = mirror.Store.put

        def kill(self, source, name):
            if name.endswith(before):
                os.kill(os.getpid(), signal.SIGKILL)
            put(self, source, name)

        mirror.Store.put = kill
        mirror.Mirror.saved = at_once
        train(llmkit, place, run)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("before", ["checkpoint-4/manifest.json", "run/README.md"])
def test_what_was_killed_goes_on_from_the_mirror_bit_for_bit(before, whole, place, llmkit):
    copy = Path("mirror")
    killed(llmkit, place, "first", before.removeprefix("run/"))
    last = 2 if before == "checkpoint-4/manifest.json" else 6
    assert sorted(path.parent.name for path in copy.glob("*/manifest.json"))[-1] == f"checkpoint-{last}"
    shutil.rmtree("first")
    done = train(llmkit, place, "second", "--resume")
    assert done.exit_code == 0, done.stderr
    assert f"fetching checkpoint-{last} from {place}" in done.stderr
    assert f"resuming from second/checkpoint-{last}" in done.stderr
    assert f"the finished model and its checkpoints are at {place}" in done.stderr
    same("second", whole)
    same(copy, whole)
    assert runs.is_finished(copy)
    again = train(llmkit, place, "third", "--resume")
    assert "`third` is finished: nothing to resume" in again.stderr
    assert Path("third/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_finished_run_is_another_ones_place(place, llmkit):
    assert train(llmkit, place, "first").exit_code == 0
    refused = train(llmkit, place, "second")
    assert refused.exit_code == 2
    assert f"`{place}` already holds another run" in refused.stderr
    assert not Path("second").exists()
    for run in ("first", "third"):  # on this machine and on a new one
        assert f"`{run}` is finished: nothing to resume" in train(llmkit, place, run, "--resume").stderr
    Path("mirror/checkpoint-6/manifest.json").unlink()
    Path("mirror/run.json").unlink()
    assert train(llmkit, place, "first", "--resume").exit_code == 0
    assert Path("mirror/checkpoint-6/manifest.json").exists()
    assert runs.is_finished(Path("mirror"))


def test_a_copy_that_fails_is_said_and_tried_again(whole, place, llmkit, monkeypatch):
    put, failures = mirror.Store.put, [2]

    def fail(self, source, name):
        if failures[0] and name.endswith("model.safetensors"):
            failures[0] -= 1
            raise UserError("the connection to `there` failed")
        put(self, source, name)

    monkeypatch.setattr(mirror.Store, "put", fail)
    done = train(llmkit, place, "run")
    assert done.exit_code == 0
    assert failures == [0]
    assert f"the finished model and its checkpoints are at {place}" in done.stderr
    for run in ("run", "mirror"):
        assert [folder.name for folder in checkpoint.folders(Path(run))] == ["checkpoint-6", "checkpoint-4"]
        same(run, whole)


def test_a_mirror_that_is_gone_is_said_loudly_at_the_end_and_ends_no_training(whole, place, llmkit, monkeypatch):
    def fail(self, source, name):
        raise KeyError("of a library")

    monkeypatch.setattr(mirror.Store, "put", fail)
    done = train(llmkit, place, "run")
    assert done.exit_code == 0
    assert f"THE COPY AT {place} IS NOT COMPLETE: checkpoint-6: KeyError: 'of a library'" in done.stderr
    assert done.stderr.rstrip().endswith("the same command with --resume copies the rest")
    same("run", whole)
    monkeypatch.undo()
    os.chdir(Path(done.stderr.split("file://")[1].split("/mirror")[0]))
    assert train(llmkit, place, "run", "--resume").exit_code == 0
    same("mirror", whole)


def test_a_failure_while_the_run_trains_is_said_once_for_each_try(place, monkeypatch, capsys):
    made(Path("run"), 2)
    there = mirror.Mirror(place, Path("run"), RUN)
    tried, go_on = threading.Event(), threading.Event()

    def fail(self, source, name):
        tried.set()
        go_on.wait(10)
        raise UserError("the connection to `there` failed")

    with monkeypatch.context() as patch:
        patch.setattr(mirror.Store, "put", fail)
        there.saved(2, None, None)
        assert tried.wait(10)
        with there.spared() as name:
            assert name == "checkpoint-2"
        go_on.set()
        while (said := capsys.readouterr().err) == "":
            time.sleep(0.01)
    assert f"not copied to {place}: checkpoint-2: the connection to `there` failed; training goes on" in said
    there.close(finished=False)
    assert f"the checkpoints are at {place}" in capsys.readouterr().err
    assert Path("mirror/checkpoint-2/manifest.json").exists()


def test_ctrl_c_while_the_rest_is_copied_is_answered(place, monkeypatch, capsys):
    made(Path("run"), 2)

    def interrupt(self, source, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(mirror.Store, "put", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mirror.Mirror(place, Path("run"), RUN).close(finished=False)
    assert f"THE COPY AT {place} IS NOT COMPLETE: it was interrupted" in capsys.readouterr().err


def test_a_mirror_that_cannot_be_written_is_said_before_training(place, llmkit):
    Path("mirror").write_text("a file")
    done = train(llmkit, place, "run")
    assert done.exit_code == 2
    assert "output_mirror: " in done.stderr
    assert not Path("run").exists()


def made(directory, step, run=RUN, content="weights"):
    directory.mkdir(exist_ok=True)
    draft = checkpoint.begin(directory, step)
    (draft / "model.safetensors").write_text(content)
    (draft / checkpoint.TRAINER_STATE).write_text(json.dumps({"best_global_step": 2}))
    return checkpoint.seal(draft, {**MANIFEST, "run": run, "step": step})


def test_what_is_not_whole_there_is_passed_over_and_the_best_one_comes_too(place, capsys):
    run, copy = Path("run"), Path("mirror")
    for step in (2, 4, 6, 8):
        made(run, step)
    assert mirror.Mirror(place, run, RUN).bring_up_to_date() == ""
    (copy / "checkpoint-8/model.safetensors").write_text("damaged")
    (copy / "checkpoint-6/manifest.json").write_text("{}")
    mirror.pull(place, Path("new"))
    assert [folder.name for folder in checkpoint.folders(Path("new"))] == ["checkpoint-4", "checkpoint-2"]
    assert "checkpoint-8 at " in capsys.readouterr().err
    assert runs.read_record(Path("new"))["id"] == RUN
    assert [path.name for path in Path("new").iterdir() if path.name.startswith(".draft")] == []
    made(Path("new"), 10)
    mirror.pull(place, Path("new"))  # it is ahead
    assert len(checkpoint.folders(Path("new"))) == 3


def test_the_mirror_keeps_what_the_run_keeps_and_removes_nothing_before_the_next_is_whole(place, monkeypatch):
    run, copy = Path("run"), Path("mirror")
    there = mirror.Mirror(place, run, RUN)

    def whole_there():
        return sorted(path.parent.name for path in copy.glob("*/manifest.json"))

    for step in (2, 4):
        made(run, step)
    there._rule = (4, 1, 2)
    assert there.bring_up_to_date() == ""
    assert whole_there() == ["checkpoint-2", "checkpoint-4"]
    made(run, 6)
    there._rule = (6, 1, None)
    before = []
    put = mirror.Store.put
    monkeypatch.setattr(
        mirror.Store, "put", lambda self, source, name: (before.append(whole_there()), put(self, source, name))
    )
    assert there.bring_up_to_date() == ""
    assert all(names == ["checkpoint-2", "checkpoint-4"] for names in before)
    assert whole_there() == ["checkpoint-6"]
    assert [path.name for path in copy.iterdir()] == ["checkpoint-6"]


def test_the_checkpoint_that_is_being_copied_is_not_removed(place):
    run = Path("run")
    for step in (2, 4, 6):
        made(run, step)
    checkpoint.rotate(run, RUN, 1, None, spared="checkpoint-2")
    assert [folder.name for folder in checkpoint.folders(run)] == ["checkpoint-6", "checkpoint-2"]
    checkpoint.rotate(run, RUN, 1, None)
    assert [folder.name for folder in checkpoint.folders(run)] == ["checkpoint-6"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("copies", "output_mirror: must be an address that begins with s3://, gs://, file://"),
        ("https://host/a", "output_mirror: must be an address that begins with"),
        ("hf://buckets/me/runs", "`llmkit push` uploads the finished model"),
        ("s3://me:geheimnis@bucket/a", "output_mirror: must hold no password or key"),
        ("s3://bucket/a", "output_mirror: a package that writes s3:// is missing; pip install 'llmkit[s3]'"),
    ],
)
def test_what_is_no_place_for_a_mirror_is_refused(value, said, place, llmkit, monkeypatch):
    monkeypatch.setattr("llmkit.remote.EXTRAS", {"s3": ("no_such_s3", "s3")})
    done = train(llmkit, value, "run")
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert "geheimnis" not in done.stderr


def test_several_runs_have_no_mirror(place, llmkit):
    done = train(llmkit, place, "run", "--seeds", "2")
    assert done.exit_code == 2
    assert "output_mirror is the copy of one run" in done.stderr
