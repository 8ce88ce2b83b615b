"""The front of this device: which routes are outdone here by another one. Pure: measured costs in, names out.

Which precision is quicker only the device can tell, so the manifest has a front for each, over multiply-accumulates. Here they meet.
A route is outdone by one single other that is at least as accurate, at most as slow, and takes at most as much memory and as many
multiply-accumulates; in one of these it is better by more than measuring it twice would differ. Whatever budget the one fits the
other fits too, so none is lost by letting the one go. Memory that differs by less than two measurements do counts as equal: or a
small network in int8 would stay wherever it is slower, for the kilobytes that it saves. What has no accuracy is never outdone and
outdoes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from restnet_runtime.profile import RouteProfile
from restnet_runtime.routes import Route
from restnet_runtime.units import format_bytes, format_macs, format_ms

LATENCY_NOISE = 0.05
"""Share by which two measurements of one route's latency may differ."""
MEMORY_NOISE_BYTES = 2**20


@dataclass(frozen=True)
class Outdone:
    """by: name of the route that is better here. reason: for people, with the figures of both."""

    by: str
    reason: str


def outdone(points: Sequence[tuple[Route, RouteProfile]]) -> dict[str, Outdone]:
    """By name, the routes that another one outdoes; of several the quickest, which nothing outdoes itself."""
    best = [point for point in points if not any(_outdoes(other, point) for other in points)]
    best.sort(key=lambda point: point[1].latency_ms)
    found = {}
    for point in points:
        better = next((other for other in best if _outdoes(other, point)), None)
        if better is not None:
            found[point[0].name] = Outdone(better[0].name, _reason(better, point))
    return found


def _outdoes(one: tuple[Route, RouteProfile], other: tuple[Route, RouteProfile]) -> bool:
    (route, profile), (route_, profile_) = one, other
    if route.accuracy is None or route_.accuracy is None:
        return False
    never_worse = (
        route.accuracy >= route_.accuracy
        and profile.latency_ms <= profile_.latency_ms
        and profile.memory_bytes < profile_.memory_bytes + MEMORY_NOISE_BYTES
        and route.macs <= route_.macs
    )
    return never_worse and (
        route.accuracy > route_.accuracy
        or profile.latency_ms * (1 + LATENCY_NOISE) < profile_.latency_ms
        or profile.memory_bytes + MEMORY_NOISE_BYTES < profile_.memory_bytes
        or route.macs < route_.macs
    )


def _reason(better: tuple[Route, RouteProfile], worse: tuple[Route, RouteProfile]) -> str:
    (route, profile), (route_, profile_) = better, worse
    figures = [f"{format_ms(profile.latency_ms)} against {format_ms(profile_.latency_ms)}"]
    if route.accuracy != route_.accuracy:
        figures.append(f"{route.accuracy:.1%} against {route_.accuracy:.1%}")
    if profile.memory_bytes + MEMORY_NOISE_BYTES < profile_.memory_bytes:
        figures.append(f"{format_bytes(profile.memory_bytes)} against {format_bytes(profile_.memory_bytes)}")
    if route.macs != route_.macs:
        figures.append(f"{format_macs(route.macs)} against {format_macs(route_.macs)}")
    return f"outdone by {route.name} here: {', '.join(figures)}"
