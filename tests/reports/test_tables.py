"""Tables for people and for programs."""

import csv
import io
import json

import pytest

from llmkit.reports.tables import render

ROWS = [
    {"run": "runs/a_b", "value": 0.51084, "steps": 1600, "good": True},
    {"run": "runs/名|字", "value": None, "steps": 8, "good": False},
]
COLUMNS = ("run", "value", "steps")


def test_a_table_lines_up_numbers_and_wide_characters():
    assert render(ROWS, COLUMNS).splitlines() == [
        "run          value  steps",
        "runs/a_b    0.5108  1,600",
        "runs/名|字              8",
    ]


def test_a_narrow_terminal_cuts_the_widest_text_and_no_number():
    rows = [{"run": "runs/" + 60 * "x", "value": 0.5}, {"run": "runs/b", "value": 1234567.5}]
    lines = render(rows, ("run", "value"), width=40).splitlines()
    assert max(map(len, lines)) == 40
    assert lines[1].endswith("...     0.5000")
    assert lines[2].endswith("1.235e+06")


def test_csv_and_json_keep_every_digit():
    read = list(csv.DictReader(io.StringIO(render(ROWS, COLUMNS, "csv"))))
    assert read == [
        {"run": "runs/a_b", "value": "0.51084", "steps": "1600"},
        {"run": "runs/名|字", "value": "", "steps": "8"},
    ]
    assert json.loads(render(ROWS, COLUMNS, "json")) == [{key: row[key] for key in COLUMNS} for row in ROWS]


def test_markdown_and_latex_escape_what_they_would_read():
    assert render(ROWS, COLUMNS, "md").splitlines()[1:] == [
        "| --- | ---: | ---: |",
        "| runs/a_b | 0.5108 | 1,600 |",
        "| runs/名\\|字 |  | 8 |",
    ]
    latex = render(ROWS, COLUMNS, "latex").splitlines()
    assert latex[0] == "\\begin{tabular}{lrr}"
    assert "runs/a\\_b & 0.5108 & 1,600 \\\\" in latex
    assert latex[-1] == "\\end{tabular}"


@pytest.mark.parametrize("value", [0.0, 1e-9, 2.5e9, float("nan"), -0.25])
def test_numbers_of_every_size_are_shown(value):
    shown = render([{"x": value}], ("x",)).splitlines()[1].strip()
    assert float(shown) == pytest.approx(value, rel=1e-3, nan_ok=True)
