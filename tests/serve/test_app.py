"""What the server answers: predictions, texts whole and streamed, errors, figures."""

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import served
from served import ask, until

import llmkit
from llmkit.serve.app import Limits

PROMPTS = [f"Once upon a time{' and again' * (number % 5)} there was {number}" for number in range(12)]
MESSAGES = [{"role": "user", "content": "Once upon?"}]


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(models):
    return llmkit.load(models / "gpt2")


def test_the_model_is_listed_with_what_it_is(client, address):
    [listed] = client.models.list().data
    assert (listed.id, listed.owned_by) == ("gpt2", "llmkit")
    found = ask(address, "/v1/models/gpt2").body
    assert (found["task"], found["chat"], found["max_model_len"], found["max_tokens"]) == ("causal-lm", True, 512, 400)
    with pytest.raises(openai.NotFoundError, match="there is no model `gpt3`: this server has `gpt2`"):
        client.completions.create(model="gpt3", prompt="Once")


def test_greedy_texts_that_are_written_together_are_those_of_generate(address, model, writer):
    async def together():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.completions.create(model="gpt2", prompt=prompt, max_tokens=8 + number % 3, temperature=0)
                for number, prompt in enumerate(PROMPTS)
            ]
            return await asyncio.gather(*asked)

    before = writer[1].worker.batches
    for number, (prompt, found) in enumerate(zip(PROMPTS, asyncio.run(together()), strict=True)):
        alone = model.generate(prompt, do_sample=False, max_new_tokens=8 + number % 3)
        assert prompt + found.choices[0].text == alone
    assert writer[1].worker.batches - before < len(PROMPTS) / 2


def test_a_stream_has_the_text_of_the_whole_answer(client, model):
    asked = {"model": "gpt2", "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == model.chat("Once upon?", do_sample=False, max_new_tokens=40)
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].usage == whole.usage
    assert whole.usage.completion_tokens <= 40
    text = [
        piece.choices[0].text
        for piece in client.completions.create(model="gpt2", prompt="A", max_tokens=40, temperature=0, stream=True)
    ]
    assert len(text) > 5
    assert "A" + "".join(text) == model.generate("A", do_sample=False, max_new_tokens=40)


def test_a_seed_gives_the_text_that_generate_gives_and_choices_of_their_own(client, model):
    asked = {"model": "gpt2", "prompt": "Once", "max_tokens": 12, "seed": 7, "n": 3, "temperature": 1.5}
    first, again = (client.completions.create(**asked).choices for _ in range(2))
    assert [choice.text for choice in first] == [choice.text for choice in again]
    assert len({choice.text for choice in first}) == 3
    settings = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12}
    assert "Once" + first[0].text == model.generate("Once", seed=7, **settings)


def test_a_text_ends_before_its_stop_and_streams_nothing_of_it(client):
    asked = {"model": "gpt2", "prompt": "Once", "max_tokens": 60, "temperature": 0}
    whole = client.completions.create(**asked).choices[0]
    stop = whole.text[9:14]
    cut = client.completions.create(**asked, stop=["never there", stop]).choices[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (whole.finish_reason, cut.finish_reason) == ("length", "stop")
    pieces = list(client.completions.create(**asked, stop=["never there", stop], stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == cut.text
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_other_settings_are_another_batch(writer):
    engine = writer[1].engine
    greedy, warm = (engine.config({"do_sample": False}), engine.config({"do_sample": True, "temperature": 0.5}))
    assert engine.key(greedy, [1, 2], None) == engine.key(engine.config({"do_sample": False}), [3], None)
    assert engine.key(greedy, [1, 2], None) != engine.key(warm, [1, 2], None)
    assert engine.key(warm, [1, 2], 3) != engine.key(warm, [1, 2], 3)  # each seed draws alone
    wary = engine.config({"do_sample": False, "repetition_penalty": 1.2})  # padding would be penalized
    assert engine.key(wary, [1, 2], None) != engine.key(wary, [1, 2, 3], None)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_its_row(address, writer, streamed):
    gone, worker = writer[1].metrics.gone, writer[1].worker
    body = json.dumps({"prompt": "Once", "max_tokens": 400, "seed": 1, "logit_bias": None, "stream": streamed}).encode()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        line.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: worker.running)
        job = worker.running[0]
    until(lambda: job.gone and not worker.running)
    until(lambda: writer[1].metrics.gone == gone + 1)


def test_mistakes_are_told_all_at_once_in_openais_shape(address, client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model="gpt2",
            messages=[{"role": "nobody", "content": 3}],
            temperature=-1,
            n=99,
            tools=[{"type": "function"}],
        )
    told = raised.value.body
    assert (told["type"], told["param"]) == ("invalid_request_error", "temperature")
    for words in ("temperature: a number from 0", "n: 1 to 16", "messages[0].role: one of system", "tools: [{"):
        assert words in told["message"]
    found = ask(address, "/v1/completions", {"prompt": "", "colour": 1})
    assert found.body["error"]["message"] == "prompt: it is empty; there is no field 'colour'"
    for path, body, words in (
        ("/v1/completions", {"prompt": "a", "max_tokens": 401}, "this server allows 400 (--max-tokens), not 401"),
        ("/v1/completions", {"prompt": "a" * 200, "max_tokens": 400}, "the model has room for 312, not for 400"),
        ("/v1/completions", {"prompt": "a" * 600}, "the prompt has 600 tokens, but the model has 512 positions"),
        ("/v1/completions", {"prompt": [5, 9999]}, "a token is outside of the vocabulary"),
        ("/v1/completions", [1], "the body is not a JSON object"),
        ("/v1/completions", b"{", "the body is not JSON"),
        ("/v1/completions", b"[" * 90_000, "nested too deep"),
        ("/v1/completions", b'{"prompt": "\\ud800"}', "half a character"),
        ("/predict", "a text", "is a causal language model: POST /v1/completions"),
        ("/nowhere", {}, "there is no POST /nowhere: GET /, "),
    ):
        answer = ask(address, path, body)
        assert answer.status in (400, 404), answer
        assert words in answer.body["error"]["message"]


def test_more_than_may_wait_is_refused_and_the_rest_is_answered(models):
    with served.serving(models / "gpt2", max_waiting=4) as (address, service):

        async def flood():
            async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
                asked = [client.completions.create(model="gpt2", prompt=f"{n}", max_tokens=30) for n in range(40)]
                return await asyncio.gather(*asked, return_exceptions=True)

        found = asyncio.run(flood())
        refused = [each for each in found if isinstance(each, openai.RateLimitError)]
        assert 0 < len(refused) < 40
        assert all(each.response.headers["retry-after"] == "1" for each in refused)
        assert all(each.choices for each in found if each not in refused)
        assert service.worker.waiting == 0


@pytest.mark.parametrize(
    ("name", "row", "keys"),
    [
        ("classifier", "Once upon a time", ["label", "score", "scores"]),
        ("tagger", {"text": "Once upon a time"}, ["entities", "tokens", "tags"]),
        ("answerer", {"question": "who?", "context": "a cat was there"}, ["answer", "score", "start", "end", "n_best"]),
        ("masked", "a [MASK] time", ["filled", "tokens"]),
    ],
)
def test_each_head_predicts_what_predict_says(models, name, row, keys):
    with served.serving(models / name) as (address, service):
        alone = llmkit.load(models / name).predict(row)
        assert list(alone) == keys
        found = ask(address, "/predict", row)
        assert found.body == alone
        assert ask(address, "/predict", [row, row]).body == [alone, alone]
        assert service.about["inputs"] == (list(row) if isinstance(row, dict) else ["text"])
        refused = ask(address, "/v1/chat/completions", {"messages": MESSAGES})
        assert (refused.status, refused.body["error"]["message"]) == (404, f"`{name}` writes no text: POST /predict")
        for body, words in ((3, "row 1 is neither a text nor an object"), ([], "the list is empty")):
            assert words in ask(address, "/predict", body).body["error"]["message"]
        if name == "masked":
            assert ask(address, "/predict", "no blank").body["error"]["message"].startswith("no [MASK] in it")
            rows = ask(address, "/predict", ["no blank", row])
            assert (rows.status, list(rows.body[0]), rows.body[1]) == (200, ["error"], alone)


def test_rows_of_several_clients_are_predicted_together_and_each_gets_its_own(models):
    asked = [[f"Once {number}"] * (1 + number % 3) for number in range(24)]
    texts = [rows[0] for rows in asked]
    own = dict(zip(texts, llmkit.load(models / "classifier").predict(texts), strict=True))
    with served.serving(models / "classifier") as (address, service), ThreadPoolExecutor(24) as clients:
        found = list(clients.map(lambda rows: ask(address, "/predict", rows).body, asked))
        assert service.worker.batches < len(asked)
    for rows, answers in zip(asked, found, strict=True):
        assert [answer["scores"] for answer in answers] == [pytest.approx(own[row]["scores"], abs=2e-6) for row in rows]


def test_figures_count_what_was_served(models):
    with served.serving(models / "gpt2") as (address, _):
        ask(address, "/v1/completions", {"prompt": "Once", "max_tokens": 5, "temperature": 0})
        ask(address, "/secret", {})
        lines = ask(address, "/metrics").body.splitlines()
    for line in (
        'llmkit_requests_total{path="/v1/completions",status="200"} 1',
        'llmkit_requests_total{path="other",status="404"} 1',
        "llmkit_batches_total 1",
        "llmkit_generated_tokens_total 5",
        "llmkit_rows_waiting 0",
    ):
        assert line in lines


def test_what_is_written_is_finished_when_the_server_ends(models):
    with served.serving(models / "gpt2") as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="gpt2", prompt="Once", max_tokens=300, temperature=0, stream=True)
        next(stream)
        began = time.monotonic()
    # the server was asked to end, and has
    assert [piece.choices[0].finish_reason for piece in stream][-1] in ("length", "stop")
    assert time.monotonic() - began < 20
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    client.close()


def test_a_key_opens_everything_but_the_page_and_health(models):
    with served.serving(models / "gpt2", Limits(max_tokens=4, max_body=1000, key="open-sesame")) as (address, _):
        for path in ("/v1/models", "/metrics"):
            refused = ask(address, path)
            assert (refused.status, refused.body["error"]["code"]) == (401, "invalid_api_key")
            assert ask(address, path, Authorization="Bearer wrong").status == 401
            assert ask(address, path, Authorization="Bearer open-sesame").status == 200
        assert ask(address, "/").status == ask(address, "/health").status == 200
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
            wrong.models.list()
