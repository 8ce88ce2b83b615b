"""Ranges at the cuts and inside: of all that arrives, from images that pass by."""

import weakref
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from onnx import helper

from restnet_export import calibration
from restnet_export.calibration import Cuts, Method, calibrate
from restnet_export.quantise import folded
from restnet_runtime.errors import ExportError, SpecError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((10, 3, 8, 8)).astype(np.float32)
ANCHORS = {"a": ["a.0", "a.1", "a.2"], "b": ["b.0", "b.1", "b.2"]}
STITCHED = ["a.0", "a.0~b.0", "b.1", "b.2"]


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


@pytest.fixture(scope="module")
def models(graphs) -> dict[str, onnx.ModelProto]:
    """Two anchors whose blocks end in ReLU, and a stitching layer that answers negative values."""
    made = {"a.0~b.0": graphs.conv("a.0~b.0", weights(6, 4, 1, 1), weights(6, 1)[:, 0], 8, relu=False)}
    for name, width in (("a", 4), ("b", 6)):
        made[f"{name}.0"] = graphs.conv(f"{name}.0", weights(width, 3, 3, 3), weights(width, 1)[:, 0], 8)
        made[f"{name}.1"] = graphs.conv(f"{name}.1", weights(width, width, 3, 3), weights(width, 1)[:, 0], 8)
        made[f"{name}.2"] = graphs.head(f"{name}.2", weights(5, width), weights(5, 1)[:, 0], 8)
    return {name: folded(model) for name, model in made.items()}


def in_batches(*sizes: int) -> Callable[[], Iterator[np.ndarray]]:
    """X in batches of these sizes."""
    bounds = np.cumsum(sizes)[:-1]
    return lambda: iter(np.split(X, bounds))


def test_segments_meet_where_one_follows_the_other() -> None:
    cuts = Cuts.of([*ANCHORS.values(), STITCHED])
    ends = cuts.ends
    assert ends["a.0~b.0"] == (ends["a.0"][1], ends["b.0"][1])
    assert ends["b.1"][0] == ends["b.0"][1] != ends["a.0"][1] == ends["a.1"][0]
    assert len({cut for pair in ends.values() for cut in pair}) == 2 * 4  # two anchors of three blocks: the stitching layer adds none


def test_a_folded_layer_ends_where_its_block_does_though_no_route_shows_it() -> None:
    """A stitching layer in the block behind it, and at once another one back: nothing but the block itself ends there."""
    routes = [*ANCHORS.values(), ["a.0", "a.0~b.0+1", "b.1~a.1", "a.2"], ["b.0", "b.0~a.1+2"]]
    apart, together = Cuts.of(routes), Cuts.of(routes, {"a.0~b.0+1": "b.1", "b.0~a.1+2": "a.2", "unused": "a.1"})
    assert apart.ends["b.1~a.1"][0] != apart.ends["b.1"][1]
    assert together.ends["b.1~a.1"][0] == together.ends["a.0~b.0+1"][1] == together.ends["b.1"][1]
    assert together.ends["b.0~a.1+2"][1] == together.ends["a.2"][1]


def test_a_segment_ends_in_its_own_range_and_begins_in_that_of_all_that_arrives(graphs, models: dict[str, onnx.ModelProto]) -> None:
    found = calibrate(ANCHORS, Cuts.of([*ANCHORS.values(), STITCHED]), models, in_batches(10), "minmax")

    def span(values: np.ndarray) -> object:
        return pytest.approx((min(values.min(), values.max()), values.max()), rel=1e-5, abs=1e-6)

    block = graphs.run(models["b.0"], X)
    layer = graphs.run(models["a.0~b.0"], graphs.run(models["a.0"], X))
    assert layer.min() < -0.1 < block.min() == 0
    assert found["b.0"]["y"] == span(block)
    assert found["a.0~b.0"]["y"] == span(layer)
    assert found["b.1"]["x"] == span(np.concatenate([block, layer]))
    assert found["a.0~b.0"]["x"] == found["a.1"]["x"] == found["a.0"]["y"]
    assert found["a.0"]["x"] == span(X)
    assert found["b.2"]["y"] == span(graphs.run(models["b.2"], graphs.run(models["b.1"], block)))
    for name, model in models.items():
        assert {value for node in model.graph.node for value in node.output} <= set(found[name])


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_ranges_do_not_depend_on_the_batches(models: dict[str, onnx.ModelProto], method: Method) -> None:
    cuts = Cuts.of([*ANCHORS.values(), STITCHED])
    whole, parts = (calibrate(ANCHORS, cuts, models, in_batches(*sizes), method) for sizes in ((10,), (4, 4, 2)))
    for name, spans in whole.items():
        for value, span in spans.items():
            width = span[1] - span[0]
            assert parts[name][value] == pytest.approx(span, abs=0.02 * width)


def test_ranges_of_tails_are_cut(models: dict[str, onnx.ModelProto]) -> None:
    """One pixel of a hundred thousand is far away: the whole range holds it, the others do not."""
    images = RNG.standard_normal((600, 3, 8, 8)).astype(np.float32)
    images[0, 0, 0, 0] = 300.0
    cuts = Cuts.of(ANCHORS.values())
    tops = {
        method: calibrate(ANCHORS, cuts, models, lambda: iter([images]), method)["a.0"]["x"][1]  # type: ignore[arg-type]
        for method in ("minmax", "percentile", "entropy")
    }
    assert tops["minmax"] == 300.0
    assert tops["percentile"] < 10
    assert tops["entropy"] < 299


def test_images_pass_by(models: dict[str, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: one batch is held at a time, and of activations what a few images make."""
    monkeypatch.setattr(calibration, "_RUN_BYTES", 1)  # one image a run
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal most
        for start in range(0, len(X), 2):
            batch = X[start : start + 2].copy()
            alive.append(weakref.ref(batch))
            most = max(most, sum(one() is not None for one in alive))
            yield batch
            del batch

    cuts = Cuts.of(ANCHORS.values())
    found = calibrate(ANCHORS, cuts, models, images, "minmax")
    assert most <= 2
    assert len(alive) == 5 * len(ANCHORS)
    whole = calibrate(ANCHORS, cuts, models, in_batches(10), "minmax")
    assert found["b.1"]["y"] == pytest.approx(whole["b.1"]["y"], rel=1e-5)


@pytest.fixture
def with_infinity(graphs, models: dict[str, onnx.ModelProto]) -> dict[str, onnx.ModelProto]:
    """A block that passes by minus infinity and ends in finite values."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Log", ["r"], ["l"]), helper.make_node("Exp", ["l"], ["y"])]
    return {**models, "a.1": folded(graphs.segment("a.1", nodes, {}, (4, 8, 8), (4, 8, 8)))}


def test_a_value_that_is_infinite_has_no_range(with_infinity: dict[str, onnx.ModelProto]) -> None:
    found = calibrate(ANCHORS, Cuts.of(ANCHORS.values()), with_infinity, in_batches(10), "minmax")
    assert {"x", "y"} <= set(found["a.1"])
    assert with_infinity["a.1"].graph.node[1].output[0] not in found["a.1"]
    assert all(np.isfinite(span).all() for spans in found.values() for span in spans.values())


def test_an_anchor_that_cannot_be_calibrated_is_named(with_infinity: dict[str, onnx.ModelProto]) -> None:
    """There is no histogram up to infinity."""
    with pytest.raises(ExportError, match=r"^anchor a: ONNX Runtime cannot calibrate it by entropy: "):
        calibrate(ANCHORS, Cuts.of(ANCHORS.values()), with_infinity, in_batches(10), "entropy")


def test_a_bad_image_is_told_as_such(models: dict[str, onnx.ModelProto]) -> None:
    def images() -> Iterator[np.ndarray]:
        yield X
        raise SpecError("image 11 cannot be read")

    with pytest.raises(SpecError, match=r"^image 11 cannot be read$"):
        calibrate(ANCHORS, Cuts.of(ANCHORS.values()), models, images, "minmax")
