"""Output layer and loss in one: no logits where nothing is predicted, and never all of the others in memory at once.

The logits of 2,048 positions over 50,257 words are 412 MB in fp32, their gradients as much again, and of a small model
they are most of the work. Of masked-lm's positions one in seven is predicted, of a long prompt none.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llmkit.models.loading import without_adapter

# Logits that are in memory at once on a CPU.
AT_ONCE = 2**24
FEW = 8  # tokens that the model is tried with


class FusedLMLoss:
    """Computes the losses of `model`, a language model of any kind, by way of its output layer.

    `skip`: positions without a label get no logits. `fused`: logits and losses are made a part of the positions at a
    time (`torch.nn.functional.linear_cross_entropy`), which needs a `layer` whose outputs the model hands on as they
    are. Where it does something to them, as Gemma 2 and Granite do, or where the layer has an adapter, the model is
    asked to leave positions out (`logits_to_keep`), if it can. `all_learned`: there is a label at (nearly) each
    position, and it is not asked where: that would wait for a GPU.
    """

    def __init__(self, model: Any, fused: bool = True, skip: bool = True, all_learned: bool = False) -> None:
        self.layer = output_layer(model) if fused or skip else None
        self.fused = fused and self.layer is not None
        self.all_learned = all_learned
        self.skip = skip and (self.layer is not None or supports_logits_to_keep(model))

    def losses(
        self,
        model: Any,
        inputs: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
        label_smoothing: float = 0.0,
        summed: bool = False,
    ) -> torch.Tensor:
        """Compute the cross-entropy (nats) of labels.

        Args:
            model: what is called with `inputs`; it may wrap the one that this was made for.
            inputs: all that it reads but the labels.
            labels: [B, T]; -100 for none.
            label_smoothing: the share of each label that is spread over all words.
            summed: add up all losses.

        Returns:
            [B, T] in fp32, 0 where a label is -100; their sum, a scalar, if `summed`.
        """
        learned, targets, skip = labels != -100, labels.flatten(), self.skip and not self.all_learned
        if skip:
            positions = self.positions(learned)
            skip = len(positions) < len(targets)
            targets = targets[positions]

        def in_shape(losses: torch.Tensor) -> torch.Tensor:
            if summed:
                return losses.sum()
            return losses.new_zeros(labels.shape).masked_scatter(learned, losses) if skip else losses.view_as(labels)

        if self.layer is None:
            options = {"logits_to_keep": learned} if skip else {}
            logits = model(**inputs, **options).logits
            logits = logits if logits.dim() == 2 else logits.flatten(0, 1)
            return in_shape(_reference(logits, targets, label_smoothing))
        layer = self.layer

        def losses_of(hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden.reshape(labels.numel(), -1)
            if skip:  # not hidden[learned], whose gradient takes four times as long
                hidden = hidden.index_select(0, positions)
            return in_shape(self._losses(layer, hidden, targets, label_smoothing, "sum" if summed else "none"))

        with replaced_forward(layer, losses_of):
            return model(**inputs).logits

    def positions(self, learned: torch.Tensor) -> torch.Tensor:
        """Return where there are labels, of the positions one behind the other."""
        return learned.flatten().nonzero()[:, 0]

    def _losses(
        self, layer: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, smoothing: float, reduction: str
    ) -> Any:
        """Compute the losses of `hidden`, [N, H], against `targets`, [N]: [N], or their sum."""
        weight, bias = layer.weight, layer.bias
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):  # which would look after a Linear
            dtype = torch.get_autocast_dtype(kind)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = bias if bias is None else bias.to(dtype)
        rows = max(1, AT_ONCE // weight.shape[0])
        if not self.fused or smoothing or (kind == "cpu" and len(hidden) <= rows):  # upstream smooths no chunks
            return _reference(F.linear(hidden, weight, bias), targets, smoothing, reduction)
        if not torch.is_grad_enabled():
            chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
            return torch.cat([_reference(F.linear(chunk, weight, bias), of, smoothing) for chunk, of in chunks])
        exact = hidden.dtype == torch.float32
        # On a CPU its own choice of a chunk is so small that it takes twice to five times as long as the plain way.
        options = (
            nn.LinearCrossEntropyOptions(
                batch_chunk_size=rows, chunking_method=None, acc_policy="compact" if exact else "accurate"
            )
            if kind == "cpu"
            else nn.LinearCrossEntropyOptions()
        )
        losses = F.linear_cross_entropy(
            hidden,
            weight,
            targets,
            linear_bias=bias,
            reduction=reduction if exact else "none",  # it would give the sum in half precision, to three digits
            ignore_index=-100,
            options=options,
        )
        return losses.float()


def _reference(logits: torch.Tensor, targets: torch.Tensor, smoothing: float, reduction: str = "none") -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=-100, reduction=reduction, label_smoothing=smoothing)


@contextmanager
def replaced_forward(layer: Any, function: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    """Let `layer` do what `function` does."""
    layer.forward = function
    try:
        yield
    finally:
        del layer.forward


def output_layer(model: Any) -> nn.Linear | None:
    """Find the linear layer whose outputs are the model's logits and nothing else; None where there is none.

    It is tried: a mark that the layer gives in place of its outputs must be what comes out. What cannot be run here,
    because its weights are spread over machines, has none.
    """
    inner = without_adapter(model)
    layer: Any = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if type(layer) is not nn.Linear or "forward" in vars(layer) or not all(p.numel() for p in inner.parameters()):
        return None
    mark = torch.zeros(())
    shapes: list[tuple[int, ...]] = []

    def give_mark(hidden: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(hidden.shape))
        return mark

    other = int(getattr(inner.config, "pad_token_id", None) == 0)  # of padding upstream would ask for an attention mask
    ids = torch.full((1, FEW), other, dtype=torch.long, device=layer.weight.device)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if inner.config.is_encoder_decoder else {})
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), replaced_forward(layer, give_mark):
            alone = inner(**inputs).logits is mark
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # something was to be done with the mark
        alone = False
    finally:
        model.train(training)
    return layer if alone and shapes == [(1, FEW, layer.in_features)] else None


def supports_logits_to_keep(model: Any) -> bool:
    """Return whether the model can leave out the logits of some positions: `logits_to_keep`, bool [B, T]."""
    inner = without_adapter(model)
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
