"""Claim: a decision of the policy takes at most 100 us for 71 routes.

    python benchmarks/decision.py [--routes 71] [--rounds 2000] [--json FILE]

`policy.decide` on routes as SN-Net's DeiT-Ti/S/B has them (71, costs 1.26 to 17.58 GMACs), in the ways that it can go: staying with
everything known of the load, falling, climbing, nothing fits. Beside it a whole beat of the controller, which is a decision with the
reading of slowdown, tail and traffic before it, on an executor that only remembers which route is current.
"""

import statistics
import time
from collections.abc import Callable

from common import Floor, Result, arguments, publish, quantile

FLOOR_US = 100
LIMIT_MS = 200.0


def main() -> None:
    from restnet_runtime.budget import Budget
    from restnet_runtime.course import make_course
    from restnet_runtime.ladder import Candidate, Ladder
    from restnet_runtime.policy import History, decide
    from restnet_runtime.profile import RouteProfile
    from restnet_runtime.reading import Reading
    from restnet_runtime.rivals import Ours
    from restnet_runtime.routes import Route
    from restnet_runtime.traces import Moment, Trace

    parser = arguments(__doc__)
    parser.add_argument("--routes", type=int, default=71)
    parser.add_argument("--rounds", type=int, default=2000)
    args = parser.parse_args()
    started = time.monotonic()
    family = []
    for index in range(args.routes):
        share = index / max(1, args.routes - 1)
        gmacs = 1.26 * (17.58 / 1.26) ** share
        route = Route(f"r{index}", (f"r{index}",), ("fp32",), int(gmacs * 1e9), 1, 1, 0.7056 + 0.1137 * share**0.5, True)
        family.append(Candidate(route, RouteProfile(9.0 * gmacs, 10.0 * gmacs, int((60 + 22 * gmacs) * 1e6))))
    ladder, budget = Ladder(family), Budget(latency_ms=LIMIT_MS)
    load = {"tail": 1.06, "requests_per_s": 4.0, "gap_variation": 0.3, "waiting_ms": 5.0}
    calm = Reading(
        memory_available_bytes=10**9, own_memory_bytes=10**8, slowdown=1.7, credit=0.5, ceilings={4: 1.9, 15: 1.95, 60: 2.0}, **load
    )  # type: ignore[arg-type]
    late = Reading(memory_available_bytes=10**9, own_memory_bytes=10**8, slowdown=90.0, credit=-0.5, ceilings={4: 99.0}, **load)  # type: ignore[arg-type]
    middle, last = family[len(family) // 3].route.name, family[-1].route.name
    first = family[0].route.name
    ways: dict[str, Callable[[], object]] = {
        "stay, every better route is looked at": lambda: decide(calm, budget, ladder, History(first, budget), 1.0),
        "stay, in the middle": lambda: decide(calm, budget, ladder, History(middle, budget), 1.0),
        "fall": lambda: decide(calm, budget, ladder, History(last, budget), 1.0),
        "climb": lambda: decide(calm, budget, ladder, History(first, budget, {one.route.name: 99 for one in family}), 1.0),
        "nothing fits": lambda: decide(late, budget, ladder, History(first, budget), 1.0),
    }
    course = make_course(Trace("flat", (Moment(0.0, 1.0, 1e9, 1.2, 4.0),), 10.0), family, LIMIT_MS, spread=0.03)
    ours = Ours(course, family, budget)
    ticks = iter(range(10**9))

    def beat() -> None:
        now_s = next(ticks) * 0.25
        ours.arrive(now_s)
        ours.observe(now_s, 0, 12.0)
        ours.step(now_s)

    rows = [_timed(name, way, args.rounds) for name, way in ways.items()]
    rows.append(_timed("a beat of the controller", beat, args.rounds))
    result = Result(
        f"Decisions, {args.routes} routes",
        ("way", "median", "p95"),
        [(str(row["way"]), f"{row['median_us']:.1f} us", f"{row['p95_us']:.1f} us") for row in rows],
        rows,
    )
    worst = max(float(str(row["median_us"])) for row in rows[:-1])
    result.floors.append(Floor(f"decision, {args.routes} routes", "-", f"<= {FLOOR_US} us", f"{worst:.1f} us", worst <= FLOOR_US))
    publish(result, args, started)


def _timed(name: str, way: Callable[[], object], rounds: int) -> dict[str, object]:
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        way()
        times.append((time.perf_counter() - before) * 1e6)
    return {"way": name, "median_us": statistics.median(times), "p95_us": quantile(times, 0.95)}


if __name__ == "__main__":
    main()
