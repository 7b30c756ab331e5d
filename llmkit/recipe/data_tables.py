"""[data]: what each task is trained on, field by field."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from llmkit.recipe.cleaning import Clean
from llmkit.recipe.table import ReadOnly, Table


class Origin(Table):
    """Where data comes from."""

    path: str = Field(min_length=1, description="A Hub id, a file, a folder or a glob; the suffix decides the format.")
    name: str | None = Field(default=None, description="The configuration of a data set on the Hub.")
    revision: str | None = Field(default=None, description="The branch, tag or commit of a data set on the Hub.")
    data_files: str | tuple[str, ...] | ReadOnly[Any] | None = Field(
        default=None, description="Which files of `path` to read: one, several, or a table from split to files."
    )
    split: str = Field(default="train", min_length=1, description="The split to train on, such as `train[:4000]`.")
    encoding: str = Field(default="utf-8", description="The encoding of text files.")

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


class Data(Origin):
    """What it is trained on."""

    validation_fraction: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="What to hold out for evaluation where the data has no validation split.",
    )
    max_train_samples: int | None = Field(default=None, ge=1, description="Train on so many blocks or rows at most.")
    max_eval_samples: int | None = Field(default=None, ge=1, description="Evaluate on so many blocks or rows at most.")


# ---- running text --------------------------------------------------------------------------------------------------


class Texts(Table):
    """How the texts of one origin are read."""

    validation_split: str | None = Field(
        default=None, description="The split to evaluate on; by default `validation` where the data has one."
    )
    text_column: str | None = Field(
        default=None, description="The column with the text; by default `text`, or the only one."
    )
    sample_by: Literal["document", "paragraph", "line"] = Field(
        default="document", description="What one document of a text file is: the file, a paragraph or a line."
    )
    clean: Clean | None = Field(default=None, description="A table: what is done to the texts before they are learned.")


class Source(Texts, Origin):
    """One of several sources that are mixed."""

    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Its share of the blocks, beside the weights of the others."
    )


class TextData(Texts, Data):
    """What a language model is trained on."""

    path: str = Field(default="", description="A Hub id, a file, a folder or a glob; the suffix decides the format.")
    sources: Mapping[str, Source] = Field(
        default={}, description="In place of `path`: several, mixed by weight, each with what [data] says of one."
    )
    streaming: bool = Field(default=False, description="Download while training; needs `trainer.max_steps`.")
    buffer_size: int | None = Field(
        default=None,
        ge=2,
        description="With `streaming`: blocks come in random order, each drawn from so many that are held ready.",
    )
    validation_from: Literal["documents", "end"] = Field(
        default="documents",
        description="What `validation_fraction` holds out: documents drawn by the seed, or the text's end.",
    )
    block_size: int | None = Field(
        default=None, ge=2, description="Tokens in a training sequence; by default as many as the model has positions."
    )

    def each(self) -> dict[str, tuple[TextData, float]]:
        """What is read, by name: each source as data of its own, with its weight; one without a name where none is."""
        if not self.sources:
            return {"": (self, 1.0)}
        return {
            name: (self.model_copy(update={**dict(source), "sources": {}}), source.weight)
            for name, source in self.sources.items()
        }


class CausalData(TextData):
    """What a causal language model is trained on."""

    pack: Literal["running", "isolated"] = Field(
        default="running",
        description="What a token of a block sees: all before it, or (`isolated`) its own document alone.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="For `llmkit evaluate`: how many tokens a window is ahead of the last one, which are predicted in "
        "it; by default all of its own.",
    )


class MaskedData(TextData):
    """What a masked language model is trained on."""

    mlm_probability: float = Field(default=0.15, gt=0, le=1, description="The share of tokens that the model predicts.")
    masking: Literal["token", "whole-word", "span", "each"] = Field(
        default="token",
        description="What is chosen: tokens, words, or spans of words; `each`, for `llmkit evaluate`, every token in "
        "turn (pseudo-perplexity).",
    )
    mean_span_length: float = Field(
        default=5.0, ge=1, description='With `masking = "span"`: words in a span, geometrically distributed up to 10.'
    )
    mask_replace_prob: float = Field(
        default=0.8, ge=0, le=1, description="The share of those that become the mask token."
    )
    random_replace_prob: float = Field(
        default=0.1, ge=0, le=1, description="The share of those that become a random one."
    )


class Corruption(Table):
    """What is done to a text that is to be restored: one of three, drawn by their weights."""

    permutation: float = Field(default=0.0, ge=0, description="The weight of permuted text, which is put in order.")
    infilling: float = Field(
        default=0.0, ge=0, description="The weight of infilling (BART): of each span one mask is left."
    )
    span_corruption: float = Field(
        default=0.0, ge=0, description="The weight of span corruption (T5): sentinels stand for spans."
    )
    permute: Literal["sentences", "tokens"] = Field(default="sentences", description="What a permutation shuffles.")
    mask_probability: float = Field(default=0.3, gt=0, lt=1, description="Infilling: the share of tokens in spans.")
    poisson_lambda: float = Field(default=3.0, gt=0, description="Infilling: the mean length of a span in tokens.")
    noise_density: float = Field(default=0.15, gt=0, lt=1, description="Span corruption: the share of tokens in spans.")
    mean_noise_span_length: float = Field(
        default=3.0, ge=1, description="Span corruption: the mean length of a span in tokens."
    )


class DenoisingData(TextData):
    """What an encoder-decoder is pretrained on."""

    corruption: Corruption = Field(
        default=Corruption.model_construct(),  # not validated, which would build the table at every start
        description="A table: what is done to the texts, of which one weight at least is given.",
    )


class ReplacedData(TextData):
    """What a discriminator of replaced tokens is trained on."""

    mlm_probability: float = Field(
        default=0.15, gt=0, le=1, description="The share of tokens that the generator fills in."
    )
    discriminator_weight: float = Field(
        default=50.0, gt=0, description="How much the discriminator's loss counts beside the generator's."
    )


# ---- rows ----------------------------------------------------------------------------------------------------------


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
