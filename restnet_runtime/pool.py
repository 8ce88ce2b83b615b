"""The pool: what several models in one process share: its memory, one look at the device, and the turn to load.

    pool = Pool()
    with Runtime("digits", "300MB", pool=pool) as digits, Runtime("faces", pool=pool) as faces:
        ...

Who divides the memory, and how: `sharing.py`; why: docs/decisions/0019-several-bundles.md.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from restnet_runtime import residency
from restnet_runtime.baseline import Common
from restnet_runtime.common_sensors import CommonSensors
from restnet_runtime.residency import LOAD_MARGIN
from restnet_runtime.sensors import Sensors
from restnet_runtime.tenant import Tenant
from restnet_runtime.units import format_bytes

if TYPE_CHECKING:
    from restnet_runtime.sharing import Offer, Option, Room, Share

log = logging.getLogger(__name__)

_VALID_S = 0.2
"""For so long a division stands without a look at what it was made from, unless there is less to divide."""
_PATIENCE_S = 10.0
"""For so long another division has to be the better one before anything is taken from a model for it."""
_SLACK, _MOST_SLACK_BYTES = 0.02, 16 * 2**20
"""Of the limit, and at most, what is kept free of the routes that models have a share for: what the process takes beside them moves."""
_EVEN = 0.1
"""Of the weight, what models have without regard to how much they are asked."""


class _Plan(NamedTuple):
    """whole_bytes: what the process may take, `None` for no limit; overhead_bytes: of it, without any route.

    shares: in the order of the tenants; empty without a limit
    """

    whole_bytes: int | None
    overhead_bytes: int
    at_s: float
    places: "tuple[Place, ...]"
    shares: "tuple[Share, ...]"


class Pool:
    """Give the same one to each `Runtime` or `Engine` of a process. Thread safe. A pool of one model changes nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.sensors = CommonSensors(Sensors)
        self._clock = clock
        self._lock = threading.RLock()  # guards all below; nothing slow is done while it is held
        self._common: Common | None = None
        self._places: tuple[Place, ...] = ()
        self._plan: _Plan | None = None
        self._better_since_s: float | None = None

    @property
    def common(self) -> Common:
        """What the executors share; measured when it is asked for first."""
        with self._lock:
            self._common = self._common or Common()
            return self._common

    def place(self) -> "Place":
        """For a model that is being opened. It counts once it has been taken (`Place.take`)."""
        return Place(self)

    def enter(self, place: "Place") -> None:
        with self._lock:
            self._places = (*self._places, place)
            self.renew()

    def leave(self, place: "Place") -> None:
        with self._lock:
            self._places = tuple(one for one in self._places if one is not place)
            self.renew()

    def follow(self, place: "Place", before: "Place") -> None:
        """Let a place that is taken come where another one is, which comes last: what is first never rests."""
        with self._lock:
            moved = [place if one is before else one for one in self._places if one is not place]
            self._places = (*moved, before)
            self.renew()

    def renew(self) -> None:
        """Divide anew before anything is told again. What models hold they hold on to."""
        with self._lock:
            if self._plan is not None:
                self._plan = self._plan._replace(at_s=-float("inf"))

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        """Of the places that are taken, in the order in which they were."""
        return tuple(place.tenant for place in self._places if place.tenant is not None)

    def plan(self) -> _Plan | None:
        """How the memory is divided now; `None` while there are not two models."""
        if len(self._places) < 2:  # one reference, only ever replaced: a model alone waits for nobody
            return None
        with self._lock:
            places, tenants = self._places, self.tenants
            if len(tenants) < 2:
                return None
            known = [limit for limit in (tenant.process_limit_bytes for tenant in tenants) if limit is not None]
            whole_bytes, now_s, plan = min(known, default=None), self._clock(), self._plan
            if plan is None or not self._stands(plan, whole_bytes, now_s):
                plan = self._plan = self._made(places, tenants, whole_bytes, now_s)
            return plan

    def _stands(self, plan: _Plan, whole_bytes: int | None, now_s: float) -> bool:
        if now_s - plan.at_s >= _VALID_S or (plan.whole_bytes is None) != (whole_bytes is None):
            return False
        if whole_bytes is None or plan.whole_bytes is None:
            return True
        return whole_bytes >= plan.whole_bytes and self.common.baseline.overhead_bytes <= plan.overhead_bytes

    def _made(self, places: "tuple[Place, ...]", tenants: Sequence[Tenant], whole_bytes: int | None, now_s: float) -> _Plan:
        from restnet_runtime.sharing import Room  # not above: a model alone shares with nobody, and is to start quickly

        if whole_bytes is None:
            return _Plan(None, 0, now_s, places, ())
        before = self._plan
        held = dict(zip(before.places, before.shares, strict=True)) if before is not None and before.shares else {}
        options = [held[place].option if place in held else None for place in places]
        routes = [None if option is None else option.route for option in options]
        weights = _weights([tenant.rate_per_s(now_s) for tenant in tenants])
        offers = [tenant.offer(weight, route) for tenant, weight, route in zip(tenants, weights, routes, strict=True)]
        overhead = self.common.baseline.overhead_bytes
        room = Room(whole_bytes - overhead, whole_bytes / LOAD_MARGIN - overhead, min(_SLACK * whole_bytes, _MOST_SLACK_BYTES))
        shares = self._divided(offers, room, now_s)
        for tenant, route, share in zip(tenants, routes, shares, strict=True):
            now = None if share.option is None else share.option.route
            if now != route:
                size, limit = format_bytes(share.reserved_bytes), format_bytes(whole_bytes)
                log.info("memory for %s: %s for %s, of %s for all", tenant.name, size, now or "nothing", limit)
        return _Plan(whole_bytes, overhead, now_s, places, tuple(shares))

    def _divided(self, offers: "Sequence[Offer]", room: "Room", now_s: float) -> "list[Share]":
        from restnet_runtime.sharing import divide, hold, prefer

        fresh, kept = divide(offers, room), hold(offers, room)
        if kept is None:
            self._better_since_s = None
            return fresh
        at_once, soon = prefer(offers, fresh, kept)
        self._better_since_s = (now_s if self._better_since_s is None else self._better_since_s) if soon else None
        if at_once or (self._better_since_s is not None and now_s - self._better_since_s >= _PATIENCE_S):
            self._better_since_s = None
            return fresh
        return kept


class Place(residency.Room):
    """What a pool has for one model: for its controller a `switchable.MemoryShare`, for its loader a `residency.Room`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.tenant: Tenant | None = None

    def take(self, tenant: Tenant) -> None:
        """From now on the model has a share."""
        self.tenant = tenant
        self._pool.enter(self)

    def leave(self) -> None:
        """It has none any more. Leaving twice is harmless."""
        self._pool.leave(self)

    @property
    def model(self) -> str | None:
        return None if self.tenant is None or len(self._pool.tenants) < 2 else self.tenant.name

    def follow(self, before: "Place") -> None:
        """Come where `before` is among the models; it comes last, and is about to leave."""
        self._pool.follow(self, before)

    @property
    def others_bytes(self) -> int | None:
        plan = self._plan()
        return None if plan is None else sum(share.reserved_bytes for place, share in _pairs(plan) if place is not self)

    @property
    def reserved_bytes(self) -> int | None:
        """For this model; `None` while it is alone, or there is no limit."""
        plan = self._plan()
        return next((share.reserved_bytes for place, share in _pairs(plan) if place is self), None) if plan is not None else None

    @property
    def budget_bytes(self) -> int | None:
        known = [limit for limit in (tenant.budget_bytes for tenant in self._pool.tenants) if limit is not None]
        return min(known, default=None)

    @property
    def limit_bytes(self) -> int | None:
        plan = self._plan()
        if plan is None or plan.whole_bytes is None:
            return None
        return max(0, plan.whole_bytes - sum(share.reserved_bytes for place, share in _pairs(plan) if place is not self))

    def renew(self) -> None:
        self._pool.renew()

    @property
    def resting(self) -> str | None:
        plan = self._plan()
        if plan is None or plan.whole_bytes is None or self.tenant is None or self._option(plan) is not None:
            return None
        first = self.tenant.offer(1.0, None).options[0]
        left = plan.whole_bytes - self._overhead_bytes - sum(share.reserved_bytes for _, share in _pairs(plan))
        return (
            f"no room in memory: {first.route}, its cheapest route, takes {format_bytes(first.need_bytes)}, and the models before it leave "
            f"{format_bytes(max(0, left))} of the limit of {format_bytes(plan.whole_bytes)} (and to begin a tenth must stay free)"
        )

    def whole(self, limit_bytes: int | None) -> int | None:
        plan = self._plan()
        return limit_bytes if plan is None else plan.whole_bytes

    def to_load(self, limit_bytes: int | None) -> float | None:
        plan = self._plan()
        option = None if plan is None else self._option(plan)
        usual = super().to_load(limit_bytes)
        if usual is None or option is None:
            return usual
        return max(usual, self._overhead_bytes + option.need_bytes)  # where memory is divided, the margin is kept of all of it

    def admits(self, model_bytes: int, /) -> bool:
        plan = self._plan()
        if plan is None or plan.whole_bytes is None:
            return True
        others = sum(place.tenant.loaded_bytes for place in plan.places if place is not self and place.tenant is not None)
        if self._overhead_bytes + others + model_bytes <= plan.whole_bytes:
            return True
        return others == 0 and plan.places[0] is self  # something has to serve, whatever it takes

    @property
    def _overhead_bytes(self) -> int:
        return self._pool.common.baseline.overhead_bytes

    def _plan(self) -> _Plan | None:
        return self._pool.plan()

    def _option(self, plan: _Plan) -> "Option | None":
        return next((share.option for place, share in _pairs(plan) if place is self), None)


def _pairs(plan: _Plan) -> "zip[tuple[Place, Share]]":
    return zip(plan.places, plan.shares, strict=bool(plan.shares))


def _weights(rates_per_s: Sequence[float]) -> list[float]:
    """Of all 1: by the requests, and a little without regard to them; even where there are none."""
    count, total = len(rates_per_s), sum(rates_per_s)
    return [1 / count if total <= 0 else _EVEN / count + (1 - _EVEN) * rate / total for rate in rates_per_s]
