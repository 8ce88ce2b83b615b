"""The queue without threads: who leads, who joins, who waits, in which order, and what becomes of those who are interrupted.

Time is what the tests say it was. What callers see of it, with real threads and runs, is in `test_batching.py`.
"""

import threading

import numpy as np
import pytest

from restnet_runtime.batch_plan import BatchSettings
from restnet_runtime.batch_queue import SINGLE_EVERY, BatchQueue, Key, Request
from restnet_runtime.batch_trials import BatchTrials

INPUT = np.zeros((1, 1, 8, 8), np.float32)
LONG_MS = 20e3


def key(route: str = "large", limit_ms: float | None = None) -> Key:
    return route, limit_ms, (1, 8, 8), "<f4"


def queue_of(mode="on", wait_ms: float = 0.0, at_once: int = 1, max_batch: int = 8, room: int = 100) -> BatchQueue:
    return BatchQueue(BatchSettings(mode, wait_ms, max_batch), lambda: at_once, lambda _: 5.0, threading.Event, lambda _: room)


class Caller:
    """One request that has entered; `woken` is how often it was told something."""

    def __init__(self, queue: BatchQueue, route: str = "large", count: int = 1, attending: object = None, at_s: float = 0.0) -> None:
        self.woken = 0
        x = np.repeat(INPUT, count, axis=0)
        self.request = Request(x, key(route), at_s, self.wake, attending)
        self.queue = queue
        queue.enter(self.request, at_s)

    def wake(self) -> None:
        self.woken += 1

    @property
    def leads(self) -> bool:
        group = self.request.group
        return group is not None and group.requests[0] is self.request

    def answer(self, at_s: float = 1.0) -> list["Request"]:
        """Its group has run: everybody has an outcome and leaves. Who that was."""
        group = self.request.group
        assert group is not None
        assert group.requests[0] is self.request
        self.queue.start(group)
        group.run_ms = 1.0
        requests = list(group.requests)
        for request in requests:
            request.outcome = "done"
        for request in requests:
            self.queue.leave(request, at_s)
        return requests


def busy_queue(**changes) -> tuple[BatchQueue, Caller]:
    """A queue on which one batch runs, of one that had company."""
    queue = queue_of(**changes)
    token = object()
    queue.coming.add(token)
    leader = Caller(queue)
    queue.coming.discard(token)
    assert leader.leads
    assert leader.woken == 1
    return queue, leader


def test_first_come_first_served_with_all_that_wait_for_the_same() -> None:
    queue, first = busy_queue()
    callers = [Caller(queue, route) for route in ("large", "small", "large", "small", "small")]
    # The first for `small` had no company yet, so it is run beside the batch.
    assert [caller.woken for caller in callers] == [0, 1, 0, 0, 0]
    first.answer()
    assert callers[0].leads
    assert callers[0].answer() == [callers[0].request, callers[2].request]
    assert callers[3].leads
    assert callers[3].answer() == [callers[3].request, callers[4].request]
    callers[1].answer()
    assert queue.idle


def test_nobody_is_woken_before_its_outcome_or_its_turn() -> None:
    queue, first = busy_queue(max_batch=2)
    callers = [Caller(queue) for _ in range(4)]
    assert [caller.woken for caller in callers] == [0] * 4
    first.answer()
    assert [caller.woken for caller in callers] == [1, 0, 0, 0]
    callers[0].answer()
    assert [caller.woken for caller in callers] == [1, 1, 1, 0]  # its mate has an outcome, the next one leads
    callers[2].answer()
    assert [caller.woken for caller in callers] == [1, 1, 1, 1]
    assert (queue.requests, queue.shared, queue.runs, queue.idle) == (5, 4, 3, True)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_as_many_batches_at_once_as_the_cores_carry(at_once: int) -> None:
    queue, first = busy_queue(at_once=at_once, max_batch=2)
    callers = [Caller(queue) for _ in range(4)]
    assert sum(caller.leads for caller in callers) == at_once - 1
    first.answer()
    assert sum(caller.leads for caller in callers) == at_once


def test_requests_of_several_inputs_never_wait_nor_share() -> None:
    queue, first = busy_queue()
    waiting = [Caller(queue) for _ in range(2)]
    several = Caller(queue, count=3)
    assert several.leads
    assert several.answer() == [several.request]
    assert [caller.woken for caller in waiting] == [0, 0]
    first.answer()
    waiting[0].answer()
    assert queue.idle


def test_one_batch_in_a_while_is_of_one_request() -> None:
    queue, leader = busy_queue()
    sizes = []
    for _ in range(2 * SINGLE_EVERY):
        while sum(not caller.gone for caller in queue._waiting) < 2:
            Caller(queue)
        following = queue._waiting[0]
        leader.answer()
        assert following.group is not None
        sizes.append(len(following.group.requests))
        leader = Caller.__new__(Caller)
        leader.request, leader.queue, leader.woken = following, queue, 1
    assert sizes.count(1) == 2
    assert set(sizes) == {1, 2}


def test_a_group_starts_as_soon_as_it_is_full() -> None:
    queue = queue_of(wait_ms=LONG_MS, max_batch=3)
    queue.coming.update(range(5))
    callers = [Caller(queue) for _ in range(2)]
    group = callers[0].request.group
    assert group is not None
    assert group.ready is not None
    assert not group.ready.is_set()
    callers.append(Caller(queue))
    assert group.ready.is_set()
    late = Caller(queue)
    assert late.request.group is None
    assert callers[0].answer() == [caller.request for caller in callers]


def test_close_ends_every_wait_for_company() -> None:
    queue = queue_of(wait_ms=LONG_MS)
    queue.coming.update(range(3))
    leader = Caller(queue)
    queue.close()
    assert leader.request.group is not None
    assert leader.request.group.ready is not None
    assert leader.request.group.ready.is_set()
    leader.answer()
    later = Caller(queue)
    assert later.request.group is not None
    assert later.request.group.ready is None


def test_a_failed_run_answers_all_and_teaches_nothing() -> None:
    queue, first = busy_queue()
    callers = [Caller(queue) for _ in range(2)]
    first.answer()
    group = callers[0].request.group
    assert group is not None
    assert group.trials is not None
    before = dict(group.trials.measured.run_ms)
    for request in group.requests:
        request.outcome = OSError("full")
    queue.leave(callers[0].request, 2.0)
    queue.leave(callers[1].request, 2.0)
    assert callers[1].woken == 1
    assert dict(group.trials.measured.run_ms) == before
    assert (queue.requests, queue.idle) == (3, True)


def test_who_was_attending_is_coming_again_afterwards() -> None:
    queue, tokens = queue_of(), [object(), object()]
    queue.coming.update(tokens)
    caller = Caller(queue, attending=tokens[0])
    assert queue.coming == {tokens[1]}
    caller.answer()
    assert queue.coming == set(tokens)


def test_an_interrupted_leader_leaves_the_run_to_the_others() -> None:
    queue = queue_of(wait_ms=LONG_MS)
    queue.coming.update(range(3))
    leader, second, third = (Caller(queue) for _ in range(3))
    assert (leader.woken, second.woken) == (1, 0)
    assert leader.request.group is second.request.group is third.request.group
    queue.leave(leader.request, 1.0)  # by a KeyboardInterrupt: without an outcome
    assert second.request.group is not None
    assert second.request.group.requests == [second.request, third.request]
    assert (second.woken, third.woken) == (1, 0)
    assert queue.runs == 0


def test_an_interrupted_follower_is_not_run() -> None:
    queue = queue_of(wait_ms=LONG_MS)
    queue.coming.update(range(4))
    leader, joined, interrupted = (Caller(queue) for _ in range(3))
    queue.leave(interrupted.request, 0.5)
    assert leader.request.group is not None
    assert leader.request.group.requests == [leader.request, joined.request]
    other = Caller(queue, "small")
    assert leader.request.group.ready is not None
    assert leader.request.group.ready.is_set()  # because of the other, which has to wait
    assert other.request.group is None
    queue.leave(other.request, 1.0)
    queue.leave(joined.request, 1.0)
    assert leader.request.group.requests == [leader.request, joined.request]  # being run by now: it may have been read
    leader.request.outcome = "done"
    queue.leave(leader.request, 2.0)
    assert queue.idle


def taught(queue: BatchQueue, cost_ms: dict[int, float], company: int) -> BatchTrials:
    """Trials that have ended, with these costs by size."""
    trials = queue._trials_of("large", company)
    while (size := trials.measured.trial) is not None:
        trials.record(size, size, cost_ms[size] * size, cost_ms[size] * size)
    assert trials.measured.cost_ms == pytest.approx(cost_ms)
    return trials


PAYS, DOES_NOT = {1: 5.0, 2: 3.0, 4: 2.0}, {1: 5.0, 2: 7.0, 4: 6.0}


def with_three_others(queue: BatchQueue, limit_ms: float | None = None) -> None:
    for _ in range(3):
        queue.beside.begin(key(limit_ms=limit_ms), None, 0.0)


@pytest.mark.parametrize(
    ("cost_ms", "limit_ms", "room", "apart"),
    [
        (DOES_NOT, None, 100, True),
        (PAYS, None, 100, False),
        (PAYS, 12.0, 100, False),  # 2 x 3 ms
        (PAYS, 6.0, 100, True),  # no batch is within nine tenths of the limit
        (PAYS, None, 3, False),
        (PAYS, None, 1, True),  # memory for one only
    ],
)
def test_apart_is_who_gains_nothing_together(cost_ms, limit_ms, room, apart) -> None:
    queue = queue_of("auto", room=room)
    trials = taught(queue, cost_ms, 4)
    with_three_others(queue, limit_ms)
    assert queue.apart(key(limit_ms=limit_ms)) == (apart, trials)


def test_apart_is_who_has_no_company() -> None:
    queue, token = queue_of("auto"), object()
    taught(queue, PAYS, 4)
    queue.coming.add(token)
    assert queue.apart(key(), token) == (True, None)  # it does not count itself
    assert queue.apart(key())[0] is False
    assert queue.apart(key("small"), token) == (True, None)


def test_a_trial_of_a_size_is_not_apart_and_that_of_single_runs_is() -> None:
    queue = queue_of("auto")
    with_three_others(queue)
    apart, trials = queue.apart(key())
    assert apart
    assert trials is not None
    assert trials.measured.trial == 1
    while trials.measured.trial == 1:
        trials.record(1, 1, 5.0, None)
    assert queue.apart(key()) == (False, trials)


def test_company_that_comes_and_goes_has_the_same_trials() -> None:
    queue = queue_of("auto")
    with_three_others(queue)
    trials = queue.apart(key())[1]
    for run in list(queue.beside._running.values())[:2]:
        queue.beside.end(run, 1.0)
    assert queue.apart(key())[1] is trials  # a moment later only two are here
    for _ in range(100):
        fewer = queue.apart(key())[1]
    assert fewer is not trials  # they stay away


@pytest.mark.untraced
def test_where_nothing_is_gained_hardly_a_request_sees_the_queue() -> None:
    """A hundred seconds of four clients: the share of requests that wait for each other, which is what mode auto costs."""
    queue = queue_of("auto")
    with_three_others(queue)
    now_s, apart, queued = 0.0, 0, 0
    while now_s < 100.0:
        alone, trials = queue.apart(key())
        assert trials is not None
        if alone:
            now_s += 0.001
            run = queue.beside.begin(key(), trials, now_s - 0.001)
            queue.beside._last_s = now_s - 0.001
            queue.beside.end(run, now_s)
            queue.look()
            apart += 1
        else:
            size = trials.measured.trial
            assert size is not None
            now_s += 0.0015 * size
            trials.record(size, size, 1.5 * size, None)
            queued += size
    assert 0.001 < queued / (apart + queued) < 0.02
