"""Fast dropout drops as often as it should, what is left is scaled, and what it draws follows from the seed."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llmkit.speed import dropout

MANY = (400, 1001)  # an odd number of elements


def made(p):
    layer = nn.Sequential(nn.Dropout(p))
    assert dropout.speed_up(layer) == (p > 0)
    return layer


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_should_be_and_the_mean_stays(p):
    torch.manual_seed(0)
    found = made(p)(torch.ones(MANY))
    spread = (p * (1 - p) / found.numel()) ** 0.5
    assert abs((found == 0).float().mean().item() - p) < 4 * spread
    assert abs(found.mean().item() - 1) < 4 * spread / (1 - p)
    assert found[found != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    gone = (made(0.5)(torch.ones(MANY)) == 0).flatten().double() - 0.5
    for apart in (1, 2, 3, 4, 5, 8, 1001):
        assert abs((gone[apart:] * gone[:-apart]).mean().item()) < 4 * 0.25 / len(gone) ** 0.5


def test_the_gradient_goes_through_what_was_kept():
    x = torch.randn(MANY, requires_grad=True)
    found = made(0.3)(x)
    found.sum().backward()
    torch.testing.assert_close(x.grad * x, found)


def test_what_is_drawn_follows_from_the_seed_and_each_call_draws_anew():
    layer = made(0.5)

    def drawn(seed):
        torch.manual_seed(seed)
        return layer(torch.ones(64)), layer(torch.ones(64))

    (first, second), again, other = drawn(1), drawn(1), drawn(2)
    assert first.equal(again[0]) and second.equal(again[1])
    assert not first.equal(second) and not first.equal(other[0])


def test_recomputed_activations_drop_the_same():
    layer = made(0.5)
    x = torch.randn(64, requires_grad=True)
    found = checkpoint(lambda x: (layer(x) ** 2).sum(), x, use_reentrant=False)
    found.backward()
    kept = x.grad != 0
    assert found.item() == pytest.approx((2 * x[kept]).square().sum().item(), rel=1e-5)


def test_nothing_is_dropped_in_evaluation_or_with_a_rate_of_0():
    x = torch.randn(64)
    assert made(0.5).eval()(x).equal(x)
    assert made(0.0)(x).equal(x)
    assert not made(1.0)(x).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_keep_their_kind_and_the_weights_their_names(dtype):
    layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    names = [*layer.state_dict()]
    fast = copy.deepcopy(layer)
    assert dropout.speed_up(fast)
    assert [*fast.state_dict()] == names
    assert fast[1](torch.ones(8, dtype=dtype)).dtype == dtype
