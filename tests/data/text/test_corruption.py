"""Hiding, shuffling and cutting out: how much, where, what stays untouched, and that it can all be undone."""

from collections import Counter

import numpy as np
import pytest

from llmkit.data.text import corruption
from llmkit.errors import UserError

MASK = 4
ORDINARY = np.arange(5, 1000)
SENTINELS = np.arange(1000, 1100)


def document(index, num_tokens=120, special_share=0.05):
    """Ids, what may be touched, and where words of one to four tokens begin: special ones are words of their own."""
    rng = np.random.default_rng([3, index])
    ids = rng.integers(5, 1000, num_tokens)
    special = rng.random(num_tokens) < special_share
    ids[special] = rng.integers(0, 4, special.sum())
    starts = np.arange(num_tokens) == 0
    ends = np.cumsum(rng.integers(1, 5, num_tokens))
    starts[ends[ends < num_tokens]] = True
    starts |= special | np.append(False, special[:-1])
    return ids, ~special, starts


def documents(number=150):
    """Of all lengths, some with many special tokens, some with none."""
    for index in range(number):
        yield index, *document(index, 1 + index % 150, (0.0, 0.05, 0.5)[index % 3])


def runs(positions):
    return np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1) if len(positions) else []


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# --- draws ------------------------------------------------------------------------------------------------------------


def test_draws_hang_on_seed_epoch_and_index_alone():
    def numbers(*key):
        return tuple(corruption.generator(*key).integers(2**62, size=4).tolist())

    assert numbers(1, 2, 3) == numbers(1, 2, 3)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2**32 - 1, 0), (0, 0, 2**40), (-1, 0, 0)]
    assert len({numbers(*key) for key in keys}) == len(keys)
    assert numbers(2**32 + 5, 1, 1) == numbers(5, 1, 1)


ALL = {
    "tokens": lambda rng, ids, allowed, starts: (corruption.choose_tokens(rng, np.flatnonzero(allowed), 0.15),),
    "words": lambda rng, ids, allowed, starts: (corruption.choose_words(rng, starts, allowed, 0.15),),
    "spans": lambda rng, ids, allowed, starts: (corruption.choose_spans(rng, starts, allowed, 0.15, 5),),
    "mask": lambda rng, ids, allowed, starts: corruption.mask(rng, ids, np.arange(60), MASK, ORDINARY, 0.5, 0.3),
    "permute": lambda rng, ids, allowed, starts: corruption.permute(rng, ids, starts, allowed),
    "infill": lambda rng, ids, allowed, starts: corruption.infill(rng, ids, allowed, 0.3, 3, MASK),
    "t5": lambda rng, ids, allowed, starts: corruption.span_corruption(rng, ids, allowed, 0.15, 3, SENTINELS),
}


@pytest.mark.parametrize("name", ALL)
def test_the_same_key_gives_the_same_corruption_and_another_epoch_another(name):
    ids, allowed, starts = document(0)
    before = ids.copy(), allowed.copy(), starts.copy()
    first = ALL[name](corruption.generator(7, 1, 5), ids, allowed, starts)
    assert same(first, ALL[name](corruption.generator(7, 1, 5), ids, allowed, starts))
    assert not all(
        len(a) == len(b) and np.array_equal(a, b)
        for a, b in zip(first, ALL[name](corruption.generator(7, 2, 5), ids, allowed, starts), strict=True)
    )
    assert same(before, (ids, allowed, starts))  # what was given stays as it was
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    ALL[name](corruption.generator(7, 1, 5), ids, allowed, starts)
    assert np.array_equal(np.random.get_state()[1], state)


# --- which tokens -----------------------------------------------------------------------------------------------------


def test_masked_tokens_are_drawn_as_the_pinned_curves_have_them():
    """These numbers came from the masked-lm collator before its draws had a file of their own."""
    rng = corruption.generator(7, 1, 3)
    ids = np.arange(100, 140)
    positions = corruption.choose_tokens(rng, np.arange(40), 0.3)
    input_ids, labels = corruption.mask(rng, ids, positions, MASK, ORDINARY, 0.5, 0.4)
    assert positions.tolist() == [28, 7, 20, 21, 3, 39, 29, 5, 34, 4, 18, 27]
    assert input_ids[positions].tolist() == [4, 875, 120, 778, 4, 845, 444, 4, 228, 885, 595, 4]
    assert labels[positions].tolist() == ids[positions].tolist()


def test_chosen_tokens_are_the_rounded_share_and_one_at_least():
    for number in (0, 1, 2, 5, 100):
        for share in (0.0, 0.15, 0.5, 1.0):
            chosen = corruption.choose_tokens(corruption.generator(0, 0, number), np.arange(10, 10 + number), share)
            assert len(chosen) == len(set(chosen)) == min(number, max(1, round(share * number)))
            assert set(chosen) <= set(range(10, 10 + number))


@pytest.mark.parametrize("name", ["words", "spans"])
def test_words_are_hidden_whole_until_the_share_is_reached(name):
    for index, _, allowed, starts in documents():
        rng = corruption.generator(0, 0, index)
        more = (3.0,) if name == "spans" else ()
        chosen = getattr(corruption, f"choose_{name}")(rng, starts, allowed, 0.2, *more)
        word = np.cumsum(starts)
        assert np.array_equal(chosen, np.unique(chosen))
        assert allowed[chosen].all()
        assert set(chosen) == set(np.flatnonzero(np.isin(word, word[chosen]) & allowed))
        budget = min(max(1, round(0.2 * allowed.sum())), allowed.sum())
        assert budget <= len(chosen) < budget + 4  # no word has more than four tokens


@pytest.mark.parametrize("name", ["words", "spans"])
def test_edges_of_choosing(name):
    choose = getattr(corruption, f"choose_{name}")
    more = (5.0,) if name == "spans" else ()
    rng = corruption.generator(0, 0, 0)
    one = np.ones(1, bool)
    assert choose(rng, one, one, 0.15, *more).tolist() == [0]
    assert choose(rng, one, ~one, 0.15, *more).tolist() == []
    assert choose(rng, one[:0], one[:0], 0.15, *more).tolist() == []
    _, allowed, starts = document(1)
    assert choose(rng, starts, allowed, 1.0, *more).tolist() == np.flatnonzero(allowed).tolist()
    assert choose(rng, starts, np.zeros(120, bool), 0.5, *more).tolist() == []


def test_every_word_is_as_likely_as_any_other():
    """Twenty words of one to four tokens: long words are not passed over."""
    lengths = np.tile([1, 2, 3, 4], 5)
    starts = np.zeros(50, bool)
    starts[np.cumsum(lengths) - lengths] = True
    first = np.flatnonzero(starts)
    seen = np.zeros(20)
    for index in range(2000):
        seen += np.isin(
            first, corruption.choose_words(corruption.generator(1, 0, index), starts, np.ones(50, bool), 0.3)
        )
    shares = seen.reshape(5, 4).mean(0) / 2000
    assert shares == pytest.approx(shares.mean(), rel=0.05)
    assert (seen / 2000).std() < 0.03


def test_spans_have_the_papers_lengths_in_words():
    """Words of three tokens; few spans in a long text, so that hardly two of them meet."""
    starts = np.arange(30_000) % 3 == 0
    lengths = []
    for index in range(30):
        chosen = corruption.choose_spans(corruption.generator(2, 0, index), starts, np.ones(30_000, bool), 0.02, 5)
        found = [len(run) for run in runs(chosen)]
        assert all(length % 3 == 0 for length in found)
        assert 600 <= len(chosen) <= 602
        lengths += [length // 3 for length in found]
    assert len(lengths) > 1000
    weights = 0.2 * 0.8 ** np.arange(10)
    assert (weights @ np.arange(1, 11)) / weights.sum() == pytest.approx(3.8, abs=0.01)  # as the paper says
    assert np.mean(lengths) == pytest.approx(3.8, abs=0.25)  # three standard errors of 0.08
    assert np.mean(np.array(lengths) == 1) == pytest.approx(weights[0] / weights.sum(), abs=0.05)
    assert np.mean(np.array(lengths) > 10) < 0.02


def test_longer_mean_lengths_give_longer_spans_and_one_gives_single_words():
    found = {}
    for mean in (1.0, 2.0, 5.0):
        chosen = corruption.choose_spans(
            corruption.generator(0, 0, 1), np.ones(5000, bool), np.ones(5000, bool), 0.02, mean
        )
        found[mean] = np.mean([len(run) for run in runs(chosen)])
    assert found[1.0] < 1.1 < found[2.0] < found[5.0]


def test_spans_do_not_pass_special_tokens():
    """Every third token is special: what is hidden between two of them is part of one span, and they are not in it."""
    allowed = np.arange(300) % 3 != 0
    chosen = corruption.choose_spans(corruption.generator(0, 0, 0), np.ones(300, bool), allowed, 0.5, 9)
    assert len(chosen) == 100
    assert all(len(run) <= 2 for run in runs(chosen))
    singles = sum(len(run) == 1 for run in runs(chosen))
    assert singles >= 20  # a span that passed them would have hidden most pairs whole


# --- masking ----------------------------------------------------------------------------------------------------------


def test_masked_random_and_kept_tokens_have_their_shares():
    counts = Counter()
    for index in range(2000):
        ids, allowed, _ = document(index, 100)
        rng = corruption.generator(0, 0, index)
        positions = corruption.choose_tokens(rng, np.flatnonzero(allowed), 0.15)
        input_ids, labels = corruption.mask(rng, ids, positions, MASK, ORDINARY, 0.8, 0.1)
        elsewhere = np.ones(100, bool)
        elsewhere[positions] = False
        assert np.array_equal(input_ids[elsewhere], ids[elsewhere])
        assert (labels[elsewhere] == -100).all()
        assert np.array_equal(labels[positions], ids[positions])
        shown = input_ids[positions]
        counts["mask"] += (shown == MASK).sum()
        counts["kept"] += (shown == ids[positions]).sum()
        counts["random"] += ((shown != MASK) & (shown != ids[positions])).sum()
        assert (shown >= MASK).all()  # no other special token is ever drawn
    total = counts.total()
    assert total == pytest.approx(2000 * 0.15 * 95, rel=0.02)
    assert counts["mask"] / total == pytest.approx(0.8, abs=0.008)  # standard error 0.0024
    assert counts["random"] / total == pytest.approx(0.1, abs=0.006)
    assert counts["kept"] / total == pytest.approx(0.1, abs=0.006)


def test_all_masked_or_none():
    ids = np.arange(10, 30)
    rng = corruption.generator(0, 0, 0)
    assert (corruption.mask(rng, ids, np.arange(20), MASK, ORDINARY, 1.0, 0.0)[0] == MASK).all()
    kept, labels = corruption.mask(rng, ids, np.arange(20), MASK, ORDINARY, 0.0, 0.0)
    assert np.array_equal(kept, ids)
    assert np.array_equal(labels, ids)
    assert (corruption.mask(rng, ids, np.arange(0), MASK, ORDINARY, 0.8, 0.1)[1] == -100).all()


# --- other orders -----------------------------------------------------------------------------------------------------


def units(ids, starts):
    return [tuple(part) for part in np.split(ids, np.flatnonzero(starts)[1:])]


def test_shuffled_texts_hold_the_same_tokens_and_can_be_put_back():
    for index, ids, allowed, starts in documents():
        for edges in (starts, np.ones(len(ids), bool)):
            shuffled, order = corruption.permute(corruption.generator(0, 0, index), ids, edges, allowed)
            assert np.array_equal(shuffled, ids[order])
            back = np.empty_like(ids)
            back[order] = shuffled
            assert np.array_equal(back, ids)
            assert np.array_equal(np.sort(order), np.arange(len(ids)))
            assert np.array_equal(order[~allowed], np.flatnonzero(~allowed))  # in their places, and none passes them
            passed = np.cumsum(~allowed)
            assert np.array_equal(passed[order], passed)


def test_units_stay_whole():
    for index in range(100):
        ids = np.arange(60) + 1000 * index
        starts = np.zeros(60, bool)
        starts[np.random.default_rng(index).choice(60, 8, replace=False)] = True
        starts[0] = True
        shuffled, order = corruption.permute(corruption.generator(0, 0, index), ids, starts)
        assert Counter(units(shuffled, starts[order])) == Counter(units(ids, starts))
        assert not np.array_equal(shuffled, ids)


def test_all_orders_but_the_one_that_was_are_equally_likely():
    ids, starts = np.array([7, 8, 8, 9, 9, 9]), np.array([1, 1, 0, 1, 0, 0], bool)
    seen = Counter(
        tuple(corruption.permute(corruption.generator(0, 0, i), ids, starts)[0].tolist()) for i in range(2000)
    )
    assert len(seen) == 5
    assert tuple(ids) not in seen
    assert all(count == pytest.approx(400, abs=90) for count in seen.values())  # five standard errors


def test_the_order_is_never_the_old_one_where_anything_is_different():
    for index in range(200):
        rng = corruption.generator(0, 0, index)
        two = np.array([5, 6])
        assert corruption.permute(rng, two, np.ones(2, bool))[0].tolist() == [6, 5]
        many = np.array([5, 5, 5, 6])
        assert corruption.permute(rng, many, np.ones(4, bool))[0].tolist() != many.tolist()
        last = np.array([5, 1, 6, 7])  # only behind the special token can anything move
        assert corruption.permute(rng, last, np.ones(4, bool), last > 4)[0].tolist() == [5, 1, 7, 6]
        alike = np.array([5, 5, 5])  # a unit of one token and one of two: another order of the same text
        order = corruption.permute(rng, alike, np.array([True, True, False]))[1]
        assert order.tolist() == [1, 2, 0]


def test_nothing_moves_where_nothing_could():
    rng = corruption.generator(0, 0, 0)
    for ids, starts, allowed in (
        ([5, 6, 7], [1, 0, 0], None),  # one sentence
        ([5, 6, 7], [0, 0, 0], None),  # the same, begun in an earlier block
        ([5], [1], None),
        ([], [], None),
        ([5, 5, 5], [1, 1, 1], None),  # three alike
        ([5, 6, 5, 6], [1, 0, 1, 0], None),
        ([0, 1, 2], [1, 1, 1], [0, 0, 0]),  # all special
        ([5, 1, 6], [1, 1, 1], [1, 0, 1]),
    ):
        allowed = None if allowed is None else np.array(allowed, bool)
        ids = np.array(ids, np.int64)
        shuffled, order = corruption.permute(rng, ids, np.array(starts, bool), allowed)
        assert shuffled.tolist() == ids.tolist()
        assert order.tolist() == list(range(len(ids)))


# --- infilling --------------------------------------------------------------------------------------------------------


def refill(corrupted, spans, ids):
    """Undo `infill`, [T]: all but the tokens of the spans, which are those of `ids`, come from `corrupted`."""
    first, lengths = spans.T
    masks = first - (np.cumsum(lengths) - lengths) + np.arange(len(spans))
    restored = np.empty(len(corrupted) - len(spans) + lengths.sum(), ids.dtype)
    hidden = np.zeros(len(restored), bool)
    hidden[np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())] = True
    restored[hidden] = ids[hidden]
    restored[~hidden] = np.delete(corrupted, masks)
    return restored


def test_filled_in_texts_are_the_ones_that_were():
    for index, ids, allowed, _ in documents():
        for share in (0.0, 0.15, 0.3, 0.9, 1.0):
            corrupted, spans = corruption.infill(corruption.generator(0, 0, index), ids, allowed, share, 3, MASK)
            first, lengths = spans.T
            assert np.array_equal(refill(corrupted, spans, ids), ids)
            hidden = np.concatenate([[], *(np.arange(f, f + n) for f, n in spans)]).astype(int)
            assert allowed[hidden].all()
            assert len(hidden) == round(share * allowed.sum())
            assert (first[1:] > first[:-1] + lengths[:-1]).all()  # sorted, with a token between any two
            assert len(corrupted) == len(ids) - len(hidden) + len(spans)
            assert np.count_nonzero(corrupted == MASK) == len(spans) + np.count_nonzero(np.delete(ids, hidden) == MASK)
            assert np.array_equal(corrupted[corrupted < MASK], ids[ids < MASK])  # special tokens, in their order


def test_refilling_needs_the_kept_tokens_of_the_corrupted_text():
    ids = np.arange(10, 60)
    corrupted, spans = corruption.infill(corruption.generator(0, 0, 0), ids, np.ones(50, bool), 0.3, 3, MASK)
    damaged = np.where(corrupted == MASK, MASK, corrupted + 1)
    assert np.count_nonzero(refill(damaged, spans, ids) != ids) == 35


def test_span_lengths_are_poisson():
    lengths = np.concatenate(
        [
            corruption.infill(corruption.generator(0, 0, i), np.full(512, 9), np.ones(512, bool), 0.3, 3, MASK)[1][:, 1]
            for i in range(200)
        ]
    )
    assert len(lengths) > 9000
    assert lengths.mean() == pytest.approx(3, abs=0.1)
    assert lengths.var() == pytest.approx(3, abs=0.25)
    assert (lengths == 0).mean() == pytest.approx(np.exp(-3), abs=0.01)


def test_spans_lie_anywhere_in_the_text():
    """A span stands before the first token as often as in any other of the 29 gaps between the 28 kept ones."""
    hidden, num_hiding = np.zeros(40), 0
    ids, allowed = np.full(40, 9), np.ones(40, bool)
    for index in range(2000):
        spans = corruption.infill(corruption.generator(0, 0, index), ids, allowed, 0.3, 3, MASK)[1]
        num_hiding += np.count_nonzero(spans[:, 1])
        for first, length in spans:
            hidden[first : first + length] += 1
    assert hidden.sum() == 2000 * 12
    shares = hidden / 2000
    assert shares[[0, -1]] == pytest.approx(num_hiding / 2000 / 29, abs=0.02)  # two and a half standard errors
    assert shares == pytest.approx(shares[::-1], abs=0.04)
    assert shares[5:-5] == pytest.approx(shares[5:-5].mean(), abs=0.03)


def test_edges_of_infilling():
    rng = corruption.generator(0, 0, 0)
    one = np.array([9])
    assert corruption.infill(rng, one, np.ones(1, bool), 1.0, 3, MASK)[0].tolist() == [MASK]
    for ids, allowed in ((one, np.zeros(1, bool)), (one[:0], np.zeros(0, bool)), (one, np.ones(1, bool))):
        corrupted, spans = corruption.infill(rng, ids, allowed, 0.3, 3, MASK)
        assert corrupted.tolist() == ids.tolist()
        assert spans.shape == (0, 2)
        assert refill(corrupted, spans, ids).tolist() == ids.tolist()
    assert corruption.infill(rng, np.full(9, 9), np.ones(9, bool), 1.0, 3, MASK)[1].tolist() == [[0, 9]]


# --- T5's sentinels ---------------------------------------------------------------------------------------------------


def corrupted_spans(index, ids, allowed, density=0.15, mean=3.0, sentinels=SENTINELS):
    """The inputs, and the hidden spans between the sentinels of the targets, which are checked on the way."""
    inputs, targets = corruption.span_corruption(
        corruption.generator(0, 0, index), ids, allowed, density, mean, sentinels
    )
    assert np.array_equal(corruption.restore(inputs, targets, sentinels), ids)
    marks = np.flatnonzero(np.isin(targets, sentinels))
    assert np.array_equal(targets[marks], sentinels[: len(marks)])
    assert np.array_equal(inputs[np.isin(inputs, sentinels)], sentinels[: len(marks) - 1])
    assert marks[0] == 0
    assert marks[-1] == len(targets) - 1
    return inputs, [span[1:] for span in np.split(targets, marks[1:])[:-1]]


def test_restored_texts_are_the_ones_that_were():
    for index, ids, allowed, _ in documents():
        for density in (0.15, 0.5, 1.0):
            inputs, spans = corrupted_spans(index, ids, allowed, density)
            assert all(len(span) for span in spans)
            assert all((span > 3).all() for span in spans)
            num_hidden = sum(map(len, spans))
            num_allowed = allowed.sum()
            assert num_hidden == max(0, min(max(1, round(density * num_allowed)), num_allowed - 1))
            assert np.array_equal(inputs[inputs < MASK], ids[ids < MASK])


def test_spans_and_lengths_are_those_of_the_paper():
    """512 tokens, 15 % of them: 77 in 26 spans; the kept come first and the hidden last, and lengths vary."""
    lengths = []
    for index in range(100):
        ids = np.random.default_rng(index).integers(5, 1000, 512)
        inputs, spans = corrupted_spans(index, ids, np.ones(512, bool))
        assert len(spans) == 26
        assert sum(map(len, spans)) == 77
        assert len(inputs) == 512 - 77 + 26
        assert inputs[0] == ids[0]
        assert inputs[-1] == SENTINELS[25]
        lengths += map(len, spans)
    # All ways to cut 77 into 26 are alike: a part is 1 in 25 of 76 of them, as one edge is behind its first token.
    assert np.mean(np.array(lengths) == 1) == pytest.approx(25 / 76, abs=0.03)


def test_fewer_sentinels_give_longer_spans_of_the_same_density():
    ids, allowed = np.arange(5, 517), np.ones(512, bool)
    for number, expected in ((100, 26), (20, 19), (3, 2), (2, 1)):
        _, spans = corrupted_spans(0, ids, allowed, sentinels=SENTINELS[:number])
        assert len(spans) == expected
        assert sum(map(len, spans)) == 77


def test_special_tokens_cut_spans_and_never_use_up_the_sentinels():
    ids = np.arange(5, 205)
    few = np.ones(200, bool)
    few[[50, 100, 150]] = False
    for index in range(100):
        _, spans = corrupted_spans(index, ids, few, 0.5, 30.0, SENTINELS[:8])
        assert sum(map(len, spans)) == 98  # half of 197, which Python rounds to the even number
        assert len(spans) <= 7
        assert all((np.diff(span) == 1).all() for span in spans)
        assert not np.isin(ids[~few], np.concatenate(spans)).any()
    every_other = np.arange(200) % 2 == 0  # no span can be longer than a token: there are too few sentinels for half
    _, spans = corrupted_spans(0, ids, every_other, 0.5, 3.0, SENTINELS[:8])
    assert [len(span) for span in spans] == [1] * 7


def test_sentinels_in_the_text_are_left_to_it():
    ids = np.arange(5, 105)
    ids[[10, 20]] = SENTINELS[[0, 2]]
    inputs, targets = corruption.span_corruption(corruption.generator(0, 0, 0), ids, ids < 1000, 0.15, 3, SENTINELS)
    assert targets[0] == SENTINELS[1]
    assert not np.isin(SENTINELS[[0, 2]], targets).any()
    assert np.array_equal(corruption.restore(inputs, targets, SENTINELS), ids)
    full = np.arange(1000, 1099)  # all but one stand in it: nothing can be hidden
    inputs, targets = corruption.span_corruption(corruption.generator(0, 0, 0), full, full < 1000, 0.15, 3, SENTINELS)
    assert targets.tolist() == [1099]
    assert np.array_equal(corruption.restore(inputs, targets, SENTINELS), full)


def test_sentinels_of_any_order_and_ids_of_any_type():
    ids = np.arange(5, 105).astype(np.uint16)
    down = SENTINELS[::-1].copy()  # T5's own: the first has the highest id
    inputs, targets = corruption.span_corruption(corruption.generator(0, 0, 0), ids, np.ones(100, bool), 0.15, 3, down)
    assert inputs.dtype == targets.dtype == np.uint16
    assert targets[np.isin(targets, down)].tolist() == down[:6].tolist()
    assert np.array_equal(corruption.restore(inputs, targets, down), ids)


def test_edges_of_span_corruption():
    for ids, allowed in (([9], [1]), ([1], [0]), ([], []), ([1, 9, 2], [0, 1, 0])):
        inputs, spans = corrupted_spans(0, np.array(ids, np.int64), np.array(allowed, bool))
        assert inputs.tolist() == ids
        assert spans == []
    inputs, spans = corrupted_spans(0, np.array([8, 9]), np.ones(2, bool))
    assert inputs.tolist() == [8, SENTINELS[0]]
    assert [span.tolist() for span in spans] == [[9]]


def test_a_tokenizer_without_sentinels_is_an_error_in_words():
    for number in (0, 1):
        with pytest.raises(UserError, match=f"needs at least two sentinels, but the tokenizer has {number}"):
            corruption.span_corruption(
                corruption.generator(0, 0, 0), np.arange(9), np.ones(9, bool), 0.15, 3, SENTINELS[:number]
            )
