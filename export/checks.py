"""What is refused before the work begins: each check raises one error that says what to change."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from restnet_runtime.errors import ExportError, SpecError
from restnet_runtime.fields import FieldError, check
from restnet_runtime.manifest import Name

from .activations import cut_activations
from .anchors import Anchor
from .cuts import CutAnchor
from .images import Images
from .onnx_module import OnnxModule
from .planning import block_macs
from .samples import Samples
from .settings import ExportSettings
from .similarity import MIN_BATCH
from .writer import check_target


def check_out(out: Path) -> None:
    """Better to learn now than after an hour of tuning that there can be no bundle. Raises `ExportError` and changes nothing."""
    name = out.resolve().name  # a bundle is called as its directory
    try:
        check(Name, name)
    except FieldError as error:
        raise ExportError(
            f"a bundle cannot be called {name!r}: a name has letters, digits and . _ ~ + -, starts with a letter or digit, at most 100"
        ) from error
    check_target(out)
    try:
        tempfile.TemporaryDirectory(dir=next(parent for parent in out.resolve().parents if parent.exists())).cleanup()
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error}") from error


def check_samples(samples: int, fitting: Images) -> None:
    if samples < MIN_BATCH:
        raise SpecError(f"--samples {samples} must be at least {MIN_BATCH}: similarity cannot be measured on fewer images")
    if len(fitting) < MIN_BATCH:
        raise SpecError(f"data {fitting.name!r} has {len(fitting)} images to fit on; similarity needs at least {MIN_BATCH}")


def check_classes(images: Images) -> None:
    """Raise `SpecError` where all images are of one class: whatever always answers that class would score best."""
    present = np.unique(images.labels)
    if images.has_labels and len(present) == 1:
        name = images.classes[present[0]] if images.classes else present[0]
        raise SpecError(
            f"data {images.name!r} has one class only, {str(name)!r}: nothing can be learnt or scored on it "
            "(images without classes lie in one directory, or in an npz without y)"
        )


def check_labels(settings: ExportSettings, fitting: Images) -> None:
    """Raise `SpecError` where a loss would need labels that the images to tune on have not."""
    weight = settings.tuning.objective.labels
    if settings.finetune != "none" and weight and not fitting.has_labels:
        raise SpecError(
            f"--loss labels={weight:g} needs labels, and data {fitting.name!r} has none: leave that loss out, or give data with labels"
        )


def check_names(loaded: Sequence[Anchor]) -> None:
    names = [anchor.name for anchor in loaded]
    if len(set(names)) != len(names) or len(names) < 2:
        raise SpecError(f"anchors {names}: at least two are needed, with different names (NAME=SPEC renames one)")


def class_names(
    loaded: Sequence[Anchor], input_shape: tuple[int, int, int], fitting: Images, scoring: Images, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    counts = {}
    for anchor in loaded:
        with torch.no_grad():
            logits = anchor.module(torch.zeros(1, *input_shape))
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise SpecError(f"anchor {anchor.name!r} does not answer (batch, classes) but {getattr(logits, 'shape', type(logits))}")
        counts[anchor.name] = int(logits.shape[1])
    if len(set(counts.values())) != 1:
        raise SpecError(f"anchors tell different numbers of classes apart: {counts}")
    count = next(iter(counts.values()))
    if fitting.classes and scoring.classes and fitting.classes != scoring.classes:
        raise SpecError(
            f"labels mean different classes in {fitting.name!r} ({_some(fitting.classes)}) and {scoring.name!r} ({_some(scoring.classes)})"
        )
    names = given or fitting.classes or scoring.classes or tuple(str(index) for index in range(count))
    if len(names) != count:
        where = "--classes" if given else repr(fitting.name if fitting.classes else scoring.name)
        raise SpecError(f"the anchors tell {count} classes apart, but {where} names {len(names)} ({_some(names)})")
    for images in (fitting, scoring):
        highest = int(images.labels.max())
        if highest >= count:
            raise SpecError(f"the data has the label {highest}, the anchors tell {count} classes apart (0..{count - 1})")
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *["..."] * (len(names) > 5)])


def check_tuning(loaded: Sequence[Anchor], finetune: str) -> None:
    """Raise `SpecError` where anchors would have to be tuned through that come from ONNX files."""
    fixed = [anchor.name for anchor in loaded if isinstance(anchor.module, OnnxModule)]
    if fixed and finetune != "none":
        raise SpecError(
            f"anchors {fixed} come from ONNX files, through which ONNX Runtime gives no gradients: give --finetune none, "
            "or the networks themselves with python:FILE:FACTORY@CHECKPOINT"
        )


def check_order(anchors: Mapping[str, CutAnchor]) -> None:
    macs = {name: sum(block_macs(anchor)) for name, anchor in anchors.items()}
    ordered = sorted(macs, key=lambda name: macs[name])
    if ordered != list(macs):
        raise ExportError(f"anchors are given small to large, by MACs that is: {' '.join(ordered)}")


def check_activations(anchors: Mapping[str, CutAnchor], samples: Samples) -> None:
    """Raise `ExportError` naming the anchor that answers real images with NaN or infinity, and the first module after which it does."""
    images, _ = next(samples.batches(MIN_BATCH))
    for name, anchor in anchors.items():
        with torch.no_grad():
            logits = anchor.blocks[-1](cut_activations(anchor, images)[-1])
        if not torch.isfinite(logits).all():
            raise ExportError(f"{name}: what its head computes is not finite for some of the images")
