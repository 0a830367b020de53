"""What values are, as text, by which it can be told whether two are the same."""

from __future__ import annotations

import contextlib
import inspect
import zlib
from typing import Any

import keras
import numpy as np


def as_text(value: Any, identity: bool = False) -> str:
    """What a value of any kind is, as text; what does not tell stands for itself alone.

    Args:
        value: The value.
        identity: Whether also layers and variables stand for themselves.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {as_text(own, identity)}' for key, own in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(as_text(own, identity) for own in value)}]"
    if identity and isinstance(value, (keras.Variable, keras.Layer)):
        return f"{type(value).__qualname__} at {id(value)}"
    if isinstance(value, keras.Variable):
        return f"variable of {value.shape}"
    if isinstance(value, keras.random.SeedGenerator):  # every layer draws of its own
        return "seeds"
    if isinstance(value, keras.KerasTensor):
        return f"tensor of {value.dtype}"
    if isinstance(value, keras.Layer):  # it is described with its own attributes, but not by whoever else holds it
        return type(value).__qualname__
    if isinstance(value, np.ndarray):
        return f"array of {value.shape}: {zlib.crc32(np.ascontiguousarray(value).tobytes())}"
    if inspect.isfunction(value) and not value.__closure__ and "<lambda>" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "get_config") and not isinstance(value, type):
        with contextlib.suppress(Exception):  # whatever the code of others raises
            return f"{type(value).__qualname__}({as_text(value.get_config())})"
    return f"{type(value).__qualname__} at {id(value)}"
