"""Which files a path, a folder and a split are, and what they hold in a word."""

import pytest

from llmkit.data import files
from llmkit.errors import UserError
from llmkit.recipe.data_tables import RowData
from llmkit.recipe.table import ReadOnly


def test_a_folder_is_all_its_files_with_the_suffixes(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("b/2.csv", "c.JSONL", "README.md", "picture.png", ".cache/a.csv"):
        (tmp_path / name).write_text("")
    assert files.expand(str(tmp_path), files.ROW_SUFFIXES) == [tmp_path / "b" / "2.csv", tmp_path / "c.JSONL"]
    assert len(files.expand(str(tmp_path))) == 2  # a README is no data
    assert files.expand(str(tmp_path / "*")) == [tmp_path / name for name in ("README.md", "c.JSONL", "picture.png")]


def test_the_files_of_a_split(tmp_path):
    for name in ("a.csv", "b.csv", "v.csv"):
        (tmp_path / name).write_text("")
    data = RowData(path=str(tmp_path), data_files=ReadOnly({"train": ["b.csv", "a.*"], "mine": "v.csv", "bad": "x"}))
    assert files.of_split(data, "train") == [tmp_path / "b.csv", tmp_path / "a.csv"]
    assert files.of_split(data, "mine") == [tmp_path / "v.csv"]
    with pytest.raises(UserError, match="has no `dev`; it names train, mine, bad"):
        files.of_split(data, "dev")
    with pytest.raises(UserError, match=f"data.data_files: no file matches `{tmp_path / 'x'}`"):
        files.of_split(data, "bad")
    assert len(files.of_split(RowData(path=str(tmp_path)), "train")) == 3
    with pytest.raises(UserError, match="local files define no splits by themselves"):
        files.of_split(RowData(path=str(tmp_path)), "test")
    with pytest.raises(UserError, match="local files define no splits by themselves"):
        files.of_split(RowData(path=str(tmp_path), validation_split="train"), "train")


def test_the_content_hash_follows_the_bytes_and_where_a_file_ends(tmp_path):
    hashes = set()
    for number, parts in enumerate((("ab", "c"), ("a", "bc"), ("abc",), ("ab", "d"))):
        paths = [tmp_path / f"{number}-{part}" for part in parts]
        for path, part in zip(paths, parts, strict=True):
            path.write_text(part)
        hashes.add(files.content_hash(paths))
    assert len(hashes) == 4
    (tmp_path / "other").write_text("abc")
    assert files.content_hash([tmp_path / "other"]) in hashes
