"""What is done to a block of tokens so that a model may learn to mend it: hiding, shuffling, cutting out.

Every function draws from the generator that it is given and from nothing else. `allowed` says which tokens may be
touched: special tokens never are. One text at a time: ids are [T], positions count from its first token.
"""

import numpy as np

from llmkit.errors import UserError

LONGEST_SPAN = 10  # words: Joshi et al. 2020 (arXiv:1907.10529), section 3.1


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Draws that hang on (seed, epoch, index) alone: the same whatever the batch, the workers or the processes."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**32 * 2**32 + epoch, index], np.uint64)))


def choose_tokens(draw: np.random.Generator, candidates: np.ndarray, probability: float) -> np.ndarray:
    """That share of the candidates, at least one of them, in the order in which they were drawn."""
    return draw.permutation(candidates)[: _budget(probability, len(candidates))]


def choose_words(draw: np.random.Generator, starts: np.ndarray, allowed: np.ndarray, probability: float) -> np.ndarray:
    """Whole words, drawn until they hold that share of the allowed tokens: their positions, sorted.

    `starts` and `allowed` are bool [T]. The last word may hold more tokens than were missing.
    """
    word = np.cumsum(starts)
    lengths = np.bincount(word[allowed], minlength=len(starts) + 1)
    words = draw.permutation(np.flatnonzero(lengths))
    num_words = 1 + np.searchsorted(np.cumsum(lengths[words]), _budget(probability, lengths.sum()))
    chosen = np.zeros(len(lengths), bool)
    chosen[words[:num_words]] = True
    return np.flatnonzero(chosen[word] & allowed)


def choose_spans(
    draw: np.random.Generator, starts: np.ndarray, allowed: np.ndarray, probability: float, mean_length: float
) -> np.ndarray:
    """Spans of whole words, drawn until they hold that share of the allowed tokens: their positions, sorted.

    SpanBERT (Joshi et al. 2020, arXiv:1907.10529, section 3.1): the length of a span in words is geometric with
    p = 1 / mean_length, and never above 10 (0.2 gives the paper's mean of 3.8). A span begins at any word that is
    still to be seen, and ends early before one that is hidden or not allowed, and where the share is reached.
    """
    edges = starts | np.diff(allowed, prepend=allowed[:1])
    word = np.cumsum(edges)
    lengths = np.bincount(word[allowed], minlength=len(starts) + 2)
    missing = _budget(probability, lengths.sum())
    # Nothing is left of words that are hidden or not allowed; the last entry is behind the text.
    left = lengths.tolist()
    anchors = draw.permutation(np.flatnonzero(lengths))
    # A geometric number modulo 10 has the distribution of one that is drawn again until it is no more than 10.
    spans = 1 + (draw.geometric(1 / mean_length, len(anchors)) - 1) % LONGEST_SPAN
    for anchor, length in zip(anchors.tolist(), spans.tolist(), strict=True):
        for place in range(anchor, anchor + length):
            if missing <= 0 or not left[place]:
                break
            missing -= left[place]
            left[place] = 0
        if missing <= 0:
            break
    return np.flatnonzero((np.array(left) != lengths)[word] & allowed)


def _budget(probability: float, num_tokens: int) -> int:
    """How many tokens: without a single one there would be nothing to learn from a text."""
    return max(1, round(probability * num_tokens))


def mask(
    draw: np.random.Generator,
    ids: np.ndarray,
    positions: np.ndarray,
    mask_id: int,
    ordinary: np.ndarray,
    mask_share: float,
    random_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The ids with those at `positions` hidden, and the labels: what stood there, -100 elsewhere; both [T].

    Of the hidden tokens `mask_share` become the mask token and `random_share` one of the `ordinary` ids, the rest stay
    as they are (Devlin et al. 2018, arXiv:1810.04805, section 3.1). That is drawn for each token, as there, in whole
    words and spans too (SpanBERT draws it for each span).
    """
    hidden = ids[positions]
    kind = draw.random(len(positions))
    strangers = ordinary[draw.integers(len(ordinary), size=len(positions))]
    shown = np.where(kind < mask_share + random_share, strangers, hidden)
    input_ids, labels = ids.copy(), np.full(len(ids), -100, np.int64)
    input_ids[positions] = np.where(kind < mask_share, mask_id, shown)
    labels[positions] = hidden
    return input_ids, labels


def permute(
    draw: np.random.Generator, ids: np.ndarray, starts: np.ndarray, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The ids with their units in another order, and that order: `shuffled = ids[order]`, so `back[order] = shuffled`.

    A unit reaches from one of `starts` (bool [T]) to the next: sentences, or tokens where all are True. Tokens that are
    not `allowed` (bool [T]) keep their places, and no unit passes them, so that documents stay apart. The order of the
    units is never the one they had, unless there is nothing that could change places with anything different.
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
    # Whether each unit is unlike the next one: of another length, or with a token that the next has not in its place.
    other = np.minimum(np.arange(num_tokens) + np.repeat(lengths, lengths), num_tokens - 1)
    unlike = np.logical_or.reduceat(ids != ids[other], first)[:-1] | (lengths[1:] != lengths[:-1])
    if not (unlike & (stretch[1:] == stretch[:-1])).any():
        return ids.copy(), np.arange(num_tokens)
    while True:  # of the orders that look different there are two at least: half the draws or more are another one
        units = np.lexsort((draw.random(len(first)), stretch))
        moved = lengths[units]
        order = np.arange(num_tokens) + np.repeat(first[units] - (np.cumsum(moved) - moved), moved)
        if (moved != lengths).any() or (ids[order] != ids).any():
            return ids[order], order


def infill(
    draw: np.random.Generator,
    ids: np.ndarray,
    allowed: np.ndarray,
    probability: float,
    poisson_lambda: float,
    mask_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Spans replaced by one mask token each; and the spans, int64 [S, 2]: first position in `ids`, number of tokens.

    BART (Lewis et al. 2019, arXiv:1910.13461, section 2.2): lengths are Poisson, and where one is 0 a mask token is put
    in. Spans are drawn until they hold round(probability * allowed tokens), which the last is cut to. They are sorted,
    with at least one token kept between any two: where too few are kept for that, spans are joined. One that would
    cover a token that is not allowed is cut in two there.
    """
    places = np.flatnonzero(allowed)
    budget = round(probability * len(places))
    lengths = np.arange(0)
    while lengths.sum() < budget:
        lengths = np.append(lengths, draw.poisson(poisson_lambda, 1 + int(budget / poisson_lambda)))
    total = np.cumsum(lengths)
    num_spans = int(np.searchsorted(total, budget)) + 1 if budget else 0
    lengths = np.diff(np.minimum(total[:num_spans], budget), prepend=0)
    num_gaps = len(places) - budget + 1
    if num_spans > num_gaps:
        lengths = np.add.reduceat(lengths, np.arange(num_gaps) * num_spans // num_gaps)
    # The spans stand in different gaps of the kept tokens, and the one that was cut not always last; all of this as if
    # there were no tokens but the allowed.
    lengths = draw.permutation(lengths)
    gaps = np.sort(draw.choice(num_gaps, len(lengths), replace=False))
    first = gaps + np.cumsum(lengths) - lengths
    hidden = np.zeros(len(ids), bool)
    hidden[places[np.repeat(gaps, lengths) + np.arange(budget)]] = True
    put_in = np.append(places, places[-1:] + 1)[first[lengths == 0]]
    spans = np.concatenate([_runs(hidden), np.stack([put_in, np.zeros_like(put_in)], 1)])
    spans = spans[np.argsort(spans[:, 0])]
    before = np.cumsum(~hidden) - ~hidden  # kept tokens before each position
    corrupted = np.insert(ids[~hidden], np.append(before, (~hidden).sum())[spans[:, 0]], mask_id)
    return corrupted, spans


def refill(corrupted: np.ndarray, spans: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """What `infill` was given, [T]: all but the tokens of the spans, which are those of `ids`, from `corrupted`."""
    first, lengths = spans.T
    masks = first - (np.cumsum(lengths) - lengths) + np.arange(len(spans))
    restored = np.empty(len(corrupted) - len(spans) + lengths.sum(), ids.dtype)
    hidden = np.zeros(len(restored), bool)
    hidden[np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())] = True
    restored[hidden] = ids[hidden]
    restored[~hidden] = np.delete(corrupted, masks)
    return restored


def span_corruption(
    draw: np.random.Generator,
    ids: np.ndarray,
    allowed: np.ndarray,
    noise_density: float,
    mean_noise_span_length: float,
    sentinels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, in which the next sentinel stands for each span; and targets: sentinel, span, sentinel, ..., sentinel.

    T5 (Raffel et al. 2019, arXiv:1910.10683, section 3.1.4), with the lengths of its `random_spans_noise_mask`:
    round(noise_density * allowed tokens) are hidden, at least one and never all, in round(hidden / mean) spans; the
    kept and the hidden are cut at random and take turns, the kept first: the last allowed token is hidden. There are
    fewer spans than `sentinels`: with few of those, longer ones of the same density. A span that would cover a token
    that is not allowed is cut in two there; of more spans than sentinels allow, only the longest are then hidden.

    Sentinels that the text itself holds are not used for it. Raises UserError where there are fewer than two.
    """
    if len(sentinels) < 2:
        raise UserError(
            f"span corruption needs two sentinels at least, and the tokenizer has {len(sentinels)}",
            "use a tokenizer with sentinels (`<extra_id_0>`, ...), such as T5's, or train one with [tokenizer]",
        )
    unused = sentinels[~np.isin(sentinels, ids)].astype(ids.dtype)
    if len(unused) < 2:
        return ids.copy(), unused[:1]
    places = np.flatnonzero(allowed)
    num_hidden = min(max(round(noise_density * len(places)), 1), len(places) - 1)
    if num_hidden < 1:
        return ids.copy(), unused[:1]
    num_kept = len(places) - num_hidden
    cuts = len(_runs(allowed)) - 1
    most = min(num_hidden, num_kept, max(len(unused) - 1 - cuts, 1))
    num_spans = min(max(round(num_hidden / mean_noise_span_length), 1), most)
    lengths = np.stack([_cut(draw, num_kept, num_spans), _cut(draw, num_hidden, num_spans)], 1).ravel()
    hidden = np.zeros(len(ids), bool)
    hidden[places[np.repeat(np.arange(2 * num_spans) % 2 == 1, lengths)]] = True
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
    """What `span_corruption` was given, [T]: the spans of `targets` in their places in `inputs`."""
    marks = np.flatnonzero(np.isin(targets, sentinels))
    spans = np.split(targets, marks)[1:-1]  # each after its sentinel; behind the last one is nothing
    places = np.flatnonzero(np.isin(inputs, targets[marks[:-1]]))
    kept = np.split(inputs, places)
    return np.concatenate([kept[0], *(part for s, k in zip(spans, kept[1:], strict=True) for part in (s[1:], k[1:]))])


def _cut(draw: np.random.Generator, num_tokens: int, num_parts: int) -> np.ndarray:
    """The lengths of `num_parts` parts of `num_tokens` in a row, none of them empty, all ways to cut alike likely."""
    edges = 1 + np.sort(draw.choice(num_tokens - 1, num_parts - 1, replace=False))
    return np.diff(edges, prepend=0, append=num_tokens)


def _runs(marked: np.ndarray) -> np.ndarray:
    """Where each run of True in bool [T] begins, and how long it is: int64 [runs, 2]."""
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False)).reshape(-1, 2)
    return np.stack([edges[:, 0], edges[:, 1] - edges[:, 0]], 1)
