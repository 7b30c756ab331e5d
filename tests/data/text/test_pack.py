"""No token is lost, and a block is the same whoever asks for it."""

import gc
import random
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from llmkit.data.text import pack, token_cache, tokenize
from llmkit.data.text.documents import Documents
from llmkit.data.text.pack import Blocks, BlockSpec, StreamedBlocks, TokenStream
from llmkit.errors import UserError

EOS = 0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of DataLoader's workers, Python 3.12 on


def letters_tokenizer():
    """Token 0 ends a text, 1 is `a`, 2 is `b`."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["</s>", *LETTERS])}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setattr(token_cache, "cache_dir", lambda: tmp_path / "cache")


def documents(texts):
    return Documents(lambda: iter(texts), repr(texts), "`test`")


def random_texts(seed):
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.choice((0, 1, 3, 30, 200)))) for _ in range(rng.randint(1, 250))]


def stream_of(ids, *ends):
    return TokenStream(np.array(ids, np.uint32), np.array(ends or [len(ids)], np.int64), 1)


def stream_of_lengths(lengths):
    """Documents of so many tokens each, numbered through."""
    ends = np.cumsum(lengths)
    return stream_of(range(ends[-1]), *ends)


def starts_in(tokens, begin, end):
    """Slowly, and by another way: every place where a document with a token in it begins."""
    return [b - begin for b, e in pairwise([0, *tokens.ends.tolist()]) if b < e and begin <= b < end]


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 8, 9, 64, 65, 128, 129, 1000])
def test_every_token_but_the_first_is_a_causal_label_once(number, size):
    length, stride = size + 1, size
    blocks = Blocks(stream_of(range(number)), BlockSpec(length, stride), None)
    labels = [token for window in blocks for token in window.ids[1:].tolist()]
    inputs = [token for window in blocks for token in window.ids[:-1].tolist()]
    covered = len(blocks) * size
    assert labels == list(range(1, covered + 1))
    assert inputs == list(range(covered))
    assert blocks.tail == number - (covered + 1 if covered else 0)
    assert blocks.tail < length


@pytest.mark.parametrize("length", [1, 2, 7, 64])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 64, 65, 128, 1000])
def test_every_token_stands_in_one_block_without_overlap(number, length):
    blocks = Blocks(stream_of(range(number)), BlockSpec(length, length), None)
    found = [token for window in blocks for token in window.ids.tolist()]
    assert found == list(range(len(blocks) * length))
    assert blocks.tail == number - len(found) < length


@pytest.mark.parametrize(("limit", "num_blocks", "tail"), [(None, 3, 6), (3, 3, 6), (9, 3, 6), (2, 2, 16), (1, 1, 26)])
def test_a_limit_counts_blocks_and_the_tail_is_what_is_in_none(limit, num_blocks, tail):
    blocks = Blocks(stream_of(range(37)), BlockSpec(11, 10), limit)
    assert (len(blocks), blocks.tail) == (num_blocks, tail)
    assert [window.index for window in blocks] == list(range(num_blocks))
    assert len({token for window in blocks for token in window.ids.tolist()}) + blocks.tail == 37


def test_a_block_is_the_same_in_any_order():
    blocks = Blocks(stream_of(range(100)), BlockSpec(11, 10), None)
    forwards = [window.ids.tolist() for window in blocks]
    assert [blocks[n].ids.tolist() for n in reversed(range(len(blocks)))] == forwards[::-1]
    assert blocks[3].ids.tolist() == list(range(30, 41))
    for index in (-1, len(blocks)):
        with pytest.raises(IndexError):
            blocks[index]


def test_the_epoch_goes_with_the_window_except_in_evaluation():
    tokens = stream_of(range(100))
    training, evaluation = (
        Blocks(tokens, BlockSpec(10, 10), None),
        Blocks(tokens, BlockSpec(10, 10), None, evaluation=True),
    )
    for epoch in (0, 1, 5):
        training.set_epoch(epoch)
        evaluation.set_epoch(epoch)
        assert (training[2].epoch, evaluation[2].epoch) == (epoch, pack.EVALUATION)


def as_lists(windows):
    return [(window.index, window.epoch, window.ids.tolist(), window.starts.tolist()) for window in windows]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_same_batches_and_see_the_epoch(workers):
    tokenizer = letters_tokenizer()
    tokens = pack.tokenize_documents(documents(random_texts(1)), tokenizer, [EOS])
    blocks = Blocks(tokens, BlockSpec(17, 16), None)
    order = random.Random(1).sample(range(len(blocks)), len(blocks))
    loader = DataLoader(
        blocks, 4, sampler=order, num_workers=workers, collate_fn=as_lists, persistent_workers=bool(workers)
    )
    for epoch in range(3):
        blocks.set_epoch(epoch)
        expected = [
            (
                index,
                epoch,
                tokens.ids[16 * index : 16 * index + 17].tolist(),
                starts_in(tokens, 16 * index, 16 * index + 17),
            )
            for index in order
        ]
        assert list(loader) == [expected[n : n + 4] for n in range(0, len(order), 4)]


# --- where documents begin --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "stride"), [(17, 16), (14, 14), (1, 1), (300, 299)])
@pytest.mark.parametrize("seed", range(3))
def test_a_window_knows_where_documents_begin_in_it(seed, length, stride):
    rng = random.Random(seed)
    tokens = stream_of_lengths([rng.choice((0, 1, 2, 15, 16, 17, 100)) for _ in range(100)])
    blocks = Blocks(tokens, BlockSpec(length, stride), None)
    assert len(blocks) > 0
    for n, window in enumerate(blocks):
        assert window.starts.dtype == np.int64
        assert window.starts.tolist() == starts_in(tokens, n * stride, n * stride + length)


def test_a_window_that_goes_on_with_a_document_does_not_begin_one():
    blocks = Blocks(stream_of_lengths([3, 4, 5]), BlockSpec(4, 4), None)
    assert [window.starts.tolist() for window in blocks] == [[0, 3], [3], []]


# --- each document on its own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[1], [10], [11], [20, 21], [0, 5, 0, 0, 31, 0], [*range(60)] * 6, [7] * 600])
def test_no_block_holds_text_of_two_documents_and_every_token_is_in_one(lengths):
    tokens = stream_of_lengths(lengths)
    blocks = Blocks(tokens, BlockSpec(10, 10, within_documents=True), None)
    assert np.concatenate([window.ids for window in blocks]).tolist() == tokens.ids.tolist()
    assert blocks.tail == 0
    bounds = [0, *tokens.ends.tolist()]
    pieces = {n: [] for n in range(len(lengths))}
    for index, window in enumerate(blocks):
        (document,) = set(np.searchsorted(bounds, window.ids, "right") - 1)
        assert window.starts.tolist() == ([] if pieces[document] else [0])
        assert window.index == index
        pieces[document].append(len(window.ids))
    for n, found in pieces.items():
        assert len(found) == -(-lengths[n] // 10)
        assert max(found, default=0) - min(found, default=0) <= 1
        assert max(found, default=0) <= 10


def test_the_pieces_of_a_document_are_where_they_are_said_to_be():
    blocks = Blocks(stream_of_lengths([4, 23]), BlockSpec(10, 10, within_documents=True), None)
    found = [window.ids.tolist() for window in blocks]
    assert found == [[0, 1, 2, 3], [*range(4, 11)], [*range(11, 19)], [*range(19, 27)]]


@pytest.mark.parametrize(("limit", "num_blocks", "tail"), [(None, 4, 0), (9, 4, 0), (3, 3, 8), (1, 1, 23)])
def test_a_limit_on_pieces_of_documents_leaves_a_tail(limit, num_blocks, tail):
    blocks = Blocks(stream_of_lengths([4, 23]), BlockSpec(10, 10, within_documents=True), limit)
    assert (len(blocks), blocks.tail) == (num_blocks, tail)
    with pytest.raises(IndexError):
        blocks[num_blocks]


def test_no_documents_give_no_blocks():
    tokens = TokenStream(np.empty(0, np.uint16), np.empty(0, np.int64), 0)
    for spec in (BlockSpec(10, 10), BlockSpec(10, 10, within_documents=True)):
        assert (len(Blocks(tokens, spec, None)), Blocks(tokens, spec, None).tail) == (0, 0)


# --- streams ----------------------------------------------------------------------------------------------------------

SPECS = [BlockSpec(17, 16), BlockSpec(14, 14), BlockSpec(400, 399), BlockSpec(14, 14, within_documents=True)]


@pytest.mark.parametrize("limit", [None, 1, 5])
@pytest.mark.parametrize("document_separator", [[EOS], []])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_gives_the_blocks_of_the_tokenized_documents(monkeypatch, seed, spec, document_separator, limit):
    monkeypatch.setattr(pack, "STREAMED", 20_000)  # several batches
    texts = documents(random_texts(seed))
    tokens = pack.tokenize_documents(texts, letters_tokenizer(), document_separator)
    blocks = Blocks(tokens, spec, limit)
    stream = StreamedBlocks(texts, letters_tokenizer(), document_separator, spec, limit)
    for epoch in (0, 3):
        blocks.set_epoch(epoch)
        stream.set_epoch(epoch)
        assert as_lists(stream) == as_lists(blocks)
    assert len(blocks) > 0


@pytest.mark.parametrize("within_documents", [False, True])
def test_a_stream_of_one_long_document_gives_the_blocks_of_the_tokenized_one(monkeypatch, within_documents):
    monkeypatch.setattr(tokenize, "CHUNK", 10_000)
    texts = documents(["abcde" * 15_000, "xyz"])
    spec = BlockSpec(1000, 999, within_documents)
    tokens = pack.tokenize_documents(texts, letters_tokenizer(), [EOS])
    stream = StreamedBlocks(texts, letters_tokenizer(), [EOS], spec, None)
    assert as_lists(stream) == as_lists(Blocks(tokens, spec, None))


@pytest.mark.parametrize("spec", SPECS[:2] + SPECS[3:])
def test_a_stream_reads_no_further_than_it_must(spec):
    read_to = []

    def read():
        for n in range(10_000):
            read_to.append(n)
            yield "abc"

    stream = StreamedBlocks(Documents(read, "x", "`x`"), letters_tokenizer(), [EOS], spec, 5)
    assert len(list(stream)) == 5
    assert len(read_to) <= 200


def test_a_stream_is_read_by_one_worker_at_most(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # how long a worker may take to end
    stream = StreamedBlocks(documents(random_texts(1)), letters_tokenizer(), [EOS], BlockSpec(17, 16), None)
    alone, one = (
        [window for batch in DataLoader(stream, 4, num_workers=workers, collate_fn=as_lists) for window in batch]
        for workers in (0, 1)
    )
    assert alone == one == as_lists(stream)
    with pytest.raises(UserError, match="a stream can be read by at most one worker"):
        list(DataLoader(stream, 4, num_workers=2, collate_fn=as_lists))
    gc.collect()  # they end here


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("limit", [1, 3, 11, 100_000])
def test_a_stream_that_is_kept_in_memory_cuts_into_its_own_blocks(spec, limit):
    stream = StreamedBlocks(documents(random_texts(2)), letters_tokenizer(), [EOS], spec, None)
    kept = Blocks(pack.materialize(stream, limit), spec, limit)
    assert as_lists(kept) == as_lists(stream)[:limit]
    assert len(kept) > 0


@pytest.mark.parametrize("spec", SPECS[:2])
def test_of_running_text_no_more_is_kept_than_its_blocks(spec):
    stream = StreamedBlocks(documents(random_texts(2)), letters_tokenizer(), [EOS], spec, None)
    tokens = pack.materialize(stream, 3)
    assert len(tokens.ids) == 2 * spec.stride + spec.length == tokens.ends[-1]
    assert (len(Blocks(tokens, spec, None)), tokens.num_bytes) == (3, 0)


def test_a_stream_keeps_to_its_own_limit():
    stream = StreamedBlocks(documents(random_texts(2)), letters_tokenizer(), [EOS], BlockSpec(14, 14), 2)
    assert len(Blocks(pack.materialize(stream, 5), stream.spec, None)) == 2


def test_of_nothing_nothing_is_kept():
    for spec in SPECS:
        tokens = pack.materialize(StreamedBlocks(documents([]), letters_tokenizer(), [EOS], spec, None), 5)
        assert (len(tokens.ids), tokens.num_documents) == (0, 0)
