"""As many threads as there are cores to use."""

import psutil
import pytest

from llmkit import cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Eight cores of two hyper-threads each, a process that is bound to none of them, no container."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "QUOTA", (tmp_path / "cpu.max", tmp_path / "quota"))
    monkeypatch.setattr(cores, "PERIOD", tmp_path / "period")
    return tmp_path


def test_hyper_threads_are_not_counted(machine):
    assert cores.available() == 8
    assert [cores.share(processes) for processes in (1, 2, 3, 20)] == [8, 4, 2, 1]


def test_a_process_that_is_bound_to_some_cores_has_those(machine, monkeypatch):
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    assert cores.available() == 3


@pytest.mark.parametrize(("limit", "found"), [("250000 100000", 3), ("max 100000", 8), ("50000 100000", 1), ("", 8)])
def test_a_container_has_its_share(limit, found, machine):
    (machine / "cpu.max").write_text(limit)
    assert cores.available() == found


@pytest.mark.parametrize(("limit", "found"), [("400000", 4), ("-1", 8)])
def test_so_has_one_of_the_older_kind(limit, found, machine):
    (machine / "quota").write_text(f"{limit}\n")
    (machine / "period").write_text("100000\n")
    assert cores.available() == found
