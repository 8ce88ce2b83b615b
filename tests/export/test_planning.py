"""Which routes of a rule are made: what each promises, what it costs, and what a limit leaves."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from restnet_export.cuts import Cut, CutAnchor
from restnet_export.layouts import Layout
from restnet_export.planning import CANDIDATES, MOST_ROUTES, block_macs, plan_routes, route_macs, route_promises
from restnet_export.plans import AnchorShape, Crossing
from restnet_export.routes import routes_of
from restnet_export.rules import make_rule
from restnet_export.selection import spread
from restnet_export.stitching import StitchingLayer
from restnet_runtime.errors import RuleError


def anchor(name: str, width: int, stages: tuple[int, ...]) -> CutAnchor:
    """Convolutions for (1, 8, 8) and 4 classes; each stage but the first halves the side."""
    sides = [8] + [8 >> stage for stage, blocks in enumerate(stages) for _ in range(blocks)]
    blocks = [nn.Conv2d(1, width, 1)]
    blocks += [nn.Conv2d(width, width, 1, stride=before // after) for before, after in pairwise(sides)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    layouts = tuple(Layout("map", width, side, side) for side in sides)
    cuts = tuple(Cut(f"cut{index}", f"block{index}", layout.shape) for index, layout in enumerate(layouts))
    return CutAnchor(name, "", (1, 8, 8), cuts, layouts, (*blocks, head), stages)


@pytest.fixture(scope="module")
def anchors() -> dict[str, CutAnchor]:
    return {"s": anchor("s", 2, (2, 2)), "l": anchor("l", 6, (3, 3))}


ALIKE = {("l", "s"): -np.random.default_rng(0).random((7, 5))}
SHAPES = {"s": AnchorShape("s", (2, 2)), "l": AnchorShape("l", (3, 3))}


def test_routes_of_a_plan_cross_where_it_says(anchors: dict[str, CutAnchor]) -> None:
    plan = plan_routes(make_rule("both-ways"), anchors, ALIKE)
    routes = {route.name: route for route in routes_of(anchors, plan)}
    assert list(routes)[:2] == ["s", "l"]
    assert len(routes) == 2 + len(plan.routes) == 2 + 4 + 3 + 6
    assert routes["s[0-1]>l[2-3]>s[3-5]"].layers == ("s.1~l.2", "l.3~s.3")
    # The last block of the large anchor is its head.
    assert routes["s[0-4]>l[7-7]"].layers == ("s.4~l.7",)
    layers = {
        layer.name: StitchingLayer(anchors[layer.front].layouts[layer.pairs[0][0]], anchors[layer.end].layouts[layer.pairs[0][1] - 1])
        for layer in plan.layers
    }
    with torch.no_grad():
        for route in routes.values():
            assert route.module(anchors, layers)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def test_costs_are_counted_by_hand(anchors: dict[str, CutAnchor]) -> None:
    plan = plan_routes(make_rule("both-ways"), anchors, ALIKE)
    costs = dict(zip(plan.routes, route_macs(plan, anchors), strict=True))
    small = [64 * 2, 64 * 4, 64 * 4, 16 * 4, 16 * 4, 2 * 4]
    large = [64 * 6, *[64 * 36] * 3, *[16 * 36] * 3, 6 * 4]
    up, down = Crossing("s", "l", 1, 2), Crossing("l", "s", 3, 3)
    assert costs[(up,)] == sum(small[:2]) + 64 * 2 * 6 + sum(large[2:])
    wide = dict(zip(plan.routes, route_macs(plan, anchors, kernel=3), strict=True))
    assert wide[(up,)] == costs[(up,)] + 64 * 2 * 6 * 8
    assert costs[(up, down)] == sum(small[:2]) + 64 * 2 * 6 + sum(large[2:4]) + 64 * 6 * 2 + sum(small[3:])


def test_promises_of_crossings_add_up(anchors: dict[str, CutAnchor]) -> None:
    plan = plan_routes(make_rule("both-ways"), anchors, ALIKE)
    promises = dict(zip(plan.routes, route_promises(plan, SHAPES, ALIKE), strict=True))
    up, down = Crossing("s", "l", 1, 2), Crossing("l", "s", 3, 3)
    assert promises[(up,)] == ALIKE["l", "s"][1, 1]
    assert promises[(up, down)] == pytest.approx(ALIKE["l", "s"][1, 1] + ALIKE["l", "s"][3, 2])


@pytest.mark.parametrize("rule", ["all", "both-ways"])
def test_a_limit_makes_a_few_times_as_many_as_are_kept(anchors: dict[str, CutAnchor], rule: str) -> None:
    whole = plan_routes(make_rule(rule), anchors, ALIKE)
    few = plan_routes(make_rule(rule), anchors, ALIKE, 4)
    assert len(few.routes) == 2 * CANDIDATES < len(whole.routes)
    assert set(few.routes) < set(whole.routes)
    assert {crossing for route in few.routes for crossing in route} == set(few.layer_of())
    alone = [sum(block_macs(cut)) for cut in anchors.values()]
    kept = spread(route_macs(whole, anchors), route_promises(whole, SHAPES, ALIKE), alone, 2 * CANDIDATES)
    assert few.routes == tuple(whole.routes[index] for index in kept)
    assert plan_routes(make_rule(rule), anchors, ALIKE, 500) == whole
    # Where there is room for the anchors alone, the rest of the work still has a route to do it on.
    assert len(plan_routes(make_rule(rule), anchors, ALIKE, 1).routes) == CANDIDATES
    assert len(plan_routes(make_rule(rule), anchors, ALIKE, 1, 1).routes) == 1


def test_a_limit_keeps_shared_layers_shared(anchors: dict[str, CutAnchor]) -> None:
    same = {name: replace(anchors[name], name=name, stages=(4,), layouts=anchors[name].layouts[:1] * 5) for name in ("s",)}
    same["t"] = replace(same["s"], name="t")
    promise = {("s", "t"): np.zeros((5, 5))}
    plan = plan_routes(make_rule("sn-net"), same, promise, 3)
    assert len(plan.routes) == CANDIDATES
    assert sum(len(layer.pairs) for layer in plan.layers) == CANDIDATES


def test_too_many_routes_ask_for_a_limit() -> None:
    deep = {name: anchor(name, 1, (24,)) for name in "st"}
    promise = {("s", "t"): np.zeros((25, 25))}
    assert MOST_ROUTES < 2 * 23 * 23
    with pytest.raises(RuleError, match=r"1104 stitched routes between s, t are more than the 1000 .* --max-routes N"):
        plan_routes(make_rule("all"), deep, promise)
    assert len(plan_routes(make_rule("all"), deep, promise, 10).routes) == 8 * CANDIDATES


class TestSpread:
    def test_each_stretch_between_anchors_gives_its_best(self) -> None:
        costs = [1, 10, 20, 26, 30, 60, 90, 99]
        promises = [-5, -1, -2, -9, -8, -7, -0.1, -0.2]
        assert spread(costs, promises, [0, 100], 4) == [1, 4, 5, 6]

    def test_then_the_best_of_what_is_left_in_turn(self) -> None:
        assert spread([1, 10, 20, 90, 99], [-3, -1, -2, -0.1, -0.2], [0, 100], 4) == [1, 2, 3, 4]

    def test_each_gap_has_stretches_of_its_own(self) -> None:
        """Ten routes above the middle anchor lie in one quarter of the whole range, but in all of their gap."""
        costs, promises = [1, 2, *range(11, 21)], [-9, -8] + [-1] * 10
        assert spread(costs, promises, [0, 10, 20], 5) == [1, 2, 4, 6, 9]

    def test_what_no_budget_between_the_anchors_asks_for_comes_last(self) -> None:
        assert spread([5, 15, 25], [0, -9, 0], [10, 20], 1) == [1]
        assert spread([5, 15, 25], [-1, -9, 0], [10, 20], 2) == [1, 2]

    def test_of_equals_the_cheaper(self) -> None:
        assert spread([13, 12, 11, 13], [0, 0, 0, 0], [10, 20], 1) == [2]

    def test_all_of_them(self) -> None:
        assert spread([1, 2, 3], [0, -1, -2], [0, 4], 3) == [0, 1, 2]
