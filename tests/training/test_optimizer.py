"""[optimizer]: which weights Muon has, whose rate is lower, and that a run goes on exactly with any of it."""

import json
import os
import shutil
import signal

import pytest
import torch
from conftest import losses
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    TrainingArguments,
)
from transformers import Trainer as Upstream

from llmkit.errors import UserError
from llmkit.recipe.schema import Optimizer
from llmkit.training.optimizer import MuonAndAdamW, create_optimizer, hidden_matrices
from llmkit.training.progress import MetricsFile

ALL = (
    *("optimizer.name=muon", "optimizer.learning_rate=0.02", "optimizer.layer_decay=0.8", "optimizer.ema=0.9"),
    *("trainer.weight_decay=0.1", "trainer.lr_scheduler_type=cosine", "trainer.save_steps=2"),
)


def stop_at(monkeypatch, step):
    """A signal comes when this step is logged: the one after it is the last."""
    logged = MetricsFile.on_log

    def on_log(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == step and "loss" in kwargs["logs"]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "on_log", on_log)


def gpt2():
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=40, n_layer=2, n_head=2, n_embd=16, n_positions=8))


def bert():
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32}
    config = BertConfig(**sizes, num_hidden_layers=3, num_attention_heads=2, num_labels=3)
    return AutoModelForSequenceClassification.from_config(config)


def made(model, tmp_path, **table):
    """The optimizer, with the names of the weights of each group in place of them."""
    args = TrainingArguments(str(tmp_path), learning_rate=0.1, weight_decay=0.01, use_cpu=True)
    decays = [name for name, each in model.named_parameters() if each.ndim > 1]
    optimizer = create_optimizer(model, Optimizer(**table), args, decays)
    names = {id(each): name for name, each in model.named_parameters()}
    groups = [({names[id(each)] for each in group["params"]}, group) for group in optimizer.param_groups]
    assert sorted(name for found, _ in groups for name in found) == sorted(names.values())
    return optimizer, groups


def rates(groups):
    return {name: group["lr"] for found, group in groups for name in found}


def test_muon_has_the_matrices_inside_the_layers_alone(tmp_path):
    optimizer, groups = made(gpt2(), tmp_path, name="muon", learning_rate=0.3, momentum=0.8, weight_decay=0.5)
    of_muon = [group for group in groups if "ns_steps" in group[1]]
    inside = {f"transformer.h.{n}.{part}.weight" for n in (0, 1) for part in ("attn.c_attn", "attn.c_proj")}
    inside |= {f"transformer.h.{n}.mlp.{part}.weight" for n in (0, 1) for part in ("c_fc", "c_proj")}
    assert [found for found, _ in of_muon] == [inside]
    settings = of_muon[0][1]
    assert (settings["lr"], settings["momentum"], settings["weight_decay"]) == (0.3, 0.8, 0.5)
    assert settings["adjust_lr_fn"] == "match_rms_adamw"
    assert {group["lr"] for found, group in groups if "ns_steps" not in group} == {0.1}
    assert optimizer.param_groups[0]["lr"] == 0.1  # which is logged


def test_a_step_with_both_is_a_step_with_each(tmp_path):
    torch.manual_seed(0)
    ours = gpt2()
    theirs = gpt2()
    theirs.load_state_dict(ours.state_dict())
    both, _ = made(ours, tmp_path, name="muon")
    assert isinstance(both, MuonAndAdamW)
    matrices = hidden_matrices(theirs)
    split = {True: [], False: []}
    for each in theirs.parameters():
        split[id(each) in matrices].append(each)
    args = TrainingArguments(str(tmp_path), learning_rate=0.1, use_cpu=True)
    kind, options = Upstream.get_optimizer_cls_and_kwargs(args, theirs)
    alone = [torch.optim.Muon(split[True], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")]
    rest = [each for each in split[False] if each.ndim > 1], [each for each in split[False] if each.ndim == 1]
    groups = [{"params": part, "weight_decay": decay} for part, decay in zip(rest, (0.01, 0.0), strict=True)]
    alone.append(kind(groups, **options))
    text = torch.arange(8)[None]
    ours.eval(), theirs.eval()
    for _ in range(3):
        for model, optimizers in ((ours, [both]), (theirs, alone)):
            model(input_ids=text, labels=text).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_schedule_acts_on_every_group(tmp_path):
    optimizer, groups = made(bert(), tmp_path, name="muon", learning_rate=0.4, layer_decay=0.5)
    before = [group["lr"] for _, group in groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [rate / 2 for rate in before]
    assert len(set(before)) > 4


def test_rates_fall_by_layer_down_to_the_embeddings(tmp_path):
    _, groups = made(bert(), tmp_path, layer_decay=0.5)
    found = rates(groups)
    assert found["classifier.weight"] == found["bert.pooler.dense.weight"] == 0.1
    assert [found[f"bert.encoder.layer.{n}.output.dense.bias"] for n in (2, 1, 0)] == [0.05, 0.025, 0.0125]
    assert {rate for name, rate in found.items() if ".embeddings." in name} == {0.00625}
    _, groups = made(gpt2(), tmp_path, layer_decay=0.5)
    found = rates(groups)
    assert found["transformer.ln_f.weight"] == 0.1
    assert found["transformer.wte.weight"] == found["transformer.wpe.weight"] == 0.0125


def test_a_head_has_a_rate_of_its_own(tmp_path):
    _, groups = made(bert(), tmp_path, head_learning_rate=0.7)
    assert {name for name, rate in rates(groups).items() if rate == 0.7} == {"classifier.weight", "classifier.bias"}
    assert {group["weight_decay"] for found, group in groups if group["lr"] == 0.7} == {0.01, 0.0}
    with pytest.raises(UserError, match="has no head that is trained apart"):
        made(gpt2(), tmp_path, head_learning_rate=0.7)
    with pytest.raises(UserError, match="no matrices in layers"):
        made(nn.Linear(2, 2), tmp_path, name="muon")


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_goes_on_bit_for_bit_with_all_of_it(killed, workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", *ALL, "trainer.eval_strategy=steps", "trainer.eval_steps=3", "--output-dir")
    assert llmkit(*words, "whole").exit_code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert llmkit(*words, "parts").exit_code == 75
    if killed:  # it would have left the checkpoint before alone
        shutil.rmtree(workplace / "parts/checkpoint-3")
    done = llmkit(*words, "parts", "--resume")
    assert done.exit_code == 0, done.stderr
    assert f"resuming from parts/checkpoint-{2 if killed else 3}" in done.stderr
    assert losses(workplace / "parts") == losses(workplace / "whole")
    for file in ("model", "checkpoint-6/model", "checkpoint-6/optimizer", "checkpoint-6/trained-weights"):
        one, other = (workplace / run / f"{file}.safetensors" for run in ("parts", "whole"))
        assert one.read_bytes() == other.read_bytes(), file
    evaluated = [
        [json.loads(line)["eval_loss"] for line in lines.splitlines() if "eval_loss" in line]
        for lines in ((workplace / run / "metrics.jsonl").read_text() for run in ("parts", "whole"))
    ]
    assert evaluated[0] == evaluated[1] != []
    assert json.loads((workplace / "whole/run.json").read_text())["settings"]["optimizer"]["name"] == "muon"


def test_the_average_is_evaluated_and_saved_and_training_does_not_see_it(workplace, llmkit):
    words = ("pretrain", "causal.toml", "trainer.save_steps=1", "trainer.save_total_limit=9", "--output-dir")
    assert llmkit(*words, "plain").exit_code == 0
    done = llmkit(*words, "averaged", "optimizer.ema=0.3")
    assert done.exit_code == 0, done.stderr
    assert losses(workplace / "averaged") == losses(workplace / "plain")
    average = None
    for step in range(1, 7):
        folder = workplace / f"averaged/checkpoint-{step}"
        plain = load_file(workplace / f"plain/checkpoint-{step}/model.safetensors")
        trained = load_file(folder / "trained-weights.safetensors")
        assert len(trained) == len(plain)
        if average is not None:
            share = torch.tensor(1 - min(0.3, (1 + step) / (10 + step)))
            average = {name: average[name].lerp(plain[name], share) for name in plain}
            found = load_file(folder / "model.safetensors")
            assert all(torch.allclose(found[name], average[name], atol=1e-6) for name in plain)
        average = load_file(folder / "model.safetensors")
    assert (workplace / "averaged/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    evaluated = llmkit("evaluate", "averaged", "--json")
    assert json.loads(evaluated.stdout)["eval_loss"] == pytest.approx(
        json.loads((workplace / "averaged/run.json").read_text())["metrics"]["eval_loss"], rel=1e-4
    )


def test_the_best_checkpoint_is_the_best_average(workplace, llmkit):
    words = ("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=2", "optimizer.ema=0.9")
    words += ("trainer.load_best_model_at_end=true", "trainer.metric_for_best_model=loss")
    done = llmkit("pretrain", "causal.toml", *words, "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    best = json.loads((workplace / "run/run.json").read_text())["best"]["step"]
    saved = [(workplace / f"run/{folder}model.safetensors").read_bytes() for folder in ("", f"checkpoint-{best}/")]
    assert saved[0] == saved[1]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("optimizer.name=muon", "optimizer.name: adamw -> muon"),
        ("optimizer.ema=0.9", "optimizer.ema: not set -> 0.9"),
    ],
)
def test_another_optimizer_is_another_run(change, shown, workplace, llmkit, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit("pretrain", "causal.toml", "--output-dir", "run").exit_code == 75
    done = llmkit("pretrain", "causal.toml", change, "--output-dir", "run", "--resume")
    assert done.exit_code == 2
    assert shown in done.stderr
    key = change.partition("=")[0]
    done = llmkit("pretrain", "causal.toml", change, "--output-dir", "run", "--resume", "--allow-change", "optimizer")
    assert done.exit_code == 2
    assert f"keep {key}" in done.stderr
    lacks = workplace / "run/recipe.toml"  # as an earlier version wrote it
    lacks.write_text(lacks.read_text().replace('[optimizer]\nname = "adamw"  # default\n', ""))
    assert "[optimizer]" not in lacks.read_text()
    assert llmkit("pretrain", "causal.toml", "--output-dir", "run", "--resume").exit_code == 0


def test_weights_that_are_divided_are_refused_in_words(workplace, llmkit, monkeypatch):
    monkeypatch.setattr("llmkit.training.trainer.Trainer._whole_weights", lambda self: False)
    done = llmkit("pretrain", "causal.toml", "optimizer.name=muon")
    assert done.exit_code == 2
    assert "FSDP, DeepSpeed" in done.stderr
