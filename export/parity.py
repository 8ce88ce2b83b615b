"""Whole routes of a written bundle in ONNX Runtime beside torch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
import torch

from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import ParityError
from restnet_runtime.sessions import SessionSettings, infer, plain_session, segment_session

from .cuts import CutAnchor
from .ort_scoring import Floats, relative_error
from .routes import StitchedRoute
from .stitching import StitchingLayer

ROUTE_TOLERANCE = 1e-4
"""Largest difference between a whole route in ONNX Runtime and in torch, relative to the largest logit."""


CHAIN_ERROR = 0.02
"""Largest error of a route in integers run segment by segment, against the joined route, relative to the variance of its logits.

The two are not the same to the last bit: by itself a segment quantises once more what it is given, in a range that may be wider than that
of what arrives, and a few values fall on the other side of a half step. Where quantising costs a route more than that, more is allowed:
twice the error against the route in fp32, of the joined route or the chain, whichever is smaller.
"""


def check_chains(bundle: Bundle, twins: Mapping[str, str], images: torch.Tensor) -> float:
    """Run routes of any precision segment by segment and joined, on `images` (B, C, H, W); the largest error, as `CHAIN_ERROR` has it.

    twins: for every route to check, the name of the one of the same segments in fp32
    Raises `ParityError` for a route beyond that.
    """
    plain = {twin: _logits(bundle, twin, images) for twin in set(twins.values())}
    sessions: dict[tuple[str, str], ort.InferenceSession] = {}
    largest = 0.0
    for name, twin in twins.items():
        route = bundle.route(name)
        values = images.numpy()
        for segment, precision in zip(route.segments, route.precisions, strict=True):
            if (segment, precision) not in sessions:
                sessions[segment, precision] = segment_session(bundle, segment, precision)
            values = infer(sessions[segment, precision], values)
        joined = _logits(bundle, name, images)
        error = relative_error(joined, values)
        allowed = max(CHAIN_ERROR, 2 * min(relative_error(plain[twin], joined), relative_error(plain[twin], values)))
        largest = max(largest, error)
        if not error <= allowed or error == math.inf:
            raise ParityError(f"route {name!r} joined differs from its segments by {error:.1e} of the variance, allowed: {allowed:.1e}")
    return largest


def _logits(bundle: Bundle, route: str, images: torch.Tensor) -> Floats:
    return infer(plain_session(bundle, bundle.route(route), SessionSettings()), images.numpy())


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
