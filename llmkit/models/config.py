"""Build a model's configuration: transformers' own, changed as the recipe says, with sizes that fit."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from llmkit import disk, hub
from llmkit.errors import UserError
from llmkit.models.loading import adapter_settings
from llmkit.recipe.bounds import Bound
from llmkit.recipe.schema import Model

ATTENTION_DROPOUT = ("attn_pdrop", "attention_probs_dropout_prob", "attention_dropout")
# These number positions from the padding index on, and so have fewer than their config says (two, with padding at 1).
POSITIONS_AFTER_PADDING = ("camembert", "data2vec-text", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")
# What every model has one of at least, under the names that transformers gives to all.
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "head_dim", "n_positions", "d_model", "d_kv", "d_ff", "num_layers"),
)
LONGEST_DEFAULT_BLOCK = 1024  # as in run_clm.py: a model with 128k positions is not trained on 128k unless asked


def load_config(table: Model, finetuning: bool = False, where: str = "model") -> tuple[Any, list[str]]:
    """Load the configuration that `[model]` describes, with its overrides.

    Pretraining sets attention dropout to 0 unless the recipe sets it.

    Args:
        table: The recipe's [model].
        finetuning: Keep the model's own attention dropout.
        where: The table's key, for messages.

    Returns:
        The configuration, and notes on what was chosen for the user.

    Raises:
        UserError: The architecture does not have a config key (transformers would ignore it silently), or
            `model.name` is an adapter.
    """
    overrides = dict(table.config)
    if table.name is None:
        model_type = overrides.pop("model_type")
        try:
            config = AutoConfig.for_model(model_type)
        except ValueError as problem:
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

            close_names = get_close_matches(str(model_type), CONFIG_MAPPING_NAMES, 3)
            hint = (
                f"did you mean {' or '.join(close_names)}?"
                if close_names
                else "for example gpt2, llama, bert, modernbert"
            )
            raise UserError(
                f"{where}.config.model_type: transformers has no model type `{model_type}`", hint
            ) from problem
        name = str(model_type)
    else:
        name = table.name
        path = Path(name)
        revision = hub.commit(name, table.revision)
        multi_task = path.name.startswith("checkpoint-") and disk.is_file(path / "model.safetensors")
        if multi_task and not disk.is_file(path / "config.json"):
            raise UserError(
                f"{where}.name: `{name}` holds several models in one and is only for resuming the run (--resume)",
                "name a finished run",
            )
        with hub.loading(name, "model"):
            if adapter_settings(name, revision) is not None:
                raise UserError(
                    f"{where}.name: `{name}` is an adapter, not a whole model",
                    f"merge it first: llmkit merge {name} --output DIR, then {where}.name=DIR",
                )
            code = remote_code(table, "AutoConfig", PreTrainedConfig.get_config_dict(name, revision=revision)[0])
            config = AutoConfig.from_pretrained(
                name, revision=revision, trust_remote_code=table.trust_remote_code, **code
            )
    known_keys = set(config.to_dict()) | set(config.attribute_map) | {"pruned_heads"}
    unknown = [key for key in overrides if key not in known_keys]
    if unknown:
        raise UserError(
            f"{len(unknown)} unknown key{'s' * (len(unknown) > 1)} in {where}.config",
            f"`{name}` is configured by transformers' {type(config).__name__}",
            tuple(
                f"{where}.config.{key}: not in {type(config).__name__}"
                + "".join(f", did you mean `{close_names}`?" for close_names in get_close_matches(key, known_keys, 1))
                for key in unknown
            ),
        )
    notes = []
    for key in () if finetuning else ATTENTION_DROPOUT:
        if getattr(config, key, 0) and key not in overrides:
            notes.append(f"{key} = 0 instead of {getattr(config, key)}: set {where}.config.{key} to change it")
            overrides[key] = 0.0
    if "num_hidden_layers" in overrides and "layer_types" not in overrides and getattr(config, "layer_types", None):
        overrides["layer_types"] = _layer_types(config, overrides["num_hidden_layers"])
    check_numbers(config, overrides, where)
    for key, value in overrides.items():
        try:
            setattr(config, key, value)
        except (StrictDataclassError, TypeError, ValueError) as problem:
            raise UserError(f"{where}.config.{key} = {value!r}: {' '.join(str(problem).split())}") from problem
    return config, notes


def check_numbers(config: Any, overrides: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a number that no model can have: no layers, a negative size, a dropout of 1.

    What an architecture's own default is below 0 for may be so; numbers of tokens too, where -1 means none.
    """
    general = {own: name for name, own in config.attribute_map.items()}
    for key, value in overrides.items():
        default = getattr(config, key, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or key.endswith("_id"):
            continue
        known = general.get(key, key)
        numeric = isinstance(default, int | float) and not isinstance(default, bool)
        bound = Bound()
        if known in SIZES:
            bound = Bound(1)
        elif "drop" in known and numeric:
            bound = Bound(0, 1, below=True)
        elif numeric and (default or 0) >= 0:
            bound = Bound(0)
        if message := bound.mistake(value):
            raise UserError(f"{where}.config.{key}: {message}")


def remote_code(table: Model, class_name: str, config: Mapping[str, Any]) -> dict[str, str | None]:
    """Pin the code of `class_name` that comes with a model, where it may run: a keyword argument of upstream's loaders.

    The code may be in another repository (`org/code--file.Class`), of which upstream would read the main branch.
    `config` is the model's configuration as a dict.
    """
    reference = (config.get("auto_map") or {}).get(class_name)
    if not table.trust_remote_code or not reference or table.name is None:
        return {}
    repository = reference.partition("--")[0] if "--" in reference else table.name
    return {"code_revision": hub.commit(repository, table.revision if repository == table.name else None)}


def _layer_types(config: Any, num_layers: int) -> list[str]:
    """Continue the architecture's pattern of layer types for `num_layers` layers."""
    pattern: list[str] = config.layer_types
    period = next(
        (p for p in range(1, len(pattern)) if all(pattern[i] == pattern[i % p] for i in range(len(pattern)))),
        len(pattern),
    )
    return [pattern[i % period] for i in range(num_layers)]


def positions(config: Any) -> int | None:
    """Return how many tokens an input can have; None where the architecture sets no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and config.model_type in POSITIONS_AFTER_PADDING:
        return int(limit) - (config.pad_token_id or 0) - 1
    return int(limit) if limit and limit > 0 else None


def choose_block_size(wanted: int | None, config: Any) -> int:
    """Return `data.block_size`, by default the model's positions; raise UserError where the block is longer."""
    limit = positions(config)
    if wanted is None:
        return min(limit or LONGEST_DEFAULT_BLOCK, LONGEST_DEFAULT_BLOCK)
    if limit is not None and wanted > limit:
        raise UserError(
            f"data.block_size = {wanted} is more than the {limit} positions of the model",
            "make the block smaller, or give a model from scratch more positions in model.config",
        )
    return wanted


def fit_to_tokenizer(config: Any, table: Model, tokenizer: Any, own_tokenizer: bool, num_new: int = 0) -> None:
    """Give a model from scratch the tokenizer's vocabulary size and special tokens.

    Args:
        config: Changed in place.
        table: The recipe's [model].
        tokenizer: The run's tokenizer.
        own_tokenizer: It is not the one that belongs to `model.name`.
        num_new: Tokens added in this run, for which `create_model` enlarges pretrained embeddings.

    Raises:
        UserError: The tokenizer has more tokens than the model has embeddings.
    """
    if table.init == "scratch":
        start_token = _decoder_start(config)
        if own_tokenizer and "vocab_size" not in table.config:
            config.vocab_size = len(tokenizer)
        elif num_new and "vocab_size" not in table.config:
            config.vocab_size = max(config.vocab_size, len(tokenizer))
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if token not in table.config and (own_tokenizer or getattr(config, token, None) is None):
                setattr(config, token, getattr(tokenizer, token))
        if own_tokenizer and config.is_encoder_decoder:
            decoder_values = {
                "decoder_vocab_size": config.vocab_size,
                "decoder_start_token_id": getattr(config, start_token),
                "forced_eos_token_id": config.eos_token_id,
            }
            for key, value in decoder_values.items():
                if key not in table.config and (key == "decoder_start_token_id" or hasattr(config, key)):
                    setattr(config, key, value)
    if len(tokenizer) - (num_new if table.init == "pretrained" else 0) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer):,} tokens, but the model has embeddings for only {config.vocab_size:,}",
            "remove model.config.vocab_size, or use the tokenizer that belongs to the model",
        )


def _decoder_start(config: Any) -> str:
    """Return which special token begins the decoder's input: EOS in BART, padding in T5 and Marian."""
    start = getattr(config, "decoder_start_token_id", None)
    return "eos_token_id" if start is not None and start == config.eos_token_id else "pad_token_id"
