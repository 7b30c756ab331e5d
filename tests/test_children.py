"""Children that are started with `python -m`: whatever lies in the working directory is no module to them."""

import os
import signal
import subprocess
import sys

import pytest

from llmkit import process

TRAPS = ("random.py", "types.py", "llmkit/__init__.py", "accelerate/__init__.py", "json.py", "typing.py")


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """A working directory whose files stop whoever imports them, and leave a mark."""
    (tmp_path / "here").mkdir()
    for name in TRAPS:
        (tmp_path / "here" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / name).write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\nraise SystemExit(77)\n")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def run(*words):
    done = subprocess.run(
        [sys.executable, *words], env=process.child_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_working_directory_is_not_imported_from(trapped):
    assert run("-m", "llmkit", "--version").startswith("llmkit ")
    assert run("-m", "accelerate.commands.accelerate_cli", "launch", "--help")
    assert not (trapped / "mark").exists()


def test_the_children_of_a_child_do_not_import_from_it_either(trapped):
    inner = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-m', 'llmkit', '--version']).returncode)"
    assert run("-c", inner).startswith("llmkit ")
    assert not (trapped / "mark").exists()


def test_a_child_ends_when_its_parent_is_killed():
    """Through a pipe that the parent holds open: whatever kills it closes that."""
    reading, writing = os.pipe()
    code = "from llmkit import process; import time; process.join(); print('ready', flush=True); time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, process.PARENT: str(reading)},
        pass_fds=(reading,),
        stdout=subprocess.PIPE,
    )
    os.close(reading)
    with child:
        assert child.stdout.readline() == b"ready\n"
        assert child.poll() is None
        os.close(writing)
        assert child.wait(10) == -signal.SIGTERM


def test_what_pythonpath_names_is_importable(trapped, monkeypatch):
    (trapped / "own").mkdir()
    (trapped / "own/mine.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(trapped / "own"))
    run("-c", "import mine, llmkit")


def test_llmkit_of_the_working_directory_alone_is_found_by_its_children(trapped, monkeypatch):
    root = process.Path(process.__file__).parents[1]
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", [str(root)])
    assert str(root) in process.child_environment()["PYTHONPATH"].split(process.os.pathsep)
