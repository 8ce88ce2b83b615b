"""Routes -> compiled routes: what ONNX Runtime makes of a whole joined network, kept so that it is made once per device.

A route's joined graph is optimised at level ALL (`optimising.py`), the weights of its products are packed (`packing.py`), and
both are merged with those of all other routes (`merging.py`, `cache.py`). A session loaded from that with optimisation off
runs like the original one and adds only its activations and bookkeeping to the process.
"""

import errno
import hashlib
import logging
import platform
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from restnet_runtime.bundle import Bundle, check_weights
from restnet_runtime.cache import Cache, CompiledRoute, DamagedCacheError, LockedCache
from restnet_runtime.catalog import LEVELS, CompiledLevel, Shortage
from restnet_runtime.errors import CompileError, RoomError, StoppedError
from restnet_runtime.precision import Filters, shared_filters
from restnet_runtime.routes import Route

if TYPE_CHECKING:
    from restnet_runtime.worker import CompileWorker

log = logging.getLogger(__name__)

PROVIDERS = ("CPUExecutionProvider",)
IMPROVE_TRIES = 3
"""So often, once a start, a route is compiled anew that there was no room to compile to the best level."""
_COMPILER_BYTES = 128 * 2**20


def cache_key(
    bundle: Bundle, cpuinfo: Path = Path("/proc/cpuinfo"), level: CompiledLevel = LEVELS[0], filters: Collection[Filters] = ()
) -> dict[str, str]:
    """Everything that makes a compiled route valid here and nowhere else. filters: kinds of quantised ones that sessions share."""
    int8 = any("int8" in route.precisions for route in bundle.routes)
    return {
        **({"filters": ",".join(sorted(filters))} if int8 else {}),
        "bundle": bundle.digest,
        "onnxruntime": ort.__version__,
        "build": hashlib.sha256(ort.get_build_info().encode()).hexdigest(),
        "machine": platform.machine(),
        "cpu": cpu_features(cpuinfo),
        "providers": ",".join(PROVIDERS),
        "level": f"all+{level}",
    }


def cpu_features(cpuinfo: Path) -> str:
    """Digest of the processor's instruction sets (`flags` on x86, `Features` on ARM); `unknown` where the kernel does not tell."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return "unknown"
    words = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.partition(":")[2].split()}
    return hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()


def need_bytes(route: Route) -> int:
    """Memory that compiling a route to the best level may take, with room to spare: the process, and weights as they are and packed."""
    return _COMPILER_BYTES + 2 * route.weight_bytes  # ResNet-50 took 150 MB in all, of which its weights are 102


class Compiler:
    """Compiles routes of one bundle into one cache: in this process, or in a worker of its own, whose memory is then its own too."""

    def __init__(
        self,
        bundle: Bundle,
        cache: Cache,
        *,
        level: CompiledLevel = LEVELS[0],
        worker: "CompileWorker | None" = None,
        filters: Collection[Filters] = (),
    ) -> None:
        self.bundle, self.cache, self.level, self.filters = bundle, cache, level, frozenset(filters)
        self.worker = worker
        self._weights_checked = bundle.weights_checked
        self._lesser: Compiler | None = None
        self._tried: set[str] = set()  # compiled in this process's time, or tried to

    @classmethod
    def for_bundle(
        cls,
        bundle: Bundle,
        cache_root: Path,
        *,
        level: CompiledLevel = LEVELS[0],
        cap_bytes: int | None = None,
        apart: bool = False,
        filters: Collection[Filters] | None = None,
    ) -> "Compiler":
        """level:      the best to make, one of `catalog.LEVELS`; less where ONNX Runtime cannot
        cap_bytes:  what all caches under `cache_root` may take together, by default as `shelf.Shelf` has it
        apart:      compile in a worker, for whoever serves at the same time; call `close` then
        filters:    kinds of quantised filters that sessions share, by default those of `precision.shared_filters`

        Raises `CompileError` if no cache can be made under `cache_root`.
        """
        if level not in LEVELS:
            raise CompileError(f"the level {level!r} is unknown: give {' or '.join(LEVELS)}")
        try:
            kinds = shared_filters(bundle) if filters is None else frozenset(filters)
            cache = Cache(cache_root, cache_key(bundle, level=level, filters=kinds), cap_bytes)
        except OSError as error:
            raise CompileError(f"no cache can be made under {cache_root}: {error}") from error
        worker = None
        if apart:
            from restnet_runtime.worker import CompileWorker, Job

            worker = CompileWorker(Job(str(bundle.path), bundle.digest, str(cache_root), level, cap_bytes, tuple(sorted(kinds))))
        return cls(bundle, cache, level=level, worker=worker, filters=kinds)

    def check_weights(self) -> None:
        """Raise `BundleError` unless weights.bin is what the manifest says; it is read once."""
        if not self._weights_checked:
            check_weights(self.bundle)
            self._weights_checked = True

    def compile(
        self,
        route: Route,
        on_compile: Callable[[Route], None] | None = None,
        level: CompiledLevel | None = None,
        *,
        anew: bool = False,
    ) -> CompiledRoute:
        """The compiled route, from the cache or made now (a fraction of a second to seconds).

        on_compile: called before a route is really compiled
        level:      the best to make of this one, if another than the compiler's
        anew:       also where the cache has it at a lesser level, and to no lesser one
        Raises `BundleError` for a bad graph or bad weights, `CompileError` when ONNX Runtime cannot make it or the cache cannot be
        written, and of these `RoomError` when there is no room for it.
        """
        try:
            return self._compile(route, on_compile, level or self.level, anew)
        except OSError as error:
            kind = RoomError if error.errno in (errno.ENOSPC, errno.EDQUOT) else CompileError
            raise kind(f"the cache {self.cache.path} cannot be used for the route {route.name!r}: {error}") from error

    def improvable(self, compiled: CompiledRoute) -> bool:
        """Whether there was no room to compile a route any better at an earlier start, and it is to be tried again."""
        shortage = compiled.shortage
        return shortage is not None and shortage.tries < IMPROVE_TRIES and compiled.name not in self._tried

    def improve(self, route: Route, on_compile: Callable[[Route], None] | None = None) -> bool:
        """Compile a route anew for which there was no room at an earlier start. Returns whether it is at the best level now.

        Tried once in this process's time and `IMPROVE_TRIES` times in the cache's. Raises what `compile` does; the cache is as it was then.
        """
        compiled = self.cache.get(route.name)
        if compiled is None or not self.improvable(compiled):
            return False
        assert compiled.shortage is not None
        self._tried.add(route.name)
        # Before it is tried: the try may be the end of this process.
        if not self._marked(route, replace(compiled.shortage, tries=compiled.shortage.tries + 1)):
            return False
        return self.compile(route, on_compile, anew=True).level == self.level

    def lesser(self) -> "Compiler | None":
        """The compiler of the next level, in a cache of its own beside this one; `None` below the last.

        Raises `CompileError` if its cache cannot be made.
        """
        below = LEVELS[LEVELS.index(self.level) + 1 :]
        if self._lesser is None and below:
            shelf = self.cache.shelf
            self._lesser = Compiler.for_bundle(
                self.bundle,
                shelf.root,
                level=below[0],
                cap_bytes=shelf.asked_bytes,
                apart=self.worker is not None,
                filters=self.filters,
            )
        return self._lesser

    def abort(self) -> None:
        """End a compile under way in the worker, and let none begin there any more; those that wait get a `StoppedError`."""
        if self._lesser is not None:
            self._lesser.abort()
        if self.worker is not None:
            self.worker.abort()

    def close(self) -> None:
        """End the worker, if there is one. A later `compile` starts another."""
        if self._lesser is not None:
            self._lesser.close()
        if self.worker is not None:
            self.worker.close()

    def release(self) -> None:
        """Let go of the cache: nothing is compiled or loaded any more."""
        if self._lesser is not None:
            self._lesser.release()
        self.cache.release()

    def _compile(self, route: Route, on_compile: Callable[[Route], None] | None, level: CompiledLevel, anew: bool) -> CompiledRoute:
        compiled = self.cache.get(route.name)
        if compiled is not None and not (anew and compiled.level != level):
            return compiled
        last = anew or level == LEVELS[-1]
        if self.worker is None:
            try:
                return self._compile_here(route, on_compile, level, anew)
            except RoomError as error:
                if last:
                    raise
                compiled = self._compile_here(route, None, LEVELS[-1], False)
                return self._lowered(route, error) or compiled
        started: list[float] = []

        def begin() -> None:
            started.append(time.perf_counter())
            if on_compile is not None and len(started) == 1:
                on_compile(route)

        try:
            self.worker.compile(route.name, begin, level, anew)
        except RoomError as error:
            if last or isinstance(error, StoppedError):
                raise
            log.warning("%s: once more at the level %s, which takes the least memory", error, LEVELS[-1])
            self.worker.compile(route.name, begin, LEVELS[-1])
            self.worker.close()  # not when it is idle, but now: there is little memory
            self._lowered(route, error)
        compiled = self.cache.get(route.name)
        if compiled is None:
            raise CompileError(f"the route {route.name!r} was compiled, but is not in the cache {self.cache.path}")
        if started:
            self._tried.add(route.name)
            self._tell(route, time.perf_counter() - started[0])
        return compiled

    def _lowered(self, route: Route, error: RoomError) -> CompiledRoute | None:
        """The route as it is in the cache, with the reason why it is at a lesser level."""
        self._tried.add(route.name)
        self._marked(route, Shortage(str(error)))
        return self.cache.get(route.name)

    def _marked(self, route: Route, shortage: Shortage) -> bool:
        with self.cache.locked() as held:
            return held.mark(route.name, shortage)

    def _tell(self, route: Route, took_s: float) -> None:
        log.info("compiled %d of %d: %s, %.1f s", len(self.cache.names()), len(self.bundle.routes), route.name, took_s)

    def _compile_here(self, route: Route, on_compile: Callable[[Route], None] | None, level: CompiledLevel, anew: bool) -> CompiledRoute:
        with self.cache.locked() as held:
            compiled = held.get(route.name)  # another process may have been quicker
            if compiled is not None and not (anew and compiled.level != level):
                return compiled
            if on_compile is not None:
                on_compile(route)
            self.check_weights()
            started = time.perf_counter()
            try:
                compiled = self._make(route, held, level)
            except DamagedCacheError:  # met in what other routes had left there
                held.drop()
                compiled = self._make(route, held, level)
            self._tell(route, time.perf_counter() - started)
            return compiled

    def _make(self, route: Route, held: LockedCache, level: CompiledLevel) -> CompiledRoute:
        # Here and not above: both import onnx, which a start from a warm cache does without.
        from restnet_runtime.merging import merge
        from restnet_runtime.optimising import optimise

        with held.scratch() as scratch:
            optimised = optimise(self.bundle, route, scratch, reorder=level != "mapped")
            with held.writer(self.bundle.weights) as writer:
                return merge(self.bundle, route, optimised, writer, self.cache.path, scratch, level, self.filters)
