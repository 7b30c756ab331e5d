"""Tiny models of several kinds, and a server of one of them on a free port."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from conftest import byte_tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from llmkit.serve import serve
from llmkit.serve.app import Limits, application

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
HEADS = {
    "classifier": (BertForSequenceClassification, {"id2label": {0: "bad", 1: "fair", 2: "good"}}),
    "tagger": (BertForTokenClassification, {"id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}}),
    "answerer": (BertForQuestionAnswering, {}),
    "masked": (BertForMaskedLM, {}),
}
LIMITS = Limits(max_tokens=400, max_body=100_000)


def write_models(folder: Path) -> None:
    """A GPT-2 with a chat template, and a BERT of each head, with random weights wide enough to differ."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=512, **ids)).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(
        {"mask_token": "[MASK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    )
    for name, (kind, settings) in HEADS.items():
        if "id2label" in settings:
            settings = {**settings, "label2id": {label: number for number, label in settings["id2label"].items()}}
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        size |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.3}
        kind(BertConfig(**size, **settings)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


@contextmanager
def serving(name: Path, limits: Limits = LIMITS, max_waiting: int = 256) -> Iterator[tuple[str, Any]]:
    """Serve a model from a thread; give the address, and the service."""
    service = serve.load(str(name), limits, max_waiting)
    server = serve.server_of(application(service))
    with serve._listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join()
            service.worker.close()


def until(true, seconds: float = 20) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


def ask(address: str, path: str, body: Any = None, method: str | None = None, **headers: str) -> Answer:
    """Send a request; what is no bytes is sent as JSON."""
    line = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    if data is not None:
        given = {"Content-Type": "application/json", **given}
    line.request(method or ("GET" if data is None else "POST"), path, data, given)
    answer = line.getresponse()
    text = answer.read().decode()
    line.close()
    found = json.loads(text) if answer.headers.get_content_type() == "application/json" else text
    return Answer(answer.status, found, {key.lower(): value for key, value in answer.getheaders()})
