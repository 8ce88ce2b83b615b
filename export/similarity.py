"""Similarity of features: debiased linear CKA, estimated batch by batch.

Nguyen, Raghu and Kornblith, "Do wide and deep networks learn the same things?", ICLR 2021, with the unbiased HSIC_1 of
Song et al., "Feature selection via dependence maximization", JMLR 2012.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restnet_runtime.errors import ExportError

from .activations import each_activation
from .cuts import CutAnchor
from .samples import Samples

Similarity = Mapping[tuple[str, str], NDArray[np.float64]]
"""[cut of the larger, cut of the smaller] by (larger, smaller)."""

BATCH = 64
"""Images that are compared at a time: smaller batches make noisier estimates."""
MIN_BATCH = 4
"""HSIC_1 divides by n - 3."""


class MinibatchCKA:
    """Linear CKA between every tensor of one list and every tensor of another, over any number of batches.

    Keeps three small arrays of sums: memory does not grow with the number of images. Batches count by their number of images; with batches
    of equal size this is the estimator of the paper.
    """

    def __init__(self) -> None:
        self._sums: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None = None

    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        """Add one batch.

        xs, ys: features of the same B images, each (B, ...), flattened per image. A batch of fewer than `MIN_BATCH` images says
        nothing and is left out.
        Raises `ExportError` when the lists differ in length from the batch before, the images in number, or a feature is not
        finite.
        """
        sizes = {int(tensor.shape[0]) for tensor in (*xs, *ys)}
        if len(sizes) != 1 or not xs or not ys:
            raise ExportError(f"similarity: all features must be of the same images, not of {sorted(sizes)} of them")
        (size,) = sizes
        if size < MIN_BATCH:
            self._check(len(xs), len(ys))
            return
        self.add(centred_grams(xs), centred_grams(ys), size)

    def add(self, a: NDArray[np.float64], b: NDArray[np.float64], size: int) -> None:
        """Add one batch of `size` images by its `centred_grams`. Raises `ExportError` when they are not as many as in the batch before."""
        self._check(len(a), len(b))
        weight = 1 / (size - 3)  # HSIC_1 divides by n(n-3); the batch counts n times
        cross, own_a, own_b = weight * (a @ b.T), weight * (a * a).sum(1), weight * (b * b).sum(1)
        if self._sums is None:
            self._sums = (cross, own_a, own_b)
        else:
            for total, part in zip(self._sums, (cross, own_a, own_b), strict=True):
                total += part

    def _check(self, xs: int, ys: int) -> None:
        if self._sums is not None and self._sums[0].shape != (xs, ys):
            raise ExportError(f"similarity: {xs} and {ys} features after batches of {self._sums[0].shape}")

    def result(self) -> NDArray[np.float64]:
        """CKA as float64 (len(xs), len(ys)): 1 for equal features, around 0 (also below) for unrelated ones.

        Exactly 0 where a feature never varied.
        Raises `ExportError` when no batch was large enough.
        """
        if self._sums is None:
            raise ExportError(f"similarity: no batch of at least {MIN_BATCH} images was seen")
        cross, own_a, own_b = self._sums
        scale = np.sqrt(np.outer(own_a, own_b))
        return np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)


def measure_similarity(anchors: Sequence[CutAnchor], samples: Samples, nearest: bool = True) -> dict[tuple[str, str], NDArray[np.float64]]:
    """CKA [cut of the larger, cut of the smaller] for each (larger, smaller) pair of neighbours, or of any two if not `nearest`.

    Anchors are given small to large. Of a batch the Gram matrices are held, not the activations.
    """
    pairs = pairwise(anchors) if nearest else combinations(anchors, 2)
    measures = {(large.name, small.name): MinibatchCKA() for small, large in pairs}
    for images, _ in samples.batches(BATCH):
        if len(images) < MIN_BATCH:
            continue
        grams = {anchor.name: centred_grams(each_activation(anchor, images)) for anchor in anchors}
        for (large, small), measure in measures.items():
            measure.add(grams[large], grams[small], len(images))
    return {pair: measure.result() for pair, measure in measures.items()}


def centred_grams(features: Iterable[Tensor]) -> NDArray[np.float64]:
    """The U-centred Gram matrix of each feature, flattened, (len(features), B*B).

    The inner product of two of them over n(n-3) is HSIC_1 (Szekely and Rizzo, "Partial distance correlation", Annals of
    Statistics 2014), so that all pairs of features cost one matrix product.
    """
    grams = []
    for feature in features:
        flat = feature.detach().flatten(1)
        flat = flat if flat.dtype == torch.float64 else flat.float()
        # HSIC_1 does not change with a shift of the features; without their mean float32 suffices for the product.
        flat = flat - flat.mean(0, keepdim=True)
        gram = (flat @ flat.T).double().cpu().numpy()
        if not np.isfinite(gram).all():
            raise ExportError(f"similarity: a feature of shape {tuple(feature.shape)} is not finite")
        size = len(gram)
        np.fill_diagonal(gram, 0.0)
        rows = gram.sum(0) / (size - 2)
        gram = gram - rows[:, None] - rows[None, :] + gram.sum() / ((size - 1) * (size - 2))
        np.fill_diagonal(gram, 0.0)
        grams.append(gram.ravel())
    return np.stack(grams)
