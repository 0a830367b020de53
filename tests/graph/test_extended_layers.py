"""Subclasses of Keras layers with a `call` of their own: what is around `super().call`, and computed kernels."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import network, predict, randomize
from tfprune.graph.base_layers import extended_layer
from tfprune.graph.channel_graph import ChannelGraph


@keras.saving.register_keras_serializable("extended")
class Activated(layers.BatchNormalization):
    def call(self, x, training=None, mask=None):
        return ops.relu(super().call(x, training=training, mask=mask))


@keras.saving.register_keras_serializable("extended")
class Reflected(layers.Conv2D):
    """Pads by itself, before."""

    def call(self, x):
        return super().call(ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="reflect"))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.filters)


@keras.saving.register_keras_serializable("extended")
class Normalized(layers.Conv2D):
    """Layers of its own, after."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.norm, self.bend = layers.BatchNormalization(), layers.PReLU(shared_axes=[1, 2])

    def build(self, shape):
        super().build(shape)
        for layer in (self.norm, self.bend):
            layer.build(self.compute_output_shape(shape))

    def call(self, x, training=None):
        return self.bend(self.norm(super().call(x), training=training))


@keras.saving.register_keras_serializable("extended")
class ByHand(layers.Conv2D):
    def call(self, x):
        return ops.relu(self.convolution_op(x, self.kernel) + self.bias)


@keras.saving.register_keras_serializable("extended")
class Standardized(layers.Conv2D):
    """Weight standardization with a gain."""

    def build(self, shape):
        super().build(shape)
        self.gain = self.add_weight(shape=(1, 1, 1, self.filters), initializer="ones", name="gain")

    def call(self, x):
        mean, variance = ops.moments(self.kernel, axes=(0, 1, 2), keepdims=True)
        kernel = self.gain * (self.kernel - mean) * ops.rsqrt(variance + 1e-5)
        return ops.conv(x, kernel, padding="valid") + self.bias


@keras.saving.register_keras_serializable("extended")
class OfTheConvolution(layers.Conv2D):
    """The call is the base's, but not what it calls."""

    def convolution_op(self, x, kernel):
        return super().convolution_op(x, kernel - ops.mean(kernel, axis=(0, 1, 2)))


@keras.saving.register_keras_serializable("extended")
class UnitLength(layers.Dense):
    def call(self, x, training=None):
        return x @ ops.normalize(self.kernel, axis=0) + self.bias


@keras.saving.register_keras_serializable("extended")
class Changing(layers.Dense):
    """What `super().call` multiplies with is not the weight."""

    def call(self, x, training=None):
        own, self._kernel = self._kernel, self._kernel / (1 + ops.sum(ops.abs(self._kernel)))
        try:
            return super().call(x)
        finally:
            self._kernel = own


def around(own):
    def body(x):
        x = own(layers.Conv2D(12, 3, padding="same", name="before")(x))
        return layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Conv2D(10, 3, name="after")(x)))

    model = network(body, (8, 8, 3))
    randomize(model)
    return model


CASES = {
    # The layer, its channels, how many of them stay, and how many of the layer before.
    "activated": (lambda: Activated(name="own"), 12, 6, 6),
    "reflected": (lambda: Reflected(16, 3, name="own"), 16, 8, 6),
    "normalized": (lambda: Normalized(16, 3, name="own"), 16, 8, 6),
    "by hand": (lambda: ByHand(16, 3, name="own"), 16, 8, 6),
    "standardized": (lambda: Standardized(16, 3, name="own"), 16, 8, 12),
    "of the convolution": (lambda: OfTheConvolution(16, 3, name="own"), 16, 8, 12),
    "unit length": (lambda: UnitLength(14, name="own"), 14, 7, 12),
}


@pytest.mark.parametrize("case", CASES)
def test_a_subclass_loses_channels_and_computes_what_is_left(case, tmp_path):
    make, width, left, before = CASES[case]
    model = around(make())
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    read = model.get_layer("after").kernel
    assert (read.shape[2], small.get_layer("after").kernel.shape[2]) == (width, left)
    assert len(plan.keep["before"]) == before
    assert type(small.get_layer("own")) is type(model.get_layer("own"))
    assert tfprune.verify(model, plan, power=True, random_weights=True).unnoticed == ()
    # By Keras alone: what the layers behind read of the removed channels is made zero.
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    (found,) = predict(small, images)
    kept = [np.flatnonzero([channel in keep for channel in range(size)]) for keep, size in kept_of(plan, case, width)]
    zeroed = [read, *([] if case == "activated" else [model.get_layer("own").kernel])]
    for kernel, keep in zip(zeroed, (kept[1], kept[0]), strict=False):
        value = np.zeros(kernel.shape, "float32")
        value[..., keep, :] = kernel.numpy()[..., keep, :]
        kernel.assign(value)
    final = np.zeros(model.layers[-1].kernel.shape, "float32")
    final[list(plan.keep["after"])] = model.layers[-1].kernel.numpy()[list(plan.keep["after"])]
    model.layers[-1].kernel.assign(final)
    np.testing.assert_allclose(found, predict(model, images)[0], rtol=1e-4, atol=1e-5)
    if case == "standardized":  # Keras saves no other weights of a convolution's subclass than the convolution's
        return
    small.save(tmp_path / "small.keras")
    assert np.array_equal(found, predict(keras.saving.load_model(tmp_path / "small.keras"), images)[0])


def kept_of(plan, case, width):
    """What stays of the layer before, and of the subclass."""
    (own,) = [keep for name, keep in plan.keep.items() if name.startswith("own")] or [plan.keep["before"]]
    return [(plan.keep["before"], 12), (own, width)]


def test_what_a_kernel_is_computed_over_stays_with_the_reason():
    frozen = ChannelGraph(around(Standardized(16, 3, name="own"))).frozen_layers()
    assert frozen["before"] == "kernel of own is computed over all of them"


def test_a_layer_that_changes_what_its_base_computes_with_is_not_taken_for_it():
    model = around(Changing(14, name="own"))
    assert extended_layer(model.get_layer("own")) is not None
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["before"]) == 12
    assert tfprune.verify(model, plan, power=True) <= 1e-5


def test_looking_at_what_a_layer_extends_leaves_it_and_its_class_as_they_are():
    model = around(Normalized(16, 3, name="own"))
    layer, call = model.get_layer("own"), layers.Conv2D.call
    attributes, weights = dict(vars(layer)), list(map(id, model.weights))
    layer.bias.trainable = False
    ChannelGraph(model)
    assert vars(layer) == attributes
    assert list(map(id, model.weights)) == weights
    assert layers.Conv2D.call is call
    assert "call" not in vars(layers.Conv2D)
    assert not layer.bias.trainable
    assert list(map(id, extended_layer(layer).weights)) == [id(layer.kernel), id(layer.bias)]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_subclass_in_sixteen_bits_is_proved(policy):
    model = network(
        lambda x: layers.Dense(3)(
            layers.Flatten()(Activated(name="norm", dtype=policy)(ByHand(8, 3, name="own", dtype=policy)(x)))
        ),
        (6, 6, 3),
    )
    plan = tfprune.plan_channels(model, 0.5)
    assert min(len(keep) for keep in plan.keep.values()) == 3
    assert tfprune.verify(model, plan) <= 1e-5
