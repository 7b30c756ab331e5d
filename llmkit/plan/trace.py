"""Trace two steps of training without computing them: what memory they take by kind, and how many operations.

The model is made of tensors that have a shape and no contents (`FakeTensorMode`). Its loss is the run's own, by way of
`speed.fused_loss` or the task, and so are optimizer, precision and checkpointing; torch's `MemTracker` adds up what is
alive at each operation, and `FlopCounterMode` counts them.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel, Trainer, TrainingArguments, masking_utils

from llmkit import tasks
from llmkit.data.rows.batches import models_own
from llmkit.errors import UserError
from llmkit.models.config import choose_block_size
from llmkit.models.weights import create_model
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.schema import GENERATING, Model, Optimizer, Recipe, Speed
from llmkit.recipe.tasks import TASKS
from llmkit.speed import length_groups
from llmkit.speed.fused_loss import FusedLMLoss
from llmkit.training.assembly import Assembly
from llmkit.training.batch_size import longest
from llmkit.training.optimizer import create_optimizer

# MemTracker's kinds, under the names of the plan. What backward makes and drops again counts with the activations.
KINDS = {
    "Parameter": "weights",
    "Buffer": "weights",
    "Gradient": "gradients",
    "Optstate": "optimizer",
    "Activation": "activations",
    "Temp": "activations",
    "Other": "activations",
}


def _attends(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attends_back(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# Attention on a CPU, which torch's counter leaves out.
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attends,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attends_back,
}


GRADIENT = 4  # bytes a parameter that is trained
REMEDY = "use --measure, which trains ten steps"


@dataclass(frozen=True)
class Traced:
    """What a step takes.

    Attributes:
        memory: bytes of tensors at the peak, by kind.
        flops: floating-point operations of one step of this process.
        parameters: how many the model has, shared ones once.
        trained: how many of them are trained.
    """

    memory: Mapping[str, int]
    flops: float
    parameters: int
    trained: int

    @property
    def peak(self) -> int:
        return sum(self.memory.values())


class _Tracker(MemTracker):
    """MemTracker without the peaks of each module, for which it looks at every module at every operation."""

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> tuple[int, int]:
        if all(parameter.requires_grad for parameter in module.parameters()):
            return super()._track_module_params_and_buffers(module, install_grad_hooks)
        return super()._track_module_params_and_buffers(module, False)  # it would hook what is frozen, too

    def _update_peak_stats(self, peak_state: Any) -> None:
        for device, now in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < now["Total"]:
                self._peak_mem[device] = now["Total"]
                self._peak_mem_snap[device] = dict(now)


class _Loss(FusedLMLoss):
    """A fused loss that is told how many labels there are: a fake tensor cannot be asked."""

    labels = 0

    def positions(self, learned: torch.Tensor) -> torch.Tensor:
        return torch.zeros(self.labels, dtype=torch.long)


class _Dropout(nn.Dropout):
    """Dropout that takes what `speed.dropout` takes; that one asks a generator for a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bits = torch.empty(x.shape, dtype=torch.int16)
        return x * ((bits >= 0) * 1.5).to(x.dtype)


def trace(
    recipe: Recipe, config: Any, args: TrainingArguments, assembly: Assembly | None = None, processes: int = 1
) -> Traced:
    """Trace two steps of training on the longest micro-batch.

    Args:
        recipe: The recipe.
        config: The model's configuration.
        args: Its [trainer]: size of a micro-batch, accumulation, precision, optimizer and checkpointing.
        assembly: What rows have become; None for running text, whose blocks are alike.
        processes: How many there are: with several, DDP holds a copy of the gradients in its buckets.

    Returns:
        What a step of one process takes.

    Raises:
        UserError: The model or its loss looks at numbers, which are not there.
    """
    size = args.per_device_train_batch_size
    make: Callable[[], tuple[Any, list[str]]] | None = None
    losses: Callable[..., torch.Tensor] | None
    if assembly is None:
        task = tasks.text_task(recipe.task)
        if task.create_model is not None:
            raise UserError(f"{recipe.task} draws what its model reads, and cannot be traced", REMEDY)
        batches, losses = [_blocks(recipe, config, size)], task.losses
    else:
        if assembly.create_model is not None:
            make = partial(assembly.create_model, _from_scratch(recipe.model), args.seed)
        losses = assembly.losses
        batches = [assembly.collate(examples) for examples in longest(assembly.train, size)]
    batch = max(batches, key=lambda each: each["input_ids"].numel())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, _without_contents(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, _ = make() if make else _create(recipe, config, args.seed)
            for module in model.modules():
                if isinstance(module, PreTrainedModel):
                    module.config.use_cache = False  # as upstream's Trainer has it
            if assembly is not None and assembly.prepare_model is not None:
                assembly.prepare_model(model)
        parts = _parts(batch, model, recipe) if assembly is not None else [batch]
        with _one_document_a_row("position_ids" not in batch):
            found = _traced(mode, model, parts, args, losses, recipe.speed, recipe.optimizer)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as problem:
        said = str(problem).strip().splitlines() or [type(problem).__name__]
        raise UserError(f"the model cannot be traced: {said[0]}", REMEDY) from problem
    buckets = {"buckets": GRADIENT * found.trained} if processes > 1 else {}
    return replace(found, memory={**found.memory, **buckets})


@contextmanager
def _without_contents() -> Iterator[None]:
    """Make models without drawing numbers and without moving tensors: some ways of drawing look at what was drawn."""
    initialize, move = PreTrainedModel.init_weights, nn.Module._apply
    PreTrainedModel.init_weights = lambda model: model.tie_weights()
    nn.Module._apply = lambda module, function, recurse=True: module
    try:
        yield
    finally:
        PreTrainedModel.init_weights, nn.Module._apply = initialize, move


@contextmanager
def _one_document_a_row(true: bool) -> Iterator[None]:
    """Say so where upstream would look at positions; it makes a mask for each layer where it cannot look."""
    looks = masking_utils.find_packed_sequence_indices
    if true:
        masking_utils.find_packed_sequence_indices = lambda *args, **kwargs: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looks


def _from_scratch(table: Model) -> Model:
    return table.model_copy(update={"init": "scratch"})  # no weights are read


def _create(recipe: Recipe, config: Any, seed: int) -> tuple[Any, list[str]]:
    record = TASKS[recipe.task]
    return create_model(
        _from_scratch(recipe.model),
        config,
        tasks.model_class(recipe.task),
        seed,
        lora=recipe.lora,
        generation=recipe.generation if recipe.task in GENERATING else None,
        task_type=record.peft_type,
    )


def _blocks(recipe: Recipe, config: Any, size: int) -> dict[str, torch.Tensor]:
    """Make a batch of blocks with as many labels as the task has; of denoising, whose texts vary, the longest."""
    data = recipe.data
    assert isinstance(data, TextData)
    length = choose_block_size(data.block_size, config)
    ids = torch.ones(size, length, dtype=torch.long)
    labels = ids.clone()
    if share := getattr(data, "mlm_probability", None):
        labels.view(-1)[round(share * ids.numel()) :] = -100
    batch = {"input_ids": ids, "labels": labels}
    return batch | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})


def _parts(batch: dict[str, Any], model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Split a batch of rows as the Trainer does."""
    parts = [batch]
    if recipe.speed.split_batches is not False and "attention_mask" in batch:
        cost = length_groups.launch_cost(6 * model.num_parameters(exclude_embeddings=True))
        parts = length_groups.microbatches(batch, cost, "decoder_input_ids" in batch)
    for part in parts:  # where there is no padding, upstream does without a mask: it looks, and here cannot
        if "attention_mask" in part and bool(part["attention_mask"].all()):
            del part["attention_mask"]
    return parts


def _traced(
    mode: FakeTensorMode,
    model: Any,
    batches: Sequence[Mapping[str, Any]],
    args: TrainingArguments,
    losses: Callable[..., torch.Tensor] | None,
    speed: Speed,
    table: Optimizer,
) -> Traced:
    """Trace the steps of `model`, which was made in `mode`, on micro-batches that are real."""
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    tensors = [
        {name: mode.from_tensor(x) if torch.is_tensor(x) else x for name, x in batch.items()} for batch in batches
    ]
    microbatches = list(zip(tensors, counts, strict=True))
    with mode:
        model.train()
        head = _Loss(model, speed.fused_loss, speed.skip_ignored) if losses is None else None
        if args.activation_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=args.activation_checkpointing_kwargs)
        if speed.fast_dropout:
            for module in model.modules():
                if type(module) is nn.Dropout and module.p and not module.inplace:
                    module.__class__ = _Dropout
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if table.is_set:
            optimizer = create_optimizer(model, table, args, ())
        else:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
            optimizer = kind(trained, **options)
        tracker = _Tracker()
        tracker.track_external(model, *(x for batch in tensors for x in batch.values() if torch.is_tensor(x)))

        def learn(batch: dict[str, Any], labels: int) -> None:
            smoothing = args.label_smoothing_factor
            with torch.autocast("cpu", torch.bfloat16) if args.bf16 else nullcontext():
                if head is not None:
                    head.labels = labels
                    loss = head.losses(model, models_own(batch), batch["labels"], smoothing, summed=True)
                else:
                    assert losses is not None
                    outputs = model(**models_own(batch))
                    loss = losses(outputs, batch, training=True, label_smoothing=smoothing).sum()
                loss = loss / labels
            loss.backward()

        def step() -> None:
            for batch, labels in microbatches * (1 + (args.gradient_accumulation_steps > 1)):
                learn(batch, labels)
                tracker.reset_mod_stats()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        with tracker:
            step()
            step()
        if head is not None:
            head.fused = False  # torch's counter does not look into the fused loss
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            for batch, labels in microbatches:
                learn(batch, labels)
    memory = dict.fromkeys(KINDS.values(), 0)
    memory["average"] = 0 if table.ema is None else sum(parameter.nbytes for parameter in trained)
    for snapshot in tracker.get_tracker_snapshot("peak").values():
        for name, size in snapshot.items():
            if name != "Total":
                memory[KINDS[name.value]] += size
    whole = sum(parameter.numel() for parameter in model.parameters())
    flops = counter.get_total_flops() * args.gradient_accumulation_steps
    count = sum(parameter.numel() for parameter in trained)
    return Traced(memory, flops, whole, count)
