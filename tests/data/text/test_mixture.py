"""Mixtures: exact proportions at every point, passes that lose nothing, the same whoever asks."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from llmkit.data.text.mixture import MixedBlocks
from llmkit.data.text.pack import Blocks, BlockSpec, TokenStream


def blocks(count: int, first: int) -> Blocks:
    """`count` blocks of two tokens each, of which the first is a number of its own."""
    ids = np.stack([np.arange(first, first + count), np.zeros(count)], axis=1).astype(np.uint32).ravel()
    return Blocks(TokenStream(ids, np.array([len(ids)]), len(ids)), BlockSpec(2, 2), None)


def mixture(weights: dict[str, float], sizes: dict[str, int], seed: int = 1) -> MixedBlocks:
    return MixedBlocks({name: blocks(sizes[name], 100_000 * n) for n, name in enumerate(sizes)}, weights, seed)


SIZES = {"web": 30_000, "books": 4_000, "code": 10_000}
WEIGHTS = {"web": 5.0, "books": 3.0, "code": 2.0}


def test_any_ten_thousand_blocks_have_the_proportions_to_half_a_percent():
    mixed = mixture(WEIGHTS, SIZES)
    source = np.concatenate([mixed.source, mixed.source])  # two epochs
    for start in range(0, len(mixed), 1_000):
        shares = np.bincount(source[start : start + 10_000], minlength=3) / 10_000
        assert np.abs(shares - [0.5, 0.3, 0.2]).max() < 0.005
    assert np.abs(np.bincount(mixed.source) - np.array([0.5, 0.3, 0.2]) * 44_000).max() < 1


def test_every_batch_has_the_proportions():
    mixed = mixture(WEIGHTS, SIZES)
    batches = mixed.source[: len(mixed) // 20 * 20].reshape(-1, 20)
    counts = np.stack([np.bincount(batch, minlength=3) for batch in batches])
    assert np.abs(counts - [10, 6, 4]).max() <= 1


def test_a_source_goes_through_all_its_blocks_before_one_comes_again():
    mixed = mixture({"a": 1, "b": 1}, {"a": 50, "b": 8})
    found: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    for epoch in range(5):
        mixed.set_epoch(epoch)
        for i in range(len(mixed)):
            window = mixed[i]
            name = "a" if window.ids[0] < 100_000 else "b"
            found[name].append((int(window.ids[0]) % 100_000, window.epoch))
    for name, size in (("a", 50), ("b", 8)):
        drawn = found[name]
        for start in range(0, len(drawn) - size, size):
            one_pass = drawn[start : start + size]
            assert sorted(number for number, _ in one_pass) == list(range(size))
            assert {epoch for _, epoch in one_pass} == {start // size}
    assert found["b"][:8] != [(number, epoch - 1) for number, epoch in found["b"][8:16]]  # in another order


def test_a_window_has_a_number_of_its_own_and_a_pass():
    mixed = mixture({"a": 1, "b": 1}, {"a": 50, "b": 8})
    seen = [(mixed[i].index, mixed[i].epoch) for i in range(len(mixed))]
    assert len(set(seen)) == len(seen)
    assert {index for index, _ in seen} <= set(range(58))


def test_another_seed_another_order_and_the_same_seed_the_same():
    first, again, other = (mixture(WEIGHTS, SIZES, seed) for seed in (1, 1, 2))
    ids = [[int(each[i].ids[0]) for i in range(100)] for each in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_the_same(workers):
    mixed = mixture({"a": 2, "b": 1}, {"a": 12, "b": 12})
    mixed.set_epoch(3)
    loader = DataLoader(mixed, batch_size=4, num_workers=workers, collate_fn=list)
    read = [(int(window.ids[0]), window.index, window.epoch) for batch in loader for window in batch]
    assert read == [(int(mixed[i].ids[0]), mixed[i].index, mixed[i].epoch) for i in range(len(mixed))]


def test_epochs_of_each_source_are_told():
    mixed = mixture(WEIGHTS, SIZES)
    assert mixed.epochs(60_000) == pytest.approx({"web": 1.0, "books": 4.5, "code": 1.2})
    assert list(mixed.lines(60_000))[1] == "books: 30.0% of the blocks, 4.50 epochs"


def test_a_source_too_light_for_one_draw_an_epoch_waits():
    mixed = mixture({"a": 1_000, "b": 0.1}, {"a": 20, "b": 5})
    assert np.bincount(mixed.source, minlength=2).tolist() == [25, 0]
    assert len({int(mixed[i].ids[0]) for i in range(25)}) == 20
