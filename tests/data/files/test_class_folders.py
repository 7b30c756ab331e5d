"""Texts in one folder a class: 20 Newsgroups, IMDB, and folders that are not such."""

import pytest

from llmkit.data import files
from llmkit.errors import UserError


def lay(folder, content):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode("latin-1"))


def read(folder, split="train", **options):
    remarks = []
    return list(
        files.read_class_folders(
            folder, files.ReadOptions(**options), remarks.append, files.class_folders(folder).get(split, {})
        )
    ), remarks


def test_one_folder_a_class_of_files_without_a_suffix(tmp_path):
    lay(
        tmp_path,
        {"sci.space/2": "b\r\nc", "alt.atheism/10": "a", "sci.space/1": "", "README.md": "x", "sci.space/.x": ""},
    )
    assert files.is_class_folders(tmp_path)
    assert read(tmp_path) == (
        [
            ("alt.atheism/10", {"text": "a", "label": "alt.atheism"}),
            ("sci.space/1", {"text": "", "label": "sci.space"}),
            ("sci.space/2", {"text": "b\nc", "label": "sci.space"}),
        ],
        [],
    )


def test_splits_stand_above_the_classes(tmp_path):
    imdb = {"train/pos/0_9.txt": "good", "train/neg/0_3.txt": "bad", "test/pos/1.txt": "p", "test/neg/1.txt": "n"}
    lay(tmp_path, imdb | {"train/unsup/0_0.txt": "u", "README": "x", "imdb.vocab": "x", "train/urls_pos.txt": "x"})
    assert {split: list(classes) for split, classes in files.class_folders(tmp_path).items()} == {
        "train": ["neg", "pos"],
        "test": ["neg", "pos"],
    }
    found, remarks = read(tmp_path)
    assert [row["text"] for _, row in found] == ["bad", "good"]
    assert remarks == [f"`{tmp_path}`: not read, for their texts have no class: train/unsup"]
    assert [row["text"] for _, row in read(tmp_path, "test")[0]] == ["n", "p"]
    assert files.is_class_folders(tmp_path / "train")


def test_newsgroups_by_date(tmp_path):
    lay(tmp_path, {f"20news-bydate-{split}/{label}/9": label for split in ("train", "test") for label in ("a.b", "c")})
    assert list(files.class_folders(tmp_path)) == ["test", "train"]


@pytest.mark.parametrize(
    "names",
    [
        "a/1.txt",
        "1.txt 2.txt",
        "a/1.csv b/1.csv",
        "a/1.txt b/2.txt data.csv",
        "a/b/1.txt a/c/1.txt",
        "train/1 test/1",
        "a/x.png b/y.png",
    ],
)
def test_other_folders(tmp_path, names):
    lay(tmp_path, dict.fromkeys(names.split(), "x"))
    assert not files.is_class_folders(tmp_path)
    assert not files.is_class_folders(tmp_path / names.split()[0])


def test_a_byte_of_another_encoding(tmp_path):
    lay(tmp_path, {"a/1": "x\n\xe9", "b/1": "x"})
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert caught.value.message == f"`{tmp_path / 'a' / '1'}`, line 2: byte 0xe9 is not utf-8"
    assert "data.encoding" in caught.value.hint
    assert read(tmp_path, encoding="latin-1")[0][0][1]["text"] == "x\n\xe9"
