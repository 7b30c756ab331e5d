"""The few places where `transformers.Trainer` must be better. A test checks the signature of each method overridden."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.utils.data import RandomSampler, SequentialSampler

from llmkit.data.rows.batches import Examples, GroupedByLength, models_own
from llmkit.data.text.mixture import MixedBlocks
from llmkit.data.text.pack import Endless, Unread
from llmkit.errors import RunError, UserError, say
from llmkit.models.loading import save_config
from llmkit.models.trainable import save_as_lora
from llmkit.recipe.schema import Guard as GuardTable
from llmkit.recipe.schema import Optimizer, Speed
from llmkit.runs import state
from llmkit.speed import dropout, length_groups
from llmkit.speed.fused_loss import FusedLMLoss
from llmkit.tasks.multi_task import MixedBatches, Mixture
from llmkit.tasks.trivial import Comparison
from llmkit.training import samples, sharded, strategy
from llmkit.training.arguments import total_batch_size
from llmkit.training.average import Average
from llmkit.training.guard import Guard, Skipped, skip_step
from llmkit.training.optimizer import create_optimizer
from llmkit.training.order import Shuffled
from llmkit.training.resumable_trainer import ResumableTrainer, StoppedInEvaluation
from llmkit.training.samples import Sampler
from llmkit.training.signals import StopOnSignal

TRAINED = "trained-weights"  # a checkpoint's file of the weights themselves, where the model's are their average
SHOWN = 8  # examples of a skipped step that its line names


class Trainer(ResumableTrainer):
    """Sums losses over labels and divides them once, skips steps that would do harm, weighs evaluation by label.

    The loss goes another way than upstream's: `training_step` returns 0, and `_get_grad_norm` adds the loss of the
    whole step to `_tr_loss`, once the guard has checked it. What is skipped is not in the loss that is logged.

    `losses(outputs, batch, training=, label_smoothing=)` is the task's, one loss a label; without it each label is a
    token that is predicted where it stands. `preprocess_logits_for_metrics(model, outputs, batch)`, [B, K], is what its
    metrics need of the outputs, so that evaluation holds no logits (upstream's is given the logits alone);
    `metrics(stats, part)` makes the figures of each part of `validation` from that. `rows`: a batch holds rows of
    several lengths, and padding. `all_learned`: each position has a label.
    """

    # compute_loss divides by the tokens of the whole accumulated batch itself. Upstream leaves that to the model, and
    # BertForMaskedLM, for one, takes the count and ignores it.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        losses: Callable[..., torch.Tensor] | None,
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        validation: Mapping[str, Any] | None = None,
        metrics: Callable[[Any, Any], dict[str, float]] | None = None,
        several: bool = False,
        all_learned: bool = False,
        sampler: Sampler | None = None,
        rows: bool = False,
        optimizer: Optimizer | None = None,
        guard: GuardTable | None = None,
        speed: Speed | None = None,
        stop: StopOnSignal | None = None,
        **kwargs: Any,
    ) -> None:
        self._losses = losses
        self._preprocess_for_metrics = preprocess_logits_for_metrics
        self._validation = validation or {}
        self.watch_losses: Callable[[torch.Tensor, torch.Tensor], None] | None = None  # losses and labels, a batch
        self._several = several  # parts of `validation` that are of equal standing: tasks, sources
        self._metrics = metrics or (lambda stats, part: {})
        self.evaluated: tuple[int, dict[str, float]] = (-1, {})  # the last step that was, and its metrics
        self.stats: dict[str, Any] = {}  # what these are made of, by what they begin with
        self.sampler = sampler
        self.sampled: int | None = None  # the last step whose samples were written
        self._use_cache_when_saved = getattr(model.config, "use_cache", None)
        super().__init__(model=model, **kwargs)
        self._loss_shifts_labels = False  # our labels stand where they are predicted
        self.model_accepts_loss_kwargs = True  # so that upstream counts the tokens, which compute_loss divides by
        self._trained: list[torch.nn.Parameter] | None = None
        self._logged_before = 0
        self._stop = stop
        self._guard_table = guard or GuardTable()
        self.guard = Guard(self._guard_table, self.args.device, scaled=self.accelerator.mixed_precision == "fp16")
        self._step_loss = torch.zeros((), device=self.args.device)
        self._step_examples: list[torch.Tensor] = []
        self._flops_per_token = 6 * sharded.num_parameters(model, exclude_embeddings=True)
        speed = speed or Speed()
        # A compiled model wants one shape, and to be left as it is.
        self._open = self._whole_weights() and not self.args.torch_compile
        self._optimizer_table = optimizer or Optimizer()
        if self._optimizer_table.is_set and not self._whole_weights():
            raise UserError(
                "[optimizer] is not tested where weights are divided among processes (FSDP, DeepSpeed)",
                "leave it out, or train without them",
            )
        ema = self._optimizer_table.ema
        self.average = None if ema is None else Average(model, ema)
        self._taken: torch.Tensor | float = 1.0  # whether the last step was, for the average
        # FSDP2 gathers the output layer's weights while it is called, whatever it computes.
        self._fsdp2 = strategy.of(self).name == "FSDP2"
        callable_head = self._open or (self._fsdp2 and not self.args.torch_compile)
        fused, skip = speed.fused_loss and callable_head, speed.skip_ignored and callable_head
        self.head = FusedLMLoss(model, fused, skip, all_learned) if losses is None else None
        on_cpu = self.args.device.type == "cpu"
        self.fast_dropout = on_cpu and self._open and speed.fast_dropout and dropout.speed_up(model)
        self.splits = rows and self._open and (on_cpu if speed.split_batches is None else speed.split_batches)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Sum the losses of `labels` (-100: none), and divide by the global count of labels.

        Args:
            model: the model, or what wraps it.
            inputs: a batch, with `labels`.
            return_outputs: return the model's outputs too.
            num_items_in_batch: the labels of the whole step, on all processes; by default those of this batch.

        Returns:
            The loss, a scalar, times the number of processes; with `return_outputs` a pair.
        """
        outputs, losses = self._forward(model, inputs, training=True)
        if num_items_in_batch is None:
            num_items_in_batch = inputs["labels"].ne(-100).sum()
        total = losses.sum()
        # A loss that is not finite may have gradients that are; so it has none, and no process needs to ask another.
        share = torch.where(total.detach().isfinite(), self.accelerator.num_processes, torch.nan)
        # DDP averages gradients over the processes, each of which divides by the labels of all.
        loss = total * (share / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model: torch.nn.Module, batch: dict[str, Any], training: bool) -> tuple[Any, torch.Tensor]:
        """Return the model's outputs, if there are any but losses, and each label's loss or, in training, their sum."""
        smoothing = self.args.label_smoothing_factor if training else 0.0
        if self.head is not None:
            return None, self.head.losses(model, models_own(batch), batch["labels"], smoothing, summed=training)
        assert self._losses is not None
        outputs = model(**models_own(batch))
        return outputs, self._losses(outputs, batch, training=training, label_smoothing=smoothing)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Add up gradients, and return 0: `_get_grad_norm` counts the loss of the whole step once it is checked."""
        microbatches = [inputs]
        if self.splits and "attention_mask" in inputs:
            cost = length_groups.launch_cost(self._flops_per_token)
            microbatches = length_groups.microbatches(inputs, cost, "decoder_input_ids" in inputs)
        loss = torch.zeros((), device=self.args.device)
        for number, microbatch in enumerate(microbatches, 1):  # the processes add up gradients behind the last one
            with nullcontext() if number == len(microbatches) else self.accelerator.no_sync(model):
                loss = loss + super().training_step(model, microbatch, num_items_in_batch)
        self._step_loss = self._step_loss + loss
        if "index" in inputs:
            self._step_examples.append(inputs["index"])
        return torch.zeros_like(loss)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm, once the guard has checked it and the loss: a step that fails is skipped.

        Upstream calls this once a step, behind the last `training_step`, and so the loss is counted here.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if hasattr(norm, "full_tensor"):  # FSDP's
            norm = norm.full_tensor()
        loss, examples = self._step_loss, self._step_examples
        self._step_loss, self._step_examples = torch.zeros_like(loss), []
        checked = self._taken_by_deepspeed if self.is_deepspeed_enabled else self._check_step
        ok = checked(model, loss, norm, examples)
        self._tr_loss += torch.where(ok, loss, 0.0)
        return norm

    def _taken_by_deepspeed(
        self, model: torch.nn.Module, loss: torch.Tensor, norm: float | None, examples: list[torch.Tensor]
    ) -> torch.Tensor:
        """Note whether DeepSpeed has taken the step, which it decides inside `backward`, by its own rule."""
        ok = torch.tensor(not self.accelerator.optimizer_step_was_skipped, device=loss.device)
        figures = torch.stack([loss.detach().float(), loss.new_tensor(float("nan") if norm is None else float(norm))])
        return self.guard.note(self.state.global_step + 1, ok, ok, figures, examples)

    def _check_step(
        self, model: torch.nn.Module, loss: torch.Tensor, norm: torch.Tensor, examples: list[torch.Tensor]
    ) -> torch.Tensor:
        """Check the step before it is taken, and skip it unless it is fine; a loss scaler skips what overflows."""
        shared = loss
        # By its own loss each process would decide for itself, and one would step where another does not.
        if self.args.world_size > 1 and self._guard_table.spike_sigma is not None:
            shared = loss.detach().clone()
            torch.distributed.all_reduce(shared)
            shared /= self.args.world_size
        ok = self.guard.check(self.state.global_step + 1, shared, norm, examples)
        self._taken = ok.float()
        if not self.guard.scaled or self._guard_table.spike_sigma is not None:
            fused = (self._whole_weights() or self._fsdp2) and not self.guard.scaled  # which sets `found_inf` itself
            skip_step(self.optimizer, self._parameters(model), ok, on_device=fused)
        return ok

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer as upstream, or as `[optimizer]` asks."""
        if not self._optimizer_table.is_set:
            return super().create_optimizer(model)
        trained = self.model if model is None else model
        decays = self.get_decay_parameter_names(trained)
        made = create_optimizer(trained, self._optimizer_table, self.args, decays)
        self.optimizer = made
        return made

    # ---- the average of the weights --------------------------------------------------------------------------------

    def _averaged(self) -> AbstractContextManager[None]:
        """Put the average of the weights, where there is one, into the model for a while."""
        return nullcontext() if self.average is None else self.average.applied()

    def on_step_end(self) -> None:
        if self.average is not None:
            self.average.update(self.state.global_step, self._taken)
        super().on_step_end()

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """Train as upstream; a training that is over leaves the average of the weights in the model."""
        result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.average is not None and not self.stopped:
            self.average.apply()
        return result

    def _load_best_model(self) -> None:
        """Load the best checkpoint, whose weights are averages."""
        if self.average is not None and not self.stopped:
            self.average.apply()
        super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.restore(state.read(Path(resume_from_checkpoint), TRAINED))

    def _write(self, draft: Path) -> None:
        """Write this process's part into the draft: the averaged weights as the model's, the trained ones beside."""
        with self._averaged():
            super()._write(draft)
            if self.average is not None and self.args.should_save:
                state.write(dict(self.average.trained()), draft, TRAINED)

    def _whole_weights(self) -> bool:
        """Return whether every process has all of the weights: neither FSDP nor DeepSpeed."""
        kinds = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
        return self.accelerator.distributed_type in kinds

    def _parameters(self, model: torch.nn.Module) -> list[torch.nn.Parameter]:
        """List what is trained, once."""
        if self._trained is None:
            self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return self._trained

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Tell what was skipped before it is logged, saved or evaluated; after too many in a row, stop."""
        due = self.control.should_log or self.control.should_save or self.control.should_training_stop
        steps = [] if self.stopped else self.guard.read(self.state.global_step, self._from_all, now=due)
        for skipped in steps:
            self._tell(skipped)
        in_a_row = self.guard.in_a_row
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if steps and in_a_row >= self._guard_table.max_skipped_steps and not self.stopped:
            step = self.state.global_step
            self._save_checkpoint(self.model_wrapped, None)
            raise RunError(
                f"{in_a_row} steps in a row were skipped, up to step {step}: training is not recovering",
                f"lower trainer.learning_rate, or change the data; the weights of step {step - in_a_row} are in "
                f"checkpoint-{step}, and --resume goes on from it after the skipped steps",
            )

    def _tell(self, skipped: Skipped) -> None:
        self.skipped_steps += 1
        due = self.control.should_log  # which telling of it would take for done
        what = {"skipped_loss": skipped.loss, "skipped_grad_norm": skipped.grad_norm}
        self.control = self.callback_handler.on_log(
            self.args, self.state, self.control, {"skipped_step": skipped.step, **what, "examples": skipped.examples}
        )
        self.control.should_log = due
        if self.args.process_index == 0:
            numbers = ", ".join(map(str, skipped.examples[:SHOWN])) + (", ..." if len(skipped.examples) > SHOWN else "")
            if skipped.overflow:
                say(f"note     step {skipped.step} skipped: fp16 gradients overflowed, and the loss scale is lowered")
                return
            say(
                f"warning  step {skipped.step} skipped, {'a spike' if skipped.spike else 'not finite'}: "
                f"loss {skipped.loss:.4g}, gradient norm {skipped.grad_norm:.4g} (examples {numbers})"
            )

    def _from_all(self, numbers: list[int]) -> list[int]:
        """Return the numbers of all processes."""
        if self.args.world_size == 1:
            return numbers
        gathered: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(gathered, numbers)
        return [number for of_process in gathered for number in of_process]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as loss the mean over the steps that were taken, where upstream divides by all."""
        if "loss" in logs:
            taken, steps = self.guard.drain(), self.state.global_step - self._logged_before
            self._logged_before = self.state.global_step
            if 0 < steps != taken:
                logs["loss"] = logs["loss"] * steps / taken if taken else float("nan")
        super().log(logs, start_time)

    def extra_state(self) -> dict[str, Any]:
        return {**self.guard.state_dict(), "evaluated": self.evaluated, "sampled": self.sampled}

    def restore_extra_state(self, saved: dict[str, Any]) -> None:
        self.guard.load_state_dict(saved)
        self.evaluated = saved.get("evaluated", self.evaluated)
        self.sampled = saved.get("sampled")
        self._logged_before = self._globalstep_last_logged

    def stopping(self) -> bool:
        return self._stop is not None and self._stop.stopped

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """Make a loader as upstream, with an end to waiting for a data worker that hangs.

        A stream is read by the first process, which gives the others their blocks: they are not to begin to read it.
        """
        if isinstance(dataset, Endless) and self.args.process_index and self.accelerator.dispatch_batches is not False:
            dataset = Unread()
        loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        inner = getattr(loader, "base_dataloader", loader)  # accelerate goes through what it wraps
        if inner.num_workers:
            inner.timeout = self._guard_table.dataloader_timeout
        return loader

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return, of each row, its summed loss, its count of labels, and what the task keeps.

        Upstream averages over batches, which biases perplexity as soon as two batches differ in tokens. The arguments
        are upstream's, and the last two are ignored.

        Returns:
            No mean, the figures [B, 2 + K], and in place of labels the counts.
        """
        batch = self._prepare_inputs(inputs)
        labels = batch["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs, losses = self._forward(model, batch, training=False)
        if self.watch_losses is not None:
            self.watch_losses(losses, labels)
        counts = labels.ne(-100).flatten(1).sum(dim=1) if labels.dim() > 1 else labels.ne(-100)
        summed = losses.flatten(1).sum(dim=1) if losses.dim() > 1 else losses
        stats = torch.stack([summed, counts.float()], dim=1)
        if self._preprocess_for_metrics is not None:
            stats = torch.cat([stats, self._preprocess_for_metrics(self.model, outputs, batch)], dim=1)
        return None, stats, counts

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Draw examples of like length together, in an order that follows from seed and epoch alone; or as upstream."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        by_length = self.args.train_sampling_strategy == "group_by_length"
        if isinstance(dataset, MixedBlocks):  # it has an order
            return SequentialSampler(dataset)
        if isinstance(dataset, Mixture):
            return MixedBatches(dataset, self.args.train_batch_size, seed, by_length)
        if by_length and isinstance(dataset, Examples):
            return GroupedByLength(dataset, total_batch_size(self.args), seed)
        sampler = super()._get_train_sampler(train_dataset)
        if type(sampler) is RandomSampler and self.args.accelerator_config.use_seedable_sampler:
            data_seed = self.args.data_seed
            return Shuffled(len(dataset), torch.random.initial_seed() if data_seed is None else data_seed)
        return sampler

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate every validation split, or `eval_dataset`; return the metrics of all.

        The first split gives `eval_...`, each other one `eval_SPLIT_...`. Of several tasks or sources each gives
        `eval_NAME_...`, and `eval_loss` is the mean of their losses. Training goes on as if nothing had been evaluated.
        """
        parts = self._validation if eval_dataset is None else {"data": eval_dataset}
        metrics: dict[str, float] = {}
        random, mark = state.random_state(), self.evaluation_mark()
        try:
            with self._averaged():
                for number, (name, part) in enumerate(parts.items()):
                    prefix = f"{metric_key_prefix}_{name}" if number or self._several else metric_key_prefix
                    self.compute_metrics = lambda stats, part=part, prefix=prefix: self._keep(prefix, stats, part)
                    metrics |= super().evaluate(part, ignore_keys, prefix)
                if eval_dataset is None:
                    self.sample()
        except StoppedInEvaluation:
            self.rollback_evaluation(mark)
            raise
        finally:
            state.set_random_state(random)
        if self._several:
            losses = [metrics[f"{metric_key_prefix}_{name}_loss"] for name in parts]
            metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        self.evaluated = (self.state.global_step, metrics)
        return metrics

    def sample(self) -> None:
        """Let all processes write samples, unless the last ones are too few steps old; nothing in training changes.

        What goes wrong in writing costs the samples, and never the run: they are for the eye alone.
        """
        step = self.state.global_step
        due = self.sampled is None or self._at_last_step() or not self.is_in_train
        if self.sampler is None or not (
            due or step - (self.sampled or 0) >= self.sampler.interval(self.args.gradient_accumulation_steps)
        ):
            return
        random, together = state.random_state(), self.args.world_size > 1
        try:
            with self._averaged(), self.compute_loss_context_manager():
                found = self.sampler.write(
                    self.model, self.args.device, samples.seed_of(self.args.seed, step), self._heed, together
                )
            self._heed()
        except (RuntimeError, ValueError) as problem:
            if together:  # the others may wait for this process
                raise
            say(f"warning  no samples from here on: {' '.join(str(problem).split())}")
            self.sampler = None
            return
        finally:
            state.set_random_state(random)
        self.sampled = step
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "on_samples"):
                callback.on_samples(self.state, found)

    def _heed(self) -> None:
        """Heed a signal as between two batches of an evaluation."""
        self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def _keep(self, prefix: str, stats: Any, part: Any) -> dict[str, float]:
        """Compute the metrics of one part, and keep what they are made of."""
        self.stats[prefix] = stats.predictions
        return self._metrics(stats.predictions, part)

    def prefixes(self) -> dict[str, str]:
        """Return what the metrics of each part begin with."""
        return {
            name: f"eval_{name}" if number or self._several else "eval" for number, name in enumerate(self._validation)
        }

    def compared(self, compare: Callable[[Any, Any], Comparison | None]) -> dict[str, Comparison]:
        """Compare each part of the last evaluation, by what its metrics begin with; `compare(stats, part)`.

        A run that was stopped behind its last evaluation computes once more what that was made of.
        """
        found = {}
        for name, prefix in self.prefixes().items():
            part = self._validation[name]
            if prefix not in self.stats:
                self.compute_metrics = lambda *stats: {}
                self.stats[prefix] = self.predict(part).predictions
            if self.args.process_index == 0 and (comparison := compare(self.stats[prefix], part)) is not None:
                found[prefix] = comparison
        return found

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Go through the data in its order; upstream draws another one where training groups by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count 6 x parameters x tokens (Kaplan et al. 2020); upstream counts the parameters for every micro-batch."""
        return int(self._flops_per_token * inputs["input_ids"].numel())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save with the `use_cache` that the model came with (upstream turns it off to train and saves that).

        Beside an adapter goes its model's config, with the labels, from which it is loaded again. A model that is made
        of several is saved whole in a checkpoint, and when it is finished each of them as a model of its own.
        """
        config = self.model.config
        in_training = getattr(config, "use_cache", None)
        config.use_cache = self._use_cache_when_saved
        try:
            directory = Path(output_dir or self.args.output_dir)
            with self._averaged():
                self.save_weights(directory, in_checkpoint=_internal_call)
                if self.args.should_save and hasattr(self.model, "peft_config"):
                    save_config(self.model, directory)
                    save_as_lora(self.model, directory)
                if self.args.should_save and hasattr(self.model, "save_each") and not _internal_call:
                    self.model.save_each(directory, self.processing_class)
        finally:
            config.use_cache = in_training


def final_evaluation(trainer: Trainer) -> dict[str, float]:
    """Return the last metrics on the validation data; evaluate now unless the last step was just evaluated."""
    if trainer.eval_dataset is None:
        return {}
    step, metrics = trainer.evaluated
    as_they_were = step == trainer.state.global_step and not trainer.args.load_best_model_at_end
    return metrics if as_they_were else trainer.evaluate()


def final_samples(trainer: Trainer) -> None:
    """Write the samples of the finished model, unless an evaluation of it has just done so."""
    if trainer.sampled != trainer.state.global_step:
        trainer.sample()


def compared(trainer: Trainer, compare: Callable[..., Comparison | None] | None, learned: Any) -> dict[str, Comparison]:
    """Put the last evaluation beside the trivial answer, by what its metrics begin with, in the first process."""
    if trainer.eval_dataset is None or compare is None:
        return {}
    return trainer.compared(lambda stats, part: compare(learned, stats, part))
