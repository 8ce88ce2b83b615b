"""A reading: one sample of the device's state. What could not be read is `None`, never guessed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """One sample. Units are in the names; every field may be missing.

    memory_available_bytes:  what this process could still take: the least of the host's available memory and the headroom
                             of each memory cgroup that it is in
    own_memory_bytes:        proportional set size (PSS) of this process; unique or resident size where the kernel has no PSS
    cpu_percent:             use of all cores since the last sample, 0..100
    others_cpu_cores:        cores' worth of time that other processes took since the last sample of the cores that this process may
                             run on, those that run at lower priority left out: they yield to it
    waiting_share:           of the time in which this process's threads could have run since the last sample, the share that they waited
                             for a core, 0..1; `None` where the kernel does not tell, or none could have run
    load_1m:                 1-minute load average
    cpu_quota_cores:         CPU time that the cgroup grants, in cores (0.5 = half a core); `None` when unlimited or unknown
    slowdown:                recent measured latency over the profiled latency of the routes that served it (EWMA), 1.0 = as profiled
    tail:                    what 97 of 100 recent requests stayed within, over their median, at least 1.0
    requests_per_s:          requests that arrived lately, per second
    gap_variation:           local variation of the gaps between them: 0 = a metronome, 1 = at random
    waiting_ms:              how long the latest requests waited before they ran
    """

    memory_available_bytes: int | None = None
    own_memory_bytes: int | None = None
    cpu_percent: float | None = None
    others_cpu_cores: float | None = None
    waiting_share: float | None = None
    load_1m: float | None = None
    cpu_quota_cores: float | None = None
    slowdown: float | None = None
    tail: float | None = None
    requests_per_s: float | None = None
    gap_variation: float | None = None
    waiting_ms: float | None = None
