"""The policy's own decisions under a slowdown that comes and goes, as a picture."""

import csv
from itertools import pairwise
from pathlib import Path

from restnet_runtime.budget import Budget
from restnet_runtime.ladder import Candidate
from restnet_runtime.policy import History, decide
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route

PROFILES = Path(__file__).parents[2] / "benchmarks" / "profiles" / "resnet18-50.csv"
BUDGET_MS = 50.0
TICK_S = 0.25
LAST_S = 46.0
WORDS = (
    ("down at once", 8.4, 62),
    ("up after five clean ticks", 12, 12),
    ("down", 24.4, 72),
    ("up again", 28, 12),
    ("up by little: more patience", 31, 62),
)
"""For each switch, and where they stand: seconds and milliseconds."""
INK, BUDGET, CHOSEN, OTHER = "#1f2937", "#b91c1c", "#6d28d9", "#9ca3af"


def candidates() -> list[Candidate]:
    """Routes between ResNet-18 and ResNet-50 with published accuracies, and latencies in their proportion."""
    with PROFILES.open() as file:
        rows = list(csv.DictReader(file))
    return [
        Candidate(
            Route(row["route"], (row["route"],), ("fp32",), int(float(row["latency_ms"]) * 1e8), 1, 1, float(row["accuracy"]), True),
            RouteProfile(float(row["latency_ms"]), float(row["latency_ms"]), int(row["memory_bytes"])),
        )
        for row in rows
    ]


def slowdown(now_s: float) -> float:
    """Another job comes at 8 s, a short burst at 24 s."""
    return 1.9 if 8 <= now_s < 20 else 1.5 if 24 <= now_s < 25 else 1.0


def decisions() -> list[tuple[float, float, str, float]]:
    """(time, slowdown, route, profiled latency of that route) at each tick: `policy.decide`, nothing else."""
    ladder, history, made = candidates(), History(), []
    latency = {one.route.name: one.profile.latency_ms for one in ladder if one.profile is not None}
    for tick in range(int(LAST_S / TICK_S)):
        now_s = tick * TICK_S
        decision = decide(Reading(slowdown=slowdown(now_s)), Budget(latency_ms=BUDGET_MS), ladder, history, now_s)
        history = decision.history
        made.append((now_s, slowdown(now_s), decision.route, latency[decision.route]))
    return made


def draw(out: Path) -> None:
    """Above: predicted latency of each route and of the one that serves; below: its accuracy."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "restnet"  # the same file each time
    from matplotlib import pyplot

    made, routes = decisions(), candidates()
    times = [now_s for now_s, *_ in made]
    accuracy = {one.route.name: 100 * (one.route.accuracy or 0) for one in routes}
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8.6, 4.8), sharex=True, height_ratios=(2.2, 1), layout="constrained")
    for one in routes:
        assert one.profile is not None
        above.step(times, [slow * one.profile.latency_ms for _, slow, *_ in made], color=OTHER, linewidth=0.7, alpha=0.7, where="post")
    above.step(
        times, [slow * latency for _, slow, _, latency in made], color=CHOSEN, linewidth=2.6, where="post", label="the route that serves"
    )
    above.plot([], [], color=OTHER, linewidth=0.7, label="every other route")
    above.axhline(BUDGET_MS, color=BUDGET, linewidth=1.4, linestyle="--", label=f"budget, {BUDGET_MS:g} ms")
    above.set_ylabel("predicted latency, ms")
    above.set_ylim(0, 100)
    above.legend(loc="upper right", frameon=False, fontsize=9)
    below.step(times, [accuracy[route] for _, _, route, _ in made], color=CHOSEN, linewidth=2.6, where="post")
    below.set_ylabel("accuracy, %")
    below.set_xlabel("seconds; another job from 8 to 20, a burst from 24 to 25")
    switched = [(now_s, serving) for (_, _, before, _), (now_s, _, now, serving) in pairwise(made) if before != now]
    for (now_s, latency), (words, x, y) in zip(switched, WORDS, strict=True):
        line = {"arrowstyle": "-", "color": OTHER}
        above.annotate(words, (now_s, slowdown(now_s) * latency), (x, y), fontsize=9, color=INK, arrowprops=line)
    above.margins(x=0.01)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)
