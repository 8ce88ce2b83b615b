"""Images to fit, tune and score on: `imagefolder:DIR`, `npz:FILE`, `digits`.

Images are prepared by the very code that the device runs (`restnet_runtime.preprocess`), so what is scored is what serves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restnet_runtime.errors import RequestError, SpecError
from restnet_runtime.manifest import Preprocessing
from restnet_runtime.preprocess import FORMATS, Preprocessor

ALLOWED = "imagefolder:DIR, npz:FILE (arrays x uint8 NHWC, y int64), digits, digits:train or digits:val"
DIGITS_TRAIN = 1000
"""Of the 1,797 digits, this many are for training; the others are held out."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Images:
    """Labelled images, decoded when they are asked for.

    labels:   (N,) int64
    classes:  names by label, where the data has them
    source:   encoded file or uint8 pixels (H, W, C) of image i
    """

    name: str
    labels: np.ndarray
    classes: tuple[str, ...] | None
    source: Callable[[int], Path | np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "Images":
        """The images at `indices`, in that order."""
        source = self.source
        return replace(self, labels=self.labels[indices], source=lambda index: source(int(indices[index])))

    def shuffled(self, seed: int) -> "Images":
        """The same images in an order that depends on `seed` alone."""
        return self.subset(np.random.default_rng(seed).permutation(len(self)))

    def labelled(self, classes: tuple[str, ...]) -> "Images":
        """The same images with labels that index `classes`; images without names of their own are labelled so already.

        Raises `SpecError` if they have names and these are others.
        """
        if self.classes is None or self.classes == classes:
            return self
        if sorted(self.classes) != sorted(classes):
            odd = sorted(set(self.classes) ^ set(classes))
            raise SpecError(
                f"the classes of {self.name!r} are not those given: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''} "
                f"{'is' if len(odd) == 1 else 'are'} on one side only"
            )
        labels = np.array([classes.index(name) for name in self.classes], np.int64)[self.labels]
        return replace(self, labels=labels, classes=classes)

    def split(self, share: float, seed: int) -> tuple["Images", "Images"]:
        """(rest, held out): `share` of each class is held out, at least one image of every class that has two."""
        rng = np.random.default_rng(seed)
        held: list[np.ndarray] = []
        for label in np.unique(self.labels):
            members = rng.permutation(np.flatnonzero(self.labels == label))
            held.append(members[: max(1, round(share * len(members)))] if len(members) > 1 else members[:0])
        out = np.sort(np.concatenate(held))
        return self.subset(np.setdiff1d(np.arange(len(self)), out)), self.subset(out)


class Samples:
    """Prepared images one by one: `samples[i]` is (x float32 (C, H, W), label); what tuning draws from."""

    def __init__(self, images: Images, preprocessing: Preprocessing, input_shape: tuple[int, int, int]) -> None:
        self.images = images
        self._preprocessor = Preprocessor(preprocessing, input_shape)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self._prepared(index)), int(self.images.labels[index])

    def batches(self, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """(x float32 (B, C, H, W), y int64 (B,)) in order; the last batch may be smaller. Raises `SpecError` for a bad image."""
        for start in range(0, len(self), size):
            indices = range(start, min(start + size, len(self)))
            prepared = np.stack([self._prepared(index) for index in indices])
            yield torch.from_numpy(prepared), torch.from_numpy(self.images.labels[start : indices.stop])

    def _prepared(self, index: int) -> np.ndarray:
        item = self.images.source(index)
        try:
            batch = self._preprocessor.from_files([item.read_bytes()]) if isinstance(item, Path) else self._preprocessor.from_pixels(item)
        except (RequestError, OSError) as error:
            which = str(item) if isinstance(item, Path) else f"image {index}"
            raise SpecError(f"data {self.images.name!r}, {which}: {error}") from error
        prepared: np.ndarray = batch[0]
        return prepared


def load_images(spec: str) -> Images:
    """The images that `spec` names. Raises `SpecError` saying what is allowed."""
    kind, _, rest = spec.partition(":")
    if kind == "digits" and rest in ("", "train", "val"):
        return _digits(rest)
    if kind == "npz" and rest:
        return _npz(Path(rest))
    if kind == "imagefolder" and rest:
        return _folder(Path(rest))
    raise SpecError(f"data {spec!r} is not one of: {ALLOWED}")


def load_split(data: str, val: str | None, seed: int) -> tuple[Images, Images]:
    """(to fit and tune on, to score on). Without `val` a fifth of each class of `data` is held out; digits has a split of its own.

    Raises `SpecError` if the images to score on are among those to fit on.
    """
    if data == "digits" and val in (None, "digits:val"):
        return load_images("digits:train"), load_images("digits:val")
    if val is not None:
        if _overlap(data, val):
            raise SpecError(f"--data {data} and --val {val} are the same images; what is tuned on them must be scored on others")
        return load_images(data), load_images(val)
    rest, held_out = load_images(data).split(0.2, seed)
    if not len(held_out):
        raise SpecError(f"data {data!r} has one image of each class at most, so none can be held out: give --val")
    return rest, held_out


def _overlap(data: str, val: str) -> bool:
    """Do both name one file or directory, or parts of digits that share images?"""
    (kind, _, rest), (other_kind, _, other_rest) = data.partition(":"), val.partition(":")
    if kind != other_kind:
        return False
    if kind == "digits":
        return rest == other_rest or not rest or not other_rest
    return Path(rest).resolve() == Path(other_rest).resolve()


def _digits(part: str) -> Images:
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


def _npz(path: Path) -> Images:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pixels, labels = arrays["x"], arrays["y"]
    except Exception as error:  # numpy, zipfile and zlib raise what they trip over
        raise SpecError(f"data npz:{path} cannot be read: {error}; it needs the arrays x (uint8, NHWC) and y (int64)") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.shape != (len(pixels),) or not len(pixels):
        raise SpecError(f"data npz:{path} has x {pixels.dtype}{pixels.shape} and y {labels.shape}; give uint8 (N, H, W, C) and (N,), N > 0")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        lowest = f" from {labels.min()}" if labels.dtype.kind in "iuf" else ""
        raise SpecError(f"data npz:{path} has labels of {labels.dtype}{lowest}; they must be integers from 0")
    return Images(f"npz:{path.name}", labels.astype(np.int64), None, lambda index: pixels[index])


def _folder(root: Path) -> Images:
    """One directory per class, in sorted order, as torchvision's ImageFolder reads them."""
    if not root.is_dir():
        raise SpecError(f"data imagefolder:{root} is not a directory")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    ]
    if not files:
        raise SpecError(f"data imagefolder:{root} has no images: it needs one directory per class with {', '.join(FORMATS)} files in it")
    labels = np.array([label for _, label in files], np.int64)
    return Images(f"imagefolder:{root.name}", labels, tuple(classes), lambda index: files[index][0])
