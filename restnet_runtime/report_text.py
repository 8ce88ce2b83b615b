"""The report on a device as Markdown: to paste into an issue, and a row for `docs/devices.md`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from restnet_runtime.device_report import Conditions, DeviceReport
from restnet_runtime.errors import TraceError
from restnet_runtime.facts import describe_cgroup, describe_processor, yes_or_no
from restnet_runtime.units import format_bytes, format_macs, format_ms


def files_of(prefix: Path) -> tuple[Path, Path]:
    """PREFIX.json and PREFIX.md. Raises `TraceError` where `prefix` is a bundle: then an argument is missing."""
    if (prefix / "manifest.json").exists():
        raise TraceError(f"{prefix} is a bundle, and --report takes what the files are to be called: give the bundle before it")
    return prefix.with_name(f"{prefix.name}.json"), prefix.with_name(f"{prefix.name}.md")


def write(report: DeviceReport, prefix: Path) -> tuple[Path, Path]:
    """Write both files, and return them."""
    document, text = files_of(prefix)
    document.write_text(json.dumps(report.document(), indent=1) + "\n")
    text.write_text(render(report))
    return document, text


def render(report: DeviceReport) -> str:
    """Markdown for an issue."""
    facts, known = report.facts, len(report.routes)
    runtimes = ", ".join(f"{name} {version}" for name, version in facts.runtimes.items())
    lines = [
        f"### ReStNet Runtime {facts.version} on {facts.board or describe_processor(facts)}",
        "",
        f"- {describe_processor(facts)}; int8 dot product: {yes_or_no(facts.processor.dot_product)}; {' '.join(facts.processor.features)}",
        f"- {facts.system}, Linux {facts.kernel}, {facts.machine}",
        f"- memory {format_bytes(facts.memory_bytes)}, pages of {facts.page_bytes // 1024} KiB; cgroup {describe_cgroup(facts.cgroup)}; "
        f"PSI: {yes_or_no(facts.pressure)}",
        f"- {facts.python}, {runtimes} ({', '.join(report.providers)}), numpy {facts.packages.get('numpy', 'missing')}",
        f"- before: {_told(report.before)}; after: {_told(report.after)}",
        "",
        f"Bundle `{report.bundle}` ({report.digest[:12]}), input {'x'.join(map(str, report.input_shape))}. "
        f"{known} routes ready in {report.loading_s:.1f} s, {report.compiled} of them compiled. "
        f"Memory (PSS) {format_bytes(report.idle_bytes)} before, {format_bytes(report.resident_bytes)} with all of them. "
        f"A switch takes {format_ms(report.switch_ms)}. Runs took {report.slowdown:.2f} times what the profiles say.",
        "",
        *_rows(
            ("route", "cost", "accuracy", "front", "level", "threads", "median", "p95", "predicted", "memory alone"),
            (
                (
                    f"`{route.name}`",
                    format_macs(route.macs),
                    _share(route.accuracy),
                    "yes" if route.on_front else "",
                    route.level,
                    str(route.threads),
                    format_ms(route.median_ms),
                    format_ms(route.p95_ms),
                    format_ms(route.predicted_ms),
                    format_bytes(route.predicted_memory_bytes),
                )
                for route in report.routes
            ),
        ),
        "",
        *_rows(
            ("budget", "route", "fits", "accuracy", "median", "within the limit"),
            (
                (
                    one.budget,
                    f"`{one.route}`",
                    "yes" if one.feasible else "no",
                    _share(one.accuracy),
                    format_ms(one.median_ms),
                    "" if one.met_share is None else f"{one.met_share:.0%} of {one.runs}",
                )
                for one in report.outcomes
            ),
        ),
        *[f"\nroute `{name}` cannot be loaded: {why}" for name, why in report.failed.items()],
    ]
    return "\n".join(lines) + "\n"


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def _share(accuracy: float | None) -> str:
    return "?" if accuracy is None else f"{accuracy:.1%}"


def _told(conditions: Conditions) -> str:
    """What a reader of latencies needs: who else ran, heat, and what slowed the device down."""
    others, heat, slowed = conditions.others_cpu_cores, conditions.temperature_c, conditions.throttled
    told = [
        "load unknown" if conditions.load_1m is None else f"load {conditions.load_1m:.2f}",
        "" if others is None else f"others took {others:.2f} cores",
        "no temperature" if heat is None else f"{heat:.0f} C",
        "throttling unknown" if slowed is None else f"throttled by {', '.join(slowed)}" if slowed else "not throttled",
        f"throttled since boot by {', '.join(conditions.throttled_since_boot)}" if conditions.throttled_since_boot else "",
    ]
    return ", ".join(one for one in told if one)
