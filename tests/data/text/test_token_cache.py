"""Tokens are written once, survive whatever interrupts the writing, and are read back as they were or made anew."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import xxhash
from filelock import FileLock
from forks import Fork
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmkit.data.engines import in_turn
from llmkit.data.text import token_cache, tokenize
from llmkit.data.text.documents import Documents, read_corpus
from llmkit.data.text.token_cache import tokenize_documents
from llmkit.errors import UserError
from llmkit.recipe.data_tables import TextData

ROOT = Path(__file__).parents[3]  # not from conftest: processes of their own import this module, too
EOS = 0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SMALL = """
from tests.data.text.test_token_cache import letters_tokenizer, numbered
from llmkit.data.text import token_cache, tokenize
tokenize.BATCH, tokenize.OVERHEAD, token_cache.PART = 2000, 0, 10_000
"""


def letters_tokenizer(num_extra=0):
    """Token 0 ends a text, 1 is `a`, 2 is `b`; then come `num_extra` words that no text holds."""
    words = ["</s>", *LETTERS, *(f"extra{n}" for n in range(num_extra))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def words_tokenizer():
    """Token 1 is any word: quick."""
    backend = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def numbered(number):
    """Text number so and so, of a thousand letters at most."""
    return "".join(LETTERS[(number * 7 + place) % 26] for place in range(number * 37 % 1000))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setattr(token_cache, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def small_parts(monkeypatch):
    """Batches of 2,000 characters, parts of 10,000 bytes."""
    monkeypatch.setattr(tokenize, "BATCH", 2000)
    monkeypatch.setattr(tokenize, "OVERHEAD", 0)
    monkeypatch.setattr(token_cache, "PART", 10_000)


class Texts:
    """Documents that count how often they are read, and may fail on the way."""

    def __init__(self, texts, fail_at=None):
        self.texts = texts
        self.fail_at = fail_at
        self.readings = 0

    def read(self):
        self.readings += 1
        for n, text in enumerate(self.texts):
            if n == self.fail_at:
                raise UserError("line 3 is not UTF-8")
            yield text

    @property
    def documents(self):
        return Documents(self.read, repr(self.texts), "`test`")


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.is_fast = False
        self.characters = 0

    def get_vocab(self):
        return self.tokenizer.get_vocab()

    def __call__(self, text, **settings):
        self.characters += len(text)
        return self.tokenizer(text, **settings)


def expected_ids(texts, document_separator=(EOS,)):
    ids = []
    for text in texts:
        if text:
            ids += [1 + LETTERS.index(letter) for letter in text] + list(document_separator)
    return ids


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document_separator", [[EOS], [], [3, 4]])
@pytest.mark.parametrize("number", [1, 3, 300])
def test_the_stream_holds_every_token_of_every_document(small_parts, number, document_separator):
    texts = [numbered(n) for n in range(number)] + ["ab"]
    tokens = tokenize_documents(Texts(texts).documents, letters_tokenizer(), document_separator)
    assert tokens.ids.tolist() == expected_ids(texts, document_separator)
    assert tokens.ends.tolist() == np.cumsum([len(text) + len(document_separator) for text in texts if text]).tolist()
    assert tokens.ends.dtype == np.int64
    assert tokens.num_documents == sum(map(bool, texts))
    assert tokens.num_bytes == sum(map(len, texts))


def test_workers_make_the_same_files_part_by_part(small_parts, cache):
    def backwards(function, batches):
        given = [pickle.loads(pickle.dumps((function, batch))) for batch in batches]
        return iter([call(batch) for call, batch in reversed(given)][::-1])

    texts, files = [numbered(n) for n in range(300)], []
    for engine in (in_turn, backwards):
        tokenize_documents(Texts(texts).documents, words_tokenizer(), [EOS], engine=engine)
        files.append({file.name: file.read_bytes() for file in cache.glob("*/*")})
        shutil.rmtree(cache)
    assert files[0] == files[1]
    assert files[0]["parts.jsonl"].count(b"\n") > 3


def test_a_document_without_a_token_has_an_end():
    backend = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = tokenize_documents(
        Texts(["a a", "  ", "a"]).documents, PreTrainedTokenizerFast(tokenizer_object=backend), []
    )
    assert (tokens.ids.tolist(), tokens.ends.tolist(), tokens.num_bytes) == ([1, 1, 1], [2, 2, 3], 6)


def test_bytes_are_those_of_utf8():
    assert tokenize_documents(Texts(["é", "日本"]).documents, letters_tokenizer(), [EOS]).num_bytes == 8


@pytest.mark.parametrize(("size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_two_bytes_a_token_where_the_vocabulary_fits(size, dtype):
    tokenizer = letters_tokenizer(num_extra=size - 27)
    assert len(tokenizer) == size
    tokens = tokenize_documents(Texts(["ab"]).documents, tokenizer, [size - 1])
    assert tokens.ids.dtype == dtype
    assert tokens.ids.tolist() == [1, 2, size - 1]


def test_a_tokenizer_that_cuts_texts_off_loses_nothing_here():
    tokenizer = letters_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=10)
    assert tokenize_documents(Texts(["abcd", "e"]).documents, tokenizer, [EOS]).ids.tolist() == [1, 2, 3, 4, 0, 5, 0]


def test_documents_without_a_text_are_an_empty_row():
    texts = Texts(["", ""])
    for _ in range(2):
        tokens = tokenize_documents(texts.documents, letters_tokenizer(), [EOS])
        assert (len(tokens.ids), len(tokens.ends), tokens.num_documents, tokens.num_bytes) == (0, 0, 0, 0)
    assert texts.readings == 1


# --- the cache --------------------------------------------------------------------------------------------------------


def test_what_was_tokenized_once_is_read_from_the_cache(cache, capsys):
    texts = Texts(["abc", "de"])
    first = tokenize_documents(texts.documents, letters_tokenizer(), [EOS])
    second = tokenize_documents(texts.documents, letters_tokenizer(), [EOS])
    assert texts.readings == 1
    assert isinstance(second.ids.base, np.memmap) and isinstance(second.ends.base, np.memmap)
    assert second.ids.tolist() == first.ids.tolist() == [1, 2, 3, 0, 4, 5, 0]
    assert (second.ends.tolist(), second.num_bytes) == ([4, 7], 5)
    assert len(list(cache.iterdir())) == 1
    assert capsys.readouterr().err == ""


def test_other_documents_separator_or_tokenizer_are_not_taken_from_the_cache():
    def ids(texts, document_separator=(EOS,), num_extra=0):
        return tokenize_documents(
            Texts(texts).documents, letters_tokenizer(num_extra), list(document_separator)
        ).ids.tolist()

    assert ids(["a"]) == [1, 0]
    assert ids(["b"]) == [2, 0]
    assert ids(["a"], ()) == [1]
    texts = Texts(["a"])
    tokenize_documents(texts.documents, letters_tokenizer(num_extra=1), [EOS])
    assert texts.readings == 1


def damage_file(folder, damage):
    name = {"ends": "ends.bin", "journal": "parts.jsonl"}.get(damage.split()[0], "tokens.bin")
    file = folder / name
    whole = file.read_bytes()
    if damage.endswith("gone"):
        file.unlink()
    elif damage.endswith("flipped"):
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    else:
        changed = {"shorter": whole[:-2], "odd": whole[:-1], "empty": b"", "longer": whole + b"\0\0"}
        file.write_bytes(changed[damage.split()[-1]])


@pytest.mark.parametrize("kind", ["shorter", "odd", "empty", "gone", "longer", "flipped"])
@pytest.mark.parametrize("file", ["tokens", "ends", "journal"])
def test_a_damaged_cache_is_made_anew_and_says_so(small_parts, cache, capsys, file, kind):
    texts = Texts([numbered(n) for n in range(100)])
    first = tokenize_documents(texts.documents, letters_tokenizer(), [EOS])
    expected = first.ids.tolist(), first.ends.tolist(), first.num_bytes
    (folder,) = cache.iterdir()
    kept = {name: (folder / name).read_bytes() for name in ("tokens.bin", "ends.bin", "parts.jsonl")}
    damage_file(folder, f"{file} {kind}")
    capsys.readouterr()
    again = tokenize_documents(texts.documents, letters_tokenizer(), [EOS])
    assert (again.ids.tolist(), again.ends.tolist(), again.num_bytes) == expected
    said = capsys.readouterr().err
    still_whole = file == "journal" and kind in ("odd", "longer")  # its lines are
    if file != "journal" or kind in ("empty", "gone"):
        assert f"the cache of `test` was damaged ({folder}): tokenizing again\n" in said
    if not still_whole:
        assert said
        assert (folder / "tokens.bin").read_bytes() == kept["tokens.bin"]
        assert (folder / "ends.bin").read_bytes() == kept["ends.bin"]
    capsys.readouterr()
    tokenize_documents(texts.documents, letters_tokenizer(), [EOS])
    assert (texts.readings, capsys.readouterr().err) == (1 if still_whole else 2, "")


def test_of_a_damaged_row_only_what_follows_the_damage_is_tokenized(small_parts, cache):
    texts = [numbered(n) for n in range(100)]
    tokenize_documents(Texts(texts).documents, Counting(letters_tokenizer()), [EOS])
    (folder,) = cache.iterdir()
    damage_file(folder, "tokens flipped")
    again = Counting(letters_tokenizer())
    assert tokenize_documents(Texts(texts).documents, again, [EOS]).ids.tolist() == expected_ids(texts)
    assert 0.4 < again.characters / sum(map(len, texts)) < 0.8


def test_a_reader_of_a_damaged_row_is_not_disturbed_when_it_is_mended(small_parts, cache):
    texts = [numbered(n) for n in range(100)]
    reader = tokenize_documents(Texts(texts).documents, letters_tokenizer(), [EOS])
    (folder,) = cache.iterdir()
    with (folder / "tokens.bin").open("r+b") as file:
        file.write(b"\1\1\1")
    tokenize_documents(Texts(texts).documents, letters_tokenizer(), [EOS])
    assert reader.ids.tolist() == expected_ids(texts)


def test_what_was_verified_is_not_read_again_until_it_changes(cache, monkeypatch):
    tokenize_documents(Texts(["abc"]).documents, letters_tokenizer(), [EOS])
    read = []
    whole_parts = token_cache._whole_parts
    monkeypatch.setattr(token_cache, "_whole_parts", lambda *args: read.append(args) or whole_parts(*args))
    tokenize_documents(Texts(["abc"]).documents, letters_tokenizer(), [EOS])
    assert read == []
    (folder,) = cache.iterdir()
    damage_file(folder, "tokens flipped")
    assert tokenize_documents(Texts(["abc"]).documents, letters_tokenizer(), [EOS]).ids.tolist() == [1, 2, 3, 0]
    assert read


def test_the_second_of_two_writers_leaves_what_the_first_wrote(cache):
    with token_cache.new_cache_entry(cache / "x") as slow:
        (slow / "file").write_text("second")
        with token_cache.new_cache_entry(cache / "x") as quick:
            (quick / "file").write_text("first")
    assert (cache / "x" / "file").read_text() == "first"
    assert [entry.name for entry in cache.iterdir()] == ["x"]


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(token_cache, "cache_dir", lambda: tmp_path / "taken")
    with pytest.raises(UserError) as caught:
        tokenize_documents(Texts(["a"]).documents, letters_tokenizer(), [EOS])
    assert caught.value.message == f"the cache {tmp_path / 'taken'} cannot be written: Not a directory"
    assert caught.value.hint == "set HF_HOME to a folder that can be written"
    with pytest.raises(UserError, match="cannot be written"), token_cache.new_cache_entry(tmp_path / "taken" / "x"):
        pass


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_at", [1, 30, 60, 99])
def test_what_was_interrupted_goes_on_after_its_last_whole_part(small_parts, capsys, fail_at):
    texts = [numbered(n) for n in range(100)]
    with pytest.raises(UserError, match="line 3"):
        tokenize_documents(Texts(texts, fail_at).documents, Counting(letters_tokenizer()), [EOS])
    again = Counting(letters_tokenizer())
    tokens = tokenize_documents(Texts(texts).documents, again, [EOS])
    assert (tokens.ids.tolist(), tokens.num_documents, tokens.num_bytes) == (
        expected_ids(texts),
        99,
        sum(map(len, texts)),
    )
    done = sum(map(len, texts)) - again.characters
    assert max(0, sum(map(len, texts[:fail_at])) - 15_000) <= done <= sum(map(len, texts[:fail_at]))
    assert ("documents (0 MB) are already done" in capsys.readouterr().err) is (done > 0)


def test_a_long_document_goes_on_in_its_middle(monkeypatch, cache):
    monkeypatch.setattr(tokenize, "CHUNK", 500)
    monkeypatch.setattr(tokenize, "BATCH", 2000)
    monkeypatch.setattr(token_cache, "PART", 10_000)
    text = " ".join(numbered(n)[:90] for n in range(1000))
    tokenizer = letters_tokenizer()
    whole = tokenize_documents(Texts([text, "b"]).documents, Counting(tokenizer), [EOS]).ids.tolist()
    assert whole == [*tokenizer(text)["input_ids"], 0, 2, 0]
    (folder,) = cache.iterdir()
    lines = (folder / "parts.jsonl").read_text().splitlines(keepends=True)
    (folder / "parts.jsonl").write_text("".join(lines[:4]) + lines[4][:20])  # the last line was cut off
    assert json.loads(lines[3].split(" ", 1)[1])["characters"] > 20_000
    again = Counting(tokenizer)
    tokens = tokenize_documents(Texts([text, "b"]).documents, again, [EOS])
    assert (tokens.ids.tolist(), tokens.ends.tolist()) == (whole, [len(text) + 1, len(text) + 3])
    assert tokens.num_bytes == len(text) + 1
    assert again.characters > 0


@pytest.mark.parametrize("sent", [pytest.param(signal.SIGKILL, marks=pytest.mark.long), signal.SIGTERM, signal.SIGINT])
def test_a_process_that_was_stopped_has_its_parts_on_the_disk(small_parts, cache, capsys, sent):
    script = SMALL + textwrap.dedent(f"""
        import time
        from pathlib import Path
        from llmkit.data.text.documents import Documents, read_corpus

        def slow():
            for n in range(100):
                if n == 70:
                    print("now", flush=True)
                    time.sleep(60)
                yield numbered(n)

        token_cache.cache_dir = lambda: Path({str(cache)!r})
        token_cache.tokenize_documents(Documents(slow, "the same", "`test`"), letters_tokenizer(), [0])
    """)
    with Fork("-c", script, first=f"import sys; sys.path.insert(0, {str(ROOT)!r})") as child:
        assert child.stdout.readline() == "now\n"
        child.send_signal(sent)
        assert child.wait() != 0
    texts = [numbered(n) for n in range(100)]
    tokens = tokenize_documents(Documents(lambda: iter(texts), "the same", "`test`"), letters_tokenizer(), [EOS])
    assert tokens.ids.tolist() == expected_ids(texts)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert 40 <= int(said[0].removeprefix("continuing to tokenize `test`: ").split()[0]) < 70


def test_of_two_processes_one_waits_for_the_other(cache, capsys):
    texts = Texts(["abc"])
    tokenize_documents(texts.documents, letters_tokenizer(), [EOS])
    (folder,) = cache.iterdir()
    whole = (folder / "parts.jsonl").read_bytes()
    (folder / "parts.jsonl").write_bytes(b"")  # the other process has only begun

    begun = Event()

    def finish():
        with FileLock(folder / "lock"):
            begun.set()
            time.sleep(0.3)
            (folder / "parts.jsonl").write_bytes(whole)

    other = Thread(target=finish)
    other.start()
    begun.wait()
    tokens = tokenize_documents(texts.documents, letters_tokenizer(), [EOS])
    other.join()
    assert (tokens.ids.tolist(), texts.readings) == ([1, 2, 3, 0], 1)
    assert capsys.readouterr().err == "waiting for another process that tokenizes `test`\n"


def test_a_long_preparation_says_how_far_it_is(monkeypatch, capsys):
    seconds = iter(range(1000))
    monkeypatch.setattr(token_cache.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(tokenize, "BATCH", 250_000)
    tokenize_documents(Texts(["words " * 50_000] * 30).documents, words_tokenizer(), [EOS])
    said = capsys.readouterr().err.splitlines()
    assert said == ["tokenizing `test`: 3 MB, 0.3 MB/s", "tokenizing `test`: 6 MB, 0.3 MB/s"]


# --- size -------------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from pathlib import Path
from tests.data.text.test_token_cache import words_tokenizer
from llmkit.data.text import token_cache, tokenize
from llmkit.data.text.documents import Documents, read_corpus

tokenize.BATCH, token_cache.PART = 2**16, 2**18
token_cache.cache_dir = lambda: Path(sys.argv[1])
text = ("once upon a time there was a row " * 31)[:1000]
for megabytes in (1, 10):
    documents = Documents(lambda: (text for _ in range(megabytes * 1000)), str(megabytes), "`test`")
    tokens = token_cache.tokenize_documents(documents, words_tokenizer(), [0])
    assert tokens.num_bytes == megabytes * 1_000_000
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.long
def test_more_text_needs_no_more_memory(cache):
    words = [sys.executable, "-c", MEASURE, str(cache)]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(words, env=here, check=True, capture_output=True, text=True)
    little, much = map(int, done.stdout.split())  # MB at most
    assert much < little + 10


# ---- what earlier versions left in the cache -------------------------------------------------------------------------


def lose_name(journal):
    """Write a journal as earlier versions did, which left the entry's name out."""
    entries = [json.loads(line.split(" ", 1)[1]) for line in journal.read_text().splitlines()]
    lines = [json.dumps({key: value for key, value in entry.items() if key != "entry"}) for entry in entries]
    journal.write_text("".join(f"{token_cache._sum(line)} {line}\n" for line in lines))


def test_what_earlier_readers_made_of_the_same_bytes_is_not_taken(cache, tmp_path, monkeypatch):
    """Of this file they made other texts; and of a table they might have."""
    tokenizer, rules = letters_tokenizer(), letters_tokenizer().backend_tokenizer.to_str()
    (tmp_path / "a.csv").write_text("text\nab\n")
    read = read_corpus(TextData(path=str(tmp_path / "a.csv")), 0).train
    assert tokenize_documents(read, tokenizer, [EOS]).ids.tolist() == [1, 2, EOS]
    (made,) = [entry for entry in cache.iterdir() if (entry / "tokens.bin").exists()]
    earlier = cache / xxhash.xxh3_128_hexdigest(repr((3, read.fingerprint, rules, [EOS])).encode())  # as of c1f8dd5
    wrong = Documents(lambda: iter(["zzz"]), "wrong", "`test`")
    tokenize_documents(wrong, tokenizer, [EOS])
    (other,) = [entry for entry in cache.iterdir() if (entry / "tokens.bin").exists() and entry != made]
    lose_name(other / "parts.jsonl")
    other.rename(earlier)
    shutil.rmtree(made)
    assert tokenize_documents(read, tokenizer, [EOS]).ids.tolist() == [1, 2, EOS]
    monkeypatch.setattr(Documents, "cache_key", property(lambda documents: documents.fingerprint))
    assert tokenize_documents(read, tokenizer, [EOS]).ids.tolist() == [26, 26, 26, EOS]  # what was laid there for it


def test_what_reading_showed_is_said_again_of_the_same_content_in_another_file(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "ab", "id": 1}\n{"text": "", "id": 2}\n')
        read = read_corpus(TextData(path=str(tmp_path / name)), 0).train
        assert not read.findings.left_out
        tokenize_documents(read, letters_tokenizer(), [EOS])
        assert list(read.findings.notes) == [f"1 row left out: empty text, such as `{tmp_path / name}`, line 2"]
        assert read.findings.left_out == {"empty text": 1}
        assert list(read.findings.columns) == [("text", ("id",))]


def test_two_streams_that_were_swapped_in_the_cache_are_not_taken_for_one_another(cache, capsys):
    texts = [["ab"] * 9, ["ba"] * 9]
    before = [tokenize_documents(Texts(text).documents, letters_tokenizer(), []).ids.tolist() for text in texts]
    first, second = cache.iterdir()
    first.rename(cache / "aside")
    second.rename(first)
    (cache / "aside").rename(second)
    after = [tokenize_documents(Texts(text).documents, letters_tokenizer(), []).ids.tolist() for text in texts]
    assert after == before
    assert capsys.readouterr().err.count("was damaged") == 2


def test_a_stream_of_an_earlier_version_whose_journal_has_no_name_is_read(cache, capsys):
    stream = Texts(["ab"] * 9)
    tokenize_documents(stream.documents, letters_tokenizer(), [])
    lose_name(next(cache.glob("*/parts.jsonl")))
    readings = stream.readings
    tokenize_documents(stream.documents, letters_tokenizer(), [])
    assert stream.readings == readings
    assert "damaged" not in capsys.readouterr().err
