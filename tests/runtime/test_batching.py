"""The batcher on a real executor, whose runs a test may hold up; threads are real, and nothing here looks at a clock."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from restnet_runtime.batch_plan import BatchSettings, Mode, cheapest
from restnet_runtime.batch_queue import SINGLE_EVERY
from restnet_runtime.batching import Batched, Batcher
from restnet_runtime.errors import BundleError, CompileError, InputError, RestnetError
from restnet_runtime.executor import Answer
from restnet_runtime.profile import RouteProfile

RNG = np.random.default_rng(5)
INPUTS = RNG.standard_normal((40, 1, 1, 8, 8)).astype(np.float32)
LONG_MS = 20e3
"""Nobody waits for as long as this in a test that passes."""


class Gated:
    """Runs of an executor that begin when the gate is open, and a list of what was run. May be given an error to raise, or a profile."""

    def __init__(self, executor, error: Exception | None = None, profile: RouteProfile | None = None) -> None:
        self.executor, self.error, self.promise = executor, error, profile
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.runs: list[tuple[str, int]] = []

    def profile(self, name: str) -> RouteProfile | None:
        return self.promise if name in self.executor.loaded else None

    def run(self, x, route=None) -> Answer:
        self.runs.append((route, len(x)))
        self.begun.release()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return self.executor.run(x, route)


@pytest.fixture
def gated(executor) -> Gated:
    return Gated(executor)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def held(batcher: Batcher, gated: Gated, pool, x=INPUTS[-1], route: str = "large"):
    """A run that waits behind the gate, with company, so that whoever comes has to queue."""
    gated.gate.clear()
    with batcher.attend():  # company for the one below, which is therefore one of the batches
        future = pool.submit(batcher.run, x, route)
        assert gated.begun.acquire(timeout=30)
    return future


def queued(batcher: Batcher, count: int):
    return lambda: len(batcher._queue._waiting) == count


def expected(executor, i: int, route: str):
    return executor.run(INPUTS[i], route).logits


def check(executor, batched: Batched, i: int, route: str, size: int | None = None) -> None:
    assert batched.answer.route.name == route
    assert batched.answer.logits.shape == (1, 3)
    np.testing.assert_allclose(batched.answer.logits, expected(executor, i, route), rtol=1e-4, atol=1e-5)
    if size is not None:
        assert batched.size == size


def test_the_inputs_of_these_tests_have_answers_of_their_own(executor) -> None:
    for route in ("small", "large"):
        answers = np.concatenate([expected(executor, i, route) for i in range(len(INPUTS))])
        gaps = np.abs(answers[:, None] - answers[None]).max(-1) + np.eye(len(answers))
        assert gaps.min() > 1e-3


def test_those_who_waited_run_together_and_each_gets_its_own_row(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0))
    first = held(batcher, gated, pool)
    others = []
    for i in range(5):  # one after the other, so that the order is known
        others.append(pool.submit(batcher.run, INPUTS[i], "large"))
        until(queued(batcher, i + 1))
    gated.gate.set()
    check(executor, first.result(30), -1, "large", size=1)
    for i, other in enumerate(others):
        check(executor, other.result(30), i, "large", size=5)
        assert other.result().queued_ms > 0
    assert gated.runs == [("large", 1), ("large", 5)]
    assert len({other.result().answer.latency_ms for other in others}) == 1  # of the run that they shared
    counts = batcher.counts()
    assert (counts.requests, counts.shared, counts.runs) == (6, 5, 2)


def test_no_batch_is_larger_than_allowed(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0, max_batch=3))
    first = held(batcher, gated, pool)
    others = [pool.submit(batcher.run, INPUTS[i], "large") for i in range(8)]
    until(queued(batcher, 8))
    gated.gate.set()
    for i, other in enumerate(others):
        check(executor, other.result(30), i, "large")
    first.result(30)
    assert [size for _, size in gated.runs] == [1, 3, 3, 2]


def test_routes_are_not_mixed_and_the_first_comes_first(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0))
    first = held(batcher, gated, pool)
    # Waiting after each; the first on a route of its own has no company, and is run beside the batch.
    names = {"large": 1, "small": 1, "large ": 2, "small ": 3, "small  ": 4, "small[0-1]>large[3-4]": 4, "large  ": 5}
    others = []
    for i, (name, waiting) in enumerate(names.items()):
        others.append(pool.submit(batcher.run, INPUTS[i], name.strip()))
        until(queued(batcher, waiting))
    gated.gate.set()
    for i, (name, other) in enumerate(zip(names, others, strict=True)):
        check(executor, other.result(30), i, name.strip())
    first.result(30)
    assert sorted(gated.runs) == [("large", 1), ("large", 3), ("small", 1), ("small", 2), ("small[0-1]>large[3-4]", 1)]
    assert gated.runs.index(("large", 3)) < gated.runs.index(("small", 2))


def test_requests_under_another_limit_are_not_held_up(gated, pool) -> None:
    gated.promise = RouteProfile(1.0, 1.0, 0)
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0))
    first = held(batcher, gated, pool)
    others = [pool.submit(batcher.run, INPUTS[i], "large", limit) for i, limit in enumerate([None, None, 1e9, 1e9, 1e9])]
    until(queued(batcher, 4))  # one of them came before its company
    gated.gate.set()
    assert all(other.result(30).size < 4 for other in others)
    first.result(30)


def test_a_leader_waits_for_company_that_is_on_its_way(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=LONG_MS))
    with batcher.attend() as run:  # still being decoded, say
        leader = pool.submit(batcher.run, INPUTS[0], "large")
        until(lambda: batcher._queue._open)
        assert not gated.runs
        check(executor, run(INPUTS[1], "large", None), 1, "large", size=2)
    check(executor, leader.result(30), 0, "large", size=2)
    assert gated.runs == [("large", 2)]


def test_the_wait_for_company_is_bounded(gated, executor) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=1))
    with batcher.attend():  # and never comes
        check(executor, batcher.run(INPUTS[0], "large"), 0, "large", size=1)


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_lone_request_waits_for_nobody(gated, executor, mode: Mode) -> None:
    batcher = Batcher(gated, BatchSettings(mode, max_wait_ms=LONG_MS))
    for i in range(40):
        check(executor, batcher.run(INPUTS[i], "large"), i, "large", size=1)
        with batcher.attend() as run:
            check(executor, run(INPUTS[i], "small", None), i, "small", size=1)


def test_nobody_is_kept_waiting_by_one_who_waits_for_company(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=LONG_MS))
    with batcher.attend(), batcher.attend():
        leader = pool.submit(batcher.run, INPUTS[0], "large")
        until(lambda: batcher._queue._open)
        other = pool.submit(batcher.run, INPUTS[1], "small")  # cannot join
        check(executor, leader.result(30), 0, "large", size=1)
        until(lambda: batcher._queue._open)  # now that one waits
        batcher.close()
        check(executor, other.result(30), 1, "small", size=1)


def test_requests_of_several_inputs_stay_by_themselves(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0))
    first = held(batcher, gated, pool)
    single = [pool.submit(batcher.run, INPUTS[i], "large") for i in range(2)]
    until(queued(batcher, 2))
    several = pool.submit(batcher.run, INPUTS[2:7, 0], "large")
    assert gated.begun.acquire(timeout=30)  # at once
    gated.gate.set()
    answer = several.result(30).answer
    np.testing.assert_allclose(answer.logits, np.concatenate([expected(executor, i, "large") for i in range(2, 7)]), rtol=1e-4, atol=1e-5)
    for i, other in enumerate(single):
        check(executor, other.result(30), i, "large", size=2)
    first.result(30)
    assert gated.runs == [("large", 1), ("large", 5), ("large", 2)]


@pytest.mark.parametrize(
    "error", [CompileError("the route broke"), BundleError("file", "reason"), RuntimeError("not ours", 3), OSError(28, "full")]
)
def test_every_caller_gets_an_error_of_its_own(executor, pool, error: Exception) -> None:
    gated = Gated(executor, error)
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0))
    futures = [held(batcher, gated, pool), *(pool.submit(batcher.run, INPUTS[i], "large") for i in range(3))]
    until(queued(batcher, 3))
    gated.gate.set()
    raised = [future.exception(30) for future in futures]
    assert [(type(one), str(one), one.args) for one in raised if one] == [(type(error), str(error), error.args)] * 4
    assert len({id(one) for one in raised[1:]}) == 3
    assert vars(raised[2]) == vars(error)
    gated.error = None
    check(executor, batcher.run(INPUTS[7], "large"), 7, "large", size=1)


def test_a_malformed_input_fails_by_itself(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0))
    first = held(batcher, gated, pool)
    good = [pool.submit(batcher.run, INPUTS[i], "large") for i in range(3)]
    bad = [pool.submit(batcher.run, x, "large") for x in (INPUTS[0].astype(np.float64), INPUTS[0][:, :, :4])]
    until(queued(batcher, 3))
    gated.gate.set()
    for i, other in enumerate(good):
        check(executor, other.result(30), i, "large", size=3)
    first.result(30)
    for other in bad:
        with pytest.raises(InputError, match="give float32"):
            other.result(30)
    with pytest.raises(BundleError, match="nowhere"):
        batcher.run(INPUTS[0], "nowhere")


def test_one_batch_in_a_while_is_of_a_single_request(gated, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0, max_batch=2))
    futures = [held(batcher, gated, pool)]
    clients = [pool.submit(lambda: [batcher.run(INPUTS[0], "large") for _ in range(3 * SINGLE_EVERY)]) for _ in range(6)]
    gated.gate.set()
    sizes = {answer.size for client in clients for answer in client.result(30)}
    futures[0].result(30)
    assert sizes == {1, 2}


def test_close_answers_those_who_are_here_and_refuses_others(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=1))
    futures = [held(batcher, gated, pool), *(pool.submit(batcher.run, INPUTS[i], "large") for i in range(3))]
    until(queued(batcher, 3))
    closing = pool.submit(batcher.close)

    def refused() -> bool:
        try:
            batcher.attend().__enter__()(INPUTS[0], "small", None)
        except RestnetError:
            return True
        return False

    until(lambda: batcher._closed)
    assert refused()
    assert not closing.done()
    gated.gate.set()
    for i, future in enumerate(futures[1:]):
        check(executor, future.result(30), i, "large")
    closing.result(30)
    batcher.close()
    with pytest.raises(RestnetError, match="stopped"):
        batcher.run(INPUTS[0], "large")


def test_close_wakes_who_waits_for_company(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=LONG_MS))
    with batcher.attend():
        leader = pool.submit(batcher.run, INPUTS[0], "large")
        until(lambda: batcher._queue._open)
        batcher.close()
    check(executor, leader.result(30), 0, "large", size=1)


def test_off_hands_everything_through(gated, executor) -> None:
    batcher = Batcher(gated)
    with batcher.attend() as run:
        check(executor, run(INPUTS[0], "large", 1.0), 0, "large", size=1)
    check(executor, batcher.run(INPUTS[1], "small"), 1, "small", size=1)
    assert batcher.counts().requests == 0
    batcher.close()
    check(executor, batcher.run(INPUTS[1], "small"), 1, "small", size=1)


def settled_on_single_runs(batcher: Batcher, route: str = "large", company: int = 2) -> None:
    """As if it had been measured that together nothing is gained."""
    trials = batcher._queue._trials_of(route, company)
    while trials.measured.trial is not None:
        trials.record(trials.measured.trial, trials.measured.trial, 10.0 * trials.measured.trial, None)
    assert cheapest(trials.measured.cost_ms, [1, company]) == 1


def test_auto_takes_no_lock_where_nothing_is_gained(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("auto", max_wait_ms=LONG_MS))
    settled_on_single_runs(batcher)
    gated.gate.clear()
    with batcher._lock:  # whoever wanted it would wait for good
        futures = [pool.submit(batcher.run, INPUTS[i], "large") for i in range(2)]
        for _ in futures:
            assert gated.begun.acquire(timeout=30)
        gated.gate.set()
        for i, future in enumerate(futures):
            check(executor, future.result(30), i, "large", size=1)
        for i in range(20):  # enough to learn from; that is put off
            check(executor, batcher.run(INPUTS[i], "large"), i, "large", size=1)
    counts = batcher.counts()
    assert (counts.requests, counts.shared, counts.runs) == (22, 0, 22)


def test_auto_queues_for_a_trial_and_where_it_pays(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("auto", max_wait_ms=0))
    trials = batcher._queue._trials_of("large", 2)
    while trials.measured.trial is not None:
        trials.record(trials.measured.trial, trials.measured.trial, 10.0, None)  # two take as long as one
    first = held(batcher, gated, pool)
    others = [pool.submit(batcher.run, INPUTS[i], "large") for i in range(2)]
    until(queued(batcher, 2))
    gated.gate.set()
    for i, other in enumerate(others):
        check(executor, other.result(30), i, "large", size=2)
    first.result(30)


def test_close_waits_for_requests_that_run_beside_the_queue(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("auto"))
    gated.gate.clear()
    running = pool.submit(batcher.run, INPUTS[0], "large")
    assert gated.begun.acquire(timeout=30)
    closing = pool.submit(batcher.close)
    until(lambda: batcher._closed)
    with pytest.raises(RestnetError, match="stopped"):
        batcher.run(INPUTS[1], "large")
    assert not closing.done()
    gated.gate.set()
    check(executor, running.result(30), 0, "large", size=1)
    closing.result(30)
    assert gated.runs == [("large", 1)]


def test_an_error_beside_the_queue_is_the_callers_own(executor) -> None:
    batcher = Batcher(Gated(executor, CompileError("the route broke")), BatchSettings("auto"))
    with batcher.attend() as run, pytest.raises(CompileError, match="broke"):
        run(INPUTS[0], "large", None)
    assert batcher.counts().requests == 1
    assert batcher._queue.idle
    assert not batcher._queue.coming


def test_no_batch_is_larger_than_memory_allows(gated, executor, pool) -> None:
    batcher = Batcher(gated, BatchSettings("on", max_wait_ms=0), room=lambda _: 2)
    first = held(batcher, gated, pool)
    others = [pool.submit(batcher.run, INPUTS[i], "large") for i in range(5)]
    until(queued(batcher, 5))
    gated.gate.set()
    for i, other in enumerate(others):
        check(executor, other.result(30), i, "large")
    first.result(30)
    assert max(size for _, size in gated.runs) == 2


def test_auto_leaves_routes_alone_that_are_too_short(gated, executor) -> None:
    gated.promise = RouteProfile(0.01, 0.01, 0)
    batcher = Batcher(gated, BatchSettings("auto"))
    check(executor, batcher.run(INPUTS[0], "large"), 0, "large", size=1)
    assert batcher.counts().requests == 0


@pytest.mark.parametrize("mode", ["on", "auto"])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_thousand_requests_of_four_clients_on_changing_routes(gated, executor, mode: Mode, at_once: int) -> None:
    batcher = Batcher(gated, BatchSettings(mode, max_wait_ms=0.1), runs=lambda: at_once)
    names = ["small", "large", "large", "small[0-1]>large[2-4]"]
    answers = {name: [expected(executor, i, name) for i in range(len(INPUTS))] for name in set(names)}

    def client(number: int) -> int:
        rng = np.random.default_rng(number)
        for _ in range(250):
            i, name, limit = int(rng.integers(40)), names[rng.integers(4)], [None, 50.0][rng.integers(2)]
            with batcher.attend() as run:
                batched = run(INPUTS[i], name, limit)
            assert batched.answer.route.name == name
            np.testing.assert_allclose(batched.answer.logits, answers[name][i], rtol=1e-4, atol=1e-5)
        return number

    with ThreadPoolExecutor(4) as clients:
        assert sorted(clients.map(client, range(4))) == [0, 1, 2, 3]
    counts, queue = batcher.counts(), batcher._queue
    assert counts.requests == 1000
    assert counts.runs == len(gated.runs)
    assert sum(size for _, size in gated.runs) == 1000
    assert (queue.idle, queue.coming, queue._company, queue._open, queue._gated) == (True, set(), {}, {}, 0)
