"""Replays: traces run by every policy on this device's profiles, as a table, as JSON and as what a picture is drawn from."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from restnet_runtime.budget import Budget
from restnet_runtime.course import Course, make_course
from restnet_runtime.errors import TraceError
from restnet_runtime.ladder import Candidate, Ladder
from restnet_runtime.oracle import Oracle
from restnet_runtime.replay import Run, Score, feasible, replay, score
from restnet_runtime.rivals import OURS, Cast
from restnet_runtime.tables import table
from restnet_runtime.traces import Trace, read_trace
from restnet_runtime.units import format_ms
from restnet_runtime.weather import SPARE, WEATHER, Climate, make_trace

KEPT_SHARE = 0.02
"""A policy keeps the budget where at most so many requests are over one that could be kept."""


@dataclass(frozen=True)
class Played:
    """One trace as every policy ran it.

    feasible_share:    of the requests, those for which a route could have kept the budget
    scores:            ours first, the oracle last
    won_of_each:       by policy, its share of what an oracle wins that chooses for each request by itself
    faster:            real time over the processor time that the replay of ours took
    course, runs:      for a picture: ours and the oracle's
    """

    name: str
    requests: int
    seconds: float
    feasible_share: float
    scores: tuple[Score, ...]
    won_of_each: dict[str, float | None]
    faster: float
    course: Course
    runs: dict[str, Run]


@dataclass(frozen=True)
class Replays:
    """All of them. spread: of run times; load_s: of an anchor, as measured."""

    bundle: str
    budget: Budget
    spread: float
    load_s: float
    at_random: bool
    played: tuple[Played, ...]
    machine: dict[str, str | int]

    def document(self) -> dict[str, object]:
        """As JSON-ready values: `traces`, each with `name` and `policies`."""
        traces = [
            {
                "name": one.name,
                "policies": [{**asdict(each), "accuracy_won_share_of_each_request": one.won_of_each[each.name]} for each in one.scores],
                "requests": one.requests,
                "seconds": one.seconds,
                "feasible_share": one.feasible_share,
                "times_faster": round(one.faster),
            }
            for one in self.played
        ]
        return {
            "traces": traces,
            "bundle": self.bundle,
            "budget": asdict(self.budget),
            "spread": self.spread,
            "load_ms": self.load_s * 1e3,
            "arrivals": "random" if self.at_random else "even",
            "machine": self.machine,
        }


def find_traces(names: Sequence[str], candidates: Sequence[Candidate], latency_ms: float, seed: int = 0) -> list[Trace]:
    """By name of the weather, `all` of it, or CSV file. Raises `TraceError`, and `OSError` for a file that cannot be read."""
    climate = Climate.of(candidates, latency_ms)
    traces = []
    for name in names:
        if name == "all":
            traces += [make_trace(one, climate, seed) for one in WEATHER]
        elif name in WEATHER or not (Path(name).suffix or Path(name).exists()):
            traces.append(make_trace(name, climate, seed))
        else:
            traces.append(read_trace(Path(name)))
    return traces


def replay_budget(budget: Budget, candidates: Sequence[Candidate]) -> tuple[Budget, list[Candidate]]:
    """The budget with a latency limit, and the routes that keep its other limits. Raises `TraceError` where none does."""
    profiled = [one for one in candidates if one.profile is not None]
    if not profiled:
        raise TraceError("no route has a profile: there is nothing to replay")
    floor = budget.min_accuracy
    fitting = [
        one
        for one in profiled
        if (budget.macs is None or one.route.macs <= budget.macs)
        and (budget.memory_bytes is None or (one.profile is not None and one.profile.memory_bytes <= budget.memory_bytes))
        and (floor is None or (one.route.accuracy is not None and one.route.accuracy >= floor))
    ]
    if not fitting:
        raise TraceError(f"no route keeps the budget {budget} even on an idle device")
    if budget.latency_ms is None:
        budget = replace(budget, latency_ms=SPARE * Ladder(fitting).rungs[0].latency_ms)
    return budget, fitting


def spread_of(candidates: Sequence[Candidate]) -> float:
    """The standard deviation of the logarithm of run times, from the 95th percentiles of the profiles, 0.01 to 0.1."""
    over = [one.profile.p95_ms / one.profile.latency_ms for one in candidates if one.profile is not None and one.profile.latency_ms > 0]
    return min(0.1, max(0.01, math.log(max(1.0, median(over))) / 1.645)) if over else 0.03


def play(
    trace: Trace, candidates: Sequence[Candidate], budget: Budget, cast: Cast, *, spread: float, at_random: bool = False, seed: int = 0
) -> Played:
    """One trace by every policy. budget: as `replay_budget` gives it."""
    assert budget.latency_ms is not None
    course = make_course(trace, candidates, budget.latency_ms, spread=spread, at_random=at_random, seed=seed)
    can = feasible(course)
    oracle, each = replay(course, Oracle(course, cast.small)), replay(course, Oracle(course, cast.small, 0.0))
    runs, took_s = [], math.inf
    for player in cast.players(course):
        started = time.thread_time()
        runs.append(replay(course, player))
        if player.name == OURS:
            took_s = time.thread_time() - started
    runs.append(oracle)
    scores = tuple(score(course, run, can, cast.small, oracle) for run in runs)
    won_of_each = {run.name: score(course, run, can, cast.small, each).accuracy_won_share for run in runs}
    share = sum(can) / len(can) if can else 1.0
    shown = {run.name: run for run in runs if run.name in (OURS, oracle.name)}
    return Played(trace.name, len(can), trace.end_s, share, scores, won_of_each, trace.end_s / took_s, course, shown)


def play_all(
    bundle: str,
    traces: Sequence[Trace],
    candidates: Sequence[Candidate],
    budget: Budget,
    cast: Cast,
    machine: dict[str, str | int],
    *,
    spread: float,
    at_random: bool = False,
    on_trace: Callable[[str], object] = lambda _: None,
) -> Replays:
    """Every trace. on_trace: told the name of each before it is played."""
    played = []
    for trace in traces:
        on_trace(trace.name)
        played.append(play(trace, candidates, budget, cast, spread=spread, at_random=at_random))
    return Replays(bundle, budget, spread, cast.load_s, at_random, tuple(played), machine)


def render(replays: Replays) -> str:
    """For a terminal."""
    lines = [
        f"bundle {replays.bundle}, budget {replays.budget}; run times spread by {replays.spread:.1%}, an anchor loads in "
        f"{format_ms(replays.load_s * 1e3)}, requests come {'at random' if replays.at_random else 'evenly'}"
    ]
    for one in replays.played:
        lines += ["", f"{one.name}: {one.requests:,} requests in {one.seconds:.0f} s, {one.feasible_share:.1%} feasible; replayed "]
        lines[-1] += f"{one.faster:,.0f} times faster than real time"
        lines.append(table(HEADER, (row(each, one.won_of_each[each.name]) for each in one.scores)))
    if len(replays.played) > 1:
        lines += ["", f"all {len(replays.played)} traces, means", table(HEADER, mean_rows(replays))]
    lines += [
        "",
        f"over: of the feasible requests, those over the budget (*: more than {KEPT_SHARE:.0%}, the budget was not kept)",
        "won: accuracy over always small, as a share of what the oracle wins; answers over the budget win nothing",
        "of each: the same of an oracle that chooses for each request by itself, knowing how long each run will take",
        "regret: accuracy that the oracle won more; changes: requests on another route than the one before",
    ]
    return "\n".join(lines)


HEADER = ("policy", "over", "accuracy", "won", "of each", "regret", "switches/min", "changes/min")


def row(one: Score, of_each: float | None) -> tuple[str, ...]:
    """One policy on one trace, as text."""
    return (
        one.name,
        f"{one.over_budget_share:.2%}" + ("*" if one.over_budget_share > KEPT_SHARE else " "),
        f"{one.accuracy_mean:.2%}",
        "-" if one.accuracy_won_share is None else f"{one.accuracy_won_share:.1%}",
        "-" if of_each is None else f"{of_each:.1%}",
        f"{100 * one.regret:.2f} points",
        f"{one.switches_per_minute:.1f}",
        f"{one.changes_per_minute:.1f}",
    )


def mean_rows(replays: Replays) -> list[tuple[str, ...]]:
    """Every policy, the mean over the traces; the share won over those where something can be won."""
    rows = []
    for place, first in enumerate(replays.played[0].scores):
        scores = [one.scores[place] for one in replays.played]
        of_each = [share for one in replays.played if (share := one.won_of_each[first.name]) is not None]
        won = [one.accuracy_won_share for one in scores if one.accuracy_won_share is not None]
        mean = Score(
            first.name,
            sum(one.over_budget_share for one in scores) / len(scores),
            sum(one.accuracy_mean for one in scores) / len(scores),
            sum(won) / len(won) if won else None,
            sum(one.regret for one in scores) / len(scores),
            sum(one.switches_per_minute for one in scores) / len(scores),
            sum(one.changes_per_minute for one in scores) / len(scores),
        )
        rows.append(row(mean, sum(of_each) / len(of_each) if of_each else None))
    return rows
