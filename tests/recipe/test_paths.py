"""Paths are relative to the recipe, and on the command line to the working directory."""

import glob

import pytest
from recipe_texts import PLAIN, SOURCES, problems

from llmkit import recipe


def test_a_path_in_a_recipe_is_relative_to_the_recipe(write, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    (tmp_path / "model").mkdir()
    text = PLAIN.replace("openai-community/gpt2", "model")
    for written in ("texts", "./texts", "texts/a.txt", "texts/*.txt", "texts/../texts/a.txt", str(tmp_path / "texts")):
        read = recipe.load(write(text.replace("org/corpus", written)))
        assert read.data.path == str(tmp_path / written.replace("texts/../", ""))
        assert read.model.name == str(tmp_path / "model")


def test_a_path_on_the_command_line_is_relative_to_the_working_directory(write, tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "here" / "b.txt").touch()
    path = write(PLAIN)
    assert recipe.load(path, ["data.path=b.txt"]).data.path == str(tmp_path / "here" / "b.txt")
    assert recipe.load(path, ["data.path=../a.txt"]).data.path == str(tmp_path / "a.txt")
    assert problems(path, "data.path=a.txt") == [
        f"command line  data.path: there is no file or folder {tmp_path}/here/a.txt, "
        "taken relative to the working directory"
    ]


@pytest.mark.parametrize("written", ["a.jsonl", "./a", "../a", "a/*.gz", "some/deep/folder", "corpus.CSV"])
def test_what_is_clearly_a_path_must_exist(write, tmp_path, written):
    what = "no file matches" if "*" in written else "there is no file or folder"
    absolute = {"./a": tmp_path / "a", "../a": tmp_path.parent / "a"}.get(written, tmp_path / written)
    assert problems(write(PLAIN.replace("org/corpus", written))) == [
        f"line 7  data.path: {what} {absolute}, taken relative to the recipe"
    ]
    assert problems(write(PLAIN.replace("org/corpus", "/no/such.txt"))) == [
        "line 7  data.path: there is no file or folder /no/such.txt"
    ]


def test_what_does_not_exist_is_a_hub_id(write, tmp_path):
    (tmp_path / "here" / "runs" / "first").mkdir(parents=True)
    read = recipe.load(write(PLAIN.replace("openai-community/gpt2", "runs/first")))
    assert (read.model.name, read.data.path) == ("runs/first", "org/corpus")
    assert len(read.notes) == 1
    assert read.notes[0].startswith("model.name: `runs/first` is taken as a Hub id; ")


ADDRESSES = (
    ("s3://bucket/a.txt", "download it"),
    ("gs://bucket/a", "download it"),
    ("http://host:80/a.jsonl?x=1", "download it"),
    ("https://me:geheim@host/a", "download it"),
    ("file:///data/a.txt", "write the path alone: /data/a.txt"),
    ("hf://datasets/org/rows/a.txt", "the id alone: org/rows"),
    ("https://huggingface.co/org/model", "the id alone: org/model"),
    ("https://huggingface.co/datasets/org/rows/tree/main", "the id alone: org/rows"),
    ("S3A://bucket/a", "download it"),
    ("zip://a.csv::https://host/a.zip", "download it"),
)


@pytest.mark.parametrize(("address", "hint"), ADDRESSES)
@pytest.mark.parametrize("key", ["model.name", "tokenizer.name", "output_dir"])
def test_an_address_is_refused_with_what_to_do(key, address, hint, write):
    (problem,) = [line for line in problems(write(PLAIN), f"{key}={address}") if key in line]
    assert "is an address, and llmkit " in problem
    assert "geheim" not in problem
    assert ("write to a folder on this machine" if key == "output_dir" and "file:" not in address else hint) in problem


REFUSED = (
    ("file:///data/a.txt", "write the path alone: /data/a.txt"),
    ("hf://datasets/org/rows", "for the Hub write the id alone: org/rows"),
    ("https://huggingface.co/datasets/org/rows/tree/main", "for the Hub write the id alone: org/rows"),
    (
        "S3A://bucket/a",
        "`s3a://bucket/a` is an address that llmkit cannot read; it reads s3://, gs://, hf://, https://",
    ),
    ("zip://a.csv::https://host/a.zip", "is an address that llmkit cannot read"),
    ("ftp://me:geheim@host/a", "`ftp://me:***@host/a` is an address that llmkit cannot read"),
    ("s3://bucket/a.txt", "`s3://bucket/a.txt`: a package that reads s3:// is missing; pip install 'llmkit[s3]'"),
    ("gs://bucket/*.txt", "pip install 'llmkit[gcs]'"),
)


@pytest.mark.parametrize(("address", "hint"), REFUSED)
@pytest.mark.parametrize("key", ["data.path", "data.data_files"])
def test_an_address_of_data_that_cannot_be_read_is_refused(key, address, hint, write, monkeypatch):
    monkeypatch.setattr("llmkit.remote.EXTRAS", {"s3": ("no_such_s3", "s3"), "gs": ("no_such_gs", "gcs")})
    (problem,) = [line for line in problems(write(PLAIN), f"{key}={address}") if key in line]
    assert hint in problem


def test_an_address_of_data_is_read_without_a_network(write, no_network):
    for address in ("https://host/a.txt", "hf://datasets/org/rows/a.txt", "hf://buckets/org/rows", "http://host/a?b=*"):
        assert recipe.load(write(PLAIN), [f"data.path={address}"]).data.path == address
    (problem,) = problems(write(PLAIN), "data.data_files=https://host/a.txt")
    assert "is an address, and data.path is on the Hub" in problem
    word_list = problems(write(PLAIN + "[data.clean]\nstop_words = 'https://host/a.txt'\n"))
    assert any("is an address, and llmkit reads only data from addresses" in line for line in word_list)


def test_a_folder_that_is_called_like_an_address_is_a_folder(tmp_path, monkeypatch, write):
    (tmp_path / "s3:" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert recipe.load(write(PLAIN), ["data.path=s3://b"]).data.path == str(tmp_path / "s3:" / "b")
    assert recipe.load(write(PLAIN), ["data.path=s3:b", "data.name=C://b"]).data.name == "C://b"


def test_a_glob_below_a_folder_with_brackets(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    (folder / "x.txt").touch()
    (folder / "r.toml").write_text(PLAIN.replace("org/corpus", "*.txt"))
    assert glob.glob(recipe.load(str(folder / "r.toml")).data.path) == [str(folder / "x.txt")]  # noqa: PTH207


def test_data_files(write, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).touch()
    local = PLAIN.replace("org/corpus", "texts")
    read = recipe.load(write(local + 'data_files = { train = "a.txt", validation = ["b.txt"] }\n'))
    assert dict(read.data.data_files) == {
        "train": str(tmp_path / "texts" / "a.txt"),
        "validation": [str(tmp_path / "texts" / "b.txt")],
    }
    assert recipe.load(write(local + 'data_files = ["texts/a.txt"]\n')).data.data_files == (
        str(tmp_path / "texts" / "a.txt"),
    )
    assert problems(write(local + 'data_files = { train = "c.txt" }\n')) == [
        f"line 8  data.data_files.train: there is no file or folder {tmp_path}/texts/c.txt, "
        "taken relative to the recipe"
    ]
    assert recipe.load(write(PLAIN + 'data_files = "a/*.parquet"\n')).data.data_files == "a/*.parquet"  # on the Hub


def test_the_path_of_a_source_is_relative_to_the_recipe(write, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("texts/a.txt", "b.txt", "here/c.txt"):
        (tmp_path / name).touch()
    local = SOURCES.replace("org/web", "texts").replace('name = "en"', 'data_files = "a.txt"')
    read = recipe.load(write(local.replace("org/books", "*.txt")), ["data.sources.more.path=c.txt"])
    sources = read.data.sources
    assert sources["web"].data_files == str(tmp_path / "texts" / "a.txt")
    assert {name: source.path for name, source in sources.items()} == {
        "web": str(tmp_path / "texts"),
        "books": str(tmp_path / "*.txt"),
        "more": str(tmp_path / "here" / "c.txt"),
    }
    assert problems(write(SOURCES.replace("org/books", "c.txt"))) == [
        f"line 11  data.sources.books.path: there is no file or folder {tmp_path}/c.txt, taken relative to the recipe"
    ]


@pytest.mark.parametrize("key", ["stop_words", "c4_bad_words"])
def test_a_list_of_words_is_relative_to_the_recipe(write, tmp_path, key):
    (tmp_path / "words").touch()
    (tmp_path / "en").touch()
    text = f'{SOURCES}[data.clean]\nc4 = true\n{key} = "words"\n[data.sources.web.clean]\nc4 = true\n{key} = "words"\n'
    read = recipe.load(write(text))
    for table in (read.data.clean, read.data.sources["web"].clean):
        assert getattr(table, key) == str(tmp_path / "words")
    assert problems(write(text.replace('"words"\n[', '"wrds"\n['))) == [
        f"line 14  data.clean.{key}: there is no file or folder {tmp_path}/wrds, taken relative to the recipe"
    ]
    assert recipe.load(write(text), [f'data.clean.{key}=["a"]']).data.clean.model_dump()[key] == ("a",)
    assert recipe.load(write(PLAIN + 'clean.stop_words = "en"\n')).data.clean.stop_words == "en"  # a list of ours
