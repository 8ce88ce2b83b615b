"""The engine: real bundle, real sessions, real threads."""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from restnet_runtime.batch_plan import BatchSettings, Mode
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import SHIPPED_BUNDLE, Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.engine import Engine
from restnet_runtime.errors import BundleError, CompileError, InfeasibleError
from restnet_runtime.executor import Answer, preparation_order
from restnet_runtime.loader import Loader, Progress
from restnet_runtime.policy import Decision
from restnet_runtime.providers import NAMES
from restnet_runtime.sessions import SessionSettings, infer, plain_session

X = np.random.default_rng(3).standard_normal((1, 1, 8, 8)).astype(np.float32)
THREADS = {"restnet-controller", "restnet-loader"}


@pytest.fixture
def engine(family_path: Path, cache_root: Path):
    """Started, every route loaded, no budget."""
    with Engine.open(family_path, cache_root=cache_root, threads=1) as engine:
        engine.loader.join(60)
        yield engine


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running() -> set[str]:
    return THREADS & {thread.name for thread in threading.enumerate()}


def test_open_loads_nothing_and_start_loads_all(family_path: Path, tmp_path: Path) -> None:
    engine = Engine.open(family_path, cache_root=tmp_path, threads=1)
    assert engine.executor.current is None
    assert engine.executor.loaded == ()
    with pytest.raises(InfeasibleError, match="none is loaded"):
        engine.run(X)
    assert not running()
    engine.start()
    try:
        assert running() == THREADS or engine.loader.progress().done
        engine.loader.join(60)
        first, *others = preparation_order(engine.executor.bundle)
        # The cheapest, to answer early; then the one that is wanted, which without limits is the most accurate; then the rest of the front.
        assert engine.executor.loaded == (first, "large", *(name for name in others if name != "large"))
        assert engine.loader.progress().failed == {}
        assert engine.compiler.worker is not None
        assert engine.compiler.worker.pid not in (None, os.getpid()), "routes are compiled in a process of their own"
    finally:
        engine.stop()
    assert not running()
    assert engine.compiler.worker.pid is None
    assert engine.executor.loaded == ()
    with pytest.raises(InfeasibleError, match="none is loaded"):
        engine.run(X)


@pytest.mark.usefixtures("level_sizes")
def test_where_the_cache_is_too_small_for_packed_weights_routes_do_without(family_path: Path, tmp_path: Path) -> None:
    with Engine.open(family_path, cache_root=tmp_path, threads=1, cache_bytes=60_000) as engine:
        engine.loader.join(60)
        assert set(engine.executor.levels.values()) == {"prepacked", "mapped"}
        assert len(engine.executor.loaded) == 4
        assert engine.run(X).route.name == "large"


def test_a_cache_that_is_full_leaves_routes_out_and_serves_the_others(family_path: Path, family_bundle: Bundle, tmp_path: Path) -> None:
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    compiler.compile(family_bundle.route("small"))
    with Engine.open(family_path, cache_root=tmp_path, threads=1, cache_bytes=compiler.cache.shelf.used_bytes()) as engine:
        engine.loader.join(60)
        assert engine.executor.loaded == ("small",)
        assert {"room for" in reason for reason in engine.loader.progress().failed.values()} == {True}
        assert engine.run(X).route.name == "small"


def test_a_route_loaded_between_two_looks_is_ready(family_path: Path, cache_root: Path) -> None:
    engine = Engine.open(family_path, cache_root=cache_root, threads=1)

    class Late(Loader):
        def progress(self) -> Progress:
            if self._thread.ident is None:
                self.start()
                self.join(60)
            return super().progress()

    late = replace(engine, loader=Late(engine.executor, ["small"]))
    late.wait_ready()
    assert late.executor.loaded == ("small",)
    late.stop()


def test_stopped_in_the_midst_of_a_first_start_it_complains_of_nothing(family_path: Path, tmp_path: Path, caplog) -> None:
    """The worker waits for the cache's lock, as for a long compile, when it is ended."""
    caplog.set_level(logging.INFO)
    engine = Engine.open(family_path, cache_root=tmp_path / "cache", threads=1)
    with (engine.compiler.cache.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine.start()
        until(lambda: engine.compiler.worker is not None and engine.compiler.worker.pid is not None)
        engine.stop()
    ours = [record for record in caplog.records if record.name.startswith("restnet_runtime")]
    assert [record.getMessage() for record in ours if record.levelno > logging.INFO] == []
    assert "compiling has been stopped: the route 'small' is not compiled" in caplog.text
    assert "SIGKILL" not in caplog.text
    assert engine.loader.progress().failed == {}


def test_stop_without_start_is_harmless(family_path: Path, cache_root: Path) -> None:
    Engine.open(family_path, cache_root=cache_root).stop()


def test_the_first_answer_does_not_wait_for_the_other_routes(family_path: Path, family_bundle: Bundle, tmp_path: Path) -> None:
    first, *_ = preparation_order(family_bundle)
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    compiler.compile(family_bundle.route(first))
    with (compiler.cache.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what is not compiled yet has to wait for this
        with Engine.open(family_path, cache_root=tmp_path, threads=1) as engine:
            try:
                until(lambda: engine.executor.loaded and engine.loader.progress().loading != first)
                assert engine.loader.progress().loaded == 1
                assert engine.run(X).route.name == first == "small"
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)
            engine.loader.join(60)
            assert engine.loader.progress().compiled == len(family_bundle.routes) - 1
            assert engine.run(X).route.name == "large"


@pytest.mark.parametrize("name", ["small", "small[0-1]>large[3-4]", "small[0-1]>large[2-4]", "large"])
def test_a_new_budget_switches_at_once_and_the_answer_is_that_of_the_route(engine: Engine, name: str) -> None:
    bundle = engine.executor.bundle
    route = bundle.route(name)
    assert engine.run(X).route.name == "large"
    engine.controller.budget = Budget(macs=route.macs)
    assert engine.executor.current == route
    answer = engine.run(X)
    assert answer.route == route
    assert answer.latency_ms > 0
    np.testing.assert_allclose(answer.logits, infer(plain_session(bundle, route, SessionSettings()), X), rtol=1e-4, atol=1e-4)
    engine.controller.budget = Budget()
    assert engine.executor.current is not None
    assert engine.executor.current.name == "large"


def test_limits_of_one_request_hold_for_it_alone(engine: Engine) -> None:
    cheap = engine.executor.bundle.route("small")
    assert engine.run(X, Budget(macs=cheap.macs)).route == cheap
    assert engine.run(X).route.name == "large"
    assert engine.controller.budget == Budget()
    engine.controller.budget = Budget(macs=cheap.macs)
    assert engine.run(X, Budget(macs=10**12)).route == cheap


def test_a_request_whose_route_is_released_before_it_runs_gets_another(engine: Engine) -> None:
    executor, released = engine.executor, []

    def run(decision: Decision) -> Answer:
        if not released:
            executor.switch("small")
            executor.release(decision.route)
            released.append(decision.route)
        return executor.run(X, decision.route)

    decision, answer = engine.controller.run_decided(Budget(), run)
    assert released == ["large"]
    assert answer.route.name == decision.route in executor.loaded


def test_a_provider_that_is_missing_is_logged(family_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = next(name for name in ("cuda", "acl") if NAMES[name] not in ort.get_available_providers())
    engine = Engine.open(family_path, cache_root=tmp_path, providers=[asked])
    assert f"{NAMES[asked]} is not in this ONNX Runtime" in caplog.text
    assert any(NAMES[asked] in note for note in engine.executor.notes)
    engine.stop()


def test_where_nothing_fits_the_cheapest_answers(engine: Engine) -> None:
    assert engine.run(X, Budget(macs=1)).route.name == "small"
    decision = engine.controller.decide_request(Budget(macs=1))
    assert not decision.feasible


def test_the_budget_of_the_start_holds_from_the_first_answer(family_path: Path, cache_root: Path, family_bundle: Bundle) -> None:
    budget = Budget(macs=family_bundle.route("small[0-1]>large[3-4]").macs)
    with Engine.open(str(family_path), budget, cache_root=cache_root, threads=1) as engine:
        engine.loader.join(60)
        assert engine.controller.budget == budget
        assert engine.run(X).route.name == "small[0-1]>large[3-4]"


def test_single_requests_are_what_slowdown_is_told_of(family_path: Path, cache_root: Path) -> None:
    with Engine.open(family_path, cache_root=cache_root, threads=1, interval_s=3600) as engine:
        engine.loader.join(60)

        def slowdown() -> float | None:
            engine.controller.tick()
            reading = engine.controller.status().reading
            assert reading is not None
            return reading.slowdown

        assert engine.run(np.repeat(X, 3, 0)).logits.shape == (3, 3)
        assert slowdown() is None
        assert engine.run(X).logits.shape == (1, 3)
        assert slowdown() is not None


@pytest.mark.parametrize("batching", ["on", "auto", BatchSettings("on", max_wait_ms=0.5, max_batch=3)])
def test_with_batching_every_caller_gets_its_own_answer(family_path: Path, cache_root: Path, batching: BatchSettings | Mode) -> None:
    inputs = np.random.default_rng(4).standard_normal((20, 1, 1, 8, 8)).astype(np.float32)
    with Engine.open(family_path, cache_root=cache_root, threads=1, batching=batching) as engine:
        engine.loader.join(60)
        expected = [engine.executor.run(x, "large").logits for x in inputs]
        with ThreadPoolExecutor(5) as clients:
            answers = list(clients.map(lambda i: engine.run(inputs[i % 20]), range(200)))
        for i, answer in enumerate(answers):
            assert answer.route.name == "large"
            np.testing.assert_allclose(answer.logits, expected[i % 20], rtol=1e-4, atol=1e-5)
    assert engine.batcher.settings.mode == (batching if isinstance(batching, str) else "on")


def test_it_ticks_at_its_interval(family_path: Path, cache_root: Path) -> None:
    with Engine.open(family_path, cache_root=cache_root, threads=1, interval_s=0.01) as engine:
        engine.loader.join(60)
        engine.run(X)

        def seen() -> bool:
            reading = engine.controller.status().reading
            return reading is not None and reading.slowdown is not None

        until(seen)


@pytest.mark.usefixtures("none_is_small")
@pytest.mark.parametrize(("threads", "expected"), [(2, 2), (None, None)])
def test_profiles_say_how_many_threads_they_hold_for(family_path: Path, tmp_path: Path, threads: int | None, expected: int | None) -> None:
    from restnet_runtime.threads import usable_cores

    engine = Engine.open(family_path, cache_root=tmp_path, threads=threads)
    engine.executor.load("small")
    engine.stop()
    (profiles,) = tmp_path.rglob("profiles.json")
    assert list(json.loads(profiles.read_text())) == [f"small on {expected or usable_cores()} threads"]


def test_what_cannot_be_opened_is_said(family_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing"):
        Engine.open(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(CompileError, match="no cache can be made"):
        Engine.open(family_path, cache_root=tmp_path / "file")


def test_the_shipped_bundle_is_the_default(tmp_path: Path) -> None:
    engine = Engine.open(cache_root=tmp_path)
    assert engine.executor.bundle.path == SHIPPED_BUNDLE == open_bundle(SHIPPED_BUNDLE).path
    assert engine.executor.bundle.manifest.classes == tuple("0123456789")


def test_an_interrupted_start_leaves_no_threads(family_path: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.open(family_path, cache_root=cache_root, threads=1)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.controller, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), engine:
        pass
    assert not {"restnet-controller", "restnet-loader"} & {thread.name for thread in threading.enumerate()}
