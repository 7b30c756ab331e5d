"""Read which fields the installed transformers and peft accept, from their source with `ast`: imports cost seconds."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkit.recipe.toml import toml_value
from llmkit.recipe.types import Type, read_annotation

# The classes behind upstream's tables: each with its package and its module.
CLASSES = {
    "TrainingArguments": ("transformers", "training_args.py"),
    "LoraConfig": ("peft", "tuners/lora/config.py"),
    "GenerationConfig": ("transformers", "generation/configuration_utils.py"),
}

_UPLOAD = "upload the finished run with `hf upload`"
_COMMAND = "the command decides what runs"
_COLUMNS = "the task decides what the model is given"
_EVALUATION = "the task decides what evaluation collects"
_OUTPUTS = "only the generated tokens are used"
_ADAPTER = "it follows from the model and the task"

# Fields that the run sets itself: what to use instead, or why.
OWNED: dict[str, dict[str, str]] = {
    "TrainingArguments": {
        "output_dir": "use the top-level `output_dir` or `--output-dir`",
        "do_train": _COMMAND,
        "do_eval": _COMMAND,
        "do_predict": _COMMAND,
        "resume_from_checkpoint": "use `--resume`",
        "hub_token": f"no secrets in a recipe; {_UPLOAD}",
        "push_to_hub_token": f"no secrets in a recipe; {_UPLOAD}",
        "push_to_hub": _UPLOAD,
        "push_to_hub_model_id": _UPLOAD,
        "push_to_hub_organization": _UPLOAD,
        "hub_private_repo": _UPLOAD,
        "hub_model_id": _UPLOAD,
        "hub_strategy": _UPLOAD,
        "hub_always_push": _UPLOAD,
        "hub_revision": _UPLOAD,
        "remove_unused_columns": _COLUMNS,
        "label_names": _COLUMNS,
        "local_rank": "the launcher sets it; use `--processes`",
        "auto_find_batch_size": "it starts again at step 0 with weights already trained; lower "
        "`per_device_train_batch_size` and raise `gradient_accumulation_steps`",
        "enable_jit_checkpoint": "llmkit saves a checkpoint on signals itself",
        "logging_nan_inf_filter": "it hides NaN, so it is always off",
        "average_tokens_across_devices": "losses are always divided by the number of tokens of all processes",
        "disable_tqdm": "progress is a bar in a terminal and plain lines elsewhere",
        "ignore_data_skip": "resuming always goes on at the next batch",
        "restore_callback_states_from_checkpoint": "everything that a run needs to go on is always restored",
        "save_only_model": "a checkpoint must hold all that --resume needs; its weights can be used as they are",
        "save_on_each_node": "machines share the run directory",
        "prediction_loss_only": _EVALUATION,
        "batch_eval_metrics": _EVALUATION,
        "include_for_metrics": _EVALUATION,
        "eval_do_concat_batches": _EVALUATION,
        "eval_use_gather_object": _EVALUATION,
    },
    "LoraConfig": {
        "task_type": _ADAPTER,
        "peft_type": _ADAPTER,
        "base_model_name_or_path": "use `model.name`",
        "revision": "use `model.revision`",
        "inference_mode": "training trains the adapter",
        "auto_mapping": _ADAPTER,
        "peft_version": "the installed version is recorded",
    },
    "GenerationConfig": {
        "return_dict_in_generate": _OUTPUTS,
        "output_attentions": _OUTPUTS,
        "output_hidden_states": _OUTPUTS,
        "output_scores": _OUTPUTS,
        "output_logits": _OUTPUTS,
        "transformers_version": "the installed version is recorded",
    },
}

_ANSWERS = "leave it out: of a conversation the assistant's turns alone are learned"
_TOKENIZER = "leave it out: the tokenizer of the model says which, and its chat template which one ends a turn"

# What trl's SFTConfig and SFTTrainer have beside TrainingArguments: what does the same here.
OF_TRL: dict[str, str] = {
    "packing": "use `data.pack`, which packs conversations; texts are packed anyway",
    "eval_packing": "leave it out: each conversation is evaluated by itself",
    "packing_strategy": "leave it out: `data.pack` joins whole conversations, none of which sees another",
    "padding_free": "leave it out: `data.pack` leaves hardly any padding",
    "peft_config": "use the [lora] table",
    "use_peft": "write a [lora] table",
    "model_init_kwargs": "use the [model] table",
    "eos_token": _TOKENIZER,
    "pad_token": _TOKENIZER,
    "assistant_only_loss": _ANSWERS,
    "completion_only_loss": _ANSWERS,
    "response_template": _ANSWERS,
    "chat_template_path": "leave it out: the tokenizer's own chat template is used",
    "formatting_func": "name the columns in [data]",
    "dataset_text_field": "name the columns in [data]",
    "dataset_kwargs": "see the keys of [data]",
    "dataset_num_proc": "leave it out: the tokenizer works on all cores by itself",
    "shuffle_dataset": "leave it out: rows are shuffled, unless `train_sampling_strategy` says otherwise",
    "loss_type": "leave it out: the loss is cross-entropy",
}

_DATA_DRIVEN = 'of the data before the first step, which llmkit does not compute; use "pissa" or "olora"'
_LOSS = "its loss needs a term that the training loop must add, and llmkit's does not; use `use_dora`"
_START = "it belongs to an initialization of the adapter that llmkit does not have; see `init_lora_weights`"

# Starts of an adapter that peft leaves half done, or whose base nothing saves; by how their names begin.
STARTS_REFUSED = {
    "eva": f"it needs the activations {_DATA_DRIVEN}",
    "corda": f"it needs the activations {_DATA_DRIVEN}",
    "lora_ga": f"it needs the gradients {_DATA_DRIVEN}",
    "loftq": "its adapter fits only the base that it quantized, which a run does not save; use `model.load_in_4bit`",
}
# Fields of LoraConfig that would not do what they say.
REFUSED = {
    "eva_config": _START,
    "corda_config": _START,
    "lora_ga_config": _START,
    "loftq_config": _START,
    "kasa_config": _LOSS,
    "monteclora_config": _LOSS,
    "arrow_config": "it chooses between adapters that are trained already, and a run trains one",
    "layer_replication": "such a model can neither be loaded again by its name nor merged; use `target_modules`",
}

_LEAVE = "leave it out"

# Fields that transformers 5 dropped: the one that replaced it, if any, and what to do; `{value}` is the user's value.
DROPPED: dict[str, tuple[str, str]] = {
    "warmup_ratio": ("warmup_steps", "use `warmup_steps = {value}`"),
    "logging_dir": ("", f"{_LEAVE}: logs go to the run directory (for TensorBoard set TENSORBOARD_LOGGING_DIR)"),
    "overwrite_output_dir": ("", f"{_LEAVE}: a run never overwrites another; use `--resume` or another `--output-dir`"),
    "no_cuda": ("use_cpu", "use `use_cpu = {value}`"),
    "use_mps_device": ("", f"{_LEAVE}: an Apple GPU is used where there is one; `use_cpu = true` turns it off"),
    "group_by_length": ("train_sampling_strategy", 'use `train_sampling_strategy = "group_by_length"`'),
    "evaluation_strategy": ("eval_strategy", "use `eval_strategy = {value}`"),
    "evaluate_during_training": ("eval_strategy", 'use `eval_strategy = "steps"`'),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", "use `per_device_train_batch_size = {value}`"),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size", "use `per_device_eval_batch_size = {value}`"),
    "tokenizer": ("", "use the [tokenizer] table (`Trainer` calls it `processing_class`)"),
    "adafactor": ("optim", 'use `optim = "adafactor"`'),
    "fp16_backend": ("fp16", f"{_LEAVE}: PyTorch's own mixed precision is the only one; `fp16` and `bf16` turn it on"),
    "half_precision_backend": ("fp16", f"{_LEAVE}: PyTorch's own mixed precision is the only one; see `fp16`, `bf16`"),
    "fp16_opt_level": ("fp16", f"{_LEAVE}: it belonged to Apex, which is gone; use `fp16` or `bf16`"),
    "tpu_num_cores": ("", f"{_LEAVE}: the launcher decides; use `--processes` or `--accelerate-config`"),
    "tpu_metrics_debug": ("debug", 'use `debug = "tpu_metrics_debug"`'),
    "xpu_backend": ("ddp_backend", "use `ddp_backend = {value}`"),
    "dispatch_batches": ("accelerator_config", "use `accelerator_config = { dispatch_batches = {value} }`"),
    "split_batches": ("accelerator_config", "use `accelerator_config = { split_batches = {value} }`"),
    "include_inputs_for_metrics": ("", f"{_LEAVE}: {_EVALUATION}"),
    "include_tokens_per_second": (
        "include_num_input_tokens_seen",
        f"{_LEAVE}; `include_num_input_tokens_seen` counts the tokens",
    ),
    "save_safetensors": ("", f"{_LEAVE}: safetensors is the only format"),
    "torchdynamo": ("torch_compile_backend", "use `torch_compile_backend = {value}`"),
    "ray_scope": ("", f"{_LEAVE}: it belongs to Ray's hyperparameter search"),
    "jit_mode_eval": ("torch_compile", f"{_LEAVE}; `torch_compile = true` compiles the model"),
    "use_ipex": ("", f"{_LEAVE}: Intel's optimizations are part of PyTorch now"),
    "past_index": ("", f"{_LEAVE}: nothing replaced it"),
    "mp_parameters": ("", f"{_LEAVE}: it belonged to SageMaker's launcher; use `--accelerate-config`"),
    "sharded_ddp": ("fsdp", "use `fsdp` with `fsdp_config`, or `--accelerate-config`"),
    "fsdp_min_num_params": ("fsdp_config", "use `fsdp_config = { min_num_params = {value} }`"),
    "fsdp_transformer_layer_cls_to_wrap": (
        "fsdp_config",
        "use `fsdp_config = { transformer_layer_cls_to_wrap = [{value}] }`",
    ),
}


@dataclass(frozen=True)
class Field:
    """A keyword argument of an upstream class; `default` is source text where it is no plain value."""

    name: str
    annotation: str
    default: Any
    deprecated: str  # upstream's own words, or nothing
    module: Path  # where the names in `annotation` come from

    @cached_property
    def type(self) -> Type:
        """Return the type of TOML value that it takes."""
        return read_annotation(self.annotation, lambda name: _enum_values(name, self.module))


@cache
def installed(class_name: str) -> str:
    """Name the library that defines a class, and its version: `transformers 5.23`."""
    from importlib.metadata import version  # costs as much as everything else here, and only messages need it

    package = CLASSES[class_name][0]
    return f"{package} {'.'.join(version(package).split('.')[:2])}"


@cache
def fields(class_name: str) -> Mapping[str, Field]:
    """Return the fields of `class_name`, a key of CLASSES, in the installed version."""
    package, module = CLASSES[class_name]
    path = _folder(package) / module
    if class_name == "GenerationConfig":
        return _popped_fields(path)
    return _dataclass_fields(class_name, path)


_DOCUMENTED = re.compile(r"^    (\w+) ?\(.*?\):\n((?:(?:     .*)?\n)+)", re.MULTILINE)


@cache
def documentation(class_name: str) -> Mapping[str, str]:
    """Return what the docstring of `class_name`, a key of CLASSES, says of each of its fields, in one paragraph."""
    package, module = CLASSES[class_name]
    located = _find_class(class_name, _folder(package) / module)
    docstring = (ast.get_docstring(located[0]) if located else "") or ""
    return {name: " ".join(body.split()) for name, body in _DOCUMENTED.findall(docstring + "\n")}


def architecture(model_type: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the defaults of an architecture's configuration, and the names that it has for what all have.

    Both are empty where transformers has no file for it.
    """
    folder = model_type.replace("-", "_")
    path = _folder("transformers") / "models" / folder / f"configuration_{folder}.py"
    defaults: dict[str, Any] = {"tie_word_embeddings": True}
    names: dict[str, str] = {}
    if not path.is_file():
        return {}, {}
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and _assigned(node).get("model_type") == model_type:
            fields = _dataclass_fields(node.name, path)
            defaults |= {name: field.default for name, field in fields.items()}
            names = dict(_assigned(node).get("attribute_map") or {})
            defaults["model_type"] = model_type
    return defaults, names


def _assigned(definition: ast.ClassDef) -> dict[str, Any]:
    """Return what a class assigns to its names without a type."""
    plain = (node for node in definition.body if isinstance(node, ast.Assign))
    return {target.id: _plain(node.value) for node in plain for target in node.targets if isinstance(target, ast.Name)}


def text(class_name: str) -> str:
    """Return the source of the module that defines `class_name`, a key of CLASSES."""
    package, module = CLASSES[class_name]
    return (_folder(package) / module).read_text(encoding="utf-8")


def refusal(class_name: str, key: str, value: Any) -> str:
    """Explain why `key` cannot be set to `value` although it is spelt correctly; "" if it can be.

    The run sets the field itself, upstream dropped it, or it would not do what it says.
    """
    if reason := OWNED[class_name].get(key):
        return f"set by the run itself; {reason}"
    if class_name == "LoraConfig" and key in REFUSED:
        return f"not in llmkit: {REFUSED[key]}"
    if class_name == "LoraConfig" and key == "init_lora_weights":
        for start, reason in STARTS_REFUSED.items():
            if str(value).lower().startswith(start):
                return f"{toml_value(value)} is not in llmkit: {reason}"
    if class_name == "TrainingArguments" and key in DROPPED and key not in fields(class_name):
        advice = DROPPED[key][1].replace("{value}", toml_value(value))
        return f"not a field of {class_name} in {installed(class_name)}; {advice}"
    if class_name == "TrainingArguments" and key in OF_TRL and key not in fields(class_name):
        return f"a field of trl's SFTConfig; {OF_TRL[key]}"
    return ""


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find_class(name: str, path: Path) -> tuple[ast.ClassDef, Path] | None:
    """Find the definition of a class that a module defines, or imports from its own package; return its module too."""
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, path
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            source = _imported(node, path)
            return _find_class(name, source) if source else None
    return None


def _imported(node: ast.ImportFrom, path: Path) -> Path | None:
    parts = (node.module or "").split(".")
    if node.level:
        folder = path.parents[node.level - 1]
    else:
        folder = next((parent for parent in path.parents if parent.name == parts[0]), path.parent / "nowhere")
        parts = parts[1:]
    target = folder.joinpath(*filter(None, parts))
    return next((file for file in (target.with_suffix(".py"), target / "__init__.py") if file.is_file()), None)


def _enum_values(name: str, module: Path) -> tuple[str, ...]:
    definition = _find_class(name, module)
    if definition is None or not any(ast.unparse(base).endswith("Enum") for base in definition[0].bases):
        return ()
    assigned = (node.value for node in definition[0].body if isinstance(node, ast.Assign))
    return tuple(value.value for value in assigned if isinstance(value, ast.Constant) and isinstance(value.value, str))


def _dataclass_fields(name: str, path: Path) -> dict[str, Field]:
    located = _find_class(name, path)
    if located is None:
        return {}
    definition, path = located
    result: dict[str, Field] = {}
    for base in definition.bases:
        result |= _dataclass_fields(ast.unparse(base), path)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            options = (
                {keyword.arg: keyword.value for keyword in node.value.keywords}
                if isinstance(node.value, ast.Call)
                else {}
            )
            if "init" in options or ast.unparse(node.annotation).startswith("ClassVar"):
                continue
            metadata, annotation = _metadata(options.get("metadata")), ast.unparse(node.annotation)
            if isinstance(metadata.get("const"), bool):  # `fsdp: str | None`, which takes true as well
                annotation += " | bool"
            help_text = metadata.get("help", "")
            deprecated = help_text if help_text.startswith("Deprecated") else ""
            default = _default(options, node.value)
            result[node.target.id] = Field(node.target.id, annotation, default, deprecated, path)
    return result


def _metadata(node: ast.expr | None) -> dict[str, Any]:
    if not isinstance(node, ast.Dict):
        return {}
    pairs = zip(node.keys, node.values, strict=True)
    return {str(key.value): _plain(value) for key, value in pairs if isinstance(key, ast.Constant)}


def _default(options: dict[str | None, ast.expr], value: ast.expr | None) -> Any:
    if factory := options.get("default_factory"):
        return {"list": [], "dict": {}}.get(ast.unparse(factory), ast.unparse(factory))
    chosen = options.get("default", None if options else value)
    return None if chosen is None else _plain(chosen)


def _plain(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


_ARGUMENT = re.compile(r"^\s+(\w+)\s*:?\s*\((.+?)\)+:?\s*$", re.MULTILINE)


def _popped_fields(path: Path) -> dict[str, Field]:
    """Read the fields of GenerationConfig: what `__init__` pops from `**kwargs`, with types from the docstring."""
    located = _find_class("GenerationConfig", path)
    if located is None:
        return {}
    definition, path = located
    documented = dict(_ARGUMENT.findall(ast.get_docstring(definition, clean=False) or ""))
    lines = path.read_text(encoding="utf-8").splitlines()
    result: dict[str, Field] = {}
    for node in ast.walk(
        next(statement for statement in definition.body if getattr(statement, "name", "") == "__init__")
    ):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "kwargs.pop":
            name, default = map(_plain, node.args)
            if not name.startswith("_"):
                annotation = _docstring_type(documented.get(name, ""))
                result[name] = Field(name, annotation, default, _heading(lines, node.lineno), path)
    return result


def _docstring_type(text: str) -> str:
    """Turn "`int` or `list[int]`, *optional*" into `int | list[int]`; what cannot be parsed becomes `Any`."""
    text = re.split(r",\s*(?:\*optional\*|default)", text)[0].replace("`", "").replace(" or ", " | ")
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return "Any"
    return text


def _heading(lines: list[str], number: int) -> str:
    """Return the comment above the paragraph of line `number` if it begins with "Deprecated", else ""."""
    index = number - 1
    while lines[index].strip() and not lines[index].strip().startswith("#"):
        index -= 1
    comment = lines[index].strip().removeprefix("# ")
    return comment if comment.startswith("Deprecated") else ""
