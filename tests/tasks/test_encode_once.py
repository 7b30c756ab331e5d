"""Rows that were tokenized once are read from the cache: the same for every task, and never what has become wrong."""

import json
import os
import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import forks
import numpy as np
import pytest
from conftest import byte_tokenizer
from huggingface_hub import constants
from tokenizers import processors

from llmkit import disk
from llmkit.data.rows import screening, store
from llmkit.data.rows.reader import reader_of
from llmkit.data.rows.splits import tables
from llmkit.errors import UserError
from llmkit.recipe.tasks import TASKS
from llmkit.tasks.encode_once import encode_once

CHATML = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</s>' }}{% endfor %}"
CHATML += "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
# Of each task a row by its number; some are too long, empty or unusable.
ROWS = {
    "text-classification": lambda n: {"text": "a tale " * (n % 7) + str(n), "label": ["good", "bad", None][-(n == 5)]},
    "token-classification": lambda n: {"tokens": ["Anna", "saw", str(n)], "tags": ["B-PER", "O", "O"][: 2 + (n != 7)]},
    "question-answering": lambda n: {
        "question": f"who saw {n}?",
        "context": f"Anna saw {n}. " * (1 + n % 4),
        "answers": {"text": ["Anna"] * (n % 2), "answer_start": [0] * (n % 2)},
    },
    "multiple-choice": lambda n: {"question": f"{n}?", "choices": ["yes", "no " * n][: 1 + (n > 1)], "answer": 0},
    "seq2seq": lambda n: {"source": f"ein Hund {n} " * n, "target": [f"a dog {n}", "dog"] if n % 2 else f"dog {n}"},
    "chat": lambda n: {
        "messages": [{"role": "user", "content": f"{n}?"}, {"role": ["assistant", "x"][n == 4], "content": "yes " * n}]
    },
}


@pytest.fixture(autouse=True)
def a_cache_of_few_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "LEAST", 1)
    monkeypatch.setattr(store, "LOUD", 0)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))


def tokenizer():
    made = byte_tokenizer()
    end = made.eos_token
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, made.eos_token_id)]
    )
    made.chat_template = CHATML
    return made


def read(folder, task, length=24, words=None, rows=ROWS, encode=encode_once, **keys):
    """What a start reads of forty rows: the tables, the tokens of the training part, and the tokenizer behind them."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(rows[task](number)) + "\n" for number in range(40)))
    data = TASKS[task].data(path=str(file), validation_fraction=0.2, max_skipped_fraction=0.5, **keys)
    opened = tables(data, 1, reader_of(task))
    words, module = words or tokenizer(), import_module(f"llmkit.tasks.{task.replace('-', '_')}")
    arguments = (opened.train, opened.columns, words, data, length)
    made = module.encode(*arguments) if encode is None else encode(module, *arguments)
    return opened, made, words


def held(opened, made, words):
    """All that is known of them, in a form that can be compared."""
    inputs = {name: [values.tolist() for values in sequences] for name, sequences in made.inputs.items()}
    columns = [list(getattr(made, name)) for name in ("row", "lengths", "cut", "keys", "empty", "unlearned")]
    said = [made.skipped, made.mended, made.notes, made.warnings, opened.notes, opened.record]
    rows = [row for _, row in made.source.read()], made.source.fingerprint
    types = [[type(each) for each in target] if isinstance(target, tuple | list) else 0 for target in made.targets]
    return inputs, columns, list(made.targets), types, said, rows, words.backend_tokenizer.to_str(), repr(words)


def entries():
    return sorted((disk.cache_dir() / "rows").glob("*"))


@pytest.mark.parametrize("task", ROWS)
def test_what_is_kept_is_what_tokenizing_gives(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "LEAST", 10**6)
    plain = held(*read(tmp_path, task, encode=None))
    assert entries() == []
    monkeypatch.setattr(store, "LEAST", 1)
    first = held(*read(tmp_path, task))
    assert "kept for the next start" in capsys.readouterr().err
    assert len(entries()) == 2
    monkeypatch.setattr(screening, "screen", None)  # neither is called again
    again = held(*read(tmp_path, task))
    assert plain == first == again
    assert capsys.readouterr().err == ""
    assert len(plain[0]["input_ids"]) > 20


def test_altered_copies_are_made_of_rows_that_were_kept(tmp_path):
    augment = {"delete": 0.3, "seed": 2}
    copies = []
    for encode in (None, encode_once, encode_once):
        _, made, _ = read(tmp_path, "text-classification", encode=encode, augment=augment)
        copies.append([values.tolist() for values in made.copies().inputs["input_ids"]])
    assert copies[0] == copies[1] == copies[2] != []


@pytest.mark.parametrize("change", ["text", "length", "key", "tokenizer", "code"])
def test_what_tokens_follow_from_gives_another_entry(change, tmp_path, monkeypatch):
    task = "text-classification"
    _, before, _ = read(tmp_path, task)
    number = len(entries())
    options = {}
    if change == "text":
        options["rows"] = {task: lambda n: {**ROWS[task](n), "text": f"another tale {n}"}}
    elif change == "length":
        options["length"] = 12
    elif change == "key":
        options["truncation_side"] = "left"
    elif change == "tokenizer":
        options["words"] = tokenizer()
        options["words"].add_tokens(["tale"])
    else:
        monkeypatch.setattr(store, "_code", lambda: "another")
    _, after, _ = read(tmp_path, task, **options)
    assert len(entries()) > number
    same = [ids.tolist() for ids in before.inputs["input_ids"]] == [ids.tolist() for ids in after.inputs["input_ids"]]
    assert same == (change == "code")


@pytest.mark.parametrize("damage", ["a byte", "the end", "a file", "another's"])
def test_a_damaged_entry_is_made_anew_and_says_so(damage, tmp_path, capsys):
    whole = held(*read(tmp_path, "text-classification"))
    kept = entries()
    for folder in kept:
        file = max(folder.glob("*.npy"), key=lambda file: file.stat().st_size)
        content = file.read_bytes()
        if damage == "a byte":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "the end":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "a file":
            file.unlink()
    if damage == "another's":
        kept[0].rename(tmp_path / "first")
        kept[1].rename(kept[0])
        (tmp_path / "first").rename(kept[1])
    capsys.readouterr()
    assert held(*read(tmp_path, "text-classification")) == whole
    assert capsys.readouterr().err.count("was damaged") == 2
    assert entries() == kept


def test_tokens_are_mapped_and_targets_held_once(tmp_path):
    _, made, _ = read(tmp_path, "text-classification")
    ids = made.inputs["input_ids"].values
    while isinstance(ids, np.ndarray) and not isinstance(ids, np.memmap):
        ids = ids.base
    assert isinstance(ids, np.memmap)
    assert made.inputs["input_ids"].values.itemsize < 4
    assert sorted(made.targets.values) == ["bad", "good"] or len(made.targets.values) == 1


def test_a_file_that_changes_behind_its_hash_is_refused_though_its_tokens_are_kept(tmp_path):
    opened, _, words = read(tmp_path, "text-classification")
    data = TASKS["text-classification"].data(path=str(tmp_path / "rows.jsonl"), validation_fraction=0.2)
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n')
    module = import_module("llmkit.tasks.text_classification")
    with pytest.raises(UserError, match="changed while it was being read"):
        encode_once(module, opened.train, opened.columns, words, data, 24)


def test_rows_that_were_never_counted_are_not_kept(tmp_path):
    """Those of a reading without a hash of the content, as for prediction."""
    opened, _, words = read(tmp_path, "text-classification")
    number = len(entries())
    module = import_module("llmkit.tasks.text_classification")
    rows = replace(opened.train, looked_at=None, fingerprint="")
    encode_once(module, rows, opened.columns, words, TASKS["text-classification"].data(path="x"), 24)
    assert len(entries()) == number


def test_a_template_that_knows_the_day_is_asked_again_tomorrow(tmp_path, monkeypatch):
    words = tokenizer()
    words.chat_template = "{% set day = strftime_now('%d') %}" + CHATML
    read(tmp_path, "chat", words=words)
    number = len(entries())
    monkeypatch.setattr("llmkit.tasks.encode_once.time.strftime", lambda *words: "2031-01-02")
    read(tmp_path, "chat", words=words)
    assert len(entries()) == number + 1


def test_a_cache_that_cannot_be_written_stops_nobody(tmp_path, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    _, made, _ = read(tmp_path, "text-classification")
    assert len(made.inputs["input_ids"]) > 20
    assert capsys.readouterr().err.count("cannot be kept in the cache") == 2
    assert entries() == []


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
sys.path[:0] = [{tests!r}, {folder!r}]
import test_encode_once as cases
from llmkit.data.rows import store
from huggingface_hub import constants
constants.HF_HOME = {home!r}
store.LEAST, saved, count = 1, np.save, 0

def save(*arguments, **options):
    global count
    saved(*arguments, **options)
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

np.save = save
cases.read(Path({work!r}), "text-classification")
"""


@pytest.mark.parametrize("moment", [1, 4, 9])
def test_a_start_that_is_killed_while_it_writes_leaves_nothing_that_is_read(moment, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "LEAST", 10**6)
    whole = held(*read(tmp_path, "text-classification", encode=None))
    monkeypatch.setattr(store, "LEAST", 1)
    here = Path(__file__).parent
    words = KILLED.format(tests=str(here.parent), folder=str(here), work=str(tmp_path), home=str(tmp_path / "home"))
    done = forks.run("-c", words, str(moment))
    assert done.returncode == -signal.SIGKILL, done.stderr
    drafts = list((disk.cache_dir() / "rows").glob(".draft-*"))
    assert drafts
    capsys.readouterr()
    for draft in drafts:  # of yesterday
        os.utime(draft, (0, 0))
    assert held(*read(tmp_path, "text-classification")) == whole
    assert "damaged" not in capsys.readouterr().err
    assert not list((disk.cache_dir() / "rows").glob(".draft-*"))
