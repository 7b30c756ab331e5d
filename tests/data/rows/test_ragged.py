"""Numbers of rows: in memory while they are few, in a file behind that, and the same either way."""

import pickle

import numpy as np
import pytest

from llmkit.data.rows import ragged
from llmkit.data.rows.ragged import Column, Ragged
from llmkit.errors import UserError


@pytest.fixture(params=["memory", "file"])
def anywhere(request, monkeypatch, tmp_path):
    """Column by column, both in memory and in a file; the folder of that."""
    monkeypatch.setattr(ragged, "cache_dir", lambda: tmp_path / "cache")
    if request.param == "file":
        monkeypatch.setattr(ragged, "IN_MEMORY", 16)
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["i", "q", "Q"])
def test_a_column_gives_back_what_it_was_given(anywhere, kind):
    column = Column(kind)
    column.append(7)
    column.extend(range(20))
    column.extend(np.arange(5, dtype=np.int64))
    column += [3]
    expected = [7, *range(20), *range(5), 3]
    assert len(column) == len(expected)
    assert column == expected
    assert expected == column
    assert column != expected[1:]
    assert (column[0], column[-1], column[1:3]) == (7, 3, [0, 1])
    assert np.asarray(column).dtype == np.dtype(kind)
    assert list(pickle.loads(pickle.dumps(column))) == expected
    assert not list(anywhere.glob("*")), "the file has no name"


def test_keys_of_64_bits_are_kept(anywhere):
    keys = Column("Q")
    keys.extend([2**64 - 1, 0, 2**63])
    assert keys == [2**64 - 1, 0, 2**63]


def test_an_empty_column_and_one_that_ends_with_the_file(anywhere):
    assert Column() == []
    assert Column("i").values.tolist() == []
    column = Column()
    column.extend(range(3))  # 24 bytes
    assert column == [0, 1, 2]


def test_what_is_too_large_for_its_kind_is_refused(anywhere):
    with pytest.raises(OverflowError):
        Column("i").append(2**31)


def test_sequences_one_by_one_and_end_to_end_are_the_same(anywhere):
    sequences = [list(range(i % 5)) for i in range(40)]
    one_by_one, together = Ragged(), Ragged()
    for sequence in sequences:
        one_by_one.append(sequence)
    for begin in (0, 15):
        some = sequences[begin : begin + (15 if begin == 0 else 25)]
        together.extend(np.concatenate(some), np.array([len(each) for each in some]))
    for made in (one_by_one, together):
        made.finish()
        assert [made[i].tolist() for i in range(len(made))] == sequences
        assert made.lengths.tolist() == [len(each) for each in sequences]
        assert made.values.dtype == np.int32


def test_a_disk_that_is_full_is_named(anywhere, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file in the folder's place")
    monkeypatch.setattr(ragged, "IN_MEMORY", 0)
    with pytest.raises(UserError, match=r"cannot be written to .*cache") as caught:
        Column().append(1)
    assert "HF_HOME" in str(caught.value)
