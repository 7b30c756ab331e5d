"""The contract of a task: what its file must provide, and when each part is called.

A task is a module, and a module may implement a protocol (PEP 544). Each task's file says which one it keeps, at its
top, and mypy checks it. A member that a task can do without is a property here: the file sets it to None, so that a
misspelt one is an error and not a feature that is silently off.

In shapes B is the number of examples in a batch, T of tokens in each, N of examples in all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from llmkit.data.rows.batches import Examples
from llmkit.data.rows.examples import Encoded
from llmkit.data.rows.reader import RowReader
from llmkit.data.rows.table import Rows
from llmkit.data.text.pack import BlockSpec, TokenStream, Window
from llmkit.tasks.trivial import Trivial

Batch = Mapping[str, torch.Tensor]
Collator = Callable[[list[Any]], dict[str, torch.Tensor]]


class Result(NamedTuple):
    """What `llmkit evaluate` says of a row, the row's number in its part, and where that stands in the file.

    `said` has `truth`, `prediction` and figures such as `score`; each row of a part has the same keys. Rows with a high
    `rank` come first: mistakes, the surest before the others. `decisions` are pairs of the true and the predicted
    class, one or several a row; None stands for no class, such as that of an entity that was not found.
    """

    row: int
    said: dict[str, Any]
    rank: tuple[float, ...]
    decisions: Sequence[tuple[str | None, str | None]] = ()


class Results(NamedTuple):
    """The results of the rows of a part; where decisions are among classes, those to show, in their order.

    A class of `classes` counts in their mean, whether it occurs or not. `unit` says what each decision is on.
    """

    rows: Iterable[Result]
    classes: Sequence[str] = ()
    unit: str = "rows"


class RowTask(Protocol):
    """A task that learns from rows: a table of texts and labels becomes examples, outputs become answers.

    `data` is the task's [data] table. `label_spec` is whatever `resolve_labels` returns: what the labels mean, or how
    answers are found; the rest of llmkit only hands it on.
    """

    METRICS: tuple[str, ...]
    """The names of all metrics that the task can report."""

    @property
    def reader(self) -> RowReader:
        """How its rows are read: a module of `llmkit/data/rows`, the one that `recipe/tasks.py` names."""

    # ---- rows to examples ----

    def encode(self, rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: Any, length: int, /) -> Encoded:
        """Tokenize every row into inputs of at most `length` tokens; keep each label in `targets` as it was read.

        Called for each part of the data, in chunks of rows by `predict`. Raises UserError that names the rows which
        cannot be read.
        """

    def resolve_labels(
        self,
        data: Any,
        columns: Mapping[str, str],
        train: Encoded | None,
        validation: Mapping[str, Encoded],
        config: Any,
        fixed: bool,
        /,
    ) -> Any:
        """Turn the targets of every part into labels, and return what these mean, the label spec.

        What the model's outputs mean is written into `config`. Labels that are tokens `encode` has made already.
        `fixed`: the model is finished, and its `config` says what labels mean. Raises UserError that names the rows
        whose label cannot be used, and where nothing can be learned.
        """

    def examples(self, encoded: Encoded, label_spec: Any, evaluation: bool, /) -> Examples:
        """Make the dataset of one part; for `evaluation` sorted by length, with the references that metrics need."""

    def label_counts(self, part: Encoded, label_spec: Any, /) -> dict[str, Any]:
        """Count how often each label occurs, or give the range of values: floats `min`, `mean` and `max`."""

    def record(self, label_spec: Any, /) -> dict[str, Any]:
        """Return what `run.json` must keep for `label_spec_from_config`, under keys that no other task uses."""

    @property
    def references(self) -> Callable[[Encoded], Iterator[str]] | None:
        """The texts that answers are compared with, by which the units of their metrics are chosen.

        The label spec of a task with it has a field `units` (`llmkit/language.py`). None: labels are no text.
        """

    @property
    def collator(self) -> Callable[[Any, Any, int], Collator] | None:
        """(tokenizer, config, multiple) -> examples to a batch of tensors padded to a multiple.

        None where an example is one row of tokens with one label, for which `data.rows.examples.collator` does.
        """

    @property
    def LONGEST_INPUT(self) -> int | None:
        """Tokens of an input where the recipe names no `max_length`; None: `tasks.inputs.LONGEST_INPUT`."""

    @property
    def prepare_model(self) -> Callable[[Any, Any], None] | None:
        """(model, label_spec): called once before training, to start a head or to set how the model generates.

        May raise UserError for a model that does not fit.
        """

    # ---- loss and metrics ----

    @property
    def losses(self) -> Callable[..., torch.Tensor] | None:
        """(outputs, batch, label_spec, training=, label_smoothing=) -> the loss of each label in nats, [B] or [B, ...].

        Never divided: Trainer sums them and divides by the number of labels once; 0 where a label is -100. None where
        labels are tokens, whose losses `speed.fused_loss` computes.
        """

    @property
    def preprocess_logits_for_metrics(self) -> Callable[[Any, Any, Batch, Any], torch.Tensor] | None:
        """(model, outputs, batch, label_spec) -> what the metrics need of the outputs, [B, K].

        Evaluation keeps this in place of the logits. K may differ by batch; Trainer pads it with -100. `outputs` is
        None where `losses` is. None where the metrics need the losses alone.
        """

    def metric_names(self, label_spec: Any, /) -> tuple[str, ...]:
        """Name the metrics of METRICS that fit these labels: what is reported where the recipe names none."""

    def metrics(self, kept: np.ndarray, part: Examples, /) -> dict[str, float]:
        """Compute the metrics from what was kept of every example, [N, K], in the order of `part`.

        Where `preprocess_logits_for_metrics` is None, from each example's summed loss and its count of labels, [N, 2].
        """

    def predictions_and_references(self, kept: np.ndarray, part: Examples, /) -> tuple[Any, Any]:
        """Return both sides as a metric of the package `evaluate` takes them; UserError where none fits."""

    @property
    def results(self) -> Callable[[np.ndarray, Examples, Mapping[str, str]], Results] | None:
        """(kept, part, columns) -> what `llmkit evaluate` shows of every row, beside its loss; None: the loss alone."""

    @property
    def trivial_answer(self) -> Callable[[Encoded, Any], dict[str, Any]] | None:
        """(training rows, label_spec) -> what `trivial` must know of them, for `run.json`: the most frequent class."""

    @property
    def trivial(self) -> Callable[[Mapping[str, Any], np.ndarray, Examples], Trivial] | None:
        """(what `trivial_answer` returned, kept, part) -> the answer that reads no text, beside the model's.

        None for both: the model is compared by its loss alone, with that of the labels' frequencies.
        """

    # ---- prediction ----

    @property
    def label_spec_from_config(self) -> Callable[[Any, Mapping[str, Any], Any, Any], Any] | None:
        """(config, record, data, tokenizer) -> the label spec of a finished model; None: no `predict`."""

    @property
    def forward_for_predict(self) -> Callable[[Any, Batch, Any], torch.Tensor] | None:
        """(model, batch, label_spec) -> what `postprocess` needs of the outputs; the first column is the example."""

    @property
    def postprocess(self) -> Callable[[np.ndarray, Examples, Any], Iterator[tuple[int, dict[str, Any]]]] | None:
        """(kept, part, label_spec) -> (row, what `llmkit predict` says of it), one for each row."""


class TextTask(Protocol):
    """A task that learns from running text: documents become blocks, and blocks become what is predicted.

    `data` is the task's [data] table.
    """

    def document_separator(self, tokenizer: Any, /) -> list[int]:
        """Return the tokens that are set between two documents; UserError for a tokenizer that has none."""

    def block_spec(self, data: Any, block_size: int, /) -> BlockSpec:
        """Say how the tokens are cut into blocks, such as how many each has beside the special ones."""

    def collator(
        self, data: Any, tokenizer: Any, config: Any, seed: int, /
    ) -> Callable[[list[Window]], dict[str, Any]]:
        """Make windows of tokens into a batch: `input_ids`, `labels` (-100: none) and what else the model reads.

        What is drawn at random follows from (seed, epoch, block) alone. Raises UserError for a tokenizer that does not
        fit.
        """

    def metrics(self, stats: np.ndarray, stream: TokenStream, /) -> dict[str, float]:
        """Compute `loss` and metrics from each block's summed loss, count of labels, and what was kept, [N, 2 + K]."""

    @property
    def LABEL_OFFSET(self) -> int | None:
        """How far behind its window's token t the token is that label t is of; None: labels are of no one token."""

    @property
    def trivial(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        """(stats of the model, losses of a unigram model [N, 2]) -> the stats of the trivial answer, [N, 2 + K].

        None where these are the losses of the unigram model.
        """

    @property
    def evaluation_windows(self) -> Callable[[TokenStream, Any, BlockSpec, int | None, Any], Dataset[Window]] | None:
        """(stream, data, block_spec, limit, tokenizer) -> what `llmkit evaluate` goes through, without a tail left out.

        None: the blocks of validation in training.
        """

    @property
    def losses(self) -> Callable[..., torch.Tensor] | None:
        """(outputs, batch, training=, label_smoothing=) -> the loss of each label in nats, [B, T], not divided.

        None where labels are tokens, whose losses `speed.fused_loss` computes.
        """

    @property
    def preprocess_logits_for_metrics(self) -> Callable[[Any, Any, Batch], torch.Tensor] | None:
        """(model, outputs, batch) -> what the metrics need of the outputs, [B, K]; None: the losses alone."""

    @property
    def prepare_model(self) -> Callable[[Any, Any], None] | None:
        """(model, data): called once before training or evaluation; may raise UserError for a model."""

    @property
    def create_model(self) -> Callable[[Any, Any, int], tuple[Any, list[str]]] | None:
        """(table, config, seed) -> the model and notes, where it is made of several; None: `models.weights`."""

    @property
    def load_model(self) -> Callable[[str], Any] | None:
        """(name) -> the finished model again, where it is made of several; None: `models.loading`."""
