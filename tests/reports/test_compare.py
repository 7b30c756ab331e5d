"""`llmkit compare`: settings that differ, metrics side by side, and tests that agree with scipy's."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from llmkit.cli import app
from llmkit.reports.compare import judge, mcnemar, paired_interval, read
from llmkit.runs import predictions


def write(path: Path, rate: float, accuracy: float, seed: int = 42, right=(), **more) -> Path:
    path.mkdir(parents=True)
    settings = {"model": {"name": "tiny"}, "trainer": {"learning_rate": rate, "seed": seed}, "output_dir": str(path)}
    record = {"status": "finished", "task": "text-classification", "settings": settings}
    (path / "run.json").write_text(
        json.dumps({**record, "metrics": {"eval_accuracy": accuracy, "eval_loss": 0.5}, **more})
    )
    if len(right):
        rows = [
            {
                "row": i,
                "key": f"{i:016x}",
                "truth": "a",
                "prediction": "a" if each else "b",
                "right": bool(each),
                "loss": 0.1,
            }
            for i, each in enumerate(right)
        ]
        predictions.write(path, map(predictions.as_line, rows))
    return path


def compared(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 3), (1, 9), (40, 60), (700, 800), (2_400, 2_600), (5_000, 5_300)])
def test_mcnemars_test_is_scipys_binomial_test(a, b):
    expected = stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, abs=1e-12, rel=1e-9)
    assert mcnemar(b, a) == mcnemar(a, b)


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    rng = np.random.default_rng(1)
    first, second = rng.random(400) < 0.7, rng.random(400) < 0.78
    theirs = stats.bootstrap(
        (first.astype(float), second.astype(float)),
        lambda a, b, axis: (b - a).mean(axis=axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert paired_interval(second.astype(float) - first) == pytest.approx(tuple(theirs), abs=0.005)


def test_settings_that_differ_and_metrics_stand_side_by_side(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs/a", 1e-4, 0.8, right=[1, 1, 0, 0, 1, 1])
    write(tmp_path / "runs/b", 5e-5, 0.9, right=[1, 1, 1, 0, 1, 1])
    done = compared("runs/a", "b")  # a name of a run, too
    assert done.exit_code == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "trainer.learning_rate 0.0001 5e-05" in lines
    assert "eval_accuracy 0.8000 0.9000 *" in lines
    assert "eval_loss 0.5000 0.5000" in lines  # nobody is best
    assert not any("output_dir" in line or "model" in line for line in lines)
    assert "6 rows: `b` has +16.67 points more right" in done.stderr
    assert "right in one alone: 0 and 1; McNemar's test: p = 1" in done.stderr
    assert "the difference may be chance" in done.stderr


def test_folders_of_seeds_have_means_and_deviations(tmp_path):
    for rate, values in ((1e-4, (0.7, 0.8, 0.9)), (5e-5, (0.5, 0.6, 0.7))):
        for seed, value in enumerate(values):
            write(tmp_path / f"{rate}/seed-{seed}", rate, value, seed)
    done = compared(tmp_path / "0.0001", tmp_path / "5e-05", "--format", "md")
    assert "| eval_accuracy | 0.8000 ± 0.1000 * | 0.6000 ± 0.1000 |" in done.stdout
    assert "| trainer.learning_rate | 0.0001 | 5e-05 |" in done.stdout
    assert "seed |" not in done.stdout


def test_other_rows_are_not_compared_row_by_row(tmp_path):
    a = write(tmp_path / "a", 1e-4, 0.8, right=[1, 0, 1])
    assert "on different rows, so the figures above do not" in judge(a, write(tmp_path / "b", 1e-4, 0.8, right=[1, 0]))
    assert judge(a, write(tmp_path / "c", 1e-4, 0.8)) == f"`{tmp_path / 'c'}` has no predictions.jsonl.gz"
    assert "note: not compared row by row" in compared(a, tmp_path / "b").stderr


def test_a_run_compared_with_itself_does_not_differ(tmp_path):
    rng = np.random.default_rng(0)
    a = write(tmp_path / "a", 1e-4, 0.8, right=rng.random(100) < 0.8)
    verdict = judge(a, a)
    assert (verdict.difference, verdict.interval, verdict.p) == (0.0, (0.0, 0.0), 1.0)
    assert "no setting differs" in compared(a, a).stderr


@pytest.mark.parametrize(
    ("names", "message"), [(["runs/a"], "two runs at least"), (["runs/a", "nowhere"], "`nowhere` is not a run")]
)
def test_mistakes_are_answered(tmp_path, monkeypatch, names, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs/a", 1e-4, 0.8)
    done = compared(*names)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_run_without_results_is_answered(tmp_path):
    a = write(tmp_path / "a", 1e-4, 0.8)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/run.json").write_text('{"status": "failed"}')
    done = compared(a, tmp_path / "b")
    assert done.exit_code == 2
    assert "has no results: it is failed" in done.stderr


def test_a_program_gets_numbers_an_entry_a_side(tmp_path):
    a = write(tmp_path / "a", 1e-4, 0.8, right=[1, 1, 0, 0, 1, 1])
    b = write(tmp_path / "b", 5e-5, 0.9, right=[1, 1, 1, 0, 1, 1])
    done = compared(a, b, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["sides"] == [{"name": str(each), "runs": [str(each)]} for each in (a, b)]
    assert found["settings"] == {"trainer.learning_rate": [1e-4, 5e-5]}
    accuracy = {"mean": [0.8, 0.9], "std": [None, None], "values": [[0.8], [0.9]], "best": [1]}
    assert found["metrics"] == {
        "eval_accuracy": accuracy,
        "eval_loss": {**accuracy, "mean": [0.5, 0.5], "values": [[0.5], [0.5]], "best": []},
    }
    assert (found["test"]["rows"], found["test"]["second_only"], found["note"]) == (6, 1, None)
    assert compared(a, b, "--format", "json").stdout == done.stdout
    (b / "predictions.jsonl.gz").unlink()
    assert "has no predictions" in json.loads(compared(a, b, "--json").stdout)["note"]


def test_a_figure_that_is_not_finite_is_null_to_a_program(tmp_path):
    names = [write(tmp_path / "a", 1e-4, float("nan")), write(tmp_path / "b", 1e-4, 0.5)]
    text = compared(*names, "--json").stdout
    assert "NaN" not in text
    assert json.loads(text)["metrics"]["eval_accuracy"]["mean"] == [None, 0.5]


def test_all_sides_that_are_best_are_marked_and_none_where_all_are_equal(tmp_path):
    names = [str(write(tmp_path / name, 1e-4, value)) for name, value in (("a", 0.9), ("b", 0.8), ("c", 0.9))]
    assert {name: result.best for name, result in read(names).metrics.items()} == {
        "eval_accuracy": [0, 2],
        "eval_loss": (),
    }


def sweep(folder, rates=(1e-4, 1e-3), stopped=()):
    names = [f"learning_rate={rate}" for rate in (*rates, *stopped)]
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"trials": [{"name": name, "settings": {}} for name in names]}))
    for rate in rates:
        for seed in (42, 43):
            write(folder / f"learning_rate={rate}/seed-{seed}", rate, 0.5 + rate * 100 + (seed - 42) / 100, seed)
    for rate in stopped:
        path = write(folder / f"learning_rate={rate}/seed-42", rate, 0.9)
        record = json.loads((path / "run.json").read_text())
        rung = {"step": 3, **record.pop("metrics")}
        (path / "run.json").write_text(json.dumps({**record, "status": "stopped", "rungs": {"1/3": rung}}))
    return folder


def test_the_trials_of_a_sweep_have_a_row_each(tmp_path):
    done = compared(sweep(tmp_path / "s", stopped=(1e-2,)), "--format", "csv")
    assert done.stdout.splitlines() == [
        ",trainer.learning_rate,eval_accuracy,eval_loss",
        "learning_rate=0.0001,0.0001,0.5150 ± 0.0071,0.5000 ± 0.0000",
        "learning_rate=0.001,0.001,0.6050 ± 0.0071 *,0.5000 ± 0.0000",
    ]
    assert "1 trial of" in done.stderr and "without final results left out" in done.stderr
    latex = compared(tmp_path / "s", "--format", "latex").stdout
    assert r"trainer.learning\_rate & eval\_accuracy & eval\_loss \\" in latex
    assert "learning\\_rate=" not in latex


def test_sweeps_are_compared_with_runs(tmp_path):
    single = write(tmp_path / "single", 1e-5, 0.99)
    done = compared(sweep(tmp_path / "s"), single, "--format", "json")
    found = json.loads(done.stdout)
    assert [side["name"] for side in found["sides"]] == [
        *(str(tmp_path / f"s/learning_rate={rate}") for rate in (1e-4, 1e-3)),
        str(single),
    ]
    assert found["metrics"]["eval_accuracy"]["mean"][2] == 0.99
    assert found["metrics"]["eval_accuracy"]["best"] == [2]
    one = compared(sweep(tmp_path / "one", rates=(1e-4,)))
    assert one.exit_code == 2
    assert "two runs at least" in one.stderr
