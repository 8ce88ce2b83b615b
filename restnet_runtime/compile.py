"""Routes -> compiled routes: what ONNX Runtime makes of a whole joined network, kept so that it is made once per device.

A route's joined graph is optimised at level ALL and saved together with its prepacked weights
(`session.save_external_prepacked_constant_initializers`); tensors of all routes, raw and prepacked, are merged by
content into one mapped file (`cache.py`). A session loaded from that with optimisation off runs like the original one
and adds only its activations and bookkeeping to the process.
"""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from restnet_runtime.bundle import Bundle
from restnet_runtime.cache import Cache, CacheWriter, CompiledRoute, mapped
from restnet_runtime.errors import CompileError
from restnet_runtime.routes import Route

PROVIDERS = ("CPUExecutionProvider",)
_INLINE_BELOW_BYTES = 1024
_PREPACKED = "prepacked_"


def cache_key(bundle: Bundle, cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Everything that makes a compiled route valid here and nowhere else."""
    return {
        "bundle": bundle.digest,
        "onnxruntime": ort.__version__,
        "build": hashlib.sha256(ort.get_build_info().encode()).hexdigest(),
        "machine": platform.machine(),
        "cpu": cpu_features(cpuinfo),
        "providers": ",".join(PROVIDERS),
        "level": "all+prepacked",
    }


def cpu_features(cpuinfo: Path) -> str:
    """Digest of the processor's instruction sets (`flags` on x86, `Features` on ARM); `unknown` where the kernel does not tell."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return "unknown"
    words = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.partition(":")[2].split()}
    return hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()


@dataclass(frozen=True)
class Compiler:
    """Compiles routes of one bundle into one cache."""

    bundle: Bundle
    cache: Cache

    @classmethod
    def for_bundle(cls, bundle: Bundle, cache_root: Path) -> "Compiler":
        """Raises `CompileError` if no cache can be made under `cache_root`."""
        try:
            return cls(bundle, Cache(cache_root, cache_key(bundle)))
        except OSError as error:
            raise CompileError(f"no cache can be made under {cache_root}: {error}") from error

    def compile(self, route: Route, on_compile: Callable[[Route], None] | None = None) -> CompiledRoute:
        """The compiled route, from the cache or made now (a fraction of a second to seconds).

        on_compile: called before a route is really compiled.
        Raises `BundleError` for a bad graph, `CompileError` when ONNX Runtime cannot make it or the cache cannot be written.
        """
        try:
            return self._compile(route, on_compile)
        except OSError as error:
            raise CompileError(f"the cache {self.cache.path} cannot be used for the route {route.name!r}: {error}") from error

    def _compile(self, route: Route, on_compile: Callable[[Route], None] | None) -> CompiledRoute:
        compiled = self.cache.get(route.name)
        if compiled is not None:
            return compiled
        with self.cache.locked() as held:
            compiled = held.get(route.name)  # another process may have been quicker
            if compiled is not None:
                return compiled
            if on_compile is not None:
                on_compile(route)
            with held.scratch() as scratch, held.writer() as writer:
                return _merge(route.name, *self._optimise(route, scratch), writer)

    def _optimise(self, route: Route, scratch: Path) -> tuple[Path, Path]:
        """Let ONNX Runtime optimise and prepack the joined graph; return the saved graph and its external data."""
        from restnet_runtime.compose import compose  # imports onnx, which a start from a warm cache does without

        graph, weights = scratch / "route.onnx", scratch / "route.bin"
        joined = compose(self.bundle, route).SerializeToString()
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that the result is for this machine only: that is what the key is for
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(graph)
        for key, value in (
            ("session.model_external_initializers_file_folder_path", str(self.bundle.path)),
            ("session.optimized_model_external_initializers_file_name", weights.name),
            ("session.optimized_model_external_initializers_min_size_in_bytes", str(_INLINE_BELOW_BYTES)),
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(key, value)
        try:
            ort.InferenceSession(joined, options, providers=list(PROVIDERS))
        except Exception as error:  # ONNX Runtime's own errors share no base
            raise CompileError(f"ONNX Runtime {ort.__version__} cannot compile the route {route.name!r}: {error}") from error
        return graph, weights


def _merge(name: str, graph: Path, weights: Path, writer: CacheWriter) -> CompiledRoute:
    """Move a saved graph's tensors into the shared weights and point the graph there."""
    import onnx

    model = onnx.load_model(graph, load_external_data=False)
    touched: dict[int, int] = {}
    with mapped(weights) as data:

        def move(offset: int, length: int) -> int:
            return writer.place(data[offset : offset + length])

        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            fields = {item.key: item.value for item in tensor.external_data}
            prepacked = {key: value for key, value in fields.items() if key.startswith(_PREPACKED)}
            length = int(fields["length"])
            offset = move(int(fields["offset"]), length)
            if not prepacked:
                touched[offset] = length
            moved = {"location": writer.weights_name, "offset": str(offset), "length": str(length)}
            for key, value in prepacked.items():
                moved[key] = _move_prepacked(value, move, touched)
            del tensor.external_data[:]
            for key, value in moved.items():
                tensor.external_data.add(key=key, value=value)
    return writer.commit(name, model.SerializeToString(), touched.items())


def _move_prepacked(value: str, move: Callable[[int, int], int], touched: dict[int, int]) -> str:
    """Rewrite `KEY|offset;length;flag|offset;length;flag...`, ONNX Runtime's list of prepacked blocks."""
    key, *blocks = value.split("|")
    rewritten = [key]
    for block in blocks:
        offset, length, flag = block.split(";")
        if int(length):
            moved = move(int(offset), int(length))
            touched[moved] = int(length)
            offset = str(moved)
        rewritten.append(f"{offset};{length};{flag}")
    return "|".join(rewritten)
