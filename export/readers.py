"""Readers of images that lie in directories, and of the digits that come with scikit-learn."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from restnet_runtime.errors import SpecError
from restnet_runtime.preprocess import FORMATS

from .images import UNLABELLED, Images

DIGITS_TRAIN = 1000
"""Of the 1,797 digits, this many are for training; the others are held out."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def read_digits(part: str) -> Images:
    """The digits: all of them, or the part `train` or `val`. Raises `SpecError` where scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SpecError("data 'digits' needs scikit-learn: pip install 'restnet-runtime[export]'") from error
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # light ink on dark, 8x8, ink 0..16
    labels = digits.target.astype(np.int64)
    images = Images("digits", labels, tuple("0123456789"), lambda index: pixels[index])
    if not part:
        return images
    order = np.random.default_rng(0).permutation(len(labels))
    return replace(images.subset(order[:DIGITS_TRAIN] if part == "train" else order[DIGITS_TRAIN:]), name=f"digits:{part}")


def read_folder(root: Path) -> Images:
    """One directory per class, in sorted order, as torchvision's ImageFolder reads them; images that lie in `root` itself have no label.

    Raises `SpecError` where there are no images, or some in directories and some beside them.
    """
    if not root.is_dir():
        raise SpecError(f"data imagefolder:{root} is not a directory")
    try:
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        labelled = [(path, label) for label, name in enumerate(classes) for path in sorted((root / name).rglob("*")) if _is_image(path)]
        flat = [path for path in sorted(root.iterdir()) if _is_image(path)]
    except OSError as error:
        raise SpecError(f"data imagefolder:{root} cannot be read: {error}") from error
    if labelled and flat:
        raise SpecError(
            f"data imagefolder:{root} has {len(flat)} images beside its directories of classes ({flat[0].name}, ...): "
            "put them in their classes, or all images in one directory without classes"
        )
    if not labelled and not flat:
        raise SpecError(
            f"data imagefolder:{root} has no images: it needs one directory per class with {', '.join(FORMATS)} files in it, "
            "or such files without classes"
        )
    name = f"imagefolder:{root.name}"
    if flat:
        return Images(name, np.full(len(flat), UNLABELLED, np.int64), None, lambda index: flat[index], encoded=True)
    labels = np.array([label for _, label in labelled], np.int64)
    return Images(name, labels, tuple(classes), lambda index: labelled[index][0], encoded=True)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()
