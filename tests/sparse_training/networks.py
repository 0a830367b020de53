"""Small networks, data, and a callback that looks at kernels while they are trained."""

import keras
import numpy as np
from keras import layers

from tfprune.graph.channel_graph import ChannelGraph
from tfprune.plans.kernels import kernels_within


def dense_network(policy="float32", seed=0):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(10, "tanh", name="first", dtype=policy),
            layers.Dense(8, "tanh", name="second", dtype=policy),
            layers.Dense(3, name="head", dtype=policy),
        ],
        name="dense",
    )
    generator = np.random.default_rng(seed)
    model.set_weights([generator.normal(0.0, 0.5, weight.shape) for weight in model.get_weights()])
    return model


def data(count=40, seed=1):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 6)).astype("float32"), generator.normal(size=(count, 3)).astype("float32")


def kernels_of(model):
    """Name -> array, of all kernels."""
    found = kernels_within(ChannelGraph(model))
    return {name: keras.ops.convert_to_numpy(kernel.variable) for name, kernel in found.items()}


def zeros_of(model):
    """Name -> the number of zeros of each kernel."""
    return {name: int((value == 0).sum()) for name, value in kernels_of(model).items()}


def off(size, sparsity):
    """As TFMOT counts: of n weights n - max(1, round(n * (1 - sparsity))) go, halves to even."""
    return size - max(1, round(float(np.float32(size) * np.float32(1 - np.float32(sparsity)))))


class Watch(keras.callbacks.Callback):
    """Notes the zeros of all kernels at every end of a batch, and whether what was zero has come back."""

    def __init__(self):
        super().__init__()
        self.zeros, self.came_back, self._last = [], [], {}

    def on_train_batch_end(self, batch, logs=None):
        values = kernels_of(self.model)
        self.zeros.append({name: int((value == 0).sum()) for name, value in values.items()})
        self.came_back += [name for name, zero in self._last.items() if values[name][zero].any()]
        self._last = {name: value == 0 for name, value in values.items()}
