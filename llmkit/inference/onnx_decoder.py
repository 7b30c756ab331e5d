"""Generate in int8 on a CPU with onnxruntime: transformers' `generate`, over a forward pass that is one ONNX graph.

The graph (`llmkit.export.onnx_step`) is made once for the same weights, compared with the model, and kept in the cache.
At the next start the model's weights are not read.
"""

import json
import math
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from llmkit import hub
from llmkit.errors import RunError, UserError, in_words, say

PERPLEXITY = 0.005  # how much higher it may be than the model's, as a share
ROWS, WRITTEN = 8, 128  # texts, and tokens of each, that the model writes to be compared on
TOKENS = 4_096  # of the run's own data that the two are compared on
STEP = 64  # tokens by which a cache grows, at least
REFUSED = "refused.txt"  # in place of the graph: why there is none
TYPES = {torch.float32: "float32", torch.int64: "int64"}


class Decoder:
    """The forward pass of a causal language model, in onnxruntime, as `generate` calls it.

    Keys and values of all layers stand in one tensor with room for tokens to come, [layers, 2, B, heads, room, size],
    the `room` of a `DynamicCache`, whose own tensors are views of it: it can be cropped and reordered as any other.
    """

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        pasts = [each.shape for each in self._session.get_inputs() if each.name.startswith("past_key_values.")]
        self._layers, self._heads, self._size = len(pasts) // 2, pasts[0][1], pasts[0][3]
        self._vocabulary = self._session.get_outputs()[0].shape[-1]
        self._bound: Any = None  # a weak reference to the room that the binding is of
        self._binding: Any = None

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the logits of `input_ids` [B, S] behind the tokens in the cache, and put their keys and values there.

        Without a cache there is a new one. The other arguments are those of a model of transformers.
        """
        cache = DynamicCache() if past_key_values is None else past_key_values
        (batch, new), past = input_ids.shape, cache.get_seq_length()
        total = past + new
        if attention_mask is None:
            attention_mask = torch.ones(batch, total, dtype=torch.long)
        if position_ids is None:
            position_ids = torch.arange(past, total)
        kept = torch.arange(new)[-logits_to_keep:] if isinstance(logits_to_keep, int) else logits_to_keep
        room = self._room(cache, batch, past, total)
        logits = torch.empty(batch, len(kept), self._vocabulary)
        position_ids = position_ids.expand(batch, new)
        # Behind a cache, GroupQueryAttention takes several tokens of one row only.
        rows = [slice(row, row + 1) for row in range(batch)] if past and new > 1 else [slice(None)]
        for row in rows:
            inputs = {
                "input_ids": input_ids[row],
                "attention_mask": attention_mask[row].long(),
                "position_ids": position_ids[row],
                "kept": kept,
            }
            self._run(room if len(rows) == 1 else room[:, :, row], inputs, logits[row])
        _point(cache, room, total)
        return CausalLMOutputWithPast(logits=logits, past_key_values=None if use_cache is False else cache)

    def new_cache(self, batch: int, length: int, more: int) -> DynamicCache:
        """Return a cache of zeros for `length` tokens, to be filled, with room for `more`."""
        cache = DynamicCache()
        shape = (self._layers, 2, batch, self._heads, length + more, self._size)
        _point(cache, torch.zeros(shape), length)
        return cache

    def _room(self, cache: Any, batch: int, past: int, total: int) -> torch.Tensor:
        """Return the cache's room where that has place for `total` tokens, else a new one with what it holds."""
        room: torch.Tensor | None = getattr(cache, "room", None)
        if past and room is not None and room.shape[4] >= total:
            keys = cache.layers[0].keys
            if keys.data_ptr() == room.data_ptr() and len(keys) == room.shape[2]:
                return room
        shape = (self._layers, 2, batch, self._heads, total + max(STEP, total // 4), self._size)
        room = torch.empty(shape)
        for layer, place in zip(cache.layers if past else (), room, strict=False):
            place[0, :, :, :past], place[1, :, :, :past] = layer.keys, layer.values
        return room

    def _run(self, room: torch.Tensor, inputs: dict[str, torch.Tensor], logits: torch.Tensor) -> None:
        if self._bound is None or self._bound() is not room:
            self._binding = self._session.io_binding()
            for layer, pair in enumerate(room):
                for part, values in zip(("key", "value"), pair, strict=True):
                    self._bind(self._binding.bind_input, f"past_key_values.{layer}.{part}", values)
                    self._bind(self._binding.bind_output, f"present.{layer}.{part}", values)
            self._bound = weakref.ref(room)
        held = {name: value.contiguous() for name, value in inputs.items()}
        for name, value in held.items():
            self._bind(self._binding.bind_input, name, value)
        self._bind(self._binding.bind_output, "logits", logits)
        self._session.run_with_iobinding(self._binding)

    @staticmethod
    def _bind(bind: Any, name: str, values: torch.Tensor) -> None:
        bind(name, "cpu", 0, TYPES[values.dtype], list(values.shape), values.data_ptr())


def _point(cache: Any, room: torch.Tensor, length: int) -> None:
    """Let the layers of a cache hold the first `length` tokens of `room`."""
    from transformers.cache_utils import DynamicLayer

    while len(cache.layers) < len(room):
        cache.layers.append(DynamicLayer())
    for layer, (keys, values) in zip(cache.layers, room[:, :, :, :, :length], strict=True):
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    cache.room = room


def of(model: Any) -> Decoder | None:
    """Return the decoder that computes the forward pass of `model`, if one does."""
    decoder = getattr(model.forward, "__self__", None)
    return decoder if isinstance(decoder, Decoder) else None


# ---- the model -----------------------------------------------------------------------------------------------------


def load(name: str) -> Any:
    """Return a model that generates in int8 in onnxruntime; None, and say why, where torch has to do it.

    `name` is a run, a checkpoint, a folder or a Hub id.
    """
    from llmkit.export import export

    if any(find_spec(package) is None for package in export.ONNX):
        say("int8     in torch; faster with onnxruntime: pip install 'llmkit[onnx]'")
        return None
    kept = folder(name)
    if (kept / REFUSED).exists():
        say(f"int8     in torch: {(kept / REFUSED).read_text(encoding='utf-8')}")
        return None
    return in_onnxruntime(kept)


def in_onnxruntime(kept: Path) -> Any:
    """Return transformers' model without weights, its forward pass in onnxruntime, from the files in `kept`."""
    from llmkit.export import onnx_step

    config = AutoConfig.from_pretrained(kept, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    for module, _ in list(model.named_children()):
        delattr(model, module)
    model.register_parameter("nothing", nn.Parameter(torch.empty(0)))  # says where the model is, and in which type
    model.generation_config = GenerationConfig.from_dict(json.loads((kept / "generation.json").read_text()))
    model.forward = Decoder(kept / onnx_step.FILE).forward
    return model


def folder(name: str) -> Path:
    """Return the folder of a model's graph, or of the reason why it has none; made once, then kept."""
    from llmkit.data.text.pack import is_whole, new_cache_entry
    from llmkit.export import export
    from llmkit.inference import precision

    kept = precision.place(name, "generate", "onnx_file", "onnx_step")
    if not is_whole(kept, "the model in int8"):
        say("int8     made for onnxruntime and compared with the model, which takes a minute or two; it is kept")
        with export.whole(name) as whole, new_cache_entry(kept, sealed=True) as draft:
            try:
                say(f"int8     {make(name, whole, draft)}")
            except (OSError, MemoryError):  # which say nothing of the model
                raise
            except Exception as problem:  # the exporter and onnxruntime have errors of many kinds
                for file in draft.iterdir():
                    file.unlink()
                told = problem.message if isinstance(problem, UserError | RunError) else in_words(problem)
                (draft / REFUSED).write_text(told, encoding="utf-8")
    return kept


def make(run: str, name: str, draft: Path) -> str:
    """Write the graph of the model `name`, which is `run` without an adapter, and compare it; return what was found.

    Raises UserError for a model that has no such graph, RunError where its perplexity is too high.
    """
    from llmkit.export import onnx_step
    from llmkit.models import loading

    model = loading.load_model(name, AutoModelForCausalLM).float().eval()
    model.config.save_pretrained(draft)
    (draft / "generation.json").write_text(json.dumps(model.generation_config.to_diff_dict(), default=str))
    tokenizer = loading.load_tokenizer(name, hub.commit(name))
    onnx_step.write(model, tokenizer, draft)
    change, tokens = compare(run, model, tokenizer, Decoder(draft / onnx_step.FILE))
    found = f"perplexity {change:+.2%} on {tokens}"
    if not change <= PERPLEXITY:
        raise RunError(f"in onnxruntime {found}, and {PERPLEXITY:.1%} is allowed", "")
    return found


# ---- comparing -----------------------------------------------------------------------------------------------------


def compare(run: str, model: Any, tokenizer: Any, decoder: Decoder) -> tuple[float, str]:
    """Return by how much the decoder's perplexity is higher than the model's, as a share, and on which tokens.

    They are those of the data that `run` was evaluated on; where there are none, texts that the model writes.
    """
    from llmkit.export import onnx_compare

    try:
        found = onnx_compare.on_rows(run, model, decoder.forward, TOKENS)
    except UserError:
        texts = written(model, tokenizer)
        return math.exp(divergence(model, decoder, texts)) - 1, f"{texts[:, 1:].numel():,} tokens that the model wrote"
    key = next(key for key in found.ours if key.endswith(f"_{found.metric}"))
    ours, theirs = found.ours[key], found.theirs[key]
    change = theirs / ours - 1 if found.metric == "perplexity" else math.exp(theirs - ours) - 1
    return change, f"{found.rows} of the run's data"


def written(model: Any, tokenizer: Any) -> torch.Tensor:
    """Return texts that the model writes, each token drawn from all of its distribution: [ROWS, tokens]."""
    from llmkit.models.config import positions

    begin = next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), 0)
    room = min(WRITTEN, (positions(model.config) or WRITTEN) - 1)
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=room, min_new_tokens=room, pad_token_id=begin)
    ids = torch.full((ROWS, 1), begin)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        texts: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return texts


def divergence(model: Any, decoder: Decoder, texts: torch.Tensor) -> float:
    """Return the mean Kullback-Leibler divergence from the model to the decoder, in nats, over the tokens of `texts`.

    It is by how much the decoder's loss is higher on text of the model's own kind, without the noise of a sample.
    """
    total = 0.0
    with torch.inference_mode():
        for row in texts.split(1):
            ours, theirs = (each(row[:, :-1]).logits[0].float().log_softmax(-1) for each in (model, decoder.forward))
            total += nn.functional.kl_div(theirs, ours, reduction="sum", log_target=True).item()
    return total / texts[:, 1:].numel()
