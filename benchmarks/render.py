"""Result files of the benchmarks -> docs/benchmarks.md and docs/benchmarks.png.

python benchmarks/render.py [--results DIR] [--out docs/benchmarks.md]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import REPOSITORY, RESULTS, machine_line

ORDER = (
    "route_latency",
    "executor_overhead",
    "route_memory",
    "switching",
    "peers",
    "churn",
    "batching",
    "startup",
    "small_memory",
    "compile_time",
    "thread_waiting",
    "thread_count",
    "sensing",
    "prediction",
)
"""Of the sections; each is the name of a benchmark and of its file of results."""
MET = {True: "met", False: "**missed**", None: "not decided"}
INK, OURS, THEIRS, LIMIT = "#333333", "#1f6fb2", "#b8bec6", "#c44536"
DARK = "#6b7280"
MARKERS = "os^"


def load(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ORDER if (folder / f"{name}.json").exists()}


def markdown(results: dict[str, dict[str, Any]]) -> str:
    machines = {json.dumps(result["machine"], sort_keys=True): result["machine"] for result in results.values()}
    dates = sorted(result["date"] for result in results.values())
    seconds = sum(result["seconds"] for result in results.values())
    floors = [(floor, result["command"]) for result in results.values() for floor in result["floors"]]
    missed = sum(floor["met"] is False for floor, _ in floors)
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`benchmarks/render.py`); edit the benchmarks, not this page. Every figure comes from one run of the",
        "command beside it, against a peer measured in the same run. Where answers or starts are timed beside other sessions, the outputs",
        "are compared before, or all along. Weights are random, because speed and memory do not depend on them.",
        "",
        f"Measured {dates[0]} to {dates[-1]}, {seconds / 60:.0f} minutes in all, on",
        "",
    ]
    lines += [f"- {machine_line(machine)}" for machine in machines.values()]
    lines += [
        "",
        f"![latency, memory, first answers and starts beside the alternatives]({PICTURE})",
        "",
        f"## Floors: {sum(floor['met'] is True for floor, _ in floors)} met, {missed} missed, "
        f"{sum(floor['met'] is None for floor, _ in floors)} not decided",
        "",
        *rows(
            ("what", "against", "floor", "figure", "", "command"),
            [
                (floor["what"], floor["against"], floor["floor"], floor["figure"], MET[floor["met"]], f"`{command}`")
                for floor, command in floors
            ],
        ),
    ]
    for name, result in results.items():
        lines += [
            "",
            f"## {result['title']}",
            "",
            f"`{result['command']}`, {result['seconds']:.0f} s, {result['date']}. How: `benchmarks/{name}.py`.",
        ]
        if result["cells"]:
            lines += ["", *rows(result["header"], result["cells"])]
        lines += [line for note in result["notes"] for line in ("", f"Note: {note}.")]
    return "\n".join(lines) + "\n"


def rows(header: Any, cells: Any) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(escape(cell) for cell in line)} |" for line in (header, ["---"] * len(header), *cells)]


def escape(cell: str) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Four panels: ratio of every route to a plain session; memory; requests and first requests beside the peers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.edgecolor": INK, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(2, 2, figsize=(12.5, 9.5), layout="constrained")
    panels = (("route_latency", ratios), ("route_memory", memory), ("peers", requests), ("peers", costs))
    for axis, (name, panel) in zip(axes.flat, panels, strict=True):
        if name in results and results[name]["rows"]:
            panel(axis, results[name]["rows"])
        else:
            axis.set_axis_off()
            axis.text(0.5, 0.5, f"no results of benchmarks/{name}.py", ha="center")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def ratios(axis: Any, found: list[dict[str, Any]]) -> None:
    labels = list(dict.fromkeys(row["route"] for row in found))
    settings = sorted({(row["threads"], row["batch"]) for row in found})
    markers = dict(zip(settings, "osD^v<>ph" * len(settings), strict=False))
    for shift, setting in enumerate(settings):
        points = [(labels.index(row["route"]), row["ratio"]) for row in found if (row["threads"], row["batch"]) == setting]
        axis.scatter(
            [ratio for _, ratio in points],
            [place + (shift - (len(settings) - 1) / 2) * 0.17 for place, _ in points],
            marker=markers[setting],
            s=28,
            label=f"{setting[0]} thread{'s' * (setting[0] > 1)}, batch {setting[1]}",
        )
    axis.axvline(1, color=INK, linewidth=0.8)
    axis.axvline(1.02, color=LIMIT, linewidth=0.8, linestyle="--", label="floor: 1.02")
    axis.set_yticks(range(len(labels)), [short(label) for label in labels])
    axis.invert_yaxis()
    axis.set_title("Latency of a route over a plain session,\nall routes of the family loaded (below 1: ours is faster)", loc="left")
    axis.legend(frameon=False, fontsize=8, loc="best")


def memory(axis: Any, found: list[dict[str, Any]]) -> None:
    for place, row in enumerate(found):
        bars = ((row["pss_bytes"], OURS, "ours"), (row["plain_pss_bytes"], THEIRS, "plain sessions"))
        for shift, (size, colour, label) in enumerate(bars):
            axis.barh(place + (shift - 0.5) * 0.36, size / 1e6, 0.34, color=colour, label=label if not place else None)
            axis.text(size / 1e6, place + (shift - 0.5) * 0.36, f" {size / 1e6:,.0f} MB", va="center")
        limit = row["allowance_bytes"] / 1e6
        label = "floor: 1.05 x weights.bin + 20 MB + 3 MB a route" if not place else None
        axis.plot([limit, limit], [place - 0.4, place], color=LIMIT, linestyle="--", linewidth=1, label=label)
    axis.set_yticks(range(len(found)), [f"{row['family']}\n{row['routes']} routes" for row in found])
    axis.invert_yaxis()
    axis.set_xlim(right=max(row["plain_pss_bytes"] for row in found) / 1e6 * 1.18)
    axis.set_title("Memory (PSS) of all routes, loaded and run once,\nabove the idle process", loc="left")
    axis.legend(frameon=False, fontsize=8, loc="best")


def requests(axis: Any, found: list[dict[str, Any]]) -> None:
    labels = [f"{row['peer']}, {row['family']}" for row in found]
    for place, row in enumerate(found):
        colour = OURS if row["peer"] == found[0]["peer"] else DARK
        axis.plot([row["latency_ms"], row["first_ms"]], [place, place], color=colour, linewidth=1.5)
        axis.plot(row["latency_ms"], place, "o", color=colour, label=None if place else "any later request")
        axis.plot(row["first_ms"], place, "|", color=colour, markersize=11, markeredgewidth=2.5, label=None if place else "the first one")
        far = max(row["latency_ms"], row["first_ms"])
        axis.text(far * 1.12, place, f"{row['latency_ms']:.1f} / {row['first_ms']:.1f} ms", va="center", fontsize=7)
    decades(axis.xaxis)
    axis.set_xlim(right=max(max(row["latency_ms"], row["first_ms"]) for row in found) * 2.5)
    axis.set_yticks(range(len(found)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("ms")
    axis.set_title("A request on a route, and the first after a switch", loc="left")
    axis.legend(frameon=False, fontsize=8, loc="upper right")


def costs(axis: Any, found: list[dict[str, Any]]) -> None:
    families = list(dict.fromkeys(row["family"] for row in found))
    for family in families:
        axis.scatter([], [], marker=MARKERS[families.index(family)], color=THEIRS, edgecolor=INK, s=50, label=family)
    for row in found:
        ours = row["peer"] == found[0]["peer"]
        place = (row["pss_bytes"] / 1e6, row["first_ms"])
        axis.scatter(*place, color=OURS if ours else THEIRS, edgecolor=INK, marker=MARKERS[families.index(row["family"])], s=60, zorder=3)
        above = families.index(row["family"]) % 2 == 0
        axis.annotate(
            row["peer"], place, (5, 5 if above else -10), textcoords="offset points", fontsize=7, fontweight="bold" if ours else None
        )
    decades(axis.xaxis)
    decades(axis.yaxis)
    axis.set_xlim(right=max(row["pss_bytes"] for row in found) / 1e6 * 2.2)
    axis.set_xlabel("memory (PSS) of the process, MB")
    axis.set_ylabel("first answer after a switch, ms")
    axis.set_title(
        "What keeping a family costs, and what a switch costs\n(bottom left is best; on demand keeps one route only)", loc="left"
    )
    axis.legend(frameon=False, fontsize=8, loc="upper right")


def decades(axis: Any) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def short(route: str) -> str:
    """`deit-tiny-patch16-224[0-8]>...` without what every name has."""
    return route.replace("-patch16-224", "").replace(">", " >\n")


PICTURE = "benchmarks.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks.md")
    args = parser.parse_args()
    results = load(args.results)
    if not results:
        raise SystemExit(f"no results in {args.results}: run make bench")
    args.out.write_text(markdown(results))
    draw(results, args.out.with_name(PICTURE))
    print(f"wrote {args.out} and {PICTURE} from {len(results)} of {len(ORDER)} results")


if __name__ == "__main__":
    main()
