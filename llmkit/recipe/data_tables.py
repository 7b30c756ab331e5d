"""[data]: the fields of each task's data."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from llmkit.recipe.cleaning import Clean
from llmkit.recipe.table import ReadOnly, Table


class Origin(Table):
    """The place that data comes from."""

    path: str = Field(min_length=1, description="A Hub id, a file, a folder or a glob; the suffix decides the format.")
    name: str | None = Field(default=None, description="The configuration of a data set on the Hub.")
    revision: str | None = Field(default=None, description="The branch, tag or commit of a data set on the Hub.")
    data_files: str | tuple[str, ...] | ReadOnly[Any] | None = Field(
        default=None, description="Which files of `path` to read: one, several, or a table from split to files."
    )
    split: str = Field(default="train", min_length=1, description="The split to train on, such as `train[:4000]`.")
    encoding: str = Field(default="utf-8", description="The encoding of text files.")
    format: Literal["csv", "tsv", "jsonl", "json", "parquet", "conll", "fasttext", "text"] | None = Field(
        default=None, description="The format of files whose names do not end in a known suffix."
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="The separator between the fields of a table; by default detected.",
    )
    quoting: Literal["minimal", "none"] | None = Field(
        default=None,
        description="Whether quotes enclose fields, which may then span lines (`minimal`), or are ordinary characters "
        "(`none`); by default detected, and fields of a TSV file then do not span lines.",
    )
    header: bool | None = Field(
        default=None,
        description="Whether the first line of a table names its columns; without a header they are called 1, 2, ...",
    )
    column_names: tuple[str, ...] | None = Field(
        default=None, description="The names of the columns, for a table without a header or instead of its header."
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError(f'"{value}" is not an encoding known to Python') from None
        return value


class Data(Origin):
    """The data of any task."""

    validation_fraction: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="The share of the data to hold out for evaluation if it has no validation split; by default "
        "a tenth "
        "for your own rows under a bundled recipe.",
    )
    seed: int | None = Field(
        default=None, ge=0, description="The seed for holding out and sampling data; by default `trainer.seed`."
    )
    max_skipped_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The share of the rows of a file or split that may be left out because they cannot be used; by "
        "default 0.05. Up to three rows are always allowed.",
    )
    max_train_samples: int | None = Field(
        default=None, ge=1, description="Use at most this many training blocks or rows."
    )
    max_eval_samples: int | None = Field(
        default=None, ge=1, description="Use at most this many evaluation blocks or rows."
    )
    global_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="The number of blocks or rows per step, over all processes; batch size and gradient "
        "accumulation are "
        "adjusted to reach it. By default it grows with the number of processes.",
    )


# ---- running text --------------------------------------------------------------------------------------------------


class Texts(Table):
    """How the texts of one origin are read."""

    validation_split: str | None = Field(
        default=None, description="The split to evaluate on; by default `validation` if the data has one."
    )
    text_column: str | None = Field(
        default=None, description="The column with the text; by default `text`, or the only one."
    )
    sample_by: Literal["document", "paragraph", "line"] = Field(
        default="document", description="What counts as one document of a text file: the file, a paragraph or a line."
    )
    clean: Clean | None = Field(default=None, description="A table: how to clean the texts before training on them.")


class Source(Texts, Origin):
    """One of several sources that are mixed."""

    weight: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Its share of the blocks, relative to the weights of the other sources.",
    )


class TextData(Texts, Data):
    """The data of a language model: running text."""

    path: str = Field(default="", description="A Hub id, a file, a folder or a glob; the suffix decides the format.")
    sources: Mapping[str, Source] = Field(
        default={},
        description="Instead of `path`: several sources, mixed by weight, each with the keys that [data] has for one.",
    )
    streaming: bool = Field(default=False, description="Download while training; needs `trainer.max_steps`.")
    buffer_size: int | None = Field(
        default=None,
        ge=2,
        description="With `streaming`: shuffle by drawing each block at random from a buffer of this many blocks.",
    )
    validation_from: Literal["documents", "end"] = Field(
        default="documents",
        description="What `validation_fraction` holds out: documents chosen by the seed, or the end of the text.",
    )
    block_size: int | None = Field(
        default=None,
        ge=2,
        description="The number of tokens in a training sequence; by default the model's number of positions, at "
        "most 1024.",
    )

    def named_sources(self) -> dict[str, tuple[TextData, float]]:
        """Return each source as data of its own with its weight, by name; without `sources`, itself under ""."""
        if not self.sources:
            return {"": (self, 1.0)}
        return {
            name: (self.model_copy(update={**dict(source), "sources": {}}), source.weight)
            for name, source in self.sources.items()
        }


class CausalData(TextData):
    """The data of a causal language model."""

    pack: Literal["running", "isolated"] = Field(
        default="running",
        description="What a token can see: everything before it in its block, or (`isolated`) only its own document.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="For `llmkit evaluate`: how many tokens each window moves on; only these are scored. By default "
        "windows do not overlap.",
    )


class MaskedData(TextData):
    """The data of a masked language model."""

    mlm_probability: float = Field(default=0.15, gt=0, le=1, description="The share of tokens that the model predicts.")
    masking: Literal["token", "whole-word", "span", "each"] = Field(
        default="token",
        description="What to mask: tokens, words, or spans of words; `each`, for `llmkit evaluate`, masks every token "
        "in turn (pseudo-perplexity).",
    )
    mean_span_length: float = Field(
        default=5.0,
        ge=1,
        description='With `masking = "span"`: the mean number of words in a span (geometric), before the limit of 10.',
    )
    mask_replace_prob: float = Field(
        default=0.8, ge=0, le=1, description="The share of the predicted tokens that are replaced by the mask token."
    )
    random_replace_prob: float = Field(
        default=0.1, ge=0, le=1, description="The share of the predicted tokens that are replaced by a random token."
    )


class Corruption(Table):
    """How to corrupt a text that the model restores: one of three ways, drawn by their weights."""

    permutation: float = Field(
        default=0.0, ge=0, description="The weight of permutation: the model puts shuffled text in order."
    )
    infilling: float = Field(
        default=0.0, ge=0, description="The weight of infilling (BART): one mask token replaces each span."
    )
    span_corruption: float = Field(
        default=0.0, ge=0, description="The weight of span corruption (T5): a sentinel token replaces each span."
    )
    permute: Literal["sentences", "tokens"] = Field(default="sentences", description="Permutation: what to shuffle.")
    mask_probability: float = Field(default=0.3, gt=0, lt=1, description="Infilling: the share of tokens in spans.")
    poisson_lambda: float = Field(default=3.0, gt=0, description="Infilling: the mean length of a span in tokens.")
    noise_density: float = Field(default=0.15, gt=0, lt=1, description="Span corruption: the share of tokens in spans.")
    mean_noise_span_length: float = Field(
        default=3.0, ge=1, description="Span corruption: the mean length of a span in tokens."
    )


class DenoisingData(TextData):
    """The data of an encoder-decoder's pretraining."""

    corruption: Corruption = Field(
        default=Corruption.model_construct(),  # without validation, which would build the schema at every start
        description="A table: how to corrupt the texts; at least one weight is required.",
    )


class ReplacedData(TextData):
    """The data of a discriminator of replaced tokens."""

    mlm_probability: float = Field(
        default=0.15, gt=0, le=1, description="The share of tokens that the generator fills in."
    )
    discriminator_weight: float = Field(
        default=50.0, gt=0, description="The weight of the discriminator's loss, relative to the generator's."
    )


# ---- rows ----------------------------------------------------------------------------------------------------------


class RowData(Data):
    """The data of fine-tuning: rows, each with inputs and the answer to learn."""

    validation_split: str | tuple[str, ...] | None = Field(
        default=None,
        description="The split to evaluate on, or several; training monitors the first. By default `validation` if "
        "the data has one.",
    )
    hold_out: Literal["stratified", "hash"] = Field(
        default="stratified",
        description="How `validation_fraction`, `max_train_samples` and `max_eval_samples` choose rows: in the "
        "proportions of the classes, or (`hash`, as in earlier versions) each row independently, and the first rows.",
    )
    max_length: int | None = Field(
        default=None,
        ge=4,
        description="The number of tokens in an input; by default the model's number of positions, at most 512.",
    )


class Augment(Table):
    """Altered copies of the training rows."""

    delete: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The probability of leaving out each word of a copy; at least one word always stays.",
    )
    swap: float = Field(default=0.0, ge=0, le=1, description="The share of words to swap with another.")
    synonym: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The share of words to replace by an English synonym, if they have a clear one (nltk and "
        "its WordNet).",
    )
    copies: int = Field(default=1, ge=1, description="Altered copies of each row, in addition to the row itself.")
    seed: int = Field(
        default=0, ge=0, description="The seed of the changes, combined with the numbers of the row and the copy."
    )


class ClassificationData(RowData):
    """The data of a classifier."""

    text_column: str | None = Field(
        default=None, description="The column with the text; by default found by name, or the only one with text."
    )
    text_pair_column: str | None = Field(
        default=None,
        description="The column with the second text of a pair; by default found by name, beside the first.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None,
        description="The side on which texts longer than `max_length` are cut; by default the tokenizer's, mostly "
        "`right`. `left` keeps the end of a text.",
    )
    label_column: str | tuple[str, ...] | None = Field(
        default=None,
        description="The column with the label, or several columns of 0 and 1, one for each label; by default found "
        "by name, such as `label`, or by its contents.",
    )
    label_separator: str | None = Field(
        default=None,
        min_length=1,
        description='What separates the labels in a cell that holds several, such as ";": the data is multi-label.',
    )
    label_names: tuple[str, ...] | None = Field(
        default=None,
        description="The classes, in the order of the model's outputs; by default those of the data, sorted.",
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = Field(
        default=None,
        description="The kind of classification; by default multi-label if a row has a list of labels, else "
        "single-label.",
    )
    class_weights: Literal["balanced"] | ReadOnly[float] | None = Field(
        default=None,
        description='The weight of each class in the loss: `"balanced"` (rows / classes / rows of the class), or a '
        "table from label to weight.",
    )
    threshold: float | ReadOnly[float] | None = Field(
        default=None,
        description="Multi-label: the probability above which a class applies, 0 to 1, or a table from class to "
        "probability; by default 0.5. It is kept in the model's config.",
    )
    augment: Augment | None = Field(
        default=None, description="A table: train on altered copies of the training rows too."
    )

    @field_validator("threshold")
    @classmethod
    def _probabilities(cls, value: Any) -> Any:
        for each in value.values() if isinstance(value, Mapping) else (value,):
            if each is not None and not (isinstance(each, float | int) and 0 <= each <= 1):
                raise ValueError(f"{each} is not a probability: use a number from 0 to 1")
        return value


class AnsweringData(RowData):
    """The data of an extractive question-answering model."""

    question_column: str | None = Field(
        default=None, description="The column with the question; by default found by name, such as `question`."
    )
    context_column: str | None = Field(
        default=None,
        description="The column with the text that holds the answer; by default found by name, such as `context`, or "
        "by the answers in it.",
    )
    answers_column: str | None = Field(
        default=None,
        description="The column with the answers; by default found by name, such as `answers` or `answer_text`.",
    )
    starts_column: str | None = Field(
        default=None,
        description="The column with the position of the character, from 0, at which an answer begins, if "
        "`answers_column` has only texts; by default found by name, such as `answer_start`.",
    )
    stride: int | None = Field(
        default=None,
        ge=0,
        description="Tokens shared by two windows of a long context; by default a quarter of max_length, at most 128.",
    )
    unanswerable: bool | None = Field(
        default=None,
        description="Whether a question may have no answer; by default true if the data has such a question.",
    )
    n_best_size: int = Field(default=20, ge=1, description="How many of the best answers to keep.")
    max_answer_length: int = Field(default=30, ge=1, description="The maximum number of tokens in an answer.")
    null_score_diff_threshold: float = Field(
        default=0.0, description="Give no answer if that scores higher than the best answer by more than this."
    )


class TaggingData(RowData):
    """The data of a tagger."""

    tokens_column: str | None = Field(
        default=None,
        description="The column with the list of words, with one word, or with the text in which spans are marked; by "
        "default found by name, such as `tokens`.",
    )
    tags_column: str | None = Field(
        default=None,
        description="The column with the list of tags, one for each word, with one tag, or with the spans of a text "
        "and their labels; by default found by name, such as `ner_tags`.",
    )
    sentence_column: str | tuple[str, ...] | None = Field(
        default=None,
        description="With one word per row: the column, or columns, whose value changes from one sentence to the next; "
        "by default found by name, such as `sentence_id`, or by its contents.",
    )
    label_names: tuple[str, ...] | None = Field(
        default=None, description="The tags, in the order of the model's outputs; by default those of the data."
    )
    stride: int | None = Field(
        default=None,
        ge=0,
        description="Tokens shared by two windows of a long row; by default a quarter of max_length, at most 128.",
    )


class ChoiceData(RowData):
    """The data of a model that chooses among endings or answers."""

    context_column: str | None = Field(
        default=None,
        description="The column with the context, which is read first; by default found by name, such as `sent1`.",
    )
    question_column: str | None = Field(
        default=None, description="The column with a question, read after the context; by default found by name."
    )
    choices_column: str | tuple[str, ...] | None = Field(
        default=None,
        description="The column with the list of choices, or one column for each choice; by default found by name.",
    )
    answer_column: str | None = Field(
        default=None,
        description="The column with the right choice (its number, its letter, or its text); by default found by "
        "name, such as `label`.",
    )
    answer_base: Literal[0, 1] | None = Field(
        default=None,
        description="The number of the first choice, if answers are numbers. By default 0, or 1 if 20 rows or "
        "more show "
        "it: no answer is 0, and some answers equal the number of choices.",
    )


class PairData(RowData):
    """The data of an encoder-decoder: a text, and the text to write from it."""

    source_column: str | None = Field(
        default=None,
        description="The column to read (of a list, all its texts); by default found by name, such as `document`.",
    )
    target_column: str | tuple[str, ...] | None = Field(
        default=None,
        description="The column to generate, or several; by default found by name, such as `summary`. Of several "
        "columns, or a list of texts, the first is learned and all are references.",
    )
    source_prefix: str = Field(default="", description='Text to put before every source, such as "summarize: " for T5.')
    source_lang: str | None = Field(
        default=None,
        description="The language to translate from: a column, or a key of the column `translation`. For a "
        "multilingual model, the language's code too, with `source_column`.",
    )
    target_lang: str | None = Field(default=None, description="The language to translate into, named in the same way.")
    max_target_length: int = Field(default=128, ge=2, description="The maximum number of tokens in a target.")


# A function call is the assistant's turn, an observation the tool's.
CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function_call", "observation")


class ChatData(RowData):
    """The data of a language model that learns to answer: conversations."""

    max_length: int | None = Field(
        default=None,
        ge=4,
        description="Use at most this many tokens of a conversation, from its beginning; by default the "
        "model's number of positions, at most 1024.",
    )
    messages_column: str | None = Field(
        default=None,
        description="The column with a conversation, a list of `role` and `content` (or `from` and `value`); by "
        "default found by name, such as `messages` or `conversations`.",
    )
    prompt_column: str | None = Field(
        default=None,
        description="Without a column of conversations: the column with the prompt; by default found by name, such as "
        "`prompt`, `instruction` or `question`.",
    )
    input_column: str | None = Field(
        default=None,
        description="The column with the input to a prompt, added after it; by default `input` or `context`.",
    )
    completion_column: str | None = Field(
        default=None,
        description="The column with the answer; by default found by name, such as `completion`, `response`, `output` "
        "or `answer`.",
    )
    system_column: str | None = Field(
        default=None, description="The column with a system message; by default `system` or `system_prompt`."
    )
    history_column: str | None = Field(
        default=None,
        description="The column with the turns before the prompt, as pairs of question and answer; by default "
        "`history`.",
    )
    tools_column: str | None = Field(
        default=None,
        description="The column with the list of tools, for the chat template; by default `tools` or `functions`.",
    )
    weight_column: str | None = Field(
        default=None,
        description="The column that says whether the answers of a row are learned: a row with 0 or false is left out.",
    )
    role_map: ReadOnly[str] | None = Field(
        default=None,
        description='A table from other roles to known ones, such as `{ patient = "user" }`. Known are system, '
        "developer, user, assistant, tool, function_call and observation.",
    )
    companions: bool = Field(
        default=True,
        description="Also read what comes with a conversation: its system message, history and tools, and the "
        "`weight`, "
        "`train` or `loss` of a message (0 or false: not learned). False, as in earlier versions, reads only the "
        "messages, or only the prompt, its `input` and the answer.",
    )
    system_prompt: str | None = Field(
        default=None, description="The system message for every conversation that has none."
    )
    pack: bool = Field(
        default=False,
        description="Pack several conversations into each input, up to max_length tokens; none of them sees another.",
    )

    @field_validator("role_map")
    @classmethod
    def _roles(cls, value: Any) -> Any:
        for role in (value or {}).values():
            if role not in CHAT_ROLES:
                raise ValueError(f"{role!r} is not a role; the roles are {', '.join(CHAT_ROLES)}")
        return value
