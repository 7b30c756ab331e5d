"""The arithmetic of resuming: within an epoch, with another batch size, after an epoch that is over, in a stream."""

import pytest

from llmkit.training.position import Position


def at(epoch, samples, *, size=118, epoch_ended=False, seen=0):
    position = Position(size=size)
    position.load_state_dict(
        {"epoch": epoch, "samples": samples, "epoch_ended": epoch_ended, "samples_seen": seen or epoch * 118 + samples}
    )
    return position


def test_a_checkpoints_keys_are_what_they_were():
    assert list(Position().state_dict().items()) == [
        ("epoch", 0),
        ("samples", 0),
        ("epoch_ended", False),
        ("samples_seen", 0),
    ]
    before = at(2, 24, seen=260)
    after = Position(size=118)
    after.load_state_dict({"run": "abc", "step": 33, **before.state_dict()})
    assert after == before


def test_the_last_step_of_an_epoch_learns_from_what_is_left():
    position = Position(size=118)
    for _ in range(14):
        position.advance(8)
    assert (position.samples, position.at_end, position.epochs) == (112, False, 112 / 118)
    position.advance(8)
    assert (position.samples, position.samples_seen, position.at_end, position.epochs) == (118, 118, True, 1.0)
    position.start_epoch(1)
    position.advance(8)
    assert (position.epoch, position.samples, position.samples_seen) == (1, 8, 126)
    assert position.epochs == 1 + 8 / 118


def test_within_an_epoch_whole_steps_are_skipped():
    position = at(1, 32)
    assert position.skip(8) == 4
    assert position.offset == 0
    assert (position.steps_made(8, 15), position.steps_left(8)) == (19, 11)


def test_what_is_no_whole_number_of_steps_is_left_out_by_example():
    position = at(1, 32)
    assert position.skip(5) == 0
    assert position.offset == 32
    position.start_epoch(2)
    assert position.offset == 0


def test_with_another_batch_size_the_steps_that_are_left_follow_from_the_examples():
    """Of 3 epochs of 118 examples, 19 steps of 8 are made: one epoch and 32 examples."""
    position, step = at(1, 32), 19
    assert position.steps_made(8, 15) == step  # nothing has changed
    assert position.last_step(step, 3, 8, 15) == 45
    assert position.steps_made(16, 8) != step
    assert position.steps_left(16) == 6  # 86 examples
    assert position.last_step(step, 3, 16, 8) == step + 6 + 8
    assert position.last_step(step, 2.5, 16, 8) == step + 6 + 4  # half an epoch
    assert position.last_step(step, 3, 5, 24) == step + 18 + 24


def test_by_steps_as_many_epochs_are_begun_as_they_take():
    position = at(1, 32)
    assert position.num_epochs(0, 16, 8) == 2
    assert position.num_epochs(6, 16, 8) == 2  # the rest of this epoch
    assert position.num_epochs(7, 16, 8) == 3
    assert position.num_epochs(14, 16, 8) == 3
    assert position.num_epochs(15, 16, 8) == 4


def test_after_an_epoch_that_is_over_the_next_one_begins():
    position = at(1, 118, epoch_ended=True)
    assert (position.epoch, position.samples, position.samples_seen, position.at_end) == (2, 0, 236, False)
    assert position.skip(8) == 0
    assert (position.offset, position.steps_left(8), position.steps_made(8, 15)) == (0, 15, 30)
    assert position.epoch_ended  # nothing of the last one is due


@pytest.mark.parametrize("batch", [8, 59])
def test_of_an_epoch_whose_last_step_was_made_the_end_is_left(batch):
    position = at(1, 118)
    assert position.at_end
    assert (position.epoch, position.epoch_ended) == (1, False)
    assert position.skip(batch) == 0
    assert position.steps_left(batch) == 0


def test_data_that_has_become_less_ends_the_epoch():
    position = at(1, 100, size=90)
    assert position.at_end
    assert position.steps_left(8) == 0
    assert at(1, 100, size=90, epoch_ended=True).epoch == 2


def test_a_stream_has_no_end_and_is_read_again_up_to_its_position():
    position = at(0, 4000, size=None, epoch_ended=True)
    assert (position.epoch, position.samples, position.at_end) == (0, 4000, False)
    assert position.skip(8) == 0
    assert position.offset == 4000
    position.advance(8)
    assert (position.samples, position.samples_seen) == (4008, 4008)
