"""A family in int8: what routes lose, what is kept in fp32, and what comes out beside a whole quantised network."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from restnet_export import leads, precisions
from restnet_export.calibration import Cuts, calibrate
from restnet_export.ort_scoring import relative_error
from restnet_export.precisions import Family, Quantised, quantise_family
from restnet_export.quantise import folded, quantised, quiet
from restnet_runtime.compose import join

SHAPE, CLASSES = (3, 8, 8), 5


def pictures(count: int, seed: int) -> np.ndarray:
    """Noise around a colour: (count, 3, 8, 8)."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, *SHAPE)) + 1.5 * rng.standard_normal((count, 3, 1, 1))).astype(np.float32)


IMAGES, HELD, SCORED = pictures(40, 0), pictures(16, 1), pictures(400, 2)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


@dataclass
class Case:
    """A family, and the answers of its routes in fp32."""

    graphs: object
    models: dict[str, onnx.ModelProto]
    routes: dict[str, list[str]]
    alike: dict[str, str] = field(default_factory=dict)
    right: str = "b"

    def logits(self, route: str, others: Mapping[str, onnx.ModelProto], x: np.ndarray) -> np.ndarray:
        parts = [(name, others.get(name, self.models[name])) for name in self.routes[route]]
        return self.graphs.run(join(parts, SHAPE, CLASSES), x)  # type: ignore[attr-defined]

    def labels(self) -> np.ndarray:
        """What the anchor `right` says."""
        return self.logits(self.right, {}, SCORED).argmax(1)

    def accuracy(self, route: str, others: Mapping[str, onnx.ModelProto]) -> float:
        return float((self.logits(route, others, SCORED).argmax(1) == self.labels()).mean())

    def quantised(self, said: list[str] | None = None) -> Quantised:
        labels = self.labels()

        def scoring() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(SCORED), 150):
                yield SCORED[start : start + 150], labels[start : start + 150]

        family = Family(
            anchors={name: self.routes[name] for name in ("a", "b")},
            routes=self.routes,
            accuracies={route: self.accuracy(route, {}) for route in self.routes},
            models=self.models,
            macs={name: 100 if name.startswith("a") else 1000 for name in self.models},
            input_shape=SHAPE,
            alike=self.alike,
        )
        return quantise_family(family, lambda: iter([IMAGES[:25], IMAGES[25:]]), HELD, scoring, (said if said is not None else []).append)

    def error(self, made: Quantised, name: str) -> float:
        """Of a route as it came out, against its twin."""
        route = next(route for route in made.routes if route.name == name)
        kinds = zip(route.segments, route.precisions, strict=True)
        others = {segment: made.models[segment] for segment, kind in kinds if kind == "int8"}
        return relative_error(self.logits(route.twin, {}, HELD), self.logits(route.twin, others, HELD))


@pytest.fixture(autouse=True, params=["everything", "products"])
def quickest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Timings that are made up, so that nothing depends on what this machine is busy with: this recipe is the quicker one.

    Of each anchor the recipes are timed first, in this order, and then with its first products in fp32, which is never quicker here.
    """
    calls = itertools.count()

    def timed(networks: Sequence[object], _: object) -> list[float]:
        falling = next(calls) % 2 == 0 and request.param == "products"
        return [10.0 - index if falling else 10.0 + index for index in range(len(networks))]

    monkeypatch.setattr(precisions, "latencies_ms", timed)
    return str(request.param)


@pytest.fixture
def case(graphs) -> Case:
    """Anchors of two blocks and a head, alike in some channels, and a route from `a` to `b` through a layer fitted by least squares.

    It is off by 0.4, so that negative values count: by the range of the anchor's block, which ends in ReLU, they would be lost.
    """
    rng = np.random.default_rng(0)
    models, arriving = {}, {}
    stem = weights(rng, 6, 3, 3, 3)
    for name, width in (("a", 6), ("b", 8)):
        first = stem if name == "a" else np.concatenate([stem + 0.5 * weights(rng, 6, 3, 3, 3), weights(rng, 2, 3, 3, 3)])
        models[f"{name}.0"] = graphs.conv(f"{name}.0", first, 0.2 * weights(rng, width, 1)[:, 0], 8)
        models[f"{name}.1"] = graphs.conv(f"{name}.1", weights(rng, width, width, 3, 3), 0.2 * weights(rng, width, 1)[:, 0], 8)
        arriving[name] = graphs.run(models[f"{name}.0"], IMAGES)
        means = graphs.run(models[f"{name}.1"], arriving[name]).mean((0, 2, 3))
        weight = 4 * weights(rng, CLASSES, width)
        models[f"{name}.2"] = graphs.head(f"{name}.2", weight, -weight @ means, 8)
    front, end = (values.transpose(0, 2, 3, 1).reshape(-1, values.shape[1]) for values in arriving.values())
    fitted = np.linalg.lstsq(np.column_stack([front, np.ones(len(front))]), end - 0.4, rcond=None)[0].astype(np.float32)
    models["a.0~b.0"] = graphs.conv("a.0~b.0", fitted[:6].T[:, :, None, None], fitted[6], 8, relu=False)
    return Case(
        graphs,
        models,
        {"a": ["a.0", "a.1", "a.2"], "b": ["b.0", "b.1", "b.2"], "a[0-0]>b[1-2]": ["a.0", "a.0~b.0", "b.1", "b.2"]},
    )


def test_routes_in_int8_answer_about_the_same(case: Case) -> None:
    """Where a stitching layer answers negative values and the anchor's block ends in ReLU, too."""
    said: list[str] = []
    made = case.quantised(said)
    assert [route.name for route in made.routes][:3] == ["a@int8", "b@int8", "a[0-0]>b[1-2]@int8"]
    assert set(made.models) == set(case.models)
    for route in made.routes[:3]:
        assert case.error(made, route.name) < 0.01
        assert set(route.precisions) == {"int8"}
        assert route.accuracy == pytest.approx(case.accuracy(route.twin, made.models), abs=0.006)  # other threads, other sums
        assert route.loss == pytest.approx(case.accuracy(route.twin, {}) - route.accuracy)
    assert set(made.sensitivity) == {name for name in case.models if "~" not in name}
    assert sum(line.startswith("int8 of ") for line in said) == 2


def test_every_way_was_tried_and_a_true_one_was_chosen(case: Case) -> None:
    made = case.quantised()
    for anchor in ("a", "b"):
        trials = [trial for trial in made.trials if trial.anchor == anchor]
        assert {(trial.recipe, trial.method) for trial in trials} == {
            *((recipe, method) for recipe in ("everything", "products") for method in ("minmax", "percentile", "entropy")),
            ("dynamic", None),
        }
        (chosen,) = [trial for trial in trials if trial.chosen]
        # Dynamic quantisation leaves convolutions in float: as true as can be, and not what was asked for.
        assert chosen.recipe != "dynamic"
        static = [trial for trial in trials if trial.recipe != "dynamic"]
        assert chosen.error <= max(0.01, 2 * min(trial.error for trial in static))
        assert chosen.latency_ms is not None


def test_first_products_stay_in_fp32_where_that_is_quicker(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is quicker is told by a stand-in clock; that nothing of the block is quantised then is real, and that its weights are shared."""
    asked: list[int] = []

    def clock(networks, _):  # type: ignore[no-untyped-def]
        asked.append(len(networks))
        return [10.0, 8.0, 7.9, 9.0][: len(networks)] if len(asked) % 2 == 0 else [3.0, 4.0, 5.0][: len(networks)]

    monkeypatch.setattr(precisions, "latencies_ms", clock)
    monkeypatch.setattr(leads, "SHARE", 1.0)
    said: list[str] = []
    made = case.quantised(said)
    for anchor in ("a", "b"):
        (chosen,) = [trial for trial in made.trials if trial.chosen and trial.anchor == anchor]
        assert (chosen.recipe, chosen.floats, chosen.latency_ms) == ("everything", 1, 8.0), "a second one gains too little"
        assert [trial.floats for trial in made.trials if trial.anchor == anchor and trial.floats] == [1, 2]
        assert made.models[f"{anchor}.0"] is case.models[f"{anchor}.0"]
    assert made.sensitivity["a.0"] == 0
    assert {route.name for route in made.routes} >= {"a@int8", "b@int8"}
    assert case.error(made, "a@int8") < 0.01
    assert any("1 of its first products in fp32" in line for line in said)


def test_a_stitching_layer_takes_all_that_the_anchor_before_it_gives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the anchor behind it is best by another method, which would cut off most of what arrives: alone as in the joined route."""

    def torn(*given: object) -> dict[str, dict[str, tuple[float, float]]]:
        found = calibrate(*given)  # type: ignore[arg-type]
        bad = [("b.1", "y"), ("b.2", "x")] if given[-1] == "minmax" else [("a.0", "y"), ("a.1", "x"), ("a.0~b.0", "x")]
        for name, value in bad:
            low, high = found[name][value]
            found[name][value] = low / 8, high / 8
        return found

    monkeypatch.setattr(precisions, "calibrate", torn)
    made = case.quantised()
    methods = {trial.anchor: trial.method for trial in made.trials if trial.chosen}
    assert methods["a"] == "minmax" != methods["b"]
    route = "a[0-0]>b[1-2]"
    assert case.error(made, f"{route}@int8") < 0.01
    values = HELD
    for name in case.routes[route]:
        values = case.graphs.run(made.models[name], values)  # type: ignore[attr-defined]
    assert relative_error(case.logits(route, {}, HELD), values) < 0.01


def outlying(model: onnx.ModelProto) -> onnx.ModelProto:
    """A weight in every output channel so large that the others round to nothing, for an input channel that is always zero."""
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:, 0] = 2000.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    return model


def without_first_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    """What it answers there is negative, and ReLU makes it zero."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0] = -1.0 if tensor.name == "b" else 0.0
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def test_a_block_that_hurts_is_found_and_kept_in_fp32(case: Case) -> None:
    case.right = "a"
    without_first_channel(case.models["a.0"])
    outlying(case.models["a.1"])
    made = case.quantised()
    assert max(made.sensitivity, key=lambda name: made.sensitivity[name]) == "a.1"
    routes = {route.name: route for route in made.routes}
    plain, mixed = routes["a@int8"], routes["a@int8+fp32[a.1]"]
    assert mixed.precisions == ("int8", "fp32", "int8")
    assert case.error(made, plain.name) > 10 * case.error(made, mixed.name)
    assert plain.loss >= 0.005
    assert abs(mixed.loss) < max(0.02, plain.loss)
    assert mixed.accuracy > plain.accuracy


def test_a_stitching_layer_that_hurts_stays_in_fp32(case: Case) -> None:
    """And is then in the bundle in fp32 alone."""
    without_first_channel(case.models["a.0"])
    outlying(case.models["a.0~b.0"])
    made = case.quantised()
    assert "a[0-0]>b[1-2]@int8+fp32[a.0~b.0]" in {route.name for route in made.routes}
    assert set(made.models) == set(case.models) - {"a.0~b.0"}
    assert case.error(made, "a[0-0]>b[1-2]@int8+fp32[a.0~b.0]") < 0.01


def test_a_head_behind_a_folded_layer_answers_logits_as_heads_do(case: Case) -> None:
    """A stitching layer that is folded into a head is a segment without a name of the anchor's own."""
    rng = np.random.default_rng(1)
    weight, bias = 4 * weights(rng, CLASSES, 6), weights(rng, CLASSES, 1)[:, 0]
    case.models["a.1~b.1+2"] = case.graphs.head("a.1~b.1+2", weight, bias, 8)  # type: ignore[attr-defined]
    case.routes["a[0-1]>b[2-2]"] = ["a.0", "a.1", "a.1~b.1+2"]
    case.alike["a.1~b.1+2"] = "b.2"
    made = case.quantised()
    assert case.error(made, "a[0-1]>b[2-2]@int8") < 0.01
    assert 0 < made.sensitivity["a.1~b.1+2"] < 0.01, "a folded block has one as any other"
    last = {name: next(node.op_type for node in model.graph.node if "y" in node.output) for name, model in made.models.items()}
    assert "DequantizeLinear" not in {last[name] for name in ("a.2", "b.2", "a.1~b.1+2")}


def through_infinity(case: Case) -> None:
    """No histogram can be made of what lies inside block `a.1`."""
    model = case.models["a.1"]
    model.graph.node[-1].output[0] = "rectified"
    model.graph.node.extend([helper.make_node("Log", ["rectified"], ["log"]), helper.make_node("Exp", ["log"], ["y"])])


def test_a_way_that_cannot_be_gone_is_left_out(case: Case) -> None:
    through_infinity(case)
    said: list[str] = []
    made = case.quantised(said)
    assert {trial.method for trial in made.trials} == {"minmax", None}
    assert any(line.startswith("int8 of a: no everything with ranges by entropy: anchor a: ") for line in said)
    assert case.error(made, "a@int8") < 0.02


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._images = iter(np.split(IMAGES, 5))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(({"x": batch} for batch in self._images), None)


def test_a_joined_anchor_is_what_quantising_the_whole_network_makes(case: Case, tmp_path: Path) -> None:
    """Beside ONNX Runtime's own tool on the joined network, ranges by min and max: the answers differ by a step of its logits at most."""
    blocks = case.routes["b"]
    models = {name: folded(model) for name, model in case.models.items()}
    ranges = calibrate({"b": blocks}, Cuts.of([blocks]), models, lambda: iter([IMAGES]), "minmax")
    ours = [(name, quantised(models[name], ranges[name], "everything", last=name == blocks[-1])) for name in blocks]
    whole = folded(join([(name, models[name]) for name in blocks], SHAPE, CLASSES))
    with quiet():
        quantize_static(
            whole,
            tmp_path / "whole.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    theirs = onnx.load(tmp_path / "whole.onnx")
    expected, found = (case.graphs.run(model, HELD) for model in (theirs, join(ours, SHAPE, CLASSES)))  # type: ignore[attr-defined]
    low, high = ranges[blocks[-1]]["y"]
    step = (max(high, 0) - min(low, 0)) / 255
    assert np.abs(np.clip(found, low, high) - expected).max() <= 1.01 * step  # theirs are quantised, and end where the range does
    assert np.abs(found - case.logits("b", {}, HELD)).max() > 0  # it is quantised
