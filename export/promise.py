"""What a stitch between two cuts promises before it is made: by features (CKA), by predictions (KL), or by depth alone (windows)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .cuts import CutAnchor
from .data import Samples
from .plans import AnchorShape
from .probes import measure_divergence
from .similarity import Similarity

Select = Literal["cka", "kl", "windows"]


def measure_promise(
    select: Select, anchors: Sequence[CutAnchor], similarity: Similarity, samples: Samples
) -> Mapping[tuple[str, str], NDArray[np.float64]]:
    """[cut of the first, cut of the second], 0 at best and lower the worse, for the pairs of anchors in `similarity`.

    cka: similarity - 1. kl: minus the mean KL divergence in nats, another one for each direction. windows: minus the distance in depth,
    in stages where both have as many of them, else in shares of all blocks.
    """
    if select == "cka":
        return {pair: values - 1 for pair, values in similarity.items()}
    both = [direction for one, other in similarity for direction in ((one, other), (other, one))]
    if select == "kl":
        return {pair: -values for pair, values in measure_divergence(anchors, both, samples).items()}
    shapes = {anchor.name: AnchorShape(anchor.name, anchor.stages) for anchor in anchors}
    return {(front, end): -depth_distance(shapes[front], shapes[end]) for front, end in both}


def depth_distance(front: AnchorShape, end: AnchorShape) -> NDArray[np.float64]:
    """How far apart in depth the cuts are, float64 (d_front + 1, d_end + 1): SN-Net's windows run along where it is small."""
    by_stage = len(front.stages) == len(end.stages)
    rows, columns = (_depths(anchor.stages if by_stage else (anchor.depth,)) for anchor in (front, end))
    distances: NDArray[np.float64] = np.abs(rows[:, None] - columns[None, :])
    return distances


def _depths(stages: Sequence[int]) -> NDArray[np.float64]:
    """The depth of each cut: 0 after the stem, and one more with every stage."""
    return np.concatenate([[0.0], *(stage + np.arange(1, blocks + 1) / blocks for stage, blocks in enumerate(stages))])
