"""Pictures and a page for people: which cuts are alike, and what the routes cost and score."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from restnet_runtime.routes import pareto_front
from restnet_runtime.units import format_macs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RoutePoint = tuple[str, int, float, bool]
"""Name, MACs, accuracy (0..1), whether it is an anchor."""


def render_report(
    routes: Sequence[RoutePoint],
    similarity: Mapping[tuple[str, str], NDArray[np.float64]],
    cuts: Mapping[str, Sequence[str]],
) -> dict[str, bytes]:
    """The report's files by path in the bundle: `report/routes.png`, `report/similarity.png`, `report/report.html`.

    similarity: CKA [cut of the first, cut of the second] by pair of anchors. cuts: names of each anchor's cuts.
    """
    return {
        "report/routes.png": _png(routes_figure(routes)),
        "report/similarity.png": _png(similarity_figure(similarity, cuts)),
        "report/report.html": _page(routes).encode(),
    }


def routes_figure(routes: Sequence[RoutePoint]) -> "Figure":
    """Accuracy over cost: anchors, stitched routes, the Pareto front, and the straight line between the anchors."""
    from matplotlib.figure import Figure

    front = pareto_front((macs, accuracy) for _, macs, accuracy, _ in routes)
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    scale, unit = (1e9, "G") if max(point[1] for point in routes) >= 1e9 else (1e6, "M")
    points = [(macs / scale, 100 * accuracy, anchor, on) for (_, macs, accuracy, anchor), on in zip(routes, front, strict=True)]
    anchors = sorted((cost, percent) for cost, percent, anchor, _ in points if anchor)
    best = sorted((cost, percent) for cost, percent, _, on in points if on)
    dominated = [(cost, percent) for cost, percent, anchor, on in points if not anchor and not on]
    stitched = [(cost, percent) for cost, percent, anchor, on in points if not anchor and on]
    axes.plot(*_columns(anchors), color="0.7", linestyle="--", linewidth=1, label="straight line between the anchors")
    axes.step(*_columns(best), where="post", color="tab:blue", linewidth=1, label="Pareto front")
    for xy, color, marker, size, label in (
        (dominated, "0.6", "o", 22, "stitched, dominated"),
        (stitched, "tab:blue", "o", 30, "stitched, on the front"),
        (anchors, "tab:orange", "*", 140, "anchors"),
    ):
        if xy:
            x, y = _columns(xy)
            axes.scatter(x, y, s=size, color=color, marker=marker, zorder=4 if marker == "*" else 3, label=label)
    for name, macs, accuracy, anchor in routes:
        if anchor:
            axes.annotate(name, (macs / scale, 100 * accuracy), xytext=(6, -12), textcoords="offset points", fontsize=8)
    axes.set_xlabel(f"cost, {unit}MACs per image")
    axes.set_ylabel("top-1 accuracy on held-out images, %")
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def similarity_figure(similarity: Mapping[tuple[str, str], NDArray[np.float64]], cuts: Mapping[str, Sequence[str]]) -> "Figure":
    """CKA between the cuts of neighbouring anchors, one heat map per pair."""
    from matplotlib.figure import Figure

    largest = max(max(values.shape) for values in similarity.values())
    side = min(12.0, 3.0 + 0.3 * largest)
    figure = Figure(figsize=(side * len(similarity) + 1, side), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(similarity), squeeze=False)[0]
    for axes, ((rows, columns), values) in zip(panels, similarity.items(), strict=True):
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(cuts[columns])), cuts[columns], rotation=90, fontsize=7)
        axes.set_yticks(range(len(cuts[rows])), cuts[rows], fontsize=7)
        axes.set_xlabel(f"cuts of {columns}")
        axes.set_ylabel(f"cuts of {rows}")
        figure.colorbar(image, ax=axes, label="CKA (linear, debiased)")
    return figure


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same picture is the same file
    return buffer.getvalue()


def _page(routes: Sequence[RoutePoint]) -> str:
    front = pareto_front((macs, accuracy) for _, macs, accuracy, _ in routes)
    rows = "\n".join(
        f"<tr><td>{html.escape(name)}</td><td>{format_macs(macs)}</td><td>{accuracy:.2%}</td><td>{'yes' if on else ''}</td></tr>"
        for (name, macs, accuracy, _), on in sorted(zip(routes, front, strict=True), key=lambda item: item[0][1])
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Routes</title>
<style>body{{font-family:sans-serif;max-width:60em;margin:2em auto}}td,th{{padding:.2em 1em;text-align:left}}img{{max-width:100%}}</style>
<h1>Routes</h1>
<img src="routes.png" alt="accuracy over cost">
<table><tr><th>route</th><th>cost</th><th>accuracy</th><th>on the front</th></tr>
{rows}
</table>
<h1>Similarity of the cuts</h1>
<img src="similarity.png" alt="similarity of the cuts">
</html>
"""
