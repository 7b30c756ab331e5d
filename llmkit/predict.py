"""What a finished model says of new rows: labels, answers, or the words that fill a blank."""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llmkit import hub, process
from llmkit.errors import UserError, say
from llmkit.recipe.data_tables import RowData
from llmkit.runs.finished import check_model, data_of, one_task_of, record_of

if TYPE_CHECKING:
    from llmkit.data.rows.table import Rows

CHUNK = 256  # rows read, sorted by length and answered together: what is held in memory
BATCH = 32
FILLED = 5  # words that fill a blank, best first


def predict(name: str, texts: Sequence[str], source: Path | None, output: Path | None) -> None:
    """Answer each of `texts`, or each row of the file `source`, as JSON lines on stdout or into the file `output`.

    A `.csv` gets a table. Raises UserError for a model that does not predict and for rows that it cannot read.
    """
    check_files(texts, source, output)
    rows = read_rows(texts, source)
    first = next(rows, None)
    if first is None:
        raise UserError(f"--input: there are no rows in `{source}`", "nothing to predict: is it the right file?")
    check_model(name)
    task = one_task_of(name)
    if task in ("causal-lm", "chat"):
        chat = " --chat" * (task == "chat")
        raise UserError(f"`{name}` is a causal language model: it writes", f"llmkit generate{chat} --model {name}")
    if task == "denoising":  # its model writes from a text, as that of seq2seq does
        task = "seq2seq"
    if task == "replaced-token-detection":
        run = str(Path(name).parent) if Path(name).name.startswith("checkpoint-") else name
        raise UserError(
            f"`{name}` tells which tokens of a text were replaced: it is made to be fine-tuned",
            f"llmkit finetune RECIPE model.name={run}; its generator fills blanks: llmkit predict {run}/generator",
        )
    layout, answer = filler(name) if task == "masked-lm" else answerer(name, task)
    count = 0
    with writing(output) as write:
        for said in answers(itertools.chain([first], rows), source, layout, answer):
            write(said)
            count += 1
    if output is not None:
        say(f"{count:,} row{'s' * (count != 1)} -> {output}")


def check_files(texts: Sequence[str], source: Path | None, output: Path | None) -> None:
    """There is one source of rows, and a place to write to."""
    if source is None and not texts:
        raise UserError("nothing to predict", "give texts, or a file: --input FILE")
    if source is not None and texts:
        raise UserError("texts and --input exclude one another", "put the texts into the file")
    if source is not None and not source.is_file():
        raise UserError(f"--input: there is no file `{source}`")
    if output is None:
        return
    if output.suffix.lower() not in (".jsonl", ".ndjson", ".csv"):
        raise UserError(f"--output: `{output}` ends in neither .jsonl nor .csv", "the suffix decides the format")
    if output.is_dir():
        raise UserError(f"--output: `{output}` is a folder", "name a file")
    if not output.parent.is_dir():
        raise UserError(f"--output: there is no folder `{output.parent}`", "make it first, or write elsewhere")
    if source is not None and output.resolve() == source.resolve():
        raise UserError("--output is the file that --input reads", "name another")


# ---- rows in, answers out ------------------------------------------------------------------------------------------

# From the rows of a chunk: which of their columns the model reads, by role; and, with that, what it says of each row.
Layout = Callable[["Rows"], dict[str, str]]
Answer = Callable[["Rows", Mapping[str, str]], Sequence[dict[str, Any]]]


def read_rows(texts: Sequence[str], source: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each of `texts`, or each row of the file `source`, with its place for messages; of a text file each line."""
    from llmkit.data import files

    if source is None:
        yield from ((f"text {number}", {"text": text}) for number, text in enumerate(texts, 1))
    elif files.suffix(source) in files.TEXT_SUFFIXES:
        for number, line in files.read_lines(source, "utf-8"):
            if line.strip():
                yield f"`{source}`, line {number}", {"text": line.rstrip("\r\n")}
    else:
        for place, row in files.read_rows(source, "utf-8"):
            yield f"`{source}`, {place}", row


def answers(
    rows: Iterator[tuple[str, dict[str, Any]]], source: Path | None, layout: Layout, answer: Answer
) -> Iterator[dict[str, Any]]:
    """What the model says of each row, in their order, behind the row's `id` (if it has one) and what it was asked.

    At most `CHUNK` rows are held at once.
    """
    from llmkit.data.rows.examples import chunks
    from llmkit.data.rows.table import Rows

    columns: dict[str, str] = {}
    shown: list[str] = []
    for chunk in chunks(rows, CHUNK):
        part = Rows(chunk.__iter__, tuple(chunk[0][1]), {}, "", f"`{source}`" if source else "the texts")
        if not columns:
            columns = layout(part)
            shown = [*(["id"] if "id" in part.columns else []), *columns.values()]
        for (_, row), said in zip(chunk, answer(part, columns), strict=True):
            yield {column: row.get(column) for column in shown} | said


def answerer(name: str, task: str) -> tuple[Layout, Answer]:
    """How a classifier or a model that answers questions reads rows, and what it says of them."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from llmkit import tasks
    from llmkit.models import loading
    from llmkit.tasks.inputs import choose_collator, choose_length, fit_for_batches

    module = tasks.module(task)
    data: RowData = data_of(name, task)
    record = record_of(name)
    model = loading.load_model(name, module.MODEL_CLASS)
    with hub.loading(name, "model"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=hub.commit(name), trust_remote_code=False)
    process.collect_from_here()
    fit_for_batches(tokenizer, model.config)
    trained = record.get("max_length") or record.get("block_size")
    length = choose_length(trained or data.max_length, model.config)
    known = module.reading_of(model.config, record, data, tokenizer)
    collate = choose_collator(module, tokenizer, model.config)

    def answer(rows: "Rows", columns: Mapping[str, str]) -> list[dict[str, Any]]:
        part = module.examples(module.encode(rows, columns, tokenizer, data, length), known, evaluation=True)
        kept = []
        for start in range(0, len(part), BATCH):
            batch = collate([part[i] for i in range(start, min(start + BATCH, len(part)))])
            batch = {key: values.to(model.device) for key, values in batch.items()}
            with torch.inference_mode():
                kept.append(module.outline(model, batch, known).cpu().numpy())
        found = np.concatenate(kept)
        _check_finite(np.isfinite(found).all())
        by_row = dict(module.decode(found, part, known))
        return [by_row[row] for row in range(len(by_row))]

    return lambda rows: _columns(rows, task, record.get("columns", {}), data), answer


def _columns(rows: "Rows", task: str, trained: Mapping[str, str], data: RowData) -> dict[str, str]:
    """The columns that the model reads, by role: those of its training data, under their names or those of the roles.

    Raises UserError where one is missing, and for texts as arguments where the model reads more than one.
    """
    from llmkit import tasks

    module = tasks.module(task)
    inputs = {role: column for role, column in trained.items() if role not in module.TARGETS}
    if not inputs and task == "question-answering":
        inputs = {"question": "question", "context": "context"}
    if inputs and set(inputs.values()) <= set(rows.columns):
        return inputs
    if inputs and set(inputs) <= set(rows.columns):
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
        missing = ", ".join(f"`{column}`" for column in inputs.values() if column not in rows.columns)
        raise UserError(f"{rows.source} has no column {missing}", f"it has {', '.join(rows.columns)}")
    try:
        return dict(module.layout(data, rows, labelled=False))
    except UserError as mistake:
        raise UserError(mistake.message, "call it `text`; of a pair, `text` and `text_pair`") from mistake


def _check_finite(finite: Any) -> None:
    if not finite:
        raise UserError("the model's outputs are not finite numbers", "did its training diverge?")


def filler(name: str) -> tuple[Layout, Answer]:
    """How a masked language model reads rows, and the words that it puts into their blanks."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from llmkit.data.files import text_of
    from llmkit.models import loading
    from llmkit.models.config import positions

    wanted = data_of(name, "masked-lm").text_column or "text"
    model = loading.load_model(name, AutoModelForMaskedLM)
    with hub.loading(name, "model"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=hub.commit(name), trust_remote_code=False)
    process.collect_from_here()
    limit = positions(model.config)
    mask = tokenizer.mask_token

    def layout(rows: "Rows") -> dict[str, str]:
        for column in (wanted, "text"):
            if column in rows.columns:
                return {"text": column}
        raise UserError(f"{rows.source} has no column `{wanted}`", f"it has {', '.join(rows.columns)}")

    def fill(text: str, place: str) -> dict[str, Any]:
        read = tokenizer(text, return_tensors="pt", truncation=limit is not None, max_length=limit).to(model.device)
        blanks = (read["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
        pieces = text.split(mask)
        if len(pieces) == 1:
            raise UserError(f"{place}: no {mask} in it", f"write {mask} for the word to guess")
        if len(blanks) < len(pieces) - 1:
            raise UserError(
                f"{place}: {mask} stands beyond the {limit} tokens that the model reads", "shorten the text"
            )
        with torch.inference_mode():
            scores = model(**read).logits[0, blanks].double().softmax(dim=-1)
        _check_finite(torch.isfinite(scores).all())
        best = scores.topk(min(FILLED, scores.shape[-1]), dim=-1)
        filled = [
            [
                {"token": tokenizer.decode([token]).strip(), "score": round(score, 6)}
                for token, score in zip(tokens, values, strict=True)
            ]
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        words = [guesses[0]["token"] for guesses in filled]
        whole = "".join(itertools.chain.from_iterable(zip(pieces, [*words, ""], strict=True)))
        return {"filled": whole, "tokens": filled[0] if len(filled) == 1 else filled}

    def answer(rows: "Rows", columns: Mapping[str, str]) -> list[dict[str, Any]]:
        return [fill(text_of(row, columns["text"], place), place) for place, row in rows]

    return layout, answer


@contextmanager
def writing(output: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write answers as they come: to stdout, or to a file that appears under its name when it is whole."""
    if output is None:
        yield lambda said: print(as_json(said), flush=True)  # noqa: T201
        return
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            table = output.suffix.lower() == ".csv"
            yield _csv_writer(stream) if table else lambda said: _line(stream, said)
        draft.replace(output)
    except OSError as problem:
        raise UserError(f"--output: `{output}` cannot be written: {problem.strerror or problem}") from problem
    finally:
        draft.unlink(missing_ok=True)


def _line(stream: IO[str], said: Mapping[str, Any]) -> None:
    stream.write(as_json(said) + "\n")


def as_json(said: Any) -> str:
    """`said` as a line of JSON."""
    return json.dumps(said, ensure_ascii=False, default=str)  # a Parquet file's id may be a date


def _csv_writer(stream: IO[str]) -> Callable[[Mapping[str, Any]], None]:
    table = csv.writer(stream, lineterminator="\n")
    header: list[str] = []

    def write(said: Mapping[str, Any]) -> None:
        if not header:
            header.extend(said)
            table.writerow(header)
        table.writerow([as_json(value) if isinstance(value, dict | list) else value for value in said.values()])

    return write
