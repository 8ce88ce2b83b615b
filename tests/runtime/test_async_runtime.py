"""The Python API for asyncio, on the digits that ship."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from restnet_runtime import AsyncRuntime
from restnet_runtime.engine import Engine
from restnet_runtime.errors import BundleError, ClosedError, InputError

X = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.fixture
def run(cache_root: Path) -> Callable[[Callable[[AsyncRuntime], Awaitable[None]]], None]:
    """Opens the digits in an event loop of their own, runs a visit, and closes them."""

    def run(visit: Callable[[AsyncRuntime], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with AsyncRuntime(cache=cache_root, threads=1, keep_all=True) as rt:
                assert await rt.wait_loaded(60)
                await visit(rt)

        asyncio.run(whole())
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("restnet-")]

    return run


def test_predictions_budgets_and_status(run: Callable) -> None:
    async def visit(rt: AsyncRuntime) -> None:
        assert (await rt.predict(X)).route == "cnn-l"
        rt.budget = "600kFLOPs"
        assert str(rt.budget) == "600 KMACs"
        answers = await asyncio.gather(*(rt.predict(X) for _ in range(50)))
        assert {answer.route for answer in answers} == {"cnn-l[0-1]>cnn-s[2-3]"}
        assert len({answer.index for answer in answers}) == 1
        assert [answer.route for answer in await rt.predict([X, X], budget="200kFLOPs")] == ["cnn-s"] * 2
        rt.budget, rt.pin = None, "cnn-s"
        assert ((await rt.predict(X, top_k=2)).route, rt.pin) == ("cnn-s", "cnn-s")
        assert (await rt.status()).current == "cnn-s"
        assert len(rt.routes) == 7
        assert len(rt.classes) == 10
        with pytest.raises(InputError):
            await rt.predict(None)

    run(visit)


def test_the_loop_goes_on_while_it_computes(run: Callable) -> None:
    async def visit(rt: AsyncRuntime) -> None:
        many = [X] * 3000
        turns, over = 0, False

        async def watch() -> None:
            nonlocal turns
            while not over:
                await asyncio.sleep(0.001)
                turns += 1

        watcher = asyncio.create_task(watch())
        await rt.predict(many)
        within, over = turns, True
        await watcher
        assert within >= 5, "a loop that is held up comes to one or none"

    run(visit)


def test_events(run: Callable) -> None:
    async def visit(rt: AsyncRuntime) -> None:
        kinds = []
        async for event in rt.events():
            kinds.append(event.kind)
            if event.kind == "decision":
                rt.budget = "600kFLOPs"
            if event.switch is not None:
                assert event.switch.after == event.route == "cnn-l[0-1]>cnn-s[2-3]"
                break
        assert kinds[0] == "decision"

    run(visit)


def test_closed_in_the_middle(cache_root: Path) -> None:
    async def visit() -> None:
        rt = await AsyncRuntime(cache=cache_root, threads=1, workers=1).open()
        assert await rt.open() is rt
        asked = [asyncio.create_task(rt.predict([X] * 50)) for _ in range(40)]
        await asked[0]
        await rt.close()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds == {list, ClosedError}
        await rt.close()
        with pytest.raises(ClosedError):
            await rt.predict(X)
        with pytest.raises(ClosedError):
            await anext(rt.events())
        with pytest.raises(ClosedError, match="make another one"):
            await rt.open()
        with pytest.raises(ClosedError):
            async with rt:
                pass

    asyncio.run(visit())


def test_opened_twice_at_once_and_closed_meanwhile(cache_root: Path) -> None:
    async def visit() -> None:
        rt = AsyncRuntime(cache=cache_root, threads=1)
        one, other = await asyncio.gather(rt.open(), rt.open())
        assert one is other is rt
        assert sum(thread.name == "restnet-controller" for thread in threading.enumerate()) == 1
        await rt.close()
        rt = AsyncRuntime(cache=cache_root, threads=1)
        opening = asyncio.create_task(rt.open())
        await asyncio.sleep(0)
        await rt.close()
        assert await opening is rt
        assert rt.closed

    asyncio.run(visit())
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("restnet-")]


def test_before_it_is_open_and_when_it_cannot_be(tmp_path: Path) -> None:
    async def visit() -> None:
        rt = AsyncRuntime(tmp_path / "none")
        assert rt.closed
        with pytest.raises(ClosedError, match="not open"):
            await rt.predict(X)
        with pytest.raises(ClosedError, match="not open yet"):
            _ = rt.budget
        with pytest.raises(BundleError):
            await rt.open()
        await rt.close()

    asyncio.run(visit())


def test_an_opening_that_nobody_waits_for_any_more_is_undone(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, given_up, wait_ready = threading.Event(), threading.Event(), Engine.wait_ready

    def held(engine: Engine, timeout_s: float | None = None) -> None:
        begun.set()
        given_up.wait(20)
        wait_ready(engine, timeout_s)

    monkeypatch.setattr(Engine, "wait_ready", held)

    async def visit() -> None:
        opening = asyncio.create_task(AsyncRuntime(cache=cache_root, threads=1).open())
        while not begun.is_set() and not opening.done():
            await asyncio.sleep(0.002)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        given_up.set()

    asyncio.run(visit())  # which waits for the threads that it started
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("restnet-")]
