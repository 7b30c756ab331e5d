"""Write a causal language model as one ONNX graph that onnxruntime runs fast on a CPU: a step of generation.

The graph reads new tokens and the cache of those before, in any batch, and gives logits of some of the new ones.
Attention is onnxruntime's `GroupQueryAttention`, which writes keys and values into the cache where it stands, so that
none is copied; transformers' exporter fuses norms, rotary embeddings and layers that share an input
(`OnnxConfig(ort_fusions="cpu")`). Layers hold int8, a scale for each 32 inputs; the embedding stays in f32. What a norm
gives to layers is evened out first, as in SmoothQuant (https://arxiv.org/abs/2211.10438): on SmolLM2-135M that halves
what eight bits cost.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from llmkit.errors import UserError
from llmkit.export import onnx_file
from llmkit.export.onnx_file import Cached, Graph
from llmkit.models.config import positions

FILE = "model.onnx"
ATTENTION = "llmkit_onnxruntime"  # the name of `Step`'s attention among transformers'
HIDDEN = -1e9  # added to the score of a token that must not be seen
ROOM = 11  # tokens that the traced cache has room for
# What the sizes of a norm's outputs are measured on: prose, numbers, code, two languages.
TEXT = (
    "The history of the city begins in the 12th century, when traders from the north settled near the river. In 2019, "
    "researchers found that, on average, sleep improves memory by 20 %.\n\ndef add(a, b):\n    return a + b\n\n"
    "What is 3 + 4? The answer is 7.\n\n北京是中国的首都。Once upon a time there was a king who loved his garden more "
    "than his crown; every morning he walked among the roses and spoke to them."
)
SAME = 1e-3  # how far logits may move where the outputs of norms were evened out, in f32
IGNORED = ("position_ids", "use_cache", "cache_position", "output_attentions", "is_causal")


class _Place(DynamicCache):
    """A cache that holds nothing: attention reads and writes the graph's own."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def update(self, key_states: Any, value_states: Any, *others: Any, **options: Any) -> tuple[Any, Any]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length


class Step(nn.Module):
    """A causal language model that reads some tokens: what is traced."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        kept: torch.Tensor,
        past: Cached,
    ) -> dict[str, Any]:
        """Read `input_ids` [B, S].

        Args:
            input_ids: The new tokens.
            attention_mask: [B, T] of those before, too: T - S of them are in the cache.
            position_ids: [B, S].
            kept: Which of the new tokens' logits are wanted.
            past: Keys and values, each [B, heads, room, size].
        """
        (batch, new), total = input_ids.shape, attention_mask.shape[1]
        bias = ((1 - attention_mask.float()) * HIDDEN)[:, None, None, :].expand(batch, 1, new, total)
        lengths = torch.full((batch,), total - 1, dtype=torch.int32), torch.full((), total, dtype=torch.int32)
        present = dict(enumerate(past))

        def attention(module: Any, q: Any, k: Any, v: Any, _: Any, scaling: float, **others: Any) -> Any:
            refuse(module, {name: value for name, value in others.items() if name not in ("dropout", *IGNORED)})
            keys, values = past[module.layer_idx]
            merged = [states.transpose(1, 2).reshape(batch, new, -1) for states in (q, k, v)]
            found, *present[module.layer_idx] = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::GroupQueryAttention",
                [*merged, keys, values, *lengths, None, None, None, bias],
                {"num_heads": q.shape[1], "kv_num_heads": k.shape[1], "scale": float(scaling)},
                dtypes=[q.dtype] * 3,
                shapes=[(batch, new, q.shape[1] * q.shape[3]), keys.shape, values.shape],
                version=1,
            )
            return found.view(batch, new, q.shape[1], q.shape[3]), None

        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
        self.model.config._attn_implementation = ATTENTION
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=_Place(total - new),
            use_cache=True,
            logits_to_keep=kept,
        )
        return {"logits": outputs.logits, "present": list(present.values())}


def refuse(module: Any, options: dict[str, Any]) -> None:
    """Raise UserError for attention that is told more than scaling: windows, caps, sinks."""
    if told := [name for name, value in options.items() if value is not None]:
        raise UserError(f"the attention of {type(module).__name__} has {' and '.join(told)}")


def write(model: Any, tokenizer: Any, folder: Path) -> None:
    """Trace `model`, quantize its layers and write the graph into `folder`, its weights beside it.

    The model still computes the same, up to rounding, but other weights do it. A head that shares the embedding's
    weights gets its own, as it is quantized and the embedding is not.

    Raises:
        UserError: The model cannot be traced in this way.
    """
    from transformers.exporters.exporter_onnx import OnnxExporter

    check(model)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        even_out(model, ids[:, : positions(model.config)])
    own = model.config._attn_implementation
    try:
        program = onnx_file.traced(_graph(model), ort_fusions="cpu")
    finally:
        model.config._attn_implementation = own
    skip_reshapes(program)
    OnnxExporter.save_program(onnx_file.in_blocks(program), folder / FILE)


def skip_reshapes(program: Any) -> None:
    """Let what reads two reshapes, of which the second undoes the first, read what was there before them.

    There are six in each layer, around rotary embeddings and attention, and a call costs as much as adding two vectors.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for second in [node for node in program.graph if node.op_type == "Reshape"]:
        first = second.inputs[0].producer()
        if first is None or first.op_type != "Reshape":
            continue
        before, after = first.inputs[0], second.outputs[0]
        if before.shape is not None and before.shape == after.shape and not after.is_graph_output():
            after.replace_all_uses_with(before)
    RemoveUnusedNodesPass()(program)


def check(model: Any) -> None:
    """Raise UserError for a model whose attention, cache or inputs are not the usual ones."""
    wrong = [name for name in ("position_ids", "logits_to_keep") if not onnx_file.takes(model, name)]
    if wrong or not model._supports_attention_backend:
        raise UserError(f"{type(model).__name__} has attention or positions of its own kind")
    sizes = {tuple(part.shape) for pair in onnx_file.past_of(model, 1, 0) for part in pair}
    if len(sizes) != 1 or sizes.pop()[-1] % 8:
        raise UserError(f"the heads of {type(model).__name__} are not all of one size that is a multiple of 8")


# ---- evening out ---------------------------------------------------------------------------------------------------


def even_out(model: Any, ids: torch.Tensor) -> None:
    """Divide what norms give to linear layers by a factor for each channel, and multiply the layers' weights by it.

    The factor is the root of the ratio of the two's sizes, on the tokens `ids`: inputs of eight bits and weights of
    eight bits then lose alike. Where the model computes something else then, as it would if another part read a norm's
    output or the norm's weight were an offset, all is put back.
    """
    with torch.no_grad():
        before = model(ids).logits
        found = _behind_norms(model, ids)
        factors = [(norm, layers, _factor(size, layers)) for norm, (size, layers) in found.items()]
        for norm, layers, factor in factors:
            _shift(norm, layers, factor)
        if not torch.allclose(model(ids).logits, before, atol=SAME, rtol=SAME):
            for norm, layers, factor in factors:
                _shift(norm, layers, 1 / factor)


def _behind_norms(model: Any, ids: torch.Tensor) -> dict[nn.Module, tuple[torch.Tensor, list[nn.Module]]]:
    """Return the norms whose output linear layers are given, with its size in each channel, and these layers."""
    outputs: dict[tuple[int, torch.Size], tuple[nn.Module, torch.Tensor]] = {}
    found: dict[nn.Module, tuple[torch.Tensor, list[nn.Module]]] = {}

    def given(norm: nn.Module, _: Any, output: Any) -> None:
        if torch.is_tensor(output):
            outputs[output.data_ptr(), output.shape] = norm, output  # which stays, so that no other takes its place

    def taken(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        if (x.data_ptr(), x.shape) in outputs:
            norm, _ = outputs[x.data_ptr(), x.shape]
            found.setdefault(norm, (x.square().mean((0, 1)).sqrt(), []))[1].append(layer)

    hooks = []
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if type(module) in (nn.Linear, Conv1D):
            hooks.append(module.register_forward_pre_hook(taken))
        elif isinstance(weight, nn.Parameter) and weight.ndim == 1:
            hooks.append(module.register_forward_hook(given))
    model(ids)
    for hook in hooks:
        hook.remove()
    return found


def _by_input(layer: nn.Module) -> torch.Tensor:
    """Return a layer's weights as [out, in]."""
    weight: Any = layer.weight
    return weight.data.T if isinstance(layer, Conv1D) else weight.data


def _factor(size: torch.Tensor, layers: list[nn.Module]) -> torch.Tensor:
    weights = torch.cat([_by_input(layer) for layer in layers]).square().mean(0).sqrt()
    factor = (size.clamp_min(1e-5) / weights.clamp_min(1e-5)).sqrt()
    return factor / factor.log().mean().exp()


def _shift(norm: nn.Module, layers: list[nn.Module], factor: torch.Tensor) -> None:
    for parameter in norm.parameters(recurse=False):
        parameter.div_(factor)
    for layer in layers:
        _by_input(layer).mul_(factor)


# ---- the inputs that are traced ------------------------------------------------------------------------------------


def _graph(model: Any) -> Graph:
    batch, new, before = onnx_file.BATCH, onnx_file.NEW, onnx_file.BEFORE
    inputs = {
        "input_ids": onnx_file.ids_like(model, batch, new),
        "attention_mask": torch.ones(batch, before + new, dtype=torch.long),
        "position_ids": torch.arange(before, before + new).expand(batch, new).clone(),
        "kept": torch.tensor([0, new - 1]),
        "past": onnx_file.past_of(model, batch, ROOM),
    }
    row = ("batch", "sequence")
    axes = {"input_ids": row, "attention_mask": ("batch", "past + sequence"), "position_ids": row, "kept": ("kept",)}
    return Graph(FILE, Step(model), inputs, axes)
