"""Several processes train by what was asked for, to the losses of one; a dropped strategy cannot pass.

FSDP2 and a loss scaler run here on CPUs (tests/on_cpu); DeepSpeed in `make distributed`.
"""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import losses
from safetensors.torch import load_file

from llmkit.errors import RunError, UserError
from llmkit.training import strategy

HALF = "trainer.per_device_train_batch_size=4"
WORDS = ("pretrain", "causal.toml", "model.config.attn_pdrop=0.0", "trainer.lr_scheduler_type=constant")
SHORT = ("samples.prompts=[]", "trainer.save_steps=3", "trainer.save_total_limit=9")
FSDP = ("trainer.fsdp=true",)
SHARDED = (*FSDP, 'trainer.fsdp_config={state_dict_type="SHARDED_STATE_DICT"}')
ON_CPU = Path(__file__).parents[1] / "on_cpu"
KEEP = f"import sys; sys.path.insert(0, {str(ON_CPU)!r}); import on_cpu; on_cpu.keep({{!r}})"


def record(run):
    return json.loads((run / "run.json").read_text())


def weights(run):
    return load_file(run / "model.safetensors")


@pytest.mark.long
def test_fsdp_trains_to_the_losses_of_one_process_and_its_state_is_anybodys(workplace, llmkit, two_processes):
    """Six steps under FSDP2, three more under DDP, three at another learning rate under FSDP2 that leaves shards."""
    one = (*WORDS, *SHORT, "--output-dir", "one")
    slower = ("--resume", "trainer.max_steps=12", "trainer.learning_rate=2e-3")
    slower += ("--allow-change", "trainer.learning_rate")
    assert llmkit(*one, "trainer.max_steps=9").exit_code == 0
    assert llmkit(*one, *slower).exit_code == 0
    run, name = workplace / "two", ("--output-dir", "two")
    in_parts = "; import llmkit.speed.fused_loss as fused_loss; fused_loss.AT_ONCE = 2**12"
    done = two_processes(*WORDS, HALF, *SHORT, *FSDP, *name, first=KEEP.format("fsdp") + in_parts)
    assert done.exit_code == 0, done.stderr
    assert record(run)["speed"]["fused_loss"] is True
    assert (record(run)["strategy"], record(run)["state"]) == ("FSDP2", "full")
    assert record(run)["sharded_tensors"] == len([key for key in weights(workplace / "one") if key != "lm_head.weight"])
    done = two_processes(*WORDS, HALF, *SHORT, *name, "--resume", "trainer.max_steps=9")
    assert done.exit_code == 0, done.stderr
    assert (record(run)["strategy"], record(run)["sharded_tensors"]) == ("DDP", 0)
    done = two_processes(*WORDS, HALF, *SHORT, *SHARDED, *name, *slower, first=KEEP.format("fsdp"))
    assert done.exit_code == 0, done.stderr
    assert losses(run) == pytest.approx(losses(workplace / "one"), rel=1e-5)
    assert len(losses(run)) == 12
    manifest = json.loads((run / "checkpoint-12/manifest.json").read_text())
    known = ("strategy", "state", "device", "precision")
    assert [manifest[key] for key in known] == ["FSDP2", "sharded", "cpu:0", "fp32"]
    assert not (run / "checkpoint-12/model.safetensors").exists()
    said = [llmkit("generate", "the", "--model", f"two{part}", "--seed", "1").stdout for part in ("", "/checkpoint-12")]
    assert said[0] == said[1] != ""
    refused = llmkit(*WORDS, *SHORT, *name, *slower, "trainer.max_steps=15")
    assert refused.exit_code == 2
    assert "was saved under FSDP2 with its state in shards, which a run of one process cannot read" in refused.stderr


def test_a_strategy_that_is_dropped_is_refused(workplace, two_processes):
    done = two_processes(*WORDS, HALF, *FSDP)
    assert done.exit_code == 2
    assert "FSDP was asked for, and Accelerate has dropped it: there is no GPU here" in done.stderr
    assert not (workplace / "runs").exists()


@pytest.mark.long
def test_steps_whose_fp16_gradients_overflow_are_skipped_and_the_others_counted(workplace, two_processes, monkeypatch):
    """However many in a row, they end no run: the scale is halved each time. Then losses are numbers."""
    monkeypatch.setenv("LOSS_SCALE", str(2**27))
    done = two_processes(*WORDS, HALF, "trainer.fp16=true", "trainer.max_steps=20", first=KEEP.format("fp16"))
    assert done.exit_code == 0, done.stderr
    run = workplace / "runs/causal"
    skipped = record(run)["metrics"]["skipped_steps"]
    assert skipped > 5
    assert done.stderr.count("skipped: fp16 gradients overflowed, and the loss scale is lowered") == skipped
    numbers = [loss for loss in losses(run) if loss != "nan"]
    assert losses(run)[:6] == ["nan"] * 6
    assert len(numbers) == 20 - skipped
    assert all(0 < loss < 7 for loss in numbers)
    assert record(run)["metrics"]["train_loss"] == pytest.approx(sum(numbers) / len(numbers), rel=1e-3)
    assert record(run)["precision"] == "fp16"


def trainer(world_size=1, device="cpu", fsdp=None, zero=None, parallelism=None, **sizes):
    """What `strategy` looks at."""
    plugin = None if zero is None else SimpleNamespace(zero_stage=zero, deepspeed_config={})
    state = SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=fsdp)
    return SimpleNamespace(
        args=SimpleNamespace(world_size=world_size, device=torch.device(device), fsdp=None, deepspeed=None),
        accelerator=SimpleNamespace(state=state, parallelism_config=parallelism, mixed_precision="no"),
        is_deepspeed_enabled=zero is not None,
        is_fsdp_enabled=fsdp is not None,
        model=torch.nn.Linear(2, 2),
        model_wrapped=torch.nn.Linear(2, 2),
        **{f"get_{name}_size": partial(sizes.get, name, 1) for name in ("tp", "cp", "sp")},
    )


@pytest.mark.parametrize(
    ("found", "asked", "said"),
    [
        ({}, {"processes": 2}, "2 processes were asked for, and 1 was started"),
        ({"world_size": 2}, {"strategy": "DeepSpeed"}, "DeepSpeed was asked for, and Accelerate has dropped it"),
        ({}, {"device": "xpu"}, "training on xpu was asked for, and this process has cpu"),
        ({"world_size": 2, "sp": 2}, {}, "sequence parallelism over 2 processes is not supported"),
        ({"world_size": 2, "parallelism": SimpleNamespace(tp_size=2)}, {}, "tensor parallelism over 2 processes"),
    ],
)
def test_what_was_asked_for_and_is_not_is_named(found, asked, said):
    with pytest.raises(UserError, match=said):
        strategy.check(trainer(**found), asked)


@pytest.mark.parametrize(
    ("backend", "device", "offload", "refused"),
    [
        ("cuda:nccl", "cuda", True, True),
        ("cpu:gloo,cuda:nccl", "cuda", True, False),
        ("cuda:nccl", "cuda", False, False),
        ("cpu:gloo", "cpu", True, False),
    ],
)
def test_offload_without_a_way_to_exchange_is_refused(backend, device, offload, refused, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda: backend)
    plugin = SimpleNamespace(
        fsdp_version=2, state_dict_type="FULL_STATE_DICT", cpu_offload=object() if offload else None
    )
    with pytest.raises(UserError, match="the processes cannot exchange") if refused else nullcontext():
        strategy.check(trainer(world_size=2, device=device, fsdp=plugin), {})


def test_a_strategy_that_divides_nothing_ends_the_run():
    with pytest.raises(RunError, match="ZeRO-3 has divided no weight"):
        strategy.verify(trainer(world_size=2, zero=3))
    with pytest.raises(RunError, match="ZeRO-2 has no engine: the model is wrapped in Linear"):
        strategy.verify(trainer(world_size=2, zero=2))


PLUGIN = SimpleNamespace(fsdp_version=2, state_dict_type="StateDictType.FULL_STATE_DICT")
OF_DEEPSPEED = {"strategy": "ZeRO-2", "state": "DeepSpeed", "processes": 2}


@pytest.mark.parametrize(
    ("manifest", "now", "said"),
    [
        (OF_DEEPSPEED, {"world_size": 2}, "saved under ZeRO-2 with a state in DeepSpeed's own files, which DDP cannot"),
        (OF_DEEPSPEED, {"world_size": 2, "zero": 3}, "which ZeRO-3 cannot read"),
        (
            OF_DEEPSPEED,
            {"world_size": 4, "zero": 2},
            "saved by DeepSpeed with 2 processes, and cannot be resumed with 4",
        ),
        ({"strategy": "DDP", "state": "full"}, {"world_size": 2, "zero": 2}, "with a whole state, which ZeRO-2 cannot"),
        ({"files": ["global_step3/a.pt"]}, {}, "saved under DeepSpeed with a state in DeepSpeed's own files"),
        ({"files": ["pytorch_model_fsdp_0/a"]}, {}, "saved under FSDP with its state in shards"),
        ({"files": ["pytorch_model_fsdp.bin"]}, {}, "saved under FSDP with a state in FSDP's own files"),
    ],
)
def test_a_state_that_another_strategy_cannot_read_is_refused(manifest, now, said):
    start = SimpleNamespace(path="run/checkpoint-3", manifest=manifest)
    with pytest.raises(UserError, match=said):
        strategy.refuse_other_state(trainer(**now), start)


@pytest.mark.parametrize(
    ("manifest", "now"),
    [
        (OF_DEEPSPEED, {"world_size": 2, "zero": 2}),
        ({"strategy": "DDP", "state": "full"}, {"world_size": 2, "fsdp": PLUGIN}),
        ({"strategy": "FSDP2", "state": "full"}, {}),
        ({"files": ["pytorch_model_fsdp.bin"]}, {"world_size": 2, "fsdp": PLUGIN}),
        ({"files": ["model.safetensors", "optimizer.json"]}, {}),
    ],
)
def test_a_state_that_this_strategy_reads_is_taken(manifest, now):
    strategy.refuse_other_state(trainer(**now), SimpleNamespace(path="run/checkpoint-3", manifest=manifest))
