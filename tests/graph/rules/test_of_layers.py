"""Every family of layers: pruned, proved, and counted, on networks that stand for what people build."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfprune
from tests.helpers import assert_as_zeroed, images, named, network, predict, prove, randomize, relative_error, since
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.rules import dispatch


def transposed(x):
    x = layers.Conv2D(12, 3)(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))


def separable(x):
    x = layers.SeparableConv2D(8, 3, depth_multiplier=2)(layers.Conv2D(6, 3, activation="relu")(x))
    return layers.Dense(3)(layers.Flatten()(x))


def depthwise(x):
    return layers.Conv2D(3, 1)(layers.DepthwiseConv2D(3, depth_multiplier=2)(layers.Conv2D(6, 3)(x)))


def grouped(x):
    return layers.Conv2D(3, 1)(layers.Conv2D(16, 3, groups=4)(layers.Conv2D(8, 3, activation="relu")(x)))


def depthwise_as_grouped(x):
    return layers.Conv2D(3, 1)(layers.Conv2D(16, 3, groups=8)(layers.Conv2D(8, 3, activation="relu")(x)))


def shuffled(x):
    """ShuffleNet's unit: grouped convolution, channel shuffle, depthwise convolution."""
    x = layers.Conv2D(12, 1, groups=3)(layers.Conv2D(12, 1)(x))
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((8, 8, 3, 4))(x))
    x = layers.Reshape((8, 8, 12))(x)
    return layers.Conv2D(3, 1)(layers.DepthwiseConv2D(3)(x))


def shuffled_alone(x):
    """A channel shuffle behind an ordinary convolution, which ties nothing by itself."""
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((8, 8, 3, 4))(layers.Conv2D(12, 1)(x)))
    return layers.Conv2D(3, 1)(layers.Reshape((8, 8, 12))(x))


def resnext(x):
    x = stream = layers.Conv2D(12, 1)(x)
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(stream)))
        x = layers.ReLU()(layers.Conv2D(8, 3, groups=4, padding="same")(x))
        stream = layers.Add()([stream, layers.Conv2D(12, 1)(x)])
    return layers.Dense(3)(layers.GlobalMaxPooling2D()(stream))


def unet(x):
    a = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.MaxPooling2D()(a))
    up = layers.Concatenate()([layers.Conv2DTranspose(8, 2, strides=2)(b), a])
    other = layers.Conv2D(8, 1)(layers.UpSampling2D()(b))
    merged = layers.Add()([layers.Conv2D(8, 3, padding="same")(up), other])
    return layers.Conv2D(2, 1, activation="softmax")(merged)


def vit(x):
    x = layers.Reshape((4, 16))(layers.Conv2D(16, 4, strides=4)(x))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 4)(y, y)])
        y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(16)(y)
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x)))


def attention_by_hand(x):
    query, key, value = layers.Dense(8)(x), layers.Dense(8)(x), layers.Dense(6)(x)
    scores = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 2, 1))) * 0.3, axis=-1)
    return layers.Dense(2)(ops.matmul(scores, value))


def squeeze_and_excite(x):
    x = layers.Conv2D(12, 3, activation="relu")(x)
    gate = ops.mean(x, axis=(1, 2), keepdims=True)
    gate = layers.Conv2D(12, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="relu")(gate))
    return layers.Dense(3)(layers.Flatten()(x * gate))


def sliced(x):
    x = layers.Conv2D(12, 3)(x)
    head, tail = x[..., :5], x[:, :, :, 5:]
    one, two = ops.split(tail, [3], axis=-1)
    return layers.Conv2D(3, 1)(ops.concatenate([layers.ReLU()(head), two, one], axis=-1))


def axes_moved(x):
    x = layers.BatchNormalization(axis=1)(layers.Permute((3, 1, 2))(layers.Conv2D(8, 3)(x)))
    return layers.Dense(2)(layers.Flatten()(ops.transpose(x, (0, 2, 3, 1))))


def one_dimension(x):
    x = layers.Conv1D(6, 3, padding="causal")(layers.Conv1D(8, 3)(x))
    return layers.Dense(2)(layers.Flatten()(layers.AveragePooling1D(2)(layers.ZeroPadding1D(1)(x))))


def three_dimensions(x):
    return layers.Dense(2)(layers.Flatten()(layers.MaxPooling3D()(layers.Conv3D(6, 3)(x))))


def slopes(x):
    x = layers.PReLU()(layers.Conv2D(8, 3)(x))
    return layers.Conv2D(3, 1)(layers.PReLU(shared_axes=[1, 2])(x))


def instance_normalized(x):
    return layers.Conv2D(2, 1)(layers.GroupNormalization(groups=-1)(layers.Conv2D(8, 3)(x)))


def recurrent(x):
    x = layers.LSTM(10, return_sequences=True)(layers.Embedding(20, 12)(x))
    return layers.Dense(3)(layers.LSTM(8)(x))


def both_directions(x):
    x = layers.Bidirectional(layers.GRU(6, return_sequences=True))(layers.Dense(5)(x))
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True), merge_mode="sum")(x)
    return layers.Dense(3)(layers.GRU(8)(layers.SimpleRNN(8, return_sequences=True)(x)))


def over_time(x):
    x = layers.TimeDistributed(layers.BatchNormalization())(layers.TimeDistributed(layers.Conv2D(6, 3))(x))
    x = layers.TimeDistributed(layers.Dense(9, activation="relu"))(layers.TimeDistributed(layers.Flatten())(x))
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(x))


def sequences_over_time(x):
    x = layers.TimeDistributed(layers.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d"))(x)
    x = layers.TimeDistributed(layers.LSTM(8, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Bidirectional(layers.GRU(6)))(layers.TimeDistributed(layers.Dropout(0.5))(x))
    return layers.Dense(3)(layers.RNN(layers.LSTMCell(6))(x))


def repeated(x):
    return layers.LSTM(3)(layers.RepeatVector(4)(layers.Dense(8)(x)))


# Maps are wider than they have channels: where both are the same, Keras adds a bias along the wrong axis.
FIRST = {"data_format": "channels_first"}


def channels_first(x):
    x = layers.Conv2D(8, 3, padding="same", **FIRST)(x)
    x = stream = layers.PReLU(shared_axes=[2, 3])(layers.BatchNormalization(axis=1)(x))
    x = layers.SeparableConv2D(10, 3, padding="same", depth_multiplier=2, **FIRST)(x)
    x = layers.GroupNormalization(groups=-1, axis=1)(layers.Conv2D(12, 1, groups=2, **FIRST)(x))
    x = layers.SpatialDropout2D(0.5, **FIRST)(layers.DepthwiseConv2D(3, padding="same", **FIRST)(x))
    x = layers.Concatenate(axis=1)([layers.Conv2D(8, 1, activation="relu", **FIRST)(x) + stream, x])
    x = layers.Conv2DTranspose(6, 3, strides=2, **FIRST)(layers.MaxPooling2D(2, **FIRST)(x))
    gate = layers.GlobalAveragePooling2D(keepdims=True, **FIRST)(x)
    x = x * layers.Conv2D(6, 1, activation="sigmoid", **FIRST)(gate)
    x = layers.ZeroPadding2D(1, **FIRST)(layers.UpSampling2D(2, **FIRST)(layers.Cropping2D(1, **FIRST)(x)))
    x = layers.AveragePooling2D(2, **FIRST)(layers.CenterCrop(20, 20, **FIRST)(layers.Resizing(21, 23, **FIRST)(x)))
    x = layers.Concatenate()([layers.Flatten(**FIRST)(x), layers.GlobalMaxPooling2D(**FIRST)(x)])
    return layers.Dense(3)(x)


def channels_first_of_other_ranks(one, three):
    one = layers.Conv1D(8, 3, **FIRST)(layers.SeparableConv1D(6, 3, **FIRST)(one))
    one = layers.Conv1DTranspose(6, 3, **FIRST)(layers.DepthwiseConv1D(3, **FIRST)(one))
    one = layers.GlobalMaxPooling1D(**FIRST)(layers.MaxPooling1D(2, **FIRST)(layers.ZeroPadding1D(1, **FIRST)(one)))
    three = layers.Conv3D(6, 2, **FIRST)(three)
    three = layers.Conv3DTranspose(5, 2, **FIRST)(layers.UpSampling3D(2, **FIRST)(three))
    three = layers.Flatten(**FIRST)(layers.AveragePooling3D(2, **FIRST)(layers.Cropping3D(1, **FIRST)(three)))
    return layers.Dense(3)(layers.Concatenate()([one, three]))


def channels_first_over_time(x):
    x = layers.TimeDistributed(layers.Conv2D(6, 3, **FIRST))(x)
    x = layers.ConvLSTM2D(8, 3, return_sequences=True, **FIRST)(x)
    x, hidden, _ = layers.ConvLSTM2D(6, 2, return_state=True, **FIRST)(x)
    x = ops.depth_to_space(layers.Conv2D(8, 1, **FIRST)(x + hidden), 2, data_format="channels_first")
    return layers.Dense(3)(layers.GlobalAveragePooling2D(**FIRST)(layers.Conv2D(4, 1, **FIRST)(x)))


def siamese(one, other):
    encoder = keras.Sequential(
        [layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(), layers.GlobalMaxPooling2D(), layers.Dense(12)]
    )
    distance = ops.abs(encoder(one) - encoder(other))
    return layers.Dense(2)(layers.Concatenate()([distance, encoder(one)]))


IMAGE, SEQUENCE = (8, 8, 3), (5, 4)
NETWORKS = {
    "transposed": (transposed, IMAGE),
    "separable": (separable, IMAGE),
    "depthwise": (depthwise, IMAGE),
    "grouped": (grouped, IMAGE),
    "depthwise_as_grouped": (depthwise_as_grouped, IMAGE),
    "shuffled": (shuffled, IMAGE),
    "shuffled_alone": (shuffled_alone, IMAGE),
    "resnext": (resnext, IMAGE),
    "unet": (unet, IMAGE),
    "vit": (vit, IMAGE),
    "attention_by_hand": (attention_by_hand, SEQUENCE),
    "squeeze_and_excite": (squeeze_and_excite, IMAGE),
    "sliced": (sliced, IMAGE),
    "axes_moved": (axes_moved, IMAGE),
    "one_dimension": (one_dimension, (9, 3)),
    "three_dimensions": (three_dimensions, (8, 8, 8, 2)),
    "slopes": (slopes, (6, 6, 3)),
    "instance_normalized": (instance_normalized, IMAGE),
    "both_directions": (both_directions, SEQUENCE),
    "over_time": (over_time, (5, 8, 8, 2)),
    "sequences_over_time": (sequences_over_time, (3, 5, 4)),
    "repeated": (repeated, (4,)),
    "channels_first": (channels_first, (3, 26, 28)),
    "channels_first_of_other_ranks": (channels_first_of_other_ranks, (3, 30), (2, 9, 9, 9)),
    "channels_first_over_time": (channels_first_over_time, (3, 2, 16, 16)),
    "siamese": (siamese, IMAGE, IMAGE),
}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", named(NETWORKS, {"channels_first_over_time": "3.14"}))
def test_masked_and_removed_agree_and_the_plan_predicts_the_costs(name, scope):
    body, *shapes = NETWORKS[name]
    model = network(body, *shapes)
    prove(model, tfprune.plan_channels(model, 0.4, scope=scope))


def test_recurrent_classifier_of_words():
    model = network(recurrent, (7,), dtype="int32")
    plan = tfprune.plan_channels(model, 0.4)
    assert sorted(len(kept) for layer, kept in plan.keep.items() if "lstm" in layer) == [4, 6]
    assert tfprune.verify(model, plan) <= 1e-5


def test_units_of_a_recurrent_layer_go_from_every_gate():
    model = network(lambda x: layers.Dense(2)(layers.LSTM(4, name="lstm")(x)), SEQUENCE)
    small = tfprune.ChannelPlan.from_removed(model, {"lstm": [1]}).apply(model)
    kernel, recurrent_kernel, bias = model.get_layer("lstm").get_weights()
    kept = np.asarray([0, 2, 3])
    columns = np.concatenate([gate * 4 + kept for gate in range(4)])
    expected = [kernel[:, columns], recurrent_kernel[kept][:, columns], bias[columns]]
    for one, other in zip(expected, small.get_layer("lstm").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_heads_of_attention_go_as_a_whole():
    def body(x):
        return layers.Dense(2)(layers.MultiHeadAttention(4, 3, name="attention")(x, x))

    model = network(body, SEQUENCE)
    plan = tfprune.ChannelPlan.from_removed(model, {"attention": [0, 2]})
    assert tfprune.verify(model, plan) <= 1e-5
    small = plan.apply(model).get_layer("attention")
    assert small.num_heads == 2
    np.testing.assert_array_equal(
        small._query_dense.kernel.numpy(), model.get_layer("attention")._query_dense.kernel.numpy()[:, [1, 3]]
    )


def test_keys_and_values_of_attention_may_be_given_by_name():
    def body(x):
        query, value, key = (layers.Dense(6, name=name)(x) for name in ("query", "value", "key"))
        return layers.Dense(2)(layers.MultiHeadAttention(3, 2)(query, value=value, key=key))

    model = network(body, SEQUENCE)
    plan = tfprune.ChannelPlan.from_removed(model, {"query": [0], "value": [1, 2], "key": [3, 4, 5]})
    assert tfprune.verify(model, plan) <= 1e-5


@pytest.mark.parametrize("join", [layers.Concatenate(axis=1), lambda x: ops.stack(x, axis=1), ops.hstack])
def test_maps_joined_along_positions_keep_as_many_channels(join):
    def body(x):
        return layers.Dense(2)(layers.Flatten()(join([layers.Conv2D(4, 1, name=name)(x) for name in "ab"])))

    model = network(body, IMAGE)
    plan = tfprune.ChannelPlan.from_removed(model, {"a": [1]})
    assert plan.keep["b"] == (0, 2, 3)
    assert tfprune.verify(model, plan) <= 1e-5


@pytest.mark.parametrize("axis", [3, 4])
def test_a_sum_over_groups_of_channels_loses_the_same_of_all(axis):
    def body(x):
        x = layers.Reshape((8, 8, 3, 4))(layers.Conv2D(12, 1, name="a")(x))
        return layers.Dense(2)(layers.Conv2D(6, 1, name="b")(ops.sum(x, axis=axis)))

    model = network(body, IMAGE)
    plan = tfprune.plan_channels(model, 0.5)
    kept = np.asarray(plan.keep["a"]).reshape(3, 2) - 4 * np.arange(3)[:, None]
    assert (kept == kept[0]).all()
    assert len(plan.keep["b"]) == 3
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    assert_as_zeroed(model, plan, plan.apply(model), images(model))


def test_layer_over_time_that_is_called_twice_reads_the_same_channels():
    def body(x):
        shared = layers.TimeDistributed(layers.Dense(6), name="shared")
        return layers.Dense(2)(shared(layers.Dense(6, name="second")(shared(layers.Dense(6, name="first")(x)))))

    model = network(body, SEQUENCE)
    plan = tfprune.ChannelPlan.from_removed(model, {"first": [1], "shared": [2, 3]})
    assert plan.keep["second"] == (0, 2, 3, 4, 5)
    assert tfprune.verify(model, plan) <= 1e-5


def differ_in_what_is_known(x):
    shared = layers.TimeDistributed(layers.Conv2D(3, 1), name="shared")  # the first call sees channels of two kinds
    frames = ops.stack([layers.Conv2D(3, 1)(x), layers.Conv2D(3, 1)(x)], axis=1)
    return shared(shared(frames))


def differ_in_a_reshape(x):
    unknown = layers.Lambda(lambda x: x * 2)(x)
    inner = keras.Sequential([keras.Input((8, 8, 6)), layers.Reshape((64, 6))])
    known = layers.GlobalMaxPooling1D()(inner(layers.Conv2D(6, 1)(x)))
    return layers.Concatenate()([known, layers.GlobalMaxPooling1D()(inner(layers.Concatenate()([unknown, unknown])))])


def differ_in_slopes(x):
    slopes = layers.PReLU(shared_axes=[1, 2])
    unknown = layers.Lambda(lambda x: x * 2)(x)
    return layers.Concatenate(axis=1)([layers.Conv2D(4, 1)(slopes(y)) for y in (layers.Conv2D(3, 1)(x), unknown)])


@pytest.mark.parametrize("body", [differ_in_what_is_known, differ_in_a_reshape, differ_in_slopes])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_shared_layer_keeps_what_only_some_of_its_calls_could_lose(body, scope):
    model = network(lambda x: layers.Dense(2)(layers.Dense(7)(layers.Flatten()(body(x)))), IMAGE)
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5, scope=scope)) <= 1e-5


@pytest.mark.parametrize(
    "inner",
    [
        layers.LSTM(6, return_sequences=True),
        layers.SimpleRNN(6),
        layers.Bidirectional(layers.GRU(6)),
        layers.TimeDistributed(layers.Dense(6)),
    ],
)
def test_layers_of_sequences_may_be_applied_over_time(inner):
    def body(x):
        x = layers.TimeDistributed(inner, name="inner")(layers.Dense(4, name="before")(x))
        return layers.Dense(2)(layers.Flatten()(x))

    model = network(body, (3, 4, 5))
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["before"]), len(plan.keep["inner"])) == (2, 3)
    assert tfprune.verify(model, plan) <= 1e-5
    built = tfprune.profile(plan.apply(model))
    assert (built.params, built.macs, built.flops) == (plan.params[1], plan.macs[1], plan.flops[1])


def test_frames_of_unknown_number_are_flattened_each():
    def body(x):
        x = layers.TimeDistributed(layers.Conv1D(6, 1), name="frames")(x)
        return layers.LSTM(2)(layers.TimeDistributed(layers.Flatten())(x))

    model = network(body, (None, 4, 5))
    plan = tfprune.ChannelPlan.from_removed(model, {"frames": [1, 2]})
    assert tfprune.verify(model, plan) <= 1e-5


def test_channel_shuffle_couples_the_groups_position_by_position():
    model = network(shuffled, IMAGE)
    stem = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D) and layer.groups == 1).name
    plan = tfprune.ChannelPlan.from_removed(model, {stem: [1]})
    assert sorted(set(range(12)) - set(plan.keep[stem])) == [1, 5, 9]


def test_split_and_slices_follow_the_channels_that_are_kept():
    model = network(sliced, IMAGE)
    stem = model.layers[1].name
    plan = tfprune.ChannelPlan.from_removed(model, {stem: [0, 4, 6, 11]})
    assert tfprune.verify(model, plan) <= 1e-5
    assert plan.apply(model).get_layer(stem).filters == 8


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("cut", [lambda x: ops.split(x, [2], axis=-1), lambda x: [x[..., :2], x[..., 2:]]])
def test_something_is_left_of_every_part_that_is_cut_out(cut, scope):
    def body(x):
        one, two = cut(layers.Conv2D(12, 1, name="wide")(x))
        return layers.Dense(2)(layers.Flatten()(layers.Concatenate()([layers.Conv2D(3, 1)(one), two])))

    model = network(body, IMAGE)
    wide = model.get_layer("wide")
    kernel = np.array(wide.kernel.numpy())
    kernel[..., :2] *= 1e-3  # the channels of the first part are the least important ones
    wide.kernel.assign(kernel)
    plan = tfprune.plan_channels(model, 0.5, scope=scope)
    assert len({0, 1}.intersection(plan.keep["wide"])) == 1
    assert len(plan.keep["wide"]) == 6 or scope == "global"
    assert tfprune.verify(model, plan) <= 1e-5
    with pytest.raises(PlanError, match=r"leave nothing of what .* cuts out"):
        tfprune.ChannelPlan.from_removed(model, {"wide": [0, 1]})


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.LayerNormalization(), "normalizes over the channels"),
        (layers.UnitNormalization(), "normalizes over the channels"),
        (layers.GroupNormalization(2), "normalizes over groups of channels"),
        (layers.Lambda(lambda x: x * 2), "is not known"),
        (layers.Rescaling([1.0] * 8), "has constants per channel"),
        (layers.Softmax(), "softmax over the channels"),
        (layers.Masking(), "looks at all channels"),
        (layers.Discretization(bin_boundaries=[0.0, 1.0]), "reads features of the data"),
    ],
)
def test_what_looks_at_several_channels_freezes_them_with_the_reason(layer, reason):
    model = network(lambda x: layers.Dense(2)(layers.Dense(5)(layer(layers.Dense(8, name="wide")(x)))), (4,))
    plan = tfprune.plan_channels(model, 0.4)
    assert reason in plan.frozen["wide"]
    assert len(plan.keep["wide"]) == 8
    assert tfprune.verify(model, plan) <= 1e-5


@keras.saving.register_keras_serializable("tests")
class Scale(layers.Layer):
    """A user's layer: one factor per channel."""

    def build(self, shape):
        self.factors = self.add_weight(shape=(shape[-1],), name="factors")

    def call(self, x):
        return tf.multiply(x, self.factors)  # not looked into: an operation that Keras does not record

    def compute_output_shape(self, shape):
        return shape


def test_a_users_layer_is_frozen_until_it_is_taught(monkeypatch):
    model = network(lambda x: layers.Dense(2)(Scale(name="scale")(layers.Dense(8, name="wide")(x))), (4,))
    with pytest.raises(PlanError, match=r"wide: scale \(Scale\) is not known to tfprune, and cannot be looked into"):
        tfprune.plan_channels(model, 0.5)

    monkeypatch.setattr(dispatch, "_BY_CLASS", {})

    @tfprune.rule(Scale)
    def scale(call):
        call.weight(call.operation.factors, {0: call.channels()})
        return call.inputs[0]

    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 4
    assert tfprune.verify(model, plan) <= 1e-5
    tfprune.rule(Scale)(lambda call: dispatch.give_up(call, "replaced"))  # as when a cell of a notebook is run again
    with pytest.raises(PlanError, match="wide: replaced"):
        tfprune.plan_channels(model, 0.5)


def test_masks_of_recurrent_layers_are_no_states():
    def body(x):
        x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(layers.Embedding(50, 8, mask_zero=True)(x))
        return layers.Dense(2)(layers.GRU(6)(x))

    model = network(body, (7,), dtype="int32")
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan) <= 1e-5
    assert sorted(len(kept) for kept in plan.keep.values()) == [2, 2, 3, 4]


def test_states_of_one_recurrent_layer_are_coupled_to_the_next():
    def body(x):
        sequence, hidden, cell = layers.LSTM(6, return_sequences=True, return_state=True, name="encoder")(x)
        return layers.Dense(2)(layers.LSTM(6, name="decoder")(sequence, initial_state=[hidden, cell]))

    model = network(body, SEQUENCE)
    plan = tfprune.ChannelPlan.from_removed(model, {"encoder": [2]})
    assert plan.keep["decoder"] == (0, 1, 3, 4, 5)
    assert tfprune.verify(model, plan) <= 1e-5


def test_statistics_of_the_data_are_kept_with_fresh_weights():
    normalize = layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 4.0, 9.0, 16.0])
    adapted = layers.Normalization()
    adapted.adapt(np.random.default_rng(0).normal(5.0, 3.0, (64, 4)).astype("float32"))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6, name="wide")(adapted(normalize(inputs)))))
    fresh = tfprune.plan_channels(model, 0.5).apply(model, weights="fresh", seed=1)
    kept = next(layer for layer in fresh.layers if layer.name == adapted.name)
    np.testing.assert_array_equal(kept.mean, adapted.mean)
    assert fresh.get_layer("wide").units == 3


def test_embedding_that_starts_from_an_array_is_pruned_but_not_made_fresh():
    table = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(20, 8, embeddings_initializer=keras.initializers.Constant(table), name="words")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    plan = tfprune.ChannelPlan.from_removed(model, {"words": [0, 7]})
    assert tfprune.verify(model, plan) <= 1e-5
    np.testing.assert_array_equal(plan.apply(model).get_layer("words").embeddings, table[:, 1:7])
    with pytest.raises(PlanError, match="words starts from an array"):
        plan.apply(model, weights="fresh")


def test_saturated_outputs_are_proved_with_random_weights():
    model = network(lambda x: layers.Dense(1, activation="sigmoid", name="head")(layers.Dense(6)(x)), (4,))
    model.get_layer("head").bias.assign([60.0])
    assert tfprune.verify(model, tfprune.plan_channels(model, 0.5)) <= 1e-5


# What cannot stand in a functional model, because it is abstract or wraps another framework's whole model.
NO_LAYERS = {"Layer", "Wrapper", "InputLayer"}


def test_there_is_a_rule_for_every_layer_of_keras():
    kinds = [kind for kind in vars(layers).values() if isinstance(kind, type) and issubclass(kind, layers.Layer)]
    missing = {
        kind.__name__ for kind in kinds if not any(base.__name__ in dispatch._BY_NAME for base in kind.__mro__[:-1])
    }
    assert missing == NO_LAYERS
    assert len(kinds) > 150


# What the newest version has that is out lacks. Take names away when it is there.
OF_KERAS_3_16 = {
    "ColumnStack", "Copysign", "Cov", "FloatPower", "Gammainc", "Lgamma", "MatrixPower", "Mosaic", "ReconstructPatches",
    "TernaryDense",
}  # fmt: skip


@since("3.15")
def test_every_name_of_a_rule_is_a_class_of_keras():
    """A misspelled name would leave an operation without its rule."""
    from keras.src.ops.operation import Operation

    names, kinds = set(), [Operation]
    while kinds:
        kind = kinds.pop()
        names.add(kind.__name__)
        kinds += kind.__subclasses__()
    others = {"LayerScale", "CustomScaleLayer"}  # of networks of keras.applications, which are not imported here
    assert set(dispatch._BY_NAME) <= names | others | OF_KERAS_3_16


def test_what_is_frozen_over_time_is_frozen_with_its_reason():
    def body(x):
        x = layers.TimeDistributed(layers.LayerNormalization(), name="norm")(layers.Dense(6, name="wide")(x))
        return layers.Dense(2)(layers.TimeDistributed(layers.Masking(), name="mask")(layers.Dense(6, name="after")(x)))

    graph = ChannelGraph(network(body, SEQUENCE))
    reasons = {name: graph.frozen[graph.group_of[graph.records[name].created[0]]] for name in ("wide", "after")}
    assert reasons == {"wide": "norm normalizes over the channels", "after": "mask looks at all channels"}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", [layers.LayerNormalization, layers.RMSNormalization])
def test_a_normalization_that_is_wrapped_runs_over_the_channels_that_are_left(kind, depth):
    def body(norm):
        return lambda x: layers.Dense(3, name="last")(norm(layers.Dense(10, name="wide")(x)))

    wrapped = kind()
    for number in range(depth):
        wrapped = layers.TimeDistributed(wrapped, name=f"times_{number}")
    shape = (4, 5, 7)[2 - depth :]
    model = network(body(wrapped), shape)
    plan = tfprune.plan_channels(model, 0.5, normalization="narrowed")
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    kept, inputs = list(plan.keep["wide"]), np.random.default_rng(0).normal(size=(6, *shape)).astype("float32")
    assert len(kept) == 5
    by_hand = network(lambda x: layers.Dense(3)(kind()(layers.Dense(5)(x))), shape)
    kernel, bias, *scales, last, last_bias = model.get_weights()
    by_hand.set_weights([kernel[:, kept], bias[kept], *(one[kept] for one in scales), last[kept], last_bias])
    assert np.allclose(predict(plan.apply(model), inputs)[0], predict(by_hand, inputs)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [lambda layer: layer.enable_lora(2), lambda layer: layer.quantize("int8")])
def test_layers_with_other_weights_than_they_were_made_with_stay(change):
    def body(x):
        x = layers.Dense(8, name="wide")(layers.Dense(8, name="before")(x))
        return layers.Dense(2)(layers.Dense(6, name="after")(x))

    model = network(body, (4,))
    change(model.get_layer("wide"))
    plan = tfprune.plan_channels(model, 0.5)
    assert "has quantized weights or weights of LoRA" in plan.frozen["before"]
    assert prove(model, plan).get_layer("after").units == 3


def test_colours_stay_and_what_reads_them_is_pruned():
    model = network(lambda x: layers.Conv2D(2, 1)(layers.Conv2D(8, 3, name="conv")(layers.AutoContrast()(x))), IMAGE)
    assert prove(model, tfprune.plan_channels(model, 0.5)).get_layer("conv").filters == 4
    model = network(lambda x: layers.Conv2D(2, 1)(layers.AutoContrast()(layers.Conv2D(3, 1)(x))), IMAGE)
    with pytest.raises(PlanError, match="works on the colours of images"):
        tfprune.plan_channels(model, 0.5)


@pytest.mark.parametrize("kind", ["RandomFlip", "RandomRotation", "RandomZoom"])
def test_what_turns_images_passes_their_channels(kind):
    """Such layers augment wherever they are not told that this is no training, so predictions are compared."""
    given = {"RandomFlip": ()}.get(kind, (0.2,))
    inputs = keras.Input(IMAGE)
    x = getattr(layers, kind)(*given)(layers.Conv2D(8, 3, name="conv")(inputs))
    model = randomize(keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x)))
    small = tfprune.ChannelPlan.from_removed(model, {"conv": [0, 5]}).apply(model)
    kernel = model.get_layer("head").kernel.numpy()
    kernel[:, :, [0, 5]] = 0
    model.get_layer("head").kernel.assign(kernel)
    assert relative_error(predict(model, images(model)), predict(small, images(model))) <= 1e-5


def test_what_varies_over_the_steps_stays_but_the_layer_inside_is_pruned_and_counted():
    def body(x):
        single = layers.Dense(1, name="single")(x)
        frames = ops.stack([single, layers.Dense(1, name="other")(x)], axis=1)
        return layers.Dense(2)(layers.Flatten()(layers.TimeDistributed(layers.Dense(6), name="inside")(frames)))

    model = network(body, (4,))
    assert tfprune.profile(model).macs == 2 * 4 + 2 * 6 + 12 * 2
    plan = tfprune.plan_channels(model, 0.5)
    assert "varies over the steps" in plan.frozen["single"]
    assert len(plan.keep["inside"]) == 3
    prove(model, plan)


def test_units_that_become_positions_and_channels_lose_whole_channels():
    """A decoder: of the 4 x 5 x 6 units, those of a channel go at all positions."""

    def body(x):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(4 * 5 * 6, name="units")(x)))
        return layers.Conv2DTranspose(2, 3, name="head")(layers.Reshape((-1, 5, 6))(x))

    model = network(body, (7,))
    plan = tfprune.ChannelPlan.from_removed(model, {"units": [2]})
    assert plan.keep["units"] == tuple(unit for unit in range(120) if unit % 6 != 2)
    prove(model, plan)
    assert tfprune.plan_channels(model, 0.5).sizes()["units"] == (120, 60)


def test_a_single_channel_behind_units_is_no_group_of_heads():
    def body(x):
        x = ops.pad(layers.Reshape((4, 4, 1))(layers.Dense(16, name="units")(x)), ((0, 0), (0, 0), (0, 0), (0, 3)))
        return layers.Conv2D(2, 3)(layers.Add()([x, layers.Conv2D(4, 1, name="wide")(x)]))

    model = network(body, (6,))
    plan = tfprune.ChannelPlan.from_removed(model, {"wide": [1, 3]})
    assert plan.keep["units"] == tuple(range(16))
    prove(model, plan)


def test_channels_that_become_positions_go_with_those_beside_them():
    """Pixel shuffle by hand, of 2 x 2 pixels and 3 channels."""

    def body(x):
        x = layers.Reshape((6, 6, 2, 2, 3))(layers.Conv2D(12, 3, padding="same", name="conv")(x))
        return layers.Conv2D(2, 3)(layers.Reshape((12, 12, 3))(layers.Permute((1, 3, 2, 4, 5))(x)))

    model = network(body, (6, 6, 3))
    plan = tfprune.ChannelPlan.from_removed(model, {"conv": [1]})
    assert plan.keep["conv"] == (0, 2, 3, 5, 6, 8, 9, 11)
    prove(model, plan)


def frames(inside):
    """A network over the frames of a film, and an LSTM over what it gives."""
    one = keras.Input((10, 10, 3))
    tower = keras.Model(one, layers.GlobalAveragePooling2D()(inside(one)), name="tower")
    return lambda x: layers.Dense(2)(layers.LSTM(6, name="lstm")(layers.TimeDistributed(tower, name="frames")(x)))


def residual_frame(x):
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, name="conv")(x))
    return layers.Add()([x, layers.Conv2D(8, 3, padding="same", name="branch")(layers.ReLU()(x))])


@pytest.mark.parametrize("time", [3, None])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_network_over_time_is_pruned_layer_by_layer(time, scope):
    model = network(frames(residual_frame), (time, 10, 10, 3))
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    plan = tfprune.plan_channels(model, 0.5, scope=scope)
    assert {"conv", "branch", "lstm"} <= set(plan.keep)
    assert plan.frozen.keys() == {"dense"} or set(plan.frozen) == {model.layers[-1].name}
    prove(model, plan)
    assert nodes == [len(layer._inbound_nodes) for layer in model._flatten_layers()]  # it stays as it was
    own = {id(weight) for weight in model.weights}
    assert own.isdisjoint(id(weight) for weight in plan.apply(model).weights)


def test_a_network_over_time_that_cannot_be_taken_apart_stays_whole():
    def inside(x):
        x = layers.Conv2D(8, 3, name="conv")(x)
        return layers.Conv2D(4, 1)(ops.where(x > 0, x, 0.1 * x))

    model = network(frames(inside), (3, 10, 10, 3))
    plan = tfprune.plan_channels(model, 0.5)
    assert "conv" not in plan.keep
    assert plan.sizes()["lstm"] == (6, 3)
    prove(model, plan)


def test_a_reshape_of_open_size_serves_inputs_of_several_sizes():
    """As the heads of detectors, on every level of a pyramid."""
    flat, head = layers.Reshape((-1, 4), name="flat"), layers.Conv2D(8, 1, name="head")

    def body(x):
        levels = [layers.Conv2D(6, 3, strides=stride, padding="same")(x) for stride in (1, 2, 4)]
        return layers.Concatenate(axis=1)([flat(head(level)) for level in levels])

    model = network(body, (8, 8, 3))
    prove(model, tfprune.plan_channels(model, 0.5))


@since("3.14")
@pytest.mark.parametrize("trainable", [True, False])
def test_batch_normalization_with_renormalization_loses_channels_of_all_its_weights(trainable):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(renorm=True, name="bn")(layers.Conv2D(6, 3, name="conv")(inputs))
    x = layers.TimeDistributed(layers.BatchNormalization(renorm=True))(layers.ReLU()(x))
    model = randomize(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    model.get_layer("bn").trainable = trainable
    plan = tfprune.plan_channels(model, 0.5)
    small, kept = prove(model, plan), list(plan.keep["conv"])
    for weight, left in zip(model.get_layer("bn").weights, small.get_layer("bn").weights, strict=True):
        np.testing.assert_array_equal(left, weight.numpy()[kept])
    assert tfprune.profile(model).layers[1].params == 12  # gamma and beta; all others are statistics


def test_a_network_over_two_times_stays_one_network():
    one = keras.Input((6, 6, 3))
    tower = keras.Model(
        one, layers.GlobalAveragePooling2D()(layers.Dropout(0.5)(layers.Conv2D(8, 3, name="conv")(one)))
    )

    def body(x, y):
        sums = [layers.GlobalAveragePooling1D()(layers.TimeDistributed(tower)(film)) for film in (x, y)]
        return layers.Dense(2)(layers.Concatenate()(sums))

    model = network(body, (3, 6, 6, 3), (4, 6, 6, 3))
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.params[0] == model.count_params()
    prove(model, plan)
    assert len(plan.apply(model).weights) == len(model.weights)


def test_a_layer_alone_and_over_time_would_come_apart():
    shared = layers.Dense(8, name="shared")

    def body(x, y):
        return layers.Dense(2)(
            layers.Add()([layers.GlobalAveragePooling1D()(layers.TimeDistributed(shared)(x)), shared(y)])
        )

    with pytest.raises(PlanError, match=r"share the weight .*shared/kernel"):
        tfprune.plan_channels(network(body, (4, 6), (6,)), 0.5)


def test_a_mask_over_time_is_the_reason_and_not_the_layer():
    words = keras.Input((4,), dtype="int32")
    x = layers.TimeDistributed(layers.Dense(6), name="step")(
        layers.Embedding(9, 8, mask_zero=True, name="words")(words)
    )
    plan = tfprune.plan_channels(keras.Model(words, layers.Dense(2)(layers.LSTM(5, name="lstm")(x))), 0.5)
    assert "step is called with a mask of padded steps" in plan.frozen["words"]
    assert plan.sizes()["lstm"][1] < 5
