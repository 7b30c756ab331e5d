"""The model of a run: from scratch or pretrained, what of it is trained, an adapter on it; and a finished one again."""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, GenerationConfig, set_seed
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file, logging
from transformers.utils.peft_utils import find_adapter_config_file

from llmkit import hub
from llmkit.errors import UserError
from llmkit.recipe.schema import Model

ATTENTION_DROPOUT = ("attn_pdrop", "attention_probs_dropout_prob", "attention_dropout")
# These number their positions from the padding index on, and so have two fewer than their config says.
POSITIONS_AFTER_PADDING = ("camembert", "data2vec-text", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")
LONGEST_DEFAULT_BLOCK = 1024  # as in run_clm.py: a model with 128k positions is not trained on 128k unless asked
# The architecture of an adapter's model, with its labels. Not `config.json`: beside one, transformers looks for whole
# weights in the adapter's folder and does not load its base (auto_factory.py).
ADAPTED_CONFIG = "model_config.json"
WITHIN_ADAPTER = "base_model.model."  # what peft sets before the names of tensors
# peft's task types with a head of their own, which is trained and saved with the adapter.
WITH_HEAD = ("SEQ_CLS", "QUESTION_ANS")
# What attention layers call the linear maps to queries and values (or to both), most common first.
ATTENTION = (
    *(("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("query_proj", "value_proj"), ("q", "v")),
    *(("Wqkv",), ("qkv_proj",), ("query_key_value",), ("c_attn",)),
)


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
        if own_tokenizer and "vocab_size" not in table.config:
            config.vocab_size = len(tokenizer)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if token not in table.config and (own_tokenizer or getattr(config, token, None) is None):
                setattr(config, token, getattr(tokenizer, token))
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model embeddings for {config.vocab_size:,}",
            "remove model.config.vocab_size, or use the tokenizer that belongs to the model",
        )


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

    What `model.train` leaves out is frozen; `[lora]` freezes all but the adapter and the head. `task_type` is peft's;
    `generation` (which may be empty) makes it CAUSAL_LM. Raises UserError where weights are missing that only
    pretraining could give, and where `model.train` names what the model does not have.
    """
    if table.load_in_4bit:
        check_4bit()
    task_type = "CAUSAL_LM" if generation is not None else task_type
    options = {} if table.attn_implementation is None else {"attn_implementation": table.attn_implementation}
    new: set[str] = set()
    notes: list[str] = []
    set_seed(seed)
    try:
        if table.init == "scratch":
            model = _from_config(table, config, model_class, dtype=torch.float32, **options)
        else:
            if table.load_in_4bit:
                options["quantization_config"] = _in_4bit(table, config, model_class)
            model, new, notes = _pretrained(table, config, model_class, task_type, options)
    except ValueError as problem:  # sizes that do not divide, an architecture without this head
        raise UserError(f"[model]: {str(problem).splitlines()[0]}") from problem
    if generation is not None:
        tokens = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**{**tokens, **generation})
    if table.train != "all":
        _freeze(model, table.train, new)
    if lora is not None:
        model = _adapt(model, lora, task_type, new, table)
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
    return model, new, [f"new in this run: {', '.join(_outermost(model, new))}{sizes}"]


def _in_base(model: Any, key: str) -> bool:
    return model.base_model is model or key.startswith(f"{model.base_model_prefix}.")


def _heads(model: Any) -> list[str]:
    """The names of the modules beside the base model that have parameters."""
    beside = ((name, child) for name, child in model.named_children() if child is not model.base_model)
    return [name for name, child in beside if next(child.parameters(), None) is not None]


def _outermost(model: Any, keys: set[str]) -> list[str]:
    """`keys` in short: the outermost modules whose tensors are all among them, and the tensors that are left."""
    found: list[str] = []
    left = set(keys)
    for path, module in model.named_modules():
        own = {f"{path}.{name}" for name, _ in module.named_parameters(remove_duplicate=False)}
        if path and own and own <= left:
            found.append(path)
            left -= own
    return found + sorted(left)


def _freeze(model: Any, part: str, new: set[str]) -> None:
    """Leave trainable what `part` names: the "head" and what is `new`; with "top-K", K layers and what follows them.

    The layers are the longest list of modules in the base model, or the lists, where several are as long (an encoder's
    and a decoder's). What comes after them (a norm, a pooler) comes so in the order of the model's definition.
    """
    kind, base = type(model).__name__, model.base_model
    inside = {id(parameter) for parameter in base.parameters()}
    if base is model:
        raise UserError(f"model.train: {kind} does not set its head apart from its layers", 'use model.train = "all"')
    if part == "head" and any(
        id(p) in inside for name in _heads(model) for p in model.get_submodule(name).parameters()
    ):
        raise UserError(
            f'model.train = "head": {kind} has no separate one, its output layer is its input embeddings (tied)',
            'train its last layers instead: model.train = "top-2"',
        )
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) not in inside or name in new)
    if part == "head":
        return
    lists: dict[str, int] = {}
    for path, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and not path.startswith(tuple(f"{outer}." for outer in lists)):
            lists[path] = len(module)
    length = max(lists.values(), default=0)
    first = length - int(part.removeprefix("top-"))
    if first < 0:
        raise UserError(f'model.train = "{part}": {kind} has {length} layers')
    layers = [f"{path}." for path in lists if lists[path] == length]
    embeddings = {id(p) for module in base.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    reached = False
    for name, parameter in base.named_parameters():
        within = next((path for path in layers if name.startswith(path)), None)
        if within is not None:
            reached = True
            trained = int(name.removeprefix(within).split(".")[0]) >= first
        else:
            trained = reached and id(parameter) not in embeddings
        if trained:
            parameter.requires_grad_(True)


def _adapt(model: Any, lora: Mapping[str, Any], task_type: str | None, new: set[str], table: Model) -> Any:
    """`model` with a LoRA adapter; its head, or `lora.modules_to_save`, is trained whole and saved with the adapter.

    So is what is `new` in it, always: frozen, it would stay random, and nothing would save it.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    modules = dict(model.named_modules())
    heads = _heads(model) if task_type in WITH_HEAD else []
    whole = list(lora.get("modules_to_save") or heads)
    whole += [path for path in _outermost(model, new) if path in modules and path.split(".")[0] not in whole]
    settings: dict[str, Any] = {
        "task_type": task_type,
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in modules.values()),  # GPT-2's layers
        **lora,
        "modules_to_save": whole or None,
    }
    if "target_modules" not in lora and "target_parameters" not in lora:
        settings["target_modules"] = _targets(model)
    try:
        adapter = LoraConfig(**settings)
        with quiet():
            if table.load_in_4bit:  # whether it recomputes activations is trainer.gradient_checkpointing's to say
                model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
            return get_peft_model(model, adapter, revision=table.revision)
    except (TypeError, ValueError) as problem:
        raise UserError(f"[lora]: {str(problem).splitlines()[0]}") from problem


def _targets(model: Any) -> list[str] | None:
    """The layers to adapt where the recipe names none: peft's choice (None), else attention's queries and values."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOSEN_BY_PEFT

    if model.config.model_type in CHOSEN_BY_PEFT:
        return None
    linear = {path.split(".")[-1] for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    for names in ATTENTION:
        if linear.issuperset(names):
            return list(names)
    raise UserError(
        f"[lora]: which layers of `{model.config.model_type}` to adapt is not known",
        'set lora.target_modules to some of them, or to "all-linear"',
        (f"its linear layers: {', '.join(sorted(linear))}",),
    )


def check_4bit() -> None:
    """Raise UserError where `model.load_in_4bit` cannot be had: without a CUDA GPU or without bitsandbytes."""
    if not torch.cuda.is_available():
        raise UserError(
            "model.load_in_4bit needs a CUDA GPU, and there is none here",
            "remove model.load_in_4bit: [lora] alone trains the same adapter, on weights in full precision",
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as problem:
        raise UserError("model.load_in_4bit needs the package bitsandbytes", "pip install bitsandbytes") from problem


def _in_4bit(table: Model, config: Any, model_class: Any) -> Any:
    """Frozen weights in 4 bits as in QLoRA (https://arxiv.org/abs/2305.14314); what may be trained stays as it is."""
    with torch.device("meta"):
        sketch = _from_config(table, config, model_class)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float16,
        llm_int8_skip_modules=[*_heads(sketch), f"{sketch.base_model_prefix}.pooler"],  # its name in 4 bits too
    )


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
    with torch.device("meta"):
        model = _from_config(table, config, model_class)
    return sum(parameter.numel() for parameter in model.parameters())


def reload(name: str, model_class: Any, config: Any = None) -> Any:
    """A finished run, a checkpoint, a folder or a Hub id, whole or an adapter, ready for use on the best device.

    In fp32 on a CPU (a bf16 checkpoint is loaded as bf16 otherwise, and crawls), as saved on a GPU. `config` replaces
    the model's own. Raises UserError where weights are missing: nothing is filled with random numbers in silence.
    """
    if not Path(name).exists():
        hub.check(name, "model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {
        "dtype": "auto" if device == "cuda" else torch.float32,
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # found below, and named
    }
    with quiet(), hub.loading(name, "model"):
        adapter = adapter_settings(name)
        if adapter is None:
            model, found = model_class.from_pretrained(name, config=config, **options)
            lacking = _unfilled(found)
        else:
            model, lacking = _reload_adapter(name, adapter, model_class, config, options)
    if lacking:
        raise UserError(
            f"the weights of `{name}` do not fit {type(model).__name__}: {len(lacking)} tensors are missing or have "
            f"another size than its configuration gives, such as {min(lacking)}",
            "was it saved whole, and for this task?",
        )
    return model.to(device).eval()


def _reload_adapter(
    name: str, adapter: dict[str, Any], model_class: Any, config: Any, options: dict[str, Any]
) -> tuple[Any, set[str]]:
    """The adapter on its base, and the names of the tensors that neither of them holds."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    for file in (ADAPTED_CONFIG, "config.json"):
        if config is None and (path := adapter_file(name, file)):
            config = AutoConfig.from_pretrained(path)
    base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    try:
        if not Path(base).exists():
            hub.check(base, "model", revision)
        with hub.loading(base, "model"):
            model, found = model_class.from_pretrained(base, config=config, revision=revision, **options)
    except UserError as problem:
        raise UserError(f"the base of the adapter `{name}`: {problem.message}", problem.hint) from problem
    if model.can_generate() and (path := adapter_file(name, "generation_config.json")):
        model.generation_config = GenerationConfig.from_pretrained(Path(path).parent)
    try:
        model = PeftModel.from_pretrained(model, name)
    except KeyError as problem:  # peft 0.21 on a tensor of `modules_to_save` that the adapter does not hold
        return model, {str(problem.args[0]).removeprefix(WITHIN_ADAPTER)}
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    wanted |= {f"{WITHIN_ADAPTER}{key}" for key in _unfilled(found)}
    return model, {key.removeprefix(WITHIN_ADAPTER) for key in wanted - load_peft_weights(name, "cpu").keys()}


def _unfilled(found: dict[str, Any]) -> set[str]:
    """Of what `from_pretrained` reports: the tensors that the weights do not hold, or hold in another size."""
    return {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}


def adapter_settings(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """What `adapter_config.json` says of a folder or Hub id; None where it is no adapter."""
    file = find_adapter_config_file(name, revision=revision)
    return json.loads(Path(file).read_text()) if file else None


def save_config(model: Any, directory: Path) -> None:
    """Write the architecture of an adapter's model, with its labels, beside the adapter, for `reload`."""
    whole = model.get_base_model()
    config = copy.deepcopy(whole.config)
    config.architectures = [type(whole).__name__]
    if hasattr(config, "quantization_config"):  # the adapter fits the base in any precision
        del config.quantization_config
    config.to_json_file(directory / ADAPTED_CONFIG)


def adapter_file(name: str, file: str) -> str | None:
    """The path of a file of a folder or Hub id; None where it has none of that name."""
    return cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Of what transformers and peft say while they load, what matters is said in our notes and errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            # peft 0.21 still asks by transformers' old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
