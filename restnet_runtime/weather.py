"""Weather: made traces, each a way in which a device changes under a server, pressed so that it matters to the routes at hand."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from restnet_runtime.errors import TraceError
from restnet_runtime.ladder import Candidate, Ladder
from restnet_runtime.traces import Moment, Trace

LENGTH_S = 600
_STEP_S = 0.5
_MB = 10**6
_FURTHEST = 6.0
SPARE = 1.35
"""The best route just fits the latency budget in calm weather, with a third to spare."""


@dataclass(frozen=True)
class Climate:
    """What the weather is made for.

    calm:            the stretch at which the best route just fits the latency budget, with `SPARE`
    reach:           how many times slower the device may become until the quickest fits no better than the best did, at most 6
    small_bytes, large_bytes:  memory of the leanest and of the largest route
    requests_per_s:  in calm weather: with the best route the server is busy for a third of the time, at most 20
    """

    calm: float
    reach: float
    small_bytes: float
    large_bytes: float
    requests_per_s: float

    @classmethod
    def of(cls, candidates: Sequence[Candidate], latency_ms: float) -> "Climate":
        """For routes with profiles, at least one, and a latency budget."""
        profiles = [candidate.profile for candidate in candidates if candidate.profile is not None]
        times, sizes = [profile.latency_ms for profile in profiles], [float(profile.memory_bytes) for profile in profiles]
        best = Ladder(candidates).rungs[0].latency_ms  # a slower one that is no better does not count
        calm = latency_ms / (SPARE * best)
        rate = min(20.0, 0.45 / (latency_ms / 1e3))
        return cls(calm, min(_FURTHEST, max(1.0, best / min(times))), min(sizes), max(sizes), rate)


def make_trace(name: str, climate: Climate, seed: int = 0) -> Trace:
    """The weather of that name. Raises `TraceError` for another."""
    if name not in WEATHER:
        raise TraceError(f"there is no trace {name!r}: give a CSV file, or one of {', '.join(WEATHER)}, all")
    rng = random.Random(f"{name} {seed}")
    times = [index * _STEP_S for index in range(int(LENGTH_S / _STEP_S))]
    return Trace(name, tuple(WEATHER[name](climate, rng, times)), float(LENGTH_S))


def _moment(climate: Climate, t_s: float, slow: float = 0.0, cpu: float = 1.0, memory: float = math.inf, rate: float = 1.0) -> Moment:
    """slow: 0 is calm, 1 as far as it reaches. memory: infinite is plenty."""
    plenty = 2 * climate.large_bytes + 1e9
    return Moment(t_s, cpu, min(memory, plenty), climate.calm * climate.reach**slow, climate.requests_per_s * rate)


def _wander(rng: random.Random, spread: float) -> Iterator[float]:
    """Factors around 1 that remember the last one."""
    value = 0.0
    for _ in count():
        value = 0.9 * value + rng.gauss(0.0, spread * math.sqrt(1 - 0.81))
        yield math.exp(value)


def _steady(climate: Climate, rng: random.Random, times: Sequence[float]) -> Iterator[Moment]:
    """Half way between calm and as slow as it gets, with noise of 2 % that wanders."""
    noise = _wander(rng, 0.02)
    return (_moment(climate, t_s, 0.5 + math.log(next(noise)) / math.log(max(climate.reach, 1.01))) for t_s in times)


def _steps(climate: Climate, rng: random.Random, times: Sequence[float]) -> Iterator[Moment]:
    """A CPU share that another level takes every 20 to 60 seconds."""
    share, until = 1.0, 0.0
    for t_s in times:
        if t_s >= until:
            share, until = climate.reach ** -rng.choice([0.0, 0.25, 0.5, 0.75, 0.95]), t_s + rng.uniform(20.0, 60.0)
        yield _moment(climate, t_s, cpu=share)


def _sawtooth(climate: Climate, _: random.Random, times: Sequence[float]) -> Iterator[Moment]:
    """Slower and slower for a minute, then well again at once."""
    return (_moment(climate, t_s, (t_s % 60.0) / 60.0 * 0.95) for t_s in times)


def _bursts(climate: Climate, rng: random.Random, times: Sequence[float]) -> Iterator[Moment]:
    """For 3 to 8 seconds in half a minute three times the requests, beside work that takes a third of the processor."""
    begin, end = 10.0, 15.0
    for t_s in times:
        if t_s >= end:
            begin = end + rng.uniform(15.0, 35.0)
            end = begin + rng.uniform(3.0, 8.0)
        busy = begin <= t_s < end
        yield _moment(climate, t_s, cpu=0.67 if busy else 1.0, rate=3.0 if busy else 1.0)


def _thermal(climate: Climate, rng: random.Random, times: Sequence[float]) -> Iterator[Moment]:
    """Heat: slower for four minutes, then the clock is halved and given back every 10 to 20 seconds, then it cools."""
    hot, until, noise = False, 0.0, _wander(rng, 0.02)
    for t_s in times:
        slow = 0.6 * min(1.0, t_s / 240.0) if t_s < 450.0 else 0.6 * max(0.0, 1.0 - (t_s - 450.0) / 120.0)
        if 240.0 <= t_s < 450.0 and t_s >= until:
            hot, until = not hot, t_s + rng.uniform(10.0, 20.0)
        yield _moment(climate, t_s, slow + (0.3 if hot and 240.0 <= t_s < 450.0 else 0.0), cpu=next(noise))


def _leak(climate: Climate, rng: random.Random, times: Sequence[float]) -> Iterator[Moment]:
    """A neighbour takes 6 MB more each second, until half of what the routes differ by is gone; after 15 seconds it is killed."""
    low, noise = (climate.small_bytes + climate.large_bytes) / 2, _wander(rng, 0.005)
    plenty = climate.large_bytes + 900 * _MB
    began = 0.0
    for t_s in times:
        memory = max(low, plenty - 6 * _MB * (t_s - began))
        if t_s - began > (plenty - low) / (6 * _MB) + 15.0:
            began = t_s
        yield _moment(climate, t_s, memory=memory, cpu=next(noise))


def _diurnal(climate: Climate, rng: random.Random, times: Sequence[float]) -> Iterator[Moment]:
    """A day in ten minutes: at noon twice the requests and a slow device, at night neither."""
    noise = _wander(rng, 0.03)
    for t_s in times:
        noon = (1.0 - math.cos(2 * math.pi * t_s / LENGTH_S)) / 2.0
        yield _moment(climate, t_s, 0.8 * noon, cpu=next(noise), rate=0.3 + 1.2 * noon)


WEATHER: dict[str, Callable[[Climate, random.Random, Sequence[float]], Iterator[Moment]]] = {
    "steady": _steady,
    "steps": _steps,
    "sawtooth": _sawtooth,
    "bursts": _bursts,
    "thermal": _thermal,
    "leak": _leak,
    "diurnal": _diurnal,
}
