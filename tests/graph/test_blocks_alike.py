"""What was found of one block serves those that are alike, and no others."""

import keras
import pytest
from keras import layers

import tfprune
from tests.helpers import randomize
from tfprune.graph.own_layers import made_again


class Scaled(layers.Layer):
    """A Dense, and a function behind it that its config does not tell."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.after, self.dense = units, None, layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        x = self.dense(x)
        return x if self.after is None else self.after(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def times(factor):
    return lambda x: x * factor


def network(*functions):
    value = inputs = keras.Input((6,))
    for function in functions:
        block = Scaled(12)
        block.after = function
        value = layers.Dense(12, activation="relu")(block(value))
    return randomize(keras.Model(inputs, layers.Dense(3)(value)))


@pytest.fixture
def tried(monkeypatch):
    """The layers of which a config was tried, one entry for each try."""
    names, before = [], made_again._makes

    def watched(record, *rest):
        names.append(record.name)
        return before(record, *rest)

    monkeypatch.setattr(made_again, "_makes", watched)
    return names


def test_what_was_found_of_one_block_serves_those_that_are_alike(tried):
    model = network(None, None, None)
    plan = tfprune.plan_channels(model, 0.5)
    first, second, third = (layer.name for layer in model.layers if isinstance(layer, Scaled))
    assert len(plan.keep[f"{first}/dense"]) == len(plan.keep[f"{third}/dense"]) == 6
    assert tried.count(third) == 0 < tried.count(second)  # another width enters the first
    plan.apply(model)
    assert tried.count(third) == 0
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


@pytest.mark.parametrize(
    "functions",
    [(None, None, keras.ops.exp), (times(1.0), times(1.0), times(7.0)), (None, keras.ops.sin, keras.ops.cos)],
)
def test_a_block_that_differs_in_what_no_config_tells_is_looked_at_by_itself(functions, tried):
    model = network(*functions)
    plan = tfprune.plan_channels(model, 0.5)
    names = [layer.name for layer in model.layers if isinstance(layer, Scaled)]
    assert all(tried.count(name) for name in names)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    # The attribute is no part of the config, so that such a layer cannot be made again and becomes the Dense inside.
    kinds = [type(layer).__name__ for layer in plan.apply(model).layers]
    assert kinds.count("Scaled") == functions.count(None)
