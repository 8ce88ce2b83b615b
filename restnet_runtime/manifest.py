"""The manifest of a bundle, version 1: the contract between exporter and device. Specified in docs/bundle.md.

These models say what a manifest may look like; `bundle.py` checks that its parts fit together and match the files.
"""

import json
import sys
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

FORMAT: Final = "restnet-bundle"
VERSION = 1
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.bin"
PAGE_BYTES = 4096
"""Every tensor of weights.bin starts at a multiple of this, so that it can be mapped by itself."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~+-]{0,99}$")]
RouteName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~+>@\[\]-]{0,399}$")]
FilePath = Annotated[str, StringConstraints(pattern=r"^(segments/|report/)?[A-Za-z0-9][A-Za-z0-9._~+-]{0,119}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**60)]
Dim = Annotated[int, Field(ge=1, le=2**24)]
Shape = Annotated[tuple[Dim, ...], Field(min_length=1, max_length=6)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Model):
    """Size and digest of one file of the bundle."""

    sha256: Sha256
    bytes: Count


class Input(_Model):
    """What every route takes: float32 of shape (batch, *shape)."""

    shape: Annotated[tuple[Dim, Dim, Dim], Field(description="channels, height, width")]


class Preprocessing(_Model):
    """From an image file to the input: decode to `mode`, resize, crop, scale to 0..1, subtract `mean`, divide by `std`."""

    mode: Literal["L", "RGB"]
    resize: Annotated[
        Literal["squash", "shortest"],
        Field(description="squash: to the input size, whatever the aspect; shortest: shorter side to size / crop_pct, then centre crop"),
    ] = "squash"
    interpolation: Literal["nearest", "box", "bilinear", "bicubic"] = "bilinear"
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=3)]


class Graph(_Model):
    """One precision of a segment: an ONNX graph whose large tensors lie in weights.bin."""

    file: FilePath
    weight_bytes: Count


class Segment(_Model):
    """A block of an anchor, or a stitching layer. Shapes leave out the batch, which is the first and dynamic dimension."""

    name: Name
    kind: Literal["block", "stitch"]
    anchor: Annotated[Name | None, Field(description="blocks only: whose block it is")] = None
    module: Annotated[str, Field(max_length=400, description="where it ends in the torch module, for people")] = ""
    input_shape: Shape
    output_shape: Shape
    macs: Count
    params: Count
    graphs: Annotated[dict[Precision, Graph], Field(min_length=1)]


class Anchor(_Model):
    """A trained network: its blocks in order, stem first, head last."""

    name: Name
    source: Annotated[str, Field(max_length=400)] = ""
    segments: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]


class RouteEntry(_Model):
    """One runnable network: segments in order, each in one precision, and what it costs and scores."""

    name: RouteName
    segments: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1, max_length=4096)]
    macs: Count
    params: Count
    weight_bytes: Count
    accuracy: Share | None = None
    on_front: bool


class Provenance(_Model):
    """How the bundle was made, for people and reports; the device does not act on it."""

    tool: str = ""
    rule: str = ""
    finetune: str = ""
    seed: int = 0
    fitted_on: Annotated[int, Field(ge=0, description="images the stitching layers were fitted on")] = 0
    scored_on: Annotated[int, Field(ge=0, description="held-out images behind every accuracy")] = 0
    versions: dict[str, str] = {}


class Manifest(_Model):
    """manifest.json, version 1."""

    format: Literal["restnet-bundle"]
    version: Literal[1]
    name: Name
    task: Literal["classification"]
    classes: Annotated[tuple[Annotated[str, StringConstraints(min_length=1, max_length=200)], ...], Field(min_length=1, max_length=100_000)]
    input: Input
    preprocessing: Preprocessing
    anchors: Annotated[tuple[Anchor, ...], Field(min_length=1, max_length=64)]
    segments: Annotated[tuple[Segment, ...], Field(min_length=1, max_length=10_000)]
    routes: Annotated[tuple[RouteEntry, ...], Field(min_length=1, max_length=10_000)]
    files: Annotated[dict[FilePath, FileEntry], Field(min_length=1, max_length=20_000)]
    provenance: Provenance = Provenance()


def json_schema() -> str:
    """The JSON Schema of manifest.json, as it is kept in docs/bundle.schema.json: `python -m restnet_runtime.manifest > FILE`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
