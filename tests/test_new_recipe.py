"""`llmkit recipes new`: a recipe for a data file that says what each key means and trains as the command line would."""

import json
import re
import tomllib

import pytest
from conftest import corpus

from llmkit import recipe

SMALL = "data.max_length=32"  # as long as `base` takes
SCRATCH = ("model.name=", 'model.config={model_type="gpt2", n_layer=1, n_head=1, n_embd=8, n_positions=64}')
SCRATCH = (*SCRATCH, 'tokenizer={type="byte-bpe", vocab_size=300}', "data.max_length=64", "lora=")
T5 = (
    "model.name=",
    'model.config={model_type="t5", num_layers=1, num_decoder_layers=1, d_model=8, d_kv=4, d_ff=8, num_heads=2}',
)
T5 = (*T5, 'tokenizer={type="unigram", vocab_size=300}', "data.max_length=64")


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


WORDS = corpus(40).splitlines()
FILES = {
    "reviews.csv": "id,review,label\n" + "".join(f"{i},{text},{'ab'[i % 2]}\n" for i, text in enumerate(WORDS)),
    "tags.jsonl": jsonl({"tokens": text.split(), "tags": ["B-X", *["O"] * (len(text.split()) - 1)]} for text in WORDS),
    "questions.jsonl": jsonl({"question": "who?", "context": text, "answers": "the fox"} for text in WORDS[::5]),
    "choices.jsonl": jsonl({"context": text, "choices": ["x y", "z"], "answer": 0} for text in WORDS),
    "chats.jsonl": jsonl({"messages": [{"role": r, "content": t} for r in ("user", "assistant")]} for t in WORDS),
    "pairs.csv": "text,summary\n" + "".join(f"{text},{text[:9]}\n" for text in WORDS),
    "book.txt": corpus(200),
}
TINY = {"chats.jsonl": SCRATCH, "pairs.csv": T5, "book.txt": ("data.block_size=16",)}
TASKS = dict(
    zip(
        FILES,
        (
            *("text-classification", "token-classification", "question-answering", "multiple-choice", "chat"),
            *("seq2seq", "causal-lm"),
        ),
        strict=True,
    )
)


@pytest.fixture
def place(base, tmp_path, monkeypatch):
    (tmp_path / "base").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_of_each_task_passes_a_dry_run(file, place, llmkit):
    (place / "recipes").mkdir()
    words = TINY.get(file, ("model.name=base", SMALL))
    done = llmkit("recipes", "new", file, *words, "--output", "recipes/my.toml", "--offline")
    assert (done.exit_code, done.stdout) == (0, "recipes/my.toml\n"), done.stderr
    text = (place / "recipes/my.toml").read_text()
    made = tomllib.loads(text)
    assert made["task"] == TASKS[file]
    assert made["data"]["path"] == f"../{file}"
    verb = "pretrain" if file == "book.txt" else "finetune"
    assert f"#   llmkit {verb} recipes/my.toml --dry-run" in text
    done = llmkit(verb, "recipes/my.toml", "--dry-run", "--offline")
    assert done.exit_code == 0, done.stderr


def test_it_trains_as_the_command_line_would(place, llmkit):
    words = ("model.name=base", SMALL, "trainer.seed=7")
    text = llmkit("recipes", "new", "reviews.csv", *words).stdout
    (place / "my.toml").write_text(text)
    made, other = (
        tomllib.loads(llmkit("finetune", *line, "--dry-run").stdout)
        for line in (("my.toml",), ("--task", "text-classification", "data.path=reviews.csv", *words))
    )
    assert made["data"].pop("text_column") == "review"  # said, as it is not the usual one
    assert made["data"].pop("label_column") == "label"
    assert made["data"].pop("global_batch_size") == other["trainer"]["per_device_train_batch_size"]
    assert made == other
    assert made["trainer"]["seed"] == 7
    assert "# Columns that are not read: id." in text


def test_every_line_is_a_key_below_its_meaning_or_a_comment_that_can_be_taken_back(place, llmkit):
    text = llmkit("recipes", "new", "reviews.csv", "model.name=base", SMALL).stdout
    assert max(map(len, text.splitlines())) <= 100 + len(str(place))
    keys = re.findall(r"^(?!#|\[)(?:.*)=", text, re.MULTILINE)
    assert len(keys) > 10
    above = [text.splitlines()[i - 1] for i, line in enumerate(text.splitlines()) if re.match(r"\w+ = ", line)]
    assert all(line.startswith("# ") for line in above[1:])  # but `task`
    assert "Chosen for 40 rows." in text
    used = re.sub(r"^# (\[\w+\]|\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert used.count("\n[") > text.count("\n[")
    (place / "used.toml").write_text(used)
    assert recipe.load("used.toml").lora is not None


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["nothing.csv"], "there is no file or folder `nothing.csv`", ""),
        (["reviews.csv", "--output", "here.toml"], "`here.toml` already exists", "name another"),
        (["reviews.csv", "--output", "a.csv"], "does not end in .toml", "--output a.toml"),
        (["reviews.csv", "--output", "no/a.toml"], "there is no folder `no`", "create it first"),
        (["reviews.csv", "--task", "sst3"], "there is no task `sst3`", "did you mean"),
        (["reviews.csv", "data.nam=3"], "1 problem", ""),
        (["reviews.csv", "model.name=base", SMALL, "data.label_column=labl"], "labl", ""),
        (["here.toml"], "`here.toml` is a recipe", ""),
    ],
)
def test_mistakes_are_answered_and_nothing_is_written(words, message, hint, place, llmkit):
    (place / "here.toml").write_text("mine")
    before = sorted(place.iterdir())
    done = llmkit("recipes", "new", *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert hint in done.stderr
    assert sorted(place.iterdir()) == before
    assert (place / "here.toml").read_text() == "mine"
