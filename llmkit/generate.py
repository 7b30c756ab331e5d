"""Text out of a model: a run, a checkpoint, a folder or a Hub id."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit import hub
from llmkit import run as runs
from llmkit.errors import UserError, say
from llmkit.recipe.schema import GENERATION_DEFAULTS

DEFAULT_MODEL = "openai-community/gpt2"


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
        if not directory.exists() and (name.startswith((".", "/", "~", "runs/")) or name.count("/") != 1):
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

    if seed is not None:
        set_seed(seed)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    if not inputs["input_ids"].shape[1]:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UserError("the prompt is empty, and the tokenizer has no token to begin a text with")
        inputs = {"input_ids": torch.tensor([[start]]), "attention_mask": torch.ones(1, 1, dtype=torch.int64)}
    config = generation_config(model, tokenizer, options, num_prompt_tokens=inputs["input_ids"].shape[1])
    live = sys.stdout.isatty() and config.num_return_sequences == 1 and config.num_beams == 1
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if live else None
    inputs = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask")}
    try:
        with torch.inference_mode():
            texts = model.generate(**inputs, generation_config=config, streamer=streamer, tokenizer=tokenizer)
    except ValueError as problem:  # combinations that upstream refuses
        raise UserError(f"these options do not go together: {str(problem).splitlines()[0]}") from problem
    if not live:
        samples = tokenizer.batch_decode(texts, skip_special_tokens=True)
        print("\n---\n".join(samples), flush=True)  # noqa: T201


def generation_config(model: Any, tokenizer: Any, options: dict[str, Any], num_prompt_tokens: int) -> Any:
    """The model's own settings, llmkit's where it has none (else: greedy repetition), `options` over both."""
    from transformers import GenerationConfig

    from llmkit.model import positions

    own = model.generation_config.to_diff_dict()
    sampling = ("do_sample", "temperature", "top_k", "top_p", "num_beams", "penalty_alpha", "repetition_penalty")
    base = {} if any(key in own for key in sampling) else dict(GENERATION_DEFAULTS)
    lengths = ("max_new_tokens", "max_length")
    if not any(key in own for key in lengths):
        base["max_new_tokens"] = GENERATION_DEFAULTS["max_new_tokens"]
    base.update(own)
    if any(key in options for key in lengths):
        for key in lengths:
            base.pop(key, None)
    config = GenerationConfig(**{**base, **options})
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos[0] if isinstance(eos, list) else eos)
        )
    limit = positions(model.config)
    if limit is not None:
        if num_prompt_tokens >= limit:
            raise UserError(
                f"the prompt has {num_prompt_tokens} tokens and the model {limit} positions", "shorten the prompt"
            )
        wanted = config.max_new_tokens
        if wanted is None or num_prompt_tokens + wanted > limit:
            if "max_new_tokens" in options:
                say(f"note: max_new_tokens is {limit - num_prompt_tokens}: the model has {limit} positions")
            config.max_new_tokens = min(wanted or limit, limit - num_prompt_tokens)
    return config


def load(name: str, why: str) -> tuple[Any, Any]:
    """Model and tokenizer, in fp32 on a CPU (a bf16 checkpoint is loaded as bf16 otherwise, and crawls)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, utils
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    utils.logging.disable_progress_bar()
    if not Path(name).exists():
        hub.check(name, "model")
    try:
        with hub.loading(name, "model"):
            adapter = Path(name) / "adapter_config.json"
            config = None if adapter.is_file() else AutoConfig.from_pretrained(name, trust_remote_code=False)
            if config is not None:
                _check_generative(name, config, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
            dtype = "auto" if torch.cuda.is_available() else torch.float32
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except UserError as problem:
        if why == "named":
            raise
        raise UserError(
            problem.message,
            "train a model in three minutes, with no network: llmkit pretrain recipes/tiny/gpt2.toml",
        ) from problem
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _check_generative(name: str, config: Any, generative: Any) -> None:
    architecture = (config.architectures or ["?"])[0]
    if "MaskedLM" in architecture or (architecture == "?" and config.model_type not in generative):
        raise UserError(
            f"`{name}` is a masked language model ({architecture}): it fills in blanks and does not go on writing",
            f'use transformers.pipeline("fill-mask", "{name}")',
        )
    if architecture != "?" and architecture not in generative.values():
        raise UserError(f"`{name}` ({architecture}) is no causal language model", "generate needs one, such as GPT-2")


def read_prompt(prompt: str | None) -> str:
    """The prompt argument; `-` reads all of stdin."""
    if prompt == "-":
        try:
            return sys.stdin.buffer.read().decode().rstrip("\n")
        except UnicodeDecodeError as problem:
            raise UserError(f"stdin: byte {problem.start} is not UTF-8") from problem
    return prompt or ""


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as fields of GenerationConfig, checked against the installed class without importing it."""
    from llmkit import recipe

    return recipe.generation_options(pairs)
