"""Reports as a browser shows them: no error, no request, nothing too wide, words that can be read. `make browser`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import made_runs
import pytest
from contrast import CONTRAST

from llmkit.reports import compare, compare_page, report

CHROMIUM = shutil.which("chromium")
pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make browser` installs it")
if CHROMIUM is None:
    pytest.skip("there is no `chromium`: `make browser` installs Debian's", allow_module_level=True)

# Words of pictures that lie outside them.
OUTSIDE = """[...document.querySelectorAll('svg')].flatMap(s => [...s.querySelectorAll('text')].filter(t => {
    const a = t.getBoundingClientRect(), b = s.getBoundingClientRect();
    return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
}).map(t => t.textContent))"""
# The contrast of each line of a legend with the page.
LINES = """() => {
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = color => { const [r, g, b] = color.match(/\\d+/g).map(Number);
    return 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255); };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('.legend path')].map(path => {
    const pair = [light(getComputedStyle(path).stroke), page].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05); });
}"""


LONG_NAME = "a-run-with-a-rather-long-name_2026-11-29"


@pytest.fixture(scope="module", params=["classifier", "language_model"])
def page_file(request, tmp_path_factory) -> Path:
    return report.write(getattr(made_runs, request.param)(tmp_path_factory.mktemp("runs") / LONG_NAME))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    """The page of seven runs and a folder of two: every colour, and the first one twice."""
    folder = tmp_path_factory.mktemp("runs")
    names = [LONG_NAME, *"bcdefg", "seeds/1", "seeds/2"]
    for number, name in enumerate(names):
        settings = {"trainer": {"learning_rate": 1e-4 * (number + 1)}}
        made_runs.classifier(folder / name, steps=200 + 20 * number, settings=settings)
    file = folder / "curves.html"
    compare_page.write(file, compare.read([str(folder / name) for name in (*names[:7], "seeds")]))
    return file


SCREENS = [("light", 400), ("dark", 400), ("light", 1400), ("dark", 1400)]


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_a_comparison_is_a_page_of_this_kind(scheme, width, comparison, browser):
    with pages(browser, comparison, scheme, width) as page:
        test_it_opens_without_an_error_or_a_request(page, comparison)
        test_nothing_is_wider_than_the_window(page)
        least = page.evaluate(CONTRAST)
        assert least[0][0] >= 4.5, least[:5]
        lines = page.evaluate(LINES)
        assert len(lines) == 8
        assert all(contrast >= 3 for contrast in lines), lines  # WCAG 2.2, 1.4.11
        assert page.evaluate(OUTSIDE) == []
        for role, number in (("img", 5), ("table", 2), ("navigation", 1)):
            assert page.get_by_role(role).count() == number
        assert page.get_by_role("img", name="Training loss").count() == 1


@contextmanager
def pages(browser, file: Path, scheme: str, width: int) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()


@pytest.fixture(params=SCREENS, ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, browser, page_file) -> Iterator[Any]:
    with pages(browser, page_file, *request.param) as page:
        yield page


def test_it_opens_without_an_error_or_a_request(page, page_file):
    assert page.said == []
    assert page.asked == [page_file.as_uri()]


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
        && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []


def test_all_words_stand_out_from_what_is_behind_them(page):
    least = page.evaluate(CONTRAST)
    assert len(least) > 100
    assert least[0][0] >= 4.5, least[:5]


def test_pictures_have_a_size_and_letters_that_can_be_read(page):
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().width, "
        "s.getBoundingClientRect().height, Math.min(...[...s.querySelectorAll('text')].map("
        "t => t.getBoundingClientRect().height))])"
    )
    assert len(sizes) >= 6
    assert all(width > 250 and height > 100 and letters > 8 for width, height, letters in sizes), sizes
    assert page.evaluate(OUTSIDE) == []


def test_a_screen_reader_finds_headings_tables_and_pictures_by_name(page):
    for role, least in (("img", 6), ("heading", 10), ("table", 3), ("navigation", 1)):
        assert page.get_by_role(role).count() >= least
    assert page.get_by_role("img", name="Loss over steps").count() == 1
    assert page.get_by_role("table", name="What was set, and where each value is from").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1


def test_it_prints(page, tmp_path):
    file = tmp_path / "report.pdf"
    page.pdf(path=file, format="A4")
    assert file.read_bytes().startswith(b"%PDF") and file.stat().st_size < 2_000_000


def test_the_picture_alone_is_an_image(browser, page_file):
    page = browser.new_page()
    picture = page_file.with_name("loss.svg")
    page.goto(picture.as_uri())
    assert page.evaluate("document.documentElement.tagName") == "svg"
    page.close()
