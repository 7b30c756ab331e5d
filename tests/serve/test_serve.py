"""The command: what it says, what it refuses, and how it ends."""

import gc
import os
import signal
import socket
import threading

import pytest
from served import ask, until

from llmkit.errors import UserError
from llmkit.serve import serve


@pytest.fixture
def refused(llmkit, models, monkeypatch):
    monkeypatch.chdir(models)

    def call(*words: str) -> str:
        done = llmkit("serve", *words)
        assert (done.exit_code, done.stdout) == (2, "")
        return done.stderr

    return call


def test_mistakes_are_told_before_the_model_is_loaded(refused):
    assert "there is no model at `./nothing`" in refused("./nothing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in refused("gpt2", "--port", port)
    assert "hint: name another --port" in refused("gpt2", "--host", "no such name")
    assert "--key-file: `key.txt` cannot be read" in refused("gpt2", "--key-file", "key.txt")
    assert "--quantize int4 is for models that write text" in refused("masked", "--port", "0", "--quantize", "int4")


def test_the_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(serve.KEY, raising=False)
    assert serve.read_key(None) is None
    monkeypatch.setenv(serve.KEY, "abc")
    assert serve.read_key(None) == "abc"
    (tmp_path / "key").write_text("def\n")
    assert serve.read_key(tmp_path / "key") == "def"
    for wrong in ("", "two words", "schlüssel"):
        monkeypatch.setenv(serve.KEY, wrong)
        with pytest.raises(UserError, match="LLMKIT_SERVE_KEY holds no key"):
            serve.read_key(None)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="packages starlette and uvicorn\nhint: pip install 'llmkit\\[serve\\]'"):
        serve._need("starlette", "uvicorn")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_once_what_runs_is_finished(llmkit, models, monkeypatch, number):
    monkeypatch.chdir(models)
    started, answers = [], []
    load = serve.load
    monkeypatch.setattr(serve, "load", lambda *words: started.append(load(*words)) or started[-1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def client():
        until(lambda: started)
        asking = threading.Thread(
            target=lambda: answers.append(
                ask(f"http://127.0.0.1:{port}", "/v1/completions", {"prompt": "Once", "max_tokens": 300, "seed": 1})
            )
        )
        asking.start()
        until(lambda: started[0].worker.running)
        os.kill(os.getpid(), number)
        asking.join()

    thread = threading.Thread(target=client)
    thread.start()
    before = signal.getsignal(number)
    gc.disable()
    try:
        done = llmkit("serve", "gpt2", "--port", str(port))
        assert gc.isenabled()  # as `llmkit` begins without it
    finally:
        gc.enable()
        gc.unfreeze()
    thread.join()
    assert done.exit_code == 0
    assert signal.getsignal(number) is before
    assert answers[0].status == 200
    assert f"serving  gpt2 (causal-lm) at http://127.0.0.1:{port}" in done.stderr
    assert "stopping once what runs is finished" in done.stderr


def test_the_columns_of_a_row_are_those_of_the_training_data(models):
    assert serve.inputs_of(str(models / "answerer"), "question-answering") == ["question", "context"]
    assert serve.inputs_of(str(models / "classifier"), "text-classification") == ["text"]
