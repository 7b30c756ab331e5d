"""Figures against ones computed by hand."""

import math

import numpy as np
import pytest

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
