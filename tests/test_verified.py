"""What was verified is not read again, by this process and those that it starts, until it changes."""

import json

import pytest

from llmkit import disk, verified


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(verified, "_found", {})


@pytest.fixture
def read(monkeypatch):
    """The files whose content was hashed."""
    files, checksum = [], disk.checksum
    monkeypatch.setattr(disk, "checksum", lambda path: files.append(path.name) or checksum(path))
    return files


def test_a_file_is_read_once_until_it_changes(tmp_path, read):
    file = tmp_path / "a"
    file.write_text("one")
    first = verified.checksum(file)
    assert verified.checksum(file) == first
    assert read == ["a"]
    file.write_text("two")  # as long
    assert verified.checksum(file) != first
    assert read == ["a", "a"]


def test_a_file_in_the_place_of_another_is_read(tmp_path, read):
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_text("one")
    other.write_text("two")
    verified.checksum(file)
    other.replace(file)
    assert verified.checksum(file) == disk.checksum(file)


def test_what_a_parent_found_out_holds_for_its_ranks_and_whatever_a_folder_is_called(tmp_path, read, monkeypatch):
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "a").write_text("one")
    found = verified.checksum(tmp_path / "draft" / "a")
    saved = verified.save()
    monkeypatch.setattr(verified, "_found", {})
    (tmp_path / "draft").rename(tmp_path / "whole")
    verified.restore(saved)
    assert verified.checksum(tmp_path / "whole" / "a") == found
    assert read == ["a"]


def test_what_depends_on_something_else_too_is_found_out_anew(tmp_path):
    file = tmp_path / "a"
    file.write_text("one")
    assert verified.once("length in bytes", [file], lambda: len(file.read_bytes())) == 3
    assert verified.once("as JSON", [file], lambda: json.dumps(file.read_text())) == '"one"'


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, read):
    file = tmp_path / "a"
    file.write_text("one")

    def find() -> int:
        file.write_text(file.read_text() + ".")
        return len(file.read_text())

    assert [verified.once("length", [file], find) for _ in range(2)] == [4, 5]


def test_of_a_file_system_with_whole_seconds_nothing_young_is_believed(tmp_path, read, monkeypatch):
    file = tmp_path / "a"
    file.write_text("one")
    describe = verified._describe

    def in_seconds(files):
        numbers, states = describe(files)
        return numbers, [
            [number // 10**9 * 10**9 if number > 10**9 else number for number in state] for state in states
        ]

    monkeypatch.setattr(verified, "_describe", in_seconds)
    verified.checksum(file)
    verified.checksum(file)
    assert read == ["a", "a"]


def test_a_missing_file_is_an_error_as_ever(tmp_path):
    with pytest.raises(FileNotFoundError):
        verified.checksum(tmp_path / "a")
