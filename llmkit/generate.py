"""Text out of a model: a run, a checkpoint, a folder or a Hub id."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit import hub
from llmkit import run as runs
from llmkit.errors import UserError, say
from llmkit.recipe import upstream
from llmkit.recipe.schema import GENERATION_DEFAULTS

DEFAULT_MODEL = "openai-community/gpt2"
LENGTHS = {"max_new_tokens", "max_length"}
# A model that comes with one of these has its own way of choosing tokens.
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "num_beams", "penalty_alpha", "repetition_penalty")


def choose_model(name: str | None) -> tuple[str, str]:
    """The model to use, and why: the one that was named, the newest finished run, or GPT-2 from the Hub."""
    if name is not None:
        directory = Path(name)
        if runs.is_run(directory) and not runs.is_finished(directory):
            checkpoint = runs.last_checkpoint(directory)
            raise UserError(
                f"the run `{name}` is not finished",
                f"use its last checkpoint: --model {checkpoint}" if checkpoint else "finish it with --resume",
            )
        if directory.is_file():
            raise UserError(f"`{name}` is a file", "a model is a folder: config.json, weights and tokenizer")
        if not directory.exists() and (name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1):
            raise UserError(f"there is no model at `{name}`", "a run directory, a folder with a model, or a Hub id")
        return name, "named"
    newest = runs.newest_finished("causal-lm")
    if newest is not None:
        return str(newest), "the newest finished run"
    return DEFAULT_MODEL, "no finished run under runs/"


def generate(prompt: str, name: str | None, options: dict[str, Any], seed: int | None) -> None:
    """Write what the model makes of `prompt` to stdout, piece by piece if a terminal is there.

    `options` are fields of GenerationConfig and win over the model's own. Raises UserError for a model that does not
    generate and for a prompt that does not fit.
    """
    name, why = choose_model(name)
    if why != "named":
        say(f"model: {name} ({why})")
    model, tokenizer = load(name, why)
    import torch
    from transformers import TextStreamer, set_seed

    runs.collect_from_here()
    if seed is not None:
        set_seed(seed)
    tokens = encode(prompt, tokenizer)
    ids = torch.tensor([tokens], device=model.device)
    try:
        config = generation_config(model, tokenizer, options, len(tokens))
        live = sys.stdout.isatty() and (config.num_return_sequences or 1) == 1 and (config.num_beams or 1) == 1
        streamer = TextStreamer(tokenizer, skip_special_tokens=True) if live else None
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Unfeasible length constraints")
            texts = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=streamer,
                tokenizer=tokenizer,
            )
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
    if not live:
        samples = tokenizer.batch_decode(texts, skip_special_tokens=True)
        print("\n---\n".join(samples), flush=True)  # noqa: T201


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


def generation_config(model: Any, tokenizer: Any, options: dict[str, Any], num_prompt_tokens: int) -> Any:
    """The model's own settings, llmkit's where it has none (else: greedy repetition), `options` over both."""
    from transformers import GenerationConfig

    from llmkit.model import positions

    own = model.generation_config.to_diff_dict()
    sampled = {key: value for key, value in GENERATION_DEFAULTS.items() if key != "max_new_tokens"}
    if any(key in own for key in SAMPLING) or options.get("do_sample") is False or "num_beams" in options:
        sampled = {}
    if LENGTHS & options.keys():
        own = {key: value for key, value in own.items() if key not in LENGTHS}
    config = GenerationConfig(**{**sampled, **own, **options, "return_dict_in_generate": False})
    if config.max_length is None and config.max_new_tokens is None:
        config.max_new_tokens = GENERATION_DEFAULTS["max_new_tokens"]
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos[0] if isinstance(eos, list) else eos)
        )
    limit = positions(model.config)
    if limit is not None:
        room = limit - num_prompt_tokens
        if room <= 0:
            raise UserError(
                f"the prompt has {num_prompt_tokens:,} tokens and the model {limit:,} positions", "shorten the prompt"
            )
        wanted = config.max_new_tokens
        if wanted is None:
            wanted = config.max_length - num_prompt_tokens
        if wanted > room:
            if LENGTHS & options.keys():
                say(f"note: {room:,} new tokens at most: the prompt has {num_prompt_tokens:,} of {limit:,} positions")
            config.max_new_tokens, config.max_length = room, None
    return config


def load(name: str, why: str) -> tuple[Any, Any]:
    """Model and tokenizer, in fp32 on a CPU (a bf16 checkpoint is loaded as bf16 otherwise, and crawls)."""
    try:
        if not Path(name).exists():
            hub.check(name, "model")  # before torch is imported, which takes seconds
        with hub.loading(name, "model"):
            return _load(name)
    except UserError as problem:
        if why == "named":
            raise
        make_one = "train a model in three minutes, with no network: llmkit pretrain recipes/tiny/gpt2.toml"
        raise UserError(problem.message, f"{make_one}; {problem.hint}") from problem


def _load(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, utils
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils.peft_utils import find_adapter_config_file

    utils.logging.set_verbosity_error()  # what matters of it is said below
    utils.logging.disable_progress_bar()
    adapter = find_adapter_config_file(name)
    base = json.loads(Path(adapter).read_text())["base_model_name_or_path"] if adapter else name
    if base != name and not Path(base).exists():
        hub.check(base, "model")
    with hub.loading(base, "model"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    _check_generative(name, config, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, found = AutoModelForCausalLM.from_pretrained(
        name,
        dtype="auto" if device == "cuda" else torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # found below, and named
    )
    if wrong := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
        raise UserError(
            f"the weights of `{name}` do not fit its config.json: {len(wrong)} tensors are not there in the size that "
            f"{config.architectures[0] if config.architectures else config.model_type} has, such as {wrong[0]}",
            "was it saved whole, and by this architecture?",
        )
    holds_tokenizer = not adapter or Path(adapter).with_name("tokenizer_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(name if holds_tokenizer else base, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what upstream makes up where there are no files
        raise UserError(f"`{name}` has no tokenizer", "save it beside the model: tokenizer.save_pretrained(...)")
    settings_of_adapter = Path(adapter).with_name("generation_config.json") if adapter else Path()
    if settings_of_adapter.is_file():
        model.generation_config = GenerationConfig.from_pretrained(settings_of_adapter.parent)
    return model.to(device).eval(), tokenizer


def _check_generative(name: str, config: Any, generative: Any) -> None:
    architecture = (config.architectures or ["?"])[0]
    if "MaskedLM" in architecture or (architecture == "?" and config.model_type not in generative):
        raise UserError(
            f"`{name}` is a masked language model ({architecture}): it fills in blanks and does not go on writing",
            f'llmkit predict {name} "..."',
        )
    if architecture != "?" and architecture not in generative.values():
        raise UserError(f"`{name}` ({architecture}) is no causal language model", "generate needs one, such as GPT-2")


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


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as fields of GenerationConfig, checked against the installed class without importing it."""
    from llmkit import recipe

    return recipe.generation_options(pairs)
