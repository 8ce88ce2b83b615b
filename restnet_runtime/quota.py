"""Quota: the longest run that a CPU quota bears. Under one, latency does not grow with the work but jumps: whoever has used up his share
of a period is stopped until the next begins. So what a route would do to a quota is reckoned before it is tried.
"""

PERIOD_MS = 100.0
"""Of a quota, unless somebody has set another: what the kernel, Docker and systemd take."""
BUSIEST = 0.55
"""The share of a quota that runs may take: receiving, decoding and answering take from it too (at 0.7 all together took it whole,
`benchmarks/squeeze.py`), and a queue wants to get shorter."""
_WITHIN = 0.9


def share_taken(quota_cores: float, threads: int, rate_per_s: float, run_ms: float) -> float:
    """Of the quota, by runs of so long on so many threads."""
    return rate_per_s * run_ms * threads / 1e3 / quota_cores


def longest_run_ms(quota_cores: float, threads: int, rate_per_s: float | None, limit_ms: float) -> float:
    """The longest run, not counting the time for which it is stopped, that keeps `limit_ms` under a quota.

    threads:     of a run
    rate_per_s:  requests; `None`: unknown, then only a single one is looked at

    All together they take `BUSIEST` of the quota at most. A single one either ends within what the quota gives it in a period, or with
    the wait for the next one it still keeps the limit.
    """
    longest = limit_ms
    if quota_cores < threads:
        stopped_ms = PERIOD_MS * (1.0 - quota_cores / threads)
        longest = min(longest, max(_WITHIN * PERIOD_MS * quota_cores / threads, limit_ms - stopped_ms))
    if rate_per_s:
        longest = min(longest, BUSIEST * 1e3 * quota_cores / (threads * rate_per_s))
    return max(0.0, longest)
