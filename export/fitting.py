"""Stitching layers fitted by least squares, all of them in one pass over the images."""

from collections.abc import Mapping, Sequence

from .activations import cut_activations
from .cuts import CutAnchor
from .rules import LayerPlan
from .samples import Samples
from .stitching import StitchFit, StitchingLayer


def fit_layers(plans: Sequence[LayerPlan], anchors: Mapping[str, CutAnchor], samples: Samples) -> dict[str, StitchingLayer]:
    """Every planned stitching layer, fitted by least squares; pairs that share a layer are solved jointly, in one pass over the images."""
    layers = {
        plan.name: StitchingLayer(anchors[plan.front].layouts[plan.pairs[0][0]], anchors[plan.end].layouts[plan.pairs[0][1] - 1])
        for plan in plans
    }
    fits = {name: StitchFit(layer) for name, layer in layers.items()}
    for images, _ in samples.batches():
        known = {name: cut_activations(anchor, images) for name, anchor in anchors.items()}
        for plan in plans:
            for front_block, end_block in plan.pairs:
                fits[plan.name].add(known[plan.front][front_block], known[plan.end][end_block - 1])
    for fit in fits.values():
        fit.finish()
    return layers
