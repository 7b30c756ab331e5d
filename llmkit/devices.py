"""Ask torch for this machine's accelerators, and choose which of them this process may see."""

import os


def accelerator() -> str:
    """Return the kind of this machine's accelerator, such as cuda, xpu or mps; cpu where torch finds none."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if device is None else device.type


def default_processes() -> int:
    """Return the number of visible GPUs, 1 where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


def one_gpu() -> None:
    """Hide all GPUs but one from this process: with several, Trainer would wrap the model in nn.DataParallel."""
    import torch

    if torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
