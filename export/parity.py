"""Whole routes of a written bundle in ONNX Runtime beside torch."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import ParityError
from restnet_runtime.sessions import SessionSettings, infer, plain_session

from .cuts import CutAnchor
from .routes import StitchedRoute
from .stitching import StitchingLayer

ROUTE_TOLERANCE = 1e-4
"""Largest difference between a whole route in ONNX Runtime and in torch, relative to the largest logit."""


def check_routes(
    bundle: Bundle,
    routes: Sequence[StitchedRoute],
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    images: torch.Tensor,
) -> None:
    """Run every route of the bundle through ONNX Runtime beside torch, on `images` (B, C, H, W) and on the first alone.

    Raises `ParityError` for a route that differs by more than ROUTE_TOLERANCE.
    """
    for route in routes:
        session = plain_session(bundle, bundle.route(route.name), SessionSettings())
        for batch in (images, images[:1]):
            with torch.no_grad():
                expected = route.module(anchors, layers)(batch).numpy()
            found = infer(session, batch.numpy())
            difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))
            if not difference <= ROUTE_TOLERANCE:
                raise ParityError(
                    f"route {route.name!r} differs from torch by {difference:.1e} of its largest logit at batch {len(batch)}, "
                    f"allowed: {ROUTE_TOLERANCE}"
                )
