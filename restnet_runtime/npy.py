"""Arrays in numpy's .npy format, from clients that are not trusted.

Nothing is unpickled and nothing is allocated before the header agrees with the number of bytes that follow it.
"""

import io
import math

import numpy as np
import numpy.typing as npt

from restnet_runtime.errors import InputError

MAGIC = b"\x93NUMPY"
DTYPES = ("float32", "float64", "uint8")
_MAX_HEADER_BYTES = 1024
_ALLOWED = f"a .npy file (format 1.0 or 2.0) of {', '.join(DTYPES)} with 2 to 4 dimensions"


def read_npy(data: bytes) -> npt.NDArray[np.generic]:
    """The array in `data`, of a dtype in `DTYPES` (any byte order) and 2 to 4 dimensions, none of them 0; read-only.

    Raises `InputError` for anything else: another format or dtype, a header that is damaged or long, missing or extra bytes.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER_BYTES)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, max_header_size=_MAX_HEADER_BYTES)
        else:
            raise InputError(f"the .npy file has format {version[0]}.{version[1]}: give {_ALLOWED}")
    except InputError:
        raise
    except Exception as error:  # numpy evaluates the header as a Python literal, which fails in many ways
        raise InputError(f"the .npy header cannot be read ({str(error).splitlines()[0]}): give {_ALLOWED}") from error
    if dtype.name not in DTYPES:
        raise InputError(f"the .npy file has dtype {dtype}: give {_ALLOWED}")
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise InputError(f"the .npy file has shape {shape}: give {_ALLOWED}, none of them 0")
    start = stream.tell()
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - start != expected:
        raise InputError(f"the .npy file of shape {shape} and dtype {dtype} has {len(data) - start} bytes of data; it takes {expected}")
    flat: npt.NDArray[np.generic] = np.frombuffer(data, dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")
