"""Execution providers: which were asked for, which this ONNX Runtime really has, and what has to be said about that.

Only the CPU provider runs compiled routes (`compile.py`). Any other gets each route's joined graph as a session of its own and
makes of it what it likes; what it does not take runs on the CPU. Only the CPU provider is tested here; the others are configured as
ONNX Runtime's documentation says (onnxruntime.ai/docs/execution-providers) and are marked untested wherever they are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.errors import CompileError
from restnet_runtime.shelf import ENGINES

CPU = "CPUExecutionProvider"
NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "acl": "ACLExecutionProvider",
    "armnn": "ArmNNExecutionProvider",
}
"""Short names that commands take; ONNX Runtime's own names are taken too."""


@dataclass(frozen=True)
class Providers:
    """What sessions are given.

    names:    ONNX Runtime's names, most wanted first, the CPU last
    options:  of each of them, in the same order
    notes:    for people: what was asked for and is missing, what is untested
    """

    names: tuple[str, ...] = (CPU,)
    options: tuple[dict[str, str], ...] = ({},)
    notes: tuple[str, ...] = ()

    @property
    def cpu_only(self) -> bool:
        return self.names == (CPU,)


CPU_ONLY = Providers()


def choose_providers(asked: Sequence[str], available: Sequence[str], cache: Path, threads: int) -> Providers:
    """Of those asked for, the ones that are there, and the CPU behind them.

    available:  `onnxruntime.get_available_providers()`
    cache:      where engines that a provider builds are kept (TensorRT takes minutes for one)
    Raises `CompileError` for a name that no ONNX Runtime has.
    """
    names: list[str] = []
    notes: list[str] = []
    for short in asked:
        name = NAMES.get(short.lower(), short)
        if name not in NAMES.values() and name not in available:
            raise CompileError(f"unknown execution provider {short!r}: known are {', '.join(NAMES)}, here also {', '.join(available)}")
        if name in (CPU, *names):
            continue
        if name not in available:
            notes.append(f"{name} is not in this ONNX Runtime, which has {', '.join(available)}: falling back to the next, at last the CPU")
            continue
        notes.append(f"{name} is untested with this version")
        names.append(name)
    return Providers((*names, CPU), tuple(_options(name, cache, threads) for name in (*names, CPU)), tuple(notes))


def missing_note(asked: Sequence[str], got: Sequence[str]) -> str | None:
    """ONNX Runtime drops a provider whose libraries do not load and says so in its log alone. `None` when all are there."""
    lost = [name for name in asked if name not in got]
    return f"{', '.join(lost)} did not start (its libraries or device are missing): running on {', '.join(got)}" if lost else None


def _options(name: str, cache: Path, threads: int) -> dict[str, str]:
    if name == "TensorrtExecutionProvider":
        engines = str(cache / ENGINES)
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": engines,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": engines,
        }
    if name == "CUDAExecutionProvider":
        # The exhaustive search of convolution algorithms makes a first run take seconds.
        return {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    if name == "XnnpackExecutionProvider":
        return {"intra_op_num_threads": str(threads)}
    return {}
