"""Which route fits a budget on this device, what it costs here, and what its neighbours would give."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from restnet_runtime.budget import Budget
from restnet_runtime.engine import Engine
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.explain import Verdict
from restnet_runtime.explain import explain as explain_routes
from restnet_runtime.explain import render as render_verdicts
from restnet_runtime.loader import Loader
from restnet_runtime.machine import describe_machine
from restnet_runtime.memory import footprint
from restnet_runtime.noise import noise
from restnet_runtime.policy import Candidate, Decision, History, decide
from restnet_runtime.profile import RouteProfile, percentile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route, pareto_front
from restnet_runtime.tables import table
from restnet_runtime.threads import describe_threads
from restnet_runtime.units import format_bytes, format_macs, format_ms


@dataclass(frozen=True)
class RouteFigures:
    """One route on this device; latencies of one request at batch 1.

    threads:                 of one request: a small route runs on one
    predicted_ms:            from the profile that the policy uses
    median_ms, p95_ms:       measured now, interleaved with the other routes shown
    predicted_memory_bytes:  PSS of this process with this route alone, as the policy predicts it
    memory_bytes:            the same, measured after the other routes were released
    first_ms:                median of the first answer after a switch to this route
    """

    role: str
    name: str
    precision: str
    macs: int
    accuracy: float | None
    threads: int
    predicted_ms: float
    median_ms: float
    p95_ms: float
    predicted_memory_bytes: int
    memory_bytes: int
    first_ms: float


@dataclass(frozen=True)
class Benchmark:
    """What `restnet-bench` found.

    failed:     routes that cannot be loaded here, and why
    pss_bytes:  of this process with all routes resident
    switch_ms:  median of replacing the current route
    threads:    the most that one of the three runs on
    load_ms:    median of making a route resident from a warm compiled cache: what a reload on the request path would cost;
                `None` for a bundle of one route, which cannot be released
    explanation: every route with what rules it out, where asked for
    """

    bundle: str
    digest: str
    budget: Budget
    feasible: bool
    reason: str
    chosen: RouteFigures
    cheaper: RouteFigures | None
    dearer: RouteFigures | None
    resident_routes: int
    failed: dict[str, str]
    pss_bytes: int
    switch_ms: float
    load_ms: float | None
    threads: int
    machine: dict[str, str | int]
    explanation: list[Verdict] | None = None

    def document(self) -> dict[str, object]:
        """As JSON-ready values."""
        return asdict(self)


def run_benchmark(engine: Engine, budget: Budget, runs: int, *, explain: bool = False) -> Benchmark:
    """Load every route, choose under `budget` as the policy does, and measure the choice beside its neighbours on the front.

    Raises `CompileError` when not one route can be loaded.
    """
    executor = engine.executor
    loader = Loader(executor, preparation_order(executor.bundle))  # also what is over the budget: it is to be compared
    loader.run()
    failed = loader.progress().failed
    if not executor.loaded:
        raise CompileError(f"no route could be loaded: {failed}")
    decision = choose(executor, budget)
    explanation = explain_routes(candidates(executor), decision) if explain else None
    chosen = executor.bundle.route(decision.route)
    loaded = [route for route in executor.bundle.routes if route.name in executor.loaded]
    cheaper, dearer = neighbours(chosen, loaded, {route.name: executor.profile(route.name) for route in loaded})
    shown = {"cheaper": cheaper, "chosen": chosen, "dearer": dearer}
    figures = _measure(executor, {role: route for role, route in shown.items() if route is not None}, runs)
    pss_bytes = footprint().pss_bytes
    switch_ms = time_switches(executor, [route.name for route in loaded], runs)
    load_ms = []
    for role in [*figures, *figures] if len(loaded) > 1 else []:
        took_ms, alone_bytes = _alone(executor, figures[role].name)
        load_ms += [took_ms] if took_ms is not None else []
        figures[role] = replace(figures[role], memory_bytes=alone_bytes)
    return Benchmark(
        bundle=executor.bundle.manifest.name,
        digest=executor.bundle.digest,
        budget=budget,
        feasible=decision.feasible,
        reason=decision.reason,
        chosen=figures["chosen"],
        cheaper=figures.get("cheaper"),
        dearer=figures.get("dearer"),
        resident_routes=len(loaded),
        failed=failed,
        pss_bytes=pss_bytes,
        switch_ms=switch_ms,
        load_ms=percentile(load_ms, 0.5) if load_ms else None,
        threads=max(one.threads for one in figures.values()),
        machine=describe_machine(),
        explanation=explanation,
    )


def candidates(executor: Executor) -> list[Candidate]:
    """The routes that are loaded, with their profiles."""
    loaded = set(executor.loaded)
    return [Candidate(route, executor.profile(route.name)) for route in executor.bundle.routes if route.name in loaded]


def choose(executor: Executor, budget: Budget, reading: Reading | None = None) -> Decision:
    """What the policy says under `budget` alone, of the routes that are loaded: no history counts, and of the device's state `reading`."""
    return decide(reading or Reading(), budget, candidates(executor), History(), now_s=0.0)


def neighbours(
    chosen: Route, routes: list[Route], profiles: Mapping[str, RouteProfile | None] | None = None
) -> tuple[Route | None, Route | None]:
    """The next cheaper and the next dearer route among those on the Pareto front.

    By MACs where all routes have one precision. Between precisions these say nothing: then by the latency of `profiles`, on the
    front of accuracy over it, so that the dearer one is always more accurate.
    """
    measured = [(route, profile) for route in routes if (profile := (profiles or {}).get(route.name)) is not None]
    if len({route.precision for route, _ in measured}) > 1 and any(route == chosen for route, _ in measured):
        costs = {route.name: profile.latency_ms for route, profile in measured}
        flags = pareto_front((profile.latency_ms, route.accuracy) for route, profile in measured)
        front = [route for (route, _), on in zip(measured, flags, strict=True) if on]
    else:
        costs = {route.name: float(route.macs) for route in routes} | {chosen.name: float(chosen.macs)}
        front = [route for route in routes if route.on_front]
    front.sort(key=lambda route: costs[route.name])
    cheaper = [route for route in front if costs[route.name] < costs[chosen.name]]
    dearer = [route for route in front if costs[route.name] > costs[chosen.name]]
    return (cheaper[-1] if cheaper else None), (dearer[0] if dearer else None)


def render(benchmark: Benchmark) -> str:
    """The benchmark for a terminal."""
    shown = [figures for figures in (benchmark.cheaper, benchmark.chosen, benchmark.dearer) if figures is not None]
    several = any(figures.precision != "fp32" for figures in shown)
    lines = [
        f"bundle {benchmark.bundle}, budget {benchmark.budget}, {describe_threads(figures.threads for figures in shown)}",
        f"route  {benchmark.chosen.name}: {benchmark.reason}",
        "",
        table(
            (
                "",
                "route",
                *(["precision"] if several else []),
                "cost",
                "accuracy",
                "predicted",
                "median",
                "p95",
                "first after switch",
                "memory, predicted",
                "alone",
            ),
            (
                (
                    figures.role,
                    figures.name,
                    *([figures.precision] if several else []),
                    format_macs(figures.macs),
                    "?" if figures.accuracy is None else f"{figures.accuracy:.1%}",
                    format_ms(figures.predicted_ms),
                    format_ms(figures.median_ms),
                    format_ms(figures.p95_ms),
                    format_ms(figures.first_ms),
                    format_bytes(figures.predicted_memory_bytes),
                    format_bytes(figures.memory_bytes),
                )
                for figures in shown
            ),
        ),
        "",
        f"memory of this process with {benchmark.resident_routes} routes resident: {format_bytes(benchmark.pss_bytes)} (PSS)",
        f"a switch costs {format_ms(benchmark.switch_ms)}"
        + ("" if benchmark.load_ms is None else f"; loading a route would cost {format_ms(benchmark.load_ms)}"),
    ]
    if benchmark.explanation is not None:
        lines += ["", render_verdicts(benchmark.explanation)]
    lines += [f"route {name} cannot be loaded: {why}" for name, why in benchmark.failed.items()]
    return "\n".join(lines)


def _measure(executor: Executor, shown: dict[str, Route], runs: int) -> dict[str, RouteFigures]:
    x = noise(executor.bundle)
    times: dict[str, list[float]] = {role: [] for role in shown}
    first: dict[str, list[float]] = {role: [] for role in shown}
    for _ in range(runs):
        for role, route in shown.items():
            executor.switch(route.name)
            first[role].append(executor.run(x).latency_ms)
            times[role].append(executor.run(x).latency_ms)
    figures = {}
    for role, route in shown.items():
        profile = executor.profile(route.name)
        if profile is None:
            raise CompileError(f"the route {route.name!r} was released while it was measured")
        figures[role] = RouteFigures(
            role=role,
            name=route.name,
            precision=route.precision,
            macs=route.macs,
            accuracy=route.accuracy,
            threads=profile.threads,
            predicted_ms=profile.latency_ms,
            median_ms=percentile(times[role], 0.5),
            p95_ms=percentile(times[role], 0.95),
            predicted_memory_bytes=profile.memory_bytes,
            memory_bytes=footprint().pss_bytes,
            first_ms=percentile(first[role], 0.5),
        )
    return figures


def time_switches(executor: Executor, names: list[str], runs: int) -> float:
    """Median of making another of these loaded routes the current one, in milliseconds."""
    times = []
    for index in range(max(runs, len(names))):
        started = time.perf_counter()
        executor.switch(names[index % len(names)])
        times.append((time.perf_counter() - started) * 1e3)
    return percentile(times, 0.5)


def _alone(executor: Executor, name: str) -> tuple[float | None, int]:
    """Milliseconds to load the route from the compiled cache (`None` if it was loaded), and PSS once it alone is resident."""
    took_ms = None
    if name not in executor.loaded:
        started = time.perf_counter()
        executor.load(name)
        took_ms = (time.perf_counter() - started) * 1e3
    executor.switch(name)
    for other in executor.loaded:
        if other != name:
            executor.release(other)
    executor.run(noise(executor.bundle))
    return took_ms, footprint().pss_bytes
