"""Run ONNX files in onnxruntime in place of a model's own forward pass, and measure how far the two are apart."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
)

from llmkit.export.onnx_file import LOGITS, Cached, cached, ids_like, past_of, takes
from llmkit.models import loading
from llmkit.models.config import positions

Forward = Callable[..., Any]
LONGEST = 64  # tokens of the longest input that is made up
ROWS, TOKENS = 500, 20_000  # that are evaluated, of rows and of running text


class Session:
    """An ONNX file in onnxruntime, on a CPU."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each.shape for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run with those of `values` that the file takes."""
        feed = {
            name: np.ascontiguousarray((value if value.is_floating_point() else value.long()).numpy())
            for name, value in values.items()
            if name in self.inputs
        }
        found = self._session.run(None, feed)
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, found, strict=True)}


# ---- a model's forward pass, in onnxruntime ------------------------------------------------------------------------


def forward_of(model: Any, folder: Path, auto_class: str) -> Forward:
    """Return what computes in onnxruntime what the forward pass of `model` does, from the files in `folder`."""
    if auto_class == "AutoModelForCausalLM":
        return _causal(Session(folder / "model.onnx"), past_of(model, 1, 0))
    if auto_class == "AutoModelForSeq2SeqLM":
        encoder, decoder = Session(folder / "encoder.onnx"), Session(folder / "decoder.onnx")
        return _seq2seq(_Encoder(encoder), decoder, past_of(model, 1, 0))
    return _head(Session(folder / "model.onnx"))


def _head(session: Session) -> Forward:
    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any) -> Any:
        values = {"input_ids": input_ids, "attention_mask": _mask(attention_mask, input_ids)}
        if "token_type_ids" in session.inputs:
            segments = others.get("token_type_ids")
            values["token_type_ids"] = torch.zeros_like(input_ids) if segments is None else segments
        found = session(values)
        kind = QuestionAnsweringModelOutput if "start_logits" in found else SequenceClassifierOutput
        return kind(**{name: found[name] for name in LOGITS if name in found})

    return forward


def _causal(session: Session, empty: Cached) -> Forward:
    def forward(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        past, length = _past(past_key_values, empty, len(input_ids))
        if attention_mask is None:
            attention_mask = torch.ones(len(input_ids), length + input_ids.shape[1], dtype=torch.long)
        if position_ids is None:
            position_ids = torch.arange(length, length + input_ids.shape[1]).expand(input_ids.shape)
        values = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **past}
        found = session(values)
        cache = DynamicCache() if past_key_values is None else past_key_values
        cache.layers = _present(found).layers
        return CausalLMOutputWithPast(logits=found["logits"], past_key_values=cache)

    return forward


class _Encoder(nn.Module):
    """An encoder's file, as `generate` calls an encoder."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any) -> Any:
        found = self.session({"input_ids": input_ids, "attention_mask": _mask(attention_mask, input_ids)})
        return BaseModelOutput(last_hidden_state=found["encoder_hidden_states"])


def _seq2seq(encoder: nn.Module, decoder: Session, empty: Cached) -> Forward:
    def forward(
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        assert decoder_input_ids is not None
        read = encoder(input_ids, attention_mask) if encoder_outputs is None else encoder_outputs
        hidden = read[0]
        mask = torch.ones(hidden.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
        own = getattr(past_key_values, "self_attention_cache", past_key_values)
        past, _ = _past(own, empty, len(decoder_input_ids))
        found = decoder(
            {
                "decoder_input_ids": decoder_input_ids,
                "attention_mask": mask,
                "encoder_hidden_states": hidden,
                **past,
            }
        )
        cache = _present(found)
        if own is not None:
            own.layers = cache.layers
            cache = past_key_values
        return Seq2SeqLMOutput(logits=found["logits"], past_key_values=cache, encoder_last_hidden_state=hidden)

    forward.encoder = encoder  # type: ignore[attr-defined]
    return forward


def _mask(given: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(ids) if given is None else given


def _past(cache: Any, empty: Cached, batch: int) -> tuple[dict[str, torch.Tensor], int]:
    """Return a cache as the files take it, and how many tokens it holds."""
    length = 0 if cache is None else cache.get_seq_length()
    layers = cached(cache) if length else [tuple(each.expand(batch, -1, -1, -1) for each in pair) for pair in empty]
    named = {
        f"past_key_values.{number}.{part}": value
        for number, pair in enumerate(layers)
        for part, value in zip(("key", "value"), pair, strict=True)
    }
    return named, length


def _present(found: Mapping[str, torch.Tensor]) -> Any:
    count = sum(name.endswith(".key") for name in found)
    return DynamicCache([(found[f"present.{i}.key"], found[f"present.{i}.value"]) for i in range(count)])


@contextmanager
def replaced(model: Any, forward: Forward) -> Iterator[None]:
    """Let `forward` do what the forward pass of `model` does, also when the model writes."""
    model.forward = functools.wraps(model.forward)(forward)
    if hasattr(forward, "encoder"):
        model.get_encoder = lambda *words, **options: forward.encoder
    try:
        yield
    finally:
        del model.forward
        vars(model).pop("get_encoder", None)


# ---- how far apart they are ----------------------------------------------------------------------------------------


@dataclass
class Agreement:
    """How far the outputs of two are apart: the largest difference of a logit, and of how many the best is the same."""

    logits: float = 0.0
    count: int = 0
    equal: int = 0

    def add(self, ours: Any, theirs: Any, where: torch.Tensor | None) -> None:
        """Compare outputs, of tokens those that `where` marks, [B, T]."""
        for name in LOGITS:
            if ours.get(name) is None:
                continue
            left, right = ours[name].double(), theirs[name].double()
            if where is not None and where.shape == left.shape[: where.ndim] and left.ndim == where.ndim + 1:
                left, right = left[where.bool()], right[where.bool()]
            elif name != "logits" and where is not None:  # starts and ends of an answer, a row each
                left, right = (each.masked_fill(~where.bool(), 0) for each in (left, right))
            difference = (left - right).abs().max().item() if left.numel() else 0.0
            self.logits = max(self.logits, difference) if difference == difference else float("nan")
            best = [
                each.argmax(-1) if each.shape[-1] > 1 else each.new_zeros(each.shape[:-1]) for each in (left, right)
            ]
            self.count += best[0].numel()
            self.equal += int((best[0] == best[1]).sum())

    @property
    def share(self) -> float:
        return self.equal / self.count if self.count else 1.0


def probe(model: Any, forward: Forward, segments: bool, auto_class: str) -> Agreement:
    """Compare the two on inputs of several shapes, with padding and, where there is one, with the cache."""
    agreement = Agreement()
    with torch.no_grad():
        for inputs in _inputs(model, segments, auto_class):
            ours, theirs = model(**inputs), forward(**inputs)
            before = inputs["attention_mask"]
            if auto_class == "AutoModelForCausalLM":
                agreement.add(ours, theirs, before)
                for new in (1, 4):
                    ids = ids_like(model, len(before), new)
                    mask = torch.cat([before, torch.ones(len(before), new, dtype=torch.long)], dim=1)
                    positions = {"position_ids": _positions(mask)[:, -new:]} if takes(model, "position_ids") else {}
                    further = {"input_ids": ids, "attention_mask": mask, **positions}
                    ours = model(**further, past_key_values=ours.past_key_values)
                    theirs = forward(**further, past_key_values=theirs.past_key_values)
                    agreement.add(ours, theirs, None)
                    before = mask
            elif auto_class == "AutoModelForSeq2SeqLM":
                agreement.add(ours, theirs, None)
                for new in (1, 4):
                    further = {"attention_mask": before, "decoder_input_ids": ids_like(model, len(before), new)}
                    ours, theirs = (
                        each(
                            **further,
                            encoder_outputs=BaseModelOutput(last_hidden_state=last.encoder_last_hidden_state),
                            past_key_values=last.past_key_values,
                        )
                        for each, last in ((model, ours), (forward, theirs))
                    )
                    agreement.add(ours, theirs, None)
            else:
                agreement.add(ours, theirs, before)
    return agreement


def rounding(model: Any, segments: bool, auto_class: str) -> Agreement:
    """Compare a model in f32 with itself in f64 on the inputs of `probe`.

    Two right computations in f32 are at most twice as far apart: SmolLM2 has inputs where rounding alone changes a
    logit by 7e-4.
    """
    return probe(model, copy.deepcopy(model).double(), segments, auto_class)


def _inputs(model: Any, segments: bool, auto_class: str) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs of several shapes; of the rows of a batch the second is the longest, the others are padded."""
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    longest = min(LONGEST, (positions(config) or LONGEST) - 8)  # of a cache more tokens follow
    causal, padding = auto_class == "AutoModelForCausalLM", config.pad_token_id or 0
    for rows, length in ((1, 2), (3, min(9, longest)), (2, longest)):
        shape = (rows, 4, length) if auto_class == "AutoModelForMultipleChoice" else (rows, length)
        ids = torch.randint(config.vocab_size, shape, generator=generator)
        ids[ids == padding] = (padding + 1) % config.vocab_size
        mask = torch.ones_like(ids)
        if rows > 1:
            padded = slice(None, 2) if causal else slice(-2, None)
            mask[0, ..., padded] = 0
            ids[0, ..., padded] = padding
        inputs = {"input_ids": ids, "attention_mask": mask}
        if segments:
            inputs["token_type_ids"] = (torch.arange(length) > length // 2).long().expand(shape).contiguous()
        if causal and takes(model, "position_ids"):
            inputs["position_ids"] = _positions(mask)
        if auto_class == "AutoModelForSeq2SeqLM":
            inputs["decoder_input_ids"] = ids_like(model, rows, length // 2)
        yield inputs


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


# ---- on the rows that the model was evaluated on -------------------------------------------------------------------


@dataclass
class OnRows:
    """What the two make of the same rows: their metrics, and how far their outputs are apart."""

    rows: str
    metric: str
    ours: dict[str, float]
    theirs: dict[str, float]
    agreement: Agreement


def on_rows(run: str, model: Any, forward: Forward, tokens: int = TOKENS) -> OnRows:
    """Evaluate `model` as `llmkit evaluate RUN` does, on some of the rows, once with each forward pass.

    Raises UserError where `run` has no rows, or they cannot be read any more.
    """
    from llmkit import temporary
    from llmkit.errors import quantity
    from llmkit.metrics import evaluation_metrics
    from llmkit.recipe.schema import PRETRAINING, Speed
    from llmkit.training import evaluate
    from llmkit.training.arguments import training_arguments
    from llmkit.training.assemble import assemble
    from llmkit.training.build import make_trainer

    recipe = evaluate.find_recipe(run, None, None, [])
    assert recipe.data is not None
    limit = max(1, tokens // (positions(model.config) or LONGEST)) if recipe.task in PRETRAINING else ROWS
    limit = min(limit, recipe.data.max_eval_samples or limit)
    speed = Speed(fused_loss=False, skip_ignored=False)  # the logits are to be seen
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"max_eval_samples": limit}), "speed": speed}
    )
    kept = {
        key: value for key, value in recipe.trainer.items() if key not in (*evaluate.NOT_EVALUATED, *evaluate.NOT_FP32)
    }
    if recipe.task == "seq2seq":
        model.generation_config.update(**recipe.generation)
    agreement = Agreement()
    with temporary.folder() as nowhere, loading.quiet():
        args = training_arguments({**kept, "use_cpu": True}, nowhere)
        assembly = assemble(recipe, args.seed, model.config)
        trainer = make_trainer(assembly, model, args, [], speed=speed)
        ours = evaluation_metrics(trainer.evaluate())
        with replaced(model, _watched(forward, model.forward, agreement)):
            theirs = evaluation_metrics(trainer.evaluate())
    names = [assembly.judged_by] if assembly.judged_by != "loss" else ["perplexity", "rougeL", "pearson"]
    metric = next((name for name in names if f"eval_{name}" in ours), "loss")
    count = sum(len(part) for part in assembly.validation.values())
    return OnRows(quantity(count, assembly.unit.removesuffix("s")), metric, ours, theirs, agreement)


def _watched(forward: Forward, own: Forward, agreement: Agreement) -> Forward:
    """Compare each forward pass, but those of a text that is being written, and return what `forward` computed."""

    def both(**inputs: Any) -> Any:
        theirs = forward(**inputs)
        if inputs.get("past_key_values") is None:
            where = inputs.get("attention_mask")
            if "decoder_input_ids" in inputs:
                where = inputs.get("decoder_attention_mask")
            agreement.add(own(**inputs), theirs, where)
        return theirs

    if hasattr(forward, "encoder"):
        both.encoder = forward.encoder  # type: ignore[attr-defined]
    return both
