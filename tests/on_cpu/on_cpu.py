"""Keep on a CPU what Accelerate would drop there: FSDP2, DeepSpeed's engines, the loss scaler of fp16.

So that llmkit's own code runs under the real ones, over gloo. It says nothing about NCCL, CUDA or speed.
"""

import importlib
import importlib.abc
import importlib.util
import os
import sys
import time


def fsdp(state):
    """Take processes on CPUs for processes on GPUs where there is a plugin for FSDP; `state` is accelerate.state."""
    create, shared, kinds = state.AcceleratorState.__init__, state.PartialState._shared_state, state.DistributedType

    def __init__(self, *args, fsdp_plugin=None, **kwargs):
        if fsdp_plugin is not None and shared.get("distributed_type") == kinds.MULTI_CPU:
            shared["distributed_type"] = kinds.MULTI_GPU
        create(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)

    state.AcceleratorState.__init__ = __init__


def deepspeed(state):
    """Let DeepSpeed's engines be set up for CPUs."""

    def set_device(self):
        self.device = self.device or importlib.import_module("torch").device("cpu")

    kind = state.DistributedType.MULTI_CPU
    state.PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", kind)
    state.PartialState.set_device = set_device


def without_shared_memory(comm):
    """Leave out an operator that DeepSpeed would compile; `comm` is deepspeed.comm.torch."""
    comm.build_shm_op = lambda: None


def fp16(accelerator):
    """Give fp16 its autocast and its loss scaler; `accelerator` is accelerate.accelerator."""
    import torch

    create = accelerator.Accelerator.__init__

    def __init__(self, *args, **kwargs):
        create(self, *args, **kwargs)
        if self.state.mixed_precision == "fp16":
            self.native_amp = True
            self.scaler = torch.amp.GradScaler("cpu", init_scale=float(os.environ.get("LOSS_SCALE", 2**10)))

    accelerator.Accelerator.__init__ = __init__


def asked_fp16(arguments):
    """Take fp16 for what this hardware is fast at; `arguments` is llmkit.training.arguments."""
    arguments.choose_precision = lambda settings: ({**settings, "use_cpu": True}, "as asked")


def slow(resumable_trainer):
    """Let each step take so many seconds: there is time to kill a process in between."""
    end = resumable_trainer.ResumableTrainer.on_step_end

    def on_step_end(self):
        time.sleep(float(os.environ["SECONDS_A_STEP"]))
        end(self)

    resumable_trainer.ResumableTrainer.on_step_end = on_step_end


def offload(api):
    """Keep weights that FSDP2 offloads in memory that is not pinned, as a GPU would want it; `api` has its policies."""
    make = api.CPUOffloadPolicy.__init__
    api.CPUOffloadPolicy.__init__ = lambda self, pin_memory=False: make(self, pin_memory=False)


KEPT = {
    "fsdp": {"accelerate.state": fsdp},
    "deepspeed": {"accelerate.state": deepspeed, "deepspeed.comm.torch": without_shared_memory},
    "fp16": {"accelerate.accelerator": fp16, "llmkit.training.arguments": asked_fp16},
    "offload": {"torch.distributed.fsdp._fully_shard._fsdp_api": offload},
    "slow": {"llmkit.training.resumable_trainer": slow},
}


def keep(*names):
    """Keep what is named, in a process that has imported the libraries already."""
    for name in names:
        for module, change in KEPT[name].items():
            change(importlib.import_module(module))


class _Changing(importlib.abc.MetaPathFinder):
    """Changes modules as soon as they are imported."""

    def __init__(self, changes):
        self.changes = changes

    def find_spec(self, name, path, target=None):
        change = self.changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


def keep_when_imported(*names):
    """Keep what is named, in an interpreter that starts."""
    if "deepspeed" in names:
        os.environ.pop("ACCELERATE_USE_CPU", None)
        os.environ["DS_ACCELERATOR"] = "cpu"
    sys.meta_path.insert(0, _Changing({module: change for name in names for module, change in KEPT[name].items()}))
