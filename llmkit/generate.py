"""Text out of a model: a run, a checkpoint, a folder or a Hub id."""

import copy
import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import checkpoint, hub, predict
from llmkit import run as runs
from llmkit.errors import UserError, say
from llmkit.recipe import upstream
from llmkit.recipe.schema import GENERATION_DEFAULTS

if TYPE_CHECKING:
    from llmkit.quantize import Kind

DEFAULT_MODELS = {"causal-lm": "openai-community/gpt2", "chat": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# What to do where no model was named and the default cannot be had.
MAKE_ONE = {
    "causal-lm": "train a model in three minutes, with no network: llmkit pretrain recipes/tiny/gpt2.toml",
    "chat": "train one that answers, with no network: llmkit finetune recipes/tiny/chats.toml",
}
SYSTEM = "system_prompt"  # a setting beside the fields of GenerationConfig, of conversations
ASSISTANT = "assistant_model"  # another: a smaller model, whose guesses are checked, as upstream's `generate` calls it
LENGTHS = {"max_new_tokens", "max_length"}
# A model that comes with one of these has its own way of choosing tokens.
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "num_beams", "penalty_alpha", "repetition_penalty")
# Tokens that are held at once, of prompts and of what is written: as many rows make a batch as may have so many.
BUDGET = {"cpu": 16_384, "cuda": 65_536}
PARTIAL = ".partial"  # behind the name of an output: what is done of it

Row = dict[str, Any]
Batch = list[tuple[int, Row]]  # rows that were written together, each with its number in the file
# Of a row and where it stands: what is shown of it beside its completion, and its tokens.
Reader = Callable[[str, Row], tuple[Row, list[int]]]


@dataclass
class Writer:
    """A model that writes, and how.

    `options` are fields of GenerationConfig, which win over the model's own; `more` is what its `generate` is given
    beside them, such as an assistant.
    """

    name: str
    model: Any
    tokenizer: Any
    options: dict[str, Any]
    seed: int | None = None
    quantize: "Kind | None" = None
    more: dict[str, Any] = field(default_factory=dict)


def generate(
    prompt: str, name: str | None, options: dict[str, Any], seed: int | None, quantize: "Kind | None" = None
) -> None:
    """Write what the model makes of `prompt` to stdout, piece by piece if a terminal is there.

    `options` are those of a Writer, and the name of an assistant. Raises UserError for a model that does not generate
    and for a prompt that does not fit.
    """
    writer = load(name, "causal-lm", options, seed, quantize)
    from transformers import TextStreamer

    tokens = encode(prompt, writer.tokenizer)
    config = generation_config(writer.model, writer.tokenizer, writer.options, len(tokens))
    live = sys.stdout.isatty() and config.num_return_sequences == 1 and config.num_beams == 1
    streamer = TextStreamer(writer.tokenizer, skip_special_tokens=True) if live else None
    texts = write(writer, [tokens], config, streamer=streamer)
    if not live:
        samples = writer.tokenizer.batch_decode(texts, skip_special_tokens=True)
        print("\n---\n".join(samples), flush=True)  # noqa: T201


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
    writer = load(name, "causal-lm", options, seed, quantize)
    tokenizer = writer.tokenizer
    from llmkit.data.files import text_of

    def read(place: str, row: Row) -> tuple[Row, list[int]]:
        prompt = text_of(row, "text" if "prompt" not in row and "text" in row else "prompt", place)
        if not prompt:
            raise UserError(f"{place}: the prompt is empty", "take the row out")
        return {"prompt": prompt}, encode(prompt, tokenizer)

    def completion(prompt: list[int], new: list[int]) -> str:
        # Decoded behind its prompt: alone, tokenizers of SentencePiece's kind drop the space that it begins with.
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        return str(tokenizer.decode(prompt + new, skip_special_tokens=True))[len(before) :]

    write_rows(source, output, read, completion, writer)


# ---- the model -----------------------------------------------------------------------------------------------------


def choose_model(name: str | None, task: str) -> tuple[str, str]:
    """The model to use, and why: the one that was named, the newest finished run of `task`, or one from the Hub."""
    if name is not None:
        predict.check_model(name)
        return name, "named"
    newest = runs.newest_finished(task)
    kind = "chat run" if task == "chat" else "run"
    if newest is not None:
        return str(newest), f"the newest finished {kind}"
    return DEFAULT_MODELS[task], f"no finished {kind} under runs/"


def load(
    name: str | None, task: str, options: Mapping[str, Any], seed: int | None, quantize: "Kind | None" = None
) -> Writer:
    """What writes: the model `name`, or what is chosen for `task`, and its assistant. Samples are drawn by `seed`."""
    name, why = choose_model(name, task)
    if why != "named":
        say(f"model: {name} ({why})")
    try:
        hub.commit(name)  # before torch is imported, which takes seconds
        with hub.loading(name, "model"):
            model, tokenizer = _load(name, quantize)
    except UserError as problem:
        if why == "named":
            raise
        raise UserError(problem.message, f"{MAKE_ONE[task]}; {problem.hint}") from problem
    import torch

    fields = {key: value for key, value in options.items() if key != ASSISTANT}
    writer = Writer(name, model, tokenizer, fields, seed, quantize)
    if ASSISTANT in options:
        writer.more = _assistant(options[ASSISTANT], writer)
    runs.collect_from_here()
    if seed is not None:
        torch.manual_seed(seed)  # not transformers' set_seed, whose module imports peft
    return writer


def _assistant(name: str, writer: Writer) -> dict[str, Any]:
    """For `model.generate`: the model whose guesses are checked, with its tokenizer where that is another.

    Raises UserError for a model whose tokens have the same numbers and another meaning: it would guess nonsense.
    """
    predict.check_model(name)
    with hub.loading(name, "model"):
        model, tokenizer = _load(name, writer.quantize)
    same = tokenizer.get_vocab() == writer.tokenizer.get_vocab()
    if model.config.get_text_config().vocab_size != writer.model.config.get_text_config().vocab_size:
        return {"assistant_model": model, "assistant_tokenizer": tokenizer}
    if not same:
        raise UserError(
            f"{ASSISTANT}: `{name}` has other words than `{writer.name}`, and as many embeddings",
            "take a smaller model of the same family",
        )
    return {"assistant_model": model}


def _load(name: str, quantize: "Kind | None" = None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from llmkit import reload

    adapter = reload.adapter_settings(name, hub.commit(name))
    base = adapter["base_model_name_or_path"] if adapter else name
    revision = hub.commit(base, adapter.get("revision") if adapter else None)
    with hub.loading(base, "model"):
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    _check_generative(name, config, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if quantize is None:
        model = reload.reload(name, AutoModelForCausalLM)
    else:
        from llmkit import quantize as quantizing

        if getattr(config, "quantization_config", None):
            raise UserError(f"--quantize: the weights of `{base}` are quantized already", "leave --quantize out")
        if torch.cuda.is_available():
            model = reload.reload(name, AutoModelForCausalLM, more=quantizing.on_gpu(quantize))
        else:
            model = quantizing.on_cpu(reload.reload(name, AutoModelForCausalLM), name, quantize)
    in_adapter = adapter is None or reload.adapter_file(name, "tokenizer_config.json") is not None
    with reload.quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            name if in_adapter else base,
            revision=hub.commit(name) if in_adapter else revision,
            trust_remote_code=False,
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what upstream makes up where there are no files
        raise UserError(f"`{name}` has no tokenizer", "save it beside the model: tokenizer.save_pretrained(...)")
    return model, tokenizer


def _check_generative(name: str, config: Any, generative: Any) -> None:
    architecture = (config.architectures or ["?"])[0]
    if "MaskedLM" in architecture or (architecture == "?" and config.model_type not in generative):
        raise UserError(
            f"`{name}` is a masked language model ({architecture}): it fills in blanks and does not go on writing",
            f'llmkit predict {name} "..."',
        )
    if architecture != "?" and architecture not in generative.values():
        reads = architecture.endswith("ForConditionalGeneration")
        hint = f'llmkit predict {name} "..."' if reads else "generate needs one, such as GPT-2"
        raise UserError(f"`{name}` ({architecture}) is no causal language model", hint)


# ---- prompts -------------------------------------------------------------------------------------------------------


def separate(prompt: str | None, words: Sequence[str], needed: bool) -> tuple[str | None, list[str]]:
    """The prompt and the settings: where no prompt is `needed`, the first word may be a setting too."""
    key, equals, _ = (prompt or "").partition("=")
    if (
        needed
        or prompt is None
        or not equals
        or not (key in upstream.fields("GenerationConfig") or key in (SYSTEM, ASSISTANT))
    ):
        return prompt, list(words)
    return None, [prompt, *words]


def read_prompt(prompt: str | None) -> str:
    """The prompt argument; `-` reads all of stdin. UserError for what is not UTF-8 and for a setting in its place."""
    if prompt == "-":
        try:
            return sys.stdin.buffer.read().decode().rstrip("\n")
        except UnicodeDecodeError as problem:
            raise UserError(f"stdin: byte {problem.start} is not UTF-8", "iconv -f LATIN1 -t UTF-8") from problem
    prompt = prompt or ""
    if not prompt.isprintable() and any("\udc80" <= character <= "\udcff" for character in prompt):
        raise UserError("the prompt is not UTF-8", "check the encoding of the terminal (LC_ALL)")
    key, equals, _ = prompt.partition("=")
    if equals and (key in upstream.fields("GenerationConfig") or key == ASSISTANT):
        raise UserError(
            f"`{prompt}` stands where the prompt belongs",
            f'the prompt comes first: llmkit generate "Once upon a time" {prompt}',
        )
    return prompt


def settings(pairs: Sequence[str], one: bool = False) -> dict[str, Any]:
    """`KEY=VALUE` words as fields of GenerationConfig, checked against the installed class without importing it.

    Among them may be the name of an `assistant_model`. `one`: there is place for one answer to each prompt.
    """
    from llmkit import recipe

    if any(pair.startswith(f"{SYSTEM}=") for pair in pairs):
        raise UserError("system_prompt belongs to a conversation", "add --chat")
    assistants = [pair.partition("=")[2] for pair in pairs if pair.startswith(f"{ASSISTANT}=")]
    options = recipe.generation_options([pair for pair in pairs if not pair.startswith(f"{ASSISTANT}=")])
    if assistants and assistants[-1]:  # `assistant_model=` asks for none
        options[ASSISTANT] = assistants[-1]
    if one and options.get("num_return_sequences", 1) != 1:
        raise UserError("num_return_sequences: there is place for one answer", "leave it out, and ask again")
    return options


def encode(prompt: str, tokenizer: Any) -> list[int]:
    """The prompt's tokens: what begins a text in front where the tokenizer puts one, nothing that ends it behind."""
    begin = tokenizer.bos_token_id
    always = tokenizer("")["input_ids"][:1] == [begin]
    tokens = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if always and tokens[:1] != [begin]:
        return [begin, *tokens]
    if tokens:
        return tokens
    start = begin if begin is not None else tokenizer.eos_token_id
    if start is None:
        raise UserError("the prompt is empty, and the tokenizer has no token to begin a text with", "give a prompt")
    return [start]


# ---- writing -------------------------------------------------------------------------------------------------------


def generation_config(model: Any, tokenizer: Any, options: dict[str, Any], num_prompt_tokens: int) -> Any:
    """The settings for one prompt: `choose_settings`, with no more new tokens than the model has positions for."""
    config = choose_settings(model, tokenizer, options)
    wanted, allowed = new_tokens(config, model, num_prompt_tokens)
    if allowed < wanted:
        if LENGTHS & options.keys():
            say(
                f"note: {allowed:,} new tokens at most: the prompt has {num_prompt_tokens:,} of "
                f"{num_prompt_tokens + allowed:,} positions"
            )
        config.max_new_tokens, config.max_length = allowed, None
    return config


def choose_settings(model: Any, tokenizer: Any, options: dict[str, Any]) -> Any:
    """The model's own settings, llmkit's where it has none (else: greedy repetition), `options` over both."""
    from transformers import GenerationConfig

    own = model.generation_config.to_diff_dict()
    sampled = {key: value for key, value in GENERATION_DEFAULTS.items() if key != "max_new_tokens"}
    if any(key in own for key in SAMPLING) or options.get("do_sample") is False or "num_beams" in options:
        sampled = {}
    if LENGTHS & options.keys():
        own = {key: value for key, value in own.items() if key not in LENGTHS}
    with refusals():
        config = GenerationConfig(**{**sampled, **own, **options, "return_dict_in_generate": False})
    if config.max_length is None and config.max_new_tokens is None:
        config.max_new_tokens = GENERATION_DEFAULTS["max_new_tokens"]
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos[0] if isinstance(eos, list) else eos)
        )
    config.num_beams, config.num_return_sequences = config.num_beams or 1, config.num_return_sequences or 1
    return config


def new_tokens(config: Any, model: Any, num_prompt_tokens: int, what: str = "the prompt") -> tuple[int, int]:
    """How many tokens `config` wants behind a prompt, and how many the model's positions allow of them.

    Raises UserError where there is room for none; `what` names the prompt in it.
    """
    from llmkit.model import positions

    wanted = config.max_new_tokens
    if wanted is None:
        wanted = config.max_length - num_prompt_tokens
        if wanted <= 0:
            raise UserError(
                f"{what} has {num_prompt_tokens:,} tokens, and max_length ({config.max_length:,}) counts them",
                "max_new_tokens counts those behind it alone",
            )
    limit = positions(model.config)
    if limit is not None and num_prompt_tokens >= limit:
        raise UserError(f"{what} has {num_prompt_tokens:,} tokens and the model {limit:,} positions", "shorten it")
    return wanted, wanted if limit is None else min(wanted, limit - num_prompt_tokens)


def write(writer: Writer, prompts: Sequence[list[int]], config: Any, **more: Any) -> Any:
    """What `model.generate` returns for prompts of any lengths, which are padded on the left."""
    import torch

    from llmkit import reload

    model = writer.model
    longest = max(map(len, prompts))
    pad = config.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    more = {"generation_config": config, "tokenizer": writer.tokenizer, **writer.more, **more}
    with refusals(), reload.quiet(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Unfeasible length constraints")
        return model.generate(input_ids=ids, attention_mask=mask, **more)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what upstream raises for settings that do not fit together, or with the model, into a UserError."""
    try:
        yield
    except RuntimeError as problem:
        if "probability tensor" not in str(problem):
            raise
        raise UserError(
            "the model's probabilities are not finite numbers",
            "did its training diverge? or is temperature too extreme?",
        ) from problem
    except (ValueError, UserWarning) as problem:  # values and combinations that upstream refuses
        raise UserError(
            f"the generation settings are refused: {' '.join(str(problem).split())}",
            "each is described at https://huggingface.co/docs/transformers/main_classes/text_generation",
        ) from problem


# ---- a file of prompts ---------------------------------------------------------------------------------------------


def check_rows(source: Path, output: Path | None) -> None:
    """UserError for files that cannot be read or written, and for no rows."""
    predict.check_files([], source, output)
    if next(predict.read_rows([], source), None) is None:
        raise UserError(f"--input: there are no rows in `{source}`", "is it the right file?")


def write_rows(
    source: Path,
    output: Path | None,
    read: Reader,
    decode: Callable[[list[int], list[int]], str],
    writer: Writer,
    **made_with: Any,
) -> None:
    """Write the completion of each row to stdout, or into `output`, which is there whole or not at all.

    Each row is read before the first is written, so that a mistake in the last one costs no work. Beside an output,
    batches are kept as they are done in a file of its name and `.partial`: where the command is interrupted, the same
    command goes on there and writes, byte for byte, what it had written. Of another command (`made_with` is what a
    result depends on beside the writer) that file is refused, and left as it is.
    """
    from llmkit.data.files import content_hash

    config = choose_settings(writer.model, writer.tokenizer, writer.options)
    total = 0
    for place, row in predict.read_rows([], source):
        new_tokens(config, writer.model, len(read(place, row)[1]), f"{place}: the prompt")
        total += 1
    if _one_by_one(writer, config):
        say("note: with assisted decoding and prompt lookup rows are written one by one")
    if output is None:
        writer.seed = random.getrandbits(32) if writer.seed is None else writer.seed
        with predict.writing(None) as put:
            for row in in_order(completions(predict.read_rows([], source), read, decode, writer)):
                put(row)
        return
    with _held(output):
        partial = output.with_name(output.name + PARTIAL)
        first, ahead = _resume(partial, writer, {"input": content_hash([source]), **made_with}, total)
        try:
            with partial.open("a", encoding="utf-8") as stream:
                rows = predict.read_rows([], source)
                for batch in completions(rows, read, decode, writer, first, ahead):
                    stream.write(predict.as_json(batch) + "\n")
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
        with predict.writing(output) as put:
            for row in in_order(_batches(partial)):
                put(row)
        partial.unlink()
    say(f"{total:,} row{'s' * (total != 1)} -> {output}")


def completions(
    rows: Iterator[tuple[str, Row]],
    read: Reader,
    decode: Callable[[list[int], list[int]], str],
    writer: Writer,
    first: int = 0,
    ahead: Collection[int] = (),
) -> Iterator[Batch]:
    """What is shown of each row, with its completion; `decode` makes it of the prompt's and new tokens.

    At most `predict.CHUNK` rows are held at once, and come in batches of like length. Rows are written together only
    where the same number of new tokens is allowed, so that a row becomes what it would alone. Each batch has a seed of
    its own: what is done already (the rows before `first`, and those `ahead`) is left out and changes nothing.
    """
    import torch

    from llmkit.data.examples import chunks, key_of

    config = choose_settings(writer.model, writer.tokenizer, writer.options)
    for chunk in chunks(enumerate(rows), predict.CHUNK):
        if chunk[-1][0] < first:
            continue
        shown, prompts, allowed = {}, {}, {}
        for number, (place, row) in chunk:
            what, prompts[number] = read(place, row)
            shown[number] = {"id": row["id"], **what} if "id" in row else what
            allowed[number] = new_tokens(config, writer.model, len(prompts[number]), f"{place}: the prompt")[1]
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


def _write_within_memory(writer: Writer, prompts: Sequence[list[int]], config: Any) -> list[list[int]]:
    """The new tokens of each prompt; in halves, and halves of them, where a GPU has no memory for all at once."""
    import torch

    try:
        return write(writer, prompts, config)[:, max(map(len, prompts)) :].tolist()
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(prompts) // 2
    return [row for part in (prompts[:half], prompts[half:]) for row in _write_within_memory(writer, part, config)]


def _one_by_one(writer: Writer, config: Any) -> bool:
    """Upstream checks guesses for one row at a time."""
    return bool(writer.more) or config.prompt_lookup_num_tokens is not None


def _without_padding(new: list[int], config: Any) -> list[int]:
    """What a row wrote before the others of its batch were done: up to its first end, else up to the padding."""
    stops = ends(config)
    end = next((place + 1 for place, token in enumerate(new) if token in stops), len(new))
    while end and new[end - 1] == config.pad_token_id and config.pad_token_id not in stops:
        end -= 1
    return new[:end]


def ends(config: Any) -> set[int]:
    """The tokens that end a text."""
    return {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())


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


def _resume(partial: Path, writer: Writer, made_with: Mapping[str, Any], total: int) -> tuple[int, set[int]]:
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
        partial.write_text(predict.as_json({**now, "seed": writer.seed}) + "\n", encoding="utf-8")
        return 0, set()
    writer.seed = head.get("seed") if writer.seed is None else writer.seed
    now = json.loads(predict.as_json({**now, "seed": writer.seed}))
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
    from llmkit import reload

    yield hub.commit(name)
    directory = Path(name)
    if directory.is_dir():
        kinds = ("*.safetensors", "*config.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt")
        yield checkpoint.files_of(directory, sorted({file.name for kind in kinds for file in directory.glob(kind)}))
    adapter = reload.adapter_settings(name, hub.commit(name))
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
