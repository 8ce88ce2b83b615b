"""Claim: where x86 has no dot-product instructions, `session.x64quantprecision` makes int8 exact, and where it has them it only costs time.

A convolution of 64 channels with random int8 filters, its input over the whole range, in ONNX Runtime against the same in float; on this
processor, and on others that `qemu-x86_64` plays (`apt install qemu-user-static`). The times are of int8 routes on this processor.

  python benchmarks/saturation.py [--processors Haswell Nehalem]
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Floor, Result, arguments, noise, publish, quantile, take_weights_in, timed_ms

if TYPE_CHECKING:
    import onnxruntime as ort

ENTRY = "session.x64quantprecision"
ROUNDS = 30


def session(model: bytes, exact: bool, saved: Path | None = None) -> "ort.InferenceSession":
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry(ENTRY, "1")
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def convolution() -> tuple[bytes, Any, Any]:
    """A quantised convolution, its input (1, 64, 8, 8) float32, and what it answers in float64 arithmetic before its output is rounded."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    filters = rng.integers(-127, 128, (64, 64, 3, 3)).astype(np.int8)
    levels = rng.integers(0, 256, (1, 64, 8, 8))
    in_scale, scale = 1 / 255, 1 / (127 * 24)
    padded = np.pad(levels * in_scale, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = np.einsum("ncyxij,ocij->noyx", windows, filters * scale)
    span = float(np.abs(expected).max())
    constants = {
        "in_scale": np.float32(in_scale),
        "in_zero": np.uint8(0),
        "w": filters,
        "w_scale": np.float32(scale),
        "w_zero": np.int8(0),
        "out_scale": np.float32(2 * span / 255),
        "out_zero": np.uint8(128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "in_scale", "in_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "in_scale", "in_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1] * 4),
        helper.make_node("QuantizeLinear", ["c", "out_scale", "out_zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "out_scale", "out_zero"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 8, 8]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "convolution", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString(), (levels * in_scale).astype(np.float32), expected


def errors() -> dict[str, Any]:
    """On the processor that runs this: the largest error, in steps of the output, without the entry and with it."""
    import tempfile

    import numpy as np
    import onnx

    model, x, expected = convolution()
    step = 2 * float(np.abs(expected).max()) / 255
    found: dict[str, Any] = {}
    for exact in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            saved = Path(scratch) / "saved.onnx"
            answer = session(model, exact, saved).run(None, {"x": x})[0]
            kinds = {tensor.data_type for tensor in onnx.load(saved).graph.initializer if len(tensor.dims) == 4}
        name = "with" if exact else "without"
        found[name] = float(np.abs(answer - expected).max() / step)
        found[f"{name}_turned"] = kinds == {onnx.TensorProto.UINT8}
    return found


def on(processor: str) -> dict[str, Any]:
    """`errors` on another processor. Ends the program where it cannot be played."""
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        raise SystemExit("qemu-x86_64 is not installed: apt install qemu-user-static, or give --processors without any")
    command = [emulator, "-cpu", processor, sys.executable, str(Path(__file__).resolve()), "--here"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{processor}: {found.stderr.strip()[-500:] or f'ended with {found.returncode}'}")
    answer: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return answer


def slowdowns() -> dict[str, float]:
    """By int8 anchor of ResNet-18/50, what a run takes with the entry over what it takes without."""
    from families import family

    from restnet_runtime.compose import compose
    from restnet_runtime.sessions import infer

    bundle = family("resnet18-50", int8=True)
    x, found = noise(bundle), {}
    for anchor in bundle.manifest.anchors:
        model = compose(bundle, bundle.route(f"{anchor.name}@int8"))
        take_weights_in(model, bundle)
        data = model.SerializeToString()
        runs = [partial(infer, session(data, exact), x) for exact in (False, True)]
        rounds = [[timed_ms(run) for run in runs] for _ in range(ROUNDS + 1)][1:]
        found[anchor.name] = quantile([b / a for a, b in rounds], 0.5)
    return found


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__)
    parser.add_argument("--processors", nargs="*", default=("Haswell", "Nehalem"), metavar="CPU", help="as qemu names them")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(errors()))
        return
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise SystemExit(f"this is about x86-64, and the machine is {platform.machine()}")
    result = Result("Products of uint8 and int8 on x86", ("processor", "error without", "error with", "weights turned to uint8"))
    for name, found in {"this one": errors(), **{processor: on(processor) for processor in args.processors}}.items():
        turned = "yes" if found["with_turned"] and not found["without_turned"] else "no"
        result.rows.append({"processor": name, **found})
        result.cells.append((name, *(f"{found[key]:.1f} steps of the output" for key in ("without", "with")), turned))
    worst = max(row["with"] for row in result.rows)
    result.floors.append(Floor("error with the entry, on any processor", "float", "<= 1 step", f"{worst:.2f}", worst <= 1))
    for anchor, ratio in slowdowns().items():
        result.notes.append(f"{anchor}@int8 takes {ratio:.2f} times as long with the entry on this processor")
    publish(result, args, started)


if __name__ == "__main__":
    main()
