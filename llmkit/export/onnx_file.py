"""Write a model as ONNX, for onnxruntime; run it there, and keep it only if it agrees.

What is traced, by transformers' own exporter (`transformers.exporters`, 5.23), is a small module around the model that
gives each input and output one name:

- under a head: `model.onnx`, from tokens to logits;
- a causal language model: `model.onnx`, from tokens and the cache of those before to logits and the new cache;
- an encoder-decoder: `encoder.onnx`, and `decoder.onnx` with the cache of its own tokens (keys and values of the
  encoder's are computed again in each step).

Caches are called `past_key_values.0.key` and `present.0.key`, as in other people's files. Batch, sequence and cache may
have any length; before the first token the cache has length 0.
"""

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from llmkit.errors import UserError, in_words
from llmkit.models import loading

Cached = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, [B, heads, T, size]
LOGITS = ("logits", "start_logits", "end_logits")
INLINE = 1_500_000_000  # bytes of weights that one file may hold: protobuf ends at 2 GB
BATCH, BEFORE, NEW, CHOICES = 2, 5, 3, 3  # of the inputs that are traced; none is 1, which would be taken as fixed
BLOCK = 32  # inputs of a layer that share a scale
SOURCE = 7  # tokens of the encoder's


@dataclass(frozen=True)
class Graph:
    """What becomes one file: a module, inputs to trace it with, and the names of their axes ("" for a fixed one)."""

    file: str
    module: nn.Module
    inputs: dict[str, Any]
    axes: dict[str, tuple[str, ...]]


class Head(nn.Module):
    """A model under a head, of which only logits come out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments)
        return {name: outputs[name] for name in LOGITS if name in outputs}


class Causal(nn.Module):
    """A causal language model whose cache is a list of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past: Cached,
        position_ids: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        positions = {} if position_ids is None else {"position_ids": position_ids}
        cache = DynamicCache([(keys, values) for keys, values in past])
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **positions
        )
        return {"logits": outputs.logits, "present": cached(outputs.past_key_values)}


class Encoder(nn.Module):
    """The encoder of an encoder-decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return {"encoder_hidden_states": outputs.last_hidden_state}


class Decoder(nn.Module):
    """The decoder of an encoder-decoder under its head, whose cache is a list of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        decoder_input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        past: Cached,
    ) -> dict[str, Any]:
        own = DynamicCache([(keys, values) for keys, values in past])
        outputs = self.model(
            decoder_input_ids=decoder_input_ids,
            attention_mask=attention_mask,
            encoder_outputs=(encoder_hidden_states,),
            past_key_values=EncoderDecoderCache(own, DynamicCache()),
            use_cache=True,
        )
        return {"logits": outputs.logits, "present": cached(outputs.past_key_values.self_attention_cache)}


def cached(cache: Any) -> Cached:
    return [(layer.keys, layer.values) for layer in cache.layers]


# ---- what is traced ------------------------------------------------------------------------------------------------


def graphs(model: Any, tokenizer: Any, auto_class: str) -> list[Graph]:
    """Cut a model into graphs; `auto_class` is transformers' class that it was loaded with."""
    if auto_class == "AutoModelForCausalLM":
        return [_causal(model)]
    if auto_class == "AutoModelForSeq2SeqLM":
        return [_encoder(model), _decoder(model)]
    return [_head(model, tokenizer, auto_class == "AutoModelForMultipleChoice")]


def takes(model: Any, name: str) -> bool:
    """Tell whether the model has an input of this name."""
    return name in inspect.signature(model.forward).parameters


def segmented(model: Any, tokenizer: Any) -> bool:
    """Tell whether the model is told which of two texts a token is of."""
    return "token_type_ids" in tokenizer("a", "b") and takes(model, "token_type_ids")


def ids_like(model: Any, *shape: int) -> torch.Tensor:
    """Return tokens of a shape, none of them padding."""
    count = model.config.get_text_config().vocab_size
    ids = torch.arange(5, 5 + torch.Size(shape).numel()).reshape(shape) % count
    return ids.masked_fill(ids == (model.config.get_text_config().pad_token_id or 0), min(5, count - 1))


def _head(model: Any, tokenizer: Any, choices: bool) -> Graph:
    ids = ids_like(model, BATCH, *([CHOICES] if choices else []), SOURCE)
    mask = torch.ones_like(ids)
    mask[0, ..., -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if segmented(model, tokenizer):
        inputs["token_type_ids"] = torch.zeros_like(ids)
    axes = ("batch", *(["choices"] if choices else []), "sequence")
    return Graph("model.onnx", Head(model), inputs, dict.fromkeys(inputs, axes))


def _causal(model: Any) -> Graph:
    ids = ids_like(model, BATCH, NEW)
    mask = torch.ones(BATCH, BEFORE + NEW, dtype=torch.long)
    mask[0, :2] = 0
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past": past_of(model, BATCH, BEFORE)}
    axes: dict[str, tuple[str, ...]] = {
        "input_ids": ("batch", "sequence"),
        "attention_mask": ("batch", "past + sequence"),
    }
    if takes(model, "position_ids"):
        inputs["position_ids"] = torch.arange(BEFORE, BEFORE + NEW).expand(BATCH, NEW).clone()
        axes["position_ids"] = ("batch", "sequence")
    return Graph("model.onnx", Causal(model), inputs, axes)


def _encoder(model: Any) -> Graph:
    ids = ids_like(model, BATCH, SOURCE)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    axes = ("batch", "source")
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Graph("encoder.onnx", Encoder(model), inputs, dict.fromkeys(inputs, axes))


def _decoder(model: Any) -> Graph:
    encoder = _encoder(model)
    with torch.no_grad():
        hidden = encoder.module(**encoder.inputs)["encoder_hidden_states"]
    inputs = {
        "decoder_input_ids": ids_like(model, BATCH, NEW),
        "attention_mask": encoder.inputs["attention_mask"],
        "encoder_hidden_states": hidden,
        "past": past_of(model, BATCH, BEFORE),
    }
    axes = {
        "decoder_input_ids": ("batch", "sequence"),
        "attention_mask": ("batch", "source"),
        "encoder_hidden_states": ("batch", "source", ""),
    }
    return Graph("decoder.onnx", Decoder(model), inputs, axes)


def past_of(model: Any, batch: int, length: int) -> Cached:
    """Return a cache of the model's own shape; raise UserError where it keeps more or other things than that."""
    ids = ids_like(model, 1, 2)
    with torch.no_grad():
        outputs = model(input_ids=ids, use_cache=True, **({"decoder_input_ids": ids} if seq2seq(model) else {}))
    cache = getattr(outputs, "past_key_values", None)
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", ())
    shapes: list[Any] = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    if not shapes or any(not torch.is_tensor(each) or each.ndim != 4 for pair in shapes for each in pair):
        raise UserError(
            f"{type(model).__name__} cannot be written as ONNX: it keeps something else than keys and values of the "
            "tokens before"
        )
    generator = torch.Generator().manual_seed(0)

    def random(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(batch, like.shape[1], length, like.shape[3], generator=generator)

    return [(random(keys), random(values)) for keys, values in shapes]


def seq2seq(model: Any) -> bool:
    return bool(model.config.is_encoder_decoder)


# ---- tracing -------------------------------------------------------------------------------------------------------


def write_graph(graph: Graph, folder: Path) -> None:
    """Trace a graph and write it into `folder`, in f32. Raises what `traced` does."""
    save(traced(graph), folder / graph.file)


def traced(graph: Graph, **options: Any) -> Any:
    """Trace a graph, in f32; `options` are further ones of transformers' `OnnxConfig`.

    Raises UserError where transformers' exporter, or torch's below it, cannot trace the model.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic_shapes=_dynamic(graph), **options)
    try:
        with _quietly():
            program = OnnxExporter().export(graph.module.eval(), graph.inputs, config).program
    except Exception as problem:  # anything that tracing a model can meet
        raise UserError(
            f"the model cannot be traced for ONNX: {in_words(problem).partition(' The error above occurred')[0]}"
        ) from problem
    ClearMetadataAndDocStringPass()(program)  # which name the files of this machine
    _name(program, graph)
    return program


def save(program: Any, file: Path) -> None:
    """Write a graph with its weights: as one file, or of a large one into a second beside it."""
    import onnx_ir
    from transformers.exporters.exporter_onnx import OnnxExporter

    weights = [value.const_value for value in program.graph.initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in weights) < INLINE:
        onnx_ir.save(program, file)
    else:
        OnnxExporter.save_program(program, file)


def quantize(file: Path, target: Path, spare: bool) -> None:
    """Write the graph of `file` to `target` with the weights of its layers in int8 and activations as they come.

    Embeddings stay in f32, and for `spare` the layers that make a vector smaller too: those behind an activation, whose
    few large values eight bits cannot hold (Dettmers et al. 2022, arXiv:2208.07339). Where the processor cannot add up
    products of eight bits (VNNI) they could overflow: one bit is left out then.
    """
    import onnx_ir
    from onnxruntime.quantization import QuantType
    from transformers.exporters import ExportFormat, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    program = onnx_ir.load(file)
    config = OnnxRuntimeDynamicConfig(
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        reduce_range=not adds_up_bytes(),
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[node.name for node in program.graph if spare and _narrows(node)],
    )
    with _quietly():
        save(OnnxRuntimeQuantizer(config).quantize(program, {}, ExportFormat.ONNX), target)


def quantize_blocks(file: Path, target: Path) -> None:
    """Write the graph of `file` to `target` as `in_blocks` makes it."""
    import onnx_ir

    save(in_blocks(onnx_ir.load(file)), target)


def in_blocks(program: Any) -> Any:
    """Return a graph with the weights of its layers in int8, a scale for each 32 inputs.

    onnxruntime quantizes activations alike, block by block: closer than `quantize`, and slower for many rows.
    """
    import onnx_ir
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quietly():
        graph = onnx_ir.to_proto(program)
        quantizer = MatMulNBitsQuantizer(graph, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
        quantizer.process()
    return onnx_ir.from_proto(quantizer.model.model)


def adds_up_bytes() -> bool:
    """Tell whether the processor adds up products of eight bits in 32 (VNNI), as far as that is known."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "vnni" in info.read_text()


def _narrows(node: Any) -> bool:
    """Tell whether a node is a layer with fewer outputs than inputs."""
    if node.op_type not in ("MatMul", "Gemm"):
        return False
    weights = node.inputs[1]
    if weights.const_value is None or len(weights.shape) != 2:
        return False
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    inputs, outputs = reversed(weights.shape) if transposed else weights.shape
    return bool(inputs > outputs)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence torch, onnxscript and onnxruntime, which report their own progress and plans."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with loading.quiet(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _dynamic(graph: Graph) -> dict[str, Any]:
    """Return which axes of the inputs may have any length, as torch.export is told."""
    auto = torch.export.Dim.AUTO

    def of(name: str, value: Any) -> Any:
        if name == "past":
            return [({0: auto, 2: auto}, {0: auto, 2: auto}) for _ in value]
        return {number: auto for number, axis in enumerate(graph.axes[name]) if axis}

    return {name: of(name, value) for name, value in graph.inputs.items()}


def _name(program: Any, graph: Graph) -> None:
    """Give the parts of caches, and the axes of inputs and outputs, names that a reader knows."""
    import onnx_ir

    symbols: dict[str, str] = {}
    for value in program.graph.inputs:
        value.name = _part_of_cache(value.name)
        axes = graph.axes.get(value.name, ("batch", "", "past", ""))
        for size, axis in zip(value.shape, axes, strict=True):
            if axis and axis.isidentifier():
                symbols.setdefault(str(size), axis)
        value.shape = onnx_ir.Shape([axis or size for size, axis in zip(value.shape, axes, strict=True)])
    for value in program.graph.outputs:
        value.name = _part_of_cache(value.name)
        value.shape = onnx_ir.Shape([_renamed(size, symbols) for size in value.shape])


def _renamed(size: Any, symbols: Mapping[str, str]) -> Any:
    if isinstance(size, int):
        return size
    return re.sub(r"s\d+", lambda found: symbols.get(found[0], found[0]), str(size))


def _part_of_cache(name: str) -> str:
    """`past.0.1` -> `past_key_values.0.value`, `present.0.0` -> `present.0.key`; another name is kept."""
    found = re.fullmatch(r"(past|present)\.(\d+)\.([01])", name)
    if found is None:
        return name
    before = "past_key_values" if found[1] == "past" else "present"
    return f"{before}.{found[2]}.{'value' if found[3] == '1' else 'key'}"
