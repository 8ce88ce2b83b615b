"""The report: a page that lists the routes, holds its pictures and tells how to repeat the run."""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from restnet_export.figures import Curve, RouteResult
from restnet_export.precisions import Trial
from restnet_export.report import Report, above_line, render_report

ROUTES = (
    RouteResult("s", 2_000_000, 10, 0.70, True),
    RouteResult("l", 9_000_000, 90, 0.90, True),
    RouteResult("s[0-1]>l[2-4]", 5_500_000, 60, 0.85, False),
    RouteResult("l[0-1]>s[3-4]", 6_000_000, 40, 0.60, False),
)
REPORT = Report(
    ROUTES,
    {("l", "s"): np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]])},
    {"s": ["0 stem", "1 block.0"], "l": ["0 stem", "1 block.0", "2 block.1"]},
    {("s", "l"): {(1, 1)}},
    {"anchors": ["python:nets.py:s@<s>.pt", "python:nets.py:l@l.pt"], "seed": 3},
    800,
)


class Page(HTMLParser):
    """The table's rows, what its cells are sorted by, and the pictures."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self.header: list[str] = []
        self.rows: list[list[str]] = []
        self.keys: list[list[str | None]] = []
        self.pictures: list[bytes] = []
        self.references: list[str] = []
        self.text = files["report/report.html"].decode()
        self._in: str | None = None
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [value for name in ("href", "src") if (value := given.get(name)) is not None]
        if tag == "tr":
            self.rows.append([])
            self.keys.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self.keys[-1].append(given.get("data-value"))
        elif tag == "th":
            self.header.append("")
        elif tag == "img":
            self.pictures.append(base64.b64decode((given["src"] or "").removeprefix("data:image/png;base64,")))
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = None if tag == self._in else self._in

    def handle_data(self, data: str) -> None:
        if self._in == "td":
            self.rows[-1][-1] += data
        elif self._in == "button":
            self.header[-1] += data


def page(**changes: object) -> Page:
    return Page(render_report(replace(REPORT, **changes)))  # type: ignore[arg-type]


def test_the_page_tells_bytes_of_weights_and_activations() -> None:
    routes = tuple(replace(route, weight_bytes=4 * route.params, activation_bytes=2_000) for route in REPORT.routes)
    found = page(routes=routes)
    assert found.header[3:5] == ["weights", "activations"]
    assert found.rows[1][3:5] == ["40 B", "2 kB"]


def test_the_page_lists_routes_by_cost() -> None:
    found = page()
    assert found.header == ["route", "cost", "parameters", "accuracy", "above the line", "on the front"]
    assert found.rows[1:] == [
        ["s", "2 MMACs", "10", "70.00%", "", "yes"],
        ["s[0-1]>l[2-4]", "5.5 MMACs", "60", "85.00%", "+5.0", "yes"],
        ["l[0-1]>s[3-4]", "6 MMACs", "40", "60.00%", "-21.4", ""],
        ["l", "9 MMACs", "90", "90.00%", "", "yes"],
    ]
    assert [keys[1] for keys in found.keys[1:]] == ["2000000", "5500000", "6000000", "9000000"]


def test_columns_that_were_measured_are_shown() -> None:
    measured = [replace(route, latency_ms=float(index), untuned=0.5) for index, route in enumerate(ROUTES)]
    found = page(routes=measured)
    assert {"before tuning", "latency"} <= set(found.header)
    assert [row[found.header.index("latency")] for row in found.rows[1:]] == ["0 ms", "2 ms", "3 ms", "1 ms"]


def test_in_two_precisions_each_has_a_front_and_both_have_one() -> None:
    plain = [replace(route, latency_ms=2.0 + index) for index, route in enumerate(ROUTES)]
    int8 = [
        replace(
            route, name=f"{route.name}@int8", precision="int8", latency_ms=1.0 + index, accuracy=route.accuracy - 0.01, twin=route.accuracy
        )
        for index, route in enumerate(ROUTES)
    ]
    trials = (Trial("s", "everything", "minmax", 0.25, 1.5, floats=3, chosen=True), Trial("s", "dynamic", None, 0.125))
    found = page(routes=[*plain, *int8], trials=trials, sensitivity={"s.0": 0.5})
    rows = {row[0]: dict(zip(found.header, row, strict=False)) for row in found.rows[1:9]}
    assert {
        name: (row["precision"], row["against fp32"], row["on the joint front over latency"])
        for name, row in rows.items()
        if name in ("s", "l", "s@int8", "l@int8")
    } == {
        "s": ("fp32", "", ""),
        "s@int8": ("int8", "-1.0", "yes"),
        "l": ("fp32", "", "yes"),
        "l@int8": ("int8", "-1.0", "yes"),
    }
    assert rows["s"]["on the front of its precision"] == "yes", "over MACs, among its own"
    assert "everything" in found.text
    assert "first products in fp32" in found.text
    assert "on the joint front over latency" not in page(routes=[*plain[:3], *int8[:3], replace(ROUTES[3])]).header


def test_the_page_needs_no_other_file() -> None:
    files = render_report(replace(REPORT, curves=(Curve("a", (0, 1), (2.0, 1.0)),)))
    found = Page(files)
    assert set(files) == {f"report/{name}" for name in ("routes.png", "similarity.png", "tuning.png", "settings.json", "report.html")}
    assert found.pictures == [files[f"report/{name}.png"] for name in ("routes", "similarity", "tuning")]
    assert all(reference.startswith("data:image/png;base64,") for reference in found.references)
    assert "http" not in found.text


def test_latencies_of_all_routes_make_a_picture_of_their_own() -> None:
    measured = [replace(route, latency_ms=1.0 + index) for index, route in enumerate(ROUTES)]
    assert "report/latency.png" in render_report(replace(REPORT, routes=measured))
    assert "report/latency.png" not in render_report(replace(REPORT, routes=[*measured[:3], ROUTES[3]]))


def test_settings_are_told_and_cannot_break_the_page() -> None:
    files = render_report(REPORT)
    assert json.loads(files["report/settings.json"]) == REPORT.settings
    assert "&lt;s&gt;.pt" in files["report/report.html"].decode()
    assert "<s>" not in files["report/report.html"].decode()


def test_the_page_is_called_after_the_anchors_and_tells_the_command() -> None:
    text = html.unescape(page(settings={"command": "restnet-export --anchors 'a b.py:s'"}).text)
    assert text.count("Routes between s and l") == 2
    assert "restnet-export --anchors 'a b.py:s'" in text


def test_the_summary_counts_and_gives_the_error() -> None:
    text = page().text
    assert "4 routes, 2 of them anchors; 1 stitched routes are on the Pareto front." in text
    assert "on 800 held-out images: their standard error is up to 1.7 points" in text  # sqrt(0.6 * 0.4 / 800)


def test_the_same_report_is_the_same_files() -> None:
    assert render_report(REPORT) == render_report(REPORT)


@pytest.mark.parametrize(
    ("macs", "accuracy", "expected"),
    [(2_000_000, 0.7, 0.0), (5_500_000, 0.8, 0.0), (5_500_000, 0.81, 1.0), (1_000_000, 0.9, None), (10_000_000, 0.9, None)],
)
def test_points_above_the_straight_line(macs: int, accuracy: float, expected: float | None) -> None:
    anchors: Sequence[RouteResult] = ROUTES[:2]
    found = above_line(RouteResult("x", macs, 0, accuracy, False), anchors)
    assert found == (None if expected is None else pytest.approx(expected))
    assert above_line(ROUTES[0], anchors) is None


def test_between_three_anchors_the_nearest_two_count() -> None:
    middle = RouteResult("m", 4_000_000, 0, 0.88, True)
    line = 88 + 2 * (5.5 - 4) / (9 - 4)
    assert above_line(ROUTES[2], [*ROUTES[:2], middle]) == pytest.approx(85 - line)
