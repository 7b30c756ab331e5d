"""Data that changes while it is prepared: refused, and nothing of it is left in a cache. The files really change."""

import shutil
import time
from threading import Thread

import pytest
from conftest import CAUSAL

from llmkit import recipe
from llmkit.data.rows import table
from llmkit.data.text import token_cache, tokenize
from llmkit.data.text.documents import read_corpus
from llmkit.data.text.token_cache import tokenize_documents
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ClassificationData, TextData
from llmkit.training.assemble import assemble

CHANGED = "changed while it was being read"
ROUNDS = 10


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    for module in ("data.text.token_cache", "models.tokenizer", "data.cleaning.pipeline"):
        monkeypatch.setattr(f"llmkit.{module}.cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def swap(file, text):
    """Put another file into the place of `file`, as `mv` does."""
    other = file.with_name("other")
    other.write_text(text)
    other.replace(file)


def tale(animal):
    return "".join(f"the {animal} number {i} of {i * i % 977} saw the {animal} {i % 7}\n" for i in range(5_000))


@pytest.mark.long
def test_a_file_that_is_swapped_at_any_moment_leaves_no_trace_in_the_caches(workplace, cache):
    first, second = tale("fox"), tale("hen")
    data = workplace / "corpus.txt"

    def prepared():
        assembly = assemble(recipe.load("causal.toml"), 1)
        return assembly.tokenizer.get_vocab(), assembly.train.tokens.ids.tolist(), assembly.record["data"]

    data.write_text(first)
    expected = prepared()
    shutil.rmtree(cache)
    started = time.monotonic()
    assert prepared() == expected
    seconds = time.monotonic() - started
    refused = 0
    for number in range(ROUNDS):
        shutil.rmtree(cache)
        swap(data, first)
        thread = Thread(target=lambda after: (time.sleep(after), swap(data, second)), args=(seconds * number / ROUNDS,))
        thread.start()
        try:
            prepared()
        except UserError as problem:
            assert CHANGED in problem.message
            refused += 1
        thread.join()
        swap(data, first)
        assert prepared() == expected
    assert refused > 1  # the others swapped before the first look, or after the last


class Swapping:
    """A tokenizer that calls `act` when it is given its text number so and so."""

    is_fast = False

    def __init__(self, act, at):
        self.act, self.at = act, at

    def get_vocab(self):
        return {chr(code): code for code in range(128)}

    def __call__(self, text, **settings):
        self.at -= 1
        if not self.at:
            self.act()
        return {"input_ids": list(text.encode())}


@pytest.mark.parametrize("by_appending", [False, True])
def test_no_part_of_another_text_is_kept_for_who_goes_on(tmp_path, monkeypatch, by_appending):
    monkeypatch.setattr(tokenize, "BATCH", 2000)
    monkeypatch.setattr(tokenize, "OVERHEAD", 0)
    monkeypatch.setattr(token_cache, "PART", 5_000)
    file, text = tmp_path / "a.txt", "".join(f"a tale of {i}\n" for i in range(5_000))
    file.write_text(text)

    def change():
        if by_appending:
            with file.open("a") as stream:
                stream.write("and more\n" * 1_000)
        else:
            file.write_text("b" * len(text))

    data = TextData(path=str(file), sample_by="line")
    with pytest.raises(UserError, match=CHANGED):
        tokenize_documents(read_corpus(data, 1).train, Swapping(change, 2_000), [])
    file.write_text(text)
    tokens = tokenize_documents(read_corpus(data, 1).train, Swapping(None, 0), [])
    assert bytes(tokens.ids.tolist()).decode() == text.replace("\n", "")


def test_rows_that_change_between_two_readings_are_refused(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,label\n" + "good,1\nbad,0\n" * 100)
    rows = table.open_files(ClassificationData(path=str(file)), "train")
    assert len(list(rows)) == 200
    reading = iter(rows)
    next(reading)
    file.write_text("text,label\n" + "evil,1\nbad,0\n" * 100)
    with pytest.raises(UserError, match=CHANGED):
        list(reading)


def test_a_text_that_comes_into_a_folder_of_classes_is_not_read_with_those_before_it(tmp_path):
    for name in ("good/1.txt", "good/2.txt", "bad/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    rows = table.open_files(ClassificationData(path=str(tmp_path)), "train")
    (tmp_path / "bad/2.txt").write_text("late")
    assert [row["text"] for _, row in rows] == ["bad/1.txt", "good/1.txt", "good/2.txt"]


def test_a_run_on_a_file_that_grows_is_refused_and_leaves_nothing(workplace, llmkit):
    (workplace / "causal.toml").write_text(CAUSAL)
    data, going_on = workplace / "corpus.txt", [True]

    def grow():
        while going_on:
            with data.open("a") as stream:
                stream.write("and so on\n")
            time.sleep(0.005)

    thread = Thread(target=grow)
    thread.start()
    try:
        done = llmkit("pretrain", "causal.toml")
    finally:
        going_on.clear()
        thread.join()
    assert done.exit_code == 2
    assert CHANGED in done.stderr
    assert not (workplace / "runs").exists()
