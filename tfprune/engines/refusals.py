"""What the engines cannot take, told before anything is converted."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from tfprune.engines.serving import stateful_layers
from tfprune.graph.keras_internals import layers_within
from tfprune.surgery.precision import is_short


def that_keep_state(model: keras.Model) -> str | None:
    """Of layers that hold a state from call to call, where a file has none."""
    if names := _names(model, stateful_layers(model)):
        return (
            f"{names} {_be(names)} stateful, and such a file remembers nothing from call to call. Build the network "
            "with stateful=False, or use the SavedModel."
        )
    return None


def that_loop(model: keras.Model) -> str | None:
    """Of recurrent layers that run a loop over a batch of open size, which LiteRT itself has no operations for."""
    if all(tensor.shape[0] is not None for tensor in model.inputs):
        return None
    looping = [layer for layer in layers_within(model) if isinstance(layer, keras.layers.RNN) and not layer.unroll]
    if not (names := _names(model, looping)):
        return None
    convolves = all(type(layer).__name__.startswith("ConvLSTM") for layer in looping)  # which Keras cannot unroll
    unrolled = "" if convolves else "unroll=True, or with "
    return (
        f"{names} would run a loop for which LiteRT has no operations of its own while the batch size is open. Build "
        f"the network with {unrolled}a batch size: keras.Input(batch_shape=(1, ...))."
    )


def of_16_bits(model: keras.Model, kind: str = "float16") -> str | None:
    """Of layers that compute in 16 bits; `kind`: how the names of their precisions end."""
    short = [layer for layer in layers_within(model) if is_short(layer.dtype_policy)]
    short = [layer for layer in short if layer.dtype_policy.name.endswith(kind)]
    if names := _names(model, short):
        return (
            f"{names} {_be(names)} of {short[0].dtype_policy.name}, which it does not compute in. Build the network "
            "with dtype='float32' and give it these weights (set_weights)."
        )
    return None


def _names(model: keras.Model, found: list[keras.Layer]) -> str:
    """The first names of layers, or of those around them, for these are what a user has made."""
    inner = set(map(id, found))
    around = [layer for layer in _plain(model) if inner.intersection(map(id, layers_within(layer)))]
    names = [f"{layer.name} ({type(layer).__name__})" for layer in around]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _plain(model: keras.Model) -> Iterator[keras.Layer]:
    """The layers of a model and of the models inside of it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _plain(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def _be(names: str) -> str:
    return "are" if ", " in names else "is"
