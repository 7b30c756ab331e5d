"""Which jobs run together, and what happens to those that nobody waits for."""

import asyncio
import threading

import pytest

from llmkit.errors import UserError
from llmkit.serve.worker import Busy, Job, Worker, put


def run(jobs, act=None, rows=4, tokens=100, waiting=20):
    """Let jobs run; give the batches and the events. `jobs` are (key, rows, tokens)."""
    batches, first = [], threading.Event()

    def batch(taken):
        first.wait(5)
        batches.append([job.index for job in taken])
        if act is not None:
            act(taken)
        put([(job, None) for job in taken])

    async def all_of_them():
        worker = Worker(batch, rows, tokens, waiting)
        queue = asyncio.Queue()
        made = [Job(key, count, size, queue, number) for number, (key, count, size) in enumerate(jobs)]
        try:
            worker.submit(made)
            first.set()
            return [await asyncio.wait_for(queue.get(), 5) for _ in made]
        finally:
            worker.close()

    return batches, asyncio.run(all_of_them())


def test_jobs_of_a_key_run_together_and_the_oldest_comes_first():
    batches, _ = run([("a", 1, 5), ("b", 1, 5), ("a", 1, 5), ("b", 1, 5), ("c", 1, 5)])
    assert batches == [[0, 2], [1, 3], [4]]


def test_a_batch_has_as_many_rows_and_tokens_as_may_be():
    assert run([("a", 1, 5)] * 6)[0] == [[0, 1, 2, 3], [4, 5]]
    assert run([("a", 1, 30), ("a", 1, 60), ("a", 1, 30), ("a", 1, 30)])[0] == [[0, 2, 3], [1]]
    assert run([("a", 9, 500), ("a", 1, 1)])[0] == [[0], [1]]  # what is larger than a batch runs alone


def test_a_mistake_and_a_failure_reach_those_who_wait_and_the_thread_goes_on(capsys):
    mistakes = {0: UserError("wrong"), 1: ValueError("broken")}

    def act(taken):
        if taken[0].index in mistakes:
            raise mistakes[taken[0].index]

    _, events = run([("a", 1, 5), ("b", 1, 5), ("c", 1, 5)], act)
    assert events == [(0, mistakes[0]), (1, mistakes[1]), (2, None)]
    assert "broken" in capsys.readouterr().err


def test_what_is_gone_does_not_run_and_makes_room():
    batches, hold = [], threading.Event()

    def batch(taken):
        batches.append([job.index for job in taken])
        hold.wait(5)
        put([(job, None) for job in taken])

    async def scene():
        queue = asyncio.Queue()
        worker = Worker(batch, 4, 100, 2)
        jobs = [Job(number, 1, 1, queue, number) for number in range(5)]
        worker.submit(jobs[:1])
        while not worker.running:
            await asyncio.sleep(0.01)
        worker.submit(jobs[1:3])
        with pytest.raises(Busy):
            worker.submit(jobs[3:4])
        jobs[1].gone = True
        worker.submit(jobs[3:4])
        assert worker.waiting == 2
        hold.set()
        for _ in range(3):
            await asyncio.wait_for(queue.get(), 5)
        worker.close()
        with pytest.raises(Busy):
            worker.submit(jobs[4:])

    asyncio.run(scene())
    assert batches == [[0], [2], [3]]
