"""ZeRO-3 divides a model while it is made; new weights must be those of a run of one process all the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


def as_one_process_makes(make: Callable[[], tuple[Any, Made]]) -> tuple[Any, Made]:
    """Make a model by `make`, which returns it and something else, with the weights that one process would draw.

    Inside DeepSpeed's `zero.Init` each module is drawn anew by rank 0, in another order of random numbers. So the
    first process makes the model once more, whole in its own memory, and hands its weights to all of them.
    """
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return make()
    first = torch.distributed.get_rank() == 0
    with _undivided():
        whole = dict(make()[0].named_parameters()) if first else {}
    model, other = make()
    for name, parameter in model.named_parameters():
        _fill(parameter, whole.pop(name) if first else None)
    return model, other


def _fill(parameter: torch.nn.Parameter, value: torch.Tensor | None) -> None:
    """Give a parameter, divided or not, the `value` that the first process has."""
    import deepspeed

    if hasattr(parameter, "ds_id"):
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if value is not None:
                parameter.data.copy_(value)
        return
    if value is not None:
        parameter.data.copy_(value)
    device = parameter.device if torch.distributed.get_backend() == "gloo" else torch.device("cuda")  # NCCL's own
    on_device = parameter.data.to(device)
    torch.distributed.broadcast(on_device, 0)
    parameter.data.copy_(on_device)


@contextmanager
def _undivided() -> Iterator[None]:
    """Let transformers make models as without DeepSpeed."""
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before
