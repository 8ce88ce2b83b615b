"""What the result of a run depends on, as short texts by name: compared before a run goes on from a state."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from restnet_runtime import __version__

from .cuts import CutAnchor
from .routes import StitchedRoute
from .samples import Samples
from .settings import ExportSettings

_WITHOUT_EFFECT = ("out", "workers", "progress", "resume", "checkpoint_minutes", "command")
_LOOKED_AT = 16


def run_identity(
    settings: ExportSettings, anchors: Mapping[str, CutAnchor], routes: Sequence[StitchedRoute], samples: Samples, size: int
) -> dict[str, str]:
    """Settings one by one; digests of the anchors' weights, of the routes, and of the images' labels and the first of their pixels.

    size: how many processes tune together
    """
    found = {"version": __version__, "torch": str(torch.__version__), "processes": str(size)}
    found.update(_settings(settings))
    for name, anchor in anchors.items():
        tensors = (tensor for block in anchor.blocks for tensor in block.state_dict().values())
        found[f"anchor {name}"] = _digest(tensor.contiguous().cpu().numpy().tobytes() for tensor in tensors)
    found["routes"] = _digest(route.name.encode() for route in routes)
    first = (samples.prepared(index).tobytes() for index in range(min(_LOOKED_AT, len(samples))))
    found["images"] = f"{len(samples)} {_digest([samples.images.labels.tobytes(), *first])}"
    return found


def _settings(settings: Any, prefix: str = "") -> dict[str, str]:
    found = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            found.update(_settings(value, f"{prefix}{field.name}."))
        elif field.name not in _WITHOUT_EFFECT:
            found[prefix + field.name] = str(value)
    return found


def _digest(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
