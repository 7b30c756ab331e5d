"""recipes/tiny/lessons.py: what it writes is what is committed, and every answer in it follows from its story."""

import csv
import gzip
import importlib
import io
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "recipes" / "tiny"
sys.path.append(str(FOLDER))
lessons = importlib.import_module("lessons")
stories = importlib.import_module("stories")

NAMES = ("stories.txt", "questions.json")
PACKED = ("tags.conll.gz", "choices.jsonl.gz", "summaries.csv.gz", "chats.jsonl.gz")


def content(file):
    raw = file.read_bytes()
    return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("ascii")


def rows(name):
    return [json.loads(line) for line in content(FOLDER / name).splitlines()]


TEXTS = content(FOLDER / "stories.txt").splitlines()
STORIES = [stories.parse(text) for text in TEXTS]
QUESTIONS = json.loads(content(FOLDER / "questions.json"))
CHOICES, CHATS = rows("choices.jsonl.gz"), rows("chats.jsonl.gz")
SUMMARIES = list(csv.DictReader(io.StringIO(content(FOLDER / "summaries.csv.gz"))))
TAGS = [
    [tuple(line.split(" ")) for line in block.splitlines()]
    for block in content(FOLDER / "tags.conll.gz").rstrip("\n").split("\n\n")
]
LILY = (
    "Once upon a time there was a shy fox named Lily. Lily lived in an old mill with her mother. "
    "One day Lily lost her red kite and wanted it back. "
    "At last she saw the kite under a heavy stone near the mill. "
    "Lily tried, but she could not lift the stone. Just then she met an old goat. "
    "The goat dug a hole beside the stone. The hole filled with mud, and the kite sank into it. "
    "Lily hugged the goat and carried nothing home to the mill. "
    "Her mother was kind, but Lily never forgot the kite."
)
LILYS = stories.parse(LILY)


def test_the_committed_files_are_what_is_written(tmp_path):
    lessons.write_files(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*NAMES, *PACKED}
    for name in (*NAMES, *PACKED):
        assert content(tmp_path / name) == content(FOLDER / name), name


def test_the_files_are_small_and_have_their_rows():
    assert all((FOLDER / name).stat().st_size < 400_000 for name in PACKED)
    assert (len(TAGS), len(CHOICES), len(SUMMARIES), len(CHATS)) == (500, 1_000, 1_000, 1_000)


def test_more_stories_change_nothing_about_the_first():
    few, more = lessons.contents(count=20), lessons.contents(count=40)
    for name in PACKED:
        assert more[name].startswith(few[name]) and len(more[name]) > len(few[name])


def test_the_seed_throws_the_dice():
    one, other = (lessons.choices(LILY, LILYS, lessons.dice(LILY, seed)) for seed in (1, 2))
    assert one["context"] == other["context"]
    assert one["choices"] != other["choices"]


# ---- endings and questions


def test_the_endings_are_small_different_and_half_of_them_happy():
    assert (FOLDER / "endings.csv").stat().st_size < 400_000
    endings = list(csv.DictReader(io.StringIO(content(FOLDER / "endings.csv"))))
    assert len({row["text"].lower() for row in endings}) == len(endings) > 4_000
    labels = Counter(row["label"] for row in endings)
    assert set(labels) == {"happy", "sad"}
    assert labels["happy"] == pytest.approx(labels["sad"], rel=0.02)


@pytest.mark.parametrize("kind", ["names", "lengths", "pronouns"])
def test_nothing_but_what_happens_tells_the_endings_apart(kind):
    endings = list(csv.DictReader(io.StringIO(content(FOLDER / "endings.csv"))))
    told = {
        "names": lambda text: re.search(r"(?<=[a-z] )(?!I\b)[A-Z][a-z]+", text) is not None,
        "lengths": lambda text: len(text.split()) > 10,
        "pronouns": lambda text: re.search(r"\b(she|her)\b", text.lower()) is not None,
    }[kind]
    shares = [np.mean([told(row["text"]) for row in endings if row["label"] == label]) for label in ("happy", "sad")]
    assert shares[0] == pytest.approx(shares[1], abs=0.1)


def test_the_answers_stand_where_they_are_said_to_stand():
    (article,) = QUESTIONS["data"]
    assert QUESTIONS["version"] == "v2.0"
    assert [paragraph["context"] for paragraph in article["paragraphs"]] == TEXTS[:1_500]
    qas = [(paragraph["context"], qa) for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
    assert len({qa["id"] for _, qa in qas}) == len(qas) == 6_000
    assert sum(qa["is_impossible"] for _, qa in qas) == 1_500
    for context, qa in qas:
        assert qa["is_impossible"] == (not qa["answers"])
        for answer in qa["answers"]:
            assert answer["text"]
            assert context[answer["answer_start"] :].startswith(answer["text"])


def test_the_answers_are_the_facts_of_the_story():
    asked = dict.fromkeys(("Where did", "What did", "Who tried", "Who is"), 0)
    for paragraph in QUESTIONS["data"][0]["paragraphs"]:
        story = stories.parse(paragraph["context"])
        facts = dict(zip(asked, (story.home, story.thing, story.helper, story.name), strict=True))
        for qa in paragraph["qas"]:
            start = " ".join(qa["question"].split()[:2])
            if start in facts and not qa["is_impossible"]:
                assert [answer["text"] for answer in qa["answers"]] == [facts[start]]
                asked[start] += 1
            if qa["is_impossible"]:  # a stranger, or something that is not told of anybody
                assert story.name not in qa["question"] or qa["question"].startswith("How old")
    assert min(asked.values()) > 500


# ---- tags


def mentions(tagged):
    """(tag, words) of every mention, read as IOB2: one begins at B, and I goes on with it."""
    found = []
    for word, tag in tagged:
        if tag.startswith("B-"):
            found.append((tag[2:], [word]))
        elif tag.startswith("I-"):
            assert found and found[-1][0] == tag[2:]
            found[-1][1].append(word)
        else:
            assert tag == "O"
            found.append(("O", []))  # so that no I can follow
    return [(kind, " ".join(words)) for kind, words in found if kind != "O"]


def test_the_tags_of_a_story():
    found = mentions(lessons.tags(LILY, LILYS))
    who = Counter(words for kind, words in found if kind == "WHO")
    where = Counter(words for kind, words in found if kind == "WHERE")
    assert who == {"Lily": LILY.count("Lily"), "old goat": 1, "goat": 2}
    assert where == {"old mill": 1, "mill": 2}


def test_the_tagged_words_are_those_of_the_story():
    for tagged, text in zip(TAGS, TEXTS, strict=False):
        assert "".join(word for word, _ in tagged) == text.replace(" ", "")
        assert all(re.fullmatch(r"\w+|[.,]", word) for word, _ in tagged)


def test_every_mention_is_tagged_and_nothing_else():
    for tagged, story in zip(TAGS, STORIES, strict=False):
        helper, place = story.helper.split()[1:], story.home.split()[-2:]
        kinds = {story.name: "WHO", helper[-1]: "WHO", place[-1]: "WHERE"}
        told = [(kinds[word], word) for word, _ in tagged if word in kinds]
        found = mentions(tagged)
        assert [(kind, words.split()[-1]) for kind, words in found] == told
        longer = {words for _, words in found if " " in words}
        assert longer == {" ".join(helper), " ".join(place)}


def test_the_words_alone_do_not_say_the_tag():
    tags = {}
    for word, tag in (pair for tagged in TAGS for pair in tagged):
        tags.setdefault(word, Counter())[tag[0]] += 1
    assert {"old", "green", "stone", "cheerful", "goat", "mill"} <= {word for word in tags if len(tags[word]) > 1}


# ---- choices


def test_one_choice_ends_the_story_and_the_others_do_not():
    for row, text in zip(CHOICES, TEXTS, strict=False):
        whole = [f"{row['context']} {choice}" for choice in row["choices"]]
        assert len(set(whole)) == 4
        assert whole[row["label"]] == text
        assert [not stories.check(each) for each in whole] == [i == row["label"] for i in range(4)]


def test_the_choices_alone_do_not_say_which_is_right():
    """Every one speaks of the hero; two end well and two badly, one of each with the details of the story."""
    known = {*stories.SLOTS["thing"], *stories.SLOTS["helper"], *stories.PLACES}
    for row, story in zip(CHOICES, STORIES, strict=False):
        own = {story.thing, story.helper.split()[-1], story.home.split()[-1]}
        words = [set(re.findall(r"\w+", choice)) for choice in row["choices"]]
        assert all(story.name in bag for bag in words)
        kinds = {(bag & known <= own, bool(bag & {"without", "nothing", "no"})) for bag in words}
        assert len(kinds) == 4
        others = [bag & known for bag in words if not bag & known <= own]
        assert not own & set.union(*others)
        assert len(set.union(*others)) == 3
    labels = Counter(row["label"] for row in CHOICES)
    assert all(200 < labels[i] < 300 for i in range(4))


def test_no_single_word_gives_the_choice_away():
    right, every = Counter(), Counter()
    for row in CHOICES:
        for number, choice in enumerate(row["choices"]):
            words = set(re.findall(r"\w+", choice))
            every.update(words)
            right.update(words if number == row["label"] else ())
    common = [word for word in every if every[word] > 100]
    assert len(common) > 50
    for word in common:
        assert 0.15 < right[word] / every[word] < 0.35, word


# ---- summaries


def test_the_summary_of_a_story():
    assert lessons.summary(LILYS) == "Lily wanted her kite back, but an old goat could not help her."
    happy = LILYS._replace(happy=True, name="Ben", pronoun="he", wish="cake", thing="pie")
    assert lessons.summary(happy) == "Ben wanted to bake a pie, and an old goat helped him."


def test_a_summary_follows_from_what_its_story_still_says():
    for row, text, story in zip(SUMMARIES, TEXTS, STORIES, strict=False):
        first, _, rest = text.partition(". ")
        assert row == {"text": rest, "summary": lessons.summary(story)}
        assert story.name in first
        assert all(fact in rest for fact in (story.name, story.thing, story.helper))
        assert ("could not help" in row["summary"]) is not story.happy


# ---- chats


def test_a_chat_asks_what_questions_json_asks():
    turns = Counter()
    for row, paragraph in zip(CHATS, QUESTIONS["data"][0]["paragraphs"], strict=False):
        messages = row["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        turns[len(messages) // 2] += 1
        told, _, first = messages[0]["content"].partition("\n\n")
        assert told == paragraph["context"]
        said = [first, *(message["content"] for message in messages[1:])]
        for question, answer, qa in zip(said[::2], said[1::2], paragraph["qas"], strict=False):
            assert question == qa["question"]
            assert (answer == "The story does not say.") is qa["is_impossible"]
            assert re.fullmatch(r"[A-Z][^.]*\.", answer)
            assert all(right["text"].lower() in answer.lower() for right in qa["answers"])
    assert set(turns) == {2, 3}
    assert min(turns.values()) > 400


@pytest.mark.parametrize(
    ("story", "answer"),
    [
        (LILYS, "Lily wanted to have the kite back."),
        (LILYS, "The kite was under a heavy stone."),
        (LILYS, "Lily lived in an old mill."),
        (LILYS, "An old goat tried to help Lily."),
        (LILYS._replace(wish="cake", thing="pie", obstacle="there was no flour"), "Lily wanted to bake a pie."),
        (LILYS._replace(wish="cake", obstacle="there was no flour"), "It was hard because there was no flour."),
    ],
)
def test_an_answer_is_a_sentence(story, answer):
    asked = [each for seed in range(20) for each in lessons.questions(story, random.Random(seed))]
    assert answer in {each.sentence for each in asked}
