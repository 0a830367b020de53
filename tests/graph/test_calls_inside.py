"""What the call of a layer may do with the layers inside of it and with numbers, while it is looked into."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import network, predict
from tfprune.graph.channel_graph import ChannelGraph


class Wide(layers.Layer):
    """A dense layer inside, whose width is in the config, and a way to go on from it."""

    def __init__(self, way, width=10, **options):
        super().__init__(**options)
        self.way, self.width, self.dense = way, width, layers.Dense(width, name="dense")
        self.lone, self.given = Lone(name="lone"), Given(name="given")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return WAYS[self.way](self, ops.relu(self.dense(x)))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.width)

    def get_config(self):
        return {**super().get_config(), "way": self.way, "width": self.width}


class Lone(layers.Layer):
    """Has no weights, and asks for a number."""

    def call(self, x):
        return x if float(ops.max(x)) < 1e9 else -x

    def compute_output_shape(self, shape):
        return shape


class Given(layers.Layer):
    """Gives what enters beside a number that it makes itself, or that number alone."""

    def call(self, x, alone=False):
        return 0.5 if alone else (x * 2.0, 0.5)

    def compute_output_spec(self, x, alone=False):
        return 0.5 if alone else (keras.KerasTensor(x.shape, x.dtype), 0.5)


def beside(own, x):
    made, number = own.given(x)
    return made * number


def after_another_step(own, x):
    return x * (1.0 + ops.cast(ops.arange(0, 6, 2), x.dtype)[1]) + ops.cast(ops.arange(1, 3), x.dtype)[0]


WAYS = {
    "beside a number": beside,
    "by a number of a layer": lambda own, x: x * own.given(x, alone=True),
    "by numbers in steps": after_another_step,
    "by what cannot be followed": lambda own, x: own.lone(x),
    "by a layer that is made in the call": lambda own, x: layers.Activation("tanh")(x),
}  # fmt: skip


def around(way):
    def body(x):
        x = Wide(way, name="own")(layers.Dense(8, activation="relu", name="before")(x))
        return layers.Dense(3, name="head")(x)

    return network(body, (6, 5))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "by what cannot be followed"])
def test_a_layer_is_followed_through_what_its_call_does(way):
    model = around(way)
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["before"]), len(plan.keep["own/dense"])) == (4, 5)
    proof = tfprune.verify(model, plan, power=True)
    assert (proof <= 1e-5, proof.unnoticed) == (True, ())
    small = plan.apply(model)
    assert small.get_layer("own").width == 5
    # By Keras alone: the head reads nothing of what goes, and the layer nothing of what goes before it.
    given = np.random.default_rng(0).normal(size=(4, 6, 5)).astype("float32")
    (found,) = predict(small, given)
    for kernel, kept in (
        (model.get_layer("own").dense.kernel, plan.keep["before"]),
        (model.get_layer("head").kernel, plan.keep["own/dense"]),
    ):
        value = np.zeros(kernel.shape, "float32")
        value[list(kept)] = kernel.numpy()[list(kept)]
        kernel.assign(value)
    np.testing.assert_allclose(found, predict(model, given)[0], rtol=1e-4, atol=1e-5)


def test_a_layer_inside_that_cannot_be_followed_stops_only_what_enters_it():
    model = around("by what cannot be followed")
    frozen = ChannelGraph(model).frozen_layers()
    assert "before" not in frozen
    assert frozen["own/dense"].startswith("own/lone (Lone) is not known to tfprune, and cannot be looked into (")
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["before"]), len(plan.keep["own/dense"])) == (4, 10)
    assert tfprune.verify(model, plan, power=True) <= 1e-5
