"""Calibration: between which values the activations of a family lie, so that segments that meet at a cut go together.

What arrives at a cut is spread in several ways: an anchor's block may end in ReLU and begin at zero, a stitching layer gives negative
values there too, and a route that had to keep to the anchor's range would lose them. So a segment ends in the range that its own values
have, and begins in one that holds all that arrives there. In a joined route the first of the two pairs stays (`compose.join`).
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

from restnet_runtime.compose import border, join, within
from restnet_runtime.errors import ExportError, RestnetError
from restnet_runtime.graphs import INPUT, OUTPUT

from .quantise import Range, quiet

Method = Literal["minmax", "percentile", "entropy"]
METHODS: dict[Method, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
"""ONNX Runtime's: the whole range, all but 0.001 % of the values at either end, or what loses the least of the distribution's entropy."""

_RUN_BYTES = 128 * 2**20
"""Of all activations of a run together: histograms are made of whole runs."""

_MOST_IMAGES = 32

_ENTROPY_BINS = 256
"""Of a histogram, twice as many as it is rounded to. ONNX Runtime's own 128 leave one range to choose: the whole."""


@dataclass(frozen=True)
class Cuts:
    """Where segments meet. ends: by segment, the cut at which it begins and the one at which it ends, as numbers."""

    ends: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, routes: Iterable[Sequence[str]], alike: Mapping[str, str] | None = None) -> "Cuts":
        """Two segments that follow each other in any route meet: the end of the one is the beginning of the other.

        alike: segments that end where another one does, by name: folded stitching layers and the blocks that they hold
        """
        parent: dict[tuple[str, int], tuple[str, int]] = {}

        def root(side: tuple[str, int]) -> tuple[str, int]:
            parent.setdefault(side, side)
            while parent[side] != side:
                side = parent[side]
            return side

        for segments in routes:
            for name in segments:
                root((name, 0))
                root((name, 1))
            for before, after in pairwise(segments):
                parent[root((after, 0))] = root((before, 1))
        for name, other in (alike or {}).items():
            if (name, 1) in parent and (other, 1) in parent:
                parent[root((name, 1))] = root((other, 1))
        numbers: dict[tuple[str, int], int] = {}
        for side in parent:
            numbers.setdefault(root(side), len(numbers))
        return cls({name: (numbers[root((name, 0))], numbers[root((name, 1))]) for name, _ in parent})


def calibrate(
    anchors: Mapping[str, Sequence[str]],
    cuts: Cuts,
    models: Mapping[str, onnx.ModelProto],
    images: Callable[[], Iterable[npt.NDArray[np.float32]]],
    method: Method,
) -> dict[str, dict[str, Range]]:
    """The range of every value of every segment, by segment and name.

    anchors: the blocks of each, in order; a segment that is no block begins at a cut of one of them
    models:  folded segments by name, input `x` and output `y`
    images:  gives batches (B, C, H, W), once for each anchor; about `_RUN_BYTES` of activations are held at a time
    A value that is not finite for some image has no range. Raises `ExportError` if ONNX Runtime cannot calibrate an anchor.
    """
    found: dict[str, dict[str, Range]] = {}
    beside = [name for name in cuts.ends if not any(name in blocks for blocks in anchors.values())]
    for anchor, blocks in anchors.items():
        at = {cuts.ends[block][1]: block for block in blocks[:-1]}
        hanging = [(name, at[cuts.ends[name][0]]) for name in beside if cuts.ends[name][0] in at]
        graph = _with_branches(blocks, hanging, models)
        try:
            measured = _measure(graph, images(), method)
        except RestnetError:  # of the images
            raise
        except Exception as error:  # the calibrator fails in as many ways as there are operators
            raise ExportError(
                f"anchor {anchor}: ONNX Runtime cannot calibrate it by {method}: {' '.join(str(error).split())[:300]}"
            ) from error
        for name in (*blocks, *(name for name, _ in hanging)):
            prefix = f"{name}/"
            found[name] = {value.removeprefix(prefix): span for value, span in measured.items() if value.startswith(prefix)}
            end = OUTPUT if name == blocks[-1] else border(name)
            if end in measured:
                found[name][OUTPUT] = measured[end]
        if INPUT in measured:
            found[blocks[0]][INPUT] = measured[INPUT]
    _widen(found, cuts)
    return found


def _with_branches(blocks: Sequence[str], hanging: Sequence[tuple[str, str]], models: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """An anchor, and beside it all that begins at one of its cuts: (segment, block before it)."""
    first, last = models[blocks[0]], models[blocks[-1]]
    graph = join([(name, models[name]) for name in blocks], _shape(first.graph.input[0]), _shape(last.graph.output[0])[0])
    for name, block in hanging:
        branch = within(models[name].graph, name, border(block), border(name))
        graph.graph.node.extend(branch.node)
        graph.graph.initializer.extend(branch.initializer)
        output = graph.graph.output.add()
        output.CopyFrom(models[name].graph.output[0])
        output.name = border(name)
    return graph


def _measure(model: onnx.ModelProto, images: Iterable[npt.NDArray[np.float32]], method: Method) -> dict[str, Range]:
    size = _images_at_once(model)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        path = Path(scratch) / "anchor.onnx"
        onnx.save(model, path)
        calibrator: Any = create_calibrator(
            path,
            None,
            augmented_model_path=str(Path(scratch) / "calibrated.onnx"),
            calibrate_method=METHODS[method],
            extra_options={"num_bins": _ENTROPY_BINS} if method == "entropy" else {},
        )
        for batch in images:
            for start in range(0, len(batch), size):
                calibrator.collect_data(_Once(batch[start : start + size]))
        spans = {name: _range(data) for name, data in calibrator.compute_data().items()}
    return {name: span for name, span in spans.items() if np.isfinite(span).all()}


def _widen(found: dict[str, dict[str, Range]], cuts: Cuts) -> None:
    """Let every segment begin with the range of all that arrives there."""
    arriving: dict[int, list[Range]] = {}
    for name, spans in found.items():
        if OUTPUT in spans:
            arriving.setdefault(cuts.ends[name][1], []).append(spans[OUTPUT])
    for name, spans in found.items():
        ranges = arriving.get(cuts.ends[name][0])
        if ranges:
            spans[INPUT] = min(low for low, _ in ranges), max(high for _, high in ranges)


def _images_at_once(model: onnx.ModelProto) -> int:
    shaped = save_and_reload_model_with_shape_infer(model)
    floats = sum(
        int(np.prod([dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim], dtype=np.int64)) for value in shaped.graph.value_info
    )
    return max(1, min(_MOST_IMAGES, _RUN_BYTES // max(1, 4 * floats)))


def _range(data: Any) -> Range:
    low, high = data.range_value
    return float(np.min(low)), float(np.max(high))


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]


class _Once(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """One batch."""

    def __init__(self, batch: npt.NDArray[np.float32]) -> None:
        self._batches: Iterator[npt.NDArray[np.float32]] = iter([batch])

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
