"""Quantised products: each is packed in a form that sessions share, and what a route of them answers stays the same to the last bit."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from restnet_runtime.cache import Cache
from restnet_runtime.packing import pack
from restnet_runtime.quantised import WEIGHT_AT, share_filters, unshare

RNG = np.random.default_rng(4)
CONTRIB = "com.microsoft"


def scale(value: float, size: int = 0) -> np.ndarray:
    return np.full(size, value, np.float32) if size else np.float32(value)


def graph(node: onnx.NodeProto, x: int, y: int, tensors: dict[str, np.ndarray], shape: list) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", x, shape)]
    if node.op_type in ("MatMulInteger", "MatMulIntegerToFloat"):  # as DynamicQuantizeLinear gives them
        inputs += [helper.make_tensor_value_info("xs", TensorProto.FLOAT, []), helper.make_tensor_value_info("xz", TensorProto.UINT8, [])]
    listed = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    made = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", y, None)], listed)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(CONTRIB, 1)], ir_version=10)


def product(op: str) -> onnx.ModelProto:
    """One node of this kind with an int8 weight of 4096 bytes."""
    w = RNG.integers(-127, 128, (64, 64), dtype=np.int8)
    per_channel = {"ws": scale(0.01, 64), "wz": np.zeros(64, np.int8)}
    ends = {"xs": scale(0.1), "xz": np.uint8(3), "ys": scale(2.0), "yz": np.uint8(128)}
    uint8, float_ = TensorProto.UINT8, TensorProto.FLOAT
    static = ["x", "xs", "xz", "w", "ws", "wz"]
    if op == "QLinearConv":
        node = helper.make_node(op, [*static, "ys", "yz"], ["y"])
        return graph(node, uint8, uint8, {**ends, **per_channel, "w": w.reshape(64, 64, 1, 1)}, ["n", 64, 4, 4])
    if op == "depthwise":
        node = helper.make_node("QLinearConv", [*static, "ys", "yz"], ["y"], group=512)
        depth = {"ws": scale(0.01, 512), "wz": np.zeros(512, np.int8), "w": RNG.integers(-127, 128, (512, 1, 3, 3), dtype=np.int8)}
        return graph(node, uint8, uint8, {**ends, **depth}, ["n", 512, 4, 4])
    if op == "QLinearMatMul":
        return graph(helper.make_node(op, [*static, "ys", "yz"], ["y"]), uint8, uint8, {**ends, **per_channel, "w": w}, ["n", 64])
    if op in ("QGemm", "QGemm to float"):
        after = [] if op.endswith("float") else ["ys", "yz"]
        node = helper.make_node("QGemm", [*static, "", *after] if after else static, ["y"], domain=CONTRIB)
        kept = ends if after else {key: ends[key] for key in ("xs", "xz")}
        return graph(node, uint8, uint8 if after else float_, {**kept, **per_channel, "w": w}, ["n", 64])
    if op == "MatMulInteger":
        return graph(helper.make_node(op, ["x", "w", "xz"], ["y"]), uint8, TensorProto.INT32, {"w": w}, ["n", 64])
    if op == "MatMulIntegerToFloat":
        node = helper.make_node(op, ["x", "w", "xs", "ws", "xz", "wz"], ["y"], domain=CONTRIB)
        return graph(node, uint8, float_, {"w": w, **per_channel}, ["n", 64])
    assert op == "DynamicQuantizeMatMul"
    return graph(helper.make_node(op, ["x", "w", "ws", "wz"], ["y"], domain=CONTRIB), float_, float_, {"w": w, **per_channel}, ["n", 64])


KINDS = [
    "QLinearConv",
    "depthwise",
    "QLinearMatMul",
    "QGemm",
    "QGemm to float",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
]


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    kind = model.graph.input[0].type.tensor_type.elem_type
    shape = [2, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    x = RNG.integers(0, 256, shape).astype(np.uint8 if kind == TensorProto.UINT8 else np.float32)
    others = {"xs": np.float32(0.1), "xz": np.uint8(7)}
    return {"x": x, **{value.name: others[value.name] for value in model.graph.input[1:] if value.name in others}}


def run(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(["y"], given)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_packed_for_all_sessions(kind: str, tmp_path: Path, caplog) -> None:
    model = product(kind)
    share_filters(model.graph)
    cache = Cache(tmp_path / "cache", {"test": "quantised"})
    with cache.locked() as held, held.scratch() as scratch, held.writer() as writer:
        addresses = {}
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < 1024:
                continue
            addresses[tensor.name] = writer.place(memoryview(tensor.raw_data))
            size = len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", writer.weights_name), ("offset", addresses[tensor.name]), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
        assert "w" in addresses
        packed, twinned, _ = pack(model, addresses, writer, cache.path, scratch)
        writer.commit("route", b"graph", [])
    assert not caplog.messages
    assert twinned == {"w"}, "a session reads the weight at load only"
    ((key, blocks),) = packed
    assert key.startswith(model.graph.node[0].op_type)
    assert sum(length for _, length, _ in blocks) >= 4096


@pytest.mark.parametrize("kind", ["QLinearConv", "depthwise"])
def test_shared_filters_give_the_same_numbers(kind: str) -> None:
    model = product(kind)
    given = feeds(model)
    before = run(model, given)
    share_filters(model.graph)
    np.testing.assert_array_equal(run(model, given), before)
    assert len(np.unique(before)) > 10


def test_equal_zero_points_become_one_input() -> None:
    model = product("QLinearConv")
    again, other = onnx.NodeProto(), onnx.NodeProto()
    again.CopyFrom(model.graph.node[0])
    again.output[:] = ["y2"]
    other.CopyFrom(again)
    other.output[:] = ["y3"]
    other.input[5] = "other"
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "other"))
    model.graph.node.extend([again, other])
    share_filters(model.graph)
    first, second, third = (node.input[5] for node in model.graph.node)
    assert first == second != third
    assert [value.name for value in model.graph.input] == ["x", first, third]
    assert {first, third} < {tensor.name for tensor in model.graph.initializer}


def test_nothing_else_is_touched() -> None:
    for kind in KINDS[2:]:
        model = product(kind)
        before = model.SerializeToString()
        share_filters(model.graph)
        assert model.SerializeToString() == before


def test_every_operator_that_is_listed_is_tried_here() -> None:
    made = {(product(kind).graph.node[0].domain, product(kind).graph.node[0].op_type) for kind in KINDS}
    assert made == set(WEIGHT_AT) - {(CONTRIB, "QLinearConv")}, "that one is what optimised routes have: test_int8.py"


def test_int8_tensors_are_given_to_each_node_alone() -> None:
    """Others stay shared, and what lies in a file stays there."""
    outside = TensorProto(name="w", data_type=TensorProto.INT8, dims=[64, 64], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="weights.bin")
    inside = [numpy_helper.from_array(np.zeros(64, np.int8), "wz"), numpy_helper.from_array(scale(0.1, 64), "ws")]
    nodes = [helper.make_node("DequantizeLinear", ["w", "ws", "wz"], [f"y{index}"]) for index in range(3)]
    made = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)], [outside, *inside])
    unshare(made)
    names = [list(node.input) for node in made.node]
    assert len({name[0] for name in names}) == len({name[2] for name in names}) == 3
    assert {name[1] for name in names} == {"ws"}
    tensors = {tensor.name: tensor for tensor in made.initializer}
    assert len(tensors) == len(made.initializer) == 7
    assert all(tensors[name[0]].external_data == outside.external_data for name in names)
