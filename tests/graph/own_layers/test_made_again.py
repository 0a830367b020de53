"""Configs in which a number is a width by chance: it is seen by what the layer of such a config does."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import network, predict
from tfprune.errors import PlanError


class Told(layers.Layer):
    """Its arguments, in this order, are its config."""

    def __init__(self, told, **options):
        super().__init__(**options)
        self.told = told

    def get_config(self):
        return {**super().get_config(), "told": self.told}

    def compute_output_shape(self, shape):
        return shape


@keras.saving.register_keras_serializable("made_again")
class Deep(Told):
    """As often as it is told first it bends; the second number is the width that enters."""

    def call(self, x):
        bends, width = self.told
        for _ in range(bends):
            x = ops.tanh(x)
        return ops.reshape(x, (-1, 1, width))[:, 0]


@keras.saving.register_keras_serializable("made_again")
class Kind(Told):
    """What it does follows from the first number."""

    def call(self, x):
        kind, width = self.told
        x = ops.sin(x) if kind == 8 else ops.tanh(x)
        return ops.reshape(x, (-1, 1, width))[:, 0]


class Part(Told):
    def call(self, x):
        return ops.sin(x) if self.told[0] == 8 else ops.tanh(x)


@keras.saving.register_keras_serializable("made_again")
class Nested(Told):
    """What a layer inside of it does follows from the first number."""

    def __init__(self, told, **options):
        super().__init__(told, **options)
        self.part = Part(told)

    def call(self, x):
        return ops.reshape(self.part(x), (-1, 1, self.told[1]))[:, 0]


@keras.saving.register_keras_serializable("made_again")
class Grouped(Told):
    """So many groups, of which each loses the same channels."""

    def call(self, x):
        groups, width = self.told
        x = ops.reshape(x, (-1, groups, width // groups))
        return ops.reshape(ops.sin(x), (-1, width))


@pytest.mark.parametrize("sequence", [list, tuple])
@pytest.mark.parametrize("kind", [Deep, Kind, Nested])
def test_a_number_that_is_a_width_by_chance_stays(kind, sequence, tmp_path):
    model = network(
        lambda x: layers.Dense(3)(kind(sequence((8, 8)), name="own")(layers.Dense(8, name="wide")(x))), (5,)
    )
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    assert small.get_layer("own").told == sequence((8, 4))
    assert type(small.get_layer("own")) is kind
    assert model.get_layer("own").told == sequence((8, 8))
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


def test_groups_keep_their_number_though_it_is_half_of_a_width():
    model = network(lambda x: layers.Dense(3)(Grouped([4, 8], name="own")(layers.Dense(8, name="wide")(x))), (5,))
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.apply(model).get_layer("own").told == [4, 4]
    assert [channel % 2 for channel in plan.keep["wide"]] in ([0] * 4, [1] * 4)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


@keras.saving.register_keras_serializable("made_again")
class Holding(layers.Layer):
    """Hands out a layer itself among its config, beside a width."""

    def __init__(self, width, bend, **options):
        super().__init__(**options)
        self.width, self.bend, self.dense = width, bend, layers.Dense(width)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.bend(self.dense(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "bend": self.bend}


def test_a_layer_that_stands_in_a_config_is_handed_on_and_not_searched_for_widths():
    bend = layers.LeakyReLU(0.3)
    model = network(lambda x: layers.Dense(3)(Holding(10, bend, name="own")(x)), (5,))
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    assert (small.get_layer("own").width, small.get_layer("own").bend.negative_slope) == (5, bend.negative_slope)
    given = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    kernel, bias = (
        weight.numpy()[..., list(plan.keep["own/dense"])] for weight in model.get_layer("own").dense.weights
    )
    made = given @ kernel + bias
    head = small.layers[-1].get_weights()
    expected = np.where(made > 0, made, 0.3 * made) @ head[0] + head[1]
    np.testing.assert_allclose(predict(small, given)[0], expected, rtol=1e-4, atol=1e-5)


@keras.saving.register_keras_serializable("made_again")
class Fewer(layers.Layer):
    """Has a bias only where it is wide."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.width), name="kernel")
        self.bias = self.add_weight(shape=(3,), name="bias") if self.width > 8 else None

    def call(self, x):
        x = x @ self.kernel
        return x if self.bias is None else x + ops.sum(self.bias)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.width)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_a_layer_that_has_fewer_weights_where_it_is_narrow_is_made_again_as_long_as_it_is_wide():
    model = network(lambda x: layers.Dense(3)(layers.Dense(6, name="after")(Fewer(12, name="own")(x))), (5,))
    plan = tfprune.plan_channels(model, ratios={"own/kernel": 0.25})
    assert [tuple(weight.shape) for weight in plan.apply(model).get_layer("own").weights] == [(5, 9), (3,)]
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    with pytest.raises(PlanError, match=r"own \(Fewer\) has no field in its config for this width, and cannot be unf"):
        tfprune.plan_channels(model, ratios={"own/kernel": 0.5})


@keras.saving.register_keras_serializable("made_again")
class Forgetful(layers.Layer):
    """Cannot be followed, and takes another argument than it has told."""

    def __init__(self, rows, **options):
        super().__init__(**options)
        self.kept = rows

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")

    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            return x @ self.kernel * self.kept
        raise RuntimeError("not today")

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], 4), x.dtype)

    def get_config(self):
        return {"name": self.name}


def test_a_layer_that_can_neither_be_followed_nor_made_again_is_told_before_a_plan_is_promised():
    model = network(lambda x: layers.Dense(2)(layers.Dense(8)(Forgetful(2, name="own")(x))), (5,))
    with pytest.raises(PlanError, match=r"own \(Forgetful\) cannot be made again from its config \(.*'rows'.*\)\.$"):
        tfprune.plan_channels(model, 0.5)
