"""The model of a run: its architecture, and its weights from scratch or pretrained."""

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig, set_seed

from llmkit import hub
from llmkit.adapt import WITH_HEAD, adapt, check_4bit, freeze, in_4bit, outermost
from llmkit.errors import UserError
from llmkit.recipe.schema import Model
from llmkit.reload import adapter_settings, quiet

ATTENTION_DROPOUT = ("attn_pdrop", "attention_probs_dropout_prob", "attention_dropout")
# These number their positions from the padding index on, and so have two fewer than their config says.
POSITIONS_AFTER_PADDING = ("camembert", "data2vec-text", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")
LONGEST_DEFAULT_BLOCK = 1024  # as in run_clm.py: a model with 128k positions is not trained on 128k unless asked


def load_config(table: Model, finetuning: bool = False) -> tuple[Any, list[str]]:
    """The architecture that `[model]` names with its overrides, and notes on what was chosen for the user.

    Pretraining goes without attention dropout unless asked for, `finetuning` keeps the model's own. Raises UserError
    for a config key that the architecture does not have (transformers would swallow it silently) and for an adapter.
    """
    overrides = dict(table.config)
    if table.name is None:
        model_type = overrides.pop("model_type")
        try:
            config = AutoConfig.for_model(model_type)
        except ValueError as problem:
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

            near = get_close_matches(str(model_type), CONFIG_MAPPING_NAMES, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "for example gpt2, llama, bert, modernbert"
            raise UserError(f"model.config.model_type: transformers knows no `{model_type}`", hint) from problem
        name = str(model_type)
    else:
        name = table.name
        if not Path(name).exists():
            hub.check(name, "model", table.revision)
        with hub.loading(name, "model"):
            if adapter_settings(name, table.revision) is not None:
                raise UserError(
                    f"model.name: `{name}` is an adapter, not a whole model",
                    f"merge it first: llmkit merge {name} --output DIR, then model.name=DIR",
                )
            config = AutoConfig.from_pretrained(
                name, revision=table.revision, trust_remote_code=table.trust_remote_code
            )
    known = set(config.to_dict()) | set(config.attribute_map) | {"pruned_heads"}
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise UserError(
            f"{len(unknown)} unknown key{'s' * (len(unknown) > 1)} in model.config",
            f"`{name}` is configured by transformers' {type(config).__name__}",
            tuple(
                f"model.config.{key}: not in {type(config).__name__}"
                + "".join(f", did you mean `{near}`?" for near in get_close_matches(key, known, 1))
                for key in unknown
            ),
        )
    notes = []
    for key in () if finetuning else ATTENTION_DROPOUT:
        if getattr(config, key, 0) and key not in overrides:
            notes.append(f"{key} = 0 in place of {getattr(config, key)}: set model.config.{key} for another")
            overrides[key] = 0.0
    for key, value in overrides.items():
        try:
            setattr(config, key, value)
        except (StrictDataclassError, TypeError, ValueError) as problem:
            raise UserError(f"model.config.{key} = {value!r}: {' '.join(str(problem).split())}") from problem
    return config, notes


def positions(config: Any) -> int | None:
    """How many tokens one input can have; None where the architecture sets no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and config.model_type in POSITIONS_AFTER_PADDING:
        return int(limit) - (config.pad_token_id or 0) - 1
    return int(limit) if limit and limit > 0 else None


def choose_block_size(wanted: int | None, config: Any) -> int:
    """`data.block_size`, or as many tokens as the model has positions; raises UserError where they do not fit."""
    limit = positions(config)
    if wanted is None:
        return min(limit or LONGEST_DEFAULT_BLOCK, LONGEST_DEFAULT_BLOCK)
    if limit is not None and wanted > limit:
        raise UserError(
            f"data.block_size is {wanted} and the model has {limit} positions",
            "make the block smaller, or give a model from scratch more positions in model.config",
        )
    return wanted


def fit_to_tokenizer(config: Any, table: Model, tokenizer: Any, own_tokenizer: bool) -> None:
    """Give a model from scratch the tokenizer's vocabulary and special tokens; refuse sizes that do not fit.

    `own_tokenizer`: the tokenizer is not the one that belongs to `model.name`.
    """
    if table.init == "scratch":
        starts_with = _decoder_start(config)
        if own_tokenizer and "vocab_size" not in table.config:
            config.vocab_size = len(tokenizer)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if token not in table.config and (own_tokenizer or getattr(config, token, None) is None):
                setattr(config, token, getattr(tokenizer, token))
        if own_tokenizer and config.is_encoder_decoder:
            fitting = {
                "decoder_vocab_size": config.vocab_size,
                "decoder_start_token_id": getattr(config, starts_with),
                "forced_eos_token_id": config.eos_token_id,
            }
            for key, value in fitting.items():
                if key not in table.config and (key == "decoder_start_token_id" or hasattr(config, key)):
                    setattr(config, key, value)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model embeddings for {config.vocab_size:,}",
            "remove model.config.vocab_size, or use the tokenizer that belongs to the model",
        )


def _decoder_start(config: Any) -> str:
    """Which special token the decoder's input begins with: the end in BART, padding in T5 and Marian."""
    start = getattr(config, "decoder_start_token_id", None)
    return "eos_token_id" if start is not None and start == config.eos_token_id else "pad_token_id"


def create(
    table: Model,
    config: Any,
    model_class: Any,
    seed: int,
    lora: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    task_type: str | None = None,
) -> tuple[Any, list[str]]:
    """The model in fp32, weights drawn from `seed` or read from `model.name`, and notes on what is new in it.

    What `model.train` leaves out is frozen; `[lora]` freezes all but the adapter and the head. `task_type` is peft's.
    `generation` replaces how a causal language model generates; of an encoder-decoder what it names, and the length.
    Raises UserError where weights are missing that only pretraining could give, and where `model.train` names what the
    model does not have.
    """
    if table.load_in_4bit:
        check_4bit()
    options = {} if table.attn_implementation is None else {"attn_implementation": table.attn_implementation}
    new: set[str] = set()
    notes: list[str] = []
    set_seed(seed)
    try:
        if table.init == "scratch":
            model = _from_config(table, config, model_class, dtype=torch.float32, **options)
        else:
            if table.load_in_4bit:
                with torch.device("meta"):
                    sketch = _from_config(table, config, model_class)
                options["quantization_config"] = in_4bit(sketch)
            model, new, notes = _pretrained(table, config, model_class, task_type, options)
    except ValueError as problem:  # sizes that do not divide, an architecture without this head
        raise UserError(f"[model]: {str(problem).splitlines()[0]}") from problem
    if generation is not None and config.is_encoder_decoder:
        settings = model.generation_config
        settings.max_length = settings.max_new_tokens = None  # the recipe says how long: there, or by its data
        settings.update(**generation)
    elif generation is not None:
        tokens = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**{**tokens, **generation})
    if table.train != "all":
        freeze(model, table.train, new)
    if lora is not None:
        model = adapt(model, lora, task_type, new, table)
    return model, notes


def _pretrained(
    table: Model, config: Any, model_class: Any, task_type: str | None, options: dict[str, Any]
) -> tuple[Any, set[str], list[str]]:
    """The model with the weights of `model.name`, the names of the tensors that are new in it, and a note on them."""
    assert table.name is not None  # the recipe's check: pretrained weights have a name
    with quiet(), hub.loading(table.name, "model"):
        model, found = model_class.from_pretrained(
            table.name,
            config=config,
            revision=table.revision,
            trust_remote_code=table.trust_remote_code,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # found below, and named
            **options,
        )
    kind, pooler = type(model).__name__, f"{model.base_model_prefix}.pooler"  # a masked language model has none
    missing = set(found["missing_keys"])
    lacking = sorted(key for key in missing if _in_base(model, key) and not key.startswith(pooler))
    if lacking:
        raise UserError(
            f"the weights of `{table.name}` lack {len(lacking)} tensors of {kind}, such as {lacking[0]}",
            "are they of this architecture, and saved whole? transformers would fill them with random numbers",
        )
    resized = {
        key: f"{key} is {list(there)} there and {list(here)} here" for key, there, here in found["mismatched_keys"]
    }
    wrong = sorted(key for key in resized if task_type not in WITH_HEAD or _in_base(model, key))
    if wrong:
        raise UserError(
            f"the weights of `{table.name}` have other sizes than {kind} with this configuration",
            "only the head of a classifier or of question answering is made anew; see model.config",
            tuple(resized[key] for key in wrong),
        )
    new = missing | resized.keys()
    if not new:
        return model, new, []
    sizes = f" (`{table.name}` has another size: {'; '.join(sorted(resized.values()))})" if resized else ""
    return model, new, [f"new in this run: {', '.join(outermost(model, new))}{sizes}"]


def _in_base(model: Any, key: str) -> bool:
    return model.base_model is model or key.startswith(f"{model.base_model_prefix}.")


def _from_config(table: Model, config: Any, model_class: Any, **options: Any) -> Any:
    try:
        return model_class.from_config(config, trust_remote_code=table.trust_remote_code, **options)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as problem:  # sizes that do not divide, ...
        raise UserError(
            f"[model]: {type(config).__name__} with these settings makes no model: {' '.join(str(problem).split())}",
            "see model.config",
        ) from problem


def num_parameters(table: Model, config: Any, model_class: Any) -> int:
    """Parameters of this architecture, tied ones once, counted without memory for them."""
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:  # Marian's own, before it has a tokenizer
        config = copy.copy(config)
        config.pad_token_id = 0
    with torch.device("meta"):
        model = _from_config(table, config, model_class)
    return sum(parameter.numel() for parameter in model.parameters())
