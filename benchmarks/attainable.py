"""The most accuracy that a policy can win on a course of random requests without knowing when the next one comes.

`attainable` computes it for requests with exponential gaps: the best policy, found by value iteration, that knows the slowdown, the rate
and by how much runs differ, and sees its queue, but neither future arrivals nor how long the very next run takes. State: how long the
request that begins has waited, and how long the next in the queue has, or that there is none. It maximises accuracy won less `price` for
each late answer; with L the share that may be late, value + price x L bounds what any such policy wins that keeps L, whatever the price,
so the least over a few prices is taken. Approximations: each moment of a trace is taken to last (no anticipation of weather), waits are
on a grid, and a second one behind the next is not looked at.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from restnet_runtime.course import Course

PRICES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
_CELLS, _ROUNDS = 24, 60
_Floats = npt.NDArray[np.float64]


def attainable(course: "Course", can: Sequence[bool], base: float, spread: float, late_share: float) -> float:
    """Accuracy won per request over always-small, at most.

    base: the accuracy of always-small; late_share: of the feasible requests (`can`), those that may be late
    """
    run = np.array([fare.run_ms for fare in course.fares])
    memory = np.array([fare.memory_bytes for fare in course.fares])
    gain = np.array([fare.accuracy for fare in course.fares]) - base
    feasible = sum(can) / len(can)
    allowed = (1.0 - feasible) + late_share * feasible  # what is not feasible is late whatever is done
    moments: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
    for arrived_s in course.arrivals_s:
        moment = course.moment(arrived_s)
        fitting = int((memory <= moment.memory_available_bytes).sum())
        key = round(math.log(moment.stretch) / math.log(1.06)), round(math.log(moment.requests_per_s) / math.log(1.1)), fitting
        moments.setdefault(key, []).append((moment.stretch, moment.requests_per_s))
    bounds = []
    for price in PRICES:
        total = 0.0
        for (_, _, fitting), seen in moments.items():
            leanest = np.argsort(memory)[: max(1, fitting)]
            kept = _front(run, gain, leanest)
            stretch, rate = np.mean(np.array(seen), axis=0)
            total += len(seen) * value(run[kept] * stretch, gain[kept], course.limit_ms, rate / 1e3, price, spread)
        bounds.append(total / len(can) + price * allowed)
    return min(bounds)


def value(run_ms: _Floats, gain: _Floats, limit_ms: float, rate_per_ms: float, price: float, spread: float) -> float:
    """Accuracy won less the price of late answers, per request, by the best policy in the long run."""
    factors, weights = _noise(spread)
    step, count = 1.5 * limit_ms / _CELLS, _CELLS + 1
    waits = np.arange(count) * step
    runs = run_ms[:, None] * factors
    met = (((waits[None, :, None] + runs[:, None, :]) <= limit_ms) * weights).sum(-1)
    reward = gain[:, None] * met - price * (1.0 - met)
    # From nobody in the queue: the next one comes after an exponential gap.
    edges = waits + step / 2
    within = np.exp(-rate_per_ms * np.maximum(0.0, runs[:, :, None] - edges))
    within[:, :, -1] = 1.0
    fresh = (np.diff(within, axis=-1, prepend=0.0) * weights[None, :, None]).sum(1)
    # From a next one that has waited so long: its wait is known but for the noise of the run.
    places = np.minimum((waits[None, :, None] + runs[:, None, :]) / step, _CELLS)
    low = np.minimum(places.astype(int), _CELLS - 1)
    queued = np.zeros((len(run_ms), count, count))
    routes, ages = np.arange(len(run_ms))[:, None, None], np.arange(count)[None, :, None]
    np.add.at(queued, (routes, ages, low), weights * (1.0 - (places - low)))
    np.add.at(queued, (routes, ages, low + 1), weights * (places - low))
    # Of one that has waited w: has the next come, and how long ago?
    since, until = np.maximum(0.0, waits - step / 2), np.minimum(waits[:, None], waits + step / 2)
    come = np.exp(-rate_per_ms * (waits[:, None] - until)) - np.exp(-rate_per_ms * (waits[:, None] - since))
    come, nobody = np.where(until > since, come, 0.0), np.exp(-rate_per_ms * waits)
    alone, behind, best = np.zeros(count), np.zeros((count, count)), 0.0
    for _ in range(_ROUNDS):
        after = nobody * alone + (come * behind).sum(1)
        one = (reward + (fresh @ after)[:, None]).max(0)
        other = (reward[:, :, None] + (queued @ after)[:, None, :]).max(0)
        best = float(one[0])
        alone, behind = one - best, other - best
    return best


def _front(run: _Floats, gain: _Floats, places: npt.NDArray[np.intp]) -> list[int]:
    """Of these routes those that no quicker one equals."""
    kept: list[int] = []
    for place in sorted(places, key=lambda place: (run[place], -gain[place])):
        if not kept or gain[place] > gain[kept[-1]]:
            kept.append(int(place))
    return kept


def _noise(spread: float) -> tuple[_Floats, _Floats]:
    """Factors of run times as `course.make_course` draws them, and how likely they are: 15 of usual runs, 3 of the one in 500."""
    usual = np.exp(spread * np.clip([NormalDist().inv_cdf((index + 0.5) / 15) for index in range(15)], -3.0, 3.0))
    factors = np.concatenate([usual, 1.5 * usual[::5]])
    return factors, np.concatenate([np.full(15, 0.998 / 15), np.full(3, 0.002 / 3)])
