"""Optimising: a route's joined graph through ONNX Runtime's graph optimisers, weights untouched where they can be.

Two ways to save the result, the same in content. Small changes: what the optimisers leave alone stays a reference into
the bundle's weights, and what they make new lies in the graph; nothing else is read or copied. Where convolutions are
reordered nearly everything is new: then all goes through a file, so that it is not held in memory twice.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort

from restnet_runtime.bundle import Bundle
from restnet_runtime.compile import PROVIDERS
from restnet_runtime.compose import compose
from restnet_runtime.errors import CompileError
from restnet_runtime.graphs import INLINE_BELOW_BYTES, external_extent
from restnet_runtime.precision import exact_products
from restnet_runtime.routes import Route
from restnet_runtime.units import format_bytes

_STREAM_FROM_BYTES = 4 * 2**20
_FULL_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Optimised:
    """An optimised route.

    model:    its graph; external tensors lie in the bundle's weights, or all of them in `weights`
    weights:  a file of this route alone, if one was made
    extents:  (offset, length) in the bundle's weights of the tensors that went in
    """

    model: onnx.ModelProto
    weights: Path | None
    extents: frozenset[tuple[int, int]]


def optimise(bundle: Bundle, route: Route, scratch: Path, reorder: bool = True) -> Optimised:
    """Join and optimise a route; files go to `scratch`.

    reorder: let filters be reordered, as convolutions run fastest; without, hardly any weight is touched, which takes little memory
    Raises `BundleError` for a bad graph, `CompileError` for one that is refused.
    """
    joined = compose(bundle, route)
    extents = frozenset(external_extent(tensor) for tensor in joined.graph.initializer) - {(0, 0)}
    graph, weights = scratch / "route.onnx", scratch / "route.bin"
    entries = {
        "session.model_external_initializers_file_folder_path": str(bundle.path),
        "session.disable_prepacking": "1",
    } | exact_products()
    streamed = reorder and _convolution_bytes(joined.graph) >= _STREAM_FROM_BYTES
    level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL if reorder else ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if streamed:
        entries |= saved_beside(weights)
    try:
        save_model(joined.SerializeToString(), graph, entries, level)
    except Exception as error:  # ONNX Runtime's own errors share no base
        free = shutil.disk_usage(scratch).free
        hint = f"the disk has {format_bytes(free)} left: " if free < _FULL_BYTES else ""
        raise CompileError(f"ONNX Runtime {ort.__version__} cannot compile the route {route.name!r}: {hint}{error}") from error
    return Optimised(onnx.load_model(graph, load_external_data=False), weights if streamed else None, extents)


def saved_beside(weights: Path) -> dict[str, str]:
    """Session entries that put the tensors of a saved model into a file beside it."""
    return {
        "session.optimized_model_external_initializers_file_name": weights.name,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(INLINE_BELOW_BYTES),
    }


def save_model(model: bytes, graph: Path, entries: dict[str, str], level: ort.GraphOptimizationLevel) -> None:
    """Let ONNX Runtime load a model, optimise it and save it as `graph`. Raises what ONNX Runtime raises."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that the result is for this machine only: that is what the cache's key is for
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # nothing is run, so nothing would be used again
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(graph)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    ort.InferenceSession(model, options, providers=list(PROVIDERS))


def _convolution_bytes(graph: onnx.GraphProto) -> int:
    lengths = {tensor.name: external_extent(tensor)[1] for tensor in graph.initializer}
    filters = {name for node in graph.node if node.op_type in ("Conv", "ConvTranspose") for name in node.input[1:2]}
    return sum(lengths.get(name, 0) for name in filters)
