"""A dry run reads the data: it shows what is learned, counts as a run counts, refuses what a run refuses."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from conftest import corpus, losses

from llmkit.dry_run import examples
from llmkit.terminal import TERMINAL

RECIPE = """
task = "{task}"
[model]
name = "base"
[data]
path = "{path}"
validation_fraction = 0.2
{data}
[trainer]
num_train_epochs = 2
per_device_train_batch_size = 8
gradient_accumulation_steps = 2
logging_steps = 1
report_to = []
"""
WORDS = [line.split(" at ")[0] for line in corpus(60).splitlines()]
ROWS = {
    "text-classification": [{"text": text, "label": "fox" if "fox" in text[:8] else "none"} for text in WORDS],
    "token-classification": [
        {"tokens": text.split(), "tags": ["B-ANIMAL" if i == 1 else "O" for i in range(len(text.split()))]}
        for text in WORDS
    ],
    "question-answering": [
        {"question": "who is it", "context": text, "answers": {"text": [text.split()[1]], "answer_start": [4]}}
        for text in WORDS
    ],
    "multiple-choice": [
        {"context": text, "choices": ["the fox", "the hen", "the owl"], "label": i % 3} for i, text in enumerate(WORDS)
    ],
}
SHOWN = {
    "text-classification": "[CLS] the fox saw 0 of the foxs [SEP] [[fox]]",
    "token-classification": "B-ANIMAL",
    "question-answering": "[SEP] the [[",
    "multiple-choice": "the fox [SEP]]]",
}


@pytest.fixture(autouse=True)
def a_terminal(monkeypatch):
    monkeypatch.setenv(TERMINAL, "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def place(base, tmp_path, monkeypatch) -> Path:
    (tmp_path / "base").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place, task, rows, data="", name="rows.jsonl"):
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "recipe.toml").write_text(RECIPE.format(task=task, path=name, data=data))


def dry(llmkit, *words, code=0):
    done = llmkit("finetune", *words, "--dry-run")
    assert done.exit_code == code, done.stderr
    return done


def plain(text):
    """The text without line ends and runs of blanks."""
    return " ".join(text.split())


@pytest.mark.parametrize("task", ROWS)
def test_rows_are_shown_as_the_model_reads_them_with_what_is_learned(task, place, llmkit):
    write(place, task, ROWS[task])
    done = dry(llmkit, "recipe.toml")
    assert plain(SHOWN[task]) in re.sub(r" ##", "", plain(done.stderr))
    assert "train: 48 rows" in done.stderr
    assert "validation: 12 rows" in done.stderr
    assert "steps           6: 2 epochs of 3" in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80
    assert not Path("runs").exists()
    resolved = tomllib.loads(done.stdout)
    assert resolved["task"] == task
    (place / "again.toml").write_text(done.stdout)
    assert tomllib.loads(dry(llmkit, "again.toml").stdout) == resolved


@pytest.mark.parametrize(
    ("recipe", "marked"),
    [("tiny/chats", "Assistant: [[The story is about "), ("tiny/summaries", "</s> [[")],
)
def test_what_is_written_is_marked(recipe, marked, llmkit):
    assert marked in plain(dry(llmkit, recipe, "data.max_train_samples=30", "data.max_eval_samples=10").stderr)


def test_steps_and_labels_are_those_of_the_run(place, llmkit):
    write(place, "text-classification", ROWS["text-classification"])
    said = dry(llmkit, "recipe.toml").stderr
    assert llmkit("finetune", "recipe.toml", "--output-dir", "run").exit_code == 0
    steps = re.search(r"steps +(\d+): ", said)
    assert steps is not None
    assert int(steps[1]) == len(losses(place / "run"))
    counts = json.loads((place / "run/run.json").read_text())["data"]["train"]["balance"]
    assert sum(counts.values()) == 48
    assert all(f"{label} {number} (" in said for label, number in counts.items())


def test_rows_that_a_run_leaves_out_are_counted(place, llmkit):
    rows = [*ROWS["text-classification"]]
    rows[3] = {"text": "no label here", "label": None}
    write(place, "text-classification", rows)
    said = plain(dry(llmkit, "recipe.toml").stderr)
    assert "1 row left out: no label, such as line 4" in said or "left out: no label" in said
    assert "line 4" in said


@pytest.mark.parametrize(
    ("rows", "data", "refused"),
    [
        ([{"one": "a", "two": "b"}] * 20, "", "column"),
        ([{"text": "a", "label": None}] * 20, "", "label"),
        (ROWS["text-classification"], "split = 'tset'", "local files define no splits"),
        (ROWS["text-classification"], "text_column = 'txet'", "txet"),
    ],
)
def test_what_a_run_refuses_is_refused_alike(rows, data, refused, place, llmkit):
    write(place, "text-classification", rows, data)
    done = dry(llmkit, "recipe.toml", code=2)
    assert refused in done.stderr
    assert done.stdout == ""
    assert llmkit("finetune", "recipe.toml").stderr.splitlines()[-2:] == done.stderr.splitlines()[-2:]


def test_several_tasks_are_shown_each_with_its_examples(place, llmkit):
    for task in ("text-classification", "token-classification"):
        write(place, task, ROWS[task], name=f"{task}.jsonl")
    (place / "two.toml").write_text(
        'task = "multi-task"\n[model]\nname = "base"\n'
        + "".join(
            f'[tasks.{name}]\ntask = "{task}"\n[tasks.{name}.data]\npath = "{task}.jsonl"\nvalidation_fraction = 0.2\n'
            for name, task in (("kind", "text-classification"), ("animals", "token-classification"))
        )
        + "[trainer]\nnum_train_epochs = 1\nper_device_train_batch_size = 8\nlogging_steps = 1\n"
    )
    said = dry(llmkit, "two.toml").stderr
    assert "[[fox]]" in said
    assert "B-ANIMAL" in said
    assert "labels          kind train: none" in said
    assert llmkit("finetune", "two.toml", "--output-dir", "run").exit_code == 0
    assert f"steps           {len(losses(place / 'run'))}: 1 epoch of" in said


def test_of_a_long_example_the_beginning_of_what_is_learned_stays():
    text = "\n".join([*(f"asked {n}" for n in range(20)), "[[answer", *(f"more {n}" for n in range(20)), "end]]"])
    shown = examples._folded(text, 60)
    assert shown == [*("asked 0", "asked 1", "asked 2", "...", "[[answer", "more 0", "...", "more 19", "end]]")]


# ---- running text ----------------------------------------------------------------------------------------------------


def test_of_texts_the_first_thousand_documents_are_read(workplace, llmkit):
    (workplace / "corpus.txt").write_text(corpus(3000))
    (workplace / "valid.txt").write_text(corpus(5))
    split = ('data.data_files={train = "corpus.txt", validation = "valid.txt"}', "data.path=.")
    done = llmkit("pretrain", "causal.toml", *split, "data.validation_fraction=", "--dry-run")
    assert done.exit_code == 0, done.stderr
    said = plain(done.stderr)
    assert "train: the first 1,000 documents" in said
    assert "validation: 5 documents" in said
    assert "the fox saw 0 of the foxs at 0" in said
    assert tomllib.loads(done.stdout)["task"] == "causal-lm"


def test_of_streams_the_first_hundred_documents_are_read(workplace, llmkit):
    words = ("data.streaming=true", "data.validation_fraction=", "data.validation_split=", "trainer.max_steps=4")
    done = llmkit("pretrain", "causal.toml", *words, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "train: the first 100 documents" in done.stderr


def test_text_without_a_word_is_refused(workplace, llmkit):
    (workplace / "corpus.txt").write_text(" \n \n")
    done = llmkit("pretrain", "causal.toml", "--dry-run")
    assert done.exit_code == 2
    assert "there is no text in it" in done.stderr


def test_blocks_and_epochs_are_estimated_where_the_tokenizer_is_there(workplace, base, llmkit):
    (workplace / "corpus.txt").write_text(corpus(3000))
    done = llmkit("pretrain", "masked.toml", "tokenizer=", "model.config=", f"model.name={base}", "--dry-run")
    assert done.exit_code == 0, done.stderr
    blocks = re.search(r"about ([\d,]+) tokens, ([\d,]+) blocks of 16", done.stderr)
    assert blocks is not None
    assert "epochs of the data" in done.stderr
    assert "far more than so little text can teach" not in done.stderr
    words = ("tokenizer=", "model.config=", f"model.name={base}", "trainer.max_steps=200000")
    done = llmkit("pretrain", "masked.toml", *words, "--dry-run")
    assert "far more than so little text can teach" in " ".join(done.stderr.split())


def test_a_mistake_in_the_recipe_is_told_before_any_data_are_read(workplace, llmkit):
    (workplace / "corpus.txt").unlink()
    done = llmkit("pretrain", "causal.toml", "data.blok_size=3", "--dry-run")
    assert done.exit_code == 2
    assert "did you mean" in done.stderr
