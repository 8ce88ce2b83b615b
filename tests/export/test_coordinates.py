"""The space in which stitching layers are tuned: nothing moves at first, gradients are those of autograd, and scales do not matter."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from restnet_export.coordinates import LayerCoordinates, Spread
from restnet_export.layouts import Layout
from restnet_export.stitching import StitchingLayer

torch.set_num_threads(1)

MAP = StitchingLayer(Layout("map", 5, 4, 4), Layout("map", 3, 4, 4))


def activations(layer: StitchingLayer, scale: float = 1.0, count: int = 40) -> tuple[Tensor, Tensor]:
    """Correlated, off-centre channels."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(count, *layer.source.shape, generator=generator)
    source = (source + 2 * source.flatten(1).mean(1).view(-1, *[1] * (source.ndim - 1)) + 3) * scale
    return source, 7 * torch.randn(count, *layer.target.shape, generator=generator)


def spread(layer: StitchingLayer, scale: float = 1.0) -> Spread:
    source, target = activations(layer, scale)
    found = Spread(layer)
    for part in range(0, len(source), 16):
        found.add(source[part : part + 16], target[part : part + 16])
    return found


def new(layer: StitchingLayer) -> StitchingLayer:
    made = StitchingLayer(layer.source, layer.target)
    made.load_state_dict(layer.state_dict())
    return made


def test_spread_is_that_of_all_rows() -> None:
    source, target = activations(MAP)
    rows, wanted = MAP.features(source), MAP.target_rows(target)
    found = spread(MAP)
    assert torch.allclose(found.mean, rows.double().mean(0))
    assert torch.allclose(found.covariance, torch.cov(rows.double().T, correction=0))
    assert torch.allclose(found.target_deviation, wanted.double().std(0, correction=0))


@pytest.mark.parametrize("rank", [None, 2])
def test_nothing_moves_at_first(rank: int | None) -> None:
    layer = new(MAP)
    coordinates = LayerCoordinates(layer, spread(layer), rank)
    coordinates.push()
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in MAP.state_dict().items())


LAYERS = {
    "map": MAP,
    "tokens": StitchingLayer(Layout("tokens", 4, 3, 3, 1), Layout("tokens", 6, 3, 3, 1)),
    "class token made": StitchingLayer(Layout("map", 4, 4, 4), Layout("tokens", 6, 2, 2, 2)),
}


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_autograd(name: str, rank: int | None) -> None:
    layer = new(LAYERS[name])
    coordinates = LayerCoordinates(layer, spread(layer), rank, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in coordinates.parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    coordinates.push()
    source, target = activations(layer)
    (layer(source) - target).square().mean().backward()
    coordinates.pull()
    by_hand = [parameter.grad for parameter in coordinates.parameters]
    assert all(parameter.grad is None for parameter in layer.parameters())

    for parameter in coordinates.parameters:
        parameter.grad = None
    written = differentiable(coordinates)
    (functional_call(layer, written, source) - target).square().mean().backward()
    for found, parameter in zip(by_hand, coordinates.parameters, strict=True):
        assert torch.allclose(found, parameter.grad, rtol=1e-3, atol=1e-4 * float(parameter.grad.abs().max()))


def differentiable(coordinates: LayerCoordinates) -> dict[str, Tensor]:
    """The layer's weights as a function of the coordinates, as `push` writes them."""
    names = [("weight", "bias"), ("prefix_weight", "prefix_bias")]
    result = {}
    for (weight, bias), (weight0, bias0), free in zip(names, coordinates._start, coordinates._free, strict=False):
        inner = free[1] if len(free) == 2 else free[1] @ free[2]
        change = coordinates._scale[:, None] * (inner @ coordinates._whiten)
        result[weight] = weight0 + change
        result[bias] = bias0 + coordinates._scale * free[0] - change @ coordinates._mean
    for name, value in result.items():
        assert torch.allclose(value, dict(coordinates.layer.named_parameters())[name], atol=1e-5)
    return result


def test_a_step_moves_outputs_alike_whatever_the_scale() -> None:
    """An offset of one moves each output by its target's standard deviation; a matrix as large does so whatever units the input has."""
    moved = []
    for scale in (1e-3, 1.0, 1e3):
        layer = new(MAP)
        coordinates = LayerCoordinates(layer, spread(layer, scale))
        source, target = activations(layer, scale)
        before = layer(source).detach()
        with torch.no_grad():
            coordinates.parameters[1].fill_(0.1)
        coordinates.push()
        change = layer(source).detach() - before
        assert change.mean((0, 2, 3)).abs().max() < 1e-3 * target.std()
        moved.append(float(change.std() / target.std()))
    assert moved == pytest.approx([moved[0]] * 3, rel=1e-2)
    assert 0.05 < moved[0] < 0.5
    with torch.no_grad():
        coordinates.parameters[1].zero_()
        coordinates.parameters[0].fill_(1.0)
    coordinates.push()
    shift = layer(source).detach() - before
    assert torch.allclose(shift.mean((0, 2, 3)), target.std((0, 2, 3)), rtol=2e-2)


def test_low_rank_updates_have_low_rank() -> None:
    layer = StitchingLayer(Layout("vector", 8, 1, 1), Layout("vector", 6, 1, 1))
    start = layer.weight.detach().clone()
    coordinates = LayerCoordinates(layer, spread(layer), rank=2)
    with torch.no_grad():
        for parameter in coordinates.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    coordinates.push()
    assert torch.linalg.matrix_rank(layer.weight.detach() - start, rtol=1e-4) == 2
    assert len(LayerCoordinates(layer, spread(layer), rank=6).parameters) == 2  # no less than full


def test_channels_without_variance_do_no_harm() -> None:
    layer = StitchingLayer(Layout("map", 3, 2, 2), Layout("map", 2, 2, 2))
    found = Spread(layer)
    source, target = torch.randn(10, 3, 2, 2), torch.randn(10, 2, 2, 2)
    source[:, 0], target[:, 0] = 0, 5
    found.add(source, target)
    coordinates = LayerCoordinates(layer, found)
    with torch.no_grad():
        coordinates.parameters[1].fill_(0.05)
    coordinates.push()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters())
    assert layer.weight[1].abs().max() < 10
