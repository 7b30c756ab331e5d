"""A run's report: one file that shows what `run.json` and the log hold, without a reference to anything outside."""

import json
import re
import shutil
import time
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import made_runs
import pytest
from conftest import ROOT

from llmkit.errors import UserError
from llmkit.reports import report
from llmkit.reports.attributions import Attribution, Word
from llmkit.reports.contents import Contents

VOID = {"meta", "link", "br", "img", "hr", "input", "col"}


class Page(HTMLParser):
    """A page, parsed strictly: each tag closed in its turn, ids that are there once, references that lead somewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.headings: list[int] = []
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert sorted(set(ids)) == sorted(ids)
        for _, attributes in self.tags:
            for key in ("aria-labelledby", "aria-describedby"):
                assert set((attributes.get(key) or "").split()) <= set(ids)
            for key in ("href", "xlink:href"):
                if key in attributes:
                    assert attributes[key][0] == "#" and attributes[key][1:] in ids, attributes

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open  # in HTML itself a slash closes nothing
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & {*self.open[-1:]}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(run: Path) -> tuple[str, Page]:
    text = report.write(run).read_text()
    return text, Page(text)


@pytest.fixture(params=["classifier", "language_model"])
def run(request, tmp_path) -> Path:
    return getattr(made_runs, request.param)(tmp_path / "my-run")


def test_the_page_refers_to_nothing_outside_and_holds_no_script(run):
    text, page = page_of(run)
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"src", "srcset", "data", "action", "poster", "background"}
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [name for name in names if name.startswith("on")]
    outside = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", outside)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 1_000_000


def test_the_page_is_html_that_a_strict_parser_takes(run):
    html5lib = pytest.importorskip("html5lib", reason="html5lib is not installed; `make browser` installs it")
    html5lib.HTMLParser(strict=True).parse(report.write(run).read_text())


def test_each_picture_has_a_name_and_a_description_with_its_figures(run):
    text, page = page_of(run)
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) >= 6
    for picture in pictures:
        assert 'role="img"' in picture
        assert re.search(r"<title id=[^>]*>\w", picture)
        description = re.search(r"<desc id=[^>]*>(.*?)</desc>", picture)[1]
        assert len(re.findall(r"\d+", description)) >= 2, description
    for picture in pictures:
        assert not re.search(r"#0[1-5]0[2-6]0[3-7]", picture)  # no color of the drawing is left
    captions = text.count("<caption")
    assert captions == text.count("<table") > 3
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all("scope" in attributes for attributes in heads)


def test_its_figures_are_those_of_the_record(run):
    record = json.loads((run / "run.json").read_text())
    _, page = page_of(run)
    for key, value in record["metrics"].items():
        if key.startswith("eval_"):
            assert f"{key} {value:.4f}" in page.text
    for key, about in record["trivial"]["metrics"].items():
        assert f"{key} {record['metrics'][key]:.4f} {about['value']:.4f} {about['answer']}" in page.text
    assert "training loss of the last 20 steps 0.2117" in page.text
    assert "22,714,000" in page.text and "2 min 5 s" in page.text and "1.23 GB" in page.text
    assert "learning_rate 5e-05 recipe line 9" in page.text
    assert "logging_steps 10 default" in page.text
    assert "torch 2.13.0" in page.text and "llmkit finetune mine.toml" in page.text


def test_a_classifier_shows_classes_confusions_calibration_and_its_mistakes(tmp_path):
    text, page = page_of(made_runs.classifier(tmp_path / "run"))
    assert "60 rows, 15 of them wrong (25.0 %)" in page.text
    assert "bad 0.7500 0.7500 0.7500 20" in page.text
    assert "bad 15 5 0" in page.text  # taken for bad, fair, good
    assert "Warning: the training loss did not fall" in page.text
    assert "better by (95 % interval)" in page.text and "+0.3100 to +0.5200" in page.text
    assert "Best at step 150, by eval_accuracy 0.7600" in page.text
    assert "bad 900 56.2%" in page.text
    scores = [0.4 + i / 100 for i in range(60)]
    bins = [[(s, i % 4 != 0) for i, s in enumerate(scores) if int(round(s, 2) * 10) == b] for b in range(10)]
    error = sum(abs(sum(s for s, _ in each) - sum(right for _, right in each)) for each in bins) / 60
    assert f"Expected calibration error {error:.4f}" in page.text
    assert text.count("SECRET") == 15
    assert "SECRET <b>text</b> & words of row 56\\x07" in page.text  # as text, and not as markup
    assert "fair instead of good & <great>" in page.text or "bad instead of good & <great>" in page.text
    first, second = page.text.index("row 57 "), page.text.index("row 53 ")
    assert first < second  # by their row, counted from 1: the surest first


def test_without_rows_no_text_is_left(tmp_path):
    run = made_runs.classifier(tmp_path / "run", report="\n[report]\nrows = false  # command line\n")
    text, page = page_of(run)
    assert "SECRET" not in text
    assert "texts of rows are left out" in page.text
    assert "bad 15 5 0" in page.text
    samples = made_runs.language_model(tmp_path / "gpt", report="\n[report]\nrows = false\n")
    assert "there was a cat" not in page_of(samples)[0]


def test_samples_are_shown_through_training(tmp_path):
    _, page = page_of(made_runs.language_model(tmp_path / "run"))
    assert "Step 50 Once upon a time there was a cat <50>" in page.text
    assert "Step 200" in page.text
    assert "documents 4,000 80" in page.text


def test_a_run_without_predictions_log_or_recipe_has_a_report(tmp_path):
    run = made_runs.classifier(tmp_path / "run", rows=None)
    assert "Confusions" not in page_of(run)[1].text
    (run / "metrics.jsonl").unlink()
    (run / "recipe.toml").unlink()
    (run / "loss.svg").unlink()
    _, page = page_of(run)
    assert "eval_accuracy 0.7500" in page.text and "Gradient norm" not in page.text
    assert not (run / "loss.svg").exists()
    (run / "run.json").write_text("{}")
    assert "unknown" in page_of(run)[1].text


def test_an_earlier_run_has_a_report_of_what_it_has(tmp_path):
    for folder in sorted((ROOT / "tests/earlier_runs").iterdir()):
        for name, says in (("finished", "state finished"), ("stopped", "state")):
            run = shutil.copytree(folder / name, tmp_path / folder.name / name)
            _, page = page_of(run)
            assert says in page.text and "Gradient norm" in page.text
            assert (run / "loss.svg").read_text().startswith("<svg")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no run\.json"):
        report.write(tmp_path)


def test_100_000_lines_of_a_log_are_a_small_report_in_seconds(tmp_path):
    run = made_runs.language_model(tmp_path / "run", steps=1_000_000, evaluated=1000)
    assert (run / "metrics.jsonl").read_text().count("\n") > 100_000
    begun = time.perf_counter()
    text, page = page_of(run)
    assert time.perf_counter() - begun < 10  # 1.5 s alone
    assert len(text.encode()) < 500_000
    assert "each point is the mean of 500 logged" in page.text


def test_long_texts_do_not_make_a_page_of_megabytes(tmp_path):
    rows = [
        {"row": i, "truth": "a" * 9000, "prediction": "界" * 9000, "loss": 1.0, "worst": i + 1, "columns": columns}
        for i in range(20)
        for columns in [{f"column {j}": "界" * 9000 for j in range(30)}]
    ]
    run = made_runs.classifier(tmp_path / "run", rows=rows)
    assert len(page_of(run)[0].encode()) < 1_000_000


def test_lines_that_are_not_whole_or_not_finite_are_counted(tmp_path):
    run = made_runs.classifier(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 201, "loss": "nan"}\n{"step": 202, "skipped_step": 202}\n{"step": 203, "lo')
    _, page = page_of(run)
    assert "1 logged values are not finite" in page.text
    assert "1 steps were skipped: 202" in page.text
    assert "1 lines of the log cannot be read" in page.text


def test_the_same_run_makes_the_same_bytes(run):
    assert page_of(run)[0] == page_of(run)[0]


def test_the_card_shows_the_picture_once_with_its_figures(tmp_path):
    run = made_runs.classifier(tmp_path / "run")
    card = run / "README.md"
    card.write_text("# run\n\n| metric | value | baseline |\n| --- | --- | --- |\n\n```python\nx\n```\n")
    report.write(run)
    shown = card.read_text()
    assert re.search(r"\n!\[Training loss from .* at step 10 to .*\]\(loss\.svg\)\n\n```python", shown)
    report.write(run)
    assert card.read_text() == shown


def test_the_recipe_of_the_page_is_that_of_the_run(tmp_path):
    run = made_runs.classifier(tmp_path / "run")
    told = {
        f"{table}.{key}".removeprefix("."): value for table, rows in Contents.of(run).recipe for key, value, _ in rows
    }
    tables = tomllib.loads((run / "recipe.toml").read_text())
    assert told["data.path"] == json.dumps(tables["data"]["path"])
    assert told["task"] == '"text-classification"'
    assert len(told) == 1 + sum(len(each) for each in tables.values() if isinstance(each, dict))


def test_words_that_decided_are_marked_with_their_scores(tmp_path, monkeypatch):
    run = made_runs.classifier(tmp_path / "run")
    asked = []

    def explain(directory, rows):
        assert directory == run
        asked.extend(rows)
        for number, row in enumerate(rows[:3]):  # the others cannot be explained
            text = row["text"]
            words = (Word("SECRET", 0.75, 0, 0, 6), Word("<b>text", -0.25, 0, 7, 14), Word("row", 0.001, 0, 28, 31))
            yield Attribution(number, "fair", (text,), words, None, 0.5, 0.004 if number else 0.3)

    monkeypatch.setattr("llmkit.reports.attributions.explain", explain)
    text = report.write(run, explained=True).read_text()
    page = Page(text)
    assert len(asked) == 15 and set(asked[0]) == {"text"}
    assert page.text.count("For fair: “SECRET” +0.750, “<b>text” -0.250, “row” +0.001") == 3
    assert text.count('<mark class="for" style="--share:45%">SECRET</mark> <mark class="against"') == 3
    assert "all words together miss the model's score by 30 %" in page.text
    assert page.text.count("SECRET <b>text </b> & words of row") == 3  # nothing of the text is lost
    assert page.text.count("SECRET <b>text</b> & words of row") == 12


def test_a_model_that_is_gone_costs_the_words_alone(tmp_path, monkeypatch, capsys):
    run = made_runs.classifier(tmp_path / "run")
    assert "Worst" not in Page(report.write(run, explained=True).read_text()).text
    assert "note     no words are shown that decided: " in capsys.readouterr().err
    assert "The worst mistakes" in (run / "report.html").read_text()


def test_a_report_that_cannot_be_written_costs_the_finished_run_nothing(tmp_path, capsys, monkeypatch):
    run = made_runs.classifier(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmkit.runs.directory.write_text", full)
    report.write_behind(run)
    said = capsys.readouterr().err
    assert "warning  the report could not be written, and the run is finished all the same" in said
    assert said.count("\n") == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
