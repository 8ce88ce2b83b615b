"""Quota: the longest run that a CPU quota bears. Under one, latency does not grow with the work but jumps: whoever has used up his share
of a period is stopped until the next begins. So what a route would do to a quota is reckoned before it is tried.
"""

PERIOD_MS = 100.0
"""Of a quota, unless somebody has set another: what the kernel, Docker and systemd take."""
BUSIEST = 0.45
"""The share of a quota that runs may take, where nothing is known of what requests take beside them: receiving, decoding and answering take
from it too (at 0.7 all together took it whole, `benchmarks/squeeze.py`)."""
EVENLY, AT_RANDOM = 0.8, 0.6
"""What requests may take with all that is known, if they come evenly, and if they come at random: a queue wants to get shorter, and a
period that happens to have more of them than others has no more of the quota."""
_WITHIN = 0.9


def share_taken(quota_cores: float, threads: int, rate_per_s: float, run_ms: float, beside_ms: float | None = None) -> float:
    """Of the quota, by requests whose runs take `run_ms` on so many threads; beside_ms: processor time that each takes beside its run."""
    return rate_per_s * (run_ms * threads + (beside_ms or 0.0)) / 1e3 / quota_cores


def most_taken(beside_ms: float | None, variation: float | None) -> float:
    """The share of a quota that `share_taken` may come to.

    beside_ms: as there, `None` where it is unknown; variation: local one of the gaps between requests, 0 = a metronome, `None`: unknown
    """
    return BUSIEST if beside_ms is None else EVENLY - (EVENLY - AT_RANDOM) * min(1.0, 1.0 if variation is None else variation)


def longest_run_ms(
    quota_cores: float,
    threads: int,
    rate_per_s: float | None,
    limit_ms: float,
    beside_ms: float | None = None,
    variation: float | None = None,
) -> float:
    """The longest run, not counting the time for which it is stopped, that keeps `limit_ms` under a quota.

    threads:     of a run
    rate_per_s:  requests; `None`: unknown, then only a single one is looked at
    beside_ms, variation:  as `most_taken` has them

    All together they take `most_taken` of the quota at most. A single one either ends within what the quota gives it in a period, or with
    the wait for the next one it still keeps the limit.
    """
    longest = limit_ms
    if quota_cores < threads:
        stopped_ms = PERIOD_MS * (1.0 - quota_cores / threads)
        longest = min(longest, max(_WITHIN * PERIOD_MS * quota_cores / threads, limit_ms - stopped_ms))
    if rate_per_s:
        each_ms = most_taken(beside_ms, variation) * 1e3 * quota_cores / rate_per_s  # of processor time
        longest = min(longest, (each_ms - (beside_ms or 0.0)) / threads)
    return max(0.0, longest)
