"""Files whose names do not say that they hold rows are known by their lines."""

import pytest
from files_read import mistake, rows, write

from llmkit.data.files import beside, settings_by_lines
from llmkit.data.files.by_lines import advice_beside, advice_by_lines
from llmkit.data.files.paths import of_split
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData

MOODS = ("sad", "glad", "calm")
TALES = [f"the tale {i} of a fox, and more" for i in range(30)]


def lines_of(line):
    return "".join(line.format(i=i, mood=MOODS[i % 3], tale=tale) + "\n" for i, tale in enumerate(TALES))


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (lines_of("{tale}"), ""),
        (lines_of("{tale}; {mood} it was; at last"), ""),
        (lines_of("{tale}\t{mood}"), "data.format=tsv data.header=false"),
        ("tale\tmood\n" + lines_of("{tale}\t{mood}"), "data.format=tsv"),
        (lines_of("{tale};{mood}"), "data.format=csv data.delimiter=; data.header=false"),
        (lines_of("{tale}@{mood}"), "data.format=csv data.delimiter=@ data.header=false"),
        (lines_of("{tale};{tale}"), ""),
        (lines_of("__label__{mood} {tale}"), "data.format=fasttext"),
        (lines_of('{{"text": "{tale}"}}'), "data.format=jsonl"),
        ("Ann B-PER\nsleeps O\n\n" * 10, "data.format=conll"),
        ("a\tb\n" * 3, ""),
    ],
)
def test_lines_show_how_a_file_is_read(tmp_path, content, settings):
    write(tmp_path / "a.txt", content)
    assert " ".join(settings_by_lines(tmp_path / "a.txt", "utf-8")) == settings


@pytest.mark.parametrize("name", ["a.txt", "a.label", "a"])
def test_a_file_that_is_refused_comes_with_the_settings_that_read_it(tmp_path, name):
    write(tmp_path / name, lines_of("{tale}\t{mood}"))
    assert mistake(tmp_path / name).hint == "by its lines: data.format=tsv data.header=false"
    assert len(rows(tmp_path / name, format="tsv", header=False)) == len(TALES)


def test_a_label_before_a_blank_is_told_how_to_be_set_apart(tmp_path):
    write(tmp_path / "train.label", lines_of("MOOD:{mood} {tale}"))
    assert advice_by_lines(tmp_path / "train.label", "utf-8") == (
        "if the first word of each line (`MOOD:sad`) is its label, put a tab after it: "
        "sed 's/ /\\t/' train.label > train.label.tsv, and set data.header=false"
    )
    write(tmp_path / "b.txt", lines_of("{tale}"))
    assert advice_by_lines(tmp_path / "b.txt", "utf-8") == ""


def test_files_whose_lines_belong_together_are_told_how_to_be_joined(tmp_path):
    for name in ("val.de", "val.en", "train.de", "train.en"):
        write(tmp_path / name, lines_of("{tale}"))
    together = beside(sorted(tmp_path.iterdir()), "utf-8")
    assert [file.name for file in together] == ["train.de", "train.en"]
    assert advice_beside(together) == (
        "`train.de` and `train.en` have the same number of lines: if they belong together line by line, join them "
        'into a table: paste train.de train.en > train.tsv, and set data.header=false data.column_names=\'["de", '
        '"en"]\''
    )
    with pytest.raises(UserError) as caught:
        of_split(RowData(path=str(tmp_path)), "train", (".csv",))
    assert caught.value.hint == advice_beside(together)
    write(tmp_path / "train.en", "one\n" * 40)
    write(tmp_path / "val.en", "one\n" * 40)
    assert beside(sorted(tmp_path.iterdir()), "utf-8") == ()


def test_lines_that_begin_with_their_labels(tmp_path):
    write(tmp_path / "a.fasttext", "__label__a one day\n\n__label__b  two days\n")
    assert rows(tmp_path / "a.fasttext") == [{"label": "a", "text": "one day"}, {"label": "b", "text": "two days"}]
    write(tmp_path / "a.txt", "__label__a __label__b one\n__label__b two\nthree\n")
    assert rows(tmp_path / "a.txt", format="fasttext") == [
        {"label": ["a", "b"], "text": "one"},
        {"label": ["b"], "text": "two"},
        {"label": [], "text": "three"},
    ]
