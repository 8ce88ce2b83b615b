"""Merging: what a compiled graph points at is, byte for byte, what the optimised graph had."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from restnet_runtime import merging, optimising
from restnet_runtime.bundle import Bundle
from restnet_runtime.cache import Cache
from restnet_runtime.catalog import LINKED, CompiledRoute
from restnet_runtime.graphs import external_extent
from restnet_runtime.mapping import mapped
from restnet_runtime.merging import merge
from restnet_runtime.optimising import optimise


def read(tensor: TensorProto, folder: Path) -> bytes:
    """Bytes of a tensor, wherever they lie."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor).tobytes()
    (name,) = [item.value for item in tensor.external_data if item.key == "location"]
    offset, length = external_extent(tensor)
    with mapped(folder / name) as data:
        assert offset + length <= len(data)
        return bytes(data[offset : offset + length])


def content(model: onnx.ModelProto, folder: Path) -> dict[str, tuple[list[int], int, bytes]]:
    return {tensor.name: (list(tensor.dims), tensor.data_type, read(tensor, folder)) for tensor in model.graph.initializer}


def merged(bundle: Bundle, cache: Cache, name: str, level: str = "prepacked") -> tuple[CompiledRoute, dict, onnx.ModelProto]:
    """A route merged into a cache; the tensors that it had before, and its graph after."""
    with cache.locked() as held, held.scratch() as scratch:
        optimised = optimise(bundle, bundle.route(name), scratch, reorder=level != "mapped")
        before = content(optimised.model, bundle.path if optimised.weights is None else scratch)
        with held.writer(bundle.weights) as writer:
            made = merge(bundle, bundle.route(name), optimised, writer, cache.path, scratch, level)
    return made, before, onnx.load_model(made.graph, load_external_data=False)


@pytest.mark.parametrize("level", ["prepacked", "mapped"])
@pytest.mark.parametrize("stream_from", [0, 2**30], ids=["through a file", "in the graph"])
def test_every_tensor_of_every_route_is_what_it_was(
    family_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, stream_from: int
) -> None:
    monkeypatch.setattr(optimising, "_STREAM_FROM_BYTES", stream_from)
    cache, made = Cache(tmp_path, {"test": "merging"}), {}
    for route in family_bundle.routes:
        made[route.name], before, after = merged(family_bundle, cache, route.name, level)
        assert content(after, cache.path) == before
    for name, one in made.items():  # later routes have changed nothing
        found = cache.look_up(name)
        assert found is not None
        assert (found.extents, found.touched, found.graph_sha256) == (one.extents, one.touched, one.graph_sha256)


def test_large_tensors_lie_on_pages_and_each_once(family_bundle: Bundle, tmp_path: Path) -> None:
    cache, places = Cache(tmp_path, {"test": "merging"}), {}
    for route in family_bundle.routes:
        _, _, after = merged(family_bundle, cache, route.name)
        for tensor in after.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                (file,) = [item.value for item in tensor.external_data if item.key == "location"]
                offset, length = external_extent(tensor)
                assert offset % (4096 if length >= 4096 else 64) == 0
                places.setdefault((file.split("-")[0], read(tensor, cache.path)), set()).add(offset)
    assert len(places) >= 3, "where filters are not laid out anew (on ARM) only these"
    assert all(len(offsets) == 1 for offsets in places.values()), "the same bytes are there twice"


def test_tensors_of_the_bundle_are_referred_to_and_not_copied(dense_bundle: Bundle, tmp_path: Path) -> None:
    made, _, after = merged(dense_bundle, Cache(tmp_path / "cache", {"test": "merging"}), "dense", "mapped")
    assert all(address >= LINKED for address, *_ in made.extents)
    assert {external_extent(tensor) for tensor in after.graph.initializer} == {
        (address - LINKED, length) for address, length, _ in made.extents
    }
    assert made.weights.stat().st_size == 0


def test_what_is_packed_is_named_by_a_tensor_in_the_same_file(dense_bundle: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime looks for blocks in the file of the tensor that names them: one tensor is copied there, the smallest."""
    made, before, after = merged(dense_bundle, Cache(tmp_path / "cache", {"test": "merging"}), "dense")
    carriers = [tensor for tensor in after.graph.initializer if any(item.key.startswith("prepacked_") for item in tensor.external_data)]
    (carrier,) = carriers
    (file,) = [item.value for item in carrier.external_data if item.key == "location"]
    assert file == made.weights.name
    assert external_extent(carrier)[1] == min(len(data) for _, _, data in before.values())
    assert content(after, made.weights.parent) == before
    assert made.level == "prepacked"


def test_a_tensor_that_was_not_saved_whole_is_an_error_and_nothing_counts(
    family_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk fills up and ONNX Runtime does not say so."""
    monkeypatch.setattr(optimising, "_STREAM_FROM_BYTES", 0)
    cache, route = Cache(tmp_path, {"test": "merging"}), family_bundle.route("large")
    with cache.locked() as held, held.scratch() as scratch:
        optimised = optimise(family_bundle, route, scratch)
        assert optimised.weights is not None
        with optimised.weights.open("r+b") as file:
            file.truncate(file.seek(0, 2) - 4096)
        with held.writer(family_bundle.weights) as writer, pytest.raises(OSError, match=r"saved \d+ of \d+ bytes of a tensor"):
            merge(family_bundle, route, optimised, writer, cache.path, scratch, "prepacked")
    assert cache.look_up("large") is None
    assert sum(path.stat().st_size for path in cache.path.glob("weights-*.bin")) == 0


def test_equal_length_is_not_taken_for_equal_content() -> None:
    source = np.arange(4096, dtype=np.float32).tobytes()
    data = bytearray(source[:8192])
    assert merging._find(memoryview(bytes(data)), memoryview(source), [8192, 0]) == 0
    data[-1] ^= 1
    assert merging._find(memoryview(bytes(data)), memoryview(source), [8192, 0]) is None
