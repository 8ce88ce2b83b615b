"""The loader: progress, routes that fail, and stopping."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

import restnet_runtime.loader as loader_module
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.loader import LOAD_MARGIN, Loader, Progress
from restnet_runtime.measured import Measured
from restnet_runtime.profile import Timing
from restnet_runtime.residency import together
from restnet_runtime.resident import how
from restnet_runtime.sessions import SessionSettings


@pytest.fixture
def make(tmp_path):
    """A factory of executors without routes and with a cold cache."""

    def executor(bundle) -> Executor:
        return Executor(bundle, Compiler.for_bundle(bundle, tmp_path / "cache"), SessionSettings(threads=1))

    return executor


def test_loads_all_in_order_and_tells_how_far_it_is(family_bundle, make) -> None:
    executor, seen = make(family_bundle), []
    names = preparation_order(family_bundle)
    loader: Loader

    def on_loaded(name: str) -> None:
        seen.append((name, loader.progress()))

    loader = Loader(executor, names, on_loaded)
    assert loader.progress() == Progress(total=4, loaded=0, loading=None, compiled=0, left_out=(), failed={})
    loader.start()
    loader.join(60)
    assert [name for name, _ in seen] == names == list(executor.loaded)
    assert [progress for _, progress in seen] == [Progress(4, index, name, index, (), {}) for index, name in enumerate(names, 1)]
    assert [progress.done for _, progress in seen] == [False, False, False, True]
    assert loader.progress() == Progress(total=4, loaded=4, loading=None, compiled=4, left_out=(), failed={})
    loader.stop()


def test_a_warm_cache_compiles_nothing(family_bundle, make) -> None:
    for compiled in (4, 0):
        loader = Loader(make(family_bundle), preparation_order(family_bundle))
        loader.run()
        assert loader.progress() == Progress(4, 4, None, compiled, (), {})


def test_routes_loaded_by_others_do_not_count(family_bundle, make) -> None:
    executor = make(family_bundle)
    executor.load("large")
    loader = Loader(executor, ["small"])
    assert (loader.progress().loaded, loader.progress().done) == (0, False)
    loader.run()
    assert loader.progress().done


def test_a_route_that_fails_is_left_out_and_reported(own_family, make, caplog) -> None:
    bundle = open_bundle(own_family())
    (bundle.path / "segments" / "small.1~large.2.fp32.onnx").write_bytes(b"spoilt since")
    executor, loaded = make(bundle), []
    loader = Loader(executor, [*preparation_order(bundle), "ghost"], loaded.append)
    loader.run()
    progress = loader.progress()
    assert loaded == list(executor.loaded) == ["small", "small[0-1]>large[3-4]", "large"]
    assert set(progress.failed) == {"small[0-1]>large[2-4]", "ghost"}
    assert "segments/small.1~large.2.fp32.onnx: has 12 bytes" in progress.failed["small[0-1]>large[2-4]"]
    assert "has no route 'ghost'" in progress.failed["ghost"]
    assert (progress.total, progress.loaded, progress.done) == (5, 3, True)
    assert (progress.compiled, progress.failed_compiles) == (3, 1)
    assert "route small[0-1]>large[2-4] cannot be loaded" in caplog.text


def test_stop_ends_after_the_route_under_way(family_bundle, make) -> None:
    executor = make(family_bundle)
    under_way, go_on = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        under_way.set()
        go_on.wait(60)

    loader = Loader(executor, preparation_order(family_bundle), hold)
    loader.start()
    assert under_way.wait(60)
    stopping = in_thread(loader.stop)
    while not loader._stop.is_set():
        pass
    go_on.set()
    stopping.join(60)
    assert executor.loaded == ("small",)
    assert loader.progress() == Progress(total=4, loaded=1, loading=None, compiled=1, left_out=(), failed={})


def test_stop_before_the_start_loads_nothing(family_bundle, make) -> None:
    executor = make(family_bundle)
    loader = Loader(executor, preparation_order(family_bundle))
    loader.stop()
    loader.start()
    loader.join(60)
    assert executor.loaded == ()


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_one_that_fails_in_an_unforeseen_way_does_not_end_the_others(family_bundle, make) -> None:
    def spoil(name: str) -> None:
        if name == "small":
            raise ValueError("nobody thought of this")

    executor = make(family_bundle)
    loader = Loader(executor, preparation_order(family_bundle), spoil)
    loader.start()
    loader.join(60)
    assert len(executor.loaded) == 4
    assert loader.progress().failed == {"small": "nobody thought of this"}
    assert loader.progress().loading is None
    loader.stop()


def test_without_room_only_the_first_is_loaded(family_bundle, make) -> None:
    executor = make(family_bundle)
    loader = Loader(executor, preparation_order(family_bundle), memory_limit=lambda: 1)
    loader.run()
    assert executor.loaded == ("small",)
    assert set(loader.progress().left_out) == {route.name for route in family_bundle.routes} - {"small"}
    assert loader.progress().done


def test_idle_it_times_again_what_was_measured_in_a_busy_moment(family_bundle, make) -> None:
    executor = make(family_bundle)
    executor.load("small")
    slow = Timing(1e6, 2e6)
    executor._ledger._timings["small"] = 1, slow
    loader = Loader(executor, ["small"], interval_s=0.01)
    loader.start()
    deadline = time.monotonic() + 60
    while executor.profile("small").latency_ms == slow.latency_ms:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    loader.stop()
    assert 0 < executor.profile("small").latency_ms < 1e5


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("none_is_small")
def test_loaded_routes_follow_the_number_of_threads(family_bundle, make, tmp_path) -> None:
    executor, threads = make(family_bundle), [1]
    loader = Loader(executor, preparation_order(family_bundle), interval_s=0.01, threads=lambda: threads[0])
    loader.start()
    loader.join(60)
    assert executor.settings.threads == 1
    threads[0] = 2
    until(lambda: executor.settings.threads == 2 and not executor.stale)
    # Estimated at first, measured once no request is disturbed.
    until(lambda: "large on 2 threads" in next(tmp_path.rglob("profiles.json")).read_text())
    loader.stop()
    assert set(executor.loaded) == {route.name for route in family_bundle.routes}
    assert loader.progress().failed == {}


def test_everything_loaded_has_run_once_the_loader_is_idle(family_bundle, make) -> None:
    for _ in range(2):  # the second time from what was measured before, when loading by itself runs nothing
        executor = make(family_bundle)
        loader = Loader(executor, preparation_order(family_bundle))
        loader.run()
        assert executor.cold == ()
    executor = make(family_bundle)
    executor.load("small")  # the first one runs at once: requests may come
    executor.load("large")
    executor.load("small[0-1]>large[3-4]", warm=True)
    assert executor.cold == ("large",)
    executor.warm("large")
    executor.warm("small[0-1]>large[2-4]")  # not loaded: nothing to do
    assert executor.cold == ()
    executor.reload("large")
    assert executor.cold == ()


@pytest.mark.usefixtures("none_is_small")
def test_a_reload_that_fails_does_not_end_the_watch_over_memory(family_bundle, make, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise CompileError("no session today")

    executor, threads, limit = make(family_bundle), [1], [None]
    loader = Loader(executor, preparation_order(family_bundle), memory_limit=lambda: limit[0], interval_s=0.01, threads=lambda: threads[0])
    loader.start()
    loader.join(60)
    monkeypatch.setattr("restnet_runtime.levels.load_session", broken)
    monkeypatch.setattr("restnet_runtime.levels.joined_session", broken)
    threads[0] = 2
    until(lambda: executor.settings.threads == 2)
    limit[0] = 1
    until(lambda: len(executor.loaded) == 1)
    loader.stop()


def test_an_error_that_nobody_thought_of_does_not_end_the_watch_over_memory(family_bundle, make, caplog) -> None:
    limits = iter([None] * 5)

    def limit() -> int | None:
        try:
            return next(limits)
        except StopIteration:
            if len(caplog.records) < 8:
                raise RuntimeError("the sensor burns") from None
            return 1

    executor = make(family_bundle)
    loader = Loader(executor, preparation_order(family_bundle), memory_limit=limit, interval_s=0.01)
    loader.start()
    until(lambda: len(executor.loaded) == 1 and loader.progress().left_out)
    assert "a step of the loader failed" in caplog.text
    loader.stop()


def test_what_is_wanted_is_loaded_before_the_way_down(family_bundle, make) -> None:
    """Room for two: the current route and the one that would be chosen, not the current one and the cheapest."""
    executor = make(family_bundle)
    for name in ("small[0-1]>large[3-4]", "large", "small"):
        executor.load(name)
    executor.switch("small[0-1]>large[3-4]")
    needs = [executor.need("small[0-1]>large[3-4]"), executor.need("large")]
    executor.release("large")
    executor.release("small")
    room = [executor.overhead_bytes + together(needs)]
    loader = Loader(executor, preparation_order(family_bundle), memory_limit=lambda: int(room[0] * LOAD_MARGIN) + 1, wanted=lambda: "large")
    loader.step()
    assert executor.loaded == ("small[0-1]>large[3-4]", "large")


class Watched(Executor):
    """Keeps what the process is predicted to take, at every load while it lasts and after every release."""

    predicted: list[int]

    def load(self, name: str, *args, **options):
        self.predicted.append(self.total({*self.loaded, name}))
        return super().load(name, *args, **options)

    def release(self, name: str) -> None:
        super().release(name)
        self.predicted.append(self.total(self.loaded))

    def total(self, names: Iterable[str]) -> int:
        return self.overhead_bytes + together(self.need(name) for name in names)


MIDDLE, LARGER = "small[0-1]>large[3-4]", "small[0-1]>large[2-4]"


@pytest.fixture
def watched(family_bundle, tmp_path) -> Watched:
    """Every route known. Loaded: the cheapest, `MIDDLE`, which is the current one, and `LARGER`."""
    executor = Watched(family_bundle, Compiler.for_bundle(family_bundle, tmp_path / "cache"), SessionSettings(threads=1))
    executor.predicted, ledger = [], executor._ledger
    for route in family_bundle.routes:  # as if sessions took much more than the heap moves by while this runs
        size = (4 if route.name == "large" else 2) * 10**8
        ledger._store.put(route.name, how(executor.settings), Measured(Timing(1, 1), size, 0))
    ledger._baseline.overhead_bytes, ledger.weigh = 0, lambda *_: None
    for route in family_bundle.routes:
        executor.load(route.name)
    executor.switch(MIDDLE)
    executor.release("large")
    executor.predicted.clear()
    return executor


def test_room_for_what_is_wanted_is_made_before_it_is_loaded(watched) -> None:
    """Room for three small ones, or for two with the large one."""
    limit = int(watched.total([MIDDLE, "large"]) * LOAD_MARGIN) + 1
    assert watched.total(watched.loaded) < limit
    loader = Loader(watched, preparation_order(watched.bundle), memory_limit=lambda: limit, wanted=lambda: "large")
    loader.run()
    assert set(watched.loaded) == {MIDDLE, "large"}
    assert len(watched.predicted) == 3
    assert max(watched.predicted) <= limit / LOAD_MARGIN
    assert set(loader.progress().left_out) == {"small", LARGER}
    assert not loader.step()


def test_nothing_more_valuable_goes_for_what_is_loaded(watched) -> None:
    """All that is loaded fits, but not with the margin that a load needs: the large one, of less value, would take its place."""
    needs = watched._ledger._needs
    needs["large"] = replace(needs["large"], session_bytes=10**8)
    limit = watched.total(watched.loaded) + 1
    assert watched.total([MIDDLE, "small", "large"]) < limit / LOAD_MARGIN < watched.total(watched.loaded)
    loader = Loader(watched, preparation_order(watched.bundle), memory_limit=lambda: limit)
    loader.run()
    assert set(watched.loaded) == {MIDDLE, "small", LARGER}
    assert watched.predicted == []
    assert loader.progress().left_out == ("large",)


def test_a_route_that_cannot_be_released_keeps_its_room(watched) -> None:
    """Requests have been moved to the cheapest since the loader looked: nothing is loaded on top of it."""
    limit = int(watched.total([MIDDLE, "large"]) * LOAD_MARGIN) + 1

    class Late(Loader):
        def _next(self, *args):
            found = super()._next(*args)
            watched.switch("small")
            return found

    loader = Late(watched, preparation_order(watched.bundle), memory_limit=lambda: limit, wanted=lambda: "large")
    assert loader.step()
    assert "small" in watched.loaded
    assert "large" not in watched.loaded
    loader.run()
    assert set(watched.loaded) == {"small", "large"}
    assert max(watched.predicted) <= limit


def test_the_guess_of_a_need_leaves_out_only_what_stays(family_bundle, make) -> None:
    executor = make(family_bundle)
    executor.load("large")
    alone, shared = executor.need(LARGER, [LARGER]), executor.need(LARGER, ["large"])
    assert together([shared]) < together([alone])
    assert executor.need(LARGER) == shared


def test_a_route_that_failed_and_is_outdone_counts_once() -> None:
    progress = Progress(total=3, loaded=1, loading=None, compiled=0, left_out=(), failed={"a": "x"}, outdone={"a": "by b"})
    assert not progress.done, "the third is still to come"
    assert replace(progress, loaded=2).done


def test_the_way_down_stays_where_it_fits_without_its_weights(watched) -> None:
    """A limit that falls further finds the cheapest loaded, and does not wait for a load in the worst moment."""
    watched.load("large")
    watched.switch("large")
    lean = replace(watched.need("small"), touched=frozenset())
    if not watched.need("small").touched:
        pytest.skip("requests read no weights of so small a network from a file on this processor")
    limit = [together([watched.need("large"), lean])]
    assert watched.total(["large", "small"]) > limit[0]
    loader = Loader(watched, preparation_order(watched.bundle), memory_limit=lambda: limit[0], wanted=lambda: "large")
    while loader.step():
        pass
    assert set(watched.loaded) == {"large", "small"}
    assert set(loader.progress().left_out) == {LARGER, MIDDLE}
    limit[0] = together([watched.need("large")]) - 1
    while loader.step():
        pass
    assert set(watched.loaded) == {"large", "small"}, "what serves does not fit at all: the cheapest is about to"
    limit[0] = together([watched.need("large"), lean]) - 1
    while loader.step():
        pass
    assert watched.loaded == ("large",)


def test_the_way_down_stays_while_the_limit_may_fall_further(watched, monkeypatch) -> None:
    """A route between that just fits at a step on the way down is not worth the one that will serve at the next step."""
    monkeypatch.setattr(loader_module, "_FALLING_S", 1000.0)
    watched.load("large")
    watched.switch("large")
    lean = replace(watched.need("small"), touched=frozenset())
    short = together([watched.need("large"), lean]) - 1
    limit = [10**12]
    loader = Loader(watched, preparation_order(watched.bundle), memory_limit=lambda: limit[0], wanted=lambda: "large")
    loader.run()
    assert len(watched.loaded) == 4
    limit[0] = short
    while loader.step():
        pass
    assert set(watched.loaded) == {"large", "small"}
    monkeypatch.setattr(loader_module, "_FALLING_S", 0.0)
    while loader.step():
        pass
    assert watched.loaded == ("large",), "the limit stands: it is kept"


def test_memory_that_is_taken_away_is_answered_well_within_an_interval(family_bundle, make) -> None:
    executor, limit = make(family_bundle), [10**12]
    loader = Loader(executor, preparation_order(family_bundle), memory_limit=lambda: limit[0], interval_s=20.0)
    loader.start()
    loader.join(60)
    until(lambda: len(executor.loaded) == 4)
    began = time.monotonic()
    limit[0] = 1
    until(lambda: len(executor.loaded) == 1)
    assert time.monotonic() - began < 10.0
    loader.stop()
