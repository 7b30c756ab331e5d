"""Weights in eight bits or four: a model writes in less memory and, on a CPU, faster."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from llmkit.errors import UserError

Kind = Literal["int8", "int4"]
LARGEST = 127  # of int8, the same on both sides of zero


class Int8Linear(nn.Module):
    """x [..., in] -> [..., out], as `nn.Linear` and GPT-2's `Conv1D` do, with weights and x in int8 and sums in int32.

    Symmetric: each output has a scale, and each row of x has its own, as vectors have in LLM.int8()
    (https://arxiv.org/abs/2208.07339). With one scale for all rows, as `quantize_dynamic` has it, a single row with
    large values spoils the others, and what a row becomes hangs on what else is in the batch; so the sums are exact and
    each row's are its own. The product is the one that torchao calls; `quantize_dynamic` and the quantized tensors
    under it are deprecated (https://github.com/pytorch/pytorch/issues/184982).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight` [out, in]."""
        super().__init__()
        scale = _scale(weight)
        self.levels = (weight / scale).round_().to(torch.int8).contiguous().T
        self.scale = scale[:, 0].contiguous()
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels, scale = self._in_levels(x)
        y = torch._int_mm(levels, self.levels) * self.scale
        y.mul_(scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)

    # What came last, as it was then, in levels: queries, keys and values are made of one x, and most of a layer's other
    # products too. For one prompt making levels is a good part of the work.
    _last: tuple[torch.Tensor, int, torch.Tensor, torch.Tensor] | None = None

    @staticmethod
    def _in_levels(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of x in int8, [N, in], and what a level of each is worth, [N, 1]."""
        version = None if x.is_inference() else x._version  # it counts what is written into x
        last = Int8Linear._last
        if last is not None and last[0] is x and last[1] == version:
            return last[2], last[3]
        rows = x.reshape(-1, x.shape[-1])
        scale = _scale(rows)
        levels = (rows / scale).round_().to(torch.int8)
        if version is not None:
            Int8Linear._last = x, version, levels, scale
        return levels, scale


def _scale(x: torch.Tensor) -> torch.Tensor:
    """What one level of each row of x [..., n] is worth, [..., 1]; of a row of zeros, more than nothing."""
    return (x.abs().amax(-1, keepdim=True) / LARGEST).clamp_min_(torch.finfo(x.dtype).tiny)


def on_cpu(model: Any, name: str, kind: Kind) -> Any:
    """`model` with all its linear layers in int8, one after the other, so that memory falls while it is done.

    An adapter is merged first. A head that shares the embedding gets a copy in int8; the embedding stays as it is.
    Raises UserError where it cannot be done.
    """
    if kind != "int8":
        raise UserError(f"--quantize {kind} needs a CUDA GPU, and there is none here", "--quantize int8 works on a CPU")
    if hasattr(model, "peft_config"):
        if not hasattr(model, "merge_and_unload"):
            raise UserError(
                f"--quantize: the adapter `{name}` is none that can be merged into its base", "leave --quantize out"
            )
        model = model.merge_and_unload()
    for path, module in list(model.named_modules()):
        if type(module) not in (nn.Linear, Conv1D):
            continue
        weight = module.weight.detach()
        outer, _, inner = path.rpartition(".")
        small = Int8Linear(weight.T if isinstance(module, Conv1D) else weight, module.bias)
        setattr(model.get_submodule(outer), inner, small)
    return model


def on_gpu(kind: Kind) -> dict[str, Any]:
    """What `from_pretrained` is given to load a model in `kind` on a GPU; UserError without bitsandbytes.

    int8 as in LLM.int8() (https://arxiv.org/abs/2208.07339), int4 as in QLoRA (https://arxiv.org/abs/2305.14314).
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"--quantize {kind} on a GPU needs the package bitsandbytes", "pip install bitsandbytes, or leave it out"
        )
    if kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": 0}}
    return {"quantization_config": four_bits(), "device_map": {"": 0}}


def four_bits(**more: Any) -> Any:
    """nf4, its scales quantized too, and products in half precision, as in QLoRA."""
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float16,
        **more,
    )
