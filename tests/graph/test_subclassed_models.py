"""Subclassed models, as people write them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import predict, randomize
from tfprune.errors import PlanError
from tfprune.graph.keras_internals import layers_within


class Residual(keras.Model):
    """Layers in a list, a residual, dropout with training handed on, a dictionary of outputs."""

    def __init__(self, **options):
        super().__init__(**options)
        self.stem = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")
        self.blocks = [layers.Conv2D(8, 3, padding="same", name=f"block_{number}") for number in range(2)]
        self.norms = [layers.BatchNormalization(name=f"norm_{number}") for number in range(2)]
        self.drop, self.head = layers.Dropout(0.5, name="drop"), layers.Dense(3, name="head")

    def call(self, x, training=None):
        x = self.stem(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + ops.relu(norm(block(x), training=training))
        x = self.drop(ops.mean(x, axis=(1, 2)), training=training)
        return {"classes": self.head(x), "norm": ops.sum(x, axis=-1)}


class Two(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = layers.Dense(8, name="one"), layers.Dense(8, name="two"), layers.Dense(2)

    def call(self, inputs):
        return self.head(self.one(inputs["x"]) * self.two(inputs["y"]))


class Words(keras.Model):
    def __init__(self):
        super().__init__()
        self.words, self.wide, self.head = layers.Embedding(30, 8), layers.Dense(8, name="wide"), layers.Dense(2)

    def call(self, tokens):
        return self.head(self.wide(ops.mean(self.words(tokens), axis=1)))


def images():
    return np.random.default_rng(0).normal(size=(4, 10, 10, 3)).astype("float32")


def built(model, example):
    model(example)
    return randomize(model)


@pytest.mark.parametrize("style", ["called", "fitted", "built from a shape"])
def test_a_subclassed_model_is_pruned_as_it_is(style, tmp_path):
    model = Residual(name="mine")
    if style == "fitted":
        model.compile("sgd", {"classes": "mse", "norm": "mse"})
        model.fit(images(), {"classes": np.zeros((4, 3)), "norm": np.zeros(4)}, verbose=0)
    else:
        model(images()) if style == "called" else model(keras.Input((10, 10, 3)))
    randomize(model)
    weights, nodes = model.get_weights(), [len(layer._inbound_nodes) for layer in layers_within(model)]
    plan = tfprune.plan_channels(model, 0.5)
    assert {name: len(kept) for name, kept in plan.keep.items()} == {"stem": 4, "block_0": 4, "block_1": 4, "head": 3}
    proof = tfprune.verify(model, plan, power=True)
    assert (proof <= 1e-5, proof.unnoticed) == (True, ())
    small = plan.apply(model)
    assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))
    assert nodes == [len(layer._inbound_nodes) for layer in layers_within(model)]
    small.save(tmp_path / "small.keras")
    before, after = (
        predict(network, images()) for network in (small, keras.saving.load_model(tmp_path / "small.keras"))
    )
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    dropped = [small(np.ones((1, 10, 10, 3)), training=True)["norm"].numpy().item() for _ in range(8)]
    assert len(set(dropped)) > 1  # dropout drops while it trains
    assert tfprune.profile(model).params == plan.params[0]


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (Two, {"x": np.ones((3, 5), "float32"), "y": np.ones((3, 4), "float32")}),
        (Words, np.ones((3, 6), "int32")),
    ],
)
def test_dictionaries_of_inputs_and_whole_numbers_go_in(make, example):
    model = built(make(), example)
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


class Branching(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x if float(ops.sum(x)) > 0 else -x)


class Several(Branching):
    def call(self, x, y):
        return self.dense(x + y)


def test_what_cannot_be_traced_is_told_in_one_line():
    model = Branching()
    with pytest.raises(PlanError, match=r"\(Branching\) has no input shape yet. Call it once on an example"):
        tfprune.plan_channels(model, 0.5)
    model(np.ones((2, 4)))
    with pytest.raises(PlanError, match=r"has a call that Keras could not trace when it was built. Express it with"):
        tfprune.plan_channels(model, 0.5)
    model = Branching()
    model.dense.build((None, 4))
    model.build((None, 4))
    with pytest.raises(
        PlanError, match=r"\(Branching\) has a call that cannot be traced \(\w+: .*functional API"
    ) as error:
        tfprune.plan_channels(model, 0.5)
    assert "\n" not in str(error.value)
    model = Several()
    model(np.ones((2, 4)), np.ones((2, 4)))
    with pytest.raises(PlanError, match=r"\(Several\) has a call .*missing 1 required positional argument: 'y'"):
        tfprune.plan_channels(model, 0.5)
