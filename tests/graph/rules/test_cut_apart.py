"""Units of one dense layer that are cut apart: into query, key and value, or into the maps of a decoder."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import network, predict, randomize

WIDTH = 8
THREE = {
    "unstack": lambda x: ops.unstack(layers.Reshape((6, 3, WIDTH))(x), axis=2),
    "split": lambda x: [ops.squeeze(part, 2) for part in ops.split(layers.Reshape((6, 3, WIDTH))(x), 3, axis=2)],
    "index": lambda x: [layers.Reshape((6, 3, WIDTH))(x)[:, :, place] for place in range(3)],
    "split of every head": lambda x: [
        layers.Reshape((6, -1))(part) for part in ops.split(layers.Reshape((6, 2, 3 * WIDTH // 2))(x), 3, axis=-1)
    ],
}


def zeroed_units_tell(model, name, plan):
    """Whether the smaller network computes what the model does with the removed units of a layer at zero."""
    assert tfprune.verify(model, plan, power=True, random_weights=True).unnoticed == ()
    small, layer = plan.apply(model), model.get_layer(name)
    images = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    keep = np.isin(np.arange(layer.units), plan.keep[name])
    layer.kernel.assign(layer.kernel.numpy() * keep)
    layer.bias.assign(layer.bias.numpy() * keep)
    np.testing.assert_allclose(predict(small, images)[0], predict(model, images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", THREE)
def test_query_key_and_value_of_one_layer_lose_the_same_channels(cut):
    def body(x):
        query, key, value = THREE[cut](layers.Dense(3 * WIDTH, name="three")(x))
        return layers.Dense(2)(query * ops.sigmoid(key) + value)

    model = randomize(network(body, (6, 5)))
    plan = tfprune.plan_channels(model, ratios={"three": 0.5})
    assert len(plan.keep["three"]) == 3 * WIDTH // 2
    zeroed_units_tell(model, "three", plan)


def test_parts_that_are_side_by_side_at_every_channel_stay():
    def body(x):
        x = layers.Reshape((6, WIDTH, 3))(layers.Dense(3 * WIDTH, name="three")(layers.Dense(8, name="before")(x)))
        query, key, value = (ops.squeeze(part, -1) for part in ops.split(x, 3, axis=-1))
        return layers.Dense(2)(query * ops.sigmoid(key) + value)

    model = randomize(network(body, (6, 5)))
    plan = tfprune.plan_channels(model, 0.5)
    assert [len(plan.keep[name]) for name in ("before", "three")] == [4, 3 * WIDTH]
    assert tfprune.verify(model, plan, power=True) <= 1e-5


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("between", [lambda axis: layers.ReLU(), lambda axis: layers.Activation("tanh")])
def test_a_decoder_loses_whole_maps_in_both_formats_of_data(data_format, between):
    first = data_format == "channels_first"

    def body(x):
        x = layers.Reshape((WIDTH, 3, 5) if first else (3, 5, WIDTH))(layers.Dense(15 * WIDTH, name="wide")(x))
        x = between(1 if first else -1)(x)
        x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", data_format=data_format)(x)
        return layers.Conv2D(2, 3, data_format=data_format)(x)

    model = randomize(network(body, (5,)))
    plan = tfprune.plan_channels(model, ratios={"wide": 0.5})
    units = np.arange(15 * WIDTH).reshape((WIDTH, 15) if first else (15, WIDTH))
    maps = np.isin(units, plan.keep["wide"]).mean(axis=1 if first else 0)
    assert sorted(maps) == [0] * (WIDTH // 2) + [1] * (WIDTH // 2)
    zeroed_units_tell(model, "wide", plan)


def test_a_decoder_of_sequences_inside_of_a_network_loses_whole_channels():
    inner = keras.Sequential([
        layers.Input((5,)), layers.Dense(7 * WIDTH, name="wide"), layers.Reshape((WIDTH, 7)),
        layers.Conv1D(3, 2, data_format="channels_first"),
    ])  # fmt: skip
    model = randomize(network(lambda x: layers.Dense(2)(layers.Flatten()(inner(x))), (5,)))
    plan = tfprune.plan_channels(model, ratios={"wide": 0.5})
    maps = np.isin(np.arange(7 * WIDTH).reshape(WIDTH, 7), plan.keep["wide"]).mean(axis=1)
    assert sorted(maps) == [0] * (WIDTH // 2) + [1] * (WIDTH // 2)
    assert tfprune.verify(model, plan, power=True) <= 1e-5
