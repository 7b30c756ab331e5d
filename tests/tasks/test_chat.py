"""Chat: rows become conversations, only the assistant's tokens are learned, and packing changes nothing."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import forks
import numpy as np
import pytest
import torch
from conftest import losses as logged
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    set_seed,
)

from llmkit.data.rows import conversations as reader
from llmkit.data.rows.batches import models_own
from llmkit.data.rows.summary import look
from llmkit.data.rows.table import Rows
from llmkit.data.text.documents import Documents
from llmkit.errors import UserError
from llmkit.models import tokenizer
from llmkit.recipe.data_tables import ChatData
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.speed.fused_loss import FusedLMLoss
from llmkit.tasks import chat

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
# Takes the thoughts out of all answers but the last.
THINKING = CHATML.replace(
    "message['content'] +", "(message['content'] if loop.last else message['content'].split('</t>')[-1]) +"
)
# Begins every answer with a thought that the data does not have.
PROMPTED = CHATML.replace("assistant\\n", "assistant\\n<t>")
REWRITING = "{{ messages | length }}" + CHATML
SILENT = CHATML.replace("{{ '<|im", "{%- if message['role'] in ('user', 'assistant') -%}{{ '<|im", 1).replace(
    "{%- endfor", "{%- endif -%}{%- endfor"
)
STRICT = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}" + CHATML
AS_JSON = CHATML.replace("message['content'] +", "(message['content'] | tojson) +")

USER, SAYS = {"role": "user", "content": "who saw it?"}, {"role": "assistant", "content": "the fox"}
MORE, ALSO = {"role": "user", "content": "and what?"}, {"role": "assistant", "content": "an owl"}
BRIEF = {"role": "system", "content": "be brief"}


def table(*rows):
    """Rows in memory, which stand in lines 1, 2, ... of `x.jsonl`."""
    places = [f"`x.jsonl`, line {number}" for number in range(1, len(rows) + 1)]
    return Rows(lambda: iter(zip(places, rows, strict=True)), tuple(rows[0]), {}, "", "`x.jsonl`")


def make_words(template=CHATML):
    """A byte-level tokenizer with ChatML's tokens; its end of text is not the end of a turn."""
    text = Documents(
        lambda: iter(["who saw it? the fox saw an owl and what? be brief assistant user system " * 3]), "", "`x`"
    )
    found = tokenizer.load(Tokenizer(type="byte-bpe", vocab_size=300), Model(config={}), "causal-lm", text, None)
    found.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    found.chat_template = template
    return found


@pytest.fixture(scope="module")
def words():
    return make_words()


def encode(words, *conversations, length=200, **keys):
    rows = table(*({"messages": messages} for messages in conversations))
    return chat.encode(rows, {"messages": "messages"}, words, ChatData(path="x", **keys), length)


def learned(words, *conversations, **keys):
    """Each conversation as it is learned: [[the tokens with labels]]."""
    done = encode(words, *conversations, **keys)
    return [chat.shown(done, i, words) for i in range(len(done.row))]


def settle(done, **keys):
    return chat.resolve_labels(ChatData(path="x", **keys), {}, done, {}, GPT2Config(), False)


# --- rows -> conversations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "keys", "expected"),
    [
        ("prompt messages", {}, {"messages": "messages"}),
        ("id conversations", {}, {"messages": "conversations"}),
        ("turns", {"messages_column": "turns"}, {"messages": "turns"}),
        ("prompt completion", {}, {"prompt": "prompt", "completion": "completion"}),
        (
            "instruction input output text",
            {},
            {"prompt": "instruction", "completion": "output", "input": "input"},
        ),
        ("instruction response", {}, {"prompt": "instruction", "completion": "response"}),
        ("prompt input output", {}, {"prompt": "prompt", "input": "input", "completion": "output"}),
        (
            "prompt input output",
            {"companions": False, "hold_out": "hash"},  # as in runs of earlier versions
            {"prompt": "prompt", "completion": "output"},
        ),
        (
            "messages ask say",
            {"prompt_column": "ask", "completion_column": "say"},
            {"prompt": "ask", "completion": "say"},
        ),
        (
            "ask about output",
            {"prompt_column": "ask", "input_column": "about"},
            {"prompt": "ask", "input": "about", "completion": "output"},
        ),
    ],
)
def test_columns_are_found_by_name(columns, keys, expected):
    rows = table(dict.fromkeys(columns.split(), "a"))
    assert reader.resolve_columns(ChatData(path="x", **keys), rows) == expected


@pytest.mark.parametrize(
    ("columns", "keys", "said"),
    [
        ("a b", {}, "set data.messages_column, or data.prompt_column and data.completion_column, choosing from: a, b"),
        ("prompt b", {}, "which column holds the conversations"),
        ("a b", {"messages_column": "c"}, "no column `c`\nhint: set data.messages_column to one of: a, b"),
        ("messages prompt", {"messages_column": "messages", "prompt_column": "prompt"}, "whole conversations"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(columns, keys, said):
    with pytest.raises(UserError) as caught:
        reader.resolve_columns(ChatData(path="x", **keys), table(dict.fromkeys(columns.split(), "a")))
    assert said in str(caught.value)


SHAREGPT = [{"from": "human", "value": "who saw it?"}, {"from": "gpt", "value": "the fox"}]
PAIR = {"prompt": "p", "completion": "c"}
ALPACA = {"prompt": "p", "input": "i", "completion": "c"}


@pytest.mark.parametrize(
    ("row", "columns", "expected", "given"),
    [
        ({"m": [USER, SAYS, MORE, ALSO]}, {"messages": "m"}, [USER, SAYS, MORE, ALSO], 0),
        ({"m": json.dumps([BRIEF, USER, SAYS])}, {"messages": "m"}, [BRIEF, USER, SAYS], 0),
        ({"m": SHAREGPT}, {"messages": "m"}, [USER, SAYS], 0),
        ({"m": [{"from": "system", "value": "be brief"}, *SHAREGPT]}, {"messages": "m"}, [BRIEF, USER, SAYS], 0),
        ({"m": [{**USER, "name": None}, SAYS]}, {"messages": "m"}, [USER, SAYS], 0),
        ({"p": "who saw it?", "c": "the fox"}, PAIR, [USER, SAYS], 1),
        ({"p": [BRIEF, USER, SAYS, MORE], "c": [ALSO]}, PAIR, [BRIEF, USER, SAYS, MORE, ALSO], 4),
        ({"p": "who saw it?", "i": " ", "c": "the fox"}, ALPACA, [USER, SAYS], 1),
        ({"p": "who", "i": "saw it?", "c": "the fox"}, ALPACA, [{**USER, "content": "who\n\nsaw it?"}, SAYS], 1),
    ],
)
def test_every_form_of_a_row_is_a_conversation(row, columns, expected, given):
    found = reader.conversation(row, columns, ChatData(path="x"))
    assert found.messages == expected
    assert found.learned == [i >= given and message["role"] == "assistant" for i, message in enumerate(expected)]
    assert (found.tools, found.mended) == ([], None)


def test_the_system_prompt_stands_where_there_is_none():
    columns, data = {"messages": "m"}, ChatData(path="x", system_prompt="be brief")
    assert reader.conversation({"m": [USER, SAYS]}, columns, data).messages == [BRIEF, USER, SAYS]
    long = {"role": "system", "content": "be long"}
    assert reader.conversation({"m": [long, USER, SAYS]}, columns, data).messages == [long, USER, SAYS]
    assert reader.conversation({"p": "a", "c": "b"}, PAIR, data).learned == [False, False, True]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([USER], "the roles do not take turns: user"),
        ([SAYS], "the roles do not take turns: assistant"),
        ([SAYS, USER], "the roles do not take turns: assistant, user"),
        ([USER, BRIEF, SAYS], "do not take turns"),
        ([USER, {"role": "tool", "content": "4"}, SAYS], "do not take turns"),
        ([BRIEF], "do not take turns: system"),
        (
            [USER, {"role": "bot", "content": "a"}],
            "message 2 has the role 'bot'; the roles are system, developer, user",
        ),
        ([USER, {"role": "assistant", "content": " \n"}], "message 2, the assistant's, is empty"),
        ([USER, {"role": "assistant"}], "message 2, the assistant's, is empty"),
        ([{"role": "user", "content": None}, SAYS], "message 1, the user's, is empty"),
        ([USER, {"role": "assistant", "content": 4}], "message 2, the assistant's, holds int, not text"),
        ([USER, {"role": "assistant", "content": "\ud800"}], "half a character"),
        ([], "the conversation is empty"),
        ("hello", "`messages` holds text that is not JSON"),
        ('{"role": "user"}', "a list of messages"),
        (["hello"], "a list of messages"),
        (None, "a list of messages"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(messages, said, words):
    with pytest.raises(UserError) as caught:
        encode(words, messages)
    assert "`x.jsonl`: 1 of 1 rows cannot be used: " in str(caught.value)
    assert "`x.jsonl`, line 1: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"p": "a", "c": ""}, "message 2, the assistant's, is empty"),
        ({"p": "a", "c": None}, "message 2, the assistant's, is empty"),
        ({"p": [USER], "c": []}, "the answer is empty"),
        ({"p": "a"}, "no `c`; the row has p"),
    ],
)
def test_an_empty_answer_is_refused(row, said, words):
    rows = table(row)
    with pytest.raises(UserError, match=said) as caught:
        chat.encode(rows, {"prompt": "p", "completion": "c"}, words, ChatData(path="x"), 99)
    assert "`x.jsonl`, line 1: " in str(caught.value)


def test_a_tokenizer_of_ones_own_learns_from_every_message():
    assert list(reader.texts({"m": [BRIEF, USER, SAYS]}, {"messages": "m"})) == [
        "be brief",
        "who saw it?",
        "the fox",
    ]
    assert list(reader.texts({"m": "broken"}, {"messages": "m"})) == []


# --- conversations -> tokens ------------------------------------------------------------------------------------------


def test_the_assistant_is_learned_with_the_end_of_its_turn_and_nothing_else(words):
    found = learned(words, [BRIEF, USER, SAYS, MORE, ALSO])
    assert found == [
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwho saw it?<|im_end|>\n"
        "<|im_start|>assistant\n[[the fox<|im_end|>\n]]<|im_start|>user\nand what?<|im_end|>\n"
        "<|im_start|>assistant\n[[an owl<|im_end|>\n]]"
    ]


def test_labels_stand_where_they_are_predicted(words):
    done = encode(words, [USER, SAYS])
    ids, labels = done.inputs["input_ids"][0], done.inputs["labels"][0]
    whole = words.apply_chat_template([USER, SAYS], return_dict=False)
    asked = words.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert ids.tolist() == whole[:-1]
    assert labels.tolist() == [-100] * (len(asked) - 1) + whole[len(asked) :]
    assert (done.lengths, done.cut) == ([len(whole)], [0])


@pytest.mark.parametrize("answer", ["\n two lines \n", "ünïcödé 🦊🦊", "  ", "<|im_end|> quoted", "a\n\nb"])
def test_every_byte_of_an_answer_is_learned(answer, words):
    answer = answer if answer.strip() else answer + "x"
    found = learned(words, [USER, {"role": "assistant", "content": answer}])
    assert found[0].endswith(f"<|im_start|>assistant\n[[{answer}<|im_end|>\n]]")


def test_answers_within_a_prompt_are_given_and_not_learned(words):
    rows = table({"p": [USER, SAYS, MORE], "c": [ALSO]})
    done = chat.encode(rows, {"prompt": "p", "completion": "c"}, words, ChatData(path="x"), 99)
    assert chat.shown(done, 0, words).count("[[") == 1
    assert chat.shown(done, 0, words).endswith("[[an owl<|im_end|>\n]]")


def test_a_template_that_rewrites_history_teaches_the_last_answer_alone():
    thought = {"role": "assistant", "content": "hm</t>the fox"}
    last = {"role": "assistant", "content": "ah</t>an owl"}
    words = make_words(THINKING)
    found = learned(words, [USER, thought, MORE, last], [USER, thought])
    assert found[0].count("[[") == 1
    assert "assistant\nthe fox<|im_end|>" in found[0]
    assert found[0].endswith("assistant\n[[ah</t>an owl<|im_end|>\n]]")
    assert found[1].endswith("[[hm</t>the fox<|im_end|>\n]]")
    done = encode(words, [USER, thought, MORE, last], [USER, thought], [USER, SAYS, MORE, ALSO])
    assert chat.label_counts(done, None) == {
        "several answers, the last learned": 1,
        "one answer": 1,
        "several answers": 1,
    }


def test_an_answer_begins_where_it_parts_from_its_prompt():
    assert learned(make_words(PROMPTED), [USER, SAYS])[0].endswith("assistant\n[[the fox<|im_end|>\n]]")


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (REWRITING, [USER, SAYS], "rewrites the prompt of the last answer"),
        (STRICT, [BRIEF, USER, SAYS], "the chat template refuses it: no system role"),
        (SILENT, [BRIEF, USER, SAYS], "the chat template leaves out the system message"),
        (SILENT, [USER, SAYS, {"role": "tool", "content": "4"}, ALSO], "leaves out the tool message"),
        ("", [USER, SAYS, {"role": "tool", "content": "4"}, ALSO], "the plain chat template has no role tool"),
    ],
)
def test_what_a_template_cannot_write_is_refused(template, messages, said):
    words = make_words(template)
    with pytest.raises(UserError) as caught:
        encode(words, messages)
    assert said in str(caught.value)
    assert "`x.jsonl`, line 1" in str(caught.value)
    if template is REWRITING:
        assert f"`{words.name_or_path}`" in str(caught.value)


def test_tools_speak_where_the_template_lets_them():
    calls = {"role": "assistant", "content": "4?", "tool_calls": []}
    tool = {"role": "tool", "content": 'it is "4"'}
    found = learned(make_words(AS_JSON), [USER, calls, tool, tool, ALSO])
    assert found[0].count("[[") == 2
    assert 'tool\n"it is \\"4\\""<|im_end|>' in found[0]


WITH_TOOLS = "{% if tools %}{{ 'tools ' + tools | tojson + '\\n' }}{% endif %}" + CHATML.replace(
    "message['content'] +", "message['content'] + (message.tool_calls | default([]) | tojson) +"
)
CALL = {"name": "see", "arguments": {"who": "fox"}}
CALLED = [
    {"from": "human", "value": "who saw it?"},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": "an owl"},
    {"from": "gpt", "value": "the fox"},
]


def test_calls_of_tools_are_learned_and_what_tools_say_is_not():
    words = make_words(WITH_TOOLS)
    rows = table({"messages": CALLED, "tools": json.dumps([{"name": "see"}])})
    columns = {"messages": "messages", "tools": "tools"}
    found = chat.shown(chat.encode(rows, columns, words, ChatData(path="x"), 400), 0, words)
    assert found.startswith('tools [{"type": "function", "function": {"name": "see"}}]\n<|im_start|>user')
    call = json.dumps([{"type": "function", "function": CALL}])
    assert f"assistant\n[[{call}<|im_end|>\n]]<|im_start|>tool\nan owl[]<|im_end|>" in found
    assert found.endswith("assistant\n[[the fox[]<|im_end|>\n]]")


def test_rows_that_the_template_cannot_write_are_left_out_and_counted(words):
    done = encode(words, [USER, SAYS], CALLED, [{**USER, "name": "Ann"}, SAYS])
    assert len(done.row) == len(done.keys) == 2
    assert done.skipped == {"tool calls, which the chat template leaves out": 1}
    assert done.notes == [
        "1 row left out: tool calls, which the chat template leaves out, such as `x.jsonl`, line 2",
        "1 row read without: `name` of a message, which the chat template leaves out, such as `x.jsonl`, line 3",
    ]
    assert [place for place, _ in done.source] == ["`x.jsonl`, line 1", "`x.jsonl`, line 3"]
    with pytest.raises(UserError, match="2 of 2 rows cannot be used: tool calls") as caught:
        encode(words, CALLED, CALLED)
    assert "choose a model whose chat template writes" in caught.value.hint


def test_too_many_rows_that_the_template_cannot_write_are_refused(words):
    rows = [[USER, SAYS]] * 6 + [CALLED] * 4
    with pytest.raises(UserError) as caught:
        encode(words, *rows)
    assert "data.max_skipped_fraction = 0.4" in caught.value.hint
    assert len(encode(words, *rows, max_skipped_fraction=0.4).row) == 6


def test_an_answer_of_weight_0_is_read_and_not_learned(words):
    found = learned(words, [USER, {**SAYS, "weight": 0}, MORE, ALSO])[0]
    assert "<|im_start|>assistant\nthe fox<|im_end|>" in found
    assert found.count("[[") == 1
    assert found.endswith("[[an owl<|im_end|>\n]]")
    last = learned(words, [USER, SAYS, MORE, {**ALSO, "train": False}])[0]
    assert last.count("[[") == 1
    assert "[[the fox<|im_end|>\n]]" in last
    with pytest.raises(UserError, match="rewrites every answer but the last, and the last is not to be learned"):
        encode(make_words(THINKING), [USER, {**SAYS, "content": "hm</t>the fox"}, MORE, {**ALSO, "weight": 0}])


def test_a_system_text_survives_exactly(words):
    text = "  be brief\n\n  - and kind\n"
    rows = table({"messages": [USER, SAYS], "system": text})
    done = chat.encode(rows, {"messages": "messages", "system": "system"}, words, ChatData(path="x"), 400)
    assert f"<|im_start|>system\n{text}<|im_end|>" in chat.shown(done, 0, words)


def test_earlier_runs_read_what_they_read(words):
    rows = table({"messages": [USER, {**SAYS, "weight": 0}], "system": "be brief"})
    done = chat.encode(rows, {"messages": "messages"}, words, ChatData(path="x", companions=False), 400)
    assert chat.shown(done, 0, words) == learned(words, [USER, SAYS])[0]


def test_a_tokenizer_without_a_template_gets_the_plain_one_and_keeps_it(tmp_path):
    words = make_words(None)
    assert learned(words, [BRIEF, USER, SAYS, MORE, ALSO]) == [
        "be brief\n\nUser:\nwho saw it?\n\nAssistant:\n[[the fox<|endoftext|>]]"
        "User:\nand what?\n\nAssistant:\n[[an owl<|endoftext|>]]"
    ]
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    asked = again.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert asked == "User:\nwho saw it?\n\nAssistant:\n"
    assert chat.turn_ends(again) == (again.eos_token_id,)
    assert len(again) == len(make_words())


def test_the_plain_template_begins_a_text_as_the_tokenizer_does():
    words = make_words(None)
    words.add_special_tokens({"bos_token": "<s>"})
    assert not learned(words, [USER, SAYS])[0].startswith("<s>")  # the tokenizer has one and does not write it
    words.chat_template = None
    from tokenizers.processors import TemplateProcessing

    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words.bos_token_id)]
    )
    assert learned(words, [USER, SAYS])[0].startswith("<s>User:")
    assert encode(words, [USER, SAYS]).inputs["input_ids"][0].tolist().count(words.bos_token_id) == 1


def test_a_tokenizer_with_neither_template_nor_end_of_text_is_refused():
    words = make_words(None)
    words.eos_token = None
    with pytest.raises(UserError, match="neither a chat template nor an end-of-text token"):
        encode(words, [USER, SAYS])


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(UserError, match="does not give the character offsets of its tokens"):
        encode(SimpleNamespace(is_fast=False), [USER, SAYS])


# --- truncation -------------------------------------------------------------------------------------------------------


def test_the_beginning_is_kept_and_a_row_without_labels_is_left_out_aloud(words):
    long = {"role": "user", "content": "what? " * 40}
    whole = encode(words, [USER, SAYS])
    size = whole.lengths[0]
    done = encode(words, [USER, SAYS], [long, SAYS], [USER, {**SAYS, "content": "the fox " * 40}], length=size)
    assert done.cut[0] == 0
    assert min(done.cut[1:]) > 0
    assert (done.unlearned, done.row) == ([1], [0, 1, 2])
    assert [len(done.inputs["input_ids"][i]) for i in range(3)] == [size - 1] * 3
    assert chat.shown(done, 2, words).startswith(chat.shown(whole, 0, words).partition("[[")[0] + "[[the fox")
    for evaluation in (False, True):
        part = chat.examples(done, settle(done), evaluation)
        assert sorted(part[i]["index"] for i in range(len(part))) == [0, 2]
        assert len(part.lengths) == 2
    record, warnings = look(done, {"validation": done}, {"train": {}, "validation": {}})
    assert record["train"]["unlearned_rows"] == 1
    for name in ("train", "validation"):
        assert any(
            w.startswith(f"{name}: 1 of 3 rows (33.3%) are left out: their answer does not fit") and "line 2" in w
            for w in warnings
        ), warnings


def test_nothing_left_to_learn_is_refused(words):
    done = encode(words, [{"role": "user", "content": "what? " * 40}, SAYS], length=20)
    with pytest.raises(UserError, match=r"begin after the first data.max_length tokens") as caught:
        settle(done)
    assert "`x.jsonl`" in caught.value.message


# --- packing ----------------------------------------------------------------------------------------------------------


def several(words):
    """Eight conversations of many lengths; the sixth teaches nothing."""
    answers = ["the fox " * n for n in (9, 1, 5, 2, 7)] + ["a"] + ["an owl " * n for n in (3, 4)]
    talks = [[USER, {"role": "assistant", "content": answer}] for answer in answers]
    talks[5][0] = {"role": "user", "content": "what? " * 60}
    return encode(words, *talks, length=100)


def test_packing_fills_inputs_with_whole_conversations_the_same_way_each_time(words):
    done = several(words)
    single = {i: done.inputs["input_ids"][i].tolist() for i in range(8) if i != 5}
    together = chat.packed(done, 100)
    again = chat.packed(done, 100)
    seen = []
    for n in range(len(together.row)):
        ids, positions = together.inputs["input_ids"][n].tolist(), together.inputs["position_ids"][n]
        assert len(ids) <= 100
        assert again.inputs["input_ids"][n].tolist() == ids
        starts = [*np.flatnonzero(positions == 0).tolist(), len(ids)]
        pieces = [ids[a:b] for a, b in pairwise(starts)]
        for piece, start in zip(pieces, starts, strict=False):
            number = next(i for i, own in single.items() if own == piece)
            seen.append(number)
            labels = together.inputs["labels"][n][start : start + len(piece)]
            assert labels.tolist() == done.inputs["labels"][number].tolist()
            assert positions[start : start + len(piece)].tolist() == list(range(len(piece)))
    assert sorted(seen) == sorted(single)
    total = sum(len(own) for own in single.values())
    assert -(-total // 100) <= len(together.row) < len(single)
    known = settle(done, pack=True, max_length=100)
    assert known.room == 100
    assert len(chat.examples(done, known, evaluation=False)) == len(together.row)
    assert len(chat.examples(done, known, evaluation=True)) == 7


def tiny(config_class=LlamaConfig, attention="sdpa", words=None, **keys):
    if config_class is GPT2Config:
        keys |= {"n_embd": 32, "n_layer": 2, "n_head": 2}
    elif config_class is BloomConfig:
        keys |= {"hidden_size": 32, "n_layer": 2, "n_head": 2}
    else:
        keys |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        keys |= {"num_key_value_heads": 2}
    set_seed(0)
    size = len(words) if words is not None else 64
    config = config_class(vocab_size=size, initializer_range=0.3, attn_implementation=attention, **keys)
    return AutoModelForCausalLM.from_config(config).eval()


def summed(model, batch):
    with torch.no_grad():
        return FusedLMLoss(model).losses(model, {**models_own(batch), "use_cache": False}, batch["labels"]).double()


@pytest.mark.parametrize("config_class", [GPT2Config, LlamaConfig])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_conversations_have_the_losses_that_they_have_alone(config_class, attention, words):
    done = several(words)
    model = tiny(config_class, attention, words)
    collate = chat.collator(words, model.config, 8)
    known = settle(done, pack=True, max_length=100)
    part, alone = chat.examples(done, known, evaluation=False), chat.examples(done, replace(known, room=None), False)
    batch = collate([part[i] for i in range(len(part))])
    assert "attention_mask" not in batch
    assert any(0 < len(part.inputs["input_ids"][i]) < batch["input_ids"].shape[1] for i in range(len(part)))  # padded
    packed = summed(model, batch)
    single = [summed(model, collate([alone[i]])) for i in range(len(alone))]
    expected = torch.cat([loss[loss > 0] for loss in single]).sort().values
    torch.testing.assert_close(packed[packed > 0].sort().values, expected, atol=1e-5, rtol=1e-5)
    # and a model that sees the conversations before has other ones
    mixed = summed(model, {**batch, "attention_mask": torch.ones_like(batch["input_ids"])})
    assert (mixed - packed).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("config_class", "keys", "apart"),
    [
        (GPT2Config, {}, True),
        (LlamaConfig, {}, True),
        (BloomConfig, {}, False),
        (Lfm2Config, {"layer_types": ["conv", "full_attention"]}, False),
    ],
)
def test_packing_is_refused_where_conversations_would_mix(config_class, keys, apart):
    model = tiny(config_class, "eager", **keys)
    known = chat.ChatSettings((), 100)
    if apart:
        chat.prepare_model(model.train(), known)
        assert model.training
    else:
        with pytest.raises(UserError, match="lets a conversation see the earlier ones"):
            chat.prepare_model(model, known)
    chat.prepare_model(model, chat.ChatSettings((), None))  # one conversation an input is always fine


# --- losses, metrics, what ends a turn --------------------------------------------------------------------------------


def test_the_metrics_are_those_of_the_labels(words):
    done = several(words)
    model = tiny(GPT2Config, words=words)
    part = chat.examples(done, settle(done), evaluation=True)
    batch = chat.collator(words, model.config, 1)([part[i] for i in range(len(part))])
    found = summed(model, batch)
    logits = model(**models_own(batch)).logits
    expected = torch.nn.functional.cross_entropy(logits.mT, batch["labels"], reduction="none").detach().double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    counts = (batch["labels"] != -100).sum(dim=1)
    stats = torch.stack([found.sum(dim=1), counts], dim=1).numpy()
    mean = float(expected.sum() / counts.sum())
    assert chat.metrics(stats, part) == {"perplexity": pytest.approx(np.exp(mean), rel=1e-5)}


def test_generation_stops_at_the_end_of_a_turn(words):
    end = words.convert_tokens_to_ids("<|im_end|>")
    known = settle(encode(words, [USER, SAYS]))
    assert known.ends == (end,)
    model = tiny()
    for before, after in ((None, [end]), (7, [7, end]), ([7, end], [7, end]), (end, end)):
        model.generation_config.eos_token_id = before
        chat.prepare_model(model, known)
        assert model.generation_config.eos_token_id == after


def test_no_other_metric_fits():
    with pytest.raises(UserError, match="evaluated by its loss"):
        chat.predictions_and_references(np.zeros((1, 2)), None)


# --- from end to end --------------------------------------------------------------------------------------------------

RECIPE = """
task = "chat"
[model]
name = "base"
[data]
path = "rows.jsonl"
validation_fraction = 0.2
max_length = 64
[trainer]
max_steps = 3
per_device_train_batch_size = 4
learning_rate = 1e-2
logging_steps = 1
train_sampling_strategy = "sequential"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A tiny Llama with its tokenizer, twenty rows and a recipe."""
    monkeypatch.chdir(tmp_path)
    words = make_words()
    tiny(words=words, max_position_embeddings=128).save_pretrained("base")
    words.save_pretrained("base")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"who saw owl {i}?"}],
            "completion": [{"role": "assistant", "content": f"the fox {i * i}" + " saw" * (i % 5)}],
        }
        for i in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


FRESH = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained("base")
words = AutoTokenizer.from_pretrained("run")
ids = words.apply_chat_template([{"role": "user", "content": "who?"}], add_generation_prompt=True, return_tensors="pt")
model = PeftModel.from_pretrained(base, "run").eval()
with torch.no_grad():
    torch.save(model(**ids).logits, "fresh.pt")
"""


def test_an_adapter_loads_in_plain_peft_with_its_tokenizer_and_template(place, llmkit):
    done = llmkit("finetune", "recipe.toml", "lora.r=4", "trainer.learning_rate=0.1", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    run = place / "run"
    assert "llmkit generate --chat" in done.stderr
    assert not (run / "model.safetensors").exists()
    assert (run / "chat_template.jinja").read_text() == CHATML
    generation = json.loads((run / "generation_config.json").read_text())
    words = AutoTokenizer.from_pretrained(run)
    assert words.convert_tokens_to_ids("<|im_end|>") in generation["eos_token_id"]
    record = json.loads((run / "run.json").read_text())
    assert record["metrics"]["eval_perplexity"] == pytest.approx(np.exp(record["metrics"]["eval_loss"]), rel=1e-4)
    fresh = forks.run("-c", FRESH)
    assert fresh.returncode == 0, fresh.stderr
    from llmkit.models.loading import load_model

    ids = words.apply_chat_template(
        [{"role": "user", "content": "who?"}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        ours = load_model("run", AutoModelForCausalLM)(**ids).logits
        plain = AutoModelForCausalLM.from_pretrained("base")(**ids).logits
    assert torch.equal(torch.load(place / "fresh.pt"), ours)
    assert (ours - plain).abs().max() > 1e-3


def test_packed_training_counts_rows_and_can_be_evaluated(place, llmkit):
    done = llmkit("finetune", "recipe.toml", "data.pack=true", "trainer.num_train_epochs=1", "trainer.max_steps=-1",
                  "--output-dir", "run")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    record = json.loads((place / "run" / "run.json").read_text())
    rows = record["data"]["train"]["rows"]
    assert rows + record["data"]["validation"]["rows"] == 20
    assert len(logged(place / "run")) < -(-rows // 4)  # fewer steps than rows would take
    assert re.search(rf"note     {rows} conversations are packed into \d inputs", done.stderr)
    evaluated = llmkit("evaluate", "run")
    assert json.loads(evaluated.stdout)["eval_loss"] == pytest.approx(record["metrics"]["eval_loss"], rel=1e-5)


def test_a_dry_run_shows_what_is_learned_without_weights_or_further_rows(place, llmkit):
    (place / "base" / "model.safetensors").unlink()
    with (place / "rows.jsonl").open("a") as stream:
        stream.write('{"prompt": "no answer"}\n')
    done = llmkit("finetune", "recipe.toml", "data.validation_fraction=", "--dry-run")
    assert done.exit_code == 0, done.stderr
    shown = "\n".join(line.strip() for line in done.stderr.splitlines())
    assert "<|im_start|>user\nwho saw owl 0?<|im_end|>\n<|im_start|>assistant\n[[the fox 0<|im_end|>\n]]" in shown
    assert "[[" not in done.stdout
    assert not (place / "runs").exists()


def test_a_dry_run_names_what_is_dropped_and_a_run_keeps_the_counts(place, llmkit):
    rows = [
        {"messages": [USER, {**SAYS, "content": f"the fox {n}"}], "system": "be brief", "topic": "owls", "tools": "[]"}
        for n in range(40)
    ]
    rows[7] = {"messages": CALLED}
    rows[8]["messages"] = [SAYS, *rows[8]["messages"]]
    rows[9]["tools"] = json.dumps([{"name": "see"}])
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ("data.validation_fraction=", "--output-dir", "run")
    done = llmkit("finetune", "recipe.toml", *keys, "--dry-run")
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "messages: `messages`, system: `system`, tools: `tools`; not used: `topic`" in said
    assert "system be brief<|im_end|> <|im_start|>user who saw it?<|im_end|>" in said
    assert "[[the fox 0<|im_end|> ]]" in said
    assert "1 row read without: `tools`, which the chat template leaves out" in said
    assert llmkit("finetune", "recipe.toml", *keys).exit_code == 0
    record = json.loads((place / "run/run.json").read_text())["data"]
    assert record["skipped"] == {"train": {"tool calls, which the chat template leaves out": 1}}
    assert record["mended"] == {"train": {"a first turn of the assistant left out": 1}}
    assert record["train"]["rows"] == 39


def test_a_run_of_an_earlier_version_reads_the_messages_alone(place, llmkit):
    from llmkit.recipe import load
    from llmkit.runs import compatibility

    run = place / "run"
    assert llmkit("finetune", "recipe.toml", "--output-dir", "run").exit_code == 0
    saved = (run / "recipe.toml").read_text()
    assert "companions = true" in saved
    assert load(str(run / "recipe.toml")).data.companions
    older = [line for line in saved.splitlines() if not line.startswith(("companions", "hold_out"))]
    (run / "recipe.toml").write_text("\n".join(older))
    assert not load(str(run / "recipe.toml")).data.companions
    begun = compatibility.as_begun(load("recipe.toml"), run)
    assert (begun.data.companions, begun.data.hold_out) == (False, "hash")


def test_the_first_losses_are_those_of_trl(place, llmkit):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    done = llmkit("finetune", "recipe.toml", "data.validation_fraction=", "data.max_length=40", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    args = trl.SFTConfig(
        output_dir="theirs", max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1,
        train_sampling_strategy="sequential", max_length=40, use_cpu=True, bf16=False,
        gradient_checkpointing=None, activation_checkpointing=False,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained("base"), args, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained("base"),
    )  # fmt: skip
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged(place / "run") == pytest.approx(theirs, rel=1e-4)
    assert len(theirs) == 3
