"""How long threads should spin before they sleep: for microseconds, within a run only, never, or by ONNX Runtime's
default; and as served, but bound to a core each, or with finer blocks of work. See docs/decisions/0004-threads.md.

    python benchmarks/thread_waiting.py [--family resnet18-50] [--route resnet18] [--threads 2] [--rounds 20] [--busy 1] [--json FILE]

Sessions of one compiled route take turns with a plain session; prints each median over the plain one's. `--busy` runs that
many processes beside it that only count.
"""

import time

import onnxruntime as ort
from common import Result, arguments, check_same, neighbours, noise, publish, timed_ms
from families import add_route_options, compiled_route

from restnet_runtime.profile import percentile
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session, share_arena
from restnet_runtime.threads import SPIN_US
from restnet_runtime.turns import REST_S

WAITING = {
    "spin in a run": {"session.force_spinning_stop": "1"},
    "20 us": {"session.intra_op.spin_duration_us": "20"},
    "100 us": {"session.intra_op.spin_duration_us": "100"},
    "never spin": {"session.intra_op.allow_spinning": "0"},
    "default": {},
}
SERVED = {"session.intra_op.spin_duration_us": str(SPIN_US), "session.force_spinning_stop": "1"}


def session(graph: str, threads: int, entries: dict[str, str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    for key, value in {"session.use_env_allocators": "1", **entries}.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = arguments(__doc__)
    add_route_options(parser, "resnet18-50", "resnet18")
    parser.add_argument("--busy", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    bundle, route, compiled = compiled_route(args)
    settings = SessionSettings(args.threads)
    share_arena()
    waiting = {
        **WAITING,
        "100 us, a core each": {**SERVED, "session.intra_op_thread_affinities": ";".join(map(str, range(2, args.threads + 1)))},
        "100 us, fine blocks": {**SERVED, "session.dynamic_block_base": "4"},
    }
    sessions = {name: session(str(compiled.graph), args.threads, entries) for name, entries in waiting.items()}
    sessions["as served"] = load_session(compiled, settings)
    sessions["plain"] = plain_session(bundle, route, settings)
    x = noise(bundle)
    expected = infer(sessions["plain"], x)
    for name, candidate in sessions.items():
        check_same(name, infer(candidate, x), expected)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    with neighbours(args.busy):
        for _ in range(args.rounds):
            for name, candidate in sessions.items():
                time.sleep(REST_S)
                infer(candidate, x)
                times[name] += [timed_ms(lambda: infer(candidate, x)) for _ in range(4)]  # noqa: B023
    plain = percentile(times["plain"], 0.5)
    medians = {name: percentile(values, 0.5) for name, values in times.items()}
    result = Result(
        f"How long threads wait actively: {args.route}, {args.threads} threads, {args.busy} busy processes beside it",
        ("waiting", "latency", "of plain"),
        [(name, f"{median:.2f} ms", f"{median / plain:.2f}x") for name, median in medians.items()],
        [{"waiting": name, "latency_ms": median, "ratio": median / plain} for name, median in medians.items()],
    )
    publish(result, args, began)


if __name__ == "__main__":
    main()
