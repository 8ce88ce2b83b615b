"""Stitching layers between all kinds of layouts, in torch and in ONNX Runtime."""

import io
import warnings
from itertools import product

import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from restnet_export.costs import count_macs
from restnet_export.layouts import Layout
from restnet_export.resampling import Resampling, resamplings
from restnet_export.stitching import StitchingLayer
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


def filled(source: Layout, target: Layout, resampling: Resampling | None = None, kernel: int = 1) -> StitchingLayer:
    """A layer in eval mode with random numbers in every parameter."""
    layer = StitchingLayer(source, target, resampling, kernel).eval()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed + 100))
    return layer


@pytest.mark.parametrize(("source", "target"), list(product(ALL, ALL)), ids=lambda layout: f"{layout.kind}{layout.channels}")
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_layout_reaches_every_other(source: Layout, target: Layout, kernel: int) -> None:
    for how in resamplings(source, target):
        layer, x = filled(source, target, how, kernel), noise(3, *source.shape)
        y = layer(x)
        assert y.shape == (3, *target.shape)
        assert torch.allclose(layer(x[:1]), y[:1], atol=1e-5)
        # What the fit works on is what the layer computes.
        rows = functional.linear(layer.features(x), layer.weight, layer.bias)
        assert torch.allclose(rows, layer.target_rows(y), atol=1e-4)
        assert layer.prefix_targets(y).shape == (3, max(target.prefix - source.prefix, 0), target.channels)
        assert layer.prefix_features(x).shape == (3, source.channels)


def test_equal_layouts_cost_only_the_affine_map() -> None:
    x = noise(2, *MAP.shape)
    layer = filled(MAP, MAP)
    assert torch.equal(layer(x), functional.conv2d(x, layer.weight[:, :, None, None], layer.bias))
    layer = filled(TOKENS, TOKENS)
    x = noise(2, *TOKENS.shape)
    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))
    graph = torch.export.export(layer, (x,)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [torch.ops.aten.linear.default]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_new_layer_is_the_identity(kernel: int) -> None:
    for layout in ALL:
        x = noise(2, *layout.shape)
        assert torch.equal(StitchingLayer(layout, layout, kernel=kernel)(x), x)


def test_a_kernel_sees_neighbours_and_zeros_beyond_the_border() -> None:
    layer, x = filled(MAP, MAP, kernel=3), noise(2, *MAP.shape)
    weight = layer.weight.reshape(6, 6, 3, 3)
    assert torch.equal(layer(x), functional.conv2d(x, weight, layer.bias, padding=1))
    around = functional.pad(x, (1, 1, 1, 1))[:, :, 0:3, 7:10]  # of the right corner above
    assert torch.allclose(layer(x)[:, :, 0, 7], torch.einsum("ocij,bcij->bo", weight, around) + layer.bias, atol=1e-4)
    last = filled(LAST, LAST, kernel=3)
    x = noise(2, *LAST.shape)
    as_map = functional.conv2d(x.permute(0, 3, 1, 2), last.weight.reshape(6, 6, 3, 3), last.bias, padding=1)
    assert torch.allclose(last(x).permute(0, 3, 1, 2), as_map, atol=1e-5)


WIDE = Layout("map", 300, 8, 8)
QUARTER = Layout("map", 6, 4, 4)


def test_where_the_grid_grows_neighbours_are_those_of_the_smaller() -> None:
    """Which costs a quarter, and is the same to least squares."""
    layer, x = filled(QUARTER, MAP, kernel=3), noise(2, *QUARTER.shape)
    convolved = functional.conv2d(x, layer.weight.reshape(6, 6, 3, 3), layer.bias, padding=1)
    assert torch.allclose(layer(x), functional.interpolate(convolved, (8, 8), mode="bilinear"), atol=1e-4)
    assert count_macs(layer, QUARTER.shape) == 16 * 6 * 6 * 9
    rows = functional.linear(layer.features(x), layer.weight, layer.bias)
    assert torch.allclose(rows, layer.target_rows(layer(x)), atol=1e-4)


@pytest.mark.parametrize("kernel", [0, 2, -3])
def test_a_kernel_without_a_middle_is_refused(kernel: int) -> None:
    with pytest.raises(ExportError, match="an odd number"):
        StitchingLayer(MAP, MAP, kernel=kernel)


@pytest.mark.parametrize(
    ("source", "target"),
    [(TOKENS, TOKENS), (MAP, TOKENS), (TWO_PREFIXES, PLAIN_TOKENS), (VECTOR, MAP), (MAP, VECTOR), (WIDE, MAP), (SMALL_MAP, MAP)],
)
def test_where_there_are_no_neighbours_or_too_many_a_kernel_is_one(source: Layout, target: Layout) -> None:
    assert StitchingLayer(source, target, kernel=3).kernel == 1


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


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("source", "target", "how"),
    [
        (MAP, Layout("map", 5, 8, 8, 0), None),
        (MAP, SMALL_MAP, None),
        (SMALL_MAP, MAP, None),
        (MAP, ODD_MAP, None),
        (TOKENS, Layout("tokens", 3, 8, 8, 1), None),
        (TOKENS, TWO_PREFIXES, None),
        (PLAIN_TOKENS, MAP, None),
        (MAP, TOKENS, None),
        (SMALL_MAP, TWO_PREFIXES, None),
        (LAST, TWO_PREFIXES, None),
        (TOKENS, LAST, None),
        (VECTOR, MAP, None),
        (MAP, VECTOR, None),
        (MAP, SMALL_MAP, "nearest"),
        (SMALL_MAP, TWO_PREFIXES, "nearest"),
        (TOKENS, LAST, "nearest"),
    ],
    ids=lambda part: f"{part.kind}{part.channels}" if isinstance(part, Layout) else part,
)
def test_onnx_runtime_computes_the_same_at_any_batch(source: Layout, target: Layout, how: Resampling | None, kernel: int) -> None:
    layer = filled(source, target, how, kernel)
    if layer.kernel < kernel:
        pytest.skip("there are no neighbours here")
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
