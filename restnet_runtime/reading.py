"""A reading: one sample of the device's state. What could not be read is `None`, never guessed."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RouteLatency:
    """What requests of batch 1 took on one route lately, the run of its session alone.

    requests: how many of them are counted; threads: of each of them, those with another number are forgotten
    """

    median_ms: float
    p95_ms: float
    requests: int
    threads: int


@dataclass(frozen=True)
class Reading:
    """One sample. Units are in the names; every field may be missing. docs/sensors.md says where each comes from.

    memory_available_bytes:  what this process could still take: the least of the host's available memory and the headroom
                             of each memory cgroup that it is in
    own_memory_bytes:        proportional set size (PSS) of this process; unique or resident size where the kernel has no PSS
    others_memory_bytes:     of what this process may take, reserved for its other models; `None` where there is one model
    cpu_percent:             use of all cores since the last sample, 0..100
    others_cpu_cores:        cores' worth of time that other processes took since the last sample of the cores that this process may
                             run on, those that run at lower priority left out: they yield to it
    waiting_share:           of the time in which this process's threads could have run since the last sample, the share that they waited
                             for a core, 0..1; `None` where the kernel does not tell, or none could have run
    load_1m:                 1-minute load average
    cpu_quota_cores:         CPU time that the cgroup grants, in cores (0.5 = half a core); `None` when unlimited or unknown
    quota_throttled_share:   of the quota's periods since the last sample, the share in which it was used up, 0..1
    quota_stopped_cores:     cores' worth of time for which threads that could have run were stopped by the quota since the last sample
    pressure_cpu_share, pressure_memory_share, pressure_io_share:
                             of the time since the last sample, the share in which some task of the device was stalled, 0..1 (PSI)
    group_pressure_cpu_share, group_pressure_memory_share, group_pressure_io_share:
                             the same of the own cgroup (v2)
    temperature_c:           of the hottest thermal zone
    temperature_zone:        what that zone is called, as `cpu-thermal`
    temperature_headroom_c:  the least distance of a zone to where it begins to slow the device down; below zero beyond that
    cpu_frequency_mhz:       mean of the cores that this process may run on
    cpu_frequency_share:     the same over the highest frequency; low where cores are idle, too
    cpu_frequency_cap_share: highest frequency that is allowed now over the highest that there is
    battery_percent:         charge of the least charged battery
    on_battery:              whether a battery is being used up
    power_w:                 what the whole device takes
    gpu_load_share:          of a Jetson's GPU, 0..1
    throttled:               in words, what slows the device down now, by the firmware, heat, a lowered frequency or a quota; empty where
                             nothing does; `None` where nothing that would tell can be read
    throttled_since_boot:    what the firmware (Raspberry Pi) has met since it was switched on
    queue_depth:             requests that wait or run
    latencies:               of each route that answered lately
    slowdown:                recent measured latency over the profiled latency of the routes that served it, 1.0 = as profiled
    slowdown_by_threads:     the same by the number of threads of a request: those that were seen, and the others as they follow from those
    request_threads:         of the requests that the slowdown is of
    tail:                    what 97 of 100 recent requests stayed within, over their median, at least 1.0
    credit:                  of the requests that may be late, the share that is saved, up to 1: few were late; below 0: too many were
    ceilings:                by seconds: over so many, what all but the slowest requests took over what was profiled
    requests_per_s:          requests that arrived lately, per second
    gap_variation:           local variation of the gaps between them: 0 = a metronome, 1 = at random
    waiting_ms:              how long the latest requests waited before they ran
    around_ms:               what they take beside that and the run of the network: decoding, and making the answer
    beside_cpu_ms:           processor time that one takes beside its run as profiled; `None` where there are other models
    stall_ms:                for how long their runs stood still, where many of the latest were late by that alone
    """

    memory_available_bytes: int | None = None
    own_memory_bytes: int | None = None
    others_memory_bytes: int | None = None
    cpu_percent: float | None = None
    others_cpu_cores: float | None = None
    waiting_share: float | None = None
    load_1m: float | None = None
    cpu_quota_cores: float | None = None
    quota_throttled_share: float | None = None
    quota_stopped_cores: float | None = None
    pressure_cpu_share: float | None = None
    pressure_memory_share: float | None = None
    pressure_io_share: float | None = None
    group_pressure_cpu_share: float | None = None
    group_pressure_memory_share: float | None = None
    group_pressure_io_share: float | None = None
    temperature_c: float | None = None
    temperature_zone: str | None = None
    temperature_headroom_c: float | None = None
    cpu_frequency_mhz: float | None = None
    cpu_frequency_share: float | None = None
    cpu_frequency_cap_share: float | None = None
    battery_percent: float | None = None
    on_battery: bool | None = None
    power_w: float | None = None
    gpu_load_share: float | None = None
    throttled: tuple[str, ...] | None = None
    throttled_since_boot: tuple[str, ...] | None = None
    queue_depth: int | None = None
    latencies: Mapping[str, RouteLatency] | None = None
    slowdown: float | None = None
    slowdown_by_threads: Mapping[int, float] | None = None
    request_threads: int | None = None
    tail: float | None = None
    credit: float | None = None
    ceilings: Mapping[int, float] | None = None
    requests_per_s: float | None = None
    gap_variation: float | None = None
    waiting_ms: float | None = None
    around_ms: float | None = None
    beside_cpu_ms: float | None = None
    stall_ms: float | None = None

    def updated(self, **changes: object) -> "Reading":
        """The same but for these fields; `dataclasses.replace` takes ten times as long. Raises `TypeError` for another field."""
        if unknown := changes.keys() - self.__dataclass_fields__.keys():
            raise TypeError(f"a reading has no {', '.join(sorted(unknown))}")
        made = object.__new__(Reading)
        made.__dict__.update(self.__dict__)
        made.__dict__.update(changes)
        return made
