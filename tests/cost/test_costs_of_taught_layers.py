"""What a layer costs, and what a plan tells of it, comes from its rule: also of a layer that a user has taught."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import randomize
from tfprune.errors import PlanError, UsageError
from tfprune.graph.rules import dispatch


@keras.saving.register_keras_serializable("tests")
class Gate(layers.Layer):
    """y = x * sigmoid(x @ kernel), the same kernel at every position; as wide as its input."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")

    def call(self, x):
        return x * keras.ops.sigmoid(keras.ops.matmul(x, self.kernel))

    def compute_output_shape(self, shape):
        return shape


@pytest.fixture(autouse=True)
def nothing_is_taught_for_good(monkeypatch):
    monkeypatch.setattr(dispatch, "_BY_CLASS", {})


def silent(call):
    channels = call.mix()
    call.weight(call.operation.kernel, {0: channels, 1: channels})
    return call.inputs[0]


def told(call):
    """The kernel at each of the positions, and as many products as there are outputs."""
    channels, positions = call.mix(), call.input_shapes[0][1]
    call.weight(call.operation.kernel, {0: channels, 1: channels}, positions)
    call.macs(lambda kept: positions * int(kept[channels].sum()))
    call.note("Gate: every channel has a gate")
    return call.inputs[0]


def sequence(*more):
    """(None, 5, 4) -> 8 channels -> gates -> 3 channels."""
    inputs = keras.Input((5, 4))
    x = layers.Dense(8, name="wide")(inputs)
    for layer in more:
        x = layer(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def costs(model, name):
    (found,) = [layer for layer in tfprune.profile(model).layers if layer.name == name]
    return found.params, found.macs, found.flops


def test_a_rule_that_says_nothing_of_costs_has_parameters_only():
    tfprune.rule(Gate)(silent)
    model = sequence(Gate(name="gate"))
    assert costs(model, "gate") == (64, 0, 0)
    assert tfprune.plan_channels(model, 0.5).notes == ()


def test_a_rule_tells_multiply_accumulates_and_a_note():
    tfprune.rule(Gate)(told)
    model = sequence(Gate(name="gate"), Gate(name="again"))
    macs = 5 * 8 * 8 + 5 * 8  # of 5 positions: x @ kernel, and the product with x
    assert costs(model, "gate") == (64, macs, 2 * macs)
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.notes == ("Gate: every channel has a gate",)  # of both layers
    assert "note: Gate: every channel has a gate" in str(plan)
    dense = [5 * 4 * width + 5 * width * 3 for width in (8, 4)]
    assert plan.macs == (dense[0] + 2 * macs, dense[1] + 2 * (5 * 4 * 4 + 5 * 4))
    small = plan.apply(model)
    assert costs(small, "gate") == (16, 5 * 4 * 4 + 5 * 4, 2 * (5 * 4 * 4 + 5 * 4))
    assert tfprune.profile(small).flops == plan.flops[1]
    assert tfprune.verify(model, plan) <= 1e-5


def test_zeros_of_a_taught_kernel_are_no_flops_unless_the_rule_says_so():
    def counted(call):
        channels = call.mix()
        call.weight(call.operation.kernel, {0: channels, 1: channels}, 5, zeros=True)
        return call.inputs[0]

    model = sequence(Gate(name="gate"))
    kernel = np.ones((8, 8), "float32")
    kernel[:2] = 0.0
    model.get_layer("gate").kernel.assign(kernel)
    tfprune.rule(Gate)(told)
    assert costs(model, "gate") == (64, 5 * 64 + 40, 2 * 5 * (64 - 16) + 80)
    tfprune.rule(Gate)(counted)
    assert costs(model, "gate") == (64, 5 * 64, 2 * 5 * 64)


def test_what_a_wrapped_layer_tells_is_counted_at_every_step():
    tfprune.rule(Gate)(told)
    inputs = keras.Input((7, 5, 4))
    x = layers.TimeDistributed(layers.Dense(8))(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.TimeDistributed(Gate(), name="gates")(x))))
    macs = 7 * (5 * 8 * 8 + 5 * 8)
    assert costs(model, "gates") == (64, macs, 2 * macs)
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.notes == ("Gate: every channel has a gate",)
    assert tfprune.profile(plan.apply(model)).macs == plan.macs[1]


class Softer(layers.ReLU):
    """A user's own activation, which extends that of Keras."""


class Wide(layers.Dense):
    """A user's own dense layer."""


def passes(call):
    return call.inputs[0]


def dense(call):
    layer = call.operation
    source, created = call.mix(), call.create(layer.units)
    call.weight(layer.kernel, {0: source, 1: created}, 5)
    call.weight(layer.bias, {0: created})
    call.count("units", created)
    return call.place(created)


def test_flops_per_output_are_those_of_the_base_class_unless_the_rule_tells_others():
    model = sequence(Softer(name="softer"))
    tfprune.rule(Softer)(passes)
    assert costs(model, "softer") == (0, 0, 5 * 8)
    tfprune.rule(Softer, flops=lambda call: 3 * len(call.output_shape))(passes)
    assert costs(model, "softer") == (0, 0, 9 * 5 * 8)
    tfprune.rule(Softer)(passes)  # taught anew, without
    assert costs(model, "softer") == (0, 0, 5 * 8)


def test_a_taught_dense_layer_costs_what_a_dense_layer_does():
    tfprune.rule(Wide)(dense)
    model = sequence(Wide(6, name="own"), layers.Dense(6, name="keras"))
    for name in ("own", "keras"):
        kernel = np.array(model.get_layer(name).kernel.numpy())
        kernel[0] = 0.0  # whose zeros count
        model.get_layer(name).kernel.assign(kernel)
    assert costs(model, "own") == (8 * 6 + 6, 5 * 48, 2 * 5 * 48 + 5 * 6)
    assert costs(model, "keras") == (6 * 6 + 6, 5 * 36, 2 * 5 * 36 + 5 * 6)


@pytest.mark.parametrize(
    "count", [lambda kept: 0.5 * kept.sum(), lambda kept: -1, lambda kept: None, lambda kept: True]
)
def test_costs_that_are_no_numbers_are_told_with_the_rule(count):
    def mine(call):
        call.macs(count)
        return silent(call)

    tfprune.rule(Gate)(mine)
    with pytest.raises(PlanError, match=r"The rule 'mine' for Gate \(layer 'gate'\): call.macs gave .* whole number"):
        tfprune.profile(sequence(Gate(name="gate")))


def test_flops_that_are_no_function_or_no_number_are_refused():
    with pytest.raises(UsageError, match=r"rule\(flops=4\) is no function.*flops=lambda call: 1"):
        tfprune.rule(Gate, flops=4)
    tfprune.rule(Gate, flops=lambda call: call.inputs[0].missing)(silent)
    with pytest.raises(PlanError, match=r"The rule 'silent' for Gate \(layer 'gate'\): AttributeError"):
        tfprune.profile(sequence(Gate(name="gate")))
    tfprune.rule(Gate, flops=lambda call: 0.5)(silent)
    with pytest.raises(PlanError, match=r"\(layer 'gate'\): flops gave 0.5; give a whole number"):
        tfprune.profile(sequence(Gate(name="gate")))


def test_unknown_sizes_of_taught_products_are_told():
    def mine(call):
        channels = call.mix()
        call.weight(call.operation.kernel, {0: channels, 1: channels})
        call.macs(lambda kept: int(kept[channels].sum()))
        return call.inputs[0]

    tfprune.rule(Gate)(mine)
    inputs = keras.Input((None, 8))
    model = keras.Model(inputs, Gate()(inputs))
    assert tfprune.profile(model).notes == ("sizes of the input are unknown: MACs and FLOPs are per position",)
