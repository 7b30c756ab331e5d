"""The Hub's answers in words, from a server on this machine that answers as the real one does."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from llmkit import hub
from llmkit.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"model_type": "gpt2"}'}


class Server(ThreadingHTTPServer):
    """The Hub's read API for `org/good`, `org/gated` and `org/broken` (half of its file comes); all else is unknown."""

    fail_first = 0
    status = 503
    delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        if self.server.fail_first > 0:
            self.server.fail_first -= 1
            self.answer(self.server.status)
            return
        path = self.path.partition("?")[0].removeprefix("/api")
        if path.endswith("/auth-check"):
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif "/revision/nope" in path:
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id: nope")
        elif path.startswith("/models/org/locked"):
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        elif not any(name in path for name in ("org/good", "org/gated", "org/broken")):
            self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Invalid username or password.")
        elif "/resolve/" in path:
            body = FILES.get(path.rpartition("/")[2])
            if body is None:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                half = {"Content_Length": str(2 * len(body))} if "org/broken" in path else {}
                self.answer(200, body, ETag='"0123456789"', X_Repo_Commit=COMMIT, **half)
        elif "/tree/" in path:
            self.answer(200, b"[]")
        else:
            about = {"id": "org/good", "sha": COMMIT, "gated": "auto" if "org/gated" in path else False}
            self.answer(200, json.dumps({**about, "siblings": [{"rfilename": name} for name in FILES]}).encode())

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A Hub in good health and an empty cache, used by this process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_trouble", "")
    monkeypatch.setattr(hub, "WAITS", (0.01, 0.02, 0.03))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")  # so that it is put back after go_offline
    with Server(("127.0.0.1", 0), Answers) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        files = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def mistake(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def test_a_readable_repository_gives_its_commit(server: Server) -> None:
    assert hub.check("org/good", "model") == COMMIT
    assert hub.check("org/good", "dataset") == COMMIT
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("repo_id", "kind", "revision", "said"),
    [
        ("org/none", "model", None, ["knows no model `org/none`", "hf auth login"]),
        ("org/none", "dataset", None, ["knows no dataset `org/none`"]),
        ("org/gated", "model", None, ["`org/gated` is gated", "/org/gated, accept", "hf auth login"]),
        ("org/gated", "dataset", None, ["is gated", "/datasets/org/gated, accept"]),
        ("org/good", "model", "nope", ["`org/good` has no such revision"]),
        ("org/locked", "model", None, ["refuses the model `org/locked` to this login", "hf auth login"]),
        ("not an id", "model", None, ["`not an id` is neither a path that exists nor a Hub id"]),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(
    server: Server, repo_id: str, kind: hub.Kind, revision: str | None, said: list[str]
) -> None:
    lines = mistake(lambda: hub.check(repo_id, kind, revision)).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["error:", "hint:"]
    assert all(words in "\n".join(lines) for words in said)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again_and_the_user_sees_it(
    server: Server, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    server.fail_first, server.status = 3, status
    assert hub.check("org/good", "model") == COMMIT
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"the Hub at {server.url} answers {status}: trying again in {wait} s" for wait in hub.WAITS]


def test_a_hub_that_stays_busy_leaves_the_cache(server: Server) -> None:
    hf_hub_download("org/good", "config.json")
    server.fail_first = 100
    assert hub.check("org/good", "model") is None
    assert COMMIT in hf_hub_download("org/good", "config.json")  # not asked any more
    text = mistake(lambda: _load("org/gated"))
    assert f"{server.url} answers 503 again and again, and the model `org/gated` is not" in text
    assert "hint: in the cache: org/good;" in text


def test_without_a_network_the_cache_is_read_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_hub_download("org/good", "config.json")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    assert hub.check("org/none", "model") is None
    assert COMMIT in hf_hub_download("org/good", "config.json")
    text = mistake(lambda: _load("org/none"))
    assert time.monotonic() - began < 2
    assert "http://127.0.0.1:9 cannot be reached (no network?), and the model `org/none` is not" in text
    assert "in the cache: org/good;" in text
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # for the processes that this one starts


def test_offline_mode_asks_nothing_and_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.fail_first = 1
    assert hub.check("org/none", "model") is None
    assert server.fail_first == 1
    assert "HF_HUB_OFFLINE is set, and the model `org/none` is not" in mistake(lambda: _load("org/none"))


def test_a_local_folder_is_not_blamed_on_the_network(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text("{")
    text = mistake(lambda: _load(str(tmp_path)))
    assert f"the model `{tmp_path}` could not be loaded" in text
    assert "cache" not in text


def test_a_repository_without_weights(server: Server) -> None:
    def load() -> None:
        from transformers import AutoModelForCausalLM

        with hub.loading("org/good", "model"):
            AutoModelForCausalLM.from_pretrained("org/good")

    text = mistake(load)
    assert "does not appear to have a file named pytorch_model.bin or model.safetensors" in text
    assert "no weights are there" in text


def test_a_download_that_breaks_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    text = mistake(lambda: _load("org/broken"))
    assert "the model `org/broken` could not be downloaded" in text
    assert "try again" in text


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\na\n")
    import datasets

    def load() -> None:
        with hub.loading("org/set", "dataset"):
            datasets.load_dataset("csv", data_files=str(tmp_path / "train.csv"), split="nope", cache_dir=str(tmp_path))

    assert "could not be loaded: Unknown split \"nope\". Should be one of ['train']." in mistake(load)


def test_other_failures_are_not_hidden() -> None:
    with pytest.raises(KeyError), hub.loading("org/good", "model"):
        raise KeyError("a bug of ours")


def test_the_command_with_no_network(tmp_path: Path) -> None:
    """In a process of its own: the clients read HF_ENDPOINT when they are imported."""
    endpoint = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "llmkit", "generate", "Once", "--model", "org/none"]
    done = subprocess.run(command, env={**os.environ, **endpoint}, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["error:", "hint:"]
    assert "nothing else is there" in done.stderr


def _load(name: str) -> None:
    from transformers import AutoConfig

    with hub.loading(name, "model"):
        AutoConfig.from_pretrained(name)
