"""The model of a run: its architecture, and its weights from scratch or pretrained."""

import copy
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from llmkit import hub
from llmkit.adapt import WITH_HEAD, adapt, check_4bit, freeze, in_4bit, outermost
from llmkit.errors import UserError
from llmkit.recipe.schema import Model
from llmkit.reload import adapter_settings, quiet

ATTENTION_DROPOUT = ("attn_pdrop", "attention_probs_dropout_prob", "attention_dropout")
# These number their positions from the padding index on, and so have two fewer than their config says.
POSITIONS_AFTER_PADDING = ("camembert", "data2vec-text", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")
LONGEST_DEFAULT_BLOCK = 1024  # as in run_clm.py: a model with 128k positions is not trained on 128k unless asked


def load_config(table: Model, finetuning: bool = False, where: str = "model") -> tuple[Any, list[str]]:
    """The architecture that `[model]` names with its overrides, and notes on what was chosen for the user.

    Pretraining goes without attention dropout unless asked for, `finetuning` keeps the model's own. Raises UserError
    for a config key that the architecture does not have (transformers would swallow it silently) and for an adapter.
    `where` is the table's key, for messages.
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
            raise UserError(f"{where}.config.model_type: transformers knows no `{model_type}`", hint) from problem
        name = str(model_type)
    else:
        name = table.name
        place = Path(name)
        revision = hub.commit(name, table.revision)
        several = place.name.startswith("checkpoint-") and (place / "model.safetensors").is_file()
        if several and not (place / "config.json").is_file():
            raise UserError(
                f"{where}.name: `{name}` holds several models in one, from which training goes on (--resume)",
                "name a finished run",
            )
        with hub.loading(name, "model"):
            if adapter_settings(name, revision) is not None:
                raise UserError(
                    f"{where}.name: `{name}` is an adapter, not a whole model",
                    f"merge it first: llmkit merge {name} --output DIR, then {where}.name=DIR",
                )
            code = _code(table, "AutoConfig", PreTrainedConfig.get_config_dict(name, revision=revision)[0])
            config = AutoConfig.from_pretrained(
                name, revision=revision, trust_remote_code=table.trust_remote_code, **code
            )
    known = set(config.to_dict()) | set(config.attribute_map) | {"pruned_heads"}
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise UserError(
            f"{len(unknown)} unknown key{'s' * (len(unknown) > 1)} in {where}.config",
            f"`{name}` is configured by transformers' {type(config).__name__}",
            tuple(
                f"{where}.config.{key}: not in {type(config).__name__}"
                + "".join(f", did you mean `{near}`?" for near in get_close_matches(key, known, 1))
                for key in unknown
            ),
        )
    notes = []
    for key in () if finetuning else ATTENTION_DROPOUT:
        if getattr(config, key, 0) and key not in overrides:
            notes.append(f"{key} = 0 in place of {getattr(config, key)}: set {where}.config.{key} for another")
            overrides[key] = 0.0
    if "num_hidden_layers" in overrides and "layer_types" not in overrides and getattr(config, "layer_types", None):
        overrides["layer_types"] = _layer_types(config, overrides["num_hidden_layers"])
    for key, value in overrides.items():
        try:
            setattr(config, key, value)
        except (StrictDataclassError, TypeError, ValueError) as problem:
            raise UserError(f"{where}.config.{key} = {value!r}: {' '.join(str(problem).split())}") from problem
    return config, notes


def _code(table: Model, part: str, config: Mapping[str, Any]) -> dict[str, str | None]:
    """For upstream's loaders: the commit of the code for `part` that comes with a model, where it may run.

    The code may be another repository's (`org/code--file.Class`), whose main branch upstream would read.
    """
    reference = (config.get("auto_map") or {}).get(part)
    if not table.trust_remote_code or not reference or table.name is None:
        return {}
    place = reference.partition("--")[0] if "--" in reference else table.name
    return {"code_revision": hub.commit(place, table.revision if place == table.name else None)}


def _layer_types(config: Any, num_layers: int) -> list[str]:
    """What kind each layer is where there are more or fewer of them: the pattern of the architecture goes on."""
    pattern: list[str] = config.layer_types
    period = next(
        (p for p in range(1, len(pattern)) if all(pattern[i] == pattern[i % p] for i in range(len(pattern)))),
        len(pattern),
    )
    return [pattern[i % period] for i in range(num_layers)]


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


def fit_to_tokenizer(config: Any, table: Model, tokenizer: Any, own_tokenizer: bool, num_new: int = 0) -> None:
    """Give a model from scratch the tokenizer's vocabulary and special tokens; refuse sizes that do not fit.

    `own_tokenizer`: the tokenizer is not the one that belongs to `model.name`. `num_new` of its tokens were added in
    this run: for them `create` enlarges pretrained embeddings.
    """
    if table.init == "scratch":
        starts_with = _decoder_start(config)
        if own_tokenizer and "vocab_size" not in table.config:
            config.vocab_size = len(tokenizer)
        elif num_new and "vocab_size" not in table.config:
            config.vocab_size = max(config.vocab_size, len(tokenizer))
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
    if len(tokenizer) - (num_new if table.init == "pretrained" else 0) > config.vocab_size:
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
    pieces: Mapping[int, Sequence[int]] | None = None,
) -> tuple[Any, list[str]]:
    """The model in fp32, weights drawn from `seed` or read from `model.name`, and notes on what is new in it.

    What `model.train` leaves out is frozen; `[lora]` freezes all but the adapter and the head. `task_type` is peft's.
    `generation` replaces how a causal language model generates; of an encoder-decoder what it names, and the length.
    `pieces`: the tokens that a pretrained tokenizer was extended by, each with the tokens that it was split into.
    Raises UserError where weights are missing that only pretraining could give, where `model.train` names what the
    model does not have, and where new tokens would not be trained.
    """
    if pieces and (lora is not None or table.train != "all"):
        raise UserError(
            "new tokens need embeddings that are trained, and "
            + ("an adapter leaves them as they are" if lora is not None else f'model.train is "{table.train}"'),
            "train the whole model, or take out tokenizer.add_tokens and tokenizer.add_from_text",
        )
    if table.load_in_4bit:
        check_4bit()
    options = {} if table.attn_implementation is None else {"attn_implementation": table.attn_implementation}
    new: set[str] = set()
    notes: list[str] = []
    from transformers import set_seed  # which brings peft along; who generates needs neither

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
            if pieces:
                notes = [*notes, _give_rows(model, pieces)]
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
        if table.name is not None:  # the adapter's settings say what it fits
            table = table.model_copy(update={"revision": hub.commit(table.name, table.revision)})
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
            revision=hub.commit(table.name, table.revision),
            trust_remote_code=table.trust_remote_code,
            use_safetensors=table.use_safetensors or None,  # where there are both, safetensors
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # found below, and named
            **_code(table, model_class.__name__, vars(config)),
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


def _give_rows(model: Any, pieces: Mapping[int, Sequence[int]]) -> str:
    """Enlarge the embeddings and the output layer for new tokens, if need be; each begins at the mean of its pieces.

    As in fast vocabulary transfer (https://arxiv.org/abs/2402.09977). What was tied stays tied. Returns a note.
    """
    size = max(pieces) + 1
    if size > model.get_input_embeddings().num_embeddings:
        with quiet():
            model.resize_token_embeddings(size, mean_resizing=False)
    output = model.get_output_embeddings()
    rows = [model.get_input_embeddings().weight]
    if output is not None:
        rows += [output.weight, *([output.bias] if output.bias is not None else [])]
    if getattr(model, "final_logits_bias", None) is not None:  # BART's and Marian's, [1, V]
        rows.append(model.final_logits_bias[0])
    with torch.no_grad():
        for table in rows:
            for token, former in pieces.items():
                table[token] = table[list(former)].mean(0)
    if len(pieces) == 1:
        return "1 token is new: its embedding begins at the mean of its pieces'"
    return f"{len(pieces):,} tokens are new: their embeddings begin at the mean of their pieces'"


def _in_base(model: Any, key: str) -> bool:
    return model.base_model is model or key.startswith(f"{model.base_model_prefix}.")


def _from_config(table: Model, config: Any, model_class: Any, **options: Any) -> Any:
    code = _code(table, model_class.__name__, vars(config))
    try:
        return model_class.from_config(config, trust_remote_code=table.trust_remote_code, **code, **options)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as problem:  # sizes that do not divide, ...
        raise hub.code_refused(problem, table.name or config.model_type) or UserError(
            f"[model]: {type(config).__name__} with these settings makes no model: {' '.join(str(problem).split())}",
            "see model.config",
        ) from problem


def count_parameters(module: torch.nn.Module, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """The parameters of a module that is made of several models, as transformers counts them: shared ones once."""
    tables = {id(inside.weight) for inside in module.modules() if isinstance(inside, torch.nn.Embedding)}
    counted = (p for p in module.parameters() if p.requires_grad or not only_trainable)
    return sum(p.numel() for p in counted if not exclude_embeddings or id(p) not in tables)


def num_parameters(table: Model, config: Any, model_class: Any) -> int:
    """Parameters of this architecture, tied ones once, counted without memory for them."""
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:  # Marian's own, before it has a tokenizer
        config = copy.copy(config)
        config.pad_token_id = 0
    with torch.device("meta"):
        model = _from_config(table, config, model_class)
    return sum(parameter.numel() for parameter in model.parameters())
