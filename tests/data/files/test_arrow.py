"""Arrow and Feather files, folders of `save_to_disk`, and the names of classes."""

import json

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from files_read import mistake, rows, write, write_parquet

from llmkit.data import files
from llmkit.errors import UserError

DATA = {"text": ["a", "b", "c"], "label": [0, 1, 0], "tags": [[0], [1], []]}
FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
    }
)
ROWS = [dict(zip(DATA, values, strict=True)) for values in zip(*DATA.values(), strict=True)]


def write_arrow(file, kind):
    table = pyarrow.table(DATA)
    if kind == "stream":
        with pyarrow.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    elif kind == "file":
        with pyarrow.ipc.new_file(str(file), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        pyarrow.feather.write_feather(table, str(file))
    return file


@pytest.mark.parametrize(("name", "kind"), [("a.arrow", "stream"), ("a.arrow", "file"), ("a.feather", "feather")])
def test_arrow_files_of_every_kind(tmp_path, name, kind):
    file = write_arrow(tmp_path / name, kind)
    assert rows(file) == ROWS
    assert rows(file, columns=["label"]) == [{"label": label} for label in DATA["label"]]
    assert files.parquet_columns(file) == list(DATA)
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"nonsense" * 9):
        file.write_bytes(broken)
        if broken or kind != "stream":
            error = mistake(file)
            assert error.message.startswith(f"`{file}`: not a complete Arrow file")
            assert error.hint == "copy or download it again"


def test_a_folder_of_save_to_disk(tmp_path):
    datasets.Dataset.from_dict(DATA, FEATURES).save_to_disk(tmp_path, num_shards=2)
    (tmp_path / "cache-1.arrow").write_bytes(b"left by a map()")
    write_arrow(tmp_path / "data-00000-of-00001.arrow", "stream")  # of an earlier save
    paths, left_out = files.folder(tmp_path, files.ROW_SUFFIXES)
    assert [file.name for file in paths] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert {file.name for file in left_out} == {
        *("cache-1.arrow", "data-00000-of-00001.arrow", "state.json", "dataset_info.json")
    }
    assert [row for file in paths for row in rows(file)] == ROWS
    assert files.class_names(paths[0]) == {"label": ("no", "yes"), "tags": ("O", "B")}
    paths[1].unlink()
    with pytest.raises(UserError, match="is missing, but"):
        files.folder(tmp_path)


def test_state_json_gives_the_order(tmp_path):
    for name in ("a.arrow", "b.arrow"):
        write_arrow(tmp_path / name, "stream")
    write(tmp_path / "state.json", json.dumps({"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}]}))
    assert files.expand(str(tmp_path)) == [tmp_path / "b.arrow", tmp_path / "a.arrow"]


@pytest.mark.parametrize("names", [("train", "test"), ("fold_a", "fold_b"), ("train", "train_big")])
def test_the_folders_of_a_dataset_dict_are_its_splits(tmp_path, names):
    saved = datasets.Dataset.from_dict(DATA, FEATURES)
    datasets.DatasetDict({name: saved.shuffle(seed=1) for name in names}).save_to_disk(tmp_path)
    by_split, left_out = files.splits_by_name(tmp_path, files.ROW_SUFFIXES)
    assert by_split == {name: [f"{name}/data-00000-of-00001.arrow"] for name in sorted(names)}
    assert len(left_out) == 5
    expected = saved.shuffle(seed=1).to_list()  # its order is written, no file of indices
    assert rows(tmp_path / by_split[names[0]][0]) == expected


def test_the_names_of_classes(tmp_path):
    kind = {"names": ["O", "B"], "_type": "ClassLabel"}
    notations = {
        "label": kind,
        "new": {"feature": kind, "_type": "List"},
        "old": {"feature": kind, "length": -1, "_type": "Sequence"},
        "older": [kind],
        "nested": [[kind]],
        "number": {"dtype": "int64", "_type": "Value"},
        "numbers": [{"dtype": "int64", "_type": "Value"}],
        "nameless": {"names": None, "num_classes": 3, "_type": "ClassLabel"},
    }
    about = {b"huggingface": json.dumps({"info": {"features": notations}}).encode()}
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"label": [0]}).replace_schema_metadata(about), file)
    assert files.class_names(file) == dict.fromkeys(("label", "new", "old", "older", "nested"), ("O", "B"))
    assert files.class_names(write_parquet(tmp_path / "b.parquet", label=[0])) == {}
    for odd in (b"no JSON", b"[]", b'{"info": null}'):
        table = pyarrow.table({"label": [0]}).replace_schema_metadata({b"huggingface": odd})
        pyarrow.parquet.write_table(table, file)
        assert files.class_names(file) == {}
    assert files.class_names(write(tmp_path / "a.csv", "label\n0\n")) == {}


def test_categories_are_read_as_their_values(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", label=pyarrow.array(["x", "y", "x"]).dictionary_encode())
    assert rows(file) == [{"label": "x"}, {"label": "y"}, {"label": "x"}]


def test_two_columns_of_one_name(tmp_path):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table([["one"], ["two"]], names=["text", "text"]), file)
    error = mistake(file)
    assert (error.message, error.hint) == (
        f"`{file}`: 2 columns are called `text`",
        "give every column a unique name",
    )
