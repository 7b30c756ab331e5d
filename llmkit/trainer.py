"""The few places where `transformers.Trainer` must be better. A test checks the signature of each method overridden."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.utils.data import SequentialSampler
from transformers import Trainer as UpstreamTrainer
from transformers import TrainingArguments

from llmkit.data.examples import Examples, GroupedByLength, models_own
from llmkit.data.mixture import MixedBlocks
from llmkit.reload import save_config
from llmkit.tasks.multi_task import MixedBatches, Mixture


class Trainer(UpstreamTrainer):
    """Losses summed over labels and divided once, evaluation that weighs by label, and steps without idle work.

    `losses(outputs, batch, training=, label_smoothing=)` is the task's, one loss a label; `keep(model, outputs,
    batch)`, [B, K], is what its metrics need of the outputs, so that evaluation holds no logits; `metrics(stats, part)`
    makes the figures of each part of `validation` from that.
    """

    # compute_loss divides by the tokens of the whole accumulated batch itself. Upstream leaves that to the model, and
    # BertForMaskedLM, for one, takes the count and ignores it.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        losses: Callable[..., torch.Tensor],
        keep: Callable[..., torch.Tensor] | None = None,
        validation: Mapping[str, Any] | None = None,
        metrics: Callable[[Any, Any], dict[str, float]] | None = None,
        several: bool = False,
        **kwargs: Any,
    ) -> None:
        self._losses = losses
        self._keep = keep
        self._validation = validation or {}
        self._several = several  # parts of `validation` that are of equal standing: tasks, sources
        self._metrics = metrics or (lambda stats, part: {})
        self.evaluated: tuple[int, dict[str, float]] = (-1, {})  # at which step last, and what was found
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
        """The losses of `labels` (-100: none), summed, over the global count of labels."""
        labels = inputs["labels"]
        outputs = model(**models_own(inputs))
        losses = self._losses(outputs, inputs, training=True, label_smoothing=self.args.label_smoothing_factor)
        if num_items_in_batch is None:
            num_items_in_batch = labels.ne(-100).sum()
        # DDP averages gradients over the processes, each of which has divided by the labels of all.
        loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """(no mean, [B, 2 + K], a placeholder): each row's summed loss, its count of labels, and what the task keeps.

        Upstream averages over batches, which biases perplexity as soon as two batches differ in tokens.
        """
        batch = self._prepare_inputs(inputs)
        labels = batch["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**models_own(batch))
        losses = self._losses(outputs, batch)
        counts = labels.ne(-100).flatten(1).sum(dim=1) if labels.dim() > 1 else labels.ne(-100)
        summed = losses.flatten(1).sum(dim=1) if losses.dim() > 1 else losses
        stats = torch.stack([summed, counts.float()], dim=1)
        if self._keep is not None:
            stats = torch.cat([stats, self._keep(self.model, outputs, batch)], dim=1)
        return None, stats, counts

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Examples of like length together, in an order that follows from seed and epoch alone; else upstream's."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        by_length = self.args.train_sampling_strategy == "group_by_length"
        if isinstance(dataset, MixedBlocks):  # it has an order
            return SequentialSampler(dataset)
        if isinstance(dataset, Mixture):
            return MixedBatches(dataset, self.args.train_batch_size, seed, by_length)
        if by_length and isinstance(dataset, Examples):
            return GroupedByLength(dataset, batch_size(self.args), seed)
        return super()._get_train_sampler(train_dataset)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Every validation split, or `eval_dataset`: the first gives `eval_...`, each other one `eval_SPLIT_...`.

        Of several tasks or sources each gives `eval_NAME_...`, and `eval_loss` is the mean of their losses.
        """
        parts = self._validation if eval_dataset is None else {"data": eval_dataset}
        found: dict[str, float] = {}
        for number, (name, part) in enumerate(parts.items()):
            prefix = f"{metric_key_prefix}_{name}" if number or self._several else metric_key_prefix
            self.compute_metrics = lambda stats, part=part: self._metrics(stats.predictions, part)
            found |= super().evaluate(part, ignore_keys, prefix)
        if self._several:
            losses = [found[f"{metric_key_prefix}_{name}_loss"] for name in parts]
            found[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        self.evaluated = (self.state.global_step, found)
        return found

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Evaluation goes through the data in its order; upstream draws another one where training groups by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

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
        """Save with the `use_cache` that the model came with (upstream turns it off to train and saves that).

        Beside an adapter goes its model's config, with the labels, from which it is loaded again. A model that is made
        of several is saved whole in a checkpoint, and when it is finished each of them as a model of its own.
        """
        config = self.model.config
        in_training = getattr(config, "use_cache", None)
        config.use_cache = self._use_cache_when_saved
        try:
            super().save_model(output_dir, _internal_call)
            directory = Path(output_dir or self.args.output_dir)
            if self.args.should_save and hasattr(self.model, "peft_config"):
                save_config(self.model, directory)
            if self.args.should_save and hasattr(self.model, "save_each") and not _internal_call:
                self.model.save_each(directory, self.processing_class)
        finally:
            config.use_cache = in_training


def batch_size(args: TrainingArguments) -> int:
    """Blocks or examples that one optimizer step learns from, over all processes and accumulated micro-batches."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
