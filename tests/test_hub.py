"""The Hub's answers in words, from a server on this machine that answers as the real one does."""

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from llmkit import accelerate_launch, hub
from llmkit.data.rows import head, splits
from llmkit.data.rows.reader import reader_of
from llmkit.errors import UserError
from llmkit.models import tokenizer as tokenizers
from llmkit.models.config import load_config
from llmkit.models.weights import create_model
from llmkit.recipe.data_tables import ClassificationData
from llmkit.recipe.schema import Model
from llmkit.recipe.schema import Tokenizer as TokenizerTable

COMMIT, PUSHED = "0123456789abcdef0123456789abcdef01234567", "f" * 40
FILES = {"config.json": b'{"model_type": "gpt2"}'}
ROWS = {
    "README.md": b"---\nlicense: mit\n---\n",
    "train.csv": b"text,label\n" + b"".join(b"a%d,%d\n" % (n, n % 2) for n in range(20)),
}


class Server(ThreadingHTTPServer):
    """The Hub's read API for `org/good`, `org/gated` and `org/broken` (half of its file comes); all else is unknown."""

    fail_first = 0
    fail_files = False  # not what the API answers, but the files fail
    status = 503
    retry_after: str | None = None
    delay = 0.0
    commit = COMMIT  # of the main branch; any other is there by its hash

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.files: dict[str, bytes] = FILES
        self.asked: list[str] = []

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
        if self.server.delay:
            time.sleep(self.server.delay)
        self.server.asked.append(self.path)
        if self.server.fail_first > 0 and (not self.server.fail_files or "/resolve/" in self.path):
            self.server.fail_first -= 1
            self.answer(self.server.status, **{"Retry-After": self.server.retry_after or ""})
            return
        path = self.path.partition("?")[0].removeprefix("/api")
        named = re.search("[0-9a-f]{40}", path)
        commit = named[0] if named else self.server.commit
        if path.endswith("/auth-check"):
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif "/revision/nope" in path:
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id: nope")
        elif path.startswith("/models/org/locked"):
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        elif not any(name in path for name in ("org/good", "org/gated", "org/broken")):
            self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Invalid username or password.")
        elif "/resolve/" in path:
            name = path.rpartition("/")[2]
            body = self.server.files.get(name)
            if body is None:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            else:
                half = {"Content_Length": str(2 * len(body))} if "org/broken" in path else {}
                self.answer(200, body, ETag=f'"{name}"', X_Repo_Commit=commit, **half)
        elif "/tree/" in path and path.endswith(commit):
            found = [{"type": "file", "path": name, "size": len(self.server.files[name])} for name in self.server.files]
            self.answer(200, json.dumps([{**each, "oid": "0"} for each in found]).encode())
        elif "/tree/" in path:
            self.answer(404, X_Error_Code="EntryNotFound")
        else:
            about = {"id": "org/good", "sha": commit, "gated": "auto" if "org/gated" in path else False}
            files = [{"rfilename": name} for name in self.server.files]
            self.answer(200, json.dumps({**about, "siblings": files}).encode())

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A Hub in good health and an empty cache, used by this process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_trouble", "")
    monkeypatch.setattr(hub, "WAITS", (0.01, 0.02, 0.03))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "DISABLE_SAFETENSORS_CONVERSION"):
        monkeypatch.setenv(name, "0")  # so that it is put back after go_offline
    monkeypatch.setenv(hub.COMMITS, "{}")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    with Server(("127.0.0.1", 0), Answers) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        files = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", running.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps its endpoint
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a GPT-2 of one layer with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 9}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"w{n}": n for n in range(9)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0").save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def mistake(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def test_a_readable_repository_gives_its_commit(server: Server) -> None:
    assert hub.check("org/good", "model") == COMMIT
    assert hub.check("org/good", "dataset") == COMMIT
    assert not constants.HF_HUB_OFFLINE


def test_a_file_that_a_commit_lacks_is_asked_for_once(server: Server) -> None:
    for repo_id, kind in (("org/good", "model"), ("org/good", "dataset")):
        commit = hub.check(repo_id, kind)
        server.asked.clear()
        for _ in range(3):
            with pytest.raises(EntryNotFoundError, match=r"none\.json"):
                hf_hub_download(repo_id, "none.json", revision=commit, repo_type=kind)
        assert len(server.asked) == 1
        path = hf_hub_download(repo_id, "config.json", revision=commit, repo_type=kind)
        assert Path(path).read_bytes() == FILES["config.json"]
        server.asked.clear()
        with pytest.raises(EntryNotFoundError):  # at a branch, which may get it
            hf_hub_download(repo_id, "none.json", revision="main", repo_type=kind)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("repo_id", "kind", "revision", "said"),
    [
        ("org/none", "model", None, ["knows no model `org/none`", "hf auth login"]),
        ("org/none", "dataset", None, ["knows no dataset `org/none`"]),
        ("org/gated", "model", None, ["`org/gated` is gated", "/org/gated, accept", "hf auth login"]),
        ("org/gated", "dataset", None, ["is gated", "/datasets/org/gated, accept"]),
        ("org/good", "model", "nope", ["`org/good` has no such revision"]),
        ("org/locked", "model", None, ["denies this login access to the model `org/locked`", "hf auth login"]),
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
    assert hub.check("org/good", "model") == COMMIT  # that of the cache
    assert COMMIT in hf_hub_download("org/good", "config.json")  # not asked any more
    text = mistake(lambda: _load("org/gated"))
    assert f"{server.url} keeps answering 503, and the model `org/gated` is missing from the cache" in text
    assert "hint: in the cache: org/good;" in text


def test_without_a_network_the_cache_is_read_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_hub_download("org/good", "config.json")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    assert hub.check("org/none", "model") is None
    assert hub.check("org/good", "model") == COMMIT
    assert COMMIT in hf_hub_download("org/good", "config.json")
    text = mistake(lambda: _load("org/none"))
    assert time.monotonic() - began < 2
    assert (
        "http://127.0.0.1:9 cannot be reached (no network?), and the model `org/none` is missing from the cache" in text
    )
    assert "in the cache: org/good;" in text
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # for the processes that this one starts


def test_offline_mode_asks_nothing_and_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.fail_first = 1
    assert hub.check("org/none", "model") is None
    assert server.fail_first == 1
    assert "HF_HUB_OFFLINE is set, and the model `org/none` is missing from the cache" in mistake(
        lambda: _load("org/none")
    )


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
    assert "it has no weights" in text


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


def test_a_hub_that_answers_nothing_is_absent_in_three_seconds(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that drops packets: the queue of a socket that nobody accepts from is full."""
    assert hub.PATIENCE == 3
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with socket.create_connection(deaf.getsockname()):
            began = time.monotonic()
            assert hub.check("org/good", "model") is None
            assert time.monotonic() - began < 1
    assert constants.HF_HUB_OFFLINE


def test_a_name_server_that_answers_nothing_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(5) and [])
    began = time.monotonic()
    assert hub.check("org/good", "model") is None
    assert time.monotonic() - began < 1
    answered.set()


def test_one_address_that_answers_is_enough(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine whose IPv6 leads nowhere."""
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.test")
    monkeypatch.setenv("no_proxy", "*")
    look_up = socket.getaddrinfo
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        both = [answer for each in (deaf.getsockname(), server.server_address) for answer in look_up(*each[:2])]

        def names(host: str, *rest: Any, **options: Any) -> Any:
            return both if host == "hub.test" else look_up(host, *rest, **options)

        monkeypatch.setattr(socket, "getaddrinfo", names)
        with socket.create_connection(deaf.getsockname()):
            assert hub.reachable()


def test_behind_a_proxy_it_is_the_proxy_that_must_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("no_proxy", "")
    for proxy, there in ((server.url, True), (server.url.removeprefix("http://"), True), ("http://127.0.0.1:9", False)):
        monkeypatch.setenv("http_proxy", proxy)
        assert hub.reachable() is there


@pytest.mark.parametrize("status", [429, 503])
def test_a_file_that_is_refused_for_a_while_is_waited_for_aloud(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    hub.check("org/good", "model")
    screen, waits = io.StringIO(), list[float]()
    for handler in logging.getLogger("huggingface_hub").handlers:
        monkeypatch.setattr(handler, "stream", screen)
    monkeypatch.setattr("time.sleep", waits.append)
    # The first refusal of each file is asked again at once, upstream.
    server.fail_first, server.fail_files, server.status, server.retry_after = 2, True, status, "7"
    _load("org/good")
    assert waits == [8]  # upstream adds a second
    assert screen.getvalue().splitlines() == [
        "the Hub has problems: Rate limited. Waiting 8.0s before retry [Retry 1/5]."
    ]


# ---- one commit ------------------------------------------------------------------------------------------------------


def test_a_push_in_the_middle_of_a_start_does_not_mix_two_versions(server: Server, tiny: Path) -> None:
    server.files = contents(tiny)
    model = Model(name="org/good")
    config, _ = load_config(model)
    server.commit = PUSHED
    tokenizer = tokenizers.load(TokenizerTable(), model, "causal-lm", None, None)  # type: ignore[arg-type]
    created, _ = create_model(model, config, AutoModelForCausalLM, 0)
    assert len(tokenizer) == created.get_input_embeddings().num_embeddings
    files = [path for path in server.asked if "/resolve/" in path]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.rpartition("/")[2] for path in files}
    assert all(f"/resolve/{COMMIT}/" in path for path in files)
    assert hub.commits() == {"org/good": COMMIT}


def test_an_adapter_notes_the_commit_of_its_base(server: Server, tiny: Path) -> None:
    server.files = contents(tiny)
    model = Model(name="org/good")
    config, _ = load_config(model)
    adapter, _ = create_model(model, config, AutoModelForCausalLM, 0, lora={}, task_type="CAUSAL_LM")
    assert adapter.peft_config["default"].revision == COMMIT


def test_each_repository_is_asked_about_once_and_children_know_the_answer(server: Server) -> None:
    for _ in range(2):
        assert hub.check("org/good", "model") == COMMIT
        assert hub.check("org/good", "dataset") == COMMIT
        assert hub.check("org/good", "model", "v1") == COMMIT
    assert sum("/api/" in path and "org/good" in path for path in server.asked) == 3
    read = {"org/good": COMMIT, "datasets/org/good": COMMIT, "org/good@v1": COMMIT}
    assert hub.commits() == read
    child = "from llmkit import hub; print(hub.commits())"
    assert eval(subprocess.check_output([sys.executable, "-c", child])) == read


def test_a_path_has_no_commit(server: Server, tmp_path: Path) -> None:
    assert hub.commit(str(tmp_path)) is None
    assert hub.commit("org/good") == COMMIT
    assert [path for path in server.asked if "org/good" not in path] == []


def test_a_data_set_is_read_at_one_commit_and_again_without_the_hub(
    server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    server.files = ROWS
    data = ClassificationData(path="org/good", validation_fraction=0.5)
    found = splits.tables(data, 0, reader_of("text-classification"))
    assert found.revision == COMMIT
    assert all(f"/resolve/{COMMIT}/" in path for path in server.asked if "/resolve/" in path)
    monkeypatch.setenv(hub.COMMITS, "{}")
    attempts = request.getfixturevalue("no_network")
    hub.go_offline("is not asked")
    again = splits.tables(data, 0, reader_of("text-classification"))
    assert (again.revision, list(again.train)) == (COMMIT, list(found.train))
    said = mistake(
        lambda: splits.tables(data.model_copy(update={"revision": PUSHED}), 0, reader_of("text-classification"))
    )
    assert f"the cache has `org/good` at {COMMIT}, but not at {PUSHED}" in said
    assert attempts == []


def test_a_file_that_a_cached_data_set_has_not_is_said_to_be_missing(server: Server) -> None:
    """Upstream looks into its cache last, and tells of nothing else."""
    server.files = ROWS
    data = ClassificationData(path="org/good", validation_fraction=0.5)
    splits.tables(data, 0, reader_of("text-classification"))
    said = mistake(
        lambda: splits.tables(data.model_copy(update={"data_files": "nope.csv"}), 0, reader_of("text-classification"))
    )
    assert f": it has no such data_files (its files: {server.url}/datasets/org/good/tree/main)" in said
    assert "check data.name (its configuration), data.split and data.data_files" in said


# ---- pickles and code ------------------------------------------------------------------------------------------------


def test_a_pickle_on_the_hub_is_refused_and_nobody_is_asked_to_convert_it(server: Server, tiny: Path) -> None:
    weights = GPT2LMHeadModel.from_pretrained(tiny).state_dict()
    file = io.BytesIO()
    torch.save(weights, file)
    server.files = {**contents(tiny), "pytorch_model.bin": file.getvalue()}
    del server.files["model.safetensors"]
    config, _ = load_config(Model(name="org/good"))
    said = mistake(lambda: create_model(Model(name="org/good"), config, AutoModelForCausalLM, 0))
    assert "the weights of the model `org/good` are a pickle" in said
    assert "model.use_safetensors = false" in said
    allowed = Model(name="org/good", use_safetensors=False)
    model, _ = create_model(allowed, config, AutoModelForCausalLM, 0)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [thread.name for thread in threading.enumerate() if "conversion" in thread.name] == []
    assert [path for path in server.asked if "discussions" in path or "commits" in path] == []


def test_code_from_the_hub_is_run_only_if_allowed_and_at_the_pinned_commit(server: Server, tiny: Path) -> None:
    config = {
        **json.loads((tiny / "config.json").read_text()),
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},
    }
    code = b"""from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
class OwnConfig(GPT2Config):
    model_type = "own"
class Own(GPT2LMHeadModel):
    config_class = OwnConfig
"""
    server.files = {**contents(tiny), "config.json": json.dumps(config).encode(), "own.py": code}
    said = mistake(lambda: load_config(Model(name="org/good")))
    assert f"read it first: {server.url}/org/good" in said
    assert "model.trust_remote_code = true" in said
    assert [path for path in server.asked if path.endswith("own.py")] == []
    for init in ("scratch", "pretrained"):
        table = Model(name="org/good", trust_remote_code=True, init=init)
        loaded, _ = load_config(table)
        server.commit = PUSHED
        made, _ = create_model(table, loaded, AutoModelForCausalLM, 0)
        assert type(made).__name__ == "Own"
    files = [path for path in server.asked if "/resolve/" in path]
    assert any(path.endswith("own.py") for path in files)
    assert all(f"/resolve/{COMMIT}/" in path for path in files)


# ---- --offline -------------------------------------------------------------------------------------------------------


def test_offline_generates_from_the_cache_alone(
    server: Server, tiny: Path, llmkit: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    server.files = contents(tiny)
    command = ("generate", "w1 w2", "do_sample=false", "max_new_tokens=4", "--model", "org/good")
    online = llmkit(*command)
    assert online.exit_code == 0, online.stderr
    os.environ[hub.COMMITS] = "{}"  # a new process
    attempts = request.getfixturevalue("no_network")
    again = llmkit(*command, "--offline")
    assert (again.exit_code, again.stdout) == (0, online.stdout)
    missing = llmkit("generate", "w1", "--model", "org/none", "--offline")
    assert missing.exit_code == 2
    assert "is not contacted (--offline), and the model `org/none` is missing from the cache" in missing.stderr
    assert "in the cache: org/good;" in missing.stderr
    assert attempts == []


@pytest.mark.parametrize(
    "command",
    [
        ["pretrain", "causal.toml", "model.name=org/none", "--dry-run"],
        ["pretrain", "causal.toml", "data.path=org/none", "model.name=org/none"],
        ["finetune", "--task", "text-classification", "data.path=org/none", "model.name=org/none"],
        ["predict", "org/none", "a text"],
        ["evaluate", "org/none", "causal.toml"],
        ["merge", "org/none", "--output", "whole"],
    ],
)
def test_every_command_that_reads_from_the_hub_can_stay_offline(
    command: list[str],
    server: Server,
    workplace: Path,
    llmkit: Callable[..., Any],
    no_network: list[Any],
) -> None:
    done = llmkit(*command, "--offline")
    assert done.exit_code == 2
    assert "is not contacted (--offline)" in done.stderr
    assert no_network == []


def test_the_processes_of_a_launch_stay_offline_too(server: Server, tmp_path: Path) -> None:
    hub.go_offline("is not contacted (--offline)")
    environment = accelerate_launch.environment(tmp_path, tmp_path, 2)
    child = "from huggingface_hub import constants; from datasets import config\n"
    child += "print(constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE)"
    assert subprocess.check_output([sys.executable, "-c", child], env=environment, text=True) == "True True\n"


# ---- secrets ---------------------------------------------------------------------------------------------------------


def test_what_the_clients_say_is_scrubbed() -> None:
    def fail() -> None:
        with hub.loading("org/good", "model"):
            raise OSError("cannot reach http://me:geheim@proxy with hf_abcdefGHIJ12345")

    said = mistake(fail)
    assert "http://me:***@proxy with ***" in said
    assert "geheim" not in said and "hf_" not in said


def test_the_command_with_no_network(tmp_path: Path) -> None:
    """In a process of its own: the clients read HF_ENDPOINT when they are imported."""
    endpoint = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "llmkit", "generate", "Once", "--model", "org/none"]
    done = subprocess.run(command, env={**os.environ, **endpoint}, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["error:", "hint:"]
    assert "nothing else is cached" in done.stderr


def _load(name: str) -> None:
    from transformers import AutoConfig

    with hub.loading(name, "model"):
        AutoConfig.from_pretrained(name)


# ---- the first rows, for a dry run -----------------------------------------------------------------------------------


def test_of_a_data_set_the_first_rows_are_read(server: Server) -> None:
    server.files = {**ROWS, "train.csv": b"text,label\n" + b"a,0\nb,1\n" * 1000}
    first = head.open_head(ClassificationData(path="org/good"), "train")
    assert first.number == len(list(first.rows)) == head.ROWS
    assert first.rows.columns == ("text", "label")
    assert "a dry run reads the first 1,000 rows" in first.rows.remarks[0]


def test_no_more_is_downloaded_than_a_dry_run_may(server: Server) -> None:
    server.files = {**ROWS, "train.csv": b"text,label\n" + b"a,0\nb,1\n" * 1000}
    with pytest.raises(head.UnreadError, match=r"`org/good` \(split train\): its first rows do not fit into"):
        head.open_head(ClassificationData(path="org/good"), "train", limit=100)


def test_a_small_split_is_read_to_its_end_and_said_so_by_saying_nothing(server: Server) -> None:
    server.files = ROWS
    first = head.open_head(ClassificationData(path="org/good"), "train")
    assert (first.number, first.total, first.rows.remarks) == (20, 20, ())


@pytest.mark.parametrize(("split", "total"), [("train", 900), ("train[:40]", 40), ("train[50%:]", 450), ("dev", None)])
def test_the_number_of_all_rows_is_what_the_hub_says(split: str, total: int | None) -> None:
    assert head._total({"train": SimpleNamespace(num_examples=900)}, split) == total


def test_a_dry_run_of_a_data_set_reads_its_first_rows(
    server: Server, base: Path, monkeypatch: pytest.MonkeyPatch, llmkit: Callable[..., Any], tmp_path: Path
) -> None:
    server.files = {**ROWS, "train.csv": b"text,label\n" + b"the fox,0\nthe hen,1\n" * 1000}
    monkeypatch.chdir(tmp_path)
    words = ["data.path=org/good", "data.name=", "data.validation_split=", "data.max_length=16", f"model.name={base}"]
    done = llmkit("finetune", "--task", "text-classification", *words, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "[CLS] the fox [SEP]" in done.stderr
    assert "train: 1,000 rows" in done.stderr
    assert "1 500 (50.0%)" in done.stderr
    assert "a dry run reads the first 1,000 rows" in " ".join(done.stderr.split())
    assert "steps           enough for " in done.stderr
