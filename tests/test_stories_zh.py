"""recipes/tiny/stories_zh.py: its stories are whole, and its checker refuses every kind of damage."""

import gzip
import importlib
import json
import random
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "recipes" / "tiny"
sys.path.insert(0, str(FOLDER))
stories = importlib.import_module("stories_zh")

TEXTS = gzip.decompress((FOLDER / "stories_zh.txt.gz").read_bytes()).decode().splitlines()
SOME = TEXTS[::25]  # 160 stories to damage
XIAOYU = (
    "从前，有一个勇敢的小女孩，名叫小雨。小雨和妈妈住在一座古老的磨坊里。"
    "一天早晨，小雨弄丢了一只红色的风筝，很想把风筝找回来。后来，她看见风筝压在磨坊旁边的一块大石头下面。"
    "小雨试了试，可是她没办法搬开石头。就在这时，她遇见了一头年老的毛驴。"
    "毛驴在石头旁边挖了一个洞。洞里灌满了泥水，风筝陷了进去。"
    "小雨抱了抱毛驴，什么也没有带回磨坊。妈妈安慰了小雨，可是她一直没有忘记风筝。"
)


def sentences(text):
    return re.findall("[^。]*。", text)


def replaced(text, old, new):
    """The text with one mention replaced, for every mention in turn."""
    return [text[: m.start()] + new + text[m.end() :] for m in re.finditer(old, text)]


def other(value, values):
    return values[(values.index(value) + 1) % len(values)]


def test_a_seed_gives_its_stories():
    assert stories.write_stories(count=10) == TEXTS[:10]
    assert stories.write_stories(seed=2, count=10) != TEXTS[:10]


def test_the_stories_are_many_and_different_and_short():
    assert len(TEXTS) == len(set(TEXTS)) == 4_000
    assert all(150 <= len(text) <= 215 for text in TEXTS)
    assert 0.6 <= sum(text.startswith("从前，") for text in TEXTS) / len(TEXTS) <= 0.7
    parsed = [stories.parse(text) for text in TEXTS]
    assert 0.45 <= sum(story.happy for story in parsed) / len(parsed) <= 0.55
    for slot, nouns in (("kind", stories.KINDS), ("thing", stories.SLOTS["thing"])):
        assert {getattr(story, slot) for story in parsed} == set(nouns)
    told = [sum(story.kind == kind for story in parsed) for kind in stories.KINDS]
    assert max(told) < 2 * min(told)  # no kind is drawn more often for sharing its measure word with few


def test_the_checker_accepts_every_story_and_new_ones():
    new = stories.write_stories(seed=123, count=500)
    assert not set(new) & set(TEXTS)
    assert [fault for text in [*TEXTS, *new] for fault in stories.check(text)] == []


def test_parse_gives_the_facts():
    assert stories.check(XIAOYU) == []
    assert stories.parse(XIAOYU) == stories.Story(
        name="小雨",
        kind="女孩",
        pronoun="她",
        home="一座古老的磨坊里",
        wish="toy",
        thing="风筝",
        obstacle="一块大石头下面",
        helper="年老的毛驴",
        happy=False,
    )
    assert stories.parse(XIAOYU.replace("陷了进去", "飞了出来")) is None


def other_name(text, story):
    return replaced(text, story.name, other(story.name, stories.SLOTS["name"]))


def other_pronoun(text, story):
    return [damaged for he in "他她它" if he != story.pronoun for damaged in replaced(text, story.pronoun, he)]


def other_thing(text, story):
    return replaced(text, story.thing, other(story.thing, tuple(stories.WISHES[story.wish])))


def other_helper(text, story):
    helper = next(helper for helper in stories.HELPERS if story.helper.endswith(helper))
    return replaced(text, helper, other(helper, tuple(stories.HELPERS)))


def other_place(text, story):
    place = next(place for place, home in stories.PLACES.items() if home == story.home)
    return replaced(text, place, other(place, tuple(stories.PLACES)))


def other_child(text, story):
    swaps = {"男孩": "女孩", "女孩": "男孩"}
    return replaced(text, story.kind, swaps[story.kind]) if story.kind in swaps else []


def other_measure_word(text, story):
    """Of the hero, of what is wished for where it is counted, and of the helper."""
    found = list(re.finditer("[一那]([个只头匹条面顶支盏把辆架株位])[^。]{0,6}(的小?)", text))
    assert len(found) >= 2
    return [text[: m.start(1)] + other(m[1], "个只头匹条面顶支盏把辆架株位") + text[m.end(1) :] for m in found]


def no_ending(text, story):
    parts = sentences(text)
    return ["".join(parts[:stop]) for stop in range(len(parts))] + [text[:-1], text[:-5]]


def a_sentence_left_out(text, story):
    parts = sentences(text)
    return ["".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts))]


def two_sentences_swapped(text, story):
    parts = sentences(text)
    pairs = [(i, j) for j in range(len(parts)) for i in range(j)]
    return ["".join(parts[j if k == i else i if k == j else k] for k in range(len(parts))) for i, j in pairs]


def sentences_shuffled(text, story):
    parts = sentences(text)
    shuffled = random.Random(text).sample(parts, len(parts))
    return ["".join(shuffled)] if shuffled != parts else []


def going_on(text, story):
    first, last = sentences(text)[0], sentences(text)[-1]
    return [f"{text} ", f"{text}后来", text + last, text + first, text + TEXTS[0]]


def an_unknown_sentence(text, story):
    parts = sentences(text)
    return ["".join([*parts[:i], "月亮很圆。", *parts[i:]]) for i in range(len(parts) + 1)]


def an_unknown_character(text, story):
    return [text[:i] + "嗯" + text[i + 1 :] for i in range(0, len(text), 7)]


def half_width_punctuation(text, story):
    return replaced(text, "，", ",")


def _told(text, story):
    """The turn that a story tells, and how it came out."""
    helper = next(helper for helper in stories.HELPERS if story.helper.endswith(helper))
    facts = {"name": story.name, "thing": story.thing, "helper": helper}
    turns = [turn for obstacle in stories.OBSTACLES for turn in obstacle.turns]
    return [tuple(each.format(**facts) for each in turn) for turn in turns]


def the_other_outcome(text, story):
    """A happy ending after a failed turn, or a sad one after a success."""
    turns = [turn for turn in _told(text, story) if turn[0] in text and (turn[1] in text or turn[2] in text)]
    assert len(turns) == 1
    _, won, lost = turns[0]
    return [text.replace(won, lost) if story.happy else text.replace(lost, won)]


def another_obstacles_turn(text, story):
    deeds = [deed for deed, _, _ in _told(text, story)]
    (mine,) = [deed for deed in deeds if deed in text]
    return [text.replace(mine, deed) for deed in deeds if deed != mine]


@pytest.mark.parametrize(
    "damage",
    [
        other_name,
        other_pronoun,
        other_thing,
        other_helper,
        other_place,
        other_child,
        other_measure_word,
        no_ending,
        a_sentence_left_out,
        two_sentences_swapped,
        sentences_shuffled,
        going_on,
        an_unknown_sentence,
        an_unknown_character,
        half_width_punctuation,
        the_other_outcome,
        another_obstacles_turn,
    ],
    ids=lambda damage: damage.__name__,
)
def test_the_checker_refuses(damage):
    tried = 0
    for text in SOME:
        for damaged in damage(text, stories.parse(text)):
            assert damaged != text
            assert len(stories.check(damaged)) == 1, damaged
            assert stories.parse(damaged) is None
            tried += 1
    assert tried >= 10, tried


@pytest.mark.parametrize(
    ("damaged", "fault"),
    [
        (lambda text: text.replace("小雨试了试", "小红试了试"), "name was '小雨', now '小红'"),
        (lambda text: text.replace("可是她一直", "可是它一直"), "he was '她', now '它'"),
        (lambda text: text.replace("一头年老", "一只年老"), "helper_measure was '只', now '头'"),
        (lambda text: text.rpartition("妈妈安慰")[0], "the story stops before its ending"),
        (lambda text: text + "小雨睡着了。", "the text goes on after the ending: '小雨睡着了。'"),
        (
            lambda text: text.replace("小雨试了试", "小雨唱了唱"),
            "unknown sentence: '小雨唱了唱，可是她没办法搬开石头。'",
        ),
        (lambda text: text[: len(text) // 3], "characters, not 140 to 230"),
    ],
)
def test_the_fault_says_what_is_wrong(damaged, fault):
    assert fault in stories.check(damaged(XIAOYU))[0]


def test_the_stories_of_a_model_are_judged_from_what_generate_wrote(tmp_path):
    told = [XIAOYU, TEXTS[0], XIAOYU.replace("可是她一直", "可是它一直")]
    rows = [json.dumps({"prompt": text[:2], "completion": text[2:]}, ensure_ascii=False) for text in told]
    (tmp_path / "told.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    first, *faults = stories.judge(tmp_path / "told.jsonl").splitlines()
    assert first == "3 stories, 2 consistent, 1 copies"
    assert len(faults) == 1
    assert faults[0].startswith("he was '她', now '它'")


def test_the_files_are_those_that_the_writer_writes(tmp_path):
    stories.write_file(tmp_path)
    assert gzip.decompress((tmp_path / "stories_zh.txt.gz").read_bytes()).decode().splitlines() == TEXTS
