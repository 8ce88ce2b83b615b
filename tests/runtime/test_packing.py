"""Packing: each weight once, in the cache, and done without where ONNX Runtime cannot. What sessions make of it: `test_compile.py`."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from restnet_runtime import packing
from restnet_runtime.cache import Cache
from restnet_runtime.catalog import Packed
from restnet_runtime.mapping import mapped
from restnet_runtime.packing import attach, pack

WEIGHTS = np.random.default_rng(3).standard_normal((2, 128, 64)).astype(np.float32)


def products(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """An optimised graph of products whose weights `w0` and `w1` are external."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for node in nodes for name in node.output]
    tensors = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(WEIGHTS)]
    graph = helper.make_graph(list(nodes), "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 128])], values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def packed_by(model: onnx.ModelProto, tmp_path: Path, name: str = "route") -> tuple[list[Packed], set[str], bool, Cache]:
    """What `pack` makes of a model whose tensors have been placed in a cache, and where they are."""
    cache = Cache(tmp_path / "cache", {"test": "packing"})
    with cache.locked() as held, held.scratch() as scratch, held.writer() as writer:
        addresses = {}
        for tensor in model.graph.initializer:
            data = tensor.raw_data
            addresses[tensor.name] = writer.place(memoryview(data))
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", writer.weights_name), ("offset", addresses[tensor.name]), ("length", len(data))):
                tensor.external_data.add(key=key, value=str(value))
        found = pack(model, addresses, writer, cache.path, scratch)
        writer.commit(name, b"graph", [])
    return *found, cache


def matmul(x: str, weight: str, out: str, **attributes) -> onnx.NodeProto:
    return helper.make_node("Gemm" if attributes else "MatMul", [x, weight], [out], **attributes)


def test_each_weight_is_packed_once_however_often_it_is_used(tmp_path: Path) -> None:
    model = products(*(matmul("x", "w0", f"y{index}") for index in range(3)), matmul("x", "w1", "z"))
    packed, twinned, unpacked, cache = packed_by(model, tmp_path)
    assert len(packed) == 2
    assert twinned == {"w0", "w1"}, "a session reads these at load only"
    assert not unpacked
    blocks = [block for _, listed in packed for block in listed if block[1]]
    assert len(blocks) == 2
    assert all(address % 4096 == 0 for address, _, _ in blocks)
    assert cache.look_up("route") is not None


def test_what_another_route_has_packed_is_not_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packed_by(products(matmul("x", "w0", "y")), tmp_path, "first")[0]
    saved = []
    monkeypatch.setattr(packing, "save_model", lambda *_: saved.append(1))
    again = packed_by(products(matmul("x", "w0", "other name")), tmp_path, "second")[0]
    assert again == first
    assert not saved


def test_another_attribute_is_another_packing(tmp_path: Path) -> None:
    plain, scaled = matmul("x", "w0", "y", alpha=1.0), matmul("x", "w0", "z", alpha=1.0, beta=0.5)
    cache = packed_by(products(plain, scaled), tmp_path)[-1]
    with cache.locked() as held, held.writer() as writer:
        assert len(writer._catalog.packed) == 2


def test_a_weight_that_something_else_reads_too_stays_in_use(tmp_path: Path) -> None:
    reads = helper.make_node("ReduceSum", ["w0"], ["sum"])
    _, twinned, _, _ = packed_by(products(matmul("x", "w0", "y"), matmul("x", "w1", "z"), reads), tmp_path)
    assert twinned == {"w1"}


def test_what_cannot_be_packed_is_said_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    caplog.set_level(logging.WARNING)

    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(packing, "save_model", fail)
    for name in ("first", "second"):
        packed, twinned, unpacked, _ = packed_by(products(matmul("x", "w0", "y")), tmp_path, name)
        assert (packed, twinned, unpacked) == ([], set(), True)
    assert [message for message in caplog.messages if "does not pack MatMul: no such kernel" in message] == caplog.messages[:1]
    assert len(caplog.messages) == 1


def test_blocks_in_the_cache_are_what_onnx_runtime_packed(tmp_path: Path) -> None:
    """The same weights packed in another cache have the same bytes; those of other weights do not."""

    def blocks(where: Path, weight: str) -> list[bytes]:
        packed, *_, cache = packed_by(products(matmul("x", weight, "y")), where)
        (file,) = cache.path.glob("weights-*.bin")
        with mapped(file) as data:
            return [bytes(data[address : address + length]) for _, listed in packed for address, length, _ in listed]

    one, other = blocks(tmp_path / "one", "w0"), blocks(tmp_path / "other", "w0")
    assert one == other
    assert one[0] != blocks(tmp_path / "third", "w1")[0]
    assert np.isin(np.frombuffer(one[0], np.float32), WEIGHTS[0]).mean() > 0.9, "a packed matrix has the numbers of the matrix"


def test_entries_are_written_as_onnx_runtime_reads_them() -> None:
    tensor = TensorProto(name="w")
    attach(tensor, [("key", ((4096, 10, "1"), (0, 0, "0"))), ("other", ((8192, 7, "1"),))])
    entries = {item.key: item.value for item in tensor.external_data}
    assert entries == {"prepacked_0": "key|4096;10;1|0;0;0", "prepacked_1": "other|8192;7;1"}


@given(st.lists(st.integers(0, 3 * packing._PIECE_BYTES), max_size=20))
def test_pieces_keep_order_and_size(sizes: list[int]) -> None:
    names = [str(index) for index in range(len(sizes))]
    pieces = list(packing._pieces(names, lambda name: sizes[int(name)]))
    assert [name for piece in pieces for name in piece] == names
    for piece in pieces:
        assert piece
        assert len(piece) == 1 or sum(sizes[int(name)] for name in piece) <= packing._PIECE_BYTES
