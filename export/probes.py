"""Probes: what class each cut of an anchor already tells, and how far the cuts of two anchors differ in it.

After Sanyal et al., "KLAS: Using Similarity to Stitch Neural Networks for Improved Accuracy-Efficiency Tradeoffs", ICLR 2026, which ranks
stitches by the KL divergence between intermediate predictions. The probes here are in closed form: ridge least squares from the pooled
activation to the anchor's own logits, so that no labels are needed.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from restnet_runtime.errors import ExportError

from .activations import cut_activations
from .cuts import CutAnchor
from .data import Samples
from .layouts import Layout
from .least_squares import Moments, solve

RIDGE = 1.0
"""Relative to the mean variance of the pooled channels: strong, as a probe has about as many numbers as there are images."""


class Probe:
    """A linear map from a pooled cut to the logits of its anchor."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._moments: Moments | None = None

    def add(self, activation: Tensor, logits: Tensor) -> None:
        """One batch to fit on: (B, *layout.shape) and (B, classes)."""
        moments = Moments.of(pooled(activation, self._layout), logits)
        self._moments = moments if self._moments is None else self._moments + moments

    def finish(self) -> None:
        """Solve. Raises `ExportError` when nothing was added."""
        if self._moments is None:
            raise ExportError("probe: no image was seen")
        self._weight, self._bias = solve(self._moments, RIDGE)

    def log_probabilities(self, activation: Tensor) -> Tensor:
        """float64 (B, classes)."""
        rows = pooled(activation, self._layout).double()
        return torch.log_softmax(functional.linear(rows, self._weight, self._bias), 1)


class MeanKL:
    """Mean KL(front || end) in nats between every prediction of one list and every one of another, over any number of batches.

    Keeps two small arrays of sums: memory does not grow with the number of images.
    """

    def __init__(self) -> None:
        self._images = 0
        self._cross: NDArray[np.float64] | float = 0.0
        self._own: NDArray[np.float64] | float = 0.0

    def update(self, fronts: Sequence[Tensor], ends: Sequence[Tensor]) -> None:
        """Add log-probabilities of the same B images, each (B, classes)."""
        front, end = torch.stack(list(fronts)).flatten(1), torch.stack(list(ends)).flatten(1)
        told = front.exp()
        self._own = self._own + (told * front).sum(1).cpu().numpy()
        self._cross = self._cross + (told @ end.T).cpu().numpy()
        self._images += len(fronts[0])

    def result(self) -> NDArray[np.float64]:
        """float64 (len(fronts), len(ends)), at least 0. Raises `ExportError` when no batch was seen."""
        if not self._images:
            raise ExportError("similarity: no image was seen by the probes")
        return np.maximum((np.reshape(self._own, (-1, 1)) - self._cross) / self._images, 0.0)


def measure_divergence(
    anchors: Sequence[CutAnchor], pairs: Iterable[tuple[str, str]], samples: Samples
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Mean KL [cut of the front, cut of the end] for each (front, end): how much of what the front tells the end would not expect.

    Every second image fits the probes, the others are what they are compared on; the images are gone through twice, and none is kept.
    """
    probes = {anchor.name: [Probe(layout) for layout in anchor.layouts] for anchor in anchors}
    for images, _ in samples.batches():
        for anchor in anchors:
            activations = cut_activations(anchor, images[::2])
            with torch.no_grad():
                logits = anchor.blocks[-1](activations[-1])
            for probe, activation in zip(probes[anchor.name], activations, strict=True):
                probe.add(activation, logits)
    for probe in (probe for of_anchor in probes.values() for probe in of_anchor):
        probe.finish()
    means = {pair: MeanKL() for pair in pairs}
    for images, _ in samples.batches():
        if len(images) < 2:
            continue
        told = {
            anchor.name: [
                probe.log_probabilities(activation)
                for probe, activation in zip(probes[anchor.name], cut_activations(anchor, images[1::2]), strict=True)
            ]
            for anchor in anchors
        }
        for (front, end), mean in means.items():
            mean.update(told[front], told[end])
    return {pair: mean.result() for pair, mean in means.items()}


def pooled(activation: Tensor, layout: Layout) -> Tensor:
    """The mean over the grid beside the prefix tokens, where there are any: (B, (1 + prefix) * channels)."""
    if layout.kind == "map":
        return activation.mean((2, 3))
    if layout.kind == "map_last":
        return activation.mean((1, 2))
    if layout.kind == "vector":
        return activation
    return torch.cat([activation[:, : layout.prefix].flatten(1), activation[:, layout.prefix :].mean(1)], 1)
