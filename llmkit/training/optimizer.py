"""The optimizer of a run that `[optimizer]` describes: groups of weights by layer and head, and Muon beside AdamW."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from llmkit.errors import UserError
from llmkit.models.trainable import embedded, lists_of_layers, places_of
from llmkit.recipe.schema import Optimizer as Table

MOMENTUM = 0.95  # Muon's, in torch and in its author's report
HEAD = -1  # the place of a head, where layers have places from 0 up


def create_optimizer(model: nn.Module, table: Table, args: TrainingArguments, decays: Iterable[str]) -> Any:
    """Create the optimizer that `[optimizer]` and `[trainer]` describe; those of the full learning rate come first.

    Args:
        model: What is trained, as the recipe made it.
        table: The recipe's [optimizer].
        args: Its [trainer].
        decays: The names of the parameters that weight decay is applied to.

    Returns:
        A torch.optim.Optimizer.

    Raises:
        UserError: The model has no head or no layers where the recipe asks for a rate of theirs.
    """
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if not kind.__module__.startswith("torch.optim") or options.keys() & {"params", "model", "optimizer_dict"}:
        raise UserError(
            f'[optimizer] goes with the optimizers of torch, and trainer.optim is "{args.optim}"',
            "leave one of them out",
        )
    matrices = hidden_matrices(model) if table.name == "muon" else set()
    if table.name == "muon" and not matrices:
        raise UserError('optimizer.name = "muon": the model has no matrices in layers', 'use "adamw"')
    names, (place, top) = set(decays), _places(model, table)
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (id(parameter) in matrices, place(parameter), name in names)
            groups.setdefault(key, []).append(parameter)

    def settings(muon: bool, at: int, decay: bool) -> dict[str, float]:
        rate = (table.learning_rate if muon else None) or args.learning_rate
        if at == HEAD:
            rate = table.head_learning_rate or rate
        elif table.layer_decay is not None:
            rate *= table.layer_decay ** (top - at)
        weight_decay = args.weight_decay if not muon or table.weight_decay is None else table.weight_decay
        return {"lr": rate, "weight_decay": weight_decay if decay else 0.0}

    made = [(key[0], {"params": found, **settings(*key)}) for key, found in groups.items()]
    made.sort(key=lambda each: each[1]["lr"] != args.learning_rate)
    rest = [group for muon, group in made if not muon]
    ours = [group for muon, group in made if muon]
    optimizer = kind(rest, **options) if rest else None
    if not ours:
        return optimizer
    momentum = MOMENTUM if table.momentum is None else table.momentum
    muon = torch.optim.Muon(ours, lr=args.learning_rate, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return MuonAndAdamW(muon, optimizer, args.learning_rate)


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the trained matrices inside the layers of `model`, which Muon is for: no embedding tables."""
    tables = embedded(model)
    return {
        id(parameter)
        for layers in lists_of_layers(model).values()
        for parameter in layers.parameters()
        if parameter.requires_grad and parameter.ndim == 2 and id(parameter) not in tables
    }


def _places(model: Any, table: Table) -> tuple[Callable[[nn.Parameter], int], int]:
    """Return what tells the place of a parameter, its layer or HEAD, as far as the table has rates for it; and the top.

    The top is the place of what stands behind the layers, which has the full rate.
    """
    if table.head_learning_rate is None and table.layer_decay is None:
        return lambda parameter: 0, 0
    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    base = getattr(whole, "base_model", getattr(whole, "encoder", None))  # the latter of several tasks
    if base is None or base is whole:
        key = "head_learning_rate" if table.layer_decay is None else "layer_decay"
        kind = type(whole).__name__
        raise UserError(f"optimizer.{key}: {kind} does not separate its head from its layers", "leave it out")
    inside = places_of(base)
    beside = [parameter for parameter in whole.parameters() if id(parameter) not in inside]
    if table.head_learning_rate is not None and not any(parameter.requires_grad for parameter in beside):
        raise UserError(
            f"optimizer.head_learning_rate: {type(whole).__name__} has no head that is trained apart from its layers",
            "leave it out",
        )
    layers = max(map(len, lists_of_layers(base).values()), default=0)
    if table.layer_decay is not None and not layers:
        raise UserError(f"optimizer.layer_decay: {type(whole).__name__} has no list of layers", "leave it out")
    top = 0 if table.layer_decay is None else layers + 1
    head = top if table.head_learning_rate is None else HEAD

    def place(parameter: nn.Parameter) -> int:
        return min(inside[id(parameter)], top) if id(parameter) in inside else head

    return place, top


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one optimizer: it has the groups and the state of both, and lends each its own for a step.

    So a scheduler sees every group, and `state_dict` is that of one optimizer.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.Optimizer | None, learning_rate: float) -> None:
        self._parts = [part for part in (adamw, muon) if part is not None]
        # A schedule with a lowest rate takes it relative to the default of [trainer].
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": learning_rate})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step with both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            of_muon = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if ("ns_steps" in group) == of_muon]
            part.state = self.state
            part.step()
        return loss
