"""Claim: on made traces the controller keeps a feasible budget and wins nine tenths of the accuracy that an oracle wins.

    python benchmarks/replay.py [--bundles digits ...] [--traces all] [--json FILE] [--page docs/controller.md] [--picture docs/replay.png]

Loads and profiles every route of each bundle on this machine, then replays the traces as `restnet-bench --trace` does, with requests that
come evenly and at random. `--page` writes the tables as a page, `--picture` the picture of the first bundle.
`table:FILE` instead of a bundle is a CSV of `route,accuracy,latency_ms,memory_bytes`.
"""

import csv
import time
from pathlib import Path

from attainable import attainable
from common import CACHE, Floor, Result, arguments, command, machine_line, publish

from restnet_runtime.budget import Budget
from restnet_runtime.replay import START_S
from restnet_runtime.replays import HEADER, KEPT_SHARE, Replays, mean_rows, row
from restnet_runtime.rivals import OURS

WON_SHARE = 0.9
NOISES = 6
FASTER = 1000


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--bundles", nargs="+", default=["digits", "table:benchmarks/profiles/resnet18-50.csv", "table:benchmarks/profiles/deit-ti-s-b.csv"]
    )
    parser.add_argument("--traces", nargs="+", default=["all"])
    parser.add_argument("--page", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    started = time.monotonic()
    result = Result("Replay of traces", ("bundle", "arrivals", *HEADER))
    found: list[Replays] = []
    for bundle in args.bundles:
        for at_random in (False, True):
            replays = run(bundle, args.traces, at_random)
            found.append(replays)
            how = "at random" if at_random else "evenly"
            result.cells += [(bundle.partition("/")[2] or bundle, how, *cells) for cells in mean_rows(replays)]
            result.rows.append({"bundle": bundle, **replays.document()})
    for replays in found:
        result.floors += floors(replays)
    took_s = sum(played.seconds / played.faster for replays in found for played in replays.played)
    faster = sum(played.seconds for replays in found for played in replays.played) / took_s
    result.floors.append(
        Floor("replay of ours, all traces", "real time", f">= {FASTER:,} times faster", f"{faster:,.0f}", faster >= FASTER)
    )
    if args.picture:
        from restnet_runtime.replay_plot import plot

        plot(found[0], args.picture)
    if args.page:
        write_page(args.page, found, result.floors, args.picture)
    publish(result, args, started)


def run(bundle: str, traces: list[str], at_random: bool) -> Replays:
    from restnet_runtime.engine import Engine
    from restnet_runtime.machine import describe_machine
    from restnet_runtime.replay_bench import run_replays
    from restnet_runtime.replays import find_traces, play_all, replay_budget
    from restnet_runtime.rivals import Cast

    if bundle.startswith("table:"):
        candidates = read_table(Path(bundle.removeprefix("table:")))
        budget, fitting = replay_budget(Budget(), candidates)
        assert budget.latency_ms is not None
        found = find_traces(traces, fitting, budget.latency_ms)
        name = Path(bundle).stem
        return play_all(name, found, fitting, budget, Cast.of(fitting, budget, 0.1), describe_machine(), spread=0.03, at_random=at_random)
    from families import family

    engine = Engine.open(family(bundle).path, cache_root=CACHE, threads=1)
    try:
        return run_replays(engine, Budget(), traces, at_random=at_random)
    finally:
        engine.stop()


def read_table(file: Path) -> list["Candidate"]:  # type: ignore[name-defined]  # noqa: F821
    """Routes as a CSV of `route,accuracy,latency_ms,memory_bytes`."""
    with file.open(newline="") as lines:
        return [
            as_candidate(one["route"], float(one["accuracy"]), float(one["latency_ms"]), float(one["memory_bytes"]))
            for one in csv.DictReader(lines)
        ]


def as_candidate(name: str, accuracy: float, latency_ms: float, memory_bytes: float) -> "Candidate":  # type: ignore[name-defined]  # noqa: F821
    """A route by its figures; costs in MACs go by the latency, which is all that is asked of them."""
    from restnet_runtime.ladder import Candidate
    from restnet_runtime.profile import RouteProfile
    from restnet_runtime.routes import Route

    route = Route(name, (name,), ("fp32",), int(1e6 * latency_ms), 1, 1, accuracy, True)
    return Candidate(route, RouteProfile(latency_ms, 1.05 * latency_ms, int(memory_bytes)))


def floors(replays: Replays) -> list[Floor]:
    """Of one bundle: the worst trace for each, and where the budget is kept, whether any other that keeps it wins more on the mean."""
    ours = [one.scores[0] for one in replays.played]
    label = f"{replays.bundle}, requests {'at random' if replays.at_random else 'even'}: "
    over = max(one.over_budget_share for one in ours)
    found = [Floor(f"{label}over a feasible budget, worst trace", "-", f"<= {KEPT_SHARE:.0%}", f"{over:.2%}", over <= KEPT_SHARE)]
    won = [one.accuracy_won_share for one in ours if one.accuracy_won_share is not None]
    if won:
        least, mean = min(won), sum(won) / len(won)
        figure = f"{least:.1%} (mean {mean:.1%})"
        found.append(Floor(f"{label}accuracy won, worst trace", "oracle", f">= {WON_SHARE:.0%}", figure, least >= WON_SHARE))
        if replays.at_random:
            found.append(_attainable_floor(replays, label))
        others = {}
        for place, first in enumerate(replays.played[0].scores[:-1]):
            shares = [one.scores[place].accuracy_won_share for one in replays.played]
            if first.name != OURS:
                others[first.name] = sum(share or 0.0 for share in shares) / len(shares)
        keeping = {name for name in others if _keeps(replays, name)}
        for which, names in (("best of the others", set(others)), ("best of the others that keep the budget", keeping)):
            best = max(names, key=lambda name: others[name])
            text = f"{which} ({best})"
            found.append(Floor(f"{label}accuracy won, mean", text, f"> {others[best]:.1%}", f"{mean:.1%}", mean > others[best]))
    if not replays.at_random and any(played.name == "steady" for played in replays.played):
        counts = [steady_switches(replays, seed) for seed in range(NOISES)]
        worst, starting = max(settled for settled, _ in counts), max(early for _, early in counts)
        figure = f"{', '.join(str(settled) for settled, _ in counts)} (and at most {starting} in the first {START_S:.0f} s)"
        what = f"{label}switches on the steady trace once it has begun, {NOISES} noises"
        found.append(Floor(what, "-", "<= 1 in 10 minutes", figure, worst <= 1))
    return found


def _keeps(replays: Replays, name: str) -> bool:
    """Did this policy keep the budget on every trace?"""
    return all(score.over_budget_share <= KEPT_SHARE for played in replays.played for score in played.scores if score.name == name)


def shares(replays: Replays) -> dict[str, tuple[float, float, float]]:
    """By trace, where something can be won: of what the oracle wins, what can be won without knowing arrivals; what ours wins, of each."""
    from restnet_runtime.replay import feasible

    found = {}
    for played in replays.played:
        ours = played.scores[0].accuracy_won_share
        if ours is None:
            continue
        course, base = played.course, played.scores[1].accuracy_mean
        can, oracle = feasible(course), list(played.runs.values())[-1]
        met = (route for route, in_time, able in zip(oracle.routes, oracle.met, can, strict=True) if in_time and able)
        won = sum(course.fares[route].accuracy - base for route in met) / len(can)
        most = attainable(course, can, base, replays.spread, KEPT_SHARE) / won
        found[played.name] = most, ours, ours / most
    return found


def _attainable_floor(replays: Replays, label: str) -> Floor:
    known = shares(replays)
    within = {name: ours for name, (most, ours, _) in known.items() if most >= WON_SHARE}
    least = min(within.values(), default=1.0)
    figure = f"{least:.1%} ({len(within)} of {len(known)} traces)"
    what = f"{label}accuracy won, worst of the traces where so much can be won without knowing arrivals"
    return Floor(what, "oracle", f">= {WON_SHARE:.0%}", figure, least >= WON_SHARE)


def steady_switches(replays: Replays, seed: int) -> tuple[int, int]:
    """(once it has begun, before) on the steady trace with another noise."""
    from restnet_runtime.course import make_course
    from restnet_runtime.replay import replay
    from restnet_runtime.replays import find_traces
    from restnet_runtime.rivals import Ours

    fares, limit_ms = replays.played[0].course.fares, replays.played[0].course.limit_ms
    candidates = [as_candidate(fare.name, fare.accuracy, fare.run_ms, fare.memory_bytes) for fare in fares]
    (trace,) = find_traces(["steady"], candidates, limit_ms, seed)
    course = make_course(trace, candidates, limit_ms, spread=replays.spread, seed=seed)
    run = replay(course, Ours(course, candidates, replays.budget))
    return (run.switched or 0) - run.starting, run.starting


def write_page(page: Path, found: list[Replays], floors: list[Floor], picture: Path | None) -> None:
    lines = ["# The controller, replayed", "", f"Written by `{command()}`, on {machine_line(found[0].machine)}.", ""]
    lines += [INTRODUCTION, ""]
    if picture:
        lines += [f"![budget, latency and chosen route over time]({picture.name})", ""]
    lines += ["| what | against | floor | figure | |", "|---|---|---|---|---|"]
    lines += [f"| {one.what} | {one.against} | {one.floor} | {one.figure} | {'met' if one.met else 'missed'} |" for one in floors]
    for replays in found:
        how = "at random" if replays.at_random else "evenly"
        lines += [
            "",
            f"## {replays.bundle}, requests come {how}",
            "",
            f"Budget {replays.budget}, run times spread by {replays.spread:.1%}.",
            "",
        ]
        if replays.at_random:
            told = [f"{name} {most:.0%} ({ours:.0%})" for name, (most, ours, _) in shares(replays).items()]
            lines += [f"Of what the oracle wins, at most attainable without knowing arrivals (won by `restnet`): {', '.join(told)}.", ""]
        lines += [f"| trace | {' | '.join(HEADER)} |", "|---" * (len(HEADER) + 1) + "|"]
        for played in replays.played:
            lines += [f"| {played.name} | {' | '.join(row(one, played.won_of_each[one.name]))} |" for one in played.scores]
        lines += [f"| mean | {' | '.join(cells)} |" for cells in mean_rows(replays)]
    page.write_text("\n".join(lines) + "\n")


INTRODUCTION = """`restnet` is the server's own controller, run on a virtual clock; the others see the same requests with the same noise,
and the device once a second. *over*: of the requests for which some route could have kept the budget, those that did not (*: above 2 %).
*won*: accuracy over always-small, as a share of what the oracle wins; an answer over the budget wins nothing. The oracle knows the whole
trace and takes the best route for each second that keeps the budget for all requests in it; *of each* is the share of what an oracle wins
that chooses for each request, knowing how long that very run will take. What is *attainable* without knowing when requests come, and with
2 % of the feasible ones late, is computed (`benchmarks/attainable.py`). *two anchors, reload*: a small and a large network of which one is
loaded at a time. *no hysteresis*: every second the best that is predicted to fit. *slack*: SuperServe's SlackFit, for each request the
best that fits the time it has left, given the observed slowdown as well. Families named after a table have profiles of published
cost and accuracy (`benchmarks/profiles/`), not of this machine."""


if __name__ == "__main__":
    main()
