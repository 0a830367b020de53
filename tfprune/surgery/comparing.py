"""Comparing what two networks give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


def exact(output: Any) -> np.ndarray:
    """An output in float64."""
    return keras.ops.convert_to_numpy(output).astype(np.float64)


def compare_outputs(
    expected: list,
    received: list,
    tolerance: float,
    what: str,
    error: type[Exception],
    scales: Sequence[float] | None = None,
) -> float:
    """Returns max |expected - received| / scale over outputs; raises `error` above the tolerance.

    Args:
        expected: Outputs.
        received: Others.
        tolerance: The largest relative difference.
        what: What differs, for the message.
        error: The class of the error.
        scales: What the difference of each output is relative to; None: to its largest value.
    """
    worst = 0.0
    for place, (one, other) in enumerate(zip(expected, received, strict=True)):
        one, other = exact(one), exact(other)
        difference = np.abs(one - other).max(initial=0.0)
        scale = np.abs(one).max(initial=0.0) if scales is None else scales[place]
        if difference:
            worst = max(worst, difference / scale if scale else math.inf)
        if not np.isfinite(difference) or worst > tolerance:
            relative = "the largest output is" if scales is None else "the output varies by"
            raise error(
                f"{what} differ by {difference:.3g} where {relative} {scale:.3g}: "
                f"a relative error of {worst:.3g}, above the tolerance of {tolerance:.3g}."
            )
    return float(worst)


def rolled_kernel(name: str, value: np.ndarray) -> np.ndarray | None:
    """A kernel rolled by one channel; None of what is no kernel, or the same when it is rolled."""
    wide = [axis for axis, size in enumerate(value.shape) if size > 1]
    # A bias of several axes is no kernel; a softmax does not see that of the keys.
    if len(wide) < 2 or name.endswith("bias") or value.dtype.kind != "f":
        return None
    rolled = np.roll(value, 1, axis=wide[-1])
    return None if np.array_equal(rolled, value) else rolled


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two arrays of one shape."""
    return float(np.abs(one - other).max(initial=0.0))
