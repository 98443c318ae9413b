"""Reading numpy's own format (NEP 1, ``.npy``) from bytes that anybody may have made: nothing is made that the bytes do not hold."""

import io
import math
from collections.abc import Container

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LONGEST = 4096  # bytes of a header


def read(data: bytes, dtypes: Container[str]) -> NDArray[np.generic]:
    """An array of its own memory. ``dtypes``: those that may be, as ``<f4``.

    Raises `ValueError` for any other, and where a header is none, or the bytes after it are not exactly its array.
    """
    file = io.BytesIO(data[: LONGEST + 16])
    try:
        version = npy.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, fortran, dtype = npy.read_array_header_1_0(file, max_header_size=LONGEST)
    except Exception as error:  # whatever somebody calls a header: numpy parses it as Python's literals
        raise ValueError(f"an array has no header: {str(error)[:80]}") from None
    if dtype.str not in dtypes:
        raise ValueError(f"an array is of {dtype.str[:20]}")
    at = file.tell()
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data) - at:
        raise ValueError(f"an array of {len(data) - at} bytes has a shape of {len(shape)} axes that needs others")
    flat = np.frombuffer(data, dtype, offset=at) if len(data) > at else np.empty(0, dtype)
    return flat.copy().reshape(shape, order="F" if fortran else "C")
