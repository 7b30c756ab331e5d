"""Load a finished model: a run, a checkpoint, a folder or a Hub id, whole or an adapter on its base."""

import copy
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file, logging
from transformers.utils.peft_utils import find_adapter_config_file

from llmkit import disk, hub, temporary
from llmkit.errors import UserError
from llmkit.recipe import upstream
from llmkit.runs import checkpoint

# The configuration of an adapter's model, with its labels. Not `config.json`: where there is one, transformers expects
# whole weights in the adapter's folder and does not load the base (auto_factory.py).
ADAPTED_CONFIG = "model_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
FSDP_SHARDS = "pytorch_model_fsdp_0"  # Accelerate's folder of a checkpoint's weights
ADAPTER_PREFIX = "base_model.model."  # peft's prefix of tensor names


def load_model(
    name: str, model_class: Any, config: Any = None, from_pretrained_options: Mapping[str, Any] | None = None
) -> Any:
    """Load a finished model, whole or an adapter on its base, in evaluation mode on the best device.

    On a CPU it is in fp32 (a bf16 checkpoint would stay bf16 and be very slow), on a GPU in the dtype it was saved in.

    Args:
        name: A run, a checkpoint, a folder or a Hub id.
        model_class: An auto class, such as AutoModelForCausalLM.
        config: Replaces the model's own.
        from_pretrained_options: Further arguments of `from_pretrained`, such as a device map or a quantization.

    Raises:
        UserError: Weights are missing or have another size; upstream would fill them with random numbers.
    """
    revision = hub.commit(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {
        "dtype": "auto" if device == "cuda" else torch.float32,
        "trust_remote_code": False,
        "use_safetensors": True,
        "weights_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported below
        **(from_pretrained_options or {}),
    }
    with quiet(), hub.loading(name, "model"):
        adapter = adapter_settings(name, revision)
        if adapter is None:
            with whole_weights(name) as folder:
                model, loading_info = model_class.from_pretrained(folder, config=config, revision=revision, **options)
            missing = _unfilled_tensors(loading_info)
        else:
            model, missing = _reload_adapter(name, adapter, model_class, config, options)
    _check_generation(model, name)
    if missing:
        raise UserError(
            f"the weights of `{name}` do not fit {type(model).__name__}: {len(missing)} tensors are missing or differ "
            f"in shape from its configuration, such as {min(missing)}",
            "check that the model was saved completely, and for this task",
        )
    return (model if "device_map" in options else model.to(device)).eval()


def _reload_adapter(
    name: str, adapter: dict[str, Any], model_class: Any, config: Any, options: dict[str, Any]
) -> tuple[Any, set[str]]:
    """Load the adapter on its base; return the model and the names of the tensors that neither of them holds.

    `adapter` is its `adapter_config.json`; `options` are those of `from_pretrained`, for the base.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    for file in (ADAPTED_CONFIG, "config.json"):
        if config is None and (path := adapter_file(name, file)):
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    weights = adapter_file(name, ADAPTER_WEIGHTS)
    if weights is None:
        raise UserError(
            f"the adapter `{name}` has no {ADAPTER_WEIGHTS}",
            "adapter_model.bin is a pickle, which can run code when opened: save the adapter as safetensors instead",
        )
    folder = str(Path(weights).parent)  # of a Hub id, the commit in the cache
    base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    try:
        revision = hub.commit(base, revision)
        with hub.loading(base, "model"):
            model, loading_info = model_class.from_pretrained(base, config=config, revision=revision, **options)
    except UserError as problem:
        raise UserError(f"the base model of the adapter `{name}`: {problem.message}", problem.hint) from problem
    if model.can_generate() and (path := adapter_file(name, "generation_config.json")):
        model.generation_config = GenerationConfig.from_pretrained(Path(path).parent)
    try:
        model = PeftModel.from_pretrained(model, folder)
    except KeyError as problem:  # peft 0.21 on a tensor of `modules_to_save` that the adapter does not hold
        if not str(problem.args[0]).startswith(ADAPTER_PREFIX):
            raise
        return model, {str(problem.args[0]).removeprefix(ADAPTER_PREFIX)}
    wanted_keys = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    wanted_keys |= {f"{ADAPTER_PREFIX}{key}" for key in _unfilled_tensors(loading_info)}
    return model, {key.removeprefix(ADAPTER_PREFIX) for key in wanted_keys - load_peft_weights(folder, "cpu").keys()}


@contextmanager
def whole_weights(name: str) -> Iterator[str]:
    """Yield `name`, or for a checkpoint whose weights FSDP left in shards a folder in which they are put together.

    Raises UserError for shards of DeepSpeed, whose files can be read by DeepSpeed alone.
    """
    folder = Path(name)
    shards = folder / FSDP_SHARDS
    divided = disk.is_dir(shards) or disk.within(folder, "global_step*")
    if not divided or disk.within(folder, "*model*.safetensors"):
        yield name
        return
    if not disk.is_dir(shards):
        raise UserError(
            f"the weights of `{name}` are in shards that only DeepSpeed reads",
            f"where it is installed, put them together: python {name}/zero_to_fp32.py {name} {name} "
            "--safe_serialization; checkpoints are whole with zero3_save_16bit_model: true in the Accelerate file",
        )
    with temporary.folder() as whole:
        _put_together(shards, whole)
        for file in disk.within(folder, "*config.json"):
            shutil.copy(file, whole)
        yield str(whole)


def _put_together(shards: Path, folder: Path) -> None:
    """Write the weights of a sharded checkpoint into one file."""
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = folder / "weights.pt"
    dcp_to_torch_save(shards, file)
    weights = torch.load(file, weights_only=True)["model"]
    file.unlink()
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model; raise UserError where it cannot be loaded, or fails on a text of two words."""
    with hub.loading(name, "model"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        if not isinstance(longest := tokenizer.model_max_length, int | float):
            raise ValueError(f"tokenizer_config.json: model_max_length must be a number, not {longest!r}")
        tokenizer.decode(tokenizer("to be")["input_ids"])
    return tokenizer


def _check_generation(model: Any, name: str) -> None:
    """Raise UserError for a generation setting that is saved with a model and is of another kind than upstream's."""
    known = upstream.fields("GenerationConfig")
    settings = getattr(model, "generation_config", None)
    for key, value in () if settings is None else vars(settings).items():
        if key not in known or known[key].type.kinds & {"any"}:
            continue
        each = value if isinstance(value, list) else [value]
        wide = any(isinstance(number, int | float) and not abs(number) < 2**63 for number in each)  # NaN, too
        if wide or (isinstance(value, str | list | dict) and not known[key].type.admits(value)):
            raise UserError(
                f"generation_config.json of `{name}`: {key} must be {known[key].type}, not {value!r}",
                "correct it there",
            )


def _unfilled_tensors(loading_info: dict[str, Any]) -> set[str]:
    """Return the tensors that the weights lack or hold in another size, from what `from_pretrained` reports."""
    return {*loading_info["missing_keys"], *(key for key, *_ in loading_info["mismatched_keys"])}


def adapter_settings(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """Read the `adapter_config.json` of a folder or Hub id; None where it is no adapter."""
    file = find_adapter_config_file(name, revision=revision)
    return hub.read_adapter(file) if file else None


def without_adapter(model: Any) -> Any:
    """Return the model inside an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def save_config(model: Any, directory: Path) -> None:
    """Write the configuration of an adapter's model, with its labels, beside the adapter, for `load_model`."""
    base = without_adapter(model)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    if hasattr(config, "quantization_config"):  # the adapter fits the base in any precision
        del config.quantization_config
    config.to_json_file(directory / ADAPTED_CONFIG)


def identity(name: str) -> Iterator[Any]:
    """Yield what identifies a model: a Hub id's commit, else its files' checksums; for an adapter, its base's too."""
    yield hub.commit(name)
    directory = Path(name)
    if disk.is_dir(directory):
        kinds = ("*.safetensors", "*config.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt")
        yield checkpoint.files_of(directory, sorted({file.name for kind in kinds for file in directory.glob(kind)}))
    adapter = adapter_settings(name, hub.commit(name))
    if adapter is not None:
        base = adapter["base_model_name_or_path"]
        yield hub.commit(base, adapter.get("revision")), *identity(base)


def adapter_file(name: str, file: str) -> str | None:
    """Return the path of a file of a folder or Hub id, downloaded if need be; None where there is no such file."""
    return cached_file(
        name,
        file,
        revision=hub.commit(name),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers and peft while they load; llmkit reports what matters in its own notes and errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            # merge unties them
            warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True` and the", UserWarning)
            warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
            # which peft's own conversion cannot undo, and `save_as_lora` can
            warnings.filterwarnings("ignore", "Using Rank-Stabilized LoRA with rank_pattern", UserWarning)
            # peft 0.21 still uses transformers' old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
