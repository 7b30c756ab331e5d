"""Out of memory is found before step 1, on the longest batch, and answered by smaller ones that are accumulated."""

import gc
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from llmkit.errors import RunError, say
from llmkit.tasks.multi_task import Mixture
from llmkit.training.trainer import Trainer

MOMENTS = 2  # tensors of a parameter's size that Adam will hold beside it


def fits(trainer: Trainer) -> bool:
    """Return whether every process can learn from its longest batch.

    Tried on an accelerator alone: a CPU's memory is given out beyond what there is, and the kernel kills who uses it.
    Not under FSDP and DeepSpeed, which place the model only when training begins.
    """
    if not is_tried(trainer.args) or not trainer.place_model_on_device:
        return True
    try:
        try_longest(trainer)
        enough = True
    except torch.OutOfMemoryError:
        enough = False
    trainer.model.zero_grad(set_to_none=True)
    gc.collect()
    if trainer.args.device.type == "cuda":
        torch.cuda.empty_cache()
    return not trainer.any_process(not enough)


def is_tried(args: TrainingArguments) -> bool:
    return args.device.type != "cpu"


def try_longest(trainer: Trainer) -> None:
    """Try a forward and a backward pass beside as much memory as the optimizer will take; no weight changes."""
    model, args = trainer.model.train(), trainer.args
    if args.activation_checkpointing and hasattr(model, "activation_checkpointing_enable"):  # as train() will
        kwargs = args.activation_checkpointing_kwargs or None
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = [torch.empty_like(parameter) for parameter in trained for _ in range(MOMENTS)]
    for examples in longest(trainer.train_dataset, trainer.args.train_batch_size):
        inputs = trainer._prepare_inputs(trainer.data_collator(examples))
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, inputs)
        loss.backward()
    del held


def longest(dataset: Any, size: int) -> Iterator[list[Any]]:
    """Yield the `size` longest examples; of several tasks, those of each."""
    if isinstance(dataset, IterableDataset):
        yield list(islice(iter(dataset), size))
    elif isinstance(dataset, Mixture):
        for name, part in zip(dataset.names, dataset.parts, strict=True):
            yield [{**example, "task": name} for batch in longest(part, size) for example in batch]
    elif hasattr(dataset, "lengths"):
        yield [dataset[int(index)] for index in np.argsort(-dataset.lengths, kind="stable")[:size]]
    else:
        yield [dataset[index] for index in range(min(size, len(dataset)))]


def shrink(args: TrainingArguments) -> None:
    """Make batches smaller, and as many more of them in each step that it learns from as many examples as before."""
    size = args.per_device_train_batch_size
    if size == 1:
        raise RunError(
            "there is not enough memory for even one example",
            "use shorter examples (data.block_size, data.max_length), trainer.activation_checkpointing = true, "
            "a [lora] adapter or a smaller model",
        )
    smaller = next(divisor for divisor in range(size - 1, 0, -1) if size % divisor == 0)
    args.per_device_train_batch_size = smaller
    args.gradient_accumulation_steps *= size // smaller
    if args.process_index == 0:
        say(
            f"a batch of {size} does not fit into memory: using batches of {smaller} and "
            f"{args.gradient_accumulation_steps} accumulation steps; each step learns from as many examples as before"
        )
