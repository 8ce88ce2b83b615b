"""Compare the routes of a bundle, as they are served on this device, with one plain ONNX Runtime session for each.

A plain session is what a user would do without us: the same joined network, ONNX Runtime's defaults, optimisation level ALL,
as many threads. First the memory, each in a process of its own (`growth.py`). Then, in this process, every route of the
bundle is loaded and stays so; beside them one plain session at a time is made, its output compared, and both are timed in
turns (`turns.py`); then both are loaded a few times more.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from restnet_runtime.bench import choose
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import Bundle
from restnet_runtime.comparison import Comparison, MemoryComparison, RouteComparison
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.growth import measure_growth, memory_available_bytes, room_for_plain
from restnet_runtime.machine import describe_machine
from restnet_runtime.noise import noise
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, infer, joined_graph, load_session, plain_session
from restnet_runtime.turns import Turns, median_and_p95, take_turns

MAX_DIFFERENCE = 1e-4
"""Of two outputs, relative to the largest logit: what adding float32 in another order may do."""
_LOADS = 3


def compare_plain(
    bundle: Bundle,
    budget: Budget,
    *,
    cache_root: Path,
    threads: int,
    runs: int,
    available: Callable[[], int | None] = memory_available_bytes,
    on_step: Callable[[str], object] = lambda _: None,
) -> Comparison:
    """Memory of all routes, and latency and load time of those on the front, beside plain sessions.

    available:  memory that may still be taken, asked before each plain session; one that may need more is not made
    on_step:    told what is done now
    Raises `CompileError` when not one route can be loaded and, naming the route, when two outputs differ.
    """
    compiler = Compiler.for_bundle(bundle, cache_root)
    grow = partial(measure_growth, bundle, cache_root=cache_root, threads=threads, available=available)
    made = grow(preparation_order(bundle), "compiled", on_route=lambda name: on_step(f"compiling {name}"))
    names = [name for name, _ in made.after]
    if not names:
        raise CompileError(f"no route could be loaded: {made.stopped or made.failed}")
    # Once more, because a process that has just compiled has more in memory than one that finds everything in the cache. And
    # before this process loads a route: weights that two processes have mapped count half in each.
    ours = grow(names, "compiled", on_route=lambda name: on_step(f"memory with {name}"))
    plain = grow(names, "plain", on_route=lambda name: on_step(f"memory with plain {name}"))
    executor = Executor(bundle, compiler, SessionSettings(threads))
    try:
        for name in names:
            on_step(f"loading {name}")
            executor.load(name)
        decision = choose(executor, budget)
        rows = []
        for route in sorted(bundle.routes, key=lambda route: route.macs):
            if route.name == decision.route or (route.on_front and route.name in names):
                on_step(f"timing {route.name}")
                rows.append(_compare_route(executor, compiler, route, threads, runs, available))
    finally:
        executor.close()
    lost = {name: made.stopped for name in preparation_order(bundle) if made.stopped and name not in (*names, *made.failed)}
    return Comparison(
        bundle=bundle.manifest.name,
        digest=bundle.digest,
        compared="plain",
        budget=budget,
        feasible=decision.feasible,
        chosen=decision.route,
        reason=decision.reason,
        routes=tuple(rows),
        memory=MemoryComparison.of(ours, plain),
        failed={**made.failed, **lost},
        threads=max(row.threads for row in rows),
        runs=runs,
        machine=describe_machine(),
    )


def output_difference(name: str, found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest expected logit. Raises `CompileError` when that is more than `MAX_DIFFERENCE`."""
    largest = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max()) / (largest or 1.0)
    if not difference <= MAX_DIFFERENCE:  # NaN too
        raise CompileError(
            f"the route {name!r} answers otherwise than a plain session of it: by {difference:.1e} of the largest logit, "
            f"allowed are {MAX_DIFFERENCE:.0e}; nothing was timed"
        )
    return difference


def _compare_route(
    executor: Executor, compiler: Compiler, route: Route, threads: int, runs: int, available: Callable[[], int | None]
) -> RouteComparison:
    bundle, settings, x = executor.bundle, SessionSettings(threads).of(route), noise(executor.bundle)
    session = executor.load(route.name).session  # loaded already

    def load() -> ort.InferenceSession:
        return load_session(compiler.compile(route), settings)

    joined = joined_graph(bundle, route)

    def load_plain() -> ort.InferenceSession:
        return plain_session(bundle, route, settings, joined)

    why_not = room_for_plain(route, available())
    if why_not is not None:
        turns = take_turns(lambda: infer(session, x), lambda: None, runs)
        latency_ms, p95_ms = median_and_p95(turns.ours_ms)
        load_ms = statistics.median(_took_ms(load) for _ in range(_LOADS))
        return RouteComparison(
            route.name,
            route.macs,
            route.accuracy,
            route.on_front,
            settings.threads,
            latency_ms,
            p95_ms,
            load_ms,
            plain_reason=why_not,
            precision=route.precision,
        )
    difference, turns = _time_beside(route.name, session, load_plain(), x, runs)
    load_times = [(_took_ms(load), _took_ms(load_plain)) for _ in range(_LOADS)]
    latency_ms, p95_ms = median_and_p95(turns.ours_ms)
    plain_latency_ms, plain_p95_ms = median_and_p95(turns.theirs_ms)
    low, high = turns.ratio_interval
    return RouteComparison(
        name=route.name,
        macs=route.macs,
        accuracy=route.accuracy,
        on_front=route.on_front,
        threads=settings.threads,
        latency_ms=latency_ms,
        p95_ms=p95_ms,
        load_ms=statistics.median(ours for ours, _ in load_times),
        plain_latency_ms=plain_latency_ms,
        plain_p95_ms=plain_p95_ms,
        plain_load_ms=statistics.median(theirs for _, theirs in load_times),
        ratio=turns.ratio,
        ratio_low=low,
        ratio_high=high,
        difference=difference,
        precision=route.precision,
    )


def _time_beside(name: str, session: ort.InferenceSession, plain: ort.InferenceSession, x: np.ndarray, runs: int) -> tuple[float, Turns]:
    """How much the outputs differ, and the times. A function of its own, so that the plain session is gone when the next is made."""
    difference = output_difference(name, infer(session, x), infer(plain, x))
    return difference, take_turns(lambda: infer(session, x), lambda: infer(plain, x), runs)


def _took_ms(make: Callable[[], object]) -> float:
    """Milliseconds that `make` takes; what it makes is let go of afterwards."""
    started = time.perf_counter()
    made = make()
    took_ms = (time.perf_counter() - started) * 1e3
    del made
    return took_ms
