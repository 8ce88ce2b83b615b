"""Which routes stay loaded. Pure: needs and a limit in, names out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from restnet_runtime.routes import Route


@dataclass(frozen=True)
class Need:
    """What a loaded route adds to the process.

    touched:          (offset, length) in the shared weights that it reads; counted once however many routes read them
    anonymous_bytes:  session and activations, its own
    """

    touched: frozenset[tuple[int, int]]
    anonymous_bytes: int


def together(needs: Iterable[Need]) -> int:
    """Bytes that these routes add when all of them are loaded."""
    listed = list(needs)
    touched = frozenset[tuple[int, int]]().union(*(need.touched for need in listed))
    return sum(length for _, length in touched) + sum(need.anonymous_bytes for need in listed)


def by_value(routes: Sequence[Route], current: str | None) -> list[str]:
    """Names, the most valuable to have loaded first.

    The current route; the cheapest, which is the way down; the front by nearness to the current one in cost; then the others.
    """
    ranked = sorted(routes, key=lambda route: route.macs)
    place = {route.name: index for index, route in enumerate(ranked)}
    centre = place.get(current, 0) if current is not None else 0

    def value(route: Route) -> tuple[bool, bool, bool, int]:
        return route.name != current, place[route.name] != 0, not route.on_front, abs(place[route.name] - centre)

    return [route.name for route in sorted(ranked, key=value)]


def keep(order: Sequence[str], needs: Mapping[str, Need], overhead_bytes: int, limit_bytes: float | None) -> list[str]:
    """Of `order` (the most valuable first) those that fit together under the limit; the first always stays, or nothing would serve.

    overhead_bytes: of the process without any route
    """
    kept: list[str] = []
    for name in order:
        grown = [*kept, name]
        if not kept or limit_bytes is None or overhead_bytes + together(needs[one] for one in grown) <= limit_bytes:
            kept = grown
    return kept
