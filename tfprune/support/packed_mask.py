"""Masks of weights, packed as they lie in files: in plans, and in networks that are saved while masks hold."""

from __future__ import annotations

import base64
import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class PackedMask:
    """A boolean array, eight to the byte.

    Attributes:
        shape: Of the array.
        bits: Its elements in C order, as `numpy.packbits` packs them.
    """

    shape: tuple[int, ...]
    bits: bytes

    @classmethod
    def pack(cls, mask: np.ndarray) -> PackedMask:
        """Packs a boolean array."""
        return cls(tuple(mask.shape), np.packbits(mask).tobytes())

    def unpack(self) -> np.ndarray:
        """The boolean array; False is off."""
        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=math.prod(self.shape))
        return flat.astype(bool).reshape(self.shape)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"shape": self.shape, "bits": base64.b64encode(zlib.compress(self.bits)).decode("ascii")}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PackedMask:
        """The inverse of `to_json`; raises a ValueError or zlib.error for bits that are none of such a mask."""
        shape = tuple(content["shape"])
        if not all(isinstance(size, int) for size in shape) or min(shape, default=0) < 1:
            raise ValueError(f"{shape} is no shape of a mask")
        expected, unpacking = -(-math.prod(shape) // 8), zlib.decompressobj()
        # No more than it should be, whatever a file holds.
        bits = unpacking.decompress(base64.b64decode(content["bits"], validate=True), expected + 1)
        if len(bits) != expected or not unpacking.eof:
            raise ValueError(f"not {expected} bytes for a mask of shape {shape}")
        return cls(shape, bits)
