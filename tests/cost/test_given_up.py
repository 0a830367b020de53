"""What is given up costs what it computes; where that is not known, plan and profile say so."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfprune
from tests.helpers import network, randomize
from tfprune.errors import PlanError
from tfprune.graph.keras_internals import layers_within

UNKNOWN = "what these layers compute is not known, and counts as 0 MACs: "


class Windows(keras.layers.Layer):
    """A dense layer on windows of four positions, which become examples of a batch."""

    def __init__(self, **config):
        super().__init__(**config)
        self.inner = layers.Dense(5)

    def build(self, shape):
        self.inner.build((None, 4, shape[-1]))

    def call(self, x):
        size, channels = x.shape[1:]
        y = self.inner(ops.reshape(x, (-1, 4, channels)))
        return ops.reshape(y, (-1, size, 5))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 5)


class Twice(keras.layers.Layer):
    """Two layers inside; what it tells of its output is wrong, so that nothing of it can be followed."""

    def __init__(self, told=5, **config):
        super().__init__(**config)
        self.told = told
        self.one, self.two = layers.Dense(7, use_bias=False), layers.Dense(5, use_bias=False)

    def build(self, shape):
        self.one.build(shape)
        self.two.build((*shape[:-1], 7))

    def call(self, x):
        return self.two(self.one(x))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.told)


class Cell(keras.layers.Layer):
    """A cell of one's own, with one kernel."""

    state_size = output_size = 5

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5), name="kernel")

    def call(self, x, states):
        y = ops.tanh(ops.matmul(x, self.kernel) + states[0])
        return y, [y]


class Hidden(keras.layers.Layer):
    """A layer of TensorFlow's operations, which nothing can look into."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5), name="kernel")

    def call(self, x):
        return tf.matmul(x, self.kernel)


def quantized(layer, mode="int8"):
    def body(x):
        y = layer(x)
        layer.quantize(mode)
        return y

    return body


def low_rank(layer):
    def body(x):
        y = layer(x)
        layer.enable_lora(2)
        return y

    return body


def attention_in_int8():
    layer = layers.MultiHeadAttention(2, 4)

    def body(x):
        y = layer(x, x)
        for inner in layers_within(layer):
            if isinstance(inner, layers.EinsumDense):
                inner.quantize("int8")
        return y

    return body


def by_a_constant(x):
    return ops.matmul(x, ops.ones((4, 2)))


def cnn():
    return keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(4, 3), layers.ReLU(), layers.Flatten(), layers.Dense(2)]
    )


CASES = {
    "network in TimeDistributed": (lambda: layers.TimeDistributed(cnn()), (5, 6, 6, 3), 5 * (108 * 16 + 64 * 2)),
    "own layer in TimeDistributed": (lambda: layers.TimeDistributed(Twice()), (5, 3, 4), 5 * 3 * (28 + 35)),
    "wrapper in TimeDistributed": (
        lambda: layers.TimeDistributed(layers.SpectralNormalization(layers.Conv2D(4, 3))),
        (5, 6, 6, 3),
        5 * 108 * 16,
    ),
    "products in TimeDistributed in TimeDistributed": (
        lambda: layers.TimeDistributed(
            layers.TimeDistributed(layers.Lambda(lambda x: ops.matmul(x, ops.ones((4, 2)))))
        ),
        (5, 6, 3, 4),
        5 * 6 * 3 * 4 * 2,
    ),
    "SpectralNormalization": (lambda: layers.SpectralNormalization(layers.Conv2D(4, 3)), (6, 6, 3), 108 * 16),
    "quantized Dense": (lambda: quantized(layers.Dense(5)), (6, 4), 6 * 20),
    "four bits": (lambda: quantized(layers.Dense(5), "int4"), (6, 4), 6 * 20),
    "float8": (lambda: quantized(layers.Dense(5), "float8"), (6, 4), 6 * 20),
    "quantized EinsumDense": (lambda: quantized(layers.EinsumDense("abc,cd->abd", (6, 5))), (6, 4), 6 * 20),
    "LoRA of Dense": (lambda: low_rank(layers.Dense(5)), (6, 4), 6 * 20),
    "LoRA of Conv2D": (lambda: low_rank(layers.Conv2D(4, 3)), (6, 6, 3), 108 * 16),
    "LoRA of a depth": (lambda: low_rank(layers.Conv1D(4, 3, strides=2)), (7, 3), 36 * 3),
    "stacked cells": (
        lambda: layers.RNN(layers.StackedRNNCells([layers.GRUCell(4), layers.LSTMCell(5)])),
        (6, 3),
        6 * (3 * 4 * (3 + 4) + 4 * 5 * (4 + 5)),
    ),
    "own cell": (lambda: layers.RNN(Cell()), (6, 3), 6 * 15),
    "both directions of a ConvLSTM1D": (
        lambda: layers.Bidirectional(layers.ConvLSTM1D(2, 3, padding="same")),
        (5, 6, 3),
        2 * 5 * 6 * (3 * 3 * 8 + 3 * 2 * 8),
    ),
    "attention with quantized projections": (attention_in_int8, (6, 8), 4 * 6 * 8 * 8 + 2 * 6 * 6 * 8),
    "own layer that tells a wrong shape": (lambda: Twice(told=1), (6, 4), 6 * (28 + 35)),
    "Lambda": (lambda: layers.Lambda(lambda x: ops.matmul(x, ops.swapaxes(x, 1, 2))), (6, 4), 6 * 6 * 4),
    "constant": (lambda: lambda x: ops.matmul(x, np.ones((4, 5), "float32")), (6, 4), 6 * 20),
    "kernel that is a tensor": (
        lambda: lambda x: ops.conv(x, np.ones((3, 3, 3, 4), "float32")),
        (6, 6, 3),
        108 * 16,
    ),
    "windows that become a batch": (Windows, (12, 4), 12 * 20),
}


def built(body, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


@pytest.mark.parametrize("case", CASES)
def test_what_is_given_up_counts_what_it_computes(case):
    make, shape, macs = CASES[case]
    profile = tfprune.profile(built(make(), shape))
    assert profile.macs == macs
    assert profile.flops >= 2 * macs
    assert profile.notes == ()


def test_the_layer_is_left_as_it_was():
    layer = layers.Dense(5)
    model = built(low_rank(layer), (6, 4))
    before = [weight.path for weight in model.weights]
    assert tfprune.profile(model).macs == 120
    assert [weight.path for weight in model.weights] == before
    assert len(model.layers) == 2
    x = np.ones((2, 6, 4), "float32")
    np.testing.assert_array_equal(model(x), keras.models.clone_model(model)(x) * 0 + layer(x))


def test_zeros_of_convolutions_are_discounted_inside():
    wrapped = layers.TimeDistributed(cnn())
    model = built(wrapped, (5, 6, 6, 3))
    before = tfprune.profile(model)
    kernel = wrapped.layer.layers[0].kernel
    kernel.assign(np.where(np.arange(4) < 1, 0, kernel.numpy()))
    after = tfprune.profile(model)
    assert (after.macs, before.flops - after.flops) == (before.macs, 5 * 2 * 27 * 16)


def video(inner):
    inputs = keras.Input((5, 6, 6, 3))
    x = layers.TimeDistributed(inner, name="frames")(inputs)
    x = layers.Dense(8, activation="relu", name="wide")(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def test_plans_and_budgets_know_what_is_given_up():
    one = keras.Input((6, 6, 3))
    model = video(keras.Model(one, keras.ops.abs(cnn()(one))))  # an operation does not let it be taken apart
    frames = 5 * (108 * 16 + 64 * 2)
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.macs == (frames + 5 * (16 + 24), frames + 5 * (8 + 12))
    small = plan.apply(model)
    assert tfprune.profile(small).macs == plan.macs[1]
    assert not any("0 MACs" in note for note in plan.notes)
    with pytest.raises(PlanError, match=r"macs=0\.5"):
        tfprune.plan_channels(model, macs=0.5)


def test_what_nothing_is_known_of_is_told_in_plan_and_profile():
    def body(x):
        x = layers.Dense(8, name="wide")(Hidden(name="hidden")(x))
        return layers.Dense(3, name="head")(layers.Lambda(lambda y: tf.nn.relu(y), name="tf")(layers.Dense(6)(x)))

    model = network(body, (6, 4))
    told = f"{UNKNOWN}hidden (Hidden), tf (Lambda)"
    assert told in tfprune.profile(model).notes
    assert f"note: {told}" in str(tfprune.profile(model))
    assert told in tfprune.plan_channels(model, 0.5).notes
    assert told in tfprune.plan_weights(model, 0.5, dense=True).notes


def test_nothing_is_told_of_what_costs_nothing():
    def body(x):
        x = layers.RandomBrightness(0.1)(layers.Rescaling(0.5)(x))
        x = layers.Conv2D(6, 3)(layers.Masking()(x))
        return layers.Dense(3)(ops.max(ops.sort(layers.Flatten()(x)), axis=-1, keepdims=True))

    assert tfprune.profile(network(body, (6, 6, 3))).notes == ()


def test_unknown_sizes_are_told_of_what_is_inside_as_well():
    inputs = keras.Input((None, 4))
    for layer in (Twice(), Twice(told=1), layers.TimeDistributed(Twice())):
        profile = tfprune.profile(keras.Model(inputs, layer(inputs)))
        assert profile.macs == 28 + 35
        assert any("sizes of the input are unknown" in note for note in profile.notes)
    model = keras.Model(inputs, layers.Dense(3)(Twice()(inputs)))
    with pytest.raises(PlanError, match="known size"):
        tfprune.plan_channels(model, macs=0.5)
