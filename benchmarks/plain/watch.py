"""What every plain training leaves for the benchmark: when each log came, and what was done in all."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Watch(TrainerCallback):
    """A line in `metrics.jsonl` for each log event, with the time of day, as llmkit writes it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        with Path(str(args.output_dir), "metrics.jsonl").open("a") as lines:
            print(json.dumps({"step": state.global_step, "time": time.time(), **(logs or {})}), file=lines)


def train(trainer: Trainer, each: int = 1) -> None:
    """Train, evaluate and save as an example script does. `each` is how many units of work an example is (tokens)."""
    trainer.add_callback(Watch())
    trainer.train()
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    trainer.save_model()
    args, state = trainer.args, trainer.state
    examples = round(len(trainer.train_dataset) * state.num_train_epochs)
    if args.max_steps > 0:
        examples = state.global_step * args.train_batch_size * args.gradient_accumulation_steps
    done = {"parameters": trainer.model.num_parameters(), "steps": state.global_step, "units": examples * each}
    Path(str(args.output_dir), "result.json").write_text(json.dumps(done))
