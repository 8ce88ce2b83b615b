"""A report on a device: what `restnet-bench --report` measures with a bundle, as JSON and as text to paste into an issue."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from restnet_runtime.bench import choose, time_switches
from restnet_runtime.budget import Budget
from restnet_runtime.engine import Engine
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.facts import Facts, gather_facts, providers
from restnet_runtime.loader import Loader
from restnet_runtime.memory import footprint
from restnet_runtime.noise import noise
from restnet_runtime.profile import percentile
from restnet_runtime.reading import Reading
from restnet_runtime.redaction import without_paths
from restnet_runtime.routes import Route
from restnet_runtime.switchable import ReadingSource

FORMAT = 1
"""Of the JSON; one more when a field changes its meaning or goes."""
_SHARES = (1.5, 0.75, 0.5, 0.25)
"""Of the most accurate route's latency: limits that are tried where no budget was asked for."""
_LEAST_ROUNDS, _MOST_S = 10, 60.0
_BETWEEN_S = 0.3


@dataclass(frozen=True)
class ReportedRoute:
    """One route at batch 1. What is predicted is the profile that the policy goes by; its memory is the process's with this route alone."""

    name: str
    precision: str
    macs: int
    accuracy: float | None
    on_front: bool
    level: str
    threads: int
    median_ms: float
    p95_ms: float
    predicted_ms: float
    predicted_memory_bytes: int


@dataclass(frozen=True)
class Outcome:
    """What came of a budget: the route of the policy, and of `runs` runs on it the share within the latency limit.

    met_share: `None` where the budget has no latency limit
    """

    budget: str
    latency_ms: float | None
    route: str
    feasible: bool
    reason: str
    accuracy: float | None
    runs: int
    median_ms: float
    met_share: float | None


@dataclass(frozen=True)
class Conditions:
    """Of the device while it was measured, as `Reading` has them."""

    load_1m: float | None
    others_cpu_cores: float | None
    waiting_share: float | None
    memory_available_bytes: int | None
    temperature_c: float | None
    throttled: tuple[str, ...] | None
    throttled_since_boot: tuple[str, ...] | None
    cpu_frequency_mhz: float | None
    cpu_frequency_cap_share: float | None
    power_w: float | None

    @classmethod
    def of(cls, reading: Reading) -> "Conditions":
        return cls(**{name: getattr(reading, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class DeviceReport:
    """Everything; sizes of memory are PSS of this process.

    idle_bytes, resident_bytes:  before the first route is loaded, and with all of them
    loading_s, compiled:         to make all routes ready, and how many were not in the cache
    failed:                      routes that could not be loaded, and why, without the paths of the device
    slowdown, tail:              medians over the routes of latency over what the profile says, and of the 95th percentile over latency:
                                 budgets are tried under these, as a server would have known them
    switch_ms:                   median of making another route the current one
    """

    made: str
    facts: Facts
    available_providers: tuple[str, ...]
    providers: tuple[str, ...]
    before: Conditions
    after: Conditions
    bundle: str
    digest: str
    input_shape: tuple[int, ...]
    routes: tuple[ReportedRoute, ...]
    failed: dict[str, str]
    idle_bytes: int
    resident_bytes: int
    loading_s: float
    compiled: int
    slowdown: float
    tail: float
    switch_ms: float
    outcomes: tuple[Outcome, ...]
    format: int = FORMAT

    def document(self) -> dict[str, object]:
        """As JSON-ready values."""
        return asdict(self)


def make_report(engine: Engine, budget: Budget, runs: int, on_step: Callable[[str], object] = lambda _: None) -> DeviceReport:
    """Load every route, measure them in turns, and try budgets: `budget`, or a ladder of latencies where it limits nothing.

    Raises `CompileError` when not one route can be loaded.
    """
    executor = engine.executor
    before, idle_bytes = _conditions(engine.sensors), footprint().pss_bytes
    started = time.monotonic()
    on_step("loading every route")
    loader = Loader(executor, preparation_order(executor.bundle))
    loader.run()
    loading_s, progress = time.monotonic() - started, loader.progress()
    if not executor.loaded:
        raise CompileError(f"no route could be loaded: {progress.failed}")
    routes = sorted(map(executor.bundle.route, executor.loaded), key=lambda route: (route.macs, route.name))
    on_step(f"timing {len(routes)} routes")
    reported = _time_routes(executor, routes, runs)
    slowdown = percentile([route.median_ms / route.predicted_ms for route in reported], 0.5)
    tail = max(1.0, percentile([route.p95_ms / route.median_ms for route in reported], 0.5))
    on_step("trying budgets")
    outcomes = [_try(executor, one, Reading(slowdown=slowdown, tail=tail), runs) for one in _budgets(budget, reported)]
    manifest, places = executor.bundle.manifest, (engine.compiler.cache.shelf.root, executor.bundle.path)
    return DeviceReport(
        made=time.strftime("%Y-%m-%d", time.gmtime()),
        facts=gather_facts(),
        available_providers=providers(),
        providers=tuple(executor.settings.providers.names),
        before=before,
        after=_conditions(engine.sensors),
        bundle=manifest.name,
        digest=executor.bundle.digest,
        input_shape=manifest.input.shape,
        routes=tuple(reported),
        failed={name: without_paths(why, places) for name, why in progress.failed.items()},
        idle_bytes=idle_bytes,
        resident_bytes=footprint().pss_bytes,
        loading_s=loading_s,
        compiled=progress.compiled,
        slowdown=slowdown,
        tail=tail,
        switch_ms=time_switches(executor, [route.name for route in routes], runs),
        outcomes=tuple(outcomes),
    )


def _conditions(sensors: ReadingSource) -> Conditions:
    sensors.read()  # shares of time are since the last reading
    time.sleep(_BETWEEN_S)
    return Conditions.of(sensors.read())


def _time_routes(executor: Executor, routes: Sequence[Route], runs: int) -> list[ReportedRoute]:
    """In turns, so that what else the device does meets all of them; the first run of a route is not counted."""
    x = noise(executor.bundle)
    times: dict[str, list[float]] = {route.name: [] for route in routes}
    started = time.monotonic()
    for turn in range(runs + 1):
        for route in routes:
            took_ms = executor.run(x, route.name).latency_ms
            if turn:
                times[route.name].append(took_ms)
        if turn >= min(runs, _LEAST_ROUNDS) and time.monotonic() - started > _MOST_S:
            break
    reported, levels, threads = [], executor.levels, executor.threads
    for route in routes:
        profile = executor.profile(route.name)
        if profile is None:
            raise CompileError(f"the route {route.name!r} was released while it was measured")
        reported.append(
            ReportedRoute(
                name=route.name,
                precision=route.precision,
                macs=route.macs,
                accuracy=route.accuracy,
                on_front=route.on_front,
                level=levels[route.name],
                threads=threads[route.name],
                median_ms=percentile(times[route.name], 0.5),
                p95_ms=percentile(times[route.name], 0.95),
                predicted_ms=profile.latency_ms,
                predicted_memory_bytes=profile.memory_bytes,
            )
        )
    return reported


def _budgets(budget: Budget, routes: Sequence[ReportedRoute]) -> list[Budget]:
    if budget != Budget():
        return [budget]
    best = max(routes, key=lambda route: (route.accuracy or 0.0, route.macs))
    return [Budget(latency_ms=float(f"{share * best.median_ms:.2g}")) for share in _SHARES]


def _try(executor: Executor, budget: Budget, reading: Reading, runs: int) -> Outcome:
    decision = choose(executor, budget, reading)
    executor.switch(decision.route)
    x, started, times = noise(executor.bundle), time.monotonic(), list[float]()
    while len(times) < runs and (len(times) < _LEAST_ROUNDS or time.monotonic() - started < _MOST_S / len(_SHARES)):
        times.append(executor.run(x).latency_ms)
    limit_ms = budget.latency_ms
    return Outcome(
        budget=str(budget),
        latency_ms=limit_ms,
        route=decision.route,
        feasible=decision.feasible,
        reason=decision.reason,
        accuracy=executor.bundle.route(decision.route).accuracy,
        runs=len(times),
        median_ms=percentile(times, 0.5),
        met_share=None if limit_ms is None else sum(took_ms <= limit_ms for took_ms in times) / len(times),
    )
