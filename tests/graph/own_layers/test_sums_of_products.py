"""Experts, and other sums of products of tensors with weights, in the ways in which people write them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import assert_as_zeroed, network, predict, prove
from tfprune.graph.channel_graph import ChannelGraph

SEQUENCE = (9, 12)


@keras.saving.register_keras_serializable("sums")
class Experts(layers.Layer):
    """Hidden units of several experts, whose sums are weighed by a gate."""

    def __init__(self, way, experts, hidden, **options):
        super().__init__(**options)
        self.way, self.experts, self.hidden = way, experts, hidden

    def build(self, shape):
        self.gate = layers.Dense(self.experts, name="gate")
        self.gate.build(shape)
        self.up = self.add_weight(shape=(self.experts, shape[-1], self.hidden), name="up")
        self.bias = self.add_weight(shape=(self.experts, self.hidden), name="bias")
        self.down = self.add_weight(shape=(self.experts, self.hidden, shape[-1]), name="down")

    def call(self, x):
        return WAYS[self.way](x, ops.softmax(self.gate(x)), self.up, self.bias, self.down)

    def get_config(self):
        return {**super().get_config(), "way": self.way, "experts": self.experts, "hidden": self.hidden}


def hidden(x, up, bias):
    return ops.gelu(ops.einsum("btc,ech->bteh", x, up) + bias)


def matmuls(x, gate, up, bias, down):
    y = ops.matmul(ops.gelu(ops.matmul(x[:, None], up[None]) + bias[None, :, None]), down[None])
    return ops.sum(y * ops.transpose(gate, (0, 2, 1))[..., None], 1)


WAYS = {
    "three at once": lambda x, gate, up, bias, down: ops.einsum("bteh,ehc,bte->btc", hidden(x, up, bias), down, gate),
    "gate first": lambda x, gate, up, bias, down: ops.einsum("bte,bteh,ehc->btc", gate, hidden(x, up, bias), down),
    "two and two": lambda x, gate, up, bias, down: ops.einsum(
        "btec,bte->btc", ops.einsum("bteh,ehc->btec", hidden(x, up, bias), down), gate
    ),
    "matmul": matmuls,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_hidden_width_of_every_expert_goes(way, tmp_path):
    def body(x):
        x = layers.Dense(20, name="wide")(x)
        return layers.Dense(3)(x + Experts(way, 4, 28, name="own")(x))

    model = network(body, SEQUENCE)
    plan = tfprune.plan_channels(model, 0.5)
    assert {reason.partition(" in ")[0] for reason in plan.frozen.values()} == {
        "model output",
        "softmax over the channels",  # the gate: one number for each expert
    }
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = prove(model, plan)
    own = small.get_layer("own")
    assert (type(own), own.experts, own.hidden) == (Experts, 4, 14)
    assert [tuple(weight.shape) for weight in (own.up, own.bias, own.down)] == [(4, 10, 14), (4, 14), (4, 14, 10)]
    given = np.random.default_rng(0).normal(size=(5, *SEQUENCE)).astype("float32")
    assert_as_zeroed(model, plan, small, given)
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    assert np.array_equal(predict(loaded, given)[0], predict(small, given)[0])


@keras.saving.register_keras_serializable("sums")
class Bilinear(layers.Layer):
    """Products of every channel with every other one, summed by a weight."""

    def __init__(self, width, equation, **options):
        super().__init__(**options)
        self.width, self.equation = width, equation

    def build(self, shape):
        sizes = {"i": shape[-1], "j": shape[-1], "o": self.width}
        kernel = next(own for own in self.equation.partition("->")[0].split(",") if "b" not in own)
        self.kernel = self.add_weight(shape=[sizes[letter] for letter in kernel], name="kernel")

    def call(self, x):
        operands = self.equation.partition("->")[0].split(",")
        return ops.einsum(self.equation, *(x if "b" in own else self.kernel for own in operands))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "equation": self.equation}


@pytest.mark.parametrize("equation", ["bti,ijo,btj->bto", "bti,btj,oij->bto", "jio,bti,btj->bto"])
def test_both_sides_of_a_bilinear_layer_lose_the_same_channels(equation):
    def body(x):
        return layers.Dense(3)(Bilinear(20, equation, name="own")(layers.Dense(8, name="wide")(x)))

    model = network(body, SEQUENCE)
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["wide"]), len(plan.keep["own/kernel"])) == (4, 10)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = prove(model, plan)
    kernel, kept, made = model.get_layer("own").kernel.numpy(), list(plan.keep["wide"]), list(plan.keep["own/kernel"])
    letters = next(own for own in equation.partition("->")[0].split(",") if "b" not in own)
    left = kernel[np.ix_(*(made if letter == "o" else kept for letter in letters))]
    assert np.array_equal(small.get_layer("own").kernel.numpy(), left)
    given = np.random.default_rng(0).normal(size=(5, *SEQUENCE)).astype("float32")
    assert_as_zeroed(model, plan, small, given)
    rows = {row.layer: row.macs for row in plan.rows}
    assert rows["own"] == (9 * 8 * 8 * 20, 9 * 4 * 4 * 10)


def test_pairs_of_what_passes_and_what_is_made_stay_with_the_reason():
    inputs = keras.Input(SEQUENCE)
    x = Bilinear(8, "bti,ijo,btj->btio", name="own")(layers.Dense(8, name="wide")(inputs))
    graph = ChannelGraph(keras.Model(inputs, layers.Dense(3)(x)))
    assert "makes pairs of channels" in graph.frozen_layers()["wide"]
