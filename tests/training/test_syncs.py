"""Between two looks at what it has found, a training does not wait for a GPU. No GPU is here: what waits is counted.

On a CPU nothing waits, and the operations are the same: those that bring a number to Python, or whose result has a
shape that depends on numbers. A device without numbers refuses them.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

import llmkit
from llmkit.recipe import load
from llmkit.recipe.schema import Guard as Table
from llmkit.speed.fused_loss import FusedLMLoss
from llmkit.training import guard, train

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "_unique2", "bincount")
OURS = str(Path(llmkit.__file__).parent)
LIBRARIES = ("/transformers/", "/accelerate/", "/peft/", "/torch/optim/", "/torch/nn/")


class Waiting(TorchDispatchMode):
    """Notes each operation that would wait for a GPU, by who asked for it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._schema.name.removeprefix("aten::") in WAITING:
            self.found.append((operation._schema.name, self._asked_by()))
        return operation(*args, **(kwargs or {}))

    def _asked_by(self):
        frame = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(OURS) or any(part in file for part in LIBRARIES):
                return f"{file}:{frame.f_lineno}"
            frame = frame.f_back
        return "nobody"


class Between(TrainerCallback):
    """Counts from the end of the second step, as the first is logged, to that of the ninth."""

    def __init__(self):
        self.mode = Waiting()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.mode.__enter__()
        elif state.global_step == guard.READ_EVERY - 1:
            self.mode.__exit__(None, None, None)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    made = guard.Guard.__init__

    def make(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.every = guard.READ_EVERY

    monkeypatch.setattr(guard.Guard, "__init__", make)


def asked_for(words, workplace):
    watch = Between()
    quiet = ("trainer.max_steps=12", "trainer.logging_steps=50", "trainer.save_strategy=no", "speed.fast_dropout=false")
    recipe = load("causal.toml", [*quiet, "samples.prompts=[]", *words], None, None, "pretrain")
    train.run(recipe, workplace / "run", resume=False, watch=watch)
    on_the_host = f"{OURS}/data/"  # batches are made there, before they go to a GPU
    return [(name, by) for name, by in watch.mode.found if by.startswith(OURS) and not by.startswith(on_the_host)]


@pytest.mark.parametrize("words", [(), ("trainer.gradient_accumulation_steps=2",)])
def test_steps_of_running_text_wait_for_nothing(words, workplace, as_on_a_gpu):
    assert asked_for(words, workplace) == []


def test_what_waits_is_found(workplace, as_on_a_gpu):
    """Documents that are kept apart have positions without a label, which are asked for."""
    found = asked_for(("data.pack=isolated",), workplace)
    assert {name for name, _ in found} == {"aten::nonzero"}
    assert len(found) == 7  # one a step


def test_a_step_on_a_device_without_numbers():
    """Forward, loss, backward, and the guard's check: none of them may look at a number."""
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    head = FusedLMLoss(model, all_learned=True)
    model.to("meta")
    ids = torch.ones(2, 8, dtype=torch.long, device="meta")
    inputs = {"inputs_embeds": model.transformer.wte(ids)}
    watch = guard.Guard(Table(spike_sigma=6.0), torch.device("meta"))
    loss = _losses(head, model, inputs, ids)
    loss.backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.param_groups[0]["fused"] = True  # which torch refuses for a device that is none
    ok = watch.check(1, loss, model.lm_head.weight.grad.norm(), [])
    guard.skip_step(optimizer, list(model.parameters()), ok)
    assert watch.read(1, lambda numbers: numbers) == []
    assert optimizer.found_inf.device.type == "meta"
    head.all_learned = False
    with pytest.raises(NotImplementedError, match="nonzero"):
        _losses(head, model, inputs, ids)


def _losses(head, model, inputs, labels):
    """The loss, on a device that torch knows no autocast for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "is_autocast_enabled", lambda kind: False)
        return head.losses(model, inputs, labels, summed=True)
