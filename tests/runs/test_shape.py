"""Odd and forged records and manifests: what does not look like llmkit's is damaged, and said to be."""

import json
import os

import made_runs
import pytest

from llmkit.runs import checkpoint, shape
from llmkit.runs import directory as runs

ODD = {
    "started": ["", "yesterday", [], -1, 1e300, float("nan"), True],
    "finished": [{}, "0001-01-01T00:00:00"],
    "status": [3, None, []],
    "task": [[], 1],
    "files": [[], {"x": 1}, {"x": {"bytes": "9", "xxh3_128": "0"}}, {"x": {"bytes": 9}}, {"../x": made_runs.FILE}],
    "longer": [[], {"steps": 9}, {"status": "running", "steps": "9"}],
    "steps": ["9", -1, float("inf"), 1.5],
    "metrics": [[], {"eval_loss": "low"}, {"eval_loss": [1]}],
    "settings": [[], {"model": "x"}, {"trainer": 3}, {"model": {"config": []}}],
    "paths": [[], {"data.path": 3}],
    "command": ["llmkit", [1]],
    "best": [{}, {"step": 1}],
    "verdicts": [{}, [3], [{}]],
    "seconds": ["1", float("nan")],
    "order_started": ["1", -1],
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run with a checkpoint."""
    monkeypatch.chdir(tmp_path)
    directory = made_runs.write(tmp_path / "runs/a", "causal-lm", {"eval_loss": 1.0})
    draft = checkpoint.begin(directory, 4)
    (draft / "model.safetensors").write_text("weights")
    checkpoint.seal(draft, {**made_runs.MANIFEST, "run": "a", "step": 4})
    return directory


CASES = [(key, value) for key, values in ODD.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{key} {value}"[:40] for key, value in CASES])
def test_an_odd_record_is_damaged_to_every_command(key, value, run, llmkit):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, key: value}))
    assert runs.read_record(run) == {}
    checked = llmkit("check", "runs/a")
    assert "damaged        run.json cannot be read; --resume rebuilds it" in checked.stdout
    assert "unreadable" in llmkit("runs").stdout
    assert llmkit("compare", "runs/a", "runs/a").exit_code == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '"x"', "\0", "{", '{"id": NaN}', "9" * 5000])
def test_a_record_that_is_no_record(text, run, llmkit):
    (run / "run.json").write_text(text)
    assert "damaged        run.json cannot be read" in llmkit("check", "runs/a").stdout


FORGED = [
    *({key: value} for key in made_runs.MANIFEST for value in ("x", None, -1, [])),
    *({"files": value} for value in ([], {"x": 3}, {"/etc/passwd": made_runs.FILE}, {"a\0": made_runs.FILE})),
    *({"run": 3}, {"step": "4"}, {"record": 3}, {"record": {"settings": []}}, {"record": {"started": "x"}}),
]


@pytest.mark.parametrize("forged", FORGED, ids=[str(forged)[:40] for forged in FORGED])
@pytest.mark.parametrize("lost", [False, True])
def test_a_forged_manifest_is_none(forged, lost, run, llmkit):
    file = run / "checkpoint-4/manifest.json"
    content = json.loads(file.read_text())
    content.pop("checksum")
    content |= forged
    file.write_text(json.dumps({**content, "checksum": checkpoint._sum(content)}))
    if lost:
        (run / "run.json").unlink()
    done = llmkit("check", "runs/a")
    assert "damaged        checkpoint-4: manifest.json is not one that llmkit writes" in done.stdout


def test_a_manifest_that_lacks_what_it_needs_is_none(run):
    for key in (*made_runs.MANIFEST, "files"):
        content = {**made_runs.MANIFEST, "run": "a", "step": 4, "files": {}}
        assert shape.is_manifest(content)
        del content[key]
        assert not shape.is_manifest(content)


def test_what_is_no_file_in_its_place_is_not_waited_for(run, llmkit):
    weights = run / "checkpoint-4/model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    (run / "metrics.jsonl").unlink(missing_ok=True)
    os.mkfifo(run / "metrics.jsonl")
    done = llmkit("check", "runs/a")
    assert "damaged        checkpoint-4: model.safetensors is missing" in done.stdout


def test_digits_of_other_kinds_number_no_checkpoint_and_no_run(run, llmkit):
    for name in ("checkpoint-\u00b2", "checkpoint-\u0664", "checkpoint-"):
        (run / name).mkdir()
    (run.parent / "a-\u00b2").mkdir()
    assert [folder.name for folder in checkpoint.folders(run)] == ["checkpoint-4"]
    assert runs.numbered(run) == [run]
    assert llmkit("check", "runs/a").exit_code == 0
