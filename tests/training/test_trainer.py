"""Where Trainer is overridden: the signatures still fit, the losses are what they should be."""

import inspect
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import losses
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from llmkit import recipe as recipes
from llmkit.training.assemble import assemble
from llmkit.training.resumable_trainer import ResumableTrainer
from llmkit.training.saving_trainer import SavingTrainer
from llmkit.training.trainer import Trainer

OVERRIDDEN = (
    *("compute_loss", "training_step", "prediction_step", "floating_point_ops", "_get_grad_norm"),
    *("evaluate", "_get_train_sampler", "_get_eval_sampler", "_get_dataloader", "save_model"),
    *("create_optimizer", "train", "_load_from_checkpoint"),
)
OF_RESUMING = (
    *("set_initial_training_values", "_init_training_state", "_run_epoch", "get_batch_samples"),
    *("_maybe_log_save_evaluate", "log", "_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state"),
    *("_issue_warnings_after_load", "_load_from_checkpoint", "create_scheduler"),
)
OF_SAVING = ("_save_checkpoint", "_load_best_model", "_save", "_determine_best_metric")
OURS = {Trainer: OVERRIDDEN, ResumableTrainer: OF_RESUMING, SavingTrainer: OF_SAVING}


@pytest.mark.parametrize(("of", "method"), [(of, name) for of, names in OURS.items() for name in names])
def test_an_overridden_method_has_upstreams_signature(of, method):
    """A release of transformers that moves one fails here and not in a night's training."""
    ours = inspect.signature(getattr(of, method)).parameters.values()
    theirs = inspect.signature(getattr(transformers.Trainer, method)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


def test_nothing_else_is_overridden():
    more = {Trainer: {"log", "_maybe_log_save_evaluate", "_load_best_model"}}
    for of, known in OURS.items():
        ours = {name for name in vars(of) if inspect.isfunction(vars(of)[name])} - {"__init__"}
        assert {name for name in ours if hasattr(transformers.Trainer, name)} == {*known, *more.get(of, ())}


def test_what_trainer_reads_of_us_is_still_there():
    source = inspect.getsource(transformers.Trainer)
    for name in ("loss_is_scaled_for_ga", "_loss_shifts_labels", "self.floating_point_ops(inputs)"):
        assert name in source


def independent_loss(model, blocks):
    """Nats a token over (input_ids, labels) pairs, one block at a time, in double precision."""
    total, count = 0.0, 0
    with torch.no_grad():
        for inputs, labels in blocks:
            logits = model(input_ids=inputs[None]).logits[0].double()
            chosen = labels != -100
            picked = F.log_softmax(logits[chosen], dim=-1).gather(1, labels[chosen, None])
            total -= float(picked.sum())
            count += int(chosen.sum())
    return total / count


def test_the_evaluation_loss_is_that_of_a_plain_loop(workplace, llmkit):
    """From the files of the run alone: text, tokenizer, model; batches of 5 do not divide the blocks, and the last of
    them is shorter."""
    (workplace / "held.txt").write_text("".join(f"the owl met {i} cats of the hen\n" for i in range(37)))
    done = llmkit(
        *("pretrain", "causal.toml", "data.path=.", 'data.data_files={train="corpus.txt", validation="held.txt"}'),
        *("trainer.per_device_eval_batch_size=5", "--output-dir", "run"),
    )
    assert done.exit_code == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained("run").eval()
    tokenizer = AutoTokenizer.from_pretrained("run")
    lines = (workplace / "held.txt").read_text().splitlines()
    row = torch.tensor([i for line in lines for i in [*tokenizer(line)["input_ids"], tokenizer.eos_token_id]])
    blocks = [(row[s : s + 16][: len(row) - 1 - s], row[s + 1 : s + 17]) for s in range(0, len(row) - 1, 16)]
    assert len(blocks) % 5
    assert len(blocks[-1][0]) < 16
    metrics = json.loads((workplace / "run/run.json").read_text())["metrics"]
    assert metrics["eval_loss"] == pytest.approx(independent_loss(model, blocks), rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(np.exp(metrics["eval_loss"]), rel=1e-6)
    num_bytes = sum(len(line.encode()) for line in lines)
    assert metrics["eval_bits_per_byte"] == pytest.approx(metrics["eval_loss"] / np.log(2) * (len(row) - 1) / num_bytes)


def test_the_masked_evaluation_loss_is_that_of_a_plain_loop(workplace, llmkit):
    assert (
        llmkit("pretrain", "masked.toml", "trainer.per_device_eval_batch_size=3", "--output-dir", "run").exit_code == 0
    )
    loaded = recipes.load("masked.toml")
    assembly = assemble(loaded, seed=42)
    collate = assembly.collate
    validation = assembly.validation["validation"]
    pairs = [collate([validation[i]]) for i in range(len(validation))]
    blocks = [(pair["input_ids"][0], pair["labels"][0]) for pair in pairs]
    model = AutoModelForMaskedLM.from_pretrained("run").eval()
    metrics = json.loads((workplace / "run/run.json").read_text())["metrics"]
    assert metrics["eval_loss"] == pytest.approx(independent_loss(model, blocks), rel=1e-5)


@pytest.mark.parametrize("kind", [pytest.param("causal", marks=pytest.mark.long), "masked"])
def test_eight_at_once_is_two_times_four_accumulated(kind, workplace, llmkit):
    """BertForMaskedLM ignores the token count that upstream hands it: its accumulated gradients would be summed."""
    for name, batch, accumulated in (("at-once", 8, 1), ("accumulated", 2, 4)):
        done = llmkit(
            *("pretrain", f"{kind}.toml", f"trainer.per_device_train_batch_size={batch}", "--output-dir", name),
            f"trainer.gradient_accumulation_steps={accumulated}",
            *("trainer.max_steps=20", "trainer.lr_scheduler_type=constant"),
        )
        assert done.exit_code == 0, done.stderr
    at_once, accumulated = losses(workplace / "at-once"), losses(workplace / "accumulated")
    assert len(at_once) == 20
    assert accumulated == pytest.approx(at_once, rel=1e-5)


# Written by `losses` of this very recipe; a change that claims not to alter results leaves them alone.
PINNED = {
    "causal": [5.6909, 5.3186, 5.1919, 4.8768, 4.6576, 4.5611],
    "masked": [4.4513, 4.3923, 4.0387, 4.0926, 3.9420, 4.2695],
}


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_loss_curve_is_pinned(kind, workplace, llmkit):
    assert llmkit("pretrain", f"{kind}.toml", "--output-dir", "run").exit_code == 0
    assert losses(workplace / "run") == pytest.approx(PINNED[kind], rel=1e-3)


def test_every_parameter_moves(workplace, llmkit):
    for steps in (1, 6):
        llmkit(
            "pretrain",
            "causal.toml",
            f"trainer.max_steps={steps}",
            "trainer.learning_rate=1e-2",
            "--output-dir",
            f"r{steps}",
        )
    before = AutoModelForCausalLM.from_pretrained("r1").state_dict()  # the schedule's first step has learning rate 0
    after = AutoModelForCausalLM.from_pretrained("r6").state_dict()
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert unmoved == []


def test_the_saved_model_keeps_its_cache_switched_on(workplace, llmkit):
    """Upstream turns use_cache off to train and would save that: every later user would generate without a cache."""
    llmkit("pretrain", "causal.toml", "trainer.max_steps=1", "trainer.save_steps=1", "--output-dir", "run")
    for folder in ("run", "run/checkpoint-1"):
        assert json.loads((workplace / folder / "config.json").read_text())["use_cache"] is True


def test_floating_point_operations_are_counted_as_upstream_counts_them(workplace, llmkit):
    llmkit("pretrain", "causal.toml", "--output-dir", "run")
    record = json.loads((workplace / "run/run.json").read_text())
    model = AutoModelForCausalLM.from_pretrained("run")
    tokens = 6 * 8 * 16
    assert record["metrics"]["total_flos"] == 6 * tokens * model.num_parameters(exclude_embeddings=True)
