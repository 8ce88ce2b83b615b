"""A page for people: what the routes cost and score, why these cuts were joined, how tuning went, and how to repeat it."""

import base64
import html
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from restnet_runtime.routes import fronts, pareto_front
from restnet_runtime.units import format_bytes, format_macs

from .figures import Curve, RouteResult, png, precisions_figure, routes_figure, similarity_figure, tuning_figure
from .precisions import Trial


@dataclass(frozen=True)
class Report:
    """What is told about an export.

    similarity:  [cut of the first, cut of the second] by pair of anchors, of what `measure` names; may be empty
    cuts:        names of each anchor's cuts
    joined:      cuts that stitching layers join, (cut of the front, cut of the end) by (front, end)
    curves:      of tuning, with what they show in `curve_value`; may be empty
    settings:    all that is needed to repeat the run, JSON values by name
    scored_on:   number of images behind the accuracies
    trials:      ways in which anchors were quantised; empty without int8
    sensitivity: by block, the error of its anchor's (or of a folded one its route's) logits with this block alone in int8, relative to
                 their variance
    """

    routes: Sequence[RouteResult]
    similarity: Mapping[tuple[str, str], NDArray[np.float64]]
    cuts: Mapping[str, Sequence[str]]
    joined: Mapping[tuple[str, str], Collection[tuple[int, int]]]
    settings: Mapping[str, object]
    scored_on: int
    curves: Sequence[Curve] = ()
    curve_value: str = "held-out loss"
    measure: str = "cka"
    trials: Sequence[Trial] = ()
    sensitivity: Mapping[str, float] = field(default_factory=dict)


def render_report(report: Report) -> dict[str, bytes]:
    """The report's files by path in the bundle: the pictures, `report/report.html`, which holds them too, and `report/settings.json`."""
    plain = [route for route in report.routes if route.precision == "fp32"]
    pictures = {"routes.png": ("Accuracy over cost", png(routes_figure(plain)))}
    if all(route.latency_ms is not None for route in report.routes):
        figure = precisions_figure(report.routes) if len(plain) < len(report.routes) else routes_figure(plain, latency=True)
        pictures["latency.png"] = ("Accuracy over latency", png(figure))
    if report.similarity:
        figure = similarity_figure(report.similarity, report.cuts, report.joined, report.measure)
        pictures["similarity.png"] = ("Similarity of the cuts", png(figure))
    if report.curves:
        pictures["tuning.png"] = ("Tuning", png(tuning_figure(report.curves, report.curve_value)))
    return {
        **{f"report/{name}": picture for name, (_, picture) in pictures.items()},
        "report/settings.json": (json.dumps(report.settings, indent=2) + "\n").encode(),
        "report/report.html": _page(report, pictures).encode(),
    }


def above_line(route: RouteResult, anchors: Sequence[RouteResult]) -> float | None:
    """Accuracy above the straight line between the anchors next to it in cost, in points of a hundred; None for an anchor and outside."""
    if route.anchor:
        return None
    ordered = sorted(anchors, key=lambda anchor: anchor.macs)
    if not ordered or not ordered[0].macs <= route.macs <= ordered[-1].macs:
        return None
    line = np.interp(route.macs, [anchor.macs for anchor in ordered], [anchor.accuracy for anchor in ordered])
    return 100 * (route.accuracy - float(line))


_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:78em;margin:2em auto;padding:0 1em}
img{max-width:100%;background:#fff}
div.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}
td,th{white-space:nowrap;padding:.2em .6em;text-align:right;border-bottom:1px solid #8884}
td:first-child,th:first-child{text-align:left}
th button{font:inherit;font-weight:bold;background:none;border:0;padding:0;color:inherit;cursor:pointer}
th[aria-sort=ascending] button::after{content:" \\25B2"}
th[aria-sort=descending] button::after{content:" \\25BC"}
tr.anchor{font-weight:bold}
tr.dominated{opacity:.65}
pre{overflow:auto;padding:1em;background:#8882}
"""
_SORT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => { const text = row.cells[head.cellIndex].dataset.value; return text === "" ? null : isNaN(text) ? text : +text; };
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
  }).forEach(row => body.append(row));
};
"""


def _page(report: Report, pictures: Mapping[str, tuple[str, bytes]]) -> str:
    shown = "\n".join(
        f'<h2>{title}</h2>\n<img alt="{title.lower()}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for title, picture in pictures.values()
    )
    anchors = [route.name for route in report.routes if route.anchor and route.precision == "fp32"]
    title = html.escape(f"Routes between {' and '.join(anchors)}")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>
<style>{_STYLE}</style>
<h1>{title}</h1>
<p>{html.escape(_summary(report))}</p>
{shown}
<h2>All routes</h2>
{_table(report.routes)}
{_quantised(report)}<h2>How to repeat it</h2>
<pre>{html.escape(str(report.settings.get("command", "")))}</pre>
<pre>{html.escape(json.dumps(report.settings, indent=2))}</pre>
<script>{_SORT}</script>
</html>
"""


def _summary(report: Report) -> str:
    routes = [route for route in report.routes if route.precision == "fp32"]
    front = pareto_front((route.macs, route.accuracy) for route in routes)
    between = sum(on and not route.anchor for route, on in zip(routes, front, strict=True))
    error = max(math.sqrt(route.accuracy * (1 - route.accuracy) / max(report.scored_on, 1)) for route in routes)
    others = [route for route in report.routes if route.precision != "fp32"]
    losses = [100 * (route.twin - route.accuracy) for route in others if route.twin is not None]
    also = f"{len(others)} more in int8 or in both precisions; in the median they lose {np.median(losses):.1f} points. " if losses else ""
    return (
        f"{len(routes)} routes, {sum(route.anchor for route in routes)} of them anchors; "
        f"{between} stitched routes are on the Pareto front. {also}"
        f"Accuracies are top-1 on {report.scored_on} held-out images: their standard error is up to {100 * error:.1f} points."
    )


def _table(routes: Sequence[RouteResult]) -> str:
    """Every route by cost; a column that no route has is left out. Cells carry the value they are sorted by."""
    anchors = [route for route in routes if route.anchor and route.precision == "fp32"]
    front = fronts((route.precision, route.macs, route.accuracy) for route in routes)
    on_front = {route.name: on for route, on in zip(routes, front, strict=True)}
    several = len({route.precision for route in routes}) > 1
    joint: list[tuple[str, object]] = [("", 0)] * len(routes)
    if several and all(route.latency_ms is not None for route in routes):
        flags = pareto_front((route.latency_ms or 0.0, route.accuracy) for route in routes)
        joint = [("yes", 1) if on else ("", 0) for on in flags]
    columns: list[tuple[str, list[tuple[str, object]]]] = [
        ("route", [(route.name, route.name) for route in routes]),
        ("precision", [(route.precision if several else "", route.precision) for route in routes]),
        ("cost", [(format_macs(route.macs), route.macs) for route in routes]),
        ("parameters", [(f"{route.params:,}", route.params) for route in routes]),
        ("weights", [_bytes(route.weight_bytes) for route in routes]),
        ("activations", [_bytes(route.activation_bytes) for route in routes]),
        ("accuracy", [(f"{route.accuracy:.2%}", route.accuracy) for route in routes]),
        ("before tuning", [_percent(route.untuned) for route in routes]),
        ("above the line", [_points(above_line(route, anchors)) for route in routes]),
        ("against fp32", [_points(None if route.twin is None else 100 * (route.accuracy - route.twin)) for route in routes]),
        ("latency", [("", "") if route.latency_ms is None else (f"{route.latency_ms:.3g} ms", route.latency_ms) for route in routes]),
        (
            "on the front of its precision" if several else "on the front",
            [("yes", 1) if on_front[route.name] else ("", 0) for route in routes],
        ),
        ("on the joint front over latency", joint),
    ]
    filled = [(name, cells) for name, cells in columns if any(text for text, _ in cells)]
    head = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name, _ in filled)
    rows = []
    for index in sorted(range(len(routes)), key=lambda index: (routes[index].macs, routes[index].name)):
        kind = "anchor" if routes[index].anchor else "" if on_front[routes[index].name] else "dominated"
        cells = "".join(
            f'<td data-value="{html.escape(str(value))}">{html.escape(text)}</td>' for text, value in (cells[index] for _, cells in filled)
        )
        rows.append(f'<tr class="{kind}">{cells}</tr>')
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table></div>'


def _quantised(report: Report) -> str:
    """How anchors were quantised, and which blocks mind it."""
    if not report.trials:
        return ""
    rows = [
        (
            trial.anchor,
            trial.recipe,
            trial.method or "",
            str(trial.floats or ""),
            f"{trial.error:.2g}",
            "" if trial.latency_ms is None else f"{trial.latency_ms:.3g} ms",
            "yes" if trial.chosen else "",
        )
        for trial in report.trials
    ]
    blocks = [(block, f"{error:.2g}") for block, error in sorted(report.sensitivity.items(), key=lambda item: -item[1])]
    return (
        "<h2>How anchors were quantised</h2>\n"
        "<p>Errors are of the logits, relative to their variance, on images that calibration did not see. "
        "Latencies are medians of runs in turns.</p>\n"
        f"{_texts(('anchor', 'recipe', 'ranges by', 'first products in fp32', 'error', 'latency, one thread', 'chosen'), rows)}\n"
        f"<details><summary>Each block alone in int8</summary>{_texts(('block', 'error'), blocks)}</details>\n"
    )


def _texts(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in head)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _bytes(count: int) -> tuple[str, object]:
    return (format_bytes(count) if count else "", count)


def _percent(accuracy: float | None) -> tuple[str, object]:
    return ("", "") if accuracy is None else (f"{accuracy:.2%}", accuracy)


def _points(points: float | None) -> tuple[str, object]:
    return ("", "") if points is None else (f"{points:+.1f}", points)
