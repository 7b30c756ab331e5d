"""What a training takes, in closed form and without torch: parameters, memory by kind, disk, operations.

Parameters are exact for the architectures of `architectures.py`. Memory is that of tensors at the peak of a step.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit import disk, hub
from llmkit.errors import UserError, in_bytes
from llmkit.plan.architectures import Model, Stack, model_of
from llmkit.recipe import global_batch
from llmkit.recipe.data_tables import RowData, TextData
from llmkit.recipe.schema import PRETRAINING, Optimizer, Recipe
from llmkit.recipe.tasks import TASKS

# Numbers that an optimizer keeps for each trained parameter, by its name in TrainingArguments.
MOMENTS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"), 2),
    **dict.fromkeys(("adagrad", "rmsprop"), 1),
}
OPTIMIZER = "adamw_torch_fused"  # transformers' default
LOGITS_AT_ONCE = 2**24  # as in llmkit/speed/fused_loss.py, which imports torch
LONGEST_INPUT, LONGEST_BLOCK = 512, 1024  # tokens, where neither recipe nor model says
LORA_RANK = 8  # peft's


@dataclass(frozen=True)
class Needs:
    """What a training takes.

    Attributes:
        parameters: of the model, shared ones once.
        trained: how many of them are trained, those of an adapter included.
        memory: bytes by kind: weights, gradients, optimizer (where it is known), average, activations, logits; with
            several processes DDP's buckets.
        peak: bytes of tensors at the peak of a step: gradients come as activations go.
        flops: floating-point operations of a step, of all processes.
        model_bytes: of the finished model on the disk.
        checkpoint_bytes: of each checkpoint.
        checkpoints: how many are kept.
    """

    parameters: int
    trained: int
    memory: Mapping[str, int]
    peak: int
    flops: float
    model_bytes: int
    checkpoint_bytes: int
    checkpoints: int

    @property
    def disk(self) -> int:
        return self.model_bytes + self.checkpoints * self.checkpoint_bytes


@dataclass(frozen=True)
class Batch:
    """A micro-batch and how it is trained on: `size` inputs of `length` tokens, of which a share has `labels`."""

    size: int
    length: int
    labels: float = 1.0
    written: int = 0  # tokens of a decoder's text
    accumulated: int = 1
    processes: int = 1
    bf16: bool = False
    checkpointing: bool = False
    fused: bool = True
    on_gpu: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # of [trainer]
    optimizer: Optimizer = field(default_factory=Optimizer.model_construct)


def held(
    parameters: int, trained: int, optimizer: str, table: Optimizer | None = None, hidden: int | None = None
) -> dict[str, int]:
    """Compute the bytes that training holds in fp32, by what they are for; an optimizer's only where they are known.

    Args:
        parameters: Of the model.
        trained: How many of them are trained.
        optimizer: Its name in TrainingArguments.
        table: The recipe's [optimizer].
        hidden: Parameters of the trained matrices inside layers, for which Muon keeps one number each; None where
            that is not known.

    Returns:
        The bytes of weights, gradients, the optimizer's state, and the average of the weights.
    """
    sizes = {"weights": 4 * parameters, "gradients": 4 * trained}
    spared = hidden if table is not None and table.name == "muon" else 0
    if optimizer in MOMENTS and spared is not None:
        sizes["optimizer"] = 4 * (MOMENTS[optimizer] * trained - spared)
    if table is not None and table.ema is not None:
        sizes["average"] = 4 * trained
    return sizes


def needs(model: Model, batch: Batch, train: str = "all", lora: Mapping[str, Any] | None = None) -> Needs:
    """Calculate what a training takes.

    Args:
        model: The model.
        batch: The longest micro-batch.
        train: The recipe's `model.train`.
        lora: The recipe's [lora].

    Returns:
        What it takes.
    """
    parameters, trained, layers = _trained(model, train, lora)
    hidden = 0 if lora is not None else sum(min(each.layers, layers) * each.layer_matrices for each in model.stacks)
    memory = held(parameters, trained, str(batch.settings.get("optim", OPTIMIZER)), batch.optimizer, hidden)
    tokens = batch.size * batch.length
    written = batch.size * batch.written
    activations = logits = flops = 0.0
    recomputed = 0.0  # one layer at a time, when the logits are gone
    for number, stack in enumerate(model.stacks):
        mine, length = (written, batch.written) if number else (tokens, batch.length)
        through = min(stack.layers, layers)
        one = _saved(stack, model, batch, length, frozen=lora is not None) * mine
        if batch.checkpointing:
            activations += 4 * stack.hidden * mine * through
            recomputed = max(recomputed, one)
        else:
            activations += one * through
        if batch.bf16 and lora is None:  # autocast's copies
            activations += 2 * stack.layer_matrices * through
        backward = 2 if lora is None else 1  # frozen weights have no gradient
        passes = 1 + backward * through / max(1, stack.layers) + (1 if batch.checkpointing else 0)
        flops += 2 * passes * mine * stack.layers * (stack.layer_matrices + 2 * length * stack.hidden)
    predicted = (written or tokens) * batch.labels
    if model.vocabulary:
        rows = max(1, LOGITS_AT_ONCE // model.vocabulary)
        logits = 3 * 4 * model.vocabulary * (min(predicted, rows) if batch.fused else predicted)
        flops += 2 * (3 if lora is None else 2) * predicted * model.head_matrices
    activations += max(0.0, recomputed - logits)
    memory |= {"activations": round(activations), "logits": round(logits)}
    buckets = memory["gradients"] if batch.processes > 1 else 0  # DDP's copy of the gradients, which stays
    memory |= {"buckets": buckets} if buckets else {}
    at_once = memory["activations"] + memory["logits"] + (memory["gradients"] if batch.accumulated > 1 else 0)
    state = memory.get("optimizer", 0) + memory.get("average", 0)
    peak = memory["weights"] + state + buckets + max(at_once, memory["gradients"])
    written_model = 4 * (parameters if lora is None else trained)
    kept = batch.settings.get("save_total_limit") or 2
    saves = batch.settings.get("save_strategy", "steps") != "no"
    return Needs(
        parameters,
        trained,
        memory,
        peak,
        flops * batch.accumulated * batch.processes,
        written_model,
        written_model + state,
        kept if saves else 0,
    )


def _trained(model: Model, train: str, lora: Mapping[str, Any] | None) -> tuple[int, int, int]:
    """Count all parameters, those that are trained, and the layers that gradients pass through."""
    every = max(stack.layers for stack in model.stacks)
    if lora is not None:
        rank = lora.get("r", LORA_RANK)
        wanted = lora.get("target_modules") or model.adapted
        beside = 0
        for stack in model.stacks:
            for name, (inputs, outputs) in stack.matrices.items():
                last = name.split(".")[-1]
                if wanted == "all-linear" or last in ([wanted] if isinstance(wanted, str) else wanted):
                    beside += stack.layers * rank * (inputs + outputs)
        head = 0 if model.vocabulary else model.head - model.pooler
        return model.parameters + beside + head, beside + head, every  # peft trains a copy of the head
    if train == "all":
        return model.parameters, model.parameters - model.fixed, every
    count = 0 if train == "head" else int(train.removeprefix("top-"))
    of_layers = sum(min(count, stack.layers) * stack.parameters // stack.layers for stack in model.stacks)
    frozen = 0 if count else model.pooler  # it comes behind the layers
    return model.parameters, model.head - frozen + of_layers, count


def _saved(stack: Stack, model: Model, batch: Batch, length: int, frozen: bool) -> float:
    """Return the bytes that a layer saves for each token."""
    kind = stack.kind
    saved = kind.bf16 if batch.bf16 else kind.fp32
    if frozen and kind.frozen is not None:
        saved = kind.frozen[batch.bf16]
    hidden, attention = model.dropout
    width = 2 if batch.bf16 else 4
    values = (saved.wide + saved.shared * stack.key_share) * stack.hidden + saved.inner * stack.inner
    values += saved.scores * model.heads * length
    values += width * kind.dropouts * stack.hidden if hidden else 0
    if attention and not batch.on_gpu:  # there is a kernel for it; a CPU keeps the scores
        values += 12 * model.heads * length
    return values


# ---- of a recipe ---------------------------------------------------------------------------------------------------


def config_of(recipe: Recipe) -> dict[str, Any] | None:
    """Read the configuration that `[model]` describes: config.json alone, under the recipe's overrides; None where
    there is none. Raises UserError where the Hub does not give it.
    """
    table, config = recipe.model, {}
    if table.name is not None:
        folder = Path(table.name)
        if disk.is_file(folder / "config.json"):
            path = folder / "config.json"
        elif disk.exists(folder):
            return None
        else:
            from huggingface_hub import hf_hub_download

            revision = hub.commit(table.name, table.revision)
            with hub.loading(table.name, "model"):
                path = Path(hf_hub_download(table.name, "config.json", revision=revision))
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    if recipe.task in PRETRAINING:  # llmkit's own default (`models.config`)
        for key in ("attn_pdrop", "attention_probs_dropout_prob", "attention_dropout"):
            config[key] = 0.0
    config = {**config, **table.config}
    if recipe.tokenizer.type is not None and "vocab_size" not in table.config:
        config["vocab_size"] = recipe.tokenizer.vocab_size
    return config


def on_gpu(recipe: Recipe) -> bool:
    """Tell whether there is a GPU to train on, by its device file."""
    return not recipe.trainer.get("use_cpu") and any(map(disk.exists, map(Path, ("/dev/nvidia0", "/dev/kfd"))))


def of_recipe(recipe: Recipe, processes: int = 1) -> Needs | None:
    """Calculate what a recipe takes by its keys alone; inputs are taken for as long as they may be.

    None where that is not known. Raises UserError where the batch cannot be divided among the `processes`, or the Hub
    does not give the model's config.json.
    """
    config = config_of(recipe)
    batches, _ = global_batch.divide(recipe, processes)
    return None if config is None else of_config(recipe, config, {**recipe.trainer, **batches}, processes)


def of_config(
    recipe: Recipe,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    processes: int,
    longest: int | None = None,
) -> Needs | None:
    """Calculate what a recipe takes whose model is configured so, and whose [trainer] has become `settings`.

    `longest` is the number of tokens of the longest row, where that is known. None where the recipe is made of several
    tasks, the architecture is not in FAMILIES, or the weights are divided among processes or in 4 bits.
    """
    divided = recipe.model.load_in_4bit or settings.get("fsdp") or settings.get("deepspeed")
    if recipe.task not in TASKS or recipe.data is None or divided:
        return None
    model = model_of(config, TASKS[recipe.task].auto_class)
    if model is None:
        return None
    return needs(model, batch_of(recipe, config, processes, settings, longest), recipe.model.train, recipe.lora)


def batch_of(
    recipe: Recipe,
    config: Mapping[str, Any],
    processes: int,
    settings: Mapping[str, Any],
    longest: int | None = None,
) -> Batch:
    """Describe the longest micro-batch of a recipe; the arguments are those of `of_config`."""
    data = recipe.data
    places = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(data, TextData):
        length = data.block_size or min(places or LONGEST_BLOCK, LONGEST_BLOCK)
        written = length if TASKS[recipe.task].auto_class.endswith("Seq2SeqLM") else 0
    else:
        assert isinstance(data, RowData)
        length = longest or data.max_length or min(places or LONGEST_INPUT, LONGEST_INPUT)
        written = getattr(data, "max_target_length", 0) or 0
    gpu = on_gpu(recipe)
    precise = "bf16" in settings or "fp16" in settings
    return Batch(
        size=settings.get("per_device_train_batch_size", 8),
        length=length,
        labels=getattr(data, "mlm_probability", 1.0) if recipe.speed.skip_ignored else 1.0,
        written=written,
        accumulated=settings.get("gradient_accumulation_steps", 1),
        processes=processes,
        bf16=bool(settings.get("bf16") or settings.get("fp16") or (gpu and not precise)),
        checkpointing=bool(settings.get("activation_checkpointing") or settings.get("gradient_checkpointing")),
        fused=recipe.speed.fused_loss and not settings.get("label_smoothing_factor"),
        on_gpu=gpu,
        settings=settings,
        optimizer=recipe.optimizer,
    )


def lines(found: Needs, steps: int | None = None, longest: bool = False) -> list[tuple[str, str]]:
    """Say in words what a training takes, as pairs of a name and a text.

    `steps` is the number of all steps, `longest` tells that inputs were taken for as long as they may be.
    """
    parts = ", ".join(f"{name} {in_bytes(size)}" for name, size in found.memory.items() if size)
    upto = " at most" if longest else ""
    unknown = "" if "optimizer" in found.memory else ", without the optimizer's"
    files = f"{in_bytes(found.disk)} at most: the model {in_bytes(found.model_bytes)}"
    if found.checkpoints:
        each = in_bytes(found.checkpoint_bytes)
        files += f", {found.checkpoints} checkpoint{'s' * (found.checkpoints > 1)} of {each}"
    whole = "" if steps is None else f", {found.flops * steps:.3g} in all"
    return [
        ("memory", f"about {in_bytes(found.peak)}{upto} at the peak of a step{unknown}: {parts}"),
        ("disk", files),
        ("compute", f"{found.flops:.3g} operations a step{whole}"),
    ]


def head(recipe: Recipe, processes: int | None) -> list[tuple[str, str]]:
    """Say what a recipe takes before anything heavy is imported; nothing where that is not known.

    What is wrong with the recipe is told by what comes after it.
    """
    if processes is None:
        processes = max(1, len(list(Path("/dev").glob("nvidia[0-9]*")))) if on_gpu(recipe) else 1
    try:
        found = of_recipe(recipe, processes)
    except UserError:
        return []
    steps = recipe.trainer.get("max_steps", -1)
    longest = recipe.task not in PRETRAINING
    return [] if found is None else lines(found, steps if steps > 0 else None, longest)
