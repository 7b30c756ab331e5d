"""No token is lost, and a block is the same whoever asks for it."""

import json
import random
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from llmkit.data import pack
from llmkit.data.pack import Blocks, StreamedBlocks, TokenRow
from llmkit.data.read import Documents
from llmkit.errors import UserError
from llmkit.tasks import causal_lm, masked_lm

EOS = 0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of DataLoader's workers, Python 3.12 on


def letters_tokenizer(num_extra=0):
    """Token 0 ends a text, 1 is `a`, 2 is `b`; then come `num_extra` words that no text holds."""
    words = ["</s>", *LETTERS, *(f"extra{n}" for n in range(num_extra))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setattr(pack, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


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


def random_texts(seed):
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.choice((0, 1, 3, 30, 200)))) for _ in range(draw.randint(1, 250))]


def expected_ids(texts, separator):
    ids = []
    for text in texts:
        if text:
            ids += [1 + LETTERS.index(letter) for letter in text] + separator
    return ids


def row_of(ids):
    return TokenRow(np.array(ids, np.uint16), 1, 1)


# --- the row ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [[EOS], [], [3, 4]])
@pytest.mark.parametrize("seed", range(5))
def test_the_row_is_every_token_of_every_document(seed, separator):
    texts = random_texts(seed)
    row = pack.tokenize(Texts(texts).documents, letters_tokenizer(), separator)
    assert row.ids.tolist() == expected_ids(texts, separator)
    assert row.num_documents == sum(map(bool, texts))
    assert row.num_bytes == sum(map(len, texts))


def test_bytes_are_those_of_utf8():
    assert pack.tokenize(Texts(["é", "日本"]).documents, letters_tokenizer(), [EOS]).num_bytes == 8


@pytest.mark.parametrize(("size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_two_bytes_a_token_where_the_vocabulary_fits(size, dtype):
    tokenizer = letters_tokenizer(num_extra=size - 27)
    assert len(tokenizer) == size
    row = pack.tokenize(Texts(["ab"]).documents, tokenizer, [size - 1])
    assert row.ids.dtype == dtype
    assert row.ids.tolist() == [1, 2, size - 1]


def test_a_tokenizer_that_cuts_texts_off_loses_nothing_here():
    tokenizer = letters_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=10)
    assert pack.tokenize(Texts(["abcd", "e"]).documents, tokenizer, [EOS]).ids.tolist() == [1, 2, 3, 4, 0, 5, 0]
    tokenizer.backend_tokenizer.enable_truncation(2)
    stream = StreamedBlocks(Texts(["abcd", "e"]).documents, tokenizer, [EOS], 7, 7, None)
    assert [window.ids.tolist() for window in stream] == [[1, 2, 3, 4, 0, 5, 0]]


# --- the cache --------------------------------------------------------------------------------------------------------


def test_what_was_tokenized_once_is_read_from_the_cache(cache):
    texts = Texts(["abc", "de"])
    first = pack.tokenize(texts.documents, letters_tokenizer(), [EOS])
    second = pack.tokenize(texts.documents, letters_tokenizer(), [EOS])
    assert texts.readings == 1
    assert second.ids.tolist() == first.ids.tolist() == [1, 2, 3, 0, 4, 5, 0]
    assert (second.num_documents, second.num_bytes) == (2, 5)
    assert len(list(cache.iterdir())) == 1


def test_other_documents_separator_or_tokenizer_are_not_taken_from_the_cache():
    def ids(texts, separator=(EOS,), num_extra=0):
        return pack.tokenize(Texts(texts).documents, letters_tokenizer(num_extra), list(separator)).ids.tolist()

    assert ids(["a"]) == [1, 0]
    assert ids(["b"]) == [2, 0]
    assert ids(["a"], ()) == [1]
    texts = Texts(["a"])
    pack.tokenize(texts.documents, letters_tokenizer(num_extra=1), [EOS])
    assert texts.readings == 1


@pytest.mark.parametrize("damage", ["shorter", "odd", "empty", "gone", "longer", "json", "half a json", "a file"])
def test_a_damaged_cache_is_made_anew(cache, damage):
    texts = Texts(["abc", "de"])
    pack.tokenize(texts.documents, letters_tokenizer(), [EOS])
    (folder,) = cache.iterdir()
    tokens, about = folder / "tokens.bin", folder / "tokens.json"
    whole = tokens.read_bytes()
    if damage == "gone":
        tokens.unlink()
    elif damage == "json":
        about.write_text("")
    elif damage == "half a json":
        about.write_text('{"dtype": "uint16"}')
    elif damage == "a file":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        tokens.write_bytes({"shorter": whole[:-2], "odd": whole[:-1], "empty": b"", "longer": whole + b"\0\0"}[damage])
    assert pack.tokenize(texts.documents, letters_tokenizer(), [EOS]).ids.tolist() == [1, 2, 3, 0, 4, 5, 0]
    assert texts.readings == 2
    assert tokens.read_bytes() == whole
    assert json.loads(about.read_text())["num_tokens"] == 7
    assert list(cache.iterdir()) == [folder]


def test_documents_without_a_text_are_an_empty_row():
    texts = Texts(["", ""])
    for _ in range(2):
        row = pack.tokenize(texts.documents, letters_tokenizer(), [EOS])
        assert (len(row.ids), row.num_documents, row.num_bytes) == (0, 0, 0)
    assert texts.readings == 1


def test_a_failure_leaves_nothing_behind(cache):
    texts = Texts(["a"] * 5000, fail_at=3000)
    with pytest.raises(UserError, match="line 3"):
        pack.tokenize(texts.documents, letters_tokenizer(), [EOS])
    assert list(cache.iterdir()) == []


def test_the_second_of_two_writers_leaves_what_the_first_wrote(cache):
    with pack.new_cache_entry(cache / "x") as slow:
        (slow / "file").write_text("second")
        with pack.new_cache_entry(cache / "x") as quick:
            (quick / "file").write_text("first")
    assert (cache / "x" / "file").read_text() == "first"
    assert [entry.name for entry in cache.iterdir()] == ["x"]


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(pack, "cache_dir", lambda: tmp_path / "taken")
    with pytest.raises(UserError) as caught:
        pack.tokenize(Texts(["a"]).documents, letters_tokenizer(), [EOS])
    assert caught.value.message == f"the cache {tmp_path / 'taken'} cannot be written: File exists"
    assert caught.value.hint == "set HF_HOME"


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 8, 9, 64, 65, 128, 129, 1000])
def test_every_token_but_the_first_is_a_causal_label_once(number, size):
    length, stride = causal_lm.window(size)
    blocks = Blocks(row_of(range(number)), length, stride, None)
    labels = [token for window in blocks for token in window.ids[1:].tolist()]
    inputs = [token for window in blocks for token in window.ids[:-1].tolist()]
    covered = len(blocks) * size
    assert labels == list(range(1, covered + 1))
    assert inputs == list(range(covered))
    assert blocks.tail == number - (covered + 1 if covered else 0)
    assert blocks.tail < length


@pytest.mark.parametrize("size", [3, 4, 9, 66])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 64, 65, 128, 1000])
def test_every_token_stands_in_one_masked_block(number, size):
    length, stride = masked_lm.window(size)
    blocks = Blocks(row_of(range(number)), length, stride, None)
    tokens = [token for window in blocks for token in window.ids.tolist()]
    assert tokens == list(range(len(blocks) * length))
    assert blocks.tail == number - len(tokens) < length


@pytest.mark.parametrize(("limit", "num_blocks", "tail"), [(None, 3, 6), (3, 3, 6), (9, 3, 6), (2, 2, 16), (1, 1, 26)])
def test_a_limit_counts_blocks_and_the_tail_is_what_is_in_none(limit, num_blocks, tail):
    blocks = Blocks(row_of(range(37)), 11, 10, limit)
    assert (len(blocks), blocks.tail) == (num_blocks, tail)
    assert [window.index for window in blocks] == list(range(num_blocks))
    assert len({token for window in blocks for token in window.ids.tolist()}) + blocks.tail == 37


def test_a_block_is_the_same_in_any_order():
    blocks = Blocks(row_of(range(100)), 11, 10, None)
    forwards = [window.ids.tolist() for window in blocks]
    assert [blocks[n].ids.tolist() for n in reversed(range(len(blocks)))] == forwards[::-1]
    assert blocks[3].ids.tolist() == list(range(30, 41))
    for index in (-1, len(blocks)):
        with pytest.raises(IndexError):
            blocks[index]


def test_the_epoch_goes_with_the_window_except_in_evaluation():
    row = row_of(range(100))
    training, evaluation = Blocks(row, 10, 10, None), Blocks(row, 10, 10, None, evaluation=True)
    for epoch in (0, 1, 5):
        training.set_epoch(epoch)
        evaluation.set_epoch(epoch)
        assert (training[2].epoch, evaluation[2].epoch) == (epoch, pack.EVALUATION)


def as_lists(windows):
    return [(window.index, window.epoch, window.ids.tolist()) for window in windows]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_same_batches_and_see_the_epoch(workers):
    tokenizer = letters_tokenizer()
    row = pack.tokenize(Texts(random_texts(1)).documents, tokenizer, [EOS])
    blocks = Blocks(row, 17, 16, None)
    order = random.Random(1).sample(range(len(blocks)), len(blocks))
    loader = DataLoader(
        blocks, 4, sampler=order, num_workers=workers, collate_fn=as_lists, persistent_workers=bool(workers)
    )
    for epoch in range(3):
        blocks.set_epoch(epoch)
        expected = [(index, epoch, row.ids[16 * index : 16 * index + 17].tolist()) for index in order]
        assert list(loader) == [expected[n : n + 4] for n in range(0, len(order), 4)]


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1, 5])
@pytest.mark.parametrize(("length", "stride", "separator"), [(17, 16, [EOS]), (14, 14, []), (400, 399, [EOS])])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_gives_the_blocks_of_the_row(seed, length, stride, separator, limit):
    documents = Texts(random_texts(seed)).documents
    row = pack.tokenize(documents, letters_tokenizer(), separator)
    blocks = Blocks(row, length, stride, limit)
    stream = StreamedBlocks(documents, letters_tokenizer(), separator, length, stride, limit)
    for epoch in (0, 3):
        blocks.set_epoch(epoch)
        stream.set_epoch(epoch)
        assert as_lists(stream) == as_lists(blocks)
    assert len(blocks) > 0


def test_a_stream_reads_no_further_than_it_must():
    read_to = []

    def read():
        for n in range(10_000):
            read_to.append(n)
            yield "abc"

    stream = StreamedBlocks(Documents(read, "x", "`x`"), letters_tokenizer(), [EOS], 17, 16, 5)
    assert len(list(stream)) == 5
    assert len(read_to) <= 200


def test_a_stream_is_read_by_one_worker_at_most():
    stream = StreamedBlocks(Texts(random_texts(1)).documents, letters_tokenizer(), [EOS], 17, 16, None)
    alone, one = (
        [window for batch in DataLoader(stream, 4, num_workers=workers, collate_fn=as_lists) for window in batch]
        for workers in (0, 1)
    )
    assert alone == one == as_lists(stream)
    with pytest.raises(UserError, match="a stream is read by one worker at most"):
        list(DataLoader(stream, 4, num_workers=2, collate_fn=as_lists))


@pytest.mark.parametrize(("length", "stride"), [(17, 16), (14, 14)])
@pytest.mark.parametrize("limit", [1, 3, 100_000])
def test_a_stream_that_is_kept_in_memory_cuts_into_its_own_blocks(length, stride, limit):
    stream = StreamedBlocks(Texts(random_texts(2)).documents, letters_tokenizer(), [EOS], length, stride, None)
    row = pack.materialize(stream, limit)
    kept = Blocks(row, length, stride, None)
    assert as_lists(kept) == as_lists(stream)[:limit]
    assert kept.tail == 0
