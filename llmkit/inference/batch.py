"""A file of prompts: batches of like length, rows in their order, and an interruption that costs one batch."""

import copy
import json
import os
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import hub
from llmkit.errors import UserError, say
from llmkit.inference import generate, rows_io
from llmkit.runs import checkpoint

if TYPE_CHECKING:
    from llmkit.models.quantization import Kind

# Tokens that are held at once, of prompts and of what is written: as many rows make a batch as may have so many.
BUDGET = {"cpu": 16_384, "cuda": 65_536}
PARTIAL = ".partial"  # behind the name of an output: what is done of it

Row = dict[str, Any]
Batch = list[tuple[int, Row]]  # rows that were written together, each with its number in the file
# Of a row and where it stands: what is shown of it beside its completion, and its tokens.
Reader = Callable[[str, Row], tuple[Row, list[int]]]


def generate_rows(
    source: Path,
    output: Path | None,
    name: str | None,
    options: dict[str, Any],
    seed: int | None,
    quantize: "Kind | None" = None,
) -> None:
    """Go on from the `prompt` (or `text`) of each row of a file, of a text file from each line.

    JSON lines on stdout, or in the file `output`: the prompt, and its completion alone.
    """
    check_rows(source, output)
    writer = generate.load(name, "causal-lm", options, seed, quantize)
    tokenizer = writer.tokenizer
    from llmkit.data.files import text_of

    def read(place: str, row: Row) -> tuple[Row, list[int]]:
        prompt = text_of(row, "text" if "prompt" not in row and "text" in row else "prompt", place)
        if not prompt:
            raise UserError(f"{place}: the prompt is empty", "take the row out")
        return {"prompt": prompt}, generate.encode(prompt, tokenizer)

    def completion(prompt: list[int], new: list[int]) -> str:
        # Decoded behind its prompt: alone, tokenizers of SentencePiece's kind drop the space that it begins with.
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        return str(tokenizer.decode(prompt + new, skip_special_tokens=True))[len(before) :]

    write_rows(source, output, read, completion, writer)


def check_rows(source: Path, output: Path | None) -> None:
    """UserError for files that cannot be read or written, and for no rows."""
    rows_io.check_files([], source, output)
    if next(rows_io.read_rows([], source), None) is None:
        raise UserError(f"--input: there are no rows in `{source}`", "is it the right file?")


def write_rows(
    source: Path,
    output: Path | None,
    read: Reader,
    decode: Callable[[list[int], list[int]], str],
    writer: generate.Writer,
    **made_with: Any,
) -> None:
    """Write the completion of each row to stdout, or into `output`, which is there whole or not at all.

    Each row is read before the first is written, so that a mistake in the last one costs no work. Beside an output,
    batches are kept as they are done in a file of its name and `.partial`: where the command is interrupted, the same
    command goes on there and writes, byte for byte, what it had written. Of another command (`made_with` is what a
    result depends on beside the writer) that file is refused, and left as it is.
    """
    from llmkit.data.files import content_hash

    config = generate.choose_settings(writer.model, writer.tokenizer, writer.options)
    total = 0
    for place, row in rows_io.read_rows([], source):
        generate.new_tokens(config, writer.model, len(read(place, row)[1]), f"{place}: the prompt")
        total += 1
    if _one_by_one(writer, config):
        say("note: with assisted decoding and prompt lookup rows are written one by one")
    if output is None:
        writer.seed = random.getrandbits(32) if writer.seed is None else writer.seed
        with rows_io.writing(None) as put:
            for row in in_order(completions(rows_io.read_rows([], source), read, decode, writer)):
                put(row)
        return
    with _held(output):
        partial = output.with_name(output.name + PARTIAL)
        first, ahead = _resume(partial, writer, {"input": content_hash([source]), **made_with}, total)
        try:
            with partial.open("a", encoding="utf-8") as stream:
                rows = rows_io.read_rows([], source)
                for batch in completions(rows, read, decode, writer, first, ahead):
                    stream.write(rows_io.as_json(batch) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
        except OSError as problem:
            raise UserError(
                f"--output: `{partial}` cannot be written: {problem.strerror or problem}",
                "make room: what is done is kept there, and the same command goes on with it",
            ) from problem
        except KeyboardInterrupt:
            say(f"what is done is kept in `{partial}`: the same command goes on with it")
            raise
        with rows_io.writing(output) as put:
            for row in in_order(_batches(partial)):
                put(row)
        partial.unlink()
    say(f"{total:,} row{'s' * (total != 1)} -> {output}")


def completions(
    rows: Iterator[tuple[str, Row]],
    read: Reader,
    decode: Callable[[list[int], list[int]], str],
    writer: generate.Writer,
    first: int = 0,
    ahead: Collection[int] = (),
) -> Iterator[Batch]:
    """What is shown of each row, with its completion; `decode` makes it of the prompt's and new tokens.

    At most `predict.CHUNK` rows are held at once, and come in batches of like length. Rows are written together only
    where the same number of new tokens is allowed, so that a row becomes what it would alone. Each batch has a seed of
    its own: what is done already (the rows before `first`, and those `ahead`) is left out and changes nothing.
    """
    import torch

    from llmkit.data.rows.examples import chunks, key_of

    config = generate.choose_settings(writer.model, writer.tokenizer, writer.options)
    for chunk in chunks(enumerate(rows), rows_io.CHUNK):
        if chunk[-1][0] < first:
            continue
        shown, prompts, allowed = {}, {}, {}
        for number, (place, row) in chunk:
            what, prompts[number] = read(place, row)
            shown[number] = {"id": row["id"], **what} if "id" in row else what
            allowed[number] = generate.new_tokens(config, writer.model, len(prompts[number]), f"{place}: the prompt")[1]
        for batch in _batched(prompts, allowed, 1 if _one_by_one(writer, config) else BUDGET[writer.model.device.type]):
            if batch[0] < first or batch[0] in ahead:
                continue
            if config.do_sample:
                torch.manual_seed(key_of(str(writer.seed), str(batch[0])))
            limited = copy.copy(config)
            limited.max_new_tokens, limited.max_length = allowed[batch[0]], None
            new = _write_within_memory(writer, [prompts[number] for number in batch], limited)
            yield [
                (number, {**shown[number], "completion": decode(prompts[number], _without_padding(sequence, config))})
                for number, sequence in zip(batch, new, strict=True)
            ]


def _batched(prompts: Mapping[int, list[int]], allowed: Mapping[int, int], budget: int) -> Iterator[list[int]]:
    """The numbers of rows that are written together: of like length, as many as have `budget` tokens in the end."""
    batch: list[int] = []
    for number in sorted(prompts, key=lambda row: (allowed[row], len(prompts[row]))):
        longest = len(prompts[number]) + allowed[number]
        if batch and (allowed[batch[0]] != allowed[number] or (len(batch) + 1) * longest > budget):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _write_within_memory(writer: generate.Writer, prompts: Sequence[list[int]], config: Any) -> list[list[int]]:
    """The new tokens of each prompt; in halves, and halves of them, where a GPU has no memory for all at once."""
    import torch

    from llmkit.inference import prefill

    try:
        cache = prefill.read(writer.model, prompts, config)
        more = {} if cache is None else {prefill.CACHE: cache}
        return generate.write(writer, prompts, config, **more)[:, max(map(len, prompts)) :].tolist()
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(prompts) // 2
    return [row for part in (prompts[:half], prompts[half:]) for row in _write_within_memory(writer, part, config)]


def _one_by_one(writer: generate.Writer, config: Any) -> bool:
    """Upstream checks guesses for one row at a time."""
    return bool(writer.more) or config.prompt_lookup_num_tokens is not None


def _without_padding(new: list[int], config: Any) -> list[int]:
    """What a row wrote before the others of its batch were done: up to its first end, else up to the padding."""
    stops = generate.ends(config)
    end = next((place + 1 for place, token in enumerate(new) if token in stops), len(new))
    while end and new[end - 1] == config.pad_token_id and config.pad_token_id not in stops:
        end -= 1
    return new[:end]


def in_order(batches: Iterable[Batch]) -> Iterator[Row]:
    """The rows of batches in their order in the file; no more of them wait than a chunk has."""
    waiting: dict[int, Row] = {}
    number = 0
    for batch in batches:
        waiting.update(batch)
        while number in waiting:
            yield waiting.pop(number)
            number += 1


# ---- what is done of a file ----------------------------------------------------------------------------------------


def _resume(partial: Path, writer: generate.Writer, made_with: Mapping[str, Any], total: int) -> tuple[int, set[int]]:
    """Begin the file of what is done, or go on with it: all rows before a number are in it, and a set of those behind.

    Its first line says what the rows are made with, the seed of their samples included, and is compared.
    """
    from llmkit.data.files import digest

    now = {
        "model": writer.name,
        "weights": digest(*_weights_of(writer.name)),
        "settings": writer.options,
        "quantize": writer.quantize,
        "device": writer.model.device.type,
        "llmkit": version("llmkit"),
        "torch": version("torch"),
        "transformers": version("transformers"),
        **made_with,
    }
    head = _head(partial)
    if head is None:
        writer.seed = random.getrandbits(32) if writer.seed is None else writer.seed
        partial.write_text(rows_io.as_json({**now, "seed": writer.seed}) + "\n", encoding="utf-8")
        return 0, set()
    writer.seed = head.get("seed") if writer.seed is None else writer.seed
    now = json.loads(rows_io.as_json({**now, "seed": writer.seed}))
    changed = [key for key in {**head, **now} if head.get(key) != now.get(key)]
    first, ahead = 0, set[int]()
    for batch in _batches(partial):
        ahead.update(number for number, _ in batch)
        while first in ahead:
            ahead.remove(first)
            first += 1
    done = first + len(ahead)
    if changed:
        raise UserError(
            f"`{partial}` holds {done:,} rows of another command",
            "repeat that one, name another --output, or remove the file",
            tuple(f"{key} was {head.get(key)!r} and is {now.get(key)!r}" for key in changed),
        )
    say(f"note: {done:,} of {total:,} rows are in `{partial}`: going on")
    return first, ahead


def _head(partial: Path) -> dict[str, Any] | None:
    """The first line of what is done, None where nothing is; a last line that was cut off is taken away."""
    if not partial.exists():
        return None
    try:
        with partial.open("r+b") as stream:
            head, whole = b"", 0
            for line in stream:
                head = head or line
                whole += len(line) * line.endswith(b"\n")
            stream.truncate(whole)
        return dict(json.loads(head)) if whole else None
    except (OSError, ValueError, TypeError) as problem:
        raise UserError(f"`{partial}` is not what llmkit leaves: {problem}", "move it away") from problem


def _batches(partial: Path) -> Iterator[Batch]:
    with partial.open(encoding="utf-8") as stream:
        next(stream)  # the head
        for line in stream:
            yield json.loads(line)


def _weights_of(name: str) -> Iterator[Any]:
    """What tells a model from another: the commit of a Hub id, else its files; of an adapter, its base's too."""
    from llmkit.models import loading

    yield hub.commit(name)
    directory = Path(name)
    if directory.is_dir():
        kinds = ("*.safetensors", "*config.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt")
        yield checkpoint.files_of(directory, sorted({file.name for kind in kinds for file in directory.glob(kind)}))
    adapter = loading.adapter_settings(name, hub.commit(name))
    if adapter is not None:
        base = adapter["base_model_name_or_path"]
        yield hub.commit(base, adapter.get("revision")), *_weights_of(base)


@contextmanager
def _held(output: Path) -> Iterator[None]:
    """No other command writes `output` meanwhile."""
    from filelock import FileLock, Timeout

    lock = output.with_name(f".{output.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes no file that is open
                    lock.unlink()
    except Timeout as problem:
        raise UserError(f"--output: another command writes `{output}` at this moment", "name another") from problem
