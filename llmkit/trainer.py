"""The few places where `transformers.Trainer` must be better. A test checks the signature of each method overridden."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import DistributedType
from transformers import Trainer as UpstreamTrainer


class Trainer(UpstreamTrainer):
    """Losses summed over tokens and divided once, evaluation that weighs by token, and steps without idle work."""

    # compute_loss divides by the tokens of the whole accumulated batch itself. Upstream leaves that to the model, and
    # BertForMaskedLM, for one, takes the count and ignores it.
    loss_is_scaled_for_ga = True

    def __init__(self, model: Any, **kwargs: Any) -> None:
        self._use_cache_when_saved = getattr(model.config, "use_cache", None)
        super().__init__(model=model, **kwargs)
        self._loss_shifts_labels = False  # our labels stand where they are predicted
        self.model_accepts_loss_kwargs = True  # so that upstream counts the tokens, which compute_loss divides by
        self._trained: list[torch.nn.Parameter] | None = None
        self._flops_per_token = 6 * self.model.num_parameters(exclude_embeddings=True)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of `labels` [B, T] (-100: none) and logits [B, T, V], summed, over the global token count."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        losses = F.cross_entropy(
            outputs.logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=-100,
            reduction="sum",
            label_smoothing=self.args.label_smoothing_factor,
        )
        if num_items_in_batch is None:
            num_items_in_batch = labels.ne(-100).sum()
        # DDP averages gradients over the processes, each of which has divided by the tokens of all.
        loss = losses / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """(no mean, [B, 2] summed loss and token count of each row, a placeholder): the metrics weigh by token.

        Upstream averages over batches, which biases perplexity as soon as two batches differ in tokens.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits.float()
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
        counts = labels.ne(-100).sum(dim=1)
        sums = torch.stack([losses.view(labels.shape).sum(dim=1), counts.float()], dim=1)
        return None, sums, counts

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 x parameters x tokens (Kaplan et al. 2020); upstream counts the parameters anew for every micro-batch."""
        return int(self._flops_per_token * inputs["input_ids"].numel())

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Off FSDP, DeepSpeed and loss scaling the parameters are listed once; upstream walks the modules at each step.

        On a 40 ms step that walk, and the search for sharded tensors among them, took 0.7 ms.
        """
        plain = self.accelerator.distributed_type in (
            DistributedType.NO,
            DistributedType.MULTI_GPU,
            DistributedType.MULTI_CPU,
        )
        if not plain or self.accelerator.scaler is not None:
            return super()._clip_grad_norm(model)
        if self._trained is None:
            self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save with the `use_cache` that the model came with: upstream turns it off to train and saves that."""
        config = self.model.config
        in_training = getattr(config, "use_cache", None)
        config.use_cache = self._use_cache_when_saved
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            config.use_cache = in_training


def token_metrics(compute: Callable[[Any], dict[str, float]]) -> Callable[[Any], dict[str, float]]:
    """Hand a task's metrics the [N, 2] sums that `prediction_step` gathered."""
    return lambda prediction: compute(prediction.predictions)
