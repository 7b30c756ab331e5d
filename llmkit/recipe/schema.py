"""Define the tables of a recipe: llmkit's own, field by field, and upstream's as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from llmkit.recipe.data_tables import Data, MaskedData
from llmkit.recipe.table import ReadOnly, Table
from llmkit.recipe.tasks import TASKS as RECORDS
from llmkit.recipe.toml import dotted, leaves, toml_value
from llmkit.remote import scheme_of

TASKS = (*RECORDS, "multi-task")
DATA_OF_TASK: dict[str, type[Data]] = {name: record.data for name, record in RECORDS.items()}
# The tasks that train on running text; the others train on rows.
PRETRAINING = tuple(name for name, record in RECORDS.items() if record.reads == "text")
ROW_TASKS = tuple(name for name, record in RECORDS.items() if record.reads == "rows")
HEADED = tuple(name for name, record in RECORDS.items() if record.on_encoder)
GENERATING = tuple(name for name, record in RECORDS.items() if record.writes)

# Defaults that differ from those of TrainingArguments.
TRAINER_DEFAULTS: dict[str, Any] = {
    "logging_first_step": True,
    "logging_steps": 10,
    "save_total_limit": 2,  # upstream keeps every checkpoint until the disk is full
}

# The generation config that a causal language model is saved with: greedy search would repeat itself.
GENERATION_DEFAULTS: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 200}


class Generator(Table):
    """The small model that replaces tokens, which a discriminator finds."""

    name: str | None = Field(default=None, min_length=1, description="A Hub id or a path: pretrained weights.")
    config: ReadOnly[Any] = Field(
        default=ReadOnly(),
        description="Keys that override the discriminator's configuration; by default, with a quarter of its width.",
    )


class Model(Table):
    """The model to train."""

    name: str | None = Field(
        default=None,
        min_length=1,
        description="A Hub id, or the path of a model, a run or a checkpoint directory. Without it, "
        "`config.model_type` names an architecture.",
    )
    init: Literal["pretrained", "scratch"] = Field(
        default="pretrained", description="Where the weights come from: `name`, or random numbers drawn from the seed."
    )
    config: ReadOnly[Any] = Field(
        default=ReadOnly(),
        description="Keys that override the configuration of `name`. With `model_type` and without `name`, "
        "they define an architecture to train from scratch.",
    )
    revision: str | None = Field(default=None, description="The branch, tag or commit of `name` on the Hub.")
    trust_remote_code: bool = Field(
        default=False, description="Allow Python code that comes with `name` on the Hub to run."
    )
    use_safetensors: bool = Field(
        default=True,
        description="Load weights from safetensors only. `false` also loads a `pytorch_model.bin`, but nothing except "
        "its tensors.",
    )
    attn_implementation: str | None = Field(
        default=None,
        description="The attention kernel, such as `sdpa` or `flash_attention_2`; by default the best available.",
    )
    train: str = Field(
        default="all",
        description='Which weights to train: `"all"`, only the `"head"`, or the head and the last layers, such as '
        '`"top-2"`.',
    )
    generator: Generator | None = Field(
        default=None, description="A table, for replaced-token-detection: the small model that replaces tokens."
    )
    load_in_4bit: bool = Field(
        default=False,
        description="With `[lora]`: hold the frozen weights in 4 bits (QLoRA); needs bitsandbytes and a GPU.",
    )

    @field_validator("train")
    @classmethod
    def _known_part(cls, value: str) -> str:
        if not re.fullmatch(r"all|head|top-[1-9]\d*", value):
            raise ValueError(f'must be "all", "head" or "top-K" with a number for K, not "{value}"')
        return value


class Tokenizer(Table):
    """The tokenizer: an existing one (`name`), or one that the run trains (`type`)."""

    name: str | None = Field(
        default=None, min_length=1, description="A Hub id or the path of a tokenizer; by default the model's."
    )
    type: Literal["byte-bpe", "wordpiece", "unigram", "characters"] | None = Field(
        default=None, description="Train a tokenizer of this type on the training text."
    )
    vocab_size: int = Field(
        default=32_000, ge=1, description="With `type`: the maximum number of entries in the vocabulary."
    )
    min_frequency: int | None = Field(
        default=None,
        ge=0,
        description="With `type`: how often a pair must occur to become a token; by default 2, for characters 1.",
    )
    lowercase: bool = Field(default=False, description="With `type`: lower-case the text first.")
    special_tokens: ReadOnly[str] | None = Field(
        default=None,
        description='With `type`: the special tokens, such as `{ eos_token = "<|endoftext|>" }`; by default those '
        "that the task and `type` need.",
    )
    add_tokens: tuple[str, ...] | None = Field(
        default=None, description="Without `type`: words to add to the vocabulary, each as a token of its own."
    )
    add_from_text: int | None = Field(
        default=None,
        ge=1,
        description="Without `type`: also add this many words of the training text, those that save the most tokens.",
    )


# The fields of Tokenizer for one that the run trains, and transformers' names of special tokens.
TRAINED_TOKENIZER = ("vocab_size", "min_frequency", "lowercase", "special_tokens")
SPECIAL_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Evaluation(Table):
    """What to measure."""

    metrics: tuple[str, ...] | None = Field(
        default=None,
        description="The metrics to report: the task's own by name (by default all of them), or others of the "
        "package `evaluate`, each as a local path or a Hub id.",
    )
    trust_remote_code: bool = Field(default=False, description="Allow the code of a metric from the Hub to run.")
    language: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$",
        description="seq2seq, question-answering: The language of the references, a code such as zh or en. Chinese, "
        "Japanese, Thai, Lao, Khmer, Burmese and Tibetan are scored by characters, others by words; by default the "
        "majority of the references' letters decides.",
    )


class Samples(Table):
    """What the model writes while it learns, for the eye alone: training is the same with and without."""

    prompts: tuple[str, ...] | None = Field(
        default=None,
        description="What the model is given at each evaluation and at the end, to show what it writes: beginnings of "
        "texts (causal-lm), questions (chat), sources (seq2seq), corrupted texts (denoising). By default three of the "
        "validation data; `[]` for none.",
    )
    max_new_tokens: int = Field(
        default=60, ge=1, description="How many tokens it writes for each at most; all else is as `[generation]` says."
    )


class EarlyStopping(Table):
    """transformers.EarlyStoppingCallback, field for field."""

    early_stopping_patience: int = Field(
        default=1, ge=1, description="Stop after this many evaluations without improvement."
    )
    early_stopping_threshold: float = Field(
        default=0.0, ge=0, description="The smallest improvement of the metric that counts."
    )


class Optimizer(Table):
    """How the weights follow from the gradients, beyond what `[trainer]` says."""

    name: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="`adamw`: the optimizer of `trainer.optim`, which is AdamW unless set. `muon`: Muon for the "
        "matrices inside the layers, and AdamW as [trainer] says for embeddings, head, norms and biases.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Of Muon's matrices, whose updates are scaled to the size of AdamW's; by default "
        "`trainer.learning_rate`.",
    )
    momentum: float | None = Field(default=None, ge=0, lt=1, description="Of Muon; by default 0.95.")
    weight_decay: float | None = Field(
        default=None, ge=0, description="Of Muon's matrices; by default `trainer.weight_decay`."
    )
    head_learning_rate: float | None = Field(
        default=None, gt=0, description="Of the head on an encoder; by default `trainer.learning_rate`."
    )
    layer_decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Multiply the learning rate of each layer by this for each layer above it, and of the embeddings "
        "once more; the head keeps the whole rate.",
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Evaluate and save an exponential moving average of the weights with this decay, such as 0.999; "
        "early steps count less, as the decay of step t is at most (1 + t) / (10 + t).",
    )

    @property
    def is_set(self) -> bool:
        """Tell whether it asks for anything but what `[trainer]` says."""
        return self.model_dump(exclude_none=True) != ADAMW


ADAMW = {"name": "adamw"}  # what a recipe without [optimizer] means


class Guard(Table):
    """When to skip a harmful step, when to stop the run, and how long to wait for data."""

    max_skipped_steps: int = Field(
        default=5,
        ge=1,
        description="Skip steps whose loss or gradient is not finite; stop the run after this many in a row.",
    )
    spike_sigma: float | None = Field(
        default=None,
        gt=0,
        description="Also skip a step whose loss or gradient norm is this many standard deviations above the mean of "
        "the last 128 steps.",
    )
    dataloader_timeout: int = Field(
        default=600, ge=1, description="Seconds that a data worker may take for a batch before it counts as hung."
    )


class Speed(Table):
    """Switches that make training faster; each can be turned off, and losses differ by rounding only."""

    fused_loss: bool = Field(
        default=True,
        description="For tasks that predict tokens: compute logits and losses for part of the positions at a time, so "
        "that the logits are never all in memory at once.",
    )
    skip_ignored: bool = Field(
        default=True,
        description="Compute logits only where there is a label: masked-lm predicts one token in seven, chat none of "
        "the prompt.",
    )
    split_batches: bool | None = Field(
        default=None,
        description="Split a batch of rows into parts of similar length, with less padding; by default on a CPU only.",
    )
    fast_dropout: bool = Field(
        default=True,
        description="On a CPU: draw the random numbers of dropout faster; they differ from PyTorch's, as with another "
        "seed.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads of each process on a CPU; by default one for each core that it has to itself "
        "(hyper-threads do not count), or OMP_NUM_THREADS.",
    )
    reuse_memory: bool = Field(
        default=True,
        description="On a CPU under Linux: keep freed memory for the next allocation, so that the system need not "
        "clear each page again. Where too little memory is free for that, and with `false`, it is given back at once.",
    )


class Report(Table):
    """What a finished run keeps for people to look at."""

    write: bool | None = Field(
        default=None,
        description="Write `report.html` and `loss.svg` when training ends; by default true, and false in a sweep and "
        "under --seeds.",
    )
    rows: bool = Field(
        default=True,
        description="Show and keep texts of rows: the worst mistakes, the answers. `false` leaves out every text, and "
        "keeps labels and figures.",
    )
    predictions: bool = Field(
        default=True,
        description="Keep what the last evaluation made of each row: truth, prediction, score and loss, in "
        "`predictions.jsonl.gz`.",
    )


class Sweep(Table):
    """Train the recipe once for each of several values of its keys, and find the best."""

    over: ReadOnly[Any] = Field(
        default=ReadOnly(),
        description="A table from key to its values: an array, or a range such as "
        '`{ trainer.learning_rate = "1e-5..1e-3" }`, drawn by its logarithm where it spans a factor of ten or more.',
    )
    sampler: Literal["grid", "random", "optuna-tpe"] | None = Field(
        default=None,
        description="How to choose trials: all combinations (`grid`), at random by `trainer.seed`, or by Optuna's TPE; "
        "by default `random` with `trials`, else `grid`.",
    )
    trials: int | None = Field(default=None, ge=1, description="How many trials to draw; ranges need it.")
    halving: int | None = Field(
        default=None,
        ge=2,
        description="With N: of every N trials the best goes on, after 1/N^2 and 1/N of their steps, if there are "
        "enough trials.",
    )
    seeds: int | None = Field(
        default=None, ge=1, description="Train each trial with this many seeds, and compare the means; by default 1."
    )


class Part(Table):
    """One of several tasks that share an encoder."""

    task: str = Field(description="The task; by default that of `recipe`.")
    weight: float | None = Field(
        default=None,
        gt=0,
        description="Its share of the batches, relative to the weights of the other tasks; if no task has one, each "
        "row is seen once per epoch.",
    )
    data: SerializeAsAny[Data] = Field(description="The data to train it on; these keys override those of `recipe`.")
    evaluation: Evaluation = Field(default=Evaluation(), description="How to evaluate it.")

    def recipe(self, of: Recipe) -> Recipe:
        """Return a recipe for this task alone, on the model of the recipe that it is a part of."""
        alone: dict[str, Any] = {
            "task": self.task,
            "data": self.data,
            "evaluation": self.evaluation,
            "tasks": {},
            "notes": (),
        }
        return of.model_copy(update=alone)


class Recipe(Table):
    """All settings of a run. Two recipes are equal if their tables are, wherever they were read from."""

    task: str = Field(description="The task to train for.")
    output_dir: str | None = Field(
        default=None,
        min_length=1,
        description="The run directory, relative to the working directory; by default `runs/` and the recipe's name.",
    )
    output_mirror: str | None = Field(
        default=None,
        min_length=1,
        description="An address to which checkpoints and the finished model are copied, such as "
        "`s3://bucket/runs/mine`; on an empty folder `--resume` goes on from there.",
    )
    model: Model = Field(description="The model to train.")
    tokenizer: Tokenizer = Field(default=Tokenizer(), description="How to tokenize text.")
    data: SerializeAsAny[Data] | None = Field(default=None, description="The data to train on.")
    evaluation: Evaluation = Field(default=Evaluation(), description="How to evaluate.")
    tasks: Mapping[str, Part] = Field(default={}, description="For several tasks at once: each with its data.")
    trainer: ReadOnly[Any] = Field(default=ReadOnly(), description="transformers.TrainingArguments, field for field.")
    lora: ReadOnly[Any] | None = Field(default=None, description="peft.LoraConfig, field for field: train an adapter.")
    generation: ReadOnly[Any] = Field(default=ReadOnly(), description="transformers.GenerationConfig, field for field.")
    samples: Samples | None = Field(
        default=None, description="What the model writes while it learns, for the tasks that write."
    )
    early_stopping: EarlyStopping | None = Field(default=None, description="Stop when evaluation no longer improves.")
    optimizer: Optimizer = Field(
        default=Optimizer.model_construct(), description="How weights are updated, beyond what [trainer] says."
    )
    guard: Guard = Field(default=Guard.model_construct(), description="When to skip a step, and when to stop the run.")
    speed: Speed = Field(default=Speed.model_construct(), description="Settings that make training faster.")
    report: Report = Field(default=Report.model_construct(), description="What to show and keep when training ends.")
    sweep: Sweep | None = Field(
        default=None, description="Train the recipe with several values of its keys; `sweep=` trains it once."
    )

    # Set by the loader; a recipe cannot set these.
    source: Path | None = Field(default=None, exclude=True)
    name: str = Field(default="run", exclude=True)
    origins: ReadOnly[str] = Field(default=ReadOnly(), exclude=True)
    notes: tuple[str, ...] = Field(default=(), exclude=True)
    fits_rows: bool = Field(default=False, exclude=True)  # what it lacks of OF_THE_ROWS is chosen by the rows
    fits_machine: bool = Field(default=False, exclude=True)  # what it lacks of PRECISION is chosen by the machine
    typed: ReadOnly[str] = Field(default=ReadOnly(), exclude=True)

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        if value not in TASKS:
            raise ValueError(f"must be one of {', '.join(TASKS)}")
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    def data_paths(self) -> dict[str, str]:
        """Return the paths of local data by key, as they resolve, where they were typed relative to a folder."""
        keys = leaves(self.model_dump(include={"data"}))
        paths = {dotted(key): value for key, value in keys.items() if key[-1] == "path"}
        return {key: value for key, value in paths.items() if value in self.typed}

    def to_toml(self, comments: bool = False, as_typed: bool = False) -> str:
        """Write the resolved recipe, which loads from anywhere; with `comments`, each value's origin behind it.

        With `as_typed` the paths of local data are those of the user, and what they resolve to stands behind them. What
        was fetched from an address has that in any case.
        """
        data_paths = self.data_paths() if as_typed else {}
        tables = self.model_dump(
            exclude_none=True, exclude={"evaluation"} if self.task in (*PRETRAINING, "multi-task") else None
        )
        if self.tokenizer.type is None:
            tables["tokenizer"] = {k: v for k, v in tables["tokenizer"].items() if k not in TRAINED_TOKENIZER}
        if self.task in PRETRAINING:  # one or the other
            del tables["data"]["path" if tables["data"]["sources"] else "sources"]
        lines = [f"# resolved from {toml_value(str(self.source))}"] if comments and self.source else []
        scalars = {key: value for key, value in tables.items() if not isinstance(value, Mapping)}
        for table, content in {"": scalars, **{key: tables[key] for key in tables if key not in scalars}}.items():
            if not content and table != "lora":  # an empty [lora] asks for an adapter, any other says nothing
                continue
            lines += ["", f"[{table}]"] if table else []
            for path, value in leaves(content).items():
                key = dotted((table, *path) if table else path)
                origin = self.origins.get(key, "default")
                if key in data_paths:
                    origin, value = f"{origin}; {value}", self.typed[value]
                value = self.as_address(value)
                lines.append(f"{dotted(path)} = {toml_value(value)}" + (f"  # {origin}" if comments else ""))
        return "\n".join(lines) + "\n"

    def as_address(self, value: Any) -> Any:
        """Return a value of a key with the address of each file in place of its copy in the cache."""
        if isinstance(value, list | tuple):
            return [self.as_address(entry) for entry in value]
        return self.typed[value] if isinstance(value, str) and scheme_of(self.typed.get(value, "")) else value


# Settings of a bundled recipe that fit its own rows, and are chosen anew where the user's take their place.
OF_THE_ROWS = {
    "data": ("validation_fraction", "max_train_samples", "max_eval_samples", "global_batch_size"),
    "trainer": (
        *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("eval_strategy", "eval_steps", "save_strategy", "save_steps"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    "early_stopping": ("early_stopping_patience",),
}

# Keys of [trainer] by which a recipe says what it computes in.
PRECISION = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")

# What the code did before there was a key of [data]: what it means that the recipe of an earlier run lacks the key.
BEFORE: dict[str, dict[str, Any]] = {"": {"hold_out": "hash"}, "chat": {"companions": False}}


def before(task: object) -> dict[str, Any]:
    """Return what the recipe of an earlier run means where it lacks a key of [data]."""
    return {**BEFORE[""], **(BEFORE.get(task, {}) if isinstance(task, str) else {})}


UPSTREAM_TABLES = {"trainer": "TrainingArguments", "lora": "LoraConfig", "generation": "GenerationConfig"}


def own_tables(task: object) -> dict[str, type[Table]]:
    """Return the classes of llmkit's own tables for `task`; for an unknown task, those with the most keys."""
    if task == "multi-task":
        return {
            "model": Model,
            "tokenizer": Tokenizer,
            "early_stopping": EarlyStopping,
            "optimizer": Optimizer,
            "guard": Guard,
            "speed": Speed,
            "report": Report,
            "sweep": Sweep,
        }
    data = DATA_OF_TASK.get(task, MaskedData) if isinstance(task, str) else MaskedData
    return {
        "model": Model,
        "tokenizer": Tokenizer,
        "data": data,
        "evaluation": Evaluation,
        **({"samples": Samples} if task in GENERATING or task not in TASKS else {}),
        "early_stopping": EarlyStopping,
        "optimizer": Optimizer,
        "guard": Guard,
        "speed": Speed,
        "report": Report,
        "sweep": Sweep,
    }
