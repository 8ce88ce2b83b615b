import time

import pytest

from restnet_runtime.beside import Beside


class Process:
    """A server: requests of 10 ms on 2 threads, what each takes beside that, and what it takes anyway."""

    def __init__(self, idle_cores: float = 0.0) -> None:
        self.now_s, self.cpu_s, self.arrived, self._idle_cores = 100.0, 3.0, 0, idle_cores
        self.beside = Beside(lambda: self.cpu_s)
        self.beside.take(self.now_s, 0)

    def serve(self, count: int, beside_ms: float, told: int | None = None, seconds: float = 1.0, route: str = "large") -> float | None:
        """What is known after so many requests in so many seconds. told: of these, how many were answered, with a single input."""
        answered = count if told is None else told
        for _ in range(answered):
            self.beside.observe(route, 10.0, 2)
        self.arrived += count
        self.now_s += seconds
        self.cpu_s += answered * 20.0 / 1e3 + count * beside_ms / 1e3 + seconds * self._idle_cores
        return self.beside.take(self.now_s, self.arrived)


@pytest.fixture
def process() -> Process:
    return Process()


def test_processor_time_less_that_of_the_runs(process: Process) -> None:
    found = [process.serve(20, 3.0) for _ in range(4)]
    assert found[:2] == [None, None], "too little to tell"
    assert found[2:] == pytest.approx([3.0, 3.0])


def test_two_requests_a_second_are_looked_at_together(process: Process) -> None:
    """Looks are a little more than a second apart."""
    assert [process.serve(2, 5.0, seconds=1.02) for _ in range(16)][-1] == pytest.approx(5.0)


def test_what_a_server_does_anyway_is_not_that_of_the_few_requests_there_are() -> None:
    process = Process(idle_cores=0.1)
    assert [process.serve(1, 5.0, seconds=3.0) for _ in range(40)] == [None] * 40
    found = [process.serve(20, 5.0) for _ in range(4)]
    assert found[-1] == pytest.approx(5.0 + 0.1 * 1e3 / 20), "of twenty a second it is"


def test_a_pause_is_nobodys(process: Process) -> None:
    for _ in range(4):
        process.serve(20, 3.0)
    process.cpu_s += 2.0
    assert process.serve(0, 0.0) == pytest.approx(3.0)
    assert process.serve(20, 3.0) == pytest.approx(3.0)


def test_what_was_learnt_on_a_small_route_lets_no_large_one_in_again(process: Process) -> None:
    """Which takes more, of what its runs take beyond their profile."""
    for _ in range(4):
        process.serve(20, 16.0)
    assert [process.serve(20, 4.0, route="small") for _ in range(20)][-1] == pytest.approx(16.0)
    assert [process.serve(20, 4.0, route="small") for _ in range(20)][-1] == pytest.approx(4.0), "it has grown old"


def test_what_loading_takes_is_left_out(process: Process) -> None:
    for _ in range(3):
        process.serve(20, 3.0)
    assert [process.serve(20, 60.0) for _ in range(6)] == pytest.approx([3.0] * 6)


def test_another_cost_is_learnt(process: Process) -> None:
    for _ in range(9):
        process.serve(20, 3.0)
    assert [process.serve(20, 8.0) for _ in range(9)][-1] == pytest.approx(8.0)


@pytest.mark.parametrize("told", [0, 10], ids=["refused", "of several inputs"])
def test_what_is_known_is_forgotten_where_requests_are_not_told_of(process: Process, told: int) -> None:
    """Or whoever refuses all, because he believes that they take too much, would never learn better."""
    for _ in range(4):
        process.serve(20, 300.0)
    assert [process.serve(20, 0.5, told=told) for _ in range(3)] == [None] * 3
    assert [process.serve(20, 3.0) for _ in range(3)][-1] == pytest.approx(3.0)


def test_what_is_known_grows_old(process: Process) -> None:
    for _ in range(4):
        process.serve(20, 3.0)
    assert process.serve(0, 0.0, seconds=20.0) == pytest.approx(3.0)
    assert process.serve(0, 0.0, seconds=20.0) is None


def test_runs_that_take_less_than_profiled_make_it_nothing_at_least(process: Process) -> None:
    assert [process.serve(20, -4.0) for _ in range(3)][-1] == 0.0


def test_processor_time_and_not_that_of_the_clock() -> None:
    beside = Beside(time.process_time)
    beside.take(0.0, 0)
    found = None
    for look in (1, 2, 3):
        time.sleep(0.05)
        sum(range(200_000))
        for _ in range(10):
            beside.observe("large", 0.0, 1)
        found = beside.take(float(look), 10 * look)
    assert found is not None
    assert 0 < found < 4.9, "the sleep alone is 5 ms each"
