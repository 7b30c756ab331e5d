"""Messages in the shapes that people have: names of roles, parts, weights, calls of tools."""

import json

import pytest

from llmkit.data.rows import messages
from llmkit.data.rows.reader import Unusable

USER, SAYS = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "the fox"}
NAMES = messages.roles(None)
CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}


def read(value, **role_map):
    return [turn.message for turn in messages.turns_of(value, "m", messages.roles(role_map))]


def learned(value):
    return [turn.learned for turn in messages.turns_of(value, "m", NAMES)]


def fault(value):
    with pytest.raises(Unusable) as caught:
        read(value)
    return caught.value


@pytest.mark.parametrize(
    "value",
    [
        [USER, SAYS],
        [{"from": "human", "value": "who?"}, {"from": "gpt", "value": "the fox"}],
        [{"role": "User", "content": "who?"}, {"role": " ASSISTANT", "content": "the fox"}],
        [{"speaker": "human", "text": "who?"}, {"speaker": "gpt", "text": "the fox"}],
        [{"human": "who?", "assistant": "the fox"}],
        {"role": ["user", "assistant"], "content": ["who?", "the fox"]},  # as Parquet may hold a list of tables
        json.dumps([USER, SAYS]),
        str([USER, SAYS]),
        [{**USER, "name": None, "tool_calls": None}, {**SAYS, "name": None, "tool_calls": []}],
        [{**USER, "content": [{"type": "text", "text": "who?"}]}, {**SAYS, "content": ["the fox"]}],
    ],
)
def test_every_shape_is_the_same_messages(value):
    assert read(value) == [USER, SAYS]
    assert learned(value) == [False, True]


def test_a_single_message_is_a_list_of_one():
    assert read({"from": "gpt", "value": "the fox"}) == [SAYS]


def test_other_roles_are_named_by_the_recipe():
    value = [{"role": "Patient", "content": "who?"}, {"role": "doctor", "content": "the fox"}]
    assert read(value, patient="user", doctor="assistant") == [USER, SAYS]
    assert read([USER, {"role": "user", "content": "x"}], user="assistant")[0]["role"] == "assistant"
    assert read([{"role": "tool-use", "content": json.dumps(CALL)}], **{"tool-use": "function_call"}) == [CALLED]
    found = fault(value)
    assert found.kind == "unknown role"
    assert 'set data.role_map={"Patient" = "user"}' in found.hint


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, False), (False, False), ("false", False), (0.0, False), (1, True), (True, True), (None, True)],
)
def test_a_message_with_weight_0_is_not_learned_and_does_not_keep_its_weight(key, value, expected):
    conversation = [USER, {**SAYS, key: value}]
    assert learned(conversation) == [False, expected]
    assert read(conversation) == [USER, SAYS]


def test_a_weight_between_0_and_1_is_a_fault():
    assert fault([USER, {**SAYS, "weight": 0.5}]).kind == "a weight that is neither 0 nor 1"


def test_parts_of_text_are_joined_and_images_are_refused_in_words():
    parts = [{"type": "text", "text": "look", "image": None}, {"type": "input_text", "text": "who?"}]
    turn = messages.turns_of([{**USER, "content": parts}], "m", NAMES)[0]
    assert (turn.message["content"], turn.mended) == ("look\nwho?", messages.PARTS_JOINED)
    found = fault([{**USER, "content": [*parts, {"type": "image_url", "image_url": {"url": "a.png"}}]}])
    assert str(found) == "message 1, the user's, holds a part of type image"
    assert found.kind == "a message holds more than text: image"
    assert "reads only text" in found.hint


@pytest.mark.parametrize(
    "message",
    [
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "function_call", "value": json.dumps([CALL])},
        {"role": "tool_call", "content": json.dumps({**CALL, "arguments": json.dumps(CALL["arguments"])})},
        {"role": "assistant", "content": None, "function_call": {**CALL, "arguments": json.dumps(CALL["arguments"])}},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": json.dumps([{"function": CALL}])},
    ],
)
def test_calls_of_tools_are_read_in_every_shape(message):
    assert read([message]) == [CALLED]


def test_what_tools_say_is_the_tools_turn():
    for role in ("observation", "function", "tool", "tool_response"):
        assert read([{"role": role, "content": '{"sum": 3}'}]) == [{"role": "tool", "content": '{"sum": 3}'}]
    assert read([{"role": "tool", "content": {"sum": 3}}]) == [{"role": "tool", "content": '{"sum": 3}'}]
    assert fault([{"from": "function_call", "value": "add 1 and 2"}]).kind == "a tool call that cannot be read"


@pytest.mark.parametrize("wrap", [json.dumps, str, lambda tools: tools, lambda tools: [json.dumps(t) for t in tools]])
def test_tools_are_a_list_or_text_of_it(wrap):
    bare = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    whole = {"type": "function", "function": bare}
    assert messages.tools_of(wrap([bare])) == messages.tools_of(wrap([whole])) == [whole]
    assert messages.tools_of(wrap([{**bare, "strict": None}])) == [whole]
    assert messages.tools_of(None) == messages.tools_of("") == messages.tools_of("[]") == []
    with pytest.raises(Unusable, match="are not a list of tables"):
        messages.tools_of("add, subtract")


def test_a_history_is_pairs_or_messages():
    def history(value):
        return [(turn.message, turn.learned) for turn in messages.history_of(value, "h", NAMES, True)]

    expected = [(USER, False), (SAYS, True)]
    assert history([["who?", "the fox"]]) == history('[["who?", "the fox"]]') == history([USER, SAYS]) == expected
    assert history(None) == history([]) == history("[]") == []
    with pytest.raises(Unusable, match="its history is not made of pairs"):
        history([["who?"]])
