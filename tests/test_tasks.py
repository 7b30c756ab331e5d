"""Windows become what a model learns from: shifted labels, and masks that hang on nothing but their place."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from llmkit import tasks, tokenizer
from llmkit.data.pack import EVALUATION, Blocks, TokenRow, Window
from llmkit.data.read import Documents
from llmkit.errors import UserError
from llmkit.recipe.schema import Data, MaskedData, Model, Tokenizer
from llmkit.tasks import causal_lm, masked_lm

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of DataLoader's workers, Python 3.12 on
DATA = MaskedData(path="x")
LENGTH = 126  # between [CLS] and [SEP]; 15 % of it are 18.9, rounded 19


@pytest.fixture(scope="module")
def words():
    """A masked language model's tokenizer, with some hundred ordinary tokens."""
    texts = ["".join(chr(n) for n in range(0x4E00, 0x4E00 + 300))]
    table = Tokenizer(type="characters")
    return tokenizer.load(table, Model(config={}), "masked-lm", Documents(lambda: iter(texts), "hanzi", "`x`"), 128)


def windows(words, number, length=LENGTH, epoch=0, with_special=False):
    draw = np.random.default_rng(0)
    first = 0 if with_special else 5
    ids = draw.integers(first, len(words), (number, length))
    return [Window(row, index, epoch) for index, row in enumerate(ids)]


def collate(words, found, seed=1, data=DATA):
    return masked_lm.collator(data, words, seed)(found)


def test_each_task_is_a_file_of_the_same_shape():
    assert tasks.module("causal-lm") is causal_lm
    assert tasks.module("masked-lm") is masked_lm
    for task in (causal_lm, masked_lm):
        assert all(hasattr(task, name) for name in ("MODEL_CLASS", "separator", "window", "collator", "metrics"))


# --- causal -----------------------------------------------------------------------------------------------------------


def test_causal_labels_are_the_next_tokens():
    assert causal_lm.window(4) == (5, 4)
    blocks = Blocks(TokenRow(np.arange(10, 19, dtype=np.uint16), 1, 1), 5, 4, None)
    batch = causal_lm.collator(Data(path="x"), None, 1)(list(blocks))
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert batch["labels"].tolist() == [[11, 12, 13, 14], [15, 16, 17, 18]]
    assert set(batch) == {"input_ids", "labels"}
    assert all(value.dtype == torch.int64 and value.is_contiguous() for value in batch.values())


def test_a_causal_model_learns_where_a_text_ends():
    class Words(SimpleNamespace):
        def __call__(self, text):
            return {"input_ids": self.first}

    assert causal_lm.separator(Words(eos_token_id=7, bos_token_id=7, first=[])) == [7]  # GPT-2's
    assert causal_lm.separator(Words(eos_token_id=2, bos_token_id=1, first=[])) == [2]
    assert causal_lm.separator(Words(eos_token_id=2, bos_token_id=1, first=[1])) == [2, 1]  # Llama's
    with pytest.raises(UserError) as caught:
        causal_lm.separator(SimpleNamespace(eos_token_id=None))
    assert "no end-of-text token" in caught.value.message
    assert "tokenizer.type" in caught.value.hint


def test_causal_metrics():
    row = TokenRow(np.zeros(100, np.uint16), 1, 400)
    sums = np.array([[30.0, 15.0], [2.0, 1.0]])
    found = causal_lm.metrics(sums, row)
    assert found == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2)),
        "bits_per_byte": pytest.approx(2 / math.log(2) * 100 / 400),
    }
    assert set(causal_lm.metrics(sums, TokenRow(row.ids, 0, 0))) == {"loss", "perplexity"}  # a stream's bytes: unknown


# --- masked -----------------------------------------------------------------------------------------------------------


def test_a_masked_block_is_cls_tokens_sep(words):
    assert masked_lm.window(128) == (126, 126)
    assert masked_lm.separator(words) == []
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
    found = [Window(row, index, 0) for index, row in enumerate(ids)]
    batch = collate(words, found, data=MaskedData(path="x", mask_replace_prob=0.0, random_replace_prob=1.0))
    labels = batch["labels"].numpy()[:, 1:-1]
    inputs = batch["input_ids"].numpy()[:, 1:-1]
    assert (labels[:, ::2] == -100).all()
    assert (inputs[:, ::2] == ids[:, ::2]).all()
    assert not np.isin(inputs[:, 1::2], special).any()
    assert ((labels != -100).sum(axis=1) == round(0.15 * LENGTH / 2)).all()
    nothing = collate(words, [Window(np.ones(LENGTH, np.int64), 0, 0)])  # nothing but [UNK]
    assert (nothing["labels"] == -100).all()


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
                mask = masks(words, [Window(ids, index, epoch)], seed=seed)
                seen[mask.numpy().tobytes()] = (seed, epoch, index)
    assert len(seen) == 64


def test_evaluation_masks_are_the_same_every_time(words):
    row = TokenRow(np.random.default_rng(0).integers(5, len(words), 5000).astype(np.uint16), 1, 1)
    evaluation = Blocks(row, LENGTH, LENGTH, None, evaluation=True)
    training = Blocks(row, LENGTH, LENGTH, None)
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
    row = TokenRow(np.random.default_rng(0).integers(5, len(words), 5000).astype(np.uint16), 1, 1)
    blocks = Blocks(row, LENGTH, LENGTH, None)
    collator = masked_lm.collator(DATA, words, 1)
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
        masked_lm.collator(DATA, SimpleNamespace(**{**names, missing: None}), 1)
    assert f"no {missing} " in caught.value.message
    assert caught.value.hint


def test_masked_metrics():
    sums = np.array([[30.0, 15.0], [2.0, 1.0]])
    found = masked_lm.metrics(sums, TokenRow(np.zeros(100, np.uint16), 1, 400))
    assert found == {"loss": 2.0, "perplexity": pytest.approx(math.exp(2))}
