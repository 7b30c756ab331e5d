"""What a chat template knows is found out by what it writes, not by its name."""

from types import SimpleNamespace

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llmkit.data.rows import conversations
from llmkit.data.rows.reader import Unusable
from llmkit.models.chat_template import DEVELOPER, ChatTemplate
from llmkit.recipe.data_tables import ChatData

TURN = "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
CHATML = (
    "{% for message in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CALLS = "{% for call in message.tool_calls or [] %}{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}"
TOOLS = "{% if tools %}{{ '<tools>' + tools | tojson + '</tools>\\n' }}{% endif %}" + CHATML.replace(
    "+ message.content + '", "+ message.content }}" + CALLS + "{{ '"
)
PICKY = TOOLS.replace("{% for call", "{% if message.tool_calls and not message.tool_calls[0].id %}"
                      "{{ raise_exception('no id') }}{% endif %}{% for call")  # fmt: skip
THINKS = CHATML.replace(
    "+ message.content",
    "+ ('<t>' + message.reasoning_content + '</t>' if message.reasoning_content else '') + message.content",
)
DEVELOPS = CHATML.replace("message.role +", "('boss' if message.role == 'developer' else message.role) +")
ROLES = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no ' + m.role) }}"
    "{% endif %}{% endfor %}" + CHATML
)

USER, SAYS = {"role": "user", "content": "add"}, {"role": "assistant", "content": "3"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}
RESULT = {"role": "tool", "content": "3"}


def template(text):
    def apply(messages, tools=None, tokenize=False, add_generation_prompt=False):
        rendered, _ = render_jinja_template(
            [messages], tools=tools, chat_template=text, add_generation_prompt=add_generation_prompt
        )
        return rendered[0]

    return ChatTemplate(SimpleNamespace(apply_chat_template=apply, name_or_path="mine"))


def read(*messages, **beside):
    row = {"messages": list(messages), **beside}
    return conversations.conversation(row, {"messages": "messages"}, ChatData(path="x"))


@pytest.mark.parametrize(
    ("text", "tools", "calls", "developer"),
    [
        (CHATML, False, False, False),
        (TOOLS, True, True, False),
        (PICKY, True, True, False),
        (THINKS, False, False, False),
        (DEVELOPS, False, False, True),
        (ROLES, False, False, False),
    ],
)
def test_what_a_template_knows(text, tools, calls, developer):
    found = template(text)
    assert (found.knows_tools, found.knows_calls, found.knows_developer) == (tools, calls, developer)


def test_calls_and_tools_are_passed_to_a_template_that_writes_them():
    talk = read(USER, CALL, RESULT, SAYS, tools=[{"name": "add"}])
    fitted = template(TOOLS).fit(talk)
    text = template(TOOLS).write(fitted.messages, fitted.tools)
    assert '<tools>[{"type": "function", "function": {"name": "add"}}]</tools>' in text
    assert '<call>{"name": "add", "arguments": {"a": 1}}</call>' in text
    assert fitted.unused == ()


def test_a_conversation_with_calls_is_refused_where_the_template_leaves_them_out():
    with pytest.raises(Unusable) as caught:
        template(CHATML).fit(read(USER, CALL, RESULT, SAYS))
    assert caught.value.kind == "tool calls, which the chat template leaves out"
    assert "choose a model whose chat template writes `tools` and `tool_calls`" in caught.value.hint


def test_tools_without_calls_and_fields_of_messages_are_named_where_they_have_no_place():
    thought = {**SAYS, "reasoning_content": "1 + 2", "id": "m4"}
    talk = read({**USER, "name": "Ann"}, thought, tools=[{"name": "add"}])
    fitted = template(CHATML).fit(talk)
    assert fitted.tools is None
    assert fitted.unused == ("`tools`", "`name` of a message", "`reasoning_content` of a message", "`id` of a message")
    fitted = template(THINKS).fit(talk)
    assert "`reasoning_content` of a message" not in fitted.unused
    assert "<t>1 + 2</t>3" in template(THINKS).write(fitted.messages)


def test_the_developer_is_the_system_where_the_template_does_not_know_it():
    boss, brief = {"role": "developer", "content": "be kind"}, {"role": "system", "content": "be brief"}
    fitted = template(CHATML).fit(read(boss, USER, SAYS))
    assert (fitted.messages[0], fitted.mended) == ({"role": "system", "content": "be kind"}, DEVELOPER)
    fitted = template(ROLES).fit(read(brief, boss, USER, SAYS))
    assert fitted.messages == [{"role": "system", "content": "be brief\n\nbe kind"}, USER, SAYS]
    assert fitted.learned == [False, False, True]
    fitted = template(DEVELOPS).fit(read(boss, USER, SAYS))
    assert (fitted.messages[0], fitted.mended) == (boss, None)
