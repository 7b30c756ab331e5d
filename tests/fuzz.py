"""Mutate recipes, overrides, files, run directories and model folders: each is used, or refused in words.

    python tests/fuzz.py                            the seeds that found a fault, then 60 seconds of all kinds
    python tests/fuzz.py recipes --seeds 0-50000    these seeds of one kind

A case is made from its kind and its seed alone. A fault is any error but UserError and RunError, and a case that takes
longer than `PATIENCE`. The exit code is 1 if there was one. It is no test for pytest: the more cases the better.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

HOME = Path(tempfile.mkdtemp(prefix="fuzz-"))
os.environ |= {"HF_HOME": str(HOME / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import typer.testing  # noqa: E402

from llmkit import cli  # noqa: E402 - behind what the libraries read when they are imported
from llmkit.errors import UserError  # noqa: E402

# The seeds that found a fault, which is mended: they are tried first.
FOUND: dict[str, tuple[int, ...]] = {
    "recipes": (157, 1217),  # a word of another library that is near itself: asked for ever
    "overrides": (703, 1068, 32853),  # a pattern below thousands of folders
    "files": (7955, 24133),  # UTF-16 without its mark, a column of Parquet whose name is not UTF-8
    "records": (77, 130, 212, 498),  # a recipe that is not UTF-8, paths that are none, keys that are none
    "folders": (82, 325, 345, 358, 359),  # architectures, an adapter's base and a length of another kind
    "weights": (105, 109, 110, 134, 198, 1120),  # generation settings of another kind
}
PATIENCE = 30  # seconds that a case may take
MEMORY = 8 * 2**30  # bytes of address space: a size that a mutation made up must not end the machine
ODD_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "x" * 300,
        "a/" * 2000,
        "../../x",
        "/",
        "~nobody",
        "-1",
        "null",
        "NaN",
        "1e999",
        "[]",
        "{}",
        "{{ x",
    ),
    *(
        "\u202e\x1b[31m",
        "\ufeff",
        "\U0001f600",
        "é",
        "http://u:p@h/x",
        "true",
        "a=b",
        "0x10",
        "2026-01-01",
        "%s %d {0}",
    ),
    *(
        "rot13",
        "utf-16",
        "cuda:0",
        "steps",
        "epoch",
        "best",
        "gpt2",
        "llama",
        "text",
        "label",
        "train[:5%]",
        "*",
        "[a-",
    ),
    *(
        "{% for i in range(99999) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[9].x.y }}",
        "{{ raise_exception('no') }}",
    ),
)
ODD_NUMBERS = (
    *(0, 1, -1, 2, 7, 255, 10**6, 2**31, 2**32, 2**63 - 1, -(2**63), 10**30, 0.0, -0.5, 0.5, 1.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), -float("inf")),
)
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xe9",
    b"[[",
    b"]]",
    b"{",
    b"}",
    b'"',
    b'"""',
    b"'",
    b"\n",
    b"\r",
    b",",
    b"\t",
    b"=",
    b"#",
)
ODD_BYTES += (b"[" * 3000, b"9" * 5000, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"null", b"NaN", b"-", b"1e9999", b"\x1f\x8b")


# ---- mutations -----------------------------------------------------------------------------------------------------


def odd_value(dice: random.Random, depth: int = 0) -> Any:
    """Return a value that hardly any key expects."""
    kind = dice.randrange(10)
    if kind < 3:
        return dice.choice(ODD_TEXTS)
    if kind < 6:
        return dice.choice(ODD_NUMBERS)
    if kind < 8 or depth > 2:
        return dice.choice([None, True, False, [], {}])
    if kind == 8:
        return [odd_value(dice, depth + 1) for _ in range(dice.randrange(4))]
    return {dice.choice(ODD_TEXTS)[:50]: odd_value(dice, depth + 1) for _ in range(dice.randrange(4))}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside of tables and arrays."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 20)):
            yield from places(value[key], (*path, key))


def mutated(content: Any, dice: random.Random) -> Any:
    """Change some values of tables and arrays: into odd ones, away, under another name, or each into another's."""
    content = copy.deepcopy(content)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        paths = list(places(content))
        if not paths:
            return odd_value(dice)
        *above, last = dice.choice(paths)
        table = content
        for key in above:
            table = table[key]
        kind = dice.randrange(8)
        if kind < 5:
            table[last] = odd_value(dice)
        elif kind == 5:
            del table[last]
        elif kind == 6 and isinstance(table, dict):
            table[dice.choice((last[:-1], last + "s", dice.choice(ODD_TEXTS)))] = table.pop(last)
        else:
            *away, other = dice.choice(paths)
            with contextlib.suppress(LookupError, TypeError):
                found = content
                for key in [*away, other]:
                    found = found[key]
                table[last] = copy.deepcopy(found)
    return content


def broken(data: bytes, dice: random.Random) -> bytes:
    """Change some bytes: cut, flipped, doubled, moved, or replaced by what means something."""
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(data) + 1)
        to = min(len(data), at + dice.choice((1, 1, 2, 10, 100)))
        kind = dice.randrange(6)
        if kind == 0:
            data = data[:at] + data[to:]
        elif kind == 1:
            data = data[:at] + dice.choice(ODD_BYTES) + data[dice.choice((at, to)) :]
        elif kind == 2:
            data = data[:to] + data[at:]
        elif kind == 3:
            data = data[:at] + bytes(dice.randrange(256) for _ in range(to - at)) + data[to:]
        elif kind == 4:
            data = data[:at] if dice.random() < 0.3 else data
        else:
            lines = data.splitlines(keepends=True)
            dice.shuffle(lines)
            data = b"".join(lines) if dice.random() < 0.3 else data
    return data


def as_toml(values: Any) -> str:
    """Write tables as TOML as far as it can say them."""
    from llmkit.recipe.toml import dotted, leaves, toml_value

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items() if each is not None}
        return [plain(each) for each in value if each is not None] if isinstance(value, list) else value

    return "".join(f"{dotted(path)} = {toml_value(each)}\n" for path, each in leaves(plain(values)).items())


# ---- the cases -----------------------------------------------------------------------------------------------------


def command(*words: str) -> None:
    """Run a command in this process; raise what it does not answer."""
    done = typer.testing.CliRunner().invoke(cli.app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception


@cache
def recipe_texts() -> list[str]:
    from llmkit.recipe import bundled

    return [path.read_text() for path in bundled().values()]


def recipes(dice: random.Random, place: Path) -> None:
    """A recipe of which values or bytes are changed is loaded; what loads is written as TOML, and loads again."""
    from llmkit.recipe import load
    from llmkit.recipe.toml import parse

    text = dice.choice(recipe_texts())
    if dice.random() < 0.6:
        data = as_toml(mutated(parse(text), dice)).encode(errors="replace")
    else:
        data = broken(text.encode(), dice)
    (place / "corpus.txt").write_text("one\n\ntwo\n")
    (place / "mine.toml").write_bytes(data)
    loaded = load("mine.toml", verb=dice.choice((None, "pretrain", "finetune")))
    parse(loaded.to_toml(comments=True, as_typed=True))


@cache
def keys() -> list[str]:
    from llmkit.recipe import schema, upstream
    from llmkit.recipe.keys import known_keys

    found = {key for task in schema.TASKS for key in known_keys(task)}
    return sorted(found | {f"generation.{key}" for key in upstream.fields("GenerationConfig")})


def overrides(dice: random.Random, place: Path) -> None:
    """Settings of the command line with odd keys and odd values go over a recipe, or to generation."""
    from llmkit.recipe import bundled, generation_options, load
    from llmkit.recipe.toml import toml_value

    def word() -> str:
        key, value = dice.choice(keys()), odd_value(dice)
        if dice.random() < 0.2:
            key = broken(key.encode(), dice).decode(errors="replace")[:300]
        text = value if isinstance(value, str) else toml_value(value)
        text = broken(text.encode(), dice).decode(errors="replace") if dice.random() < 0.3 else text
        return f"{key}{dice.choice('=' * 9 + ' ')}{text}"

    words = [word() for _ in range(dice.choice((1, 1, 2, 3, 6)))]
    with contextlib.suppress(UserError):
        generation_options([each.removeprefix("generation.") for each in words])
    task = dice.choice((None, None, "sst2", "chat", "summarization"))
    load(dice.choice(list(bundled())) if task is None else None, words, dice.choice((None, *ODD_TEXTS[:8])), task)


ROWS = [{"text": f"row {n} of them", "label": "ab"[n % 2], "id": n, "note": None} for n in range(12)]
TALKS = [
    {"messages": [{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant")], "tools": []} for n in range(6)
]
SQUAD = [
    {"id": str(n), "context": f"a b {n} c", "question": "b?", "answers": {"text": ["b"], "answer_start": [2]}}
    for n in range(6)
]
CHOICES = [{"context": "a", "question": "b?", "options": ["x", "y"], "answer": "x"} for _ in range(6)]
TAGS = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]} for _ in range(6)]
TABLES = (ROWS, TALKS, SQUAD, CHOICES, TAGS)


def files(dice: random.Random, place: Path) -> None:
    """A file of rows or of text, changed in its values or in its bytes, is described as `llmkit data` does."""
    import gzip

    from llmkit.data.describe import describe

    rows = dice.choice(TABLES)
    suffix = dice.choice((".csv", ".tsv", ".jsonl", ".json", ".txt", ".conll", ".jsonl.gz", ".parquet"))
    changed = mutated(rows, dice) if dice.random() < 0.6 else rows
    changed = changed if isinstance(changed, list) else [changed]
    if suffix in (".csv", ".tsv"):
        between = "," if suffix == ".csv" else "\t"
        lines = [
            between.join(map(str, rows[0])),
            *(between.join(map(str, row.values())) for row in changed if isinstance(row, dict)),
        ]
        data = "\n".join(lines).encode(errors="replace")
    elif suffix in (".json", ".txt"):
        data = json.dumps(changed).encode()
    elif suffix == ".conll":
        data = b"\n\n".join(b"a\tO\nb\tB-X" for _ in range(6))
    elif suffix == ".parquet":
        data = table()
    else:
        data = "\n".join(map(json.dumps, changed)).encode()
    if dice.random() < 0.7 or suffix in (".parquet", ".conll"):
        data = broken(data, dice)
    if suffix == ".jsonl.gz":
        data = gzip.compress(data, mtime=0)
        data = broken(data, dice) if dice.random() < 0.5 else data
    file = place / f"rows{suffix}"
    file.write_bytes(data)
    words = [
        f"data.{key}={dice.choice(ODD_TEXTS)}"
        for key in ("encoding", "delimiter", "text_column")
        if dice.random() < 0.05
    ]
    task = dice.choice((None, None, "text-classification", "chat", "question-answering", "token-classification"))
    describe(str(file), task, words)


@cache
def table() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


# ---- run directories -----------------------------------------------------------------------------------------------


@cache
def run_directory() -> Path:
    """Make a finished run with two checkpoints, as a training leaves it, but for its weights."""
    from llmkit.recipe import load
    from llmkit.recipe.toml import parse
    from llmkit.runs import checkpoint
    from llmkit.runs import directory as runs

    (HOME / "corpus.txt").write_text("\n\n".join(f"once upon a time {n}" for n in range(20)))
    recipe = load("tiny/gpt2", [f"data.path={HOME / 'corpus.txt'}", "trainer.max_steps=4"])
    run = HOME / "run"
    run.mkdir()
    record = {
        "status": "finished",
        "created": True,
        "id": "a" * 32,
        "task": "causal-lm",
        "name": "gpt2",
        "started": runs.now(),
        "finished": runs.now(),
        "order_started": 1,
        "order_finished": 2,
        "seconds": 2.5,
        "packages": {"torch": "2"},
        "command": ["llmkit"],
        "machine": {"cores": 2},
        "processes": 1,
        "device": "cpu",
        "precision": "fp32",
        "parameters": 9,
        "trainable_parameters": 9,
        "speed": {"threads": 1},
        "revisions": {},
        "settings": parse(recipe.to_toml()),
        "block_size": 8,
        "data": {"fingerprint": "x", "train": {"documents": 1, "tokens": 9}},
        "schedule": {"steps": 4},
        "steps": 4,
        "metrics": {"train_loss": 1.5, "eval_loss": 2.0, "train_runtime": 2.0},
        "verdicts": [],
        "git_commit": None,
        "best": {"step": 4, "metric": "eval_loss", "value": 2.0},
        "paths": {"data.path": str(HOME / "corpus.txt")},
    }
    (run / "recipe.toml").write_text(recipe.to_toml(comments=True))
    (run / "config.json").write_text("{}")
    (run / "model.safetensors").write_bytes(b"weights")
    record["files"] = checkpoint.files_of(run, only=["config.json", "model.safetensors"])
    lines = [{"step": n, "time": 1.0, "loss": 3.0 - n / 4, "learning_rate": 1e-3, "epoch": n / 4} for n in range(1, 5)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (2, 4):
        draft = checkpoint.begin(run, step)
        (draft / "model.safetensors").write_bytes(b"weights")
        (draft / "trainer_state.json").write_text(json.dumps({"max_steps": 4, "epoch": 1.0, "log_history": lines}))
        copied = {key: record[key] for key in ("task", "name", "started", "paths", "settings")}
        manifest = {"run": record["id"], "step": step, "epoch": 0, "samples": step, "samples_seen": step, "batch": 1}
        manifest |= {"processes": 1, "metrics_bytes": 9, "fingerprints": {"trainer": {}}, "record": copied}
        checkpoint.seal(draft, manifest)
    runs.write_json(run / "run.json", record)
    return run


def use_run(dice: random.Random, place: Path) -> None:
    """Ask of the runs in `place` what a command asks of them."""
    kind = dice.randrange(12)
    if kind < 6:
        return command("check", "runs/a")
    if kind == 6:
        return command("runs", "--format", dice.choice(("table", "csv", "md", "latex", "json")))
    if kind == 7:
        return command("compare", "runs/a", "runs/b")
    if kind == 8:
        return command("report", "runs/a")
    from llmkit import launch
    from llmkit.recipe import load
    from llmkit.runs import finished

    if kind == 9:
        finished.check_model("runs/a")
        finished.one_task_of("runs/a")
        finished.data_of("runs/a", "causal-lm")
        return None
    steps = dice.choice((4, 4, 9, 2))
    words = [f"data.path={HOME / 'corpus.txt'}", f"trainer.max_steps={steps}"]
    found = launch.find_directory(load("tiny/gpt2", words, "runs/a"), resume=True)
    if found is not None:
        from llmkit.training.resumption import find_checkpoint, planned_steps

        if start := find_checkpoint(found, "a" * 32):
            planned_steps(start.path)
    return None


def copied_run(place: Path) -> Path:
    shutil.copytree(run_directory(), place / "runs/b")
    return Path(shutil.copytree(run_directory(), place / "runs/a"))


def records(dice: random.Random, place: Path) -> None:
    """A run whose record, recipe or metrics are changed is checked, listed, compared, reported and gone on with."""
    run = copied_run(place)
    file = run / dice.choice(("run.json", "run.json", "run.json", "recipe.toml", "metrics.jsonl"))
    if file.name == "run.json" and dice.random() < 0.75:
        file.write_text(json.dumps(mutated(json.loads(file.read_text()), dice)))
    else:
        file.write_bytes(broken(file.read_bytes(), dice))
    use_run(dice, place)


def manifests(dice: random.Random, place: Path) -> None:
    """So is one whose manifest is changed, with the checksum that a forger would write, and without a record."""
    from llmkit.runs import checkpoint

    run = copied_run(place)
    folder = run / dice.choice(("checkpoint-2", "checkpoint-4"))
    file = folder / checkpoint.MANIFEST
    if dice.random() < 0.8:
        content = json.loads(file.read_text())
        content.pop("checksum")
        content = mutated(content, dice)
        if isinstance(content, dict):
            content["checksum"] = checkpoint._sum(json.loads(json.dumps(content)))
        file.write_text(json.dumps(content))
    else:
        file.write_bytes(broken(file.read_bytes(), dice))
    if dice.random() < 0.2:
        state = folder / "trainer_state.json"
        state.write_text(json.dumps(mutated(json.loads(state.read_text()), dice)))
    if dice.random() < 0.1:
        folder.rename(
            folder.with_name(dice.choice(("checkpoint-²", "checkpoint-0", "checkpoint-9" * 9, "checkpoint-")))
        )
    if dice.random() < 0.4:
        (run / "run.json").unlink()
    use_run(dice, place)


# ---- model folders -------------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


@cache
def model_folders() -> list[tuple[str, Path]]:
    """Make a tiny model of each kind, with its task."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "once", "row")
    small = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6}
    bert = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert |= {"max_position_embeddings": 64}
    gpt2 = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 64}
    t5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    kinds: list[tuple[str, Any, Any]] = [
        ("causal-lm", transformers.AutoModelForCausalLM, transformers.GPT2Config(**small, **gpt2)),
        ("chat", transformers.AutoModelForCausalLM, transformers.LlamaConfig(**small, **bert)),
        (
            "text-classification",
            transformers.AutoModelForSequenceClassification,
            transformers.BertConfig(**small, **bert),
        ),
        (
            "token-classification",
            transformers.AutoModelForTokenClassification,
            transformers.BertConfig(**small, **bert),
        ),
        ("masked-lm", transformers.AutoModelForMaskedLM, transformers.BertConfig(**small, **bert)),
        ("seq2seq", transformers.AutoModelForSeq2SeqLM, transformers.T5Config(**small, **t5)),
    ]
    found = []
    for task, auto, config in kinds:
        torch.manual_seed(1)
        folder = HOME / "models" / task
        auto.from_config(config).save_pretrained(folder)
        backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        special |= {"mask_token": "[MASK]", "bos_token": "<s>", "eos_token": "</s>"}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)
        if task == "chat":
            tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
        found.append((task, folder))
    from peft import LoraConfig, get_peft_model

    base = transformers.AutoModelForCausalLM.from_pretrained(found[0][1])
    adapter = HOME / "models" / "adapter"
    settings = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    get_peft_model(base, settings).save_pretrained(adapter)
    return [*found, ("causal-lm", adapter)]


def spoiled(dice: random.Random, place: Path, weights: bool) -> tuple[str, str]:
    """Copy a model and change one or two of its files; return its task and the name of its folder."""
    task, whole = dice.choice(model_folders())
    folder = Path(shutil.copytree(whole, place / "model"))
    for _ in range(dice.choice((1, 1, 2))):
        file = dice.choice(sorted(path for path in folder.iterdir()))
        kind = dice.random()
        if file.suffix == ".safetensors" and not weights:
            file = folder / "config.json" if (folder / "config.json").exists() else folder / "adapter_config.json"
        if not file.exists():
            continue
        if file.suffix == ".json" and kind < 0.7:
            try:
                file.write_text(json.dumps(mutated(json.loads(file.read_bytes()), dice)))
            except ValueError:
                file.unlink()
        elif file.suffix == ".jinja" and kind < 0.7:
            file.write_text(dice.choice(ODD_TEXTS) + TEMPLATE)
        elif kind < 0.9:
            file.write_bytes(broken(file.read_bytes(), dice))
        else:
            file.unlink()
    return task, "model"


def folders(dice: random.Random, place: Path) -> None:
    """A model whose files are changed, but for its weights, is looked at as `--dry-run` and fine-tuning look at it."""
    from llmkit import tasks
    from llmkit.data.text.documents import Documents
    from llmkit.models import tokenizer as tokenizers
    from llmkit.models.chat_template import ChatTemplate
    from llmkit.models.config import load_config, positions
    from llmkit.models.weights import num_parameters
    from llmkit.recipe.schema import Model, Tokenizer
    from llmkit.runs import finished

    task, name = spoiled(dice, place, weights=False)
    with contextlib.suppress(UserError):
        finished.check_model(name)
        finished.one_task_of(name)
    model = Model(name=name)
    with contextlib.suppress(UserError):
        config, _ = load_config(model, finetuning=True)
        positions(config)
        num_parameters(model, config, tasks.model_class(task))
    tokenizer = tokenizers.load(Tokenizer(), model, task, Documents.__new__(Documents), 64)
    tokenizer("once row a b")
    if task == "chat" and tokenizer.chat_template:
        with contextlib.suppress(ValueError):  # as those who write with it do
            ChatTemplate(tokenizer).write([{"role": "user", "content": "a"}], asking=True)
    if dice.random() < 0.2:
        (place / "rows.csv").write_text("text,label\n" + "".join(f"row {n},{'ab'[n % 2]}\n" for n in range(20)))
        (place / "corpus.txt").write_text("once a b c\n\n" * 20)
        of_rows = task in ("text-classification", "masked-lm", "token-classification")
        words = ["finetune", "--task", "text-classification", "data.path=rows.csv"]
        words = words if of_rows else ["pretrain", "tiny/gpt2", "data.path=corpus.txt", "data.block_size=8"]
        command(*words, f"model.name={name}", "--dry-run")


def weights(dice: random.Random, place: Path) -> None:
    """A model whose files are changed, weights too, predicts or generates."""
    task, name = spoiled(dice, place, weights=True)
    if task == "chat":
        return command("generate", "--chat", "a b", "--model", name, "max_new_tokens=3")
    if task == "causal-lm":
        return command("generate", "once a", "--model", name, "max_new_tokens=3")
    return command("predict", name, "once [MASK] b" if task == "masked-lm" else "once a b")


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    case.__name__: case for case in (recipes, overrides, files, records, manifests, folders, weights)
}


# ---- running them --------------------------------------------------------------------------------------------------


class TooLong(BaseException):
    """A case takes longer than `PATIENCE`."""


def fault(kind: str, seed: int) -> str:
    """Run a case in a folder of its own; return its traceback if it is not answered, else ""."""
    place = HOME / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    here = Path.cwd()
    os.chdir(place)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            KINDS[kind](random.Random(f"{kind} {seed}"), place)
    except UserError:
        pass
    except (Exception, TooLong) as problem:
        return "".join(traceback.format_exception(problem))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(here)
    return ""


def too_long(*_: Any) -> None:
    raise TooLong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--seeds", metavar="A-B", help="the seeds from A on, before B")
    parser.add_argument("--seconds", type=float, default=60, help="without --seeds: how long")
    parser.add_argument("--keep", action="store_true", help="leave the last case's folder, and say where it is")
    given = parser.parse_args()
    kinds = given.kinds or list(KINDS)
    signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    counts, faults, begun = dict.fromkeys(kinds, 0), 0, time.monotonic()

    def cases() -> Iterator[tuple[str, int]]:
        if given.seeds:
            first, _, end = given.seeds.partition("-")
            yield from ((kind, seed) for kind in kinds for seed in range(int(first), int(end or int(first) + 1)))
            return
        yield from ((kind, seed) for kind in kinds for seed in FOUND.get(kind, ()))
        seed = 0
        while time.monotonic() - begun < given.seconds:
            yield from ((kind, seed + n) for kind in kinds for n in range(1 if kind == "weights" else 10))
            seed += 10

    for kind, seed in cases():
        counts[kind] += 1
        if text := fault(kind, seed):
            faults += 1
            sys.stdout.write(f"\n==== {kind} {seed}\n{text}\n")
            sys.stdout.flush()
    if given.keep:
        sys.stdout.write(f"{HOME / 'case'}\n")
    else:
        shutil.rmtree(HOME, ignore_errors=True)
    said = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    sys.stdout.write(f"{said}: {faults} faults in {time.monotonic() - begun:.0f} s\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
