"""Which kind of int8 is quickest: whole anchors quantised by ONNX Runtime with other types, and with their first convolutions in fp32.

Published architectures with random weights; plain sessions in turns on one thread, batch 1. Times are processor times, and of each the
lower quartile over the rounds.

  python benchmarks/int8_kinds.py [--family mobilenetv2] [--rounds 30]
"""

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from common import Result, arguments, noise, publish, quantile, take_weights_in
from families import FAMILIES, family
from int8_latency import Noise, rounds
from onnxruntime.quantization import QuantType, quantize_static

from restnet_export.quantise import folded, quiet
from restnet_runtime.compose import compose
from restnet_runtime.sessions import infer

UNSIGNED, SIGNED = QuantType.QUInt8, QuantType.QInt8
KINDS: Mapping[str, Mapping[str, Any]] = {
    "uint8 activations, int8 weights by channel (ours)": {},
    "the same by tensor": {"per_channel": False},
    "int8 activations": {"activation_type": SIGNED},
    "int8 activations, symmetric": {"activation_type": SIGNED, "extra_options": {"ActivationSymmetric": True}},
    "uint8 weights": {"weight_type": UNSIGNED},
}
LEADS = 4


def session(model: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    started = time.monotonic()
    parser = arguments(__doc__ or "")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="mobilenetv2")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    bundle = family(args.family, int8=True)
    x = noise(bundle)
    names = [anchor.name for anchor in bundle.manifest.anchors]
    result = Result("Kinds of int8, whole anchors by ONNX Runtime, against fp32", ("kind", *names))
    found: dict[str, list[float]] = {}
    for name in names:
        model = compose(bundle, bundle.route(name))
        take_weights_in(model, bundle)
        plain = folded(model)
        convolutions = [node.name for node in plain.graph.node if node.op_type == "Conv"]
        kinds = dict(KINDS) | {
            f"ours, first {count} convolutions in fp32": {"nodes_to_exclude": convolutions[:count]} for count in range(1, LEADS + 1)
        }
        with tempfile.TemporaryDirectory() as scratch, quiet():
            before, made = Path(scratch) / "plain.onnx", Path(scratch) / "int8.onnx"
            onnx.save(plain, before)
            sessions = [session(plain.SerializeToString())]
            for options in kinds.values():
                quantize_static(
                    before, made, Noise(x), **{"per_channel": True, "activation_type": UNSIGNED, "weight_type": SIGNED, **options}
                )
                sessions.append(session(str(made)))
        taken = rounds([partial(infer, one, x) for one in sessions], args.rounds)
        for kind, times in zip(kinds, taken[1:], strict=True):
            ratio = quantile(times, 0.25) / quantile(taken[0], 0.25)
            found.setdefault(kind, []).append(ratio)
            result.rows.append({"anchor": name, "kind": kind, "of_fp32": ratio})
    result.cells = [(kind, *(f"{ratio:.2f}" for ratio in ratios)) for kind, ratios in found.items()]
    publish(result, args, started)


if __name__ == "__main__":
    main()
