"""Joining segments, and everything about a segment's graph that the contract rules out.

Every hostile graph is written into a bundle whose manifest is put right again, as an attacker would.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from restnet_runtime.bundle import MAX_GRAPH_BYTES, Bundle, open_bundle
from restnet_runtime.compose import compose, join
from restnet_runtime.errors import BundleError
from restnet_runtime.graphs import check_graphs, load_segment

PLAIN, HEAVY = "small.1", "large.1"
"""A segment with all tensors in its graph, and one whose weights (20,736 bytes) lie in weights.bin."""


def file_of(segment: str) -> str:
    return f"segments/{segment}.fp32.onnx"


def put_right(path: Path, segment: str, data: bytes) -> None:
    """Write a graph and make the manifest agree with it."""
    (path / file_of(segment)).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][file_of(segment)] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def rewrite(path: Path, segment: str, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load_model(path / file_of(segment), load_external_data=False)
    change(model)
    put_right(path, segment, model.SerializeToString())


def weight(model: onnx.ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == "w")


def placed(**fields: str) -> Callable[[onnx.ModelProto], None]:
    """Damage: other external data."""

    def change(model: onnx.ModelProto) -> None:
        for key, value in fields.items():
            known = [item for item in weight(model).external_data if item.key == key]
            if known:
                known[0].value = value
            else:
                weight(model).external_data.add(key=key, value=value)

    return change


def without(key: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        kept = [item for item in weight(model).external_data if item.key != key]
        del weight(model).external_data[:]
        weight(model).external_data.extend(kept)

    return change


def dims(*sizes: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        weight(model).dims[:] = sizes

    return change


def value(which: str, name: str = "", shape: list | None = None, kind: int = TensorProto.FLOAT) -> Callable[[onnx.ModelProto], None]:
    """Damage: another input or output of the graph."""

    def change(model: onnx.ModelProto) -> None:
        values = getattr(model.graph, which)
        new = helper.make_tensor_value_info(name or values[0].name, kind, shape or ["batch", 4, 8, 8])
        del values[:]
        values.append(new)

    return change


def node(op_type: str, *, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("z",), domain: str = "", **attributes):
    """Damage: one more node at the end."""
    made = helper.make_node(op_type, inputs, outputs, "added", domain=domain, **attributes)
    return lambda model: model.graph.node.append(made)


def inner() -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Identity", ["x"], ["then"])], "inner", [], [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)]
    )


def undeclared_graph(model: onnx.ModelProto) -> None:
    """A graph in an attribute that says it is a number."""
    model.graph.node.append(helper.make_node("Identity", ["x"], ["z"], "added"))
    attribute = model.graph.node[-1].attribute.add(name="body", type=onnx.AttributeProto.INT)
    attribute.g.CopyFrom(inner())


def external_attribute(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["z"], "added", value=tensor))


def external_in_list(model: onnx.ModelProto) -> None:
    external_attribute(model)
    attribute = model.graph.node[-1].attribute[0]
    attribute.tensors.append(attribute.t)
    attribute.ClearField("t")
    attribute.type = onnx.AttributeProto.TENSORS


def sparse_attribute(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32))
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64)), [2**40])
    model.graph.node.append(helper.make_node("Constant", [], ["z"], "added", sparse_value=sparse))


def sparse_initializer(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64)), [9]))


def local_function(model: onnx.ModelProto) -> None:
    identity = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("mine", "Relu", ["a"], ["b"], [identity], [helper.make_opsetid("", 20)]))


def reversed_nodes(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def no_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "other"


def added_tensor(array: np.ndarray, name: str = "added") -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.initializer.append(numpy_helper.from_array(array, name))


def tensor_y(model: onnx.ModelProto) -> None:
    no_output(model)
    added_tensor(np.zeros((1, 4, 8, 8), np.float32)[:, :, :1], "y")(model)


def short_data(model: onnx.ModelProto) -> None:
    weight(model).raw_data = weight(model).raw_data[:-4]


def empty_data(model: onnx.ModelProto) -> None:
    weight(model).ClearField("raw_data")


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


LENGTH = 24 * 24 * 9 * 4
END = 2 * (-(-LENGTH // 4096) * 4096) + LENGTH
REFUSED = {
    # where tensors lie
    "path upwards": (HEAVY, placed(location="../weights.bin"), "lies in '../weights.bin', only 'weights.bin' is allowed"),
    "absolute path": (HEAVY, placed(location="/etc/passwd"), "lies in '/etc/passwd'"),
    "other file": (HEAVY, placed(location="segments/large.0.fp32.onnx"), "lies in 'segments/large.0.fp32.onnx'"),
    "same file, other words": (HEAVY, placed(location="./weights.bin"), "lies in './weights.bin'"),
    "no location": (HEAVY, without("location"), "lies in None"),
    "no offset": (HEAVY, without("offset"), "it must be location, offset and length, once each"),
    "no length": (HEAVY, without("length"), "it must be location, offset and length, once each"),
    "prepacked blocks": (HEAVY, placed(prepacked_0="Conv+0|0;64;1"), "is placed by ['location', 'offset', 'length', 'prepacked_0']"),
    "location twice": (
        HEAVY,
        lambda model: weight(model).external_data.add(key="location", value="weights.bin"),
        "it must be location, offset and length, once each",
    ),
    "negative offset": (HEAVY, placed(offset="-4096"), "not a plain decimal number"),
    "offset not a number": (HEAVY, placed(offset="0x1000"), "not a plain decimal number"),
    "offset with underscore": (HEAVY, placed(offset="4_096"), "not a plain decimal number"),
    "offset in other digits": (HEAVY, placed(offset="٤٠٩٦"), "not a plain decimal number"),
    "offset of many digits": (HEAVY, placed(offset="9" * 5000), "not a plain decimal number"),
    "length with a blank": (HEAVY, placed(length=f" {LENGTH}"), "not a plain decimal number"),
    "unaligned offset": (HEAVY, placed(offset="64"), "starts at 64, not at a multiple of 4096"),
    "offset past the end": (HEAVY, placed(offset="53248"), f"ends at {53248 + LENGTH}, weights.bin has {END} bytes"),
    "huge offset": (HEAVY, placed(offset=str(2**58)), f"ends at {2**58 + LENGTH}, weights.bin has {END} bytes"),
    "length not of the shape": (HEAVY, placed(length="4096"), f"claims 4096 bytes, its shape needs {LENGTH}"),
    "shape not of the length": (HEAVY, dims(24, 24, 3, 4), f"claims {LENGTH} bytes, its shape needs {24 * 24 * 12 * 4}"),
    "huge shape": (HEAVY, dims(2**40, 2**40), f"claims {LENGTH} bytes, its shape needs {2**82}"),
    "negative shape": (HEAVY, dims(-24, -24, 9), "has the shape [-24, -24, 9], which none can have"),
    "many dimensions": (HEAVY, dims(*[1] * 100_000), f"has the shape {[1] * 16}, which none can have"),
    "text tensor": (HEAVY, lambda model: setattr(weight(model), "data_type", TensorProto.STRING), "has the type 8, which no segment has"),
    "unknown type": (HEAVY, lambda model: setattr(weight(model), "data_type", 999), "has the type 999"),
    "other bytes than claimed": (
        PLAIN,
        lambda model: weight(model).CopyFrom(
            onnx.helper.make_tensor("w", TensorProto.FLOAT, [4, 4, 3, 3], np.zeros(144, np.float32).tobytes(), raw=True)
        ),
        None,
    ),
    "large tensor in the graph": (
        PLAIN,
        added_tensor(np.zeros(256, np.float32)),
        "'added' of 1024 bytes lies in the graph",
    ),
    "huge tensor in the graph": (PLAIN, dims(2**40), f"of {2**42} bytes lies in the graph"),
    "too few bytes": (PLAIN, short_data, "tensor 'w' cannot be read"),
    "no bytes": (PLAIN, empty_data, "tensor 'w' "),
    # the graph
    "not ONNX": (PLAIN, b"not a graph", "is not an ONNX graph"),
    "truncated": (PLAIN, lambda model: model.SerializeToString()[:-40], "is not an ONNX graph"),
    "empty file": (PLAIN, b"", "does not say which opset"),
    "input of another name": (PLAIN, value("input", "data"), "has the inputs ['data'], a segment has the one input 'x'"),
    "output of another name": (PLAIN, value("output", "logits"), "has the outputs ['logits'], a segment has the one output 'y'"),
    "second input": (
        PLAIN,
        lambda model: model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])),
        "has the inputs ['x', 'more']",
    ),
    "input of another shape": (PLAIN, value("input", shape=["batch", 5, 8, 8]), "has an input of shape [None, 5, 8, 8]"),
    "output of another shape": (PLAIN, value("output", shape=["batch", 4, 8]), "has an output of shape [None, 4, 8]"),
    "fixed batch": (PLAIN, value("input", shape=[1, 4, 8, 8]), "has an input of shape [1, 4, 8, 8], the manifest says batch x [4, 8, 8]"),
    "double input": (PLAIN, value("input", kind=TensorProto.DOUBLE), "in float32"),
    "sequence input": (
        PLAIN,
        lambda model: model.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(),
        "has an input of shape []",
    ),
    "no opset": (PLAIN, no_opset, "does not say which opset its nodes are of"),
    "foreign domain": (PLAIN, node("PyOp", domain="ai.onnx.contrib"), "node 'added' is of the domain 'ai.onnx.contrib', allowed are"),
    "loop": (PLAIN, node("Loop", inputs=("", "", "x"), body=inner()), "node 'added' holds a graph of its own"),
    "if": (PLAIN, node("If", then_branch=inner(), else_branch=inner()), "node 'added' holds a graph of its own"),
    "graph in disguise": (PLAIN, undeclared_graph, "node 'added' holds a graph of its own"),
    "constant from a file": (PLAIN, external_attribute, "node 'added' reads a file, only initializers may"),
    "constants from a file": (PLAIN, external_in_list, "node 'added' reads a file, only initializers may"),
    "large constant": (
        PLAIN,
        node("Constant", inputs=(), value=numpy_helper.from_array(np.zeros(256, np.float32), "c")),
        "tensor 'c' of 1024 bytes lies in the graph",
    ),
    "sparse constant": (PLAIN, sparse_attribute, "node 'added' holds a sparse tensor"),
    "sparse initializer": (PLAIN, sparse_initializer, "holds sparse tensors"),
    "local function": (PLAIN, local_function, "holds local functions"),
    "nodes out of order": (PLAIN, reversed_nodes, "node 'relu' takes 'conv', which nothing before it makes"),
    "cycle": (PLAIN, cycle, "node 'conv' takes 'y', which nothing before it makes"),
    "output never made": (PLAIN, no_output, "never makes its output 'y'"),
    "output a tensor": (PLAIN, tensor_y, "has a tensor as its output 'y'"),
    "input a tensor": (PLAIN, added_tensor(np.zeros(1, np.float32), "x"), "makes the value 'x' twice"),
    "tensor twice": (PLAIN, added_tensor(np.zeros(1, np.float32), "w"), "makes the value 'w' twice"),
    "value twice": (PLAIN, node("Identity", outputs=("conv",)), "makes the value 'conv' twice"),
    "name not UTF-8": (
        PLAIN,
        lambda model: model.SerializeToString().replace(b"conv", b"co\xffv"),
        "makes a value whose name is not UTF-8",
    ),
    "input made again": (PLAIN, node("Identity", outputs=("x",)), "makes the value 'x' twice"),
}
SOUND = REFUSED.pop("other bytes than claimed")


def damage(path: Path, segment: str, change: object) -> None:
    if isinstance(change, bytes):
        put_right(path, segment, change)
        return
    model = onnx.load_model(path / file_of(segment), load_external_data=False)
    changed = change(model)
    put_right(path, segment, changed if isinstance(changed, bytes) else model.SerializeToString())


def route_through(bundle: Bundle, segment: str):
    return next(route for route in bundle.routes if segment in route.segments)


@pytest.mark.parametrize(("segment", "change", "reason"), REFUSED.values(), ids=REFUSED)
def test_is_refused(own_family, segment: str, change, reason: str) -> None:
    path = own_family()
    damage(path, segment, change)
    bundle = open_bundle(path)
    for check in (check_graphs, lambda bundle: compose(bundle, route_through(bundle, segment))):
        with pytest.raises(BundleError) as caught:
            check(bundle)
        assert caught.value.where == file_of(segment)
        assert reason in caught.value.reason


def test_the_same_damage_without_harm_is_let_through(own_family) -> None:
    """Other weights of the right size, with digests put right: what such a table must not refuse."""
    path = own_family()
    damage(path, *SOUND[:2])
    check_graphs(open_bundle(path))


def test_weight_bytes_of_a_segment_are_counted(own_family) -> None:
    path = own_family()
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["segments"][4]["graphs"]["fp32"]["weight_bytes"] = 4096
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=rf"^{file_of(HEAVY)}: reads {LENGTH} bytes of weights.bin, the manifest says 4096$"):
        check_graphs(open_bundle(path))


def test_large_graph_is_refused_before_it_is_read(own_family) -> None:
    path = own_family()
    put_right(path, PLAIN, b"\0" * (MAX_GRAPH_BYTES + 1))
    with pytest.raises(BundleError, match=rf"{file_of(PLAIN)} claims {MAX_GRAPH_BYTES + 1} bytes, a graph has at most {MAX_GRAPH_BYTES}"):
        open_bundle(path)


def test_graph_exchanged_after_opening_is_refused(own_family) -> None:
    """What is parsed is what was hashed, whatever happened to the file since."""
    path = own_family()
    bundle = open_bundle(path)
    target = path / file_of(PLAIN)
    data = bytearray(target.read_bytes())
    data[-20] ^= 1
    target.write_bytes(data)
    with pytest.raises(BundleError, match=rf"^{file_of(PLAIN)}: has SHA-256"):
        compose(bundle, bundle.routes[0])


def test_segments_of_different_opsets_are_refused(own_family) -> None:
    path = own_family()
    rewrite(path, PLAIN, lambda model: setattr(model.opset_import[0], "version", 21))
    bundle = open_bundle(path)
    with pytest.raises(BundleError, match=rf"^{file_of(PLAIN)}: uses opset 21, the segments before it use 20$"):
        compose(bundle, bundle.routes[0])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_graph_is_refused_or_sound(family_bundle: Bundle, tmp_path: Path, data) -> None:
    """Other bytes with the right digest: an error of ours, or a graph; never anything else."""
    name = data.draw(st.sampled_from([PLAIN, HEAVY, "small.2"]))
    whole = (family_bundle.path / file_of(name)).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + data.draw(st.binary(max_size=6)) + whole[at + data.draw(st.integers(0, 6)) :]
    (tmp_path / "segments").mkdir(exist_ok=True)
    (tmp_path / file_of(name)).write_bytes(changed)
    entry = family_bundle.manifest.files[file_of(name)]
    entry = dataclasses.replace(entry, sha256=hashlib.sha256(changed).hexdigest(), bytes=len(changed))
    manifest = dataclasses.replace(family_bundle.manifest, files={**family_bundle.manifest.files, file_of(name): entry})
    bundle = Bundle(tmp_path, manifest, "", family_bundle.routes, family_bundle.segments)
    try:
        model = load_segment(bundle, bundle.segments[name], "fp32")
    except BundleError as error:
        assert error.where == file_of(name)  # noqa: PT017  # either is right
    else:
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "y"]


def test_joined_graph_is_the_segments_one_after_the_other(family_bundle: Bundle) -> None:
    """A route's graph carries no weights and computes what its segments compute in turn."""
    route = family_bundle.route("small[0-1]>large[2-4]")
    model = compose(family_bundle, route)
    assert len(model.SerializeToString()) < 10_000
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "y"]
    x = np.random.default_rng(1).standard_normal((3, 1, 8, 8)).astype(np.float32)
    assert np.allclose(run(family_bundle, model, x), chained(family_bundle, route.segments, x), rtol=1e-5, atol=1e-5)


def run(bundle: Bundle, model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]


def chained(bundle: Bundle, segments: tuple[str, ...], x: np.ndarray) -> np.ndarray:
    for name in segments:
        x = run(bundle, onnx.load_model(bundle.path / file_of(name), load_external_data=False), x)
    return x


@pytest.mark.parametrize("inner_name", ["out", "small.0", "small.1/out", "/small.1", "batch"])
def test_inner_names_never_meet_those_of_other_segments(own_family, inner_name: str) -> None:
    """A value inside a segment may have any name, those that joining makes up included."""
    path = own_family()

    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[0].output[0] = model.graph.node[1].input[0] = inner_name

    expected = chained(open_bundle(path), ("small.0", "small.1", "small.2"), np.ones((1, 1, 8, 8), np.float32))
    for segment in ("small.0", "small.1"):
        rewrite(path, segment, rename)
    bundle = open_bundle(path)
    found = run(bundle, compose(bundle, bundle.route("small")), np.ones((1, 1, 8, 8), np.float32))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("node_name", ["", "same"])
def test_nodes_need_no_names(own_family, node_name: str) -> None:
    """ONNX leaves them optional; ONNX Runtime takes no two that are the same."""
    path = own_family()
    expected = chained(open_bundle(path), ("small.0", "small.1", "small.2"), np.ones((1, 1, 8, 8), np.float32))

    def rename(model: onnx.ModelProto) -> None:
        for each in model.graph.node:
            each.name = node_name

    for segment in ("small.0", "small.1", "small.2"):
        rewrite(path, segment, rename)
    bundle = open_bundle(path)
    assert np.allclose(run(bundle, compose(bundle, bundle.route("small")), np.ones((1, 1, 8, 8), np.float32)), expected, rtol=1e-5)


def scalar(value: float, name: str, kind: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value, kind), name)


def paired(model: onnx.ModelProto, scale: float, *, begin: bool, end: bool) -> onnx.ModelProto:
    """The segment with a pair of QuantizeLinear and DequantizeLinear before its first node, or behind its last one."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    if begin:
        graph.node[0].input[0] = "x_again"
        for op, source, target in (("DequantizeLinear", "x_small", "x_again"), ("QuantizeLinear", "x", "x_small")):
            graph.node.insert(0, helper.make_node(op, [source, "scale_in", "zero_in"], [target], f"{op}_in"))
        graph.initializer.extend([scalar(scale, "scale_in"), scalar(128, "zero_in", np.uint8)])
    if end:
        graph.node[-1].output[0] = "y_whole"
        for op, source, target in (("QuantizeLinear", "y_whole", "y_small"), ("DequantizeLinear", "y_small", "y")):
            graph.node.append(helper.make_node(op, [source, "scale_out", "zero_out"], [target], f"{op}_out"))
        graph.initializer.extend([scalar(scale, "scale_out"), scalar(128, "zero_out", np.uint8)])
    return made


def segments_of(bundle: Bundle) -> list[tuple[str, onnx.ModelProto]]:
    return [(name, load_segment(bundle, bundle.segments[name], "fp32")) for name in ("small.0", "small.1", "small.2")]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type.endswith("Linear")]


X = np.random.default_rng(2).standard_normal((3, 1, 8, 8)).astype(np.float32)


def test_the_second_of_two_pairs_at_a_border_is_left_out(family_bundle: Bundle) -> None:
    """What arrives is quantised already: in the scale of the segment before, not in that of the one behind."""
    (first, one), (second, two), last = segments_of(family_bundle)
    fine, coarse = paired(one, 0.05, begin=False, end=True), paired(two, 2.0, begin=True, end=False)
    joined = join([(first, fine), (second, coarse), last], (1, 8, 8), 3)
    assert kinds(joined) == ["QuantizeLinear", "DequantizeLinear"]
    assert [tensor.name for tensor in joined.graph.initializer if "scale" in tensor.name] == ["small.0/scale_out"]
    without = join([(first, fine), (second, two), last], (1, 8, 8), 3)
    assert np.array_equal(run(family_bundle, joined, X), run(family_bundle, without, X))


def test_a_pair_stays_where_what_arrives_is_not_quantised(family_bundle: Bundle) -> None:
    (first, one), (second, two), last = segments_of(family_bundle)
    joined = join([(first, one), (second, paired(two, 0.05, begin=True, end=False)), last], (1, 8, 8), 3)
    assert kinds(joined) == ["QuantizeLinear", "DequantizeLinear"]
    plain = join([(first, one), (second, two), last], (1, 8, 8), 3)
    assert 0 < np.abs(run(family_bundle, joined, X) - run(family_bundle, plain, X)).max() < 0.5


def test_a_pair_that_makes_the_output_or_is_read_otherwise_stays(family_bundle: Bundle) -> None:
    (first, one), (second, two), last = segments_of(family_bundle)
    fine = paired(one, 0.05, begin=False, end=True)
    alone = paired(two, 0.05, begin=True, end=False)
    del alone.graph.node[2:]
    alone.graph.node[1].output[0] = "y"  # a segment that is nothing but the pair
    read = paired(two, 0.05, begin=True, end=False)
    read.graph.node.insert(2, helper.make_node("Cast", ["x_small"], ["number"], "cast", to=TensorProto.FLOAT))
    for model in (alone, read):
        joined = join([(first, fine), (second, model), last], (1, 8, 8), 3)
        assert kinds(joined) == ["QuantizeLinear", "DequantizeLinear"] * 2
        assert run(family_bundle, joined, X).shape == (3, 3)


def test_float_weights_between_integer_segments_stay_float(family_bundle: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime would quantise them by itself, all channels by one scale."""
    (first, one), (second, two), (third, head) = segments_of(family_bundle)
    fine, behind = paired(one, 0.05, begin=False, end=True), paired(head, 0.05, begin=True, end=False)
    joined = join([(first, fine), (second, two), (third, behind)], (1, 8, 8), 3)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(family_bundle.path))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = ort.InferenceSession(joined.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert not any(node.op_type == "QLinearConv" for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    options.optimized_model_filepath = ""
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    literal = ort.InferenceSession(joined.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found, expected = (each.run(["y"], {"x": X})[0] for each in (session, literal))
    assert np.allclose(found, expected, rtol=1e-4, atol=0.06)  # a step of the scale, where sums are ordered otherwise


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear", "Relu", "Conv"])
def test_nodes_that_take_or_make_nothing_do_no_harm(family_bundle: Bundle, op: str) -> None:
    """Whoever joins what is not a sound graph gets a graph that ONNX Runtime refuses, not an accident."""
    (first, one), (second, two), last = segments_of(family_bundle)
    bad = paired(two, 0.05, begin=True, end=False)
    bad.graph.node.insert(0, helper.make_node(op, [], []))
    bad.graph.node.insert(1, helper.make_node(op, ["x"], []))
    joined = join([(first, paired(one, 0.05, begin=False, end=True)), (second, bad), last], (1, 8, 8), 3)
    with pytest.raises(Exception, match=r"(?i)invalid|fail|no such|input size"):
        run(family_bundle, joined, X)
