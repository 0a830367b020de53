import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import plain_cnn, randomize, residual_cnn
from tfprune.errors import PlanError
from tfprune.models import build_application, build_model


def rows(model):
    return {layer.name: layer for layer in tfprune.profile(model).layers}


def by_formula(model):
    """(params, MACs, FLOPs) of a flat model of plain layers, by the formulas of the paper."""
    params = macs = flops = 0
    for layer in model.layers:
        shape = layer.output.shape[1:]
        elements = int(np.prod(shape))
        params += sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)
        if isinstance(layer, layers.Conv2D):
            kernel = layer.kernel.numpy()
            positions = shape[0] * shape[1]
            macs += kernel.size * positions
            flops += 2 * np.count_nonzero(kernel) * positions + (elements if layer.use_bias else 0)
        elif isinstance(layer, layers.Dense):
            macs += layer.kernel.numpy().size
            flops += 2 * layer.kernel.numpy().size + layer.units
        elif isinstance(layer, layers.BatchNormalization):
            flops += 2 * elements if len(shape) > 1 else 0
        elif isinstance(layer, layers.ReLU):
            flops += elements
        elif isinstance(layer, (layers.MaxPooling2D, layers.AveragePooling2D)):
            flops += elements * int(np.prod(layer.pool_size))
    return params, macs, flops


def test_tiny_network_by_hand():
    profile = tfprune.profile(plain_cnn())
    by_layer = {layer.name: (layer.channels, layer.params, layer.macs, layer.flops) for layer in profile.layers}
    assert by_layer["conv_a"] == (6, 162, 162 * 64, 2 * 162 * 64)
    assert by_layer["bn_a"] == (0, 12, 0, 2 * 64 * 6)
    assert by_layer["relu_a"] == (0, 0, 0, 64 * 6)
    assert by_layer["pool"] == (0, 0, 0, 4 * 16 * 6)
    assert by_layer["conv_b"] == (10, 540 + 10, 540 * 16, 2 * 540 * 16 + 160)
    assert by_layer["fc"] == (8, 160 * 8 + 8, 1280, 2 * 1280 + 8)
    assert by_layer["logits"] == (5, 45, 40, 2 * 40 + 5)
    assert profile.params == 162 + 12 + 550 + 20 + 1288 + 45
    assert profile.macs == 162 * 64 + 540 * 16 + 1280 + 40
    assert profile.flops == 20_736 + 768 + 384 + 384 + 17_440 + 320 + 160 + 2_568 + 85


@pytest.mark.parametrize("name", ["vgg16", "vgg16_l1", "resnet20"])
def test_networks_of_the_paper_by_formula(name):
    model = build_model(name, (32, 32, 3), 10)
    profile = tfprune.profile(model)
    assert (profile.params, profile.macs, profile.flops) == by_formula(model)


def test_zeros_are_discounted_in_convolutions_and_not_in_dense_layers():
    model = plain_cnn()
    before = tfprune.profile(model)
    assert before.nonzero_params == before.params
    for name, index in (("conv_a", (0, 1)), ("fc", (slice(None), 3))):
        kernel = np.array(model.get_layer(name).kernel.numpy())
        kernel[index] = 0
        model.get_layer(name).kernel.assign(kernel)
    after = tfprune.profile(model)
    assert (after.params, after.macs) == (before.params, before.macs)
    assert before.nonzero_params - after.nonzero_params == 18 + 160
    assert before.flops - after.flops == 2 * 18 * 64
    assert after.flops == by_formula(model)[2]


def test_zero_moving_means_are_no_pruned_parameters():
    model = plain_cnn()
    model.get_layer("bn_a").moving_mean.assign(np.zeros(6, "float32"))
    assert tfprune.profile(model).nonzero_params == tfprune.profile(model).params


@pytest.mark.parametrize(
    ("layer", "params", "macs", "flops"),
    [
        # On a map of 6x6 with 4 channels.
        (layers.DepthwiseConv2D(3, depth_multiplier=2), 72 + 8, 72 * 16, 2 * 72 * 16 + 8 * 16),
        (layers.Conv2D(6, 3, groups=2, padding="same"), 108 + 6, 108 * 36, 2 * 108 * 36 + 6 * 36),
        (layers.Conv2D(5, 3, strides=2, use_bias=False), 180, 180 * 4, 2 * 180 * 4),
        (layers.Dense(7), 35, 28 * 36, 2 * 28 * 36 + 7 * 36),
        (layers.BatchNormalization(scale=False), 4, 0, 2 * 144),
        (layers.Activation("relu"), 0, 0, 144),
        (layers.Activation("tanh"), 0, 0, 0),
        (layers.AveragePooling2D(3, strides=1), 0, 0, 9 * 16 * 4),
        (layers.GlobalAveragePooling2D(), 0, 0, 0),
        (layers.ZeroPadding2D(1), 0, 0, 0),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else None,
)
def test_single_layers_by_hand(layer, params, macs, flops):
    inputs = keras.Input((6, 6, 4))
    profile = tfprune.profile(keras.Model(inputs, layer(inputs)))
    assert (profile.params, profile.macs, profile.flops) == (params, macs, flops)


def test_shared_layer_has_its_weights_once_and_its_work_at_every_call():
    one, two = keras.Input((6, 6, 3)), keras.Input((4, 4, 3))
    shared = layers.Conv2D(5, 3, padding="same", name="shared")
    profile = tfprune.profile(keras.Model([one, two], [shared(one), shared(two)]))
    assert profile.params == 140
    assert profile.macs == 135 * (36 + 16)
    assert profile.flops == 2 * 135 * 52 + 5 * 52


def test_nested_models_count_as_their_layers():
    inner = plain_cnn()
    inputs = keras.Input((8, 8, 3))
    nested = keras.Sequential([keras.Input((8, 8, 3)), keras.Model(inputs, inner(inputs))])
    flat, deep = tfprune.profile(inner), tfprune.profile(nested)
    assert (deep.params, deep.macs, deep.flops) == (flat.params, flat.macs, flat.flops)


def test_layers_of_unknown_kind_count_their_parameters():
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.LSTM(3, name="memory")(inputs)))
    by_layer = rows(model)
    assert by_layer["memory"].params == 4 * (4 * 3 + 3 * 3 + 3)
    assert tfprune.profile(model).params == model.count_params()


@pytest.mark.parametrize("make", [plain_cnn, residual_cnn, lambda: build_model("resnet20", (32, 32, 3), 10, 0.5)])
@pytest.mark.parametrize("ratio", [0.2, 0.55])
def test_what_a_plan_predicts_is_what_the_built_network_has(make, ratio):
    model = randomize(make())
    plan = tfprune.plan_channels(model, ratio)
    whole, small = tfprune.profile(model), tfprune.profile(plan.apply(model))
    assert plan.params == (whole.params, small.params)
    assert plan.macs == (whole.macs, small.macs)
    assert plan.flops == (whole.flops, small.flops)
    built = {layer.name: layer for layer in small.layers}
    for row in plan.rows:
        assert (row.params[1], row.macs[1]) == (built[row.layer].params, built[row.layer].macs), row.layer
    trainable = sum(int(np.prod(weight.shape)) for weight in plan.apply(model).trainable_weights)
    assert plan.params[1] == trainable


def test_profile_prints_layers_and_total():
    text = str(tfprune.profile(plain_cnn()))
    assert "conv_b" in text
    assert "2,077" in text.splitlines()[-1]


def test_model_without_a_graph_is_refused():
    with pytest.raises(PlanError, match=r"model\.build"):
        tfprune.profile(keras.Sequential([layers.Dense(3)]))


@pytest.mark.slow
def test_applications_of_any_size_are_made_at_a_fixed_one_and_their_macs_counted():
    model = build_application("MobileNetV3Small")
    # 56 million in its paper (Howard et al., ICCV 2019).
    assert tfprune.profile(model).macs == pytest.approx(56e6, rel=0.02)
    assert tfprune.profile(model).notes == ()
    assert build_application("InceptionV3").input_shape == (None, 299, 299, 3)


@keras.saving.register_keras_serializable("profiling")
class Attending(layers.Layer):
    """Attention and a dense layer, in a layer of one's own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.heads, self.after = layers.MultiHeadAttention(4, 6), layers.Dense(24)

    def build(self, shape):
        self.heads.build(shape, shape)
        self.after.build(shape)

    def call(self, x):
        scores = ops.softmax(ops.einsum("btc,bsc->bts", x, ops.sin(x)))
        return x + self.after(self.heads(x, x)) + ops.matmul(scores, x) + x @ np.eye(24, dtype="float32")


@pytest.mark.parametrize("length", [7, None])
def test_what_is_inside_of_a_layer_costs_what_it_costs_by_itself(length):
    """An open length counts as 1, and so do its square and what is done for each position."""
    inputs = keras.Input((length, 16))
    model = keras.Model(inputs, layers.Dense(3)(Attending(name="own")(layers.Dense(24)(inputs))))
    plan = tfprune.plan_channels(model, ratios={"own/multi_head_attention": 0.5})
    whole, small = tfprune.profile(model), tfprune.profile(plan.apply(model))
    assert not any(isinstance(layer, Attending) for layer in plan.apply(model).layers)
    assert (plan.macs, plan.flops) == ((whole.macs, small.macs), (whole.flops, small.flops))
    times = length or 1
    dense = times * (4 * 24 * 24 + 24 * 24 + 24 * 24)  # projections, the dense layer, the constant
    assert rows(model)["own"].macs == dense + times**2 * (2 * 24 + 2 * 24)


@pytest.mark.parametrize("length", [6, None])
def test_what_becomes_part_of_the_batch_counts_for_its_example(length):
    """Windows of 2 positions: a dense layer costs what it costs before and behind; attention looks at 2 positions."""
    inputs = keras.Input((length, 8))
    x = ops.reshape(layers.Dense(12, name="before")(inputs), (-1, 2, 12))
    x = layers.MultiHeadAttention(2, 6, name="attention")(x, x)
    x = ops.reshape(layers.Dense(12, name="within")(x), (-1, 6, 12))
    model = keras.Model(inputs, layers.Dense(3, name="behind")(x))
    by_layer = rows(model)
    assert by_layer["before"].macs == (length or 1) * 8 * 12
    assert by_layer["behind"].macs == 6 * 12 * 3
    if length is not None:
        assert by_layer["within"].macs == 6 * 12 * 12
        assert by_layer["attention"].macs == 6 * 4 * 12 * 12 + 3 * 2 * 2 * 2 * 12
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.profile(plan.apply(model)).macs == plan.macs[1]
