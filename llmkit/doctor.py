"""`llmkit doctor`: whether this installation can train, and what to do where it cannot."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmkit import hub
from llmkit.errors import answer, say, scrub
from llmkit.runs import directory as runs
from llmkit.terminal import laid_out

if TYPE_CHECKING:
    from llmkit.speed.bf16 import Table

LEFT = 18  # columns of what stands before a line
NAMED = ("torch", "transformers", "accelerate", "datasets", "peft", "huggingface-hub")  # whose versions are shown
TRACKERS = ("tensorboard", "trackio", "wandb")
FULL, LITTLE = 100_000_000, 5_000_000_000  # bytes of a disk
LITTLE_MEMORY = 2_000_000_000  # bytes

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """What was found of one thing, and what to do about it; with `fail` training cannot work."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def doctor(as_json: bool = False, measured: bool = False) -> int:
    """Print each check in its line, or measure where bf16 is faster; return 1 if training cannot work."""
    checks = [measure()] if measured else list(examine())
    works = all(check.status != "fail" for check in checks)
    if as_json:
        answer({"ok": works, "checks": [asdict(check) for check in checks]})
        return 0 if works else 1
    for check in checks:
        lines = (
            f"{check.name:<12}{check.status:<6}{check.found}",
            *([" " * LEFT + check.remedy] if check.remedy else []),
        )
        print("\n".join(laid_out(line, sys.stdout, LEFT) for line in lines))  # noqa: T201
    return 0 if works else 1


def examine() -> Iterator[Check]:
    """Yield what is found of Python, libraries, processor, memory, GPUs, disks, the Hub and trackers."""
    yield Check("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    missing = list(_libraries())
    yield from missing
    yield from _torch()
    yield _memory()
    yield _disk("runs", runs.ROOT if runs.ROOT.is_dir() else Path.cwd(), "name another folder: --output-dir DIR")
    if all(check.status != "fail" for check in missing):
        yield from _hub()
    yield _trackers()


def _libraries() -> Iterator[Check]:
    """Compare the installed libraries with those that llmkit requires: up to the newest minor that its tests ran on."""
    from packaging.requirements import Requirement

    asked = [Requirement(text) for text in requires("llmkit") or ()]
    right = []
    for each in asked:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{each.name}{each.specifier}"
        try:
            installed = version(each.name)
        except PackageNotFoundError:
            yield Check("libraries", "fail", f"{each.name} is not installed", f"pip install '{wanted}'")
            continue
        if each.specifier.contains(installed, prereleases=True):
            right.append((each.name, installed))
        else:
            tested = str(each.specifier).replace(",", ", ")
            yield Check(
                "libraries", "warn", f"{each.name} {installed}; the tests ran on {tested}", f"pip install '{wanted}'"
            )
    shown = ", ".join(f"{name} {installed}" for name, installed in right if name in NAMED)
    yield Check("libraries", "ok", f"{len(right)} as required: {shown}")


def _torch() -> Iterator[Check]:
    """Load what training needs, multiply matrices on the processor and on each GPU, and say what they can do."""
    try:
        import torch

        from llmkit.speed import bf16, cpu
        from llmkit.training.arguments import has_fast_bf16

        _step("cpu")
    except Exception as problem:  # whatever a broken installation raises
        yield Check("training", "fail", _words(problem), "make a new environment, and install llmkit there")
        return
    kind = torch.backends.cpu.get_cpu_capability()
    fast = has_fast_bf16()
    slow = platform.machine() in ("x86_64", "AMD64") and kind == "DEFAULT"
    remedy = "PyTorch is slow without AVX2: train on another machine" if slow else ""
    yield Check(
        "processor",
        "warn" if slow else "ok",
        f"{cpu.cores()} cores to use, {kind}, {'fast at bf16' if fast else 'no fast bf16'}",
        remedy,
    )
    if fast:
        bf16.use_threads()
        yield _bf16(bf16.kept())
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        about = torch.cuda.get_device_properties(number)
        found = f"{about.name}, {about.total_memory / 1e9:.0f} GB"
        try:
            _step(f"cuda:{number}")
        except Exception as problem:
            yield Check("GPU", "fail", f"{found}: {_words(problem)}", "hide the GPUs: CUDA_VISIBLE_DEVICES= llmkit ...")
        else:
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            yield Check("GPU", "ok", f"{found}, {'bf16' if has_bf16 else 'no bf16'}")
    if count == 0:
        yield _no_gpu()
    elif count > 1 and not torch.distributed.is_nccl_available():
        yield Check("NCCL", "fail", "PyTorch has none, and several GPUs need it", "use one GPU: --processes 1")
    elif count > 1:
        yield Check("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version())))


def measure() -> Check:
    """Time steps of training in bf16 beside fp32 on the processor, keep how they compare, and say it."""
    from llmkit.speed import bf16
    from llmkit.training.arguments import has_fast_bf16

    if not has_fast_bf16():
        return Check("bf16", "ok", "this processor does not multiply it (AVX512-BF16 or AMX): nothing to measure")
    bf16.use_threads()
    say("bf16 beside fp32: the time of a step in fp32 over that in bf16, by hidden size and tokens at once")
    table = bf16.measure(lambda hidden, tokens, ratio: say(f"  {hidden:5,} x {tokens:5,}: {ratio:.2f}"))
    say(f"kept in {bf16.keep(table)}")
    return _bf16(table)


def _bf16(table: "Table | None") -> Check:
    """Say where bf16 was measured to be faster."""
    from llmkit.speed.bf16 import MARGIN

    if table is None:
        return Check("bf16", "ok", "not measured: fp32", "to train in it where it is faster: llmkit doctor --measure")
    faster = [size for size, ratio in table.items() if ratio >= MARGIN]
    if not faster:
        return Check("bf16", "ok", "measured, and nowhere clearly faster than fp32")
    best = max(table.values())
    return Check(
        "bf16",
        "ok",
        f"measured: up to {best:.2f} times as fast as fp32, and chosen for {len(faster)} of {len(table)} sizes",
    )


def _no_gpu() -> Check:
    import torch

    if torch.backends.mps.is_available():
        return Check("GPU", "ok", "of Apple")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not (shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()):
        return Check("GPU", "ok", "none: training takes place on the processor")
    if hidden is not None and not hidden.strip("-1 "):
        return Check("GPU", "warn", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        return Check(
            "GPU", "warn", "there is one, and PyTorch is the build for CPUs", "install a build for CUDA: pytorch.org"
        )
    return Check("GPU", "warn", f"there is one, which PyTorch for CUDA {torch.version.cuda} does not see", "nvidia-smi")


def _step(device: str) -> None:
    """Take the gradient of a small product of matrices."""
    import torch

    weight = torch.ones(8, 8, device=device, requires_grad=True)
    (weight @ weight).sum().backward()
    assert weight.grad is not None
    if float(weight.grad.sum()) != 2 * 8**3:
        raise ArithmeticError(f"a product of matrices on {device} is wrong")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    little = memory.available < LITTLE_MEMORY
    return Check("memory", "warn" if little else "ok", found, "end other programs, or train a small model" * little)


def _disk(name: str, folder: Path, remedy: str) -> Check:
    """Say whether a folder can be written, and how much fits there."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as problem:
        return Check(name, "fail", f"{folder} cannot be written: {problem.strerror}", remedy)
    status: Status = "fail" if free < FULL else "warn" if free < LITTLE else "ok"
    return Check(
        name, status, f"{folder}, {free / 1e9:,.1f} GB free", "" if status == "ok" else f"make room, or {remedy}"
    )


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants, get_token

    yield _disk("HF_HOME", Path(constants.HF_HOME), "set HF_HOME to another folder")
    if constants.HF_HUB_OFFLINE:
        yield Check("Hub", "ok", "not asked: offline")
    elif hub.reachable():
        yield Check("Hub", "ok", f"{scrub(constants.ENDPOINT)} answers")
    else:
        remedy = "check network and proxy; without the Hub, use files of this machine and what HF_HOME holds: --offline"
        yield Check("Hub", "warn", f"{scrub(constants.ENDPOINT)} cannot be reached", remedy)
    found = "there" if get_token() else "none, which public models and data do not need; to get one in: hf auth login"
    yield Check("token", "ok", found)


def _trackers() -> Check:
    found = []
    for name in TRACKERS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    more = "" if found else f"; for one, such as TensorBoard: pip install 'llmkit[{TRACKERS[0]}]'"
    return Check("trackers", "ok", (", ".join(found) or "none installed; metrics are in metrics.jsonl too") + more)


def _words(problem: Exception) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())
