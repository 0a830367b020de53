"""Reader of IDX files, the format of MNIST and Fashion-MNIST.

An IDX file is a magic number (two zero bytes, a type code, the number of dimensions), each dimension as
a big-endian 32-bit integer, then the values in C order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from tfprune.errors import DataError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Args:
        path: The file; one whose name ends in `.gz` is decompressed.
        ndim: The number of dimensions that it must have: 3 for images, 1 for labels.

    Returns:
        A read-only uint8 array with `ndim` dimensions.

    Raises:
        DataError: If the file cannot be read, is truncated or too long, is empty, or is not an IDX file
            of unsigned bytes with `ndim` dimensions.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch the file again.") from error

    magic = bytes((0, 0, UNSIGNED_BYTE, ndim))
    if content[:4] != magic:
        raise DataError(
            f"{path} starts with the bytes '{content[:4].hex()}', but an IDX file of unsigned bytes with "
            f"{ndim} dimension(s) starts with '{magic.hex()}': give the right file."
        )
    header = 4 + 4 * ndim
    if len(content) < header:
        raise DataError(f"{path} ends within its header of {header} bytes: fetch the file again.")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - header} values, but its header announces {math.prod(shape)} "
            f"(shape {shape}): fetch the file again."
        )
    if 0 in shape:
        raise DataError(f"{path} is empty (shape {shape}): give a file with at least one example.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
