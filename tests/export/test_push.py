"""`llmkit push`: what goes to the Hub, what stays here, and what the card says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_that_takes import TakingHub
from predictions import BERT, TRAINER

from llmkit.export import push as push_module

# huggingface_hub's own way of sending a file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
TOKEN = "hf_" + "t0kenOfATest" * 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of a classifier whose data has a path that is nobody's business."""
    from typer.testing import CliRunner

    from llmkit.cli import app

    folder = tmp_path_factory.mktemp("secret-place")
    rows = [f"it was {word} number {i},{label}" for i in range(12) for word, label in (("good", "p"), ("bad", "n"))]
    (folder / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    short = TRAINER.replace("max_steps = 80", "max_steps = 3")
    (folder / "r.toml").write_text(f'task = "text-classification"\n{BERT}[data]\npath = "{folder}/rows.csv"\n{short}')
    done = CliRunner().invoke(app, ["finetune", str(folder / "r.toml"), "--output-dir", str(folder / "run")])
    assert done.exit_code == 0, done.stderr
    return folder / "run"


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    taking = TakingHub()
    monkeypatch.setattr(constants, "ENDPOINT", taking.address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield taking
    taking.close()


def push(llmkit, run: Path, *words: str):
    return llmkit("push", str(run), "ada/reviews", "--license", "apache-2.0", *words)


def test_the_model_its_card_and_its_recipe_are_uploaded_and_nothing_else(llmkit, finished, hub):
    done = push(llmkit, finished)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/ada/reviews"
    assert hub.private == {"ada/reviews": True}
    there = hub.repos["ada/reviews"]
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(there) - {"loss.svg"} == {"README.md", "recipe.toml"} | model
    for name in model:
        assert there[name] == (finished / name).read_bytes()
    sent = b"".join(content for name, content in there.items() if name != "model.safetensors").decode()
    assert "secret-place" not in sent
    assert TOKEN not in sent
    assert 'path = "rows.csv"' in there["recipe.toml"].decode()
    assert set(hub.headers) == {f"Bearer {TOKEN}", ""}  # what stores files is given an address of its own


def test_paths_of_this_machine_are_cut_wherever_they_stand(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'# resolved from "{tmp_path}/my folder/r.toml"\n# beside {tmp_path}/other.toml\n'
        f'a = "{tmp_path}/rows.csv"\nb = ["~/x/y.csv", "org/name"]\nc = "https://host/x"\n'
    )
    assert push_module.shortened(recipe) == (
        '# resolved from "r.toml"\n# beside other.toml\na = "rows.csv"\nb = ["y.csv", "org/name"]\nc = "https://host/x"\n'
    )


def test_the_card_has_results_licence_and_a_snippet_that_names_the_repository(llmkit, finished):
    done = push(llmkit, finished, "--dry-run")
    assert done.exit_code == 0, done.stderr
    head = yaml.safe_load(done.stdout.split("---")[1])
    metrics = json.loads((finished / "run.json").read_text())["metrics"]
    (result,) = head["model-index"][0]["results"]
    shown = {each["type"]: each["value"] for each in result["metrics"]}
    assert shown["accuracy"] == pytest.approx(metrics["eval_accuracy"], abs=1e-6)
    assert result["task"]["type"] == "text-classification"
    assert result["dataset"]["name"] == "rows.csv, held out"
    assert head["license"] == "apache-2.0"
    assert 'path = "ada/reviews"' in done.stdout
    assert "run.json" not in done.stdout
    assert re.search(r"model\.safetensors\n", done.stderr)
    assert " in all" in done.stderr


@pytest.mark.long
def test_the_snippet_of_the_card_loads_the_model_that_was_uploaded(llmkit, finished, hub, tmp_path):
    assert push(llmkit, finished).exit_code == 0
    there = tmp_path / "ada/reviews"
    there.mkdir(parents=True)
    for name, content in hub.repos["ada/reviews"].items():
        (there / name).write_bytes(content)
    code = re.search(r"```python\n(.*?)```", (there / "README.md").read_text(), re.DOTALL)[1]
    code += "\nprint(type(model).__name__, len(tokenizer('it was good')['input_ids']) > 3)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["BertForSequenceClassification", "True"]


def test_what_holds_rows_goes_only_where_it_is_asked_for(llmkit, finished, hub):
    done = push(llmkit, finished, "--include", "record", "--include", "logs")
    assert done.exit_code == 0, done.stderr
    assert "may hold rows of your data" in done.stderr
    assert {"run.json", "metrics.jsonl"} <= set(hub.repos["ada/reviews"])
    assert "`run.json` the record" in hub.repos["ada/reviews"]["README.md"].decode()


def test_public_is_said_and_a_public_repository_takes_no_private_model(llmkit, finished, hub):
    assert push(llmkit, finished, "--public").exit_code == 0
    assert hub.private == {"ada/reviews": False}
    done = push(llmkit, finished)
    assert done.exit_code == 2
    assert "`ada/reviews` exists and is public" in done.stderr
    assert push(llmkit, finished, "--public").exit_code == 0
    hub.private["ada/reviews"] = True
    done = push(llmkit, finished, "--public")
    assert done.exit_code == 0
    assert "still is" in done.stderr


def test_a_dry_run_asks_nothing_of_the_hub(llmkit, finished, hub):
    assert push(llmkit, finished, "--dry-run").exit_code == 0
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_write_is_explained(llmkit, finished, hub, status):
    hub.refuses = status
    done = push(llmkit, finished)
    assert done.exit_code == 2
    assert "does not let you write to `ada/reviews`" in done.stderr
    assert TOKEN not in done.stderr


def test_an_upload_that_breaks_off_publishes_nothing(llmkit, finished, hub, monkeypatch):
    def broken(*words, **more):
        raise RuntimeError(f"Error while uploading 'model.safetensors' with {TOKEN}")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", broken)
    done = push(llmkit, finished)
    assert done.exit_code == 1
    assert "broke off: Error while uploading 'model.safetensors' with ***" in done.stderr
    assert hub.repos["ada/reviews"] == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "ada", "--license", "mit"], "`ada` is not the name of a repository"),
        (["run", "ada/x", "--license", "MIT License"], "is not an identifier of a licence"),
        (["run", "ada/x", "--license", "mit", "--include", "weights"], "--include: there is no `weights`"),
        (["run", "ada/x"], "--license is missing"),
        (["elsewhere", "ada/x", "--license", "mit"], "is not a run directory"),
    ],
)
def test_mistakes_are_found_before_the_hub_is_asked(llmkit, finished, hub, monkeypatch, words, said):
    monkeypatch.chdir(finished.parent)
    done = llmkit("push", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert hub.requests == []


def test_a_run_that_is_not_whole_is_refused(llmkit, finished, hub, tmp_path):
    for name in ("run.json", "README.md", "recipe.toml", "model.safetensors"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    done = push(llmkit, tmp_path)
    assert done.exit_code == 2
    assert "is missing" in done.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert "is not finished" in push(llmkit, tmp_path).stderr


def test_an_adapter_of_a_folder_is_to_be_merged_first(llmkit, finished, hub, tmp_path):
    for file in finished.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    adapter = tmp_path / "adapter_config.json"
    adapter.write_text(json.dumps({"base_model_name_or_path": str(finished)}))
    done = push(llmkit, tmp_path)
    assert done.exit_code == 2
    assert "a folder that others do not have" in done.stderr
    adapter.write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    card = push(llmkit, tmp_path, "--dry-run").stdout
    assert '.from_pretrained("org/base", config=config)' in card


def test_the_card_of_an_adapter_of_earlier_code_is_the_hubs_not_pefts(finished, tmp_path):
    for file in finished.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    record = json.loads((tmp_path / "run.json").read_text())
    record["files"]["README.md"] = {"bytes": 1, "xxh3_128": ""}
    (tmp_path / "run.json").write_text(json.dumps(record))
    files = push_module.files_to_push(tmp_path, "ada/reviews", "mit", ())
    assert b"license: mit" in files["README.md"]
