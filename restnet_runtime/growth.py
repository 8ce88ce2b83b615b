"""Growth: how much memory a process has as it loads one route after the other, measured in a process of its own.

The process is a new one (spawned, not forked), so nothing that this one has loaded counts. It loads a route when it is told
to, runs it once, and answers with its PSS: then this process looks whether the device has room for the next. Libraries that
another process has loaded too count there in part: measure with nothing else of this environment running.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError, RestnetError
from restnet_runtime.executor import Executor
from restnet_runtime.heap import trim_heap
from restnet_runtime.memory import footprint
from restnet_runtime.routes import Route
from restnet_runtime.sensors import Sensors
from restnet_runtime.sessions import SessionSettings, infer, plain_session
from restnet_runtime.units import format_bytes

RESERVE_BYTES = 64 * 2**20
"""Left to everybody else on the device."""

Kind = Literal["compiled", "plain"]


@dataclass(frozen=True)
class Growth:
    """PSS of the process.

    idle_bytes:  before the first route, everything imported, bundle open
    after:       (route, bytes) once the route is loaded and has run, with all before it still loaded
    failed:      routes that cannot be loaded, and why; the others go on without them
    stopped:     why it ended before the last route, else `None`
    """

    idle_bytes: int
    after: tuple[tuple[str, int], ...]
    failed: dict[str, str]
    stopped: str | None

    @property
    def pss_bytes(self) -> int | None:
        """With all routes that were loaded; `None` if none was."""
        return self.after[-1][1] if self.after else None

    @property
    def why_fewer(self) -> str | None:
        """Why fewer routes were loaded than were asked for; `None` when all were."""
        reasons = [f"{name}: {why}" for name, why in self.failed.items()] + ([self.stopped] if self.stopped else [])
        return "; ".join(reasons) or None


def plain_need_bytes(route: Route) -> int:
    """The most that a plain session of the route takes while it is made: weights and their prepacked copy, at once."""
    # 1.07 (DeiT-B) to 2.01 (ResNet-18) times the weights, and 11 MB for a network of next to none.
    return route.weight_bytes * 9 // 4 + 16 * 2**20


def room_for_plain(route: Route, available_bytes: int | None) -> str | None:
    """`None` if a plain session of the route can be made without harm, else why not. What is unknown does not hinder."""
    need = plain_need_bytes(route)
    if available_bytes is None or available_bytes >= need + RESERVE_BYTES:
        return None
    return (
        f"a plain session of {route.name} may take {format_bytes(need)} while it is made; "
        f"{format_bytes(max(0, available_bytes))} are available, of which {format_bytes(RESERVE_BYTES)} are left to others"
    )


def memory_available_bytes() -> int | None:
    """What this device and the control groups of this process leave."""
    return Sensors().read().memory_available_bytes


def measure_growth(
    bundle: Bundle,
    names: Sequence[str],
    kind: Kind,
    *,
    cache_root: Path,
    threads: int,
    available: Callable[[], int | None] = memory_available_bytes,
    on_route: Callable[[str], object] = lambda _: None,
) -> Growth:
    """Load the routes `names` in that order in a process of its own, keep them, and weigh it after each.

    kind:      routes as they are served (`compiled`, from the cache, where they are put if they are not there), or as a plain
               ONNX Runtime session each
    available: memory that a plain session may still take; asked before each
    on_route:  told each route before it is loaded
    Raises `CompileError` when the process does not even start.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, bundle.path, kind, cache_root, threads), daemon=True)
    process.start()
    there.close()
    after: list[tuple[str, int]] = []
    failed: dict[str, str] = {}
    stopped: str | None = None
    doing = "started"
    try:
        idle_bytes = _answer(here)
        for name in names:
            stopped = room_for_plain(bundle.route(name), available()) if kind == "plain" else None
            if stopped is not None:
                break
            on_route(name)
            doing = f"loaded {name}"
            here.send(name)
            try:
                after.append((name, _answer(here)))
            except CompileError as error:
                failed[name] = str(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        process.join()
        stopped = f"the process that held the routes {_ending(process.exitcode)} while it {doing}"
        if doing == "started":
            raise CompileError(stopped) from None
    finally:
        here.close()
        process.kill()
        process.join()
        process.close()
    return Growth(idle_bytes, tuple(after), failed, stopped)


def _answer(connection: Connection) -> int:
    answer = connection.recv()
    if isinstance(answer, str):
        raise CompileError(answer)
    return int(answer)


def _ending(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"ended with {exitcode}"
    hint = " (out of memory?)" if exitcode == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-exitcode).name}{hint}"


def _serve(connection: Connection, path: Path, kind: Kind, cache_root: Path, threads: int) -> None:
    """In the new process: load what is asked for; answer with PSS, or with what is wrong."""
    _volunteer()
    try:
        bundle = open_bundle(path)
        settings = SessionSettings(threads)
        load = _plain(bundle, settings) if kind == "plain" else _compiled(bundle, cache_root, settings)
        trim_heap()
        connection.send(footprint().pss_bytes)
        while True:
            name = connection.recv()
            try:
                load(name)
                trim_heap()
                connection.send(footprint().pss_bytes)
            except Exception as error:  # whatever it is, the other routes can still be loaded
                connection.send(str(error) or repr(error))
    except (EOFError, BrokenPipeError):
        pass  # the parent has seen enough
    except (RestnetError, OSError) as error:
        connection.send(str(error))


def _compiled(bundle: Bundle, cache_root: Path, settings: SessionSettings) -> Callable[[str], None]:
    executor = Executor(bundle, Compiler.for_bundle(bundle, cache_root), settings)

    def load(name: str) -> None:
        executor.load(name)
        executor.run(_example(bundle), name)

    return load


def _plain(bundle: Bundle, settings: SessionSettings) -> Callable[[str], None]:
    import restnet_runtime.compose  # noqa: F401  # it counts as idle: who has one file per route needs no `onnx`

    sessions = []

    def load(name: str) -> None:
        sessions.append(plain_session(bundle, bundle.route(name), settings))
        infer(sessions[-1], _example(bundle))

    return load


def _example(bundle: Bundle) -> np.ndarray:
    return np.zeros((1, *bundle.manifest.input.shape), np.float32)


def _volunteer() -> None:
    """If memory runs out all the same, let the kernel end this process and no other."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
