"""Read a recipe's data and calculate its size before training: rows, parameters, tokens a step, steps, warm-up."""

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmkit import tasks
from llmkit.data import files
from llmkit.data.display import columns_of, cut, printable, terminal_width, wrapped
from llmkit.data.rows import head
from llmkit.data.rows.reader import reader_of
from llmkit.data.rows.samples import tagged
from llmkit.data.rows.splits import tables
from llmkit.data.rows.table import Rows
from llmkit.data.text import sources
from llmkit.data.text.documents import Documents
from llmkit.errors import UserError, say
from llmkit.models import architectures
from llmkit.models.config import choose_block_size, load_config
from llmkit.models.weights import num_parameters
from llmkit.recipe.data_tables import RowData, TextData
from llmkit.recipe.schema import PRETRAINING, Recipe
from llmkit.recipe.tasks import TASKS
from llmkit.training.assemble import assemble
from llmkit.training.assemble_text import check_use
from llmkit.training.assembly import Assembly, load_tokenizer

EXAMPLES = 3
LINES = 8  # of an example
DOCUMENTS, STREAMED = 1000, 100  # that are read of each source
CHARACTERS = 10_000_000  # of documents: a source is read no further


def explain(recipe: Recipe, processes: int | None, max_time: str | None = None) -> None:
    """Print the data and the arithmetic of `recipe` to stderr, without allocating the model; raise UserError as the run
    would.

    `processes` and `max_time` are the command line's.
    """
    from llmkit.launch import default_processes

    rows = recipe.task not in PRETRAINING
    config, notes = load_config(recipe.model, finetuning=rows)
    trains_tokenizer = recipe.tokenizer.type is not None
    if trains_tokenizer and "vocab_size" not in recipe.model.config:
        config.vocab_size = recipe.tokenizer.vocab_size
    seed = recipe.trainer.get("seed", 42)
    length = choose_block_size(recipe.data.block_size, config) if isinstance(recipe.data, TextData) else 1
    if rows:
        number, exact, notes = _rows(recipe, seed)
        notes = [note for note in notes if note not in recipe.notes]
    else:
        number, exact = _texts(recipe, seed, config, length), False
    settings = recipe.trainer
    world = processes if processes is not None else default_processes()
    batch = settings.get("per_device_train_batch_size", 8)
    accumulated = settings.get("gradient_accumulation_steps", 1)
    unit = "examples" if rows else "blocks"
    total = batch * accumulated * world * length
    examples_or_tokens = "examples" if rows else "tokens"
    count = num_parameters(recipe.model, config, tasks.model_class(recipe.task))
    lines = [
        f"parameters     {count:,}"
        + (f" (at most: the vocabulary may stay below {config.vocab_size:,})" if trains_tokenizer else "")
        + (TASKS[recipe.task].uncounted if recipe.task in TASKS else ", without the heads"),
        f"{examples_or_tokens + ' a step':14} {batch} {unit} x {accumulated} accumulated x {world} processes"
        + (f" = {total:,}" if rows else f" x {length} = {total:,}"),
    ]
    steps = settings.get("max_steps", -1)
    epochs = settings.get("num_train_epochs", 3)
    an_epoch = None if number is None else max(1, math.ceil(math.ceil(number / (batch * world)) / accumulated))
    about = "" if exact else "about "
    if max_time is not None:
        lines.append(f"steps          as many as there is time for in {max_time}")
    elif steps > 0:
        seen = "" if an_epoch is None else f", {about}{_short(steps / an_epoch)} epochs of the data"
        lines.append(f"steps          {steps:,}, {steps * total:,} {examples_or_tokens} in all{seen}")
    elif an_epoch is not None:
        each = f"{epochs:g} epoch{'s' * (epochs != 1)} of {an_epoch:,}"
        lines.append(f"steps          {about}{math.ceil(epochs * an_epoch):,}: {each}")
    else:
        lines.append(f"steps          as many as {epochs:g} epochs of the data have")
    warmup = settings.get("warmup_steps", 0)
    share = f"{warmup:.1%} of the steps" if 0 < warmup < 1 else f"{warmup:,} steps"
    peak = settings.get("learning_rate", 5e-5)
    lines.append(f"learning rate  up to {peak:g} over {share}, then {settings.get('lr_scheduler_type', 'linear')}")
    lines += [f"note           {note}" for note in (*recipe.notes, *notes)]
    say("\n".join(lines))


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


# ---- rows ------------------------------------------------------------------------------------------------------------


def _rows(recipe: Recipe, seed: int) -> tuple[int | None, bool, list[str]]:
    """Assemble the rows as a run does, of a data set on the Hub the first; show them.

    Return how many examples there are, None where that is not known, whether that is exact, and notes.
    """
    parts = list(recipe.tasks.values()) if recipe.task == "multi-task" else [recipe]
    local = all(part.data is not None and files.is_local(part.data) for part in parts)
    opened: dict[tuple[str, str | None, str], Rows] = {}

    def open_head(data: RowData, split: str) -> Rows:
        """Open the first rows of a split, once."""
        key = (data.path, data.name, split)
        if key not in opened:
            opened[key] = head.open_head(data, split)
        return opened[key]

    try:
        assembly = assemble(recipe, seed, from_hub=open_head)
    except UserError as fault:
        if local:
            raise
        for part in parts:
            assert isinstance(part.data, RowData)
            tables(part.data, seed, reader_of(part.task), from_hub=open_head)
        # The columns are right, and the first rows of a sorted file may lack a label.
        return None, False, [*recipe.notes, f"of the first rows alone a run would say: {fault.message}"]
    for line in assembly.lines:
        say(f"{'' if line.startswith('  ') else 'data':14} {line}")
    for name, counts in _label_counts(assembly.record):
        for number, line in enumerate(wrapped(f"{name}: {counts}", terminal_width() - 15, "  ")):
            say(f"{'' if number else 'labels':14} {line}")
    for warning in assembly.warnings:
        say(f"warning        {warning}")
    _examples(recipe, assembly)
    assert assembly.train is not None
    return (len(assembly.train) if local else None), local, assembly.notes


def _label_counts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the labels of each part of the data with their counts, the frequent first."""
    tables = {f"{name} ": each["data"] for name, each in record.get("tasks", {}).items()} or {"": record["data"]}
    found = []
    for before, table in tables.items():
        for name, part in table.items():
            counts = part.get("balance", {}) if isinstance(part, Mapping) else {}
            if counts and not any(isinstance(value, float) for value in counts.values()):
                ordered = sorted(counts.items(), key=lambda item: -item[1])
                shown = ordered if len(ordered) <= 12 else [*ordered[:9], *ordered[-2:]]
                texts = [f"{printable(str(label))} {number:,}" for label, number in shown]
                if len(ordered) > 12:
                    texts.insert(9, f"... {len(ordered) - 11:,} more ...")
                found.append((f"{before}{name}", ", ".join(texts)))
    return found


def _examples(recipe: Recipe, assembly: Assembly) -> None:
    """Show the first examples as the model reads them, with what is learned."""
    show = SHOWN.get(recipe.task)
    if show is None:
        return
    train: Any = assembly.train
    width = terminal_width()
    for number in range(min(EXAMPLES, len(train))):
        say(
            f"example {number + 1}      as the model reads it, what is learned in [[brackets]]"
            if not number
            else f"example {number + 1}"
        )
        for line in show(train, number, assembly, width):
            say(line)


def _folded(text: str, width: int) -> list[str]:
    """Break a text into LINES lines of `width` at most, at its own line ends too; the middle of more is left out."""
    lines = list[str]()
    for line in text.split("\n"):
        line = printable(line)
        while columns_of(line) > width:
            size = next(i for i in range(width, 0, -1) if columns_of(line[:i]) <= width)
            size = line.rfind(" ", 0, size) + 1 or size
            lines.append(line[:size])
            line = line[size:]
        lines.append(line)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 3], "...", *lines[-2:]]
    return lines


def _class(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, names = train[number], assembly.config.id2label
    label = example["labels"]
    if label.ndim:
        learned = ", ".join(str(names[i]) for i in label.nonzero()[0].tolist()) or "no class"
    else:
        learned = f"{label:g}" if label.dtype.kind == "f" else str(names[int(label)])
    return [*_folded(assembly.tokenizer.decode(example["input_ids"]), width), *_folded(f"[[{learned}]]", width)]


def _tags(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, names = train[number], assembly.config.id2label
    tokens = [assembly.tokenizer.decode([token]).strip() or "_" for token in example["input_ids"]]
    return tagged(tokens, [names[int(tag)] if tag >= 0 else "" for tag in example["labels"]], width)


def _answer(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, decode = train[number], assembly.tokenizer.decode
    ids, (first, last) = example["input_ids"], (int(place) for place in example["labels"])
    answer = decode(ids[first : last + 1]).strip()
    begin = max(0, first - width // 3)
    before = decode(ids[:first]) if not begin else f"{decode(ids[: width // 6])} ... {decode(ids[begin:first])}"
    after = decode(ids[last + 1 : last + 1 + width // 3])
    return _folded(f"{before} [[{answer}]] {after}", width)


def _choices(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, lines, begin = train[number], list[str](), 0
    for choice, size in enumerate(int(size) for size in example["choices"] if size > 0):
        text = assembly.tokenizer.decode(example["input_ids"][begin : begin + size])
        shown = printable(f"[[{text}]]" if choice == int(example["labels"]) else text)
        while columns_of(shown) > width:  # choices differ at their end
            shown = f"...{shown[3 + max(1, columns_of(shown) - width) :]}"
        lines.append(shown)
        begin += size
    return lines


def _pair(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, decode = train[number], assembly.tokenizer.decode
    return [*_folded(decode(example["input_ids"]), width), *_folded(f"[[{decode(example['labels'])}]]", width)]


def _conversation(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    from llmkit.tasks import chat

    return _folded(chat.shown(train, int(train.order[number]), assembly.tokenizer), width)


SHOWN: dict[str, Callable[[Any, int, Assembly, int], list[str]]] = {
    "text-classification": _class,
    "token-classification": _tags,
    "question-answering": _answer,
    "multiple-choice": _choices,
    "seq2seq": _pair,
    "chat": _conversation,
}


# ---- running text ----------------------------------------------------------------------------------------------------


def _texts(recipe: Recipe, seed: int, config: Any, block_size: int) -> int | None:
    """Show the first documents of each source; estimate how many blocks there are, None where nothing tells."""
    data = recipe.data
    assert isinstance(data, TextData)
    check_use(data, False)
    architectures.check_architecture(config, recipe.task)
    limit = STREAMED if data.streaming else DOCUMENTS
    opened = _streamed(data)
    held: dict[tuple[str, str], tuple[list[str], bool]] = {}
    with head.bounded():
        try:
            corpora = sources.corpora(opened, seed)
            for name, corpus in corpora.items():
                for part, documents in (("train", corpus.train), ("validation", corpus.validation)):
                    if documents is not None:
                        held[name, part] = _first(documents, limit)
        except head.TooMuchError as problem:
            raise head.too_large(opened, opened.split) from problem
    named = opened.named_sources()
    tokenizer = None
    if recipe.tokenizer.type is None:
        tokenizer, _, _ = load_tokenizer(recipe, Documents(lambda: iter(()), "", ""), config)
    tokens: float | None = 0.0
    for (name, part), (texts, partial) in held.items():
        before = f"{name}, {part}" if name else part
        characters = sum(map(len, texts))
        count = f"{len(texts):,} document{'s' * (len(texts) != 1)}"
        say(f"data           {before}: {'the first ' * partial}{count}, {characters:,} characters")
        if part == "train":
            rate = _rate(tokenizer, texts)
            size = _characters(named[name][0], texts, partial)
            tokens = None if tokens is None or rate is None or size is None else tokens + rate * size
            if rate is not None:
                say(f"{'':14}   {1 / rate:.2f} characters a token" if rate else "")
            for text in texts[:EXAMPLES]:
                say(f"{'':14}   {cut(text, terminal_width() - 17)}")
    for corpus in corpora.values():
        for note in corpus.notes:
            say(f"note           {note}")
    if tokens is not None:
        say(
            f"data           about {int(float(f'{tokens:.3g}')):,} tokens, {max(1, int(tokens // block_size)):,} blocks"
        )
    return None if tokens is None else max(1, int(tokens // block_size))


def _streamed(data: TextData) -> TextData:
    """Let data on the Hub be streamed, so that no more is downloaded than is read; offline its cache is read."""
    if all(files.is_local(source) for source, _ in data.named_sources().values()):
        return data
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        return data
    listed = {
        name: source.model_copy(update={"split": head.whole_split(source.split)})
        for name, source in data.sources.items()
    }
    return data.model_copy(update={"streaming": True, "split": head.whole_split(data.split), "sources": listed})


def _first(documents: Documents, limit: int) -> tuple[list[str], bool]:
    """Return the first documents, and whether there are more."""
    texts, characters = list[str](), 0
    for text in documents:
        if len(texts) == limit or characters > CHARACTERS:
            return texts, True
        texts.append(text)
        characters += len(text)
    return texts, False


def _rate(tokenizer: Any, texts: list[str]) -> float | None:
    """Return the tokens of a character, by the first texts."""
    few = [text[:10_000] for text in itertools.islice(texts, 100)]
    characters = sum(map(len, few))
    if tokenizer is None or not characters:
        return None
    return sum(map(len, tokenizer(few, add_special_tokens=False, verbose=False)["input_ids"])) / characters


def _characters(data: TextData, texts: list[str], partial: bool) -> float | None:
    """Return how many characters there are to train on; estimated by the size of text files; None for other files."""
    if not partial:
        return sum(map(len, texts))
    if not files.is_local(data):
        return None
    paths = [Path(file) for file in files.of_split(data, data.split)]
    if any(file.suffix.lower() not in files.TEXT_SUFFIXES for file in paths):
        return None
    size = sum(file.stat().st_size for file in paths)
    per_byte = sum(map(len, texts)) / max(1, sum(len(text.encode(errors="replace")) for text in texts))
    return size * per_byte * (1 - (data.validation_fraction or 0))
