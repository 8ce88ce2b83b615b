"""A comparison: figures of routes as they are served beside those of plain ONNX Runtime sessions, and how they are shown."""

from dataclasses import asdict, dataclass

from restnet_runtime.budget import Budget
from restnet_runtime.growth import Growth
from restnet_runtime.tables import table
from restnet_runtime.threads import describe_threads
from restnet_runtime.units import format_bytes, format_macs, format_ms


@dataclass(frozen=True)
class RouteComparison:
    """One route at batch 1. `plain_` is the plain session of the same network; `None` where `plain_reason` says why none was made.

    threads:                of one request, ours and the plain session's: a small route runs on one
    latency_ms, p95_ms:     median and 95th percentile of the session's timed runs, without what the executor adds
    ratio:                  ours over plain, the median of the ratios of the rounds: below 1 ours is faster
    ratio_low, ratio_high:  95 % confidence interval of `ratio`
    difference:             of the outputs, relative to the largest logit
    load_ms:                from the compiled cache to a session that can run; median of a few, files in the page cache
    plain_load_ms:          the same from the joined graph: the session made. Joining the segments is not timed
    """

    name: str
    macs: int
    accuracy: float | None
    on_front: bool
    threads: int
    latency_ms: float
    p95_ms: float
    load_ms: float
    plain_latency_ms: float | None = None
    plain_p95_ms: float | None = None
    plain_load_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    difference: float | None = None
    plain_reason: str | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class MemoryComparison:
    """PSS of two processes: one has loaded the routes as they are served, one a plain session for each; each has run once.

    idle_pss_bytes, plain_idle_pss_bytes:  before the first route, everything imported (for plain sessions `onnx` too)
    pss_bytes:        with `resident_routes` routes; `None` for none
    plain_pss_bytes:  with `plain_routes` sessions; `None` for none
    memory_reason:    why the process with our routes ended early, `None` when it did not
    plain_reason:     why there are fewer plain sessions than routes, `None` when there are not
    memory_factor:    what plain sessions add to their idle process over what ours add to theirs, both with the same routes
    """

    idle_pss_bytes: int
    pss_bytes: int | None
    resident_routes: int
    memory_reason: str | None
    plain_idle_pss_bytes: int
    plain_pss_bytes: int | None
    plain_routes: int
    plain_reason: str | None
    memory_factor: float | None

    @classmethod
    def of(cls, ours: Growth, plain: Growth) -> "MemoryComparison":
        """The factor is taken at the last route up to which both have loaded the same ones."""
        factor = None
        for (name, bytes_), (plain_name, plain_bytes) in zip(ours.after, plain.after, strict=False):
            if name != plain_name:
                break
            added = bytes_ - ours.idle_bytes
            factor = (plain_bytes - plain.idle_bytes) / added if added > 0 else None
        return cls(
            idle_pss_bytes=ours.idle_bytes,
            pss_bytes=ours.pss_bytes,
            resident_routes=len(ours.after),
            memory_reason=ours.why_fewer,
            plain_idle_pss_bytes=plain.idle_bytes,
            plain_pss_bytes=plain.pss_bytes,
            plain_routes=len(plain.after),
            plain_reason=plain.why_fewer,
            memory_factor=factor,
        )


@dataclass(frozen=True)
class Comparison:
    """What `restnet-bench --compare plain` found.

    chosen, feasible, reason:  what the policy says under `budget` (it looks at the routes alone, not at the device)
    routes:                    those on the Pareto front, and the one chosen; cheap first
    failed:                    routes that cannot be loaded here, and why
    threads:                   the most that one of `routes` runs on
    runs:                      timed runs of each session that were asked for
    """

    bundle: str
    digest: str
    compared: str
    budget: Budget
    feasible: bool
    chosen: str
    reason: str
    routes: tuple[RouteComparison, ...]
    memory: MemoryComparison
    failed: dict[str, str]
    threads: int
    runs: int
    machine: dict[str, str | int]

    def document(self) -> dict[str, object]:
        """As JSON-ready values; figures of the processes stand beside those of the bundle."""
        document = asdict(self)
        memory = document.pop("memory")
        return {**document, **memory}


def render(comparison: Comparison) -> str:
    """The comparison for a terminal."""
    several = any(route.precision != "fp32" for route in comparison.routes)
    memory, threads = comparison.memory, describe_threads(route.threads for route in comparison.routes)
    lines = [
        f"bundle {comparison.bundle}, {threads}, {memory.resident_routes} routes loaded; "
        f"plain: one ONNX Runtime session for each, {comparison.runs} runs",
        f"budget {comparison.budget}: {comparison.chosen}: {comparison.reason}",
        "",
        table(
            (
                "route",
                *(["precision"] if several else []),
                "cost",
                "accuracy",
                "threads",
                "median",
                "p95",
                "plain median",
                "p95",
                "ratio",
                "95 % interval",
                "load",
                "plain load",
            ),
            (_cells(route, several) for route in comparison.routes),
        ),
        "",
        f"ratio: ours over plain, below 1 ours is faster. Machine: {comparison.machine['processor']}, "
        f"ONNX Runtime {comparison.machine['onnxruntime']}",
        _memory_line("memory (PSS)", "routes", memory.resident_routes, memory.pss_bytes, memory.idle_pss_bytes),
        _memory_line("plain", "sessions", memory.plain_routes, memory.plain_pss_bytes, memory.plain_idle_pss_bytes)
        + ("" if memory.memory_factor is None else f": {memory.memory_factor:.2f} times ours with the same routes"),
    ]
    reasons = [memory.memory_reason, memory.plain_reason, *(route.plain_reason for route in comparison.routes)]
    lines += [f"not measured: {reason}" for reason in dict.fromkeys(reasons) if reason is not None]
    lines += [f"route {name} cannot be loaded: {why}" for name, why in comparison.failed.items()]
    return "\n".join(lines)


def _cells(route: RouteComparison, several: bool) -> tuple[str, ...]:
    interval = "-" if route.ratio_low is None or route.ratio_high is None else f"{route.ratio_low:.3f} to {route.ratio_high:.3f}"
    return (
        route.name,
        *([route.precision] if several else []),
        format_macs(route.macs),
        "?" if route.accuracy is None else f"{route.accuracy:.1%}",
        str(route.threads),
        format_ms(route.latency_ms),
        format_ms(route.p95_ms),
        _ms(route.plain_latency_ms),
        _ms(route.plain_p95_ms),
        "-" if route.ratio is None else f"{route.ratio:.3f}",
        interval,
        format_ms(route.load_ms),
        _ms(route.plain_load_ms),
    )


def _ms(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else format_ms(milliseconds)


def _memory_line(label: str, what: str, count: int, pss_bytes: int | None, idle_bytes: int) -> str:
    if pss_bytes is None:
        return f"{label}: not one of the {what} was loaded"
    added = format_bytes(pss_bytes - idle_bytes)
    return f"{label} of a process with {count} {what}: {format_bytes(pss_bytes)}, {added} above the idle one"
