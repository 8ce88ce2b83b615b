"""The input that all anchors share: its shape, and how an image becomes it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from restnet_runtime.errors import SpecError
from restnet_runtime.fields import FieldError, read
from restnet_runtime.manifest import Preprocessing

from .anchors import Anchor


@dataclass(frozen=True)
class GivenPreprocessing:
    """What the user says about preprocessing; None leaves it to the anchor. `mean` and `std`, a number per channel, go together."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: Literal["squash", "shortest"] | None = None
    interpolation: Literal["nearest", "box", "bilinear", "bicubic"] | None = None
    crop_pct: float | None = None

    def over(self, own: Preprocessing | None) -> Preprocessing | None:
        """`own` with what is given in its place; None where there is neither a mean of its own nor a given one."""
        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        if self.mean is not None:
            given["mode"] = "L" if len(self.mean) == 1 else "RGB"
        elif own is None:
            return None
        return Preprocessing(**{**(asdict(own) if own is not None else {}), **given})


def agreed_input(loaded: Sequence[Anchor], given: GivenPreprocessing) -> tuple[tuple[int, int, int], Preprocessing]:
    """The one input shape (C, H, W) and preprocessing of all anchors. Anchors that bring none take that of the others.

    Raises `SpecError` if the anchors do not agree and what is given does not settle it, if none is known, or if no bundle could hold it.
    """
    shapes = {anchor.name: anchor.input_shape for anchor in loaded}
    if len(set(shapes.values())) != 1:
        raise SpecError(f"anchors take different inputs, which one image cannot be: {shapes}; --input sets it where the model allows")
    brought = {anchor.name: given.over(anchor.preprocessing) for anchor in loaded if anchor.preprocessing is not None}
    chosen = next(iter(brought.values())) if brought else given.over(None)
    if chosen is None:
        raise SpecError("none of these anchors brings its preprocessing: give --input, --mean and --std")
    names = [part.name for part in fields(Preprocessing)]
    differing = [field for field in names if len({getattr(item, field) for item in brought.values()}) > 1]
    if differing:
        told = {name: {field: getattr(item, field) for field in differing} for name, item in brought.items()}
        options = dict.fromkeys({"mode": "--mean", "crop_pct": "--crop-pct"}.get(field, f"--{field}") for field in differing)
        raise SpecError(f"anchors bring different preprocessing: {told}; settle it with {', '.join(options)}")
    try:  # now and not when the bundle is written, after hours of tuning
        read(Preprocessing, json.loads(json.dumps(asdict(chosen))))
    except FieldError as error:
        raise SpecError(f"preprocessing {chosen} cannot be used: {error.where}: {error.message}") from error
    return loaded[0].input_shape, chosen
