"""The alternatives a user has, each as a small program tuned as a competent user would, beside ours in one run.

    python benchmarks/peers.py [--family resnet18-50 deit-ti-s] [--threads 2] [--json FILE]

Every program runs in a process of its own. First each alone: seconds from its start until it has answered on every route that it
keeps ready, and its proportional set size (PSS) then. After that all of them are alive and one at a time works, in turns: requests
at batch 1 on the anchors and one stitched route, and first requests after random switches between those. Outputs are compared with
ours first (tolerance: 1e-4 of the largest logit). Latency is the median over the routes of each route's median; its ratio is over
ours, the median over rounds of the quicker runs, as in route_latency.py.

- plain, all loaded: an ONNX Runtime session per route, each from its joined graph
- plain, on demand: one at a time, the old one dropped before the new one is loaded
- on demand, optimised files: the same, from files that ONNX Runtime optimised beforehand
- chained, naive: a session per block and stitching layer with the defaults, a route is a chain of `run`
- chained, tuned: the chain with one thread pool and one arena for all sessions, activations in buffers bound beforehand
- PyTorch eager: one module with a stitch id, as the papers' code
"""

import contextlib
import random
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import (
    ROOT,
    Child,
    Result,
    arguments,
    check_same,
    chosen_routes,
    compile_all,
    in_child,
    load_all,
    noise,
    plain_file,
    publish,
    timed_ms,
)
from families import FAMILIES, QUICK, family

from restnet_runtime.turns import REST_S, median_and_p95, quickest_ratio

if TYPE_CHECKING:
    import numpy as np

    from restnet_runtime.bundle import Bundle

    Run = Callable[[str, np.ndarray], np.ndarray]
    """(name of a route, x) -> logits."""

PROVIDERS = ["CPUExecutionProvider"]


def ours(bundle: "Bundle", threads: int) -> tuple["Run", list[str]]:
    """All routes loaded; a switch replaces a reference."""
    executor = load_all(bundle, threads)

    def run(name: str, x: "np.ndarray") -> "np.ndarray":
        executor.switch(name)
        return executor.run(x).logits

    return run, list(executor.loaded)


def plain_all(bundle: "Bundle", threads: int) -> tuple["Run", list[str]]:
    """One plain session per route, all loaded."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {route.name: ort.InferenceSession(str(plain_file(bundle, route.name)), options, PROVIDERS) for route in bundle.routes}
    return lambda name, x: sessions[name].run(["y"], {"x": x})[0], list(sessions)


def on_demand(bundle: "Bundle", threads: int) -> tuple["Run", list[str]]:
    """One plain session at a time, the old one dropped before the new one is loaded."""
    return _one_at_a_time(threads, lambda name: str(plain_file(bundle, name)), chosen_routes(bundle, 1), optimise=True)


def on_demand_tuned(bundle: "Bundle", threads: int) -> tuple["Run", list[str]]:
    """The same, from files that were optimised beforehand, which makes loading them a good deal quicker."""
    return _one_at_a_time(threads, lambda name: str(optimised_file(bundle, name)), chosen_routes(bundle, 1), optimise=False)


def _one_at_a_time(threads: int, file: Callable[[str], str], names: list[str], optimise: bool) -> tuple["Run", list[str]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    loaded: dict[str, Any] = {}

    def run(name: str, x: "np.ndarray") -> "np.ndarray":
        if name not in loaded:
            loaded.clear()
            loaded[name] = ort.InferenceSession(file(name), options, PROVIDERS)
        return loaded[name].run(["y"], {"x": x})[0]

    return run, names[:1]


def optimised_file(bundle: "Bundle", name: str) -> Path:
    plain = plain_file(bundle, name)
    path = plain.with_name(f"{plain.stem}-optimised.onnx")
    if not path.exists():
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that the file is for this machine only
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{path.stem}.bin")
        ort.InferenceSession(str(plain), options, PROVIDERS)
    return path


def chained_naive(bundle: "Bundle", threads: int) -> tuple["Run", list[str]]:
    """One session per block and stitching layer with ONNX Runtime's defaults; a route is a chain of `run`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = _segment_sessions(bundle, options)

    def run(name: str, x: "np.ndarray") -> "np.ndarray":
        for segment in bundle.route(name).segments:
            x = sessions[segment].run(["y"], {"x": x})[0]
        return x

    return run, [route.name for route in bundle.routes]


def chained_tuned(bundle: "Bundle", threads: int) -> tuple["Run", list[str]]:
    """The chain with one thread pool and one arena for all sessions, and activations that stay in buffers bound beforehand."""
    import numpy as np
    import onnxruntime as ort

    ort.set_global_thread_pool_sizes(threads, 1)
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    sessions = _segment_sessions(bundle, options)

    def buffer(shape: tuple[int, ...]) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(np.zeros((1, *shape), np.float32))

    entry = buffer(bundle.manifest.input.shape)
    buffers = {name: buffer(segment.output_shape) for name, segment in bundle.segments.items()}
    chains = {}
    for route in bundle.routes:
        chain, current = [], entry
        for name in route.segments:
            binding = sessions[name].io_binding()
            binding.bind_ortvalue_input("x", current)
            binding.bind_ortvalue_output("y", buffers[name])
            chain.append((sessions[name], binding))
            current = buffers[name]
        chains[route.name] = chain, current

    def run(name: str, x: "np.ndarray") -> "np.ndarray":
        chain, last = chains[name]
        entry.update_inplace(x)
        for session, binding in chain:
            session.run_with_iobinding(binding)
        return last.numpy().copy()

    return run, list(chains)


def _segment_sessions(bundle: "Bundle", options: Any) -> dict[str, Any]:
    import onnxruntime as ort

    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    files = {name: bundle.path / segment.graphs["fp32"].file for name, segment in bundle.segments.items()}
    return {name: ort.InferenceSession(file.read_bytes(), options, PROVIDERS) for name, file in files.items()}


def eager(bundle: "Bundle", threads: int) -> tuple["Run", list[str]]:
    """PyTorch eager with a stitch id, as the papers' code."""
    import torch
    from eager import StitchedNetwork

    torch.set_num_threads(threads)
    network = StitchedNetwork(bundle).eval()
    ids = {route.name: index for index, route in enumerate(bundle.routes)}

    def run(name: str, x: "np.ndarray") -> "np.ndarray":
        with torch.inference_mode():
            return network(torch.from_numpy(x), ids[name]).numpy()

    return run, list(ids)


PEERS = {
    "ours": ours,
    "plain, all loaded": plain_all,
    "plain, on demand": on_demand,
    "on demand, optimised files": on_demand_tuned,
    "chained, naive": chained_naive,
    "chained, tuned": chained_tuned,
    "PyTorch eager": eager,
}


def work(connection: Connection, kind: str, path: Path, threads: int) -> None:
    """A peer's process: says when it is ready, then answers one request after the other."""
    from restnet_runtime.bundle import open_bundle
    from restnet_runtime.memory import footprint

    bundle = open_bundle(path)
    run, names = PEERS[kind](bundle, threads)
    x = noise(bundle)
    for name in names:
        run(name, x)
    connection.send(time.monotonic())
    while True:
        match connection.recv():
            case ("pss",):
                connection.send(footprint().pss_bytes)
            case ("logits", name):
                connection.send(run(name, x))
            case ("run", name, times):
                connection.send([timed_ms(lambda: run(name, x)) for _ in range(times + 1)][1:])
            case ("first", before, after):
                run(before, x)
                connection.send(timed_ms(lambda: run(after, x)))


def measure(bundle: "Bundle", kinds: list[str], threads: int, rounds: int, switches: int) -> list[dict[str, Any]]:
    names = chosen_routes(bundle, 1)
    for name in names:
        optimised_file(bundle, name)
    in_child(compile_all, bundle.path)
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        with Child(work, kind, bundle.path, threads) as child:
            rows.append(
                {"family": bundle.path.name, "peer": kind, "start_s": child.receive() - child.started, "pss_bytes": child.ask("pss")}
            )
    with contextlib.ExitStack() as stack:
        children = {kind: stack.enter_context(Child(work, kind, bundle.path, threads)) for kind in kinds}
        for child in children.values():
            child.receive()
        times: dict[str, dict[str, list[list[float]]]] = {kind: {name: [] for name in names} for kind in kinds}
        for name in names:
            expected = children[kinds[0]].ask("logits", name)
            for kind, child in children.items():
                check_same(f"{name} with {kind}", child.ask("logits", name), expected)
            for index in range(rounds):
                for kind in kinds[index % len(kinds) :] + kinds[: index % len(kinds)]:
                    time.sleep(REST_S)
                    times[kind][name].append(children[kind].ask("run", name, 4))
        draw, first = random.Random(0), {kind: list[float]() for kind in kinds}
        for _ in range(switches):
            before, after = draw.sample(names, 2)
            for kind, child in children.items():
                time.sleep(REST_S)
                first[kind].append(child.ask("first", before, after))
    for row in rows:
        mine, base = times[row["peer"]], times[kinds[0]]
        row["route_ms"] = {name: median_and_p95(mine[name])[0] for name in names}
        row["latency_ms"] = statistics.median(row["route_ms"].values())
        row["latency_ratio"] = statistics.median(quickest_ratio(mine[name], base[name]) for name in names)
        row["first_ms"] = statistics.median(first[row["peer"]])
        row["first_max_ms"] = max(first[row["peer"]])
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=QUICK)
    parser.add_argument("--peer", nargs="+", choices=list(PEERS)[1:], default=list(PEERS)[1:])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="of four runs for each route (%(default)s)")
    parser.add_argument("--switches", type=int, default=16)
    args = parser.parse_args()
    started = time.monotonic()
    ROOT.mkdir(parents=True, exist_ok=True)
    result = Result(
        f"Ways to keep several routes on one device, batch 1, {args.threads} threads",
        ("family", "program", "latency", "over ours", "first after a switch", "worst first", "PSS", "start"),
    )
    for name in args.family:
        for row in measure(family(name), ["ours", *args.peer], args.threads, args.rounds, args.switches):
            result.rows.append(row)
            latencies = (
                f"{row['latency_ms']:.1f} ms",
                f"{row['latency_ratio']:.2f}x",
                f"{row['first_ms']:.1f} ms",
                f"{row['first_max_ms']:.0f} ms",
            )
            result.cells.append((name, row["peer"], *latencies, f"{row['pss_bytes'] / 1e6:.0f} MB", f"{row['start_s']:.1f} s"))
    result.notes.append("on demand: PSS and start are of one route; the other programs keep every route of the family ready")
    publish(result, args, started)


if __name__ == "__main__":
    main()
