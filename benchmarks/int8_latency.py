"""Int8 routes: how long they take beside their fp32 twins, and beside what ONNX Runtime's own quantiser makes of the same whole network.

Published architectures with random weights; one thread, batch 1, sessions in turns within one process. Times are processor times, and of
each the lower quartile over the rounds: what a busy machine disturbs least.

  python benchmarks/int8_latency.py --families resnet18-50 --rounds 40
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from common import CACHE, Floor, Result, arguments, noise, publish, quantile, take_weights_in
from families import FAMILIES, family
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from restnet_export.quantise import folded, quiet
from restnet_runtime.bundle import Bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.compose import compose
from restnet_runtime.precision import exact_products
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, infer, load_session

TO_TWIN, TO_WHOLE, TRANSFORMER = 0.6, 1.05, 0.8
"""Floors: an int8 route against fp32 and against the whole network quantised by ONNX Runtime; the first for transformers."""


class Noise(CalibrationDataReader):  # type: ignore[misc]  # untyped
    def __init__(self, x: np.ndarray) -> None:
        self._batches = iter([x])

    def get_next(self) -> dict[str, np.ndarray] | None:
        x = next(self._batches, None)
        return None if x is None else {"x": x}


def whole_network(bundle: Bundle, route: Route) -> ort.InferenceSession:
    """A plain session on the route's whole fp32 network, quantised at once by ONNX Runtime: static, QDQ, per channel."""
    model = compose(bundle, route)
    take_weights_in(model, bundle)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        plain, made = Path(scratch) / "plain.onnx", Path(scratch) / "int8.onnx"
        onnx.save(folded(model), plain)
        quantize_static(plain, made, Noise(noise(bundle)), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        for key, value in exact_products().items():
            options.add_session_config_entry(key, value)
        return ort.InferenceSession(str(made), options, providers=["CPUExecutionProvider"])


def processor_ms(run: Callable[[], object]) -> float:
    """Of this process, which runs on one thread: what others take is not in it."""
    started = time.process_time()
    run()
    return (time.process_time() - started) * 1e3


def rounds(runs: list[Callable[[], object]], count: int) -> list[list[float]]:
    """Processor milliseconds of each in each round, the first one not counted."""
    taken = [[processor_ms(run) for run in runs] for _ in range(count + 1)]
    return [list(column) for column in zip(*taken[1:], strict=True)]


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__ or "")
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES), default=("resnet18-50", "mobilenetv2", "deit-ti-s"))
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    result = Result("Int8 routes, one thread, batch 1", ("route", "fp32", "int8", "of fp32", "of the whole quantised network"))
    for name in args.families:
        bundle = family(name, int8=True)
        compiler = Compiler.for_bundle(bundle, CACHE)
        settings, x = SessionSettings(threads=1), noise(bundle)
        twins = [(bundle.route(route.name.removesuffix("@int8")), route) for route in bundle.routes if route.precision == "int8"]
        ratios, wholes = [], []
        for plain, int8 in twins:
            sessions = [load_session(compiler.compile(plain), settings), load_session(compiler.compile(int8), settings)]
            whole = whole_network(bundle, plain)
            runs = [partial(infer, session, x) for session in (*sessions, whole)]
            fp32_ms, int8_ms, whole_ms = (quantile(taken, 0.25) for taken in rounds(runs, args.rounds))
            ratio, to_whole = int8_ms / fp32_ms, int8_ms / whole_ms
            ratios.append(ratio)
            wholes.append(to_whole)
            figures = fp32_ms, int8_ms
            result.cells.append((plain.name, *(f"{figure:.2f} ms" for figure in figures), f"{ratio:.2f}", f"{to_whole:.2f}"))
            result.rows.append(
                {"family": name, "route": plain.name, "fp32_ms": figures[0], "int8_ms": figures[1], "of_fp32": ratio, "of_whole": to_whole}
            )
        floor = TRANSFORMER if name.startswith("deit") else TO_TWIN
        worst = max(ratios)
        result.floors.append(Floor(f"{name}: int8 route, the slowest", "its fp32 twin", f"<= {floor}x", f"{worst:.2f}x", worst <= floor))
        if not name.startswith("deit"):
            worst = max(wholes)
            what, peer = f"{name}: joined int8 route, the slowest", "ONNX Runtime's quantisation of the whole"
            result.floors.append(Floor(what, peer, f"<= {TO_WHOLE}x", f"{worst:.2f}x", worst <= TO_WHOLE))
    publish(result, args, started)


if __name__ == "__main__":
    main()
