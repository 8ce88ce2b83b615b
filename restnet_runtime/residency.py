"""Which routes stay loaded. Pure: needs and a limit in, names out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from restnet_runtime.routes import Route

LOAD_MARGIN = 1.1
"""A route is loaded only where it fits, with all that is loaded, into this much less than the limit: or it would come and go in turns."""


@dataclass(frozen=True)
class Need:
    """What a loaded route adds to the process.

    touched:           (offset, length) in the shared weights that it reads; counted once however many routes read them
    session_bytes:     its session's own memory
    activation_bytes:  what a run takes at batch 1; all routes share one arena, so of several loaded ones the largest counts
    """

    touched: frozenset[tuple[int, int]]
    session_bytes: int
    activation_bytes: int = 0


def together(needs: Iterable[Need]) -> int:
    """Bytes that these routes add when all of them are loaded."""
    listed = list(needs)
    touched = frozenset[tuple[int, int]]().union(*(need.touched for need in listed))
    activations = max((need.activation_bytes for need in listed), default=0)
    return sum(length for _, length in touched) + sum(need.session_bytes for need in listed) + activations


def by_value(routes: Sequence[Route], current: str | None, wanted: str | None = None) -> list[str]:
    """Names, the most valuable to have loaded first.

    The current route; the one that would be chosen were all loaded; the cheapest, which is the way down; the front by nearness to
    the current one in cost; then the others.
    """
    ranked = sorted(routes, key=lambda route: route.macs)
    place = {route.name: index for index, route in enumerate(ranked)}
    centre = place.get(current, 0) if current is not None else 0

    def value(route: Route) -> tuple[bool, bool, bool, bool, int]:
        near = abs(place[route.name] - centre)
        return route.name != current, route.name != wanted, place[route.name] != 0, not route.on_front, near

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


class Room:
    """What the other models of a process leave to one. This one is of a process without others."""

    @property
    def model(self) -> str | None:
        """The name of the model, where there are others."""
        return None

    @property
    def resting(self) -> str | None:
        """Why nothing of the model may stay loaded; `None` where something may."""
        return None

    def whole(self, limit_bytes: int | None) -> int | None:
        """What the process may take, all models together. limit_bytes: what it may with routes of this one alone."""
        return limit_bytes

    def to_load(self, limit_bytes: int | None) -> float | None:
        """Into so much of that limit what is loaded has to fit with all that is there; `None` for no limit."""
        return None if limit_bytes is None else limit_bytes / LOAD_MARGIN

    def admits(self, _model_bytes: int, /) -> bool:
        """May the routes of this model be so large now, beside what is loaded of the others?"""
        return True


def lean(need: Need) -> Need:
    """A loaded route whose weights have gone back to the kernel."""
    return replace(need, touched=frozenset())


def stays_lean(name: str, kept: Sequence[str], needs: Mapping[str, Need], overhead_bytes: int, limit_bytes: float) -> bool:
    """Does a loaded route fit beside those that are kept once its weights have gone back to the kernel?

    They come back when it is switched to. Without the cheapest loaded, a limit that goes on falling would find no route to fall to. So it
    stays too where the first of `kept`, which serves, does not fit even alone: then it is the one that will serve in a moment.
    """
    together_fit = overhead_bytes + together([*(needs[one] for one in kept), lean(needs[name])]) <= limit_bytes
    return together_fit or overhead_bytes + together([needs[kept[0]]]) > limit_bytes
