"""Costs against counts by hand, scores against routes run whole, and which routes are kept."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from restnet_export.anchors import Anchor
from restnet_export.costs import count_macs, count_params
from restnet_export.cuts import Cut, CutAnchor, cut_anchor
from restnet_export.layouts import Layout
from restnet_export.routes import StitchedRoute, block_name
from restnet_export.scoring import score_routes
from restnet_export.selection import most_promising
from restnet_export.stitching import StitchingLayer
from restnet_runtime.errors import ExportError
from restnet_runtime.routes import Part


class Attention(nn.Module):
    """Two heads of 8 channels over 10 tokens, by torch's fused attention."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 16, 16), 16 * 16 * 8 * 3 * 9),
        (nn.Conv2d(8, 12, 3, stride=2, padding=1), (8, 16, 16), 8 * 8 * 12 * 8 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 4, 4), 4 * 4 * 8 * 9),
        (nn.Linear(20, 7), (20,), 20 * 7),
        (nn.Linear(20, 7, bias=False), (5, 20), 5 * 20 * 7),
        (Attention(), (10, 16), 2 * 10 * 10 * 16),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)).eval(), (3, 4, 4), 0),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(18, 5)), (1, 3, 3), 9 * 2 + 18 * 5),
        (StitchingLayer(Layout("map", 6, 4, 4), Layout("map", 9, 4, 4)), (6, 4, 4), 16 * 6 * 9),
        (StitchingLayer(Layout("map", 6, 4, 4), Layout("map", 9, 2, 2)), (6, 4, 4), 4 * 6 * 9),
        (StitchingLayer(Layout("map", 6, 4, 4), Layout("tokens", 9, 4, 4, 1)), (6, 4, 4), 17 * 6 * 9),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_multiply_accumulates_as_counted_by_hand(module: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert count_macs(module, shape) == macs


def test_attention_counts_within_a_cut_anchor() -> None:
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 4, 4)
            self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)))
            self.head = nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.blocks(self.embed(x).flatten(2).transpose(1, 2)).mean(1))

    anchor = cut_anchor(Anchor("vit", "", Vit().eval(), (3, 16, 16), None))
    tokens, width, hidden = 16, 16, 32
    block = 4 * tokens * width * width + 2 * tokens * tokens * width + 2 * tokens * width * hidden
    shapes = [(3, 16, 16), *(cut.shape for cut in anchor.cuts)]
    counted = [count_macs(module, shape) for module, shape in zip(anchor.blocks, shapes, strict=True)]
    assert counted == [tokens * width * 3 * 16, block, block, width * 5]


def test_parameters_count_once() -> None:
    linear = nn.Linear(4, 3)
    assert count_params(linear) == 15
    assert count_params(nn.Sequential(linear, nn.ReLU(), linear)) == 15
    assert count_params(nn.BatchNorm1d(4)) == 8


def anchor(name: str, width: int, blocks: int) -> CutAnchor:
    """Conv stem, blocks and head for (1, 6, 6) and 4 classes."""
    stem = nn.Conv2d(1, width, 3, padding=1)
    body = [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Tanh()) for _ in range(blocks)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(width * 36, 4))
    layouts = tuple(Layout("map", width, 6, 6) for _ in range(blocks + 1))
    cuts = tuple(Cut(str(block), str(block), (width, 6, 6)) for block in range(blocks + 1))
    return CutAnchor(name, "", (1, 6, 6), cuts, layouts, (stem, *body, head), (blocks,))


@pytest.fixture(scope="module")
def anchors() -> dict[str, CutAnchor]:
    torch.manual_seed(0)
    return {"s": anchor("s", 3, 2), "m": anchor("m", 4, 2), "l": anchor("l", 5, 3)}


@pytest.fixture(scope="module")
def layers(anchors: dict[str, CutAnchor]) -> dict[str, StitchingLayer]:
    torch.manual_seed(1)
    made = {
        "s.1~l.2": StitchingLayer(anchors["s"].layouts[1], anchors["l"].layouts[1]),
        "l.0~s.2": StitchingLayer(anchors["l"].layouts[0], anchors["s"].layouts[1]),
        "m.1~s.3": StitchingLayer(anchors["m"].layouts[1], anchors["s"].layouts[2]),
    }
    for layer in made.values():
        nn.init.normal_(layer.weight)
    return made


ROUTES = [
    StitchedRoute("s", (Part("s", 0, 3),)),
    StitchedRoute("m", (Part("m", 0, 3),)),
    StitchedRoute("l", (Part("l", 0, 4),)),
    StitchedRoute("s[0-1]>l[2-4]", (Part("s", 0, 1), Part("l", 2, 4)), ("s.1~l.2",)),
    StitchedRoute("l[0-0]>s[2-3]", (Part("l", 0, 0), Part("s", 2, 3)), ("l.0~s.2",)),
    StitchedRoute("m[0-1]>s[3-3]", (Part("m", 0, 1), Part("s", 3, 3)), ("m.1~s.3",)),
]


def test_segments_and_module_of_a_route_agree(anchors: dict[str, CutAnchor], layers: dict[str, StitchingLayer]) -> None:
    assert ROUTES[0].segments() == ("s.0", "s.1", "s.2", "s.3")
    assert ROUTES[3].segments() == ("s.0", "s.1", "s.1~l.2", "l.2", "l.3", "l.4")
    named = {block_name(name, block): module for name, cut in anchors.items() for block, module in enumerate(cut.blocks)}
    for route in ROUTES:
        assert list(route.module(anchors, layers)) == [{**named, **layers}[name] for name in route.segments()]


def test_a_route_that_answers_nan_is_named(anchors: dict[str, CutAnchor], layers: dict[str, StitchingLayer]) -> None:
    """Its class would be the first one, and might be right."""
    broken = dict(layers)
    broken["l.0~s.2"] = StitchingLayer(anchors["l"].layouts[0], anchors["s"].layouts[1])
    with torch.no_grad():
        broken["l.0~s.2"].weight.fill_(math.inf)
    batch = (torch.randn(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ExportError, match=r"^l\[0-0\]>s\[2-3\]: answers some of the images to score on with NaN or infinity"):
        score_routes(ROUTES, anchors, broken, [batch])


def test_scores_are_those_of_every_route_run_whole(anchors: dict[str, CutAnchor], layers: dict[str, StitchingLayer]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(90, 1, 6, 6, generator=generator)
    y = torch.randint(4, (90,), generator=generator)
    with torch.no_grad():
        expected = [float((route.module(anchors, layers)(x).argmax(1) == y).double().mean()) for route in ROUTES]
    assert len(set(expected)) > 2
    assert score_routes(ROUTES, anchors, layers, [(x[:40], y[:40]), (x[40:81], y[40:81]), (x[81:], y[81:])]) == pytest.approx(
        expected, abs=1e-9
    )


def test_nothing_to_score_on_is_no_number(anchors: dict[str, CutAnchor], layers: dict[str, StitchingLayer]) -> None:
    assert all(math.isnan(score) for score in score_routes(ROUTES, anchors, layers, []))


def stitched(count: int) -> list[StitchedRoute]:
    """Two anchors around `count` stitched routes."""
    middle = [StitchedRoute(f"stitched-{index}", (Part("a", 0, 1), Part("b", 2, 3)), (f"layer-{index}",)) for index in range(count)]
    return [StitchedRoute("a", (Part("a", 0, 3),)), *middle, StitchedRoute("b", (Part("b", 0, 3),))]


class TestMostPromising:
    MACS = (10, 20, 30, 40, 50, 60)
    ACCURACIES = (0.5, 0.6, 0.59, 0.8, 0.4, 0.7)  # on the front: 0, 1 and 3; the large anchor, last, is not

    def kept(self, limit: int | None, macs: Sequence[int] = MACS, accuracies: Sequence[float] = ACCURACIES) -> list[str]:
        return [route.name for route in most_promising(stitched(len(macs) - 2), macs, accuracies, limit)]

    @pytest.mark.parametrize("limit", [None, 6, 100])
    def test_without_a_limit_that_matters_all_stay(self, limit: int | None) -> None:
        assert len(self.kept(limit)) == 6

    @pytest.mark.parametrize("limit", [1, 2])
    def test_anchors_stay_whatever_the_limit(self, limit: int) -> None:
        assert self.kept(limit) == ["a", "b"]

    def test_a_front_that_is_too_large_is_thinned_over_the_costs(self) -> None:
        assert self.kept(3) == ["a", "stitched-2", "b"]
        accuracies = (0.5, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.7, 0.9)
        macs = (10, 11, 12, 13, 14, 15, 16, 50, 100)
        assert self.kept(4, macs, accuracies) == ["a", "stitched-0", "stitched-6", "b"]

    def test_dominated_routes_are_spread_over_the_costs(self) -> None:
        """Five routes close to one another in cost lose less than those elsewhere."""
        macs = (10, 30, 50, 70, 90, 91, 92, 93, 94, 100)
        accuracies = (0.6, 0.65, 0.7, 0.7, 0.899, 0.898, 0.897, 0.896, 0.895, 0.9)
        before_the_front = (0.6, 0.58, 0.57, 0.56, *accuracies[4:])
        assert self.kept(6, macs, accuracies) == ["a", "stitched-0", "stitched-1", "stitched-2", "stitched-3", "b"]
        # Not at any price: what the small anchor does better for less comes after the rest.
        assert self.kept(6, macs, before_the_front) == ["a", "stitched-3", "stitched-4", "stitched-5", "stitched-6", "b"]

    def test_then_the_front_then_what_loses_least_in_the_order_given(self) -> None:
        assert self.kept(4) == ["a", "stitched-0", "stitched-2", "b"]
        assert self.kept(5) == ["a", "stitched-0", "stitched-1", "stitched-2", "b"]
