"""The tables of a recipe: llmkit's own, field by field, and upstream's as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import Field, SerializeAsAny, field_validator

from llmkit.recipe.data_tables import Data, MaskedData
from llmkit.recipe.table import ReadOnly, Table
from llmkit.recipe.tasks import TASKS as RECORDS
from llmkit.recipe.toml import dotted, leaves, toml_value
from llmkit.recipe.types import Type, read_annotation

TASKS = (*RECORDS, "multi-task")
DATA_OF_TASK: dict[str, type[Data]] = {name: record.data for name, record in RECORDS.items()}
# The tasks that learn from running text; the others learn from rows.
PRETRAINING = tuple(name for name, record in RECORDS.items() if record.reads == "text")
HEADED = tuple(name for name, record in RECORDS.items() if record.on_encoder)
GENERATING = tuple(name for name, record in RECORDS.items() if record.writes)

# Where a pretraining run wants another default than TrainingArguments has.
TRAINER_DEFAULTS: dict[str, Any] = {
    "logging_first_step": True,
    "logging_steps": 10,
    "save_total_limit": 2,  # upstream keeps every checkpoint until the disk is full
}

# What a causal language model is saved with: text that can be read, not greedy repetition.
GENERATION_DEFAULTS: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 200}


class Generator(Table):
    """What replaces tokens, for a discriminator to find."""

    name: str | None = Field(default=None, min_length=1, description="A Hub id or a path: pretrained weights.")
    config: ReadOnly[Any] = Field(
        default=ReadOnly(),
        description="Keys that replace those of the discriminator's configuration; by default a quarter of its width.",
    )


class Model(Table):
    """What is trained."""

    name: str | None = Field(
        default=None,
        min_length=1,
        description="A Hub id, or the path of a model, a run or a checkpoint directory. Without it, "
        "`config.model_type` names an architecture.",
    )
    init: Literal["pretrained", "scratch"] = Field(
        default="pretrained", description="Where the weights come from: from `name`, or from the seed."
    )
    config: ReadOnly[Any] = Field(
        default=ReadOnly(),
        description="Keys of the model's configuration that replace those of `name`. With `model_type` and without "
        "`name` they are the whole architecture, trained from scratch.",
    )
    revision: str | None = Field(default=None, description="The branch, tag or commit of `name` on the Hub.")
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with `name` on the Hub.")
    use_safetensors: bool = Field(
        default=True,
        description="Read weights from safetensors alone. `false` reads a `pytorch_model.bin` too, and of it nothing "
        "but tensors.",
    )
    attn_implementation: str | None = Field(
        default=None,
        description="The attention kernel, such as `sdpa` or `flash_attention_2`; by default the best there is.",
    )
    train: str = Field(
        default="all",
        description='Which weights are trained: `"all"`, the `"head"` alone, or the head and the `"top-2"` layers.',
    )
    generator: Generator | None = Field(
        default=None, description="A table, of replaced-token-detection: the small model that replaces tokens."
    )
    load_in_4bit: bool = Field(
        default=False, description="With `[lora]`: hold the frozen weights in 4 bits (QLoRA; bitsandbytes and a GPU)."
    )

    @field_validator("train")
    @classmethod
    def _known_part(cls, value: str) -> str:
        if not re.fullmatch(r"all|head|top-[1-9]\d*", value):
            raise ValueError(f'must be "all", "head" or "top-K" with a number for K, not "{value}"')
        return value


class Tokenizer(Table):
    """How text becomes tokens: a tokenizer that exists (`name`), or one that the run trains (`type`)."""

    name: str | None = Field(
        default=None, min_length=1, description="A Hub id or the path of a tokenizer; by default that of the model."
    )
    type: Literal["byte-bpe", "wordpiece", "unigram", "characters"] | None = Field(
        default=None, description="Train a tokenizer of this type on the training text."
    )
    vocab_size: int = Field(default=32_000, ge=1, description="With `type`: entries in the vocabulary, at most.")
    min_frequency: int | None = Field(
        default=None,
        ge=0,
        description="With `type`: how often a pair must occur to be a token; by default 2, for characters 1.",
    )
    lowercase: bool = Field(default=False, description="With `type`: lower-case the text first.")
    special_tokens: ReadOnly[str] | None = Field(
        default=None,
        description='With `type`: such as `{ eos_token = "<|endoftext|>" }`; by default, what `type` needs.',
    )
    add_tokens: tuple[str, ...] | None = Field(
        default=None, description="Without `type`: words that become tokens of their own, behind the others."
    )
    add_from_text: int | None = Field(
        default=None, ge=1, description="Without `type`: so many words more, those of the training text that save most."
    )

    @field_validator("add_tokens", mode="before")
    @classmethod
    def _unchangeable(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


# The fields of Tokenizer that mean something only where the run trains it, and transformers' names of special tokens.
TRAINED_TOKENIZER = ("vocab_size", "min_frequency", "lowercase", "special_tokens")
SPECIAL_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Evaluation(Table):
    """What is measured."""

    metrics: tuple[str, ...] | None = Field(
        default=None,
        description="Which metrics to report: names of the task's own (by default all of them), or further ones of the "
        "package `evaluate`: a local path or a Hub id.",
    )
    trust_remote_code: bool = Field(default=False, description="Run the code of a metric that comes from the Hub.")

    @field_validator("metrics", mode="before")
    @classmethod
    def _unchangeable(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class EarlyStopping(Table):
    """transformers.EarlyStoppingCallback, field for field."""

    early_stopping_patience: int = Field(default=1, ge=1, description="Stop after so many evaluations without gain.")
    early_stopping_threshold: float = Field(default=0.0, ge=0, description="The least gain in the metric that counts.")


class Guard(Table):
    """What happens to a step that would do harm, and to data that does not come."""

    max_skipped_steps: int = Field(
        default=5,
        ge=1,
        description="A step whose loss or gradient is not finite is skipped; after so many in a row the run stops.",
    )
    spike_sigma: float | None = Field(
        default=None,
        gt=0,
        description="Skip a step too whose loss or gradient norm is so many standard deviations above the mean of the "
        "last 128 steps.",
    )
    dataloader_timeout: int = Field(
        default=600, ge=1, description="Seconds that a data worker may take for a batch before it counts as hung."
    )


class Speed(Table):
    """What makes training faster and its losses the same but for rounding; each switch is there to be turned off."""

    fused_loss: bool = Field(
        default=True,
        description="Of tasks that predict tokens: compute logits and losses of a part of the positions at a time, so "
        "that they are never all in memory.",
    )
    skip_ignored: bool = Field(
        default=True,
        description="Compute no logits where there is no label: masked-lm predicts one token in seven, chat no prompt.",
    )
    split_batches: bool | None = Field(
        default=None,
        description="Learn from a batch of rows in pieces of like length, with less padding; by default on a CPU.",
    )
    fast_dropout: bool = Field(
        default=True,
        description="On a CPU: draw the random numbers of dropout faster; others than PyTorch's, as of another seed.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads of each process on a CPU; by default as many as it has cores to itself, hyper-threads not "
        "counted, or OMP_NUM_THREADS.",
    )
    reuse_memory: bool = Field(
        default=True,
        description="On a CPU under Linux: keep memory that was freed for what needs some next. The system clears each "
        "page that it gives out.",
    )


class Part(Table):
    """One of several tasks that share an encoder."""

    task: str = Field(description="What is learned; by default what `recipe` learns.")
    weight: float | None = Field(
        default=None,
        gt=0,
        description="Its share of the batches, beside the weights of the other tasks; where none has one, each row is "
        "seen once an epoch.",
    )
    data: SerializeAsAny[Data] = Field(description="What it is trained on; the keys go over those of `recipe`.")
    evaluation: Evaluation = Field(default=Evaluation(), description="What is measured of it.")

    def recipe(self, of: Recipe) -> Recipe:
        """This task alone, on the model of the recipe that it is a part of."""
        alone: dict[str, Any] = {
            "task": self.task,
            "data": self.data,
            "evaluation": self.evaluation,
            "tasks": {},
            "notes": (),
        }
        return of.model_copy(update=alone)


class Recipe(Table):
    """Everything a run needs to know. Two recipes are equal when their tables are, wherever they were read from."""

    task: str = Field(description="What is learned.")
    output_dir: str | None = Field(
        default=None,
        min_length=1,
        description="The run directory, relative to the working directory; by default `runs/` and the recipe's name.",
    )
    model: Model = Field(description="What is trained.")
    tokenizer: Tokenizer = Field(default=Tokenizer(), description="How text becomes tokens.")
    data: SerializeAsAny[Data] | None = Field(default=None, description="What it is trained on.")
    evaluation: Evaluation = Field(default=Evaluation(), description="What is measured.")
    tasks: Mapping[str, Part] = Field(default={}, description="Of several tasks at once: each with its data.")
    trainer: ReadOnly[Any] = Field(default=ReadOnly(), description="transformers.TrainingArguments, field for field.")
    lora: ReadOnly[Any] | None = Field(default=None, description="peft.LoraConfig, field for field: train an adapter.")
    generation: ReadOnly[Any] = Field(default=ReadOnly(), description="transformers.GenerationConfig, field for field.")
    early_stopping: EarlyStopping | None = Field(default=None, description="Stop when evaluation no longer improves.")
    guard: Guard = Field(default=Guard.model_construct(), description="When a step is skipped, and a run stopped.")
    speed: Speed = Field(default=Speed.model_construct(), description="What makes training faster.")

    # What the loader adds: nothing that a recipe can say.
    source: Path | None = Field(default=None, exclude=True)
    name: str = Field(default="run", exclude=True)
    origins: ReadOnly[str] = Field(default=ReadOnly(), exclude=True)
    notes: tuple[str, ...] = Field(default=(), exclude=True)

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        if value not in TASKS:
            raise ValueError(f"must be one of {', '.join(TASKS)}")
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    def to_toml(self, comments: bool = False) -> str:
        """The resolved recipe, which loads again from anywhere; with `comments`, each value's origin behind it."""
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
                origin = self.origins.get(dotted((table, *path) if table else path), "default")
                lines.append(f"{dotted(path)} = {toml_value(value)}" + (f"  # {origin}" if comments else ""))
        return "\n".join(lines) + "\n"


UPSTREAM_TABLES = {"trainer": "TrainingArguments", "lora": "LoraConfig", "generation": "GenerationConfig"}


def own_tables(task: object) -> dict[str, type[Table]]:
    """The classes of llmkit's own tables; of a task that is not known, those that take the most keys."""
    if task == "multi-task":
        return {"model": Model, "tokenizer": Tokenizer, "early_stopping": EarlyStopping, "guard": Guard, "speed": Speed}
    data = DATA_OF_TASK.get(task, MaskedData) if isinstance(task, str) else MaskedData
    return {
        "model": Model,
        "tokenizer": Tokenizer,
        "data": data,
        "evaluation": Evaluation,
        "early_stopping": EarlyStopping,
        "guard": Guard,
        "speed": Speed,
    }


@cache
def field_types(table: type[Table]) -> dict[str, Type]:
    """What each field of one of our tables may hold."""
    written = {
        name: text for base in reversed(table.__mro__) for name, text in vars(base).get("__annotations__", {}).items()
    }
    types = {name: read_annotation(written[name]) for name in table.model_fields}
    return types | dict.fromkeys((*nested(table), *named(table)), Type(frozenset({"dict"})))


def nested(table: type[Table]) -> dict[str, type[Table]]:
    """Those fields of one of our tables that are tables of ours too."""
    found = {name: _table_in(field.annotation) for name, field in table.model_fields.items()}
    many = named(table)
    return {name: inside for name, inside in found.items() if inside is not None and name not in many}


def named(table: type[Table]) -> dict[str, type[Table]]:
    """Those fields that hold several tables of ours, each under a name that the user gives."""
    found = {
        name: _table_in(field.annotation)
        for name, field in table.model_fields.items()
        if get_origin(field.annotation) is Mapping
    }
    return {name: inside for name, inside in found.items() if inside is not None}


def _table_in(annotation: Any) -> type[Table] | None:
    each = (annotation, *get_args(annotation))
    return next((one for one in each if isinstance(one, type) and issubclass(one, Table)), None)
