"""Quantised products: which of their inputs is the weight, and how ONNX Runtime is brought to pack it in a way that sessions share.

A quantised convolution on constant zero points packs its filters into memory of the session's own, which is neither saved nor
shared: every resident int8 route costs its weights once more. Where the zero point of the filters is an input with a default it
packs them for its matrix product instead, and that packing is shared. The numbers are the same to the last bit; whether the time is
depends on the processor and the filter (`precision.shared_filters`).
"""

from collections.abc import Collection, Mapping

import onnx

from restnet_runtime.precision import EVERY_FILTER, Filters

_UINT8, _INT32, _FLOAT = onnx.TensorProto.UINT8, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT
_CONTRIB = "com.microsoft"

WEIGHT_AT = {
    ("", "QLinearConv"): 3,
    (_CONTRIB, "QLinearConv"): 3,
    ("", "QLinearMatMul"): 3,
    (_CONTRIB, "QGemm"): 3,
    ("", "MatMulInteger"): 1,
    (_CONTRIB, "MatMulIntegerToFloat"): 1,
    (_CONTRIB, "DynamicQuantizeMatMul"): 1,
}
"""Which input is the weight."""

_ZERO_POINT_AT = 5  # of the filters of a QLinearConv
_OUT_ZERO_POINT_AT = {"QLinearConv": 7, "QLinearMatMul": 7, "QGemm": 8}


def unshare(graph: onnx.GraphProto) -> None:
    """Give every node int8 tensors of its own: of those that several read, such as zero points, all but the first get a named copy.

    Where ONNX Runtime turns int8 weights into uint8 ones (`precision.exact_products`) it fails at a tensor that it has turned already. A
    copy of one in another file is another reference to the same bytes.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    copies: dict[str, int] = {}
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name in tensors:
                copies[name] = copies.get(name, -1) + 1
                if copies[name]:
                    copy = graph.initializer.add()
                    copy.CopyFrom(tensors[name])
                    copy.name = node.input[at] = f"{name}:{copies[name]}"


def share_filters(graph: onnx.GraphProto, kinds: Collection[Filters] = EVERY_FILTER) -> None:
    """Make the zero points of quantised filters of these kinds inputs with a default, one for all that are equal."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    shared: dict[bytes, str] = {}
    for node in graph.node:
        if node.op_type != "QLinearConv" or (node.domain, node.op_type) not in WEIGHT_AT:
            continue
        filters, zero = tensors.get(node.input[WEIGHT_AT[node.domain, node.op_type]]), tensors.get(node.input[_ZERO_POINT_AT])
        if filters is None or zero is None or _kind(node, filters) not in kinds:
            continue
        copy = onnx.TensorProto()
        copy.CopyFrom(zero)
        copy.name = ""
        content = copy.SerializeToString(deterministic=True)
        if content not in shared:
            copy.name = shared[content] = f"/zero_point_{len(shared)}"  # no other value of a joined graph begins so and has one slash
            graph.initializer.add().CopyFrom(copy)
            graph.input.append(onnx.helper.make_tensor_value_info(copy.name, copy.data_type, list(copy.dims)))
        node.input[_ZERO_POINT_AT] = shared[content]


def _kind(node: onnx.NodeProto, filters: onnx.TensorProto) -> Filters:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if "group" in attributes and attributes["group"].i > 1 and filters.dims[1] == 1:
        return "depthwise"
    strides = list(attributes["strides"].ints) if "strides" in attributes else []
    return "pointwise" if set(filters.dims[2:]) == {1} and set(strides) <= {1} else "spatial"


def element_type(node: onnx.NodeProto, at: int, tensors: Mapping[str, onnx.TensorProto]) -> int:
    """Element type of an input of a quantised product that is no tensor of the graph; `at` -1: of its output."""

    def of(index: int, otherwise: int) -> int:
        return tensors[node.input[index]].data_type if index < len(node.input) and node.input[index] in tensors else otherwise

    if at < 0:
        after = _OUT_ZERO_POINT_AT.get(node.op_type)
        if after is not None:
            return of(after, _UINT8 if node.op_type != "QGemm" else _FLOAT)
        return _INT32 if node.op_type == "MatMulInteger" else _FLOAT
    if node.op_type in _OUT_ZERO_POINT_AT:  # x, scale, zero point, ...
        return of(2, _UINT8) if at in (0, 2) else _FLOAT
    if node.op_type == "DynamicQuantizeMatMul":
        return _FLOAT
    zero_point = 2 if node.op_type == "MatMulInteger" else 4
    return of(zero_point, _UINT8) if at in (0, zero_point) else _FLOAT
