"""Turns are joined, cut off and left out where that takes no guess; whatever takes one is a fault."""

import pytest

from llmkit.data.rows import turns
from llmkit.data.rows.messages import Turn
from llmkit.data.rows.reader import Unusable


def speak(text):
    """Make turns of letters: each says its letter and number; a small `x` is an answer that is not learned."""
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "x": "assistant", "t": "tool"}
    return [
        Turn({"role": roles[letter], "content": f"{letter}{number}"}, letter == "a")
        for number, letter in enumerate(text, 1)
    ]


def said(text, answered=True):
    found, mended = turns.mend(speak(text), answered)
    return [turn.message["content"] for turn in found], mended


@pytest.mark.parametrize("text", ["ua", "sua", "uaua", "sdua", "dua", "uatta", "uatata", "uxua", "uata"])
def test_turns_in_order_stay_as_they_are(text):
    assert said(text) == ([turn.message["content"] for turn in speak(text)], [])


@pytest.mark.parametrize(
    ("text", "expected", "mended"),
    [
        ("uua", ["u1\n\nu2", "a3"], [turns.JOINED]),
        ("uaaua", ["u1", "a2\n\na3", "u4", "a5"], [turns.JOINED]),
        ("ssua", ["s1\n\ns2", "u3", "a4"], [turns.JOINED]),
        ("uau", ["u1", "a2"], [turns.LAST_CUT_OFF]),
        ("uauu", ["u1", "a2"], [turns.JOINED, turns.LAST_CUT_OFF]),
        ("uat", ["u1", "a2"], [turns.LAST_CUT_OFF]),
        ("aua", ["u2", "a3"], [turns.FIRST_LEFT_OUT]),
        ("saua", ["s1", "u3", "a4"], [turns.FIRST_LEFT_OUT]),
        ("auuau", ["u2\n\nu3", "a4"], [turns.JOINED, turns.FIRST_LEFT_OUT, turns.LAST_CUT_OFF]),
    ],
)
def test_what_takes_no_guess_is_mended(text, expected, mended):
    assert said(text) == (expected, mended)


@pytest.mark.parametrize("text", ["", "u", "a", "s", "su", "sa", "usa", "uta", "tua", "uatua", "au", "uasua"])
def test_what_takes_a_guess_is_a_fault(text):
    with pytest.raises(Unusable) as caught:
        said(text)
    assert caught.value.kind == "roles out of turn"


def test_two_answers_of_which_one_is_not_learned_are_not_joined():
    with pytest.raises(Unusable, match="one of them is not to be learned"):
        said("uxaua")


def test_calls_of_tools_are_joined_too():
    calls = [Turn({"role": "assistant", "content": "", "tool_calls": [name]}, True) for name in ("add", "halve")]
    found, _ = turns.mend([*speak("u"), *calls, *speak("tta")], True)
    assert [turn.role for turn in found] == ["user", "assistant", "tool", "tool", "assistant"]
    assert found[1].message == {"role": "assistant", "content": "", "tool_calls": ["add", "halve"]}


@pytest.mark.parametrize(
    ("text", "expected", "mended"),
    [
        ("u", ["u1"], []),
        ("suau", ["s1", "u2", "a3", "u4"], []),
        ("uat", ["u1", "a2", "t3"], []),
        ("ua", ["u1"], [turns.ANSWER_LEFT_OUT]),
        ("uata", ["u1", "a2", "t3"], [turns.ANSWER_LEFT_OUT]),
        ("au", ["u2"], [turns.FIRST_LEFT_OUT]),
        ("uu", ["u1\n\nu2"], [turns.JOINED]),
    ],
)
def test_a_conversation_to_answer_ends_before_the_answer(text, expected, mended):
    assert said(text, answered=False) == (expected, mended)
