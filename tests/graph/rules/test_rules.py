"""Every operation, proved twice: by `verify`, and by zeroing by hand what the removed channels feed."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import predict, randomize, relative_error
from tfprune.errors import PlanError, UsageError
from tfprune.graph.inputs import random_inputs
from tfprune.graph.rules import dispatch
from tfprune.graph.walk import pack_inputs
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.rebuild import clone


def finish(inputs, x, units=3):
    return randomize(keras.Model(inputs, layers.Dense(units, name="head")(x)), 7)


def conv(filters, name, size=3, **settings):
    return layers.Conv2D(filters, size, padding="same", name=name, **settings)


# Each case: a model, the channels to remove, and by hand the rows (kernel's input index) that they feed.


def flatten_tiles():
    inputs = keras.Input((4, 5, 3))
    x = layers.Flatten()(conv(4, "a")(inputs))
    return finish(inputs, x), {"a": [1, 2]}, {"head": [4 * p + c for p in range(20) for c in (1, 2)]}


def reshape_to_sequence():
    inputs = keras.Input((4, 4, 3))
    x = layers.Reshape((16, 6), name="sequence")(conv(6, "a")(inputs))
    x = layers.Conv1D(5, 3, name="b")(x)
    return finish(inputs, layers.GlobalMaxPooling1D()(x)), {"a": [0, 5], "b": [2]}, {"b": [0, 5], "head": [2]}


def reshape_that_flattens():
    inputs = keras.Input((4, 4, 3))
    x = layers.Reshape((-1,), name="flat")(conv(5, "a")(inputs))
    return finish(inputs, x), {"a": [4]}, {"head": [5 * p + 4 for p in range(16)]}


def dense_on_a_sequence_and_permute():
    inputs = keras.Input((4, 6, 3))
    x = layers.Dense(5, name="a")(inputs)
    x = layers.Dense(4, name="b")(layers.Permute((2, 1, 3))(x))
    return (
        finish(inputs, layers.Flatten()(x)),
        {"a": [3], "b": [0]},
        {
            "b": [3],
            "head": [4 * p for p in range(24)],
        },
    )


def concatenate():
    inputs = keras.Input((6, 6, 3))
    a, b = conv(4, "a")(inputs), conv(5, "b")(inputs)
    x = conv(6, "c")(layers.Concatenate()([a, b, a]))
    return finish(inputs, layers.GlobalAveragePooling2D()(x)), {"a": [1], "b": [0, 4]}, {"c": [1, 4, 8, 9 + 1]}


def depthwise():
    inputs = keras.Input((6, 6, 3))
    x = conv(4, "a")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth", activation="relu")(x)
    x = layers.BatchNormalization()(x)
    x = conv(5, "b", 1)(x)
    return finish(inputs, layers.GlobalMaxPooling2D()(x)), {"a": [0, 3]}, {"b": [0, 1, 6, 7]}


def grouped():
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(conv(8, "a")(inputs))
    x = conv(6, "g", groups=2)(x)  # inputs 0-3 and 4-7, outputs 0-2 and 3-5
    x = conv(5, "b")(layers.ReLU()(x))
    # Removing one takes its counterpart in the other group along.
    return finish(inputs, layers.Flatten()(x)), {"a": [1], "g": [2]}, {"g": [1], "b": [2, 5]}


def squeeze_and_excite():
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(conv(6, "a")(inputs))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = conv(4, "squeeze", 1, activation="relu")(gate)
    gate = conv(6, "excite", 1, activation="sigmoid")(gate)
    x = conv(5, "b")(layers.Multiply()([x, gate]))
    removed = {"excite": [2], "squeeze": [0]}  # a's channel 2 goes with its gate
    return finish(inputs, layers.GlobalAveragePooling2D()(x)), removed, {"squeeze": [2], "excite": [0], "b": [2]}


def zero_padded_shortcut():
    inputs = keras.Input((6, 6, 3))
    stem = conv(4, "stem")(inputs)
    short = ops.pad(stem, ((0, 0), (0, 0), (0, 0), (1, 3)))
    x = layers.ReLU()(layers.Add()([short, conv(8, "wide")(stem)]))
    x = conv(5, "b")(x)
    return (
        finish(inputs, layers.GlobalAveragePooling2D()(x)),
        {"stem": [2], "wide": [0, 7]},
        {"wide": [2], "b": [0, 3, 7]},
    )


def spatial_padding_and_pooling():
    inputs = keras.Input((9, 9, 3))
    x = layers.ZeroPadding2D(1)(conv(4, "a")(inputs))
    x = layers.MaxPooling2D(2)(layers.LeakyReLU()(x))
    x = ops.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)))
    x = layers.AveragePooling2D(3, strides=1, padding="same")(layers.ELU()(x))
    x = layers.SpatialDropout2D(0.5)(layers.Activation("sigmoid")(x))
    x = conv(5, "b")(layers.Dropout(0.5)(x))
    return (
        finish(inputs, layers.Flatten()(layers.MaxPooling2D(2)(x))),
        {"a": [0, 1], "b": [4]},
        {
            "b": [0, 1],
            "head": [5 * p + 4 for p in range(9)],
        },
    )


def shared_convolution():
    inputs = [keras.Input((6, 6, 3)), keras.Input((6, 6, 3))]
    shared, tail = conv(5, "a"), conv(4, "b")
    x = [layers.GlobalAveragePooling2D()(tail(layers.ReLU()(shared(x)))) for x in inputs]
    return finish(inputs, layers.Concatenate()(x)), {"a": [0], "b": [1]}, {"b": [0], "head": [1, 5]}


def shared_relu_and_flatten():
    inputs = keras.Input((4, 4, 3))
    relu, flatten = layers.ReLU(), layers.Flatten()
    x = layers.Concatenate()([flatten(relu(conv(3, "a")(inputs))), flatten(relu(conv(3, "b")(inputs)))])
    return finish(inputs, x), {"a": [0]}, {"head": [3 * p for p in range(16)]}


def nested_twice():
    inner_input = keras.Input((6, 6, 4))
    inner = keras.Model(inner_input, layers.ReLU()(conv(4, "inner")(inner_input)), name="block")
    inputs = keras.Input((6, 6, 3))
    x = inner(inner(conv(4, "a")(inputs)))
    # The second call reads what the first one made, so a's channels and inner's go together.
    return finish(inputs, layers.GlobalAveragePooling2D()(x)), {"inner": [3]}, {"inner": [3], "head": [3]}


def nested_sequential():
    block = keras.Sequential([keras.Input((6, 6, 4)), conv(5, "inner"), layers.BatchNormalization(), layers.ReLU()])
    inputs = keras.Input((6, 6, 3))
    x = block(conv(4, "a")(inputs))
    return finish(inputs, layers.GlobalMaxPooling2D()(x)), {"a": [1], "inner": [0]}, {"inner": [1], "head": [0]}


def sequential():
    stack = [conv(5, "a"), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(3, name="head")]
    model = randomize(keras.Sequential([keras.Input((3, 3, 3)), *stack]), 7)
    return model, {"a": [2]}, {"head": [5 * p + 2 for p in range(9)]}


def merges_in_every_way():
    inputs = keras.Input((6, 6, 3))
    x = conv(4, "a")(inputs)
    for number, merge in enumerate(
        (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
    ):
        x = merge()([x, conv(4, f"m{number}")(inputs)])
    x = x + conv(4, "plus")(inputs)
    x = 2.0 * (x - 1.0)
    return finish(inputs, layers.GlobalAveragePooling2D()(x)), {"m3": [0, 2]}, {"head": [0, 2]}


def vector_added_to_a_map():
    inputs = keras.Input((6, 6, 3))
    vector = layers.Dense(4, name="v")(layers.GlobalAveragePooling2D()(conv(5, "a")(inputs)))
    x = layers.Add()([conv(4, "b")(inputs), vector])
    return finish(inputs, layers.GlobalMaxPooling2D()(x)), {"a": [1], "b": [0]}, {"v": [1], "head": [0]}


def three_dimensional():
    inputs = keras.Input((4, 4, 4, 2))
    x = layers.MaxPooling3D(2)(layers.Conv3D(4, 3, padding="same", name="a")(inputs))
    x = layers.Conv3D(5, 1, name="b")(layers.ZeroPadding3D(1)(x))
    return finish(inputs, layers.GlobalAveragePooling3D()(x)), {"a": [3], "b": [1]}, {"b": [3], "head": [1]}


def several_inputs_and_outputs():
    inputs = {"image": keras.Input((6, 6, 3), name="image"), "facts": keras.Input((5,), name="facts")}
    x = layers.GlobalAveragePooling2D()(conv(4, "a")(inputs["image"]))
    x = layers.Concatenate()([x, layers.Dense(3, activation="tanh", name="f")(inputs["facts"])])
    outputs = {"head": layers.Dense(3, name="head")(x), "other": layers.Dense(2, name="other")(x)}
    return randomize(keras.Model(inputs, outputs)), {"a": [0], "f": [2]}, {"head": [0, 6], "other": [0, 6]}


CASES = [
    flatten_tiles, reshape_to_sequence, reshape_that_flattens, dense_on_a_sequence_and_permute, concatenate,
    depthwise, grouped, squeeze_and_excite, zero_padded_shortcut, spatial_padding_and_pooling, shared_convolution,
    shared_relu_and_flatten, nested_twice, nested_sequential, sequential, merges_in_every_way,
    vector_added_to_a_map, three_dimensional, several_inputs_and_outputs,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_removed_channels_are_zero_where_they_were_read(case):
    model, removed, rows = case()
    plan = ChannelPlan.from_removed(model, removed)
    assert tfprune.verify(model, plan) <= 1e-5
    small = plan.apply(model)
    assert small.count_params() < model.count_params()
    twin = clone(model)
    assert relative_error(outputs_of(model), outputs_of(twin)) == 0.0
    for name, indices in rows.items():
        layer = twin.get_layer(name)
        kernel = np.array(layer.kernel.numpy())
        kernel[..., indices, :] = 0.0
        layer.kernel.assign(kernel)
    assert relative_error(outputs_of(twin), outputs_of(small)) <= 1e-5
    assert relative_error(outputs_of(model), outputs_of(small)) > 1e-3  # and the removal is not nothing


def outputs_of(model):
    return predict(model, pack_inputs(model, random_inputs(model, 3, seed=5)))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax"])
@pytest.mark.parametrize("place", ["Activation", "Dense", "Conv2D"])
def test_activation_over_the_channels_freezes_them(name, place):
    inputs = keras.Input((4, 4, 3))
    if place == "Activation":
        x = layers.Activation(name)(conv(5, "a")(inputs))
    else:
        x = layers.Dense(5, name="a", activation=name)(inputs) if place == "Dense" else None
        x = conv(5, "a", activation=name)(inputs) if x is None else x
    x = conv(4, "b")(x)
    plan = tfprune.plan_channels(finish(inputs, layers.Flatten()(x)), 0.5)
    assert len(plan.keep["a"]) == 5
    assert "max" in plan.frozen["a"]
    assert len(plan.keep["b"]) == 2


def test_softmax_layer_freezes():
    inputs = keras.Input((4, 4, 3))
    x = conv(4, "b")(layers.Softmax(name="attention")(conv(5, "a")(inputs)))
    plan = tfprune.plan_channels(finish(inputs, layers.Flatten()(x)), 0.5)
    assert plan.frozen["a"] == "softmax over the channels in attention"


@keras.saving.register_keras_serializable("tests")
def share_of_all(x):
    return x / (1e-3 + ops.sum(ops.abs(x), -1, keepdims=True))


def test_users_activation_function_may_read_all_channels_so_it_freezes():
    for make in (lambda x: layers.Activation(share_of_all)(conv(5, "a")(x)), conv(5, "a", activation=share_of_all)):
        inputs = keras.Input((4, 4, 3))
        x = conv(4, "b")(make(inputs))
        model = finish(inputs, layers.Flatten()(x))
        plan = tfprune.plan_channels(model, 0.5)
        assert len(plan.keep["a"]) == 5
        assert tfprune.verify(model, plan) <= 1e-5


OPERATIONS = {
    "average_of_positions": lambda x: ops.average(x, axis=1),
    "average_of_channels": lambda x: ops.expand_dims(ops.average(x, axis=-1), -1),
    "reshape": lambda x: layers.GlobalAveragePooling1D()(ops.reshape(x, (-1, 16, 6))),
    "constant_per_channel": lambda x: x * np.arange(1, 7, dtype="float32"),
    "sum_of_channels": lambda x: ops.sum(x, axis=-1, keepdims=True),
    "split": lambda x: layers.Add()(ops.split(x, 2, axis=-1)),
    "slice": lambda x: x[..., 1:4],
    "matmul": lambda x: ops.matmul(x, np.eye(6, dtype="float32")[:, ::-1].copy()),
    "pad_with_ones": lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)), constant_values=1.0),
    "pad_by_reflection": lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"),
    "resize": layers.UpSampling2D(2),
    "normalise": layers.LayerNormalization(),
    "lambda": layers.Lambda(lambda x: x * 2.0, name="twice"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_that_is_not_followed_freezes_rather_than_breaks(name):
    inputs = keras.Input((4, 4, 3))
    x = OPERATIONS[name](conv(6, "a")(conv(6, "first")(inputs)))
    model = finish(inputs, layers.Flatten()(x))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["first"]) == 3
    assert tfprune.verify(model, plan) <= 1e-5


def test_one_channel_spread_over_many_is_frozen_and_the_others_are_not():
    inputs = keras.Input((4, 4, 3))
    attention = conv(1, "attention", activation="sigmoid")(inputs)
    x = layers.Multiply(name="gate")([conv(6, "a")(inputs), attention])
    model = finish(inputs, layers.GlobalAveragePooling2D()(x))
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.frozen["attention"] == "broadcast over the channels in gate"
    assert len(plan.keep["a"]) == 3
    assert tfprune.verify(model, plan) <= 1e-5


def test_shared_reshape_of_different_streams():
    inputs = keras.Input((4, 4, 3))
    reshape = layers.Reshape((16, 6), name="shared")
    a, b = reshape(conv(6, "a")(inputs)), reshape(conv(6, "b")(inputs))
    x = layers.Concatenate()([layers.GlobalAveragePooling1D()(a), layers.GlobalMaxPooling1D()(b)])
    model = finish(inputs, x)
    assert tfprune.verify(model, tfprune.ChannelPlan.from_removed(model, {"a": [0, 1]})) <= 1e-5


def test_channels_of_unknown_positions_are_frozen_at_flatten():
    inputs = keras.Input((None, None, 3))
    x = layers.Reshape((-1, 8), name="flat")(conv(4, "a")(conv(5, "first")(inputs)))
    model = finish(inputs, layers.GlobalAveragePooling1D()(x))
    plan = tfprune.plan_channels(model, 0.5)
    assert "unknown size" in plan.frozen["a"]
    assert len(plan.keep["first"]) == 2


def test_groups_of_one_channel_go_with_it():
    inputs = keras.Input((6, 6, 3))
    x = conv(4, "g", groups=4)(conv(4, "a")(inputs))
    model = finish(inputs, layers.Flatten()(x))
    plan = ChannelPlan.from_removed(model, {"a": [0]})
    assert plan.apply(model).get_layer("g").groups == 3
    assert tfprune.verify(model, plan) <= 1e-5


class Scale(layers.Layer):
    def build(self, shape):
        self.factors = self.add_weight(shape=(shape[-1],), name="factors")

    def call(self, x):
        return x * self.factors

    def compute_output_shape(self, shape):
        return shape


def wrong_width(call):
    call.weight(call.operation.factors, {0: call.channels()[:3]})
    return call.inputs[0]


def wrong_axis(call):
    call.weight(call.operation.factors, {1: call.channels()})
    return call.inputs[0]


def with_positions(positions):
    def rule(call):
        call.weight(call.operation.factors, {0: call.channels()}, positions)
        return call.inputs[0]

    return rule


def right(call):
    call.weight(call.operation.factors, {0: call.channels()})
    return call.inputs[0]


MISTAKES = {
    "nothing": (lambda call: None, "returned labels of shape None for outputs of shape (None, 8)"),
    "no output": (lambda call: [], "returned labels of shape nothing"),
    "two outputs": (lambda call: [right(call), call.inputs[0]], "(1, 8), (1, 8) for outputs"),
    "wrong rank": (lambda call: right(call)[0], "(8,) for outputs of shape (None, 8)"),
    "wrong size": (lambda call: right(call)[:, :5], "(1, 5) for outputs of shape (None, 8)"),
    "no labels": (lambda call: right(call) * 0.5, "integer array"),
    "wrong width": (wrong_width, "3 labels for axis 0 of the weight 'factors' of shape (8,)"),
    "wrong axis": (wrong_axis, "axis 1 of the weight 'factors' of shape (8,)"),
    "forgotten": (lambda call: call.inputs[0], "does not tell of the weight 'factors' of shape (8,)"),
    "text": (lambda call: call.weight("factors", {}), "'factors', which is none of the layer's own weights: factors"),
    "foreign": (lambda call: call.weight(keras.Variable([1.0]), {}), "none of the layer's own weights: factors"),
    "positions a text": (with_positions("all"), "positions='all' must be a whole number of at least 0"),
    "positions below 0": (with_positions(-1), "positions=-1 must be"),
    "half a position": (with_positions(0.5), "positions=0.5 must be"),
    "no note": (lambda call: call.note(None), "call.note was given None; give a text"),
    "bug": (lambda call: call.operation.scales, "AttributeError: 'Scale' object has no attribute 'scales'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_mistake_in_a_rule_is_told_with_the_rule_and_the_layer(name, wrapped, monkeypatch):
    monkeypatch.setattr(dispatch, "_BY_CLASS", {})

    def mine(call):
        return MISTAKES[name][0](call)

    tfprune.rule(Scale)(mine)
    inputs = keras.Input((5, 4) if wrapped else (4,))
    scale = layers.TimeDistributed(Scale(), name="scale") if wrapped else Scale(name="scale")
    model = keras.Model(inputs, layers.Dense(2)(scale(layers.Dense(8)(inputs))))
    with pytest.raises(PlanError) as error:
        tfprune.plan_channels(model, 0.5)
    message = str(error.value)
    assert message.startswith("The rule 'mine' for Scale (layer 'scale'): ")
    assert MISTAKES[name][1] in message, message


def test_rule_may_say_that_a_weight_follows_no_channels(monkeypatch):
    class Bank(layers.Layer):
        def build(self, shape):
            self.bank = self.add_weight(shape=(8, 8), name="bank")
            self.factor = self.add_weight(shape=(), name="factor")

        def call(self, x):
            return x * keras.ops.sum(self.bank) * self.factor

    monkeypatch.setattr(dispatch, "_BY_CLASS", {})

    @tfprune.rule(Bank)
    def bank(call):
        call.weight(call.operation.bank, {})
        return call.inputs[0]

    inputs = keras.Input((4,))
    model = randomize(keras.Model(inputs, layers.Dense(2)(Bank()(layers.Dense(8)(inputs)))))
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


@pytest.mark.parametrize(
    ("kinds", "fragment"),
    [
        ((), "rule() names no class"),
        ((right,), "names no class; use it as @tfprune.rule(MyLayer)"),
        ((5,), "rule(5) names no class"),
        ((Scale(),), "names no class"),
        (("Skale",), "rule('Skale'): Keras has no such class"),
        (("Scale",), "rule('Scale'): Keras has no such class; for a class of your own give the class itself"),
        (("Conv2D",), "There is a rule for Conv2D already"),
    ],
)
def test_rule_for_nothing_is_refused(kinds, fragment):
    with pytest.raises(UsageError) as error:
        tfprune.rule(*kinds)
    assert fragment in str(error.value)


def test_a_rule_that_is_no_function_is_refused():
    with pytest.raises(UsageError, match=r"The rule for <class .*Scale'> is no function, but 3"):
        tfprune.rule(Scale)(3)
