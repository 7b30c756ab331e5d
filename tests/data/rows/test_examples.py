"""Rows as examples: sequences of every length, batches with little padding, the same order on every resume."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from llmkit.data.rows.batches import Examples, GroupedByLength, collator, models_own
from llmkit.data.rows.examples import CHUNK, Encoded, chunks, column_texts, key_of, places, refuse
from llmkit.data.rows.ragged import Ragged
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError


class Words:
    """What the collator asks of a tokenizer."""

    pad_token_id = 9
    pad_token_type_id = 3


def rows(number):
    return Rows(
        lambda: ((f"`x.csv`, line {n + 2}", {"text": f"t{n}"}) for n in range(number)), ("text",), {}, "", "`x.csv`"
    )


def encoded(lengths, labels=None):
    done = Encoded(rows(len(lengths)))
    for number, length in enumerate(lengths):
        done.add("input_ids", [number + 10] * length)
        done.add("token_type_ids", [1] * length)
        done.row.append(number)
    done.labels = None if labels is None else np.array(labels)
    return done.finish()


def drawn(number, seed=0):
    return np.random.default_rng(seed).integers(3, 60, number).tolist()


@pytest.mark.parametrize("number", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 7])
def test_ragged_gives_back_what_it_was_given(number):
    sequences = [list(range(i % 5)) for i in range(number)]
    ragged = Ragged()
    for sequence in sequences:
        ragged.append(sequence)
    ragged.finish()
    assert len(ragged) == number
    assert [ragged[i].tolist() for i in range(number)] == sequences
    assert ragged.lengths.tolist() == [len(sequence) for sequence in sequences]


def test_an_example_holds_its_inputs_its_label_and_its_number():
    examples = Examples(encoded([2, 3], labels=[1, 0]))
    assert len(examples) == 2
    assert examples[1]["input_ids"].tolist() == [11, 11, 11]
    assert (examples[1]["labels"], examples[1]["index"]) == (0, 1)
    assert "labels" not in Examples(encoded([2]))[0]


def test_for_evaluation_the_short_ones_come_first_and_keep_their_numbers():
    examples = Examples(encoded([5, 2, 5, 1], labels=[0, 1, 2, 3]), by_length=True)
    assert [examples[i]["index"] for i in range(4)] == [3, 1, 0, 2]
    assert [examples[i]["labels"] for i in range(4)] == [3, 1, 0, 2]
    assert [len(examples[i]["input_ids"]) for i in range(4)] == [1, 2, 5, 5]


def test_a_batch_is_padded_to_its_longest():
    examples = Examples(encoded([2, 3], labels=[1, 0]))
    batch = collator(Words())([examples[0], examples[1]])
    assert batch["input_ids"].tolist() == [[10, 10, 9], [11, 11, 11]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 3], [1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["index"].tolist() == [0, 1]
    assert all(batch[name].dtype == torch.int64 for name in batch)
    assert set(models_own(batch)) == {"input_ids", "token_type_ids", "attention_mask"}
    assert collator(Words(), multiple=8)([examples[1]])["input_ids"].shape == (1, 8)
    assert collator(Words(), multiple=8)([examples[1]])["attention_mask"].sum() == 3


def test_labels_keep_their_kind():
    values = Examples(encoded([2, 2], labels=np.array([0.5, 2], np.float32)))
    assert collator(Words())(list(map(values.__getitem__, (0, 1))))["labels"].tolist() == [0.5, 2]
    many = Examples(encoded([2, 2], labels=np.array([[0, 1], [1, 1]], np.float32)))
    batch = collator(Words())(list(map(many.__getitem__, (0, 1))))
    assert batch["labels"].tolist() == [[0, 1], [1, 1]]
    assert batch["labels"].dtype == torch.float32


@pytest.mark.parametrize(("number", "batch"), [(1, 4), (3, 4), (64, 8), (1000, 16), (1003, 16)])
def test_each_epoch_has_every_example_once_in_another_order(number, batch):
    examples = Examples(encoded(drawn(number)))
    sampler = GroupedByLength(examples, batch, seed=1)
    assert len(sampler) == number
    orders = []
    for epoch in range(3):
        examples.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(number))
    if number > 4:
        assert orders[0] != orders[1] != orders[2] != orders[0]
    examples.set_epoch(1)
    assert list(GroupedByLength(examples, batch, seed=1)) == orders[1]
    assert number < 5 or list(GroupedByLength(examples, batch, seed=2)) != orders[1]


def padding(examples, sampler, batch):
    loader = DataLoader(examples, batch_size=batch, sampler=sampler, collate_fn=collator(Words()))
    return 1 - sum(int(b["attention_mask"].sum()) for b in loader) / sum(b["attention_mask"].numel() for b in loader)


def test_like_lengths_together_need_less_padding():
    examples = Examples(encoded(drawn(1000)))
    mixed = padding(examples, list(np.random.default_rng(0).permutation(1000)), 16)
    assert mixed > 0.4
    assert padding(examples, GroupedByLength(examples, 16, seed=1), 16) < 0.15
    assert padding(examples, GroupedByLength(examples, 4 * 16, seed=1), 16) < 0.15  # a batch of four micro-batches
    assert padding(Examples(encoded(drawn(1000)), by_length=True), None, 16) < 0.02


def test_the_order_of_batches_does_not_hang_on_length():
    """Else an epoch would go from long to short: the loss would swing with it."""
    examples = Examples(encoded(drawn(1600)))
    order = list(GroupedByLength(examples, 16, seed=1))
    means = examples.lengths[order].reshape(100, 16).mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(100))[0, 1]) < 0.3


def test_chunks_hold_everything():
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunks([], 2)) == []


def test_keys_are_of_the_texts_and_their_bounds():
    assert key_of("a", "b") == key_of("a", "b")
    assert len({key_of("a", "b"), key_of("ab"), key_of("b", "a"), key_of("a"), key_of("a", "")}) == 5


def test_places_stand_in_the_order_asked_for():
    assert places(rows(9), [7, 0]) == ["`x.csv`, line 9", "`x.csv`, line 2"]


def test_mistakes_are_named_by_their_rows_five_at_most():
    refuse(rows(9), {}, "are wrong", "mend them")
    with pytest.raises(UserError) as caught:
        refuse(rows(9), {number: f"mistake {number}" for number in (8, 1, 2, 3, 4, 5, 6)}, "are wrong", "mend them")
    assert caught.value.message == "`x.csv`: 7 rows are wrong"
    assert caught.value.hint == "mend them"
    assert caught.value.details[0] == "`x.csv`, line 3: mistake 1"
    assert caught.value.details[-2:] == ("`x.csv`, line 7: mistake 5", "and 2 more")
    with pytest.raises(UserError, match="1 row is wrong"):
        refuse(rows(9), {0: "mistake"}, "is wrong", "mend it")


def test_texts_of_a_column_are_checked_and_the_row_is_named():
    rows = [("`a`, line 1", {"text": "é"}), ("`a`, line 2", {"text": None})]
    assert column_texts(rows, "text") == ["é", ""]
    for row, message in (
        ({"id": 1, "txt": "two"}, "`a`, line 3: no `text`; the row has id, txt"),
        ({"text": 2}, "`a`, line 3: column `text` holds int, not text"),
        ({"text": "\ud83d"}, "`a`, line 3: `text` holds half a character (\\ud83d)"),
    ):
        with pytest.raises(UserError) as caught:
            column_texts([*rows, ("`a`, line 3", row)], "text")
        assert caught.value.message == message
