"""Which documents are good enough: every rule drops what breaks it, is counted by name, and leaves good text alone."""

# ruff: noqa: RUF001  (full-width punctuation is what is tested)

import random
from collections import Counter

import pytest

from llmkit.data.cleaning import filters
from llmkit.errors import UserError
from llmkit.recipe.cleaning import Clean

_WORDS = (
    "river stone bridge town market bread morning people weather winter garden letter window mountain harbour "
    "teacher village summer kitchen island forest journey candle mirror shadow silver winding narrow quiet "
    "distant golden"
)
WORDS = _WORDS.split()
GLUE = ["the", "of", "and", "that", "have", "with", "be", "to"]
CHARACTERS = [chr(0x4E00 + 37 * number) for number in range(500)]


def sentence(rng, number=12):
    return " ".join(rng.choice(GLUE if rng.random() < 0.4 else WORDS) for _ in range(number)).capitalize() + "."


def chinese(rng, number=30):
    return "".join(rng.choices(CHARACTERS, k=number)) + rng.choice(["的。", "是！", "在？"])


def good(rng):
    make = chinese if rng.random() < 0.5 else sentence
    return "\n".join(" ".join(make(rng) for _ in range(3)) for _ in range(5))


def judged(step, text):
    count = Counter()
    return step(text, count), count


def planted(step, spoil, rule, number=100):
    """Recall and precision of one rule among as many good documents as bad ones; the report must name the rule."""
    rng = random.Random(rule)
    found = wrong = 0
    for _ in range(number):
        kept, count = judged(step, spoil(good(rng), rng))
        found += kept is None and set(count) >= {rule}
        wrong += judged(step, good(rng))[0] is None
    return found / number, found / max(found + wrong, 1)


# ---- C4 ------------------------------------------------------------------------------------------------------------

C4_PAGES = {
    "lorem ipsum": lambda text, rng: text + "\nLorem ipsum dolor sit amet, it is said here.",
    "curly bracket": lambda text, rng: text + "\nThe function is written as f(x) { return x; } in the book.",
    "bad words": lambda text, rng: (
        text + rng.choice(["\nThis is a very dirtyword, my dear friend.", "\n这是一个脏话的句子。"])
    ),
    "few sentences": lambda text, rng: (
        "\n".join(line[:-1] for line in text.split("\n")[:-1]) + "\nThis is one sentence, no more."
    ),
}


@pytest.mark.parametrize("rule", C4_PAGES)
def test_pages_that_c4_refuses_are_dropped(rule):
    step = filters.c4(Clean(c4=True, c4_bad_words=("dirtyword", "脏话")))
    recall, precision = planted(step, C4_PAGES[rule], rule)
    assert recall >= 0.95
    assert precision >= 0.95


def test_lines_that_c4_refuses_are_dropped_and_counted():
    keep = ["The first line is long enough to stay.", "他说今天的天气很好。", '"Is it?" asked the old man of the sea."']
    text = "\n".join(
        [
            keep[0],
            "a headline without its full stop",
            "Too short, this.",
            keep[1],
            "短。",
            keep[2],
            "You must switch on Javascript to see this page.",
            "We ask that you read our privacy policy first.",
            "",
        ]
    )
    left, count = judged(filters.c4(Clean(c4=True)), text)
    assert left == "\n".join(keep)
    assert count == {
        "lines without a full stop": 1,
        "short lines": 2,
        "lines on Javascript": 1,
        "lines on policies": 1,
    }


def test_sentences_are_counted_in_english_and_chinese():
    assert judged(filters.c4(Clean(c4=True)), "One two three four five. Six seven! Eight nine?")[0]
    assert judged(filters.c4(Clean(c4=True)), "One two three four five at 3.5 km. Six seven!")[0] is None
    assert judged(filters.c4(Clean(c4=True)), "他说：“好。”我们走吧！去哪里？")[0]
    assert judged(filters.c4(Clean(c4=True)), "他说我们走吧！去哪里？")[0] is None
    assert judged(filters.c4(Clean(c4=True, c4_min_sentences=2)), "他说我们走吧！去哪里？")[0]


def test_marks_of_citation_go_and_a_word_that_holds_a_bad_one_stays():
    step = filters.c4(Clean(c4=True, c4_min_sentences=1, c4_bad_words=("ass",)))
    assert judged(step, "The pass is high and narrow.[1][citation needed]")[0] == "The pass is high and narrow."
    assert judged(step, "The ASS is an animal of burden.")[0] is None


# ---- Gopher --------------------------------------------------------------------------------------------------------

GOPHER = {
    "few words": lambda text, rng: text[: rng.randint(20, 45)],
    "mean length of words": lambda text, rng: " ".join(rng.choice(["a", "of", "it", "to"]) for _ in range(100)),
    "symbols": lambda text, rng: text + " #tag" * 80,
    "bullet lines": lambda text, rng: "\n".join(f"{rng.choice('•-*')} {line}" for line in text.split("\n")),
    "ellipsis lines": lambda text, rng: "\n".join(f"{line}{rng.choice(['...', '…'])}" for line in text.split("\n")),
    "words without letters": lambda text, rng: f"the of {' '.join(str(rng.randint(100, 99999)) for _ in range(300))}",
    "stop words": lambda text, rng: " ".join(rng.choices(WORDS, k=100)),
}


@pytest.mark.parametrize("rule", GOPHER)
def test_documents_that_gopher_refuses_are_dropped(rule):
    recall, precision = planted(filters.gopher(Clean(gopher=True)), GOPHER[rule], rule)
    assert recall >= 0.95
    assert precision >= 0.95


def test_gophers_thresholds_can_be_moved():
    text = sentence(random.Random(0), 60)
    assert judged(filters.gopher(Clean(gopher=True)), text)[0] == text
    for keys, rule in [
        ({"gopher_min_words": 61}, "few words"),
        ({"gopher_max_words": 59}, "many words"),
        ({"gopher_max_mean_word_length": 4}, "mean length of words"),
        ({"gopher_min_stop_words": 9}, "stop words"),
    ]:
        assert judged(filters.gopher(Clean(gopher=True, **keys)), text) == (None, {rule: 1})
    german = " ".join(["Haus", "Baum", "Straße", "gehen"] * 20)
    assert judged(filters.gopher(Clean(gopher=True)), german)[0] is None
    assert judged(filters.gopher(Clean(gopher=True, gopher_min_stop_words=0)), german)[0] == german


def distinct(rng, number=200):
    return " ".join(f"{rng.choice(WORDS)}{place}" for place in range(number))


REPETITION = {
    "repeated lines": lambda text, rng: "\n".join([*text.split("\n"), *[sentence(rng)] * 4]),
    "characters in repeated lines": lambda text, rng: "\n".join([*text.split("\n")] + [distinct(rng, 90)] * 2),
    "most frequent 2-gram": lambda text, rng: " ".join(f"market town {distinct(rng, 3)}" for _ in range(40)),
    "repeated 5-grams": lambda text, rng: (
        f"{distinct(rng)} {distinct(random.Random(7), 60)} x {distinct(random.Random(7), 60)}"
    ),
}


@pytest.mark.parametrize("rule", REPETITION)
def test_documents_that_repeat_themselves_are_dropped(rule):
    recall, precision = planted(filters.gopher_repetition(Clean(gopher_repetition=True)), REPETITION[rule], rule)
    assert recall >= 0.95
    assert precision >= 0.95


def test_paragraphs_may_repeat_themselves_where_their_lines_do_not_count():
    table = Clean(gopher_repetition=True, gopher_max_duplicates=(1.0, 0.3, 1.0, 0.2), gopher_max_top_ngrams=(1.0,) * 3)
    rng = random.Random(0)
    long, other = distinct(rng, 30), distinct(rng, 40)
    assert judged(filters.gopher_repetition(table), "\n\n".join(["so it\ngoes"] * 2 + [other]))[1] == {
        "repeated paragraphs": 1
    }
    assert judged(filters.gopher_repetition(table), "\n\n".join([long, long, other, "a", "b"]))[1] == {
        "characters in repeated paragraphs": 1
    }


def test_a_repeated_ngram_counts_each_character_once():
    """`ha ha ha ha` is four times two letters, however many 2-grams cover it: a share of 8 in 8 + 32."""
    text = "ha ha ha ha " + " ".join(f"word{place:04}" for place in range(4))
    limits = {"gopher_max_duplicate_ngrams": (1.0,) * 6}
    kept = Clean(gopher_repetition=True, gopher_max_top_ngrams=(0.2, 1.0, 1.0), **limits)
    dropped = Clean(gopher_repetition=True, gopher_max_top_ngrams=(0.19, 1.0, 1.0), **limits)
    assert judged(filters.gopher_repetition(kept), text)[0] == text
    assert judged(filters.gopher_repetition(dropped), text) == (None, {"most frequent 2-gram": 1})


# ---- language and length -------------------------------------------------------------------------------------------

EUROPEAN = {
    "en": "The people of the town went to the market every morning and talked about the weather of the day before.",
    "de": "Die Leute aus der Stadt gingen jeden Morgen auf den Markt und sprachen über das Wetter vom Tag zuvor.",
    "fr": "Les gens de la ville allaient chaque matin au marché et parlaient du temps qu'il avait fait la veille.",
    "es": "La gente de la ciudad iba cada mañana al mercado y hablaba del tiempo que había hecho el día anterior.",
    "zh": "城里的人们每天早上都去市场，谈论前一天的天气，然后回家吃饭，晚上再出去散步，看看月亮。",
    "ja": "町の人々は毎朝市場に行って、前の日の天気について話しました。そして家に帰ってご飯を食べました。",
    "ru": "Жители города каждое утро ходили на рынок и говорили о погоде, которая была накануне вечером.",
}


def test_languages_that_are_not_asked_for_are_dropped_by_name():
    step = filters.language(Clean(languages=("en", "zh")))
    for code, text in EUROPEAN.items():
        kept, count = judged(step, text)
        assert (kept, count) == ((text, {}) if code in ("en", "zh") else (None, {code: 1}))


def test_a_choice_that_is_not_sure_enough_is_dropped_and_an_unknown_language_is_an_error():
    mixed = " ".join(EUROPEAN[code] for code in ("en", "en", "de"))
    assert judged(filters.language(Clean(languages=("en",), language_confidence=0.0)), mixed)[0] == mixed
    assert judged(filters.language(Clean(languages=("en",), language_confidence=1.0)), mixed) == (None, {"unsure": 1})
    with pytest.raises(UserError, match="py3langid does not know xx"):
        filters.language(Clean(languages=("en", "xx")))


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({"min_characters": 5}, ["12345", "天气很好吗", "a b c d e f"]),
        ({"max_characters": 5}, ["a", "12345", "天气很好吗"]),
        ({"min_words": 5}, ["天气很好吗", "a b c d e f"]),
        ({"max_words": 5, "min_words": 2}, ["天气很好吗"]),
    ],
)
def test_length_is_counted_in_characters_or_words_and_a_chinese_character_is_a_word(keys, kept):
    step = filters.length(Clean(**keys))
    assert [text for text in ("a", "12345", "天气很好吗", "a b c d e f") if step(text, Counter())] == kept


def test_length_names_the_limit():
    assert judged(filters.length(Clean(min_characters=5)), "abc")[1] == {"few characters": 1}
    assert judged(filters.length(Clean(max_words=1)), "a b")[1] == {"many words": 1}
