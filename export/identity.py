"""What the result of a run depends on, as short texts by name: compared before a run goes on from a state."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from restnet_runtime import __version__

from .anchors import Anchor
from .cuts import CutAnchor
from .onnx_module import OnnxModule
from .routes import StitchedRoute
from .samples import Samples
from .settings import ExportSettings

_WITHOUT_EFFECT = ("out", "workers", "device", "progress", "resume", "checkpoint_minutes", "sign", "command", "precision", "latency")
"""On what tuning finds: it ends before routes are quantised and measured, so a run may go on and do that too."""

_LOOKED_AT = 16


def run_identity(
    settings: ExportSettings,
    anchors: Mapping[str, CutAnchor],
    taught_by: str | Anchor,
    routes: Sequence[StitchedRoute],
    samples: Samples,
    size: int,
) -> dict[str, str]:
    """Settings one by one; digests of the anchors' and the teacher's weights, of the routes, and of the images' labels and first pixels.

    taught_by: an anchor by name, or another network
    size:      how many processes tune together
    """
    found = {"version": __version__, "torch": str(torch.__version__), "processes": str(size)}
    found.update(_settings(settings))
    for name, anchor in anchors.items():
        found[f"anchor {name}"] = _digest(part for block in anchor.blocks for part in _weights(block))
    found["taught by"] = taught_by if isinstance(taught_by, str) else f"{taught_by.name} {_digest(_weights(taught_by.module))}"
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


def _weights(module: nn.Module) -> Iterator[bytes]:
    """Parameters and buffers, and the graphs of what ONNX Runtime runs."""
    for tensor in module.state_dict().values():
        yield tensor.contiguous().cpu().numpy().tobytes()
    for part in module.modules():
        if isinstance(part, OnnxModule):
            yield part.model.SerializeToString(deterministic=True)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
