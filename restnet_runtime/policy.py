"""Which route serves: from a reading, a budget, the candidates and the history to a decision. No clock, no I/O, no globals.

Words
  hard limit     memory. Breaking it can end the process, so it is looked at before any other.
  soft limits    latency and macs. Breaking them is late or dear, not fatal.
  floor          the least accuracy: a route below it is never chosen while another is loaded, and answers nothing (`Decision.refused`).
  sensed limit   the memory that the device leaves to this process now: its own + what is available - a reserve.
                 The memory limit in force is the lower of the budget's and the sensed one.
  need           what a route takes of a limit: macs, profiled memory, profiled latency x slowdown x tail + the wait that the rate of
                 requests leads to on it (`load.Load`): a route that a growing queue would make late is left before it is.
  exact, noisy   macs and the budget's memory limit compare constants. Predicted latency and the sensed limit move by themselves.
  fits           every need is within its limit.
  borne          the route that serves, while few requests were late (`Reading.credit`): fits with less of the tail, by the credit.
  near           would have kept the latency limit for all but the slowest requests of the last seconds (`Reading.ceilings`).
  enters         fits with a margin on the noisy limits: latency or memory x (1 + margin) is still within.
  tolerated      within the limits, or over noisy ones by little: latency by the margin, sensed memory by half the reserve.
  merit          accuracy, or macs where accuracy was not measured (then below every measured route); of equals the cheaper.
  cheapest       fewest macs; where not even the hard limit holds, least memory.
  clean ticks    for how many decisions in a row a route of higher merit than the current one has entered.
  patience       clean ticks asked for before a climb.

Rules, in this order
  0. An operator's pin: that route, whatever it costs, as long as it is loaded.
  1. New budget, no current route, or a history without budget: at once, up or down, the route of highest merit that fits. An
     operator's word does not wait.
  2. The current route fits or is borne: it stays, until a route of higher merit has enough clean ticks and the dwell is over.
  3. It does not fit, another does: at once the one of highest merit that fits.
  4. Nothing fits: the cheapest of those that keep the hard limit, else the cheapest; the decision says `feasible=False` and why.
     Here the current route is given the tolerance and the others the margin, so that noise alone moves nothing.

It cannot flap on noise in slowdown (or in memory) whose largest value is below (1 + margin) x its smallest. Where climbing itself
causes the fall (a route heats the device, or slows its neighbours), each fall soon after a climb doubles the patience.

A route without profile: its latency, and its memory under a memory budget, are unknown. It does not fit such a limit, but comes
before routes known to break it. Under the sensed limit alone it is taken to need what the process has now: routes share mapped weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from restnet_runtime.budget import Budget
from restnet_runtime.errors import InfeasibleError, UnitError
from restnet_runtime.ladder import BROKEN, KEPT, Ladder, Rung, by_memory
from restnet_runtime.ladder import Candidate as Candidate
from restnet_runtime.limits import Limits
from restnet_runtime.reading import Reading
from restnet_runtime.units import format_ms


@dataclass(frozen=True)
class PolicySettings:
    """How cautious to be.

    up_after_ticks:        clean ticks before a climb
    dwell_s:               seconds after any switch before a climb
    near_factor:           so many times the clean ticks for a route that enters by little: less than the margin beyond what it must
    margin:                share by which a noisy need must stay below its limit to enter
    margin_min:            the least that it becomes where requests are known to differ less
    memory_reserve_bytes:  kept free of what the device has available; a quarter of what routes differ by where that is less
    regret_s:              a fall within this time after a climb doubles the patience; where that is longer, within as much more
    patience_max_ticks:    where doubling ends
    servers:               requests that run at once without slowing each other down
    """

    up_after_ticks: int = 5
    dwell_s: float = 1.0
    near_factor: int = 12
    margin: float = 0.10
    margin_min: float = 0.03
    memory_reserve_bytes: int = 32 * 2**20
    regret_s: float = 2.5
    patience_max_ticks: int = 160
    servers: int = 1

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, least = getattr(self, entry.name), 1 if entry.name in ("up_after_ticks", "servers", "near_factor") else 0
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
    near_ticks:      clean ticks asked for of a route that enters by little; 0 = as in the settings
    climbed_near:    the last climb was to such a route
    left_ms:         profiled latency of the route that was left last by a hair, until one is left by more
    """

    current: str | None = None
    budget: Budget | None = None
    clean_ticks: Mapping[str, int] = field(default_factory=dict)
    patience_ticks: int = 0
    switched_s: float | None = None
    climbed_s: float | None = None
    near_ticks: int = 0
    climbed_near: bool = False
    left_ms: float = math.inf


@dataclass(frozen=True)
class Decision:
    """The answer.

    feasible:      `route` fits every limit
    reason:        for people: why this route, with the figures of a broken limit
    limits:        the limits in force: the budget, its memory lowered to the sensed limit
    refused:       no route at least as accurate as the floor fits: requests are to be refused
    predicted_ms:  what all but the slowest requests run for on `route`; `None` where it is not profiled
    """

    route: str
    feasible: bool
    reason: str
    limits: Budget
    history: History
    refused: bool = False
    predicted_ms: float | None = None


DEFAULTS = PolicySettings()
_TICKS = 4  # decisions a second
_LONGEST = 60 * _TICKS
_SURELY = 1.04
"""So much below what requests took must a route have come that was left by a hair, before it is climbed to again."""
_AFTER_TICKS = 60
"""Clean ticks asked of a route that enters by little, after a fall by a hair."""


def decide(
    reading: Reading,
    budget: Budget,
    candidates: Sequence[Candidate] | Ladder,
    history: History,
    now_s: float,
    settings: PolicySettings = DEFAULTS,
    pin: str | None = None,
) -> Decision:
    """The route that serves from now on. `now_s` is any clock that does not step back.

    pin: the route that an operator wants, if one
    Raises `InfeasibleError` only when there are no candidates at all.
    """
    ladder = Ladder.of(candidates)
    limits = _limits(reading, budget, settings, ladder)
    current, pinned = ladder.find(history.current), ladder.find(pin)
    if pinned is not None:
        held = History(pinned.name, budget, {}, 0, history.switched_s if current is pinned else now_s, None)
        return _decision(limits, pinned, held, f"pinned to {pinned.name} by the operator")
    return _instead_of(pin, _by_limits(limits, budget, ladder, current, history, now_s, settings))


def _by_limits(
    limits: Limits, budget: Budget, ladder: Ladder, current: Rung | None, history: History, now_s: float, settings: PolicySettings
) -> Decision:
    if current is None or (budget is not history.budget and budget != history.budget):
        chosen = _pick(limits, ladder)
        start = History(chosen.name, budget, {}, 0, history.switched_s, None)
        if history.current != chosen.name:
            start = replace(start, switched_s=now_s)
        why = "afresh" if history.budget is None else "new budget" if current is not None else f"{history.current} is gone"
        return _decision(limits, chosen, start, f"{why}: {chosen.name} is the most accurate that fits")
    if _bears(limits, current):
        return _stay_or_climb(limits, ladder, current, history, now_s, settings)

    chosen = _best(limits, ladder) or _pick(limits, ladder, current)
    if chosen is current:
        return _decision(limits, current, _cleaned(history, {}), "")
    patience, near = _patience(limits, current, history, now_s, settings), _near_patience(limits, current, history, settings)
    left_ms = current.latency_ms if near else math.inf
    fallen = History(chosen.name, budget, {}, patience, switched_s=now_s, climbed_s=None, near_ticks=near, left_ms=left_ms)
    return _decision(limits, chosen, fallen, f"{current.name} no longer fits: {_broken(limits, current)}; {_instead(limits, chosen)}")


def in_force(budget: Budget, reading: Reading, settings: PolicySettings = DEFAULTS) -> Budget:
    """The limits in force: the budget, its memory lowered to the sensed limit."""
    return _limits(reading, budget, settings).in_force()


def choose_for_request(
    standing: Budget,
    request: Budget,
    candidates: Sequence[Candidate] | Ladder,
    reading: Reading,
    current: str | None,
    settings: PolicySettings = DEFAULTS,
    pin: str | None = None,
) -> Decision:
    """The route for one request with limits of its own, which can only narrow the standing budget.

    The current route wherever it fits, even where a better one would; else the one of highest merit that fits, else the cheapest
    with `feasible=False`. A pinned route whatever the limits. Nothing is remembered: the history of the decision is empty.
    Raises `InfeasibleError` only when there are no candidates at all.
    """
    ladder = Ladder.of(candidates)
    limits = _limits(reading, standing.narrowed(request), settings, ladder)
    pinned, serving = ladder.find(pin), ladder.find(current)
    if pinned is not None:
        return _decision(limits, pinned, History(), f"pinned to {pinned.name} by the operator")
    if serving is not None and _bears(limits, serving):
        return _instead_of(pin, _decision(limits, serving, History(), f"{serving.name} serves and fits", borne=True))
    chosen = _pick(limits, ladder)
    return _instead_of(pin, _decision(limits, chosen, History(), f"for this request {chosen.name} is the most accurate that fits"))


def _limits(reading: Reading, budget: Budget, settings: PolicySettings, ladder: Ladder | None = None) -> Limits:
    margin, reserve = settings.margin, settings.memory_reserve_bytes
    if reading.tail is not None:  # how far requests differ is known, and what is smoothed over many of them differs less
        margin = min(margin, max(settings.margin_min, (reading.tail - 1.0) / 2))
    if ladder is not None and 0 < ladder.spread_bytes < reserve:
        reserve = int(ladder.spread_bytes / 4)  # all that a switch can free is what routes differ by
    return Limits(reading, budget, margin, reserve, settings.servers, 0.0 if ladder is None else ladder.quickest_ms, settings.margin)


def _accurate(limits: Limits, rung: Rung) -> bool:
    floor = limits.budget.min_accuracy
    return floor is None or (rung.accuracy is not None and rung.accuracy >= floor)


def _fits(limits: Limits, rung: Rung) -> bool:
    return limits.bounds.hold(rung) and _accurate(limits, rung)


def _bears(limits: Limits, rung: Rung) -> bool:
    """Does it fit, or not quite while there is credit?"""
    return (limits.bounds.hold(rung) or limits.stay.hold(rung)) and _accurate(limits, rung)


def _best(limits: Limits, ladder: Ladder) -> Rung | None:
    """The one of highest merit that fits."""
    return ladder.first(limits.bounds, ladder.above(limits.budget.min_accuracy))


def _pick(limits: Limits, ladder: Ladder, current: Rung | None = None) -> Rung:
    """The best of those that keep most limits. With `current`: nothing fits, and noise alone shall move nothing."""
    if not ladder:
        raise InfeasibleError("there is no route to choose from: none is loaded")
    if current is None and (best := _best(limits, ladder)) is not None:
        return best
    count = ladder.above(limits.budget.min_accuracy) or len(ladder)
    rungs = ladder.rungs[:count]
    judged = ladder.judged(limits.bounds if current is None else limits.enter, count)
    if current is not None and current in rungs:
        judged[rungs.index(current)] = limits.tolerate.judge(current)
    hard, soft = least = min(judged)
    if hard == BROKEN:
        # What the process may die of comes before what is late.
        return min(rungs, key=by_memory)
    if soft == hard == KEPT:
        return rungs[judged.index(least)]
    return rungs[next(place for place in ladder.cheapest if place < count and judged[place] == least)]


def _stay_or_climb(limits: Limits, ladder: Ladder, current: Rung, history: History, now_s: float, settings: PolicySettings) -> Decision:
    entering, name = limits.bounds if limits.windows_s else limits.enter, current.name
    better = ladder.holding(entering, min(current.merit, ladder.above(limits.budget.min_accuracy)))
    if not better:
        return _decision(limits, current, _cleaned(history, {}), f"{name} stays: nothing better fits", borne=True)
    before = history.clean_ticks
    clean = {rung.name: before.get(rung.name, 0) + 1 for rung in better}
    patience, clear, ripe = max(history.patience_ticks, settings.up_after_ticks), limits.clear, None
    slow = max(history.near_ticks, patience * (1 if limits.windows_s else settings.near_factor))
    if max(clean.values()) >= patience:
        reach = _reach(limits, slow) if limits.windows_s else math.inf
        for rung in better:
            ticks = clean[rung.name]
            near = ticks >= slow and rung.latency_ms <= (reach if rung.latency_ms < history.left_ms else reach / _SURELY)
            if ticks >= patience and (clear.hold(rung) or (near and ladder.worth(current, rung))):
                ripe = rung
                break
    if ripe is not None and (history.switched_s is None or now_s - history.switched_s >= settings.dwell_s):
        close = not clear.hold(ripe)
        climbed = History(
            ripe.name, history.budget, clean, history.patience_ticks, now_s, now_s, history.near_ticks, close, history.left_ms
        )
        return _decision(limits, ripe, climbed, f"{ripe.name} is better than {name} and has fitted for {clean[ripe.name]} ticks")
    best = better[0]
    ticks = patience if clear.hold(best) else slow
    wait = "the dwell to end" if ripe is not None else f"tick {clean[best.name]} of {ticks}"
    reason = f"{name} stays: {best.name} fits, waiting ({wait})"
    return _decision(limits, current, _cleaned(history, clean), reason, borne=True)


def _reach(limits: Limits, slow: int) -> float:
    """The longest profiled latency of a route that would have kept the limit for long enough to be climbed to, though by little."""
    least = min(max(slow, limits.windows_s[:2][-1] * _TICKS), _LONGEST)  # the shortest only where there is no other yet
    return max((limits.near(window_s) for window_s in limits.windows_s if window_s * _TICKS >= least), default=0.0)


def _cleaned(before: History, clean: Mapping[str, int]) -> History:
    """The same but for the clean ticks; `dataclasses.replace` takes ten times as long."""
    made = object.__new__(History)
    made.__dict__.update(before.__dict__)
    made.__dict__["clean_ticks"] = clean
    return made


def _patience(limits: Limits, current: Rung, history: History, now_s: float, settings: PolicySettings) -> int:
    """Clean ticks to ask for after a fall: twice as many when the climb before it is to be regretted."""
    if history.climbed_s is None or (history.climbed_near and limits.windows_s) or limits.crowded(current):
        return history.patience_ticks
    stayed_s = now_s - history.climbed_s
    patience = max(history.patience_ticks, settings.up_after_ticks)
    if stayed_s >= settings.regret_s * patience / settings.up_after_ticks:
        return 0
    return max(settings.up_after_ticks, min(2 * patience, settings.patience_max_ticks))


def _near_patience(limits: Limits, current: Rung, history: History, settings: PolicySettings) -> int:
    """Clean ticks to ask of a route that enters by little: four times as many when such a climb ends by a hair, as noise does."""
    over = current.latency_ms / limits.bounds.latency_ms if limits.bounds.latency_ms > 0 else math.inf
    if over > 1 + 2 * settings.margin:
        return 0  # it is another day
    if limits.crowded(current):
        return history.near_ticks
    if not history.climbed_near:
        return max(history.near_ticks, _AFTER_TICKS)
    least = 4 * 4 if limits.windows_s else settings.near_factor * settings.up_after_ticks
    return min(4 * max(history.near_ticks, least), 16 * settings.patience_max_ticks)


def _decision(limits: Limits, chosen: Rung, history: History, reason: str, borne: bool = False) -> Decision:
    """The one place that says whether the chosen route fits; where it does not, the reason is that."""
    feasible, predicted_ms = borne or _fits(limits, chosen), limits.predicted_ms(chosen)
    if feasible:
        return Decision(chosen.name, True, reason, limits.in_force(), history, False, predicted_ms)
    text = f"{chosen.name} serves although it does not fit: {_broken(limits, chosen)}"
    return Decision(chosen.name, False, text, limits.in_force(), history, limits.budget.min_accuracy is not None, predicted_ms)


def _instead_of(pin: str | None, decision: Decision) -> Decision:
    """A decision in place of the pinned route, which is not loaded: told in its reason."""
    if pin is None:
        return decision
    return replace(decision, reason=f"{decision.reason} ({pin} is pinned, but not loaded)")


def _broken(limits: Limits, rung: Rung) -> str:
    return ", ".join(text for _, text in limits.broken(rung))


def _instead(limits: Limits, chosen: Rung) -> str:
    predicted_ms = None if limits.budget.latency_ms is None else limits.predicted_ms(chosen)
    return f"{chosen.name} does" + ("" if predicted_ms is None else f", predicted {format_ms(predicted_ms)}")
