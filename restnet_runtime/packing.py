"""Packing: the weights of matrix products as ONNX Runtime's kernels want them, made once for all routes that use them.

What a kernel packs depends on its node and its weights alone, not on the graph around it. So each is packed by itself, a few
mebibytes at a time, when the first route needs it; every other route takes the blocks from the cache. ONNX Runtime finds
blocks by a key made from their content, in whichever tensor's entry of the graph they are named.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from restnet_runtime.cache_writer import CacheWriter
from restnet_runtime.catalog import Packed
from restnet_runtime.mapping import mapped
from restnet_runtime.optimising import save_model, saved_beside
from restnet_runtime.quantised import WEIGHT_AT, element_type

log = logging.getLogger(__name__)

PRODUCTS = frozenset({("", "MatMul"), ("", "Gemm"), ("com.microsoft", "FusedMatMul"), ("com.microsoft", "FusedGemm")})
"""Operators that pack on every processor."""

_PACKED_SOMEWHERE = PRODUCTS | {("", "Conv"), ("com.microsoft", "FusedConv")} | set(WEIGHT_AT)
_PREPACKED = "prepacked_"
_PIECE_BYTES = 8 * 2**20


def pack(
    model: onnx.ModelProto, addresses: dict[str, int], writer: CacheWriter, cache: Path, scratch: Path
) -> tuple[list[Packed], set[str], bool]:
    """Pack what the nodes of an optimised graph want packed.

    addresses:  where the external tensors of the graph are in the cache
    Returns what is packed, the names of tensors that a session then reads at load only, and whether no product at all was packed.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    signatures = [
        _signature(node, addresses, tensors) if (node.domain, node.op_type) in _PACKED_SOMEWHERE and _weight(node) in addresses else None
        for node in model.graph.node
    ]
    nodes = {signature: node for signature, node in zip(signatures, model.graph.node, strict=True) if signature is not None}
    missing = [signature for signature in nodes if writer.packed(signature) is None]
    for piece in _pieces(missing, lambda signature: _length(tensors[_weight(nodes[signature])])):
        _pack_piece(model, [(signature, nodes[signature]) for signature in piece], tensors, writer, cache, scratch)
    packed = {signature: writer.packed(signature) or () for signature in nodes}
    twinned = {_weight(node) for signature, node in nodes.items() if packed[signature]}
    for signature, node in zip(signatures, model.graph.node, strict=True):
        behind = _weight(node) if signature is not None and packed[signature] else None
        twinned -= {name for name in node.input if name != behind}
    products = [signature for signature, node in nodes.items() if (node.domain, node.op_type) in PRODUCTS]
    unpacked = bool(products) and not any(packed[signature] for signature in products)
    return list(dict.fromkeys(one for found in packed.values() for one in found)), twinned, unpacked


def attach(tensor: onnx.TensorProto, packed: Sequence[Packed]) -> None:
    """Name packed blocks in a tensor's entry; they must lie in the same file as the tensor itself."""
    for index, (key, blocks) in enumerate(packed):
        value = "|".join([key, *(f"{address};{length};{flag}" for address, length, flag in blocks)])
        tensor.external_data.add(key=f"{_PREPACKED}{index}", value=value)


def _pack_piece(
    model: onnx.ModelProto,
    piece: Sequence[tuple[str, onnx.NodeProto]],
    tensors: dict[str, onnx.TensorProto],
    writer: CacheWriter,
    cache: Path,
    scratch: Path,
) -> None:
    graph, weights = scratch / "packed.onnx", scratch / "packed.bin"
    inputs = [value.name for value in model.graph.input]
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=_alone(piece, tensors, inputs))
    entries = {
        "session.model_external_initializers_file_folder_path": str(cache),
        "session.save_external_prepacked_constant_initializers": "1",
        **saved_beside(weights),
    }
    try:
        save_model(alone.SerializeToString(), graph, entries, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    except Exception as error:  # ONNX Runtime's own errors share no base
        log.warning("ONNX Runtime %s does not pack %s: %s", ort.__version__, ", ".join({node.op_type for _, node in piece}), error)
        for signature, _ in piece:
            writer.pack(signature, ())
        return
    saved = onnx.load_model(graph, load_external_data=False)
    values = {
        tensor.name: [item.value for item in tensor.external_data if item.key.startswith(_PREPACKED)] for tensor in saved.graph.initializer
    }
    with mapped(weights) as data:
        for signature, node in piece:
            packed = {value: _placed(value, data, writer) for name in node.input for value in values.get(name, ())}
            # One tensor of two operators has the blocks of both; the key begins with the operator's name.
            writer.pack(signature, [one for one in packed.values() if one[0].startswith(node.op_type)])


def _alone(piece: Sequence[tuple[str, onnx.NodeProto]], tensors: dict[str, onnx.TensorProto], inputs: Sequence[str]) -> onnx.GraphProto:
    """The nodes side by side, each with inputs and an output of its own. inputs: of the tensors those that are mere defaults of inputs."""
    graph = onnx.GraphProto(name="packed")
    given = set(inputs)
    for index, (_, original) in enumerate(piece):
        node = graph.node.add()
        node.CopyFrom(original)
        node.name = f"node{index}"
        for at, name in enumerate(original.input):
            if name in tensors:
                if all(name != tensor.name for tensor in graph.initializer):
                    graph.initializer.add().CopyFrom(tensors[name])
                    if name in given:
                        graph.input.append(onnx.helper.make_tensor_value_info(name, tensors[name].data_type, list(tensors[name].dims)))
            elif name:
                node.input[at] = f"input{index}.{at}"
                graph.input.append(onnx.helper.make_tensor_value_info(node.input[at], _kind(original, at, tensors), None))
        node.output[:] = [f"output{index}"]
        graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], _kind(original, -1, tensors), None))
    return graph


def _kind(node: onnx.NodeProto, at: int, tensors: dict[str, onnx.TensorProto]) -> int:
    """Element type of an input, or with -1 of the output: of a float product that of its weight."""
    if (node.domain, node.op_type) in WEIGHT_AT:
        return element_type(node, at, tensors)
    return int(tensors[_weight(node)].data_type)


def _placed(value: str, data: memoryview, writer: CacheWriter) -> Packed:
    """Move the blocks of `KEY|offset;length;flag|offset;length;flag...`, ONNX Runtime's list of them, into the cache."""
    key, *blocks = value.split("|")
    placed = []
    for block in blocks:
        offset, length, flag = block.split(";")
        start, size = int(offset), int(length)
        placed.append((writer.place(data[start : start + size]) if size else 0, size, flag))
    return key, tuple(placed)


def _signature(node: onnx.NodeProto, addresses: dict[str, int], tensors: dict[str, onnx.TensorProto]) -> str:
    """Operator, attributes and weights of a node; nothing of where it stands in a graph.

    Of a quantised product the weight alone: scales and zero points do not go into its packing.
    """
    attributes = hashlib.sha256(b"".join(sorted(attribute.SerializeToString() for attribute in node.attribute))).hexdigest()[:16]
    if (node.domain, node.op_type) not in WEIGHT_AT:
        return f"{node.domain}:{node.op_type}:{attributes}:{','.join(str(addresses.get(name, '')) for name in node.input)}"
    weight = tensors[_weight(node)]
    form = f"{element_type(node, 0, tensors)}*{weight.data_type}{list(weight.dims)}"
    return f"{node.domain}:{node.op_type}:{attributes}:{form}:{addresses[weight.name]}"


def _weight(node: onnx.NodeProto) -> str:
    """The name of a product's weight, empty for one without."""
    at = WEIGHT_AT.get((node.domain, node.op_type), 1)
    return str(node.input[at]) if at < len(node.input) else ""


def _length(tensor: onnx.TensorProto) -> int:
    return next((int(item.value) for item in tensor.external_data if item.key == "length"), 0)


def _pieces(signatures: Sequence[str], size: Callable[[str], int]) -> Iterator[list[str]]:
    """In groups of up to `_PIECE_BYTES`, so that packing takes little memory; one that is larger is a group by itself."""
    piece: list[str] = []
    total = 0
    for signature in signatures:
        if piece and total + size(signature) > _PIECE_BYTES:
            yield piece
            piece, total = [], 0
        piece.append(signature)
        total += size(signature)
    if piece:
        yield piece
