"""What of a model is trained: all of it, its head, its last layers, or an adapter; in full precision or over 4 bits."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmkit import disk
from llmkit.errors import UserError
from llmkit.models.loading import ADAPTER_WEIGHTS, quiet
from llmkit.models.quantization import four_bits
from llmkit.recipe.schema import Model

# peft's task types with a head of their own, which is trained and saved with the adapter.
WITH_HEAD = ("SEQ_CLS", "QUESTION_ANS", "TOKEN_CLS")
# What attention layers call the linear maps to queries and values (or to both), most common first.
ATTENTION = (
    *(("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("query_proj", "value_proj"), ("q", "v")),
    *(("Wqkv",), ("qkv_proj",), ("query_key_value",), ("c_attn",)),
)


def freeze(model: Any, part: str, new: set[str]) -> None:
    """Leave trainable what `part` names: the "head" and what is `new`; with "top-K", K layers and what follows them.

    The layers are the longest list of modules in the base model, or the lists, where several are as long (an encoder's
    and a decoder's). What comes after them (a norm, a pooler) comes so in the order of the model's definition.
    """
    kind, base = type(model).__name__, model.base_model
    inside = {id(parameter) for parameter in base.parameters()}
    if base is model:
        raise UserError(f"model.train: {kind} does not separate its head from its layers", 'use model.train = "all"')
    if part == "head" and any(
        id(p) in inside for name in heads_of(model) for p in model.get_submodule(name).parameters()
    ):
        raise UserError(
            f'model.train = "head": {kind} has no separate head: its output layer is its input embeddings (tied)',
            'train its last layers instead: model.train = "top-2"',
        )
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) not in inside or name in new)
    if part == "head":
        return
    places = places_of(base)
    length = max(map(len, lists_of_layers(base).values()), default=0)
    first = length - int(part.removeprefix("top-"))
    if first < 0:
        raise UserError(f'model.train = "{part}": {kind} has only {length} layers')
    for parameter in base.parameters():
        if places[id(parameter)] > first:
            parameter.requires_grad_(True)


def lists_of_layers(module: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the outermost lists of modules inside `module` by path: its layers, and where it has them others."""
    lists: dict[str, nn.ModuleList] = {}
    for path, inner in module.named_modules():
        if isinstance(inner, nn.ModuleList) and not path.startswith(tuple(f"{outer}." for outer in lists)):
            lists[path] = inner
    return lists


def places_of(base: nn.Module) -> dict[int, int]:
    """Return where each parameter of a base model stands, by its id: 0 before the layers, N in the Nth, then behind.

    The layers are the longest list of modules, or the lists, where several are as long (an encoder's and a decoder's).
    Embedding tables stand before them wherever they are defined, outside of a layer.
    """
    lists = lists_of_layers(base)
    length = max(map(len, lists.values()), default=0)
    layers = [f"{path}." for path in lists if len(lists[path]) == length]
    embeddings = embedded(base)
    places, reached = {}, False
    for name, parameter in base.named_parameters():
        within = next((path for path in layers if name.startswith(path)), None)
        if within is not None:
            reached = True
            places[id(parameter)] = int(name.removeprefix(within).split(".")[0]) + 1
        else:
            places[id(parameter)] = length + 1 if reached and id(parameter) not in embeddings else 0
    return places


def embedded(module: nn.Module) -> set[int]:
    """Return the ids of the parameters of embedding tables inside `module`."""
    tables = (inner for inner in module.modules() if isinstance(inner, nn.Embedding))
    return {id(parameter) for table in tables for parameter in table.parameters()}


def adapt(model: Any, lora: Mapping[str, Any], task_type: str | None, new: set[str], table: Model) -> Any:
    """`model` with a LoRA adapter; its head, or `lora.modules_to_save`, is trained whole and saved with the adapter.

    So is what is `new` in it, always: frozen, it would stay random, and nothing would save it.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    modules = dict(model.named_modules())
    heads = heads_of(model) if task_type in WITH_HEAD else []
    whole = list(lora.get("modules_to_save") or heads)
    whole += [path for path in outermost(model, new) if path in modules and path.split(".")[0] not in whole]
    settings: dict[str, Any] = {
        "task_type": task_type,
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in modules.values()),  # GPT-2's layers
        **lora,
        "modules_to_save": whole or None,
    }
    if "target_modules" not in lora and "target_parameters" not in lora:
        settings["target_modules"] = _targets(model)
    try:
        with quiet():
            adapter = LoraConfig(**settings)
            if table.load_in_4bit:  # whether it recomputes activations is trainer.gradient_checkpointing's to say
                model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
            model = get_peft_model(model, adapter, revision=table.revision)
    except (ImportError, TypeError, ValueError) as problem:
        raise UserError(f"[lora]: {str(problem).splitlines()[0]}") from problem
    if str(adapter.init_lora_weights).lower().startswith(("pissa", "olora")):
        _note_start(model)
    return model


def _note_start(model: Any) -> None:
    """Keep in each layer the adapter that it starts with, which PiSSA and OLoRA have taken out of the base."""
    from peft.tuners.lora import LoraLayer

    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        rank, name = layer.r["default"], path.removeprefix("base_model.model.")
        if "default" not in layer.lora_A:
            raise UserError(
                f"lora.init_lora_weights works for linear layers only, and {name} is not one",
                "leave that layer out of lora.target_modules, or leave out lora.init_lora_weights",
            )
        a, b = (part["default"].weight.detach().clone() for part in (layer.lora_A, layer.lora_B))
        if len(a) < rank:
            raise UserError(f"lora.r = {rank} is too large for {name}, which allows {len(a)} at most")
        if uses[id(layer.get_base_layer().weight)] > 1:
            raise UserError(
                f"lora.init_lora_weights would change the weights of {name}, which another layer shares (tied)",
                "leave that layer out of lora.target_modules, or leave out lora.init_lora_weights",
            )
        layer.lora_start = a, b
        layer.register_load_state_dict_pre_hook(_without_start)


def save_as_lora(model: Any, directory: Path) -> None:
    """Rewrite the adapter saved in `directory` as a plain one of twice the rank, where its start changed the base.

    With A0 and B0 as the start, W - B0 A0 + B A = W + [B, -B0] [A; A0]: it fits the base as it was, in any loader.
    peft's own conversion (`path_initial_model_for_weight_conversion`) saves A and B alone, without the head.
    """
    file, settings_file = directory / ADAPTER_WEIGHTS, directory / "adapter_config.json"
    starts = {path: layer.lora_start for path, layer in model.named_modules() if hasattr(layer, "lora_start")}
    if not starts or not disk.is_file(file):
        return
    weights = load_file(file)
    for path, (a, b) in starts.items():
        first, second = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        weights[first] = torch.cat([weights[first], a])
        weights[second] = torch.cat([weights[second], -b], dim=1)
        weights.pop(f"{path}.base_layer.weight", None)  # of an output layer, which peft saves as it was changed
    save_file(weights, file, metadata={"format": "pt"})
    settings = json.loads(settings_file.read_text())
    factor = 2**0.5 if settings["use_rslora"] else 2  # so that the adapter's scale stays what it was
    for key, by in (("r", 2), ("lora_alpha", factor)):
        settings[key] *= by
    for key, by in (("rank_pattern", 2), ("alpha_pattern", factor)):
        settings[key] = {name: value * by for name, value in (settings[key] or {}).items()}
    settings["init_lora_weights"] = True
    settings_file.write_text(json.dumps(settings, indent=2, sort_keys=True))


def _without_start(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Leave in `state`, which `save_as_lora` wrote, the half that is trained, A and B.

    Where the other half is another start than this layer's (another seed's, another library's), what was taken out of
    the base is put back, and that other start taken out.
    """
    keys = [f"{prefix}lora_{letter}.default.weight" for letter in "AB"]
    rank = layer.r["default"]
    if keys[0] not in state or len(state[keys[0]]) == rank:
        return
    state[keys[0]], a = state[keys[0]].split(rank)
    state[keys[1]], b = state[keys[1]].split(rank, dim=1)
    start = a.cpu(), -b.cpu()
    if not all(map(torch.equal, start, layer.lora_start)):
        before, now = (second @ first for first, second in (layer.lora_start, start))
        change = layer.scaling["default"] * (before - now)
        base = layer.get_base_layer().weight
        base.data += (change.T if layer.fan_in_fan_out else change).to(base)
        layer.lora_start = start


def _targets(model: Any) -> list[str] | None:
    """The layers to adapt where the recipe names none: peft's choice (None), else attention's queries and values."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOSEN_BY_PEFT

    if model.config.model_type in CHOSEN_BY_PEFT:
        return None
    linear = {path.split(".")[-1] for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    for names in ATTENTION:
        if linear.issuperset(names):
            return list(names)
    raise UserError(
        f"[lora]: llmkit does not know which layers of `{model.config.model_type}` to adapt",
        'set lora.target_modules to some of its linear layers, or to "all-linear"',
        (f"its linear layers: {', '.join(sorted(linear))}",),
    )


def check_4bit() -> None:
    """Raise UserError where `model.load_in_4bit` cannot be had: without a CUDA GPU or without bitsandbytes."""
    if not torch.cuda.is_available():
        raise UserError(
            "model.load_in_4bit needs a CUDA GPU, and there is none here",
            "remove model.load_in_4bit: [lora] alone trains the same adapter, on weights in full precision",
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as problem:
        raise UserError("model.load_in_4bit needs the package bitsandbytes", "pip install bitsandbytes") from problem


def in_4bit(sketch: Any) -> Any:
    """Frozen weights in 4 bits as in QLoRA (https://arxiv.org/abs/2305.14314); what may be trained stays as it is.

    `sketch` is the model without memory for its weights.
    """
    return four_bits(
        llm_int8_skip_modules=[*heads_of(sketch), f"{sketch.base_model_prefix}.pooler"]  # its name in 4 bits too
    )


def heads_of(model: Any) -> list[str]:
    """Return the names of the modules beside the base model that have parameters."""
    beside = ((name, child) for name, child in model.named_children() if child is not model.base_model)
    return [name for name, child in beside if next(child.parameters(), None) is not None]


def outermost(model: Any, keys: set[str]) -> list[str]:
    """`keys` in short: the outermost modules whose tensors are all among them, and the tensors that are left."""
    found: list[str] = []
    left = set(keys)
    for path, module in model.named_modules():
        own = {f"{path}.{name}" for name, _ in module.named_parameters(remove_duplicate=False)}
        if path and own and own <= left:
            found.append(path)
            left -= own
    return found + sorted(left)
