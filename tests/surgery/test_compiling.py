"""Losses and metrics by the names of outputs, where the smaller network has other names."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import randomize
from tfprune.surgery.compiling import compile_alike
from tfprune.surgery.rebuild import clone

DATA = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
TARGETS = [np.full((12, 3), value, "float32") for value in (0.5, -1.0, 2.0)]


def nested(name, outputs=1):
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu", name="hidden")(inputs)
    made = [layers.Dense(3, name=f"{name}_{number}")(x) for number in range(outputs)]
    return keras.Model(inputs, made if outputs > 1 else made[0], name=name)


def of_two_and_one():
    inputs, two, one = keras.Input((6,)), nested("two", 2), nested("one")
    model = keras.Model(inputs, [*two(inputs), one(inputs)])
    model.compile(
        "sgd",
        loss={"two": "mse", "one": "mae"},
        loss_weights={"two": 0.5, "one": 2.0},
        metrics={"two": ["mae"]},
        weighted_metrics={"one": ["mse"]},
    )
    return randomize(model)


def test_settings_by_the_name_of_a_nested_model_are_those_of_each_of_its_outputs():
    model = of_two_and_one()
    small = clone(model)
    with pytest.warns(UserWarning, match="names two, two, one; in the pruned network these are two_0, two_1, one,"):
        compile_alike(small, model)
    # Keras computes both.
    before = model.evaluate(DATA, TARGETS, verbose=0, return_dict=True)
    found = small.evaluate(DATA, TARGETS, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert found["two_0_mae"] == pytest.approx(before["two_mae"], rel=1e-5)
    assert found["two_1_mae"] == pytest.approx(before["two_mae_1"], rel=1e-5)
    assert found["one_mse"] == pytest.approx(before["one_mse"], rel=1e-5)


def test_they_survive_a_plan_and_a_file(tmp_path):
    model = of_two_and_one()
    with pytest.warns(UserWarning, match="need the new names"):
        small = tfprune.plan_channels(model, 0.5).apply(model)
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    one, other = (own.evaluate(DATA, TARGETS, verbose=0, return_dict=True) for own in (small, loaded))
    assert one == pytest.approx(other, rel=1e-5)
    assert {"two_0_mae", "two_1_mae", "one_mse"} <= set(one)


@keras.saving.register_keras_serializable("compiling")
class Twice(layers.Layer):
    """One width in the config for two of them inside, so that it becomes the layers inside."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width
        self.first, self.second = layers.Dense(width), layers.Dense(width)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], self.width))

    def call(self, x):
        return self.second(ops.relu(self.first(x)))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_a_layer_from_inside_of_another_does_not_take_the_name_of_an_output():
    inputs = keras.Input((6,))
    x = Twice(8, name="twice")(inputs)
    model = randomize(keras.Model(inputs, [nested_on(x, "twice_dense"), nested_on(x, "other")]))
    model.compile("sgd", loss={"twice_dense": "mse", "other": "mae"})
    plan = tfprune.plan_channels(model, ratios={"twice/dense": 0.75, "twice/dense_2": 0.5})
    small = plan.apply(model)
    assert not any(isinstance(layer, Twice) for layer in small.layers)
    assert small.output_names == ["twice_dense", "other"]
    assert small.evaluate(DATA, TARGETS[:2], verbose=0, return_dict=True).keys() == {
        "loss", "twice_dense_loss", "other_loss",
    }  # fmt: skip


def nested_on(x, name):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, layers.Dense(3, name="last")(inputs), name=name)(x)
