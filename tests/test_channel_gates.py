"""Gates on neurons and groups: where they sit, what they compute, and that what they close is removed at no loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, event, given, settings
from keras import layers

from tests.graphs import build, recipes
from tests.helpers import images, network, plain_cnn, predict, prove, randomize, relative_error, residual_cnn
from tests.test_loop import STRATEGY, make_data
from tests.test_selection import preactivated
from tests.test_sparse_structure_selection import proximal_steps
from tfprune.data import load
from tfprune.errors import PlanError
from tfprune.experiments.run import main
from tfprune.layers import GATED, plain_weights
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.methods.channel_gates import ChannelGates
from tfprune.models import build_model
from tfprune.models.blocks import conv_bn_relu, pooled_logits
from tfprune.plans import ChannelPlan
from tfprune.proof import random_inputs
from tfprune.surgery import clone
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.optimizer import CoupledSGD
from tfprune.training.schedules import Schedule

METHOD = METHODS.get("sparse_structure_selection")


def resnext(shape=(8, 8, 3), classes=5, widths=((8, 12), (16, 20)), groups=4, strides=1):
    """Bottleneck blocks with grouped convolutions: conv_1a, conv_1b (grouped), conv_1c, and so on."""
    inputs = keras.Input(shape)
    x = conv_bn_relu(inputs, 6, "stem", strides=strides)
    for number, (inner, outer) in enumerate(widths, 1):
        shortcut = conv_bn_relu(x, outer, f"{number}s", relu=False, size=1)
        x = conv_bn_relu(x, inner, f"{number}a", size=1)
        x = conv_bn_relu(x, inner, f"{number}b", groups=groups)
        x = conv_bn_relu(x, outer, f"{number}c", size=1, relu=False)
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    return randomize(keras.Model(inputs, pooled_logits(x, classes), name="resnext"))


# The update, and the gated layers.


def test_a_vector_of_gates_takes_the_proximal_steps_of_each():
    generator = np.random.default_rng(3)
    gradients, rates = generator.normal(0, 1, (12, 5)), [0.1] * 6 + [0.02] * 6
    gates = keras.Variable(np.ones(5), dtype="float32")
    gates.proximal_l1 = 0.8
    optimizer, seen = CoupledSGD(momentum=0.9, coupled_weight_decay=0.01, nesterov=True), []
    for step, rate in zip(gradients.astype("float32"), rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant(step)], [gates])
        seen.append(gates.numpy())
    expected = np.stack([proximal_steps(1, gradients[:, i], rates, 0.8, 0.9) for i in range(5)], axis=1)
    assert np.allclose(seen, expected, atol=1e-6)
    assert (np.asarray(seen) == 0).any()  # not nearly
    assert (np.asarray(seen)[-1] > 0).any()


LAYERS = {
    "convolution": (lambda: layers.Conv2D(6, 3, name="own"), (5, 5, 2), -1),
    "grouped convolution": (lambda: layers.Conv2D(6, 3, groups=3, activation="relu", name="own"), (5, 5, 6), -1),
    "convolution over time": (lambda: layers.Conv1D(6, 3, use_bias=False, name="own"), (7, 2), -1),
    "dense": (lambda: layers.Dense(6, activation="leaky_relu", name="own"), (5,), -1),
    "normalization": (lambda: layers.BatchNormalization(name="own"), (5, 5, 6), -1),
    "normalization, channels first": (lambda: layers.BatchNormalization(axis=1, name="own"), (6, 5, 5), 1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("count", [6, 3])
def test_each_gate_multiplies_its_run_of_channels_and_is_folded(name, count):
    make, shape, axis = LAYERS[name]
    model = network(lambda x: make()(x), shape)

    def gate(record, config):
        kind = type(record.operation)
        return (GATED[kind], {**config, "gate_l1": 0.1, "gates": count}) if record.name == "own" else (kind, config)

    twin, (x,) = clone(model, gate), random_inputs(model, 3)
    assert relative_error(predict(model, x), predict(twin, x)) <= 1e-6
    gates = np.linspace(0, 2, count)
    twin.get_layer("own").gate.assign(gates)
    (plain,), (before,) = predict(model, x), predict(twin, x)
    by_hand = np.moveaxis(np.moveaxis(plain, axis, -1) * np.repeat(gates, 6 // count), -1, axis)
    assert relative_error([by_hand], [before]) <= 1e-5
    twin.get_layer("own").fold()
    assert (twin.get_layer("own").gate.numpy() == np.ones(count)).all()
    model.set_weights([weight.numpy() for weight in plain_weights(twin)])
    assert relative_error([before], predict(model, x)) <= 1e-5


# Where gates sit.


def between(*behind, shape=(8, 8, 3)):
    """A convolution with a batch normalization, something behind it, and a convolution that reads it."""

    def body(x):
        x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, padding="same", name="first")(x))
        for layer in behind:
            x = layer(x)
        return layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 3, name="reader")(x)))

    return network(body, shape)


def without_normalization(x):
    x = layers.Conv2D(4, 3, activation="relu", name="a")(x)
    x = layers.MaxPooling2D(2)(layers.ReLU()(layers.Conv2D(6, 3, name="b")(x)))
    return layers.Dense(3)(layers.Dense(5, activation="relu", name="c")(layers.Flatten()(x)))


def side_by_side(x):
    one = layers.ReLU()(layers.BatchNormalization(name="bn_1")(layers.Conv2D(4, 1)(x)))
    other = layers.Activation("sigmoid")(layers.BatchNormalization(name="bn_2")(layers.Conv2D(5, 1)(x)))
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(6, 1)(layers.Concatenate()([one, other]))))


def depthwise(x):
    x = layers.ReLU(6)(layers.BatchNormalization(name="bn_1")(layers.Conv2D(4, 1)(x)))
    x = layers.ReLU(6)(layers.BatchNormalization(name="bn_2")(layers.DepthwiseConv2D(3)(x)))
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 1)(x)))


def with_an_offset(x):
    """One value per position, added to all channels: a closed gate is no zero behind it."""
    a = layers.Conv2D(4, 1, name="a")(x)
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 1)(layers.Add()([a, layers.Conv2D(1, 1)(x)]))))


def read_by_itself(x):
    """A recurrent layer reads its own channels, whatever a normalization behind it makes of them."""
    x = layers.LSTM(4, return_sequences=True)(x)
    return layers.Dense(3)(layers.Flatten()(layers.Dense(5)(layers.BatchNormalization(name="bn")(x))))


def called_twice(x):
    shared = layers.Conv2D(4, 3, padding="same")
    x = layers.Conv2D(4, 1, activation="relu", name="own")(shared(layers.ReLU()(shared(layers.Conv2D(4, 1)(x)))))
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(3, 1)(x)))


IMAGE = (8, 8, 3)
PLACES = {
    "vgg": (plain_cnn, {"bn_a": 6, "bn_b": 10, "fc": 8}),
    "residual": (residual_cnn, {"bn_branch_a": 6}),  # not the stream
    "preactivated": (preactivated, None),
    "no normalization": (lambda: network(without_normalization, IMAGE), {"a": 4, "b": 6, "c": 5}),
    "PReLU": (lambda: between(layers.PReLU(shared_axes=[1, 2]), layers.AveragePooling2D()), {"bn": 4, "reader": 5}),
    "silu": (lambda: between(layers.Activation("silu")), {"bn": 4, "reader": 5}),
    "dropout and padding": (lambda: between(layers.Dropout(0.3), layers.ZeroPadding2D()), {"bn": 4, "reader": 5}),
    "sigmoid": (lambda: between(layers.Activation("sigmoid")), {"reader": 5}),
    "offset": (lambda: between(layers.Rescaling(2.0, offset=1.0)), {"reader": 5}),
    "depthwise bias": (lambda: between(layers.DepthwiseConv2D(3)), {"reader": 5}),
    "side by side": (lambda: network(side_by_side, IMAGE), {"bn_1": 4, "conv2d_2": 6}),
    "depthwise": (lambda: network(depthwise, IMAGE), {"bn_2": 4, "conv2d_1": 5}),
    "with an offset": (lambda: network(with_an_offset, IMAGE), {"conv2d_1": 5}),
    "read by itself": (lambda: network(read_by_itself, (6, 3)), {"dense": 5}),
    "called twice": (lambda: network(called_twice, IMAGE), {"own": 4, "conv2d_2": 3}),
    "grouped": (resnext, None),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_gate_sits_where_it_alone_makes_the_zeros_that_are_read(name):
    keras.backend.clear_session()
    make, expected = PLACES[name]
    model = make()
    if expected is None:
        with pytest.raises(PlanError, match="No gate on neurons has a place in"):
            ChannelGates.find(model, "neurons")
        return
    found = ChannelGates.find(model, "neurons").layers
    assert {layer: len(gates) for layer, gates in found.items()} == expected
