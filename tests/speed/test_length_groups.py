"""A batch in microbatches of like length: every row once, little padding, the gradient of the whole."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, set_seed

from llmkit.speed.length_groups import cuts, launch_cost, microbatches


def batch_of(lengths, width=None, **more):
    width = width or max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(1, mask.numel() + 1).view(mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "index": torch.arange(len(lengths)), **more}


def cost(lengths, ends, launch):
    bounds = itertools.pairwise([0, *ends])
    return sum(launch + (end - begin) * max(lengths[begin:end]) for begin, end in bounds)


@pytest.mark.parametrize("launch", [0.0, 3.0, 16.0, 1000.0])
def test_the_cuts_are_the_cheapest_of_all(launch):
    draw = np.random.default_rng(0)
    for _ in range(10):
        lengths = np.sort(draw.integers(1, 40, size=8))
        every = [[*inner, 8] for count in range(8) for inner in itertools.combinations(range(1, 8), count)]
        best = min(cost(lengths, ends, launch) for ends in every)
        assert cost(lengths, cuts(lengths, launch), launch) == best


def test_every_row_is_in_one_microbatch_and_none_is_longer_than_its_longest():
    lengths = [3, 30, 4, 29, 5, 3]
    whole = batch_of(lengths, labels=torch.arange(6), task="a")
    found = microbatches(whole, 8.0)
    assert [part["input_ids"].shape for part in found] == [(4, 5), (2, 30)]
    rows = torch.cat([part["index"] for part in found]).tolist()
    assert sorted(rows) == list(range(6))
    for part in found:
        assert part["task"] == "a"
        assert part["labels"].equal(part["index"])
        for i, row in enumerate(part["index"].tolist()):
            ids = part["input_ids"][i]
            assert ids[ids > 0].equal(whole["input_ids"][row, : lengths[row]])
            assert int(part["attention_mask"][i].sum()) == lengths[row]


def test_a_batch_that_is_not_worth_cutting_is_left_alone():
    whole = batch_of([7, 7, 8])
    assert microbatches(whole, 16.0) == [whole]
    left = batch_of([2, 30])
    left["attention_mask"] = left["attention_mask"].flip(1)  # padded on the left
    assert microbatches(left, 1.0) == [left]


def test_labels_of_tokens_are_cut_and_labels_of_classes_are_not():
    tokens = torch.full((4, 20), -100)
    tokens[:2, :2], tokens[2:] = 1, 2
    short, long = microbatches(batch_of([2, 2, 20, 20], labels=tokens), 4.0)
    assert (short["labels"].shape, long["labels"].shape) == ((2, 2), (2, 20))
    classes = torch.ones((4, 20))  # as many classes as tokens, by chance
    short, long = microbatches(batch_of([2, 2, 20, 20], labels=classes), 4.0)
    assert short["labels"].shape == long["labels"].shape == (2, 20)


def test_what_a_decoder_writes_is_cut_by_its_own_length():
    labels = torch.full((4, 20), -100)
    for row, length in enumerate((9, 4, 20, 20)):
        labels[row, :length] = row
    whole = batch_of([2, 3, 20, 19], labels=labels, decoder_input_ids=labels.clamp(min=0))
    short, long = microbatches(whole, 4.0, decodes=True)
    assert (short["input_ids"].shape, short["labels"].shape) == ((2, 3), (2, 9))
    assert short["decoder_input_ids"].shape == (2, 9)
    assert (long["input_ids"].shape, long["labels"].shape) == ((2, 20), (2, 20))


def test_of_choices_the_longest_counts():
    mask = torch.zeros(3, 2, 12, dtype=torch.long)
    for row, (first, second) in enumerate(((2, 3), (3, 2), (1, 12))):
        mask[row, 0, :first] = mask[row, 1, :second] = 1
    found = microbatches({"input_ids": mask.clone(), "attention_mask": mask, "labels": torch.arange(3)}, 4.0)
    assert [part["input_ids"].shape for part in found] == [(2, 2, 3), (1, 2, 12)]
    assert [part["labels"].tolist() for part in found] == [[0, 1], [2]]


def test_the_gradient_is_that_of_the_whole_batch():
    set_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    whole = batch_of([3, 20, 4, 19, 5, 3], labels=torch.tensor([0, 1, 1, 0, 1, 0]))

    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            read = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            loss = torch.nn.functional.cross_entropy(model(**read).logits, batch["labels"], reduction="sum")
            (loss / 6).backward()
        return [each.grad.clone() for each in model.parameters()]

    parts = microbatches(whole, 8.0)
    assert len(parts) > 1
    torch.testing.assert_close(gradients(parts), gradients([whole]), rtol=1e-4, atol=1e-6)


def test_a_launch_costs_more_tokens_of_a_smaller_model():
    assert launch_cost(1e6) > launch_cost(1e8) >= launch_cost(1e12) > 0
