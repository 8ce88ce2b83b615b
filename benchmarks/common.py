"""What the benchmarks share: arguments, child processes, noise and neighbours, and the result that `render.py` reads.

Nothing heavy is imported before it is needed, because some of them time a process from its start.
"""

import argparse
import json
import multiprocessing
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restnet_runtime.noise import noise as noise

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from restnet_runtime.bundle import Bundle
    from restnet_runtime.executor import Executor

REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = REPOSITORY / "build" / "benchmarks"
CACHE = ROOT / "cache"
RESULTS = ROOT / "results"
TOLERANCE = 1e-4
"""Largest difference of two outputs that is taken for the same, relative to the largest logit: what reordering float32 sums may do."""
_COUNT = "import time; end = time.time() + 300\nwhile time.time() < end: sum(range(10000))"


@dataclass(frozen=True)
class Floor:
    """One line of the floors table. met: `None` where this run could not decide (a skipped part)."""

    what: str
    against: str
    floor: str
    figure: str
    met: bool | None


@dataclass
class Result:
    """What one benchmark found. cells: the table as printed; rows: the same as numbers, for pictures and for whoever reads the JSON."""

    title: str
    header: tuple[str, ...]
    cells: list[tuple[str, ...]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def arguments(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too, with the machine's description")
    return parser


def machine_line(machine: dict[str, Any]) -> str:
    """A result's machine in words."""
    return (
        f"{machine['processor']} ({machine['machine']}), {machine['usable_cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, ONNX Runtime {machine['onnxruntime']}, "
        f"restnet-runtime {machine['restnet_runtime']}"
    )


def publish(result: Result, args: argparse.Namespace, started: float) -> None:
    """Print a result and, with `--json`, write it. started: `time.monotonic()` at the beginning."""
    from restnet_runtime.machine import describe_machine
    from restnet_runtime.tables import table

    words = {True: "met", False: "MISSED", None: "not decided"}
    print(result.title)
    if result.cells:
        print(table(result.header, result.cells))
    for floor in result.floors:
        print(f"{words[floor.met]}: {floor.what}, against {floor.against}: {floor.figure} (floor {floor.floor})")
    for note in result.notes:
        print(f"note: {note}")
    if args.json:
        document = {
            "command": command(),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "seconds": round(time.monotonic() - started, 1),
            "machine": describe_machine(),
            **asdict(result),
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def command() -> str:
    """How this benchmark was started, but for `--json`."""
    given = [part for index, part in enumerate(sys.argv) if index and part != "--json" and sys.argv[index - 1] != "--json"]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])


class Child:
    """A process of its own that runs `work(connection, *args)`, started without what the parent has loaded.

    Killed when the `with` block ends. `ask` sends a request and returns the answer; an answer that is an exception is raised.
    """

    def __init__(self, work: Callable[..., None], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, there, args), daemon=True)
        self.started = time.monotonic()
        self.process.start()
        there.close()

    def receive(self) -> Any:
        try:
            answer = self._here.recv()
        except EOFError:
            self.process.join()
            raise SystemExit(f"a measured process ended early with {self.process.exitcode}") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def ask(self, *request: object) -> Any:
        self._here.send(request)
        return self.receive()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        self.process.kill()
        self.process.join()


@contextmanager
def neighbours(count: int, apart: bool = False) -> Iterator[None]:
    """So many processes beside this one that only count. apart: each in a session of its own, as another user's would be."""
    running = [subprocess.Popen([sys.executable, "-c", _COUNT], start_new_session=apart) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def in_child(function: Callable[..., Any], *args: object) -> Any:
    """`function(*args)` in a process of its own."""
    with Child(_answer, function, args) as child:
        return child.receive()


def _answer(connection: Connection, function: Callable[..., Any], args: tuple[object, ...]) -> None:
    connection.send(function(*args))


def _serve(work: Callable[..., None], connection: Connection, args: tuple[object, ...]) -> None:
    try:
        work(connection, *args)
    except (EOFError, BrokenPipeError):
        pass  # the parent has what it wanted
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def load_all(bundle: "Bundle", threads: int, cache: Path = CACHE) -> "Executor":
    """An executor with every route of the bundle loaded and run. Exits when a route cannot be loaded."""
    from restnet_runtime.compile import Compiler
    from restnet_runtime.executor import Executor, preparation_order
    from restnet_runtime.sessions import SessionSettings

    executor = Executor(bundle, Compiler.for_bundle(bundle, cache), SessionSettings(threads))
    for name in preparation_order(bundle):
        executor.load(name)
    for name in executor.cold:  # what was measured at an earlier start has not run at this one
        executor.warm(name)
    return executor


def compile_all(path: Path, cache: Path = CACHE) -> None:
    """Compile what the cache lacks: in a process of its own before another is measured, which then finds everything compiled."""
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.compile import Compiler

    bundle = open_bundle(path)
    compiler = Compiler.for_bundle(bundle, cache)
    for route in bundle.routes:
        compiler.compile(route)


def check_same(what: str, found: "np.ndarray", expected: "np.ndarray") -> float:
    """The largest difference over the largest logit; exits when that is more than `TOLERANCE`: what differs is not worth timing."""
    difference = float(abs(found - expected).max() / abs(expected).max())
    if not difference <= TOLERANCE:
        raise SystemExit(f"{what}: outputs differ by {difference:.1e} of the largest logit")
    return difference


def chosen_routes(bundle: "Bundle", stitched: int) -> list[str]:
    """The anchors, and `stitched` of the other routes, evenly spread over their costs."""
    anchors = [anchor.name for anchor in bundle.manifest.anchors]
    others = [route.name for route in sorted(bundle.routes, key=lambda route: route.macs) if route.name not in anchors]
    step = len(others) / stitched
    return [*anchors, *(others[int((index + 0.5) * step)] for index in range(stitched))]


def timed_ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def quantile(values: Sequence[float], share: float) -> float:
    from restnet_runtime.profile import percentile

    return percentile(list(values), share)


def take_weights_in(model: "onnx.ModelProto", bundle: "Bundle") -> None:
    """Put the tensors that a graph refers to into it: ONNX's own loader refuses weights with several hard links, as a cache has."""
    import numpy as np

    from restnet_runtime.graphs import external_extent

    weights = np.memmap(bundle.weights, np.uint8, "r")
    for tensor in model.graph.initializer:
        offset, length = external_extent(tensor)
        if length:
            tensor.raw_data = weights[offset : offset + length].tobytes()
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def plain_file(bundle: "Bundle", name: str) -> Path:
    """The joined graph of a route as a file of its own that reads the bundle's weights: what a user without us would deploy."""
    folder = ROOT / "plain" / bundle.digest[:16]
    path = folder / f"{bundle.routes.index(bundle.route(name))}.onnx"
    if not path.exists():
        from restnet_runtime.compose import compose

        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "weights.bin"
        if not weights.exists():
            shutil.copyfile(bundle.path / "weights.bin", weights)  # external data lies beside its graph, and links are refused
        path.write_bytes(compose(bundle, bundle.route(name)).SerializeToString())
    return path
