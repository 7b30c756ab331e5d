"""An answer that stdout does not take: a full disk, a reader that is gone, a character that its encoding has not."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT

from llmkit import stdout
from llmkit.data.output import row_writer
from llmkit.errors import UserError

FULL = "error: the answer could not be written to stdout: No space left on device\n"
FULL += "hint: send it to a disk with room: > FILE\n"
COMMANDS = ("-h", "--version", "recipes list", "recipes schema", "pretrain -h", "explain", "completion bash")
COMMANDS += ("data recipes/tiny/endings.csv", "runs tests/earlier_runs/c1f8dd5")


def run(line: str, **env: str) -> subprocess.CompletedProcess:
    words = line.replace("llmkit", f"{sys.executable} -m llmkit", 1)
    return subprocess.run(words, shell=True, cwd=ROOT, capture_output=True, text=True, check=False, env=env or None)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_full_disk_is_one_error(words):
    done = run(f"llmkit {words} > /dev/full")
    assert done.returncode == 2
    assert done.stderr == FULL


@contextmanager
def full(monkeypatch):
    """Let stdout be on a full disk, as a command finds it."""
    with Path("/dev/full").open("w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        stdout.open_standard_streams()
        yield


def test_rows_that_a_full_disk_does_not_take_end_the_command(monkeypatch):
    with full(monkeypatch):
        with pytest.raises(UserError, match="No space left on device"), row_writer(None) as write:
            write({"label": "a"})
        print("what is written behind it is dropped", flush=True)  # noqa: T201


def test_a_long_answer_ends_where_the_disk_is_full(monkeypatch):
    with full(monkeypatch), pytest.raises(UserError, match="No space left on device"):
        for _ in range(1000):
            print("x" * 100)  # noqa: T201 - it is written when the buffer is full


def test_a_file_that_may_not_grow_is_one_error(tmp_path):
    done = run(f"ulimit -f 1; llmkit recipes schema > {tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the answer could not be written to stdout: File too large")


def test_a_reader_that_has_seen_enough_is_no_error():
    done = run("llmkit recipes schema | head -n 1; exit ${PIPESTATUS[0]}".join(["bash -c '", "'"]))
    assert (done.returncode, done.stdout, done.stderr) == (1, "{\n", "")


def test_what_the_encoding_of_stdout_does_not_have_is_escaped(tmp_path, monkeypatch):
    file = tmp_path / "out"
    with file.open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        stdout.open_standard_streams()
        print("caf\u00e9 \udce9", flush=True)  # noqa: T201
    assert file.read_text() == "caf\\xe9 \\udce9\n"


@pytest.mark.parametrize("words", [["explain", b"d\xe9j\xe0"], ["data", b"\xff.csv"], ["pretrain", b"r\xe9.toml"]])
def test_a_word_that_is_not_utf8_is_refused(words):
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith("on the command line is not UTF-8")
    assert "\\udc" in done.stderr
