"""Windows become what a model learns from: shifted labels, and masks that hang on nothing but their place."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.data.text.boundaries import vocabulary, word_starts
from llmkit.data.text.documents import Documents
from llmkit.data.text.pack import EVALUATION, Blocks, BlockSpec, TokenStream, Window
from llmkit.errors import UserError
from llmkit.models import tokenizer
from llmkit.recipe.data_tables import CausalData, MaskedData
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.tasks import causal_lm, masked_lm

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of DataLoader's workers, Python 3.12 on
DATA = MaskedData(path="x")
CAUSAL = CausalData(path="x")
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
    return [window(row, index, epoch) for index, row in enumerate(ids)]


def window(ids, index=0, epoch=0, starts=()) -> Window:
    return Window(np.asarray(ids, np.int64), np.array(starts, np.int64), index, epoch)


def stream_of(*documents, num_bytes=1) -> TokenStream:
    """Documents of token ids, each with the separator that ends it."""
    lengths = [len(document) for document in documents]
    return TokenStream(np.concatenate(documents).astype(np.uint16), np.cumsum(lengths), num_bytes)


def collate(words, found, seed=1, data=DATA):
    return masked_lm.collator(data, words, None, seed)(found)


# --- causal -----------------------------------------------------------------------------------------------------------


def test_causal_labels_are_the_next_tokens():
    cut = causal_lm.block_spec(CAUSAL, 4)
    assert cut == BlockSpec(5, 4)
    batch = causal_lm.collator(CAUSAL, None, None, 1)(list(Blocks(stream_of(np.arange(10, 19)), cut, None)))
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert batch["labels"].tolist() == [[11, 12, 13, 14], [15, 16, 17, 18]]
    assert set(batch) == {"input_ids", "labels"}
    assert all(value.dtype == torch.int64 and value.is_contiguous() for value in batch.values())


SIZES = [*range(2, 30), 64, 65, 66, 129]


@pytest.mark.parametrize(("size", "stride"), [(4, None), (4, 4), (4, 1), (4, 3), (8, 5), (64, 16), (64, 63)])
def test_measured_text_is_predicted_once_each_token_but_the_first(size, stride):
    """Whatever is left for the last window; and each token behind as many others as the stride allows."""
    data = CausalData(path="x", block_size=size, stride=stride)
    collator = causal_lm.collator(data, None, AutoConfig.for_model("gpt2", n_positions=64), 1)
    for length in SIZES:
        tokens = stream_of(np.arange(1000, 1000 + length))
        found = causal_lm.evaluation_windows(tokens, data, causal_lm.block_spec(data, size), None, None)
        assert found.tail == 0
        assert found.tokens.ids.tolist() == tokens.ids[1:].tolist()  # what is predicted
        batch = collator(list(found))
        ids, labels = batch["input_ids"], batch["labels"]
        labelled = labels != -100
        assert labels[labelled].tolist() == tokens.ids[1:].tolist()
        assert (labels - ids)[labelled].eq(1).all()
        assert len(found) == 1 + math.ceil(max(0, length - 1 - size) / (stride or size))
        behind = torch.where(labelled, torch.arange(labels.shape[1]), size)[1:]
        assert (behind >= size - (stride or size)).all()  # every window but the first


def test_a_limit_leaves_out_the_windows_behind_it():
    data = CausalData(path="x", block_size=4, stride=2)
    found = causal_lm.evaluation_windows(stream_of(np.arange(12)), data, causal_lm.block_spec(data, 4), 2, None)
    assert [w.ids.tolist() for w in found] == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    assert [w.epoch for w in found] == [EVALUATION] * 2
    assert found.tail == 5
    with pytest.raises(IndexError):
        found[2]
    assert (
        len(causal_lm.evaluation_windows(stream_of([7]), data, causal_lm.block_spec(data, 4), None, None)) == 0
    )  # nothing to predict


def test_measured_windows_know_where_documents_begin():
    tokens = stream_of([1, 1, 9], [2, 9], [3, 3, 3, 9], [4, 9])
    data = CausalData(path="x", block_size=4)
    found = causal_lm.evaluation_windows(tokens, data, causal_lm.block_spec(data, 4), None, None)
    assert [w.ids.tolist() for w in found] == [[1, 1, 9, 2, 9], [9, 3, 3, 3, 9], [9, 4, 9]]
    assert [w.starts.tolist() for w in found] == [[0, 3], [1], [1]]


def test_a_stride_beyond_the_window_is_refused():
    with pytest.raises(UserError) as refused:
        causal_lm.block_spec(CausalData(path="x", stride=5), 4)
    assert "data.stride is 5, and a window has 4 tokens" in refused.value.message


ISOLATED = CausalData(path="x", pack="isolated")


def words_with(*between):
    """A tokenizer as far as documents are kept apart by it: what stands between two of them."""

    class Words(SimpleNamespace):
        def __call__(self, text):
            return {"input_ids": list(between[1:])}

    return Words(eos_token_id=between[0], bos_token_id=between[-1])


def test_documents_that_are_kept_apart_begin_anew_and_predict_nothing_of_the_next():
    batch = causal_lm.collator(ISOLATED, words_with(9), None, 1)(
        [window([1, 1, 9, 2, 9, 3, 3], 0, 0, [0, 3, 5]), window([3, 3, 9, 4, 4, 9, 5], 1, 0, [3, 6])]
    )
    assert batch["input_ids"].tolist() == [[1, 1, 9, 2, 9, 3], [3, 3, 9, 4, 4, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 0, 1, 2]]
    assert batch["labels"].tolist() == [[1, 9, -100, 9, -100, 3], [3, 9, -100, 4, 9, -100]]


def test_the_token_that_begins_a_text_belongs_to_the_document_behind_it():
    """Of a separator of two tokens, Llama's: the begin sees its own document, which it helps to predict."""
    collator = causal_lm.collator(ISOLATED, words_with(8, 9), None, 1)
    batch = collator([window([1, 8, 9, 2, 8, 9, 3, 3], 0, 0, [0, 3, 6]), window([3, 3, 8, 9, 4, 4, 8, 9], 1, 0, [4])])
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[8, -100, 2, 8, -100, 3, 3], [3, 8, -100, 4, 4, 8, -100]]
    first = collator([window([2, 2, 8, 9, 3], 1, 0, [0, 4])])  # its begin is the last token of the window before
    assert first["position_ids"].tolist() == [[0, 1, 2, 0]]
    assert first["labels"].tolist() == [[2, 8, -100, 3]]


ARCHITECTURES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64},
    "qwen3": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
    },
    "mamba": {"num_hidden_layers": 2, "hidden_size": 32, "state_size": 4},
}


def tiny(model_type):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=60, use_cache=False, **ARCHITECTURES[model_type])
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("between", [(8,), (8, 9)])
def test_a_document_in_a_block_gets_the_logits_that_it_gets_alone(model_type, between):
    model = tiny(model_type)
    causal_lm.prepare_model(model, ISOLATED)
    draw = np.random.default_rng(0)
    texts = [draw.integers(10, 60, length) for length in (7, 1, 12, 5)]
    tokens = stream_of(*(np.append(text, between) for text in texts))
    starts = [0, *tokens.ends[:-1]]
    windows = [window(tokens.ids, 0, 0, starts), window(tokens.ids[:11], 0, 0, [s for s in starts if s < 11])]
    batch = causal_lm.collator(ISOLATED, words_with(*between), None, 1)(windows)
    begins = list(between[1:])  # what stands before the text of every document but the first of the row
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        place = 0
        for number, text in enumerate(texts):
            alone = torch.tensor([*(begins if number else []), *text, between[0]])
            expected = model(input_ids=alone[None]).logits[0]
            for b in range(2):
                here = logits[b, place : place + len(alone)][: max(0, len(windows[b].ids) - 1 - place)]
                assert torch.allclose(here, expected[: len(here)], atol=1e-5)
                labels = batch["labels"][b, place : place + len(here)]
                assert labels[: len(alone) - 1].tolist() == alone[1:][: len(here)].tolist()
            place += len(alone)
        running = model(input_ids=batch["input_ids"]).logits
    assert not torch.allclose(running[0, -1], logits[0, -1], atol=1e-3)


def test_a_model_that_lets_documents_mix_is_refused():
    model = tiny("mamba")
    causal_lm.prepare_model(model, CAUSAL)
    with pytest.raises(UserError) as refused:
        causal_lm.prepare_model(model, ISOLATED)
    assert "MambaForCausalLM lets a document see those before it" in refused.value.message


def test_a_causal_model_learns_where_a_text_ends():
    class Words(SimpleNamespace):
        def __call__(self, text):
            return {"input_ids": self.first}

    assert causal_lm.document_separator(Words(eos_token_id=7, bos_token_id=7, first=[])) == [7]  # GPT-2's
    assert causal_lm.document_separator(Words(eos_token_id=2, bos_token_id=1, first=[])) == [2]
    assert causal_lm.document_separator(Words(eos_token_id=2, bos_token_id=1, first=[1])) == [2, 1]  # Llama's
    with pytest.raises(UserError) as caught:
        causal_lm.document_separator(SimpleNamespace(eos_token_id=None))
    assert "no end-of-text token" in caught.value.message
    assert "tokenizer.type" in caught.value.hint


def test_causal_metrics():
    tokens = stream_of(np.zeros(100), num_bytes=400)
    sums = np.array([[30.0, 15.0], [2.0, 1.0]])
    found = causal_lm.metrics(sums, tokens)
    assert found == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2)),
        "bits_per_byte": pytest.approx(2 / math.log(2) * 100 / 400),
    }
    assert set(causal_lm.metrics(sums, TokenStream(tokens.ids, tokens.ends, 0))) == {
        "loss",
        "perplexity",
    }  # a stream's bytes: unknown


def test_the_bits_of_a_text_are_those_of_its_tokens():
    """Measured whole, all tokens but the first are predicted, and their losses are added up."""
    data = CausalData(path="x", block_size=4)
    tokens = stream_of(np.arange(11), np.arange(7), num_bytes=40)
    found = causal_lm.evaluation_windows(tokens, data, causal_lm.block_spec(data, 4), None, None)
    counts = [4.0, 4, 4, 4, 1]
    sums = np.array([[3 * count + 1, count] for count in counts])
    bits = causal_lm.metrics(sums, found.tokens)["bits_per_byte"]
    assert bits == pytest.approx(sums[:, 0].sum() / math.log(2) / 40)


# --- masked -----------------------------------------------------------------------------------------------------------


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
