"""The order of examples is that of earlier runs, and takes bounded memory."""

import tracemalloc

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from llmkit.training.order import Order, Shuffled


@pytest.mark.parametrize("size", [1, 2, 1000, 70001])
@pytest.mark.parametrize("seed", [0, 42, 2**40])
def test_the_order_is_that_of_accelerate_in_every_epoch(size, seed):
    theirs, ours = SeedableRandomSampler(range(size), data_seed=seed), Shuffled(size, seed)
    for _ in range(2):
        assert list(ours) == list(theirs)
    for sampler in (ours, theirs):
        sampler.set_epoch(7)
    assert ours.numbers().tolist() == list(theirs)


def test_numbers_of_four_and_of_eight_bytes_are_the_same():
    four, eight = (
        torch.randperm(10**5, generator=torch.Generator().manual_seed(1), dtype=kind)
        for kind in (torch.int32, torch.int64)
    )
    assert torch.equal(four.long(), eight)


def test_going_through_an_order_makes_no_list_of_it():
    sampler = Shuffled(2 * 10**6, 1)
    tracemalloc.start()
    try:
        assert sum(1 for _ in sampler) == len(sampler)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10**7  # a list takes 80 MB


def test_what_is_left_of_an_order_is_gone_through_from_there():
    numbers = torch.randperm(10**5)
    assert list(Order(numbers[70000:])) == numbers.tolist()[70000:]
