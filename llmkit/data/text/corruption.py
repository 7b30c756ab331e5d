"""Corrupt blocks of tokens that a model learns to restore: mask tokens, permute units, cut out spans.

Every function draws from the generator `rng` and from nothing else. `allowed` marks the tokens that may be changed:
special tokens never are. Each call takes one text: ids are [T], positions count from its first token.
"""

import numpy as np

from llmkit.errors import UserError

LONGEST_SPAN = 10  # words: Joshi et al. 2020 (arXiv:1907.10529), section 3.1


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Make a generator from (seed, epoch, index) alone: the same whatever the batch, the workers or the processes."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**32 * 2**32 + epoch, index], np.uint64)))


def choose_tokens(rng: np.random.Generator, candidates: np.ndarray, probability: float) -> np.ndarray:
    """Draw a share `probability` of the candidates, at least one of them; return them in the order of the draw."""
    return rng.permutation(candidates)[: _budget(probability, len(candidates))]


def choose_words(rng: np.random.Generator, starts: np.ndarray, allowed: np.ndarray, probability: float) -> np.ndarray:
    """Draw whole words until they hold a share `probability` of the allowed tokens; return their positions, sorted.

    `starts` (where words begin) and `allowed` are bool [T]. The last word may hold more tokens than were missing.
    """
    word = np.cumsum(starts)
    lengths = np.bincount(word[allowed], minlength=len(starts) + 1)
    words = rng.permutation(np.flatnonzero(lengths))
    num_words = 1 + np.searchsorted(np.cumsum(lengths[words]), _budget(probability, lengths.sum()))
    chosen = np.zeros(len(lengths), bool)
    chosen[words[:num_words]] = True
    return np.flatnonzero(chosen[word] & allowed)


def choose_spans(
    rng: np.random.Generator, starts: np.ndarray, allowed: np.ndarray, probability: float, mean_length: float
) -> np.ndarray:
    """Draw spans of whole words until they hold a share `probability` of the allowed tokens; return their positions.

    `starts` (where words begin) and `allowed` are bool [T]; the positions are sorted. As in SpanBERT (Joshi et al.
    2020, arXiv:1907.10529, section 3.1) the length of a span in words is geometric with p = 1 / mean_length, and never
    above 10 (0.2 gives the paper's mean of 3.8). A span begins at any word that is not yet hidden. It ends early before
    a word that is hidden or not allowed, and where the share is reached.
    """
    edges = starts | np.diff(allowed, prepend=allowed[:1])
    word = np.cumsum(edges)
    lengths = np.bincount(word[allowed], minlength=len(starts) + 2)
    missing = _budget(probability, lengths.sum())
    # How many tokens of each word can still be hidden; 0 where it is hidden or not allowed, and behind the text.
    left = lengths.tolist()
    anchors = rng.permutation(np.flatnonzero(lengths))
    # A geometric number modulo 10 has the distribution of one that is drawn again until it is no more than 10.
    spans = 1 + (rng.geometric(1 / mean_length, len(anchors)) - 1) % LONGEST_SPAN
    for anchor, length in zip(anchors.tolist(), spans.tolist(), strict=True):
        for number in range(anchor, anchor + length):
            if missing <= 0 or not left[number]:
                break
            missing -= left[number]
            left[number] = 0
        if missing <= 0:
            break
    return np.flatnonzero((np.array(left) != lengths)[word] & allowed)


def _budget(probability: float, num_tokens: int) -> int:
    """Count the tokens to hide: at least one, or there would be nothing to learn from the text."""
    return max(1, round(probability * num_tokens))


def mask(
    rng: np.random.Generator,
    ids: np.ndarray,
    positions: np.ndarray,
    mask_id: int,
    ordinary: np.ndarray,
    mask_share: float,
    random_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide the tokens at `positions`; return the ids and the labels, both [T].

    Labels are the hidden ids, and -100 elsewhere. Of the hidden tokens a share `mask_share` become the mask token,
    `random_share` become one of the `ordinary` ids, and the rest stay as they are (Devlin et al. 2018,
    arXiv:1810.04805, section 3.1). This is drawn token by token, as there, also for whole words and spans (SpanBERT
    draws it for each span).
    """
    hidden = ids[positions]
    kind = rng.random(len(positions))
    random_ids = ordinary[rng.integers(len(ordinary), size=len(positions))]
    shown = np.where(kind < mask_share + random_share, random_ids, hidden)
    input_ids, labels = ids.copy(), np.full(len(ids), -100, np.int64)
    input_ids[positions] = np.where(kind < mask_share, mask_id, shown)
    labels[positions] = hidden
    return input_ids, labels


def permute(
    rng: np.random.Generator, ids: np.ndarray, starts: np.ndarray, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Permute the units of a text; return the ids and the order, both [T]: `shuffled = ids[order]`.

    So `restored[order] = shuffled` undoes it. A unit reaches from one of `starts` (bool [T]) to the next: sentences, or
    tokens where all are True. Tokens that are not `allowed` (bool [T]) keep their positions, and no unit passes them,
    so that documents stay apart. The order always changes, unless no unit could change places with a different one.
    """
    num_tokens = len(ids)
    if num_tokens == 0:
        return ids.copy(), np.arange(0)
    fixed = np.zeros(num_tokens, bool) if allowed is None else ~allowed
    behind = np.append(False, fixed[:-1])
    edges = starts | fixed | behind
    edges[0] = True
    first = np.flatnonzero(edges)
    lengths = np.diff(first, append=num_tokens)
    stretch = np.cumsum(fixed | behind)[first]  # units change places within one
    # Whether each unit differs from the next one, in length or in a token.
    other = np.minimum(np.arange(num_tokens) + np.repeat(lengths, lengths), num_tokens - 1)
    unlike = np.logical_or.reduceat(ids != ids[other], first)[:-1] | (lengths[1:] != lengths[:-1])
    if not (unlike & (stretch[1:] == stretch[:-1])).any():
        return ids.copy(), np.arange(num_tokens)
    while True:  # at least two orders look different, so that half the draws or more change the text
        units = np.lexsort((rng.random(len(first)), stretch))
        moved = lengths[units]
        order = np.arange(num_tokens) + np.repeat(first[units] - (np.cumsum(moved) - moved), moved)
        if (moved != lengths).any() or (ids[order] != ids).any():
            return ids[order], order


def infill(
    rng: np.random.Generator,
    ids: np.ndarray,
    allowed: np.ndarray,
    probability: float,
    poisson_lambda: float,
    mask_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace spans by one mask token each; return the text and the spans.

    The spans are int64 [S, 2]: the first position in `ids` and the number of tokens. As in BART (Lewis et al. 2019,
    arXiv:1910.13461, section 2.2) lengths are Poisson, and one of 0 inserts a mask token. Spans are drawn until they
    hold round(probability * allowed tokens), to which the last is cut. They are sorted, with at least one token kept
    between any two: where too few are kept for that, spans are joined. A span that would cover a token that is not
    allowed is split there.
    """
    positions = np.flatnonzero(allowed)
    budget = round(probability * len(positions))
    lengths = np.arange(0)
    while lengths.sum() < budget:
        lengths = np.append(lengths, rng.poisson(poisson_lambda, 1 + int(budget / poisson_lambda)))
    total = np.cumsum(lengths)
    num_spans = int(np.searchsorted(total, budget)) + 1 if budget else 0
    lengths = np.diff(np.minimum(total[:num_spans], budget), prepend=0)
    num_gaps = len(positions) - budget + 1
    if num_spans > num_gaps:
        lengths = np.add.reduceat(lengths, np.arange(num_gaps) * num_spans // num_gaps)
    # Each span gets a gap of its own between the kept tokens, and the one that was cut is not always the last. All of
    # this counts the allowed tokens alone.
    lengths = rng.permutation(lengths)
    gaps = np.sort(rng.choice(num_gaps, len(lengths), replace=False))
    first = gaps + np.cumsum(lengths) - lengths
    hidden = np.zeros(len(ids), bool)
    hidden[positions[np.repeat(gaps, lengths) + np.arange(budget)]] = True
    inserted = np.append(positions, positions[-1:] + 1)[first[lengths == 0]]
    spans = np.concatenate([_runs(hidden), np.stack([inserted, np.zeros_like(inserted)], 1)])
    spans = spans[np.argsort(spans[:, 0])]
    before = np.cumsum(~hidden) - ~hidden  # kept tokens before each position
    corrupted = np.insert(ids[~hidden], np.append(before, (~hidden).sum())[spans[:, 0]], mask_id)
    return corrupted, spans


def span_corruption(
    rng: np.random.Generator,
    ids: np.ndarray,
    allowed: np.ndarray,
    noise_density: float,
    mean_noise_span_length: float,
    sentinels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace each span by the next sentinel; return the inputs and the targets: sentinel, span, ..., sentinel.

    As in T5 (Raffel et al. 2019, arXiv:1910.10683, section 3.1.4), with the lengths of its `random_spans_noise_mask`:
    round(noise_density * allowed tokens) are hidden, at least one and never all, in round(hidden / mean) spans. Kept
    and hidden tokens are cut at random and alternate, kept ones first, so that the last allowed token is hidden. There
    are fewer spans than `sentinels`; with few sentinels, spans are longer and the density is the same. A span that
    would cover a token that is not allowed is split there; if that makes more spans than the sentinels allow, only the
    longest are hidden.

    Sentinels that the text itself holds are not used for it. Raises UserError where there are fewer than two.
    """
    if len(sentinels) < 2:
        raise UserError(
            f"span corruption needs at least two sentinels, but the tokenizer has {len(sentinels)}",
            "use a tokenizer with sentinels (`<extra_id_0>`, ...), such as T5's, or train one with [tokenizer]",
        )
    unused = sentinels[~np.isin(sentinels, ids)].astype(ids.dtype)
    if len(unused) < 2:
        return ids.copy(), unused[:1]
    positions = np.flatnonzero(allowed)
    num_hidden = min(max(round(noise_density * len(positions)), 1), len(positions) - 1)
    if num_hidden < 1:
        return ids.copy(), unused[:1]
    num_kept = len(positions) - num_hidden
    cuts = len(_runs(allowed)) - 1
    most = min(num_hidden, num_kept, max(len(unused) - 1 - cuts, 1))
    num_spans = min(max(round(num_hidden / mean_noise_span_length), 1), most)
    parts = (_random_lengths(rng, num_kept, num_spans), _random_lengths(rng, num_hidden, num_spans))
    lengths = np.stack(parts, 1).ravel()
    hidden = np.zeros(len(ids), bool)
    hidden[positions[np.repeat(np.arange(2 * num_spans) % 2 == 1, lengths)]] = True
    runs = _runs(hidden)
    for first, length in runs[np.argsort(-runs[:, 1], kind="stable")[len(unused) - 1 :]].tolist():
        hidden[first : first + length] = False
    first = hidden & ~np.append(False, hidden[:-1])
    num_spans = int(first.sum())
    inputs = ids.copy()
    inputs[first] = unused[:num_spans]
    before = np.flatnonzero(first[hidden])  # where in the hidden tokens each span begins
    targets = np.insert(ids[hidden], np.append(before, hidden.sum()), unused[: num_spans + 1])
    return inputs[~hidden | first], targets


def restore(inputs: np.ndarray, targets: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Undo `span_corruption`: put the spans of `targets` back into `inputs`, [T]."""
    marks = np.flatnonzero(np.isin(targets, sentinels))
    spans = np.split(targets, marks)[1:-1]  # each after its sentinel; behind the last one is nothing
    kept = np.split(inputs, np.flatnonzero(np.isin(inputs, targets[marks[:-1]])))
    return np.concatenate([kept[0], *(part for s, k in zip(spans, kept[1:], strict=True) for part in (s[1:], k[1:]))])


def _random_lengths(rng: np.random.Generator, num_tokens: int, num_parts: int) -> np.ndarray:
    """Draw the lengths of `num_parts` parts of `num_tokens`; none is empty, and every way to cut is equally likely."""
    edges = 1 + np.sort(rng.choice(num_tokens - 1, num_parts - 1, replace=False))
    return np.diff(edges, prepend=0, append=num_tokens)


def _runs(marked: np.ndarray) -> np.ndarray:
    """Find each run of True in bool [T], its start and its length: int64 [runs, 2]."""
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False)).reshape(-1, 2)
    return np.stack([edges[:, 0], edges[:, 1] - edges[:, 0]], 1)
