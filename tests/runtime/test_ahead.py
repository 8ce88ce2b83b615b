"""Sessions that are opened ahead: the same ones, in the same order, and none where it would be measured along."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from restnet_runtime import loader as loader_module
from restnet_runtime.ahead import OpenAhead
from restnet_runtime.bundle import Bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.levels import SessionOpener
from restnet_runtime.loader import Loader
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, infer, plain_session

ONE = SessionSettings(threads=1)


class Counting(SessionOpener):
    """Keeps the names of routes that were opened, and by which thread."""

    def __init__(self, bundle: Bundle, compiler: Compiler) -> None:
        super().__init__(bundle, compiler)
        self.opened: list[tuple[str, str]] = []

    def open(self, route: Route, settings: SessionSettings, on_compile: Callable[[Route], None] | None = None):
        self.opened.append((route.name, threading.current_thread().name))
        return super().open(route, settings, on_compile)


@pytest.fixture
def opener(family_bundle: Bundle, cache_root: Path) -> Counting:
    return Counting(family_bundle, Compiler.for_bundle(family_bundle, cache_root))


def test_what_was_begun_is_handed_out_once(opener: Counting, family_bundle: Bundle) -> None:
    ahead, route = OpenAhead(opener), family_bundle.route("large")
    ahead.begin(route, ONE)
    ahead.begin(route, ONE)
    first = ahead.open(route, ONE)[1]
    second = ahead.open(route, ONE)[1]
    assert [thread for _, thread in opener.opened] == ["restnet-opener", threading.current_thread().name]
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    expected = infer(plain_session(family_bundle, route, ONE), x)
    for session in (first, second):
        assert np.allclose(infer(session, x), expected, rtol=1e-5, atol=1e-5)


def test_other_settings_take_another_session(opener: Counting, family_bundle: Bundle) -> None:
    ahead, route = OpenAhead(opener), family_bundle.route("large")
    ahead.begin(route, ONE)
    session = ahead.open(route, SessionSettings(threads=2))[1]
    assert session.get_session_options().intra_op_num_threads == 2
    assert len(opener.opened) == 2


def test_an_error_is_raised_where_the_session_is_asked_for(
    opener: Counting, family_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, route = OpenAhead(opener), family_bundle.route("large")

    def fail(*_: object) -> None:
        raise CompileError("no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(SessionOpener, "open", fail)
        ahead.begin(route, ONE)
        with pytest.raises(CompileError, match="no such luck"):
            ahead.open(route, ONE)
    assert ahead.open(route, ONE)[0] is not None, "the next one is opened anew"


def test_what_is_dropped_is_opened_anew(opener: Counting, family_bundle: Bundle) -> None:
    ahead = OpenAhead(opener)
    for name in ("small", "large"):
        ahead.begin(family_bundle.route(name), ONE)
    ahead.drop(but=["large"])
    for name in ("small", "large"):
        ahead.open(family_bundle.route(name), ONE)
    assert sorted(name for name, _ in opener.opened) == ["large", "small", "small"]


@pytest.fixture
def openers(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    """The openers of executors that are made from here on."""
    made: list[Counting] = []

    def make(bundle: Bundle, compiler: Compiler) -> Counting:
        made.append(Counting(bundle, compiler))
        return made[-1]

    monkeypatch.setattr("restnet_runtime.executor.SessionOpener", make)
    monkeypatch.setattr(loader_module, "usable_cores", lambda: 2)
    return made


@pytest.fixture
def start(family_bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., tuple[Executor, list[str]]]]:
    """A start on a cache of this test's own, told in which order routes became ready."""
    executors = []

    def start(**options: object) -> tuple[Executor, list[str]]:
        executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, tmp_path), ONE)
        executors.append(executor)
        ready: list[str] = []
        Loader(executor, preparation_order(family_bundle), ready.append, **options).run()  # type: ignore[arg-type]
        return executor, ready

    yield start
    for executor in executors:
        executor.close()


def test_a_warm_start_opens_two_at_once_and_keeps_the_order(start, openers: list[Counting], family_bundle: Bundle) -> None:
    order, here = preparation_order(family_bundle), threading.current_thread().name
    cold, ready = start()
    assert ready == order
    assert {thread for _, thread in openers[0].opened} == {here}, "what has to be measured is opened and measured alone"
    warm, ready = start()
    assert ready == order
    # The first alone, and what stands first whenever two are opened by whoever loads.
    assert sorted(openers[1].opened) == sorted([(order[0], here), (order[1], here), *((name, "restnet-opener") for name in order[2:])])
    assert not [thread for thread in threading.enumerate() if thread.name == "restnet-opener"]
    for name in order:
        assert warm.need(name) == cold.need(name)
        assert warm.profile(name).latency_ms == cold.profile(name).latency_ms
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    for name in order:
        assert np.array_equal(warm.run(x, name).logits, cold.run(x, name).logits)


def test_where_memory_is_short_one_is_opened_at_a_time(start, openers: list[Counting]) -> None:
    start()
    _, ready = start(memory_limit=lambda: 1)
    assert len(ready) == 1
    assert {thread for _, thread in openers[1].opened} == {threading.current_thread().name}


def test_what_was_opened_ahead_is_let_go_before_anything_is_weighed(start, openers, family_bundle: Bundle, tmp_path: Path) -> None:
    start()
    executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, tmp_path), ONE)
    executor.load("small")
    executor.prepare(["large", "small[0-1]>large[2-4]"], at_once=2)
    assert openers[-1].opened[-1] == ("small[0-1]>large[2-4]", "restnet-opener")
    executor.weigh()
    executor.load("small[0-1]>large[2-4]")
    assert openers[-1].opened[-1] == ("small[0-1]>large[2-4]", threading.current_thread().name)
    executor.close()


def test_where_no_thread_can_be_started_any_more_a_session_is_opened_when_it_is_asked_for(
    opener: Counting, family_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.12 on that is so once the main thread has ended: here the interpreter's words stand in for it."""

    def ending(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    ahead, route = OpenAhead(opener), family_bundle.route("large")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", ending)
        ahead.begin(route, ONE)
        assert opener.opened == []
        ahead.drop()
        ahead.begin(route, ONE)
    x = np.zeros((1, 1, 8, 8), np.float32)
    assert infer(ahead.open(route, ONE)[1], x).shape == (1, 3)
    assert [thread for _, thread in opener.opened] == [threading.current_thread().name]


def test_a_system_that_has_no_room_for_a_thread_is_told(opener: Counting, family_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        OpenAhead(opener).begin(family_bundle.route("large"), ONE)
