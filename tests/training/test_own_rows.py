"""What is chosen by the number of the user's rows, what a user's word keeps, and that a run repeats it."""

import json
import os
import shutil
import signal
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import losses

from llmkit.errors import UserError, in_bytes
from llmkit.recipe import load
from llmkit.recipe.schema import OF_THE_ROWS
from llmkit.runs import compatibility
from llmkit.training.own_rows import fit_to_rows
from llmkit.training.progress import MetricsFile
from llmkit.training.saving_trainer import SavingTrainer

GOOD, BAD = ("fine", "lovely", "quick", "warm", "bright"), ("dull", "broken", "late", "cold", "bitter")
THINGS = ("kettle", "film", "soup", "train", "lamp", "novel", "hotel", "bicycle")


def rows(number):
    """Reviews of one sentence with their label."""
    for i in range(number):
        word = (GOOD, BAD)[i % 2][i % 5]
        yield f"the {THINGS[i % 8]} of day {i} was {word}", ("good", "bad")[i % 2]


@pytest.fixture
def place(base, tmp_path, monkeypatch) -> Path:
    (tmp_path / "base").symlink_to(base)
    lines = [",".join(row) for row in rows(60)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,sentiment", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = (
    "finetune",
    "--task",
    "text-classification",
    "data.path=reviews.csv",
    "model.name=base",
    "data.max_length=24",
)


def train(llmkit, *words, name="run"):
    done = llmkit(*COMMAND, *words, "--output-dir", name)
    assert done.exit_code == 0, done.stderr
    return done.stderr


def recipe_of(run):
    return tomllib.loads(Path(run, "recipe.toml").read_text())


def record(run):
    return json.loads(Path(run, "run.json").read_text())


def fitted(
    *overrides, train=180, validation=20, task="text-classification", world=1, timed=False, judged_by="accuracy"
):
    """Fit the task's recipe to so many rows; return its tables, and what was said."""
    assembly = SimpleNamespace(
        train=range(train),
        validation={"validation": range(validation)} if validation else {},
        rows=train + validation,
        validation_fraction=0.1 if validation else None,
        judged_by=judged_by,
        notes=[],
    )
    recipe = fit_to_rows(load(None, ["data.path=org/mine", *overrides], task=task), assembly, world, timed)
    return tomllib.loads(recipe.to_toml()), assembly.notes


# ---- what is chosen ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [45, 180, 540, 900, 1_800, 9_000, 90_000])
def test_small_data_gets_400_steps_and_large_data_few_epochs(train):
    trainer = fitted(train=train, validation=train // 9)[0]["trainer"]
    steps = trainer["num_train_epochs"] * -(-train // trainer["per_device_train_batch_size"])
    assert steps >= 400 or trainer["num_train_epochs"] == 20
    assert 3 <= trainer["num_train_epochs"] <= 20
    assert (trainer["num_train_epochs"] == 3) == (train >= 9_000)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering", "chat"])
@pytest.mark.parametrize("train", [9_000, 12_000, 50_000])
def test_evaluation_after_each_epoch_the_best_kept(task, train):
    tables, notes = fitted(train=train, validation=train // 9, task=task)
    trainer = tables["trainer"]
    assert trainer["eval_strategy"] == trainer["save_strategy"] == "epoch"
    assert trainer["load_best_model_at_end"] is True
    assert "evaluation after each epoch" in notes[0]
    assert trainer["metric_for_best_model"] == "accuracy"
    assert "the best checkpoint by accuracy kept" in notes[0]


@pytest.mark.parametrize("held_out", [5, 20, 200, 999])
def test_few_rows_do_not_tell_which_checkpoint_is_best_and_the_last_is_kept(held_out):
    tables, notes = fitted(train=1_800, validation=held_out)
    trainer = tables["trainer"]
    assert trainer["eval_strategy"] == trainer["save_strategy"] == "epoch"
    assert trainer["load_best_model_at_end"] is False
    assert "metric_for_best_model" not in trainer
    assert "early_stopping" not in tables
    assert f"the last checkpoint kept (too few held-out rows, {held_out}, to tell which is best)" in notes[0]
    by_loss = fitted(train=1_800, validation=held_out, judged_by="loss")[0]["trainer"]
    assert (by_loss["load_best_model_at_end"], by_loss["greater_is_better"]) == (True, False)


@pytest.mark.parametrize("task", ["text-classification", "multiple-choice", "seq2seq"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1, 3, 20])
def test_evaluation_takes_a_fifth_of_the_time_at_most(task, share):
    """A forward pass is a third of a training step; to write a text is thrice one."""
    train = 1_000
    trainer = fitted(train=train, validation=int(share * train), task=task)[0]["trainer"]
    an_epoch = -(-train // trainer["per_device_train_batch_size"])
    steps = trainer["num_train_epochs"] * an_epoch
    often = {"no": 0, "epoch": trainer["num_train_epochs"], "steps": steps // trainer.get("eval_steps", steps)}
    evaluations = often[trainer["eval_strategy"]]
    cost = share * (3 if task == "seq2seq" else 1 / 3)
    assert evaluations == 0 or (evaluations + 1) * cost <= 0.25 * trainer["num_train_epochs"] + 1e-9
    if evaluations == 0:  # two would have been too many
        assert 2 * cost > 0.25 * trainer["num_train_epochs"]
        assert trainer["save_strategy"] == "epoch"
        assert "load_best_model_at_end" not in trainer


@pytest.mark.parametrize(("world", "accumulated", "each"), [(1, 1, 8), (2, 1, 4), (1, 2, 4), (2, 2, 2), (16, 1, 1)])
def test_the_batch_is_that_of_all_processes_and_accumulated_batches(world, accumulated, each):
    words = [f"trainer.gradient_accumulation_steps={accumulated}"] if accumulated > 1 else []
    trainer = fitted(*words, world=world)[0]["trainer"]
    assert trainer["per_device_train_batch_size"] == each
    alone = fitted()[0]["trainer"]["num_train_epochs"]
    assert trainer["num_train_epochs"] == alone or world == 16


def test_without_validation_data_nothing_is_evaluated():
    trainer = fitted(validation=0)[0]["trainer"]
    assert not trainer.keys() & {"eval_strategy", "load_best_model_at_end", "eval_steps"}
    assert trainer["save_strategy"] == "epoch"


def test_by_the_clock_no_epochs_are_chosen_and_nothing_ends_it_early():
    tables, notes = fitted(timed=True)
    assert "num_train_epochs" not in tables["trainer"]
    assert "early_stopping" not in tables
    assert "epochs" not in notes[0]


# ---- what a user says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "also"),
    [
        ("trainer.num_train_epochs=2", {}),
        ("trainer.max_steps=50", {}),
        ("trainer.per_device_train_batch_size=5", {}),
        ("trainer.eval_strategy=steps", {"save_strategy": "steps"}),
        ("trainer.save_steps=7", {"eval_strategy": "steps", "eval_steps": 7, "save_strategy": "steps"}),
        ("trainer.eval_steps=9", {"eval_strategy": "steps", "save_steps": 9, "save_strategy": "steps"}),
        ("trainer.save_strategy=no", {"eval_strategy": "epoch", "load_best_model_at_end": None}),
        ("trainer.eval_strategy=no", {"save_strategy": "epoch", "load_best_model_at_end": None}),
        ("trainer.load_best_model_at_end=false", {"eval_strategy": "epoch"}),
        ("trainer.load_best_model_at_end=true", {"eval_strategy": "epoch"}),
        ("early_stopping.early_stopping_patience=1", {"load_best_model_at_end": True}),
        ("trainer.metric_for_best_model=loss", {"load_best_model_at_end": True, "greater_is_better": None}),
        ("data.validation_fraction=0.3", {}),
    ],
)
def test_a_key_that_is_given_is_kept(override, also):
    tables, _ = fitted(override)
    table, key = override.partition("=")[0].split(".")
    expected = tomllib.loads(override.partition("=")[2].join(("x=", "")))["x"] if override[-1] in "0123456789" else None
    value = {"true": True, "false": False}.get(override.partition("=")[2], override.partition("=")[2])
    assert tables[table][key] == (value if expected is None else expected) or key == "validation_fraction"
    assert {key: tables["trainer"].get(key) for key in also} == also


def test_steps_that_are_given_leave_no_epochs_to_choose():
    tables, notes = fitted("trainer.max_steps=50")
    assert "num_train_epochs" not in tables["trainer"]
    assert "epochs" not in notes[0]


def test_patience_without_the_best_checkpoint_still_knows_what_to_watch():
    tables, _ = fitted("trainer.load_best_model_at_end=false", "early_stopping.early_stopping_patience=1")
    assert tables["trainer"]["metric_for_best_model"] == "accuracy"
    assert tables["early_stopping"]["early_stopping_patience"] == 1


def test_early_stopping_without_evaluations_is_refused():
    with pytest.raises(UserError, match="early_stopping needs evaluations"):
        fitted("early_stopping.early_stopping_patience=1", validation=0)


def test_a_recipe_of_ones_own_and_a_bundled_one_on_its_own_data_are_as_they_were(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(load("glue").to_toml())
    for recipe in (load(str(mine), ["data.path=org/mine"]), load(None, [], task="sst2"), load("squad")):
        assert not recipe.fits_rows
        assert "num_train_epochs" in recipe.trainer
        assert fit_to_rows(recipe, SimpleNamespace(), 1) is recipe


def test_a_model_from_scratch_keeps_its_recipe():
    assert not load("translation", ["data.path=org/mine"]).fits_rows
    assert load("translation", ["data.path=org/mine", "model.name=org/model"]).fits_rows


@pytest.mark.parametrize(
    "task",
    [
        *("text-classification", "sst2", "stsb", "token-classification", "question-answering", "multiple-choice"),
        *("seq2seq", "chat"),
    ],
)
def test_of_a_bundled_recipe_nothing_is_left_that_fits_its_own_rows(task):
    recipe = load(None, ["data.path=org/mine"], task=task)
    assert recipe.fits_rows
    assert not recipe.trainer.keys() & set(OF_THE_ROWS["trainer"])
    assert [getattr(recipe.data, key) for key in OF_THE_ROWS["data"]] == [None] * len(OF_THE_ROWS["data"])
    assert recipe.trainer["learning_rate"]


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """Few steps are enough to see that they are chosen."""
    monkeypatch.setattr("llmkit.training.own_rows.STEPS", 28)


def test_a_run_says_and_records_what_was_chosen_and_its_recipe_repeats_it(place, llmkit, short):
    said = train(llmkit)
    assert "6 of 60 rows are held out for evaluation; data.validation_fraction = 0 trains on all" in said
    assert "chosen for 60 rows: 4 epochs, 8 examples per step, evaluation after each epoch, the last checkpoint" in said
    text = Path("run/recipe.toml").read_text()
    for line in ("num_train_epochs = 4", "per_device_train_batch_size = 8", "validation_fraction = 0.1"):
        assert f"{line}  # from 60 rows" in text
    assert "learning_rate = 0.0001  # recipe line" in text
    assert len(list(Path("run").glob("checkpoint-*"))) <= 2
    done = llmkit("finetune", "run/recipe.toml", "--output-dir", "again")
    assert done.exit_code == 0, done.stderr
    assert "chosen for" not in done.stderr
    assert losses(Path("again")) == losses(Path("run"))
    assert record("again")["data"] == record("run")["data"]
    assert Path("again/model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()


OTHERS = {
    "token-classification": ("f1", {"tokens": ["the", "fox", "saw"], "tags": ["O", "B-A", "O", "O"]}),
    "question-answering": ("f1", {"question": "who saw?", "context": "the fox saw", "answers": ["fox"]}),
    "multiple-choice": ("accuracy", {"context": "the fox", "choices": ["saw", "fed"], "label": 1}),
}


def test_a_dry_run_shows_the_recipe_as_the_run_fits_it(place, llmkit, short):
    done = llmkit(*COMMAND, "--output-dir", "run", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "chosen for 60 rows: " in " ".join(done.stderr.split())
    train(llmkit)
    shown, kept = tomllib.loads(done.stdout), recipe_of("run")
    del shown["output_dir"]
    shown["data"]["path"] = os.path.relpath(shown["data"]["path"])  # a run keeps it as it was typed
    assert shown == kept
    steps = json.loads(Path("run/run.json").read_text())["steps"]
    assert f"steps           {steps:,}: " in done.stderr


@pytest.mark.parametrize("task", OTHERS)
def test_other_heads_are_fitted_too_and_judged_by_what_a_user_means(task, place, llmkit, short):
    metric, row = OTHERS[task]
    column = "tokens" if task == "token-classification" else "context"
    lines = [{**row, column: [*row[column], str(i)] if column == "tokens" else f"{row[column]} {i}"} for i in range(40)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["data.path=rows.jsonl", "model.name=base", "data.max_length=24"]
    words += ["data.stride=8"] if task == "question-answering" else []
    words += ["trainer.load_best_model_at_end=true"]  # of four rows held out
    done = llmkit("finetune", "--task", task, *words, "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    trainer = recipe_of("run")["trainer"]
    assert (trainer["metric_for_best_model"], trainer["greater_is_better"]) == (metric, True)
    assert trainer["num_train_epochs"] == 6
    assert "chosen for 40 rows: 6 epochs, 8 examples per step" in done.stderr


def test_a_finished_run_says_its_size_on_disk(place, llmkit, short):
    said = train(llmkit)
    sizes = [
        sum(path.stat().st_size for path in Path("run").rglob(f"{part}**/*") if path.is_file())
        for part in ("", "checkpoint-*/")
    ]
    assert f"run: {in_bytes(sizes[0])}, {in_bytes(sizes[1])} of it in 2 checkpoints" in said


def test_with_nothing_held_out_all_rows_are_trained_on_and_evaluated(place, llmkit, short):
    said = train(llmkit, "data.validation_fraction=0")
    assert "held out for" not in said
    assert record("run")["data"]["train"]["rows"] == 60
    done = llmkit("evaluate", "run")
    assert done.exit_code == 0, done.stderr
    assert "eval_accuracy" in json.loads(done.stdout)
    assert llmkit("predict", "run", "the lamp was warm").exit_code == 0


def test_a_finished_run_is_evaluated_on_what_it_held_out(place, llmkit, short):
    train(llmkit)
    figures = json.loads(llmkit("evaluate", "run").stdout)
    assert figures["eval_loss"] == pytest.approx(record("run")["metrics"]["eval_loss"], rel=1e-5)


def test_a_stopped_run_goes_on_as_it_was_fitted_though_more_would_be_chosen_now(place, llmkit, short, monkeypatch):
    train(llmkit, name="whole")
    logged = MetricsFile.on_log

    def stop(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", stop)
        assert llmkit(*COMMAND, "--output-dir", "run").exit_code == 75
    monkeypatch.setattr("llmkit.training.own_rows.STEPS", 280)
    train(llmkit, "--resume")
    assert recipe_of("run") == recipe_of("whole")
    assert "num_train_epochs = 4  # as the run was started" in Path("run/recipe.toml").read_text()
    assert losses(Path("run")) == losses(Path("whole"))
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


EARLIER = """task = "text-classification"
[model]
name = "PLACE/base"
init = "pretrained"
[data]
path = "PLACE/reviews.csv"
split = "train"
encoding = "utf-8"
max_length = 24
[trainer]
logging_first_step = true
logging_steps = 10
save_total_limit = 2
num_train_epochs = 1
per_device_train_batch_size = 32
per_device_eval_batch_size = 64
learning_rate = 0.0001
warmup_steps = 0.06
train_sampling_strategy = "group_by_length"
save_strategy = "epoch"
"""


def test_a_run_that_earlier_code_began_goes_on_with_the_settings_of_its_bundled_recipe(place):
    """Commit c1f8dd5 took one epoch of 32 examples from recipes/glue.toml for the user's rows, and held none out."""
    Path("run").mkdir()
    Path("run/recipe.toml").write_text(EARLIER.replace("PLACE", str(place)))
    recipe = load(None, COMMAND[3:], task="text-classification")
    assert recipe.fits_rows
    begun = compatibility.as_begun(recipe, Path("run"))
    assert not begun.fits_rows
    assert begun.trainer == load("run/recipe.toml").trainer
    assert (begun.data.validation_fraction, begun.data.hold_out, begun.early_stopping) == (None, "hash", None)
    longer = load(None, [*COMMAND[3:], "trainer.num_train_epochs=2"], task="text-classification")
    assert compatibility.as_begun(longer, Path("run")).trainer["num_train_epochs"] == 2
    changed = compatibility.since(Path("run"), longer)
    assert [key for key, *_ in changed if key.startswith(("trainer", "data"))] == ["trainer.num_train_epochs"]


def test_an_override_of_what_was_chosen_makes_another_run(place, llmkit, short):
    train(llmkit, "trainer.max_steps=2")
    shutil.rmtree("run/checkpoint-2")
    Path("run/run.json").write_text(json.dumps({**record("run"), "status": "stopped"}))
    done = llmkit(*COMMAND, "trainer.max_steps=3", "--output-dir", "run", "--resume")
    assert done.exit_code == 2
    assert "trainer.max_steps" in done.stderr


@pytest.mark.long
def test_two_processes_take_half_the_batch_each(place, llmkit, two_processes):
    done = two_processes(*COMMAND, "trainer.num_train_epochs=2", "--output-dir", "two")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("chosen for 60 rows: 8 examples per step") == 1
    assert recipe_of("two")["trainer"]["per_device_train_batch_size"] == 4
    train(llmkit, "trainer.num_train_epochs=2")
    assert record("two")["steps"] == record("run")["steps"]
    assert record("two")["data"] == record("run")["data"]


# ---- the best checkpoint -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("accuracy", [0.5, 0.8, 0.7, 0.8, 0.6], 4),  # of two that are equally good the later
        ("accuracy", [0.9, 0.8, 0.7], 1),
        ("eval_loss", [0.9, 0.4, 0.6], 2),
    ],
)
def test_of_equally_good_checkpoints_the_last_is_the_best(name, values, best):
    args = SimpleNamespace(metric_for_best_model=name, greater_is_better="loss" not in name, save_strategy="epoch")
    state = SimpleNamespace(best_metric=None, best_global_step=None, global_step=0)
    trainer = object.__new__(SavingTrainer)
    trainer.args, trainer.state = args, state
    for step, value in enumerate(values, 1):
        state.global_step = step
        trainer._determine_best_metric({f"eval_{name.removeprefix('eval_')}": value}, None)
    assert state.best_global_step == best
