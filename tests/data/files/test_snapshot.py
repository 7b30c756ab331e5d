"""Files that change while they are read: noticed whatever the change is, and never by a wrong alarm."""

import os

import pytest

from llmkit.data.files import Snapshot
from llmkit.errors import UserError


def replace_alike(file):
    """Put another file of the same size and date in its place."""
    before, other = file.stat(), file.with_name("other")
    other.write_text("b" * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)


def write_alike(file):
    """Write as many other bytes into it, and set its date back."""
    before = file.stat()
    with file.open("r+") as stream:
        stream.write("b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_and_put_back(file):
    kept = file.with_name("kept")
    file.rename(kept)
    file.write_text("b")
    kept.replace(file)


def append(file):
    with file.open("a") as stream:
        stream.write("b")


CHANGES = (replace_alike, write_alike, replace_and_put_back, append, lambda file: file.unlink())


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_written_just_now_and_changes_again_is_noticed(tmp_path, change):
    other, file = tmp_path / "a.txt", tmp_path / "b.txt"
    for each in (other, file):
        each.write_text("aaa")
    snapshot = Snapshot.of([other, file])
    change(file)
    with pytest.raises(UserError, match=r"`.*b\.txt` changed while it was being read"):
        snapshot.verify()


def test_a_link_that_leads_elsewhere_is_noticed(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link.txt"
    link.symlink_to("a.txt")
    snapshot = Snapshot.of([link])
    (tmp_path / "next").symlink_to("b.txt")
    (tmp_path / "next").replace(link)
    with pytest.raises(UserError, match="changed"):
        snapshot.verify()


def test_reading_a_file_and_writing_beside_it_is_no_change(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a")
    snapshot = Snapshot.of([file])
    file.read_text()
    (tmp_path / "b.txt").write_text("b")
    snapshot.verify()
