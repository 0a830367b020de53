"""A network for every kind of Keras' layers that computes at inference: to see which of them a format takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

_CHANNELS = 4
_SHAPES = {1: (8, _CHANNELS), 2: (8, 8, _CHANNELS), 3: (6, 6, 6, _CHANNELS)}
_DENSE = (
    "Dense",
    "LeakyReLU",
    "PReLU",
    "ELU",
    "Softmax",
    "LayerNormalization",
    "RMSNormalization",
    "BatchNormalization",
)
_OF_IMAGES = (
    "Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv", "MaxPooling", "AveragePooling", "GlobalMaxPooling",
    "GlobalAveragePooling", "AdaptiveAveragePooling", "AdaptiveMaxPooling", "UpSampling", "ZeroPadding", "Cropping",
    "ConvLSTM",
)  # fmt: skip
_ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "hard_sigmoid",
    "hard_silu", "softplus", "softsign", "tanh", "exponential", "glu", "sparsemax", "log_softmax",
    "hard_tanh", "squareplus",
)  # fmt: skip


def layer_networks() -> Iterator[tuple[str, Callable[[], keras.Model]]]:
    """The names of layers, with how they are called, and functions that make a network of each."""
    from keras import layers

    for name in _DENSE:
        yield name, _network((8, _CHANNELS), getattr(layers, name), **({"units": 3} if name == "Dense" else {}))
    for name in _ACTIVATIONS:
        yield f"Activation({name})", _network((8, _CHANNELS), layers.Activation, activation=name)
    for name in _OF_IMAGES:
        for rank, shape in _SHAPES.items():
            parts = name.partition("Transpose")
            made = getattr(layers, f"{parts[0]}{rank}D{parts[1]}", None)
            if made is not None:
                yield f"{parts[0]}{rank}D{parts[1]}", _of_images(name, made, shape)
    for name in ("LSTM", "GRU", "SimpleRNN"):
        yield name, _network((8, _CHANNELS), getattr(layers, name), units=3)
        yield f"{name}(unroll=True)", _network((8, _CHANNELS), getattr(layers, name), units=3, unroll=True)
    yield "GroupNormalization", _network((8, 8, _CHANNELS), layers.GroupNormalization, groups=2)
    yield "UnitNormalization", _network((8, _CHANNELS), layers.UnitNormalization)
    yield "Resizing", _network((8, 8, _CHANNELS), layers.Resizing, height=12, width=10)
    yield "UpSampling2D(bilinear)", _network((8, 8, _CHANNELS), layers.UpSampling2D, interpolation="bilinear")
    yield "Conv2D(groups=2)", _network((8, 8, _CHANNELS), layers.Conv2D, filters=4, kernel_size=3, groups=2)
    yield (
        "Conv2D(dilation_rate=2)",
        _network((8, 8, _CHANNELS), layers.Conv2D, filters=4, kernel_size=3, dilation_rate=2),
    )
    yield "EinsumDense", _network((8, _CHANNELS), layers.EinsumDense, equation="abc,cd->abd", output_shape=(8, 3))
    yield "Bidirectional(LSTM)", _network((8, _CHANNELS), lambda: layers.Bidirectional(layers.LSTM(3)))
    yield "TimeDistributed(Conv2D)", _network((3, 8, 8, 2), lambda: layers.TimeDistributed(layers.Conv2D(3, 3)))
    yield "MultiHeadAttention", _attention("MultiHeadAttention", num_heads=2, key_dim=4)
    yield "GroupQueryAttention", _attention("GroupQueryAttention", head_dim=4, num_query_heads=2, num_key_value_heads=1)
    yield "Attention", _attention("Attention")
    yield "AdditiveAttention", _attention("AdditiveAttention")
    yield "Embedding", _network((8,), layers.Embedding, dtype="int32", input_dim=16, output_dim=4)


def _of_images(name: str, made: Callable[..., Any], shape: tuple[int, ...]) -> Callable[[], keras.Model]:
    arguments: dict[str, Any] = {}
    if "Conv" in name:
        arguments["kernel_size"] = 3
        if name != "DepthwiseConv":
            arguments["filters"] = 3
    if name in ("MaxPooling", "AveragePooling"):
        arguments["pool_size"] = 2
    if name.startswith("Adaptive"):
        arguments["output_size"] = 3
    return _network((3, *shape) if name == "ConvLSTM" else shape, made, **arguments)


def _network(
    shape: tuple[int, ...], made: Callable[..., Any], dtype: str = "float32", **arguments: Any
) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        import keras

        inputs = keras.Input(shape, dtype=dtype)
        return keras.Model(inputs, made(**arguments)(inputs))

    return make


def _attention(name: str, **arguments: Any) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        import keras

        query, value = keras.Input((8, _CHANNELS)), keras.Input((6, _CHANNELS))
        layer = getattr(keras.layers, name)(**arguments)
        given = layer([query, value]) if "Head" not in name and "Query" not in name else layer(query, value)
        return keras.Model([query, value], given)

    return make
