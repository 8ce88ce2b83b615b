"""Observed: all that requests tell, taken in as they come and put into a reading when there is one."""

import math
import time
from collections.abc import Callable

from restnet_runtime.allowance import Allowance
from restnet_runtime.beside import Beside
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.served import Served
from restnet_runtime.stalls import Stalls
from restnet_runtime.traffic import Traffic
from restnet_runtime.watch import UNKNOWN_TAIL, Watch

_ENOUGH = 8  # requests of which the median is worth taking into the slowdown between two readings
_PATIENT = 0.5
"""With more of the credit more late requests are asked for before an alarm."""


class Observed:
    """`observe` and what `traffic` takes are for the request path: no lock, a few appends. The rest is for one thread at a time.

    served, watch, traffic: how slow, what has just changed, how often
    """

    def __init__(self, cores: int, cpu_s: Callable[[], float] | None = time.process_time) -> None:
        """cores: that this process may run on. cpu_s: what it has taken of them so far; `None` where that is not to be asked."""
        self.served, self.watch, self.traffic = Served(cores), Watch(), Traffic()
        self._allowance, self._stalls, self._beside = Allowance(), Stalls(), None if cpu_s is None else Beside(cpu_s)
        self._slowdown: float | None = None  # of now, smoothed

    def observe(
        self, route: str, latency_ms: float, around_ms: float, profile: RouteProfile, limit_ms: float | None, feasible: bool, now_s: float
    ) -> bool:
        """One answered request. Returns whether requests have become late, so that it is time to decide. What is no latency is left out.

        latency_ms: of its run; around_ms: what it took beside that and its wait
        limit_ms:   of its latency, if there is one; feasible: whether a route could keep it
        """
        ratio = latency_ms / profile.latency_ms if profile.latency_ms > 0 else 0.0
        if not 0 < ratio < math.inf:
            return False
        self.served.slowdown.observe(ratio, profile.threads)
        self.served.observe(route, latency_ms, profile)
        if self._beside is not None:
            self._beside.observe(route, profile.latency_ms, profile.threads)
        if around_ms > 0:
            self.traffic.surround(around_ms)
        over_ms = latency_ms + around_ms - limit_ms if feasible and limit_ms is not None else -math.inf
        self._allowance.observe(now_s, ratio, over_ms + self.traffic.waited_ms > 0)
        self._stalls.observe(now_s, latency_ms, profile.latency_ms, over_ms > 0)
        return self.watch.observe(ratio, now_s)

    def look(self) -> None:
        """Take all that has come into the slowdown."""
        self._slowdown = self.served.slowdown.tick()

    def glance(self) -> None:
        """The same where enough has come."""
        if self.watch.pending >= _ENOUGH:
            self.look()

    def alarm(self, now_s: float) -> None:
        """Things have changed: the latest requests are believed, not those before."""
        self.look()
        self.watch.alarm(now_s)
        self._allowance.change(now_s)

    def complete(self, reading: Reading, now_s: float, *, look: bool) -> Reading:
        """A reading with what requests tell. look: the device has just been looked at."""
        rate, variation, waiting_ms = self.traffic.take(now_s)
        slowdown = self.watch.slowdown(self._slowdown, now_s)
        tail, stall_ms = self.watch.take(slowdown), self._stalls.take(now_s, slowdown)
        if tail is not None and stall_ms is not None:
            tail = self.watch.steady_tail  # the rest is what is added as a stall
        credit, ceilings = self._allowance.take(now_s, rate)
        beside_ms = self._beside.take(now_s, self.traffic.arrived) if look and self._beside is not None else reading.beside_cpu_ms
        self.watch.patient = credit is not None and credit > _PATIENT
        seen = reading.updated(
            slowdown=slowdown,
            tail=UNKNOWN_TAIL if tail is None and slowdown is not None else tail,
            credit=credit,
            ceilings=ceilings,
            requests_per_s=rate,
            gap_variation=variation,
            waiting_ms=waiting_ms,
            around_ms=self.traffic.around_ms(),
            beside_cpu_ms=beside_ms,
            stall_ms=stall_ms,
        )
        return self.served.complete(seen, now_s, look=look)
