"""An error that nothing answers ends in three lines and exit code 1; its traceback is kept, and shown if asked for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from llmkit import __main__, last_resort, stdout
from llmkit.errors import UserError

TOKEN = "hf_" + "x" * 34


def fail(*_, **__):
    raise ZeroDivisionError(f"no such\nluck {TOKEN}")


@pytest.fixture(autouse=True)
def command(monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, "app", fail)
    monkeypatch.setattr(stdout, "open_standard_streams", lambda: None)
    monkeypatch.setattr(sys, "argv", ["llmkit", "pretrain", "x"])
    monkeypatch.setattr(last_resort, "_run", None)
    monkeypatch.setattr(last_resort.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(last_resort.SHOW, raising=False)


def said(capsys):
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == 1
    return capsys.readouterr().err.splitlines()


def test_three_lines_and_a_file(capsys):
    lines = said(capsys)
    assert lines[0].startswith("error: `llmkit pretrain` met an error that llmkit does not know in __main__.main")
    assert lines[1].startswith("  ZeroDivisionError: no such luck")
    file = re.fullmatch(r"hint: the traceback is in (\S+); LLMKIT_TRACEBACK=1 shows it", lines[2])[1]
    assert len(lines) == 3
    text = Path(file).read_text()
    assert "Traceback (most recent call last)" in text
    assert "in fail" in text
    assert TOKEN not in text + "".join(lines)


def test_the_traceback_is_shown_if_asked_for(capsys, monkeypatch):
    monkeypatch.setenv(last_resort.SHOW, "1")
    lines = said(capsys)
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-3].startswith("error: ")


def test_the_traceback_of_a_run_is_in_its_directory(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    last_resort.belongs_to(tmp_path / "run")
    assert f"{tmp_path}/run/traceback.txt" in said(capsys)[2]
    assert "in fail" in (tmp_path / "run/traceback.txt").read_text()


def test_a_run_directory_that_is_gone_and_a_full_disk_leave_the_words(capsys, tmp_path, monkeypatch):
    last_resort.belongs_to(tmp_path / "gone")
    monkeypatch.setattr(last_resort.tempfile, "tempdir", str(tmp_path / "gone"))
    assert said(capsys)[2] == "hint: LLMKIT_TRACEBACK=1 shows the traceback"


def test_a_mistake_outside_of_a_command_is_a_mistake(capsys, monkeypatch):
    def refuse(**_):
        raise UserError("no", "yes")

    monkeypatch.setattr(__main__, "app", refuse)
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: no\nhint: yes\n"


@pytest.mark.parametrize("words", ["recipes show tiny/gpt2", "recipes list", "--version"])
def test_an_answer_for_a_stdout_that_is_closed_is_refused(words):
    line = f"{sys.executable} -m llmkit {words} >&-"
    done = subprocess.run(line, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: stdout is closed, and the answer goes there\nhint: send it somewhere: > FILE\n"


def test_what_a_library_writes_to_a_stdout_that_is_closed_ends_no_training(monkeypatch):
    monkeypatch.setattr(sys, "stdout", stdout.ClosedStdout())
    with pytest.raises(UserError, match="stdout is closed"):
        sys.stdout.write("an answer")
    stdout.without_answer()
    sys.stdout.write("a line of a library")
    sys.stdout.close()


def test_a_command_that_has_no_answer_needs_no_stdout(tmp_path):
    line = f"{sys.executable} -m llmkit recipes copy nowhere >&- <&-"
    done = subprocess.run(line, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
