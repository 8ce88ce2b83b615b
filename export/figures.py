"""Pictures of an export: which cuts are alike, what routes cost and score, and how tuning went."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from restnet_runtime.routes import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES: dict[str, tuple[str, float | None, float]] = {
    "cka": ("CKA (linear, debiased)", 0, 1),
    "kl": ("minus KL divergence of probes, nats", None, 0),
    "windows": ("minus distance in depth", None, 0),
}
"""What a heat map may show, and the ends of its colours; None is the lowest value of all pairs."""

PRECISION_COLOURS = {"fp32": "tab:blue", "int8": "tab:orange", "fp32+int8": "tab:green"}


@dataclass(frozen=True)
class RouteResult:
    """What a route turned out to be.

    accuracy, untuned:  top-1 (0..1) on the images to score on, at the end and before tuning; None where it was not measured
    latency_ms:         median on the machine of the export; None where it was not measured
    precision:          `fp32`, `int8`, or both for a mixed route
    weight_bytes, activation_bytes:  of its weights, and the most that activations take at once
    twin:               of a route that is not in fp32, the accuracy of the one that is
    """

    name: str
    macs: int
    params: int
    accuracy: float
    anchor: bool
    untuned: float | None = None
    latency_ms: float | None = None
    precision: str = "fp32"
    twin: float | None = None
    weight_bytes: int = 0
    activation_bytes: int = 0


@dataclass(frozen=True)
class Curve:
    """One line of the picture of tuning: a value by step, for example the held-out loss of a route."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def routes_figure(routes: Sequence[RouteResult], *, latency: bool = False) -> "Figure":
    """Accuracy over cost: anchors, stitched routes, the Pareto front, and the straight line between the anchors.

    latency: the cost is each route's latency, which all must have, instead of its MACs. A hollow ring is where a route was before tuning.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    scale, label = _scale(routes, latency)
    costs = [_cost(route, latency) / scale for route in routes]
    front = pareto_front((cost, route.accuracy) for cost, route in zip(costs, routes, strict=True))
    points = [(cost, 100 * route.accuracy, route, on) for cost, route, on in zip(costs, routes, front, strict=True)]
    anchors = sorted((cost, percent) for cost, percent, route, _ in points if route.anchor)
    axes.plot(*_columns(anchors), color="0.7", linestyle="--", linewidth=1, label="straight line between the anchors")
    best = sorted((cost, percent) for cost, percent, _, on in points if on)
    axes.step(*_columns(best), where="post", color="tab:blue", linewidth=1, label="Pareto front")
    untuned = [(cost, 100 * route.untuned) for cost, _, route, _ in points if not route.anchor and route.untuned is not None]
    dominated = [(cost, percent) for cost, percent, route, on in points if not route.anchor and not on]
    stitched = [(cost, percent) for cost, percent, route, on in points if not route.anchor and on]
    for xy, colour, marker, size, name in (
        (untuned, "0.75", "o", 18, "stitched, before tuning"),
        (dominated, "0.6", "o", 22, "stitched, dominated"),
        (stitched, "tab:blue", "o", 30, "stitched, on the front"),
        (anchors, "tab:orange", "*", 140, "anchors"),
    ):
        if xy:
            hollow = {"facecolors": "none", "edgecolors": colour} if xy is untuned else {"color": colour}
            axes.scatter(*_columns(xy), s=size, marker=marker, zorder=4 if marker == "*" else 3, label=name, **hollow)  # type: ignore[arg-type]
    for cost, percent, route, _ in points:
        if route.anchor:
            axes.annotate(route.name, (cost, percent), xytext=(6, -12), textcoords="offset points", fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel("top-1 accuracy on held-out images, %")
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def precisions_figure(routes: Sequence[RouteResult]) -> "Figure":
    """Accuracy over latency of all precisions together: what a device may choose from, and what one model alone would give.

    A star is an anchor: in fp32 and in int8 it is what somebody would deploy who deploys one model. All must have a latency.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    points = [(_cost(route, True), 100 * route.accuracy) for route in routes]
    front = pareto_front((cost, accuracy) for cost, accuracy in points)
    best = sorted(point for point, on in zip(points, front, strict=True) if on)
    axes.step(*_columns(best), where="post", color="0.35", linewidth=1, label="Pareto front of all")
    for kind in sorted({route.precision for route in routes}, key=lambda kind: (kind != "fp32", kind)):
        colour = PRECISION_COLOURS.get(kind, "tab:purple")
        for anchor, marker, size, what in ((False, "o", 24, "stitched"), (True, "*", 150, "one model alone")):
            chosen = [
                (point, on)
                for point, on, route in zip(points, front, routes, strict=True)
                if (route.precision, route.anchor) == (kind, anchor)
            ]
            chosen.sort(key=lambda point: not point[1])  # the legend shows the first
            if chosen:
                axes.scatter(
                    *_columns([point for point, _ in chosen]),
                    s=size,
                    marker=marker,
                    color=colour,
                    alpha=[1.0 if on or anchor else 0.4 for _, on in chosen],  # type: ignore[arg-type]
                    edgecolors="none",
                    zorder=4 if anchor else 3,
                    label=f"{kind}, {what}",
                )
    for point, route in zip(points, routes, strict=True):
        if route.anchor:  # the twins of one anchor may lie on top of each other
            offset, side, line = ((6, -12), "left", "baseline") if route.precision == "fp32" else ((0, 8), "center", "bottom")
            axes.annotate(route.name, point, xytext=offset, textcoords="offset points", ha=side, va=line, fontsize=8)
    axes.set_xlabel(_scale(routes, True)[1])
    axes.set_ylabel("top-1 accuracy on held-out images, %")
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right", title="pale: not on the front", title_fontsize=8)
    return figure


def similarity_figure(
    similarity: Mapping[tuple[str, str], NDArray[np.float64]],
    cuts: Mapping[str, Sequence[str]],
    joined: Mapping[tuple[str, str], Collection[tuple[int, int]]],
    measure: str = "cka",
) -> "Figure":
    """What tells how well the cuts of two anchors go together, one heat map per pair.

    measure: one of `MEASURES`
    joined: (cut of the front, cut of the end) that a stitching layer joins, by (front, end): a ring, or a cross where the pair of anchors
            is the other way round
    """
    from matplotlib.figure import Figure

    label, low, high = MEASURES[measure]
    if low is None:  # one scale for all pairs
        low = min(float(values.min()) for values in similarity.values())
    largest = max(max(values.shape) for values in similarity.values())
    side = min(8.0, 3.0 + 0.25 * largest)
    figure = Figure(figsize=(side * len(similarity) + 1, side), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(similarity), squeeze=False)[0]
    for axes, ((rows, columns), values) in zip(panels, similarity.items(), strict=True):
        image = axes.imshow(values, vmin=low, vmax=high, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(cuts[columns])), cuts[columns], rotation=90, fontsize=7)
        axes.set_yticks(range(len(cuts[rows])), cuts[rows], fontsize=7)
        axes.set_xlabel(f"cuts of {columns}")
        axes.set_ylabel(f"cuts of {rows}")
        size = min(9.0, 36 * side / largest)  # points: half a cell
        _mark(axes, joined.get((rows, columns), ()), f"{rows} > {columns}", "o", size)
        _mark(axes, [(row, column) for column, row in joined.get((columns, rows), ())], f"{columns} > {rows}", "x", size * 0.6)
        figure.colorbar(image, ax=axes, label=label)
    return figure


def tuning_figure(curves: Sequence[Curve], value: str) -> "Figure":
    """How tuning went, a line per curve; more than ten share one colour and lie beside their median.

    value: what the curves show, for the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    many = len(curves) > 10
    for curve in curves:
        style = {"color": "0.7", "linewidth": 0.7} if many else {"linewidth": 1.2, "label": curve.name}
        axes.plot(curve.steps, curve.values, **style)  # type: ignore[arg-type]
    if many:
        steps = sorted({step for curve in curves for step in curve.steps})
        middle = [float(np.median([np.interp(step, curve.steps, curve.values) for curve in curves])) for step in steps]
        axes.plot(steps, middle, color="tab:blue", linewidth=2, label=f"median of {len(curves)}")
    axes.set_xlabel("step")
    axes.set_ylabel(value)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def png(figure: "Figure") -> bytes:
    """The picture as a PNG file: the same picture is the same file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _cost(route: RouteResult, latency: bool) -> float:
    if not latency:
        return route.macs
    if route.latency_ms is None:
        raise ValueError(f"route {route.name} has no latency")
    return route.latency_ms


def _scale(routes: Sequence[RouteResult], latency: bool) -> tuple[float, str]:
    if latency:
        return 1.0, "latency of one image on the machine of this export, ms"
    scale, unit = (1e9, "G") if max(route.macs for route in routes) >= 1e9 else (1e6, "M")
    return scale, f"cost, {unit}MACs per image"


def _mark(axes: "Axes", cells: Collection[tuple[int, int]], name: str, marker: str, size: float) -> None:
    if not cells:
        return
    rows, columns = zip(*cells, strict=True)
    marks = axes.plot(columns, rows, linestyle="none", marker=marker, markersize=size, markeredgecolor="tab:red", label=f"joined, {name}")
    if marker == "o":
        marks[0].set_markerfacecolor("none")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
