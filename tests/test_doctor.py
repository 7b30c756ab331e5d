"""`llmkit doctor`: what is found is told, what is wrong comes with a remedy, and no secret is shown."""

import json
import shutil
import tempfile
from types import SimpleNamespace

import pytest
import torch

from llmkit import doctor, hub
from llmkit.speed import bf16


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "reachable", lambda: True)


def found(llmkit, *words):
    done = llmkit("doctor", "--json", *words)
    answer = json.loads(done.stdout)
    assert done.exit_code == (0 if answer["ok"] else 1)
    assert answer["ok"] == all(check["status"] != "fail" for check in answer["checks"])
    return {check["name"]: check for check in answer["checks"]}


def test_an_installation_that_works_is_told_so(llmkit):
    done = llmkit("doctor")
    assert done.exit_code == 0, done.stdout
    names = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [name for name in names if name not in ("libraries", "GPU", "bf16")] == [
        *("Python", "processor", "memory", "runs", "HF_HOME", "Hub", "token", "trackers"),
    ]
    assert f"torch {torch.__version__}" in done.stdout
    assert found(llmkit)["runs"]["remedy"] == ""


def test_bf16_is_measured_once_and_then_told(llmkit, tmp_path, monkeypatch):
    monkeypatch.setattr(bf16, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("llmkit.training.arguments.has_fast_bf16", lambda: True)
    assert found(llmkit)["bf16"]["remedy"].endswith("llmkit doctor --measure")
    for ratio, told in (
        (1.0, "nowhere clearly faster"),
        (1.9, "up to 1.90 times as fast as fp32, and chosen for 1 of 2"),
    ):
        measured = {(64, 16): 0.8, (64, 256): ratio}
        monkeypatch.setattr(bf16, "measure", lambda tell, measured=measured: measured)
        assert told in found(llmkit, "--measure")["bf16"]["found"]
        assert bf16.kept() == measured
        assert told in found(llmkit)["bf16"]["found"]


def test_nothing_is_measured_without_bf16(llmkit, monkeypatch):
    monkeypatch.setattr("llmkit.training.arguments.has_fast_bf16", lambda: False)
    assert "nothing to measure" in found(llmkit, "--measure")["bf16"]["found"]
    assert "bf16" not in found(llmkit)


@pytest.mark.parametrize("offline", [True, False])
def test_the_hub_is_asked_unless_offline(offline, llmkit, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "reachable", lambda: asked.append(1))
    check = found(llmkit, *(["--offline"] if offline else []))["Hub"]
    assert asked == ([] if offline else [1])
    assert check["status"] == ("ok" if offline else "warn")
    assert offline or "--offline" in check["remedy"]


def test_a_token_is_there_and_not_shown(llmkit, monkeypatch):
    assert found(llmkit)["token"]["found"].startswith("none")
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRETSECRET")
    assert found(llmkit)["token"]["found"] == "there"
    assert "SECRET" not in llmkit("doctor").output


def test_a_library_that_is_missing_or_another_version(llmkit, monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda _: ["nowhere>=2", "peft<0.2,>=0.1", "torch", "x; extra == 'dev'"])
    checks = list(doctor.examine())
    assert [(check.status, check.remedy) for check in checks if check.name == "libraries"] == [
        ("fail", "pip install 'nowhere>=2'"),
        ("warn", "pip install 'peft<0.2,>=0.1'"),
        ("ok", ""),
    ]
    assert "the tests ran on <0.2, >=0.1" in checks[2].found
    done = llmkit("doctor")
    assert done.exit_code == 1
    assert "libraries   fail  nowhere is not installed\n                  pip install 'nowhere>=2'\n" in done.stdout


def test_a_torch_that_cannot_multiply_fails(llmkit, monkeypatch):
    def broken(device):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(doctor, "_step", broken)
    check = found(llmkit)["training"]
    assert (check["status"], check["found"]) == ("fail", "RuntimeError: no kernel for this")
    assert check["remedy"]


@pytest.mark.parametrize(("free", "status"), [(10**7, "fail"), (10**9, "warn"), (10**11, "ok")])
def test_a_disk_that_is_nearly_full(free, status, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    check = doctor._disk("runs", tmp_path / "not/yet/there", "name another")
    assert check.status == status
    assert check.remedy == ("" if status == "ok" else "make room, or name another")


def test_a_disk_that_cannot_be_written(llmkit, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    checks = found(llmkit)
    assert {name for name, check in checks.items() if check["status"] == "fail"} == {"runs", "HF_HOME"}
    assert "Permission denied" in checks["HF_HOME"]["found"]


@pytest.mark.parametrize(
    ("there", "hidden", "cuda", "status", "said"),
    [
        (False, None, None, "ok", "none"),
        (True, None, None, "warn", "the build for CPUs"),
        (True, "-1", "13.0", "warn", "hidden by CUDA_VISIBLE_DEVICES"),
        (True, None, "13.0", "warn", "CUDA 13.0 does not see"),
    ],
)
def test_why_there_is_no_gpu(there, hidden, cuda, status, said, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi" if there else None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check = doctor._no_gpu()
    assert (check.status, bool(check.remedy)) == (status, status != "ok")
    assert said in check.found


@pytest.mark.parametrize("broken", [False, True])
def test_each_gpu_takes_a_step(broken, llmkit, monkeypatch):
    about = SimpleNamespace(name="H100", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    stepped = []

    def step(device):
        stepped.append(device)
        if broken and device == "cuda:1":
            raise RuntimeError("no kernel image")

    monkeypatch.setattr(doctor, "_step", step)
    checks = [check for check in doctor._torch() if check.name in ("GPU", "NCCL")]
    assert stepped == ["cpu", "cuda:0", "cuda:1"]
    assert [check.status for check in checks] == ["ok", "fail" if broken else "ok", "fail"]
    assert checks[0].found == "H100, 80 GB, bf16"
    assert checks[2].remedy == "use one GPU: --processes 1"
