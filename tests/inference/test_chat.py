"""Conversations: what the model is asked, what is kept of it, how files are answered, what is refused."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import Result

from llmkit.inference import chat

POSITIONS = 160
SPECIAL = ("<pad>", "<system>", "<user>", "<assistant>", "<end>", "<unk>")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}" + TEMPLATE
GREEDY = ("do_sample=false", "max_new_tokens=6")
LINES = "Hello there\nWhat is a cat?\nWhy?\n"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character: what was written is the same tokens when it is read again."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    backend = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate((*SPECIAL, *characters))}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:4])})
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers, `model`, and `endless`, which has many positions and never ends a turn."""
    folder = tmp_path_factory.mktemp("chats")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=4,
        pad_token_id=0,
        initializer_range=0.3,  # so that what it says depends on what was said
    )
    model = LlamaForCausalLM(config)
    model.generation_config.suppress_tokens = [0, 1, 2, 3, 5]
    for name in ("model", "endless"):
        if name == "endless":
            model.config.max_position_embeddings = 1_000_000
            model.generation_config.suppress_tokens = [0, 1, 2, 3, 4, 5]
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds copies of the models."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def talk(place: Path) -> chat.Conversation:
    session, _ = chat.load("model", {"do_sample": False, "max_new_tokens": 6}, None, 0)
    return chat.Conversation(session, [])


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def expected(messages: list[dict[str, str]], name: str = "model", new: int = 6) -> str:
    """What the model answers, by transformers alone."""
    tokenizer, model = make_tokenizer(), LlamaForCausalLM.from_pretrained(name)
    ids = torch.tensor([tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def conversation(lines: str, *begin: dict[str, str]) -> list[str]:
    """What the model answers to line after line, each time from all that was said."""
    messages, answers = list(begin), []
    for line in lines.splitlines():
        messages.append(user(line))
        answers.append(expected(messages))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def refused(result: Result) -> str:
    """What a refusal says: an error, a hint, exit code 2, and nothing on stdout."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and "\nhint: " in result.stderr
    return result.stderr


def answered(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ---- a conversation ------------------------------------------------------------------------------------------------


def test_a_question_is_answered_and_stdout_holds_the_answer_alone(place: Path, llmkit: Callable[..., Result]) -> None:
    result = llmkit("generate", "Hello there", *GREEDY, "--chat", "--model", "model")
    assert result.exit_code == 0
    assert result.stdout == expected([user("Hello there")]) + "\n"
    assert len(result.stdout) > 2
    longer = llmkit("generate", "Hello there", "do_sample=false", "num_beams=2", "--chat", "--model", "model")
    assert longer.exit_code == 0 and longer.stdout.strip()


def test_each_line_of_a_pipe_is_answered_from_all_that_was_said(place: Path, llmkit: Callable[..., Result]) -> None:
    result = llmkit("generate", "--chat", "--model", "model", "--", *GREEDY, stdin=LINES.replace("\n", "\n \n"))
    answers = conversation(LINES)
    assert (result.exit_code, result.stdout) == (0, "".join(f"{answer}\n" for answer in answers))
    assert ">" not in result.stderr.replace("->", "")
    assert answers[1] != expected([user("What is a cat?")])  # else this would not show that history is kept


def test_commands(place: Path, llmkit: Callable[..., Result]) -> None:
    said = "Hello there\n/help\n/clear\nWhat is a cat?\n/exit\nWhy?\n"
    result = llmkit("generate", *GREEDY, "--chat", "--model", "model", stdin=said)
    fresh = [expected([user(line)]) for line in ("Hello there", "What is a cat?")]
    assert result.stdout == "".join(f"{answer}\n" for answer in fresh)
    assert result.stderr.count("/clear forgets") == 1


def test_the_system_prompt(place: Path, llmkit: Callable[..., Result]) -> None:
    system = {"role": "system", "content": "Be brief = good."}
    result = llmkit(
        "generate",
        f"system_prompt={system['content']}",
        *GREEDY,
        "--chat",
        "--model",
        "model",
        stdin="Hello\n/clear\nHi",
    )
    assert result.stdout == f"{expected([system, user('Hello')])}\n{expected([system, user('Hi')])}\n"
    assert result.stdout.splitlines()[0] != expected([user("Hello")])


def test_a_runs_own_system_prompt_is_the_default(place: Path, llmkit: Callable[..., Result]) -> None:
    run = place / "runs/mine"
    shutil.copytree(place / "model", run)
    (run / "run.json").write_text(json.dumps({"status": "finished", "task": "chat", "finished": 1.0}))
    (run / "recipe.toml").write_text(
        'task = "chat"\n[model]\nname = "gone"\n[data]\npath = "gone.jsonl"\nsystem_prompt = "Be kind."\n'
    )
    other = place / "runs/later"
    shutil.copytree(place / "model", other)
    (other / "run.json").write_text(json.dumps({"status": "finished", "task": "causal-lm", "finished": 2.0}))
    result = llmkit("generate", "Hello", *GREEDY, "--chat")
    assert result.stderr.startswith("model: runs/mine (the newest finished chat run)\n")
    assert result.stdout == expected([{"role": "system", "content": "Be kind."}, user("Hello")]) + "\n"
    without = llmkit("generate", "Hello", "system_prompt=", *GREEDY, "--chat")
    assert without.stdout == expected([user("Hello")]) + "\n" != result.stdout


def test_without_a_run_and_a_network(
    place: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = llmkit("generate", "Hello", "--chat")
    assert result.exit_code == 2
    assert "model: HuggingFaceTB/SmolLM2-135M-Instruct (no finished chat run under runs/)" in result.stderr
    assert "llmkit finetune recipes/tiny/chats.toml" in result.stderr


def test_a_seed_repeats_an_answer(place: Path, llmkit: Callable[..., Result]) -> None:
    def text(seed: str) -> str:
        argv = ("generate", "Hello", "max_new_tokens=12", "--chat", "--model", "endless", "--seed", seed)
        return str(llmkit(*argv).stdout)

    assert text("1") == text("1") != text("2")


def test_an_answer_ends_with_the_turn_and_says_when_it_is_cut_off(place: Path, llmkit: Callable[..., Result]) -> None:
    cut = llmkit("generate", "Hello", "do_sample=false", "max_new_tokens=5", "--chat", "--model", "endless")
    assert cut.stderr == "note: cut off after 5 tokens; max_new_tokens=10 lets it write more\n"
    third = make_tokenizer().convert_tokens_to_ids(cut.stdout[2])
    argv = ("generate", "Hello", "do_sample=false", f"eos_token_id=[4, {third}]", "max_new_tokens=5")
    ended = llmkit(*argv, "--chat", "--model", "endless")
    assert ended.stdout == cut.stdout[: cut.stdout.index(cut.stdout[2]) + 1] + "\n"
    assert ended.stderr == ""
    just = llmkit(*argv[:-1], f"max_new_tokens={len(ended.stdout) - 1}", "--chat", "--model", "endless")
    assert (just.stdout, just.stderr) == (ended.stdout, "")  # its end was the last token that it was allowed


def test_what_was_computed_is_used_again_and_changes_nothing(talk: chat.Conversation) -> None:
    read: list[int] = []
    talk.session.model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    lengths = []
    for line in LINES.splitlines():
        tokens = chat.ask(talk, line)
        lengths.append(len(tokens))
        read.append(0)
        chat.answer(talk, tokens, chat.Event())
    first = [after for before, after in itertools.pairwise(read) if before == 0]
    assert first[0] == lengths[0]
    assert first[1] < lengths[1] - lengths[0] and first[2] < lengths[2] - lengths[1]
    assert [m["content"] for m in talk.messages if m["role"] == "assistant"] == conversation(LINES)
    # Something else in front: what was computed does not fit.
    talk.messages.insert(0, {"role": "system", "content": "Be brief."})
    tokens = chat.ask(talk, "And?")
    chat.answer(talk, tokens, chat.Event())
    assert talk.messages[-1]["content"] == expected(talk.messages[:-1])


def test_the_oldest_turns_are_dropped_and_the_system_message_stays(
    talk: chat.Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    system = {"role": "system", "content": "Be brief."}
    talk.messages = [system]
    for number in range(4):
        tokens = chat.ask(talk, f"question {number} " + "x" * 36)
        assert len(tokens) + 6 <= POSITIONS
        chat.answer(talk, tokens, chat.Event())
        assert talk.messages[-1]["content"] == expected(talk.messages[:-1])
    stderr = capsys.readouterr().err
    assert (
        stderr.count(f"note: the conversation is longer than the model's {POSITIONS} positions: its oldest turn is")
        == 2
    )
    assert talk.messages[0] == system
    assert [m["role"] for m in talk.messages[1:]] == ["user", "assistant"] * 2
    assert talk.messages[1]["content"].startswith("question 2 ")


def test_a_message_that_is_too_long_is_not_the_end(place: Path, llmkit: Callable[..., Result]) -> None:
    lines = f"Hello there\n{'x' * POSITIONS}\nWhat is a cat?\n"
    result = llmkit("generate", *GREEDY, "--chat", "--model", "model", stdin=lines)
    assert result.exit_code == 2  # a line of a pipe is without its answer
    assert f"error: the message, as the chat template writes it, has {POSITIONS + 3} tokens" in result.stderr
    assert result.stdout.splitlines() == conversation("Hello there\nWhat is a cat?")  # the history is untouched


def test_what_does_not_converse_is_refused(place: Path, llmkit: Callable[..., Result]) -> None:
    (place / "model/chat_template.jinja").write_text(NO_SYSTEM)
    argv = ("generate", "Hello", "--chat", "--model", "model")
    assert llmkit(*argv, "max_new_tokens=2").exit_code == 0
    message = refused(llmkit(*argv, "system_prompt=Be brief."))
    assert "refuses the conversation: no system role here" in message
    (place / "model/chat_template.jinja").unlink()
    message = refused(llmkit(*argv))
    assert "`model` has no chat template" in message and 'llmkit generate "..." --model model' in message
    assert "the question is empty" in refused(llmkit("generate", " ", "--chat"))
    assert "system_prompt is only for conversations" in refused(llmkit("generate", "Hi", "system_prompt=a"))
    assert "one answer" in refused(llmkit("generate", "Hi", "num_return_sequences=2", "--chat", "--model", "endless"))
    assert "did you mean `max_new_tokens`?" in llmkit("generate", "Hi", "max_new_tokns=2", "--chat").stderr
    assert "settings are not valid" in refused(llmkit(*argv[:-1], "endless", "temperature=0"))
    assert (
        "line 2: byte 3 is not UTF-8" in llmkit(*argv[:1], *argv[2:-1], "endless", *GREEDY, stdin=b"a\nab\xff").stderr
    )


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_an_adapter_answers_by_its_own_template(place: Path, llmkit: Callable[..., Result]) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = LlamaForCausalLM.from_pretrained("model")
    adapter = LoraConfig(r=4, init_lora_weights=False, lora_alpha=32, task_type="CAUSAL_LM")
    get_peft_model(base, adapter).save_pretrained("adapter")
    make_tokenizer().save_pretrained("adapter")
    (place / "model/chat_template.jinja").unlink()
    result = llmkit("generate", *GREEDY, "--chat", "--model", "adapter", stdin=LINES)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)
    assert result.stdout.splitlines()[0] != expected([user("Hello there")])


# ---- a file --------------------------------------------------------------------------------------------------------


def test_a_file_is_answered_in_order_as_row_by_row(place: Path, llmkit: Callable[..., Result]) -> None:
    rows: list[dict[str, Any]] = [{"id": n, "prompt": "What? " + "so " * (n * 7 % 13)} for n in range(20)]
    history = [user("Hello"), {"role": "assistant", "content": "Hi."}, user("And?")]
    rows[3] = {"messages": [{"role": "system", "content": "Be brief."}, *history]}
    rows[7] = {"id": "last", "messages": history}
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    argv = ("generate", "--chat", "--model", "model", "--input", "rows.jsonl")
    # More new tokens than there are positions behind some rows: each row stops where it would alone.
    new = POSITIONS - 30
    result = llmkit(*argv, "--output", "said.jsonl", "do_sample=false", f"max_new_tokens={new}")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("20 rows -> said.jsonl\n")
    said = answered("said.jsonl")
    assert [{key: row[key] for key in row if key != "completion"} for row in said] == rows
    for row in said:
        messages = row.get("messages") or [user(row["prompt"])]
        length = len(make_tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        assert row["completion"] == expected(messages, new=min(new, POSITIONS - length))
    assert len({row["completion"] for row in said}) > 10
    on_stdout = llmkit(*argv, "do_sample=false", f"max_new_tokens={new}")
    assert on_stdout.stdout == Path("said.jsonl").read_text()


def test_rows_that_stop_early_are_as_they_would_be_alone(place: Path, llmkit: Callable[..., Result]) -> None:
    Path("rows.txt").write_text("".join(f"question {n}{'?' * n}\n" for n in range(8)))
    argv = ("generate", "--chat", "--model", "endless", "--input", "rows.txt", "do_sample=false", "max_new_tokens=30")
    whole = [json.loads(line) for line in llmkit(*argv).stdout.splitlines()]
    assert all(len(row["completion"]) == 30 for row in whole)
    mark = whole[0]["completion"][4]
    number = make_tokenizer().convert_tokens_to_ids(mark)
    # Padding that is text must not be taken for what was written; nor where it is the end as well.
    stopped = llmkit(*argv, f"stop_strings=[{json.dumps(mark)}]", f"pad_token_id={number + 1}").stdout
    ended = llmkit(*argv, f"eos_token_id={number}", f"pad_token_id={number}").stdout
    stopped, ended = ([json.loads(line) for line in text.splitlines()] for text in (stopped, ended))
    for before, after, end in zip(whole, stopped, ended, strict=True):
        text = before["completion"]
        assert after["completion"] == end["completion"] == text[: (text + mark).index(mark) + 1]
    assert [row["prompt"] for row in stopped] == Path("rows.txt").read_text().splitlines()


def test_the_system_prompt_stands_before_rows_without_one(place: Path, llmkit: Callable[..., Result]) -> None:
    system = {"role": "system", "content": "Be kind."}
    Path("rows.csv").write_text('text,messages\n,"[{""role"": ""user"", ""content"": ""Hi""}]"\n')
    argv = ("generate", "system_prompt=Be kind.", *GREEDY, "--chat", "--model", "model", "--input", "rows.csv")
    said = json.loads(llmkit(*argv).stdout)
    assert said["completion"] == expected([system, user("Hi")]) != expected([user("Hi")])
    own = [{"role": "system", "content": "Be brief."}, user("Hi")]
    Path("rows.jsonl").write_text(json.dumps({"messages": own}))
    assert json.loads(llmkit(*argv[:-1], "rows.jsonl").stdout)["completion"] == expected(own)
    Path("rows.csv").write_text("text\nHi\n")
    assert json.loads(llmkit(*argv).stdout) == {"prompt": "Hi", "completion": said["completion"]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"topic": "a"}', "which column holds the conversations, or which hold the prompts"),
        ('{"prompt": ""}', "message 1, the user's, is empty"),
        ('{"prompt": 3}', "holds int, not text"),
        ('{"prompt": "\\ud83d"}', "half a character"),
        ('{"messages": []}', "the conversation is empty"),
        ('{"messages": "Hi"}', "`messages` holds text that is not JSON"),
        ('{"messages": [{"role": "assistant", "content": "b"}]}', "the roles do not take turns: assistant"),
        ('{"messages": [{"role": "nurse", "content": "a"}]}', "message 1 has the role 'nurse'"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "holds a part of type image"),
        ('{"messages": ["a"]}', "a conversation is a list of messages"),
        ('{"prompt": "' + "x" * POSITIONS + '"}', f"{POSITIONS + 3} tokens, but the model has {POSITIONS} positions"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_row_is_named(place: Path, llmkit: Callable[..., Result], row: str, said: str) -> None:
    Path("rows.jsonl").write_text(f'{{"prompt": "fine"}}\n{row}\n')
    argv = ("generate", *GREEDY, "--chat", "--model", "model", "--input", "rows.jsonl", "--output", "said.jsonl")
    message = refused(llmkit(*argv))
    assert "`rows.jsonl`, line 2" in message and said in message
    assert not list(place.glob("*said.jsonl*"))


def test_what_finetune_reads_is_answered(place: Path, llmkit: Callable[..., Result]) -> None:
    told = {"role": "assistant", "content": "Hi."}
    brief = {"role": "system", "content": "Be brief."}
    shapes: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
        ({"conversations": [{"from": "human", "value": "Hello"}], "system": "Be brief."}, [brief, user("Hello")]),
        (
            {"instruction": "Add", "input": "1, 2", "history": [["Hello", "Hi."]]},
            [user("Hello"), told, user("Add\n\n1, 2")],
        ),
        ({"instruction": "Add", "context": "1, 2", "response": "3"}, [user("Add\n\n1, 2")]),
        ({"question": "Why?", "answer": "So."}, [user("Why?")]),
        ({"messages": [user("Hello"), told]}, [user("Hello")]),
        ({"messages": [told, user("Hello"), user("You?")]}, [user("Hello\n\nYou?")]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}, [user("Hello")]),
        ({"prompt": [user("Hello")], "chosen": [told], "rejected": [told]}, [user("Hello")]),
        ({"prompt": "Hello", "tools": [{"name": "add"}]}, [user("Hello")]),
    ]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row, _ in shapes))
    done = llmkit("generate", *GREEDY, "--chat", "--model", "model", "--input", "rows.jsonl")
    assert done.exit_code == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["completion"] for row in said] == [expected(messages) for _, messages in shapes]
    assert said[1].keys() == {"instruction", "input", "history", "completion"}
    for note in (
        "1 row mended: the last answer left out: the model is to write it, such as `rows.jsonl`, line 5",
        "1 row mended: two turns of one speaker joined by a blank line and a first turn of the assistant left",
        "1 row read without: `tools`, which the chat template leaves out, such as `rows.jsonl`, line 9",
    ):
        assert f"note: {note}" in done.stderr, done.stderr


def test_calls_of_tools_are_refused_where_the_template_has_none(place: Path, llmkit: Callable[..., Result]) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    Path("rows.jsonl").write_text(json.dumps({"messages": [user("Add"), call, {"role": "tool", "content": "3"}]}))
    message = refused(llmkit("generate", "--chat", "--model", "model", "--input", "rows.jsonl"))
    assert (
        "`rows.jsonl`, line 1: the assistant calls a tool" in message
        and "choose a model whose chat template writes `tools`" in message
    )


def test_rows_are_read_with_the_roles_and_columns_of_the_run(place: Path, llmkit: Callable[..., Result]) -> None:
    shutil.copytree("model", "runs/mine")
    Path("runs/mine/recipe.toml").write_text(
        'task = "chat"\n[model]\nname = "gone"\n[data]\npath = "gone.jsonl"\nmessages_column = "turns"\n'
        'role_map = { patient = "user" }\n'
    )
    Path("runs/mine/run.json").write_text(json.dumps({"status": "finished", "task": "chat", "finished": 1.0}))
    rows = [{"turns": [{"role": "patient", "content": "Hello"}]}, {"prompt": "Hello"}]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = llmkit("generate", *GREEDY, "--chat", "--model", "runs/mine", "--input", "rows.jsonl")
    assert done.exit_code == 0, done.stderr
    said = [json.loads(line)["completion"] for line in done.stdout.splitlines()]
    assert said == [expected([user("Hello")])] * 2


def test_what_the_template_refuses_is_named(place: Path, llmkit: Callable[..., Result]) -> None:
    (place / "model/chat_template.jinja").write_text(NO_SYSTEM)
    Path("rows.txt").write_text("Hi\n")
    argv = ("generate", "--chat", "--model", "model", "--input", "rows.txt", "system_prompt=a")
    assert "`rows.txt`, line 1: the chat template of `model` refuses" in refused(llmkit(*argv))


def test_a_file_of_prompts_without_chat(place: Path, llmkit: Callable[..., Result]) -> None:
    prompts = ["Once upon a time", "One day there was", "A", "Then he ", "x" * (POSITIONS - 3)]
    Path("prompts.jsonl").write_text("".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in prompts))
    argv = ("--model", "model", *GREEDY)
    said = [json.loads(line) for line in llmkit("generate", "--input", "prompts.jsonl", *argv).stdout.splitlines()]
    assert [row["prompt"] for row in said] == prompts
    for row in said:
        assert row["prompt"] + row["completion"] + "\n" == llmkit("generate", row["prompt"], *argv).stdout
    assert len(said[-1]["completion"]) <= 3
    Path("prompts.jsonl").write_text('{"text": "a"}\n{"text": ""}\n')
    assert "line 2: the prompt is empty" in llmkit("generate", "--input", "prompts.jsonl", *argv).stderr


def test_more_rows_than_are_held_at_once(
    place: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.inference.rows_io.CHUNK", 3)
    long = "x" * (POSITIONS - 5)  # leaves room for two new tokens, and must not take it from the rows that follow
    Path("rows.txt").write_text(f"{long}\n" * 3 + "".join(f"{'so ' * (n % 4)}{n}\n" for n in range(8)))
    argv = ("generate", *GREEDY, "--chat", "--model", "model", "--input", "rows.txt")
    said = [json.loads(line)["completion"] for line in llmkit(*argv).stdout.splitlines()]
    prompts = Path("rows.txt").read_text().splitlines()
    assert said == [expected([user(prompt)], new=2 if prompt == long else 6) for prompt in prompts]


def test_files_and_prompts_that_do_not_go_together(place: Path, llmkit: Callable[..., Result]) -> None:
    Path("rows.txt").write_text("Hi\n")
    Path("none.txt").write_text("\n")
    model = ("--model", "model")
    assert "cannot be combined" in refused(llmkit("generate", "Hi", "--input", "rows.txt", *model))
    assert "--output needs --input" in refused(llmkit("generate", "Hi", "--chat", "--output", "a.jsonl"))
    assert "no file `gone.txt`" in llmkit("generate", "--chat", "--input", "gone.txt").stderr
    assert "no rows in `none.txt`" in refused(llmkit("generate", "--chat", "--input", "none.txt"))
    assert "neither .jsonl" in refused(llmkit("generate", "--input", "rows.txt", "--output", "a.txt"))
    assert "one answer" in refused(llmkit("generate", "num_return_sequences=2", "--input", "rows.txt", *model))


# ---- a terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_ctrl_c_stops_the_answer_and_ctrl_d_the_conversation(place: Path) -> None:
    with Terminal("generate", "max_new_tokens=900000", "--chat", "--model", "endless") as terminal:
        terminal.until(r"/clear forgets.*\r\n> $")
        terminal.type("Hello\n")
        terminal.until(r"Hello\r\n.{20}")
        terminal.type("\x03")
        terminal.until(r"\r\n> $")
        terminal.type("/clear\n")
        terminal.until(r"/clear\r\n> $")
        terminal.type("\x03")
        terminal.until(r"Ctrl-C again.*\r\n> $")
        terminal.type("/help\n")
        terminal.until(r"/clear forgets.*\r\n> $")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0


def test_only_the_first_ctrl_c_is_for_the_answer() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    try:
        with chat.interruptible() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with chat.interruptible():
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_the_prompt_is_not_on_stdout_and_a_second_ctrl_c_ends(place: Path) -> None:
    with (
        Path("said.txt").open("w") as stdout,
        Terminal("generate", *GREEDY, "--chat", "--model", "model", stdout=stdout) as terminal,
    ):
        terminal.until("> $")
        terminal.type("Hello there\n")
        terminal.until(r"Hello there\r\n(note: [^\n]*\n)?> $")
        terminal.type("\x03")
        terminal.until(r"Ctrl-C again.*\r\n> $")
        terminal.type("\x03")
        assert terminal.process.wait(60) == 130
    assert Path("said.txt").read_text() == expected([user("Hello there")]) + "\n"


@pytest.mark.parametrize(("no_color", "shown"), [("1", "> "), ("", "\x01\x1b[1;36m\x02> \x01\x1b[0m\x02")])
def test_the_colour_of_the_prompt_takes_no_column(no_color, shown, monkeypatch):
    """What stands between \\1 and \\2 is not counted by readline, which would else break long lines too early."""
    pytest.importorskip("readline")
    prompts = []

    def ask(prompt):
        prompts.append(prompt)
        raise EOFError

    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", ask)
    assert list(chat.typed()) == []
    assert prompts == [shown]


class Terminal:
    """`llmkit` in a process of its own at a pseudo-terminal, where Ctrl-C is a signal."""

    def __init__(self, *argv: str, stdout: Any = None) -> None:
        import pty

        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmkit", *argv],
            stdin=theirs,
            stdout=stdout or theirs,
            stderr=theirs,
            env={**os.environ, "NO_COLOR": "1"},
            preexec_fn=lambda: _take_terminal(theirs),
        )
        os.close(theirs)
        self.shown = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.ours)

    def type(self, keys: str) -> None:
        time.sleep(0.5)  # readline shows its prompt a moment before it listens to signals
        self.shown = ""
        os.write(self.ours, keys.encode())

    def until(self, pattern: str, seconds: float = 60) -> None:
        """Read until what was shown since the last keys matches."""
        import select

        end = time.monotonic() + seconds
        while not re.search(pattern, self.shown.replace("\x1b[?2004h", "").replace("\x1b[?2004l\r", ""), re.DOTALL):
            assert time.monotonic() < end, f"{pattern!r} is not in {self.shown[-500:]!r}"
            if select.select([self.ours], [], [], 0.2)[0]:
                self.shown += os.read(self.ours, 1 << 16).decode(errors="replace")


def _take_terminal(file: int) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(file, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets what it runs in the background ignore it
