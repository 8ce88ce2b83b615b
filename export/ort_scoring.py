"""What networks answer and score in ONNX Runtime, from graphs in memory: for precisions that torch does not compute."""

import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from restnet_runtime.errors import ExportError
from restnet_runtime.graphs import INPUT, OUTPUT
from restnet_runtime.precision import exact_products
from restnet_runtime.profile import percentile
from restnet_runtime.threads import usable_cores

Floats = npt.NDArray[np.float32]
Network = Callable[[], onnx.ModelProto]
"""Makes a graph when it is asked for, its weights inside, input `x` (B, C, H, W) and output `y` (B, classes)."""

_BATCH = 16
_OPEN_BYTES = 256 * 2**20
_LEAST_ROUNDS, _MOST_ROUNDS, _ROUNDS_S = 9, 61, 3.0


def answers(network: Network, images: Floats) -> Floats:
    """Logits (B, classes) of images (B, C, H, W)."""
    session = _session(network())
    return np.concatenate([_run(session, images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)])


def relative_error(expected: Floats, found: Floats) -> float:
    """Of logits (B, classes): the mean square of their difference over the variance of those expected. 1 is as bad as no answer.

    Infinity where it is not a number. Accuracy would need many more images to tell two ways apart, and what a network is sure of, such as
    its own training images, hides much.
    """
    error = float(np.square(found - expected, dtype=np.float64).mean() / max(float(expected.var(dtype=np.float64)), 1e-12))
    return error if math.isfinite(error) else math.inf


def score_networks(networks: Sequence[Network], batches: Callable[[], Iterable[tuple[Floats, npt.NDArray[np.int64]]]]) -> list[float]:
    """Top-1 accuracy (0..1) of each on batches of images (B, C, H, W) and labels (B,), which are read as often as memory asks for."""
    found: list[float] = []
    waiting = list(networks)
    while waiting:
        sessions: list[ort.InferenceSession] = []
        held = 0
        while waiting and (not sessions or held < _OPEN_BYTES):
            model = waiting.pop(0)()
            held += model.ByteSize()
            sessions.append(_session(model))
        correct, total = np.zeros(len(sessions)), 0
        for images, labels in batches():
            total += len(labels)
            for index, session in enumerate(sessions):
                for start in range(0, len(images), _BATCH):
                    part = slice(start, start + _BATCH)
                    correct[index] += int((_run(session, images[part]).argmax(1) == labels[part]).sum())
        found += [float(share) for share in correct / total] if total else [float("nan")] * len(sessions)
    return found


def latencies_ms(networks: Sequence[Network], shape: Sequence[int]) -> list[float]:
    """Of each the median of one input of that shape (C, H, W) on one thread.

    All run in turns, forwards and backwards, so that whatever disturbs the machine for longer than a moment disturbs all of them.
    """
    sessions = [_session(network(), threads=1) for network in networks]
    image = np.zeros((1, *shape), np.float32)
    times: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        _run(session, image)
    started = time.perf_counter()
    rounds = 0
    while rounds < _LEAST_ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() - started < _ROUNDS_S):
        for index in range(len(sessions)) if rounds % 2 == 0 else reversed(range(len(sessions))):
            before = time.perf_counter()
            _run(sessions[index], image)
            times[index].append((time.perf_counter() - before) * 1e3)
        rounds += 1
    return [percentile(taken, 0.5) for taken in times]


def _session(model: onnx.ModelProto, threads: int | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or usable_cores()
    for key, value in exact_products().items():  # as devices compute: without it an old processor would choose and score by wrong answers
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors share no base
        raise ExportError(f"ONNX Runtime cannot load a quantised network: {' '.join(str(error).split())[:300]}") from error


def _run(session: ort.InferenceSession, images: Floats) -> Floats:
    logits: Floats = session.run([OUTPUT], {INPUT: images})[0]
    return logits
