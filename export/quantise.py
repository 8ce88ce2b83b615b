"""One segment in int8: ONNX Runtime's quantiser, with ranges that the caller has agreed on.

Static quantisation writes QDQ graphs: unsigned activations, signed weights, a scale per output channel. A segment begins and ends with a
pair of QuantizeLinear and DequantizeLinear, so that it goes with segments of any precision; where two pairs meet in a joined route the
first one stays, and ONNX Runtime fuses the route as it would the whole network.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, TensorData, TensorsData, quantize_dynamic
from onnxruntime.quantization.calibrate import CalibrationMethod
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from restnet_runtime.compose import drop_unread
from restnet_runtime.errors import ExportError
from restnet_runtime.graphs import INPUT, OUTPUT

Recipe = Literal["everything", "products", "dynamic"]
RECIPES: tuple[Recipe, ...] = ("everything", "products", "dynamic")
"""everything: all that ONNX Runtime has integer kernels for. products: convolutions and products with weights, the rest stays in
float32. dynamic: products with weights, their inputs quantised by the range of each run; nothing is calibrated."""

Range = tuple[float, float]

_EVERYTHING = sorted({*QLinearOpsRegistry, *QDQRegistry})
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with constants and BatchNorm folded, as quantising needs it. Raises `ExportError` if ONNX Runtime cannot."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch:
        options.optimized_model_filepath = str(Path(scratch) / "folded.onnx")
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors share no base
            raise ExportError(f"segment {model.graph.name}: ONNX Runtime cannot fold it: {error}") from error
        made = onnx.load(options.optimized_model_filepath)
    made.graph.name = model.graph.name
    _pool(made)
    for index, node in enumerate(made.graph.node):
        node.name = f"n{index}"  # the quantiser tells nodes apart by names, which are optional
    del made.graph.value_info[:]
    return made


def quantised(
    model: onnx.ModelProto, ranges: Mapping[str, Range], recipe: Recipe, *, last: bool = False, floats: Collection[str] = ()
) -> onnx.ModelProto:
    """A folded segment in int8, with the same float32 input `x` and output `y`.

    ranges: of its values, input and output included, as `calibration.calibrate` gives them; of no use to `dynamic`
    last:   its output are logits, which nothing quantised reads: they are not quantised
    floats: names of nodes that stay in float32; of no use to `dynamic` either

    Where nothing in it can be quantised, the answer is the folded segment. Raises `ExportError` if ONNX Runtime cannot quantise it.
    """
    try:
        with quiet():
            made = _dynamic(model) if recipe == "dynamic" else _static(model, ranges, recipe, floats)
    except Exception as error:  # the quantiser fails in as many ways as there are operators
        raise ExportError(f"segment {model.graph.name}: ONNX Runtime cannot quantise it: {' '.join(str(error).split())[:300]}") from error
    if last:
        _float_output(made.graph)
    _float_biases(made.graph, model.graph)
    _tidy(made, model)
    return made


def is_quantised(model: onnx.ModelProto) -> bool:
    """Is anything in it not in float32?"""
    return any("Quantize" in node.op_type or "Integer" in node.op_type for node in model.graph.node)


def integer_bytes(models: Iterable[onnx.ModelProto]) -> int:
    """Bytes of the weights in int8."""
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for model in models
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser prints its progress and warns of graphs that are prepared in another way than by its own tool."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _pool(model: onnx.ModelProto) -> None:
    """Let the mean over both sides of a map be what it is: for pooling ONNX Runtime has an integer kernel, for ReduceMean none."""
    graph = model.graph
    axes = {
        tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64
    }
    means = [node for node in graph.node if node.op_type == "ReduceMean" and len(node.input) > 1 and node.input[1] in axes]
    if not means:
        return
    shaped = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*shaped.value_info, *shaped.input)}
    for node in means:
        kept = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        rank = ranks.get(node.input[0], 0)
        if rank == 4 and kept and sorted(axis % rank for axis in axes[node.input[1]]) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
    drop_unread(graph)


def _static(model: onnx.ModelProto, ranges: Mapping[str, Range], recipe: Recipe, floats: Collection[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shaped = save_and_reload_model_with_shape_infer(copy)
    data = TensorsData(CalibrationMethod.MinMax, {})
    for name, (low, high) in ranges.items():
        data.data[name] = TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
    options: dict[str, Any] = {"MatMulConstBOnly": recipe == "products"}
    quantiser = QDQQuantizer(
        shaped,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=data,
        nodes_to_quantize=[],
        nodes_to_exclude=[*_unknown(shaped.graph, ranges), *floats],
        op_types_to_quantize=list(_PRODUCTS if recipe == "products" else _EVERYTHING),
        extra_options=options,
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    made: onnx.ModelProto = quantiser.model.model
    return made


def _float_biases(graph: onnx.GraphProto, before: onnx.GraphProto) -> None:
    """Give biases back their floats wherever the output is quantised.

    A bias is quantised by the scale of the input. In a joined route that may be another segment's, and the bias would not fit; ONNX
    Runtime quantises a float bias by itself when it loads the route, but only of what ends in QuantizeLinear. Of what does not, such as
    a head that is one product, the bias is added apart.
    """
    floats = {tensor.name: tensor for tensor in before.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    present = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 3 or node.input[2] not in makers:
            continue
        original = makers[node.input[2]].input[0].removesuffix("_quantized")
        if original not in floats:
            continue
        if set(readers.get(node.output[0], ())) == {"QuantizeLinear"}:
            node.input[2] = f"{original}_float"  # the quantiser gives the name itself to what it dequantises
            if node.input[2] not in present:
                tensor = graph.initializer.add()
                tensor.CopyFrom(floats[original])
                tensor.name = node.input[2]
                present.add(tensor.name)
        elif _at_the_border(node, makers):
            _add_apart(graph, node, numpy_helper.to_array(floats[original]))
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in graph.node if read.intersection(node.output)]
    del graph.node[:]
    graph.node.extend(kept)


def _at_the_border(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Does it read the pair by which the segment begins?"""
    dequantise = makers.get(node.input[0])
    quantise = makers.get(dequantise.input[0]) if dequantise is not None else None
    return quantise is not None and quantise.op_type == "QuantizeLinear" and quantise.input[0] == INPUT


def _add_apart(graph: onnx.GraphProto, node: onnx.NodeProto, bias: npt.NDArray[np.float32]) -> None:
    """Add the bias after the node, in float: for one whose output is not quantised, where ONNX Runtime takes an integer bias or none."""
    beta = next((attribute.f for attribute in node.attribute if attribute.name == "beta"), 1.0)
    per_channel = bias if node.op_type == "Gemm" else bias.reshape(-1, *[1] * (len(_dims(graph, node.input[1])) - 2))
    output = node.output[0]
    added, product = f"{output}_bias", f"{output}_product"
    graph.initializer.append(numpy_helper.from_array(np.asarray(beta * per_channel, np.float32), added))
    del node.input[2:]
    node.output[0] = product
    graph.node.insert(list(graph.node).index(node) + 1, onnx.helper.make_node("Add", [product, added], [output], f"{node.name}_bias"))


def _dims(graph: onnx.GraphProto, name: str) -> Sequence[int]:
    """Of the tensor that a node dequantises, or reads as it is."""
    makers = {output: node for node in graph.node for output in node.output}
    stored = makers[name].input[0] if name in makers else name
    return next(tensor.dims for tensor in graph.initializer if tensor.name == stored)


def _unknown(graph: onnx.GraphProto, ranges: Mapping[str, Range]) -> list[str]:
    """Nodes that take or make a float value whose range is not known: they stay in float32."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    unknown = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT and name not in ranges}
    return [node.name for node in graph.node if unknown.intersection((*node.input, *node.output))]


def _dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "int8.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        quantize_dynamic(copy, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(path)


def _float_output(graph: onnx.GraphProto) -> None:
    """Take away the pair that makes the output."""
    makers = {name: node for node in graph.node for name in node.output}
    end = makers[OUTPUT]
    begin = makers.get(end.input[0])
    if end.op_type != "DequantizeLinear" or begin is None or begin.op_type != "QuantizeLinear":
        return
    inner = begin.input[0]
    for node in (begin, end):
        graph.node.remove(node)
    for node in graph.node:
        node.output[:] = [OUTPUT if name == inner else name for name in node.output]
        node.input[:] = [OUTPUT if name == inner else name for name in node.input]


def _tidy(made: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Drop what the quantiser notes and tensors that nothing reads any more, and make names short: they are half of a small graph."""
    graph = made.graph
    graph.name = model.graph.name
    for part in (made, graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    domains = {node.domain for node in graph.node} | {""}
    imports = [item for item in made.opset_import if item.domain in domains]
    del made.opset_import[:]
    made.opset_import.extend(imports)
    made.ClearField("producer_name")
    made.ClearField("producer_version")
    del graph.value_info[:]
    drop_unread(graph)
    same: dict[bytes, str] = {}
    short: dict[str, str] = {"": "", INPUT: INPUT, OUTPUT: OUTPUT}
    kept: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        content = onnx.TensorProto()
        content.CopyFrom(tensor)
        content.ClearField("name")
        key = content.SerializeToString(deterministic=True)
        if key not in same:
            same[key] = f"t{len(same)}"
            kept.append(tensor)
        short[tensor.name] = same[key]
    for tensor in kept:
        tensor.name = short[tensor.name]
    for index, node in enumerate(graph.node):
        node.ClearField("doc_string")
        node.name = f"n{index}"
        for name in node.output:
            short.setdefault(name, f"v{len(short)}")
        node.input[:] = [short[name] for name in node.input]
        node.output[:] = [short[name] for name in node.output]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.input[:]
    graph.input.extend(model.graph.input)
    del graph.output[:]
    graph.output.extend(model.graph.output)
