"""Generate text with a run, a checkpoint, a folder or a Hub id."""

import copy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmkit import hub, process
from llmkit.errors import UserError, say
from llmkit.models.prompt import encode as encode
from llmkit.recipe import upstream
from llmkit.recipe.schema import GENERATION_DEFAULTS
from llmkit.recipe.tasks import architecture_of, task_of_architecture
from llmkit.runs import directory as runs
from llmkit.runs import finished
from llmkit.speed import cpu

if TYPE_CHECKING:
    from llmkit.models.quantization import Precision

DEFAULT_MODELS = {"causal-lm": "openai-community/gpt2", "chat": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# What to do where no model was named and the default cannot be loaded.
MAKE_ONE = {
    "causal-lm": "train a model in three minutes, with no network: llmkit pretrain recipes/tiny/gpt2.toml",
    "chat": "train one that answers, with no network: llmkit finetune recipes/tiny/chats.toml",
}
# Settings that are no fields of GenerationConfig: of a conversation, and a smaller model whose guesses are checked
# (assisted decoding; the name is that of upstream's `generate`).
SYSTEM = "system_prompt"
ASSISTANT = "assistant_model"
LENGTHS = {"max_new_tokens", "max_length"}
# A model whose generation config sets one of these chooses tokens in its own way.
# Values of the settings that greedy search does not look at, by which upstream knows them for unset.
UNUSED_BY_GREEDY = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "typical_p": 1.0}
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "num_beams", "penalty_alpha", "repetition_penalty")


@dataclass
class GenerationSession:
    """A model that generates, and its settings.

    `options` are fields of GenerationConfig, which override the model's own. `generate_options` are further keyword
    arguments of its `generate`, such as an assistant.
    """

    name: str
    model: Any
    tokenizer: Any
    options: dict[str, Any]
    seed: int | None = None
    quantize: "Precision | None" = None
    generate_options: dict[str, Any] = field(default_factory=dict)


def generate(
    prompt: str, name: str | None, options: dict[str, Any], seed: int | None, quantize: "Precision | None" = None
) -> None:
    """Write `prompt` and its continuation to stdout, token by token on a terminal.

    The other arguments are those of `load`. Raises UserError for a model that does not generate and for a prompt that
    does not fit.
    """
    session = load(name, "causal-lm", options, seed, quantize)
    from transformers import TextStreamer

    tokens = encode(prompt, session.tokenizer)
    config = generation_config(session.model, session.tokenizer, session.options, len(tokens))
    live = sys.stdout.isatty() and config.num_return_sequences == 1 and config.num_beams == 1
    streamer = TextStreamer(session.tokenizer, skip_special_tokens=True) if live else None
    texts = write(session, [tokens], config, streamer=streamer)
    if not live:
        samples = session.tokenizer.batch_decode(texts, skip_special_tokens=True)
        print("\n---\n".join(samples), flush=True)  # noqa: T201


# ---- the model -----------------------------------------------------------------------------------------------------


def choose_model(name: str | None, task: str) -> tuple[str, str]:
    """Choose a model: the named one, the newest finished run of `task`, or one from the Hub; return it and why."""
    if name is not None:
        finished.check_model(name)
        return name, "named"
    newest = runs.newest_finished(task)
    kind = "chat run" if task == "chat" else "run"
    if newest is not None:
        return str(newest), f"the newest finished {kind}"
    return DEFAULT_MODELS[task], f"no finished {kind} under runs/"


def load(
    name: str | None, task: str, options: Mapping[str, Any], seed: int | None, quantize: "Precision | None" = None
) -> GenerationSession:
    """Load a model that generates, and its assistant, and seed the sampling.

    Args:
        name: A run, a folder or a Hub id; None lets `choose_model` choose.
        task: "causal-lm" or "chat", for that choice.
        options: Fields of GenerationConfig, and the assistant's name.
        seed: What samples are drawn from; None leaves it to chance.
        quantize: "int8" or "int4".

    Raises:
        UserError: The model cannot be loaded or does not generate.
    """
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
    session = GenerationSession(name, model, tokenizer, fields, seed, quantize)
    if ASSISTANT in options:
        session.generate_options = _assistant(options[ASSISTANT], session)
    process.collect_from_here()
    if model.device.type == "cpu":
        cpu.reuse_memory()  # a cache that grows is a new one for each token
    if seed is not None:
        torch.manual_seed(seed)  # not transformers' set_seed, whose module imports peft
    return session


def _assistant(name: str, session: GenerationSession) -> dict[str, Any]:
    """Load the assistant; return it, and its tokenizer if that differs, as keyword arguments of `model.generate`.

    Raises UserError for a vocabulary of the same size but with other tokens: the assistant would guess nonsense.
    """
    finished.check_model(name)
    with hub.loading(name, "model"):
        model, tokenizer = _load(name, session.quantize)
    same = tokenizer.get_vocab() == session.tokenizer.get_vocab()
    if model.config.get_text_config().vocab_size != session.model.config.get_text_config().vocab_size:
        return {"assistant_model": model, "assistant_tokenizer": tokenizer}
    if not same:
        raise UserError(
            f"{ASSISTANT}: `{name}` has a different vocabulary from `{session.name}`, of the same size",
            "use a smaller model of the same family",
        )
    return {"assistant_model": model}


def _load(name: str, quantize: "Precision | None" = None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from llmkit.models import loading

    adapter = loading.adapter_settings(name, hub.commit(name))
    base = adapter["base_model_name_or_path"] if adapter else name
    revision = hub.commit(base, adapter.get("revision") if adapter else None)
    with hub.loading(base, "model"):
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    _check_generative(name, config, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if quantize is None:
        model = loading.load_model(name, AutoModelForCausalLM)
    else:
        from llmkit.inference import onnx_decoder
        from llmkit.models import quantization as quantizing

        if getattr(config, "quantization_config", None):
            raise UserError(f"--quantize: the weights of `{base}` are quantized already", "leave --quantize out")
        if torch.cuda.is_available():
            model = loading.load_model(name, AutoModelForCausalLM, from_pretrained_options=quantizing.on_gpu(quantize))
        else:
            model = onnx_decoder.load(name) if quantize == "int8" else None
            if model is None:
                model = quantizing.on_cpu(loading.load_model(name, AutoModelForCausalLM), name, quantize)
    if model.device.type == "cpu":
        cpu.fuse_norms(model)
    in_adapter = adapter is None or loading.adapter_file(name, "tokenizer_config.json") is not None
    tokenizer = loading.load_tokenizer(name if in_adapter else base, hub.commit(name) if in_adapter else revision)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # upstream invents one where there are no files
        raise UserError(f"`{name}` has no tokenizer", "save it beside the model: tokenizer.save_pretrained(...)")
    return model, tokenizer


def _check_generative(name: str, config: Any, generative: Any) -> None:
    architecture = architecture_of(config)
    if "MaskedLM" in architecture or (architecture == "?" and config.model_type not in generative):
        raise UserError(
            f"`{name}` is a masked language model ({architecture}): it fills in blanks and cannot continue a text",
            f'llmkit predict {name} "..."',
        )
    if architecture != "?" and architecture not in generative.values():
        hint = f'llmkit predict {name} "..."' if task_of_architecture(architecture) else "generate needs one"
        if writer := runs.newest_finished("causal-lm", "chat"):
            hint += f"; to generate, use `{writer}`: --model {writer}"
        raise UserError(f"`{name}` ({architecture}) is not a causal language model", hint)


# ---- prompts -------------------------------------------------------------------------------------------------------


def separate(prompt: str | None, arguments: Sequence[str], needed: bool) -> tuple[str | None, list[str]]:
    """Separate the prompt from the settings: where no prompt is `needed`, the first argument may be a setting too."""
    key, equals, _ = (prompt or "").partition("=")
    if (
        needed
        or prompt is None
        or not equals
        or not (key in upstream.fields("GenerationConfig") or key in (SYSTEM, ASSISTANT))
    ):
        return prompt, list(arguments)
    return None, [prompt, *arguments]


def read_prompt(prompt: str | None) -> str:
    """Return the prompt; `-` reads all of stdin. Raises UserError for text that is not UTF-8 and for a setting."""
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
            f"`{prompt}` is where the prompt should be",
            f'the prompt comes first: llmkit generate "Once upon a time" {prompt}',
        )
    return prompt


def settings(pairs: Sequence[str], one: bool = False) -> dict[str, Any]:
    """Read `KEY=VALUE` arguments as fields of GenerationConfig, checked against the installed class, not imported.

    One of them may be `assistant_model`. With `one`, only one answer to each prompt is allowed.
    """
    from llmkit import recipe

    if any(pair.startswith(f"{SYSTEM}=") for pair in pairs):
        raise UserError("system_prompt is only for conversations", "add --chat")
    assistants = [pair.partition("=")[2] for pair in pairs if pair.startswith(f"{ASSISTANT}=")]
    options = recipe.generation_options([pair for pair in pairs if not pair.startswith(f"{ASSISTANT}=")])
    if assistants and assistants[-1]:  # `assistant_model=` asks for none
        options[ASSISTANT] = assistants[-1]
    if one and options.get("num_return_sequences", 1) != 1:
        raise UserError("num_return_sequences: only one answer is possible here", "leave it out")
    return options


# ---- generating ----------------------------------------------------------------------------------------------------


def generation_config(model: Any, tokenizer: Any, options: dict[str, Any], num_prompt_tokens: int) -> Any:
    """Resolve the settings for one prompt: those of `choose_settings`, new tokens limited by the model's positions.

    `num_prompt_tokens` is the prompt's length. Tells the user where that is less than `options` asked for.
    """
    config = choose_settings(model, tokenizer, options)
    wanted, allowed = new_tokens(config, model, num_prompt_tokens)
    if allowed < wanted:
        if LENGTHS & options.keys():
            say(
                f"note: at most {allowed:,} new tokens: the prompt takes {num_prompt_tokens:,} of "
                f"{num_prompt_tokens + allowed:,} positions"
            )
        config.max_new_tokens, config.max_length = allowed, None
    return config


def choose_settings(model: Any, tokenizer: Any, options: dict[str, Any]) -> Any:
    """Resolve the GenerationConfig: `options` over the model's own settings over llmkit's sampling defaults.

    llmkit's defaults apply where the model sets no way of choosing tokens; greedy search would repeat itself. The
    padding token is the `tokenizer`'s, else the end token.
    """
    from transformers import GenerationConfig

    own = model.generation_config.to_diff_dict()
    sampled = {key: value for key, value in GENERATION_DEFAULTS.items() if key != "max_new_tokens"}
    if any(key in own for key in SAMPLING) or options.get("do_sample") is False or "num_beams" in options:
        sampled = {}
    if LENGTHS & options.keys():
        own = {key: value for key, value in own.items() if key not in LENGTHS}
    if options.get("do_sample") is False:  # upstream warns of those of the model that greedy search does not look at
        own |= {key: value for key, value in UNUSED_BY_GREEDY.items() if key in own}
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
    """Count the new tokens that `config` asks for behind a prompt, and how many of them the model's positions allow.

    `num_prompt_tokens` is the prompt's length. Raises UserError where there is room for none; `what` names the prompt
    in it.
    """
    from llmkit.models.config import positions

    wanted = config.max_new_tokens
    if wanted is None:
        wanted = config.max_length - num_prompt_tokens
        if wanted <= 0:
            raise UserError(
                f"{what} has {num_prompt_tokens:,} tokens, and max_length ({config.max_length:,}) includes them",
                "set max_new_tokens instead: it counts only the new tokens",
            )
    limit = positions(model.config)
    if limit is not None and num_prompt_tokens >= limit:
        raise UserError(f"{what} has {num_prompt_tokens:,} tokens, but the model has {limit:,} positions", "shorten it")
    return wanted, wanted if limit is None else min(wanted, limit - num_prompt_tokens)


def write(session: GenerationSession, prompts: Sequence[list[int]], config: Any, **options: Any) -> Any:
    """Call `model.generate` on token lists of any lengths, padded on the left, and return what it returns.

    `config` is a GenerationConfig; `options` are further keyword arguments of `generate`.
    """
    import torch

    from llmkit.inference import onnx_decoder, prefill
    from llmkit.models import loading

    model = session.model
    if onnx_decoder.of(model) is not None:  # which has a cache of its own kind
        config = copy.copy(config)
        config.cache_implementation = None
    ids, mask = (tensor.to(model.device) for tensor in prefill.padded(prompts, config.pad_token_id or 0))
    options = {"generation_config": config, "tokenizer": session.tokenizer, **session.generate_options, **options}
    with refusals(), loading.quiet(), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Unfeasible length constraints")
        return model.generate(input_ids=ids, attention_mask=mask, **options)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn upstream's errors about settings that conflict, or do not suit the model, into a UserError."""
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
            f"the generation settings are not valid: {' '.join(str(problem).split())}",
            "each is described at https://huggingface.co/docs/transformers/main_classes/text_generation",
        ) from problem


def ends(config: Any) -> set[int]:
    """Return the tokens that end a text."""
    return {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
