"""Rows are drawn exactly in number, each class in its share, equal rows together, and hardly others as data grows."""

import numpy as np
import pytest

from llmkit.data.rows.draw import hold_out, sample


def rows(*counts, seed=0):
    """Classes of so many rows each, shuffled, and a key for each row."""
    rng = np.random.default_rng(seed)
    strata = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return strata, rng.integers(0, 2**63, len(strata)).astype(np.uint64)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("counts", [(200,), (100, 100), (150, 40, 10), (33, 33, 34), (7, 5, 3)])
def test_a_share_of_each_class_is_held_out_exactly_in_number(counts, fraction):
    strata, keys = rows(*counts)
    out = hold_out(strata, keys, fraction, 42)
    assert out.sum() == max(1, round(sum(counts) * fraction))
    for number, count in enumerate(counts):
        assert abs(out[strata == number].sum() - count * fraction) < 1


def test_a_class_with_one_row_is_trained_on():
    strata, keys = rows(40, 40, *[1] * 12)
    for seed in range(20):
        out = hold_out(strata, keys, 0.2, seed)
        assert out.sum() == round(92 * 0.2)
        assert not out[strata >= 2].any()


def test_every_class_keeps_a_row_to_learn_from():
    strata, keys = rows(2, 3, 4)
    out = hold_out(strata, keys, 0.9, 1)
    assert [(~out[strata == number]).sum() for number in range(3)] == [1, 1, 1]


def test_equal_rows_stand_on_one_side_and_the_number_stays_exact():
    strata, keys = rows(100, 100)
    keys[:120] = np.repeat(keys[:40], 3)
    strata[:120] = np.repeat(strata[:40], 3)
    for seed in range(20):
        out = hold_out(strata, keys, 0.1, seed)
        assert out.sum() == 20
        assert all(len(set(out[keys == key])) == 1 for key in keys)


def test_where_all_rows_are_equal_or_alone_in_their_class_none_can_be_held_out():
    assert not hold_out(np.zeros(5, int), np.full(5, 7, np.uint64), 0.2, 1).any()
    assert not hold_out(np.arange(5), np.arange(5, dtype=np.uint64), 0.2, 1).any()


def test_groups_larger_than_the_share_are_still_held_out_whole():
    out = hold_out(np.zeros(6, int), np.repeat(np.array([3, 9], np.uint64), 3), 0.1, 1)
    assert out.sum() == 3


@pytest.mark.parametrize("added", [1, 5, 40])
@pytest.mark.parametrize("draw", [lambda s, k: hold_out(s, k, 0.1, 3), lambda s, k: sample(s, k, len(s) // 10, 3)])
def test_few_rows_change_sides_when_rows_are_added(draw, added):
    strata, keys = rows(300, 200, 50)
    more_strata, more_keys = rows(added, seed=9)
    before = draw(strata, keys)
    for where in (0, 200, len(strata)):
        after = draw(np.insert(strata, where, more_strata), np.insert(keys, where, more_keys))
        changed = before != np.delete(after, np.s_[where : where + added])
        assert all(changed[strata == number].sum() <= added + 1 for number in range(3))


def test_another_seed_draws_other_rows_and_the_same_seed_the_same():
    strata, keys = rows(100, 100)
    assert (hold_out(strata, keys, 0.2, 1) == hold_out(strata, keys, 0.2, 1)).all()
    assert (hold_out(strata, keys, 0.2, 1) != hold_out(strata, keys, 0.2, 2)).any()


def test_a_sample_has_each_class_in_its_share():
    strata, keys = rows(600, 300, 100)
    drawn = sample(strata, keys, 50, 1)
    assert [drawn[strata == number].sum() for number in range(3)] == [30, 15, 5]
    assert sample(strata, keys, 5000, 1).all()
    equal = sample(np.zeros(9, int), np.zeros(9, np.uint64), 4, 1)
    assert equal.sum() == 4


def test_the_rows_that_a_seed_draws_do_not_change():
    """A run is resumed and evaluated on its own rows for ever."""
    out = hold_out(np.arange(30) % 2, np.arange(30, dtype=np.uint64), 0.2, 42)
    assert np.flatnonzero(out).tolist() == [2, 4, 8, 21, 25, 27]


@pytest.mark.parametrize("counts", [(180, 4, 3, 3), (50,) * 3 + (2,) * 5, (1_000, 6, 5)])
def test_each_class_has_a_row_where_there_are_as_many_as_classes(counts):
    strata, keys = rows(*counts)
    for number in (len(counts), len(counts) + 3, sum(counts) // 10):
        out = hold_out(strata, keys, number / len(strata), 3)
        assert out.sum() == number
        assert all(out[strata == each].any() for each in range(len(counts)))
        drawn = sample(strata, keys, number, 3)
        assert drawn.sum() == number
        assert all(drawn[strata == each].any() for each in range(len(counts)))
