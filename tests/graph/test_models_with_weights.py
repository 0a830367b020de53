"""Subclassed models that compute with weights themselves, or with those of their layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import randomize
from tfprune.errors import PlanError
from tfprune.surgery.rebuild import clone

WAYS = {
    "added": lambda x, w: x + w,
    "multiplied": lambda x, w: x * w[0],
    "a new axis in front": lambda x, w: x + w[None],
    "a new axis in the middle": lambda x, w: x + w[:, None, ...][:, 0],
    "a new axis after one that goes": lambda x, w: x * w[0, None],
    "an axis that is expanded": lambda x, w: x + ops.expand_dims(w, 0),
    "an equation": lambda x, w: ops.einsum("btc,c->btc", x, w[0]),
    "computed of": lambda x, w: x * ops.exp(w),
}


@keras.saving.register_keras_serializable("weights")
class Own(keras.Model):
    """A weight of the model itself, which is none of a layer."""

    def __init__(self, way, width=16, **options):
        super().__init__(**options)
        self.way, self.width = way, width
        self.wide, self.narrow = layers.Dense(width, activation="relu"), layers.Dense(3)

    def build(self, shape):
        self.positions = self.add_weight(shape=(shape[1], self.width), name="positions")
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], self.width))

    def call(self, x):
        return self.narrow(WAYS[self.way](self.wide(x), self.positions))

    def get_config(self):
        return {**super().get_config(), "way": self.way, "width": self.width}


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_of_the_model_itself_is_no_constant_and_goes_with_the_channels(way, tmp_path):
    model = Own(way)
    inputs = np.random.default_rng(0).normal(size=(4, 7, 5)).astype("float32")
    model(inputs)
    randomize(model)
    plan = tfprune.plan_channels(model, 0.5)
    for weight in model.weights:  # as training does
        weight.assign(weight + np.random.default_rng(1).normal(size=weight.shape))
    np.testing.assert_allclose(clone(model)(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    small = plan.apply(model)
    assert sorted(tuple(weight.shape) for weight in small.weights) == [(3,), (5, 8), (7, 8), (8,), (8, 3)]
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small.save(tmp_path / "small.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "small.keras")(inputs), small(inputs), rtol=1e-5)


class Tied(keras.Model):
    """Channels become words by the weight that words became channels by; its constructor has the widths."""

    def __init__(self, width=16, hidden=32, **options):
        super().__init__(**options)
        self.words, self.norm = layers.Embedding(50, width), layers.LayerNormalization()
        self.up, self.down = layers.Dense(hidden, activation="relu"), layers.Dense(width)

    def call(self, tokens):
        x = self.words(tokens)
        x = self.norm(x + self.down(self.up(x)))
        return ops.matmul(x, ops.transpose(self.words.embeddings))


@pytest.mark.parametrize(("normalization", "width"), [("frozen", 16), ("narrowed", 8)])
def test_tied_embeddings_written_by_hand(normalization, width):
    model, tokens = Tied(16, 32), np.random.default_rng(0).integers(0, 50, (4, 7))
    model(tokens)
    randomize(model)
    plan = tfprune.plan_channels(model, 0.5, normalization=normalization)
    assert plan.rows[-1].channels == (50 + 2 * 16 + 32, 50 + 2 * width + 16)
    assert f"{model.name} " in str(plan)
    small = plan.apply(model)
    assert sorted(tuple(weight.shape) for weight in small.weights if len(weight.shape) == 2) == sorted(
        [(50, width), (width, 16), (16, width)]
    )
    model.words.embeddings.assign(np.random.default_rng(1).normal(size=(50, 16)))
    np.testing.assert_allclose(clone(model)(tokens), model(tokens), rtol=1e-5, atol=1e-5)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


class Fixed(Tied):
    """The same without a width in the constructor."""

    def __init__(self):
        super().__init__(16, 32)


def test_what_has_no_config_for_its_widths_is_refused_with_the_reason():
    model = Fixed()
    model(np.zeros((1, 7), "int32"))
    with pytest.raises(PlanError, match=r"no field in its config for this width.*computes with weights of its own"):
        tfprune.plan_channels(model, 0.5)


@keras.saving.register_keras_serializable("weights")
class Table(layers.Layer):
    """Words become channels, and channels words, by a table of its own."""

    def __init__(self, words, width, equation=None, **options):
        super().__init__(**options)
        self.words, self.width, self.equation = words, width, equation

    def build(self, shape):
        self.table = self.add_weight(shape=(self.words, self.width), name="table")

    def call(self, x, reverse=False):
        if not reverse:
            return ops.take(self.table, x, axis=0)
        return ops.einsum(self.equation, x, self.table) if self.equation else ops.matmul(x, ops.transpose(self.table))

    def get_config(self):
        return {**super().get_config(), "words": self.words, "width": self.width, "equation": self.equation}


@pytest.mark.parametrize("equation", [None, "btc,wc->btw"])
@pytest.mark.parametrize("length", [8, None])
def test_a_table_that_is_read_both_ways(equation, length):
    tokens, table = keras.Input((length,), dtype="int32"), Table(20, 16, equation, name="tied")
    model = keras.Model(tokens, table(layers.Dense(16)(layers.Dense(32)(table(tokens))), reverse=True))
    randomize(model)
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["tied/table"]) == 8
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    assert [tuple(weight.shape) for weight in plan.apply(model).get_layer("tied").weights] == [(20, 8)]
