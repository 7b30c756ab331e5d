"""What is held out of random tables: exact in number, equal inputs on one side, and few rows move as a table grows."""

import csv
import random
from collections import Counter

import numpy as np
import pytest

from llmkit.data.rows import classification
from llmkit.data.rows.splits import LARGEST, default_fraction, tables
from llmkit.recipe.data_tables import ClassificationData

FRACTIONS = (0.05, 0.1, 0.2, 0.5)
# Classes of two rows at least, of which one can be held out; of others none is.
SIZES = ((2, 40), (5, 5, 5), (30, 20, 3), (17,), (2, 2, 2, 60))


def held_out(folder, rows, fraction, seed=42):
    """The texts to train on and those held out, as often as they stand there."""
    file = folder / "rows.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    data = ClassificationData(path=str(file), validation_fraction=fraction, problem_type="single_label_classification")
    read = tables(data, seed, classification)
    parts = (read.train, read.validation["validation"])
    return [Counter((row["text"], row["label"]) for _, row in part.read()) for part in parts]


def random_table(rng, sizes):
    rows = [(f"tale {rng.getrandbits(60)}", f"class {n}") for n, size in enumerate(sizes) for _ in range(size)]
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("sizes", SIZES)
def test_at_most_k_and_one_rows_of_a_class_move_after_k_rows_are_added(sizes, tmp_path):
    rng = random.Random(str(sizes))
    for _ in range(8):
        fraction, added = rng.choice(FRACTIONS), rng.randint(1, 9)
        rows = random_table(rng, sizes)
        _, before = held_out(tmp_path, rows, fraction)
        assert before.total() == max(1, round(len(rows) * fraction))
        more = list(rows)
        for _ in range(added):
            new = (f"tale {rng.getrandbits(60)}", f"class {rng.randrange(len(sizes))}")
            more.insert(rng.randint(0, len(more)), new)
        _, after = held_out(tmp_path, more, fraction)
        for label in {label for _, label in rows}:
            moved = [row for row in rows if row[1] == label and (row in before) != (row in after)]
            assert len(moved) <= added + 1


@pytest.mark.parametrize("sizes", SIZES)
def test_equal_inputs_stand_on_one_side_whatever_their_labels(sizes, tmp_path):
    rng = random.Random(str(sizes))
    for _ in range(8):
        rows = random_table(rng, sizes)
        for _ in range(len(rows) // 3):  # some of them with another label
            rows.append((rng.choice(rows)[0], rng.choice(rows)[1]))
        train, validation = held_out(tmp_path, rows, 0.2, seed=rng.randint(0, 99))
        assert train + validation == Counter(rows)
        assert not {text for text, _ in train} & {text for text, _ in validation}


@pytest.mark.parametrize("sizes", SIZES)
def test_a_class_with_one_row_is_learned_from(sizes, tmp_path):
    rng = random.Random(str(sizes))
    for seed in range(5):
        rows = [*random_table(rng, sizes), *((f"rare {n}", f"rare {n}") for n in range(4))]
        train, _ = held_out(tmp_path, rows, rng.choice(FRACTIONS), seed)
        assert {f"rare {n}" for n in range(4)} <= {label for _, label in train}
        assert {label for _, label in train} == {label for _, label in rows}


@pytest.mark.parametrize(
    ("sizes", "number"),
    [
        ((100, 100), 20),
        ((300,), 30),
        ((25, 25), 5),
        ((3, 2), 1),
        ((20,) * 16, 32),
        ((5,) * 16, 16),  # a row of each class, where a tenth would be eight
        ((2,) * 16, 8),  # and never more than a quarter
        ((30_000, 30_000), LARGEST),
        ((7_000_000,), LARGEST),
    ],
)
def test_where_nobody_says_a_tenth_is_held_out_a_row_a_class_and_2000_at_most(sizes, number):
    strata = np.repeat(np.arange(len(sizes)), sizes)
    fraction = default_fraction(strata)
    assert fraction is not None
    assert abs(max(1, round(fraction * len(strata))) - number) <= len(strata) // 1_000_000


def test_where_each_row_is_of_its_own_class_nothing_is_held_out():
    assert default_fraction(np.arange(7)) is None


@pytest.mark.parametrize("number", [40, 200])
def test_what_is_held_out_by_default_is_said_and_drawn_again_by_its_share(number, tmp_path):
    rows = random_table(random.Random(number), [number // 8] * 8)
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    data = ClassificationData(path=str(file), problem_type="single_label_classification")
    read = tables(data, 42, classification, fits_rows=True)
    held = Counter(row["label"] for _, row in read.validation["validation"].read())
    assert len(held) == 8
    assert read.rows == number
    said = f"{held.total()} of {number} rows are held out for evaluation; data.validation_fraction = 0 trains on all"
    assert said in read.notes
    fraction = read.validation_fraction
    again = tables(data.model_copy(update={"validation_fraction": fraction}), 42, classification)
    assert again.train.fingerprint == read.train.fingerprint
    assert again.validation["validation"].fingerprint == read.validation["validation"].fingerprint
    for share, on in ((0, True), (None, False)):
        whole = tables(data.model_copy(update={"validation_fraction": share}), 42, classification, fits_rows=on)
        assert not whole.validation
        assert len(list(whole.train.read())) == number
