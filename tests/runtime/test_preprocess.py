"""Preprocessing: decoding whatever people upload, and evaluation transforms; those of timm are in tests/export/test_transforms.py."""

import io
import math
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from restnet_runtime.errors import ImageError, InputError
from restnet_runtime.manifest import Preprocessing
from restnet_runtime.npy import read_npy
from restnet_runtime.preprocess import Preprocessor, looks_like_image

GREY = Preprocessing(mode="L", mean=(0.0,), std=(1.0,))
COLOUR = Preprocessing(mode="RGB", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = Preprocessing(mode="RGB", mean=(0.0,), std=(1.0,))
LEVEL = 1 / 255


def preprocessor(preprocessing=PLAIN, shape=None, **limits):
    shape = shape or ((1, 8, 8) if preprocessing.mode == "L" else (3, 8, 8))
    return Preprocessor(preprocessing, shape, **limits)


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def photo(height, width, seed=0):
    """Smooth colours with some noise, as photos have."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / (7 + 3 * c) + c) * np.cos(columns / (11 - 2 * c)) for c in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def levels(pixels):
    """(C, H, W) in 0..1 as 8-bit (H, W, C)."""
    return np.rint(pixels.transpose(1, 2, 0) * 255).astype(int)


# Geometry


def resize_then_crop(image, preprocessing, height, width):
    """The transforms spelled out: the whole image is resized, then cropped."""
    scaled_height, scaled_width = math.floor(height / preprocessing.crop_pct), math.floor(width / preprocessing.crop_pct)
    if preprocessing.resize == "shortest":
        if height == width and image.width <= image.height:
            scaled_height = int(scaled_width * image.height / image.width)
        elif height == width:
            scaled_width = int(scaled_height * image.width / image.height)
        else:
            ratio = min(image.height / scaled_height, image.width / scaled_width)
            scaled_height, scaled_width = round(image.height / ratio), round(image.width / ratio)
    resampling = {
        "nearest": Image.Resampling.NEAREST,
        "box": Image.Resampling.BOX,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
    }
    image = image.resize((scaled_width, scaled_height), resampling[preprocessing.interpolation])
    top, left = round((scaled_height - height) / 2), round((scaled_width - width) / 2)
    return image.crop((left, top, left + width, top + height))


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (64, 64), (20, 31), (224, 224), (300, 33)], ids=str)
@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("resize", "crop_pct"), [("squash", 1.0), ("squash", 0.9), ("shortest", 1.0), ("shortest", 0.875), ("shortest", 0.95)]
)
@pytest.mark.parametrize("target", [(32, 32), (24, 40)], ids=str)
def test_equals_resizing_and_cropping_with_pillow(size, interpolation, resize, crop_pct, target):
    preprocessing = replace(PLAIN, resize=resize, interpolation=interpolation, crop_pct=crop_pct)
    image = photo(*size)
    expected = np.asarray(resize_then_crop(image, preprocessing, *target)).astype(int)
    got = preprocessor(preprocessing, (3, *target)).from_files([encoded(image)])
    assert got.shape == (1, 3, *target)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert np.array_equal(levels(got[0]), expected)


def test_mean_and_std_are_per_channel():
    image = Image.new("RGB", (5, 9), (255, 0, 128))
    got = preprocessor(COLOUR).from_files([encoded(image)])[0, :, 0, 0]
    assert got == pytest.approx([(v / 255 - m) / s for v, m, s in zip((255, 0, 128), COLOUR.mean, COLOUR.std, strict=True)], rel=1e-5)


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)], ids=str)
def test_extreme_aspect_ratio_makes_no_huge_intermediate(size):
    # Resized whole, the shorter side at 256 would make this 256 x 51 million.
    image = encoded(Image.new("RGB", size, (10, 20, 30)))
    got = preprocessor(replace(PLAIN, resize="shortest"), (3, 256, 256)).from_files([image])
    assert got[0, :, 128, 128] * 255 == pytest.approx([10, 20, 30])


# Decoding


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(format):
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    data = encoded(image, format)
    assert looks_like_image(data)
    got = preprocessor().from_files([data])
    assert levels(got[0])[4, 4] == pytest.approx([200, 100, 50], abs=4)


def quadrants():
    """Four colours, so that every flip and turn shows."""
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    image.paste((0, 255, 0), (8, 0, 16, 8))
    image.paste((0, 0, 255), (0, 8, 8, 16))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_exif_is_applied(orientation):
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = quadrants() if inverse is None else quadrants().transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = preprocessor().from_files([encoded(stored, exif=exif)])
    assert np.array_equal(got, preprocessor().from_files([encoded(quadrants())]))


ORIENTATION_99 = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*", ORIENTATION_99], ids=["damaged", "cut", "orientation 99"])
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_useless_exif_does_not_matter(exif, format):
    got = preprocessor().from_files([encoded(quadrants(), format, quality=95, exif=exif)])
    assert np.array_equal(got, preprocessor().from_files([encoded(quadrants(), format, quality=95)]))


def half_transparent():
    """Black, its upper half fully transparent."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 4))
    return image


def transparent_palette():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 10] + [0] * 762)
    image.paste(0, (0, 0, 8, 4))
    return encoded(image, transparency=0)


@pytest.mark.parametrize(
    ("data", "top", "bottom"),
    [
        (encoded(half_transparent()), 255, 0),
        (encoded(Image.merge("LA", [Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 0)])), 255, 255),
        (transparent_palette(), 255, (200, 10, 10)),
        (encoded(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3)), 255, 255),
        (encoded(Image.new("L", (8, 8), 7), transparency=7), 255, 255),
        (encoded(Image.new("L", (8, 8), 7)), 7, 7),
        (encoded(Image.new("1", (8, 8), 1)), 255, 255),
        (encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "TIFF"), 0, 0),
        (encoded(Image.fromarray(np.full((8, 8), 0x80FF, np.uint16))), 0x80, 0x80),
        (encoded(Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)), "TIFF"), 0x80, 0x80),
        (encoded(Image.fromarray(np.full((8, 8), 0x80FF, np.int32)), "TIFF"), 0x80, 0x80),
    ],
    ids=["rgba", "la", "palette", "transparent colour", "transparent grey", "grey", "bits", "cmyk", "16 bits", "tiff 16", "tiff 32"],
)
def test_modes_become_opaque_8_bit_colour(data, top, bottom):
    got = levels(preprocessor().from_files([data])[0])
    assert got[0, 0] == pytest.approx(np.broadcast_to(top, 3))
    assert got[-1, -1] == pytest.approx(np.broadcast_to(bottom, 3))


def test_colour_to_grey_uses_luma():
    got = preprocessor(GREY).from_files([encoded(Image.new("RGB", (8, 8), (255, 0, 0)))])
    assert got.shape == (1, 1, 8, 8)
    assert got[0, 0, 0, 0] == pytest.approx(0.299, abs=LEVEL)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    got = preprocessor().from_files([encoded(frames[0], format, save_all=True, append_images=frames[1:])])
    assert levels(got[0])[4, 4] == pytest.approx([255, 0, 0], abs=8)


def png_header(width, height):
    """A PNG of that declared size with next to no data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"no image at all", "no image that is decoded here: give JPEG, PNG"),
        (encoded(photo(64, 64), "JPEG")[:-400], "truncated"),
        (encoded(photo(64, 64))[:-4000], "cannot be decoded"),
        (encoded(photo(8, 8))[:20], "Truncated|no image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "cannot be decoded|no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image that is decoded here"),
        (png_header(4000, 3000), r"4000 x 3000 = 12000000 pixels; the limit is 10000000"),
        (png_header(10_000, 10_000), "pixels; the limit is 10000000"),
        (png_header(2**31 - 1, 2**31 - 1), "pixels; the limit is 10000000"),
        (encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "grey values 70000..70000"),
        (encoded(Image.fromarray(np.full((8, 8), -1, np.int32)), "TIFF"), "grey values -1..-1"),
        (encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"), "floating-point"),
    ],
    ids=[
        "empty",
        "text",
        "cut JPEG",
        "cut PNG",
        "header",
        "zeros",
        "PostScript",
        "large",
        "larger",
        "largest",
        "24 bits",
        "negative",
        "float",
    ],
)
def test_what_is_no_usable_image_is_refused(data, message):
    with pytest.raises(ImageError, match=message):
        preprocessor(max_pixels=10_000_000).from_files([data])


def test_a_bad_image_in_a_batch_is_named():
    good = encoded(photo(9, 9))
    with pytest.raises(ImageError, match=r"image 1 of 3: .*no image"):
        preprocessor().from_files([good, b"bad", good])


@pytest.mark.parametrize("seed", range(5))
def test_damaged_files_never_raise_anything_else(seed):
    rng = np.random.default_rng(seed)
    reader = preprocessor(max_pixels=100_000)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        data = bytearray(encoded(photo(24, 24, seed), format))
        for position in rng.integers(0, min(len(data), 300), 12):
            data[position] = rng.integers(0, 256)
        try:
            got = reader.from_files([bytes(data)])
        except ImageError:
            continue
        assert np.isfinite(got).all()


# Pixels and inputs


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_are_treated_as_the_image_would_be(channels):
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    images = [np.asarray(photo(12, 20, seed).convert(mode)).reshape(12, 20, channels) for seed in (1, 2)]
    reader = preprocessor(COLOUR)
    expected = reader.from_files([encoded(Image.fromarray(image.squeeze(-1) if channels == 1 else image)) for image in images])
    assert np.array_equal(reader.from_pixels(np.stack(images)), expected)
    assert np.array_equal(reader.from_pixels(images[0]), expected[:1])
    if channels == 1:
        assert np.array_equal(reader.from_pixels(images[0][:, :, 0]), expected[:1])


@pytest.mark.parametrize("shape", [(4,), (2, 3, 5), (0, 8), (8, 8, 2), (1, 8, 8, 3, 1), (0, 8, 8, 3)], ids=str)
def test_pixels_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match="give \\(H, W\\)"):
        preprocessor().from_pixels(np.zeros(shape, np.uint8))


def test_pixels_beyond_the_limit_are_refused():
    with pytest.raises(InputError, match="has 110 pixels an image; the limit is 100"):
        preprocessor(max_pixels=100).from_pixels(np.zeros((10, 11, 3), np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.dtype(">f4")], ids=str)
def test_inputs_go_through_unchanged(dtype):
    values = np.arange(3 * 8 * 8).reshape(3, 8, 8).astype(dtype)
    for given, batch in ((values, 1), (np.stack([values, values]), 2), (np.asfortranarray(values), 1)):
        got = preprocessor().from_inputs(given)
        assert got.shape == (batch, 3, 8, 8)
        assert got.dtype == np.dtype("=f4")
        assert got.flags.c_contiguous
        assert np.array_equal(got[-1], values.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((8, 8)), r"shape \(8, 8\): give \(3, 8, 8\) or \(batch, 3, 8, 8\)"),
        (np.zeros((1, 8, 8)), r"shape \(1, 8, 8\)"),
        (np.zeros((2, 3, 8, 9)), r"shape \(2, 3, 8, 9\)"),
        (np.zeros((1, 1, 3, 8, 8)), "shape"),
        (np.zeros((0, 3, 8, 8)), "empty batch"),
        (np.full((3, 8, 8), "1"), "dtype <U1"),
        (np.full((3, 8, 8), True), "dtype bool"),
        (np.full((3, 8, 8), None), "dtype object"),
        (np.full((3, 8, 8), 1j), "dtype complex"),
        (np.pad(np.full((1, 1, 1), np.nan), ((2, 0), (7, 0), (7, 0))), r"value nan at \(0, 2, 7, 7\)"),
        (np.full((3, 8, 8), -np.inf), "value -inf at"),
        (np.full((3, 8, 8), 1e39), "value 1e.39 at"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        preprocessor().from_inputs(values)


# .npy


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def header(text, version=(1, 0), data=b""):
    encoded_text = text.encode() + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(encoded_text))
    return b"\x93NUMPY" + bytes(version) + size + encoded_text + data


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "|u1"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_round_trip(dtype, version, order):
    array = np.arange(24).reshape((2, 3, 4), order=order).astype(dtype)
    assert np.array_equal(read_npy(npy(array, version=version)), array)


DIMS = "'fortran_order': False, 'shape': (2, 2), }"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros((2, 2)))[:-1], "has 31 bytes of data; it takes 32"),
        (npy(np.zeros((2, 2))) + b"\0", "has 33 bytes of data; it takes 32"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"), "it takes 8000000000000000000"),
        (header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296, {2**40}), }}"), "bytes of data; it takes"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2), }"), "none of them 0"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 2), }"), "none of them 0"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (True, False), }"), "none of them 0|header"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (), }", data=b"\0" * 8), "2 to 4 dimensions"),
        (npy(np.zeros((1, 1, 1, 1, 1))), "2 to 4 dimensions"),
        (npy(np.zeros((2, 2), np.int32)), "dtype int32: give"),
        (npy(np.array([["a", "b"]])), "dtype <U1"),
        (npy(np.array([[{}]], dtype=object)), "dtype object"),
        (npy(np.zeros((2, 2), [("a", "f4")])), "dtype"),
        (header("{'descr': '<f8', " + DIMS + " " * 2000), "header cannot be read .*is large"),
        (header("{'descr': '<f8', " + DIMS, (2, 0))[:8] + struct.pack("<I", 2**32 - 1), "header cannot be read"),
        (header("(" * 900), "header cannot be read"),
        (header("__import__('os').abort()"), "header cannot be read"),
        (header("{'descr': '<f8'}"), "header cannot be read"),
        (header("{'descr': 'nonsense', " + DIMS), "header cannot be read"),
        (header("{'descr': '<f8', " + DIMS, (3, 0)), r"format 3\.0"),
        (b"\x93NUMPY", "header cannot be read"),
        (b"\x93NUMPX\1\0", "header cannot be read"),
    ],
)
def test_npy_that_is_not_taken(data, message):
    with pytest.raises(InputError, match=message):
        read_npy(data)
