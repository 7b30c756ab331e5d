"""A file of prompts: interrupted it goes on to the same bytes, in batches within the budget."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prompts import POSITIONS, refused
from typer.testing import Result

from llmkit.inference import batch, generate, prefill, rows_io

FILE = ("generate", "max_new_tokens=6", "--model", "gpt2", "--input", "rows.txt", "--output", "said.jsonl")


@pytest.fixture
def rows(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten prompts of many lengths, in chunks of six and batches of few."""
    monkeypatch.setattr(rows_io, "CHUNK", 6)
    monkeypatch.setattr(batch, "BUDGET", {"cpu": 40, "cuda": 40})
    Path("rows.txt").write_text("".join(f"{'cat ' * (n * 7 % 5)}{n}\n" for n in range(10)))
    return models


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, problem: BaseException) -> None:
    """Let the generation of a batch fail once `after` batches are done."""
    write, count = generate.write, iter(range(after))

    def fail(*words: Any, **more: Any) -> Any:
        if next(count, None) is None:
            raise problem
        return write(*words, **more)

    monkeypatch.setattr(generate, "write", fail)


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("torn", ["", '[[3, {"pro'])
def test_an_interrupted_file_goes_on_to_the_same_bytes(
    rows: Path, llmkit: Callable[..., Result], after: int, torn: str
) -> None:
    assert llmkit(*FILE, "--seed", "3").exit_code == 0
    whole = Path("said.jsonl").read_bytes()
    Path("said.jsonl").unlink()
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, after, KeyboardInterrupt())
        stopped = llmkit(*FILE, "--seed", "3")
    assert stopped.exit_code == 130 and "the same command goes on from there" in stopped.stderr
    assert not list(rows.glob("*said.jsonl")) and not list(rows.glob("*.lock"))
    with Path("said.jsonl.partial").open("a") as stream:  # as kill -9 or a full disk leaves it
        stream.write(torn)
    again = llmkit(*FILE)  # the seed is known
    assert again.exit_code == 0 and " of 10 rows are in `said.jsonl.partial`: going on" in again.stderr
    assert Path("said.jsonl").read_bytes() == whole
    assert not list(rows.glob("*said.jsonl.*"))


def test_what_another_command_left_is_refused_and_kept(
    rows: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 2, KeyboardInterrupt())
        llmkit(*FILE, "--seed", "3")
    left = Path("said.jsonl.partial").read_bytes()
    said = refused(llmkit(*FILE, "top_k=4", "--seed", "4"))
    assert "rows of another command" in said and "settings was" in said and "seed was 3 and is 4" in said
    Path("rows.txt").write_text("other\n")
    assert "input was" in refused(llmkit(*FILE))
    assert Path("said.jsonl.partial").read_bytes() == left


def test_a_full_disk_keeps_what_is_done(
    rows: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = iter(range(2))

    def full(_: int) -> None:
        if next(synced, None) is None:
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in refused(llmkit(*FILE, "do_sample=false"))
    assert llmkit(*FILE, "do_sample=false").exit_code == 0
    there = Path("said.jsonl").read_text()
    assert llmkit(*FILE[:-2], "do_sample=false").stdout == there


def test_the_last_row_is_read_before_the_first_is_written(rows: Path, llmkit: Callable[..., Result]) -> None:
    with Path("rows.txt").open("a") as stream:
        stream.write("x" * POSITIONS)
    assert "`rows.txt`, line 11: the prompt has" in refused(llmkit(*FILE))
    assert not list(rows.glob("*said.jsonl*"))


@pytest.mark.parametrize("how", ["do_sample=false", "top_k=20"])
def test_a_file_says_the_same_however_its_prompts_are_read(
    how: str, rows: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BUDGET", {"cpu": 4000, "cuda": 4000})
    words = (*FILE[:-2], how, "--seed", "5")
    read, caches = prefill.read, []
    monkeypatch.setattr(prefill, "read", lambda *given: caches.append(read(*given)) or caches[-1])
    fast = llmkit(*words).stdout
    assert any(cache is not None for cache in caches)
    monkeypatch.setattr(prefill, "read", lambda *given: None)
    assert llmkit(*words).stdout == fast


def test_batches_hold_no_more_than_the_budget() -> None:
    found = {0: [1] * 9, 1: [1] * 2, 2: [1] * 3, 3: [1] * 4, 4: [1] * 30}
    allowed = {0: 6, 1: 6, 2: 6, 3: 6, 4: 2}
    assert list(batch._batched(found, allowed, 20)) == [[4], [1, 2], [3], [0]]
    assert list(batch._batched(found, allowed, 1000)) == [[4], [1, 2, 3, 0]]


def test_where_a_gpu_has_no_memory_for_all_rows_they_are_halved(
    rows: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BUDGET", {"cpu": 4000, "cuda": 4000})
    whole = llmkit(*FILE[:-2], "do_sample=false").stdout
    write = generate.write

    def small(session: Any, prompts: Any, config: Any, **options: Any) -> Any:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return write(session, prompts, config, **options)

    monkeypatch.setattr(generate, "write", small)
    assert llmkit(*FILE[:-2], "do_sample=false").stdout == whole
