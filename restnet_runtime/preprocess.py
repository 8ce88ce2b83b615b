"""From an image file, or pixels, to the input of a network: decode, turn upright, resize, crop, normalise.

Geometry and arithmetic are those of the evaluation transforms of torchvision and timm (Resize, CenterCrop, ToTensor, Normalize).
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from restnet_runtime.errors import ImageError, InputError
from restnet_runtime.manifest import Preprocessing
from restnet_runtime.settings import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded. Pillow reads more (PostScript through Ghostscript, say), which a server must not."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_INTERMEDIATE_INPUTS = 32
"""A resized image may be this many times as large as what is cropped from it."""
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WHITE = (255, 255, 255, 255)


def looks_like_image(data: bytes) -> bool:
    """Does `data` start as a file of one of `FORMATS` does?"""
    return data.startswith(_SIGNATURES)


class Preprocessor:
    """Makes inputs of shape (B, C, H, W), float32 and contiguous, for one bundle.

    Transparent images are laid on white, animated ones count by their first frame, 16-bit ones by their high bytes, and the
    orientation in EXIF is applied. Thread safe: it holds nothing but settings.
    """

    def __init__(self, preprocessing: Preprocessing, input_shape: tuple[int, int, int], *, max_pixels: int = MAX_PIXELS) -> None:
        Image.init()
        self.preprocessing = preprocessing
        self.input_shape = input_shape
        self.max_pixels = max_pixels
        self.formats = tuple(name for name in FORMATS if name in Image.OPEN)
        self._mean = np.asarray(preprocessing.mean, np.float32).reshape(-1, 1, 1)
        self._std = np.asarray(preprocessing.std, np.float32).reshape(-1, 1, 1)

    def from_files(self, files: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Encoded images to (B, C, H, W).

        Raises `ImageError` for one that is not an image of `FORMATS`, is cut short, or has more than `max_pixels` pixels;
        in a batch the message says which.
        """
        batch = np.empty((len(files), *self.input_shape), np.float32)
        for index, data in enumerate(files):
            try:
                batch[index] = self._normalised(self._decoded(data))
            except ImageError as error:
                if len(files) == 1:
                    raise
                raise ImageError(f"image {index} of {len(files)}: {error}") from error
        return batch

    def from_image(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """An image of Pillow to (1, C, H, W). Raises `ImageError` where it has too many pixels, or cannot be read after all."""
        try:
            return self._normalised(self._loaded(image))[None]
        except ImageError:
            raise
        except Exception as error:  # it may be a file that was only opened
            raise ImageError(f"the image cannot be decoded: {error}") from error

    def from_pixels(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 pixels of shape (H, W), (H, W, C) or (B, H, W, C), C in 1, 3, 4, to (B, C, H, W). Raises `InputError`."""
        images = pixels[None, :, :, None] if pixels.ndim == 2 else pixels[None] if pixels.ndim == 3 else pixels
        if images.ndim != 4 or images.shape[-1] not in _MODES or images.size == 0:
            raise InputError(
                f"uint8 array of shape {pixels.shape}: give (H, W), (H, W, C) or (B, H, W, C) with C one of 1, 3, 4, none of them 0"
            )
        count = images.shape[1] * images.shape[2]
        if count > self.max_pixels:
            raise InputError(f"uint8 array of shape {pixels.shape} has {count} pixels an image; the limit is {self.max_pixels}")
        mode = _MODES[images.shape[-1]]
        batch = np.empty((len(images), *self.input_shape), np.float32)
        for index, image in enumerate(images):
            flat = np.ascontiguousarray(image)
            batch[index] = self._normalised(self._in_mode(Image.frombytes(mode, (flat.shape[1], flat.shape[0]), flat.tobytes())))
        return batch

    def from_inputs(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Inputs that were preprocessed elsewhere, (C, H, W) or (B, C, H, W), any real dtype, to (B, C, H, W).

        Raises `InputError` for another shape, a value that is NaN or infinite as float32, or something that is no number.
        """
        if values.dtype.kind not in "fiu":
            raise InputError(f"input has dtype {values.dtype}: give real numbers, the same number of them in every row")
        batch = values[None] if values.ndim == 3 else values
        if batch.ndim != 4 or batch.shape[1:] != self.input_shape:
            channels, height, width = self.input_shape
            raise InputError(
                f"input has shape {values.shape}: give ({channels}, {height}, {width}) or (batch, {channels}, {height}, {width})"
            )
        if len(batch) == 0:
            raise InputError(f"input has shape {values.shape}: an empty batch has no answer")
        if batch.dtype == np.float32:
            single = np.ascontiguousarray(batch)
        else:
            with np.errstate(over="ignore"):  # to enter it takes as long as to look through an image
                single = np.ascontiguousarray(batch, dtype=np.float32)
        finite = np.isfinite(single)
        if not finite.all():
            where = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise InputError(f"input has the value {batch[where]} at {where}: give finite float32 numbers")
        return single

    def _decoded(self, data: bytes) -> Image.Image:
        """The first frame, upright and opaque, in the mode that the network takes."""
        if not data:
            raise ImageError("the image is empty (0 bytes)")
        try:
            with Image.open(io.BytesIO(data), formats=self.formats) as image:
                return self._loaded(image)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{len(data)} bytes starting {data[:8]!r} are no image that is decoded here: give {', '.join(self.formats)}"
            ) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(f"the image has too many pixels; the limit is {self.max_pixels}") from error
        except Exception as error:  # Pillow's decoders raise whatever they trip over
            raise ImageError(f"the image cannot be decoded: {error}") from error

    def _loaded(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width * height > self.max_pixels:
            raise ImageError(f"the image has {width} x {height} = {width * height} pixels; the limit is {self.max_pixels}")
        image.load()
        return self._in_mode(_upright(_eight_bit(image)))

    def _in_mode(self, image: Image.Image) -> Image.Image:
        image = _opaque(image)
        return image if image.mode == self.preprocessing.mode else image.convert(self.preprocessing.mode)

    def _normalised(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """(C, H, W) of one image in the network's mode."""
        pixels = np.asarray(self._fitted(image), np.float32) / np.float32(255)
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        normalised: npt.NDArray[np.float32] = (planes - self._mean) / self._std
        return normalised

    def _fitted(self, image: Image.Image) -> Image.Image:
        """Resized and centre-cropped to the input's height and width."""
        _, height, width = self.input_shape
        crop_pct = self.preprocessing.crop_pct
        scaled = math.floor(height / crop_pct), math.floor(width / crop_pct)
        if self.preprocessing.resize == "shortest":
            scaled = _shortest(image.height, image.width, *scaled)
        top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
        resampling = _RESAMPLING[self.preprocessing.interpolation]
        if scaled[0] * scaled[1] <= _INTERMEDIATE_INPUTS * height * width:
            resized = image.resize((scaled[1], scaled[0]), resampling)
            return resized.crop((left, top, left + width, top + height))
        # A 1 x 1000000 image must not ask for a huge intermediate: resample what the crop keeps, equal up to Pillow's rounding of the box.
        across, down = image.width / scaled[1], image.height / scaled[0]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), resampling, box=box)


def _shortest(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """(height, width) after scaling the shorter side to the target; rounded as torchvision does for square targets, timm for others."""
    if target_height == target_width:
        if width <= height:
            return int(target_width * height / width), target_width
        return target_height, int(target_height * width / height)
    ratio = min(height / target_height, width / target_width)
    return round(height / ratio), round(width / ratio)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits by their high bytes, as Pillow itself does for colour; others unchanged."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise ImageError(f"the image has grey values {low}..{high}: only 8 and 16 bits have a known range, send an array instead")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ImageError("the image has floating-point pixels, whose range is unknown: send an array instead")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata is no reason to refuse the pixels
        orientation = None
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _opaque(image: Image.Image) -> Image.Image:
    """On white where it has transparency: an alpha channel, or a transparent colour."""
    if "transparency" not in image.info and not image.mode.endswith(("A", "a")):
        return image
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, _WHITE), coloured)
