"""Machines that begin and end a run together: each waits as long as the others live, and says for whom."""

import re
import threading
import time

import pytest

from llmkit import machines
from llmkit.errors import RunError, UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"BEAT": 0.02, "SILENCE": 0.4, "ARRIVAL": 0.8, "FAREWELL": 0.6, "FIRST_LINE": 0.1}.items():
        monkeypatch.setattr(machines, name, seconds)


def take_part(run, number, act, results):
    """One of two machines, in a thread: its exit code, or the mistake that ended it."""
    try:
        board = machines.Folder(run, first=number == 0)
        with machines.joined(board, number, 2) as member:
            results[number] = member.leave(act(member))
    except BaseException as problem:
        results[number] = problem


def both(run, first, second):
    results = {}
    threads = [threading.Thread(target=take_part, args=(run, *each, results)) for each in ((0, first), (1, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results[0], results[1]


def meet(code):
    def act(member):
        member.tell(directory="run", stage="preparing data")
        if member.number:
            member.wait_for(0, lambda sign: "directory" in sign)
        member.meet()
        time.sleep(0.1)  # for training
        return code

    return act


@pytest.mark.parametrize(
    ("codes", "agreed"), [((0, 0), (0, 0)), ((75, 0), (75, 75)), ((1, 75), (75, 1)), ((0, 1), (0, 1)), ((1, 0), (1, 1))]
)
def test_exit_codes_agree(codes, agreed, tmp_path):
    assert both(tmp_path / "run", *map(meet, codes)) == agreed
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_the_first_ends_the_second_with_its_code_and_reason(tmp_path):
    def mistaken(member):
        raise UserError("the recipe is wrong")

    mine, others = both(tmp_path / "run", mistaken, meet(0))
    assert str(mine) == "error: the recipe is wrong"
    assert re.fullmatch(r"machine 0 \(.+\) has ended with exit code 2: the recipe is wrong", others.message)
    assert others.code == 2


def test_a_signal_to_the_second_while_it_prepares_ends_the_first(tmp_path):
    def stopped(member):
        raise SystemExit(75)

    mine, others = both(tmp_path / "run", meet(0), stopped)
    assert mine.code == 75
    assert isinstance(others, SystemExit)


def test_a_machine_waits_as_long_as_the_other_lives_and_says_so(tmp_path, capsys):
    def slow(member):
        time.sleep(3 * machines.SILENCE)
        return meet(0)(member)

    assert both(tmp_path / "run", slow, meet(0)) == (0, 0)
    assert re.search(r"waiting  for machine 0 \(.+\): starting \(0 min\)\n", capsys.readouterr().err)


def second(run):
    results = {}
    take_part(run, 1, meet(0), results)
    return results[1]


def test_a_folder_that_is_not_there(tmp_path):
    begun = time.monotonic()
    problem = second(tmp_path / "nowhere/run")
    assert time.monotonic() - begun < 1.9 * machines.SILENCE  # it does not wait again to say farewell
    assert "has not made" in problem.message
    assert "on storage that all machines share" in problem.hint


def test_signs_of_a_run_that_was_killed_long_ago_are_not_believed(tmp_path):
    machines.Folder(tmp_path / "run", first=True).write(0, {"stage": "training", "host": "gpu7", "directory": "run"})
    problem = second(tmp_path / "run")
    assert "has not given a sign in" in problem.message


def test_a_machine_that_falls_silent_is_named_with_its_stage(tmp_path):
    board = machines.Folder(tmp_path / "run", first=True)
    results = {}
    thread = threading.Thread(target=take_part, args=(tmp_path / "run", 1, meet(0), results))
    thread.start()
    for beat in range(20):
        board.write(0, {"stage": "preparing data", "host": "gpu7", "beat": beat})
        time.sleep(0.02)
    thread.join(20)
    assert isinstance(results[1], RunError)
    assert results[1].message.startswith("machine 0 (gpu7) has given no sign for 0 seconds; it was preparing data")


def test_a_machine_that_never_comes_is_named_by_the_first(tmp_path):
    results = {}
    take_part(tmp_path / "run", 0, meet(0), results)
    assert "machine 1 has not arrived" in results[0].message
