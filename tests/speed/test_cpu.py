"""As many threads as there are cores to use, memory that is used again, and norms of one operation."""

import platform
from types import SimpleNamespace

import forks
import psutil
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llmkit.speed import cpu
from llmkit.training.arguments import fit_memory


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Eight cores of two hyper-threads each, a process that is bound to none of them, no container."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(cpu, "QUOTA", (tmp_path / "cpu.max", tmp_path / "quota"))
    monkeypatch.setattr(cpu, "PERIOD", tmp_path / "period")
    return tmp_path


def test_hyper_threads_are_not_counted(machine):
    assert cpu.cores() == 8
    assert [cpu.share(processes) for processes in (1, 2, 3, 20)] == [8, 4, 2, 1]


def test_a_process_that_is_bound_to_some_cores_has_those(machine, monkeypatch):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    assert cpu.cores() == 3


@pytest.mark.parametrize(("limit", "found"), [("250000 100000", 3), ("max 100000", 8), ("50000 100000", 1), ("", 8)])
def test_a_container_has_its_share(limit, found, machine):
    (machine / "cpu.max").write_text(limit)
    assert cpu.cores() == found


@pytest.mark.parametrize(("limit", "found"), [("400000", 4), ("-1", 8)])
def test_so_has_one_of_the_older_kind(limit, found, machine):
    (machine / "quota").write_text(f"{limit}\n")
    (machine / "period").write_text("100000\n")
    assert cpu.cores() == found


FAULTS = """
import resource, torch
from llmkit.speed import cpu
from llmkit.training.arguments import fit_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        large = torch.ones(2**24)
        float((large * 2).sum()) + float((torch.ones(2**22) + 1).sum())
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
print(cpu.reuse_memory())
faults()
print(faults())
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.35"), reason="others cannot be told, or not of so large pieces")
def test_memory_that_was_freed_is_not_asked_for_again():
    done = forks.run("-c", FAULTS)
    assert done.returncode == 0, done.stderr
    without, told, kept = done.stdout.split()
    assert told == "True"
    assert int(kept) < int(without) / 4


GAPS = """
import resource, torch
from llmkit.speed import cpu
from llmkit.training.arguments import fit_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

cpu.reuse_memory()
{told}
before = resident()
pieces = [torch.ones(2**20) for _ in range(64)]  # 4 MiB each, every other one freed
del pieces[::2]
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.35"), reason="others cannot be told, or not of so large pieces")
@pytest.mark.parametrize(("told", "pieces"), [("", 64), ("cpu.give_memory_back()", 32)])
def test_memory_is_given_back_where_it_is_wanted(told, pieces):
    done = forks.run("-c", GAPS.format(told=told))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == pytest.approx(pieces * 2**22, rel=0.05)


def test_freed_memory_is_kept_only_where_there_is_room(monkeypatch):
    given = []
    monkeypatch.setattr(cpu, "give_memory_back", lambda: given.append(True))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1600))
    chosen = {"threads": 1, "reuse_memory": True}
    assert fit_memory(chosen, 999) == fit_memory(chosen, None) == (chosen, [])
    assert not given
    assert fit_memory({**chosen, "reuse_memory": False}, 1) == ({**chosen, "reuse_memory": False}, [])
    now, [note] = fit_memory(chosen, 1001)
    assert now == {**chosen, "reuse_memory": False}
    assert note.startswith("little memory is free")
    assert len(given) == 2
    assert fit_memory({}, 10**9) == ({}, [])  # a GPU


def test_elsewhere_memory_is_left_to_the_system(monkeypatch):
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: ("", ""))
    assert not cpu.reuse_memory()


def test_a_norm_is_one_operation_where_it_is_the_same_to_the_last_bit():
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    llama, gemma = LlamaForCausalLM(LlamaConfig(**size)).eval(), GemmaForCausalLM(GemmaConfig(**size)).eval()
    for norm in (module for module in llama.modules() if type(module) is LlamaRMSNorm):
        torch.nn.init.normal_(norm.weight)
    ids = torch.randint(64, (3, 9))
    with torch.inference_mode():
        before = llama(input_ids=ids).logits
        assert cpu.fuse_norms(llama) == 2 * 2 + 1
        assert cpu.fuse_norms(gemma) == 0
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            assert torch.equal(llama(input_ids=ids).logits, before)
    assert sum(event.name == "aten::rms_norm" for event in profiler.events()) == 5
    norm = llama.model.norm
    norm.forward = lambda x: LlamaRMSNorm.forward(norm, x) * (1 + 1e-6)  # a formula that is nearly the same
    assert cpu.fuse_norms(llama) == 4


@pytest.mark.parametrize("gone", ["rms_norm", "variance_epsilon"])
def test_without_the_means_to_fuse_them_norms_stay_as_they_are(gone, monkeypatch):
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    model = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2)).eval()
    ids = torch.randint(64, (3, 9))
    with torch.inference_mode():
        before = model(input_ids=ids).logits
    if gone == "rms_norm":
        monkeypatch.delattr(torch.nn.functional, gone)
    else:  # called otherwise in the next release
        monkeypatch.setattr(LlamaRMSNorm, "forward", renamed_forward)
        for norm in (module for module in model.modules() if type(module) is LlamaRMSNorm):
            norm.eps = norm.__dict__.pop(gone)
    assert cpu.fuse_norms(model) == 0
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, before)


def renamed_forward(norm, x):
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps))


def test_a_norm_that_wants_more_than_its_input_stays_as_it_is():
    """As those of Qwen3-Next, which are given a gate."""

    class GatedRMSNorm(LlamaRMSNorm):
        def forward(self, x, gate):
            return super().forward(x) * gate

    assert cpu.fuse_norms(torch.nn.Sequential(GatedRMSNorm(8), LlamaRMSNorm(8))) == 1
