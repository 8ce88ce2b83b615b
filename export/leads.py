"""Leads: the first products of an anchor, which may be quicker in float32 than in integers.

A convolution of three channels, and a depthwise one of few channels on many positions, is slower in int8 than in float32 in ONNX
Runtime; what it makes is then the last thing to be quantised. Only the first few are tried, because every other border between
integers and floats costs two passes over what crosses it.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import onnx

MOST = 4
"""So many products are tried in float32."""
SHARE = 1 / 50
"""Of an anchor's weights, those in float32 may hold so much: they take four times the bytes."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

Lead = Mapping[str, frozenset[str]]
"""By block, the names of the nodes that stay in float32."""


def leads(blocks: Sequence[str], models: Mapping[str, onnx.ModelProto]) -> list[Lead]:
    """What stays in float32 where the first product does, the first two, and so on: each with all that comes before the next.

    blocks: of an anchor, in order
    models: folded, by name; a product is one with weights
    """
    weights = {block: {tensor.name: math.prod(tensor.dims) for tensor in models[block].graph.initializer} for block in blocks}
    nodes = [(block, node) for block in blocks for node in models[block].graph.node]
    products = [
        (index, weights[block][node.input[1]])
        for index, (block, node) in enumerate(nodes)
        if node.op_type in _PRODUCTS and node.input[1] in weights[block]
    ]
    total, floats = sum(size for _, size in products), 0
    found: list[Lead] = []
    for (_, size), (next_, _) in pairwise(products[: MOST + 1]):
        floats += size
        if floats > SHARE * total:
            break
        lead: dict[str, frozenset[str]] = {}
        for block, node in nodes[:next_]:
            lead[block] = lead.get(block, frozenset()) | {node.name}
        found.append(lead)
    return found
