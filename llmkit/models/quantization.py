"""Weights in eight bits or four: a model writes faster on a CPU, and on a GPU in less memory."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from llmkit.errors import UserError

Kind = Literal["int8", "int4"]
ROWS = 4096  # of a weight at a time, so that little stands beside it in fp32: a head has 50,000
LARGEST = torch.tensor(127.0)  # of int8, the same on both sides of zero; of a number each product makes a tensor anew


class Int8Linear(nn.Module):
    """x [..., in] -> [..., out], as `nn.Linear` and GPT-2's `Conv1D` do, with weights and x in int8 and sums in int32.

    Symmetric: each output has a scale, and each row of x has its own, as vectors have in LLM.int8()
    (https://arxiv.org/abs/2208.07339). With one scale for all rows, as `quantize_dynamic` has it, a single row with
    large values spoils the others, and what a row becomes hangs on what else is in the batch; so the sums are exact and
    each row's are its own. The product is the one that torchao calls; `quantize_dynamic` and the quantized tensors
    under it are deprecated (https://github.com/pytorch/pytorch/issues/184982).
    """

    def __init__(self, product: "Product", number: int) -> None:
        """Which of the layers in `product` this is."""
        super().__init__()
        self.product = product
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product.of(x, self.number)


class Product:
    """One x by the weights of several layers: for one prompt, calling takes as long as multiplying."""

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> None:
        """Of each layer `weights` [out, in]."""
        self.sizes = [len(weight) for weight in weights]
        rows = [part for weight in weights for part in weight.split(ROWS)]
        most = [_most(part) for part in rows]
        self.levels = torch.cat([_levels(*each) for each in zip(rows, most, strict=True)]).T
        self.scale = torch.cat(most)[:, 0] / LARGEST**2  # of a level of x, as a part of its most, by one of the weights
        self.bias = None
        if any(bias is not None for bias in biases):
            each = zip(weights, biases, strict=True)
            self.bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in each])
        self._x: torch.Tensor | None = None  # what came last
        self._left: dict[int, torch.Tensor] = {}  # what was made of it, until the layer comes for it

    def of(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """What layer `number` makes of x, which the layers before it did not change (`_siblings` sees to that)."""
        if len(self.sizes) == 1:
            return self._all(x)
        if self._x is not x or number not in self._left:
            self._x, self._left = x, dict(enumerate(torch.split_with_sizes(self._all(x), self.sizes, -1)))
        found = self._left.pop(number)
        if not self._left:
            self._x = None
        return found

    def _all(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        most = _most(rows)
        y = _product(_levels(rows, most), self.levels) * self.scale
        y.mul_(most)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)


def _most(x: torch.Tensor) -> torch.Tensor:
    """The largest of the numbers of each row of x [..., n], [..., 1]; of a row of zeros, more than nothing."""
    most: torch.Tensor = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True)
    return most.clamp_min_(torch.finfo(x.dtype).tiny)


def _levels(x: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    return x.div(most).mul_(LARGEST).round_().char()


def _product(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Multiply x [N, in] by levels [in, out], int8, into int32; as exactly, but slower, if torch has no `_int_mm`."""
    return torch._int_mm(x, levels) if hasattr(torch, "_int_mm") else x.int() @ levels.int()


def on_cpu(model: Any, name: str, kind: Kind) -> Any:
    """`model` with all its linear layers in int8.

    An adapter is merged first. A head that shares the embedding gets a copy in int8; the embedding stays as it is. What
    stays is copied: as long as a part of it is used, the whole file is in memory. Raises UserError where it cannot be
    done.
    """
    if kind != "int8":
        raise UserError(f"--quantize {kind} needs a CUDA GPU, and there is none here", "--quantize int8 works on a CPU")
    if hasattr(model, "peft_config"):
        if not hasattr(model, "merge_and_unload"):
            raise UserError(
                f"--quantize: the adapter `{name}` is none that can be merged into its base", "leave --quantize out"
            )
        model = model.merge_and_unload()
    for paths in _siblings(model):
        layers = [model.get_submodule(path) for path in paths]
        weights = [layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach() for layer in layers]
        product = Product(weights, [None if layer.bias is None else layer.bias.detach() for layer in layers])
        for number, path in enumerate(paths):
            outer, _, inner = path.rpartition(".")
            setattr(model.get_submodule(outer), inner, Int8Linear(product, number))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _siblings(model: Any) -> list[list[str]]:
    """The linear layers, those together that are given one x: queries, keys and values. It is tried with a token.

    One that was changed in its place in between is another x.
    """
    layers = {module: path for path, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)}
    # The x of each, and how often it had been changed; of one that is not called, what no other is given. Where torch
    # does not count changes, no two are alike.
    given: dict[nn.Module, tuple[Any, Any]] = {layer: (path, 0) for layer, path in layers.items()}

    def note(layer: nn.Module, words: tuple[Any, ...]) -> None:
        given[layer] = words[0], getattr(words[0], "_version", layers[layer])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    with torch.inference_mode(False), torch.no_grad():  # inference mode counts no versions
        model(torch.zeros((1, 1), dtype=torch.long))
    for hook in hooks:
        hook.remove()
    together: dict[tuple[int, Any], list[str]] = {}
    for layer, (x, version) in given.items():
        together.setdefault((id(x), version), []).append(layers[layer])
    return list(together.values())


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
