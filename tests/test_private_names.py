"""What llmkit uses of its libraries that they do not promise: a release that moves a name of it fails here, by name.

The overridden methods of Trainer have a test of their own (training/test_trainer.py).
"""

import ast
import inspect
import mmap
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
import torch
import transformers
from accelerate.utils import DistributedType
from peft.tuners.tuners_utils import BaseTunerLayer

import llmkit
from llmkit.training.resumable_trainer import ResumableTrainer
from llmkit.training.saving_trainer import SavingTrainer
from llmkit.training.trainer import Trainer

HOUSE = Path(llmkit.__file__).parent
LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "tokenizers", "torch", "transformers")


class Row(NamedTuple):
    """A name, with the module it is found through; the file of llmkit/ that uses it; whether it looks as it must."""

    name: str
    where: str
    looks: Callable[[str], bool]


class Sentence(NamedTuple):
    """What an upstream error or warning says, by which llmkit recognises it; where that is said."""

    words: str
    where: str
    said: Callable[[str], bool]


# ---- how a name must look --------------------------------------------------------------------------------------------


def find(name):
    """What stands under a name such as `torch.cpu._is_amx_tile_supported`; an exception if nothing does."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)


def takes(*parameters):
    """A callable with these parameters, in this order, among others."""

    def looks(name):
        there = [parameter for parameter in inspect.signature(find(name)).parameters if parameter in parameters]
        return tuple(there) == parameters

    return looks


def takes_keyword(name):
    """`module.function.keyword`."""
    function, _, keyword = name.rpartition(".")
    return keyword in inspect.signature(find(function)).parameters


def has(*names):
    return lambda name: all(hasattr(find(name), each) for each in names)


def is_a(kind):
    return lambda name: isinstance(find(name), kind)


def is_kind_of(base):
    return lambda name: issubclass(find(name), base)


def equals(value):
    return lambda name: find(name) == value


def gives(check):
    """What is there passes `check`."""
    return lambda name: bool(check(find(name)))


def maps(key, *values):
    return lambda name: isinstance(find(name), Mapping) and find(name)[key] in values


def assigned(name):
    """An attribute of instances, which a class of the library or one of its bases sets."""
    owner, _, attribute = name.rpartition(".")
    source = "".join(map(source_of, find(owner).__mro__[:-1]))
    return bool(
        re.search(rf"\bself\.{attribute}(?:: [^=\n]+)? = |^ +{attribute}: |\"{attribute}\"", source, re.MULTILINE)
    )


@cache
def source_of(thing):
    return inspect.getsource(thing)


def in_source(*names):
    """The words stand in the source of each of these."""
    return lambda words: all(words in source_of(find(name)) for name in names)


def in_library(name):
    """The words stand in a library of torch's that was compiled from C++."""

    def said(words):
        library = next(Path(torch.__file__).parent.glob(f"lib/*{name}.*"))
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            return memory.find(words.encode()) >= 0

    return said


def raised_by(act):
    def said(words):
        with pytest.raises(Exception, match=re.escape(words)):
            act()
        return True

    return said


def too_few_pieces():
    """A Unigram of fewer entries than there are letters."""
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=2, show_progress=False)
    tokenizers.Tokenizer(tokenizers.models.Unigram()).train_from_iterator(["abcdefgh"], trainer)


def multiplies(product):
    x, y = torch.full((3, 8), 100, dtype=torch.int8), torch.full((8, 5), -100, dtype=torch.int8)
    found = product(x, y)
    return found.dtype == torch.int32 and bool((found == -80_000).all())


# ---- the table -------------------------------------------------------------------------------------------------------

CAUSAL = "transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
FOUND = gives(lambda _: True)  # it is there
SCHEDULER = "torch.optim.lr_scheduler.LRScheduler"
CLASS, FUNCTION = is_a(type), gives(callable)

TABLE = (
    # -- transformers: caches and generation
    Row("transformers.cache_utils.DynamicLayer", "inference/prefill.py", CLASS),
    Row("transformers.cache_utils.DynamicLayer", "inference/onnx_decoder.py", has("lazy_initialization")),
    Row("transformers.cache_utils.DynamicLayer.is_initialized", "inference/prefill.py", assigned),
    Row("transformers.cache_utils.DynamicLayer.keys", "inference/prefill.py", assigned),
    Row("transformers.cache_utils.DynamicLayer.values", "inference/prefill.py", assigned),
    Row(
        "transformers.cache_utils.StaticLayer.lazy_initialization",
        "inference/prefill.py",
        takes("self", "key_states", "value_states"),
    ),
    Row("transformers.cache_utils.StaticLayer.cumulative_length", "inference/prefill.py", assigned),
    Row("transformers.DynamicCache.layers", "inference/prefill.py", assigned),
    Row("transformers.StaticCache", "inference/prefill.py", takes("config", "max_cache_len")),
    Row(
        "transformers.generation.GenerationMode",
        "inference/prefill.py",
        gives(lambda modes: {"GREEDY_SEARCH", "SAMPLE"} <= set(modes.__members__)),
    ),
    Row("transformers.GenerationConfig.get_generation_mode", "inference/prefill.py", FUNCTION),
    Row(
        "transformers.GenerationMixin.prepare_inputs_for_generation",
        "inference/prefill.py",
        gives(lambda method: {"cache", "past_key_values"} & set(inspect.signature(method).parameters)),
    ),
    Row("transformers.PreTrainedModel._can_compile_fullgraph", "inference/prefill.py", is_a(bool)),
    # -- transformers: the exporter to ONNX, and what its files answer in a model's place
    *(
        Row(f"transformers.modeling_outputs.{name}", "export/onnx_compare.py", takes("logits"))
        for name in ("CausalLMOutputWithPast", "Seq2SeqLMOutput", "SequenceClassifierOutput")
    ),
    Row("transformers.modeling_outputs.CausalLMOutputWithPast", "inference/onnx_decoder.py", takes("logits")),
    *(
        Row(f"transformers.cache_utils.DynamicLayer{name}", "inference/onnx_decoder.py", check)
        for name, check in (("", CLASS), (".is_initialized", assigned), (".keys", assigned), (".values", assigned))
    ),
    Row("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS", "export/onnx_step.py", has("register")),
    Row("transformers.PreTrainedConfig._attn_implementation", "export/onnx_step.py", is_a(property)),
    Row("transformers.PreTrainedModel._supports_attention_backend", "export/onnx_step.py", is_a(bool)),
    Row("transformers.exporters.exporter_onnx.OnnxExporter", "export/onnx_step.py", has("save_program")),
    Row("torch.onnx.ops.symbolic_multi_out", "export/onnx_step.py", takes("dtypes", "shapes", "version")),
    Row("transformers.modeling_outputs.BaseModelOutput", "export/onnx_compare.py", takes("last_hidden_state")),
    Row(
        "transformers.modeling_outputs.QuestionAnsweringModelOutput",
        "export/onnx_compare.py",
        takes("start_logits", "end_logits"),
    ),
    Row(
        "transformers.exporters.exporter_onnx.OnnxConfig", "export/onnx_file.py", takes("dynamic_shapes", "ort_fusions")
    ),
    Row("transformers.exporters.exporter_onnx.OnnxExporter", "export/onnx_file.py", has("export", "save_program")),
    Row("transformers.exporters.exporter_onnx.OnnxExporter", "export/onnx_step.py", has("save_program")),
    Row(
        "transformers.modeling_outputs.CausalLMOutputWithPast",
        "inference/onnx_decoder.py",
        takes("logits", "past_key_values"),
    ),
    Row("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS", "export/onnx_step.py", has("register")),
    Row("transformers.PreTrainedModel._supports_attention_backend", "export/onnx_step.py", is_a(bool)),
    Row("transformers.pytorch_utils.Conv1D", "export/onnx_step.py", CLASS),
    Row("transformers.PreTrainedConfig._attn_implementation", "export/onnx_step.py", is_a(property)),
    Row("transformers.exporters.ExportFormat", "export/onnx_file.py", has("ONNX")),
    Row(
        "transformers.exporters.OnnxRuntimeDynamicConfig",
        "export/onnx_file.py",
        takes("op_types_to_quantize", "per_channel", "reduce_range", "weight_type", "nodes_to_exclude"),
    ),
    Row("transformers.exporters.OnnxRuntimeQuantizer", "export/onnx_file.py", has("quantize")),
    # -- transformers: models and their parts
    *(
        Row(f"uvicorn.protocols.http.h11_impl.{name}", "serve/connections.py", assigned)
        for name in ("H11Protocol.cycle", "H11Protocol.transport", "H11Protocol.loop")
    ),
    Row("uvicorn.protocols.http.h11_impl.RequestResponseCycle.response_complete", "serve/connections.py", assigned),
    Row("uvicorn.protocols.http.h11_impl.H11Protocol.on_response_complete", "serve/connections.py", takes("self")),
    Row("uvicorn.Server.capture_signals", "serve/serve.py", takes("self")),
    Row("uvicorn.Server.handle_exit", "serve/serve.py", takes("self", "sig", "frame")),
    Row("transformers.PreTrainedModel.base_model_prefix", "models/weights.py", is_a(str)),
    Row("transformers.PreTrainedModel.base_model", "models/weights.py", is_a(property)),
    Row("transformers.PreTrainedConfig._attn_implementation", "tasks/causal_lm.py", is_a(property)),
    Row("transformers.PreTrainedConfig._attn_implementation", "training/train.py", is_a(property)),
    Row("transformers.BartForConditionalGeneration.final_logits_bias", "models/weights.py", assigned),
    Row("transformers.PreTrainedTokenizerFast._encode_plus", "data/rows/tokenize.py", FUNCTION),
    Row("transformers.NllbTokenizer.set_tgt_lang_special_tokens", "tasks/seq2seq.py", FUNCTION),
    Row("transformers.models.llama.modeling_llama.LlamaRMSNorm.variance_epsilon", "speed/cpu.py", assigned),
    *(
        Row("transformers.pytorch_utils.Conv1D", where, gives(lambda kind: kind(3, 2).weight.shape == (2, 3)))
        for where in ("export/onnx_step.py", "models/quantization.py", "models/trainable.py")
    ),
    *(
        Row(CAUSAL, where, maps("gpt2", "GPT2LMHeadModel"))
        for where in ("models/architectures.py", "inference/generate.py")
    ),
    Row(CAUSAL.replace("CAUSAL", "MASKED"), "models/architectures.py", maps("bert", "BertForMaskedLM")),
    Row(
        CAUSAL.replace("CAUSAL", "SEQ_TO_SEQ_CAUSAL"),
        "models/architectures.py",
        maps("t5", "T5ForConditionalGeneration", ("T5ForConditionalGeneration",)),
    ),
    Row(
        "transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES",
        "models/config.py",
        maps("gpt2", "GPT2Config"),
    ),
    # -- transformers: files
    *(
        Row("transformers.utils.peft_utils.find_adapter_config_file", where, takes("model_id", "revision"))
        for where in ("models/loading.py", "runs/finished.py")
    ),
    *(
        Row("transformers.utils.cached_file", where, takes("path_or_repo_id", "filename", "kwargs"))
        for where in ("models/loading.py", "models/merge.py")
    ),
    *(
        Row(f"transformers.utils.hub.cached_files.{switch}", "models/loading.py", takes_keyword)
        for switch in ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")
    ),
    # -- transformers: training
    Row("transformers.integrations.INTEGRATION_TO_CALLBACK", "training/arguments.py", is_a(dict)),
    Row("transformers.integrations.get_available_reporting_integrations", "training/arguments.py", FUNCTION),
    Row("transformers.trainer.SCHEDULER_NAME", "training/resumable_trainer.py", equals("scheduler.pt")),
    Row("transformers.distributed.fsdp.get_fsdp_ckpt_kwargs", "training/resumable_trainer.py", takes()),
    Row(
        "accelerate.utils.load_fsdp_optimizer",
        "training/resumable_trainer.py",
        takes("fsdp_plugin", "accelerator", "optimizer", "model", "input_dir"),
    ),
    Row(
        "transformers.Trainer.save_model._zero3_consolidated_16bit_state_dict",
        "training/saving_trainer.py",
        lambda name: in_source("transformers.Trainer.save_model")(f"{name.rpartition('.')[2]}(exclude_frozen"),
    ),
    Row("transformers.PreTrainedModel._no_split_modules", "training/strategy.py", FOUND),
    Row("transformers.integrations.deepspeed", "training/zero3.py", FOUND),
    Row("transformers.integrations.deepspeed.is_deepspeed_zero3_enabled", "training/zero3.py", takes()),
    Row("transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref", "training/zero3.py", equals(None)),
    Row("transformers.trainer.TRAINER_STATE_NAME", "training/saving_trainer.py", equals("trainer_state.json")),
    Row("transformers.trainer_callback.PrinterCallback", "training/build.py", is_kind_of(transformers.TrainerCallback)),
    Row(
        "transformers.utils.is_liger_kernel_available",
        "training/arguments.py",
        gives(lambda ask: ask() in (True, False)),
    ),
    Row(
        "transformers.utils.is_torch_tf32_available", "training/arguments.py", gives(lambda ask: ask() in (True, False))
    ),
    *(
        Row(f"transformers.Trainer.{name}", "training/saving_trainer.py", assigned)
        for name in (
            *("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "current_flos", "callback_handler"),
            *("is_deepspeed_enabled", "is_fsdp_enabled", "is_distributed_loading_by_transformers"),
        )
    ),
    *(
        Row(f"transformers.Trainer.{name}", "training/resumable_trainer.py", assigned)
        for name in (
            *("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_train_batch_size"),
            *("callback_handler", "model_wrapped", "is_deepspeed_enabled", "is_fsdp_enabled"),
        )
    ),
    *(
        Row(f"transformers.Trainer.{name}", "training/trainer.py", assigned)
        for name in ("_tr_loss", "_globalstep_last_logged", "_loss_shifts_labels", "model_accepts_loss_kwargs")
    ),
    Row("transformers.Trainer.place_model_on_device", "training/train.py", assigned),
    Row("transformers.Trainer.store_flos", "training/saving_trainer.py", takes("self")),
    *(
        Row("transformers.Trainer.get_total_train_batch_size", where, takes("self", "args"))
        for where in ("training/saving_trainer.py", "training/resumable_trainer.py")
    ),
    Row(
        "transformers.Trainer._save_optimizer_and_scheduler",
        "training/saving_trainer.py",
        takes("self", "output_dir"),
    ),
    Row("transformers.Trainer._prepare_inputs", "training/trainer.py", takes("self", "inputs")),
    Row("transformers.Trainer._prepare_inputs", "training/batch_size.py", takes("self", "inputs")),
    Row("transformers.Trainer.compute_loss_context_manager", "training/trainer.py", takes("self")),
    Row("transformers.Trainer.save_model._internal_call", "training/saving_trainer.py", takes_keyword),
    Row("transformers.TrainerState.compute_steps", "training/resumable_trainer.py", takes("self", "args", "max_steps")),
    Row("transformers.TrainerState.stateful_callbacks", "training/max_time.py", assigned),
    Row("transformers.TrainerState.best_global_step", "training/saving_trainer.py", assigned),
    Row("transformers.EarlyStoppingCallback.early_stopping_patience_counter", "training/early_stopping.py", assigned),
    # -- torch
    Row("torch._int_mm", "models/quantization.py", gives(multiplies)),
    Row("torch.Tensor._version", "models/quantization.py", gives(lambda _: torch.zeros(1).add_(1)._version == 1)),
    *(
        Row(f"torch.cpu.{name}", file, gives(lambda ask: ask() in (True, False)))
        for name, file in (
            ("_is_avx512_bf16_supported", "training/arguments.py"),
            ("_is_avx512_bf16_supported", "speed/bf16.py"),
            ("_is_amx_tile_supported", "speed/bf16.py"),
        )
    ),
    Row("torch.cpu._is_amx_tile_supported", "training/arguments.py", gives(lambda ask: ask() in (True, False))),
    Row("torch.nn.Module._modules", "tasks/multi_task.py", assigned),
    *(
        Row(f"{SCHEDULER}._last_lr", where, assigned)
        for where in ("training/max_time.py", "training/resumable_trainer.py")
    ),
    *(
        Row(f"{SCHEDULER}.base_lrs", where, assigned)
        for where in ("training/max_time.py", "training/resumable_trainer.py")
    ),
    Row(f"{SCHEDULER}._step_count", "training/resumable_trainer.py", assigned),
    *(
        Row("torch.optim.lr_scheduler.LambdaLR.lr_lambdas", where, assigned)
        for where in ("training/max_time.py", "training/resumable_trainer.py")
    ),
    Row("torch.optim.Adam.found_inf", "training/guard.py", assigned),
    *(Row(f"torch.distributed.{name}", "launched.py", gives(callable)) for name in ("TCPStore", "PrefixStore")),
    Row("torch.distributed.DistError", "training/failures.py", is_kind_of(RuntimeError)),
    # -- accelerate
    Row(
        "accelerate.utils.DistributedType",
        "training/trainer.py",
        gives(lambda kinds: {"NO", "MULTI_GPU", "MULTI_CPU"} <= set(kinds.__members__) and kinds is DistributedType),
    ),
    Row("accelerate.Accelerator.scaler", "training/trainer.py", assigned),
    Row("accelerate.data_loader.DataLoaderAdapter.base_dataloader", "training/trainer.py", assigned),
    Row("accelerate.data_loader.BatchSamplerShard.batch_sampler", "training/resumable_trainer.py", assigned),
    Row("accelerate.optimizer.AcceleratedOptimizer.optimizer", "training/guard.py", assigned),
    Row("accelerate.commands.accelerate_cli", "accelerate_launch.py", gives(lambda module: callable(module.main))),
    # -- peft
    Row(
        "peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
        "models/trainable.py",
        maps("gpt2", ["c_attn"]),
    ),
    Row("peft.utils.load_peft_weights", "models/loading.py", takes("model_id", "device")),
    Row("peft.get_peft_model_state_dict", "models/loading.py", takes("model", "save_embedding_layers")),
    Row("peft.get_peft_model", "models/trainable.py", takes("model", "peft_config", "revision")),
    Row("peft.PeftModel.get_base_model", "models/loading.py", takes("self")),
    Row("peft.PeftModel.peft_config", "models/loading.py", is_a(property)),
    *(Row("peft.LoraModel.merge_and_unload", f"models/{file}.py", FUNCTION) for file in ("quantization", "merge")),
    Row("peft.tuners.tuners_utils.BaseTunerLayer", "models/merge.py", is_a(type)),
    Row("peft.tuners.lora.LoraLayer", "models/trainable.py", is_kind_of(BaseTunerLayer)),
    Row("peft.tuners.tuners_utils.BaseTunerLayer.get_base_layer", "models/merge.py", takes("self")),
    *(
        Row(f"peft.tuners.lora.LoraLayer.{name}", "models/trainable.py", assigned)
        for name in ("lora_A", "lora_B", "scaling")
    ),
    # -- typer
    Row("typer._click.core.Context._opt_prefixes", "cli/style.py", assigned),
    # -- torch: a step without its numbers
    Row("torch._subclasses.fake_tensor.FakeTensorMode", "plan/trace.py", CLASS),
    Row("torch.distributed._tools.mem_tracker.MemTracker", "plan/trace.py", CLASS),
    *(
        Row(f"torch.distributed._tools.mem_tracker.MemTracker.{name}", "plan/trace.py", assigned)
        for name in ("_curr_mem_snap", "_peak_mem", "_peak_mem_snap")
    ),
    Row("torch.nn.Module._apply", "plan/trace.py", takes("self", "fn", "recurse")),
    Row("torch.utils.flop_counter.FlopCounterMode", "plan/trace.py", CLASS),
    *(
        Row(f"torch.utils.flop_counter.{name}", "plan/trace.py", FUNCTION)
        for name in ("sdpa_flop_count", "sdpa_backward_flop_count")
    ),
    *(
        Row(f"torch.ops.aten.{name}", "plan/trace.py", FUNCTION)
        for name in (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward",
        )
    ),
    Row("transformers.trainer", "plan/show.py", gives(inspect.ismodule)),
    # -- accelerate: what a process knows of itself, which a caller from Python gets back
    *(
        Row(f"accelerate.state.{name}{attribute}", "api/guest.py", look)
        for name in ("AcceleratorState", "PartialState", "GradientState")
        for attribute, look in {"": CLASS, "._shared_state": is_a(dict)}.items()
    ),
    # -- datasets
    *(
        Row("datasets.config.HF_HUB_OFFLINE", where, is_a(bool))
        for where in ("hub.py", "data/rows/table.py", "data/rows/head.py", "dry_run/texts.py")
    ),
    Row("datasets.Dataset._fingerprint", "data/rows/table.py", assigned),
    Row("datasets.Dataset._fingerprint", "data/text/documents.py", assigned),
    Row("datasets.Dataset.cache_files", "data/rows/table.py", is_a(property)),
    # -- huggingface_hub
    *(
        Row(f"huggingface_hub.constants.{name}", "hub.py", is_a(kind))
        for name, kind in {
            "ENDPOINT": str,
            "HF_HUB_CACHE": str,
            "DEFAULT_REVISION": str,
            "HF_HUB_OFFLINE": bool,
        }.items()
    ),
    *(
        Row(f"huggingface_hub.constants.{name}", "doctor.py", is_a(kind))
        for name, kind in {"ENDPOINT": str, "HF_HOME": str, "HF_HUB_OFFLINE": bool}.items()
    ),
    Row("huggingface_hub.hf_file_system.HfFileSystemFile", "data/rows/head.py", gives(inspect.isclass)),
    Row("huggingface_hub.hf_file_system.HfFileSystemFile._fetch_range", "data/rows/head.py", takes("start", "end")),
    Row("huggingface_hub.constants.HF_HOME", "disk.py", is_a(str)),
    Row("huggingface_hub.utils._http.default_client_factory", "hub.py", takes()),
    Row("huggingface_hub.file_download.repo_folder_name", "hub.py", takes("repo_id", "repo_type")),
    Row(
        "huggingface_hub.HfApi.resolve_revision",
        "hub.py",
        takes("repo_id", "repo_type", "revision", "local_files_only"),
    ),
    Row("huggingface_hub.ResolvedRevision", "data/rows/table.py", takes("resolved", "initial", "repo_id", "repo_type")),
    Row("huggingface_hub.utils.logging", "hub.py", gives(inspect.ismodule)),
)

SENTENCES = (
    # -- matplotlib: letters that its font lacks, which a browser has
    Sentence(
        "Glyph .* missing from font",
        "reports/pictures.py",
        lambda words: in_source("matplotlib._text_helpers")("missing from font"),
    ),
    # -- torch, its C++ too; how gloo ends is run in training/test_failures.py
    Sentence("DataLoader worker", "training/saving_trainer.py", in_source("torch.utils.data.dataloader")),
    Sentence("DataLoader worker", "training/failures.py", in_source("torch.utils.data.dataloader")),
    Sentence("exited unexpectedly", "training/failures.py", in_source("torch.utils.data.dataloader")),
    Sentence("DataLoader timed out", "training/failures.py", in_source("torch.utils.data.dataloader")),
    Sentence("is killed by signal", "training/failures.py", in_library("torch_python")),
    Sentence("Timed out waiting", "training/failures.py", in_library("torch_cpu")),
    Sentence("gloo/transport", "training/failures.py", in_library("torch_cpu")),
    Sentence(
        "probability tensor",
        "inference/generate.py",
        raised_by(lambda: torch.multinomial(torch.tensor([float("nan"), 1.0]), 1)),
    ),
    # -- tokenizers
    Sentence("not large enough", "models/tokenizer.py", raised_by(too_few_pieces)),
    # -- transformers
    Sentence("Unfeasible length constraints", "inference/generate.py", in_source("transformers.generation.utils")),
    Sentence("`is_gradient_checkpointing`", "models/loading.py", in_source("transformers.modeling_utils")),
    Sentence("no file named", "hub.py", in_source("transformers.modeling_utils")),
    Sentence(
        "does not appear to have a file named",
        "hub.py",
        in_source("transformers.modeling_utils", "transformers.utils.hub"),
    ),
    Sentence("trust_remote_code=True", "hub.py", in_source("transformers.dynamic_module_utils")),
    Sentence("metric_for_best_model", "training/failures.py", in_source("transformers.Trainer._determine_best_metric")),
    Sentence("DISABLE_SAFETENSORS_CONVERSION", "hub.py", in_source("transformers.modeling_utils")),
    # -- accelerate: what it is told in the environment
    Sentence(
        "ACCELERATE_MIXED_PRECISION", "training/arguments.py", in_source("accelerate.utils.launch", "accelerate.state")
    ),
    Sentence("ACCELERATE_USE_CPU", "training/arguments.py", in_source("accelerate.utils.launch", "accelerate.state")),
    # -- peft
    Sentence("Found missing adapter keys", "models/loading.py", in_source("peft.peft_model")),
    Sentence("base_model.model.", "models/loading.py", in_source("peft.peft_model")),
    Sentence("base_model.model.", "models/trainable.py", in_source("peft.peft_model")),
    Sentence("Using Rank-Stabilized LoRA with rank_pattern", "models/loading.py", in_source("peft.tuners.lora.config")),
    *(
        Sentence(words, "models/loading.py", in_source("peft.tuners.tuners_utils"))
        for words in (
            "Model with `tie_word_embeddings=True` and the",
            "Input and output embeddings are no longer tied",
        )
    ),
    # -- datasets
    Sentence("Couldn't find cache", "hub.py", in_source("datasets.packaged_modules.cache.cache")),
    # -- huggingface_hub
    Sentence("Retrying in", "hub.py", in_source("huggingface_hub.utils._http")),
    Sentence("Rate limited", "hub.py", in_source("huggingface_hub.utils._http")),
    Sentence("Trying to resume", "hub.py", in_source("huggingface_hub.file_download")),
)


# ---- what is tested --------------------------------------------------------------------------------------------------


def moved(row):
    """What is no longer as llmkit needs it, in words; nothing if all is well."""
    try:
        there = row.looks(row.name)
    except (AttributeError, ImportError, LookupError, TypeError, ValueError, OSError):
        there = False
    library = row.name.partition(".")[0]
    return "" if there else f"{library} {version(library)}: {row.name}, which llmkit/{row.where} uses, has moved"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.name}-{row.where}")
def test_a_private_name_is_there_and_looks_as_it_must(row):
    assert moved(row) == ""


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda each: f"{each.words}-{each.where}")
def test_a_sentence_by_which_an_error_is_known_is_still_said(sentence):
    assert sentence.said(sentence.words)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch, "_int_mm"),
        (transformers.cache_utils, "DynamicLayer"),
        (transformers.Trainer, "_prepare_inputs"),
    ],
)
def test_a_name_that_moves_is_named(owner, name, monkeypatch):
    rows = [row for row in TABLE if row.name.endswith(f".{name}")]
    assert [moved(row) for row in rows] == [""] * len(rows)
    monkeypatch.delattr(owner, name)
    for row in rows:
        assert row.name in moved(row) and row.where in moved(row)


def test_so_is_one_that_takes_something_else_or_is_something_else(monkeypatch):
    monkeypatch.setattr(transformers.Trainer, "_prepare_inputs", lambda self, batch: batch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", "no")
    monkeypatch.setattr(torch, "_int_mm", lambda x, y: x.float() @ y.float())
    told = "\n".join(map(moved, TABLE))
    for name in ("transformers.Trainer._prepare_inputs", "huggingface_hub.constants.HF_HUB_OFFLINE", "torch._int_mm"):
        assert f": {name}, which" in told


def test_every_name_in_the_table_is_used_where_it_says():
    for row in (*TABLE, *SENTENCES):
        words = row.words if isinstance(row, Sentence) else row.name.rpartition(".")[2]
        assert words in (HOUSE / row.where).read_text(), (
            f"{row.where} has no {words} any more: take it out of the table"
        )


# ---- that the table has them all -------------------------------------------------------------------------------------

# Modules that their libraries document, names and all.
DOCUMENTED = {
    *("torch.distributed.tensor", "torch.distributed.checkpoint.format_utils"),
    *("torch.nn", "torch.nn.functional", "torch.optim.lr_scheduler", "torch.utils.data"),
    *("huggingface_hub", "huggingface_hub.errors", "transformers.utils.logging"),
}
PRIVATE = re.compile(r"_[A-Za-z]\w*")
OF_PYTHON = {"os._exit"}


@cache
def trees():
    return {str(file.relative_to(HOUSE)): ast.parse(file.read_text()) for file in sorted(HOUSE.rglob("*.py"))}


@cache
def own():
    """Private names that llmkit itself gives to functions, methods, classes, modules and attributes."""
    given = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                given.add(node.name)
            elif isinstance(node, ast.arg):
                given.add(node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and called(node) == "self":
                given.add(node.attr)
    return given


def called(node):
    return ast.unparse(node.value)


@cache
def of_trainer():
    """The private names of upstream's Trainer: methods, and what it sets on itself."""
    return set(re.findall(r"\bself\.(_\w+)", source_of(transformers.Trainer))) | set(vars(transformers.Trainer))


def attributes(tree):
    """Private attributes of anything that is not llmkit's own, in the Trainer those too that upstream has as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr) and ast.unparse(node) not in OF_PYTHON:
            trainer = called(node) in ("self", "super()", "trainer", "self.trainer") and node.attr in of_trainer()
            if trainer or node.attr not in own():
                yield node.attr


def keywords(tree):
    """Private keywords in calls, and private names that are asked for in words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (word.arg for word in node.keywords if word.arg and PRIVATE.fullmatch(word.arg))
            if ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
                asked = node.args[1]
                if isinstance(asked, ast.Constant) and PRIVATE.fullmatch(asked.value):
                    yield asked.value


def imports(tree):
    """What comes from within a library, and the constants of its modules of settings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in LIBRARIES:
            for name in node.names:
                path = f"{node.module}.{name.name}"
                if "." in node.module and node.module not in DOCUMENTED and path not in DOCUMENTED:
                    yield name.name
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] in LIBRARIES and "." in name.name and name.name not in DOCUMENTED:
                    yield name.name.rpartition(".")[2]
        elif (
            isinstance(node, ast.Attribute) and node.attr.isupper() and re.search(r"constants$|\.config$", called(node))
        ):
            yield node.attr


def sentences(tree):
    """Words that are looked for in what was raised, warned of or logged."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            looked_for, text = node.left, ast.unparse(node.comparators[0])
            if isinstance(looked_for, ast.Constant) and text in ("str(problem)", "str(caught)", "said"):
                yield looked_for.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.filterwarnings":
            yield node.args[1].value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "said.startswith",
            "record.getMessage().startswith",
        ):
            yield from ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Tuple) else [node.args[0].value]


@pytest.mark.parametrize("kind", [attributes, keywords, imports])
def test_every_private_name_is_in_the_table(kind):
    known = {(row.where, row.name.rpartition(".")[2]) for row in TABLE}
    lacking = [(file, name) for file, tree in trees().items() for name in kind(tree) if (file, name) not in known]
    overridden = {*vars(Trainer), *vars(ResumableTrainer), *vars(SavingTrainer)}  # whose signatures have a test
    assert [(file, name) for file, name in lacking if name not in overridden] == []


def test_every_sentence_by_which_an_error_is_known_is_in_the_table():
    known = {(sentence.where, sentence.words) for sentence in SENTENCES}
    found = {(file, words) for file, tree in trees().items() for words in sentences(tree)}
    assert {(file, words) for file, words in found - known if file != "data/rows/labels.py"} == set()  # its own words
