"""recipes/tiny/stories.py: its stories are whole, and its checker refuses every kind of damage."""

import importlib.util
import random
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "recipes" / "tiny"
spec = importlib.util.spec_from_file_location("stories", FOLDER / "stories.py")
assert spec is not None and spec.loader is not None
stories = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stories)

TEXTS = (FOLDER / "stories.txt").read_text(encoding="ascii").splitlines()
SOME = TEXTS[::10]  # 400 stories to damage
LILY = (
    "Once upon a time there was a shy fox named Lily. Lily lived in an old mill with her mother. "
    "One day Lily lost her red kite and wanted it back. "
    "At last she saw the kite under a heavy stone near the mill. "
    "Lily tried, but she could not lift the stone. Just then she met an old goat. "
    "The goat dug a hole beside the stone. The hole filled with mud, and the kite sank into it. "
    "Lily hugged the goat and carried nothing home to the mill. "
    "Her mother was kind, but Lily never forgot the kite."
)


def sentences(text):
    return re.split(r"(?<=\.) ", text)


def words_replaced(text, old, new):
    """The text with one mention of a word replaced, for every mention in turn."""
    return [text[: m.start()] + new + text[m.end() :] for m in re.finditer(rf"\b{old}\b", text)]


def other(value, values):
    return values[(values.index(value) + 1) % len(values)]


def test_a_seed_gives_its_stories():
    assert stories.write_stories(count=10) == TEXTS[:10]
    assert stories.write_stories(seed=2, count=10) != TEXTS[:10]


def test_the_stories_are_many_and_different_and_short():
    assert len(TEXTS) == len(set(TEXTS)) == 4_000
    assert all(80 <= len(text.split()) <= 120 for text in TEXTS)
    assert 0.6 <= sum(text.startswith("Once upon a time") for text in TEXTS) / len(TEXTS) <= 0.7
    assert 0.45 <= sum(stories.parse(text).happy for text in TEXTS) / len(TEXTS) <= 0.55


def test_the_checker_accepts_every_story_and_new_ones():
    new = stories.write_stories(seed=123, count=500)
    assert not set(new) & set(TEXTS)
    assert [fault for text in [*TEXTS, *new] for fault in stories.check(text)] == []


def test_parse_gives_the_facts():
    assert stories.check(LILY) == []
    assert stories.parse(LILY) == stories.Story(
        name="Lily",
        kind="fox",
        pronoun="she",
        home="in an old mill",
        wish="toy",
        thing="kite",
        obstacle="under a heavy stone",
        helper="an old goat",
        happy=False,
    )
    assert stories.parse(LILY.replace("sank into it", "sang")) is None


def other_name(text, story):
    return words_replaced(text, story.name, other(story.name, stories.BOYS + stories.GIRLS))


def other_pronoun(text, story):
    swaps = {"he": "she", "He": "She", "his": "her", "His": "Her", "him": "her"}
    swaps |= {"she": "he", "She": "He", "her": "his", "Her": "His"}
    return [damaged for old, new in swaps.items() for damaged in words_replaced(text, old, new)]


def other_thing(text, story):
    return words_replaced(text, story.thing, other(story.thing, stories.SLOTS[story.wish]))


def other_thing_of_another_wish(text, story):
    wish = other(story.wish, stories.THINGS)
    return words_replaced(text, story.thing, stories.SLOTS[wish][0])


def other_helper(text, story):
    helper = story.helper.split()[-1]
    return words_replaced(text, helper, other(helper, stories.SLOTS["helper"]))


def other_place(text, story):
    place = story.home.split()[-1]
    return words_replaced(text, place, other(place, stories.SLOTS["place"]))


def other_child(text, story):
    swaps = {"boy": "girl", "girl": "boy"}
    return words_replaced(text, story.kind, swaps[story.kind]) if story.kind in swaps else []


def no_ending(text, story):
    parts = sentences(text)
    return [" ".join(parts[:stop]) for stop in range(len(parts))] + [text[:-1], text[:-5]]


def a_sentence_left_out(text, story):
    parts = sentences(text)
    return [" ".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts))]


def two_sentences_swapped(text, story):
    parts = sentences(text)
    swapped = []
    for i in range(len(parts) - 1):
        for j in range(i + 1, len(parts)):
            order = list(range(len(parts)))
            order[i], order[j] = j, i
            swapped.append(" ".join(parts[k] for k in order))
    return swapped


def sentences_shuffled(text, story):
    parts = sentences(text)
    shuffled = random.Random(text).sample(parts, len(parts))
    return [" ".join(shuffled)] if shuffled != parts else []


def going_on(text, story):
    last = sentences(text)[-1]
    return [text + " ", f"{text} Then", f"{text} {last}", f"{text} {sentences(text)[0]}", f"{text} {TEXTS[0]}"]


def an_unknown_sentence(text, story):
    parts = sentences(text)
    return [" ".join([*parts[:i], "The moon was full.", *parts[i:]]) for i in range(len(parts) + 1)]


def an_unknown_word(text, story):
    words = text.split(" ")
    return [" ".join([*words[:i], "purple", *words[i + 1 :]]) for i in range(0, len(words), 7)]


def _outcomes(text, story):
    """Pairs of the sentence that tells how the turn came out, and the other way it might have."""
    facts = {"name": story.name, "thing": story.thing, "helper": story.helper.split()[-1]}
    for obstacle in stories.OBSTACLES:
        for turn in obstacle.turns:
            won, lost = turn.won.format(**facts), turn.lost.format(**facts)
            if (won if story.happy else lost) in text:
                yield turn, (won, lost) if story.happy else (lost, won)


def the_other_outcome(text, story):
    """A happy ending after a failed turn, or a sad one after a success."""
    damaged = [text.replace(told, untold) for _, (told, untold) in _outcomes(text, story)]
    assert damaged
    return damaged


def another_obstacles_turn(text, story):
    helper = story.helper.split()[-1]
    facts = {"name": story.name, "thing": story.thing, "helper": helper}
    told = [turn.deed.format(**facts) for o in stories.OBSTACLES for turn in o.turns]
    mine = [deed for deed in told if deed in text]
    assert len(mine) == 1
    return [text.replace(mine[0], deed) for deed in told if deed != mine[0]]


@pytest.mark.parametrize(
    "damage",
    [
        other_name,
        other_pronoun,
        other_thing,
        other_thing_of_another_wish,
        other_helper,
        other_place,
        other_child,
        no_ending,
        a_sentence_left_out,
        two_sentences_swapped,
        sentences_shuffled,
        going_on,
        an_unknown_sentence,
        an_unknown_word,
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
    assert tried >= 50, tried


@pytest.mark.parametrize(
    ("damaged", "fault"),
    [
        (lambda text: text.replace("Lily tried", "Mia tried"), "name was 'Lily', now 'Mia'"),
        (lambda text: text.replace("forgot the kite", "forgot the drum"), "thing was 'kite', now 'drum'"),
        (lambda text: text.rpartition(". ")[0] + ".", "the story stops before its ending"),
        (lambda text: text + " Lily slept.", "the text goes on after the ending: 'Lily slept.'"),
        (
            lambda text: text.replace("Lily tried", "Lily lived in an old mill with her mother. Lily tried"),
            "out of place",
        ),
        (lambda text: text.replace("Lily tried", "Lily sang"), "unknown sentence: 'Lily sang, but she could not"),
        (lambda text: text[: len(text) // 3], "words, not 60 to 140"),
    ],
)
def test_the_fault_says_what_is_wrong(damaged, fault):
    assert fault in stories.check(damaged(LILY))[0]
