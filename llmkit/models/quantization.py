"""Quantize weights to eight or four bits: generation is faster on a CPU and takes less memory on a GPU."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from llmkit.errors import UserError

Precision = Literal["int8", "int4"]
ROWS_AT_A_TIME = 4096  # rows of a weight quantized at a time, which limits the fp32 copies: a head has 50,000 rows
INT8_MAX = torch.tensor(127.0)  # symmetric around zero; a tensor, as a plain number is made into one at each product


class Int8Linear(nn.Module):
    """Map x [..., in] to [..., out] as `nn.Linear` and GPT-2's `Conv1D` do, weights and x in int8, sums in int32.

    Quantization is symmetric, with a scale for each output and one for each row of x, as in LLM.int8()
    (https://arxiv.org/abs/2208.07339). With one scale for all rows, as in `quantize_dynamic`, a single row with large
    values spoils the others, and a row's result depends on the rest of the batch. Here the sums are exact and each
    row's result is its own. The product is the one that torchao calls; `quantize_dynamic` and its quantized tensors are
    deprecated (https://github.com/pytorch/pytorch/issues/184982).
    """

    def __init__(self, matmul: "Int8Matmul", index: int) -> None:
        """Take the place of layer `index` of those in `matmul`."""
        super().__init__()
        self.matmul = matmul
        self.index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.matmul.for_layer(x, self.index)


class Int8Matmul:
    """Multiply one x by the weights of several layers at once: for one prompt, a call costs as much as a product."""

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> None:
        """Quantize the layers' `weights`, each [out, in]; `biases` [out] may be None."""
        self.sizes = [len(weight) for weight in weights]
        rows = [part for weight in weights for part in weight.split(ROWS_AT_A_TIME)]
        absmax = [_absmax(part) for part in rows]
        self.weights = torch.cat([_quantize(*pairs) for pairs in zip(rows, absmax, strict=True)]).T
        self.scale = torch.cat(absmax)[:, 0] / INT8_MAX**2  # of the weights; that of x's row is multiplied in later
        self.bias = None
        if any(bias is not None for bias in biases):
            pairs = zip(weights, biases, strict=True)
            self.bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs])
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}  # by layer, until it asks for its own

    def for_layer(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Return the output of layer `index` for x, which no sibling changes in place (`_siblings` makes sure)."""
        if len(self.sizes) == 1:
            return self._matmul(x)
        if self._input is not x or index not in self._outputs:
            self._input, self._outputs = x, dict(enumerate(torch.split_with_sizes(self._matmul(x), self.sizes, -1)))
        output = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return output

    def _matmul(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        absmax = _absmax(rows)
        y = _product(_quantize(rows, absmax), self.weights) * self.scale
        y.mul_(absmax)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)


def _absmax(x: torch.Tensor) -> torch.Tensor:
    """Return the largest absolute value of each row of x [..., n], as [..., 1]; above 0 for a row of zeros too."""
    absmax: torch.Tensor = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True)
    return absmax.clamp_min_(torch.finfo(x.dtype).tiny)


def _quantize(x: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    """Round x [..., n] to int8, each row scaled by its `absmax` [..., 1]."""
    return x.div(absmax).mul_(INT8_MAX).round_().char()


def _product(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply x [N, in] by weights [in, out], int8, into int32; as exactly, but slower, if torch has no `_int_mm`."""
    return torch._int_mm(x, weights) if hasattr(torch, "_int_mm") else x.int() @ weights.int()


def on_cpu(model: Any, name: str, precision: Precision) -> Any:
    """Replace all linear layers of `model` by int8 ones, and return it.

    An adapter is merged first. A head that shares the embedding gets its own copy in int8; the embedding stays as it
    is. The other weights are copied: a view of the file would keep the whole file in memory. `name` is the model's, for
    messages. Raises UserError for int4, and for an adapter that cannot be merged.
    """
    if precision != "int8":
        raise UserError(
            f"--quantize {precision} needs a CUDA GPU, and there is none here", "--quantize int8 works on a CPU"
        )
    if hasattr(model, "peft_config"):
        if not hasattr(model, "merge_and_unload"):
            raise UserError(
                f"--quantize: the adapter `{name}` cannot be merged into its base model", "leave out --quantize"
            )
        model = model.merge_and_unload()
    for paths in _siblings(model):
        layers = [model.get_submodule(path) for path in paths]
        weights = [layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach() for layer in layers]
        matmul = Int8Matmul(weights, [None if layer.bias is None else layer.bias.detach() for layer in layers])
        for index, path in enumerate(paths):
            outer, _, inner = path.rpartition(".")
            setattr(model.get_submodule(outer), inner, Int8Linear(matmul, index))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _siblings(model: Any) -> list[list[str]]:
    """Group the paths of linear layers by the x that they are given, as queries, keys and values share theirs.

    Found by running the model on one token. An x that was changed in place in between counts as another.
    """
    layers = {module: path for path, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)}
    # The x of each layer and its version; for a layer that is not called, its path, which no other layer has. Where
    # torch does not count versions, no two are alike.
    inputs: dict[nn.Module, tuple[Any, Any]] = {layer: (path, 0) for layer, path in layers.items()}

    def record(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs[layer] = arguments[0], getattr(arguments[0], "_version", layers[layer])

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    with torch.inference_mode(False), torch.no_grad():  # inference mode counts no versions
        model(torch.zeros((1, 1), dtype=torch.long))
    for hook in hooks:
        hook.remove()
    by_input: dict[tuple[int, Any], list[str]] = {}
    for layer, (x, version) in inputs.items():
        by_input.setdefault((id(x), version), []).append(layers[layer])
    return list(by_input.values())


def on_gpu(precision: Precision) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that load a model in `precision` on a GPU.

    int8 is that of LLM.int8() (https://arxiv.org/abs/2208.07339), int4 that of QLoRA
    (https://arxiv.org/abs/2305.14314). Raises UserError without bitsandbytes.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"--quantize {precision} on a GPU needs the package bitsandbytes",
            "pip install bitsandbytes, or leave out --quantize",
        )
    if precision == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": 0}}
    return {"quantization_config": four_bits(), "device_map": {"": 0}}


def four_bits(**options: Any) -> Any:
    """Configure nf4 with quantized scales and products in half precision, as in QLoRA."""
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float16,
        **options,
    )
