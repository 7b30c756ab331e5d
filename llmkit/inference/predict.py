"""Predict with a finished model: labels, answers, texts, or the words that fill a blank."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import hub, process
from llmkit.data.output import ERROR, Output, own_name, row_writer
from llmkit.errors import UserError, quantity, say
from llmkit.inference.fill_mask import blank_filler
from llmkit.inference.precision import load
from llmkit.inference.rows_io import (
    PredictRows,
    ResolveColumns,
    check_files,
    check_finite,
    predictions,
    read_rows,
)
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.tasks import TASKS
from llmkit.runs import directory as runs
from llmkit.runs.finished import check_model, data_of, one_task_of, record_of

if TYPE_CHECKING:
    from llmkit.data.files import ReadOptions
    from llmkit.data.rows.table import Rows
    from llmkit.inference.precision import Precision
    from llmkit.models.quantization import Precision as Quantized

BATCH = 32


def predict(
    name: str,
    texts: Sequence[str],
    source: Path | None,
    output: Output | None,
    quantize: "Quantized | None" = None,
    precision: "Precision | None" = None,
) -> None:
    """Predict for each of `texts`, or each row of the file `source`; write JSON lines to stdout or to `output`.

    Stdout holds the predictions alone; in `output` they stand behind all columns of the input, under `predicted_KEY`
    where a column is called like KEY. An `output` with the suffix .csv gets a table. `name` is a run, a checkpoint, a
    folder or a Hub id; `quantize` and `precision` are those of `precision.load`. Raises UserError for a model that does
    not predict and for rows that it cannot read.
    """
    source = check_files(texts, source, output)
    check_model(name)
    task = one_task_of(name)
    options = _options(name, task, source) if source is not None else None
    said: set[str] = set()  # the file is read twice where its columns are written

    def read() -> Iterator[tuple[str, Any]]:
        return read_rows(texts, source, options, strict=False, said=said)

    rows = read()
    first = next(rows, None)
    if first is None:
        raise UserError(f"--input: there are no rows in `{source}`", "nothing to predict: is it the right file?")
    resolve_columns, predict_rows = predictor(name, task, quantize, precision)
    columns: dict[str, str] = {}
    if task == "token-classification" and source is not None:
        read, columns = _sentences(name, source, read, resolve_columns)
    kept = _columns_of(read()) if output is not None else ()
    count = errors = 0
    with row_writer(output, own_name(ERROR, kept)) as write_row:
        for row, prediction in predictions(read(), source, resolve_columns, predict_rows, columns):
            beside = {column: row.get(column) for column in kept}
            write_row(beside | {own_name(key, kept): value for key, value in prediction.items()})
            count += 1
            errors += ERROR in prediction
    if errors:
        say(f"warning: {errors:,} of {quantity(count, 'row')} could not be read; their `error` says why")
    if output is not None:
        say(f"{quantity(count, 'row')} -> {output}")


def _columns_of(rows: Iterator[tuple[str, Any]]) -> tuple[str, ...]:
    """List the columns of all rows; in JSON lines any row may have others than those before it."""
    from llmkit.data.files import BadRow

    return tuple(dict.fromkeys(column for _, row in rows if not isinstance(row, BadRow) for column in row))


def _sentences(
    name: str, source: Path, read: Callable[[], Iterator[tuple[str, Any]]], resolve_columns: ResolveColumns
) -> tuple[Callable[[], Iterator[tuple[str, Any]]], dict[str, str]]:
    """Read a file for a tagger, with sentences built of words that have a row each; return that and their columns."""
    from llmkit.data.rows import tagging
    from llmkit.data.rows.table import HEAD, Rows

    table = Rows(read, _columns_of(itertools.islice(read(), HEAD)), {}, "", f"`{source}`")
    columns = resolve_columns(table)
    sentence = record_of(name).get("columns", {}).get("sentence")
    with_sentence = {**columns, **({"sentence": sentence} if sentence else {})}
    return tagging.reshape(table, with_sentence, data_of(name, "token-classification")).read, columns


def _options(name: str, task: str, source: Path) -> "ReadOptions":
    """Return how the model's training data was read; a file is read in UTF-8 all the same, wherever it is UTF-8."""
    from llmkit.data import files

    options = files.ReadOptions.of(data_of(name, task)) if task in TASKS else files.ReadOptions()
    if files.suffix(source) in files.SUFFIXES:
        options = replace(options, format=None)
    if options.encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        return options
    try:
        for _ in files.read_lines(source, "utf-8"):
            pass
    except UserError:
        say(f"`{source}` is read in the encoding of the training data, {options.encoding}")
        return options
    return replace(options, encoding="utf-8")


# ---- rows in, answers out ------------------------------------------------------------------------------------------


def predictor(
    name: str, task: str, quantize: "Quantized | None" = None, precision: "Precision | None" = None
) -> tuple[ResolveColumns, PredictRows]:
    """Load a model that predicts; return how it resolves columns, and how it predicts for rows.

    `quantize` and `precision` are those of `precision.load`. Raises UserError for a model of another kind, with the
    command for it.
    """
    if task in ("causal-lm", "chat"):
        chat = " --chat" * (task == "chat")
        hint = f"llmkit generate{chat} --model {name}"
        if other := runs.newest_finished(*(known for known in TASKS if known not in ("causal-lm", "chat"))):
            hint += f"; to predict, use the run `{other}`: llmkit predict {other}"
        raise UserError(f"`{name}` is a causal language model: it generates text", hint)
    if task == "denoising":  # its model generates from a text, as that of seq2seq does
        task = "seq2seq"
    if task == "replaced-token-detection":
        run = str(Path(name).parent) if Path(name).name.startswith("checkpoint-") else name
        raise UserError(
            f"`{name}` only detects which tokens of a text were replaced: it is meant to be fine-tuned",
            f"llmkit finetune RECIPE model.name={run}; its generator fills blanks: llmkit predict {run}/generator",
        )
    kind = blank_filler if task == "masked-lm" else row_predictor
    return kind(name, task, quantize, precision)


def row_predictor(
    name: str, task: str, quantize: "Quantized | None" = None, precision: "Precision | None" = None
) -> tuple[ResolveColumns, PredictRows]:
    """Load a model of a row task; return how it resolves columns, and how it predicts for rows."""
    import numpy as np
    import torch

    from llmkit import tasks
    from llmkit.data.files import BadRow
    from llmkit.data.rows.reader import Unusable
    from llmkit.data.rows.screening import view
    from llmkit.models import loading
    from llmkit.tasks.inputs import choose_collator, choose_length, fit_for_batches

    module = tasks.row_task(task)
    spec_from_config, forward, postprocess = (
        module.label_spec_from_config,
        module.forward_for_predict,
        module.postprocess,
    )
    if spec_from_config is None or forward is None or postprocess is None:
        raise UserError(
            f"`{name}` is a model for {task}, which has nothing to predict", "measure it with `llmkit evaluate`"
        )
    data: RowData = data_of(name, task)
    record = record_of(name)
    model = load(name, task, quantize, precision)
    tokenizer = loading.load_tokenizer(name, hub.commit(name))
    process.collect_from_here()
    fit_for_batches(tokenizer, model.config)
    trained = record.get("max_length") or record.get("block_size")
    length = choose_length(trained or data.max_length, model.config)
    label_spec = spec_from_config(model.config, record, data, tokenizer)
    collate = choose_collator(module, tokenizer, model.config)

    def predict_rows(rows: "Rows", columns: Mapping[str, str]) -> list[dict[str, Any]]:
        viewed = list(view(rows, columns).read())
        answers: list[dict[str, Any]] = [{} for _ in viewed]
        for (_, row), answer in zip(viewed, answers, strict=True):
            try:
                if isinstance(row, BadRow):
                    raise Unusable(row.kind, row.message)
                module.reader.examine(row, columns, data, False)
            except Unusable as fault:
                answer["error"] = str(fault)
        usable = [number for number, answer in enumerate(answers) if not answer]
        if usable:
            readable = replace(rows, read=lambda: (viewed[number] for number in usable))
            for number, answer in zip(usable, predicted(readable, columns), strict=True):
                answers[number] = answer
        return answers

    def predicted(rows: "Rows", columns: Mapping[str, str]) -> list[dict[str, Any]]:
        examples = module.examples(module.encode(rows, columns, tokenizer, data, length), label_spec, True)
        batches = []
        for start in range(0, len(examples), BATCH):
            batch = collate([examples[i] for i in range(start, min(start + BATCH, len(examples)))])
            batch = {key: values.to(model.device) for key, values in batch.items()}
            with torch.inference_mode():
                batches.append(forward(model, batch, label_spec).cpu().numpy())
        outputs = np.concatenate(batches)
        check_finite(np.isfinite(outputs).all())
        by_row = dict(postprocess(outputs, examples, label_spec))
        return [by_row[row] for row in range(len(by_row))]

    return lambda rows: _columns(rows, task, record.get("columns", {}), data), predict_rows


def _columns(rows: "Rows", task: str, trained: Mapping[str, str], data: RowData) -> dict[str, str]:
    """Find the columns that the model reads, by role: named as in its training data, or by the roles themselves.

    `trained` are the training data's columns, by role. Raises UserError where a column is missing, and for texts given
    as arguments where the model reads more than one.
    """
    from llmkit import tasks
    from llmkit.data.rows.table import has_column

    module = tasks.row_task(task)
    inputs = {role: column for role, column in trained.items() if role not in module.reader.LABEL_ROLES}
    if not inputs and task == "question-answering":
        inputs = {"question": "question", "context": "context"}
    if inputs and all(has_column(rows, column) for column in inputs.values()):
        return inputs
    if inputs and all(has_column(rows, role) for role in inputs):
        return {role: role for role in inputs}
    if task == "token-classification" and "text" in rows.columns:  # it is cut into words
        return {"text": "text"}
    if len(inputs) == 1 and rows.columns == ("text",):
        return dict.fromkeys(inputs, "text")
    if len(inputs) > 1 and rows.columns == ("text",):
        raise UserError(
            f"this model reads {len(inputs)} texts at once: {', '.join(inputs.values())}",
            "put them into a .csv or .jsonl file, in columns of these names: --input FILE",
        )
    if inputs:
        missing = ", ".join(f"`{column}`" for column in inputs.values() if not has_column(rows, column))
        raise UserError(f"{rows.source} has no column {missing}", f"it has {', '.join(rows.columns)}")
    try:
        return dict(module.reader.resolve_columns(data, rows, False))
    except UserError as mistake:
        raise UserError(mistake.message, "call it `text`; for a pair, `text` and `text_pair`") from mistake
