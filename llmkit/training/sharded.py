"""Weights and optimizer states that FSDP2 divides among the processes: gather them whole, and load whole ones.

So a checkpoint with full states has the files of one process, and is read under any strategy but DeepSpeed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor, distribute_tensor

from llmkit.errors import RunError
from llmkit.models.loading import ADAPTER_WEIGHTS


def gather(value: Any, keep: bool) -> Any:
    """Gather every DTensor inside nested dicts, lists and tuples; call it on all processes, in the same order.

    Only where `keep` is set the result is kept, in the memory of the CPU: the others return what is empty.
    """
    if isinstance(value, DTensor):
        whole = value.detach().full_tensor()
        return whole.cpu() if keep else None
    if isinstance(value, Mapping):
        gathered = {key: gather(item, keep) for key, item in value.items()}
        return gathered if keep else {}
    if isinstance(value, list | tuple):
        items = [gather(item, keep) for item in value]
        return type(value)(items) if keep else type(value)()
    return value


def divide_optimizer_state(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Divide a whole `state_dict` as the parameters of `optimizer` are, for its `load_state_dict`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def part(value: Any, parameter: torch.Tensor) -> Any:
        if not (torch.is_tensor(value) and isinstance(parameter, DTensor) and value.shape == parameter.shape):
            return value
        return _part_of(value, parameter)

    state = {
        number: {key: part(value, parameters[number]) for key, value in moments.items()}
        for number, moments in saved["state"].items()
    }
    return {**saved, "state": state}


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Load the whole weights of a checkpoint, or its adapter, into a divided model; each process reads its part.

    Raises RunError where a tensor is missing or does not fit.
    """
    targets = _targets(model)
    cut = any(hasattr(layer, "lora_start") for layer in model.modules())  # behind them is what `save_as_lora` adds
    filled: set[int] = set()
    for name, value in _tensors(checkpoint):
        target = targets.get(name)
        if target is None:
            raise RunError(f"{checkpoint.name} contains {name}, which the model does not have")
        if cut:
            value = value[tuple(slice(size) for size in target.shape)]
        if value.shape != target.shape:
            raise RunError(f"{checkpoint.name}: {name} is {list(value.shape)}, and {list(target.shape)} in the model")
        with torch.no_grad():
            if isinstance(target, DTensor):
                target.to_local().copy_(_part_of(value, target).to_local())
            else:
                target.copy_(value)
        filled.add(id(target))
    if lacking := sorted(name for name, target in targets.items() if id(target) not in filled):
        raise RunError(f"{checkpoint.name} lacks {lacking[0]}", "does it belong to this recipe's model?")


@contextmanager
def reading(plugin: Any, checkpoint: Path) -> Iterator[None]:
    """Let Accelerate's functions read the format that a checkpoint of FSDP has, whatever the next one is to have."""
    names = ("state_dict_type", "state_dict_config", "optim_state_dict_config")
    before = [getattr(plugin, name) for name in names]
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # so that those of the format are made
    shards = (checkpoint / "pytorch_model_fsdp_0").is_dir()
    plugin.set_state_dict_type("SHARDED_STATE_DICT" if shards else "FULL_STATE_DICT")
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(plugin, name, value)


def num_parameters(model: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Count the parameters of a model as transformers does; ZeRO-3 leaves tensors of no elements in their place."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad or not only_trainable]
    if not any(hasattr(parameter, "ds_numel") for parameter in parameters):
        return int(model.num_parameters(only_trainable=only_trainable, exclude_embeddings=exclude_embeddings))
    embeddings = {id(m.weight) for m in model.modules() if exclude_embeddings and isinstance(m, torch.nn.Embedding)}
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters if id(p) not in embeddings)


def count(model: torch.nn.Module) -> int:
    """Count the parameters of which each process holds a part alone: DTensors, and those of ZeRO-3."""
    return sum(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())


def _part_of(value: torch.Tensor, like: DTensor) -> DTensor:
    """Return this process's part of a tensor that all of them have; nobody communicates."""
    return distribute_tensor(value.to(like.dtype), like.device_mesh, like.placements, src_data_rank=None)


def _targets(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what a checkpoint of `model` holds, by name; tied weights are one tensor under two names."""
    tensors = model.state_dict(keep_vars=True)
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(model, state_dict=tensors))
    return dict(tensors)


def _tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the tensors of a checkpoint's weights, or of its adapter, one by one."""
    adapter = checkpoint / ADAPTER_WEIGHTS
    for file in [adapter] if adapter.is_file() else sorted(checkpoint.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (it is no mapping)
                yield name, content.get_tensor(name)
