"""The page of a comparison: one file, the curves of all runs over one another, everything said in words too."""

import json
import re
from pathlib import Path

import made_runs
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from llmkit.cli import app
from llmkit.reports import pictures


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rate in (("small", 1e-4), ("large", 2e-4)):
        made_runs.classifier(tmp_path / "runs" / name, settings={"trainer": {"learning_rate": rate}})
    for seed in (1, 2):
        made_runs.classifier(tmp_path / f"runs/seeds/seed-{seed}", steps=100 * seed)
    return tmp_path


def page(*words):
    done = CliRunner().invoke(app, ["compare", *words, "--html", "c.html"])
    assert done.exit_code == 0, done.stderr
    return Path("c.html").read_text()


def test_each_figure_has_a_picture_with_a_line_for_each_run(runs):
    text = page("small", "large", "runs/seeds")
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == ["Training loss", "Evaluation loss", "eval_accuracy", "eval_f1", "Learning rate"]
    for drawn in re.findall(r"<figure.*?</figure>", text, re.DOTALL):
        for number, times in ((0, 1), (1, 1), (2, 2)):  # of the two runs of a folder each has a line
            paths = re.findall(rf'<path[^>]*clip-path[^>]*style="fill: none[^"]*var\(--run{number}\)', drawn)
            assert len(paths) == times, number
        words = re.search(r"<desc[^>]*>(.*?)</desc>", drawn)[1]
        assert words.count("Small: ") == 1
        assert words.count("Runs/seeds: ") == 2
    legend = re.search(r'<ul class="legend".*?</ul>', text, re.DOTALL)[0]
    assert "runs/seeds (2 runs)" in legend
    assert "trainer.learning_rate" in text
    assert "the best in bold; of several runs mean and standard deviation" in text


def test_the_page_needs_nothing_else_and_escapes_names(runs):
    (runs / "runs/small").rename(runs / "runs/<b>&x")
    text = page("<b>&x", "large")
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;x and large" in text
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)
    assert "<script" not in text
    assert "60 rows: large has +0.00 points more right" in text


def test_runs_without_a_log_are_named(runs):
    (runs / "runs/large/metrics.jsonl").unlink()
    assert "nothing was logged in runs/large" in page("small", "large")
    (runs / "runs/small/metrics.jsonl").unlink()
    assert "<figure" not in page("small", "large")


def test_lines_differ_by_colour_or_dashes():
    looks = {(run % len(pictures.RUNS), pictures.dashes(run)) for run in range(36)}
    assert len(looks) == 36
    assert len({pictures.dashes(run) for run in range(6)}) == 6  # the first do without colours
    style = (ROOT / "llmkit/reports/page.css").read_text()
    for number in range(len(pictures.RUNS)):
        assert style.count(f"--run{number}:") == 3  # light, dark, print


@pytest.mark.parametrize(
    ("file", "message"),
    [("data.csv", "does not end in .html"), ("no/c.html", "there is no folder `no`"), ("d.html", "is a folder")],
)
def test_a_file_that_cannot_be_written_is_refused_first(runs, file, message):
    (runs / "d.html").mkdir()
    done = CliRunner().invoke(app, ["compare", "small", "large", "--html", file])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_json_and_the_page_come_together(runs):
    done = CliRunner().invoke(app, ["compare", "small", "large", "--html", "c.html", "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["sides"]
    assert (runs / "c.html").exists()
