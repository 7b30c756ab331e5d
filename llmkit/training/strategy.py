"""How the processes of a run divide its work, and whether that is what was asked for.

Accelerate drops what does not fit the machine without a word: FSDP and DeepSpeed on a CPU, all processes but one of a
MULTI_CPU file, fp8. A run that trains otherwise than it was asked to is refused before its first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmkit.errors import RunError, UserError
from llmkit.training import sharded

FULL, SHARDED = "full", "sharded"  # what a checkpoint holds: all that one process has, or each process its part
FSDP, DEEPSPEED, DDP, NONE = "FSDP", "DeepSpeed", "DDP", "none"
TESTED = "llmkit has no test of it, and a wrong gradient would not be seen"


@dataclass(frozen=True)
class Strategy:
    """How the work is divided: `family` FSDP, DeepSpeed, DDP or none, `name` with the version or stage."""

    family: str
    name: str
    state: str  # FULL, SHARDED, or the family whose own files hold it

    @property
    def divides_weights(self) -> bool:
        return self.name == "ZeRO-3" or self.family == FSDP


def of(trainer: Any) -> Strategy:
    """Return the strategy that Accelerate has set up, whatever was asked for."""
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled:
        return Strategy(DEEPSPEED, f"ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}", DEEPSPEED)
    if trainer.is_fsdp_enabled:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            return Strategy(FSDP, "FSDP1", "FSDP1")
        adapter = hasattr(trainer.model, "peft_config")  # which is small
        whole = adapter or "FULL_STATE_DICT" in str(plugin.state_dict_type)
        return Strategy(FSDP, "FSDP2", FULL if whole else SHARDED)
    return Strategy(DDP, DDP, FULL) if trainer.args.world_size > 1 else Strategy(NONE, NONE, FULL)


def check(trainer: Any, asked: Mapping[str, Any]) -> None:
    """Raise UserError where the run is not what was asked for, or is divided in a way that has no test.

    `asked` is what the process that started this one has read: processes, strategy, device; keys may be missing.
    """
    args, found = trainer.args, of(trainer)
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    settings = {} if plugin is None else plugin.deepspeed_config
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    for what, *sizes in (
        ("tensor", trainer.get_tp_size(), getattr(parallelism, "tp_size", 1), _size(settings, "autotp_size")),
        ("context", trainer.get_cp_size()),
        ("sequence", trainer.get_sp_size(), settings.get("sequence_parallel_size", 1)),
    ):
        if (size := max(sizes)) > 1:
            raise UserError(
                f"{what} parallelism over {size} processes is not supported: {TESTED}", "use FSDP or DeepSpeed ZeRO"
            )
    _refuse_offload(trainer, found)
    processes = asked.get("processes", args.world_size)
    if processes != args.world_size:
        raise UserError(
            f"{processes} processes were asked for, and {args.world_size} {'was' if args.world_size == 1 else 'were'} "
            "started",
            "check distributed_type in the Accelerate file: NO starts one process, MULTI_GPU starts num_processes",
        )
    family = asked.get("strategy") or (DEEPSPEED if args.deepspeed else FSDP if args.fsdp else None)
    if family in (FSDP, DEEPSPEED) and family != found.family:
        why = "there is no GPU here" if args.device.type == "cpu" else f"it does not run on {args.device.type}"
        raise UserError(
            f"{family} was asked for, and Accelerate has dropped it: {why}",
            f"run it where there are GPUs, or train without {family}: --processes {args.world_size}",
        )
    if (device := asked.get("device")) and device != args.device.type:
        raise UserError(
            f"training on {device} was asked for, and this process has {args.device.type}",
            "check the driver, and that torch was built for that device",
        )


def _refuse_offload(trainer: Any, found: Strategy) -> None:
    """Raise UserError where weights are kept on the CPU and the processes can exchange nothing that is there.

    Accelerate adds gloo to NCCL for a file that asks for it, and not for [trainer].
    """
    offloads = found.name == "FSDP2" and bool(getattr(trainer.accelerator.state.fsdp_plugin, "cpu_offload", None))
    if not offloads or trainer.args.device.type == "cpu" or not torch.distributed.is_initialized():
        return
    backend = torch.distributed.get_backend_config()
    if "cpu:" not in backend:
        raise UserError(
            f"FSDP with CPU offload: the processes cannot exchange what is on the CPU (their backend is {backend})",
            "ask for it by an Accelerate file, with fsdp_offload_params: true in fsdp_config, or leave it out",
        )


def _size(settings: Mapping[str, Any], key: str) -> int:
    return int(settings.get("tensor_parallel", {}).get(key, 1))


def schedules_itself(trainer: Any) -> bool:
    """Tell whether optimizer or learning rate are DeepSpeed's own, by its configuration and not by [trainer]."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return plugin is not None and bool({"optimizer", "scheduler"} & plugin.deepspeed_config.keys())


def fit_wrapping(trainer: Any) -> None:
    """Leave out of the layers that FSDP2 divides one by one those that the model lacks, and those with embeddings.

    Accelerate takes all that transformers does not split, and divides the embeddings by themselves as well: BERT's
    would be divided twice, which fails. Layers that the user names stay as they are.
    """
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is None or plugin.fsdp_version != 2 or plugin.transformer_cls_names_to_wrap is not None:
        return
    whole = getattr(trainer.model, "_no_split_modules", None) or ()
    embeddings = trainer.model.get_input_embeddings()
    layers = [module for module in trainer.model.modules() if type(module).__name__ in whole]
    with_embeddings = {type(layer).__name__ for layer in layers if any(m is embeddings for m in layer.modules())}
    plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers} - with_embeddings)


def verify(trainer: Any) -> int:
    """Count the parameters that are divided once the model is placed; RunError where the strategy left them whole."""
    found, number = of(trainer), sharded.count(trainer.model)
    wrapped = type(trainer.model_wrapped).__name__
    if found.name in ("FSDP2", "ZeRO-3") and not number:
        raise RunError(f"{found.name} has divided no weight: each process holds the whole model")
    if found.family == DEEPSPEED and wrapped != "DeepSpeedEngine":
        raise RunError(f"{found.name} has no engine: the model is wrapped in {wrapped}")
    return number


def record(trainer: Any) -> dict[str, Any]:
    """Return what a run's record and its checkpoints say of it: what is, not what was asked for."""
    mixed = trainer.accelerator.mixed_precision
    found = of(trainer)
    return {
        "strategy": found.name,
        "state": found.state,
        "device": str(trainer.args.device),
        "precision": mixed if mixed != "no" else "fp32",
    }


def state_of(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return strategy and state of a checkpoint; one of an earlier version is known by its files."""
    if "state" in manifest:
        return manifest["strategy"], manifest["state"]
    names = set(manifest["files"])
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if any(name.startswith("global_step") for name in folders):
        return DEEPSPEED, DEEPSPEED
    if "pytorch_model_fsdp_0" in folders:
        return FSDP, SHARDED
    return (FSDP, FSDP) if "pytorch_model_fsdp.bin" in names else (DDP, FULL)


def refuse_other_state(trainer: Any, start: Any) -> None:
    """Raise UserError where a checkpoint's state cannot be read under the strategy of this run."""
    now, (strategy, state) = of(trainer), state_of(start.manifest)
    if state == FULL:
        readable = now.family != DEEPSPEED and now.name != "FSDP1"
    elif state == DEEPSPEED:
        readable = now.family == DEEPSPEED and strategy in (DEEPSPEED, now.name)
        if readable and start.manifest["processes"] != trainer.args.world_size:
            raise UserError(
                f"`{start.path}` was saved by DeepSpeed with {start.manifest['processes']} processes, and cannot be "
                f"resumed with {trainer.args.world_size}",
                f"use as many processes again, or {_from_weights(start)}",
            )
    else:
        readable = now.family == FSDP and (state != "FSDP1" or now.name == "FSDP1")
    if not readable:
        has = {FULL: "a whole state", SHARDED: "its state in shards"}.get(state, f"a state in {state}'s own files")
        raise UserError(
            f"`{start.path}` was saved under {strategy} with {has}, which {_reader(now)} cannot read",
            f"resume it under {strategy}, or {_from_weights(start)}",
        )


def _reader(strategy: Strategy) -> str:
    return "a run of one process" if strategy.family == NONE else strategy.name


def _from_weights(start: Any) -> str:
    return f"start a new run from its weights: model.name={start.path}"
