"""Several tasks at once: one encoder, a head and rows for each, batches of one task, a model of its own for each."""

import json
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import corpus, losses
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from llmkit.data.rows.batches import Examples
from llmkit.data.rows.examples import Encoded
from llmkit.errors import UserError
from llmkit.recipe import load
from llmkit.tasks.multi_task import MixedBatches, Mixture

RECIPE = """
task = "multi-task"
[model]
name = "base"
[tasks.fox]
task = "text-classification"
weight = 1
data.path = "fox.csv"
data.validation_fraction = 0.2
[tasks.animals]
task = "token-classification"
weight = 2
data.path = "animals.conll"
data.validation_fraction = 0.2
[trainer]
max_steps = 6
per_device_train_batch_size = 8
learning_rate = 1e-2
logging_steps = 1
"""
ANIMALS = ("fox", "hen", "owl", "cat", "dog")


@pytest.fixture
def place(base, tmp_path, monkeypatch):
    (tmp_path / "base").symlink_to(base)
    texts = [line.split(" at ")[0] for line in corpus(80).splitlines()]
    (tmp_path / "fox.csv").write_text(
        "\n".join(["text,label", *(f"{text},{'fox' if 'fox' in text[:8] else 'none'}" for text in texts)]) + "\n"
    )
    tagged = [[f"{word} {'B-WHO' if word in ANIMALS else 'O'}" for word in text.split()] for text in texts[:60]]
    (tmp_path / "animals.conll").write_text("\n\n".join("\n".join(words) for words in tagged) + "\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finetune(llmkit, *words, name="run"):
    done = llmkit("finetune", "recipe.toml", *words, "--output-dir", name)
    assert done.exit_code == 0, done.stderr
    return done.stderr


def test_each_task_has_a_model_of_its_own_on_one_encoder(place, llmkit):
    finetune(llmkit)
    metrics = json.loads((place / "run/run.json").read_text())["metrics"]
    encoders = []
    for name, auto in (("fox", AutoModelForSequenceClassification), ("animals", AutoModelForTokenClassification)):
        saved = load_file(place / "run" / name / "model.safetensors")
        encoders.append({key: value for key, value in saved.items() if key.startswith("bert.") and "pooler" not in key})
        _, found = auto.from_pretrained(place / "run" / name, output_loading_info=True)
        assert not found["missing_keys"]
        assert AutoTokenizer.from_pretrained(place / "run" / name)("the fox")["input_ids"]
        evaluated = llmkit("evaluate", f"run/{name}")  # with what plain transformers loads: the run's own figures
        assert evaluated.exit_code == 0, evaluated.stderr
        told = json.loads(evaluated.stdout)
        trivial = json.loads((place / "run/run.json").read_text())["trivial"]["metrics"]
        for key, value in told.pop("trivial").items():
            assert value == pytest.approx(trivial[key.replace("eval_", f"eval_{name}_")]["value"], rel=1e-5)
        for key, value in told.items():
            assert value == pytest.approx(metrics[key.replace("eval_", f"eval_{name}_")], rel=1e-5)
    assert encoders[0].keys() == encoders[1].keys()
    assert all(torch.equal(encoders[0][key], encoders[1][key]) for key in encoders[0])
    before = load_file(place / "base/model.safetensors")
    moved = [key for key in before if key in encoders[0] and not torch.equal(before[key], encoders[0][key])]
    assert any("layer.0" in key for key in moved)
    both = load_file(place / "run/model.safetensors")
    assert (
        sum(value.numel() for value in both.values()) == json.loads((place / "run/run.json").read_text())["parameters"]
    )
    assert metrics["eval_loss"] == pytest.approx((metrics["eval_fox_loss"] + metrics["eval_animals_loss"]) / 2)
    assert json.loads(llmkit("predict", "run/fox", "the fox saw it").stdout)["label"] in ("fox", "none")
    for words in (("predict", "run", "the fox"), ("evaluate", "run")):
        refused = llmkit(*words)
        assert refused.exit_code == 2
        assert "name the model of one task: run/animals or run/fox" in refused.stderr


def test_a_task_that_asks_for_no_metrics_is_evaluated_by_its_loss(place, llmkit):
    (place / "recipe.toml").write_text(
        RECIPE.replace("[trainer]", "[tasks.animals.evaluation]\nmetrics = []\n[trainer]")
    )
    finetune(llmkit, "trainer.max_steps=1")
    metrics = json.loads((place / "run/run.json").read_text())["metrics"]
    assert "eval_animals_loss" in metrics and "eval_fox_accuracy" in metrics
    assert "eval_animals_f1" not in metrics


def test_the_tasks_learn(place, llmkit):
    finetune(llmkit, "trainer.max_steps=400", "trainer.learning_rate=3e-3", "trainer.logging_steps=100")
    metrics = json.loads((place / "run/run.json").read_text())["metrics"]
    assert metrics["eval_fox_accuracy"] > 0.9
    assert metrics["eval_animals_f1"] > 0.9


@pytest.mark.long
def test_resuming_is_exact(place, llmkit):
    words = ("trainer.max_steps=10", "trainer.save_steps=6")
    finetune(llmkit, *words, name="straight")
    finetune(llmkit, *words, name="broken")
    for file in (place / "broken").glob("*.safetensors"):
        file.unlink()
    for folder in (place / "broken").glob("checkpoint-10"):
        for inside in folder.iterdir():
            inside.unlink()
        folder.rmdir()
    record = json.loads((place / "broken/run.json").read_text())
    (place / "broken/run.json").write_text(json.dumps({**record, "status": "stopped"}))
    done = llmkit("finetune", "recipe.toml", *words, "--output-dir", "broken", "--resume")
    assert "resuming from broken/checkpoint-6" in done.stderr
    straight, resumed = (load_file(place / name / "model.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert losses(place / "broken")[-4:] == losses(place / "straight")[-4:]


def mixture(sizes, weights=(None, None)):
    parts = []
    for number, size in enumerate(sizes):
        encoded = Encoded(source=None)
        for row in range(size):
            encoded.add("input_ids", list(range(1 + (row * 7 + number) % 13)))
            encoded.row.append(row)
        parts.append(SimpleNamespace(name="ab"[number], weight=weights[number], train=Examples(encoded.finish())))
    return Mixture(parts)


def batches(mixed, epoch=0, by_length=False, seed=1, size=4):
    mixed.set_epoch(epoch)
    order = list(MixedBatches(mixed, size, seed, by_length))
    return [order[i : i + size] for i in range(0, len(order), size)]


@pytest.mark.parametrize("by_length", [False, True])
def test_every_batch_is_full_and_of_one_task_and_every_row_comes(by_length):
    mixed = mixture((22, 40))
    found = batches(mixed, by_length=by_length)
    assert [len(batch) for batch in found] == [4] * 16
    assert all(len({mixed[index]["task"] for index in batch}) == 1 for batch in found)
    assert {index for batch in found for index in batch} == set(range(62))
    assert found == batches(mixed, by_length=by_length)
    assert found != batches(mixed, epoch=1, by_length=by_length)
    assert found != batches(mixed, seed=2, by_length=by_length)
    kinds = [mixed[batch[0]]["task"] for batch in found]
    assert kinds != sorted(kinds)
    assert any(a == b for a, b in pairwise(kinds))


def test_weights_are_shares_of_the_batches_and_rows_go_round():
    mixed = mixture((20, 60), (3.0, 1.0))
    drawn = [index for epoch in range(4) for batch in batches(mixed, epoch) for index in batch]
    counts = np.bincount(drawn, minlength=80)
    assert counts[:20].sum() == 4 * 60
    assert counts[20:].sum() == 4 * 20
    assert set(counts[:20]) == {12}  # pass after pass, no row twice before each came once
    assert counts[20:].min() >= 1 and counts[20:].max() <= 2
    one_epoch = [index for batch in batches(mixed) for index in batch if index < 20]
    assert np.bincount(one_epoch).tolist() == [3] * 20


def problems(path, *overrides):
    with pytest.raises(UserError) as caught:
        load(str(path), list(overrides))
    return [re.sub("^command line(?: with `recipe.toml`)?  +", "command line  ", line) for line in caught.value.details]


def test_every_mistake_is_named(place):
    assert problems(
        "recipe.toml",
        *(
            "tasks.fox.data.text_colum=x",
            "tasks.animals.weight=-1",
            "tasks.fox.size=2",
            "lora.r=4",
            "data.path=fox.csv",
        ),
        *("tasks.more.recipe=sst3", "tokenizer.type=wordpiece", "tasks.talk.task=chat", "tasks.talk.data.path=fox.csv"),
    ) == [
        "command line  tasks.fox.data.text_colum: unknown key, did you mean `text_column`?",
        "command line  tasks.animals.weight: must be a number above 0, not -1",
        "command line  tasks.fox.size: unknown key; a task has recipe, task, weight, data, evaluation",
        "command line  lora: an adapter is for one task only",
        "command line  data: each task has its own: set it in [tasks.NAME.data]",
        "command line  tasks.more.recipe: there is no task `sst3`; did you mean `sst2`?",
        "command line  tokenizer.type: the tasks share one tokenizer: name an existing one, or that of a run",
        'command line  tokenizer.type: a new tokenizer does not fit pretrained weights; set `model.init = "scratch"`',
        "command line  tasks.talk.task: must be one of text-classification, question-answering, token-classification, "
        "multiple-choice: the tasks share an encoder",
    ]
    assert problems("recipe.toml", "tasks.fox.weight=") == [
        "command line with line 5  tasks.fox.weight: required: another task has a weight"
    ]
    (place / "one.toml").write_text(RECIPE.replace("animals", "fox").split("[tasks.fox]")[0] + "[tasks]\n")
    assert problems("one.toml") == ["line 5  tasks: needs at least two tasks, each in a table [tasks.NAME]"]


def test_a_part_may_be_a_named_task_under_keys_of_its_own(place):
    (place / "named.toml").write_text(
        'task = "multi-task"\n[model]\nname = "base"\n'
        '[tasks.a]\nrecipe = "mnli"\n[tasks.b]\nrecipe = "cola"\ndata.path = "fox.csv"\n'
    )
    recipe = load("named.toml", ["tasks.a.data.split=train[:10]"])
    a, b = recipe.tasks["a"], recipe.tasks["b"]
    assert (a.data.path, a.data.name, a.data.split) == ("nyu-mll/glue", "mnli", "train[:10]")
    assert a.data.validation_split == ("validation_matched", "validation_mismatched")
    assert (b.data.path, b.data.name, b.evaluation.metrics) == (str(place / "fox.csv"), None, ("matthews_correlation",))
    (place / "again.toml").write_text(recipe.to_toml(comments=True))
    assert load("again.toml") == recipe


@pytest.mark.long
def test_two_processes_train_several_tasks(place, llmkit, two_processes):
    """Each process has a batch of a task of its own; the heads that rest do not hold the others up."""
    words = ("trainer.max_steps=40", "trainer.learning_rate=3e-3", "trainer.logging_steps=20")
    done = two_processes("finetune", "recipe.toml", *words, "--output-dir", "two")
    assert done.exit_code == 0, done.stderr
    first, *_, last = losses(place / "two")
    assert last < 0.7 * first
    metrics = json.loads((place / "two/run.json").read_text())["metrics"]
    for name in ("fox", "animals"):
        alone = json.loads(llmkit("evaluate", f"two/{name}").stdout)
        assert alone["eval_loss"] == pytest.approx(metrics[f"eval_{name}_loss"], rel=1e-5)


@pytest.mark.long
def test_a_finished_run_of_several_tasks_is_trained_longer(place, llmkit):
    words = ("trainer.lr_scheduler_type=constant", "trainer.save_steps=3")
    finetune(llmkit, *words, name="whole")
    finetune(llmkit, *words, "trainer.max_steps=4")
    assert "goes on unchanged: up to step" in finetune(llmkit, *words, "--resume")
    for name in ("fox", "animals"):
        weights = [(place / run / name / "model.safetensors").read_bytes() for run in ("run", "whole")]
        assert weights[0] == weights[1]
        assert json.loads((place / "run" / name / "run.json").read_text())["status"] == "finished"
