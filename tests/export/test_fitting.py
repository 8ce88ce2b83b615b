"""Least squares for planned stitching layers, and what is chosen on held-out images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from restnet_export.activations import cut_activations
from restnet_export.coordinates import Spread
from restnet_export.cuts import Cut, CutAnchor
from restnet_export.data import Images, Samples
from restnet_export.fitting import FOLDS, fit_layers
from restnet_export.layouts import Layout
from restnet_export.least_squares import Moments, held_out_error, joint, mean_of_solutions, merged, spread_matched
from restnet_export.plans import LayerPlan
from restnet_export.resampling import Resampling, resamplings
from restnet_export.stitching import StitchingLayer
from restnet_runtime.errors import ExportError
from restnet_runtime.manifest import Preprocessing

torch.set_num_threads(1)

MAP8, MAP4, MAP6 = Layout("map", 6, 8, 8), Layout("map", 5, 4, 4), Layout("map", 4, 6, 6)
TOKENS = Layout("tokens", 7, 4, 4, 1)


def noise_images(count: int, seed: int = 0) -> Samples:
    """Blurred noise: (B, 1, 8, 8) whose neighbouring pixels are alike."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 10, 10, 1))
    blurred = sum(pixels[:, a : a + 8, b : b + 8] for a in range(3) for b in range(3)) // 9
    images = Images("noise", np.zeros(count, np.int64), None, lambda index: blurred[index].astype(np.uint8))
    return Samples(images, Preprocessing(mode="L", mean=(0.5,), std=(0.2,)), (1, 8, 8))


class Front(nn.Module):
    """(B, 1, 8, 8) to a map of 6 channels on 8x8."""

    def __init__(self, dead: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(5)))
            self.conv.bias.fill_(0.1)
            if dead:
                self.conv.weight[2:] = 0
                self.conv.bias[2:] = -1

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


def cut_anchor(name: str, cuts: list[tuple[nn.Module, Layout]]) -> CutAnchor:
    """Blocks in a row and a head that nobody runs."""
    return CutAnchor(
        name,
        "python:test",
        (1, 8, 8),
        tuple(Cut(f"node{index}", f"block{index}", layout.shape) for index, (_, layout) in enumerate(cuts)),
        tuple(layout for _, layout in cuts),
        (*(block.eval() for block, _ in cuts), nn.Flatten()),
        (len(cuts) - 1,),
    )


def made_by(layer: StitchingLayer) -> dict[str, CutAnchor]:
    """Two anchors with one cut each; the second's is what `layer` makes of the first's."""
    return {
        "front": cut_anchor("front", [(Front(), layer.source)]),
        "end": cut_anchor("end", [(nn.Sequential(Front(), layer), layer.target)]),
    }


def filled(source: Layout, target: Layout, how: Resampling | None = None, kernel: int = 1) -> StitchingLayer:
    layer = StitchingLayer(source, target, how, kernel)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


ONE = LayerPlan("front.0~end.1", "front", "end", ((0, 1),))


@pytest.mark.parametrize("target", [MAP8, MAP4, MAP6, TOKENS], ids=["same grid", "shrinks", "odd factor", "tokens"])
def test_the_layer_that_made_the_targets_is_found_with_its_resampling(target: Layout) -> None:
    for how in resamplings(MAP8, target):
        truth = filled(MAP8, target, how)
        (layer,) = fit_layers([ONE], made_by(truth), noise_images(60)).values()
        assert layer.resampling == how
        assert layer.fit is not None
        assert layer.fit.error < 1e-4
        assert torch.allclose(layer.weight, truth.weight, atol=1e-2)
        assert torch.allclose(layer.bias, truth.bias, atol=1e-2)
        fresh = Front()(next(noise_images(20, seed=9).batches())[0])
        assert torch.allclose(layer(fresh), truth(fresh), atol=0.05)


@pytest.mark.parametrize("target", [MAP8, MAP4], ids=["same grid", "shrinks"])
def test_a_layer_that_sees_neighbours_is_found_too(target: Layout) -> None:
    truth = filled(MAP8, target, kernel=3)
    (layer,) = fit_layers([ONE], made_by(truth), noise_images(60), kernel=3).values()
    assert layer.fit is not None
    assert layer.fit.error < 1e-4
    assert torch.allclose(layer.weight, truth.weight, atol=1e-2)
    (narrow,) = fit_layers([ONE], made_by(truth), noise_images(60)).values()
    assert narrow.fit is not None
    assert narrow.fit.error > 0.3


def test_growing_by_a_map_then_resampling() -> None:
    pool = nn.Sequential(Front(), nn.AvgPool2d(2))
    small = Layout("map", 6, 4, 4)
    for how in resamplings(small, MAP8):
        truth = filled(small, MAP8, how)
        anchors = {
            "front": cut_anchor("front", [(pool, small)]),
            "end": cut_anchor("end", [(nn.Sequential(pool, truth), MAP8)]),
        }
        (layer,) = fit_layers([ONE], anchors, noise_images(60)).values()
        assert layer.resampling == how
        assert torch.allclose(layer.weight, truth.weight, atol=1e-2)


class Residual(nn.Module):
    """What another anchor's block may do: no affine map of its input."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(0.3 * torch.randn(self.conv.weight.shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


def deep(name: str, seed: int) -> CutAnchor:
    return cut_anchor(name, [(Front(), MAP8), *((Residual(6, seed + index), MAP8) for index in range(3))])


@pytest.mark.parametrize("match_spread", [False, True])
def test_pairs_that_share_a_layer_get_the_better_of_joint_and_mean(match_spread: bool) -> None:
    anchors, samples = {name: deep(name, seed) for name, seed in (("front", 1), ("end", 10))}, noise_images(50)
    pairs = ((1, 2), (2, 2), (2, 4))
    (layer,) = fit_layers([LayerPlan("shared", "front", "end", pairs)], anchors, samples, match_spread=match_spread).values()
    fit = layer.fit
    assert fit is not None
    x, _ = next(samples.batches(50))
    front, end = (cut_activations(anchor, x) for anchor in anchors.values())

    def rows(y: Tensor) -> Tensor:
        return y.permute(0, 2, 3, 1).flatten(0, 2)

    folds = [[Moments.of(rows(front[j][f::FOLDS]), rows(end[k - 1][f::FOLDS])) for f in range(FOLDS)] for j, k in pairs]
    errors = {"joint": held_out_error(folds, joint, fit.ridge), "mean": held_out_error(folds, mean_of_solutions, fit.ridge)}
    assert fit.method == min(errors, key=lambda name: errors[name])
    assert fit.error == pytest.approx(errors[fit.method], rel=1e-9)
    method = {"joint": joint, "mean": mean_of_solutions}[fit.method]
    whole = [Moments.of(rows(front[j]), rows(end[k - 1])) for j, k in pairs]
    weight, bias = method(whole, fit.ridge)
    if match_spread:
        weight, bias = spread_matched((weight, bias), merged(whole))
    assert torch.allclose(layer.weight.double(), weight, atol=1e-5)
    assert torch.allclose(layer.bias.double(), bias, atol=1e-5)


def test_every_block_runs_once_a_batch_and_the_same_images_make_the_same_layers() -> None:
    anchors = {name: deep(name, seed) for name, seed in (("front", 1), ("end", 10))}
    plans = [LayerPlan(f"{j}-{k}", "front", "end", ((j, k),)) for j in range(4) for k in range(1, 5)]
    runs = [0]

    def count(*_: object) -> None:
        runs[0] += 1

    blocks = [block for anchor in anchors.values() for block in anchor.blocks]
    hooks = [block.register_forward_hook(count) for block in blocks]
    first = fit_layers(plans, anchors, noise_images(70))  # three batches
    for hook in hooks:
        hook.remove()
    assert runs == [3 * (len(blocks) - 2)]
    again = fit_layers(plans, anchors, noise_images(70))
    for name, layer in first.items():
        assert layer.fit == again[name].fit
        assert torch.equal(layer.weight, again[name].weight)


def test_dead_channels_get_no_weight() -> None:
    anchors = {"front": cut_anchor("front", [(Front(dead=True), MAP8)]), "end": cut_anchor("end", [(Front(), MAP8)])}
    (layer,) = fit_layers([ONE], anchors, noise_images(40)).values()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters())
    assert layer.weight[:, :2].abs().max() > 0.01
    assert not layer.weight[:, 2:].any()


class Broken(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.front, self.change = Front(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.front(x))


@pytest.mark.parametrize("side", ["front", "end"])
def test_activations_that_are_not_finite_are_named(side: str) -> None:
    for value in (torch.nan, torch.inf):
        anchors = {name: cut_anchor(name, [(Front(), MAP8)]) for name in ("front", "end")}
        anchors[side] = cut_anchor(side, [(Broken(lambda y: y.index_fill(1, torch.tensor(3), value)), MAP8)])  # noqa: B023
        with pytest.raises(ExportError, match=f"{side}: what it computes up to block0 is not finite"):
            fit_layers([ONE], anchors, noise_images(10))


def test_a_source_that_never_varies_is_refused() -> None:
    anchors = {"front": cut_anchor("front", [(Broken(torch.ones_like), MAP8)]), "end": cut_anchor("end", [(Front(), MAP8)])}
    with pytest.raises(ExportError, match=r"front.0~end.1: cut 0 of front is the same for every image"):
        fit_layers([ONE], anchors, noise_images(10))


def test_no_images() -> None:
    anchors = {name: cut_anchor(name, [(Front(), MAP8)]) for name in ("front", "end")}
    with pytest.raises(ExportError, match="no image to fit on"):
        fit_layers([ONE], anchors, noise_images(0))


def test_layers_do_not_depend_on_how_the_images_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 32 and of 10, which begin with another fold each time."""
    anchors = {name: deep(name, seed) for name, seed in (("front", 1), ("end", 10))}
    plans = [LayerPlan("1-2", "front", "end", ((1, 2),))]
    (one,) = fit_layers(plans, anchors, noise_images(70)).values()
    samples = noise_images(70)
    monkeypatch.setattr(samples, "batches", lambda: Samples.batches(samples, 10))
    (two,) = fit_layers(plans, anchors, samples).values()
    assert one.fit is not None
    assert two.fit is not None
    assert (one.fit.method, one.fit.ridge) == (two.fit.method, two.fit.ridge)
    assert two.fit.error == pytest.approx(one.fit.error, rel=1e-6)
    assert torch.allclose(one.weight, two.weight, atol=1e-5)


def test_what_neighbours_make_of_a_batch_is_seen_some_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = {name: deep(name, seed) for name, seed in (("front", 1), ("end", 10))}
    plans = [LayerPlan("1-2", "front", "end", ((1, 2),))]
    (one,) = fit_layers(plans, anchors, noise_images(70), kernel=3).values()
    assert one.kernel == 3
    monkeypatch.setattr("restnet_export.stitching._ROWS_AT_ONCE", 3 * one.target.height * one.target.width)
    assert one.most_images == 3
    (two,) = fit_layers(plans, anchors, noise_images(70), kernel=3).values()
    assert torch.allclose(one.weight, two.weight, atol=1e-5)
    x, y = torch.randn(7, *one.source.shape), torch.randn(7, *one.target.shape)
    spread, whole = Spread(one), Spread(one)
    spread.add(x, y)
    monkeypatch.undo()
    whole.add(x, y)
    assert torch.allclose(spread.covariance, whole.covariance)
    assert torch.allclose(spread.target_deviation, whole.target_deviation)
