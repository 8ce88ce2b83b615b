"""ONNX Runtime sessions: how many threads they share, where their memory comes from, and how they are loaded.

One place decides. All sessions of the process share one arena (`session.use_env_allocators`), so that a resident route
costs its bookkeeping and not an arena of its own, and no session keeps a pool of threads spinning: pools of many
sessions that spin at once made requests 10 times slower.
"""

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnxruntime as ort

from restnet_runtime.bundle import Bundle
from restnet_runtime.cache import CompiledRoute
from restnet_runtime.compile import PROVIDERS
from restnet_runtime.errors import CompileError
from restnet_runtime.routes import Route

INPUT, OUTPUT = "x", "y"
_SHRINK_FROM_BATCH = 8  # giving memory back costs a few milliseconds, which small batches do not earn


@dataclass(frozen=True)
class SessionSettings:
    """How a session uses the processor.

    threads:  of one request within ONNX Runtime
    spin_us:  how long an idle thread of a running request waits actively for work before it sleeps
    """

    threads: int = 1
    spin_us: int = 100


@lru_cache(maxsize=1)
def share_arena() -> None:
    """Register the one arena of this process with ONNX Runtime; once, because its environment is one per process."""
    ort.disable_telemetry_events()
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # kSameAsRequested: grow by what is asked for, not by doubling.
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def load_session(compiled: CompiledRoute, settings: SessionSettings) -> ort.InferenceSession:
    """A session on a compiled route: mapped weights, optimisation off. Raises `CompileError`."""
    share_arena()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Threads spin this long before they sleep, and not after a run: docs/decisions/0004-threads.md has the measurement.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(settings.spin_us))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(str(compiled.graph), options, providers=list(PROVIDERS))
    except Exception as error:  # ONNX Runtime's own errors share no base
        raise CompileError(f"ONNX Runtime {ort.__version__} cannot load the compiled route {compiled.name!r}: {error}") from error
    trim_heap()
    return session


def trim_heap() -> None:
    """Give freed memory back to the system.

    Before ONNX Runtime finds a packed weight in the file it packs it once more, into memory that it frees at once. glibc keeps such
    memory in its heap, in pieces: without this each session of a layer of 20 MB cost another 20 MB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # not glibc otherwise
        trim(0)


def plain_session(bundle: Bundle, route: Route, settings: SessionSettings) -> ort.InferenceSession:
    """What a user would do without us: one ONNX Runtime session of its own on the joined graph, defaults and level ALL.

    The peer of every comparison and the reference of every parity check. Raises `CompileError`.
    """
    from restnet_runtime.compose import compose  # imports onnx, which serving from a warm cache does without

    joined = compose(bundle, route).SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    try:
        return ort.InferenceSession(joined, options, providers=list(PROVIDERS))
    except Exception as error:  # ONNX Runtime's own errors share no base
        raise CompileError(f"ONNX Runtime {ort.__version__} cannot load the route {route.name!r}: {error}") from error


def infer(session: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    """Run one session: x (batch, C, H, W) float32 -> logits (batch, classes) float32. After a large batch the arena gives memory back."""
    options = None
    if len(x) >= _SHRINK_FROM_BATCH:
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    logits: np.ndarray = session.run([OUTPUT], {INPUT: x}, options)[0]
    return logits
