"""What comes of a sweep: the order of its trials, and the picture of the metric over each key."""

import math
import re

import pytest

from llmkit.reports import pictures
from llmkit.sweeps import results
from llmkit.sweeps.results import Score
from llmkit.sweeps.space import Trial


def score(name, *values, status="finished"):
    return Score(Trial(name, {"trainer.learning_rate": 1e-5}), values, (9,) * len(values), status)


def test_the_best_is_first_equals_stay_in_order_and_what_has_no_value_is_last():
    scores = [
        *(score("a", 0.5, 0.7), score("nan", math.nan), score("b", 0.9), score("failed", 1.0, status="failed")),
        *(score("c", 0.6), score("d", 0.3)),
    ]
    assert [each.trial.name for each in results.ranked(scores, less=False)] == ["b", "a", "c", "d", "nan", "failed"]
    assert [each.trial.name for each in results.ranked(scores, less=True)] == ["d", "a", "c", "b", "nan", "failed"]


def test_the_table_has_a_deviation_where_there_are_seeds():
    rows, columns = results.rows([score("a", 0.5, 0.7), score("b", status="failed")], "eval_f1")
    assert columns == ["", "learning_rate", "eval_f1", "std", "runs", "steps", "status"]
    assert rows[0]["eval_f1"] == pytest.approx(0.6)
    assert rows[0]["std"] == pytest.approx(math.sqrt(0.02))
    assert (rows[1]["eval_f1"], rows[1]["runs"], rows[1]["steps"]) == (None, 0, None)
    assert results.rows([score("a", 0.5)], "eval_f1")[1] == [
        *("", "learning_rate", "eval_f1", "runs", "steps", "status"),
    ]


def places(picture):
    """The places of the dots, from left to right."""
    return sorted({float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"[^>]*var\(--(?:train|eval)\)', picture.svg)})


def test_a_key_over_decades_is_drawn_on_a_logarithmic_axis():
    dots = [pictures.Dot(x, 0.5 + x, (0.4, 0.6), x == 1e-3) for x in (1e-5, 1e-4, 1e-3)]
    log = places(pictures.over_keys("s", "title", "d", [pictures.Panel("learning_rate", dots, log=True)], "eval_f1"))
    assert log[1] - log[0] == pytest.approx(log[2] - log[1], abs=0.01)
    linear = places(pictures.over_keys("s", "title", "d", [pictures.Panel("learning_rate", dots)], "eval_f1"))
    assert linear[1] - linear[0] == pytest.approx((linear[2] - linear[0]) / 11, rel=0.01)


def test_words_stand_in_their_order_and_what_was_stopped_is_hollow():
    words = [pictures.Dot("cosine", 0.5, best=True), pictures.Dot("linear", 0.4, hollow=True)]
    numbers = [pictures.Dot(8, 0.5, best=True), pictures.Dot(16, 0.4, hollow=True)]
    picture = pictures.over_keys(
        "s", "title", "d", [pictures.Panel("scheduler", words), pictures.Panel("r", numbers)], "eval_f1"
    )
    for text in ("cosine", "linear", "scheduler", "eval_f1", ">16<", ">8<"):
        assert text in picture.svg
    assert "hollow dots were stopped on the way" in picture.note
    assert picture.svg.count("fill: none; stroke: var(--train)") >= 2
    assert len(places(picture)) == 2  # those that are filled
