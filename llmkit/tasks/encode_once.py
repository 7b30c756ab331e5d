"""Tokenize many rows once: every later start, and every other process, reads their tokens from the cache."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llmkit.data.rows import store
from llmkit.data.rows.examples import Encoded
from llmkit.data.rows.ragged import Column, Ragged
from llmkit.data.rows.screening import part
from llmkit.data.rows.table import Rows
from llmkit.data.rows.targets import Targets, distinct
from llmkit.errors import quantity
from llmkit.models.tokenizer import fingerprint
from llmkit.tasks.task import RowTask

COLUMNS = ("row", "lengths", "cut", "keys")
NUMBERS = ("empty", "unlearned")
FACTS = ("skipped", "mended", "notes", "warnings")
# Inputs that only the model reads are kept in fewer bytes: of a vocabulary below 65,536, two a token.
NARROW = ("input_ids", "token_type_ids")


def encode_once(
    task: RowTask, rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: Any, length: int
) -> Encoded:
    """Tokenize rows as the task's `encode` does, or map the tokens that an earlier start has kept.

    Few rows are tokenized each time, and all are where the code of the tokenizer is not transformers'. The fingerprint
    of `rows` must stand for their content. Raises what `encode` raises.
    """
    if rows.looked_at is None or rows.looked_at < store.LEAST or not _is_known(tokenizer):
        return task.encode(rows, columns, tokenizer, data, length)
    of_none = replace(rows, read=lambda: iter(()))
    done = task.encode(of_none, columns, tokenizer, data, length)  # tells the tokenizer what it must know
    settings = (sorted(columns.items()), data.model_dump_json(), length)
    folder = store.folder_of(
        "encoded", getattr(task, "__name__", task), rows.fingerprint, rows.source, settings, *_rules(tokenizer)
    )
    what = f"the tokens of {rows.source}"
    entry = store.load(folder, what)
    if entry is None:
        made = task.encode(rows, columns, tokenizer, data, length)
        try:
            store.save(folder, f"{what} ({quantity(len(made.keys), 'row')})", _arrays(made), _facts(made, tokenizer))
        except ValueError:  # a target of another type than Python's own, such as a date
            return made
        if (entry := store.load(folder, what)) is None:
            return made
    else:
        rows.verify()
    return _restored(done, entry, rows, tokenizer)


def _is_known(tokenizer: Any) -> bool:
    return tokenizer.is_fast and type(tokenizer).__module__.startswith("transformers.")


def _rules(tokenizer: Any) -> tuple[object, ...]:
    """Return what decides how a tokenizer reads texts and conversations; of a template that knows the day, the day."""
    template = str(tokenizer.chat_template)
    day = time.strftime("%Y-%m-%d") if "strftime_now" in template else None
    languages = (getattr(tokenizer, "src_lang", None), getattr(tokenizer, "tgt_lang", None))
    return fingerprint(tokenizer), repr(tokenizer), tokenizer.model_input_names, template, day, languages


def _arrays(made: Encoded) -> dict[str, np.ndarray]:
    arrays = {name: getattr(made, name).values for name in COLUMNS}
    arrays |= {name: np.array(getattr(made, name), np.int64) for name in NUMBERS}
    for name, sequences in made.inputs.items():
        arrays[f"bounds.{name}"] = sequences.bounds
        arrays[f"input.{name}"] = _narrow(sequences.values) if name in NARROW else sequences.values
    if made.keep is not None:
        arrays["keep"] = np.frombuffer(made.keep, np.uint8)
    return arrays | distinct(made.targets).arrays()


def _narrow(values: np.ndarray) -> np.ndarray:
    if not len(values) or values.min() < 0:
        return values
    return values.astype(np.min_scalar_type(int(values.max())), copy=False)


def _facts(made: Encoded, tokenizer: Any) -> dict[str, Any]:
    backend = tokenizer.backend_tokenizer
    facts = {name: getattr(made, name) for name in FACTS}
    return {**facts, "inputs": list(made.inputs), "truncation": backend.truncation, "padding": backend.padding}


def _restored(done: Encoded, entry: store.Entry, rows: Rows, tokenizer: Any) -> Encoded:
    """Fill `done`, the encoding of no rows, with what was kept; leave the tokenizer as tokenizing them left it."""
    arrays, facts = entry.arrays, entry.facts
    done.source = part(rows, arrays["keep"]) if "keep" in arrays else rows
    for name in COLUMNS:
        setattr(done, name, Column.of(arrays[name]))
    for name in NUMBERS:
        setattr(done, name, arrays[name].tolist())
    for name in FACTS:
        setattr(done, name, facts[name])
    done.inputs = {name: Ragged.of(arrays[f"input.{name}"], arrays[f"bounds.{name}"]) for name in facts["inputs"]}
    done.targets = Targets.of(arrays)
    backend = tokenizer.backend_tokenizer
    if facts["truncation"] is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(**facts["truncation"])
    if facts["padding"] is None:
        backend.no_padding()
    else:
        backend.enable_padding(**facts["padding"])
    return done
