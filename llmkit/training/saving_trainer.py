"""A Trainer whose checkpoints are whole or not there; a disk that is full costs a checkpoint, and never the run."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer as UpstreamTrainer
from transformers import TrainerControl
from transformers.trainer import TRAINER_STATE_NAME

from llmkit import verified
from llmkit.errors import RunError, UserError, in_words, say
from llmkit.runs import checkpoint, rebuild, state
from llmkit.runs.checkpoint import DRAFT, PREFIX
from llmkit.runs.directory import METRICS_FILE
from llmkit.runs.mirror import Mirror
from llmkit.training import early_stopping, sharded, strategy
from llmkit.training.position import Position

TRAINING, OPTIMIZER = "training", "optimizer"  # files of a checkpoint
NO_ROOM = (OSError, SafetensorError, RuntimeError)  # what a disk that is full or gone makes the libraries raise


@dataclass(frozen=True)
class StepBoundary:
    """What is only as it is between two steps."""

    step: int
    random: dict[str, torch.Tensor]
    loss: torch.Tensor | float  # of the steps that were not logged yet; on its device: nobody waits for it
    flos: float


@dataclass(frozen=True)
class EvaluationMark:
    """What an evaluation adds to, as it was before the evaluation began."""

    patience: list[int]
    entries: int  # in the log history
    metrics_bytes: int


class SavingTrainer(UpstreamTrainer):
    """Saves all that a run resumes from.

    `run` is the id that this run's checkpoints carry, `limit` how many of them are kept, `fingerprints` what the data,
    the tokenizer and the model are known by. The main process of a run that is mirrored has its `mirror`.
    """

    def __init__(
        self,
        *args: Any,
        run: str = "",
        limit: int | None = None,
        fingerprints: Mapping[str, Any] | None = None,
        mirror: Mirror | None = None,
        **kwargs: Any,
    ) -> None:
        self.run, self.limit, self.fingerprints = run, limit, dict(fingerprints or {})
        self.mirror = mirror
        self.saved_at = -1  # the step of the last checkpoint that was written
        self.saving_seconds = 0.0
        self.stopped = False  # by a signal; what comes after the last step is left to the process that goes on
        self.skipped_steps = 0
        self._position = Position()
        self._evaluation_due = False  # when a signal came
        self._copied: dict[str, Any] | None = None
        self._metrics_bytes: int | None = None  # how much of the log counts, where an evaluation was broken off
        self._boundary: StepBoundary | None = None  # as the last step left it; None while something may change that
        self._stepping = False  # inside the optimizer: the weights are neither the old nor the new ones
        self.control: TrainerControl
        super().__init__(*args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint, whole or not at all; a disk that is full costs this checkpoint and no more."""
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
            if self.mirror is not None:
                self.mirror.saved(step, self.limit, self.state.best_global_step)
        self.saving_seconds += time.monotonic() - begun

    def _write_and_seal(self, directory: Path, draft: Path) -> bool:
        done = False
        try:
            done = (
                self._attempt(lambda: checkpoint.begin(directory, self.state.global_step), main_only=True)
                and self._attempt(lambda: self._write(draft))
                and self._attempt(lambda: self._share_checksums(draft))
                and self._attempt(lambda: checkpoint.seal(draft, self._manifest()), main_only=True)
            )
        finally:
            if not done and self.args.should_save:
                checkpoint.abandon(draft)
        return done

    def _write(self, draft: Path) -> None:
        """Write this process's part into the draft."""
        self.save_model(str(draft), _internal_call=True)
        if strategy.of(self).state != strategy.FULL:  # in their own formats, each process its share
            super()._save_optimizer_and_scheduler(str(draft))
        elif self.is_fsdp_enabled or self.args.should_save:
            optimizer = sharded.gather(self.optimizer.state_dict(), keep=self.args.should_save)
            if self.args.should_save:
                state.write(optimizer, draft, OPTIMIZER)
        boundary = self._boundary or self._step_boundary()
        rank_state = {"random": {**state.random_state(), **boundary.random}, "loss": float(boundary.loss)}
        state.write(rank_state, draft, f"process-{self.args.process_index}")
        if self.args.should_save:
            state.write(self._training_state(), draft, TRAINING)
            self.state.save_to_json(str(draft / TRAINER_STATE_NAME))

    def _share_checksums(self, draft: Path) -> None:
        """Let each process hash its share of a checkpoint in shards, for the manifest: the first would read all."""
        if self.args.world_size == 1 or strategy.of(self).state == strategy.FULL:
            return
        found: dict[str, str] = {}
        with suppress(OSError):  # what is not hashed here is hashed by the first, which says what is wrong
            files = sorted(file for file in draft.rglob("*") if file.is_file())
            for file in files[self.args.process_index :: self.args.world_size]:
                found[str(file.relative_to(draft))] = verified.checksum(file)
        gathered: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(gathered, found)
        if self.args.should_save:
            for name, checksum in (item for of_process in gathered for item in of_process.items()):
                verified.written(draft / name, checksum)

    def _training_state(self) -> dict[str, Any]:
        """Return what all processes share beside weights and optimizer."""
        scaler = getattr(self.accelerator, "scaler", None)
        return {
            "scheduler": None if self.is_deepspeed_enabled else self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "early_stopping": early_stopping.state_dict(self.callback_handler.callbacks),
            "pending": self._evaluation_due,
            "over": self.control.should_training_stop and not self.stopping() and not self._at_last_step(),
            "skipped_steps": self.skipped_steps,
            "further": self.extra_state(),
        }

    def _manifest(self) -> dict[str, Any]:
        metrics = Path(self.args.output_dir) / METRICS_FILE
        if metrics.exists():
            checkpoint.synced(metrics)
        return {
            "run": self.run,
            "step": self.state.global_step,
            **self._position.state_dict(),
            "batch": self.get_total_train_batch_size(self.args),
            "processes": self.args.world_size,
            **strategy.record(self),
            "sharded_tensors": sharded.count(self.model),
            "metrics_bytes": self._size_of_metrics() if self._metrics_bytes is None else self._metrics_bytes,
            "fingerprints": self.fingerprints,
            "record": self._record(),
        }

    def _record(self) -> dict[str, Any]:
        """Return what a manifest copies of the run's record, as it was when the first one was written."""
        if self._copied is None:
            self._copied = rebuild.copied(Path(self.args.output_dir))
        return self._copied

    def _size_of_metrics(self) -> int:
        metrics = Path(self.args.output_dir) / METRICS_FILE
        return metrics.stat().st_size if metrics.exists() else 0

    def _at_last_step(self) -> bool:
        return self.state.global_step >= self.state.max_steps

    def _step_boundary(self) -> StepBoundary:
        """Return what is as it is now only until the next step."""
        loss = getattr(self, "_tr_loss", None)
        return StepBoundary(
            step=self.state.global_step,
            random=state.torch_random_state(),
            loss=0.0 if loss is None else loss.clone(),
            flos=self.current_flos,
        )

    def stopping(self) -> bool:
        """Tell whether the processes have agreed that a signal ends the run."""
        return False

    def extra_state(self) -> dict[str, Any]:
        """Return what else a checkpoint keeps."""
        return {}

    def evaluation_mark(self) -> EvaluationMark:
        """Return what `rollback_evaluation` needs to undo an evaluation that begins now."""
        patience = early_stopping.state_dict(self.callback_handler.callbacks)
        return EvaluationMark(patience, len(self.state.log_history), self._size_of_metrics())

    def rollback_evaluation(self, mark: EvaluationMark) -> None:
        """Forget the parts of an evaluation that was broken off: all of it is made again."""
        self._metrics_bytes = mark.metrics_bytes
        early_stopping.load_state_dict(self.callback_handler.callbacks, mark.patience)
        del self.state.log_history[mark.entries :]

    def save_after_failure(self) -> bool:
        """Save what the last step left, after an exception in the next one; return whether that was possible.

        Of several processes the others are not there to agree.
        """
        boundary = self._boundary
        if self.args.world_size > 1 or self._stepping or boundary is None or boundary.step != self.state.global_step:
            return False
        if self.saved_at == self.state.global_step:
            return True
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            return False
        self.current_flos = boundary.flos
        with suppress(RunError):  # the failure that came first is told
            self._save_checkpoint(self.model, None)
        return self.saved_at == self.state.global_step

    def _attempt(self, action: Callable[[], object], main_only: bool = False) -> bool:
        """Return whether `action` succeeded on every process: none goes on alone, none waits for one that failed."""
        problem = ""
        try:
            if self.args.should_save or not main_only:
                action()
        except NO_ROOM as caught:
            if "DataLoader worker" in str(caught):  # torch raises it wherever the process is
                raise
            problem = in_words(caught)
        except Exception as caught:
            kept = (
                f"--resume goes on from checkpoint-{self.saved_at}" if self.saved_at >= 0 else "there is no checkpoint"
            )
            raise RunError(f"step {self.state.global_step} could not be saved: {in_words(caught)}; {kept}") from caught
        failed = self.any_process(bool(problem))
        if failed:
            why = problem or "another process could not write"
            say(f"warning  step {self.state.global_step} was not saved: {why}; training goes on")
        return not failed

    def any_process(self, flag: bool) -> bool:
        """Return whether the flag is set on any of the processes."""
        if self.args.world_size == 1:
            return flag
        agreed = torch.tensor(int(flag), device=self.args.device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        return bool(agreed)

    def of_first(self, find: Callable[[], Any]) -> Any:
        """Return on all processes what `find` returns on the first, which alone calls it; all raise its error."""
        if self.args.world_size == 1:
            return find()
        told: list[Any] = [None, None]
        if self.args.process_index == 0:
            try:
                told = [find(), None]
            except UserError as problem:
                told = [None, problem]
            except Exception as problem:  # else the others would wait for it
                told = [None, RunError(in_words(problem))]
        torch.distributed.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def _rotate(self, directory: Path, limit: int | None) -> None:
        rule = limit, self.state.best_global_step, self.state.global_step
        with nullcontext("") if self.mirror is None else self.mirror.spared() as spared:
            checkpoint.rotate(directory, self.run, *rule, spared)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Note whether this evaluation is the best; of equally good ones the last, which has learned more."""
        before = self.state.best_global_step
        better = super()._determine_best_metric(metrics, trial)
        name = self.args.metric_for_best_model or ""
        value = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
        if not better and before and value == self.state.best_metric:
            self.state.best_global_step = self.state.global_step
        return bool(better)

    def _name_best(self, directory: Path) -> None:
        """Note where the best checkpoint is now: the run may have been moved."""
        best = self.state.best_global_step
        if best and self.args.save_strategy != "no":
            folder = directory / f"{PREFIX}{best}"
            there = best == self.state.global_step or folder.is_dir()
            self.state.best_model_checkpoint = str(folder) if there else None

    def _load_best_model(self) -> None:
        """Load the best checkpoint, if it is whole; a run that was stopped leaves that to the process that goes on."""
        if self.stopped:
            return
        folder = Path(self.state.best_model_checkpoint or "")
        best = self.of_first(lambda: checkpoint.examine(folder, self.run))
        if isinstance(best, str):
            raise RunError(
                f"the best checkpoint, {folder}, is damaged: {best}",
                "move it away, then run the same command with --resume",
            )
        if self.is_fsdp_enabled:
            self._load_from_checkpoint(str(folder))
        else:
            super()._load_best_model()

    def save_weights(self, directory: Path, in_checkpoint: bool) -> None:
        """Save the weights whole, gathered from all processes; in a checkpoint as its strategy keeps them.

        There, shards of FSDP and of ZeRO-3 without `zero3_save_16bit_model` stay shards, beside the configuration.
        """
        engine = self.deepspeed if self.is_deepspeed_enabled else None
        if in_checkpoint and self.keeps_shards():
            self._save_without_weights(directory)
        elif self.is_fsdp_enabled:
            self._save(str(directory), state_dict=self.accelerator.get_state_dict(self.model))
        elif engine is not None and engine.zero_optimization_partition_weights():
            adapter = hasattr(self.model, "peft_config")
            weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapter)
            self._save(str(directory), state_dict=weights)
        else:
            super().save_model(str(directory), _internal_call=in_checkpoint)

    def keeps_shards(self) -> bool:
        """Tell whether the weights of a checkpoint stay divided, to be saved in less time and memory."""
        if not self.is_deepspeed_enabled:
            return strategy.of(self).state == strategy.SHARDED
        whole = self.deepspeed.zero_gather_16bit_weights_on_model_save() or hasattr(self.model, "peft_config")
        return bool(self.deepspeed.zero_optimization_partition_weights() and not whole)

    def _save_without_weights(self, directory: Path) -> None:
        """Save configuration and tokenizer: what reads the shards later needs both."""
        self._save(str(directory), state_dict={})
        if self.args.should_save:
            for file in directory.glob("model*.safetensors*"):
                file.unlink()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model and its tokenizer in Hugging Face's layout; upstream adds a pickle of all arguments."""
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
