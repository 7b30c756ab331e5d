"""`[trainer]` as transformers' TrainingArguments: precision, kernels, threads, and the other processes of a run."""

import os
import platform
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available, is_torch_tf32_available

from llmkit.errors import UserError
from llmkit.recipe.schema import Recipe, Speed
from llmkit.recipe.table import ReadOnly
from llmkit.recipe.types import nearest
from llmkit.speed import cpu

# Upstream lets DDP look for unused parameters at every step; our models use all of theirs.
FITTING_DEFAULTS = {"ddp_find_unused_parameters": False}


MOST_DATA_WORKERS = 2  # of each process, where the recipe does not say; tokens are cut and padded, no images decoded
SEVERAL_TASKS = {"ddp_find_unused_parameters": True}  # a batch has one task: the other heads rest


def launched_precision() -> str | None:
    """Return the half precision that the user's Accelerate file asks for, which the launcher hands on."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    return launched if launched in ("bf16", "fp16") else None


def choose_precision(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """bf16 on a GPU that is fast at it where nobody says otherwise, else fp32; and why, in words.

    The recipe comes first, then the user's Accelerate file. On a CPU `own_machine` chooses, by what was measured.
    """
    gpu = torch.cuda.is_available() and not settings.get("use_cpu")
    launched = launched_precision()
    if launched and not {"bf16", "fp16"} & settings.keys():
        settings = {**settings, launched: True}
    if "bf16" in settings or "fp16" in settings:
        if gpu or not (settings.get("bf16") or settings.get("fp16")):
            return settings, "as asked"
        if settings.get("bf16") and has_fast_bf16():
            return {**settings, "use_cpu": True}, "bf16 on this CPU, as asked"
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        return {
            **settings,
            "bf16": False,
            "fp16": False,
        }, f"trainer.{'bf16' if settings.get('bf16') else 'fp16'} is set, but this hardware is not fast at it"
    if gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        return {**settings, "bf16": True}, "this GPU is fast at bf16"
    if gpu:
        return settings, "this GPU has no bf16"
    fast = "this CPU is fast at bf16 too: trainer.bf16 = true" if has_fast_bf16() else "this CPU has no fast bf16"
    return settings, fast


def choose_kernels(settings: dict[str, Any]) -> dict[str, Any]:
    """TF32 and Liger's kernels on a GPU that has the one and where the other are installed; each is off by its key.

    `trainer.torch_compile` is left to the user: it takes minutes before the first step.
    """
    if not torch.cuda.is_available() or settings.get("use_cpu"):
        return settings
    return {"tf32": is_torch_tf32_available(), "use_liger_kernel": is_liger_kernel_available(), **settings}


def use_cpu(args: TrainingArguments, speed: Speed) -> dict[str, Any]:
    """As many threads as asked for, or as there are cores, unless the environment says how many; what was chosen."""
    if args.device.type != "cpu":
        return {}
    if speed.threads is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(speed.threads or cpu.share(1))
    return {"threads": torch.get_num_threads(), "reuse_memory": speed.reuse_memory and cpu.reuse_memory()}


def fit_memory(on_cpu: dict[str, Any], peak: int | None) -> tuple[dict[str, Any], list[str]]:
    """Give freed memory back where the recipe says so, or where too little is free to keep it.

    Args:
        on_cpu: What `use_cpu` chose.
        peak: Bytes of the tensors of this machine's processes at the peak of a step; None where that is not known.

    Returns:
        What is chosen now, and the notes on it.
    """
    if not on_cpu or (on_cpu["reuse_memory"] and (peak is None or cpu.has_room(peak))):
        return on_cpu, []
    cpu.give_memory_back()
    short = "little memory is free: the system gets back at once what tensors leave, which costs some time"
    return {**on_cpu, "reuse_memory": False}, [short] * on_cpu["reuse_memory"]


def has_fast_bf16() -> bool:
    """The CPU multiplies bf16 in hardware (AVX512-BF16 or AMX); without, it is hundreds of times slower than fp32."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def weights_in(precision: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that load weights in bf16 or fp32.

    Raises UserError where the hardware is not fast at bf16.
    """
    gpu = torch.cuda.is_available()
    if precision == "bf16" and not (
        torch.cuda.is_bf16_supported(including_emulation=False) if gpu else has_fast_bf16()
    ):
        raise UserError(
            f"--precision bf16: this {'GPU has no bf16' if gpu else 'CPU has no fast bf16 (AVX512-BF16 or AMX)'}, "
            "which would take hundreds of times as long",
            "leave it out" if gpu else "leave it out; on a CPU, --quantize int8 is faster for most models that predict",
        )
    return {"dtype": {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]}


def choose_data_workers(recipe: Recipe, begun: Mapping[str, Any] | None) -> Recipe:
    """Let other processes make the batches for a GPU, which would wait meanwhile; a CPU computes in the same time.

    A run that is resumed keeps what its recipe, the tables `begun`, has: in earlier versions none.
    """
    key = "dataloader_num_workers"
    if key in recipe.trainer or not torch.cuda.is_available() or recipe.trainer.get("use_cpu"):
        return recipe
    if begun is not None:
        number, origin = begun.get("trainer", {}).get(key, 0), "as the run was started"
    else:
        spare = cpu.share(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) - 1
        most = 1 if getattr(recipe.data, "streaming", False) else MOST_DATA_WORKERS
        number, origin = min(most, spare), "on a GPU"
    origins = {**recipe.origins, f"trainer.{key}": origin}
    return recipe.model_copy(
        update={"trainer": ReadOnly({**recipe.trainer, key: number}), "origins": ReadOnly(origins)}
    )


def training_arguments(settings: dict[str, Any], directory: Path) -> TrainingArguments:
    """`[trainer]` as upstream's class, which also joins the other processes; refuses what would go wrong silently."""
    check_trackers(settings)
    join_others(settings)
    fitting = {**FITTING_DEFAULTS, "dataloader_pin_memory": torch.accelerator.is_available()}
    try:
        args = TrainingArguments(
            **{**fitting, **choose_kernels(settings)},
            output_dir=str(directory),
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            label_names=["labels"],
        )
        _ = args.device
        _check_optimizer(args)
    except (TypeError, ValueError, ImportError, RuntimeError) as problem:
        raise UserError(f"[trainer]: {' '.join(str(problem).split())}") from problem
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != expected:
        raise RuntimeError(
            f"the launcher started {expected} processes and this one sees {args.world_size}: they would overwrite each "
            "other (on a CPU, set ACCELERATE_USE_CPU=true; llmkit's own --processes does)"
        )
    if args.n_gpu > 1:
        raise RuntimeError(
            f"{args.n_gpu} GPUs in one process would run as nn.DataParallel: use --processes {args.n_gpu}"
        )
    return args


def _check_optimizer(args: TrainingArguments) -> None:
    """Make the optimizer and the schedule for one weight: an error now and not when all data is prepared."""
    from transformers import Trainer, get_scheduler

    if args.optim_target_modules or args.deepspeed:  # which look into the model
        return
    weight = torch.nn.Linear(1, 1)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, weight)
    if not optimizer_class.__module__.startswith("torch.optim"):  # others may want more than one weight
        return
    optimizer = optimizer_class(weight.parameters(), **options)
    settings = dict(args.lr_scheduler_kwargs or {})
    get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(1000), 1000, settings)


def check_trackers(settings: Mapping[str, Any]) -> None:
    """Raise UserError where `trainer.report_to` names a tracker that is not installed, with what to install."""
    wanted = settings.get("report_to") or []
    names = [wanted] if isinstance(wanted, str) else wanted
    own = ("all", "none", "tensorboard", "flyte")  # the last has no test of its own upstream
    if others := [name for name in names if name not in own]:
        from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

        known, installed = (*own, *INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
        for name in others:
            if name not in known:
                near = nearest(name, known)
                raise UserError(
                    f"trainer.report_to: transformers knows no tracker `{name}`",
                    f"did you mean `{near}`?" if near else f"there are {', '.join(dict.fromkeys(known))}",
                )
            if name not in installed:
                raise UserError(
                    f"trainer.report_to: the package of `{name}` is not installed",
                    "install it, or leave it out: the figures are in metrics.jsonl too",
                )
    for name in names:
        if name == "tensorboard" and not any(map(find_spec, ("tensorboard", "tensorboardX"))):
            raise UserError(
                "trainer.report_to: TensorBoard is not installed",
                f"pip install 'llmkit[{name}]', or leave it out: the metrics are in metrics.jsonl too",
            )


def join_others(settings: Mapping[str, Any]) -> None:
    """Meet the other processes, with an end to waiting for one that hangs: upstream forgets `ddp_timeout` on a CPU."""
    on_cpu = settings.get("use_cpu") or os.environ.get("ACCELERATE_USE_CPU") == "true"
    if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        seconds = settings.get("ddp_timeout", 1800)
        torch.distributed.init_process_group(settings.get("ddp_backend") or "gloo", timeout=timedelta(seconds=seconds))


def total_batch_size(args: TrainingArguments) -> int:
    """Blocks or examples that one optimizer step learns from, over all processes and accumulated micro-batches."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
