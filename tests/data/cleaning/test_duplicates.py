"""Documents that are there already: what is dropped is what exact comparison, done the slow way, says."""

import random

import numpy as np
import pytest

from llmkit.data.cleaning import comparing, duplicates, shards
from llmkit.data.engines import Workers, in_turn
from llmkit.data.text.documents import Documents
from llmkit.recipe.cleaning import Clean

CHARACTERS = [chr(0x4E00 + number) for number in range(3000)]


def document(rng, chinese):
    if chinese:
        return "".join(rng.choices(CHARACTERS, k=rng.randint(120, 250))) + "。"
    return " ".join(f"w{rng.randint(0, 5000)}" for _ in range(rng.randint(120, 250))) + "."


def altered(text, rng, changes):
    """The text with so many words (or characters) in another form."""
    words = text.split(" ") if " " in text else list(text[:-1])
    for index in rng.sample(range(len(words)), changes):
        words[index] = "other" if " " in text else "\u3007"
    return (" " if " " in text else "").join(words)


def sets(text, n):
    words = text.rstrip(".").split(" ") if " " in text else list(text.rstrip("。"))
    return {tuple(words[index : index + n]) for index in range(max(len(words) - n, 0) + 1)}


def alike(one, other, n=5):
    first, second = sets(one, n), sets(other, n)
    return len(first & second) / len(first | second)


def states(folder, texts, table, shard_size=10**6):
    """What becomes of each text, cleaned in shards of so many characters."""
    work = folder / f"{shard_size}.work"
    shards.begin(work, table, None, Workers(shard_size=shard_size))
    read = shards.clean_all(work, Documents(lambda: iter(texts), "texts", "`test`"), in_turn)
    found = np.array(comparing.compare_all(work, read["shards"], in_turn))
    comparing.forget()
    shards.forget()
    return found


def kept(folder, texts, threshold, n=5):
    """Whether each text is kept where near duplicates are dropped."""
    table = Clean(near_duplicates=True, near_threshold=threshold, near_ngram=n)
    return (states(folder, texts, table) == comparing.KEPT).tolist()


def kept_in_one_pass(texts, table):
    """What one pass over the documents keeps: each is compared with every one that was kept before it."""
    least = duplicates.least_estimate(table.near_threshold)
    bands = duplicates.num_bands(table.near_threshold)
    seen, before, found = set(), [], []
    for text in texts:
        own = duplicates.shingles(text, table.near_ngram)
        signature = duplicates.signature(own)
        is_kept = not (table.exact_duplicates and text in seen)
        seen.add(text)
        if is_kept and signature is not None:
            split = np.split(signature, bands)
            is_kept = not any(
                any((one == other).all() for one, other in zip(split, np.split(earlier, bands), strict=True))
                and np.mean(signature == earlier) >= least
                and duplicates.jaccard(own, shingles) >= table.near_threshold
                for earlier, shingles in before
            )
            if is_kept:
                before.append((signature, own))
        found.append(is_kept)
    return found


def test_exact_duplicates_are_dropped_from_their_second_time_on(tmp_path):
    rng = random.Random(0)
    texts = [document(rng, number % 2) for number in range(200)]
    planted = [(text, False) for text in texts] + [(rng.choice(texts), True) for _ in range(100)]
    planted += [(f"{text} ", False) for text in texts[:20]] + [("\ud800", False), ("\ud800", True)]
    found = states(tmp_path, [text for text, _ in planted], Clean(exact_duplicates=True), shard_size=9_000)
    assert (found == comparing.EXACT).tolist() == [again for _, again in planted]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_near_duplicates_are_those_that_exact_comparison_finds(tmp_path, threshold):
    """Pairs on both sides of the threshold, in English and Chinese; precision is 1, since every pair is compared."""
    rng = random.Random(1)
    texts, similarities = [], []
    for number in range(150):
        text = document(rng, number % 2)
        twin = altered(text, rng, rng.choice([1, 2, 3, 5, 8, 13, 20, 25]))
        similarities.append(alike(text, twin))
        texts += [text, twin]
    found = kept(tmp_path, texts, threshold)
    assert all(found[::2])
    dropped = [not twin for twin in found[1::2]]
    truth = [similarity >= threshold for similarity in similarities]
    assert min(sum(truth), 150 - sum(truth)) >= 10
    # Some such as a sketch alone would take for the same.
    assert sum(threshold - 0.1 < similarity < threshold for similarity in similarities) >= 5
    assert sum(map(min, dropped, truth)) / sum(truth) >= 0.95
    assert not any(gone and not alike for gone, alike in zip(dropped, truth, strict=True))


def test_planted_twins_of_similarity_nine_tenths_are_found(tmp_path):
    rng = random.Random(2)
    texts, twins = [], []
    for number in range(100):
        text = document(rng, number % 2)
        twin = altered(text, rng, 2)
        texts.append(text)
        if 0.88 <= alike(text, twin) <= 0.96:
            twins.append(len(texts))
            texts.append(twin)
    assert len(twins) >= 60
    found = kept(tmp_path, texts, 0.8)
    assert sum(not found[twin] for twin in twins) / len(twins) >= 0.95


def test_the_first_is_kept_and_texts_are_compared_with_what_was_kept(tmp_path):
    """b is like a, c is like b but not like a: c stays, for b is gone."""
    rng = random.Random(3)
    a = document(rng, False)
    words = a.split(" ")
    b = " ".join([*words[:-8], *["x"] * 8])
    c = " ".join([*["y"] * 8, *b.split(" ")[8:]])
    threshold = min(alike(a, b), alike(b, c))
    assert alike(a, c) < threshold - 0.03
    assert kept(tmp_path, [a, b, c], threshold) == [True, False, True]


def test_short_texts_are_compared_whole_and_texts_without_words_are_kept(tmp_path):
    texts = ["One two.", "one, TWO", "two one", "!!!", "!!!"]
    assert kept(tmp_path, texts, 0.8) == [True, False, True, True, True]


def test_few_texts_are_read_again(tmp_path, monkeypatch):
    rng = random.Random(4)
    texts = [document(rng, number % 2) for number in range(300)]
    read, text_of = [], shards.Shard.text
    monkeypatch.setattr(shards.Shard, "text", lambda *words: read.append(words[1]) or text_of(*words))
    assert all(kept(tmp_path / "all", texts, 0.8))
    assert read == []
    assert kept(tmp_path / "more", [*texts, texts[5] + " more"], 0.8) == [True] * 300 + [False]
    assert sorted(read) == [5, 300]


# ---- in shards -----------------------------------------------------------------------------------------------------


def chains(rng, number):
    """Texts of which each resembles the one before it, or one of a few that hundreds resemble; in any order."""
    pages = [document(rng, False) for _ in range(3)]
    texts = [document(rng, False)]
    for _ in range(number):
        source = rng.choice([texts[-1], texts[-1], rng.choice(pages), rng.choice(texts), document(rng, False)])
        texts.append(altered(source, rng, rng.choice([0, 1, 2, 4, 6, 9])))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize(("threshold", "exact"), [(0.5, True), (0.8, False)])
def test_what_is_kept_is_what_one_pass_keeps_whatever_the_shards_and_the_rounds(
    tmp_path, monkeypatch, threshold, exact
):
    texts = chains(random.Random(5), 200)
    table = Clean(near_duplicates=True, near_threshold=threshold, exact_duplicates=exact)
    wanted = kept_in_one_pass(texts, table)
    assert 30 < sum(wanted) < 170
    for width, rows, shard_size in ((4, 2**21, 10**7), (1, 3000, 40_000)):
        monkeypatch.setattr(comparing, "WIDTH", width)
        monkeypatch.setattr(comparing, "ROWS", rows)
        found = states(tmp_path / str(width), texts, table, shard_size) == comparing.KEPT
        assert found.tolist() == wanted
    assert list(tmp_path.glob("1/*.work/near-01"))  # one comparison a band was not enough


# ---- overlap -------------------------------------------------------------------------------------------------------


def planted(chinese, n, rng):
    """Training texts with whether they hold `n` words of an evaluation text, and the evaluation texts."""
    evaluation = [document(rng, chinese) for _ in range(30)]
    training = []
    for _ in range(150):
        host, source = document(rng, chinese), rng.choice(evaluation)
        shared = rng.choice([0, n - 1, n, n + 10])
        blank = "" if chinese else " "
        words, other = (list(source[:-1]), host) if chinese else (source.rstrip(".").split(" "), host)
        start = rng.randrange(len(words) - shared)
        quoted = blank.join(words[start : start + shared])
        training.append((f"{other}{blank}{quoted}", shared >= n))
    return training, evaluation


def overlap(texts, n, share):
    """The test for what overlaps with texts."""
    return duplicates.HeldOut.of(texts, n).overlaps(n, share)


@pytest.mark.parametrize("chinese", [False, True])
def test_a_text_that_shares_thirteen_words_is_dropped_and_one_that_shares_twelve_stays(chinese):
    training, evaluation = planted(chinese, 13, random.Random(5))
    overlaps = overlap(evaluation, 13, 0.0)
    assert [overlaps(text) for text, _ in training] == [shared for _, shared in training]


def test_case_and_punctuation_make_no_difference():
    overlaps = overlap(["one two three four five"], 4, 0.0)
    assert overlaps("He said: ONE, two - three (four).")
    assert not overlaps("one two four three five")


def test_a_share_of_shared_text_may_be_allowed():
    text = " ".join(f"w{index}" for index in range(23))  # twenty 4-grams, five of which are in the other
    other = " ".join(f"w{index}" for index in range(8))
    assert overlap([other], 4, 0.24)(text)
    assert not overlap([other], 4, 0.25)(text)


def test_a_copy_of_a_short_evaluation_text_is_dropped_but_not_what_holds_it():
    overlaps = overlap(["Yes, please!", "好的", "..."], 13, 0.0)
    for text, dropped in (
        ("yes please", True),
        ("好的。", True),
        ("Yes, please, sir", False),
        ("...", False),
        ("please", False),
    ):
        assert overlaps(text) is dropped
    assert not overlap([], 13, 0.0)("any text " * 20)
