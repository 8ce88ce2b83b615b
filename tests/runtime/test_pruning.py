"""Pruning: a route that another one outdoes here is let go of, at later starts not loaded, and taken back where it is needed."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from restnet_export.writer import BundleSource, RouteSource, write_bundle
from restnet_runtime import sessions
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import Controller
from restnet_runtime.engine import Engine
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.loader import Loader
from restnet_runtime.measured import FILE, Measured, MeasuredStore
from restnet_runtime.profile import Timing
from restnet_runtime.reading import Reading
from restnet_runtime.resident import how
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.status import describe_routes

SETTINGS = SessionSettings(threads=1)
MB = 2**20


class Quiet:
    def read(self) -> Reading:
        return Reading()


@pytest.fixture(scope="module")
def bundle(int8_source: BundleSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three routes of one network: fp32, int8 that is as accurate, and the small anchor."""
    large = int8_source.routes[3]
    assert large.name == "large"
    twin = RouteSource("large@int8", large.segments, large.accuracy, ("int8",) * len(large.segments))
    source = dataclasses.replace(int8_source, routes=(int8_source.routes[0], large, twin))
    return open_bundle(write_bundle(source, tmp_path_factory.mktemp("pruning") / "bundle").path)


class Start:
    """One start of a device on a cache that remembers `measured`: latency in ms and megabytes by route."""

    def __init__(self, bundle: Bundle, root: Path, measured: dict[str, tuple[float, int]] | None = None, keep_all: bool = False) -> None:
        compiler = Compiler.for_bundle(bundle, root)
        store = MeasuredStore(compiler.cache.path)
        for name, (latency_ms, megabytes) in (measured or {}).items():
            store.put(name, how(SETTINGS), Measured(Timing(latency_ms, latency_ms), megabytes * MB, 0))
        self.executor = Executor(bundle, compiler, SETTINGS)
        self.controller = Controller(self.executor, Quiet())
        self.loader = Loader(
            self.executor,
            preparation_order(bundle),
            on_loaded=lambda _: self.controller.reconsider(),
            on_outdone=None if keep_all else self.controller.reconsider,
        )
        self.loader.run()

    def judged(self) -> "Start":
        self.loader._pruner.judge(self.loader._names)
        while self.loader.step():
            pass
        return self

    @property
    def loaded(self) -> set[str]:
        return set(self.executor.loaded)


@pytest.fixture
def start(bundle: Bundle, tmp_path: Path) -> Callable[..., Start]:
    begun: list[Start] = []

    def begin(measured: dict[str, tuple[float, int]] | None = None, **options: bool) -> Start:
        begun.append(Start(bundle, tmp_path / "cache", measured, **options))
        return begun[-1]

    yield begin
    for one in begun:
        one.executor.close()


INT8_WINS = {"small": (1.0, 5), "large": (30.0, 20), "large@int8": (10.0, 10)}
INT8_LOSES = {"small": (1.0, 5), "large": (10.0, 10), "large@int8": (12.0, 20)}


@pytest.mark.parametrize(("measured", "gone", "stays"), [(INT8_WINS, "large", "large@int8"), (INT8_LOSES, "large@int8", "large")])
def test_the_slower_precision_goes_and_a_later_start_does_not_load_it(start, measured, gone: str, stays: str, caplog) -> None:
    caplog.set_level("INFO")
    first = start(measured)
    assert first.loaded == {"small", "large", "large@int8"}, "to be timed"
    first.executor.switch(gone)
    first.judged()
    assert first.loaded == {"small", stays}
    assert first.executor.current.name == stays, "the current route was switched before it was released"
    progress = first.loader.progress()
    assert progress.outdone.keys() == {gone}
    assert f"outdone by {stays} here" in progress.outdone[gone]
    assert (progress.total, progress.loaded, progress.left_out, progress.done) == (3, 2, (), True)
    assert f"route {gone} released: outdone by {stays}" in caplog.text

    again = start()
    assert again.loaded == {"small", stays}
    assert again.loader.progress().outdone.keys() == {gone}
    assert again.loader.progress().done


def test_an_operator_can_keep_all(start) -> None:
    start(INT8_WINS).judged()
    again = start(keep_all=True).judged()
    assert again.loaded == {"small", "large", "large@int8"}
    again.executor.switch("small")
    again.executor.release("large")
    progress = again.loader.progress()
    assert (progress.outdone, progress.done) == ({}, False), "it is still to be loaded"


def test_it_comes_back_where_it_was_measured_to_be_quicker(start) -> None:
    """The verdict is kept with the measurement: a new one ends it."""
    start(INT8_WINS).judged()
    assert start({"large": (5.0, 20)}).judged().loaded == {"small", "large", "large@int8"}


def test_a_verdict_stands_although_the_better_one_is_timed_again(start) -> None:
    start(INT8_WINS).judged()
    assert "large" not in start({"large@int8": (29.0, 10)}).loaded, "still at most as slow"
    assert "large" in start({"large@int8": (31.0, 10)}).loaded


def test_a_verdict_ends_while_serving_where_the_better_one_turns_out_slower(start, caplog) -> None:
    """By more than noise: what was let go is loaded again, and judged by what is known now."""
    caplog.set_level("INFO")
    first = start(INT8_WINS).judged()
    for latency_ms, back in ((31.0, False), (40.0, True)):
        first.executor.correct("large@int8", latency_ms)
        first.judged()
        assert ("large" in first.loaded) == back
        assert (first.judged().loader.progress().verdicts["large"] is None) == back
    assert "route large is measured again: large@int8, by which it was outdone, is slower now" in caplog.text


def test_with_other_threads_there_are_other_verdicts(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SMALL_MACS", 0)  # or these routes had one thread in any case
    first = start(INT8_WINS).judged()
    first.executor.settings = SessionSettings(threads=2)
    first.judged()
    assert "large" not in first.loaded, "while threads are followed nothing is judged"
    for name in first.executor.stale:
        first.executor.reload(name)
    first.loader._pruner.judge(())
    first.loader.step()
    assert "large" in first.loaded, "with two threads it was never measured"


def test_routes_and_status_tell_the_same(start) -> None:
    """Before a profile can be believed neither says anything of a route; then both do. So it is where an operator keeps all."""
    for keep_all in (False, True):
        one = start({**INT8_WINS, "small": (1.0, 5 + keep_all)}, keep_all=keep_all)

        def told(one: Start = one) -> dict[str, bool | None]:
            return {answer.name: answer.on_front_here for answer in describe_routes(one.executor, one.loader.progress()).routes}

        assert told() == {"small": None, "large": None, "large@int8": None}, "measured, but in which moment?"
        assert one.loader.progress().outdone == {}
        one.judged()
        assert told() == {"small": True, "large": False, "large@int8": True}
        assert one.loader.progress().outdone.keys() == (set() if keep_all else {"large"}), "not kept loaded"


def test_it_is_taken_back_where_the_better_one_cannot_be_loaded(start) -> None:
    start(INT8_WINS).judged()
    again = start()
    again.loader._failed["large@int8"] = "spoilt"
    again.executor.switch("small")
    again.executor.release("large@int8")
    while again.loader.step():
        pass
    assert again.loaded == {"small", "large"}


def test_without_the_cheapest_the_next_is_the_way_down(int8_path: Path, tmp_path: Path) -> None:
    """Of the cheapest two, which have as many MACs, the one that is listed first may be outdone."""
    bundle = open_bundle(int8_path)
    executor = Executor(bundle, Compiler.for_bundle(bundle, tmp_path), SETTINGS)
    loader = Loader(executor, preparation_order(bundle))
    cheap = sorted(bundle.routes, key=lambda route: route.macs)
    assert loader._order(bundle.route("large"), None, ())[:2] == ["large", cheap[0].name]
    assert loader._order(bundle.route("large"), None, {cheap[0].name})[:2] == ["large", cheap[1].name]
    executor.close()


def test_what_is_outdone_by_what_is_outdone_names_the_best(start) -> None:
    first = start(INT8_WINS).judged()
    pruner = first.loader._pruner
    pruner._outdone["small"] = dataclasses.replace(pruner._outdone["large"], by="large")
    assert pruner.needed({"small", "large"}, {"large@int8"}) == set()
    assert pruner.needed({"small", "large"}, {"large"}) == {"small", "large"}


def test_spoilt_verdicts_are_none(start) -> None:
    first = start(INT8_WINS).judged()
    file = first.executor._ledger._store._path
    assert file.name == FILE
    kept = json.loads(file.read_bytes())
    key = next(key for key in kept if key.startswith("large on"))
    assert kept[key]["outdone_by"] == "large@int8"
    for spoilt in (7, "no such route", None, ["large@int8"]):
        kept[key]["outdone_by"] = spoilt
        file.write_text(json.dumps(kept))
        assert start().loaded == {"small", "large", "large@int8"}


def test_what_was_measured_while_requests_ran_is_not_judged(start) -> None:
    first = start(INT8_WINS)
    first.executor._ledger._provisional.add("large")
    assert first.judged().loaded == {"small", "large", "large@int8"}


@pytest.mark.parametrize("keep_all", [False, True])
def test_an_engine_prunes_unless_it_is_told_to_keep_all(bundle: Bundle, tmp_path: Path, keep_all: bool) -> None:
    Start(bundle, tmp_path, INT8_WINS).judged().executor.close()
    with Engine.open(bundle.path, cache_root=tmp_path, threads=1, keep_all=keep_all) as engine:
        engine.loader.join(60)
        listed = {one.name: one for one in describe_routes(engine.executor, engine.loader.progress()).routes}
        assert listed["large"].loaded == keep_all
        assert listed["large"].on_front_here is False, "measured to be outdone, kept or not"
        assert "outdone by large@int8" in (listed["large"].outdone or "")
        assert listed["large@int8"].on_front_here
        assert (listed["large@int8"].precision, listed["large"].precision) == ("int8", "fp32")


def test_a_pinned_route_is_loaded_and_stays_although_it_is_outdone(bundle: Bundle, tmp_path: Path) -> None:
    Start(bundle, tmp_path, INT8_WINS).judged().executor.close()
    with Engine.open(bundle.path, cache_root=tmp_path, threads=1, interval_s=0.05, pin="large") as engine:
        engine.loader.join(60)
        engine.controller.tick()
        assert engine.executor.current is not None
        assert engine.executor.current.name == "large"
        engine.controller.pin = None
        assert engine.executor.current.name == "large@int8"
        assert until(lambda: "large" not in engine.executor.loaded)
        engine.controller.pin = "large"
        assert until(lambda: engine.executor.current is not None and engine.executor.current.name == "large"), "loaded again for it"


def until(true: Callable[[], bool], timeout_s: float = 20) -> bool:
    ending = time.monotonic() + timeout_s
    while not true() and time.monotonic() < ending:
        time.sleep(0.01)
    return true()
