"""The tables of a recipe: llmkit's own, field by field, and upstream's as they are."""

from __future__ import annotations

import codecs
import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, SerializeAsAny, field_validator
from pydantic_core import CoreSchema, core_schema

from llmkit.recipe.keytype import Type, read_annotation
from llmkit.recipe.tomltext import dotted, leaves, toml_value

Task = Literal[
    "causal-lm",
    "masked-lm",
    "text-classification",
    "question-answering",
    "token-classification",
    "multiple-choice",
    "seq2seq",
    "chat",
    "multi-task",
]
TASKS: tuple[str, ...] = get_args(Task)
PRETRAINING = ("causal-lm", "masked-lm")  # the tasks that learn from running text; the others learn from rows
HEADED = ("text-classification", "question-answering", "token-classification", "multiple-choice")  # on one encoder
GENERATING = ("causal-lm", "seq2seq", "chat")  # the tasks whose models write, as [generation] says
# Every task that llmkit is to have; those that are not yet built get a message of their own.
KNOWN_TASKS = (*TASKS, "denoising", "replaced-token-detection")

# Where a pretraining run wants another default than TrainingArguments has.
TRAINER_DEFAULTS: dict[str, Any] = {
    "logging_first_step": True,
    "logging_steps": 10,
    "save_total_limit": 2,  # upstream keeps every checkpoint until the disk is full
}

# What a causal language model is saved with: text that can be read, not greedy repetition.
GENERATION_DEFAULTS: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 200}

T = TypeVar("T")


class ReadOnly(Mapping[str, T], Generic[T]):
    """A table whose keys are not ours to fix. It cannot be changed: what it hands out is a plain copy."""

    def __init__(self, values: Mapping[str, T] | None = None) -> None:
        self._values = copy.deepcopy(dict(values or {}))

    def __getitem__(self, key: str) -> T:
        return copy.deepcopy(self._values[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ReadOnly({self._values!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.plain_serializer_function_ser_schema(dict)
        )

    @classmethod
    def _validated(cls, value: Any) -> ReadOnly[T]:
        if not isinstance(value, Mapping):
            raise ValueError("must be a table")
        return value if isinstance(value, cls) else cls(value)


class Table(BaseModel):
    """A table that takes the fields it names and no others, never converts a type and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
    attn_implementation: str | None = Field(
        default=None,
        description="The attention kernel, such as `sdpa` or `flash_attention_2`; by default the best there is.",
    )
    train: str = Field(
        default="all",
        description='Which weights are trained: `"all"`, the `"head"` alone, or the head and the `"top-2"` layers.',
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


# The fields of Tokenizer that mean something only where the run trains it, and transformers' names of special tokens.
TRAINED_TOKENIZER = ("vocab_size", "min_frequency", "lowercase", "special_tokens")
SPECIAL_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Data(Table):
    """What it is trained on."""

    path: str = Field(min_length=1, description="A Hub id, a file, a folder or a glob; the suffix decides the format.")
    name: str | None = Field(default=None, description="The configuration of a data set on the Hub.")
    revision: str | None = Field(default=None, description="The branch, tag or commit of a data set on the Hub.")
    data_files: str | tuple[str, ...] | ReadOnly[Any] | None = Field(
        default=None, description="Which files of `path` to read: one, several, or a table from split to files."
    )
    split: str = Field(default="train", min_length=1, description="The split to train on, such as `train[:4000]`.")
    validation_fraction: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="What to hold out for evaluation where the data has no validation split.",
    )
    encoding: str = Field(default="utf-8", description="The encoding of text files.")
    max_train_samples: int | None = Field(default=None, ge=1, description="Train on so many blocks or rows at most.")
    max_eval_samples: int | None = Field(default=None, ge=1, description="Evaluate on so many blocks or rows at most.")

    @field_validator("data_files", mode="before")
    @classmethod
    def _unchangeable(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError(f'Python knows no encoding "{value}"') from None
        return value


class TextData(Data):
    """What a language model is trained on."""

    validation_split: str | None = Field(
        default=None, description="The split to evaluate on; by default `validation` where the data has one."
    )
    streaming: bool = Field(default=False, description="Download while training; needs `trainer.max_steps`.")
    validation_from: Literal["documents", "end"] = Field(
        default="documents",
        description="What `validation_fraction` holds out: documents drawn by the seed, or the text's end.",
    )
    text_column: str | None = Field(
        default=None, description="The column with the text; by default `text`, or the only one."
    )
    sample_by: Literal["document", "paragraph", "line"] = Field(
        default="document", description="What one document of a text file is: the file, a paragraph or a line."
    )
    block_size: int | None = Field(
        default=None, ge=2, description="Tokens in a training sequence; by default as many as the model has positions."
    )


class MaskedData(TextData):
    """What a masked language model is trained on."""

    mlm_probability: float = Field(default=0.15, gt=0, le=1, description="The share of tokens that the model predicts.")
    mask_replace_prob: float = Field(
        default=0.8, ge=0, le=1, description="The share of those that become the mask token."
    )
    random_replace_prob: float = Field(
        default=0.1, ge=0, le=1, description="The share of those that become a random one."
    )


class RowData(Data):
    """What a model is fine-tuned on: rows, each with what is read and what is to be answered."""

    validation_split: str | tuple[str, ...] | None = Field(
        default=None,
        description="The split to evaluate on, or several, of which training watches the first; by default "
        "`validation` where the data has one.",
    )
    max_length: int | None = Field(
        default=None,
        ge=4,
        description="Tokens in an input; by default as many as the model has positions, 512 at most.",
    )

    @field_validator("validation_split", mode="before")
    @classmethod
    def _unchangeable_splits(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Augment(Table):
    """Altered copies of the training rows."""

    delete: float = Field(
        default=0.0, ge=0, lt=1, description="How likely each word is left out of a copy; never all of them are."
    )
    swap: float = Field(default=0.0, ge=0, le=1, description="The share of words that change places with another.")
    synonym: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The share of words that an English synonym replaces, as far as they have a clear one (nltk and "
        "its WordNet).",
    )
    copies: int = Field(default=1, ge=1, description="Altered copies of each row, beside the row itself.")
    seed: int = Field(default=0, ge=0, description="What they are drawn from, with the number of row and copy.")


class ClassificationData(RowData):
    """What a classifier is trained on."""

    text_column: str | None = Field(
        default=None, description="The column with the text; by default found by name, or the only one with text."
    )
    text_pair_column: str | None = Field(
        default=None, description="The column with the second text; by default found by name beside the first."
    )
    label_column: str | None = Field(
        default=None, description="The column with the label; by default `label` or `labels`."
    )
    label_names: tuple[str, ...] | None = Field(
        default=None,
        description="The classes, in the order of the model's outputs; by default those of the data, sorted.",
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = Field(
        default=None,
        description="By default multi-label where a row has a list of labels, else single-label.",
    )
    class_weights: Literal["balanced"] | ReadOnly[float] | None = Field(
        default=None,
        description='How much a class counts in the loss: `"balanced"` (rows / classes / its rows), or a table '
        "from label to weight.",
    )
    augment: Augment | None = Field(
        default=None, description="A table: learn from altered copies of the training rows too."
    )

    @field_validator("label_names", mode="before")
    @classmethod
    def _unchangeable_names(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class AnsweringData(RowData):
    """What an extractive question-answering model is trained on."""

    question_column: str = Field(default="question", description="The column with the question.")
    context_column: str = Field(default="context", description="The column with the text that holds the answer.")
    answers_column: str | None = Field(
        default=None,
        description="The column with the answers; by default `answers` or `answer`, beside it perhaps `answer_start`.",
    )
    stride: int | None = Field(
        default=None,
        ge=0,
        description="Tokens that two windows of one long context share; by default 128, or a quarter of max_length.",
    )
    unanswerable: bool | None = Field(
        default=None, description="Whether there may be no answer; by default if a question of the data has none."
    )
    n_best_size: int = Field(default=20, ge=1, description="How many of the best answers are kept.")
    max_answer_length: int = Field(default=30, ge=1, description="Tokens in an answer, at most.")
    null_score_diff_threshold: float = Field(
        default=0.0, description="How far the score of no answer must be above that of the best one to be given."
    )


class TaggingData(RowData):
    """What a tagger is trained on."""

    tokens_column: str | None = Field(
        default=None, description="The column with the list of words; by default `tokens` or `words`."
    )
    tags_column: str | None = Field(
        default=None, description="The column with a tag for each word; by default found by name, such as `ner_tags`."
    )
    label_names: tuple[str, ...] | None = Field(
        default=None, description="The tags, in the order of the model's outputs; by default those of the data."
    )
    stride: int | None = Field(
        default=None,
        ge=0,
        description="Tokens that two windows of one long row share; by default a quarter of max_length, 128 at most.",
    )

    @field_validator("label_names", mode="before")
    @classmethod
    def _unchangeable_names(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class ChoiceData(RowData):
    """What a model that chooses among endings or answers is trained on."""

    context_column: str | None = Field(
        default=None, description="The column with what is read first; by default found by name, such as `sent1`."
    )
    question_column: str | None = Field(
        default=None, description="The column with a question, read behind the context; by default found by name."
    )
    choices_column: str | tuple[str, ...] | None = Field(
        default=None,
        description="The column with the list of choices, or one column for each; by default found by name.",
    )
    answer_column: str | None = Field(
        default=None,
        description="The column with the right choice (its number from 0, its letter, or its text); by default found "
        "by name, such as `label`.",
    )

    @field_validator("choices_column", mode="before")
    @classmethod
    def _unchangeable_columns(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class PairData(RowData):
    """What an encoder-decoder is trained on: a text, and the text to write from it."""

    source_column: str | None = Field(
        default=None,
        description="The column that is read, of a list all its texts; by default found by name, such as `document`.",
    )
    target_column: str | None = Field(
        default=None,
        description="The column that is to be written, of a list the first text (all are references); by default found "
        "by name, such as `summary`.",
    )
    source_prefix: str = Field(default="", description='What stands before every source, such as "summarize: " for T5.')
    source_lang: str | None = Field(
        default=None,
        description="The language to translate from: a column, or a key of the column `translation`; of a model of "
        "many languages also its code, beside `source_column`.",
    )
    target_lang: str | None = Field(default=None, description="The language to translate into, named the same way.")
    max_target_length: int = Field(default=128, ge=2, description="Tokens in a target, at most.")


class ChatData(RowData):
    """What a language model learns to answer from: conversations."""

    max_length: int | None = Field(
        default=None,
        ge=4,
        description="Tokens of a conversation, the first of them; by default as many as the model has positions, 1024 "
        "at most.",
    )
    messages_column: str | None = Field(
        default=None,
        description="The column with a conversation, a list of `role` and `content`; by default `messages` or "
        "`conversations`.",
    )
    prompt_column: str | None = Field(
        default=None, description="Without one: the column with the prompt; by default `prompt` or `instruction`."
    )
    input_column: str | None = Field(
        default=None, description="The column with what the prompt is about; by default `input`, beside `instruction`."
    )
    completion_column: str | None = Field(
        default=None, description="The column with the answer; by default `completion`, `response` or `output`."
    )
    system_prompt: str | None = Field(
        default=None, description="What stands first in every conversation that has no system message of its own."
    )
    pack: bool = Field(
        default=False,
        description="Fill inputs up to max_length with several conversations, none of which sees another.",
    )


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


class Part(Table):
    """One of several tasks that share an encoder."""

    task: Literal["text-classification", "question-answering", "token-classification", "multiple-choice"] = Field(
        description="What is learned; by default what `recipe` learns."
    )
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

    task: Task = Field(description="What is learned.")
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

    # What the loader adds: nothing that a recipe can say.
    source: Path | None = Field(default=None, exclude=True)
    name: str = Field(default="run", exclude=True)
    origins: ReadOnly[str] = Field(default=ReadOnly(), exclude=True)
    notes: tuple[str, ...] = Field(default=(), exclude=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    def to_toml(self, comments: bool = False) -> str:
        """The resolved recipe, which loads again from anywhere; with `comments`, each value's origin behind it."""
        tables = self.model_dump(
            exclude_none=True, exclude={"evaluation"} if self.task in (*PRETRAINING, "multi-task") else None
        )
        if self.tokenizer.type is None:
            tables["tokenizer"] = {key: tables["tokenizer"][key] for key in tables["tokenizer"] if key == "name"}
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
DATA_OF_TASK: dict[str, type[Data]] = {
    "causal-lm": TextData,
    "masked-lm": MaskedData,
    "text-classification": ClassificationData,
    "question-answering": AnsweringData,
    "token-classification": TaggingData,
    "multiple-choice": ChoiceData,
    "seq2seq": PairData,
    "chat": ChatData,
}


def own_tables(task: object) -> dict[str, type[Table]]:
    """The classes of llmkit's own tables; of a task that is not known, those that take the most keys."""
    if task == "multi-task":
        return {"model": Model, "tokenizer": Tokenizer, "early_stopping": EarlyStopping}
    data = DATA_OF_TASK.get(task, MaskedData) if isinstance(task, str) else MaskedData
    return {
        "model": Model,
        "tokenizer": Tokenizer,
        "data": data,
        "evaluation": Evaluation,
        "early_stopping": EarlyStopping,
    }


@cache
def field_types(table: type[Table]) -> dict[str, Type]:
    """What each field of one of our tables may hold."""
    written = {
        name: text for base in reversed(table.__mro__) for name, text in vars(base).get("__annotations__", {}).items()
    }
    types = {name: read_annotation(written[name]) for name in table.model_fields}
    return types | dict.fromkeys(nested(table), Type(frozenset({"dict"})))


def nested(table: type[Table]) -> dict[str, type[Table]]:
    """Those fields of one of our tables that are tables of ours too."""
    return {
        name: inside
        for name, field in table.model_fields.items()
        for inside in (field.annotation, *get_args(field.annotation))
        if isinstance(inside, type) and issubclass(inside, Table)
    }
