"""Who may ask, how much, and what happens to those who never finish."""

import asyncio
import json
import socket
import time

import pytest
import served
from served import ask

from llmkit.serve import connections, guards
from llmkit.serve.app import Limits
from llmkit.serve.metrics import Metrics

ROW = {"prompt": "Once", "max_tokens": 2}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def line_to(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "192.168.3.4", "[::1]:8000"])
def test_addresses_and_localhost_are_answered_to(address, host):
    assert ask(address, "/health", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:8000", "[", "user@evil.example"]
)
def test_a_foreign_name_is_refused_with_what_allows_it(address, host):
    found = ask(address, "/v1/completions", ROW, Host=host)
    assert (found.status, found.body["error"]["code"]) == (403, "host_not_allowed")
    if host == "evil.example":
        assert found.body["error"]["message"].endswith("start it with --allow-host evil.example")


def test_a_name_and_a_site_that_are_allowed(models):
    limits = Limits(max_tokens=4, max_body=1000, hosts=["my.example"], origins=["https://page.example"])
    with served.serving(models / "gpt2", limits) as (address, _):
        assert ask(address, "/health", Host="my.example:9000").status == 200
        assert ask(address, "/health", Host="your.example").status == 403
        found = ask(address, "/v1/completions", ROW, Origin="https://page.example")
        assert (found.status, found.headers["access-control-allow-origin"]) == (200, "https://page.example")
        preflight = {"Origin": "https://page.example", "Access_Control_Request_Method": "POST"}
        assert ask(address, "/v1/completions", method="OPTIONS", **preflight).status == 200


def test_pages_of_other_sites_are_refused_and_no_header_invites_them(address):
    found = ask(address, "/v1/completions", ROW, Origin="https://page.example")
    assert (found.status, found.body["error"]["code"]) == (403, "origin_not_allowed")
    own = ask(address, "/v1/completions", ROW, Origin=address)
    assert own.status == 200
    assert not [name for name in own.headers if name.startswith("access-control")]
    form = ask(address, "/v1/completions", json.dumps(ROW).encode(), Content_Type="text/plain")
    assert (form.status, form.body["error"]["message"][:21]) == (415, "the body must be JSON")


@pytest.mark.parametrize("length", [b"Content-Length: 10000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_of_ten_megabytes_is_refused_and_its_client_hears_why(address, length):
    body = b"a" * 10_000_000
    with line_to(address) as line:
        line.sendall(HEAD + length + (body if b"Length" in length else b"989680\r\n" + body + b"\r\n0\r\n\r\n"))
        found = line.makefile("rb").read().decode()
    assert found.startswith("HTTP/1.1 413 ")
    assert "larger than 100,000 bytes" in found


def test_a_body_that_does_not_come_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(guards, "BODY_SECONDS", 0.2)
    with line_to(address) as line:
        line.sendall(HEAD + b'Content-Length: 100\r\n\r\n{"prom')
        assert line.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert ask(address, "/v1/completions", ROW).status == 200


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", HEAD])
def test_half_a_head_is_cut_off(address, monkeypatch, sent):
    monkeypatch.setattr(connections, "LOOK", 0.05)
    with line_to(address) as line:
        began = time.monotonic()
        line.sendall(sent)
        assert line.recv(1000) == b""
        assert time.monotonic() - began < 5


def test_an_answer_that_takes_longer_than_looks_is_not_cut_off(address, monkeypatch):
    monkeypatch.setattr(connections, "LOOK", 0.005)
    assert len(ask(address, "/v1/completions", ROW | {"max_tokens": 300, "seed": 1}).body["choices"]) == 1


def test_a_client_that_takes_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(guards, "SEND_SECONDS", 0.05)
    metrics = Metrics()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def stuck(message):
        await asyncio.sleep(60)

    guard = guards.Guard(app, metrics, None, [], [], ["/health"])
    scope = {"type": "http", "path": "/health", "method": "GET", "headers": [(b"host", b"localhost")]}
    asyncio.run(guard(scope, None, stuck))
    assert metrics.gone == 1
