"""Temporary folders: gone at the end, gone after a process was killed, and an error in words where there is no room."""

import os
import signal
from pathlib import Path

import pytest

from llmkit import temporary
from llmkit.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_gone_at_the_end_and_after_an_error(root):
    with temporary.folder() as path:
        assert path.parent == root
        (path / "file").write_text("x")
    with pytest.raises(KeyError), temporary.folder():
        raise KeyError
    assert list(root.iterdir()) == []


def test_the_folder_of_a_process_that_was_killed_is_removed_by_the_next(root):
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        with temporary.folder() as path:
            (path / "file").write_text("x")
            os.write(tell, b"x")
            signal.pause()
    os.read(ready, 1)
    with temporary.folder():
        assert len(list(root.iterdir())) == 2  # it is in use
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(root.iterdir())) == 1
    with temporary.folder() as path:
        assert list(root.iterdir()) == [path]


def test_a_folder_stays_as_long_as_one_of_its_users(root):
    with temporary.folder() as path:
        rank = temporary.hold(path)
        kept = path.rename(root / "llmkit-kept")  # its maker is gone, as if killed
    with temporary.folder():
        assert kept.is_dir()
    os.close(rank)
    with temporary.folder():
        assert not kept.exists()


def test_folders_of_others_stay(root):
    others = [root / name for name in ("llmkit-tests-1", "llmkit-traceback-1.txt", "lock", "llmkit")]
    for other in others:
        other.mkdir()
    with temporary.folder():
        pass
    assert sorted(root.iterdir()) == sorted(others)


def test_without_room_it_is_an_error_in_words(root, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        pytest.raises(UserError, match="no temporary folder can be made: No space left on device") as caught,
        temporary.folder(),
    ):
        pass
    assert "TMPDIR" in caught.value.hint
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("candidates", [["/nowhere"], []])
def test_without_any_folder_for_temporary_files_it_is_one_too(candidates, monkeypatch):
    monkeypatch.setattr(temporary.tempfile, "tempdir", None)
    monkeypatch.setattr(temporary.tempfile, "_candidate_tempdir_list", lambda: candidates)
    with (
        pytest.raises(UserError, match="no temporary folder can be made: No usable temporary directory"),
        temporary.folder(),
    ):
        pass
