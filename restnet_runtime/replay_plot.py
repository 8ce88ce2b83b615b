"""The picture of replays: the latency budget and what requests took, and the route that each ran on, over time. Needs matplotlib."""

from pathlib import Path

from restnet_runtime.errors import TraceError
from restnet_runtime.replays import Replays
from restnet_runtime.rivals import OURS


def plot(replays: Replays, file: Path) -> None:
    """One row for each trace. Raises `TraceError` where matplotlib is missing, `OSError` where the file cannot be written."""
    try:
        import matplotlib
    except ImportError as error:
        raise TraceError("--plot needs matplotlib: pip install matplotlib, or leave it out") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(replays.played)
    figure, axes = pyplot.subplots(count, 2, figsize=(13, 2.1 * count + 0.6), squeeze=False, layout="constrained")
    for (times, routes), one in zip(axes, replays.played, strict=True):
        course, ours, oracle = one.course, one.runs[OURS], one.runs["oracle"]
        times.plot(course.arrivals_s, ours.response_ms, ",", color="tab:blue", label="request")
        times.axhline(course.limit_ms, color="tab:red", linewidth=1, label="budget")
        times.set_ylim(0, 1.6 * course.limit_ms)
        times.set_ylabel(f"{one.name}\nms")
        accuracy = [100 * fare.accuracy for fare in course.fares]
        routes.plot(course.arrivals_s, [accuracy[route] for route in oracle.routes], ",", color="0.6", label="oracle")
        routes.step(
            course.arrivals_s, [accuracy[route] for route in ours.routes], where="post", color="tab:blue", linewidth=1, label="restnet"
        )
        routes.set_ylabel("accuracy of route, %")
    for axis in axes[0]:
        axis.legend(loc="lower left", fontsize=7, ncols=3, markerscale=6)
    axes[0][0].set_title(f"latency of requests, budget {replays.budget}", fontsize=9)
    axes[0][1].set_title("chosen route", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("s")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
