"""State as metrics: what a server knows of its models and its device at one moment. Names and units as docs/metrics.md lists them."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from restnet_runtime import __version__
from restnet_runtime.batching import BatchCounts
from restnet_runtime.decision_log import Status
from restnet_runtime.loader import Progress
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route

Labels = dict[str, str]
Samples = Iterable[tuple[Labels, float | None]]


@dataclass(frozen=True)
class Serving:
    """One model.

    model:     name of the bundle; digest: SHA-256 of its manifest
    routes:    of the bundle; profiles: by name, of those that were measured here; loaded: names; current: the name of one
    requests:  that wait or run, and how many of all models may; receiving_bytes: of bodies that are not complete, of all models
               with the first
    updates:   how many ended how; updating: one is under way, `None` where there are none
    loaded_bytes, reserved_bytes: what its loaded routes are predicted to add, and what it may take of what models share
    """

    model: str
    digest: str
    routes: Sequence[Route]
    profiles: dict[str, RouteProfile]
    loaded: Sequence[str]
    current: str | None
    status: Status
    progress: Progress | None
    batches: BatchCounts
    requests: int
    most_requests: int
    receiving_bytes: int
    loaded_bytes: int | None = None
    reserved_bytes: int | None = None
    updates: Mapping[str, int] = field(default_factory=dict)
    updating: bool | None = None


@dataclass(frozen=True)
class Device:
    """reading: the last one, `None` before there is any. listeners: to events."""

    reading: Reading | None = None
    listeners: int = 0


def describe(models: Sequence[Serving]) -> Iterator[Metric]:
    """Every family once, with the samples of all models. What is not known or not limited has no sample."""
    yield _family("restnet_model_info", "What is served; always 1.", [({"model": one.model, "digest": one.digest}, 1) for one in models])
    for name, text, value in _GAUGES:
        yield _family(name, text, [({"model": one.model}, value(one)) for one in models])
    for name, text, value in _COUNTERS:
        yield _family(name, text, [({"model": one.model}, value(one)) for one in models], counts=True)
    ended = [({"model": one.model, "outcome": outcome}, count) for one in models for outcome, count in one.updates.items()]
    yield _family("restnet_updates_total", "Updates of the bundle by how they ended.", ended, counts=True)
    every = [(one, route) for one in models for route in one.routes]
    infos = [({"model": one.model, **_info(route)}, 1.0) for one, route in every]
    yield _family("restnet_route_info", "The routes of the bundle; always 1.", infos)
    for name, text, of_route in _BY_ROUTE:
        yield _family(name, text, [({"model": one.model, "route": route.name}, of_route(one, route)) for one, route in every])
    states = [({"model": one.model, "state": state}, count) for one in models for state, count in _states(one).items()]
    yield _family("restnet_routes", "Routes by state: loaded, pending, left_out for want of memory, outdone by another, failed.", states)


def describe_device(device: Device) -> Iterator[Metric]:
    """The reading, in base units. What could not be read has no sample."""
    reading = device.reading or Reading()
    built = {"version": __version__, "python": platform.python_version(), "onnxruntime": _ONNXRUNTIME}
    yield _family("restnet_build_info", "What serves; always 1.", [(built, 1)])
    yield _family("restnet_event_listeners", "Listeners to /events.", [({}, device.listeners)])
    values = [
        ("memory_available_bytes", "What this process could still take.", reading.memory_available_bytes),
        ("cpu_utilization_ratio", "Use of all cores since the last reading, 0 to 1.", _scaled(reading.cpu_percent, 1e-2)),
        ("others_cpu_cores", "Cores that other processes of normal priority keep busy.", reading.others_cpu_cores),
        ("load1", "Load average over a minute.", reading.load_1m),
        ("cpu_quota_cores", "CPU time that the cgroup grants.", reading.cpu_quota_cores),
        ("cpu_quota_exhausted_ratio", "Of the quota's periods, those in which it was used up.", reading.quota_throttled_share),
        ("temperature_celsius", "Of the hottest thermal zone.", reading.temperature_c),
        ("temperature_headroom_celsius", "To where a zone begins to slow the device down.", reading.temperature_headroom_c),
        ("cpu_frequency_hertz", "Mean of the cores that serve.", _scaled(reading.cpu_frequency_mhz, 1e6)),
        ("cpu_frequency_cap_ratio", "Highest frequency allowed now over the highest there is.", reading.cpu_frequency_cap_share),
        ("power_watts", "What the whole device takes.", reading.power_w),
        ("battery_charge_ratio", "Charge of the least charged battery.", _scaled(reading.battery_percent, 1e-2)),
        ("gpu_utilization_ratio", "Of a Jetson's GPU.", reading.gpu_load_share),
        ("throttled", "1 while something slows the device or this process down, else 0.", _flag(reading.throttled)),
    ]
    for name, text, value in values:
        yield _family(f"restnet_device_{name}", text, [({}, value)])
    pressures = [
        (reading.pressure_cpu_share, "device", "cpu"),
        (reading.pressure_memory_share, "device", "memory"),
        (reading.pressure_io_share, "device", "io"),
        (reading.group_pressure_cpu_share, "group", "cpu"),
        (reading.group_pressure_memory_share, "group", "memory"),
        (reading.group_pressure_io_share, "group", "io"),
    ]
    text = "Of the time, the share in which some task was stalled (PSI), of the device or the own cgroup."
    samples = [({"scope": scope, "resource": resource}, value) for value, scope, resource in pressures]
    yield _family("restnet_device_pressure_ratio", text, samples)
    yield _family("restnet_memory_bytes", "Measured memory of this process (PSS).", [({}, reading.own_memory_bytes)])


_Value = Callable[[Serving], float | None]
_GAUGES: Sequence[tuple[str, str, _Value]] = (
    ("restnet_requests_in_flight", "Requests that wait or run now.", lambda one: one.requests),
    ("restnet_requests_in_flight_limit", "How many of all models may, before further ones are refused.", lambda one: one.most_requests),
    ("restnet_receiving_bytes", "What has arrived of bodies that are not complete.", lambda one: one.receiving_bytes),
    (
        "restnet_queue_wait_seconds",
        "How long the latest requests waited before they ran.",
        lambda one: _scaled(_read(one).waiting_ms, 1e-3),
    ),
    ("restnet_slowdown_ratio", "Recent latency over profiled latency.", lambda one: _read(one).slowdown),
    ("restnet_decision_feasible", "1 while the route that serves fits the budget, else 0.", lambda one: _decided(one, "feasible")),
    ("restnet_pinned", "1 while a route is pinned, else 0.", lambda one: one.status.pin is not None),
    (
        "restnet_controller_problem",
        "1 while the device cannot be read, or no route can be switched to, else 0.",
        lambda one: one.status.problem is not None,
    ),
    ("restnet_budget_macs", "Limit of the standing budget: multiply-accumulates of an input.", lambda one: one.status.budget.macs),
    (
        "restnet_budget_latency_seconds",
        "Limit of the standing budget: time of a request.",
        lambda one: _scaled(one.status.budget.latency_ms, 1e-3),
    ),
    ("restnet_budget_memory_bytes", "Limit of the standing budget: memory of the process.", lambda one: one.status.budget.memory_bytes),
    ("restnet_budget_accuracy_ratio", "Floor of the standing budget: the least accuracy.", lambda one: one.status.budget.min_accuracy),
    (
        "restnet_memory_limit_bytes",
        "Memory limit in force, of the process: the lower of the budgets' and of what the device leaves.",
        lambda one: _memory_limit(one.status),
    ),
    (
        "restnet_predicted_latency_seconds",
        "What all but the slowest requests are to run for on the current route.",
        lambda one: _scaled(_decided(one, "predicted_ms"), 1e-3),
    ),
    (
        "restnet_predicted_memory_bytes",
        "What the process is to take with the current route alone, and no other model.",
        lambda one: one.profiles[one.current].memory_bytes if one.current in one.profiles else None,
    ),
    (
        "restnet_model_memory_bytes",
        "What the loaded routes of a model are predicted to add to the process.",
        lambda one: one.loaded_bytes,
    ),
    (
        "restnet_model_memory_reserved_bytes",
        "What a model may take of the memory that several share.",
        lambda one: one.reserved_bytes,
    ),
    ("restnet_update_running", "1 while another bundle is verified, loaded or on trial, else 0.", lambda one: one.updating),
    (
        "restnet_route_loading",
        "1 while a route is being compiled or loaded, else 0.",
        lambda one: one.progress.loading is not None if one.progress else None,
    ),
)
_COUNTERS: Sequence[tuple[str, str, _Value]] = (
    ("restnet_batched_requests_total", "Requests that shared a run; counted while batching is on.", lambda one: one.batches.shared),
    ("restnet_batch_runs_total", "Runs that requests were put to; counted while batching is on.", lambda one: one.batches.runs),
    ("restnet_switches_total", "Switches from one route to another.", lambda one: one.status.switched),
    (
        "restnet_routes_compiled_total",
        "Routes compiled since the start; the others came from the cache.",
        lambda one: one.progress.compiled if one.progress else None,
    ),
    (
        "restnet_compile_failures_total",
        "Compiles since the start of which no route came.",
        lambda one: one.progress.failed_compiles if one.progress else None,
    ),
)
_BY_ROUTE: Sequence[tuple[str, str, Callable[[Serving, Route], float | None]]] = (
    ("restnet_route_current", "1 for the route that serves, else 0.", lambda one, route: route.name == one.current),
    ("restnet_route_loaded", "1 for routes that can be switched to now, else 0.", lambda one, route: route.name in one.loaded),
    ("restnet_route_macs", "Multiply-accumulates of an input.", lambda _, route: route.macs),
    ("restnet_route_accuracy_ratio", "Top-1 on held-out images, 0 to 1.", lambda _, route: route.accuracy),
    (
        "restnet_route_latency_seconds",
        "Profile of a route on this device: median at batch 1.",
        lambda one, route: one.profiles[route.name].latency_ms / 1e3 if route.name in one.profiles else None,
    ),
    (
        "restnet_route_memory_bytes",
        "Profile of a route on this device: the process with it alone.",
        lambda one, route: one.profiles[route.name].memory_bytes if route.name in one.profiles else None,
    ),
)


def _memory_limit(status: Status) -> float | None:
    """What the model may take, and what its neighbours may."""
    own = None if status.decision is None else status.decision.limits.memory_bytes
    return None if own is None else own + ((status.reading and status.reading.others_memory_bytes) or 0)


def _read(one: Serving) -> Reading:
    return one.status.reading or Reading()


def _decided(one: Serving, field: Literal["feasible", "predicted_ms"]) -> float | None:
    found: float | None = getattr(one.status.decision, field, None)
    return found


def _states(one: Serving) -> dict[str, int]:
    """How many routes are in each state; together they are all of the bundle."""
    progress, states = one.progress, {"loaded": len(one.loaded)}
    if progress is not None:
        left = {"left_out": set(progress.left_out), "failed": set(progress.failed), "outdone": set(progress.outdone)}
        taken = set(one.loaded)
        for state, names in left.items():  # one may be in several: an outdone route that failed
            states[state] = len(names - taken)
            taken |= names
    return {**states, "pending": max(0, len(one.routes) - sum(states.values()))}


def _info(route: Route) -> Labels:
    return {"route": route.name, "precision": route.precision, "on_front": str(route.on_front).lower()}


_ONNXRUNTIME = version("onnxruntime")


def _family(name: str, text: str, samples: Samples, *, counts: bool = False) -> Metric:
    family = (CounterMetricFamily if counts else GaugeMetricFamily)(name, text)
    for labels, value in samples:
        if value is not None:
            family.add_sample(name, labels, float(value))
    return family


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _flag(words: Sequence[str] | None) -> float | None:
    return None if words is None else float(bool(words))
