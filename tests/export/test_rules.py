"""Which stitches there are: the counts of the published families from their architectures alone, and the laws behind them."""

import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_export.plans import AnchorShape, Crossing, LayerPlan, RoutePlan, split_shared
from restnet_export.rules import RULES, make_rule, needs_promise, options_of
from restnet_runtime.errors import RuleError

DEIT = [AnchorShape(f"deit-{size}", (12,)) for size in ("ti", "s", "b")]
SWIN = [AnchorShape("swin-ti", (2, 2, 6, 2)), AnchorShape("swin-s", (2, 2, 18, 2)), AnchorShape("swin-b", (2, 2, 18, 2))]
RESNET = [AnchorShape("resnet18", (2, 2, 2, 2)), AnchorShape("resnet50", (3, 4, 6, 3))]
LEVIT = [AnchorShape("levit192", (4, 4, 4)), AnchorShape("levit256", (4, 4, 4))]
DEPTHS = st.integers(1, 20)


def sn_net(anchors: list[AnchorShape], kernel: int = 2, stride: int = 1, **options: object) -> list[LayerPlan]:
    return layers_of(make_rule("sn-net", kernel=kernel, stride=stride, **options).plan(anchors, {}))


def restnet(anchors: list[AnchorShape], promise: dict, **options: object) -> list[LayerPlan]:
    return layers_of(make_rule("restnet", **options).plan(anchors, promise))


def layers_of(plan: RoutePlan) -> list[LayerPlan]:
    """The layers of a plan whose routes cross once, each at a pair of one layer."""
    assert plan.routes == tuple((Crossing(*pair),) for pair in pairs(list(plan.layers)))
    return list(plan.layers)


def pairs(plans: list[LayerPlan]) -> list[tuple[str, str, int, int]]:
    return [(plan.front, plan.end, j, k) for plan in plans for j, k in plan.pairs]


def one(depth: int, name: str = "a") -> AnchorShape:
    return AnchorShape(name, (depth,))


@pytest.mark.parametrize(("kernel", "stride", "routes"), [(2, 1, 71), (1, 1, 27), (2, 2, 51), (3, 1, 111), (4, 1, 147)])
def test_deit_family(kernel: int, stride: int, routes: int) -> None:
    assert len(DEIT) + len(pairs(sn_net(DEIT, kernel, stride))) == routes


@pytest.mark.parametrize(
    ("anchors", "stages", "routes"),
    [(SWIN, None, 41), (RESNET, (1, 2), 10), ([RESNET[0], SWIN[0]], (1, 2), 8), (LEVIT, None, 8)],
    ids=["swin", "resnet", "resnet-swin", "levit"],
)
def test_hierarchical_families(anchors: list[AnchorShape], stages: tuple[int, ...] | None, routes: int) -> None:
    assert len(anchors) + len(pairs(sn_net(anchors, stages=stages))) == routes


@pytest.mark.parametrize("depths", [(12, 24), (12, 12)])
def test_both_ways_has_135_routes_through_23_layers(depths: tuple[int, int]) -> None:
    anchors = [one(depths[0], "s"), one(depths[1], "l")]
    plan = make_rule("both-ways").plan(anchors, {})
    ways = Counter("".join((route[0].front, *(crossing.end for crossing in route))) for route in plan.routes)
    assert ways == {"sl": 12, "ls": 11, "lsl": 55, "sls": 55}
    assert len(anchors) + len(set(plan.routes)) == 135
    assert (len(plan.layers), {len(layer.pairs) for layer in plan.layers}) == (23, {1})
    # One of them keeps nothing of the large anchor but its head.
    assert [route for route in plan.routes if route[-1].k == depths[1] + 1] == [(Crossing("s", "l", 12, depths[1] + 1),)]


def test_the_swin_family_is_3_2_2_17_17() -> None:
    found = pairs(sn_net(SWIN))
    ends = [(front, "third" if k > 4 else "first two") for front, _, _, k in found]
    assert {part: ends.count(part) for part in ends} == {
        ("swin-ti", "first two"): 2,
        ("swin-s", "first two"): 2,
        ("swin-ti", "third"): 17,
        ("swin-s", "third"): 17,
    }


def test_a_window_lists_its_new_pairs_and_names_the_layer_after_the_first() -> None:
    assert sn_net([one(3, "s"), one(3, "l")]) == [
        LayerPlan("s.1~l.1", "s", "l", ((1, 1), (1, 2), (2, 1), (2, 2))),
        LayerPlan("s.2~l.3", "s", "l", ((2, 3), (3, 2), (3, 3))),
    ]


def test_unpaired_gives_one_layer_per_front_block_in_stage_offsets() -> None:
    assert sn_net([AnchorShape("s", (2, 2, 2)), AnchorShape("l", (3, 4, 9))], stages=[1]) == [
        LayerPlan("s.3~l.5", "s", "l", ((3, 5),)),
        LayerPlan("s.4~l.6", "s", "l", ((4, 6), (4, 7))),
    ]


def test_unequal_depth_in_a_single_stage_is_unpaired() -> None:
    plans = sn_net([one(12, "s"), one(24, "l")])
    assert pairs(plans) == [("s", "l", i // 2 + 1, i + 1) for i in range(1, 24)]
    assert len(plans) == 12


def test_a_deeper_front_is_unpaired_too() -> None:
    assert pairs(sn_net([one(6, "s"), one(3, "l")])) == [("s", "l", 3, 2), ("s", "l", 5, 3)]


def joined(rule: str, **options: object) -> set[tuple[str, str]]:
    anchors = [one(2, name) for name in "abc"]
    promise = {(large, small): np.eye(3) for small, large in combinations("abc", 2)}
    return {(layer.front, layer.end) for layer in make_rule(rule, **options).plan(anchors, promise).layers}


def test_neighbours_in_size_are_joined_or_any_two() -> None:
    assert joined("sn-net") == {("a", "b"), ("b", "c")}
    assert joined("sn-net", nearest=False) == {("a", "b"), ("b", "c"), ("a", "c")}
    assert joined("restnet") == {("b", "a"), ("c", "b")}
    assert joined("restnet", nearest=False) == {("b", "a"), ("c", "b"), ("c", "a")}
    assert joined("both-ways") == joined("all", nearest=True) == set(permutations("ab", 2)) | set(permutations("bc", 2))
    assert joined("all") == joined("both-ways", nearest=False) == set(permutations("abc", 2))


def test_any_two_of_four_anchors() -> None:
    """Three DeiT neighbours share 34 pairs each; so do any two, as all have twelve blocks."""
    four = [*DEIT, AnchorShape("deit-l", (12,))]
    assert len(pairs(sn_net(four))) == 3 * 34
    assert len(pairs(sn_net(four, nearest=False))) == 6 * 34


@given(depth=DEPTHS, kernel=st.integers(1, 8), stride=st.integers(1, 8))
def test_plain_windows_follow_the_closed_form(depth: int, kernel: int, stride: int) -> None:
    plans = sn_net([one(depth, "s"), one(depth, "l")], kernel, stride)
    found = pairs(plans)
    assert len(set(found)) == len(found)
    assert all(1 <= j <= depth and 1 <= k <= depth and abs(j - k) < kernel for _, _, j, k in found)
    expected = 0
    for start in range(0, depth, stride):
        before = max(0, min(kernel - stride, depth - start)) if start else 0
        expected += min(kernel, depth - start) ** 2 - before**2
    assert len(found) == expected
    if (kernel, stride) == (2, 1) and depth > 1:
        assert (len(found), len(plans)) == (3 * depth - 2, depth - 1)
    assert len({plan.name for plan in plans}) == len(plans)


@given(front=st.lists(DEPTHS, min_size=2, max_size=4), data=st.data())
def test_stages_stay_apart_and_go_forward(front: list[int], data: st.DataObject) -> None:
    end = data.draw(st.lists(DEPTHS, min_size=len(front), max_size=len(front)))
    shapes = [AnchorShape("s", tuple(front)), AnchorShape("l", tuple(end))]
    counts = [
        b - 1 for _, b in zip(front, end, strict=True)
    ]  # equal depth d with K2 s1: d - 1; unpaired: one for every end block but the first
    if not sum(counts[:-1]):
        with pytest.raises(RuleError, match="no pair"):
            sn_net(shapes)
        return
    found = pairs(sn_net(shapes))
    assert len(found) == len(set(found)) == sum(counts[:-1])
    for stage, (d1, d2) in enumerate(list(zip(front, end, strict=True))[:-1]):
        inside = [(j - sum(front[:stage]), k - sum(end[:stage])) for _, _, j, k in found if sum(end[:stage]) < k <= sum(end[: stage + 1])]
        assert len(inside) == counts[stage]
        assert all(1 <= j <= d1 and 2 <= k <= d2 for j, k in inside)
        if d1 <= d2:
            assert all(j < k for j, k in inside)


@pytest.mark.parametrize(
    ("anchors", "options", "message"),
    [
        ([one(3)], {}, "at least two"),
        ([one(3), one(3)], {}, "different names"),
        ([one(3), AnchorShape("b", ())], {}, "at least one block"),
        ([one(3), AnchorShape("b", (0,))], {}, "at least one block"),
        ([one(3), AnchorShape("b", (3, 3))], {}, "1 stages and b 2"),
        ([one(3), one(3, "b")], {"kernel": 0}, "kernel 0"),
        ([one(3), one(3, "b")], {"stride": 0}, "stride 0"),
        ([one(3), one(3, "b")], {"stages": [1]}, "from 0..0"),
        (LEVIT, {"stages": [0, 0]}, "must be different"),
        (LEVIT, {"kernel": 1}, "no pair between levit192"),
        ([one(3, "a" * 60), one(3, "b" * 60)], {}, "longer than 100"),
    ],
)
def test_what_sn_net_refuses(anchors: list[AnchorShape], options: dict, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        sn_net(anchors, **options)


def test_restnet_takes_the_most_similar_of_each_side_once() -> None:
    alike = np.zeros((5, 4))  # the larger has 4 blocks, cuts 0..4; the smaller 3, cuts 0..3
    alike[1, 1] = 0.9  # best of its row and its column
    alike[2, 1] = 0.8  # best of its row
    alike[3, 2] = 0.7  # best of its row and its column
    alike[0, :] = alike[:, 0] = alike[4, :] = alike[:, 3] = 1.0  # stem and last cuts must not be chosen
    plans = restnet([one(3, "s"), one(4, "l")], {("l", "s"): alike})
    assert plans == [
        LayerPlan("l.1~s.2", "l", "s", ((1, 2),)),
        LayerPlan("l.2~s.2", "l", "s", ((2, 2),)),
        LayerPlan("l.3~s.3", "l", "s", ((3, 3),)),
    ]


@given(small=st.integers(2, 9), large=st.integers(2, 9), seed=st.integers(0, 2**32 - 1))
def test_restnet_laws(small: int, large: int, seed: int) -> None:
    alike = np.random.default_rng(seed).normal(size=(large + 1, small + 1))
    plans = restnet([one(small, "s"), one(large, "l")], {("l", "s"): alike})
    found = [plan.pairs[0] for plan in plans]
    assert all(len(plan.pairs) == 1 and (plan.front, plan.end) == ("l", "s") for plan in plans)
    assert found == sorted(set(found))
    assert all(1 <= j < large and 2 <= k <= small for j, k in found)
    assert {j for j, _ in found} == set(range(1, large))
    assert {k for _, k in found} == set(range(2, small + 1))
    assert max(large, small) - 1 <= len(found) <= large + small - 3
    for j, k in found:
        assert alike[j, k - 1] in (alike[j, 1:small].max(), alike[1:large, k - 1].max())


def test_restnet_with_more_ends_for_each_part() -> None:
    alike = np.zeros((5, 5))  # the parts are rows 1..3 and columns 1..3
    alike[1, 1:4] = 0.9, 0.8, 0.1
    alike[2, 1:4] = 0.7, 0.6, 0.5
    alike[3, 1:4] = 0.2, 0.3, 0.4
    shapes, promise = [one(4, "s"), one(4, "l")], {("l", "s"): alike}
    assert pairs(restnet(shapes, promise)) == [("l", "s", 1, 2), ("l", "s", 1, 3), ("l", "s", 2, 2), ("l", "s", 2, 4), ("l", "s", 3, 4)]
    both = {(j, k - 1) for _, _, j, k in pairs(restnet(shapes, promise, ends=2))}
    assert both == {(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (3, 3), (2, 3)}
    assert len(pairs(restnet(shapes, promise, ends=9))) == 9
    alike[2, 2] = np.nan
    assert (2, 2) not in {(j, k - 1) for _, _, j, k in pairs(restnet(shapes, promise, ends=9))}


def test_restnet_never_chooses_a_nan() -> None:
    alike = np.full((4, 4), np.nan)
    alike[2, 1] = 0.5
    assert pairs(restnet([one(3, "s"), one(3, "l")], {("l", "s"): alike})) == [("l", "s", 2, 2)]


def test_restnet_joins_neighbours_of_any_stages() -> None:
    anchors = [AnchorShape("a", (1, 2)), AnchorShape("b", (4,)), AnchorShape("c", (2, 2, 2))]
    similarity = {("b", "a"): np.eye(5, 4), ("c", "b"): np.eye(7, 5)}
    assert {(plan.front, plan.end) for plan in restnet(anchors, similarity)} == {("b", "a"), ("c", "b")}


@pytest.mark.parametrize(
    ("anchors", "similarity", "message"),
    [
        ([one(3, "s"), one(3, "l")], {("s", "m"): np.eye(4)}, "nothing says what stitches of l and s promise"),
        ([one(3, "s"), one(3, "l")], {("l", "s"): np.eye(3)}, r"shape \(3, 3\), not \(4, 4\)"),
        ([one(1, "s"), one(3, "l")], {("l", "s"): np.eye(4, 2)}, "both need 2"),
        ([one(3, "s"), one(3, "l")], {("l", "s"): np.full((4, 4), np.nan)}, "holds no number"),
        ([one(3, "s")], {}, "at least two"),
    ],
)
def test_what_restnet_refuses(anchors: list[AnchorShape], similarity: dict, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        restnet(anchors, similarity)


def test_a_promise_may_be_told_in_either_order() -> None:
    alike = np.random.default_rng(0).normal(size=(5, 4))
    anchors = [one(3, "s"), one(4, "l")]
    assert restnet(anchors, {("s", "l"): alike.T}) == restnet(anchors, {("l", "s"): alike})


@pytest.mark.parametrize("rule", ["both-ways", "all"])
@given(small=st.lists(DEPTHS, min_size=1, max_size=4), data=st.data())
def test_laws_of_routes_in_both_directions(rule: str, small: list[int], data: st.DataObject) -> None:
    large = data.draw(st.lists(DEPTHS, min_size=1, max_size=4))
    anchors = {"s": AnchorShape("s", tuple(small)), "l": AnchorShape("l", tuple(large))}
    if min(sum(small), sum(large)) < 2:
        with pytest.raises(RuleError, match="both need 2"):
            make_rule(rule).plan(list(anchors.values()), {})
        return
    plan = make_rule(rule).plan(list(anchors.values()), {})
    assert len(set(plan.routes)) == len(plan.routes)
    assert {crossing for route in plan.routes for crossing in route} == set(plan.layer_of())
    for route in plan.routes:
        begin, names = 0, [route[0].front, *(crossing.end for crossing in route)]
        assert [crossing.front for crossing in route] == names[:-1]
        assert all(one != other for one, other in pairwise(names))
        for crossing in route:
            assert begin < crossing.j <= anchors[crossing.front].depth
            assert 2 <= crossing.k <= anchors[crossing.end].depth + 1
            begin = crossing.k - 1
    if rule == "all":
        assert len(plan.routes) == (sum(small) - 1) * sum(large) + (sum(large) - 1) * sum(small)
    elif len(small) == len(large):
        cuts = sum(map(min, small, large))
        assert len(plan.routes) == cuts + cuts - 1 + (cuts - 1) * (cuts - 2)
        assert len(plan.layers) == 2 * cuts - 1


def test_both_ways_meets_where_stages_end() -> None:
    plan = make_rule("both-ways").plan([AnchorShape("s", (2, 3)), AnchorShape("l", (6, 3))], {})
    assert [route[0][2:] for route in plan.routes if len(route) == 1 and route[0].front == "s"] == [(1, 4), (2, 7), (3, 8), (4, 9), (5, 10)]
    apart = make_rule("both-ways").plan([AnchorShape("s", (2, 2)), AnchorShape("l", (8,))], {})
    assert [route[0][2:] for route in apart.routes if len(route) == 1 and route[0].front == "l"] == [(2, 2), (4, 3), (6, 4)]


def test_what_is_left_of_a_plan() -> None:
    plan = make_rule("sn-net").plan([one(3, "s"), one(3, "l")], {})
    kept = plan.only([plan.routes[1], plan.routes[3]])
    assert kept.layers == (LayerPlan("s.1~l.2", "s", "l", ((1, 2), (2, 2))),)
    assert kept.routes == ((Crossing("s", "l", 1, 2),), (Crossing("s", "l", 2, 2),))
    assert kept.layer_of() == dict.fromkeys((Crossing("s", "l", 1, 2), Crossing("s", "l", 2, 2)), "s.1~l.2")


def test_rules_and_options_there_are_not() -> None:
    with pytest.raises(RuleError, match="rule 'best' is not one of restnet, sn-net, both-ways, all"):
        make_rule("best")
    with pytest.raises(RuleError, match="rule restnet has no option 'kernel'; it has nearest"):
        make_rule("restnet", kernel=2)
    assert options_of("sn-net") == ("kernel", "stride", "stages", "nearest")


@pytest.mark.parametrize("rule", RULES)
def test_only_a_rule_that_needs_a_promise_reads_it(rule: str) -> None:
    anchors = [one(3, "s"), one(3, "l")]
    if needs_promise(rule):
        with pytest.raises(RuleError, match="nothing says"):
            make_rule(rule).plan(anchors, {})
    else:
        assert make_rule(rule).plan(anchors, {}).routes


def test_pairs_of_different_layouts_get_layers_of_their_own() -> None:
    plan = RoutePlan((LayerPlan("s.1~l.1", "s", "l", ((1, 1), (1, 2), (2, 1), (2, 2))),), ())
    layouts = {"s": ["stem", "wide", "wide"], "l": ["stem", "wide", "wide"]}
    assert split_shared(plan, layouts).layers == (
        LayerPlan("s.1~l.1", "s", "l", ((1, 1), (2, 1))),
        LayerPlan("s.1~l.2", "s", "l", ((1, 2), (2, 2))),
    )
    assert split_shared(plan, {"s": ["x"] * 3, "l": ["x"] * 3}) == plan


def test_rules_need_no_torch() -> None:
    code = "import sys, restnet_export.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
