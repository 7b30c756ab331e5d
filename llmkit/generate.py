"""Text out of a model: a run, a checkpoint, a folder or a Hub id."""

import copy
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit import hub, predict
from llmkit import run as runs
from llmkit.errors import UserError, say
from llmkit.recipe import upstream
from llmkit.recipe.schema import GENERATION_DEFAULTS

DEFAULT_MODELS = {"causal-lm": "openai-community/gpt2", "chat": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# What to do where no model was named and the default cannot be had.
MAKE_ONE = {
    "causal-lm": "train a model in three minutes, with no network: llmkit pretrain recipes/tiny/gpt2.toml",
    "chat": "train one that answers, with no network: llmkit finetune recipes/tiny/chats.toml",
}
SYSTEM = "system_prompt"  # a setting beside the fields of GenerationConfig, of conversations
LENGTHS = {"max_new_tokens", "max_length"}
# A model that comes with one of these has its own way of choosing tokens.
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "num_beams", "penalty_alpha", "repetition_penalty")
BATCH = 8  # rows that are written at once

Row = dict[str, Any]
# Of a row and where it stands: what is shown of it beside its completion, and its tokens.
Reader = Callable[[str, Row], tuple[Row, list[int]]]


def generate(prompt: str, name: str | None, options: dict[str, Any], seed: int | None) -> None:
    """Write what the model makes of `prompt` to stdout, piece by piece if a terminal is there.

    `options` are fields of GenerationConfig and win over the model's own. Raises UserError for a model that does not
    generate and for a prompt that does not fit.
    """
    _, model, tokenizer = load(name, "causal-lm", seed)
    from transformers import TextStreamer

    tokens = encode(prompt, tokenizer)
    config = generation_config(model, tokenizer, options, len(tokens))
    live = sys.stdout.isatty() and config.num_return_sequences == 1 and config.num_beams == 1
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if live else None
    texts = write(model, tokenizer, [tokens], config, streamer=streamer)
    if not live:
        samples = tokenizer.batch_decode(texts, skip_special_tokens=True)
        print("\n---\n".join(samples), flush=True)  # noqa: T201


def generate_rows(
    source: Path, output: Path | None, name: str | None, options: dict[str, Any], seed: int | None
) -> None:
    """Go on from the `prompt` (or `text`) of each row of a file, of a text file from each line.

    JSON lines on stdout, or in the file `output`: the prompt, and its completion alone.
    """
    rows = read_rows(source, output)
    _, model, tokenizer = load(name, "causal-lm", seed)
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

    write_rows(completions(rows, read, completion, model, tokenizer, options), output)


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


def load(name: str | None, task: str, seed: int | None) -> tuple[str, Any, Any]:
    """The name, the model and its tokenizer: of `name`, or what is chosen for `task`. Samples are drawn by `seed`."""
    name, why = choose_model(name, task)
    if why != "named":
        say(f"model: {name} ({why})")
    try:
        hub.commit(name)  # before torch is imported, which takes seconds
        with hub.loading(name, "model"):
            model, tokenizer = _load(name)
    except UserError as problem:
        if why == "named":
            raise
        raise UserError(problem.message, f"{MAKE_ONE[task]}; {problem.hint}") from problem
    from transformers import set_seed

    runs.collect_from_here()
    if seed is not None:
        set_seed(seed)
    return name, model, tokenizer


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from llmkit import reload

    adapter = reload.adapter_settings(name, hub.commit(name))
    base = adapter["base_model_name_or_path"] if adapter else name
    revision = hub.commit(base, adapter.get("revision") if adapter else None)
    with hub.loading(base, "model"):
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    _check_generative(name, config, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    model = reload.reload(name, AutoModelForCausalLM)
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
    if needed or prompt is None or not equals or not (key in upstream.fields("GenerationConfig") or key == SYSTEM):
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
    if equals and key in upstream.fields("GenerationConfig"):
        raise UserError(
            f"`{prompt}` stands where the prompt belongs",
            f'the prompt comes first: llmkit generate "Once upon a time" {prompt}',
        )
    return prompt


def settings(pairs: Sequence[str], one: bool = False) -> dict[str, Any]:
    """`KEY=VALUE` words as fields of GenerationConfig, checked against the installed class without importing it.

    `one`: there is place for one answer to each prompt.
    """
    from llmkit import recipe

    if any(pair.startswith(f"{SYSTEM}=") for pair in pairs):
        raise UserError("system_prompt belongs to a conversation", "add --chat")
    options = recipe.generation_options(pairs)
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


def write(model: Any, tokenizer: Any, prompts: Sequence[list[int]], config: Any, **more: Any) -> Any:
    """What `model.generate` returns for prompts of any lengths, which are padded on the left."""
    import torch

    from llmkit import reload

    longest = max(map(len, prompts))
    pad = config.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    with refusals(), reload.quiet(), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Unfeasible length constraints")
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=config, tokenizer=tokenizer, **more)


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


def read_rows(source: Path, output: Path | None) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place; UserError for files that cannot be read or written, and for no rows."""
    predict.check_files([], source, output)
    rows = predict.read_rows([], source)
    first = next(rows, None)
    if first is None:
        raise UserError(f"--input: there are no rows in `{source}`", "is it the right file?")
    return itertools.chain([first], rows)


def completions(
    rows: Iterator[tuple[str, Row]],
    read: Reader,
    decode: Callable[[list[int], list[int]], str],
    model: Any,
    tokenizer: Any,
    options: dict[str, Any],
) -> Iterator[Row]:
    """What is shown of each row, with its completion, in their order; `decode` makes it of the prompt's and new tokens.

    At most `predict.CHUNK` rows are held at once. Rows are written together only where the same number of new tokens
    is allowed, so that a row becomes what it would alone.
    """
    from llmkit.data.examples import chunks

    config = choose_settings(model, tokenizer, options)
    for chunk in chunks(rows, predict.CHUNK):
        shown, prompts, allowed = [], [], []
        for place, row in chunk:
            what, tokens = read(place, row)
            shown.append({"id": row["id"], **what} if "id" in row else what)
            prompts.append(tokens)
            allowed.append(new_tokens(config, model, len(tokens), f"{place}: the prompt")[1])
        texts: dict[int, str] = {}
        by_length = sorted(range(len(chunk)), key=lambda row: (allowed[row], len(prompts[row])))
        for count, alike in itertools.groupby(by_length, key=lambda row: allowed[row]):
            limited = copy.copy(config)
            limited.max_new_tokens, limited.max_length = count, None
            for batch in chunks(alike, BATCH):
                written = write(model, tokenizer, [prompts[row] for row in batch], limited)
                longest = max(len(prompts[row]) for row in batch)
                for row, sequence in zip(batch, written[:, longest:].tolist(), strict=True):
                    texts[row] = decode(prompts[row], _without_padding(sequence, config))
        yield from ({**what, "completion": texts[row]} for row, what in enumerate(shown))


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


def write_rows(rows: Iterator[Row], output: Path | None) -> None:
    """Write the rows to stdout or into `output`, which is there whole or not at all."""
    count = 0
    with predict.writing(output) as put:
        for row in rows:
            put(row)
            count += 1
    if output is not None:
        say(f"{count:,} row{'s' * (count != 1)} -> {output}")
