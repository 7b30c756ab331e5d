"""`--json`: one documented object for each command, and one for each mistake."""

import json
import re
import subprocess
import sys

import pytest
import typer
from conftest import ROOT

from llmkit.cli import app
from llmkit.errors import Place, RunError, UserError

PAGE = (ROOT / "docs/reference/json.md").read_text()
# Fields whose keys are names of the user's, and what the page writes for them.
NAMES = {"settings": "KEY", "metrics": "METRIC"}
RECIPE = """task = "causal-lm"
[data]
path = "corpus.txt"
blok_size = 3
[model]
name = "org/name"
[trainer]
lerning_rate = 3
"""


def documented(section: str) -> set[str]:
    table = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))


def fields(value, above: str = "", named: str = "") -> set[str]:
    """The fields of an object as the page writes them, without those that only hold others."""
    if isinstance(value, dict):
        names = {NAMES.get(above, name): each for name, each in value.items()}
        dot = f"{above}." if above else ""
        return set().union(*(fields(each, f"{dot}{name}") for name, each in names.items()), {above} - {""})
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(fields(each, f"{above}[]") for each in value))
    return {above}


def holders(names: set[str]) -> set[str]:
    """Fields that are there for those in them: the page may name them, too."""
    return {name for name in names if any(other.startswith((f"{name}.", f"{name}[]")) for other in names)}


def error(done) -> dict:
    assert done.stdout == ""
    found = json.loads(done.stderr)
    assert found.keys() == {"error"}
    assert found["error"]["code"] == done.exit_code
    names = fields(found)
    assert names - holders(names) <= documented("Errors") | {"error.details[].place"} | {
        f"error.details[].place.{key}" for key in ("file", "line", "key")
    }
    return found["error"]


@pytest.fixture
def run(workplace, llmkit):
    assert llmkit("pretrain", "causal.toml", "trainer.save_steps=2", "--output-dir", "runs/a").exit_code == 0
    return workplace / "runs/a"


def test_the_page_has_the_fields_that_come(run, llmkit):
    (run / "checkpoint-8").mkdir()  # damaged
    second = run.with_name("b")
    second.mkdir()
    record = json.loads((run / "run.json").read_text())
    record["settings"]["trainer"]["seed"] = 3
    record["metrics"] |= {"eval_loss": 1.0}
    (second / "run.json").write_text(json.dumps(record))
    for words in (["runs"], ["compare", "a", "b"], ["check", "a"], ["doctor", "--offline"]):
        done = llmkit(*words, "--json")
        assert done.stderr == ""
        found = fields(json.loads(done.stdout))
        assert found - holders(found) <= documented(words[0]), words
        nothing = {name for name in documented(words[0]) if name.startswith(("test.", "in_use.", "longer."))}
        assert documented(words[0]) - found <= nothing, words  # these objects are null here
    found = json.loads(llmkit("evaluate", "a", "--json").stdout)
    known = documented("evaluate") | {key for key in found if key.startswith("eval_")}
    assert {key for key in found if key != "trivial"} <= known


def test_the_page_has_the_fields_of_objects_that_are_often_null(run):
    from dataclasses import fields as fields_of

    from llmkit.reports.compare import Verdict

    assert {name for name in documented("compare") if name.startswith("test.")} == {
        f"test.{field.name}" for field in fields_of(Verdict)
    }
    from llmkit.runs import check, directory

    directory.update_record(run, longer={"steps": 9, "status": "running", "started": "now"})
    with directory.held(run):
        found = fields(check.examine(run))
    assert {name for name in documented("check") if name.startswith(("in_use.", "longer."))} <= found


def test_every_command_with_json_is_on_the_page():
    group = typer.main.get_command(app)
    takes = {name for name, command in group.commands.items() if any("--json" in p.opts for p in command.params)}
    assert takes == set(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) - {"Errors"}


@pytest.mark.parametrize(
    ("words", "message", "key"),
    [
        (["runs", "nowhere"], "there is no folder `nowhere`", None),
        (["runs", "--sort", "loss"], "there is no column `loss`", "--sort"),
        (["runs", "--format", "html"], "'html' is not one of", "--format"),
        (["runs", "--lr", "3"], "llmkit runs has no such option", "--lr"),
        (["rnus"], "llmkit has no command `rnus`", None),
        (["compare", "a"], "two runs at least", None),
        (["compare"], "RUN is missing", None),
        (["check", "x"], "`x` is not a run directory", None),
        (["evaluate", "x"], "`x`", None),
        (["doctor", "more"], "unexpected extra argument", None),
    ],
)
def test_a_mistake_is_an_object_as_well(words, message, key, workplace, llmkit):
    (workplace / "runs/a").mkdir(parents=True)
    (workplace / "runs/a/run.json").write_text('{"status": "finished", "metrics": {}}')
    found = error(llmkit(*words, "--json"))
    assert message in found["message"]
    assert found["hint"]
    assert (found["place"] or {}).get("key") == key
    assert llmkit(*words).stderr.startswith("error: ")  # for people it stays as it was


def test_the_mistakes_of_a_recipe_have_their_lines_and_keys(run, llmkit, workplace):
    (workplace / "bad.toml").write_text(RECIPE)
    found = error(llmkit("evaluate", str(run), "bad.toml", "data.nam=x", "--json"))
    assert found["message"] == "3 problems in `bad.toml` and on the command line"
    places = [tuple(each["place"].values()) for each in found["details"]]
    assert places == [
        ("bad.toml", 4, "data.blok_size"),
        ("bad.toml", 8, "trainer.lerning_rate"),
        (None, None, "data.nam"),
    ]
    assert found["place"] == found["details"][0]["place"]
    assert found["details"][0]["message"] == "data.blok_size: unknown key, did you mean `block_size`?"
    (workplace / "bad.toml").write_text("task = \n")
    assert error(llmkit("evaluate", str(run), "bad.toml", "--json"))["place"] == {
        "file": "bad.toml",
        "line": 1,
        "key": None,
    }


def test_an_error_that_llmkit_does_not_know_is_one_too(tmp_path):
    code = (
        "import sys, llmkit.reports.runs as r; r.list_runs = lambda *a: 1 / 0\n"
        "sys.argv = ['llmkit', 'runs', '--json']; from llmkit.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    found = json.loads(done.stderr)["error"]
    assert found["code"] == 1
    assert found["details"][0]["message"].startswith("ZeroDivisionError")
    assert "traceback" in found["hint"]


def test_places_are_read_from_messages():
    def place(message):
        return UserError(message).as_object()["place"]

    assert place("`rows.csv`, line 3: quotes") == {"file": "rows.csv", "line": 3, "key": None}
    assert place("data.label_column: no such column") == {"file": None, "line": None, "key": "data.label_column"}
    assert place("--output: `x` is a folder") == {"file": None, "line": None, "key": "--output"}
    assert place("the file rows.csv is empty") is None
    found = RunError("stopped", "", ("`a.csv` line 2: bad",)).as_object()
    assert (found["code"], found["hint"], found["place"]["line"]) == (1, None, 2)
    assert UserError("x", mistakes=(("y", Place(key="a.b")),)).as_object()["place"]["key"] == "a.b"


def test_a_text_that_says_json_asks_for_none(workplace, llmkit):
    assert llmkit("predict", "nowhere", "--", "--json").stderr.startswith("error: ")
