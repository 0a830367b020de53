import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers import named, predict, randomize
from tfprune.surgery.layers import BlockConvolution2D, FusedBatchNormalization

COUNT = 6 * 5 * 4  # values per channel
SHAPE = (6, 5, 4, 8)


@pytest.fixture(params=[7, 8])
def shape(request):
    """Batch, height, width, channels: for the fused kernel, and for the composition where that is faster."""
    return (6, 5, 4, request.param)


def pair(shape, seed=0, **arguments):
    """Keras' own layer and ours, with the same random weights."""
    made = []
    for kind in (layers.BatchNormalization, FusedBatchNormalization):
        layer = kind(**arguments)
        layer.build(shape)
        made.append(randomize(layer, seed))
    return made


def training_pass(layer, inputs, upstream):
    """Outputs, gradients for inputs and trainable weights, of sum(upstream * layer(inputs))."""
    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * upstream)
    gradients = tape.gradient(loss, [inputs, *[variable.value for variable in layer.trainable_variables]])
    return [outputs.numpy(), *[gradient.numpy() for gradient in gradients]]


def values(shape, seed=1, scale=2.0):
    return (1.5 + scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def assert_same(expected, received, tolerance=1e-5):
    for one, other in zip(expected, received, strict=True):
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance * max(1, np.abs(one).max()))


@pytest.mark.parametrize("axis", [-1, 3])
def test_training_outputs_and_gradients_equal_those_of_keras(axis, shape):
    theirs, ours = pair(shape, axis=axis, momentum=0.9, epsilon=1e-5)
    arguments = values(shape), values(shape, 2, 1.0)
    expected, received = training_pass(theirs, *arguments), training_pass(ours, *arguments)
    assert len(received) == 4  # outputs, and gradients for inputs, gamma and beta
    assert_same(expected, received)


def test_inference_outputs_equal_those_of_keras_and_change_nothing(shape):
    theirs, ours = pair(shape, momentum=0.9)
    before = ours.get_weights()
    assert_same([theirs(values(shape), training=False)], [ours(values(shape), training=False)])
    assert_same([theirs(values(shape))], [ours(values(shape))])
    for one, other in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_moving_statistics_take_the_mean_and_the_unbiased_variance(shape):
    _, ours = pair(shape, momentum=0.9)
    mean, variance = (np.float64(v.numpy()) for v in (ours.moving_mean, ours.moving_variance))
    for seed in (1, 2, 3):
        inputs = values(shape, seed)
        ours(inputs, training=True)
        flat = inputs.astype(np.float64).reshape(COUNT, -1)
        mean = 0.9 * mean + 0.1 * flat.mean(axis=0)
        variance = 0.9 * variance + 0.1 * flat.var(axis=0, ddof=1)
    np.testing.assert_allclose(ours.moving_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(ours.moving_variance.numpy(), variance, rtol=1e-5)
    assert abs(COUNT / (COUNT - 1) - 1) > 1e-3  # with the biased variance this would have failed


FALLBACKS = {
    "rank 2": ((9, 7), {}),
    "rank 3": ((4, 5, 7), {}),
    "rank 5": ((2, 3, 3, 2, 7), {}),
    "axis 1": (SHAPE, {"axis": 1}),
    "no gamma": (SHAPE, {"scale": False}),
    "no beta": (SHAPE, {"center": False}),
    "renorm": (SHAPE, {"renorm": True}),
}


@pytest.mark.parametrize("case", named(FALLBACKS, {"renorm": "3.14"}))
def test_what_the_kernel_does_not_take_is_done_as_keras_does_it(case):
    shape, arguments = FALLBACKS[case]
    theirs, ours = pair(shape, momentum=0.9, **arguments)
    for seed in (1, 2):
        passes = [training_pass(layer, values(shape, seed), values(shape, 5, 1.0)) for layer in (theirs, ours)]
        assert_same(*passes)
    assert_same(theirs.get_weights(), ours.get_weights())  # the biased variance too
    assert_same([theirs(values(shape), training=False)], [ours(values(shape), training=False)])


def test_a_mask_is_heeded(shape):
    theirs, ours = pair(shape, momentum=0.9)
    mask = np.arange(6 * 5 * 4).reshape(6, 5, 4) % 3 > 0
    results = [layer(values(shape), training=True, mask=tf.constant(mask)) for layer in (theirs, ours)]
    assert_same(*[[result] for result in results])
    assert_same(theirs.get_weights(), ours.get_weights())


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-7])
def test_epsilon_is_the_layers_own_also_for_channels_that_hardly_vary(epsilon, shape):
    inputs = values(shape, scale=1e-3)  # variance 1e-6
    theirs, ours = pair(shape, epsilon=epsilon)
    for training in (True, False):
        for layer in (theirs, ours):
            layer.moving_variance.assign(np.full(shape[-1], 1e-6, np.float32))
        expected = theirs(inputs, training=training).numpy()
        received = ours(inputs, training=training).numpy()
        np.testing.assert_allclose(received, expected, rtol=1e-3, atol=2e-3 * np.abs(expected).max())


def test_a_synchronized_layer_shares_its_statistics_among_replicas(shape):
    # The kernel sees one replica only, so a synchronized layer has to be done by Keras' own code.
    calls = []

    class Probe(FusedBatchNormalization):
        def _moments(self, inputs, mask):
            calls.append(self.synchronized)
            return super()._moments(inputs, mask)

    layer = Probe(synchronized=True)
    layer.build(shape)
    layer(values(shape), training=True)
    assert calls == [True]


def test_a_frozen_layer_uses_its_moving_statistics_also_in_training(shape):
    theirs, ours = pair(shape)
    for layer in (theirs, ours):
        layer.trainable = False
    before = ours.get_weights()
    assert_same([theirs(values(shape), training=True)], [ours(values(shape), training=True)])
    assert_same(before, ours.get_weights(), 0)


def test_weights_are_interchangeable_in_order(shape):
    theirs, ours = pair(shape)
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    assert [w.name for w in ours.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    other = FusedBatchNormalization()
    other.build(shape)
    other.set_weights(theirs.get_weights())
    assert_same([theirs(values(shape), training=False)], [other(values(shape), training=False)])


def test_float64_is_normalized_in_float64():
    inputs = np.random.default_rng(0).normal(3.0, 2.0, (4, 3, 3, 8))
    for training in (True, False):
        outputs = FusedBatchNormalization(dtype="float64", epsilon=0.5)(inputs, training=training).numpy()
        assert outputs.dtype == np.float64
        mean, variance = (inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))) if training else (0.0, 1.0)
        np.testing.assert_allclose(outputs, (inputs - mean) / np.sqrt(variance + 0.5), atol=1e-12)


def test_bfloat16_inputs_keep_float32_statistics(shape):
    layer = FusedBatchNormalization(dtype="mixed_bfloat16")
    layer.build(shape)
    outputs = layer(tf.cast(values(shape), tf.bfloat16), training=True)
    assert outputs.dtype == tf.bfloat16
    assert {w.dtype for w in layer.weights} == {"float32"}
    rounded = np.float64(tf.cast(tf.cast(values(shape), tf.bfloat16), tf.float32)).reshape(COUNT, -1)
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.01 * rounded.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance.numpy(), 0.99 + 0.01 * rounded.var(axis=0, ddof=1), rtol=1e-4)


def test_the_slimming_penaltys_gradient_is_lambda_times_the_sign_of_gamma():
    layer = FusedBatchNormalization(gamma_regularizer=keras.regularizers.L1(0.03))
    layer.build((None, 4, 4, 5))
    gamma = np.float32([-2.0, -1e-6, 0.0, 1e-6, 3.0])
    layer.gamma.assign(gamma)
    with tf.GradientTape() as tape:
        (penalty,) = layer.losses
    np.testing.assert_allclose(penalty.numpy(), 0.03 * np.abs(gamma.astype(np.float64)).sum(), rtol=1e-6)
    gradient = tape.gradient(penalty, layer.gamma.value).numpy()
    np.testing.assert_array_equal(gradient, np.float32(0.03) * np.float32([-1, -1, 0, 1, 1]))


def test_a_saved_network_with_the_layer_loads_again(tmp_path):
    inputs = keras.Input((4, 4, 3))
    regularizer = keras.regularizers.L1(0.01)
    outputs = FusedBatchNormalization(gamma_regularizer=regularizer, name="bn")(inputs)
    model = randomize(keras.Model(inputs, outputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("bn")) is FusedBatchNormalization
    np.testing.assert_allclose(loaded.get_layer("bn").gamma_regularizer.l1, 0.01)
    batch = values((2, 4, 4, 3))
    np.testing.assert_array_equal(*predict(model, batch), *predict(loaded, batch))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_in_blocks_is_the_grouped_one_and_so_are_its_gradients(groups):
    x, upstream = values((3, 6, 5, 8)), tf.constant(values((3, 3, 3, 12), 1))
    made = []
    for kind in (layers.Conv2D, BlockConvolution2D):
        layer = kind(12, 3, strides=2, padding="same", groups=groups)
        layer.build(x.shape)
        randomize(layer, 2)
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            outputs = layer(inputs)
            loss = tf.reduce_sum(outputs * upstream)
        gradients = tape.gradient(loss, [inputs, layer.kernel.value, layer.bias.value])
        made.append([array.numpy() for array in (outputs, *gradients)])
    for expected, received in zip(*made, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
