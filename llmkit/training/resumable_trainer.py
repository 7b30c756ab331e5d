"""A Trainer that resumes exactly: with the batches, random numbers and learning rates of a run that was never stopped.

The position in the data is kept as a number of examples within an epoch, whatever the size of a batch was. Beside the
weights a checkpoint keeps all that upstream forgets: random numbers as they stood when the last step was over, the
loss that was not logged yet, an evaluation that was due, how long early stopping has waited.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import load_fsdp_optimizer
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.distributed.fsdp import get_fsdp_ckpt_kwargs
from transformers.trainer import SCHEDULER_NAME

from llmkit.errors import RunError, say
from llmkit.runs import state
from llmkit.runs.checkpoint import Checkpoint
from llmkit.training import early_stopping, sharded, strategy
from llmkit.training.order import Order, Shuffled
from llmkit.training.saving_trainer import OPTIMIZER, TRAINING, SavingTrainer


class StoppedInEvaluation(Exception):
    """A signal to end came while the model was being evaluated."""


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint to resume from, and what it holds beside weights and optimizer."""

    checkpoint: Checkpoint
    state: dict[str, Any]  # what all processes share
    rank_state: dict[str, Any]  # what this process left
    new_schedule: bool  # the learning rate is that of the arguments
    longer: bool  # the run was shorter when it was saved

    @classmethod
    def read(
        cls, checkpoint: Checkpoint, rank: int, processes: int, new_schedule: bool = False, longer: bool = False
    ) -> "SavedRun":
        """Read what a checkpoint holds for one process.

        Args:
            checkpoint: a whole one.
            rank: the number of this process.
            processes: how many there are. Where there were more or fewer, each takes the mean of their losses.
            new_schedule: as the field.
            longer: as the field.
        """
        before = checkpoint.manifest["processes"]
        needed = [rank] if before == processes else range(before)
        ranks = {number: state.read(checkpoint.path, f"process-{number}") for number in needed}
        rank_state: dict[str, Any] = dict(ranks.get(rank, {}))
        if before != processes:
            rank_state["loss"] = sum(other["loss"] for other in ranks.values()) / before
        return cls(checkpoint, state.read(checkpoint.path, TRAINING), rank_state, new_schedule, longer)


class ResumableTrainer(SavingTrainer):
    """Finds its position again, and goes on from there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._resumed: SavedRun | None = None
        self._optimizer_settings: list[dict[str, Any]] = []
        self._random_after_fetch = False  # random numbers are to be restored behind the next batch
        super().__init__(*args, **kwargs)
        self.add_callback(_Events(self))

    def resume_from(
        self, checkpoint: Checkpoint | None, new_schedule: bool = False, longer: bool = False
    ) -> str | None:
        """Return what to call `train` with to resume.

        With `new_schedule` training goes on at the learning rate of the arguments; a run that is to be `longer` does so
        too, unless its rate follows the loss, and does not stay stopped by early stopping.
        """
        if checkpoint is None:
            return None
        # Read now: this step may be saved anew before it is needed.
        place = (self.args.process_index, self.args.world_size)
        self._resumed = SavedRun.read(checkpoint, *place, new_schedule, longer)
        self.args.eval_on_start = False
        return str(checkpoint.path)

    def restore_extra_state(self, saved: dict[str, Any]) -> None:
        """Go on from what `extra_state` gave."""

    # ---- where to go on --------------------------------------------------------------------------------------------

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        """As upstream; of a run whose batches had another size, the steps that were made and those that are left."""
        values = super().set_initial_training_values(args, dataloader)
        epochs, per_epoch, examples, train_samples, total, steps_in_epoch, max_steps = values
        position = self._position
        position.size = self._epoch_size(args)
        if self._resumed is None:
            return values
        manifest = self._resumed.checkpoint.manifest
        position.load_state_dict(manifest)
        step = self._resumed.checkpoint.step
        if position.size is None or position.steps_made(total, per_epoch) == step:
            return values
        if args.max_steps <= 0:
            max_steps = position.last_step(step, args.num_train_epochs, total, per_epoch)
        else:
            epochs = position.num_epochs(max_steps - step, total, per_epoch)
        before = manifest["batch"]
        if self.args.process_index == 0 and before != total:
            say(
                f"a step now learns from {total} examples instead of {before}: {step} steps are done, "
                f"{max(0, max_steps - step)} are left"
            )
        return epochs, per_epoch, examples, train_samples, total, steps_in_epoch, max_steps

    def planned_steps(self) -> int:
        """Return the steps of the whole run, from its first."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return int(super().set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    def _epoch_size(self, args: TrainingArguments) -> int | None:
        """Return the examples of an epoch, which need not be as many as there are; of a stream nobody knows."""
        if isinstance(self.train_dataset, IterableDataset):
            return None
        drawn = len(self._get_train_sampler())
        together = args.train_batch_size * args.world_size
        return drawn // together * together if args.dataloader_drop_last else drawn

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Return the epoch to go on in, and how many batches of it upstream is to skip."""
        first_epoch_and_batch = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self._resumed is None:
            return first_epoch_and_batch
        self.state.compute_steps(self.args, max_steps)  # of logging, evaluation and saving, as they are asked for now
        self._name_best(Path(self.args.output_dir))
        self.saved_at = self.state.global_step
        self._attempt(lambda: self._rotate(Path(self.args.output_dir), self.limit), main_only=True)  # killed before it
        steps = self._position.skip(self.get_total_train_batch_size(self.args))
        return self._position.epoch, steps * self.args.gradient_accumulation_steps

    def on_train_begin(self) -> None:
        """Restore what upstream has forgotten by now, such as what was not logged yet, before the first step."""
        strategy.verify(self)
        if self._resumed is None:
            return
        saved = self._resumed.state
        self._total_loss_scalar, self._globalstep_last_logged = saved["total_loss"], saved["last_logged"]
        self._tr_loss = torch.tensor(self._resumed.rank_state["loss"], device=self.args.device)
        self._load_rng_state(str(self._resumed.checkpoint.path))  # for what is saved before the next step
        self.stopped = self.stopping()  # where a sweep stops it, which did not come to judge it before
        self.control.should_training_stop = self.stopped or (saved["over"] and not self._resumed.longer)
        self.skipped_steps = saved["skipped_steps"]
        early_stopping.load_state_dict(self.callback_handler.callbacks, saved["early_stopping"])
        if self._resumed.longer:
            early_stopping.restart(self.callback_handler.callbacks)
        self.restore_extra_state(saved["further"])
        if saved["pending"]:
            self.control.should_evaluate = self.control.should_save = True
            self._maybe_log_save_evaluate(
                self._tr_loss, None, self.model_wrapped, None, self.state.epoch, None, time.time()
            )

    # ---- the loop --------------------------------------------------------------------------------------------------

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
        """Train for an epoch, or for what is left of it."""
        position = self._position
        first = self._resumed is not None and epoch == epochs_trained
        at_end = first and position.at_end
        if not first:
            position.start_epoch(epoch)
        self.train_dataset.set_epoch(epoch)
        if first and position.size is not None:
            # Upstream does this behind skipped batches, and there does not reach the sampler of several processes.
            train_dataloader.set_epoch(epoch)
        self._boundary = self._step_boundary()
        if self._at_last_step() or at_end or self.control.should_training_stop:
            self._only_the_end(model, epoch, trial, ignore_keys_for_eval, start_time, first)
            return
        position.epoch_ended = False
        if first and position.size is None:
            self._random_after_fetch = True
            self.train_dataset.skip = position.offset
        elif first and position.offset:
            self._random_after_fetch = True
            rest = Order(self._order(train_dataloader)[position.offset :])
            train_dataloader = self._get_dataloader(
                self.train_dataset, "Training", self._train_batch_size, lambda dataset: rest, is_training=True
            )
            steps_in_epoch = len(train_dataloader)
            num_update_steps_per_epoch = math.ceil(steps_in_epoch / self.args.gradient_accumulation_steps)
        super()._run_epoch(
            model,
            epoch,
            train_dataloader,
            steps_in_epoch,
            num_update_steps_per_epoch,
            trial,
            ignore_keys_for_eval,
            start_time,
            resume_from_checkpoint,
            epochs_trained,
            steps_trained_in_current_epoch,
        )
        position.offset = 0

    def _only_the_end(
        self, model: torch.nn.Module, epoch: int, trial: Any, ignore: Any, start_time: float, first: bool
    ) -> None:
        """Do what upstream does after an epoch's last step, where that step was made before.

        In the `first` epoch after a checkpoint that may still be due; a later one is not begun at all.
        """
        if self._at_last_step() or not first:
            self.control.should_training_stop = True
        if first and not self._position.epoch_ended:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(self._tr_loss, None, model, trial, epoch, ignore, start_time)

    def _order(self, train_dataloader: Any) -> torch.Tensor:
        """Return the numbers of the examples of the epoch that is set, in the order that training takes."""
        batches = train_dataloader.batch_sampler
        sampler = getattr(batches, "batch_sampler", batches).sampler
        if isinstance(sampler, Shuffled):
            return sampler.numbers()
        return torch.from_numpy(np.fromiter(sampler, np.int64, count=len(sampler)))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As upstream; where it does not skip, random numbers go on behind the first batch as if nothing had been."""
        batches_and_count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._random_after_fetch and self._resumed is not None:
            self._random_after_fetch = False
            self._load_rng_state(str(self._resumed.checkpoint.path))
        return batches_and_count

    def on_step_end(self) -> None:
        """Note the position: a step was made."""
        self._stepping = False
        position = self._position
        position.advance(self.get_total_train_batch_size(self.args))
        if position.size is None:
            self.state.epoch = self.state.global_step / self.state.max_steps
        elif position.offset:
            self.state.epoch = position.epochs

    def on_epoch_end(self) -> None:
        """Note that an epoch is over, unless it was broken off."""
        self._position.epoch_ended = not self.stopped

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
        self._boundary = None
        if self.stopping():
            self._evaluation_due = bool(self.control.should_evaluate)
            self.control.should_evaluate = False
        try:
            super()._maybe_log_save_evaluate(
                tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
            )
            self._evaluation_due = self._evaluation_due and self.stopping()
        except StoppedInEvaluation:
            self._evaluation_due = True
            self._save_checkpoint(model, trial)
            self.control.should_training_stop = True
            self.stopped = True
        self.stopped = self.stopped or self.stopping()
        self._boundary = self._step_boundary()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As upstream, whose last line knows the loss of this process alone."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self.skipped_steps, 1)
        super().log(logs, start_time)

    # ---- what upstream keeps in pickles ----------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As upstream; note the optimizer's settings, as they are asked for now, before a checkpoint's are loaded."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        groups = getattr(self.optimizer, "param_groups", ())
        self._optimizer_settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        return scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """As upstream; weights that are whole also into a model that FSDP has divided."""
        folder = Path(resume_from_checkpoint)
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif not any(folder.glob("pytorch_model_fsdp*")):
            sharded.load_weights(self.model if model is None else model, folder)
        else:
            with sharded.reading(self.accelerator.state.fsdp_plugin, folder):
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; with a new schedule the optimizer's settings and the rates are those of the arguments."""
        if self._resumed is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self._load_optimizer(Path(checkpoint))
        saved = self._resumed.state["scheduler"]
        if saved is None and not (Path(checkpoint) / SCHEDULER_NAME).is_file():  # DeepSpeed's own, which has read it
            return
        if saved is None:  # an earlier version's
            saved = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        by_step = isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR)
        if not (self._resumed.new_schedule or (self._resumed.longer and by_step)):
            self.lr_scheduler.load_state_dict(saved)
            return
        for group, settings in zip(self.optimizer.param_groups, self._optimizer_settings, strict=True):
            group.update(settings)
        steps = {key: saved[key] for key in ("last_epoch", "_step_count") if key in saved}
        self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), **steps})
        if isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
            factors = [factor(self.lr_scheduler.last_epoch) for factor in self.lr_scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(self.lr_scheduler.base_lrs, factors, strict=True)]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.lr_scheduler._last_lr = rates

    def _load_optimizer(self, folder: Path) -> None:
        """Load the optimizer's state, whole or in shards; DeepSpeed has read its own together with the weights."""
        if self.is_deepspeed_enabled:
            return
        if any((folder / f"{OPTIMIZER}{kind}").is_file() for kind in (".json", ".pt")):
            saved = state.read(folder, OPTIMIZER)
            self.optimizer.load_state_dict(sharded.divide_optimizer_state(saved, self.optimizer))
            return
        plugin = self.accelerator.state.fsdp_plugin
        with sharded.reading(plugin, folder):
            load_fsdp_optimizer(
                plugin, self.accelerator, self.optimizer, self.model, str(folder), **get_fsdp_ckpt_kwargs()
            )

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self._resumed is not None and self._resumed.state["scaler"] is not None:
            scaler.load_state_dict(self._resumed.state["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._resumed is not None and "random" in self._resumed.rank_state:
            state.set_random_state(self._resumed.rank_state["random"])

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that lacks a tensor: training would go on from its initial value in silence."""
        tensors = self.model.state_dict(keep_vars=True)
        missing = set(load_result.missing_keys)
        held = {id(tensor) for name, tensor in tensors.items() if name not in missing}
        lacking = sorted(name for name in missing if id(tensors.get(name)) not in held)
        strange = sorted(load_result.unexpected_keys)
        if lacking or strange:
            what = f"lacks {lacking[0]}" if lacking else f"contains {strange[0]}, which the model does not have"
            raise RunError(
                f"the checkpoint does not fit the model: it {what}", "does it belong to this recipe's model?"
            )


class _Events(TrainerCallback):
    """Tells the trainer what its loop has come to."""

    def __init__(self, trainer: ResumableTrainer) -> None:
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
