"""ONNX Runtime sessions: where their memory comes from, how long their threads wait, and how they are loaded.

One place decides. All sessions of the process share one arena (`session.use_env_allocators`), so that a resident route
costs its bookkeeping and not an arena of its own, and no session keeps a pool of threads spinning: pools of many
sessions that spin at once made requests 10 times slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import onnxruntime as ort

from restnet_runtime.bundle import Bundle
from restnet_runtime.cache import CompiledRoute
from restnet_runtime.errors import CompileError
from restnet_runtime.heap import return_large_blocks
from restnet_runtime.manifest import Precision
from restnet_runtime.precision import exact_products
from restnet_runtime.providers import CPU, CPU_ONLY, Providers
from restnet_runtime.routes import Route
from restnet_runtime.threads import SMALL_MACS, SPIN_US

INPUT, OUTPUT = "x", "y"


@dataclass(frozen=True)
class SessionSettings:
    """How a session uses the processor.

    threads:    of one request within ONNX Runtime
    spin_us:    how long an idle thread of a running request waits actively for work before it sleeps
    providers:  execution providers; all but the CPU alone do without compiled routes
    """

    threads: int = 1
    spin_us: int = SPIN_US
    providers: Providers = CPU_ONLY

    def of(self, route: Route) -> "SessionSettings":
        """Those of one route: a small one runs on one thread."""
        return replace(self, threads=1) if route.macs < SMALL_MACS else self


@lru_cache(maxsize=1)
def share_arena() -> None:
    """Register the one arena of this process with ONNX Runtime; once, because its environment is one per process."""
    ort.disable_telemetry_events()
    return_large_blocks()
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # kSameAsRequested: grow by what is asked for, not by doubling.
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def load_session(compiled: CompiledRoute, settings: SessionSettings) -> ort.InferenceSession:
    """A session on a compiled route, on the CPU: mapped weights, optimisation off. Raises `CompileError`."""
    options = _frugal_options(settings)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if compiled.level == "mapped":
        options.add_session_config_entry("session.disable_prepacking", "1")  # or each session would hold a packed copy of its own
    return _session(str(compiled.graph), options, CPU_ONLY, f"load the compiled route {compiled.name!r}")


def joined_session(bundle: Bundle, route: Route, settings: SessionSettings) -> ort.InferenceSession:
    """A session on a route's joined graph, not compiled: weights of its own, everything else as `load_session` has it.

    For providers that compile for themselves, and where a compiled route cannot be made or loaded. Raises `CompileError`.
    """
    options = _frugal_options(settings)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return _joined(bundle, route, options, settings.providers)


def plain_session(bundle: Bundle, route: Route, settings: SessionSettings, joined: bytes | None = None) -> ort.InferenceSession:
    """What a user would do without us: one ONNX Runtime session of its own on the joined graph, defaults and level ALL.

    joined: `joined_graph(bundle, route)`, for whoever times a load: that user would have it as a file
    The peer of every comparison and the reference of every parity check. Raises `CompileError`.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = settings.threads
    return _joined(bundle, route, options, CPU_ONLY, joined)


def segment_session(bundle: Bundle, name: str, precision: Precision) -> ort.InferenceSession:
    """A plain session on one segment, for checks. Raises `BundleError` for a bad graph and `CompileError`."""
    from restnet_runtime.graphs import load_segment
    from restnet_runtime.quantised import unshare

    model = load_segment(bundle, bundle.segments[name], precision)
    unshare(model.graph)
    graph: bytes = model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    for key, value in exact_products().items():
        options.add_session_config_entry(key, value)
    return _session(graph, options, CPU_ONLY, f"load the segment {name!r} in {precision}")


def joined_graph(bundle: Bundle, route: Route) -> bytes:
    """The segments of a route as one ONNX model, its weights still in the bundle. Raises `BundleError`."""
    from restnet_runtime.compose import compose  # imports onnx, which serving from a warm cache does without

    joined: bytes = compose(bundle, route).SerializeToString()
    return joined


def infer(session: ort.InferenceSession, x: np.ndarray, *, shrink: bool = False) -> np.ndarray:
    """Run one session: x (batch, C, H, W) float32 -> logits (batch, classes) float32.

    shrink: give the memory that no run needs any more back to the system afterwards, which costs this run and the next some milliseconds
    """
    if shrink:
        return _infer_and_shrink(session, x)
    logits: np.ndarray = session.run([OUTPUT], {INPUT: x})[0]
    return logits.copy()  # what ONNX Runtime returns lies in the arena, and holds a whole block of it for as long as somebody holds it


def _infer_and_shrink(session: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    """The arena gives a block back only where nothing lies in it, and what a run returns is there still: so it is written elsewhere.

    A small answer comes to lie in any free block that is large enough. That one stayed, of every size that ran first.
    """
    classes = session.get_outputs()[0].shape[1]  # of a route that runs: `run_once` has seen it
    logits = np.empty((len(x), classes), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input(INPUT, np.ascontiguousarray(x))
    binding.bind_output(OUTPUT, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session.run_with_iobinding(binding, options)
    return logits


def providers_of(session: ort.InferenceSession) -> Sequence[str]:
    """The providers that a session really has."""
    return tuple(session.get_providers())


def _frugal_options(settings: SessionSettings) -> ort.SessionOptions:
    """For a session that shares the process with many others."""
    share_arena()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    for key, value in (
        ("session.use_env_allocators", "1"),
        # Threads spin this long before they sleep, and not after a run: docs/decisions/0004-threads.md has the measurement.
        ("session.intra_op.spin_duration_us", str(settings.spin_us)),
        ("session.force_spinning_stop", "1"),
    ):
        options.add_session_config_entry(key, value)
    return options


def _joined(
    bundle: Bundle, route: Route, options: ort.SessionOptions, providers: Providers, joined: bytes | None = None
) -> ort.InferenceSession:
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    for key, value in exact_products().items():
        options.add_session_config_entry(key, value)
    return _session(joined or joined_graph(bundle, route), options, providers, f"load the route {route.name!r}")


def _session(model: str | bytes, options: ort.SessionOptions, providers: Providers, what: str) -> ort.InferenceSession:
    named = list(zip(providers.names, providers.options, strict=True)) if providers.names != (CPU,) else [CPU]
    try:
        session = ort.InferenceSession(model, options, providers=named)
    except Exception as error:  # ONNX Runtime's own errors share no base
        raise CompileError(f"ONNX Runtime {ort.__version__} cannot {what}: {error}") from error
    return session
