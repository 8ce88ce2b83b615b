"""Where a route is slower or faster than a plain session: ONNX Runtime's own profile of both, operator by operator.

    python benchmarks/operator_profile.py [--family deit-ti-s] [--route deit-tiny-patch16-224] [--batch 8] [--threads 2] [--json FILE]

Both take turns, a rest, one run that is not counted and two that are. Time in operators is the sum over nodes of the median over
runs; what a request takes beside it (waking threads, walking the graph, the profiler itself) is the last row. Two sessions alike
("plain again") show how far two equal programs lie apart here, and "ours, spinning" how much of it is waiting.
"""

import json
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort
from common import Result, arguments, check_same, noise, publish, timed_ms
from families import add_route_options, compiled_route

from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session
from restnet_runtime.turns import REST_S

COUNTED = 2
DEFAULT_SPIN_US = 1_000_000  # longer than any run: threads wait actively until the run is over


@contextmanager
def profiling(folder: str) -> Iterator[None]:
    """Sessions that are made meanwhile, by whatever function, have ONNX Runtime's profiler on."""
    plain = ort.SessionOptions

    def options() -> ort.SessionOptions:
        made = plain()
        made.enable_profiling = True
        made.profile_file_prefix = f"{folder}/profile"
        return made

    ort.SessionOptions = options
    try:
        yield
    finally:
        ort.SessionOptions = plain


class Profiled:
    """A session whose runs ONNX Runtime profiles, and what its counted runs took as a whole."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.times: list[float] = []

    def operators_ms(self, runs: int) -> tuple[Counter[str], Counter[str]]:
        """Milliseconds a run and nodes, by operator; of the last `runs` rounds' counted runs."""
        path = Path(self.session.end_profiling())
        events = json.loads(path.read_text())
        path.unlink()
        nodes: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
        took: Counter[str] = Counter()
        count: Counter[str] = Counter()
        for (operator, _), durations in nodes.items():
            took[operator] += statistics.median(durations[-runs * (COUNTED + 1) :])  # type: ignore[assignment]
            count[operator] += 1
        return took, count


def main() -> None:
    parser = arguments(__doc__)
    add_route_options(parser, "deit-ti-s", "deit-tiny-patch16-224")
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    began = time.monotonic()
    bundle, route, compiled = compiled_route(args)
    settings = SessionSettings(args.threads)
    with tempfile.TemporaryDirectory() as folder, profiling(folder):
        programs = {
            "ours": Profiled(load_session(compiled, settings)),
            "ours, spinning": Profiled(load_session(compiled, SessionSettings(args.threads, spin_us=DEFAULT_SPIN_US))),
            "plain": Profiled(plain_session(bundle, route, settings)),
            "plain again": Profiled(plain_session(bundle, route, settings)),
        }
        x = noise(bundle, args.batch)
        expected = infer(programs["plain"].session, x)
        order = list(programs)
        for name, program in programs.items():
            check_same(name, infer(program.session, x), expected)
        for number in range(args.rounds):
            for name in order[number % 4 :] + order[: number % 4]:
                session = programs[name].session
                time.sleep(REST_S)
                infer(session, x)
                programs[name].times += [timed_ms(lambda: infer(session, x)) for _ in range(COUNTED)]  # noqa: B023
        tables = {name: program.operators_ms(args.rounds) for name, program in programs.items()}
    medians = {name: statistics.median(program.times) for name, program in programs.items()}
    operators = [operator for operator, _ in sum((took for took, _ in tables.values()), Counter()).most_common()]
    result = Result(
        f"By operator: {args.route}, batch {args.batch}, {args.threads} threads, {args.rounds} rounds",
        ("operator", "nodes, ours", "nodes, plain", *(f"{name}, ms" for name in programs), "ours / plain"),
    )
    for operator in operators:
        row = {name: tables[name][0][operator] for name in programs}
        result.rows.append({"operator": operator, "nodes": tables["ours"][1][operator], "plain_nodes": tables["plain"][1][operator], **row})
    inside = {name: sum(tables[name][0].values()) for name in programs}
    result.rows.append(
        {"operator": "beside the operators", "nodes": "", "plain_nodes": "", **{n: medians[n] - inside[n] for n in programs}}
    )
    result.rows.append({"operator": "a request", "nodes": "", "plain_nodes": "", **medians})
    for row in result.rows:
        ratio = f"{row['ours'] / row['plain']:.3f}" if row["plain"] else ""
        figures = (f"{row[name]:.2f}" for name in programs)
        result.cells.append((row["operator"], str(row["nodes"] or ""), str(row["plain_nodes"] or ""), *figures, ratio))
    publish(result, args, began)


if __name__ == "__main__":
    main()
