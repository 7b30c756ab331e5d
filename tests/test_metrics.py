"""Figures against ones computed by hand, by scikit-learn and scipy, and by the rules of SQuAD's scorers."""

import math
import re
import string
import warnings
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from llmkit import metrics


def test_each_token_weighs_the_same_whatever_its_block():
    # 6 nats over 3 tokens and 1 nat over 1 token: 7 / 4, where the mean of the two means would be 1.5.
    assert metrics.mean_loss(np.array([[6.0, 3.0], [1.0, 1.0]])) == 1.75


def test_blocks_without_a_token_to_predict_do_not_count():
    assert metrics.mean_loss(np.array([[6.0, 3.0], [0.0, 0.0]])) == 2.0
    assert math.isnan(metrics.mean_loss(np.array([[0.0, 0.0]])))
    assert math.isnan(metrics.mean_loss(np.empty((0, 2))))


def test_many_small_sums_are_added_in_double_precision():
    sums = np.tile(np.array([[0.1, 1.0]], np.float32), (20_000_000 // 100, 1))
    assert metrics.mean_loss(sums) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_a_loss_that_is_not_finite_stays_visible():
    assert math.isnan(metrics.mean_loss(np.array([[math.nan, 3.0], [1.0, 1.0]])))
    assert metrics.mean_loss(np.array([[math.inf, 3.0], [1.0, 1.0]])) == math.inf


def test_perplexity():
    assert metrics.perplexity(math.log(50257)) == pytest.approx(50257)
    assert metrics.perplexity(0.0) == 1.0
    assert metrics.perplexity(1000.0) == math.inf
    assert metrics.perplexity(math.inf) == math.inf
    assert math.isnan(metrics.perplexity(math.nan))


def test_bits_per_byte():
    # Each of 100 tokens costs 2 bits and stands for 4 bytes: half a bit a byte.
    assert metrics.bits_per_byte(2 * math.log(2), 100, 400) == pytest.approx(0.5)
    # A uniform guess among 256 byte tokens is 8 bits a byte.
    assert metrics.bits_per_byte(math.log(256), 1000, 1000) == pytest.approx(8.0)


def quietly(function, *args, **options):
    """What a library says of degenerate input, without its warnings: here any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def class_pairs():
    """(predictions, references), int [N]: random ones of many sizes, and the odd ones."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 5, 10, 100, 1000):
        for num_classes in (2, 3, 7, 200):
            for agreement in (0.0, 0.5, 0.9):
                references = rng.integers(num_classes, size=size)
                guesses = rng.integers(num_classes, size=size)
                yield np.where(rng.random(size) < agreement, references, guesses), references
    few = rng.integers(2, size=20)
    zeros, ones = np.zeros(20, int), np.ones(20, int)
    yield from ((few, few), (1 - few, few), (zeros, few), (few, zeros), (ones, few), (few, ones))
    yield from ((zeros, zeros), (ones, ones), (zeros, ones), (ones, zeros), (ones * 5, zeros - 3))
    yield few * 1000 - 7, few * -1000 + 3  # numbers far apart, negative, and none in common
    yield few.astype(np.int8), few.astype(np.int64)


def test_classification_equals_scikit_learn():
    for predictions, references in class_pairs():
        found = (
            metrics.accuracy(predictions, references),
            metrics.f1(predictions, references),
            metrics.f1(predictions, references, "macro"),
            metrics.f1(predictions, references, "micro"),
            metrics.matthews_correlation(predictions, references),
        )
        f1_score = sklearn.metrics.f1_score
        expected = (
            sklearn.metrics.accuracy_score(references, predictions),
            # Its "binary" refuses a third class; class 1 against the rest is the same question.
            quietly(f1_score, references == 1, predictions == 1, zero_division=0),
            quietly(f1_score, references, predictions, average="macro", zero_division=0),
            quietly(f1_score, references, predictions, average="micro", zero_division=0),
            quietly(sklearn.metrics.matthews_corrcoef, references, predictions),
        )
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12), (predictions, references)
        assert all(type(figure) is float for figure in found)  # it goes into JSON


def test_classification_by_hand():
    predictions, references = np.array([1, 1, 0, 2]), np.array([1, 0, 0, 1])
    assert metrics.accuracy(predictions, references) == 0.5
    assert metrics.f1(predictions, references) == 0.5  # one hit, two said, two true
    # Class 0: one hit, 1 + 2 marks; class 1: 2 * 1 / 4; class 2: 0.
    assert metrics.f1(predictions, references, "macro") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # phi = (tp * tn - fp * fn) / sqrt(...) with tp 2, tn 1, fp 1, fn 0.
    phi = metrics.matthews_correlation(np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0]))
    assert phi == pytest.approx((2 * 1 - 1 * 0) / math.sqrt(3 * 2 * 2 * 1))


def test_matthews_of_many_rows_stays_in_range():
    references = np.arange(200_000) % 2  # the product of its variances, 4e20, does not fit in 64 bits
    assert metrics.matthews_correlation(references, references) == 1.0
    assert metrics.matthews_correlation(1 - references, references) == -1.0


def float_pairs():
    """(x, y), [N]: random ones of many sizes, some with ties, and scales far apart."""
    rng = np.random.default_rng(1)
    for size in (2, 3, 5, 10, 100, 1000):
        x, noise = rng.normal(size=(2, size))
        for weight in (0.0, 0.5, 1.0):
            y = weight * x + (1 - weight) * noise
            yield from ((x, y), (x, -y), (x.round(), y.round()), (x * 1e-3 + 1, y * 1e9), (x**3, y))
            yield from ((x.astype(np.float32), y), (rng.integers(5, size=size), y))


def test_correlations_equal_scipy():
    for x, y in float_pairs():
        found = metrics.pearson(x, y), metrics.spearmanr(x, y), metrics.mean_squared_error(x, y)
        expected = (
            quietly(scipy.stats.pearsonr, x.astype(float), y).statistic,
            quietly(scipy.stats.spearmanr, x, y).statistic,
            sklearn.metrics.mean_squared_error(x, y),
        )
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-10, nan_ok=True), (x, y)
        assert all(type(figure) is float for figure in found)


def test_a_correlation_is_never_beyond_one():
    for x in np.random.default_rng(4).normal(
        size=(50, 10)
    ):  # the unit vector times itself is 1.0000000000000002 in some
        assert 1 - 1e-12 < metrics.pearson(x, x) <= 1
        assert -1 <= metrics.pearson(x, -x) < 1e-12 - 1


def test_ties_share_the_mean_of_their_ranks():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert metrics.spearmanr(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert metrics.spearmanr(np.array([1.0, 10.0, math.inf]), np.array([1, 2, 3])) == pytest.approx(1.0)


@pytest.mark.parametrize("constant", [np.full(3, 0.1), np.zeros(3), np.full(3, 1e300)])  # the mean of 0.1s is not 0.1
def test_a_constant_has_no_correlation(constant):
    other = np.array([1.0, 2.0, 4.0])
    for correlation in (metrics.pearson, metrics.spearmanr):
        assert math.isnan(correlation(constant, other))
        assert math.isnan(correlation(other, constant))
        assert math.isnan(correlation(constant, constant))
        assert math.isnan(correlation(other[:1], other[:1]))


def test_a_regression_that_diverged_is_seen_and_does_not_crash():
    broken, other = np.array([math.nan, 1.0, 2.0]), np.array([1.0, 2.0, 4.0])
    for figure in (metrics.pearson, metrics.spearmanr, metrics.mean_squared_error):
        assert math.isnan(figure(broken, other))
        assert math.isnan(figure(other, broken))
    infinite = np.array([math.inf, 1.0, 2.0])
    assert math.isnan(metrics.pearson(infinite, other))
    assert metrics.mean_squared_error(infinite, other) == math.inf
    assert math.isnan(metrics.mean_squared_error(infinite, infinite))


def test_figures_are_taken_in_double_precision():
    x, y = np.array([60000.0, 0.0, 1.0], np.float16), np.array([0.0, 1.0, 60000.0], np.float16)
    assert metrics.mean_squared_error(x, y) == pytest.approx((60000.0**2 + 1 + 59999.0**2) / 3)
    assert metrics.mean_squared_error(np.array([1], np.uint8), np.array([3], np.uint8)) == 4.0
    assert metrics.pearson(x, x) == pytest.approx(1.0)
    wide = np.array([1e200, 2e200, 5e200])
    assert metrics.pearson(wide, wide) == pytest.approx(1.0)


def label_pairs():
    """(predictions, references), bool [N, C]: random ones, dense and sparse, and the odd ones."""
    rng = np.random.default_rng(2)
    for size in (1, 2, 10, 300):
        for num_labels in (2, 5, 40):
            for share in (0.02, 0.3, 0.9):
                references = rng.random((size, num_labels)) < share
                yield references ^ (rng.random((size, num_labels)) < 0.2), references
    nothing, everything = np.zeros((6, 3), bool), np.ones((6, 3), bool)
    yield from ((nothing, nothing), (nothing, everything), (everything, nothing), (everything, everything))


def test_multilabel_equals_scikit_learn():
    for predictions, references in label_pairs():
        found = (
            metrics.multilabel_f1(predictions, references, "micro"),
            metrics.multilabel_f1(predictions, references, "macro"),
            metrics.subset_accuracy(predictions, references),
        )
        expected = (
            quietly(sklearn.metrics.f1_score, references, predictions, average="micro", zero_division=0),
            quietly(sklearn.metrics.f1_score, references, predictions, average="macro", zero_division=0),
            sklearn.metrics.accuracy_score(references, predictions),
        )
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12), (predictions, references)
        assert all(type(figure) is float for figure in found)


def test_no_rows_give_nan():
    none, no_labels = np.array([], int), np.empty((0, 3), bool)
    figures = [
        metrics.accuracy(none, none),
        metrics.f1(none, none),
        metrics.f1(none, none, "macro"),
        metrics.f1(none, none, "micro"),
        metrics.matthews_correlation(none, none),
        metrics.pearson(none, none),
        metrics.spearmanr(none, none),
        metrics.mean_squared_error(none, none),
        metrics.multilabel_f1(no_labels, no_labels, "micro"),
        metrics.multilabel_f1(no_labels, no_labels, "macro"),
        metrics.subset_accuracy(no_labels, no_labels),
        *metrics.squad([], []).values(),
    ]
    assert len(figures) == 13
    assert all(map(math.isnan, figures))


@pytest.mark.parametrize(
    "name", ["accuracy", "f1", "matthews_correlation", "pearson", "spearmanr", "mean_squared_error"]
)
def test_a_column_beside_a_row_is_refused(name):
    row = np.array([0, 1, 1])
    with pytest.raises(ValueError, match="shape"):
        getattr(metrics, name)(row[:, None], row)
    with pytest.raises(ValueError, match="shape"):
        getattr(metrics, name)(row[:1], row)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("The Cat", "cat"),
        ("a an the", ""),
        ("Theatre and another banana", "theatre and another banana"),  # articles inside words stay
        ("cat the\tdog\n a  bird ", "cat dog bird"),
        ("the-the", "thethe"),  # punctuation goes before the articles, so that these two are no article any more
        ("the.", ""),
        ("U.S.A.", "usa"),
        ("$1,000.50", "100050"),
        ("Beyonc\u00e9's", "beyonc\u00e9s"),
        ("\u00c9T\u00c9", "\u00e9t\u00e9"),
        ("l\u2019a\u2013b", "l\u2019 \u2013b"),  # only ASCII punctuation goes; to a word's edge it is punctuation still
        ("a\u00e9", "a\u00e9"),  # a letter of any script goes on with the word
        ("\u00a0the\u2003cat\u3000", "cat"),  # white space of any script
        ("_a_", ""),  # the underscore is punctuation
        ("?!", ""),
        ("\u6771\u4eac \u306e", "\u6771\u4eac \u306e"),
    ],
)
def test_normalize_answer(text, expected):
    assert metrics.normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("Paris", ["Paris"], 1, 1),
        ("the city of PARIS!", ["City of Paris"], 1, 1),
        ("Paris", ["London"], 0, 0),
        ("city of Paris", ["Paris"], 0, 2 * 1 / (3 + 1)),
        ("Paris", ["city of Paris", "Paris, France"], 0, 2 * 1 / (1 + 2)),  # the best of several
        ("Paris", ["London", "Paris"], 1, 1),
        ("of Paris city", ["city of Paris"], 0, 1),  # F1 is blind to the order
        ("no no no", ["no no yes"], 0, 2 * 2 / (3 + 3)),  # twice on both sides, not three times
        ("no", ["no no"], 0, 2 * 1 / (1 + 2)),
        ("new-york", ["new york"], 0, 0),  # the hyphen goes without a space
        ("\u00c9cole", ["\u00e9cole"], 1, 1),
        ("", ["Paris"], 0, 0),
        ("the", ["Paris"], 0, 0),
        # No answer: nothing is right, and so is what normalizes to nothing.
        ("", [], 1, 1),
        ("The.", [], 1, 1),
        ("Paris", [], 0, 0),
        # Answers that normalize to nothing do not stand beside others, but do stand where there is no other.
        ("", ["the", "Paris"], 0, 0),
        ("Paris", ["", "Paris"], 1, 1),
        ("", ["the", "?"], 1, 1),
        ("an", ["the"], 1, 1),
        ("Paris", ["the"], 0, 0),
    ],
)
def test_one_answer(prediction, answers, exact, f1):
    assert metrics.exact_match(prediction, answers) == exact
    assert metrics.answer_f1(prediction, answers) == pytest.approx(f1)


def reference_squad(predictions, answers):
    """SQuAD 2.0's rules step by step: characters, words, Counters, precision and recall, sums for each question."""

    def words(text):
        kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
        pieces = re.findall(r"\w+|[^\w\s]+|\s+", kept)
        return "".join(" " if piece in ("a", "an", "the") else piece for piece in pieces).split()

    def best(predicted, golds):
        exact, f1 = 0, 0.0
        for gold in golds:
            exact = max(exact, int(" ".join(gold) == " ".join(predicted)))
            same = sum((Counter(gold) & Counter(predicted)).values())
            if gold and predicted and same:
                precision, recall = same / len(predicted), same / len(gold)
                f1 = max(f1, 2 * precision * recall / (precision + recall))
            elif not gold and not predicted:
                f1 = 1.0
        return exact, f1

    sums = {"": [0, 0.0, 0.0], "HasAns": [0, 0.0, 0.0], "NoAns": [0, 0.0, 0.0]}
    for i in range(len(predictions)):
        golds = [words(answer) for answer in answers[i] if words(answer)]
        exact, f1 = best(words(predictions[i]), golds if golds else [[]])
        for kind in ("", "HasAns" if answers[i] else "NoAns"):
            sums[kind][0] += 1
            sums[kind][1] += exact
            sums[kind][2] += f1
    figures = {"exact_match": 100 * sums[""][1] / sums[""][0], "f1": 100 * sums[""][2] / sums[""][0]}
    if sums["HasAns"][0] and sums["NoAns"][0]:
        for kind in ("HasAns", "NoAns"):
            figures[f"{kind}_exact"] = 100 * sums[kind][1] / sums[kind][0]
            figures[f"{kind}_f1"] = 100 * sums[kind][2] / sums[kind][0]
    return figures


def test_squad_equals_the_rules_on_random_answers():
    rng = np.random.default_rng(3)
    pieces = [
        "a",
        "an",
        "the",
        "The",
        "cat",
        "Cat",
        "dog",
        "\u00e9",
        "\u0130",
        "\u2013",
        "-",
        ".",
        "'",
        "_",
        "7",
        "\u4eac",
    ]

    def text():
        return "".join(rng.choice([*pieces, " ", " ", "\u00a0", "\t"], size=rng.integers(7)))

    kinds = set()
    for _ in range(300):
        answers = [[text() for _ in range(rng.integers(3))] for _ in range(rng.integers(1, 6))]
        predictions = [rng.choice([*golds, text()]).item() for golds in answers]
        found = metrics.squad(predictions, answers)
        assert found == pytest.approx(reference_squad(predictions, answers)), (predictions, answers)
        assert all(type(figure) is float for figure in found.values())
        kinds.add(tuple(found))
    assert len(kinds) == 2  # with and without the figures for each kind of question


def test_squad_counts_each_kind_of_question():
    figures = metrics.squad(["Paris", "in Rome", "", "Oslo"], [["Paris"], ["Rome"], [], []])
    assert figures == pytest.approx(
        {
            "exact_match": 50.0,
            "f1": 100 * (1 + 2 / 3 + 1 + 0) / 4,
            "HasAns_exact": 50.0,
            "HasAns_f1": 100 * (1 + 2 / 3) / 2,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
        }
    )
    # An answer that normalizes to nothing is an answer still, though nothing is then the right prediction.
    assert metrics.squad(["", ""], [["the"], []])["HasAns_exact"] == 100.0


def test_squad_names_the_kinds_only_where_there_are_two():
    assert metrics.squad(["Paris", "Rome"], [["Paris"], ["Oslo"]]) == {"exact_match": 50.0, "f1": 50.0}
    assert metrics.squad(["", "Rome"], [[], []]) == {"exact_match": 50.0, "f1": 50.0}


def test_squad_refuses_predictions_without_their_question():
    with pytest.raises(ValueError, match="zip"):
        metrics.squad(["Paris", "Rome"], [["Paris"]])
