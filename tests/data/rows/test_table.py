"""Which rows are for training and which for evaluation, whatever they come from, and what is wrong with a table."""

import csv
import gzip
import json
import re
import subprocess
import sys
import tracemalloc

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from llmkit.data.rows import splits
from llmkit.data.rows.reader import Examined
from llmkit.data.rows.table import held_out
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.table import ReadOnly

ROWS = [{"text": "NA", "label": "no"}, {"text": "", "label": "yes"}, {"text": "a, b", "label": "yes"}]


class AllColumns:
    """Reads every column as an input, and finds nothing wrong with any row."""

    LABEL_ROLES = ()
    texts = reshape = None

    @staticmethod
    def resolve_columns(data, rows, labelled=True):
        return {name: name for name in rows.columns}

    @staticmethod
    def examine(row, columns, data, evaluation):
        return Examined()

    @staticmethod
    def strata(targets, rows, columns, data):
        return targets, {}


def opened(path, seed=1, train=True, **keys):
    return splits.tables(RowData(path=str(path), **keys), seed, AllColumns, train)


def plain(rows):
    return [row for _, row in rows]


def mistake(path, **keys):
    with pytest.raises(UserError) as caught:
        opened(path, **keys)
    return caught.value


def write(file, rows):
    """A file of whatever its suffix says."""
    kind = "".join(file.suffixes).removesuffix(".gz")
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return file
    with gzip.open(file, "wt") if file.suffix == ".gz" else file.open("w") as stream:
        if kind in (".csv", ".tsv"):
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="," if kind == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.write(json.dumps(rows) if kind == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return file


def numbered(file, number):
    return write(file, [{"n": n} for n in range(number)])


# --- local files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz"]
)
def test_a_file_of_rows(tmp_path, name):
    file = write(tmp_path / name, ROWS)
    train = opened(file).train
    assert plain(train) == plain(train) == ROWS
    assert all(one == other for one, other in zip(train, train, strict=True))  # at the same time
    assert train.columns == ("text", "label")
    assert train.class_names == {}
    assert train.source == f"`{file}`"


def test_a_row_says_where_it_stands(tmp_path):
    (tmp_path / "in").mkdir()
    one = write(tmp_path / "in" / "a.csv", ROWS)
    other = write(tmp_path / "in" / "b.json", ROWS[:1])
    train = opened(tmp_path / "in").train
    assert [place for place, _ in train] == [*(f"`{one}`, line {n}" for n in (2, 3, 4)), f"`{other}`, item 1"]
    assert train.source == f"`{tmp_path / 'in'}`"


def test_files_of_several_kinds_are_one_table_if_they_have_the_same_columns(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "b.csv", [dict(reversed(row.items())) for row in ROWS])  # in another order
    (tmp_path / "c.csv").write_text("something,else\n")  # no rows: no matter
    (tmp_path / "README.md").write_text("not data")
    assert plain(opened(tmp_path).train) == plain(opened(tmp_path / "[abc].*").train) == ROWS * 2


@pytest.mark.parametrize("path", ["", "*.csv"])
def test_files_with_other_columns(tmp_path, path):
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.csv", [{"text": "one", "lable": "no"}])
    error = mistake(tmp_path / path)
    assert error.message == f"`{tmp_path / 'b.csv'}` has no column `label`, which `{tmp_path / 'a.csv'}` has"
    assert error.hint == (
        "did you mean `lable`? all files of a split need the columns that are read; "
        "choose the files with data.data_files"
    )


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text,label\n"), ("a.csv", ""), ("a.jsonl", "\n"), ("a.json", "[]"), ("a.json", "")]
)
def test_a_table_without_rows(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content)
    error = mistake(file)
    assert error.message == f"`{file}`: there are no rows in it"
    assert error.hint == "is it empty, or a header without rows?"
    files = ReadOnly({"train": str(write(tmp_path / "b.jsonl", ROWS)), "validation": str(file)})
    assert mistake(tmp_path, data_files=files).message == f"`{file}`: there are no rows in it"


def test_a_table_of_which_no_row_can_be_read_says_why(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("a title\ntext,label\nx,1\ny,2\n")
    error = mistake(file)
    assert error.message == (
        f"`{file}`, line 2: 2 fields where the header has 1; none of the first 100 rows can be read"
    )
    assert error.hint.startswith("the delimiter is ','")


def test_where_there_is_no_table(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert mistake(tmp_path).message == f"data.path `{tmp_path}`: no data files there"
    assert mistake(tmp_path / "a.txt").message == f"`{tmp_path / 'a.txt'}`: a text file has no columns"
    file = write(tmp_path / "a.csv", ROWS)
    assert "data.name is for data sets on the Hub" in mistake(file, name="sst2").message
    assert "local files define no splits" in mistake(file, validation_split="dev").message
    assert "local files define no splits" in mistake(file, split="test", train=False).message


@pytest.mark.long
def test_rows_are_read_in_constant_memory(tmp_path):
    numbered(tmp_path / "a.jsonl", 60_000)
    tracemalloc.start()
    train = opened(tmp_path / "a.jsonl", validation_fraction=0.5, max_train_samples=25_000).train
    opening = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert sum(1 for _ in train) == 25_000
    reading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The rows take 14 MB. Two pieces of 1 MB are held while the file is hashed; a draw needs the class, the hash and
    # the rank of each row.
    assert opening < 3_000_000 + 60 * 60_000
    assert reading < 3_000_000


# --- splits -----------------------------------------------------------------------------------------------------------


def test_data_files_name_the_splits(tmp_path):
    for name in ("t", "v", "w"):
        write(tmp_path / f"{name}.jsonl", [{"text": name}])
    files = ReadOnly({"train": "t.jsonl", "dev": "v.jsonl", "other": ["w.jsonl", "v.jsonl"]})
    split = opened(tmp_path, data_files=files)
    assert plain(split.train) == [{"text": "t"}]
    assert {name: plain(rows) for name, rows in split.validation.items()} == {"dev": [{"text": "v"}]}
    assert split.notes == ()
    assert plain(opened(tmp_path, data_files=files, validation_split="other").validation["other"])[0] == {"text": "w"}
    assert "no `validation`" in mistake(tmp_path, data_files=files, validation_split="validation").message


def test_several_validation_splits_in_the_order_wanted(tmp_path):
    for name in ("t", "m", "mm"):
        write(tmp_path / f"{name}.jsonl", [{"text": name}] * 3)
    files = ReadOnly({"train": "t.jsonl", "matched": "m.jsonl", "mismatched": "mm.jsonl"})
    split = opened(tmp_path, data_files=files, validation_split=("mismatched", "matched"), max_eval_samples=2)
    assert list(split.validation) == ["mismatched", "matched"]
    assert plain(split.validation["matched"]) == [{"text": "m"}] * 2
    assert plain(split.validation["mismatched"]) == [{"text": "mm"}] * 2


@pytest.mark.parametrize("dev", ["validation.csv", "valid.json", "val.tsv.gz", "dev-v2.0.jsonl", "Dev/a.csv"])
def test_the_files_of_a_folder_are_splits_by_name(tmp_path, dev):
    (tmp_path / "Dev").mkdir()
    write(tmp_path / "train.csv", [{"text": "t"}])
    write(tmp_path / dev, [{"text": "v"}])
    write(tmp_path / "test.jsonl", [{"text": "x", "id": 1}])
    write(tmp_path / "trainer.csv", [{"other": "columns"}])
    split = opened(tmp_path, validation_fraction=0.5)
    name = re.split(r"[-./]", dev.lower())[0]
    assert plain(split.train) == [{"text": "t"}]
    assert {name: plain(rows) for name, rows in split.validation.items()} == {name: [{"text": "v"}]}
    assert len(split.notes) == 2
    assert split.notes[0].startswith(f"`{tmp_path}`: splits by file name: ")
    for part in ("train (train.csv)", f"{name} ({dev})", "test (test.jsonl)", "; not read: trainer.csv"):
        assert part in split.notes[0]
    assert split.notes[1] == "validation_fraction is ignored: the data has a validation split"
    wanted = opened(tmp_path, split="test", train=False, validation_split="test")
    assert plain(wanted.validation["test"]) == [{"text": "x", "id": 1}]


def test_what_is_called_test_is_never_trained_on_unasked(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [{"n": n} for n in range(50)])
    write(tmp_path / "train-00001-of-00002.parquet", [{"n": n} for n in range(50, 100)])
    write(tmp_path / "test-00000-of-00001.parquet", [{"n": n} for n in range(100, 200)])
    split = opened(tmp_path, validation_fraction=0.2)
    assert sorted(row["n"] for row in plain(split.train) + plain(split.validation["validation"])) == list(range(100))
    assert "test (test-00000-of-00001.parquet)" in split.notes[0]


def test_the_name_of_a_file_counts_before_that_of_its_folder(tmp_path):
    (tmp_path / "test_runs").mkdir()
    write(tmp_path / "test_runs" / "train.csv", [{"text": "t"}])
    write(tmp_path / "test_runs" / "dev.csv", [{"text": "v"}])
    split = opened(tmp_path)
    assert (plain(split.train), plain(split.validation["dev"])) == ([{"text": "t"}], [{"text": "v"}])


def test_a_folder_without_a_train_file_is_one_table(tmp_path):
    write(tmp_path / "dev.csv", [{"text": "v"}])
    write(tmp_path / "test.csv", [{"text": "x"}])
    split = opened(tmp_path)
    assert plain(split.train) == [{"text": "v"}, {"text": "x"}]
    assert split.notes == ("no validation data: set data.validation_fraction to hold some out",)


def test_a_folder_whose_files_are_named_by_the_recipe_is_as_it_says(tmp_path):
    write(tmp_path / "train.csv", [{"text": "t"}])
    write(tmp_path / "dev.csv", [{"text": "v"}])
    split = opened(tmp_path, data_files="*.csv")
    assert plain(split.train) == [{"text": "v"}, {"text": "t"}]
    assert split.validation == {}


# --- what is held out, and how much -----------------------------------------------------------------------------------


def test_rows_are_held_out_by_seed_and_index(tmp_path):
    file = numbered(tmp_path / "a.jsonl", 2000)
    split = opened(file, hold_out="hash", validation_fraction=0.1)
    train, held = plain(split.train), plain(split.validation["validation"])
    assert sorted(row["n"] for row in train + held) == list(range(2000))
    assert len(held) == pytest.approx(200, abs=4 * 13.4)  # four standard deviations
    assert split.notes == ()
    assert plain(opened(file, hold_out="hash", validation_fraction=0.1, seed=2).validation["validation"]) != held


def test_the_rows_held_out_are_the_documents_that_pretraining_holds_out(tmp_path):
    """The rule is one: the same file, seed and fraction give the same rows in another process and by the other road."""
    file = write(tmp_path / "a.jsonl", [{"text": str(n)} for n in range(300)])
    code = (
        "import sys; from llmkit.data.text.documents import read_corpus;"
        "from llmkit.recipe.data_tables import TextData;"
        "print(*read_corpus(TextData(path=sys.argv[1], validation_fraction=0.1), 1).validation)"
    )
    other = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    held = opened(file, hold_out="hash", validation_fraction=0.1).validation["validation"]
    assert other.stdout.split() == [row["text"] for row in plain(held)]


def test_the_rule_by_which_rows_are_held_out_does_not_change():
    """Numbers are compared with those of runs from years ago: the same rows must be held out for ever."""
    assert [index for index in range(60) if held_out(index, 0.1, 1)] == [12, 39, 40]


def test_the_limits_take_the_first_rows_and_move_none_from_one_part_to_the_other(tmp_path):
    file = numbered(tmp_path / "a.csv", 500)
    whole = opened(file, hold_out="hash", validation_fraction=0.2)
    part = opened(file, hold_out="hash", validation_fraction=0.2, max_train_samples=7, max_eval_samples=5)
    assert plain(part.train) == plain(whole.train)[:7]
    assert plain(part.validation["validation"]) == plain(whole.validation["validation"])[:5]
    assert plain(opened(file, max_train_samples=1000).train) == plain(opened(file).train)


def test_a_fraction_that_leaves_nothing(tmp_path):
    file = numbered(tmp_path / "a.jsonl", 3)
    error = mistake(file, hold_out="hash", validation_fraction=1e-6)
    assert error.message == f"`{file}`: data.validation_fraction = 1e-06 leaves no rows to evaluate on"
    assert error.hint == "raise it, or set data.validation_split"
    assert mistake(file, hold_out="hash", validation_fraction=1 - 1e-9).message.endswith("leaves no rows to train on")


def test_no_validation_data_is_said(tmp_path):
    split = opened(numbered(tmp_path / "a.jsonl", 3))
    assert split.validation == {}
    assert split.notes == ("no validation data: set data.validation_fraction to hold some out",)


def test_the_fingerprint_follows_content_columns_and_limits(tmp_path):
    file = write(tmp_path / "a.csv", ROWS)

    def fingerprint(path=file, **keys):
        return opened(path, **keys).train.fingerprint

    same = write(tmp_path / "b.csv", ROWS)
    assert fingerprint() == fingerprint(same) == opened(file, max_eval_samples=1).train.fingerprint
    many = write(tmp_path / "f.csv", [{"text": str(n), "label": "a"} for n in range(40)])
    held = opened(many, seed=3, validation_fraction=0.5)
    renamed = tmp_path / "c.csv"
    renamed.write_text(file.read_text().replace("label", "lable"))
    changed = tmp_path / "d.csv"
    changed.write_text(file.read_text().replace("NA", "NB"))
    tabbed = tmp_path / "e.tsv"  # the same bytes are another table
    tabbed.write_bytes(file.read_bytes())
    every = [
        fingerprint(),
        fingerprint(tabbed),
        fingerprint(renamed),
        fingerprint(changed),
        fingerprint(max_train_samples=2),
        fingerprint(max_train_samples=1),
        fingerprint(encoding="cp1252"),
    ]
    every += [held.train.fingerprint, held.validation["validation"].fingerprint]
    every += [fingerprint(many, seed=9, validation_fraction=0.5), fingerprint(write(tmp_path / "a.jsonl", ROWS))]
    assert len(set(every)) == len(every)


# --- evaluation alone -------------------------------------------------------------------------------------------------


def test_evaluation_alone_does_not_read_the_training_rows(tmp_path):
    write(tmp_path / "dev.csv", ROWS)
    files = ReadOnly({"train": "gone.csv", "validation": "dev.csv"})
    split = opened(tmp_path, train=False, data_files=files, max_eval_samples=2)
    assert split.train is None
    assert plain(split.validation["validation"]) == ROWS[:2]
    assert mistake(tmp_path, data_files=files).message.startswith("data.data_files: no file matches")


def test_evaluation_alone_on_what_was_held_out(tmp_path):
    file = numbered(tmp_path / "a.jsonl", 100)
    split = opened(file, train=False, validation_fraction=0.3)
    assert split.train is None
    assert plain(split.validation["validation"]) == plain(
        opened(file, validation_fraction=0.3).validation["validation"]
    )


def test_evaluation_alone_on_all_rows_where_none_are_for_validation(tmp_path):
    split = opened(write(tmp_path / "test.csv", ROWS), train=False)
    assert split.train is None
    assert {name: plain(rows) for name, rows in split.validation.items()} == {"evaluated": ROWS}
    assert split.notes == ()
    files = ReadOnly({"test": "test.csv"})
    assert list(opened(tmp_path, train=False, data_files=files, split="test").validation) == ["test"]


# --- the Hub ----------------------------------------------------------------------------------------------------------

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["negative", "positive"]),
        "tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
        "answers": {"text": datasets.List(datasets.Value("string")), "score": datasets.Value("float32")},
    }
)


def examples(word, number):
    row = {"label": 1, "tags": [0, 1], "answers": {"text": ["a"], "score": 0.5}}
    return [{"text": f"{word} {n}", **row} for n in range(number)]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(offline, monkeypatch):
    """`org/set` with two validation splits; gives the splits that are asked for."""
    asked = []
    splits = {
        name: datasets.Dataset.from_list(examples(name, 2500), features=FEATURES) for name in ("train", "validation")
    }
    splits["test"] = splits["train"].select([])

    def load_dataset(path, *, split, **keys):
        assert (path, keys["name"], keys["streaming"]) == ("org/set", "plain", False)
        asked.append(split)
        return splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path, name, revision: list(splits))
    return asked


def test_a_data_set_of_the_hub(hub):
    split = opened("org/set", name="plain")
    assert plain(split.train) == plain(split.train) == examples("train", 2500)
    assert [place for place, _ in split.train][::1000] == [
        f"`org/set` (plain, split train), row {n}" for n in (1, 1001, 2001)
    ]
    assert list(split.validation) == ["validation"]
    assert plain(split.validation["validation"]) == examples("validation", 2500)
    assert split.train.columns == ("text", "label", "tags", "answers")
    assert split.train.class_names == {"label": ("negative", "positive"), "tags": ("O", "B-PER")}
    assert split.train.source == "`org/set` (plain, split train)"
    assert split.train.fingerprint != split.validation["validation"].fingerprint
    assert split.train.fingerprint != opened("org/set", name="plain", max_train_samples=5).train.fingerprint


def test_of_the_hub_evaluation_alone_loads_no_training_split(hub):
    split = opened("org/set", name="plain", train=False)
    assert (split.train, list(split.validation), hub) == (None, ["validation"], ["validation"])


def test_a_split_of_the_hub_without_rows(hub):
    error = mistake("org/set", name="plain", validation_split="test")
    assert error.message == "`org/set` (plain, split test): there are no rows in it"


def test_the_whole_road_through_upstreams_own_builder(offline, tmp_path):
    """As far as it can be gone without the Hub: Parquet files as the Hub has them, their features in the schema."""
    for name, number in (("train", 30), ("validation", 4)):
        datasets.Dataset.from_list(examples(name, number), features=FEATURES).to_parquet(f"{name}.parquet")
    files = ReadOnly({name: str(tmp_path / f"{name}.parquet") for name in ("train", "validation")})
    split = opened("parquet", data_files=files, split="train[:10]")
    assert plain(split.train) == examples("train", 10)
    assert plain(split.validation["validation"]) == examples("validation", 4)
    assert split.train.class_names == {"label": ("negative", "positive"), "tags": ("O", "B-PER")}
    assert next(iter(split.train))[0] == "`parquet` (split train[:10]), row 1"
    again = opened("parquet", data_files=files, split="train[:10]")
    assert again.train.fingerprint == split.train.fingerprint != opened("parquet", data_files=files).train.fingerprint
    held = opened("parquet", data_files=str(tmp_path / "train.parquet"), validation_fraction=0.3)
    assert len(plain(held.train)) + len(plain(held.validation["validation"])) == 30
