"""Data at an address: fetched once and whole, read as a local file is, and every failure answered in words."""

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from conftest import corpus

from llmkit import disk, remote
from llmkit import recipe as recipes
from llmkit.errors import UserError, scrub
from llmkit.recipe.addresses import fetched
from llmkit.runs.directory import read_record


class Web:
    """A server that keeps files by path, and counts what is asked; `broken` ends a body in its middle."""

    def __init__(self):
        self.files, self.asked = {}, []
        self.broken, self.status, self.tagged = False, 200, True
        web = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def head(self):
                web.asked.append(f"{self.command} {self.path}")
                body = web.files.get(self.path.partition("?")[0])
                self.send_response(404 if body is None else web.status)
                body = body or b""
                self.send_header("Content-Length", str(len(body)))
                if web.tagged:
                    self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
                self.end_headers()
                return body

            def do_HEAD(self):
                self.head()

            def do_GET(self):
                body = self.head()
                self.wfile.write(body[: len(body) // 2] if web.broken else body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def bodies(self):
        return [path for verb, _, path in (line.partition(" ") for line in self.asked) if verb == "GET"]


@pytest.fixture
def web():
    server = Web()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture(autouse=True)
def anew(tmp_path, monkeypatch):
    """Each test has a cache of its own, and has asked for nothing; `again()` is what a new command begins with."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("llmkit.errors._shown", {})
    monkeypatch.setenv(remote.FETCHED, "{}")


def again():
    os.environ[remote.FETCHED] = "{}"


@pytest.fixture
def store(monkeypatch):
    """Files in memory, at addresses memory://, which stand for those of a store with folders."""
    monkeypatch.setattr(remote, "SCHEMES", (*remote.SCHEMES, "memory"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_a_file_is_fetched_once_and_anew_when_it_has_changed(web, capsys):
    address = f"{web.address}/a/rows.csv?version=1"
    web.files["/a/rows.csv"] = b"text,label\nfirst,1\n"
    first = remote.fetch(address)
    assert Path(first).name == "rows.csv"
    assert remote.fetch(address) == first
    assert len(web.bodies()) == 1
    again()
    assert remote.fetch(address) == first
    assert len(web.bodies()) == 1  # it was asked, and has not changed
    web.files["/a/rows.csv"] = b"text,label\nsecond,2\n"
    assert remote.fetch(address) == first  # not within one command
    again()
    second = remote.fetch(address)
    assert Path(second).read_bytes() == b"text,label\nsecond,2\n"
    assert Path(first).read_bytes() == b"text,label\nfirst,1\n"
    web.tagged = False
    again()
    assert remote.fetch(address) == second  # the same content is the same copy
    assert len(web.bodies()) > 2
    assert capsys.readouterr().err.count(f"fetching `{address}`: ") == 3


def test_a_copy_that_is_damaged_is_fetched_anew(web):
    web.files["/a.txt"] = b"some text\n"
    Path(remote.fetch(f"{web.address}/a.txt")).write_bytes(b"")
    again()
    assert Path(remote.fetch(f"{web.address}/a.txt")).read_bytes() == b"some text\n"


def refusal(address):
    with pytest.raises(UserError) as mistake:
        remote.fetch(address)
    folder = disk.cache_dir() / "addresses"
    assert [path for path in folder.iterdir() if path.name != "index"] == []
    assert not list((folder / "index").glob("*.json"))
    return mistake.value


def test_what_goes_wrong_is_said_and_nothing_is_kept(web, monkeypatch):
    address = f"{web.address}/a.txt"
    assert refusal(address).message == f"there is nothing at `{address}`"
    web.files["/a.txt"] = b"some text\n" * 1000
    for status, words in ((401, "access to `"), (403, "access to `"), (500, "the server answers 500")):
        web.status = status
        assert refusal(address).message.startswith(words)
    web.status, web.broken = 200, True
    assert refusal(address).message.startswith(f"the connection to `{address}` failed: ")
    web.broken = False
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    assert "0 B are free" in refusal(address).message
    monkeypatch.undo()
    assert refusal("http://127.0.0.1:9/a.txt").message.startswith("the connection to `http://127.0.0.1:9/a.txt` failed")


def test_a_disk_that_fills_meanwhile(web, monkeypatch):
    web.files["/a.txt"] = b"some text\n"

    def full(*words, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem.get_file", full)
    mistake = refusal(f"{web.address}/a.txt")
    assert "cannot be kept in the cache" in mistake.message
    assert "No space left on device" in mistake.message
    assert "HF_HOME" in mistake.hint


def test_ctrl_c_is_answered_and_leaves_nothing(web, monkeypatch, capsys):
    web.files["/a.txt"] = b"some text\n"

    def interrupt(*words, **options):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem.get_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        remote.fetch(f"{web.address}/a.txt")
    assert f"stopped  while fetching `{web.address}/a.txt`: nothing of it is kept" in capsys.readouterr().err
    assert [path.name for path in (disk.cache_dir() / "addresses").iterdir()] == ["index"]


def test_without_a_connection_the_last_copy_is_read_and_said(web, monkeypatch, capsys):
    web.files["/a.txt"] = b"some text\n"
    copy = remote.fetch(f"{web.address}/a.txt")
    web.server.shutdown()
    web.server.server_close()
    again()
    assert remote.fetch(f"{web.address}/a.txt") == copy
    assert "reading the copy that was fetched" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again()
    assert remote.fetch(f"{web.address}/a.txt") == copy
    with pytest.raises(UserError, match="is not in the cache, and --offline or HF_HUB_OFFLINE is set"):
        remote.fetch(f"{web.address}/b.txt")


def test_a_secret_in_an_address_is_never_shown(web, capsys):
    port = web.server.server_port
    address = f"http://me:geheimnis@127.0.0.1:{port}/a.txt?X-Amz-Signature=abcdef0123"
    with pytest.raises(UserError) as mistake:
        remote.fetch(address)
    web.files["/a.txt"] = b"some text\n"
    remote.fetch(address)
    said = f"{mistake.value} {capsys.readouterr().err}"
    assert f"http://me:***@127.0.0.1:{port}/a.txt?X-Amz-Signature=***" in said
    assert "geheimnis" not in said
    assert "abcdef0123" not in said
    kept = " ".join(path.read_text() for path in (disk.cache_dir() / "addresses").rglob("*") if path.is_file())
    assert "geheimnis" not in kept + os.environ[remote.FETCHED]


def test_a_folder_and_a_glob(store):
    for name in ("a.txt", "b.txt", "deep/c.txt", "d.csv"):
        store.pipe(f"/bucket/texts/{name}", name.encode())
    folder = Path(remote.fetch("memory://bucket/texts/"))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "a.txt",
        "b.txt",
        "d.csv",
        "deep/c.txt",
    ]
    pattern = remote.fetch("memory://bucket/texts/*.txt")
    assert pattern.endswith("/*.txt")
    assert sorted(path.name for path in Path(pattern).parent.iterdir()) == ["a.txt", "b.txt"]
    with pytest.raises(UserError, match="there is nothing at `memory://bucket/none`"):
        remote.fetch("memory://bucket/none")
    assert scrub(f"`{folder}/a.txt`, line 3") == "`memory://bucket/texts/a.txt`, line 3"


ROWS = """task = "text-classification"
[model]
name = "some/model"
[data]
path = "ADDRESS"
"""


def test_a_recipe_keeps_the_address_and_reads_the_copy(store, tmp_path):
    store.pipe("/bucket/train.csv", b"text,label\na,1\n")
    store.pipe("/bucket/test.csv", b"text,label\nb,1\n")
    (tmp_path / "rows.toml").write_text(
        ROWS.replace("ADDRESS", "memory://bucket/train.csv")
        + 'data_files = { train = "memory://bucket/train.csv", validation = ["memory://bucket/test.csv"] }\n'
    )
    plain = recipes.load(str(tmp_path / "rows.toml"))
    assert plain.data.path == "memory://bucket/train.csv"  # a recipe is read without a network
    read = fetched(plain)
    assert Path(read.data.path).read_bytes() == b"text,label\na,1\n"
    assert Path(read.data.data_files["validation"][0]).read_bytes() == b"text,label\nb,1\n"
    for text in (read.to_toml(), read.to_toml(comments=True, as_typed=True)):
        (tmp_path / "again.toml").write_text(text)
        assert recipes.load(str(tmp_path / "again.toml")) == plain


def test_a_run_on_an_address_is_the_run_on_the_file(web, workplace, llmkit):
    web.files["/corpus.txt"] = corpus().encode()
    address = f"{web.address}/corpus.txt"
    done = llmkit("pretrain", "causal.toml", f"data.path={address}", "--output-dir", "far", "trainer.save_steps=3")
    assert done.exit_code == 0, done.stderr
    near = llmkit("pretrain", "causal.toml", "--output-dir", "near")
    assert near.exit_code == 0, near.stderr
    weights = [Path(run, "model.safetensors").read_bytes() for run in ("far", "near")]
    assert weights[0] == weights[1]
    records = [read_record(Path(run)) for run in ("far", "near")]
    assert records[0]["data"]["fingerprint"] == records[1]["data"]["fingerprint"]
    assert f'path = "{address}"' in Path("far/recipe.toml").read_text()
    again()
    assert llmkit("evaluate", "far").exit_code == 0
    assert len(web.bodies()) == 1
    web.files["/corpus.txt"] = corpus(150).encode()
    shutil.rmtree("far/checkpoint-6")
    json_file = Path("far/run.json")
    json_file.write_text(json.dumps({**json.loads(json_file.read_text()), "status": "stopped"}))
    again()
    changed = llmkit("pretrain", "causal.toml", f"data.path={address}", "--output-dir", "far", "--resume")
    assert changed.exit_code == 2
    assert "data" in changed.stderr


def test_predict_reads_an_address_with_the_errors_of_a_file(web, tmp_path, monkeypatch):
    from llmkit.inference.rows_io import check_files, read_rows

    web.files["/a.jsonl"] = b'{"text": "one"}\n{"text": \n'
    address = Path(f"{web.address}/a.jsonl")  # as the command line makes it, with one slash
    copy = check_files([], address, None)
    rows = read_rows([], copy)
    assert next(rows)[1] == {"text": "one"}
    with pytest.raises(UserError) as mistake:
        list(rows)
    assert f"`{web.address}/a.jsonl`, line 2" in scrub(str(mistake.value))
