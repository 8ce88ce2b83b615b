"""An ONNX file as the graph that the exporter works on: checked, in our operator set, with nothing left that fixes the batch."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper, inliner, version_converter

from restnet_runtime.errors import SpecError

from .onnx_batch import BATCH, dynamic_batch, recount_batch
from .onnx_constants import fold_constants, lift_constants
from .onnx_module import OnnxModule
from .onnx_scopes import read_scopes
from .segments import INPUT, OPSET, OUTPUT

IR_VERSION = 10
"""What torch's exporter writes with our operator set."""

OLDEST = 7
"""Operator sets before this one broadcast by an attribute; no exporter of the last years writes them."""

_DOMAINS = ("", "ai.onnx", "com.microsoft")


def read_onnx(path: Path, input_shape: tuple[int, int, int] | None) -> tuple[OnnxModule, tuple[int, int, int]]:
    """The network in an ONNX file, and the shape (C, H, W) of its images.

    The graph takes `x` (batch, C, H, W) float32 and returns `y` (batch, classes) float32, in the operator set of our segments and with a
    dynamic batch; a batch that the file fixes is made dynamic where its shapes allow. `input_shape` is needed where the file leaves height
    or width open.
    Raises SpecError if the file cannot be read, holds what no segment may, does not take one image and return one tensor, or has a batch
    that cannot be made dynamic.
    """
    model = _load(path)
    _check_nodes(model, path)
    shape = _image_shape(model, path, input_shape)
    model.ir_version = IR_VERSION
    lift_constants(model.graph)
    _rename_ends(model.graph)
    scopes = read_scopes(model.graph)
    model = _converted(model, path)
    lift_constants(model.graph)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    fixed = batch.dim_value if batch.HasField("dim_value") else None
    _set_shape(model.graph, shape)
    model = dynamic_batch(_folded(model, path), fixed, path)
    return OnnxModule(recount_batch(model), scopes), shape


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise SpecError(f"onnx:{path}: there is no such file")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # protobuf, onnx and the file system raise what they like
        raise SpecError(f"onnx:{path} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _check_nodes(model: onnx.ModelProto, path: Path) -> None:
    for node in model.graph.node:
        where = f"onnx:{path}: node {node.name or node.output[0]!r} ({node.op_type})"
        if node.domain not in _DOMAINS:
            raise SpecError(f"{where} is of the domain {node.domain!r}, allowed are the standard one and com.microsoft")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise SpecError(f"{where} holds a graph of its own, which no segment may: export the network without branches and loops")
    if model.graph.sparse_initializer:
        raise SpecError(f"onnx:{path} holds sparse tensors, a segment has dense ones only")


def _image_shape(model: onnx.ModelProto, path: Path, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        names = [value.name for value in inputs], [value.name for value in model.graph.output]
        raise SpecError(f"onnx:{path} has the inputs {names[0]} and the outputs {names[1]}: an anchor has one of each")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(tensor.shape.dim) != 4:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise SpecError(f"onnx:{path} takes {kind} of {len(tensor.shape.dim)} dimensions: an anchor takes float32 (batch, C, H, W)")
    own = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim[1:]]
    if given is not None and any(size not in (None, wanted) for size, wanted in zip(own, given, strict=True)):
        raise SpecError(f"onnx:{path} takes images of shape {tuple(own)}, not {given}")
    channels, height, width = given or own
    if channels is None or height is None or width is None:
        raise SpecError(f"onnx:{path} leaves the size of its images open: give --input, --mean and --std")
    return channels, height, width


def _converted(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """In the operator set of our segments, since all segments of a route use one."""
    version = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if version == OPSET:
        return model
    if version < OLDEST:
        raise SpecError(f"onnx:{path} uses opset {version}, {OLDEST} and newer can be read")
    try:
        converted = version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises what its C++ code throws
        reason = " ".join(str(error).split())[:300]
        raise SpecError(f"onnx:{path} cannot be brought from opset {version} to {OPSET}: {reason}; export it with opset {OPSET}") from error
    missing = {item.domain: item.version for item in model.opset_import if item.domain == "com.microsoft"}
    present = {item.domain for item in converted.opset_import}
    converted.opset_import.extend(helper.make_opsetid(domain, old) for domain, old in missing.items() if domain not in present)
    return converted


def _folded(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        fold_constants(model)
    except Exception as error:  # ONNX Runtime's errors share no public base
        raise SpecError(f"onnx:{path}: ONNX Runtime cannot run it: {' '.join(str(error).split())[:300]}") from error
    return model


def _rename_ends(graph: onnx.GraphProto) -> None:
    """The input becomes `x` and the output `y`; whatever had these names gets others."""
    names = {graph.input[0].name: INPUT, graph.output[0].name: OUTPUT}
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    for name in (INPUT, OUTPUT):
        if name in taken and name not in names:
            names[name] = next(f"{name}_{i}" for i in range(len(taken) + 1) if f"{name}_{i}" not in taken)
    rename(graph, names)


def rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give values of a graph other names."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _set_shape(graph: onnx.GraphProto, shape: Sequence[int]) -> None:
    graph.ClearField("value_info")  # what it says may be of another batch
    graph.ClearField("input")
    graph.input.append(helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, [BATCH, *shape]))
    rank = len(graph.output[0].type.tensor_type.shape.dim)
    graph.ClearField("output")
    graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, [None] * rank))
