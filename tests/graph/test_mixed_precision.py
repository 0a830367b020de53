"""Layers of one's own in 16 bits, which take their dtype from the global policy: what they become, and its proof."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import randomize

POLICIES = ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"]


class Inner(layers.Layer):
    """Its config has the dtype; the layer that it makes takes the global one."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.dense = units, layers.Dense(units, "relu")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Attention(layers.Layer):
    def __init__(self, dim, heads, **options):
        super().__init__(**options)
        self.dim, self.heads = dim, heads
        self.qkv, self.proj = layers.Dense(3 * dim), layers.Dense(dim)

    def build(self, shape):
        self.qkv.build(shape)
        self.proj.build((*shape[:-1], self.dim))

    def call(self, x):
        length, size = x.shape[1], self.dim // self.heads
        parts = ops.reshape(self.qkv(x), (-1, length, 3, self.heads, size))
        q, k, v = ops.unstack(ops.transpose(parts, (2, 0, 3, 1, 4)), axis=0)
        scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * size**-0.5)
        mixed = ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3))
        return self.proj(ops.reshape(mixed, (-1, length, self.dim)))

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "heads": self.heads}


class Outer(layers.Layer):
    """Made again with half of its width and as many heads, its scores would be scaled by another number."""

    def __init__(self, dim, heads, **options):
        super().__init__(**options)
        self.dim, self.heads = dim, heads
        self.attention, self.after = Attention(dim, heads), layers.Dense(dim)

    def build(self, shape):
        self.attention.build(shape)
        self.after.build(shape)

    def call(self, x):
        return x + self.after(self.attention(x))

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "heads": self.heads}


@pytest.fixture
def under():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def with_layer(kind, seed=0):
    inputs = keras.Input((6, 16))
    own = Inner(20, name="own") if kind is Inner else kind(24, 4, name="own")
    outputs = layers.Dense(3, dtype="float32")(own(layers.Dense(24, name="first")(inputs)))
    return randomize(keras.Model(inputs, outputs), seed)


def kinds(model):
    return [type(layer) for layer in model.layers]


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", [Inner, Attention, Outer])
def test_what_is_left_has_the_precision_of_the_model_and_is_proved(kind, policy, stays, under):
    single = with_layer(kind)
    expected = kinds(tfprune.plan_channels(single, 0.5).apply(single))
    under(policy)
    model = with_layer(kind)
    if not stays:  # as in a program that turns mixed precision on for the training alone
        under("float32")
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    assert kinds(small) == expected
    found = {layer.dtype_policy.name for layer in small._flatten_layers() if type(layer) is layers.Dense}
    assert found == {policy, "float32"}
    proof = tfprune.verify(model, plan, power=True)
    assert proof <= 1e-5
    assert proof.unnoticed == ()
    assert keras.config.dtype_policy().name == (policy if stays else "float32")


@pytest.mark.parametrize("seed", range(5))  # other channels go, so that rounding falls otherwise
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_a_scale_that_follows_from_a_width_stays_what_it_is(policy, seed, under):
    under(policy)
    model = with_layer(Outer, seed)
    small = tfprune.plan_channels(model, 0.5).apply(model)
    (scaling,) = (layer for layer in small.layers if isinstance(layer, layers.Rescaling))
    assert scaling.scale == pytest.approx(6**-0.5)  # 24 channels in 4 heads; 3 are left of each


def test_the_policies_of_layers_are_as_they_were(under):
    under("mixed_bfloat16")
    model = with_layer(Outer)
    before = {id(layer): layer.dtype_policy for layer in model._flatten_layers()}
    tfprune.verify(model, tfprune.plan_channels(model, 0.5))
    assert all(layer.dtype_policy is before[id(layer)] for layer in model._flatten_layers())


def test_a_network_over_time_is_proved_in_16_bits(under):
    under("mixed_bfloat16")
    part = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="wide"), layers.Dense(4)])
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(layers.TimeDistributed(part)(inputs)))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 4
    assert tfprune.verify(model, plan) <= 1e-5
    inputs = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    assert keras.backend.standardize_dtype(plan.apply(model)(inputs).dtype) == "float32"
