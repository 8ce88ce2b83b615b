"""Load: requests as they come, and what they make of a route: how busy it is, how long they wait, how long a run may be at most."""

import math
from typing import NamedTuple

BUSIEST = 0.9
"""The share of its time that a route may be busy: beyond it a queue grows faster than it is noticed."""
CAUGHT = 0.004
"""Of the requests, those that may come so early in a run of another that no route makes up for it."""
DARED = 0.08
"""As many more of them while none of the credit has been used."""
LOOK_AHEAD_S = 1.0
"""How far ahead a queue that grows is looked at."""


class Load(NamedTuple):
    """Requests as they come, for a route that would serve them one after another (`servers` at a time).

    rate_per_s, variation:  arrivals per second, squared coefficient of variation of their gaps
    waiting_ms:             what the latest waited
    quickest_ms:            what all but the slowest take on the quickest route, which is where a request goes that has waited long
    """

    rate_per_s: float
    variation: float
    waiting_ms: float
    quickest_ms: float
    servers: int = 1
    credit: float | None = None

    def busy(self, run_ms: float) -> float:
        """The share of its time that a route is busy."""
        return self.rate_per_s * run_ms / 1e3 / self.servers

    def wait_ms(self, run_ms: float) -> float:
        """The wait to expect on a route that takes `run_ms`: infinite where the queue grows without end.

        The longer of what the queue comes to within `LOOK_AHEAD_S`, and the mean for such gaps (Kingman's formula).
        """
        busy = self.busy(run_ms)
        if busy > BUSIEST:
            return math.inf
        ahead_ms = self.waiting_ms + (busy - 1.0) * 1e3 * LOOK_AHEAD_S
        return max(0.0, ahead_ms, busy / (1.0 - busy) * self.variation / 2.0 * run_ms)

    def longest_run_ms(self, limit_ms: float, tail: float) -> float:
        """The longest run that with its wait stays within the limit: where each part of `wait_ms` reaches it.

        Requests that come at random meet a run under way as well, and wait for what is left of it; the quickest route makes up for
        the rest. Of all requests `rate x (run - (limit - quickest))` come too early in a run for that: at most `CAUGHT`.
        """
        rate = self.busy(1.0)  # per millisecond
        longest = limit_ms / tail
        if rate > 0:
            ahead_ms = LOOK_AHEAD_S * 1e3
            growing = (limit_ms - self.waiting_ms + ahead_ms) / (tail + rate * ahead_ms)
            longest = min(longest, BUSIEST / rate, max(0.0, growing))
        if self.variation > 0:
            # run x tail + variation / 2 x rate x run^2 / (1 - rate x run) = limit
            mean = self.variation / 2.0 * (1.0 if self.credit is None else 0.45 - 0.25 * self.credit)
            square, linear = (mean - tail) * rate, tail + limit_ms * rate
            root = math.sqrt(max(0.0, linear * linear + 4.0 * square * limit_ms))
            longest = min(longest, limit_ms / linear if square == 0 else (root - linear) / (2.0 * square))
            credit = self.credit or 0.0
            share = CAUGHT * (1.0 + credit) + DARED * max(0.0, 2.0 * credit - 1.0)
            caught = share * 1e3 * self.servers / (min(1.0, self.variation) * self.rate_per_s)
            longest = min(longest, max(0.0, limit_ms - self.quickest_ms) + caught)
        return longest
