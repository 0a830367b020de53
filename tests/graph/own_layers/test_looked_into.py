"""What may be inside of a layer: constants, tables, numbers up to a width, layers that are made in its call."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import network, predict, randomize
from tfprune.graph.channel_graph import ChannelGraph


def around(layer, shape=(6, 5), wide=8):
    """A network with a layer in its middle; "free" is pruned whatever the layer does."""

    def body(x):
        x = layers.Dense(wide, activation="relu", name="before")(layers.Dense(6, activation="relu", name="free")(x))
        return layers.Dense(3, name="head")(layers.Dense(4, activation="relu", name="after")(layer(x)))

    return network(body, shape)


def left(model, plan):
    """Channels that are left of what is around the layer, once the plan is proved with full power."""
    proof = tfprune.verify(model, plan, power=True)
    assert (proof <= 1e-5, proof.unnoticed, proof.tried > 0) == (True, (), True)
    return [len(plan.keep[name]) for name in ("free", "before", "after")]


class Doubling(keras.Operation):
    def call(self, x):
        return x * 2

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_an_operation_of_ones_own_is_frozen_with_the_reason():
    model = around(Doubling(name="doubling"))
    assert ChannelGraph(model).frozen_layers()["before"] == "doubling (Doubling) is not known to tfprune"
    assert left(model, tfprune.plan_channels(model, 0.5)) == [3, 8, 2]


class Doll(layers.Layer):
    """A doll in a doll; each is made when the one around it is called."""

    def __init__(self, inside, **options):
        super().__init__(**options)
        self.inside = inside

    def call(self, x):
        return Doll(self.inside - 1)(x) if self.inside else ops.relu(x)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(("inside", "left"), [(3, 4), (30, 8)])
def test_layers_within_layers_are_followed_down_to_a_depth(inside, left):
    model = around(Doll(inside, name="doll"))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["before"]) == left
    assert ("goes on inside of itself" in plan.frozen.get("before", "")) == (left == 8)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


@keras.saving.register_keras_serializable("looked_into")
class Waves(layers.Layer):
    """Positions and channels are counted; both lengths are 8 by chance when it is traced."""

    def call(self, x):
        places = ops.cast(ops.arange(ops.shape(x)[1]), x.dtype)
        slopes = ops.cast(ops.arange(x.shape[-1]), x.dtype)
        return x + ops.sin(places[:, None] * (1.0 + slopes))

    def compute_output_shape(self, shape):
        return shape


def test_numbers_up_to_a_width_are_not_taken_for_those_up_to_a_length():
    model = around(Waves(name="waves"), shape=(None, 5))
    graph = ChannelGraph(model)
    assert graph.frozen_layers()["before"].startswith("waves/")
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    for length in (3, 8, 11):
        given = np.random.default_rng(length).normal(size=(2, length, 5)).astype("float32")
        assert tfprune.verify(model, plan, inputs=given) <= 1e-5
        assert predict(small, given)[0].shape == (2, length, 3)
    assert len(plan.keep["free"]) == 3


@keras.saving.register_keras_serializable("looked_into")
class Conditioned(layers.Layer):
    """A layer inside sees what never changes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.mix = layers.Dense(9, name="of_constant"), layers.Dense(9, name="of_input")
        self.known = np.linspace(-1, 1, 4, dtype="float32")[None]

    def build(self, shape):
        self.dense.build((1, 4))
        self.mix.build(shape)

    def call(self, x):
        return ops.relu(self.mix(x)) + self.dense(self.known)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 9)


def test_a_layer_that_sees_a_constant_keeps_its_channels_and_all_of_the_constant():
    model = around(Conditioned(name="own"))
    plan = tfprune.plan_channels(model, 0.5)
    assert left(model, plan) == [3, 4, 2]
    small = plan.apply(model).get_layer("own")
    assert [tuple(weight.shape) for weight in small.weights] == [(4, 9), (9,), (4, 9), (9,)]
    assert np.array_equal(small.dense.kernel.numpy(), model.get_layer("own").dense.kernel.numpy())


def test_nothing_goes_that_no_config_and_no_unfolding_could_make():
    frozen = ChannelGraph(around(Conditioned(name="own"))).frozen_layers()
    for part in ("own/of_constant", "own/of_input"):
        assert "own (Conditioned) has no field in its config for this width" in frozen[part]
        assert "own calls a layer on a constant" in frozen[part]


@keras.saving.register_keras_serializable("looked_into")
class Table(layers.Layer):
    """Gives a table as it is, whatever enters."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="table")

    def call(self, x):
        return self.table

    def compute_output_shape(self, shape):
        return shape[1:]


@keras.saving.register_keras_serializable("looked_into")
class Placed(layers.Layer):
    """Adds the table of a layer inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.places = Table(name="places")

    def build(self, shape):
        self.places.build(shape)

    def call(self, x):
        return ops.relu(x + self.places(x))


def test_a_table_that_a_layer_inside_gives_follows_the_channels(tmp_path):
    model = around(Placed(name="own"))
    plan = tfprune.plan_channels(model, 0.5)
    assert left(model, plan) == [3, 4, 2]
    small = plan.apply(model)
    table = model.get_layer("own").places.table.numpy()
    assert np.array_equal(small.get_layer("own").places.table.numpy(), table[:, plan.keep["before"]])
    small.save(tmp_path / "small.keras")
    given = np.random.default_rng(0).normal(size=(7, 6, 5)).astype("float32")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert np.array_equal(predict(small, given)[0], predict(again, given)[0])


class ByShape(layers.Layer):
    """Can be followed for rows alone: of images it asks for a number."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.dense = units, layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        x = self.dense(x)
        if len(x.shape) > 3 and float(ops.max(x)) > 1e9:
            return -x
        return ops.relu(x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@pytest.mark.parametrize("rows_first", [True, False])
def test_a_layer_of_which_one_call_cannot_be_followed_stays_whole(rows_first):
    rows, images = keras.Input((4, 5)), keras.Input((3, 4, 5))
    own, wide = ByShape(10, name="own"), layers.Dense(8, activation="relu", name="before")
    order = (rows, images) if rows_first else (images, rows)
    made = [layers.Flatten()(own(wide(value))) for value in order]
    x = layers.Dense(6, activation="relu", name="after")(layers.Concatenate()(made))
    model = randomize(keras.Model([rows, images], layers.Dense(2)(x)))
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["before"]), len(plan.keep["after"])) == (8, 3)
    assert tfprune.verify(model, plan) <= 1e-5
