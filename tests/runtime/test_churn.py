"""A thousand switches under four clients, some of them to routes that come and go: no answer lost, none mixed up, no memory left behind."""

import gc
import random
import statistics
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from restnet_runtime.executor import Executor
from restnet_runtime.memory import footprint

CLIENTS, SWITCHES = 4, 1000
X = np.random.default_rng(5).standard_normal((2, 1, 8, 8)).astype(np.float32)
GROWTH_BYTES = 500_000
"""Of anonymous memory, which other processes do not change, between the second and the last quarter of the turns: ten turns."""
TURNS = 20


class Clients:
    """Ask without a pause inside the `with` block; compare every output with its route's own."""

    def __init__(self, executor: Executor, expected: dict[str, np.ndarray]) -> None:
        self._executor, self._expected, self._done = executor, expected, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        self.answers, self.problems = [0] * CLIENTS, list[object]()

    def _ask(self, number: int) -> None:
        while not self._done.is_set():
            try:
                answer = self._executor.run(X)
                if not np.array_equal(answer.logits, self._expected[answer.route.name]):
                    self.problems.append(answer.route.name)
            except Exception as error:
                self.problems.append(error)
            self.answers[number] += 1

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def wait_for_an_answer(self) -> None:
        seen, end = sum(self.answers), time.monotonic() + 30
        while sum(self.answers) == seen:
            assert time.monotonic() < end, "no client is answered any more"
            time.sleep(0.0001)


def direct_runs(executor: Executor) -> dict[str, np.ndarray]:
    return {name: executor.load(name).session.run(["y"], {"x": X})[0] for name in executor.loaded}


def switch(executor: Executor, draw: random.Random) -> None:
    """To another route than the current one."""
    before = executor.current
    executor.switch(draw.choice([name for name in executor.loaded if before is None or name != before.name]))
    assert executor.current != before


def churn(executor: Executor, clients: Clients, switches: int, draw: random.Random) -> None:
    for _ in range(switches):
        switch(executor, draw)
        clients.wait_for_an_answer()


def growth_bytes(work: Callable[[], None]) -> float:
    """By how much memory grew in ten of `TURNS` turns, after five to warm up: medians, because heaps hold now more and now less."""
    sizes = []
    for _ in range(TURNS):
        work()
        sizes.append(footprint().anonymous_bytes)
    quarter = TURNS // 4
    return statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter])


def without_holes() -> list[bytearray]:
    """What fills the holes that earlier work left in the heap, to hold on to: a leak would fill them before memory grew."""
    pieces: list[bytearray] = []
    while True:
        before = footprint().anonymous_bytes
        pieces += [bytearray(1000) for _ in range(1000)]
        if footprint().anonymous_bytes - before > 900_000:
            return pieces


def keeps_growing(work: Callable[[], None]) -> bool:
    """What is kept for good grows every time one looks; a heap that settles does not."""
    _filling = without_holes()
    return all(growth_bytes(work) > GROWTH_BYTES for _ in range(3))


def holes(count: int) -> list[bytearray]:
    return [bytearray(1000) for _ in range(2 * count)][::2]


@pytest.mark.parametrize(("kept_bytes", "found"), [(0, False), (1000, True)])
def test_a_leak_of_a_kilobyte_a_switch_would_be_found(executor, kept_bytes: int, found: bool) -> None:
    draw, kept, _torn = random.Random(0), list[bytearray](), holes(10_000)

    def leaking() -> None:
        for _ in range(SWITCHES // 10):
            switch(executor, draw)
            executor.run(X)
            if kept_bytes:
                kept.append(bytearray(kept_bytes))

    assert keeps_growing(leaking) == found


@pytest.mark.untraced
def test_a_thousand_switches_under_four_clients(executor) -> None:
    draw = random.Random(0)
    with Clients(executor, direct_runs(executor)) as clients:
        churn(executor, clients, SWITCHES, draw)
        assert not keeps_growing(lambda: churn(executor, clients, SWITCHES // 10, draw))
    assert clients.problems == []
    assert min(clients.answers) > 0
    assert sum(clients.answers) >= 2 * SWITCHES


@pytest.mark.untraced
def test_routes_that_come_and_go_under_four_clients(executor) -> None:
    """Each turn releases a route that is not the current one, and loads it again from the cache."""
    draw, expected = random.Random(1), direct_runs(executor)

    released = []

    def turns(clients: Clients, count: int) -> None:
        for _ in range(count):
            executor.switch("small")
            gone = draw.choice([name for name in executor.loaded if name != "small"])
            released.append(weakref.ref(executor.load(gone)))
            executor.release(gone)
            clients.wait_for_an_answer()
            executor.load(gone)
            executor.switch(gone)
            clients.wait_for_an_answer()

    with Clients(executor, expected) as clients:
        turns(clients, 25)
        assert not keeps_growing(lambda: turns(clients, 3))
    assert clients.problems == []
    assert set(executor.loaded) == set(expected)
    gc.collect()
    assert len(released) >= 25 + 3 * TURNS
    assert [one for one in released if one() is not None] == [], "a released route is still held by somebody"
