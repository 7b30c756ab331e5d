"""Where rows go that a user wants in a file: nothing is overwritten unasked, and a full disk costs no whole row."""

import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmkit.data.output import Output, row_writer
from llmkit.errors import UserError

SIZE = 4_000  # bytes that a file may have where the disk is "full"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def full_disk():
    """No file can become longer than SIZE: the system refuses to write, as it does on a full disk (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write(path, rows, **settings):
    output = Output(Path(path), **settings)
    output.check()
    with row_writer(output) as write_row:
        for row in rows:
            write_row(row)


def numbered(count):
    return [{"number": n, "text": "a\nb" * 10} for n in range(count)]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "metrics.jsonl", "link.csv"])
def test_a_file_with_content_is_overwritten_only_if_asked(name):
    Path("real.csv").write_text("mine")
    Path("link.csv").symlink_to("real.csv")
    Path(name).write_text("mine")
    with pytest.raises(UserError, match="already exists") as refused:
        write(name, [{"a": 1}])
    assert "--overwrite" in refused.value.hint
    assert Path(name).read_text() == "mine"
    write(name, [{"a": 1}], overwrite=True)
    assert "1" in Path(name).read_text()
    assert Path("link.csv").is_symlink()  # what it leads to was written


def test_an_empty_file_is_nobodys():
    Path("out.jsonl").touch()
    write("out.jsonl", [{"a": 1}])
    assert Path("out.jsonl").read_text() == '{"a": 1}\n'


def test_a_file_that_comes_while_rows_are_written_is_left_as_it_is():
    with pytest.raises(UserError, match=r"meanwhile; the first 2 rows are kept in `out\.unfinished\.jsonl`"):  # noqa: SIM117
        with row_writer(Output(Path("out.jsonl"))) as write_row:
            write_row({"a": 1})
            Path("out.jsonl").write_text("mine")
            write_row({"a": 2})
    assert Path("out.jsonl").read_text() == "mine"
    assert Path("out.unfinished.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_on_a_full_disk_the_rows_so_far_are_kept_whole(suffix):
    rows = numbered(200)
    write(f"whole{suffix}", rows)
    for name in ("out.unfinished", "out.unfinished-2"):  # what was kept before is not overwritten either
        with full_disk(), pytest.raises(UserError, match="cannot be written: File too large") as refused:
            write(f"out{suffix}", rows)
        kept = Path(f"{name}{suffix}")
        assert f"are kept in `{kept}`" in refused.value.hint
        content = kept.read_text()
        assert Path(f"whole{suffix}").read_text().startswith(content)
        count = int(refused.value.hint.split()[2])
        assert count == content.count('"number"' if suffix == ".jsonl" else "a\nb" * 10 + '"')
        assert content.endswith('"}\n' if suffix == ".jsonl" else 'b",\n')
        assert SIZE - 100 < len(content) <= SIZE
    assert sorted(path.name for path in Path().iterdir()) == [
        *(f"out.unfinished-2{suffix}", f"out.unfinished{suffix}", f"whole{suffix}"),
    ]


def test_where_not_one_row_was_written_nothing_is_left():
    with full_disk(), pytest.raises(UserError, match="File too large") as refused:
        write("out.jsonl", [{"text": "x" * 2 * SIZE}])
    assert refused.value.hint == ""
    assert list(Path().iterdir()) == []


def test_what_is_kept_elsewhere_is_not_kept_twice():
    with full_disk(), pytest.raises(UserError) as refused:  # noqa: SIM117
        with row_writer(Output(Path("out.jsonl")), kept_in=Path("out.jsonl.partial")) as write_row:
            for row in numbered(200):
                write_row(row)
    assert "kept in `out.jsonl.partial`: free some disk space" in refused.value.hint
    assert list(Path().iterdir()) == []


def test_a_pipe_is_written_to_and_stays_one(place):
    os.mkfifo("pipe.csv")
    read = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe.csv").read_text()))
    reader.start()
    write("pipe.csv", [{"a": 1}, {"a": 2}])
    reader.join(10)
    assert read == ["a,error\n1,\n2,\n"]
    assert Path("pipe.csv").is_fifo()


def test_a_device_needs_no_suffix_and_says_that_it_is_full():
    write("/dev/null", [{"a": 1}])
    Path("null.csv").symlink_to("/dev/null")
    write("null.csv", [{"a": 1}])
    assert Path("null.csv").is_symlink()
    with pytest.raises(UserError, match="`/dev/full` cannot be written: No space left on device"):
        write("/dev/full", [{"a": 1}])


def test_a_stream_that_is_open_is_written_to_behind_what_is_there():
    code = "from pathlib import Path; from llmkit.data.output import Output, row_writer\n"
    code += "output = Output(Path('/dev/stdout')); output.check()\nwith row_writer(output) as write: write({'a': 1})"
    Path("out.txt").write_text("mine\n")
    with Path("out.txt").open("a") as stream:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=stream)
    assert Path("out.txt").read_text() == 'mine\n{"a": 1}\n'
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b'{"a": 1}\n'


def test_a_link_that_leads_to_itself_is_no_place(place):
    Path("a.csv").symlink_to("b.csv")
    Path("b.csv").symlink_to("a.csv")
    write("a.csv", [{"a": 1}])
    assert Path("a.csv").read_text() == "a,error\n1,\n"


def test_overwrite_alone_is_a_mistake():
    with pytest.raises(UserError, match="--overwrite needs --output"):
        Output.named(None, True)
    assert Output.named(None, False) is None
