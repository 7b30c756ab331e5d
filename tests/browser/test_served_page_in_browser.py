"""The page of `llmkit serve`, clicked through in a browser for each kind of model. `make browser`."""

import os
import shutil
import time
from pathlib import Path

import pytest
import served
from contrast import CONTRAST

from llmkit.serve import engines, worker
from llmkit.serve.app import Limits

CHROMIUM = shutil.which("chromium")
pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make browser` installs it")
if CHROMIUM is None:
    pytest.skip("there is no `chromium`: `make browser` installs Debian's", allow_module_level=True)

SCREENS = [("light", 400), ("dark", 1000)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    served.write_models(folder)
    return folder


@pytest.fixture(params=SCREENS, ids=lambda p: f"{p[0]}-{p[1]}")
def opened(request, browser, models):
    """Open the page of a model; at the end it fits its window, is readable, and asked nothing of others."""
    left = []

    def opening(name: str, limits: Limits = served.LIMITS):
        scheme, width = request.param
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda sent: asked.append(sent.url))
        serving = served.serving(models / name, limits)
        address, _ = serving.__enter__()
        left.append((name, page, context, serving, said, asked, address))
        page.goto(address)
        return page

    yield opening
    for name, page, context, serving, said, asked, address in left:
        page.wait_for_timeout(100)
        least = page.evaluate(CONTRAST)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if "PICTURES" in os.environ:
            page.screenshot(path=f"{os.environ['PICTURES']}/{name}-{request.param[0]}.png", full_page=True)
        context.close()
        serving.__exit__(None, None, None)
        assert [line for line in said if "responded with a status of 40" not in line] == []
        assert [url for url in asked if not url.startswith((address, "data:"))] == []
        assert wide <= 0
        assert least[0][0] >= 4.5, least[:5]


def test_a_chat_streams_and_is_continued_stopped_and_begun_anew(opened, monkeypatch):
    page = opened("gpt2")
    page.get_by_role("heading", name="gpt2").wait_for()
    box = page.get_by_label("Message")
    page.get_by_label("Longest answer").fill("20")
    page.get_by_label("Temperature").fill("0")
    box.fill("Once upon?")
    box.press("Enter")
    page.get_by_role("status").get_by_text("Done.").wait_for()
    lines = page.get_by_role("list", name="Conversation").get_by_role("listitem")
    assert lines.count() == 2
    assert lines.first.inner_text().split("\n") == ["You", "Once upon?"]
    assert box.input_value() == ""
    assert box.evaluate("each => each === document.activeElement")
    box.fill("And then?")
    page.get_by_label("Longest answer").fill("380")
    monkeypatch.setattr(engines, "put", lambda events: (time.sleep(0.05), worker.put(events)))
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    monkeypatch.undo()
    page.get_by_role("button", name="New conversation").click()
    assert lines.count() == 0
    page.get_by_label("Longest answer").fill("")
    box.fill("x" * 600)
    box.press("Enter")
    page.get_by_role("alert").get_by_text("but the model has 512 positions").wait_for()
    assert box.input_value() == "x" * 600  # nothing that was typed is lost
    box.fill("Once upon?")
    page.get_by_label("Longest answer").fill("30")
    box.press("Enter")
    page.get_by_role("status").get_by_text("Done.").wait_for()


def test_classes_have_bars_the_likeliest_first(opened):
    page = opened("classifier")
    page.get_by_label("Text").fill("Once upon a time <b>there</b> was a cat.")
    page.keyboard.press("Control+Enter")
    rows = page.get_by_role("table", name="Probability of each").get_by_role("row")
    rows.first.wait_for()
    names = [row.split()[0] for row in rows.all_inner_texts()]
    assert sorted(names) == ["bad", "fair", "good"]
    shares = [float(row.split()[1]) for row in rows.all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert page.get_by_role("heading", level=2).inner_text() == names[0]
    page.get_by_text("JSON").click()
    assert '"label": ' in page.locator("pre").inner_text()


def test_entities_are_marked_where_they_are(opened):
    page = opened("tagger")
    text = "😀 Ada <i>met</i> Bob in Rome, once upon a time"
    page.get_by_label("Text").fill(text)
    page.get_by_role("button", name="Predict").click()
    box = page.locator("#result .text")
    box.wait_for()
    marks = page.locator("#result mark")
    assert marks.count() > 0
    found = page.evaluate("() => JSON.parse(document.querySelector('pre').textContent).entities")
    own = "each => [...each.querySelectorAll('mark')].map(mark => mark.firstChild.data)"
    assert box.evaluate(own) == [entity["text"] for entity in found]
    assert (
        box.evaluate("each => { each.querySelectorAll('small').forEach(s => s.remove()); return each.innerText }")
        == text
    )


def test_an_answer_is_marked_in_its_context(opened):
    page = opened("answerer")
    page.get_by_label("question").fill("who?")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("alert").get_by_text("Write something first.").wait_for()
    page.get_by_label("context").fill("Once upon a time there was a cat. The cat was happy.")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("table", name="Probability of each answer").wait_for()
    found = page.evaluate("() => JSON.parse(document.querySelector('pre').textContent)")
    assert page.locator("#result h2").first.inner_text() == (found["answer"] or "The text does not say")
    assert page.locator("#result mark").all_inner_texts() == ([found["answer"]] if found["answer"] else [])
    assert page.get_by_role("alert").inner_text() == ""


def test_blanks_are_filled_and_a_text_without_one_is_told_so(opened):
    page = opened("masked")
    box = page.get_by_label("Text")
    box.fill("no blank")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("alert").get_by_text("no [MASK] in it").wait_for()
    box.fill("a [MASK] was [MASK].")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("heading", name="Blank 2").wait_for()
    assert page.locator("#result mark").count() == 2
    assert page.get_by_role("table", name="Probability of each guess").count() == 2


def test_the_key_is_asked_for(opened):
    page = opened("classifier", Limits(max_tokens=1, max_body=10_000, key="sesame"))
    page.get_by_label("Key of this server").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("the key is missing or wrong").wait_for()
    page.get_by_label("Key of this server").fill("sesame")
    page.get_by_role("button", name="Go on").click()
    page.get_by_label("Text").fill("Once")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("table", name="Probability of each").wait_for()
