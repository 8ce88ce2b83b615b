"""Stitching layers between all kinds of layouts, in torch and in ONNX Runtime, and their least-squares fit."""

import io
import warnings
from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from restnet_export.layouts import Layout
from restnet_export.stitching import NormalEquations, StitchFit, StitchingLayer
from restnet_runtime.errors import ExportError

torch.set_num_threads(1)

MAP = Layout("map", 6, 8, 8, 0)
SMALL_MAP = Layout("map", 5, 4, 2, 0)
ODD_MAP = Layout("map", 4, 3, 5, 0)
LAST = Layout("map_last", 6, 4, 4, 0)
TOKENS = Layout("tokens", 6, 8, 8, 1)
PLAIN_TOKENS = Layout("tokens", 7, 4, 4, 0)
TWO_PREFIXES = Layout("tokens", 5, 4, 4, 2)
VECTOR = Layout("vector", 9, 1, 1, 0)
ALL = [MAP, SMALL_MAP, ODD_MAP, LAST, TOKENS, PLAIN_TOKENS, TWO_PREFIXES, VECTOR]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fit(layer: StitchingLayer, sources: list[Tensor], targets: list[Tensor]) -> None:
    """Least squares without a ridge, batch by batch."""
    fitting = StitchFit(layer)
    for source, target in zip(sources, targets, strict=True):
        fitting.add(source, target)
    fitting.finish(0)


def filled(source: Layout, target: Layout) -> StitchingLayer:
    """A layer in eval mode with random numbers in every parameter."""
    layer = StitchingLayer(source, target).eval()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed + 100))
    return layer


@pytest.mark.parametrize(("source", "target"), list(product(ALL, ALL)), ids=lambda layout: f"{layout.kind}{layout.channels}")
def test_every_layout_reaches_every_other(source: Layout, target: Layout) -> None:
    layer, x = filled(source, target), noise(3, *source.shape)
    y = layer(x)
    assert y.shape == (3, *target.shape)
    assert torch.allclose(layer(x[:1]), y[:1], atol=1e-5)
    # What the fit works on is what the layer computes.
    rows = functional.linear(layer.features(x), layer.weight, layer.bias)
    assert torch.allclose(rows, layer.target_rows(y), atol=1e-4)


def test_equal_layouts_cost_only_the_affine_map() -> None:
    x = noise(2, *MAP.shape)
    layer = filled(MAP, MAP)
    assert torch.equal(layer(x), functional.conv2d(x, layer.weight[:, :, None, None], layer.bias))
    layer = filled(TOKENS, TOKENS)
    x = noise(2, *TOKENS.shape)
    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))
    graph = torch.export.export(layer, (x,)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [torch.ops.aten.linear.default]


def test_a_new_layer_is_the_identity() -> None:
    for layout in ALL:
        x = noise(2, *layout.shape)
        assert torch.equal(StitchingLayer(layout, layout)(x), x)


def test_shrinking_by_a_whole_factor_averages() -> None:
    x = noise(2, 6, 8, 8)
    y = StitchingLayer(MAP, Layout("map", 6, 4, 2, 0))(x)
    assert torch.allclose(y, x.reshape(2, 6, 4, 2, 2, 4).mean((3, 5)), atol=1e-6)


def test_other_sizes_are_bilinear() -> None:
    x = noise(2, 6, 8, 8)
    for height, width in ((5, 8), (16, 16), (3, 20)):
        y = StitchingLayer(MAP, Layout("map", 6, height, width, 0))(x)
        assert torch.allclose(y, functional.interpolate(x, (height, width), mode="bilinear", align_corners=False), atol=1e-5)


def test_the_class_token_is_mapped_like_the_others_dropped_or_made_from_the_mean() -> None:
    x = noise(2, *TOKENS.shape)
    same = filled(TOKENS, Layout("tokens", 3, 4, 4, 1))
    assert torch.allclose(same(x)[:, 0], functional.linear(x[:, 0], same.weight, same.bias), atol=1e-5)

    dropped = filled(TOKENS, Layout("tokens", 6, 8, 8, 0))
    assert torch.allclose(dropped(x), functional.linear(x[:, 1:], dropped.weight, dropped.bias), atol=1e-5)

    added = filled(TOKENS, TWO_PREFIXES)
    assert added.prefix_weight is not None
    assert added.prefix_bias is not None
    assert added.prefix_weight.shape == (1, 5, 6)
    y = added(x)
    assert torch.allclose(y[:, 0], functional.linear(x[:, 0], added.weight, added.bias), atol=1e-5)
    assert torch.allclose(y[:, 1], functional.linear(x[:, 1:].mean(1), added.prefix_weight[0], added.prefix_bias[0]), atol=1e-5)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (MAP, Layout("map", 5, 8, 8, 0)),
        (MAP, SMALL_MAP),
        (SMALL_MAP, MAP),
        (MAP, ODD_MAP),
        (TOKENS, Layout("tokens", 3, 8, 8, 1)),
        (TOKENS, TWO_PREFIXES),
        (PLAIN_TOKENS, MAP),
        (MAP, TOKENS),
        (SMALL_MAP, TWO_PREFIXES),
        (LAST, TWO_PREFIXES),
        (TOKENS, LAST),
        (VECTOR, MAP),
        (MAP, VECTOR),
    ],
    ids=lambda layout: f"{layout.kind}{layout.channels}",
)
def test_onnx_runtime_computes_the_same_at_any_batch(source: Layout, target: Layout) -> None:
    layer = filled(source, target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter warns about itself
        program = torch.onnx.export(
            layer,
            (noise(2, *source.shape),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["x"],
            output_names=["y"],
            verbose=False,
        )
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = noise(batch, *source.shape, seed=batch)
        (y,) = session.run(None, {"x": x.numpy()})
        assert y == pytest.approx(layer(x).detach().numpy(), abs=1e-4)


def test_normal_equations_agree_with_lstsq() -> None:
    x, y = noise(300, 8).double() * torch.arange(1, 9) + 50, noise(300, 3, seed=1).double() - 20
    y = y + x @ noise(8, 3, seed=2).double()
    equations = NormalEquations()
    equations.add(x, y)
    weight, bias = equations.solve(0)
    expected = np.linalg.lstsq(np.c_[x.numpy(), np.ones(300)], y.numpy(), rcond=None)[0]
    assert weight.dtype == torch.float64
    assert weight.numpy() == pytest.approx(expected[:-1].T, abs=1e-9)
    assert bias.numpy() == pytest.approx(expected[-1], abs=1e-8)


def test_the_ridge_is_lstsq_with_penalty_rows_and_a_free_bias() -> None:
    x, y = noise(100, 6).double() * 3 + 10, noise(100, 2, seed=1).double() + 7
    ridge = 0.25
    equations = NormalEquations()
    equations.add(x, y)
    weight, bias = equations.solve(ridge)
    strength = np.sqrt(ridge * 100 * x.numpy().var(0).mean())
    rows = np.r_[np.c_[x.numpy(), np.ones(100)], np.c_[strength * np.eye(6), np.zeros(6)]]
    expected = np.linalg.lstsq(rows, np.r_[y.numpy(), np.zeros((6, 2))], rcond=None)[0]
    assert weight.numpy() == pytest.approx(expected[:-1].T, abs=1e-10)
    assert bias.numpy() == pytest.approx(expected[-1], abs=1e-9)


def test_a_huge_ridge_leaves_the_mean() -> None:
    x, y = noise(50, 4), noise(50, 2, seed=1) + 3
    equations = NormalEquations()
    equations.add(x, y)
    weight, bias = equations.solve(1e12)
    assert weight.abs().max() < 1e-9
    assert torch.allclose(bias, y.double().mean(0))


def test_chunks_are_one_go_also_far_from_zero() -> None:
    x, y = noise(40_000, 5) + 1000, noise(40_000, 2, seed=1) - 500  # more rows than one inner chunk holds
    y[:, 0] += x[:, 0]
    whole, streamed = NormalEquations(), NormalEquations()
    whole.add(x, y)
    for a, b in zip(x.split(777), y.split(777), strict=True):
        streamed.add(a, b)
    for one, other in zip(whole.solve(), streamed.solve(), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-7)
    assert whole.solve(0)[0][0, 0] == pytest.approx(1, abs=0.03)


def test_memory_does_not_grow_with_the_rows() -> None:
    equations = NormalEquations()

    def held() -> int:
        return sum(value.nbytes for value in vars(equations).values() if isinstance(value, Tensor))

    equations.add(noise(10, 7), noise(10, 3))
    first = held()
    for _ in range(20):
        equations.add(noise(1000, 7), noise(1000, 3))
    assert equations.rows == 20_010
    assert held() == first == 8 * (7 * 7 + 7 * 3 + 2 * (7 + 3))


def test_dependent_and_constant_channels_have_the_solution_of_least_norm() -> None:
    x = noise(60, 1).double().expand(60, 4).clone()
    x[:, 3] = 5
    y = 2 * x[:, :1] + 1
    equations = NormalEquations()
    equations.add(x, y)
    weight, bias = equations.solve(0)
    assert weight.numpy() == pytest.approx(np.array([[2 / 3, 2 / 3, 2 / 3, 0]]), abs=1e-8)
    assert bias.numpy() == pytest.approx([1], abs=1e-8)

    constant = NormalEquations()
    constant.add(torch.ones(9, 2), y[:9].float())
    weight, bias = constant.solve()
    assert not weight.any()
    assert bias.item() == pytest.approx(y[:9].mean().item(), abs=1e-6)


def test_what_normal_equations_refuse() -> None:
    equations = NormalEquations()
    with pytest.raises(ExportError, match="0 rows"):
        equations.solve()
    with pytest.raises(ExportError, match="do not match"):
        equations.add(noise(3, 2), noise(4, 2))
    with pytest.raises(ExportError, match="not finite"):
        equations.add(noise(3, 2) * torch.inf, noise(3, 2))
    equations.add(noise(3, 2), noise(3, 2))
    with pytest.raises(ExportError, match="4 and 2 channels after rows of 2 and 2"):
        equations.add(noise(3, 4), noise(3, 2))
    with pytest.raises(ExportError, match=r"ridge -0\.1"):
        equations.solve(-0.1)


@pytest.mark.parametrize(("source", "target"), [(MAP, SMALL_MAP), (MAP, TOKENS), (PLAIN_TOKENS, LAST), (TOKENS, TWO_PREFIXES)])
def test_fit_recovers_the_layer_that_made_the_targets(source: Layout, target: Layout) -> None:
    truth, layer = filled(source, target), StitchingLayer(source, target)
    batches = [noise(50, *source.shape, seed=seed) for seed in range(4)]
    fit(layer, batches, [truth(batch).detach() for batch in batches])
    assert torch.allclose(layer.weight, truth.weight, atol=1e-4)
    assert torch.allclose(layer.bias, truth.bias, atol=1e-4)
    fresh = noise(20, *source.shape, seed=99)
    # Created prefix tokens always keep a ridge, hence the wider margin.
    assert torch.allclose(layer(fresh), truth(fresh), atol=0.02)


def test_fitting_beats_any_other_affine_map_nearby() -> None:
    x, y = noise(30, *MAP.shape), noise(30, *SMALL_MAP.shape, seed=1)
    layer = StitchingLayer(MAP, SMALL_MAP)
    fit(layer, [x], [y])
    best = functional.mse_loss(layer(x), y).item()
    for seed in range(5):
        other = StitchingLayer(MAP, SMALL_MAP)
        with torch.no_grad():
            other.weight.copy_(layer.weight + 0.05 * noise(*layer.weight.shape, seed=seed))
            other.bias.copy_(layer.bias + 0.05 * noise(*layer.bias.shape, seed=seed))
        assert functional.mse_loss(other(x), y).item() > best


def test_pairs_that_share_a_layer_are_solved_jointly() -> None:
    layout = Layout("tokens", 4, 3, 3, 1)
    sources, targets = [noise(20, *layout.shape, seed=s) for s in (1, 2)], [noise(20, *layout.shape, seed=s) for s in (3, 4)]
    layer = StitchingLayer(layout, layout)
    fitting = StitchFit(layer)
    for source, target in zip(sources, targets, strict=True):
        fitting.add(source, target)
    fitting.finish(0)
    X, Y = (torch.cat(parts).flatten(0, 1).numpy() for parts in (sources, targets))
    expected = np.linalg.lstsq(np.c_[X, np.ones(len(X))], Y, rcond=None)[0]
    assert layer.weight.detach().numpy() == pytest.approx(expected[:-1].T, abs=1e-5)
    assert layer.bias.detach().numpy() == pytest.approx(expected[-1], abs=1e-5)


def test_what_fit_refuses() -> None:
    layer, x, y = StitchingLayer(MAP, SMALL_MAP), noise(2, *MAP.shape), noise(2, *SMALL_MAP.shape)
    with pytest.raises(ExportError, match="0 rows"):
        fit(layer, [], [])
    with pytest.raises(ExportError, match=r"source activation \(2, 5, 4, 2\) where \(batch, 6, 8, 8\)"):
        fit(layer, [y], [y])
    with pytest.raises(ExportError, match=r"target activation \(2, 6, 8, 8\) where \(batch, 5, 4, 2\)"):
        fit(layer, [x], [x])
