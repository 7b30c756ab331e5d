"""A Trainer that cannot lose its run: what it saves is whole or not there, and training goes on from it exactly.

The place in the data is kept as a number of examples within an epoch, whatever the size of a batch was. Beside the
weights a checkpoint keeps all that upstream forgets: random numbers as they stood when the last step was over, the
loss that was not logged yet, an evaluation that was due, how long early stopping has waited.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers import Trainer as UpstreamTrainer
from transformers.trainer import TRAINER_STATE_NAME

from llmkit.errors import RunError, say
from llmkit.runs import checkpoint, state
from llmkit.runs.checkpoint import DRAFT, PREFIX, Checkpoint
from llmkit.runs.directory import METRICS_FILE

TRAINING, OPTIMIZER = "training", "optimizer"  # files of a checkpoint
NO_ROOM = (OSError, SafetensorError, RuntimeError)  # what a disk that is full or gone makes the libraries raise


class StoppedInEvaluation(Exception):
    """A signal to end came while the model was being evaluated."""


class ResumingTrainer(UpstreamTrainer):
    """Saves, finds its place again, and goes on.

    `run` is the id that this run's checkpoints carry, `limit` how many of them are kept, `fingerprints` what the data,
    the tokenizer and the model are known by.
    """

    def __init__(
        self,
        *args: Any,
        run: str = "",
        limit: int | None = None,
        fingerprints: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.run, self.limit, self.fingerprints = run, limit, dict(fingerprints or {})
        self.saved_at = -1  # the step of the last checkpoint that was written
        self.saving_seconds = 0.0
        self.stopped = False  # by a signal; what comes after the last step is left to the process that goes on
        self.skipped_steps = 0
        self._resumed: Checkpoint | None = None
        self._kept: dict[str, Any] = {}  # what the checkpoint says beside weights and optimizer
        self._own: dict[str, Any] = {}  # what this process left in it
        self._new_schedule = False
        self._epoch, self._samples, self._ended = 0, 0, False  # the place: examples of an epoch, and whether it is over
        self._seen = 0  # examples in all
        self._offset = 0  # where in the epoch training goes on that upstream cannot skip to by whole batches
        self._load_random_after_fetch = False
        self._metrics_bytes: int | None = None  # how much of the log counts, where an evaluation was broken off
        self._pending = False  # an evaluation that was due when a signal came
        self._stepping = False  # inside the optimizer: the weights are neither the old nor the new ones
        self.control: TrainerControl
        self._boundary: dict[str, Any] = {}  # what stood when the last step was over
        super().__init__(*args, **kwargs)
        self.add_callback(_Events(self))

    def go_on_from(self, found: Checkpoint | None, new_schedule: bool = False) -> str | None:
        """What `train` is to be called with to go on; with `new_schedule` at the learning rate of the arguments."""
        if found is None:
            return None
        self._resumed, self._new_schedule = found, new_schedule
        self._kept = state.read(found.path, TRAINING)
        self._own = self._of_process()  # now: this step may be saved anew before it is needed
        self.args.eval_on_start = False
        return str(found.path)

    # ---- saving ----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """A checkpoint, whole or not there; a disk that is full costs this checkpoint and no more."""
        begun = time.monotonic()
        self.store_flos()
        directory, step = Path(self.args.output_dir), self.state.global_step
        self._name_best(directory)
        draft = directory / f"{DRAFT}{PREFIX}{step}"
        saved = self._write_and_seal(directory, draft)
        if not saved and self.limit is not None and self.limit > 1:  # older ones would go anyway
            self._attempt(lambda: self._rotate(directory, self.limit - 1), main_only=True)  # type: ignore[operator]
            saved = self._write_and_seal(directory, draft)
        if not saved and self.state.best_global_step == step:
            self.state.best_model_checkpoint = None
        if saved:
            self.saved_at = step
            self._attempt(lambda: self._rotate(directory, self.limit), main_only=True)
        self.saving_seconds += time.monotonic() - begun

    def _write_and_seal(self, directory: Path, draft: Path) -> bool:
        done = (
            self._attempt(lambda: checkpoint.begin(directory, self.state.global_step), main_only=True)
            and self._attempt(lambda: self._write(draft))
            and self._attempt(lambda: checkpoint.seal(draft, self._manifest()), main_only=True)
        )
        if not done and self.args.should_save:
            checkpoint.abandon(draft)
        return done

    def _write(self, draft: Path) -> None:
        """Every process writes its part into the draft."""
        self.save_model(str(draft), _internal_call=True)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # in their own formats, each process its share
            super()._save_optimizer_and_scheduler(str(draft))
        elif self.args.should_save:
            state.write(self.optimizer.state_dict(), draft, OPTIMIZER)
        boundary = self._boundary or self._stand()
        own = {"random": {**state.random_state(), **boundary["random"]}, "loss": float(boundary["loss"])}
        state.write(own, draft, f"process-{self.args.process_index}")
        if self.args.should_save:
            scaler = getattr(self.accelerator, "scaler", None)
            training = {
                "scheduler": None if self.is_deepspeed_enabled else self.lr_scheduler.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "total_loss": self._total_loss_scalar,
                "last_logged": self._globalstep_last_logged,
                "early_stopping": self._patience(),
                "pending": self._pending,
                "over": self.control.should_training_stop and not self.stopping() and not self._at_last_step(),
                "skipped_steps": self.skipped_steps,
                "further": self.further_state(),
            }
            state.write(training, draft, TRAINING)
            self.state.save_to_json(str(draft / TRAINER_STATE_NAME))

    def _manifest(self) -> dict[str, Any]:
        metrics = Path(self.args.output_dir) / METRICS_FILE
        if metrics.exists():
            checkpoint.synced(metrics)
        return {
            "run": self.run,
            "step": self.state.global_step,
            "epoch": self._epoch,
            "samples": self._samples,
            "epoch_ended": self._ended,
            "samples_seen": self._seen,
            "batch": self.get_total_train_batch_size(self.args),
            "processes": self.args.world_size,
            "metrics_bytes": self._size_of_metrics() if self._metrics_bytes is None else self._metrics_bytes,
            "fingerprints": self.fingerprints,
        }

    def _size_of_metrics(self) -> int:
        metrics = Path(self.args.output_dir) / METRICS_FILE
        return metrics.stat().st_size if metrics.exists() else 0

    def _at_last_step(self) -> bool:
        return self.state.global_step >= self.state.max_steps

    def noted(self) -> tuple[list[int], int, int]:
        """What an evaluation adds to that it does not end."""
        return self._patience(), len(self.state.log_history), self._size_of_metrics()

    def take_back(self, noted: tuple[list[int], int, int]) -> None:
        """Forget the parts of an evaluation that was broken off: it is made again, all of it."""
        patience, logged, self._metrics_bytes = noted
        for each, counter in zip(self._early_stopping(), patience, strict=True):
            each.early_stopping_patience_counter = counter
        del self.state.log_history[logged:]

    def further_state(self) -> dict[str, Any]:
        """What else a checkpoint keeps."""
        return {}

    def restore_further_state(self, kept: dict[str, Any]) -> None:
        """Go on from what `further_state` gave."""

    def save_after_failure(self) -> bool:
        """Save what stood when the last step was over, after an exception in the next one; whether that was possible.

        Of several processes the others are not there to agree.
        """
        if self.args.world_size > 1 or self._stepping or self._boundary.get("step") != self.state.global_step:
            return False
        if self.saved_at == self.state.global_step:
            return True
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            return False
        self.current_flos = self._boundary["flos"]
        self._save_checkpoint(self.model, None)
        return self.saved_at == self.state.global_step

    def _attempt(self, action: Callable[[], object], main_only: bool = False) -> bool:
        """Whether `action` succeeded on every process: none goes on alone, and none waits for one that failed."""
        problem = ""
        try:
            if self.args.should_save or not main_only:
                action()
        except NO_ROOM as caught:
            if "DataLoader worker" in str(caught):  # torch raises it wherever the process is
                raise
            problem = " ".join(str(caught).split())
        failed = self.any_process(bool(problem))
        if failed:
            why = problem or "another process could not write"
            say(f"warning  step {self.state.global_step} was not saved: {why}; training goes on")
        return not failed

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set on any of the processes."""
        if self.args.world_size == 1:
            return flag
        agreed = torch.tensor(int(flag), device=self.args.device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        return bool(agreed)

    def _rotate(self, directory: Path, limit: int | None) -> None:
        checkpoint.rotate(directory, self.run, limit, self.state.best_global_step, self.state.global_step)

    def _name_best(self, directory: Path) -> None:
        """Where the best checkpoint is now: the run may have been moved."""
        best = self.state.best_global_step
        if best and self.args.save_strategy != "no":
            folder = directory / f"{PREFIX}{best}"
            there = best == self.state.global_step or folder.is_dir()
            self.state.best_model_checkpoint = str(folder) if there else None

    def _load_best_model(self) -> None:
        if self.stopped:  # who goes on will
            return
        folder = Path(self.state.best_model_checkpoint or "")
        found = checkpoint.examine(folder, self.run)
        if isinstance(found, str):
            raise RunError(f"the best checkpoint, {folder}, is not whole: {found}", "--resume after moving it away")
        super()._load_best_model()

    # ---- going on --------------------------------------------------------------------------------------------------

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        """As upstream; of a run whose batches had another size, the steps that were made and those that are left."""
        values = super().set_initial_training_values(args, dataloader)
        epochs, per_epoch, examples, train_samples, total, steps_in_epoch, max_steps = values
        self._size = self._examples_drawn(args)
        if self._resumed is None or self._size is None:
            return values
        epoch, samples, _ = self._place()
        made, step = epoch * per_epoch + math.ceil(samples / total), self._resumed.step
        if made != step:
            left_in_epoch = math.ceil((self._size - min(samples, self._size)) / total)
            if args.max_steps <= 0:
                max_steps = (
                    step + left_in_epoch + math.ceil(args.num_train_epochs * per_epoch) - (epoch + 1) * per_epoch
                )
            else:
                epochs = epoch + 1 + math.ceil(max(0, max_steps - step - left_in_epoch) / per_epoch)
            before = self._resumed.manifest["batch"]
            if self.args.process_index == 0 and before != total:
                say(
                    f"a step learns from {total} examples now, and learned from {before}: {step} steps are made, "
                    f"{max(0, max_steps - step)} are left"
                )
        return epochs, per_epoch, examples, train_samples, total, steps_in_epoch, max_steps

    def _examples_drawn(self, args: TrainingArguments) -> int | None:
        """Examples of an epoch, which need not be as many as there are; of a stream nobody knows."""
        if isinstance(self.train_dataset, IterableDataset):
            return None
        drawn = len(self._get_train_sampler())
        together = args.train_batch_size * args.world_size
        return drawn // together * together if args.dataloader_drop_last else drawn

    def _place(self) -> tuple[int, int, bool]:
        """Epoch, examples of it that were learned from, and whether only its end is left."""
        assert self._resumed is not None
        epoch, samples = self._resumed.manifest["epoch"], self._resumed.manifest["samples"]
        at_end = self._size is not None and samples >= self._size
        if at_end and self._resumed.manifest["epoch_ended"]:
            return epoch + 1, 0, False
        return epoch, samples, at_end

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """The epoch to go on in, and how many batches of it upstream is to skip."""
        found = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self._resumed is None:
            return found
        self.state.compute_steps(self.args, max_steps)  # of logging, evaluation and saving, as they are asked for now
        self._name_best(Path(self.args.output_dir))
        self.saved_at = self.state.global_step
        self._attempt(lambda: self._rotate(Path(self.args.output_dir), self.limit), main_only=True)  # killed before it
        epoch, samples, at_end = self._place()
        self._epoch, self._samples, self._seen = epoch, samples, self._resumed.manifest["samples_seen"]
        total = self.get_total_train_batch_size(self.args)
        if self._size is None or at_end or samples % total:
            self._offset = samples
            return epoch, 0
        return epoch, samples // total * self.args.gradient_accumulation_steps

    def on_train_begin(self) -> None:
        """Called when upstream has forgotten what was not logged yet, and before the first step."""
        if self._resumed is None:
            return
        kept = self._kept
        self._total_loss_scalar, self._globalstep_last_logged = kept["total_loss"], kept["last_logged"]
        self._tr_loss = torch.tensor(self._own["loss"], device=self.args.device)
        self._load_rng_state(str(self._resumed.path))  # for what is saved before the next step
        self.control.should_training_stop = kept["over"]
        self.skipped_steps = kept["skipped_steps"]
        for each, counter in zip(self._early_stopping(), kept["early_stopping"], strict=False):
            each.early_stopping_patience_counter = counter
        self.restore_further_state(kept["further"])
        if kept["pending"]:
            self.control.should_evaluate = self.control.should_save = True
            self._maybe_log_save_evaluate(
                self._tr_loss, None, self.model_wrapped, None, self.state.epoch, None, time.time()
            )

    def _run_epoch(
        self,
        model: torch.nn.Module,
        epoch: int,
        train_dataloader: Any,
        steps_in_epoch: int,
        num_update_steps_per_epoch: int,
        trial: Any,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        resume_from_checkpoint: str | None,
        epochs_trained: int,
        steps_trained_in_current_epoch: int,
    ) -> None:
        """An epoch, or what is left of it."""
        first = self._resumed is not None and epoch == epochs_trained
        at_end = first and self._place()[2]
        if not first:
            self._epoch, self._samples, self._offset = epoch, 0, 0
        self._ended = False
        self.train_dataset.set_epoch(epoch)
        self._boundary = self._stand()
        rest = (trial, ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained)
        if self.state.global_step >= self.state.max_steps or at_end or self.control.should_training_stop:
            self._only_the_end(model, epoch, trial, ignore_keys_for_eval, start_time, first)
            return
        if first and self._size is None:
            self._load_random_after_fetch = True
            self.train_dataset.skip = self._offset
        elif first and self._offset:
            self._load_random_after_fetch = True
            order = self._order(train_dataloader, epoch)[self._offset :]
            train_dataloader = self._get_dataloader(
                self.train_dataset, "Training", self._train_batch_size, lambda dataset: order, is_training=True
            )
            steps_in_epoch = len(train_dataloader)
            num_update_steps_per_epoch = math.ceil(steps_in_epoch / self.args.gradient_accumulation_steps)
        super()._run_epoch(
            model,
            epoch,
            train_dataloader,
            steps_in_epoch,
            num_update_steps_per_epoch,
            *rest,
            steps_trained_in_current_epoch,
        )
        self._offset = 0

    def _only_the_end(
        self, model: torch.nn.Module, epoch: int, trial: Any, ignore: Any, start_time: float, first: bool
    ) -> None:
        """What upstream does after an epoch's last step, where that step was made before."""
        if first and self._resumed is not None:
            if self.state.global_step >= self.state.max_steps:
                self.control.should_training_stop = True
            if not self._resumed.manifest["epoch_ended"]:
                self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
                self._maybe_log_save_evaluate(self._tr_loss, None, model, trial, epoch, ignore, start_time)
        else:
            self.control.should_training_stop = True

    def _order(self, train_dataloader: Any, epoch: int) -> Sequence[int]:
        """The numbers of this epoch's examples, in the order in which training goes through them."""
        train_dataloader.set_epoch(epoch)
        batches = train_dataloader.batch_sampler
        return list(getattr(batches, "batch_sampler", batches).sampler)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As upstream; where it does not skip, random numbers go on behind the first batch as if nothing had been."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._load_random_after_fetch and self._resumed is not None:
            self._load_random_after_fetch = False
            self._load_rng_state(str(self._resumed.path))
        return found

    def on_step_end(self) -> None:
        """A step was made: note the place."""
        self._stepping = False
        total = self.get_total_train_batch_size(self.args)
        done = total if self._size is None else min(total, self._size - self._samples)
        self._samples += done
        self._seen += done
        if self._size is None:
            self.state.epoch = self.state.global_step / self.state.max_steps
        elif self._offset:
            self.state.epoch = self._epoch + self._samples / self._size

    def on_epoch_end(self) -> None:
        """An epoch is over, or was broken off."""
        self._ended = not self.stopped

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: Any,
        model: torch.nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """As upstream; after a signal nothing is evaluated any more, and what was due is done by who goes on."""
        if self.stopped:
            return
        self._boundary = {}
        if self.stopping():
            self._pending = bool(self.control.should_evaluate)
            self.control.should_evaluate = False
        try:
            super()._maybe_log_save_evaluate(
                tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
            )
            self._pending = self._pending and self.stopping()
        except StoppedInEvaluation:
            self._pending = True
            self._save_checkpoint(model, trial)
            self.control.should_training_stop = True
            self.stopped = True
        self.stopped = self.stopped or self.stopping()
        self._boundary = self._stand()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As upstream, whose last line knows the loss of this process alone."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self.skipped_steps, 1)
        super().log(logs, start_time)

    def stopping(self) -> bool:
        """A signal to end was agreed on."""
        return False

    def _stand(self) -> dict[str, Any]:
        """What only stands as it is between two steps."""
        loss = getattr(self, "_tr_loss", None)
        return {
            "step": self.state.global_step,
            "random": state.torch_random_state(),
            "loss": 0.0 if loss is None else loss.clone(),  # on its device: nobody waits for it
            "flos": self.current_flos,
        }

    # ---- what upstream keeps in pickles ----------------------------------------------------------------------------

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        fresh = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state.read(Path(checkpoint), OPTIMIZER))
        if not self._new_schedule:
            self.lr_scheduler.load_state_dict(self._kept["scheduler"])
            return
        for group, settings in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update(settings)
        kept = self._kept["scheduler"]
        place = {key: kept[key] for key in ("last_epoch", "_step_count") if key in kept}
        self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), **place})
        if isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
            factors = [factor(self.lr_scheduler.last_epoch) for factor in self.lr_scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(self.lr_scheduler.base_lrs, factors, strict=True)]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.lr_scheduler._last_lr = rates

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is not None and scaler is not None and self._kept["scaler"] is not None:
            scaler.load_state_dict(self._kept["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if "random" in self._own:
            state.set_random_state(self._own["random"])

    def _of_process(self) -> dict[str, Any]:
        """What this process left in the checkpoint; where there were more or fewer, the mean of their losses."""
        assert self._resumed is not None
        path, before = self._resumed.path, self._resumed.manifest["processes"]
        every = [state.read(path, f"process-{rank}") for rank in range(before)]
        found: dict[str, Any] = dict(every[self.args.process_index]) if self.args.process_index < before else {}
        if before != self.args.world_size:
            found["loss"] = sum(each["loss"] for each in every) / before
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The model and its tokenizer in Hugging Face's layout; upstream adds a pickle of all arguments."""
        directory = Path(output_dir or self.args.output_dir)
        if not self.args.should_save and not self.is_distributed_loading_by_transformers:
            return
        directory.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(directory, state_dict=state_dict, is_main_process=self.args.should_save)
        elif self.args.should_save:
            from safetensors.torch import save_model

            save_model(model, str(directory / "model.safetensors"), metadata={"format": "pt"})
        if self.args.should_save:
            self.processing_class.save_pretrained(directory)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tensor that the checkpoint does not hold would be trained on from its initial value in silence."""
        tensors = self.model.state_dict(keep_vars=True)
        missing = set(load_result.missing_keys)
        held = {id(tensor) for name, tensor in tensors.items() if name not in missing}
        lacking = sorted(name for name in missing if id(tensors.get(name)) not in held)
        strange = sorted(load_result.unexpected_keys)
        if lacking or strange:
            what = f"lacks {lacking[0]}" if lacking else f"holds {strange[0]}, which the model has not"
            raise RunError(f"the checkpoint does not fit the model: it {what}", "is it of this recipe's model?")

    def _patience(self) -> list[int]:
        """How many evaluations early stopping has waited."""
        return [each.early_stopping_patience_counter for each in self._early_stopping()]

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]


class _Events(TrainerCallback):
    """Tells the trainer what its loop has come to."""

    def __init__(self, trainer: ResumingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.on_train_begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._stepping = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.on_step_end()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.on_epoch_end()
