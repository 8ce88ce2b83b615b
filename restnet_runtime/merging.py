"""Merging: an optimised route's tensors into the shared weights of a cache, and its graph pointed there."""

from collections.abc import Collection, Iterable
from contextlib import nullcontext
from pathlib import Path

import onnx

from restnet_runtime.bundle import Bundle
from restnet_runtime.cache_writer import CacheWriter
from restnet_runtime.catalog import LINKED, CompiledRoute
from restnet_runtime.graphs import INLINE_BELOW_BYTES, external_extent
from restnet_runtime.manifest import WEIGHTS_FILE
from restnet_runtime.mapping import mapped, same
from restnet_runtime.optimising import Optimised
from restnet_runtime.packing import attach, pack
from restnet_runtime.precision import EVERY_FILTER, Filters
from restnet_runtime.quantised import share_filters
from restnet_runtime.routes import Route


def merge(
    bundle: Bundle,
    route: Route,
    optimised: Optimised,
    writer: CacheWriter,
    cache: Path,
    scratch: Path,
    level: str,
    filters: Collection[Filters] = EVERY_FILTER,
) -> CompiledRoute:
    """Move the tensors, pack what is to be packed, commit the route.

    level:    the best one to make, of `catalog.LEVELS`
    filters:  kinds of quantised filters that sessions are to share
    """
    model = optimised.model
    if level == "prepacked":
        share_filters(model.graph, filters)
    with mapped(bundle.weights) as source:
        addresses = _move(model, optimised, source, writer)
    for tensor in model.graph.initializer:
        if tensor.name in addresses:
            _point(tensor, addresses[tensor.name], writer)
    twinned: set[str] = set()
    touched: set[int] = set()
    if level == "prepacked":
        packed, twinned, unpacked = pack(model, addresses, writer, cache, scratch)
        if unpacked:  # this version of ONNX Runtime cannot, or does not tell
            level = "mapped"
        if packed:
            attach(_carrier(model, addresses, cache, writer), packed)
        touched = {address for _, blocks in packed for address, length, _ in blocks if length}
    touched |= {address for name, address in addresses.items() if name not in twinned}
    return writer.commit(route.name, model.SerializeToString(), touched, level)


def _move(model: onnx.ModelProto, optimised: Optimised, source: memoryview, writer: CacheWriter) -> dict[str, int]:
    """Addresses of all tensors that are not tiny, by name. source: the bundle's weights."""
    addresses = {}
    with mapped(optimised.weights) if optimised.weights else nullcontext(memoryview(b"")) as saved:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                if len(tensor.raw_data) >= INLINE_BELOW_BYTES:
                    addresses[tensor.name] = writer.place(memoryview(tensor.raw_data))
                continue
            offset, length = external_extent(tensor)
            if _location(tensor) == WEIGHTS_FILE and optimised.weights is None:
                addresses[tensor.name] = writer.refer(offset, source[offset : offset + length])
                continue
            data = saved[offset : offset + length]
            if len(data) != length:
                raise OSError(f"ONNX Runtime saved {len(data)} of {length} bytes of a tensor: is the disk full?")
            known = _find(data, source, (start for start, size in optimised.extents if size == length))
            addresses[tensor.name] = writer.place(data) if known is None else writer.refer(known, data)
    return addresses


def _find(data: memoryview, source: memoryview, starts: Iterable[int]) -> int | None:
    return next((start for start in starts if same(data, source[start : start + len(data)])), None)


def _location(tensor: onnx.TensorProto) -> str:
    return next((str(item.value) for item in tensor.external_data if item.key == "location"), "")


def _point(tensor: onnx.TensorProto, address: int, writer: CacheWriter) -> None:
    """Let a tensor's entry say where it is in the cache."""
    length = external_extent(tensor)[1] or len(tensor.raw_data)
    file, offset = writer.location(address)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in {"location": file, "offset": str(offset), "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)


def _carrier(model: onnx.ModelProto, addresses: dict[str, int], cache: Path, writer: CacheWriter) -> onnx.TensorProto:
    """A tensor that lies in the weights file, so that its entry can name blocks there; if none does, the smallest is copied."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in addresses]
    tensor: onnx.TensorProto = min(tensors, key=lambda tensor: (addresses[tensor.name] >= LINKED, external_extent(tensor)[1]))
    if addresses[tensor.name] >= LINKED:
        offset, length = external_extent(tensor)
        file, _ = writer.location(addresses[tensor.name])
        with mapped(cache / file) as data:
            addresses[tensor.name] = writer.place(data[offset : offset + length])
        _point(tensor, addresses[tensor.name], writer)
    return tensor
