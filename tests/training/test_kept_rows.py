"""What a run writes behind its end: the rows of its last evaluation and its report, and neither costs the run."""

import gzip
import json
from pathlib import Path

import pytest

from llmkit.runs.directory import PREDICTIONS_FILE
from llmkit.training import kept_rows

RECIPE = """
task = "text-classification"
[model]
name = "base"
[data]
path = "rows.csv"
validation_fraction = 0.3
[trainer]
max_steps = 4
per_device_train_batch_size = 8
learning_rate = 1e-3
logging_steps = 1
"""
RUN = Path("runs/rows")


@pytest.fixture
def place(base, tmp_path, monkeypatch, reports) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(base)
    lines = [f"SECRET the {'fox' if i % 3 else 'hen'} saw {i},{'fox' if i % 3 else 'none'}" for i in range(120)]
    Path("rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    Path("rows.toml").write_text(RECIPE)
    return tmp_path


def record(run: Path = RUN) -> dict:
    return json.loads((run / "run.json").read_text())


def lines(run: Path = RUN) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress((run / PREDICTIONS_FILE).read_bytes()).splitlines()]


def test_a_run_ends_with_its_rows_and_a_report(place, llmkit):
    done = llmkit("finetune", "rows.toml")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "report   runs/rows/report.html"
    rows, metrics = lines(), record()["metrics"]
    assert sum(row["right"] for row in rows) / len(rows) == pytest.approx(metrics["eval_accuracy"])
    assert sum(row["loss"] for row in rows) / len(rows) == pytest.approx(metrics["eval_loss"], abs=1e-5)
    about = record()["predictions"]["validation"]
    assert about == {
        "prefix": "eval",
        "task": "text-classification",
        "rows": len(rows),
        "classes": about["classes"],
        "unit": "rows",
    }
    page = (RUN / "report.html").read_text()
    assert f">{metrics['eval_accuracy']:.4f}</td>" in page and "SECRET" in page
    assert "![Training loss" in (RUN / "README.md").read_text() and (RUN / "loss.svg").is_file()
    assert not [path for path in RUN.iterdir() if path.name.startswith((".report", ".predictions", ".loss"))]
    assert "<mark" not in page
    again = llmkit("report", "rows")
    assert (again.exit_code, again.stdout) == (0, "runs/rows/report.html\n")
    assert "<mark" in (RUN / "report.html").read_text()


def test_without_rows_a_run_keeps_no_text_of_them(place, llmkit):
    assert llmkit("finetune", "rows.toml", "report.rows=false").exit_code == 0
    assert not any("columns" in row or "key" in row for row in lines())
    assert {row["truth"] for row in lines()} == {"fox", "none"}
    kept = [
        path for path in RUN.iterdir() if path.is_file() and path.suffix in (".html", ".json", ".jsonl", ".md", ".gz")
    ]
    for path in kept:
        if not path.name.startswith("tokenizer"):
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            assert b"SECRET" not in data, path


def test_neither_is_written_where_the_recipe_says_so(place, llmkit):
    done = llmkit("finetune", "rows.toml", "report.write=false", "report.predictions=false")
    assert done.exit_code == 0
    assert not {"report.html", "loss.svg", PREDICTIONS_FILE} & {path.name for path in RUN.iterdir()}
    assert "report  " not in done.stderr and "loss.svg" not in (RUN / "README.md").read_text()


def test_seeds_write_no_report_unless_asked(place, llmkit, monkeypatch):
    monkeypatch.setattr("llmkit.children.run", lambda argv, **more: llmkit(*argv).exit_code)
    short = ("trainer.max_steps=1", "--seeds", "2")
    assert llmkit("finetune", "rows.toml", *short, "--output-dir", "quiet").exit_code == 0
    assert llmkit("finetune", "rows.toml", *short, "report.write=true", "--output-dir", "asked").exit_code == 0
    for name, there in (("quiet", False), ("asked", True)):
        for seed in (42, 43):
            run = Path(name, f"seed-{seed}")
            assert (run / "report.html").exists() == there
            assert len(lines(run)) == record(run)["predictions"]["validation"]["rows"]


def test_a_longer_training_has_a_report_of_its_own(place, llmkit):
    assert llmkit("finetune", "rows.toml").exit_code == 0
    first = (RUN / "report.html").read_text(), (RUN / PREDICTIONS_FILE).read_bytes()
    done = llmkit("finetune", "rows.toml", "--resume")
    assert "nothing to resume" in done.stderr
    assert (RUN / "report.html").read_text() == first[0]
    done = llmkit("finetune", "rows.toml", "trainer.max_steps=8", "--resume")
    assert done.exit_code == 0, done.stderr
    page = (RUN / "report.html").read_text()
    assert "<dt>steps</dt><dd>8</dd>" in page and "<dt>steps</dt><dd>4</dd>" in first[0]
    assert (RUN / PREDICTIONS_FILE).read_bytes() != first[1]
    assert (RUN / "README.md").read_text().count("loss.svg") == 1
    done = llmkit("finetune", "rows.toml", "trainer.max_steps=9", "report.write=false", "--resume")
    assert done.exit_code == 0, done.stderr
    assert not (RUN / "report.html").exists() and not (RUN / "loss.svg").exists()


def test_a_run_that_was_killed_at_its_report_has_it_after_resume(place, llmkit):
    assert llmkit("finetune", "rows.toml").exit_code == 0
    whole = sorted(path.name for path in RUN.iterdir()), (RUN / "report.html").read_bytes()
    for name in ("report.html", "loss.svg"):
        (RUN / name).rename(RUN / f".{name}.123")
    assert "nothing to resume" in llmkit("finetune", "rows.toml", "--resume").stderr
    assert (sorted(path.name for path in RUN.iterdir()), (RUN / "report.html").read_bytes()) == whole
    (RUN / "report.html").unlink()
    assert llmkit("finetune", "rows.toml", "report.write=false", "--resume").exit_code == 0
    assert not (RUN / "report.html").exists()


@pytest.mark.parametrize("where", ["llmkit.runs.predictions.write", "llmkit.reports.report.write"])
def test_a_full_disk_behind_the_end_leaves_a_finished_run(place, llmkit, monkeypatch, where):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full)
    done = llmkit("finetune", "rows.toml")
    assert done.exit_code == 0
    (line,) = [line for line in done.stderr.splitlines() if "No space left" in line]
    assert line.startswith("warning  ") and "finished all the same" in line
    assert record()["status"] == "finished"
    assert llmkit("check", "rows").exit_code == 0


def test_a_run_by_the_clock_has_a_report_of_the_steps_it_made(place, llmkit):
    done = llmkit("finetune", "rows.toml", "--max-time", "2s", "trainer.save_steps=2")
    assert done.exit_code == 0, done.stderr
    steps = record()["steps"]
    assert f"<dt>steps</dt><dd>{steps:,}</dd>" in (RUN / "report.html").read_text()


@pytest.mark.long
def test_of_two_processes_the_first_writes_all(place, two_processes):
    done = two_processes("finetune", "rows.toml")
    assert done.exit_code == 0, done.stderr
    rows = lines()
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert sum(row["right"] for row in rows) / len(rows) == pytest.approx(record()["metrics"]["eval_accuracy"])
    assert done.stderr.count("report   runs/rows/report.html") == 1
    assert "2 processes" in (RUN / "report.html").read_text()


def test_several_tasks_are_kept_apart(place, llmkit):
    Path("both.toml").write_text(
        RECIPE.replace('task = "text-classification"', 'task = "multi-task"').partition("[data]")[0]
        + "".join(
            f'[tasks.{name}]\ntask = "text-classification"\n[tasks.{name}.data]\npath = "rows.csv"\n'
            f"validation_fraction = {share}\n"
            for name, share in (("one", 0.2), ("two", 0.4))
        )
        + "[trainer]\nmax_steps = 4\nper_device_train_batch_size = 8\n"
    )
    done = llmkit("finetune", "both.toml", "--output-dir", "both")
    assert done.exit_code == 0, done.stderr
    rows, said = lines(Path("both")), record(Path("both"))
    for name in ("one", "two"):
        own = [row for row in rows if row["split"] == name]
        right = sum(row["right"] for row in own) / len(own)
        assert right == pytest.approx(said["metrics"][f"eval_{name}_accuracy"])
    page = Path("both/report.html").read_text()
    assert "Evaluated rows: one" in page and "Evaluated rows: two" in page
    assert "loss.svg" in {path.name for path in Path("both").iterdir()}


def test_texts_are_left_out_and_labels_are_not():
    classes = {"a", "b"}
    kept = {
        "class": "a",
        "classes": ["a", "b"],
        "number": 0.5,
        "entity": [{"text": "SECRET", "label": "a"}],
        "scores": {"a": 0.1, "b": 0.9},
        "none": [],
    }
    left = {key: kept_rows._without_text(value, classes) for key, value in kept.items()}
    assert left == {**kept, "entity": ["a"]}
    for value in ("SECRET", ["SECRET"], {"text": "SECRET"}, [{"text": "SECRET", "label": "SECRET"}]):
        assert kept_rows._without_text(value, classes) is kept_rows._TEXT
