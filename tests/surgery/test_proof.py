"""What the proof tries its networks on, and where it says that nothing was proved."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import network, plain_cnn, predict, randomize, relative_error
from tfprune.errors import NothingProvedError, PlanError, VerificationError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.inputs import random_inputs
from tfprune.graph.rules import dispatch
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.masked import MaskedModel, masked_outputs


def attentive(x):
    x = layers.Embedding(30, 16, mask_zero=True, name="words")(x)
    return layers.Dense(2)(layers.Flatten()(layers.MultiHeadAttention(4, 4, name="attention")(x, x)))


def test_padding_is_masked_in_the_masked_network_as_in_the_original():
    model = network(attentive, (6,), dtype="int32")
    tokens = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]], "int32")
    graph = ChannelGraph(model)
    whole = masked_outputs(graph, graph.keep_all(), [tokens])
    assert relative_error(predict(model, tokens), [np.asarray(whole[0])]) <= 1e-6
    plan = ChannelPlan.from_removed(model, {"attention": [1], "words": [0, 5]})
    masked = masked_outputs(graph, plan.kept(graph), [tokens])
    assert relative_error([np.asarray(masked[0])], predict(plan.apply(model), tokens)) <= 1e-5
    assert tfprune.verify(model, plan, inputs=tokens) <= 1e-5


def test_inputs_in_a_dictionary_go_by_name():
    one, other = keras.Input((5,), name="z"), keras.Input((5,), name="a")
    x = layers.Concatenate()([layers.Dense(8)(one), layers.Dense(6)(other)])
    model = randomize(keras.Model([one, other], layers.Dense(2)(x)))
    first, second = np.random.default_rng(0).normal(size=(2, 7, 5)).astype("float32")
    expected = predict(model, first, second)[0]
    masked = MaskedModel(ChannelGraph(model))
    assert relative_error([expected], [np.asarray(masked({"z": first, "a": second}))]) <= 1e-6
    how = {"criterion": "mean_activation", "ratio": 0.5}
    by_name = tfprune.plan_channels(model, data=({"a": second, "z": first}, None), **how)
    assert by_name.keep == tfprune.plan_channels(model, data=([first, second], None), **how).keep
    with pytest.raises(PlanError, match=r"does not take these inputs: .*z.*a"):
        tfprune.plan_channels(model, data={"x": first, "a": second}, **how)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64"])
def test_data_of_other_dtypes_are_cast_as_fit_does(dtype):
    model = plain_cnn()
    pixels = np.random.default_rng(0).integers(0, 200, (6, 8, 8, 3))
    how = {"criterion": "mean_activation", "ratio": 0.5}
    expected = tfprune.plan_channels(model, data=pixels.astype("float32"), **how)
    assert tfprune.plan_channels(model, data=pixels.astype(dtype), **how).keep == expected.keep
    scan = tfprune.sensitivity(model, (pixels.astype(dtype), np.zeros(6)), ratios=[0.5])
    assert scan.rows == tfprune.sensitivity(model, (pixels.astype("float32"), np.zeros(6)), ratios=[0.5]).rows


def test_random_integers_are_what_the_layers_behind_them_know():
    words, kinds, free = (keras.Input((9,), dtype="int32", name=name) for name in ("words", "kinds", "free"))
    x = layers.Flatten()(layers.Embedding(5, 4)(words))
    y = layers.CategoryEncoding(7, output_mode="multi_hot")(kinds)
    z = layers.Dense(3)(keras.ops.cast(free, "float32"))
    model = keras.Model([words, kinds, free], layers.Dense(2)(layers.Concatenate()([x, y, z])))
    drawn = dict(zip(("words", "kinds", "free"), random_inputs(model, 200), strict=True))
    assert {name: (int(values.min()), int(values.max())) for name, values in drawn.items()} == {
        "words": (0, 4), "kinds": (0, 6), "free": (0, 255),
    }  # fmt: skip
    assert all(values[:, 0].min() == 1 for values in drawn.values())
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


def test_networks_of_words_are_proved():
    text = layers.TextVectorization(output_sequence_length=4, vocabulary=["cat", "dog", "bird", "fish"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(6, 8, name="words")(text(inputs)))
    model = randomize(keras.Model(inputs, layers.Dense(3)(layers.Dense(8)(x))))
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


def test_an_untrained_network_whose_outputs_are_all_alike_is_proved_with_random_weights():
    inputs = keras.Input((32, 32, 3))
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35)
    x = layers.GlobalAveragePooling2D()(base(inputs, training=False))
    model = keras.Model(inputs, layers.Dense(5, activation="softmax")(x))
    before = [weight.numpy() for weight in model.weights]
    assert 0.0 <= tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(before, model.weights, strict=True))


def test_what_proves_nothing_with_any_weights_is_told():
    def body(x):
        return layers.Activation(keras.ops.sign)(layers.Dense(1)(layers.Dense(6)(x)) ** 2 + 1.0)

    model = network(body, (4,))
    with pytest.raises(NothingProvedError, match="proves nothing"):
        tfprune.verify(model, tfprune.plan_channels(model, 0.5))


class Mixing(layers.Layer):
    """x + x @ kernel, which begins as the identity."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), initializer="zeros", name="kernel")

    def call(self, x):
        return x + x @ self.kernel


def test_random_weights_find_a_wrong_rule_that_weights_of_zero_hide(monkeypatch):

    monkeypatch.setattr(dispatch, "_BY_CLASS", {})

    @tfprune.rule(Mixing)
    def wrong(call):
        channels = call.channels()  # it mixes them: `call.mix()` would be right
        call.weight(call.operation.kernel, {0: channels, 1: channels})
        return call.inputs[0]

    inputs = keras.Input((4,))
    hidden = layers.Dense(8, activation="sigmoid", bias_initializer="ones", name="wide")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(Mixing(name="mixing")(hidden)))
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan) <= 1e-5
    with pytest.raises(VerificationError):
        tfprune.verify(model, plan, random_weights=True)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"plan": None}, "received a NoneType as plan"),
        ({"plan": "plan.json"}, "received a str as plan"),
        ({"model": 3}, "Expected a Keras 3 model"),
        ({"examples": 0}, "examples=0 must be a whole number of at least 1"),
        ({"examples": 1.5}, "examples=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"tolerance": None}, r"tolerance=None is no number in \(0, 1\)"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"inputs": np.ones((2, 7))}, "does not take these inputs"),
    ],
    ids=str,
)
def test_wrong_arguments_are_told(arguments, fragment):
    model = plain_cnn()
    with pytest.raises(PlanError, match=fragment):
        tfprune.verify(**{"model": model, "plan": tfprune.plan_channels(model, 0.5), **arguments})
