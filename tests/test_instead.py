"""A mistaken command is answered with the command that was meant, which works when it is typed."""

import re
import shlex

import pytest

from llmkit import recipe
from llmkit.instead import Known, refuse_options

RECIPES = {"pretrain", "finetune"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.csv").write_text("review,sentiment\ngood,pos\nbad,neg\n")
    (tmp_path / "my chat.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "faq.csv").write_text("question,answer\na,b\n")
    (tmp_path / "corpus.txt").write_text("Once.\n")
    for folder in ("books", "data"):
        (tmp_path / folder).mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / "books" / name).write_text("Once.\n")
    (tmp_path / "data" / "train.csv").write_text("tokens,ner_tags\na,O\n")
    return tmp_path


def loaded(command):
    """Load the recipe that a printed command of pretrain or finetune names, as the command line would."""
    program, verb, *words = shlex.split(command)
    assert program == "llmkit"
    assert verb in RECIPES
    words = [word for word in words if word not in ("--dry-run", "--offline")]
    task = words.pop(words.index("--task") + 1) if "--task" in words else None
    words = [word for word in words if word != "--task"]
    name = None if task else words.pop(0)
    return recipe.load(name, words, task=task, verb=verb)


def answered(llmkit, *words):
    done = llmkit(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Usage" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("finetune reviews.csv", "finetune --task text-classification data.path=reviews.csv"),
        ("finetune --task reviews.csv", "finetune --task text-classification data.path=reviews.csv"),
        ("finetune --task sst2 reviews.csv", "finetune --task sst2 data.path=reviews.csv"),
        ("finetune data.path=reviews.csv", "finetune --task text-classification data.path=reviews.csv"),
        (
            "finetune reviews.csv model.name=org/m",
            "finetune --task text-classification data.path=reviews.csv model.name=org/m",
        ),
        ("finetune data/", "finetune --task token-classification data.path=data/"),
        ("finetune 'my chat.jsonl'", "finetune --task chat 'data.path=my chat.jsonl'"),
        (
            "finetune faq.csv",
            "finetune --task chat data.path=faq.csv data.prompt_column=question data.completion_column=answer",
        ),
        ("finetune corpus.txt", "pretrain tiny/gpt2 data.path=corpus.txt"),
        ("pretrain corpus.txt", "pretrain tiny/gpt2 data.path=corpus.txt"),
        ("pretrain books", "pretrain tiny/gpt2 data.path=books"),
        ("pretrain reviews.csv", "pretrain tiny/gpt2 data.path=reviews.csv"),
        ("pretrain data.path=books", "pretrain tiny/gpt2 data.path=books"),
        ("pretrain books/a.txt books/b.txt books/c.txt", "pretrain tiny/gpt2 'data.path=books/*.txt'"),
        (
            "pretrain books/a.txt books/b.txt",
            """pretrain tiny/gpt2 data.path=books 'data.data_files=["a.txt", "b.txt"]'""",
        ),
        ("pretrain 'books/*.txt'", "pretrain tiny/gpt2 'data.path=books/*.txt'"),
    ],
)
def test_data_in_the_recipes_place_is_answered_with_the_command(files, llmkit, words, command):
    said = answered(llmkit, *shlex.split(words))
    assert f"\n  train on it:       llmkit {command}\n" in said
    assert re.search(r"\n  see what it holds: llmkit data \S+", said)
    assert loaded(f"llmkit {command}").data.path


def test_pretraining_names_the_larger_recipe(files, llmkit):
    assert "a larger model: `gpt2-small` in place of `tiny/gpt2`" in answered(llmkit, "pretrain", "books")
    assert loaded("llmkit pretrain gpt2-small data.path=books").data.path == str(files / "books")


def test_a_suggested_task_says_why(files, llmkit):
    assert "hint: `instruction`, `output`: that looks like chat" in answered(llmkit, "finetune", "my chat.jsonl")


def test_evaluation_keeps_the_model(files, llmkit):
    said = answered(llmkit, "evaluate", "runs/x", "reviews.csv")
    assert "evaluate on it: llmkit evaluate runs/x data.path=reviews.csv\n" in said


def test_a_run_in_the_recipes_place_is_answered_with_its_recipe(files, llmkit):
    (files / "runs" / "x").mkdir(parents=True)
    (files / "runs" / "x" / "recipe.toml").write_text("")
    said = answered(llmkit, "pretrain", "runs/x", "trainer.seed=3")
    assert said.endswith("hint: llmkit pretrain runs/x/recipe.toml trainer.seed=3\n")


def test_a_misspelt_file_is_answered_with_the_nearest(files, llmkit):
    said = answered(llmkit, "finetune", "review.csv")
    assert said.startswith("error: there is no file `review.csv`\nhint: did you mean `reviews.csv`?")


def test_a_file_in_place_of_a_text_is_answered_with_input(files, llmkit):
    assert "hint: llmkit predict runs/x --input reviews.csv" in answered(llmkit, "predict", "runs/x", "reviews.csv")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("finetune glue --learning-rate 1e-4", "finetune glue trainer.learning_rate=1e-4"),
        ("finetune glue --lr=1e-4", "finetune glue trainer.learning_rate=1e-4"),
        ("finetune --lr 1e-4 glue", "finetune glue trainer.learning_rate=1e-4"),
        ("finetune glue -lr 1e-4", "finetune glue trainer.learning_rate=1e-4"),
        ("finetune glue --epochs 3", "finetune glue trainer.num_train_epochs=3"),
        ("finetune glue --num_train_epochs 3", "finetune glue trainer.num_train_epochs=3"),
        ("finetune glue --batch-size 8", "finetune glue trainer.per_device_train_batch_size=8"),
        ("finetune glue --fp16 data.max_length=8", "finetune glue data.max_length=8 trainer.fp16=true"),
        ("finetune --fp16 glue", "finetune glue trainer.fp16=true"),
        ("finetune glue --precision bf16", "finetune glue trainer.bf16=true"),
        ("finetune glue --model bert-base-uncased", "finetune glue model.name=bert-base-uncased"),
        (
            "finetune --task text-classification --data reviews.csv --dry_run",
            "finetune --task text-classification --dry-run data.path=reviews.csv",
        ),
        (
            "finetune glue --data 'my chat.jsonl' --label-column b",
            "finetune glue 'data.path=my chat.jsonl' data.label_column=b",
        ),
        ("pretrain tiny/gpt2 --seq-len 64", "pretrain tiny/gpt2 data.block_size=64"),
        ("pretrain tiny/gpt2 --trainer.learning_rate 1e-4", "pretrain tiny/gpt2 trainer.learning_rate=1e-4"),
        ("pretrain tiny/gpt2 --trainer.lr=1e-4", "pretrain tiny/gpt2 trainer.learning_rate=1e-4"),
        ("pretrain --config tiny/gpt2 --max-steps 3", "pretrain tiny/gpt2 trainer.max_steps=3"),
        ("pretrain tiny/gpt2 --warmup_ratio .1", "pretrain tiny/gpt2 trainer.warmup_steps=0.1"),
        ("pretrain tiny/gpt2 --adafactor", "pretrain tiny/gpt2 trainer.optim=adafactor"),
        ("pretrain tiny/gpt2 --oflline", "pretrain tiny/gpt2 --offline"),
    ],
)
def test_an_option_that_is_none_is_answered_with_a_command_that_loads(files, llmkit, words, command):
    said = answered(llmkit, *shlex.split(words))
    assert said.splitlines()[-1] == f"hint: llmkit {command}"
    assert "no such option" in said
    loaded(f"llmkit {command}")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("finetune glue --output_dir x", "finetune glue --output-dir x"),
        ("finetune glue -o x --gpus 2", "finetune glue --output-dir x --processes 2"),
        ("generate Hi --temperature 0.7 --max-new-tokens 50", "generate Hi temperature=0.7 max_new_tokens=50"),
        ("generate Hi --max_tokens 5 --do-sample", "generate Hi max_new_tokens=5 do_sample=true"),
        ("generate -m runs/x Hi", "generate Hi --model runs/x"),
        ("predict runs/x --file a.csv", "predict runs/x --input a.csv"),
        ("evaluate --model runs/x --data a.csv", "evaluate runs/x data.path=a.csv"),
        ("merge runs/x --output_dir y", "merge runs/x --output y"),
    ],
)
def test_an_option_is_answered_with_that_of_the_command(files, llmkit, words, command):
    assert answered(llmkit, *shlex.split(words)).splitlines()[-1] == f"hint: llmkit {command}"


def test_several_mistaken_options_are_answered_at_once(files, llmkit):
    assert answered(llmkit, "finetune", "glue", "--lr", "3", "--overwrite_output_dir", "--epochs=2").splitlines() == [
        "error: llmkit finetune has no such options",
        "  --lr 3: write `trainer.learning_rate=3`",
        f"  --overwrite_output_dir: {overwriting()}",
        "  --epochs=2: write `trainer.num_train_epochs=2`",
        "hint: without that: llmkit finetune glue trainer.learning_rate=3 trainer.num_train_epochs=2",
    ]


def overwriting():
    from llmkit.recipe import upstream

    return upstream.refusal("TrainingArguments", "overwrite_output_dir", "true")


def test_an_option_that_means_nothing_is_sent_to_help(files, llmkit):
    assert answered(llmkit, "finetune", "glue", "--zzzz", "3").splitlines()[1:] == [
        "  --zzzz: unknown",
        "hint: llmkit finetune --help lists its options",
    ]


def test_predict_takes_its_columns_from_the_run(files, llmkit):
    said = answered(llmkit, "predict", "runs/x", "--text-column", "review", "--input", "reviews.csv")
    assert "rename the columns of the file to those that the model was trained on" in said
    assert said.endswith("hint: without that: llmkit predict runs/x --input reviews.csv\n")


def test_what_stands_behind_two_dashes_or_an_option_is_not_an_option():
    known = {"--model": Known("--model", False), "--chat": Known("--chat", True)}
    refuse_options("generate", ["--chat", "--model", "--zzz", "-1", "-", "--", "--lr"], known)
