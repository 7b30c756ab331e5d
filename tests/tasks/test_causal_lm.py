"""Causal language models: the next token everywhere, documents apart, text that is measured once a token."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from token_windows import stream_of, window
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.data.text.pack import EVALUATION, Blocks, BlockSpec, TokenStream
from llmkit.errors import UserError
from llmkit.recipe.data_tables import CausalData
from llmkit.tasks import causal_lm

CAUSAL = CausalData(path="x")


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
    assert "data.stride = 5 exceeds a window of 4 tokens" in refused.value.message


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
    assert "MambaForCausalLM lets a document see the earlier ones in its block" in refused.value.message


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
