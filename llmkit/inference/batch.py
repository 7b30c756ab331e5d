"""Generate from a file of prompts: batches of like length, rows in order; an interrupt costs one batch at most."""

import copy
import json
import os
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import disk
from llmkit.errors import UserError, say
from llmkit.inference import generate, rows_io

if TYPE_CHECKING:
    from llmkit.models.quantization import Precision

# Tokens in a batch, prompts and new tokens together: a batch has as many rows as fit.
BUDGET = {"cpu": 16_384, "cuda": 65_536}
PARTIAL = ".partial"  # suffix of the file that holds an output's finished batches

Row = dict[str, Any]
Batch = list[tuple[int, Row]]  # rows that were generated together, each with its number in the file
# From a row's location (for messages) and the row: the columns to show beside its completion, and its tokens.
Reader = Callable[[str, Row], tuple[Row, list[int]]]


def generate_rows(
    source: Path,
    output: rows_io.Output | None,
    name: str | None,
    options: dict[str, Any],
    seed: int | None,
    quantize: "Precision | None" = None,
) -> None:
    """Complete the `prompt` (or `text`) of each row of the file `source`; of a text file, each line.

    Writes JSON lines to stdout or to the file `output`: the prompt, and its completion alone. `name`, `options`,
    `seed` and `quantize` are those of `generate.load`. Raises UserError for files that cannot be read or written and
    for an empty prompt.
    """
    source = check_rows(source, output)
    session = generate.load(name, "causal-lm", options, seed, quantize)
    tokenizer = session.tokenizer
    from llmkit.data.rows.examples import located
    from llmkit.data.rows.reader import text_in

    def read(location: str, row: Row) -> tuple[Row, list[int]]:
        with located(location):
            prompt = text_in(row, "text" if "prompt" not in row and "text" in row else "prompt")
        if not prompt:
            raise UserError(f"{location}: the prompt is empty", "remove the row")
        return {"prompt": prompt}, generate.encode(prompt, tokenizer)

    def completion(prompt: list[int], new: list[int]) -> str:
        # Decode it together with its prompt: alone, SentencePiece tokenizers drop the space that it begins with.
        prompt_text = tokenizer.decode(prompt, skip_special_tokens=True)
        return str(tokenizer.decode(prompt + new, skip_special_tokens=True))[len(prompt_text) :]

    write_rows(source, output, read, completion, session)


def check_rows(source: Path, output: rows_io.Output | None) -> Path:
    """Return the file to read; raise UserError for files that cannot be read or written, and for one without rows."""
    local = rows_io.check_files([], source, output)
    assert local is not None
    if next(rows_io.read_rows([], local), None) is None:
        raise UserError(f"--input: there are no rows in `{source}`", "is it the right file?")
    return local


def write_rows(
    source: Path,
    output: rows_io.Output | None,
    read: Reader,
    decode: Callable[[list[int], list[int]], str],
    session: generate.GenerationSession,
    **made_with: Any,
) -> None:
    """Write the completion of each row to stdout, or to `output`, which appears complete or not at all.

    All rows are read before the first is generated, so that a mistake in the last one costs no work. Finished batches
    are kept beside `output` in a file with the suffix `.partial`. After an interrupt the same command resumes there,
    and its output is byte for byte what an uninterrupted run writes. A partial file of another command is refused and
    left as it is.

    Args:
        source: The file of rows.
        output: A .jsonl or .csv file, or a stream; None is stdout.
        read: Gives the columns to show of a row, and its tokens.
        decode: Makes the completion from a row's prompt tokens and its new tokens.
        session: What generates; without a seed it is given a random one.
        made_with: What else the result depends on; the partial file's header records it.

    Raises:
        UserError: A row does not fit the model, or a file cannot be written.
    """
    from llmkit.data.files import Snapshot, content_hash

    config = generate.choose_settings(session.model, session.tokenizer, session.options)
    snapshot, total = Snapshot.of([source]), 0
    for location, row in rows_io.read_rows([], source):
        generate.new_tokens(config, session.model, len(read(location, row)[1]), f"{location}: the prompt")
        total += 1
    if _one_by_one(session, config):
        say("note: with assisted decoding or prompt lookup, rows are generated one by one")
    if output is None or output.is_stream:
        session.seed = random.getrandbits(32) if session.seed is None else session.seed
        with rows_io.row_writer(output) as write_row:
            for row in in_order(completions(rows_io.read_rows([], source), read, decode, session)):
                write_row(row)
        return
    with _output_lock(output.path):
        partial = output.path.with_name(output.path.name + PARTIAL)
        content = content_hash([source])
        snapshot.verify()
        first, ahead = _resume(partial, session, {"input": content, **made_with}, total)
        try:
            with partial.open("a", encoding="utf-8") as stream:
                rows = rows_io.read_rows([], source)
                for batch in completions(rows, read, decode, session, first, ahead):
                    snapshot.verify()
                    stream.write(rows_io.as_json(batch) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(
                f"--output: `{partial}` cannot be written: {error.strerror or error}",
                "free some disk space: what is done is kept, and the same command goes on from there",
            ) from error
        except KeyboardInterrupt:
            say(f"what is done is kept in `{partial}`: the same command goes on from there")
            raise
        with rows_io.row_writer(output, kept_in=partial) as write_row:
            for row in in_order(_read_batches(partial)):
                write_row(row)
        partial.unlink()
    say(f"{total:,} row{'s' * (total != 1)} -> {output}")


def completions(
    rows: Iterator[tuple[str, Row]],
    read: Reader,
    decode: Callable[[list[int], list[int]], str],
    session: generate.GenerationSession,
    first: int = 0,
    ahead: Collection[int] = (),
) -> Iterator[Batch]:
    """Generate in batches; yield each batch's rows with the columns to show and the completion.

    At most `rows_io.CHUNK` rows are in memory, and are batched by length. A batch holds only rows with the same number
    of new tokens allowed, so that a row's completion does not depend on the other rows. Each batch has a seed of its
    own, so skipping finished batches changes nothing: those of the rows before `first`, and of the rows in `ahead`.
    `read` and `decode` are those of `write_rows`.
    """
    import torch

    from llmkit.data.rows.examples import chunks, key_of

    config = generate.choose_settings(session.model, session.tokenizer, session.options)
    for chunk in chunks(enumerate(rows), rows_io.CHUNK):
        if chunk[-1][0] < first:
            continue
        visible, prompts, allowed = {}, {}, {}
        for number, (location, row) in chunk:
            inputs, prompts[number] = read(location, row)
            visible[number] = {"id": row["id"], **inputs} if "id" in row else inputs
            allowed[number] = generate.new_tokens(
                config, session.model, len(prompts[number]), f"{location}: the prompt"
            )[1]
        for batch in _batched(
            prompts, allowed, 1 if _one_by_one(session, config) else BUDGET[session.model.device.type]
        ):
            if batch[0] < first or batch[0] in ahead:
                continue
            if config.do_sample:
                torch.manual_seed(key_of(str(session.seed), str(batch[0])))
            limited = copy.copy(config)
            limited.max_new_tokens, limited.max_length = allowed[batch[0]], None
            new = _generate_within_memory(session, [prompts[number] for number in batch], limited)
            yield [
                (number, {**visible[number], "completion": decode(prompts[number], _without_padding(sequence, config))})
                for number, sequence in zip(batch, new, strict=True)
            ]


def _batched(prompts: Mapping[int, list[int]], allowed: Mapping[int, int], budget: int) -> Iterator[list[int]]:
    """Group row numbers by length; a batch has at most `budget` tokens, prompts and new tokens together."""
    batch: list[int] = []
    for number in sorted(prompts, key=lambda row: (allowed[row], len(prompts[row]))):
        longest = len(prompts[number]) + allowed[number]
        if batch and (allowed[batch[0]] != allowed[number] or (len(batch) + 1) * longest > budget):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _generate_within_memory(
    session: generate.GenerationSession, prompts: Sequence[list[int]], config: Any
) -> list[list[int]]:
    """Generate each prompt's new tokens; halve the batch, again if need be, where a GPU runs out of memory."""
    import torch

    from llmkit.inference import prefill

    try:
        cache = prefill.read(session.model, prompts, config)
        options = {} if cache is None else {prefill.CACHE: cache}
        return generate.write(session, prompts, config, **options)[:, max(map(len, prompts)) :].tolist()
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(prompts) // 2
    halves = (prompts[:middle], prompts[middle:])
    return [row for half in halves for row in _generate_within_memory(session, half, config)]


def _one_by_one(session: generate.GenerationSession, config: Any) -> bool:
    """Whether rows must be generated singly: upstream checks an assistant's guesses for one row at a time."""
    return bool(session.generate_options) or config.prompt_lookup_num_tokens is not None


def _without_padding(new: list[int], config: Any) -> list[int]:
    """Cut a row's new tokens behind its first end token, else before the padding up to the longest row of its batch."""
    stops = generate.ends(config)
    end = next((index + 1 for index, token in enumerate(new) if token in stops), len(new))
    while end and new[end - 1] == config.pad_token_id and config.pad_token_id not in stops:
        end -= 1
    return new[:end]


def in_order(batches: Iterable[Batch]) -> Iterator[Row]:
    """Yield the rows of batches in file order; at most a chunk of them waits."""
    waiting: dict[int, Row] = {}
    number = 0
    for batch in batches:
        waiting.update(batch)
        while number in waiting:
            yield waiting.pop(number)
            number += 1


# ---- the partial file ----------------------------------------------------------------------------------------------


def _resume(
    partial: Path, session: generate.GenerationSession, made_with: Mapping[str, Any], total: int
) -> tuple[int, set[int]]:
    """Start the partial file, or resume from it.

    Its first line records what the rows are made with, the sampling seed included; where that differs from the
    current command, UserError names the differences. `total` is the number of rows, for the note.

    Returns the number of the first row that is missing, and the rows behind it that are done.
    """
    from llmkit.data.files import digest
    from llmkit.models import loading

    current = {
        "model": session.name,
        "weights": digest(*loading.identity(session.name)),
        "settings": session.options,
        "quantize": session.quantize,
        "device": session.model.device.type,
        "llmkit": version("llmkit"),
        "torch": version("torch"),
        "transformers": version("transformers"),
        **made_with,
    }
    header = _read_header(partial)
    if header is None:
        session.seed = random.getrandbits(32) if session.seed is None else session.seed
        partial.write_text(rows_io.as_json({**current, "seed": session.seed}) + "\n", encoding="utf-8")
        return 0, set()
    session.seed = header.get("seed") if session.seed is None else session.seed
    current = json.loads(rows_io.as_json({**current, "seed": session.seed}))
    changed = [key for key in {**header, **current} if header.get(key) != current.get(key)]
    first, ahead = 0, set[int]()
    for batch in _read_batches(partial):
        ahead.update(number for number, _ in batch)
        while first in ahead:
            ahead.remove(first)
            first += 1
    done = first + len(ahead)
    if changed:
        raise UserError(
            f"`{partial}` holds {done:,} rows of another command",
            "repeat that command, name another --output, or remove the file",
            tuple(f"{key} was {header.get(key)!r} and is {current.get(key)!r}" for key in changed),
        )
    say(f"note: {done:,} of {total:,} rows are in `{partial}`: going on")
    return first, ahead


def _read_header(partial: Path) -> dict[str, Any] | None:
    """Read the first line of the partial file, None where there is none; truncate a last line that was cut off."""
    if not disk.exists(partial):
        return None
    try:
        with partial.open("r+b") as stream:
            header, length = b"", 0
            for line in stream:
                header = header or line
                length += len(line) * line.endswith(b"\n")
            stream.truncate(length)
        return dict(json.loads(header)) if length else None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"`{partial}` is not a partial output of llmkit: {error}", "move it away") from error


def _read_batches(partial: Path) -> Iterator[Batch]:
    with partial.open(encoding="utf-8") as stream:
        next(stream)  # the header
        for line in stream:
            yield json.loads(line)


@contextmanager
def _output_lock(output: Path) -> Iterator[None]:
    """Lock `output` against other commands."""
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
        raise UserError(f"--output: another command is writing `{output}`", "name another file") from problem
