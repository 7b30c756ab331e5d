"""Files in which every cell holds a mark of its own, and what a model is taught of them.

A mark names its row and its column: `zq03textx` stands in column `text` of row 3. Tokenizers are of characters, so that
what the model reads can be decoded to the marks again.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import string
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmkit import recipe
from llmkit.training.assemble import assemble

MARK = re.compile(r"zq(\d\d)([a-z]+)x")
ROWS = 12  # good ones in a file
VALUE = 1000  # of a regression's row 3 the value is 1003

BERT = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
BERT |= {"intermediate_size": 8, "max_position_embeddings": 400}
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 400}
T5 = {"model_type": "t5", "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
T5 |= {"num_decoder_layers": 1}


def mark(row: int, column: str) -> str:
    return f"zq{row:02}{column}x"


def marks(value: Any) -> set[tuple[int, str]]:
    """The marks in a value, however it is nested; a value of a regression is that of its row."""
    text = re.sub(rf"\b{VALUE // 100}(\d\d)\.5\b", r"zq\1scorex", str(value))
    return {(int(row), column) for row, column in MARK.findall(text)}


# ---- tokenizers and models -----------------------------------------------------------------------------------------


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of characters for a model of this kind."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special |= {"eos_token": "</s>", "mask_token": "[MASK]"}
    names = [*special.values(), *string.printable]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    numbers = [(name, number) for number, name in enumerate(names[: len(special)])]
    templates = {
        "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "t5": ("$A </s>", "$A </s> $B </s>"),
    }
    if kind in templates:
        single, pair = templates[kind]
        backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbers)
    else:
        special = {"pad_token": "[PAD]", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def config_of(task: str) -> dict[str, Any]:
    return {"causal-lm": GPT2, "chat": GPT2, "seq2seq": T5}.get(task, BERT)


def load(task: str, path: Path, keys: Mapping[str, Any]) -> recipe.Recipe:
    """A recipe for a task on data at `path`, in a folder beside which its tokenizer is saved once."""
    kind = config_of(task)["model_type"]
    folder = path.parent / f"tokenizer-{kind}"
    if not folder.exists():
        tokenizer(kind).save_pretrained(folder)
    config = {**config_of(task), "vocab_size": len(tokenizer(kind))}
    tables = {
        "model.config": config,
        "tokenizer": {"name": str(folder)},
        "data": {"path": str(path), **keys},
        "trainer": {"max_steps": 1},
    }
    lines = [f'task = "{task}"']
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    file = path.parent / "recipe.toml"
    file.write_text("\n".join(lines))
    return recipe.load(str(file))


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


# ---- shapes of rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Rows of a task as some data sets have them.

    `row` makes the row of a number, or several rows where each is one word. `odd` makes rows that cannot be learned;
    `unused` are the columns that are not read, `only_scored` those that evaluation alone reads.
    """

    task: str
    row: Callable[[int], Any]
    odd: Sequence[Callable[[int], dict[str, Any]]] = ()
    keys: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ("note",)
    only_scored: tuple[str, ...] = ()


def _classified(n: int) -> dict[str, Any]:
    return {"text": f"{mark(n, 'text')} it is", "label": mark(n, "label"), "note": mark(n, "note")}


def _spans(n: int) -> dict[str, Any]:
    text = f"{mark(n, 'text')} saw {mark(n, 'seen')}"
    return {"text": text, "label": [[len(text) - 9, len(text), mark(n, "label")]], "note": mark(n, "note")}


def _doccano(n: int) -> dict[str, Any]:
    row = _spans(n)
    ((start, end, label),) = row.pop("label")
    return row | {"entities": [{"start_offset": start, "end_offset": end, "label": label}]}


def _words(n: int) -> dict[str, Any]:
    return {
        "tokens": [mark(n, "tokena"), mark(n, "tokenb")],
        "ner_tags": [f"B-{mark(n, 'tag')}", "O"],
        "pos": [mark(n, "pos"), "X"],
    }


def _word_a_row(n: int) -> list[dict[str, Any]]:
    words = _words(n)
    return [
        {"sentence_id": mark(n, "sentence"), "word": word, "tag": tag, "note": mark(n, "note")}
        for word, tag in zip(words["tokens"], words["ner_tags"], strict=True)
    ]


def _question(n: int) -> dict[str, Any]:
    context = f"{mark(n, 'context')} is {mark(n, 'answer')} now"
    answers = {"text": [mark(n, "answer")], "answer_start": [context.index(mark(n, "answer"))]}
    return {
        "id": mark(n, "id"),
        "question": f"what is {mark(n, 'question')} ?",
        "context": context,
        "answers": answers,
    }


def _flat_question(n: int) -> dict[str, Any]:
    row = _question(n)
    return {**{key: row[key] for key in ("id", "question", "context")}, "answer": row["answers"]["text"][0]}


def _many_answers(n: int) -> dict[str, Any]:
    row = _question(n)
    row["context"] += f" or {mark(n, 'other')}"
    texts = [mark(n, "answer"), mark(n, "other")]
    return row | {"answers": {"text": texts, "answer_start": [row["context"].index(text) for text in texts]}}


def _choices(n: int) -> dict[str, Any]:
    return {
        "context": mark(n, "context"),
        "question": mark(n, "question"),
        "choices": [mark(n, "wrong"), mark(n, "right")],
        "answer": "B",
        "note": mark(n, "note"),
    }


def _choice_columns(n: int) -> dict[str, Any]:
    row = _choices(n)
    wrong, right = row.pop("choices")
    return row | {"ending0": wrong, "ending1": right, "answer": 1}


def _pair(n: int) -> dict[str, Any]:
    return {
        "document": f"{mark(n, 'document')} and more",
        "summary": f"{mark(n, 'summary')} and",
        "note": mark(n, "note"),
    }


def _targets(n: int) -> dict[str, Any]:
    return {"document": mark(n, "document"), "first": mark(n, "first"), "second": mark(n, "second")}


def _messages(n: int) -> dict[str, Any]:
    turns = ("system", "user", "assistant")
    return {"messages": [{"role": role, "content": mark(n, role)} for role in turns], "note": mark(n, "note")}


def _sharegpt(n: int) -> dict[str, Any]:
    turns = (("human", "user"), ("gpt", "assistant"))
    return {"conversations": [{"from": who, "value": mark(n, role)} for who, role in turns], "note": mark(n, "note")}


def _instruction(n: int) -> dict[str, Any]:
    names = ("instruction", "input", "output", "note")
    return {name: mark(n, name) for name in names}


def _without(row: Callable[[int], dict[str, Any]], **values: Any) -> Callable[[int], dict[str, Any]]:
    """The same row with other values: an odd one."""
    return lambda n: {**row(n), **values}


def _pair_of_texts(n: int) -> dict[str, Any]:
    return {"premise": mark(n, "premise"), "hypothesis": mark(n, "hypothesis"), "label": mark(n, "label")}


def _several_labels(n: int) -> dict[str, Any]:
    return {"text": mark(n, "text"), "labels": [mark(n, "labela"), mark(n, "labelb")], "note": mark(n, "note")}


def _value(n: int) -> dict[str, Any]:
    return {"text": mark(n, "text"), "score": VALUE + n + 0.5, "note": mark(n, "note")}


def _nested(n: int) -> dict[str, Any]:
    return {
        "data": {"text": mark(n, "text"), "other": mark(n, "other")},
        "label": mark(n, "label"),
        "note": mark(n, "note"),
    }


def _translation(n: int) -> dict[str, Any]:
    return {"translation": {language: mark(n, language) for language in ("de", "en", "fr")}, "note": mark(n, "note")}


SHAPES = {
    "single": Shape("text-classification", _classified, [_without(_classified, label=None)]),
    "pair": Shape("text-classification", _pair_of_texts, [_without(_pair_of_texts, label=None)], unused=()),
    "multi": Shape("text-classification", _several_labels),
    "value": Shape(
        "text-classification",
        _value,
        [_without(_value, score=None)],
        {"label_column": "score", "problem_type": "regression"},
    ),
    "nested": Shape(
        "text-classification",
        _nested,
        [_without(_nested, label=None)],
        {"text_column": "data.text"},
        ("note", "data.other"),
    ),
    "spans": Shape("token-classification", _spans, [_without(_spans, label=[[0, 4]])]),
    "doccano": Shape(
        "token-classification",
        _doccano,
        [_without(_doccano, entities=[{"start_offset": 0, "end_offset": 99, "label": "far"}])],
    ),
    "words": Shape("token-classification", _words, [_without(_words, ner_tags=["O"])], unused=("pos",)),
    "word a row": Shape("token-classification", _word_a_row),
    "questions": Shape(
        "question-answering",
        _question,
        [_without(_question, answers={"text": ["nowhere"], "answer_start": [3]})],
        unused=("id",),
    ),
    "flat questions": Shape(
        "question-answering", _flat_question, [_without(_flat_question, answer="nowhere")], unused=("id",)
    ),
    "many answers": Shape("question-answering", _many_answers, unused=("id",)),
    "choices": Shape("multiple-choice", _choices, [_without(_choices, answer=None)]),
    "choice columns": Shape("multiple-choice", _choice_columns, [_without(_choice_columns, answer=None)]),
    "summaries": Shape("seq2seq", _pair, [_without(_pair, summary=None)]),
    "several targets": Shape(
        "seq2seq",
        _targets,
        [_without(_targets, first=None, second=None)],
        {"target_column": ["first", "second"]},
        (),
        ("second",),
    ),
    "translations": Shape(
        "seq2seq",
        _translation,
        keys={"source_lang": "en", "target_lang": "de"},
        unused=("note", "translation.fr"),
    ),
    "messages": Shape("chat", _messages, [lambda n: {"messages": _messages(n)["messages"][:2]}]),
    "sharegpt": Shape("chat", _sharegpt, [lambda n: {"conversations": _sharegpt(n)["conversations"][:1]}]),
    "instructions": Shape("chat", _instruction, [_without(_instruction, output="")]),
}


def good_rows(shape: Shape, number: int = ROWS, begin: int = 0) -> list[dict[str, Any]]:
    made = [shape.row(n) for n in range(begin, begin + number)]
    return [row for each in made for row in (each if isinstance(each, list) else [each])]


def odd_rows(shape: Shape, begin: int = ROWS) -> list[dict[str, Any]]:
    return [odd(begin + n) for n, odd in enumerate(shape.odd)]


# ---- files ---------------------------------------------------------------------------------------------------------


def as_csv(rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> str:
    """A table; lists and tables are JSON in its cells."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name) for name in names)
        writer.writerow([json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in cells])
    return text.getvalue()


def as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in rows[0]}


TEXTS: dict[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    "a.csv": as_csv,
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "semicolons.csv": lambda rows: as_csv(rows, ";"),
    "a.jsonl": as_lines,
    "a.ndjson": as_lines,
    "records.json": lambda rows: json.dumps(rows, indent=1),
    "one-line.json": json.dumps,
    "columns.json": lambda rows: json.dumps(_columns(rows), indent=1),
    "data.json": lambda rows: json.dumps({"version": mark(99, "version"), "data": rows}, indent=1),
    "split.json": lambda rows: json.dumps(
        {"names": list(rows[0]), "columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    ),
    "index.json": lambda rows: json.dumps({str(n): row for n, row in enumerate(rows)}),
    "by-column.json": lambda rows: json.dumps(
        {name: {str(n): cell for n, cell in enumerate(cells)} for name, cells in _columns(rows).items()}
    ),
    "lines.json": as_lines,
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "a.csv.gz": gzip.compress,
    "a.jsonl.bz2": bz2.compress,
    "a.jsonl.xz": lzma.compress,
    "a.tsv.zst": lambda content: _compressed(content, "zstd"),
    "a.csv.zip": lambda content: _zipped(content, "a.csv"),
}
TABLES = ("a.parquet", "a.arrow", "a.feather")


def _compressed(content: bytes, how: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, how) as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def _zipped(content: bytes, name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as the name of the file says."""
    if file.name in TABLES:
        table = pyarrow.Table.from_pylist(list(rows))
        if file.suffix == ".parquet":
            pyarrow.parquet.write_table(table, file)
        elif file.suffix == ".feather":
            pyarrow.feather.write_feather(table, file)
        else:
            with pyarrow.OSFile(str(file), "wb") as stream, pyarrow.ipc.new_stream(stream, table.schema) as writer:
                writer.write_table(table)
    elif file.name in PACKED:
        inner = file.name.rpartition(".")[0]
        file.write_bytes(PACKED[file.name](TEXTS[inner](rows).encode()))
    else:
        file.write_text(TEXTS[file.name](rows))
    return file


# ---- what is taught ------------------------------------------------------------------------------------------------


@dataclass
class Taught:
    """What a part of the data is to a model: the texts that it reads, and what it is to answer, by example."""

    inputs: list[str]
    targets: list[str]


def taught(task: str, assembly: Any, part: Any) -> Taught:
    inputs, targets = [], []
    names = getattr(assembly.config, "id2label", {})
    for number in sorted(range(len(part)), key=lambda i: part[i]["index"]):
        example = part[number]
        ids = np.asarray(example["input_ids"]).tolist()
        inputs.append(assembly.tokenizer.decode(ids))
        targets.append(_answer(task, assembly, example, ids, names))
    return Taught(inputs, targets)


def _answer(task: str, assembly: Any, example: Mapping[str, Any], ids: list[int], names: Mapping[int, str]) -> str:
    labels = example.get("labels")
    if labels is None:
        return ""
    labels = np.asarray(labels)
    if task == "text-classification":
        if labels.ndim:
            return " ".join(names[n] for n in np.flatnonzero(labels).tolist())
        return str(float(labels)) if labels.dtype.kind == "f" else names[int(labels)]
    if task == "token-classification":
        return " ".join(names[n] for n in labels.ravel().tolist() if n in names)
    if task == "question-answering":
        begin, end = labels.ravel().tolist()[:2]
        return assembly.tokenizer.decode(ids[begin : end + 1])
    if task == "multiple-choice":
        sizes = np.asarray(example["choices"]).tolist()
        begin = sum(sizes[: int(labels)])
        return assembly.tokenizer.decode(ids[begin : begin + sizes[int(labels)]])
    return assembly.tokenizer.decode([n for n in labels.ravel().tolist() if n >= 0])


def said(assembly: Any) -> str:
    return "\n".join([*assembly.lines, *assembly.notes, *assembly.warnings])


def assembled(task: str, path: Path, keys: Mapping[str, Any], config: Any = None) -> Any:
    """Assemble the data as training does, or with `config`, that of a finished model, as evaluation does."""
    return assemble(load(task, path, {"max_skipped_fraction": 0.9, **keys}), 42, config)
