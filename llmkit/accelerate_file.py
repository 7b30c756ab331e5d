"""Read an Accelerate configuration: what it asks for, to be compared with what a run then is, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit import disk
from llmkit.errors import UserError

CREATE = "create one: accelerate config"
STRATEGIES = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}
DEVICES = {"MULTI_XPU": "xpu", "MULTI_NPU": "npu", "MULTI_HPU": "hpu", "MULTI_MLU": "mlu", "MULTI_MUSA": "musa"}
UNTESTED = {"XLA": "TPUs", "TPU": "TPUs", "MEGATRON_LM": "Megatron-LM"}
DIVIDED = {"tp_size": "tensor", "cp_size": "context", "sp_size": "sequence"}


@dataclass(frozen=True)
class AccelerateFile:
    """The settings of an Accelerate configuration file."""

    path: Path
    settings: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.settings.get("distributed_type", "NO")).upper()

    @property
    def machine_rank(self) -> int:
        return int(self.settings.get("machine_rank") or 0)

    @property
    def machines(self) -> int:
        return max(int(self.settings.get("num_machines") or 1), self.machine_rank + 1)

    @property
    def on_cpu(self) -> bool:
        return bool(self.settings.get("use_cpu")) or self.kind == "MULTI_CPU"

    def processes_here(self, processes: int | None) -> int:
        """Return the processes of this machine; `processes` of all machines where that is asked for otherwise."""
        return int(processes or self.settings.get("num_processes") or 1) // self.machines

    def flags(self) -> list[str]:
        """Return what `accelerate launch` needs beside the file; of MULTI_CPU it would start one process."""
        return ["--multi_gpu"] if self.kind == "MULTI_CPU" else []

    def asked(self) -> dict[str, Any]:
        """Return the processes, the strategy, the device and the precision that the file asks for, where it does."""
        device = "cpu" if self.on_cpu else DEVICES.get(self.kind)
        asked = {
            "processes": self.settings.get("num_processes"),
            "strategy": STRATEGIES.get(self.kind),
            "device": device,
            "mixed_precision": self.settings.get("mixed_precision"),
        }
        return {key: value for key, value in asked.items() if value is not None}


def read(path: Path) -> AccelerateFile:
    """Read an Accelerate configuration; raise UserError for one that llmkit cannot train by."""
    import yaml

    if not disk.is_file(path):
        raise UserError(f"--accelerate-config: there is no file `{path}`", CREATE)
    try:
        settings = yaml.safe_load(path.read_text())
        found = AccelerateFile(path, settings)
        _ = settings.keys(), found.machines
    except (yaml.YAMLError, AttributeError, ValueError, TypeError) as problem:
        raise UserError(f"--accelerate-config: `{path}` is not an Accelerate configuration", CREATE) from problem
    _refuse(found)
    return found


def _refuse(file: AccelerateFile) -> None:
    """Raise UserError for what has no test in llmkit, or is dropped without a word."""
    problems = []
    environment = str(file.settings.get("compute_environment", "LOCAL_MACHINE"))
    if environment != "LOCAL_MACHINE":
        problems.append(f"compute_environment: {environment} is not supported; LOCAL_MACHINE is")
    if file.kind in UNTESTED:
        problems.append(f"distributed_type: {UNTESTED[file.kind]} are not supported".replace("LM are", "LM is"))
    if str(file.settings.get("mixed_precision")).lower() == "fp8":
        problems.append("mixed_precision: fp8 is not supported; bf16 and fp16 are")
    launcher = (file.settings.get("deepspeed_config") or {}).get("deepspeed_multinode_launcher", "pdsh")
    if file.kind == "DEEPSPEED" and file.machines > 1 and launcher != "standard":
        problems.append(
            f"deepspeed_multinode_launcher: {launcher} would start llmkit again on each machine; use standard"
        )
    for key, size in (file.settings.get("parallelism_config") or {}).items():
        name = next((name for suffix, name in DIVIDED.items() if str(key).endswith(suffix)), None)
        if name and str(size).isdigit() and int(size) > 1:
            problems.append(f"parallelism_config: {name} parallelism has no test in llmkit; dp_* sizes are fine")
    if problems:
        raise UserError(
            f"--accelerate-config: llmkit does not train by `{file.path}`",
            "change it, or create another: accelerate config",
            tuple(problems),
        )
