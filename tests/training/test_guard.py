"""Steps that would do harm are not taken, and are told of."""

import json

import pytest
import torch
from conftest import losses
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from llmkit.recipe.schema import Guard as Table
from llmkit.speed.fused_loss import FusedLMLoss
from llmkit.training.guard import ENOUGH, Guard, skip_step


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def poisoned(monkeypatch, steps):
    """The losses of these training steps are NaN."""
    sound, calls = FusedLMLoss.losses, []

    def losses(self, model, inputs, labels, label_smoothing=0.0, summed=False):
        found = sound(self, model, inputs, labels, label_smoothing, summed)
        calls.extend([1] * summed)
        return found * float("nan") if summed and len(calls) in steps else found

    monkeypatch.setattr(FusedLMLoss, "losses", losses)


def check(guard, step, loss, norm):
    return bool(guard.check(step, torch.tensor(float(loss)), torch.tensor(float(norm)), [torch.tensor([step])]))


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_told(optim, workplace, llmkit, monkeypatch):
    poisoned(monkeypatch, {3})
    done = llmkit(
        "pretrain", "causal.toml", f"trainer.optim={optim}", "trainer.save_steps=1", "trainer.save_total_limit=9"
    )
    assert done.exit_code == 0, done.stderr
    run = workplace / "runs/causal"
    weights = [load_file(run / f"checkpoint-{step}/model.safetensors") for step in (2, 3, 4)]
    assert all(tensor.isfinite().all() for tensor in weights[2].values())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[1][name], weights[2][name]) for name in weights[0])
    assert "step 3 skipped, not finite: loss nan" in done.stderr
    (told,) = [line for line in lines(run) if "skipped_step" in line]
    assert told["skipped_step"] == 3
    assert told["skipped_loss"] == "nan"
    assert len(told["examples"]) == 8
    assert [line["loss"] for line in lines(run) if "loss" in line][2] == "nan"
    record = json.loads((run / "run.json").read_text())
    assert record["metrics"]["skipped_steps"] == 1
    assert record["metrics"]["train_loss"] < 10


def test_the_examples_of_a_skipped_step_are_the_batchs(workplace, llmkit, monkeypatch):
    """They are the numbers of the blocks: with the data in its order, the second batch of 8."""
    poisoned(monkeypatch, {2})
    done = llmkit("pretrain", "causal.toml", "trainer.train_sampling_strategy=sequential")
    assert done.exit_code == 0, done.stderr
    (told,) = [line for line in lines(workplace / "runs/causal") if "skipped_step" in line]
    assert told["examples"] == list(range(8, 16))


def test_the_logged_loss_is_that_of_the_steps_that_were_taken(workplace, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "trainer.learning_rate=0", "trainer.max_steps=4", "--output-dir")
    assert llmkit(*words, "alone").exit_code == 0
    one, two, _, four = losses(workplace / "alone")
    poisoned(monkeypatch, {3})
    assert llmkit(*words, "mean", "trainer.logging_steps=4").exit_code == 0
    assert losses(workplace / "mean") == pytest.approx([one, (two + four) / 2], rel=1e-6)


def test_ten_in_a_row_stop_the_run_at_its_last_good_state(workplace, llmkit, monkeypatch):
    poisoned(monkeypatch, set(range(4, 14)))
    words = ("pretrain", "causal.toml", "trainer.max_steps=20", "--output-dir", "run")
    done = llmkit(*words, "guard.max_skipped_steps=10", "trainer.save_steps=3", "trainer.save_total_limit=9")
    assert done.exit_code == 1
    assert "10 steps in a row were skipped, up to step 13" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (workplace / "run/model.safetensors").exists()
    good, last = (load_file(workplace / f"run/checkpoint-{step}/model.safetensors") for step in (3, 13))
    assert all(torch.equal(good[name], last[name]) for name in good)
    assert json.loads((workplace / "run/run.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    done = llmkit(*words, "--resume", "guard.max_skipped_steps=10")
    assert done.exit_code == 0, done.stderr
    assert "resuming from run/checkpoint-13" in done.stderr


def test_nine_in_a_row_do_not(workplace, llmkit, monkeypatch):
    poisoned(monkeypatch, set(range(4, 13)))
    done = llmkit("pretrain", "causal.toml", "trainer.max_steps=20", "guard.max_skipped_steps=10")
    assert done.exit_code == 0, done.stderr


def test_a_gradient_that_is_not_finite_is_noticed_under_a_sound_loss():
    guard = Guard(Table(), torch.device("cpu"))
    assert check(guard, 1, 2.0, 1.0)
    assert not check(guard, 2, 2.0, float("inf"))
    assert not check(guard, 3, float("nan"), 1.0)
    assert [each.step for each in guard.read(3, lambda numbers: numbers)] == [2, 3]
    assert guard.in_a_row == 2


def test_a_spike_is_skipped_on_request_and_does_not_enter_the_window():
    guard = Guard(Table(spike_sigma=6.0), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    for step in range(ENOUGH):
        assert check(guard, step, 2 + 0.1 * torch.rand((), generator=draw), 1 + 0.1 * torch.rand((), generator=draw))
    for step in range(ENOUGH, ENOUGH + 50):  # were they counted, they would soon be usual
        assert not check(guard, step, 2.05, 9.0)
    assert not check(guard, 200, float("nan"), 1.0)
    assert check(guard, 201, 2.05, 1.05)
    told = guard.read(201, lambda numbers: numbers)
    assert len(told) == 51
    assert [each.spike for each in told] == [True] * 50 + [False]


def test_before_there_is_enough_to_compare_with_nothing_is_a_spike():
    guard = Guard(Table(spike_sigma=1.0), torch.device("cpu"))
    assert all(check(guard, step, 2.0, 1.0) for step in range(ENOUGH - 1))
    assert check(guard, ENOUGH - 1, 100.0, 100.0)


def test_the_window_is_kept_in_checkpoints():
    one, two = (Guard(Table(spike_sigma=6.0), torch.device("cpu")) for _ in range(2))
    for step in range(ENOUGH + 3):
        check(one, step, 2 + step % 2 * 0.1, 1.0)
    two.load_state_dict(one.state_dict())
    assert not check(two, 99, 50.0, 1.0)
    assert check(two, 100, 2.05, 1.0)


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_step_leaves_parameters_moments_and_counts(fused):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=fused)
    for gradient, ok in ((1.0, True), (float("nan"), False), (1.0, True)):
        weight.grad = torch.full((3,), gradient)
        before = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items()}
        skip_step(optimizer, [weight], torch.tensor(ok))
        optimizer.step()
        if ok:
            assert not torch.equal(weight, before[0])
        else:
            assert torch.equal(weight, before[0])
            assert all(torch.equal(optimizer.state[weight][k], v) for k, v in before[1].items())
    assert float(optimizer.state[weight]["step"]) == 2


def test_a_norm_on_another_device_than_the_loss_is_brought_there():
    """FSDP that offloads weights clips on the CPU, and the loss is on the GPU."""
    with FakeTensorMode():
        guard = Guard(Table(), torch.device("cuda"))
        ok = guard.check(1, torch.zeros((), device="cuda"), torch.zeros((), device="cpu"), [])
    assert ok.device.type == "cuda"


def test_a_step_that_another_rule_decides_is_counted():
    """DeepSpeed has taken a step by then, or skipped it."""
    guard = Guard(Table(), torch.device("cpu"))
    figures = torch.tensor([2.0, float("nan")])
    for step, taken in enumerate((True, False, True), 1):
        guard.note(step, torch.tensor(taken), torch.tensor(taken), figures, [torch.tensor([step])])
    assert guard.drain() == 2
    (skipped,) = guard.read(3, lambda numbers: numbers)
    assert (skipped.step, skipped.spike, skipped.overflow, skipped.examples) == (2, False, False, [2])


def test_only_a_loss_that_is_not_finite_counts_towards_the_end_of_an_fp16_run():
    """On any process: the others see that their own is."""
    guard = Guard(Table(), torch.device("cpu"), scaled=True)
    infinite = float("inf")
    for step, loss in enumerate((1.0, 1.0, infinite, 1.0), 1):
        check(guard, step, loss, infinite)
    skipped = guard.read(4, lambda numbers: numbers)
    assert [(each.overflow, each.in_a_row) for each in skipped] == [(True, 0), (True, 0), (False, 1), (True, 1)]
    check(guard, 5, 1.0, infinite)
    (elsewhere,) = guard.read(5, lambda numbers: [*numbers, 1])
    assert (elsewhere.overflow, elsewhere.in_a_row) == (False, 2)
