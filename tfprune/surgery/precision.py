"""Twins of a network in another precision."""

from __future__ import annotations

from typing import Any

import keras

from tfprune.errors import PlanError
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.own_layers.layer_configs import global_policy
from tfprune.surgery.rebuild import clone


def in_precision(model: keras.Model, wanted: str) -> keras.Model:
    """A twin of a model whose layers of 16 or 32 bits are of another precision.

    Raises:
        PlanError: If a layer keeps its own, whatever its config and the global policy say.
    """

    def changed(config: Any) -> Any:
        if not isinstance(config, dict):
            return config
        return {
            key: wanted if key == "dtype" and (is_short(value) or _is_single(value)) else changed(value)
            for key, value in config.items()
        }

    with global_policy(wanted):  # for what is made beside the layers: inputs, and the model
        twin = clone(model, lambda record, config: (type(record.operation), changed(config)), policy=wanted)
    for layer in layers_within(twin):
        if is_short(layer.dtype_policy):
            raise PlanError(
                f"{layer.name} ({type(layer).__name__}) stays in {layer.dtype_policy.name}, where rounding hides "
                "faults, so nothing can be proved. Let its constructor take dtype, and pass it on."
            )
    return twin


def _is_single(dtype: Any) -> bool:
    """Whether a dtype or policy, an object or its config, is float32."""
    return keras.dtype_policies.get(dtype).name == "float32"


def is_short(dtype: Any) -> bool:
    """Whether a dtype or policy, an object or its config, is of 16 bits or mixed with them."""
    return keras.dtype_policies.get(dtype).name.endswith("float16")
