"""One segment in int8: what is quantised, what stays in float, and what a joined route makes of it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from restnet_export.ort_scoring import relative_error
from restnet_export.quantise import Range, Recipe, folded, integer_bytes, is_quantised, quantised
from restnet_runtime.compose import join
from restnet_runtime.errors import ExportError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 3, 8, 8)).astype(np.float32)


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def span(values: np.ndarray) -> Range:
    return float(values.min()), float(values.max())


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def inner_spans(model: onnx.ModelProto, x: np.ndarray) -> dict[str, Range]:
    """The range of every value of a graph, by running it up to there."""
    found = {"x": span(x)}
    for node in model.graph.node:
        part = onnx.ModelProto()
        part.CopyFrom(model)
        del part.graph.node[:]
        del part.graph.output[:]
        part.graph.node.extend([*model.graph.node, helper.make_node("Identity", node.output, ["seen"])])
        part.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, None))
        session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
        found[node.output[0]] = span(session.run(["seen"], {"x": x})[0])
    return found


@pytest.fixture
def conv(graphs) -> onnx.ModelProto:
    return folded(graphs.conv("a", weights(8, 3, 3, 3), weights(8, 1)[:, 0], 8))


@pytest.mark.parametrize("recipe", ["everything", "products"])
def test_a_segment_answers_about_the_same_at_any_batch(graphs, conv: onnx.ModelProto, recipe: Recipe) -> None:
    made = quantised(conv, inner_spans(conv, X), recipe)
    onnx.checker.check_model(made)
    assert [tensor.data_type for tensor in made.graph.initializer if len(tensor.dims) == 4] == [TensorProto.INT8]
    for batch in (1, 6):
        expected, found = graphs.run(conv, X[:batch]), graphs.run(made, X[:batch])
        assert 0 < relative_error(expected, found) < 1e-3
    assert list(made.graph.input) == list(conv.graph.input)
    assert list(made.graph.output) == list(conv.graph.output)
    assert [(item.domain, item.version) for item in made.opset_import] == [("", 20)]
    assert made.graph.name == "a"


def test_weights_have_a_scale_for_every_channel(graphs) -> None:
    """One channel of weights a thousand times larger costs the others nothing."""
    weight = weights(8, 3, 3, 3)
    weight[5] *= 1000
    model = folded(graphs.conv("a", weight, np.zeros(8), 8))
    made = quantised(model, {**inner_spans(model, X), "y": (0.0, 1e4), "z": (0.0, 1e4)}, "products")
    stored = next(numpy_helper.to_array(tensor) for tensor in made.graph.initializer if len(tensor.dims) == 4)
    assert (np.abs(stored.reshape(8, -1)).max(1) == 127).all()


def test_integer_bytes_are_those_of_the_weights(conv: onnx.ModelProto) -> None:
    assert integer_bytes([quantised(conv, inner_spans(conv, X), "everything")]) == 8 * 3 * 3 * 3
    assert integer_bytes([conv]) == 0


def test_a_segment_with_nothing_to_quantise_stays_as_it_is(graphs, conv: onnx.ModelProto) -> None:
    """Dynamic quantisation knows products only."""
    made = quantised(conv, {}, "dynamic")
    assert operators(made) == operators(conv)
    assert np.array_equal(graphs.run(made, X), graphs.run(conv, X))


def test_nodes_without_names_are_told_apart(graphs) -> None:
    """Where a range is not known, the nodes beside that value stay in float, and no others: names are optional in ONNX."""
    nodes = [helper.make_node("Conv", [value, "w", "b"], [made], pads=[1] * 4) for value, made in pairwise(("x", "p", "q", "r", "y"))]
    model = folded(graphs.segment("a", nodes, {"w": weights(3, 3, 3, 3), "b": np.ones(3)}, (3, 8, 8), (3, 8, 8)))
    spans = inner_spans(model, X)
    del spans[model.graph.node[0].output[0]]
    made = quantised(model, spans, "everything")
    by_output = {name: node for node in made.graph.node for name in node.output}
    plain = [by_output[node.input[0]].op_type if node.input[0] in by_output else "" for node in made.graph.node if node.op_type == "Conv"]
    assert plain == ["", "Conv", "DequantizeLinear", "DequantizeLinear"]


def test_what_cannot_be_quantised_is_named(conv: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"^segment a: ONNX Runtime cannot quantise it: "):
        quantised(conv, {**inner_spans(conv, X), "x": (0.0, float("nan"))}, "everything")


WIDER = [1, 6]
"""How many times wider than its own the range is, in which the second segment begins."""


@pytest.mark.parametrize("wider", WIDER)
def test_biases_are_right_behind_a_border_of_another_range(graphs, wider: float) -> None:
    """A bias is quantised by the scale of the input, and in a joined route that is the scale of the segment before."""
    first = folded(graphs.conv("a", weights(8, 3, 3, 3), weights(8, 1)[:, 0], 8))
    second = folded(graphs.conv("b", weights(5, 8, 1, 1), 3 * weights(5, 1)[:, 0], 8, relu=False))
    between = graphs.run(first, X)
    expected = graphs.run(second, between)
    low, high = span(between)
    one = quantised(first, inner_spans(first, X), "everything")
    other = quantised(second, {**inner_spans(second, between), "x": (low - wider * high + high, wider * high)}, "everything")
    joined = join([("a", one), ("b", other)], (3, 8, 8), 5)
    for optimised in (False, True):
        assert relative_error(expected, graphs.run(joined, X, optimised=optimised)) < 1e-3


@pytest.mark.parametrize("wider", WIDER)
def test_a_head_that_is_one_product_has_its_bias_behind_a_border_of_another_range(graphs, tmp_path: Path, wider: float) -> None:
    """Its output is not quantised, and there ONNX Runtime takes no float bias."""
    x = X.reshape(6, -1)[:, :12]
    first = folded(graphs.product("a", weights(16, 12), weights(16, 1)[:, 0], relu=True))
    second = folded(graphs.product("b", weights(4, 16), 5 * weights(4, 1)[:, 0]))
    between = graphs.run(first, x)
    expected = graphs.run(second, between)
    one = quantised(first, inner_spans(first, x), "everything")
    other = quantised(
        second,
        {"x": (-wider * span(between)[1] + span(between)[1], wider * span(between)[1]), "y": span(expected)},
        "everything",
        last=True,
    )
    assert "QuantizeLinear" not in [node.op_type for node in other.graph.node if node.output[0] == "y"]
    joined = join([("a", one), ("b", other)], (12,), 4)
    for optimised in (False, True):
        assert relative_error(expected, graphs.run(joined, x, optimised=optimised)) < 1e-3
    assert "Gemm" not in graphs.optimised(joined, tmp_path / "fused.onnx")


def test_logits_are_not_quantised(graphs) -> None:
    """Many close logits would be told apart no longer."""
    model = folded(graphs.head("h", weights(10, 3), weights(10, 1)[:, 0], 8))
    spans = {**inner_spans(model, X), "y": (-1000.0, 1000.0)}
    expected = graphs.run(model, X)
    assert relative_error(expected, graphs.run(quantised(model, spans, "everything", last=True), X)) < 1e-3
    assert relative_error(expected, graphs.run(quantised(model, spans, "everything"), X)) > 0.1


def test_a_joined_network_is_fused_like_a_whole_one(graphs, tmp_path: Path) -> None:
    """No convolution or product is left in float, and nothing is dequantised to be quantised again."""
    parts = [
        ("a", graphs.conv("a", weights(8, 3, 3, 3), weights(8, 1)[:, 0], 8)),
        ("b", graphs.conv("b", weights(8, 8, 3, 3), weights(8, 1)[:, 0], 8)),
        ("s", graphs.conv("s", weights(6, 8, 1, 1), weights(6, 1)[:, 0], 8, relu=False)),
        ("h", graphs.head("h", weights(10, 6), weights(10, 1)[:, 0], 8)),
    ]
    x, made = X, []
    for name, model in parts:
        plain = folded(model)
        spans = inner_spans(plain, x)
        made.append((name, quantised(plain, {**spans, "x": (2 * spans["x"][0] - 1, 2 * spans["x"][1])}, "everything", last=name == "h")))
        x = graphs.run(plain, x)
    joined = join(made, (3, 8, 8), 10)
    makers = {name: node.op_type for node in joined.graph.node for name in node.output}
    again = [node for node in joined.graph.node if node.op_type == "QuantizeLinear" and makers.get(node.input[0]) == "DequantizeLinear"]
    assert again == []
    found = graphs.optimised(joined, tmp_path / "fused.onnx")
    assert found.count("QLinearConv") == 3
    assert {"Conv", "FusedConv", "Gemm", "MatMul"}.isdisjoint(found)
    assert relative_error(x, graphs.run(joined, X)) < 0.01


def test_dynamic_and_static_segments_go_together(graphs) -> None:
    """A product whose input is quantised by the range of each run reads what was dequantised; behind it another pair begins."""
    x = X.reshape(6, -1)[:, :12]
    parts = [("a", weights(16, 12), True), ("b", weights(16, 16), True), ("c", weights(4, 16), False)]
    models = [(name, folded(graphs.product(name, weight, weights(len(weight), 1)[:, 0], relu=relu))) for name, weight, relu in parts]
    made, value = [], x
    for name, model in models:
        made.append((name, quantised(model, inner_spans(model, value), "dynamic" if name == "b" else "everything", last=name == "c")))
        value = graphs.run(model, value)
    assert "DynamicQuantizeLinear" in operators(made[1][1])
    joined = join(made, (12,), 4)
    assert operators(joined).count("QuantizeLinear") == sum(operators(model).count("QuantizeLinear") for _, model in made)
    for optimised in (False, True):
        assert relative_error(value, graphs.run(joined, x, optimised=optimised)) < 1e-3


def test_named_nodes_stay_in_float(graphs, conv: onnx.ModelProto) -> None:
    """And where that is all of them, the segment is as it was: nothing is rounded at its borders either."""
    spans = inner_spans(conv, X)
    floats = {node.name for node in conv.graph.node}
    made = quantised(conv, spans, "everything", floats=floats)
    assert not is_quantised(made)
    assert is_quantised(quantised(conv, spans, "everything"))
    assert np.array_equal(graphs.run(made, X), graphs.run(conv, X))


def test_an_integer_segment_behind_a_float_one_is_quantised_once_at_the_border(graphs, conv: onnx.ModelProto, tmp_path: Path) -> None:
    """What ONNX Runtime makes of it: a float convolution, one QuantizeLinear, an integer convolution."""
    after = folded(graphs.conv("b", weights(8, 8, 3, 3), weights(8, 1)[:, 0], 8))
    between = graphs.run(conv, X)
    first = quantised(conv, inner_spans(conv, X), "everything", floats={node.name for node in conv.graph.node})
    second = quantised(after, inner_spans(after, between), "everything", last=True)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "route.onnx")
    route = join([("a", first), ("b", second)], (3, 8, 8), 8)
    ort.InferenceSession(route.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = operators(onnx.load(tmp_path / "route.onnx"))
    assert kinds.count("QuantizeLinear") == 1
    assert "DequantizeLinear" not in kinds[: kinds.index("QuantizeLinear")]


@pytest.mark.parametrize(("axes", "rank", "pooled"), [((2, 3), 4, True), ((-1, -2), 4, True), ((1, 2), 4, False), ((2, 3), 5, False)])
def test_the_mean_over_a_map_is_pooled(graphs, axes: tuple[int, ...], rank: int, pooled: bool) -> None:
    shape = (3, 4, 5, 6)[: rank - 1]
    made = [1 if index + 1 in [axis % rank for axis in axes] else size for index, size in enumerate(shape)]
    model = graphs.segment("a", [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)], {}, shape, made)
    model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
    found = folded(model)
    assert operators(found) == (["GlobalAveragePool"] if pooled else ["ReduceMean"])
    x = RNG.standard_normal((2, *shape)).astype(np.float32)
    assert np.allclose(graphs.run(found, x), graphs.run(model, x), atol=1e-6)


def test_a_route_loads_where_weights_are_turned_into_unsigned_ones(graphs) -> None:
    """As on x86 without dot products. The two convolutions of the segment have one tensor of zero points in the bundle."""
    first, second = (weights(8, 8, 3, 3) for _ in range(2))
    nodes = [
        helper.make_node("Conv", [before, name, "b"], [after], pads=[1] * 4) for before, name, after in (("x", "w", "z"), ("z", "v", "y"))
    ]
    model = folded(graphs.segment("a", nodes, {"w": first, "v": second, "b": weights(8, 1)[:, 0]}, (8, 8, 8), (8, 8, 8)))
    x = RNG.standard_normal((2, 8, 8, 8)).astype(np.float32)
    made = quantised(model, inner_spans(model, x), "everything")
    zeros = [tensor.name for tensor in made.graph.initializer if tensor.data_type == TensorProto.INT8 and list(tensor.dims) == [8]]
    assert sum(zeros[0] in node.input for node in made.graph.node) == 2
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    route = join([("a", made)], (8, 8, 8), 8)
    session = ort.InferenceSession(route.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"x": x})[0], graphs.run(route, x), atol=1e-5)
