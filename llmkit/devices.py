"""Ask torch for this machine's accelerators, and choose which of them this process may see."""

import os

from llmkit.errors import UserError, quantity


def accelerator() -> str:
    """Return the kind of this machine's accelerator, such as cuda, xpu or mps; cpu where torch finds none."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if device is None else device.type


def default_processes() -> int:
    """Return the number of visible GPUs, 1 where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


def one_gpu_each(processes: int, asked_by: str) -> None:
    """Raise UserError where so many processes of this machine, as `asked_by` says, would share GPUs."""
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UserError(
            f"{asked_by}: {processes} processes on this machine, but {quantity(gpus, 'GPU')}: each needs its own",
            f"start {gpus}; for a larger batch on {'it' if gpus == 1 else 'them'}, raise data.global_batch_size",
        )


def one_gpu() -> None:
    """Hide all GPUs but one from this process: with several, Trainer would wrap the model in nn.DataParallel."""
    import torch

    if torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
