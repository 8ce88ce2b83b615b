"""Which route serves: from a reading, a budget, the candidates and the history to a decision. No clock, no I/O, no globals.

Words
  hard limit     memory. Breaking it can end the process, so it is looked at before any other.
  soft limits    latency and macs. Breaking them is late or dear, not fatal.
  sensed limit   the memory that the device leaves to this process now: its own + what is available - a reserve.
                 The memory limit in force is the lower of the budget's and the sensed one.
  need           what a route takes of a limit: macs, profiled memory, profiled latency x slowdown.
  exact, noisy   macs and the budget's memory limit compare constants. Predicted latency and the sensed limit move by themselves.
  fits           every need is within its limit.
  enters         fits with a margin on the noisy limits: latency or memory x (1 + margin) is still within.
  tolerated      within the limits, or over noisy ones by little: latency by the margin, sensed memory by half the reserve.
  merit          accuracy, or macs where accuracy was not measured (then below every measured route); of equals the cheaper.
  cheapest       fewest macs; where not even the hard limit holds, least memory.
  clean ticks    for how many decisions in a row a route of higher merit than the current one has entered.
  patience       clean ticks asked for before a climb.

Rules, in this order
  1. New budget, no current route, or a history without budget: at once, up or down, the route of highest merit that fits. An
     operator's word does not wait.
  2. The current route fits: it stays, until a route of higher merit has enough clean ticks and the dwell is over.
  3. It does not fit, another does: at once the one of highest merit that fits.
  4. Nothing fits: the cheapest of those that keep the hard limit, else the cheapest; the decision says `feasible=False` and why.
     Here the current route is given the tolerance and the others the margin, so that noise alone moves nothing.

It cannot flap on noise in slowdown (or in memory) whose largest value is below (1 + margin) x its smallest. Where climbing itself
causes the fall (a route heats the device, or slows its neighbours), each fall soon after a climb doubles the patience.

A route without profile: its latency, and its memory under a memory budget, are unknown. It does not fit such a limit, but comes
before routes known to break it. Under the sensed limit alone it is taken to need what the process has now: routes share mapped weights.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Literal, NamedTuple

from restnet_runtime.budget import Budget
from restnet_runtime.errors import InfeasibleError, UnitError
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route
from restnet_runtime.units import format_bytes, format_macs, format_ms


@dataclass(frozen=True)
class Candidate:
    """A route that could serve, and what it costs on this device (`None`: not profiled)."""

    route: Route
    profile: RouteProfile | None


@dataclass(frozen=True)
class PolicySettings:
    """How cautious to be.

    up_after_ticks:        clean ticks before a climb
    dwell_s:               seconds after any switch before a climb
    margin:                share by which a noisy need must stay below its limit to enter
    memory_reserve_bytes:  kept free of what the device has available
    regret_s:              a fall within this time after a climb doubles the patience
    patience_max_ticks:    where doubling ends
    """

    up_after_ticks: int = 5
    dwell_s: float = 3.0
    margin: float = 0.10
    memory_reserve_bytes: int = 32 * 2**20
    regret_s: float = 30.0
    patience_max_ticks: int = 80

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, least = getattr(self, entry.name), 1 if entry.name == "up_after_ticks" else 0
            if not least <= value < math.inf:
                raise UnitError(f"policy setting {entry.name}={value!r} must be at least {least} and finite")


@dataclass(frozen=True)
class History:
    """What one decision hands to the next. `History()` is a fresh start.

    current:         name of the route that serves
    budget:          budget of the last decision; `None` before the first, and to have the next one made afresh
    clean_ticks:     by name, routes of higher merit than the current one that entered
    patience_ticks:  clean ticks asked for; 0 = as in the settings
    switched_s:      time of the last switch
    climbed_s:       time of the last climb, until a fall or a new budget
    """

    current: str | None = None
    budget: Budget | None = None
    clean_ticks: Mapping[str, int] = field(default_factory=dict)
    patience_ticks: int = 0
    switched_s: float | None = None
    climbed_s: float | None = None


@dataclass(frozen=True)
class Decision:
    """The answer.

    feasible:  `route` fits every limit
    reason:    for people: why this route, with the figures of a broken limit
    limits:    the limits in force: the budget, its memory lowered to the sensed limit
    """

    route: str
    feasible: bool
    reason: str
    limits: Budget
    history: History


DEFAULTS = PolicySettings()


def decide(
    reading: Reading, budget: Budget, candidates: Sequence[Candidate], history: History, now_s: float, settings: PolicySettings = DEFAULTS
) -> Decision:
    """The route that serves from now on. `now_s` is any clock that does not step back.

    Raises `InfeasibleError` only when there are no candidates at all.
    """
    scene = _Scene.of(reading, budget, settings)
    current = _find(candidates, history.current)
    if current is None or budget != history.budget:
        chosen = _pick(scene, candidates)
        start = History(chosen.route.name, budget, {}, 0, history.switched_s, None)
        if history.current != chosen.route.name:
            start = replace(start, switched_s=now_s)
        why = "afresh" if history.budget is None else "new budget" if current is not None else f"{history.current} is gone"
        return _decision(scene, chosen, start, f"{why}: {chosen.route.name} is the most accurate that fits")
    if _fits(scene, current):
        return _stay_or_climb(scene, candidates, current, history, now_s)

    fitting = [candidate for candidate in candidates if _fits(scene, candidate)]
    chosen = _pick(scene, fitting) if fitting else _pick(scene, candidates, current)
    if chosen is current:
        return _decision(scene, current, replace(history, clean_ticks={}), "")
    patience = _patience(history, now_s, settings)
    fallen = History(chosen.route.name, budget, {}, patience, switched_s=now_s, climbed_s=None)
    return _decision(scene, chosen, fallen, f"{current.route.name} no longer fits: {_broken(scene, current)}; {chosen.route.name} does")


def in_force(budget: Budget, reading: Reading, settings: PolicySettings = DEFAULTS) -> Budget:
    """The limits in force: the budget, its memory lowered to the sensed limit."""
    return _Scene.of(reading, budget, settings).in_force()


def choose_for_request(
    standing: Budget,
    request: Budget,
    candidates: Sequence[Candidate],
    reading: Reading,
    current: str | None,
    settings: PolicySettings = DEFAULTS,
) -> Decision:
    """The route for one request with limits of its own, which can only narrow the standing budget.

    The current route wherever it fits, even where a better one would; else the one of highest merit that fits, else the cheapest
    with `feasible=False`. Nothing is remembered: the history of the decision is empty.
    Raises `InfeasibleError` only when there are no candidates at all.
    """
    scene = _Scene.of(reading, standing.narrowed(request), settings)
    serving = _find(candidates, current)
    if serving is not None and _fits(scene, serving):
        return _decision(scene, serving, History(), f"{serving.route.name} serves and fits")
    chosen = _pick(scene, candidates)
    return _decision(scene, chosen, History(), f"for this request {chosen.route.name} is the most accurate that fits")


class _Fit(IntEnum):
    YES = 0
    UNKNOWN = 1
    NO = 2


_Kind = Literal["memory", "latency", "macs"]
_Band = Literal["limit", "enter", "tolerate"]


class _Need(NamedTuple):
    """One need against one limit, and what the limit becomes for entering and for tolerance."""

    kind: _Kind
    need: float | None
    limit: float
    enter: float
    tolerate: float


class _Scene(NamedTuple):
    budget: Budget
    sensed_bytes: int | None
    own_bytes: int | None
    slowdown: float
    settings: PolicySettings

    @classmethod
    def of(cls, reading: Reading, budget: Budget, settings: PolicySettings) -> "_Scene":
        own, available = reading.own_memory_bytes, reading.memory_available_bytes
        sensed = None if own is None or available is None else max(1, own + available - settings.memory_reserve_bytes)
        return cls(budget, sensed, own, 1.0 if reading.slowdown is None else reading.slowdown, settings)

    def in_force(self) -> Budget:
        return self.budget if self.sensed_bytes is None else self.budget.narrowed(Budget(memory_bytes=self.sensed_bytes))


def _needs(scene: _Scene, candidate: Candidate) -> Iterator[_Need]:
    """Hard limits first."""
    budget, profile, settings = scene.budget, candidate.profile, scene.settings
    if budget.memory_bytes is not None:
        limit: float = budget.memory_bytes
        yield _Need("memory", None if profile is None else profile.memory_bytes, limit, limit, limit)
    if scene.sensed_bytes is not None:
        limit = scene.sensed_bytes
        need = scene.own_bytes if profile is None else profile.memory_bytes
        yield _Need("memory", need, limit, limit / (1 + settings.margin), limit + settings.memory_reserve_bytes / 2)
    if budget.latency_ms is not None:
        limit = budget.latency_ms
        latency = None if profile is None else profile.latency_ms * scene.slowdown
        yield _Need("latency", latency, limit, limit / (1 + settings.margin), limit * (1 + settings.margin))
    if budget.macs is not None:
        limit = budget.macs
        yield _Need("macs", candidate.route.macs, limit, limit, limit)


def _judge(scene: _Scene, candidate: Candidate, band: _Band = "limit") -> tuple[_Fit, _Fit]:
    """(hard, soft): does it keep these limits? Tuples sort by what to prefer."""
    hard = soft = _Fit.YES
    for entry in _needs(scene, candidate):
        limit = entry.limit if band == "limit" else entry.enter if band == "enter" else entry.tolerate
        fit = _Fit.UNKNOWN if entry.need is None else _Fit.YES if entry.need <= limit else _Fit.NO
        if entry.kind == "memory":
            hard = max(hard, fit)
        else:
            soft = max(soft, fit)
    return hard, soft


def _fits(scene: _Scene, candidate: Candidate, band: _Band = "limit") -> bool:
    return _judge(scene, candidate, band) == (_Fit.YES, _Fit.YES)


def _pick(scene: _Scene, candidates: Sequence[Candidate], current: Candidate | None = None) -> Candidate:
    """The best of those that keep most limits. With `current`: nothing fits, and noise alone shall move nothing."""
    if not candidates:
        raise InfeasibleError("there is no route to choose from: none is loaded")
    judged = [
        (_judge(scene, candidate, "limit" if current is None else "tolerate" if candidate is current else "enter"), candidate)
        for candidate in candidates
    ]
    hard, soft = least = min(fit for fit, _ in judged)
    if hard is _Fit.NO:
        # What the process may die of comes before what is late.
        return min(candidates, key=lambda candidate: _cost(candidate, memory_first=True))
    tier = [candidate for fit, candidate in judged if fit == least]
    return max(tier, key=_merit) if soft is hard is _Fit.YES else min(tier, key=lambda candidate: _cost(candidate, memory_first=False))


def _merit(candidate: Candidate) -> tuple[float, ...]:
    """Higher is better. Of equals `max` keeps the first."""
    route, measured = candidate.route, candidate.route.accuracy is not None
    macs, latency, memory = _cost(candidate, memory_first=False)
    return (measured, macs if route.accuracy is None else route.accuracy, -macs, -latency, -memory)


def _cost(candidate: Candidate, *, memory_first: bool) -> tuple[float, float, float]:
    profile = candidate.profile
    latency, memory = (math.inf, math.inf) if profile is None else (profile.latency_ms, float(profile.memory_bytes))
    macs = float(candidate.route.macs)
    return (memory, macs, latency) if memory_first else (macs, latency, memory)


def _stay_or_climb(scene: _Scene, candidates: Sequence[Candidate], current: Candidate, history: History, now_s: float) -> Decision:
    settings = scene.settings
    merit = _merit(current)
    better = [candidate for candidate in candidates if _merit(candidate) > merit and _fits(scene, candidate, "enter")]
    clean = {candidate.route.name: history.clean_ticks.get(candidate.route.name, 0) + 1 for candidate in better}
    patience = max(history.patience_ticks, settings.up_after_ticks)
    ripe = [candidate for candidate in better if clean[candidate.route.name] >= patience]
    name = current.route.name
    if ripe and (history.switched_s is None or now_s - history.switched_s >= settings.dwell_s):
        chosen = max(ripe, key=_merit)
        climbed = replace(history, current=chosen.route.name, clean_ticks=clean, switched_s=now_s, climbed_s=now_s)
        return _decision(scene, chosen, climbed, f"{chosen.route.name} is better than {name} and has fitted for {patience} ticks")
    reason = f"{name} stays: nothing better fits"
    if better:
        best = max(better, key=_merit).route.name
        wait = "the dwell to end" if ripe else f"tick {clean[best]} of {patience}"
        reason = f"{name} stays: {best} fits, waiting ({wait})"
    return _decision(scene, current, replace(history, clean_ticks=clean), reason)


def _patience(history: History, now_s: float, settings: PolicySettings) -> int:
    """Clean ticks to ask for after a fall: twice as many when the climb before it is to be regretted."""
    if history.climbed_s is None:
        return history.patience_ticks
    if now_s - history.climbed_s >= settings.regret_s:
        return 0
    doubled = 2 * max(history.patience_ticks, settings.up_after_ticks)
    return max(settings.up_after_ticks, min(doubled, settings.patience_max_ticks))


def _decision(scene: _Scene, chosen: Candidate, history: History, reason: str) -> Decision:
    """The one place that says whether the chosen route fits; where it does not, the reason is that."""
    broken = _broken(scene, chosen)
    text = f"{chosen.route.name} serves although it does not fit: {broken}" if broken else reason
    return Decision(chosen.route.name, not broken, text, scene.in_force(), history)


def _broken(scene: _Scene, candidate: Candidate) -> str:
    """The limits that the candidate does not keep, with figures; empty when it fits."""
    parts = []
    for entry in _needs(scene, candidate):
        limit = _figure(entry.kind, entry.limit)
        if entry.need is None:
            parts.append(f"unknown {entry.kind} (not profiled) under a limit of {limit}")
        elif entry.need > entry.limit:
            need = _figure(entry.kind, entry.need)
            if need == limit:
                need, limit = f"{entry.need:.9g}", f"{entry.limit:.9g}"
            note = ""
            if entry.kind == "latency" and candidate.profile is not None and scene.slowdown != 1.0:
                note = f" ({_figure('latency', candidate.profile.latency_ms)} x slowdown {scene.slowdown:.3g})"
            if entry.kind == "memory" and entry.limit != scene.budget.memory_bytes:
                note = " (what the device has left)"
            parts.append(f"{entry.kind} {need} over the limit of {limit}{note}")
    return ", ".join(parts)


def _figure(kind: _Kind, value: float) -> str:
    return {"memory": format_bytes, "latency": format_ms, "macs": format_macs}[kind](value)


def _find(candidates: Sequence[Candidate], name: str | None) -> Candidate | None:
    return next((candidate for candidate in candidates if candidate.route.name == name), None)
