"""Inputs: whatever a Python program has an image in, as a batch for the network."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from restnet_runtime.errors import ImageError, InputError
from restnet_runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from PIL.Image import Image

    OneImage: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image | npt.NDArray[Any]
    """A path, the bytes of a file, an image of Pillow, uint8 (H, W, C) or (H, W), or prepared float32 (C, H, W)."""

    Images: TypeAlias = list[Any] | tuple[Any, ...]
    """Several of these, of whatever kind each is."""

_ALLOWED = "give a path, bytes of an image file, an image of Pillow, uint8 (H, W, C), prepared float32 (C, H, W), or a list of these"


def read_image(preprocessor: Preprocessor, image: "OneImage") -> npt.NDArray[np.float32]:
    """One image to (1, C, H, W).

    Raises `ImageError` for a file that is there and no image, `OSError` for one that cannot be read, `InputError` for anything else.
    """
    if isinstance(image, np.ndarray):
        if image.ndim > 3:
            raise InputError(f"an array of shape {image.shape} is no image: for a batch give a list of images, as list(x)")
        return preprocessor.from_pixels(image) if image.dtype == np.uint8 else preprocessor.from_inputs(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return preprocessor.from_files([bytes(image)])
    if isinstance(image, (str, os.PathLike)):
        try:
            return preprocessor.from_files([Path(image).read_bytes()])
        except ImageError as error:
            raise ImageError(f"{os.fspath(image)}: {error}") from error
        except ValueError as error:  # a path with a NUL in it
            raise InputError(f"{os.fspath(image)!r} is no path: {error}") from error
    if hasattr(image, "getexif"):  # without importing Pillow for those who have no image of it
        return preprocessor.from_image(image)
    raise InputError(f"an input of type {type(image).__name__}: {_ALLOWED}")


def read_images(preprocessor: Preprocessor, images: "Images") -> npt.NDArray[np.float32]:
    """Several, of whatever kind each is, to (B, C, H, W). Raises what `read_image` does; the message says which."""
    if not images:
        raise InputError(f"an empty list has no answer: {_ALLOWED}")
    rows = []
    for index, image in enumerate(images):
        try:
            rows.append(read_image(preprocessor, image))
        except (ImageError, InputError) as error:
            raise type(error)(f"image {index} of {len(images)}: {error}") from error
    return np.concatenate(rows)
