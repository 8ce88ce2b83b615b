"""Pictures of an export: they show the right points."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from restnet_export.figures import Curve, RouteResult, png, precisions_figure, routes_figure, similarity_figure, tuning_figure

ROUTES = [
    RouteResult("s", 2_000_000, 10, 0.70, True, latency_ms=1.0),
    RouteResult("l", 9_000_000, 90, 0.90, True, latency_ms=3.0),
    RouteResult("s[0-1]>l[2-4]", 5_000_000, 60, 0.85, False, latency_ms=3.5),
    RouteResult("l[0-1]>s[3-4]", 6_000_000, 40, 0.60, False, latency_ms=0.5),
]
SIMILARITY = {("l", "s"): np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]])}
CUTS = {"s": ["0 stem", "1 block.0"], "l": ["0 stem", "1 block.0", "2 block.1"]}


def drawn(routes: list[RouteResult], *, latency: bool = False) -> dict[str, list[tuple[float, float]]]:
    """Points by label in the legend."""
    (axes,) = routes_figure(routes, latency=latency).axes
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


def test_over_latency_another_front() -> None:
    points = drawn(ROUTES, latency=True)
    assert points["Pareto front"] == [(0.5, 60.0), (1.0, 70.0), (3.0, 90.0)]
    assert points["stitched, on the front"] == [(0.5, 60.0)]
    (axes,) = routes_figure(ROUTES, latency=True).axes
    assert axes.get_xlabel() == "latency of one image on the machine of this export, ms"
    with pytest.raises(ValueError, match="route s has no latency"):
        routes_figure([replace(ROUTES[0], latency_ms=None), ROUTES[1]], latency=True)


INT8 = [
    replace(ROUTES[0], name="s@int8", precision="int8", latency_ms=1.2, accuracy=0.69),
    replace(ROUTES[1], name="l@int8", precision="int8", latency_ms=2.9, accuracy=0.89),
    replace(ROUTES[2], name="s[0-1]>l[2-4]@int8", precision="int8", latency_ms=1.5),
]


def test_both_precisions_over_latency_have_one_front() -> None:
    (axes,) = precisions_figure([*ROUTES, *INT8]).axes
    (front,) = axes.lines
    assert [(float(x), float(y)) for x, y in front.get_xydata()] == [(0.5, 60.0), (1.0, 70.0), (1.5, 85.0), (2.9, 89.0), (3.0, 90.0)]
    points = {str(dots.get_label()): [(float(x), float(y)) for x, y in dots.get_offsets()] for dots in axes.collections}
    assert points == {
        "fp32, stitched": [(0.5, 60.0), (3.5, 85.0)],
        "fp32, one model alone": [(1.0, 70.0), (3.0, 90.0)],
        "int8, stitched": [(1.5, 85.0)],
        "int8, one model alone": [(2.9, 89.0), (1.2, 69.0)],
    }
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"Pareto front of all", *points}
    pale = {str(dots.get_label()): np.broadcast_to(dots.get_alpha(), len(dots.get_offsets())).tolist() for dots in axes.collections}
    assert pale["fp32, stitched"] == [1.0, 0.4], "the legend shows the first"


def test_names_of_an_anchor_in_two_precisions_do_not_meet() -> None:
    figure = precisions_figure([*ROUTES[:2], *(replace(one, accuracy=twin.accuracy) for one, twin in zip(INT8[:2], ROUTES, strict=False))])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(boxes) == {"s", "l", "s@int8", "l@int8"}
    assert not boxes["s"].overlaps(boxes["s@int8"])
    assert not boxes["l"].overlaps(boxes["l@int8"])


def test_where_routes_were_before_tuning() -> None:
    points = drawn([*ROUTES[:2], replace(ROUTES[2], untuned=0.75), ROUTES[3]])
    assert points["stitched, before tuning"] == [(5.0, 75.0)]


def test_anchors_alone_and_an_anchor_off_the_front() -> None:
    points = drawn([RouteResult("s", 2_000_000, 1, 0.9, True), RouteResult("l", 9_000_000, 2, 0.8, True)])
    assert points["Pareto front"] == [(2.0, 90.0)]
    assert set(points) == {"straight line between the anchors", "Pareto front", "anchors"}


@pytest.mark.parametrize(("largest", "unit", "shown"), [(9_000_000, "MMACs", 9.0), (4_600_000_000, "GMACs", 4.6)])
def test_the_axis_says_its_unit(largest: int, unit: str, shown: float) -> None:
    routes = [RouteResult("s", 2_000_000, 1, 0.7, True), RouteResult("l", largest, 2, 0.9, True)]
    (axes,) = routes_figure(routes).axes
    assert axes.get_xlabel() == f"cost, {unit} per image"
    assert drawn(routes)["anchors"][-1][0] == pytest.approx(shown)
    assert [text.get_text() for text in axes.texts] == ["s", "l"]


def test_similarity_has_the_first_anchor_down_and_the_second_across() -> None:
    panel, _ = similarity_figure(SIMILARITY, CUTS, {}).axes  # the second is the colour bar
    (image,) = panel.images
    np.testing.assert_array_equal(np.asarray(image.get_array()), SIMILARITY["l", "s"])
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in panel.get_xticklabels()] == CUTS["s"]
    assert [label.get_text() for label in panel.get_yticklabels()] == CUTS["l"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("cuts of s", "cuts of l")
    assert not panel.lines


def test_joined_cuts_are_marked_in_both_directions() -> None:
    joined = {("l", "s"): {(1, 0), (2, 1)}, ("s", "l"): {(0, 2)}}
    panel = similarity_figure(SIMILARITY, CUTS, joined).axes[0]
    marks = {str(line.get_label()): {(int(y), int(x)) for x, y in line.get_xydata()} for line in panel.lines}
    assert marks == {"joined, l > s": {(1, 0), (2, 1)}, "joined, s > l": {(2, 0)}}


@pytest.mark.parametrize("measure", ["kl", "windows"])
def test_what_promises_less_than_nothing_has_colours_of_its_own(measure: str) -> None:
    below = {pair: values - 2 for pair, values in SIMILARITY.items()}
    panel, bar = similarity_figure(below, CUTS, {}, measure).axes
    (image,) = panel.images
    assert image.get_clim() == (below["l", "s"].min(), 0)
    assert {"kl": "KL", "windows": "depth"}[measure] in bar.get_ylabel()


def test_every_pair_has_a_panel() -> None:
    three = {**SIMILARITY, ("s", "xs"): np.zeros((2, 2))}
    figure = similarity_figure(three, {**CUTS, "xs": ["0", "1"]}, {})
    assert [axes.get_ylabel() for axes in figure.axes if axes.images and axes.get_xlabel()] == ["cuts of l", "cuts of s"]


def test_tuning_shows_few_curves_by_name_and_many_by_their_median() -> None:
    few = [Curve(name, (0, 10), (2.0, 1.0)) for name in "ab"]
    (axes,) = tuning_figure(few, "held-out loss").axes
    assert [str(line.get_label()) for line in axes.lines] == ["a", "b"]
    assert axes.get_ylabel() == "held-out loss"
    many = [Curve(str(index), (0, 10), (float(index), 1.0)) for index in range(11)]
    (axes,) = tuning_figure(many, "held-out loss").axes
    assert [(float(x), float(y)) for x, y in axes.lines[-1].get_xydata()] == [(0, 5), (10, 1)]
    assert str(axes.lines[-1].get_label()) == "median of 11"


def test_a_picture_is_a_png_and_the_same_each_time() -> None:
    first, second = (png(routes_figure(ROUTES)) for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first)) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert picture.convert("L").getextrema() == (0, 255)  # not blank
