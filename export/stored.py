"""Images in a `.npz`: read one by one where the file is not compressed, so that memory does not grow with their number."""

import math
import os
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from restnet_runtime.errors import SpecError

from .images import UNLABELLED, Images

_CHANNELS = (1, 3, 4)


def read_npz(path: Path) -> Images:
    """Arrays x uint8 (N, H, W, C) and y integers (N,); without y the images have no labels. Raises `SpecError`."""
    if not path.is_file():
        raise SpecError(f"data npz:{path} does not exist, or is no file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            labels = arrays["y"] if "y" in arrays.files else None
            shape, dtype, source = _pixels(file, path, arrays)
    except Exception as error:  # numpy, zipfile and zlib raise what they trip over
        told = str(error) if zipfile.is_zipfile(path) else "it is damaged, or no .npz file as numpy.savez writes them"
        raise SpecError(f"data npz:{path} cannot be read: {told}; it needs the arrays x (uint8, NHWC) and y (int64)") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[0] == 0 or (labels is not None and labels.shape != shape[:1]):
        told = "no y" if labels is None else f"y {labels.shape}"
        raise SpecError(f"data npz:{path} has x {dtype}{shape} and {told}; give uint8 (N, H, W, C) and (N,), N > 0")
    if shape[3] not in _CHANNELS or 0 in shape:
        turned = "; it looks like NCHW: give x.transpose(0, 2, 3, 1)" if shape[1] in _CHANNELS and min(shape[2:]) > max(_CHANNELS) else ""
        raise SpecError(f"data npz:{path} has images of shape {shape[1:]}; give (H, W, C) with C one of 1, 3, 4, none of them 0{turned}")
    if labels is None:
        return Images(f"npz:{path.name}", np.full(shape[0], UNLABELLED, np.int64), None, source)
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        lowest = f" from {labels.min()}" if labels.dtype.kind in "iuf" else ""
        raise SpecError(f"data npz:{path} has labels of {labels.dtype}{lowest}; they must be integers from 0")
    return Images(f"npz:{path.name}", labels.astype(np.int64), None, source)


def _pixels(file: BinaryIO, path: Path, arrays: "np.lib.npyio.NpzFile") -> tuple[tuple[int, ...], np.dtype, Callable[[int], np.ndarray]]:
    """(shape, dtype, image i) of the array x."""
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo("x.npy") if "x" in arrays.files else None
        if entry is not None and entry.compress_type == zipfile.ZIP_STORED:
            with archive.open(entry) as member:
                if np.lib.format.read_magic(member) == (1, 0):
                    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
                    header_bytes = member.tell()
                    while member.read(2**20):  # to the end: there the checksum is compared
                        pass
                    if not fortran and dtype == np.uint8 and entry.file_size == header_bytes + math.prod(shape):
                        return shape, dtype, _Stored(path, _data_offset(file, entry) + header_bytes, shape[1:])
    pixels = arrays["x"]
    return pixels.shape, pixels.dtype, lambda index: pixels[index]


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header, whose name and extra field have lengths of their own."""
    file.seek(entry.header_offset)
    local = file.read(30)
    return entry.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


class _Stored:
    """Image i of an array that lies as it is in a file. Safe for threads: reads name their place."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._offset, self._shape, self._bytes = offset, shape, math.prod(shape)

    def __call__(self, index: int) -> np.ndarray:
        data = os.pread(self._descriptor, self._bytes, self._offset + index * self._bytes)
        if len(data) != self._bytes:
            raise OSError(f"{self._path} became shorter while it was read")
        return np.frombuffer(data, np.uint8).reshape(self._shape)
