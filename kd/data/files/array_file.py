"""Pictures in .npy files: H x W or H x W x channels, of any type of numbers. Nothing is unpickled."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from kd.data.files.image_file import MAX_PIXELS, MOST_BYTES, TooLargeError, open_file
from kd.errors import DataError, shown

NUMBERS = "uif"


def array_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape (H x W x channels) and type of the numbers in a .npy file; raises DataError if it is not a picture."""
    shape, dtype, _, _ = _header(path)
    return shape, dtype


def read_array(path: Path) -> np.ndarray:
    """The picture in a .npy file, H x W x channels, in the machine's byte order; raises DataError."""
    shape, dtype, by_columns, start = _header(path)
    if shape[0] * shape[1] > MAX_PIXELS or math.prod(shape) * dtype.itemsize > MOST_BYTES:
        raise TooLargeError(f"{shown(path)} has {shape[1]}x{shape[0]} pixels of {shape[2]} channels: cut it up")
    with open_file(path) as file:
        file.seek(start)
        data = file.read(math.prod(shape) * dtype.itemsize)
    if len(data) < math.prod(shape) * dtype.itemsize:
        raise DataError(
            f"{shown(path)} cannot be read as an array (its end is missing): replace or remove it (of a pair, both)"
        )
    numbers = np.frombuffer(data, dtype)
    whole = numbers.reshape(shape[::-1]).transpose(2, 1, 0) if by_columns else numbers.reshape(shape)
    return whole.astype(dtype.newbyteorder("="))


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, type, whether it is stored by columns (Fortran's order), and where the numbers begin."""
    with open_file(path) as file:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, by_columns, dtype = read(file)
        except Exception as error:  # numpy raises ValueError, and whatever parsing the header raises
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(
                f"{shown(path)} cannot be read as an array ({reason}): replace or remove it (of a pair, both)"
            ) from error
        start = file.tell()
    sides = all(type(side) is int and side > 0 for side in shape)  # anyone may have written them
    if dtype.kind not in NUMBERS or len(shape) not in (2, 3) or not sides:
        raise DataError(
            f"{shown(path)} is an array {' x '.join(map(str, shape))} of {dtype}, and a picture is height x width x "
            "channels of numbers: save it so"
        )
    return (*shape, 1)[:3], dtype, by_columns, start
