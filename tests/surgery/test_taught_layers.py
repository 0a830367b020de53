"""Layers that were taught by a rule, and cannot be made again; proofs of what cannot be traced."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfprune
from tests.helpers import network, predict
from tfprune.errors import PlanError, VerificationError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.surgery.rebuild import Built, rebuild


class Taught(layers.Layer):
    """A dense layer without a bias."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def call(self, x):
        return x @ self.kernel

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Untold(Taught):
    """Has an argument that is in no config, nor among its attributes."""

    def __init__(self, units, secret, **options):
        super().__init__(units, **options)
        self.heard = secret

    def get_config(self):
        raise NotImplementedError


class Choosy(Taught):
    """Takes even widths alone."""

    def __init__(self, units, **options):
        if units % 2:
            raise ValueError(f"units={units} is odd\nand that is not taken")
        super().__init__(units, **options)


class Rounding(Taught):
    """Makes another width than it is told."""

    def __init__(self, units, **options):
        super().__init__((units + 3) // 4 * 4, **options)


@tfprune.rule(Taught)
def _taught(call):
    layer = call.operation
    source, created = call.mix(0), call.create(layer.units)
    call.weight(layer.kernel, {0: source, 1: created}, positions=1)
    call.count("units", created)
    return call.place(created)


def around(layer):
    return network(lambda x: layers.Dense(2)(layer(layers.Dense(8, name="before")(x))), (5,))


def pruned(layer, ratio):
    model = around(layer)
    return tfprune.plan_channels(model, ratios={"own": ratio}).apply(model)


def test_a_taught_layer_is_made_again():
    assert pruned(Taught(8, name="own"), 0.5).get_layer("own").units == 4


@pytest.mark.parametrize(
    ("make", "ratio", "told"),
    [
        (lambda: Untold(8, 1, name="own"), 0.5, r"own \(Untold\) cannot be made again: it, or a part of it, has no"),
        (
            lambda: Choosy(8, name="own"),
            0.375,
            r"own cannot be made again from the config of its Choosy: .*'units': 5}",
        ),
        (
            lambda: Rounding(8, name="own"),
            0.375,
            r"own \(Rounding\) cannot be made again with other widths: of its config comes \S*kernel of shape "
            r"\(8, 8\), where \(8, 5\) is left",
        ),
    ],
)
def test_a_taught_layer_that_cannot_be_made_again_is_told_in_one_line(make, ratio, told):
    with pytest.raises(PlanError, match=told) as error:
        pruned(make(), ratio)
    assert "\n" not in str(error.value)


def test_rebuilding_is_what_the_plan_applies():
    model = around(Taught(8, name="own"))
    plan = tfprune.plan_channels(model, 0.5)
    graph = ChannelGraph(model)
    one, other = rebuild(graph, plan.kept(graph)), plan.apply(model)
    given = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    assert np.array_equal(predict(one, given)[0], predict(other, given)[0])


class Eager(Taught):
    """Asks for a number, which it can where it is not traced."""

    def call(self, x):
        return x @ self.kernel if float(ops.max(ops.abs(x))) < 1e9 else x @ self.kernel * 0.0

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], self.units), x.dtype)


class Unlearned(Taught):
    """Has no slope."""

    def call(self, x):
        return _without_slope(x) @ self.kernel


@tf.custom_gradient
def _without_slope(x):
    def slope(upstream):
        raise RuntimeError("no slope today")

    return tf.identity(x), slope


@pytest.mark.parametrize("kind", [Eager, Unlearned])
def test_what_cannot_be_traced_or_has_no_slope_is_proved_with_power_all_the_same(kind):
    model = around(kind(8, name="own"))
    plan = tfprune.plan_channels(model, ratios={"own": 0.5, "before": 0.25})
    proof = tfprune.verify(model, plan, power=True)
    assert (proof <= 1e-5, proof.unnoticed) == (True, ())
    assert proof.tried == 3
    assert proof.power() == f"of {proof.tried} kernels rolled by one channel {proof.tried} were noticed"


def test_power_that_was_not_asked_for_says_nothing():
    model = around(Taught(8, name="own"))
    proof = tfprune.verify(model, tfprune.plan_channels(model, 0.5))
    assert (proof.tried, proof.power()) == (0, "")


@pytest.mark.parametrize(("in_double", "same"), [(0.0, True), (3e-6, False), (3e-4, False)])
def test_what_differs_in_single_precision_has_to_be_the_same_in_double(in_double, same, monkeypatch):
    model = around(Taught(8, name="own"))
    plan = tfprune.plan_channels(model, 0.5)
    before = Built.hand_on

    def wrong(self, values):
        """One of the weights is a little larger, in double precision by another factor."""
        before(self, values)
        kernel = self.model.get_layer("own").kernel
        kernel.assign(kernel * (1 + (in_double if kernel.dtype == "float64" else 3e-4)))

    monkeypatch.setattr(Built, "hand_on", wrong)
    if same:
        assert tfprune.verify(model, plan) < 1e-7
        return
    with pytest.raises(VerificationError, match="masked and the smaller network"):
        tfprune.verify(model, plan)
