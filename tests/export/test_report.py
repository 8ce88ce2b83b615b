"""The report: pictures that show the right points, and a page that lists the routes."""

import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from restnet_export.report import RoutePoint, render_report, routes_figure, similarity_figure

ROUTES: list[RoutePoint] = [
    ("s", 2_000_000, 0.70, True),
    ("l", 9_000_000, 0.90, True),
    ("s[0-1]>l[2-4]", 5_000_000, 0.85, False),
    ("l[0-1]>s[3-4]", 6_000_000, 0.60, False),
]
SIMILARITY = {("l", "s"): np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]])}
CUTS = {"s": ["0 stem", "1 block.0"], "l": ["0 stem", "1 block.0", "2 block.1"]}


def drawn(routes: list[RoutePoint]) -> dict[str, list[tuple[float, float]]]:
    """Points by label in the legend."""
    (axes,) = routes_figure(routes).axes
    points = {str(line.get_label()): [(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.lines}
    points |= {str(dots.get_label()): [(float(x), float(y)) for x, y in dots.get_offsets()] for dots in axes.collections}
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == set(points)
    return points


def test_routes_are_where_their_cost_and_accuracy_put_them() -> None:
    assert drawn(ROUTES) == {
        "straight line between the anchors": [(2.0, 70.0), (9.0, 90.0)],
        "Pareto front": [(2.0, 70.0), (5.0, 85.0), (9.0, 90.0)],
        "anchors": [(2.0, 70.0), (9.0, 90.0)],
        "stitched, on the front": [(5.0, 85.0)],
        "stitched, dominated": [(6.0, 60.0)],
    }


def test_anchors_alone_and_an_anchor_off_the_front() -> None:
    points = drawn([("s", 2_000_000, 0.9, True), ("l", 9_000_000, 0.8, True)])
    assert points["Pareto front"] == [(2.0, 90.0)]
    assert set(points) == {"straight line between the anchors", "Pareto front", "anchors"}


@pytest.mark.parametrize(("largest", "unit", "shown"), [(9_000_000, "MMACs", 9.0), (4_600_000_000, "GMACs", 4.6)])
def test_the_axis_says_its_unit(largest: int, unit: str, shown: float) -> None:
    routes = [("s", 2_000_000, 0.7, True), ("l", largest, 0.9, True)]
    (axes,) = routes_figure(routes).axes
    assert axes.get_xlabel() == f"cost, {unit} per image"
    assert drawn(routes)["anchors"][-1][0] == pytest.approx(shown)
    assert [text.get_text() for text in axes.texts] == ["s", "l"]


def test_similarity_has_the_larger_anchor_down_and_the_smaller_across() -> None:
    panel, _ = similarity_figure(SIMILARITY, CUTS).axes  # the second is the colour bar
    (image,) = panel.images
    np.testing.assert_array_equal(np.asarray(image.get_array()), SIMILARITY["l", "s"])
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in panel.get_xticklabels()] == CUTS["s"]
    assert [label.get_text() for label in panel.get_yticklabels()] == CUTS["l"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("cuts of s", "cuts of l")


def test_every_pair_has_a_panel() -> None:
    three = {**SIMILARITY, ("s", "xs"): np.zeros((2, 2))}
    figure = similarity_figure(three, {**CUTS, "xs": ["0", "1"]})
    assert [axes.get_ylabel() for axes in figure.axes if axes.images and axes.get_xlabel()] == ["cuts of l", "cuts of s"]


def test_pictures_are_png_and_the_same_each_time() -> None:
    files = render_report(ROUTES, SIMILARITY, CUTS)
    assert set(files) == {"report/routes.png", "report/similarity.png", "report/report.html"}
    for name in ("report/routes.png", "report/similarity.png"):
        with Image.open(io.BytesIO(files[name])) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            low, high = picture.convert("L").getextrema()
            assert (low, high) == (0, 255)  # not blank
    assert render_report(ROUTES, SIMILARITY, CUTS) == files


class Cells(HTMLParser):
    """Rows of the table, and the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[str | None] = []
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self.in_cell = True
        elif tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data


def test_the_page_lists_routes_by_cost() -> None:
    page = Cells()
    page.feed(render_report(ROUTES, SIMILARITY, CUTS)["report/report.html"].decode())
    assert page.rows[1:] == [
        ["s", "2 MMACs", "70.00%", "yes"],
        ["s[0-1]>l[2-4]", "5 MMACs", "85.00%", "yes"],
        ["l[0-1]>s[3-4]", "6 MMACs", "60.00%", ""],
        ["l", "9 MMACs", "90.00%", "yes"],
    ]
    assert page.pictures == ["routes.png", "similarity.png"]
