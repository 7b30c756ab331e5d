"""Masked language models: exact shares, whole words, and masks that hang on seed, epoch and block alone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from token_windows import LENGTH, stream_of, window, windows
from torch.utils.data import DataLoader

from llmkit.data.text.boundaries import vocabulary, word_starts
from llmkit.data.text.documents import Documents
from llmkit.data.text.pack import EVALUATION, Blocks, BlockSpec
from llmkit.errors import UserError
from llmkit.models import tokenizer
from llmkit.recipe.data_tables import MaskedData
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.tasks import masked_lm

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of DataLoader's workers, Python 3.12 on
DATA = MaskedData(path="x")


def collate(words, found, seed=1, data=DATA):
    return masked_lm.collator(data, words, None, seed)(found)


def test_a_masked_block_is_cls_tokens_sep(words):
    assert masked_lm.block_spec(DATA, 128) == BlockSpec(126, 126)
    assert masked_lm.document_separator(words) == []
    found = windows(words, 8)
    batch = collate(words, found)
    assert {key: tuple(value.shape) for key, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (8, 128)
    )
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["attention_mask"].all()
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    assert (ids[:, 0] == words.cls_token_id).all()
    assert (ids[:, -1] == words.sep_token_id).all()
    assert not np.isin(ids[:, 1:-1], [words.cls_token_id, words.sep_token_id, words.pad_token_id]).any()
    assert (labels[:, [0, -1]] == -100).all()
    original = np.stack([window.ids for window in found])
    hidden = labels[:, 1:-1] != -100
    assert (labels[:, 1:-1][hidden] == original[hidden]).all()
    assert (ids[:, 1:-1][~hidden] == original[~hidden]).all()


@pytest.mark.parametrize(("share", "length", "number"), [(0.15, 126, 19), (0.15, 100, 15), (0.4, 10, 4), (0.15, 2, 1)])
def test_the_share_of_hidden_tokens_is_exact_in_every_block(words, share, length, number):
    batch = collate(words, windows(words, 50, length), data=MaskedData(path="x", mlm_probability=share))
    assert (batch["labels"].ne(-100).sum(dim=1) == number).all()


def test_of_the_hidden_80_10_10(words):
    found = windows(words, 3000)
    batch = collate(words, found)
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    hidden = labels != -100
    shown, true = ids[hidden], labels[hidden]
    number = len(shown)
    assert number == 3000 * 19
    num_ordinary = len(words) - 5
    masked = (shown == words.mask_token_id).sum()
    kept = (shown == true).sum()
    replaced = number - masked - kept
    for count, share in (
        (masked, 0.8),
        (kept, 0.1 + 0.1 / num_ordinary),  # a random token may be the one that stood there
        (replaced, 0.1 - 0.1 / num_ordinary),
    ):
        assert abs(count - share * number) < 4.5 * math.sqrt(number * share * (1 - share))
    strangers = np.bincount(shown[(shown != words.mask_token_id) & (shown != true)], minlength=len(words))
    assert (strangers[5:] > 0).all()  # any ordinary token, alike: chi-square with about 300 degrees of freedom
    expected = strangers.sum() / num_ordinary
    chi_square = ((strangers[5:] - expected) ** 2 / expected).sum()
    assert chi_square < num_ordinary + 4.5 * math.sqrt(2 * num_ordinary)
    places = hidden[:, 1:-1].sum(axis=0)  # any place, alike
    expected = 3000 * 19 / LENGTH
    assert ((places - expected) ** 2 / expected).sum() < LENGTH + 4.5 * math.sqrt(2 * LENGTH)


@pytest.mark.parametrize(("mask", "stranger"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_other_shares(words, mask, stranger):
    data = MaskedData(path="x", mask_replace_prob=mask, random_replace_prob=stranger)
    batch = collate(words, windows(words, 100), data=data)
    hidden = batch["labels"] != -100
    shown, true = batch["input_ids"][hidden], batch["labels"][hidden]
    assert (shown == words.mask_token_id).all() == (mask == 1)
    assert (shown == true).all() == (mask == stranger == 0)
    assert (shown == words.mask_token_id).any() == (mask == 1)


def test_special_tokens_are_neither_hidden_nor_drawn(words):
    special = sorted(words.all_special_ids)
    assert special == [0, 1, 2, 3, 4]
    draw = np.random.default_rng(1)
    ids = draw.integers(5, len(words), (500, LENGTH))
    ids[:, ::2] = draw.integers(0, 5, (500, LENGTH // 2))  # half of the text is special: [UNK] and the like
    found = [window(row, index) for index, row in enumerate(ids)]
    batch = collate(words, found, data=MaskedData(path="x", mask_replace_prob=0.0, random_replace_prob=1.0))
    labels = batch["labels"].numpy()[:, 1:-1]
    inputs = batch["input_ids"].numpy()[:, 1:-1]
    assert (labels[:, ::2] == -100).all()
    assert (inputs[:, ::2] == ids[:, ::2]).all()
    assert not np.isin(inputs[:, 1::2], special).any()
    assert ((labels != -100).sum(axis=1) == round(0.15 * LENGTH / 2)).all()
    nothing = collate(words, [window(np.ones(LENGTH))])  # nothing but [UNK]
    assert (nothing["labels"] == -100).all()


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer that has few words whole, and a text as its tokens."""
    draw = np.random.default_rng(0)
    text = " ".join("".join(draw.choice(list("abcdefgh"), size)) for size in draw.integers(1, 9, 200))
    table = Tokenizer(type="wordpiece", vocab_size=60)
    documents = Documents(lambda: iter([text]), "pieces", "`x`")
    words = tokenizer.load(table, Model(config={}), "masked-lm", documents, None)
    return words, np.array(words(text, add_special_tokens=False)["input_ids"])


def hidden_in(pieces, masking) -> np.ndarray:
    """Which of the tokens is hidden in each of 40 draws, bool [40, T]."""
    words, ids = pieces
    data = MaskedData(path="x", masking=masking, mask_replace_prob=1.0, random_replace_prob=0.0)
    batch = collate(words, [window(ids, index) for index in range(40)], data=data)
    hidden = batch["labels"][:, 1:-1].numpy() != -100
    assert (batch["input_ids"][:, 1:-1].numpy() == np.where(hidden, words.mask_token_id, ids)).all()
    return hidden


def test_words_are_hidden_whole_and_spans_are_of_words(pieces):
    words, ids = pieces
    word = np.cumsum(word_starts(ids, vocabulary(words)))
    assert word[-1] < 0.6 * len(ids)  # most words are several tokens
    hidden = {masking: hidden_in(pieces, masking) for masking in ("token", "whole-word", "span")}

    def torn(masking):
        """How many words a draw hides in part."""
        return np.mean([len(np.unique(word[one & np.isin(word, word[~one])])) for one in hidden[masking]])

    assert torn("whole-word") == 0
    assert torn("span") <= 1  # the last one, where the share is reached
    assert torn("token") > 20
    runs = {masking: shown.sum() / np.diff(shown, prepend=False).sum() * 2 for masking, shown in hidden.items()}
    assert runs["span"] > 2 * runs["whole-word"] > 2 * runs["token"]
    for shown in hidden.values():
        assert abs(shown.sum(axis=1) - 0.15 * len(ids)).max() < np.bincount(word).max()


def test_a_short_block_at_the_end_is_padded(words):
    tokens = stream_of(np.random.default_rng(0).integers(5, len(words), 300))
    found = masked_lm.evaluation_windows(tokens, DATA, BlockSpec(LENGTH, LENGTH), None, words)
    assert ([len(w.ids) for w in found], found.tail) == ([126, 126, 48], 0)
    batch = collate(words, list(found))
    assert batch["attention_mask"].sum(dim=1).tolist() == [128, 128, 50]
    assert batch["input_ids"][2, 49] == words.sep_token_id
    assert (batch["input_ids"][2, 50:] == words.pad_token_id).all()
    assert (batch["labels"][2, 49:] == -100).all()
    assert batch["labels"].ne(-100).sum(dim=1).tolist() == [19, 19, 7]
    same = masks(words, list(Blocks(tokens, BlockSpec(LENGTH, LENGTH), None, evaluation=True)))
    assert torch.equal(masks(words, list(found)[:2]), same)  # the draws of an evaluation in training


def test_each_token_is_hidden_once_and_alone(words):
    ids = np.random.default_rng(0).integers(5, len(words), 10)
    ids[[2, 7]] = words.unk_token_id
    data = MaskedData(path="x", masking="each")
    found = masked_lm.evaluation_windows(stream_of(ids), data, BlockSpec(4, 4), None, words)
    assert (len(found), found.num_blocks, found.tail) == (8, 3, 0)
    batch = collate(words, list(found), data=data)
    labels, inputs = batch["labels"].numpy(), batch["input_ids"].numpy()
    assert (labels != -100).sum(axis=1).tolist() == [1] * 8
    assert labels[labels != -100].tolist() == np.delete(ids, [2, 7]).tolist()
    assert (inputs[labels != -100] == words.mask_token_id).all()
    assert (inputs == words.mask_token_id).sum() == 8
    restored = np.where(labels != -100, labels, inputs)
    blocks = [ids[0:4]] * 3 + [ids[4:8]] * 3 + [ids[8:]] * 2
    for one, block in zip(restored, blocks, strict=True):
        padding = [words.pad_token_id] * (4 - len(block))
        assert one.tolist() == [words.cls_token_id, *block, words.sep_token_id, *padding]
    limited = masked_lm.evaluation_windows(stream_of(ids), data, BlockSpec(4, 4), 1, words)
    assert (len(limited), limited.tail) == (3, 6)


def masks(words, found, **keys):
    batch = collate(words, found, **keys)
    return torch.stack([batch["input_ids"], batch["labels"]], dim=1)


def test_a_mask_hangs_on_seed_epoch_and_block_alone(words):
    found = windows(words, 12)
    whole = masks(words, found)
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(masks(words, found), whole)
    alone = torch.cat([masks(words, [window]) for window in found])
    assert torch.equal(alone, whole)
    assert torch.equal(masks(words, found[::-1]), whole.flip(0))


def test_masks_differ_between_seeds_epochs_and_blocks(words):
    ids = np.arange(5, 5 + LENGTH)
    seen = {}
    for seed in (0, 1, 2, 2**32 - 1):
        for epoch in (0, 1, 2, EVALUATION):  # 2**32 - 1
            for index in (0, 1, 2, 2**31):
                mask = masks(words, [window(ids, index, epoch)], seed=seed)
                seen[mask.numpy().tobytes()] = (seed, epoch, index)
    assert len(seen) == 64


def test_evaluation_masks_are_the_same_every_time(words):
    tokens = stream_of(np.random.default_rng(0).integers(5, len(words), 5000))
    evaluation = Blocks(tokens, BlockSpec(LENGTH, LENGTH), None, evaluation=True)
    training = Blocks(tokens, BlockSpec(LENGTH, LENGTH), None)
    before = masks(words, list(evaluation))
    in_epochs = []
    for epoch in range(2):
        training.set_epoch(epoch)
        evaluation.set_epoch(epoch)
        assert torch.equal(masks(words, list(evaluation)), before)
        in_epochs.append(masks(words, list(training)))
    assert not torch.equal(in_epochs[0], in_epochs[1])
    assert not torch.equal(in_epochs[0], before)


@pytest.mark.parametrize("batch_size", [3, 16])
def test_workers_draw_the_same_masks(words, batch_size):
    tokens = stream_of(np.random.default_rng(0).integers(5, len(words), 5000))
    blocks = Blocks(tokens, BlockSpec(LENGTH, LENGTH), None)
    collator = masked_lm.collator(DATA, words, None, 1)
    found = []
    for workers in (0, 2):
        loader = DataLoader(blocks, batch_size, num_workers=workers, collate_fn=collator)
        batches = list(loader)
        found.append({key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})
    whole = collator(list(blocks))
    for key in whole:
        assert torch.equal(found[0][key], whole[key])
        assert torch.equal(found[1][key], whole[key])


@pytest.mark.parametrize("missing", ["mask_token", "cls_token", "sep_token"])
def test_a_tokenizer_that_cannot_mask_is_refused(words, missing):
    names = {name: getattr(words, name) for name in ("mask_token", "cls_token", "sep_token")}
    with pytest.raises(UserError) as caught:
        masked_lm.collator(DATA, SimpleNamespace(**{**names, missing: None}), None, 1)
    assert f"no {missing} " in caught.value.message
    assert caught.value.hint


def test_masked_metrics():
    sums = np.array([[30.0, 15.0], [2.0, 1.0]])
    found = masked_lm.metrics(sums, stream_of(np.zeros(100), num_bytes=400))
    assert found == {"loss": 2.0, "perplexity": pytest.approx(math.exp(2))}
