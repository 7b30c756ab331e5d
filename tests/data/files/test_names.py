"""What a file is by its name, the splits of a folder, and what in it is no data."""

from pathlib import PurePath

import pytest
from files_read import write

from llmkit.data import files
from llmkit.data.files.names import is_about
from llmkit.recipe.data_tables import RowData

NER = "EU B-ORG\nrejects O\n\nPeter B-PER\nBlackburn I-PER\n"


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train.csv Train.CSV train-00000-of-00001.parquet wnut17.train eng.train wnut17train.conll"),
        ("train", "name_train.csv train/a.csv a/train/b.txt wiki.train.tokens 20news-bydate-train/sci/1 train.en.gz"),
        ("train", "train/test_of_time.txt train/notes-dev.txt dev/train.csv train_2.csv TinyStories-train.txt"),
        ("dev", "dev-v2.0.json name-dev.csv emerging.dev.conll dev_matched.tsv dev/a.csv dev-v1.1.json"),
        ("train", "snli_1.0_train.jsonl multinli_1.0_train.txt"),
        ("dev", "snli_1.0_dev.jsonl multinli_1.0_dev_matched.txt devel.tsv"),
        ("test", "snli_1.0_test.jsonl"),
        ("valid", "valid.txt x.valid.jsonl valid/x.txt"),
        ("validation", "validation_matched.csv validation-00000-of-00002.parquet eng.testa"),
        ("test", "test_2.csv data_test.json eng.testb wnut16.test emerging.test.annotated test/pos/1.txt"),
        ("train", "training.csv Training_Data.csv training/a.txt sentiment-training.jsonl"),
        ("test", "testing.txt eval.csv evaluation/a.csv testing-00000-of-00001.parquet"),
        ("test", "msr_paraphrase_test.txt test.txt.gz test.jsonl.zst"),
        (None, "trainer.csv contest.csv latest.txt a-test-of-time.txt latest_1.0_contest.csv"),
        (None, "developer.txt values.csv trainer/a.csv a"),
    ],
)
def test_the_split_of_a_file(split, names):
    for name in names.split():
        assert (files.split_name(PurePath(name)) or (None,))[0] == split, name


def test_files_that_differ_in_a_split_inside_of_their_names_are_splits(tmp_path):
    touch(tmp_path, "msra_train_bio.csv", "msra_test_bio.csv", "a-test-of-time.csv")
    by_split, left_out = files.splits_by_name(tmp_path, files.ROW_SUFFIXES)
    assert by_split == {"train": ["msra_train_bio.csv"], "test": ["msra_test_bio.csv"]}
    assert [file.name for file in left_out] == ["a-test-of-time.csv"]


def test_what_stands_beside_data():
    about = (
        "README README.md readme_zh.md README.txt LICENSE LICENCE.txt license.md LICENSE-MIT COPYING CITATION.cff "
        "CITATION.bib dataset_infos.json dataset_info.json dataset_dict.json state.json croissant.json a.csv.lock "
        "checksums.txt SHA256SUMS md5sum.txt requirements.txt metadata.json train_meta.json config.json vocab.json "
        "label_map.json id2label.json"
    )
    data = "readme.csv license_plates.txt metadata.jsonl state.csv info.json a.json notes.md checks.txt citations.csv"
    for name in about.split():
        assert is_about(name), name
    for name in data.split():
        assert not is_about(name), name


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, "text\none\n")


def listed(folder, suffixes=files.SUFFIXES, **options):
    return [
        [str(file.relative_to(folder)) for file in part]
        for part in files.folder(folder, suffixes, files.ReadOptions(**options))
    ]


def test_what_is_no_data_is_left_out_of_a_folder_and_listed(tmp_path):
    touch(tmp_path, "a.txt", "b/c.jsonl", "README.md", "notes.md", "LICENSE.txt", "dataset_infos.json", "x.png", ".hid")
    assert listed(tmp_path) == [
        ["a.txt", "b/c.jsonl", "notes.md"],
        ["LICENSE.txt", "README.md", "dataset_infos.json", "x.png"],
    ]
    assert files.left_out_note(tmp_path, files.folder(tmp_path)[1]) == (
        f"`{tmp_path}`: not read: LICENSE.txt, README.md, dataset_infos.json, x.png"
    )
    assert files.expand(str(tmp_path / "README.md")) == [tmp_path / "README.md"]  # it was named


def test_notes_in_markdown_are_texts_and_a_readme_beside_them_is_not(tmp_path):
    touch(tmp_path, "a.md", "b/c.md", "README.md")
    assert listed(tmp_path) == [["a.md", "b/c.md"], ["README.md"]]
    touch(tmp_path, "d.txt")
    assert listed(tmp_path) == [["a.md", "b/c.md", "d.txt"], ["README.md"]]


def test_with_a_format_files_of_any_name_are_data(tmp_path):
    touch(tmp_path, "49960", "a.dat", "README")
    assert listed(tmp_path) == [[], ["49960", "README", "a.dat"]]
    assert listed(tmp_path, format="text") == [["49960", "a.dat"], ["README"]]
    assert listed(tmp_path, files.ROW_SUFFIXES, format="csv") == [["49960", "a.dat"], ["README"]]
    assert listed(tmp_path, files.ROW_SUFFIXES, format="text")[0] == []
    data = RowData(path=str(tmp_path), format="csv")
    assert files.of_split(data, "train", files.ROW_SUFFIXES) == [tmp_path / "49960", tmp_path / "a.dat"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train.csv dev.csv test.csv", "train dev test"),
        ("a_train.csv a_test.csv other.csv", "train test"),
        ("a.csv b.csv test.csv", "train test"),  # what says it is the test is not trained on
        ("train/a.csv valid/a.csv", "train valid"),
        ("a.csv test-of-time.csv", ""),
        ("train_1.csv train_2.csv", ""),
        ("dev.csv test.csv", ""),
        ("a.csv", ""),
    ],
)
def test_the_splits_of_a_folder(tmp_path, names, splits):
    touch(tmp_path, *names.split(), "README.md")
    by_split, left_out = files.splits_by_name(tmp_path, files.ROW_SUFFIXES)
    assert set(by_split) == set(splits.split())
    read = [name for part in by_split.values() for name in part]
    assert tmp_path / "README.md" in left_out
    if splits:
        assert {*read, *(str(file.relative_to(tmp_path)) for file in left_out)} == {*names.split(), "README.md"}


@pytest.mark.parametrize(
    ("names", "validation"),
    [
        (("eng.train", "eng.testa", "eng.testb"), "validation"),
        (("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"), "dev"),
        (("wnut16.train", "wnut16.dev", "wnut16.test"), "dev"),
    ],
)
@pytest.mark.parametrize("blank", [" ", "\t"])
def test_the_files_of_shared_tasks_are_read_as_they_come(tmp_path, names, validation, blank):
    for name in names:
        write(tmp_path / name, NER.replace(" ", blank))
    by_split, _ = files.splits_by_name(tmp_path, files.ROW_SUFFIXES)
    assert by_split == {"train": [names[0]], validation: [names[1]], "test": [names[2]]}
    for name in names:
        assert files.format_of(tmp_path / name) == ".conll"
        assert [row["tokens"] for _, row in files.read_rows(tmp_path / name)] == [
            ["EU", "rejects"],
            ["Peter", "Blackburn"],
        ]


@pytest.mark.parametrize(
    "text", ["a text\n", "two words\nand more words here\n\nthree\n", '{"a": 1}\n\n{"a": 2}\n', ""]
)
def test_another_file_with_such_a_suffix_is_no_conll(tmp_path, text):
    write(tmp_path / "a.train", text)
    assert files.format_of(tmp_path / "a.train") == ".train"
    assert files.format_of(tmp_path / "a.train", files.ReadOptions(format="jsonl")) == ".jsonl"
    assert listed(tmp_path, files.ROW_SUFFIXES) == [[], ["a.train"]]


def test_a_table_of_labels_beside_the_data_is_not_read(tmp_path):
    touch(tmp_path, "a.csv")
    write(tmp_path / "label_map.json", '{\n"neg": 0,\n"pos": 1\n}')
    assert listed(tmp_path) == [["a.csv"], ["label_map.json"]]
