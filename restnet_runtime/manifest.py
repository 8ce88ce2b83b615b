"""The manifest of a bundle, version 1: the contract between exporter and device. Specified in docs/bundle.md.

These records say what a manifest may look like (`fields.py` reads them); `bundle.py` checks that its parts fit together and match
the files.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from restnet_runtime.fields import Limits

FORMAT: Final = "restnet-bundle"
VERSION: Final = 1
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.bin"
PAGE_BYTES = 4096
"""Every tensor of weights.bin starts at a multiple of this, so that it can be mapped by itself."""

Name = Annotated[str, Limits(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~+-]{0,99}$")]
RouteName = Annotated[str, Limits(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~+>@\[\]-]{0,399}$")]
FilePath = Annotated[str, Limits(pattern=r"^(segments/|report/)?[A-Za-z0-9][A-Za-z0-9._~+-]{0,119}$")]
Sha256 = Annotated[str, Limits(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Limits(ge=0, le=2**60)]
Dim = Annotated[int, Limits(ge=1, le=2**24)]
Shape = Annotated[tuple[Dim, ...], Limits(min_length=1, max_length=6)]
Share = Annotated[float, Limits(ge=0, le=1)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size and digest of one file of the bundle."""

    sha256: Sha256
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class Input:
    """What every route takes: float32 of shape (batch, *shape)."""

    shape: Annotated[tuple[Dim, Dim, Dim], "channels, height, width"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an image file to the input: decode to `mode`, resize, crop, scale to 0..1, subtract `mean`, divide by `std`."""

    mode: Literal["L", "RGB"]
    resize: Annotated[
        Literal["squash", "shortest"],
        "squash: to the input size, whatever the aspect; shortest: shorter side to size / crop_pct, then centre crop",
    ] = "squash"
    interpolation: Literal["nearest", "box", "bilinear", "bicubic"] = "bilinear"
    crop_pct: Annotated[float, Limits(gt=0, le=1)] = 1.0
    mean: Annotated[tuple[float, ...], Limits(min_length=1, max_length=3)]
    std: Annotated[tuple[Annotated[float, Limits(gt=0)], ...], Limits(min_length=1, max_length=3)]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One precision of a segment: an ONNX graph whose large tensors lie in weights.bin."""

    file: FilePath
    weight_bytes: Count


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A block of an anchor, or a stitching layer. Shapes leave out the batch, which is the first and dynamic dimension."""

    name: Name
    kind: Literal["block", "stitch"]
    anchor: Annotated[Name | None, "blocks only: whose block it is"] = None
    module: Annotated[str, Limits(max_length=400), "where it ends in the torch module, for people"] = ""
    input_shape: Shape
    output_shape: Shape
    macs: Count
    params: Count
    graphs: Annotated[dict[Precision, Graph], Limits(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A trained network: its blocks in order, stem first, head last."""

    name: Name
    source: Annotated[str, Limits(max_length=400)] = ""
    segments: Annotated[tuple[Name, ...], Limits(min_length=1, max_length=4096)]


@dataclass(frozen=True, kw_only=True)
class RouteEntry:
    """One runnable network: segments in order, each in one precision, and what it costs and scores."""

    name: RouteName
    segments: Annotated[tuple[Name, ...], Limits(min_length=1, max_length=4096)]
    precisions: Annotated[tuple[Precision, ...], Limits(min_length=1, max_length=4096)]
    macs: Count
    params: Count
    weight_bytes: Count
    accuracy: Share | None = None
    on_front: bool


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How the bundle was made, for people and reports; the device does not act on it."""

    tool: str = ""
    rule: str = ""
    finetune: str = ""
    seed: int = 0
    fitted_on: Annotated[int, Limits(ge=0), "images the stitching layers were fitted on"] = 0
    scored_on: Annotated[int, Limits(ge=0), "held-out images behind every accuracy"] = 0
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json, version 1."""

    format: Literal["restnet-bundle"]
    version: Literal[1]
    name: Name
    task: Literal["classification"]
    classes: Annotated[tuple[Annotated[str, Limits(min_length=1, max_length=200)], ...], Limits(min_length=1, max_length=100_000)]
    input: Input
    preprocessing: Preprocessing
    anchors: Annotated[tuple[Anchor, ...], Limits(min_length=1, max_length=64)]
    segments: Annotated[tuple[Segment, ...], Limits(min_length=1, max_length=10_000)]
    routes: Annotated[tuple[RouteEntry, ...], Limits(min_length=1, max_length=10_000)]
    files: Annotated[dict[FilePath, FileEntry], Limits(min_length=1, max_length=20_000)]
    provenance: Provenance = Provenance()


def json_schema() -> str:
    """The JSON Schema of manifest.json, as it is kept in docs/bundle.schema.json: `python -m restnet_runtime.manifest > FILE`."""
    from restnet_runtime.field_schema import schema_of  # for whoever publishes it, not for a device

    return json.dumps(schema_of(Manifest), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
