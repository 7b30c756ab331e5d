"""A record that is gone or damaged is rebuilt from a checkpoint, or the run is refused: none starts anew in silence."""

import json
import shutil
import tomllib

import pytest

RUN = ("pretrain", "causal.toml", "trainer.save_steps=2", "--output-dir", "run")
DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_text(""),
    "cut": lambda file: file.write_text(file.read_text()[:200]),
    "no object": lambda file: file.write_text("[]"),
    "without its id": lambda file: file.write_text('{"status": "running"}'),
    "not text": lambda file: file.write_bytes(b"\xff\x00\xff"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was killed behind step 4 of 6, and the weights that it would have ended in."""
    from conftest import CAUSAL, corpus
    from typer.testing import CliRunner

    from llmkit.cli import app

    home = tmp_path_factory.mktemp("whole")
    (home / "causal.toml").write_text(CAUSAL)
    (home / "corpus.txt").write_text(corpus())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert CliRunner().invoke(app, RUN, catch_exceptions=False).exit_code == 0
    weights = (home / "run/model.safetensors").read_bytes()
    (home / "run/model.safetensors").unlink()
    shutil.rmtree(home / "run/checkpoint-6")
    return home, weights


@pytest.fixture
def killed(whole, workplace):
    shutil.copytree(whole[0] / "run", workplace / "run")
    return workplace / "run"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_run_whose_record_is_lost_goes_on_from_its_checkpoint(killed, whole, llmkit, damage):
    record = json.loads((killed / "run.json").read_text())
    damage(killed / "run.json")
    checked = llmkit("check", "run")
    assert checked.exit_code == 0
    assert "damaged        run.json cannot be read; --resume rebuilds it" in checked.stdout
    assert "resumable      --resume goes on from checkpoint-4" in checked.stdout
    done = llmkit(*RUN, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "`run/run.json` is missing or damaged: rebuilt from checkpoint-4" in done.stderr
    assert "resuming from run/checkpoint-4" in done.stderr
    assert (killed / "model.safetensors").read_bytes() == whole[1]
    rebuilt = json.loads((killed / "run.json").read_text())
    assert {key: rebuilt[key] for key in ("id", "started", "name")} == {
        key: record[key] for key in ("id", "started", "name")
    }


def test_by_name_a_lost_record_is_rebuilt_and_no_second_run_begun(killed, workplace, llmkit):
    (workplace / "runs").mkdir()
    killed.rename(workplace / "runs/causal")
    (workplace / "runs/causal/run.json").unlink()
    done = llmkit(*RUN[:-2], "--resume")
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in (workplace / "runs").iterdir()] == ["causal"]


def test_a_manifest_of_an_earlier_version_is_enough(killed, llmkit):
    from llmkit.runs import checkpoint, rebuild

    folder = killed / "checkpoint-4"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("checksum") and manifest.pop("record")
    (folder / "manifest.json").write_text(json.dumps({**manifest, "checksum": checkpoint._sum(manifest)}))
    (killed / "run.json").unlink()
    assert rebuild.is_needed(killed)
    done = llmkit(*RUN, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "resuming from run/checkpoint-4" in done.stderr


def test_without_record_and_without_a_whole_checkpoint_the_run_is_refused_and_left_as_it_is(killed, workplace, llmkit):
    (killed / "run.json").unlink()
    for folder in killed.glob("checkpoint-*"):
        (folder / "manifest.json").write_text("")
    before = sorted(killed.rglob("*"))
    done = llmkit(*RUN, "--resume")
    assert done.exit_code == 2
    assert "run.json` is missing or damaged, and no checkpoint in `run` is whole" in done.stderr
    assert "checkpoint-4: manifest.json cannot be read" in done.stderr
    assert sorted(killed.rglob("*")) == before
    assert llmkit("check", "run").exit_code == 1


def test_what_is_left_of_a_run_without_checkpoints_is_not_said_to_be_resumable(workplace, llmkit):
    (workplace / "run").mkdir()
    (workplace / "run/run.json").write_text("")
    for resume in ((), ("--resume",)):
        done = llmkit(*RUN, *resume)
        assert done.exit_code == 2
        assert "already contains other files" in done.stderr
        assert "--resume" not in done.stderr.partition("hint:")[2]


@pytest.mark.parametrize("cut", [lambda text: text[: len(text) // 2], lambda text: text.partition("[trainer]")[0]])
def test_a_recipe_that_is_cut_off_is_taken_from_the_record(killed, whole, llmkit, cut):
    recipe = killed / "recipe.toml"
    text = recipe.read_text()
    recipe.write_text(cut(text))
    assert "resumable" in llmkit("check", "run").stdout
    done = llmkit(*RUN, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "recipe.toml` is damaged" in done.stderr
    assert (killed / "model.safetensors").read_bytes() == whole[1]
    assert tomllib.loads(recipe.read_text()) == tomllib.loads(text)


def test_where_recipe_and_record_are_damaged_check_says_what_resume_does(killed, llmkit):
    (killed / "recipe.toml").write_text("[data\n")
    record = json.loads((killed / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps({key: record[key] for key in record if key != "settings"}))
    checked, done = llmkit("check", "run"), llmkit(*RUN, "--resume")
    assert (checked.exit_code, done.exit_code) == (1, 2)
    assert "resumable" not in checked.stdout
    assert "--resume refuses: `run/recipe.toml` cannot be read" in checked.stdout
    assert "move it away" in done.stderr
    (killed / "recipe.toml").unlink()
    assert llmkit(*RUN, "--resume").exit_code == 0
