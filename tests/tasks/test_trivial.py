"""The bootstrap of paired differences, against resampling row by row; the metrics from sums, against their own."""

import numpy as np
import pytest

from llmkit import metrics
from llmkit.tasks import trivial
from llmkit.tasks.trivial import Frequencies, agreement_rows, combined, correlation_rows, interval, mean_rows


@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_from_sums_over_rows_are_the_metrics(classes):
    rng = np.random.default_rng(1)
    x, y = rng.integers(classes, size=(2, 200))
    x = np.where(rng.random(200) < 0.5, y, x)
    chosen = rng.integers(200, size=200)
    found = combined("matthews_correlation", agreement_rows(x, y)[chosen].sum(axis=0)[None])
    assert found[0] == pytest.approx(metrics.matthews_correlation(x[chosen], y[chosen]))
    a, b = x + rng.random(200), 1000 + y + rng.random(200)
    found = combined("pearson", correlation_rows(a, b)[chosen].sum(axis=0)[None])
    assert found[0] == pytest.approx(metrics.pearson(a[chosen], b[chosen]))
    always = np.zeros(200)
    assert combined("pearson", correlation_rows(always, b).sum(axis=0)[None])[0] == 0
    assert combined("matthews_correlation", agreement_rows(np.zeros_like(y), y).sum(axis=0)[None])[0] == 0


def test_the_interval_is_that_of_rows_drawn_again():
    rng = np.random.default_rng(2)
    model, always = rng.random(150) < 0.7, rng.random(150) < 0.55
    low, high = interval("accuracy", mean_rows(model), mean_rows(always))
    draws = np.random.default_rng(3).integers(150, size=(20_000, 150))
    expected = np.percentile(model[draws].mean(axis=1) - always[draws].mean(axis=1), (2.5, 97.5))
    assert (low, high) == pytest.approx(expected, abs=0.015)
    assert (low, high) == interval("accuracy", mean_rows(model), mean_rows(always))  # no chance between two runs
    below, above = interval("loss", mean_rows(model), mean_rows(always))  # lower is better
    assert (below, above) == pytest.approx((-high, -low))


def test_a_shuffled_prediction_is_called_better_in_one_case_of_twenty_at_most():
    rng, called = np.random.default_rng(4), 0
    for _ in range(60):
        truth, found = rng.integers(2, size=(2, 100))
        always = np.zeros(100, int)
        rows = {
            "accuracy": (mean_rows(found == truth), mean_rows(always == truth)),
            "matthews_correlation": (agreement_rows(found, truth), agreement_rows(always, truth)),
        }
        called += bool(trivial.compare({}, rows).better)
    assert called <= 6  # 60 times 5 % are 3


def test_more_rows_than_are_drawn_from():
    rows = mean_rows(np.arange(12_000) % 3 > 0)
    low, high = interval("accuracy", rows, mean_rows(np.zeros(12_000)))
    assert 0.64 < low < 2 / 3 < high < 0.70
    assert len(trivial.sample(12_000, trivial.MOST_ROWS)) == 10_000


def test_a_label_that_is_new_gets_its_share_of_what_is_left():
    found = Frequencies.of([np.array([[3, 3, -100], [5, 3, 3]])], 10)
    probabilities = np.exp(-found.losses(np.arange(10)))
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[[3, 5, 0]] == pytest.approx([4 / 7, 1 / 7, 2 / 7 / 8])
    assert found.stats(np.array([[3, -100], [5, 0]])).tolist() == [
        [pytest.approx(-np.log(4 / 7)), 1],
        [pytest.approx(-np.log(1 / 7) - np.log(2 / 7 / 8)), 2],
    ]
