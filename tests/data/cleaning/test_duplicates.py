"""Documents that are there already: what is dropped is what exact comparison, done the slow way, says."""

import random
from collections import Counter

import pytest

from llmkit.data.cleaning import duplicates

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


class Kept:
    """What a caller of `near` holds: the texts that were kept, by their index."""

    def __init__(self, threshold, n=5):
        self.texts = []
        self.reads = 0
        self.step = duplicates.near(threshold, n, lambda: len(self.texts), self.read)

    def read(self, index):
        self.reads += 1
        return self.texts[index]

    def add(self, text):
        if self.step(text, Counter()) is None:
            return False
        self.texts.append(text)
        return True


def test_exact_duplicates_are_dropped_from_their_second_time_on():
    rng = random.Random(0)
    texts = [document(rng, number % 2) for number in range(200)]
    planted = [(text, False) for text in texts] + [(rng.choice(texts), True) for _ in range(100)]
    planted += [(f"{text} ", False) for text in texts[:20]] + [("\ud800", False), ("\ud800", True)]
    step = duplicates.exact()
    assert [step(text, Counter()) is None for text, _ in planted] == [again for _, again in planted]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_near_duplicates_are_those_that_exact_comparison_finds(threshold):
    """Pairs on both sides of the threshold, in English and Chinese; precision is 1, since every pair is compared."""
    rng = random.Random(1)
    kept = Kept(threshold)
    found = truth = wrong = close = 0
    for number in range(150):
        text = document(rng, number % 2)
        assert kept.add(text)
        twin = altered(text, rng, rng.choice([1, 2, 3, 5, 8, 13, 20, 25]))
        similarity = alike(text, twin)
        close += threshold - 0.1 < similarity < threshold
        dropped = not kept.add(twin)
        truth += similarity >= threshold
        found += dropped and similarity >= threshold
        wrong += dropped and similarity < threshold
    assert min(truth, 150 - truth) >= 10
    assert close >= 5  # such as a sketch alone would take for the same
    assert found / truth >= 0.95
    assert wrong == 0


def test_planted_twins_of_similarity_nine_tenths_are_found():
    rng = random.Random(2)
    kept = Kept(0.8)
    twins = []
    for number in range(100):
        text = document(rng, number % 2)
        kept.add(text)
        twin = altered(text, rng, 2)
        if 0.88 <= alike(text, twin) <= 0.96:
            twins.append(twin)
    assert len(twins) >= 60
    assert sum(not kept.add(twin) for twin in twins) / len(twins) >= 0.95


def test_the_first_is_kept_and_texts_are_compared_with_what_was_kept():
    """b is like a, c is like b but not like a: c stays, for b is gone."""
    rng = random.Random(3)
    a = document(rng, False)
    words = a.split(" ")
    b = " ".join([*words[:-8], *["x"] * 8])
    c = " ".join([*["y"] * 8, *b.split(" ")[8:]])
    threshold = min(alike(a, b), alike(b, c))
    assert alike(a, c) < threshold - 0.03
    kept = Kept(threshold)
    assert [kept.add(text) for text in (a, b, c)] == [True, False, True]


def test_short_texts_are_compared_whole_and_texts_without_words_are_kept():
    kept = Kept(0.8)
    assert [kept.add(text) for text in ("One two.", "one, TWO", "two one", "!!!", "!!!")] == [
        True,
        False,
        True,
        True,
        True,
    ]


def test_few_texts_are_read_again():
    rng = random.Random(4)
    kept = Kept(0.8)
    for number in range(300):
        kept.add(document(rng, number % 2))
    assert kept.reads == 0
    kept.add(kept.texts[5] + " more")
    assert kept.reads == 1


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


@pytest.mark.parametrize("chinese", [False, True])
def test_a_text_that_shares_thirteen_words_is_dropped_and_one_that_shares_twelve_stays(chinese):
    training, evaluation = planted(chinese, 13, random.Random(5))
    step = duplicates.overlap(evaluation, 13, 0.0)
    assert [step(text, Counter()) is None for text, _ in training] == [shared for _, shared in training]


def test_case_and_punctuation_make_no_difference():
    step = duplicates.overlap(["one two three four five"], 4, 0.0)
    assert step("He said: ONE, two - three (four).", Counter()) is None
    assert step("one two four three five", Counter()) is not None


def test_a_share_of_shared_text_may_be_allowed():
    text = " ".join(f"w{index}" for index in range(23))  # twenty 4-grams, five of which are in the other
    other = " ".join(f"w{index}" for index in range(8))
    assert duplicates.overlap([other], 4, 0.24)(text, Counter()) is None
    assert duplicates.overlap([other], 4, 0.25)(text, Counter()) == text


def test_a_copy_of_a_short_evaluation_text_is_dropped_but_not_what_holds_it():
    step = duplicates.overlap(["Yes, please!", "好的", "..."], 13, 0.0)
    for text, dropped in (
        ("yes please", True),
        ("好的。", True),
        ("Yes, please, sir", False),
        ("...", False),
        ("please", False),
    ):
        assert (step(text, Counter()) is None) is dropped
    assert duplicates.overlap([], 13, 0.0)("any text " * 20, Counter()) is not None
