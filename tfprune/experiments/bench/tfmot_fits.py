"""The networks of the benchmark of sparse training, of either Keras, and a process that prunes them with TFMOT.

python -m tfprune.experiments.bench.tfmot_fits NETWORK STEPS BATCH_SIZE SPARSITY END_STEP FREQUENCY

reads names of runs (`plain`, `masks`, `gradual`) from its input, a line each, and answers when it has called `fit` of
tf_keras for that. A process of its own, because TFMOT's wrapper needs TensorFlow to take Keras 2 for its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

CLASSES = 10
_UNITS, _HIDDEN = 512, 3
_WIDTHS, _BLOCKS = (16, 32, 64), 3


def dense(keras: Any) -> Any:
    """Builds a network of dense layers with batch normalization for vectors of 784."""
    layers = keras.layers
    x = inputs = keras.Input((784,))
    for _ in range(_HIDDEN):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(_UNITS, use_bias=False)(x)))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def resnet20(keras: Any) -> Any:
    """Builds ResNet-20 for RGB images of 32x32, as `tfprune.models` has it."""
    layers = keras.layers

    def normalized(x: Any, filters: int, strides: int = 1) -> Any:
        if strides > 1:
            x = layers.ZeroPadding2D(1)(x)
        padding = "same" if strides == 1 else "valid"
        return layers.BatchNormalization(epsilon=1e-5)(layers.Conv2D(filters, 3, strides, padding, use_bias=False)(x))

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(normalized(inputs, _WIDTHS[0]))
    for stage, filters in enumerate(_WIDTHS):
        for block in range(_BLOCKS):
            strides = 2 if stage and not block else 1
            shortcut = x
            if strides > 1:  # as many channels of zeros behind its own
                behind = [(0, 0), (0, 0), (0, 0), (0, x.shape[-1])]
                shortcut = layers.Lambda(tf.pad, arguments={"paddings": behind})(layers.AveragePooling2D(2)(x))
            x = layers.ReLU()(normalized(x, filters, strides))
            x = layers.ReLU()(layers.Add()([normalized(x, filters), shortcut]))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


BUILDERS: dict[str, Callable[[Any], Any]] = {"dense": dense, "resnet20": resnet20}


def compiled(keras: Any, model: Any) -> Any:
    """Compiles a network, as both sides are."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, metrics=["accuracy"])
    return model


def fit(model: Any, steps: int, batch_size: int, callbacks: Sequence[Any] = ()) -> Callable[[], object]:
    """What trains a compiled network on random inputs, in so many steps."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(steps * batch_size, *model.input_shape[1:])).astype(np.float32)
    labels = generator.integers(0, CLASSES, steps * batch_size, np.int32)
    return lambda: model.fit(inputs, labels, batch_size=batch_size, verbose=0, callbacks=list(callbacks))


def main(arguments: Sequence[str]) -> None:
    """Serves until its input ends."""
    name, (steps, batch_size, end_step, frequency) = arguments[0], map(int, (*arguments[1:3], *arguments[4:]))
    sparsity = float(arguments[3])
    import tensorflow_model_optimization as tfmot
    import tf_keras

    sparse = tfmot.sparsity.keras
    schedules = {
        "masks": sparse.ConstantSparsity(sparsity, begin_step=1, end_step=1, frequency=1),
        "gradual": sparse.PolynomialDecay(0.0, sparsity, 0, end_step, frequency=frequency),
    }
    runs: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        run = line.strip()
        if run not in runs:
            model, callbacks = BUILDERS[name](tf_keras), []
            if run in schedules:
                model, callbacks = sparse.prune_low_magnitude(model, schedules[run]), [sparse.UpdatePruningStep()]
            runs[run] = fit(compiled(tf_keras, model), steps, batch_size, callbacks)
        runs[run]()
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
