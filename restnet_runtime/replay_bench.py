"""What a replay needs of this device: the profile of every route, and how long an anchor takes to load."""

import time
from collections.abc import Callable, Sequence

from restnet_runtime.bench import candidates
from restnet_runtime.budget import Budget
from restnet_runtime.engine import Engine
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.loader import Loader
from restnet_runtime.machine import describe_machine
from restnet_runtime.replays import Replays, find_traces, play_all, replay_budget, spread_of
from restnet_runtime.rivals import Cast

_LOADS = 3
_REFINED = 4


def run_replays(
    engine: Engine,
    budget: Budget,
    names: Sequence[str],
    *,
    spread: float | None = None,
    at_random: bool = False,
    on_trace: Callable[[str], object] = lambda _: None,
) -> Replays:
    """Load and profile every route, then replay the traces.

    names:   of traces, as `find_traces` takes them
    spread:  of run times; by default that of the profiles
    Raises `CompileError` when not one route can be loaded, `TraceError` for a trace that cannot be had, `OSError` for a file.
    """
    executor = engine.executor
    loader = Loader(executor, preparation_order(executor.bundle))
    loader.run()
    if not executor.loaded:
        raise CompileError(f"no route could be loaded: {loader.progress().failed}")
    for name in list(executor.loaded) * _REFINED:  # a busy moment may have met some
        executor.refine(name)
    routes = candidates(executor)
    budget, fitting = replay_budget(budget, routes)
    assert budget.latency_ms is not None
    traces = find_traces(names, fitting, budget.latency_ms)
    anchors = [anchor.name for anchor in executor.bundle.manifest.anchors]
    cast = Cast.of(fitting, budget, _load_s(executor, anchors), anchors)
    return play_all(
        executor.bundle.manifest.name,
        traces,
        fitting,
        budget,
        cast,
        describe_machine(),
        spread=spread_of(routes) if spread is None else spread,
        at_random=at_random,
        on_trace=on_trace,
    )


def _load_s(executor: Executor, anchors: Sequence[str]) -> float:
    """Seconds to load the dearest anchor from the compiled cache, the quickest of a few: what a reload costs at least. 0 for one route."""
    loaded = [name for name in anchors if name in executor.loaded] or list(executor.loaded)
    name = max(loaded, key=lambda one: executor.bundle.route(one).macs)
    others = [one for one in executor.loaded if one != name]
    if not others:
        return 0.0
    executor.switch(others[0])
    times = []
    for _ in range(_LOADS):
        executor.release(name)
        started = time.perf_counter()
        executor.load(name, warm=True)
        times.append(time.perf_counter() - started)
    return min(times)
