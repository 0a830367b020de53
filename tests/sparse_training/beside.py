"""Trainings that TFMOT and tfprune both can do, for `test_beside_tfmot.py`; the networks are built of either Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

KERNELS = ("kernel", "recurrent_kernel", "pointwise_kernel", "embeddings")
BATCH_SIZE, BATCHES = 4, 4


@dataclasses.dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        network: Name in `NETWORKS`.
        schedule: Name of the class of the schedule, and its arguments as TFMOT has them; None: that of TFMOT's default.
        options: Of `prune_low_magnitude`.
        epochs: Of `BATCHES` batches each.
        learning_rate: Of SGD.
        sgd: More arguments of SGD.
        equal: Whether all weights begin with the same magnitude.
    """

    network: str
    schedule: tuple[str, Mapping[str, Any]] | None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 4
    learning_rate: float = 0.01
    sgd: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    equal: bool = False


def polynomial(first, final, begin, end, frequency, power=3):
    return "PolynomialDecay", {
        "initial_sparsity": first, "final_sparsity": final, "begin_step": begin, "end_step": end,
        "frequency": frequency, "power": power,
    }  # fmt: skip


def constant(sparsity, begin, frequency=100, end=-1):
    return "ConstantSparsity", {
        "target_sparsity": sparsity, "begin_step": begin, "end_step": end, "frequency": frequency,
    }  # fmt: skip


_DECAY, _LATE_DECAY = polynomial(0.0, 0.8, 0, 12, 3), polynomial(0.25, 0.7, 2, 10, 2, power=2)
_TWO_BY_FOUR = {"sparsity_m_by_n": (2, 4)}

ALIKE = {
    "images, polynomial": Case("images", _DECAY),
    "images, constant": Case("images", constant(0.6, 3, frequency=5)),
    "images, 2:4": Case("images", None, _TWO_BY_FOUR),
    "words, polynomial": Case("words", _LATE_DECAY),
    "words, constant": Case("words", constant(0.35, 6, end=9, frequency=1)),
    "words, 2:4": Case("words", None, _TWO_BY_FOUR),
    "words, blocks": Case("words", _DECAY, {"block_size": (2, 2)}),
    "attention, polynomial": Case("attention", _LATE_DECAY),
    "dense, blocks": Case("dense", constant(0.5, 2), {"block_size": (5, 1)}),
}

OTHERWISE = {
    "weights that could grow back": Case("dense", constant(0.5, 1, frequency=1), learning_rate=2.0),
    "a frequency that leaves the end out": Case("dense", polynomial(0.0, 0.8, 0, 15, 10)),
    "a frequency beyond the end": Case("dense", polynomial(0.0, 0.8, 0, 15, 100)),
    "from step 0": Case("dense", constant(0.5, 0)),
    "begin and end at once": Case("dense", polynomial(0.0, 0.8, 3, 3, 1)),
    "equal magnitudes": Case("dense", constant(0.5, 1), equal=True),
    "moving averages": Case("dense", constant(0.5, 6), sgd={"use_ema": True}),
    "2:4 from a later step": Case("dense", constant(0.5, 6), _TWO_BY_FOUR),
}

CASES = {**ALIKE, **OTHERWISE}


def _images(keras):
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(6, 3, activation="tanh", name="conv")(inputs)
    x = layers.SeparableConv2D(8, 3, activation="tanh", name="separable")(x)
    x = layers.Conv2DTranspose(5, 2, activation="tanh", name="transposed")(x)
    x = layers.Dense(7, activation="tanh", name="hidden")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def _words(keras):
    layers = keras.layers
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(11, 8, name="embedding")(inputs)
    x = layers.LSTM(5, return_sequences=True, name="lstm")(x)
    x = layers.GRU(6, return_sequences=True, name="gru")(x)
    x = layers.SimpleRNN(4, name="simple")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def _attention(keras):
    layers = keras.layers
    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(2, 4, name="attention")(inputs, value=inputs)
    x = layers.Conv1D(7, 3, activation="tanh", name="conv")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def _dense(keras):
    layers = keras.layers
    inputs = keras.Input((10,))
    x = layers.Dense(9, activation="tanh", name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


NETWORKS = {"images": _images, "words": _words, "attention": _attention, "dense": _dense}


def built(keras, case: Case):
    """The network of a case, whose weights do not depend on which Keras builds it."""
    model, generator = NETWORKS[case.network](keras), np.random.default_rng(0)
    values = [generator.normal(0.0, 0.3, weight.shape) for weight in model.weights]
    model.set_weights([np.where(value > 0, 0.3, -0.3) if case.equal else value for value in values])
    return model


def batches(model) -> tuple[np.ndarray, np.ndarray]:
    """What a network is trained on, in this order: inputs and targets."""
    generator, count = np.random.default_rng(1), BATCHES * BATCH_SIZE
    shape = (count, *model.input_shape[1:])
    is_words = len(shape) == 2 and shape[1] == 5
    inputs = generator.integers(0, 11, shape) if is_words else generator.normal(size=shape).astype("float32")
    return inputs, generator.normal(size=(count, 3)).astype("float32")


def trained(keras, model, case: Case, callbacks) -> None:
    """Compiles and fits."""
    model.compile(keras.optimizers.SGD(case.learning_rate, **case.sgd), "mse")
    model.fit(*batches(model), batch_size=BATCH_SIZE, epochs=case.epochs, shuffle=False, verbose=0, callbacks=callbacks)


def kernels(layers) -> dict[str, np.ndarray]:
    """Name -> what TFMOT would prune of layers, in their order."""
    weights = {getattr(weight, "path", weight.name): weight for layer in layers for weight in layer.weights}
    return {
        name: weight.numpy() for name, weight in weights.items()
        if name.split("/")[-1].removesuffix(":0") in KERNELS and len(weight.shape) > 1
    }  # fmt: skip
