"""What removed channels gave, put into the biases of what reads them: against numpy by hand, and against the proof."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.helpers import images, network, plain_cnn, preactivated, predict, randomize, residual_cnn
from tfprune.errors import PlanError, TfpruneError, VerificationError
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.after_the_cut import compensation


def constant(model, name, channels, beta=2.0):
    """Has a batch normalization give constants in some channels."""
    layer = model.get_layer(name)
    for variable, value in ((layer.gamma, 0.0), (layer.beta, beta)):
        array = variable.numpy().copy()
        array[channels] = value
        variable.assign(array)
    return model


def moved(model, plan, compensate, inputs=None):
    """By how much the outputs move; what is proved is proved on the way."""
    small = plan.apply(model, compensate=compensate)
    assert tfprune.verify(model, plan, compensate=compensate) <= 1e-5
    inputs = images(model, 6) if inputs is None else inputs
    return max(
        np.abs(one - other).max() for one, other in zip(predict(model, inputs), predict(small, inputs), strict=True)
    )


# Constant channels, with nothing that pads: nothing moves.


def dense(x):
    x = layers.BatchNormalization(name="bn")(layers.Dense(6, name="made")(x))
    return layers.Dense(3, name="read")(layers.Activation("gelu")(x))


def convolution(x, then=lambda x: x, **options):
    x = layers.Conv2D(6, 3, name="made")(x)
    x = then(layers.ReLU()(layers.BatchNormalization(name="bn")(x)))
    return layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="read", **options)(x))


def between(*made):
    def body(x):
        def then(x):
            for layer in made:
                x = layer()(x)
            return x

        return convolution(x, then)

    return body


def concatenated(x):
    y = layers.Conv2D(5, 1, name="other")(x)
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(6, 1, name="made")(x))
    return layers.Dense(3)(layers.GlobalMaxPooling2D()(layers.Conv2D(4, 1)(layers.Concatenate()([y, x]))))


def flattened(x):
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(6, 3, padding="same", name="made")(x))
    return layers.Dense(3)(layers.Flatten()(layers.AveragePooling2D(2)(layers.ELU()(x))))


def padded_before(x):
    """What an earlier layer has padded is constant all the same where a dense layer reads each position."""
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(layers.Conv2D(6, 3, name="made")(x)))
    return layers.Dense(3)(layers.Flatten()(layers.ZeroPadding2D()(x)))


def separate_heads(x):
    x = layers.BatchNormalization(name="bn")(layers.Dense(6, name="made")(layers.Reshape((64, 3))(x)))
    x = layers.EinsumDense("abc,cde->abde", output_shape=(64, 2, 4), name="read", bias_axes="de")(x)
    return layers.Dense(3)(layers.Flatten()(x))


FLAT = {
    "convolution": convolution,
    "of one filter size": lambda x: convolution(x, strides=2, dilation_rate=1),
    "dilated": lambda x: convolution(x, dilation_rate=2),
    "groups": lambda x: convolution(x, groups=2),
    "bias that is new": lambda x: convolution(x, use_bias=False),
    "pooled": between(lambda: layers.MaxPooling2D(2, padding="same"), lambda: layers.Dropout(0.5)),
    "averaged": between(lambda: layers.AveragePooling2D(2, strides=1, padding="same")),
    "normalized again": between(layers.BatchNormalization, lambda: layers.Activation("tanh")),
    "depthwise": between(lambda: layers.DepthwiseConv2D(2, activation="sigmoid")),
    "upsampled": between(lambda: layers.UpSampling2D(2), layers.PReLU),
    "concatenated": concatenated,
    "flattened": flattened,
    "padded before a dense layer": padded_before,
    "einsum": separate_heads,
}


@pytest.mark.parametrize("body", FLAT.values(), ids=FLAT)
def test_a_constant_channel_that_goes_moves_nothing(body):
    model = constant(network(body, (8, 8, 3)), "bn", [1, 4])
    plan = ChannelPlan.from_removed(model, {"made": [1, 4]})  # in two groups the same one goes of each
    before = model.get_weights()
    assert moved(model, plan, None) > 0.05
    assert moved(model, plan, True) < 2e-5
    assert moved(model, plan, images(model, 20, seed=3)) < 2e-5
    assert "approximate" not in str(plan.compensation(model))
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))


def test_the_bias_is_what_the_constants_give_by_hand():
    model = constant(network(dense, (5,)), "bn", [1, 4], beta=-0.7)
    plan = ChannelPlan.from_removed(model, {"made": [1, 4, 5]})
    small = plan.apply(model, compensate=True)
    kernel, bias = (np.asarray(one, "float64") for one in model.get_layer("read").get_weights())
    given = float(keras.activations.gelu(np.float64(-0.7)))
    expected = bias + given * (kernel[1] + kernel[4])  # the channel 5 is not constant
    np.testing.assert_allclose(small.get_layer("read").bias.numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        small.get_layer("read").kernel.numpy(), model.get_layer("read").kernel.numpy()[[0, 2, 3]]
    )
    text = str(plan.compensation(model))
    assert "constant are put into what reads them: read (2)" in text
    assert "stay without a constant, by what reads them: read (1)" in text


def test_the_bias_is_what_the_means_give_by_hand_whatever_the_batches():
    model, data = network(convolution, (8, 8, 3)), np.random.default_rng(1).normal(size=(37, 8, 8, 3)).astype("float32")
    plan = ChannelPlan.from_removed(model, {"made": [0, 2]})
    read = model.get_layer("read")
    entering = np.asarray(keras.Model(model.input, read.input)(data), "float64").mean((0, 1, 2))
    kernel, bias = (np.asarray(one, "float64") for one in read.get_weights())
    expected = bias + np.einsum("hwio,i->o", kernel[:, :, [0, 2]], entering[[0, 2]])
    pairs = tf.data.Dataset.from_tensor_slices((data, np.zeros(37))).batch(5)
    for given in (data, (data, np.zeros(37)), pairs):
        small = plan.apply(model, compensate=given)
        np.testing.assert_allclose(small.get_layer("read").bias.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (
        str(plan.compensation(model, data))
        == "note: the means of removed channels are put into what reads them: read (2)"
    )


def test_the_example_of_the_issue_moves_no_more():
    """liuzhuang13/slimming#5: a channel whose gamma is 0 and whose beta is 2."""

    def body(x):
        x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, use_bias=False, name="made")(x))
        return layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1, name="read")(layers.ReLU()(x))))

    model = constant(network(body, (8, 8, 3)), "bn", [3])
    plan = ChannelPlan.from_removed(model, {"made": [3]})
    assert moved(model, plan, None) > 0.3
    assert moved(model, plan, True) < 1e-5


# A convolution that pads: exact inside, approximate at the borders.


@pytest.mark.parametrize("strides", [1, 2])
def test_with_padding_the_inside_is_exact_and_the_borders_are_told(strides):
    def body(x):
        x = layers.ReLU()(layers.BatchNormalization(name="bn")(layers.Conv2D(6, 1, name="made")(x)))
        return layers.Conv2D(4, 3, padding="same", strides=strides, name="read")(x)

    model = constant(network(body, (9, 9, 3)), "bn", [1, 4])
    plan = ChannelPlan.from_removed(model, {"made": [1, 4]})
    whole, small = (predict(one, images(model))[0] for one in (model, plan.apply(model, compensate=True)))
    assert np.abs(whole - small)[:, 1:-1, 1:-1].max() < 1e-5
    assert np.abs(whole - small).max() > 0.1
    assert tfprune.verify(model, plan, compensate=True) <= 1e-5
    assert "approximate at the borders, where zeros are read around the input: read" in str(plan.compensation(model))


def test_zeros_of_a_layer_before_are_told_too():
    model = constant(network(between(layers.ZeroPadding2D), (8, 8, 3)), "bn", [1])
    plan = ChannelPlan.from_removed(model, {"made": [1]})
    assert "approximate, because something before has padded: read" in str(plan.compensation(model))
    assert moved(model, plan, True) < moved(model, plan, None)


def test_causal_convolutions():
    def body(x):
        x = layers.BatchNormalization(name="bn")(layers.Conv1D(6, 1, name="made")(x))
        return layers.Conv1D(4, 3, padding="causal", dilation_rate=2, name="read")(x)

    model = constant(network(body, (12, 3)), "bn", [2])
    plan = ChannelPlan.from_removed(model, {"made": [2]})
    whole, small = (predict(one, images(model))[0] for one in (model, plan.apply(model, compensate=True)))
    assert np.abs(whole - small)[:, 4:].max() < 1e-5
    assert tfprune.verify(model, plan, compensate=True) <= 1e-5


# Where it goes.


def test_without_a_bias_it_goes_into_the_moving_mean_behind_and_the_architecture_stays():
    model = constant(residual_cnn(), "bn_branch_a", [1])
    plan = ChannelPlan.from_removed(model, {"branch_a": [1, 2], "stem": [3]})
    plain, small = plan.apply(model), plan.apply(model, compensate=True)
    assert [one.shape for one in plain.weights] == [one.shape for one in small.weights]
    changed = [
        one.path for one, other in zip(plain.weights, small.weights, strict=True) if not np.array_equal(one, other)
    ]
    assert changed == ["bn_branch_b/moving_mean"]
    kept = [0, 1, 2, 4, 5, 6, 7]
    kernel = model.get_layer("branch_b").kernel.numpy().astype("float64").sum((0, 1))
    expected = model.get_layer("bn_branch_b").moving_mean.numpy() - 2.0 * kernel[1]
    np.testing.assert_allclose(small.get_layer("bn_branch_b").moving_mean.numpy(), expected[kept], rtol=1e-5)
    assert "moving mean of the batch normalization behind it: branch_b (into bn_branch_b)" in str(
        plan.compensation(model)
    )


def test_a_layer_without_bias_whose_output_others_read_too_gets_one(tmp_path):
    def body(x):
        x = layers.BatchNormalization(name="bn")(layers.Dense(6, name="made")(x))
        x = layers.Dense(5, use_bias=False, name="read")(x)
        return layers.Dense(3)(layers.Add()([x, layers.BatchNormalization()(x)]))

    model = constant(network(body, (4,)), "bn", [2])
    plan = ChannelPlan.from_removed(model, {"made": [2], "read": [0]})
    small = plan.apply(model, compensate=True)
    kernel = model.get_layer("read").kernel.numpy()
    np.testing.assert_allclose(small.get_layer("read").bias.numpy(), 2.0 * kernel[2, 1:], rtol=1e-6)
    assert tfprune.verify(model, plan, compensate=True, power=True).unnoticed == ()
    assert "get a bias that they had not: read" in str(plan.compensation(model))
    small.save(tmp_path / "small.keras")
    inputs = images(model)
    np.testing.assert_allclose(
        predict(keras.models.load_model(tmp_path / "small.keras"), inputs)[0], predict(small, inputs)[0], rtol=1e-5
    )


@pytest.mark.parametrize("bias", [None, "de", "e"])
def test_einsum_dense_gets_its_bias_along_the_axes_of_its_kernel(bias):
    def body(x):
        x = layers.BatchNormalization(name="bn")(layers.Dense(6, name="made")(x))
        x = layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 4), name="read", bias_axes=bias)(x)
        return layers.Dense(3)(layers.Reshape((7, 8))(x))

    model = constant(network(body, (7, 3)), "bn", [2])
    plan = ChannelPlan.from_removed(model, {"made": [2]})
    if bias == "e":  # no place for what differs along d
        assert "stay without a constant, by what reads them: read (1)" in str(plan.compensation(model))
    else:
        assert moved(model, plan, True) < 1e-5
        assert plan.apply(model, compensate=True).get_layer("read").bias.shape == (2, 4)


# What takes up no constant.


def test_what_cannot_take_one_is_told():
    def body(x):
        x = layers.BatchNormalization(name="bn")(layers.Dense(6, name="made")(x))
        return layers.Dense(2)(layers.LSTM(4, name="lstm")(x))

    model = constant(network(body, (7, 3)), "bn", [2])
    plan = ChannelPlan.from_removed(model, {"made": [2, 3]})
    for data in (None, images(model)):
        assert "stay without a constant, by what reads them: lstm (2)" in str(plan.compensation(model, data))
        assert moved(model, plan, True if data is None else data) == moved(model, plan, None)


def test_a_product_with_what_depends_on_the_inputs_is_no_constant_but_has_a_mean():
    def body(x):
        y = layers.BatchNormalization(name="bn")(layers.Conv2D(6, 1, name="made")(x))
        gate = layers.Dense(6, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))
        return layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1, name="read")(layers.Multiply()([y, gate])))

    model = constant(network(body, (8, 8, 3)), "bn", [2])
    plan = ChannelPlan.from_removed(model, {"made": [2]})
    assert "read (1)" in str(plan.compensation(model)).partition("without")[2]
    inputs = images(model, 30)
    assert moved(model, plan, inputs, inputs) < moved(model, plan, None, inputs) / 2


def test_a_sum_with_what_depends_on_the_inputs_is_no_constant():
    model = constant(residual_cnn(), "bn_branch_b", [3])
    plan = ChannelPlan.from_removed(model, {"stem": [3]})
    assert "no removed channel is constant" in str(plan.compensation(model))
    both = constant(model, "bn_stem", [3])
    assert "logits (1)" in str(plan.compensation(both)).partition("without")[0]


def saturated(x):
    """6 for all random inputs, and yet no constant."""
    return layers.ReLU(6.0)(layers.Rescaling(1e12)(keras.ops.square(x)))


@pytest.mark.parametrize(
    "depends",
    [
        lambda x, y: layers.Multiply()([y, saturated(x[..., :1])]),
        lambda x, y: layers.Add()([y, saturated(layers.Conv2D(6, 1)(x))]),
        lambda x, y: layers.Add()([saturated(layers.Conv2D(6, 1)(x)), y]),
    ],
)
def test_what_is_the_same_for_all_random_inputs_by_chance_is_no_constant(depends):
    def body(x):
        y = layers.BatchNormalization(name="bn")(layers.Conv2D(6, 1, name="made")(x))
        return layers.Conv2D(4, 1, name="read")(depends(x, y))

    model = constant(network(body, (4, 4, 3)), "bn", [2])
    plan = ChannelPlan.from_removed(model, {"made": [2]})
    assert "no removed channel is constant" in str(plan.compensation(model))


def test_a_shared_layer_takes_up_what_is_the_same_in_all_of_its_calls():
    def body(x, second):
        shared = layers.Dense(4, name="read")
        made = layers.BatchNormalization(name="bn")(layers.Dense(6, name="made")(x))
        return layers.Add()([shared(made), shared(second(made))])

    for second, told in ((layers.Dropout(0.5), "read (1)"), (layers.Rescaling(2.0), "no removed channel is constant")):
        model = constant(network(functools.partial(body, second=second), (5,)), "bn", [2])
        plan = ChannelPlan.from_removed(model, {"made": [2]})
        assert told in str(plan.compensation(model)).partition("without")[0]
        assert tfprune.verify(model, plan, compensate=True) <= 1e-5


# The proof holds in networks of all kinds.


def looked_into():
    class Block(layers.Layer):
        def build(self, shape):
            self.first, self.second = layers.Dense(6, activation="relu"), layers.Dense(shape[-1])
            self.first.build(shape)
            self.second.build((*shape[:-1], 6))

        def call(self, x):
            return x + self.second(self.first(x))

    return network(lambda x: layers.Dense(3)(Block(name="block")(layers.Dense(8, name="made")(x))), (5,))


def attentive():
    def body(x):
        x = layers.Dense(8)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
        return layers.Dense(3)(layers.Dense(12, activation="relu")(x))

    return network(body, (6, 5))


def nested():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, activation="relu"), layers.Dense(6)], name="inner")
    return network(lambda x: layers.Dense(3)(inner(layers.Dense(8, activation="gelu")(x))), (5,))


def shared():
    def body(x):
        twice = layers.Dense(6, activation="relu", use_bias=False, name="twice")
        return layers.Dense(3)(twice(twice(layers.Dense(6, activation="relu")(x))))

    return network(body, (5,))


def half():
    inputs = keras.Input((8, 8, 3))
    policy = {"dtype": "mixed_float16"}
    x = layers.BatchNormalization(name="bn", **policy)(layers.Conv2D(8, 3, **policy)(inputs))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, **policy)(layers.ReLU(**policy)(x))
    return randomize(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D(**policy)(x))))


def separable():
    def body(x):
        x = layers.SeparableConv2D(8, 3, activation="relu")(layers.Conv2D(8, 3, activation="relu")(x))
        x = layers.Conv2DTranspose(6, 3, activation="relu")(x)
        return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))

    return network(body, (8, 8, 3))


EVERY_KIND = [
    *(plain_cnn, residual_cnn, preactivated, looked_into, attentive, nested, shared, half, separable),
]


@pytest.mark.parametrize("make", EVERY_KIND)
def test_every_kind_is_proved_and_every_kernel_matters(make):
    model = make()
    plan = tfprune.plan_channels(model, ratio=0.5)
    before = [weight.numpy() for weight in model.weights]
    data = images(model, 20, seed=5)
    assert tfprune.verify(model, plan, compensate=data, power=True).unnoticed == ()
    assert tfprune.verify(model, plan, compensate=True) <= 1e-5
    assert "stay without" not in str(plan.compensation(model, data)) or make in (attentive, separable)
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(before, model.weights, strict=True))
    assert all(getattr(layer, "padding", "") == other for layer, other in _paddings(make, model))


def _paddings(make, model):
    twin = make()
    return [
        (one, other.padding) for one, other in zip(model.layers, twin.layers, strict=True) if hasattr(other, "padding")
    ]


def test_views_and_bypasses():
    model = preactivated()
    views = ("bn_1", "bn_2", "bn_end")
    plan = ChannelPlan.from_removed(model, {"bn_1": [2], "bn_end": [0, 3], "conv_1a": [1]}, views=views)
    assert tfprune.verify(model, plan, compensate=images(model, 20)) <= 1e-5
    shorter = ChannelPlan.from_removed(model, {"conv_1a": [1]}, bypass={"add_2": 0})
    assert tfprune.verify(model, shorter, compensate=images(model, 20)) <= 1e-5


def test_the_proof_notices_a_bias_that_is_wrong(monkeypatch):
    model = constant(plain_cnn(), "bn_b", [1])
    plan = ChannelPlan.from_removed(model, {"conv_b": [1]})
    right = compensation._response
    monkeypatch.setattr(compensation, "_response", lambda *args: 1.01 * right(*args))
    with pytest.raises(VerificationError):
        tfprune.verify(model, plan, compensate=True)


def test_the_network_is_compiled_and_trains_on():
    model = plain_cnn()
    model.compile("sgd", "mse")
    small = tfprune.plan_channels(model, ratio=0.5).apply(model, compensate=images(model, 20))
    small.fit(images(model, 8), np.zeros((8, 5)), verbose=0)


def test_what_cannot_be():
    model = plain_cnn()
    plan = tfprune.plan_channels(model, ratio=0.5)
    with pytest.raises(PlanError, match="compensate= goes with weights='inherit'"):
        plan.apply(model, weights="fresh", compensate=True)
    with pytest.raises(TfpruneError, match="plain_cnn' takes"):
        plan.apply(model, compensate=np.zeros((2, 5, 5, 3)))
    with pytest.raises(TfpruneError, match="is a int"):
        plan.apply(model, compensate=3)
    found = plan.compensation(model, images(model))
    other = residual_cnn()
    with pytest.raises(PlanError, match="The compensation is for another model"):
        tfprune.plan_channels(other, ratio=0.5).apply(other, compensate=found)
    assert plan.apply(model, compensate=False).count_params() == plan.params[1] + 2 * (3 + 5)
