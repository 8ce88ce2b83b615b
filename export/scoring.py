"""What routes score on held-out images."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from restnet_runtime.errors import ExportError

from .activations import cut_activations
from .cuts import CutAnchor
from .routes import StitchedRoute
from .stitching import StitchingLayer


def score_routes(
    routes: Sequence[StitchedRoute],
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> list[float]:
    """Top-1 accuracy (0..1) of each route. The early blocks of an anchor run once per batch for all routes that begin with them.

    Raises `ExportError` naming a route whose answers are not all finite.
    """
    correct = [0] * len(routes)
    total = 0
    modules = [route.module(anchors, layers) for route in routes]
    with torch.no_grad():
        for images, labels in batches:
            total += len(labels)
            known = {name: cut_activations(anchor, images) for name, anchor in anchors.items()}
            for index, route in enumerate(routes):
                x = _after_front(route, known)
                logits = modules[index][_front_steps(route) :](x)
                if not torch.isfinite(logits).all():  # argmax would take it for the first class
                    raise ExportError(f"{route.name}: answers some of the images to score on with NaN or infinity")
                correct[index] += int((logits.argmax(1) == labels).sum())
            del known  # or two batches of activations would be held while the next one is computed
    return [count / total for count in correct] if total else [math.nan] * len(routes)


def _front_steps(route: StitchedRoute) -> int:
    """How many steps of the route's first part end at a cut that is already known."""
    first = route.parts[0]
    return first.last + 1 if len(route.parts) > 1 else first.last


def _after_front(route: StitchedRoute, known: Mapping[str, Sequence[Tensor]]) -> Tensor:
    first = route.parts[0]
    return known[first.anchor][_front_steps(route) - 1]
