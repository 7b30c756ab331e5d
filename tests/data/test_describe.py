"""`llmkit data`: what a local file holds and the command to train on it, in seconds, without torch or a network."""

import csv
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmkit.terminal import TERMINAL

POLES = [{"text": f"the film {i} was {'good' if i % 2 else 'bad'}", "label": ("no", "yes")[i % 2]} for i in range(40)]


@pytest.fixture(autouse=True)
def a_terminal(monkeypatch):
    monkeypatch.setenv(TERMINAL, "80")
    monkeypatch.setenv("NO_COLOR", "1")


def json_lines(file, rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(file, delimiter=","):
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(POLES[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(POLES)


def parts(folder):
    for name in ("train", "test"):
        json_lines(folder / f"{name}.jsonl", POLES)


def class_folders(folder):
    for label in ("yes", "no"):
        (folder / label).mkdir(parents=True)
        for i in range(10):
            (folder / label / f"{i}.txt").write_text(f"{label} {i} indeed\n")


QUESTIONS = [
    {"question": "who?", "context": f"Ann {i} sleeps", "answers": {"text": ["Ann"], "answer_start": [0]}}
    for i in range(20)
]
TALKS = [
    {"messages": [{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "good day"}]}
    for i in range(20)
]
# path -> what writes it, the task, and what must be shown
KINDS = {
    "a.csv": (table, "text-classification", "yes 20 (50.0%)"),
    "a.tsv": (lambda file: table(file, "\t"), "text-classification", "yes 20 (50.0%)"),
    "a.jsonl": (lambda file: json_lines(file, POLES), "text-classification", "yes 20 (50.0%)"),
    "a.json": (lambda file: file.write_text(json.dumps(POLES)), "text-classification", "yes 20 (50.0%)"),
    "a.parquet": (
        lambda file: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(POLES), file),
        "text-classification",
        "yes 20 (50.0%)",
    ),
    "splits": (parts, "text-classification", "test: 40 rows, not read in training"),
    "classes": (class_folders, "text-classification", "no 10 (50.0%)"),
    "a.conll": (
        lambda file: file.write_text("".join(f"Ann B-PER\nsleeps O\n{i} O\n\n" for i in range(20))),
        "token-classification",
        "B-PER",
    ),
    "spans.jsonl": (
        lambda file: json_lines(
            file, [{"text": f"Ann {i} sleeps", "spans": [{"start": 0, "end": 3, "label": "PER"}]} for i in range(20)]
        ),
        "token-classification",
        "PER",
    ),
    "qa.jsonl": (lambda file: json_lines(file, QUESTIONS), "question-answering", "context: [[Ann]] 0 sleeps"),
    "choices.jsonl": (
        lambda file: json_lines(file, [{"context": f"a{i}", "choices": ["b", "c"], "label": i % 2} for i in range(20)]),
        "multiple-choice",
        "choices: `choices`",
    ),
    "pairs.jsonl": (
        lambda file: json_lines(file, [{"document": f"long {i} text", "summary": f"short {i}"} for i in range(20)]),
        "seq2seq",
        "target: `summary`",
    ),
    "chat.jsonl": (lambda file: json_lines(file, TALKS), "chat", "assistant: good day"),
    "a.txt": (lambda file: file.write_text("".join(f"word {i}\n" for i in range(50))), "pretraining", "word 0"),
}
APART = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("a socket is opened")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from llmkit.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    if end.code:
        raise
heavy = {"torch", "transformers", "datasets", "accelerate", "peft"} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def described(llmkit, *words):
    done = llmkit("data", *words)
    assert done.exit_code == 0, done.stderr
    lines, _, _ = done.stdout.partition("train with")
    assert max(map(len, lines.splitlines())) <= 80
    return done.stdout


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_described_with_the_task_it_suits(name, here, llmkit):
    write, task, shown = KINDS[name]
    write(here / name)
    said = described(llmkit, name)
    assert shown in said
    assert f"task       {'causal-lm, which is pretraining' if task == 'pretraining' else task}" in said
    command = next(line for line in said.splitlines() if line.startswith("  llmkit "))
    verb = "pretrain tiny/gpt2" if task == "pretraining" else f"finetune --task {task}"
    assert command.startswith(f"  llmkit {verb} data.path={name}")


OWN_MODEL = ("model.name=", "tokenizer.vocab_size=300")
ENCODER = ('model.config.model_type="bert"', "tokenizer.type=wordpiece")
OF_TASK = {
    "seq2seq": ('model.config.model_type="t5"', "tokenizer.type=byte-bpe"),
    "chat": ('model.config.model_type="gpt2"', "tokenizer.type=byte-bpe", "lora="),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_command_that_is_printed_runs(name, here, llmkit):
    KINDS[name][0](here / name)
    said = described(llmkit, name)
    words = shlex.split(next(line for line in said.splitlines() if line.startswith("  llmkit ")))[1:]
    if (task := KINDS[name][1]) != "pretraining":  # its model is on the Hub
        words += [*OWN_MODEL, *OF_TASK.get(task, ENCODER)]
    done = llmkit(*words, "--dry-run")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "qa.jsonl", "a.txt"])
def test_neither_torch_nor_a_network_is_needed(name, here):
    KINDS[name][0](here / name)
    done = subprocess.run([sys.executable, "-c", APART, "data", name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.alone
def test_a_small_file_is_described_in_a_second(here):
    table(here / "a.csv")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "llmkit", "data", "a.csv"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1  # the least of five: other processes on the machine only ever add


def test_of_a_large_file_a_sample_is_read_and_said(here, llmkit, monkeypatch):
    monkeypatch.setattr("llmkit.data.describe.sample.ROWS", 10)
    table(here / "a.csv")
    assert "train: about 40 rows; the first 10 are read" in described(llmkit, "a.csv")


def test_rows_that_a_run_would_leave_out_are_shown(here, llmkit):
    json_lines(here / "a.jsonl", [*POLES, {"text": "no label", "label": None}])
    said = described(llmkit, "a.jsonl")
    assert "left out" in said
    assert "line 41" in said


def test_what_a_run_refuses_is_said_with_the_command_once_it_is_mended(here, llmkit):
    json_lines(here / "a.jsonl", [{"one": f"a {i}", "two": f"b {i}"} for i in range(40)])
    said = described(llmkit, "a.jsonl")
    assert "refused" in said
    assert "COLUMN" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["revews.csv"], ["no file or folder `revews.csv`", "reviews.csv"]),
        (["recipe.toml"], ["is a recipe", "llmkit finetune recipe.toml --dry-run"]),
        (["stanfordnlp/imdb"], ["no file or folder `stanfordnlp/imdb`", "Hub", "--dry-run"]),
        (["reviews.csv", "data.txt_column=a"], ["txt_column", "did you mean"]),
        (["reviews.csv", "--task", "sst3"], ["sst3"]),
        (["reviews.csv", "--task", "multi-task"], ["each task has its own"]),
    ],
)
def test_what_cannot_be_described_is_refused_politely(words, said, here, llmkit):
    table(here / "reviews.csv")
    (here / "recipe.toml").write_text('task = "causal-lm"\n')
    done = llmkit("data", *words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert [word for word in said if word not in done.stderr] == []


def test_a_column_that_is_asked_for_stands_in_the_command_as_such(here, llmkit):
    json_lines(
        here / "a.jsonl",
        [{"one": f"text {i}", "two": f"words {i}", "three": f"more {i}", "label": i % 2} for i in range(40)],
    )
    said = described(llmkit, "a.jsonl")
    assert "data.text_column=COLUMN" in said
    assert "text_pair_column=" not in said


def test_a_task_and_settings_of_data_are_taken_as_a_run_takes_them(here, llmkit):
    json_lines(here / "a.jsonl", [{"one": f"a {i}", "two": f"b {i}"} for i in range(40)])
    said = described(llmkit, "a.jsonl", "data.source_column=one", "data.target_column=two", "--task", "seq2seq")
    assert "source: `one`, target: `two`" in said
    assert "--task seq2seq data.path=a.jsonl data.source_column=one data.target_column=two" in said
