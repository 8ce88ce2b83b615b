"""The picture of a squeeze: latency as the client sees it, the route that answers, and memory, over time."""

from collections.abc import Sequence
from pathlib import Path

from squeeze_report import OURS, WINDOW_S, Course

COLOURS = ("#1f6fb2", "#c44536", "#6b7280")
LIMIT = "#333333"


def plot(courses: Sequence[Course], budget_ms: float, file: Path) -> None:
    """Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (latency, accuracy, memory) = plt.subplots(3, 1, figsize=(12, 9), sharex=True, height_ratios=(3, 1.4, 1.4))
    for course, colour in zip(courses, COLOURS, strict=False):
        due = [one.due_s for one in course.asked]
        ours = course.name == OURS
        if ours:
            answered = [one for one in course.asked if one.ok]
            latency.scatter(
                [one.due_s for one in answered], [one.latency_ms for one in answered], s=5, color=colour, alpha=0.5, linewidths=0
            )
        p95 = [max(1.0, course.window_p95_ms(at_s + 1e-6)) for at_s in due]
        latency.plot(due, p95, color=colour, linewidth=1.8 if ours else 1.0, label=f"{course.name}, p95 over {WINDOW_S:g} s")
        served = [(one.due_s, 100 * (course.accuracies.get(one.route or "") or 0.0)) for one in course.asked if one.ok]
        accuracy.step(*zip(*served, strict=True), where="post", color=colour, linewidth=1.8 if ours else 1.0)
        memory.plot(
            [one.at_s for one in course.samples],
            [one.used_bytes / 1e6 for one in course.samples],
            color=colour,
            linewidth=1.8 if ours else 1.0,
        )
    latency.axhline(budget_ms, color=LIMIT, linestyle="--", linewidth=1, label=f"budget {budget_ms:g} ms")
    latency.set_yscale("log")
    latency.set_ylim(5, 1e5)
    latency.set_ylabel("latency, ms")
    latency.legend(loc="upper center", fontsize=8, ncols=4)
    accuracy.set_ylabel("accuracy of\nthe route, %")
    limits = [(one.at_s, one.limit_bytes / 1e6) for one in courses[0].samples if one.limit_bytes is not None]
    if limits:
        memory.plot(*zip(*limits, strict=True), color=LIMIT, linestyle="--", linewidth=1, label="limit of the group")
        memory.legend(loc="upper left", fontsize=8)
    memory.set_ylabel("memory of\nthe group, MB")
    memory.set_xlabel("seconds")
    for number, phase in enumerate(courses[0].phases):
        for axes in (latency, accuracy, memory):
            axes.axvline(phase.begin_s, color="#cccccc", linewidth=0.8)
            if number and not phase.name.endswith("again"):
                axes.axvspan(phase.begin_s, phase.end_s, color="#f3e3c8", alpha=0.5, linewidth=0)
        latency.text(phase.begin_s + 0.3, 7.5 if number % 2 else 6, phase.name, fontsize=8, va="center")
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    plt.close(figure)
