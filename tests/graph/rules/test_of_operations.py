"""Operations of `keras.ops`: pruned, proved, and counted, or frozen with the reason."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import assert_as_zeroed, named, network, prove, randomize, since
from tfprune.graph.channel_graph import ChannelGraph

IMAGE, SEQUENCE = (6, 6, 3), (6, 4)


def elementwise(x):
    x = layers.Dense(8)(x)
    x = ops.arctan(x) + ops.arcsinh(x) - ops.exp2(ops.trunc(x)) + ops.deg2rad(x) * ops.erfc(x)
    x = ops.where(ops.logical_not(ops.isfinite(x)), ops.zeros_like(x), x) + ops.ones_like(x)
    return layers.Dense(2)(ops.saturate_cast(x, "float32"))


def merged(x):
    one, other = layers.Dense(8)(x), layers.Dense(8)(x)
    y = ops.logaddexp(one, other) + ops.hypot(one, other) + ops.floor_divide(one, 0.5)
    y = y + ops.select([one > other, one > 0], [one, other], 0.0)
    return layers.Dense(2)(y + ops.full_like(one, 2.0))


def repeated(x):
    x = ops.repeat(ops.tile(layers.Dense(8)(x), (1, 1, 2)), 2, axis=-1)
    x = ops.repeat(ops.tile(layers.Dense(6)(x), (1, 2, 1)), 3, axis=1)
    return layers.Dense(2)(layers.Flatten()(x))


def parts(x):
    x = layers.Conv2D(12, 1)(x)
    cut = ops.slice(x, (0, 1, 0, 4), (-1, 3, 2, 5))
    rest = ops.slice(x, (0, 0, 0, 9), (-1, -1, -1, -1))
    x = layers.Concatenate()([layers.Flatten()(cut), layers.Flatten()(rest)])
    return layers.Dense(3)(x)


def picked(x):
    x = layers.Dense(8)(x)
    first, *_, last = ops.unstack(x, axis=1)
    x = ops.concatenate([ops.take(x, [1, 3], axis=1), ops.stack([first, last], axis=1)], axis=1)
    return layers.Dense(2)(layers.Flatten()(ops.take(layers.Dense(6)(x), 2, axis=1)))


def blocks(x):
    """Pixel shuffle and back: four channels become one, one becomes four."""
    x = ops.depth_to_space(layers.Conv2D(16, 3, padding="same")(x), 2)
    x = ops.space_to_depth(layers.Conv2D(6, 3, padding="same")(x), 2)
    return layers.Dense(2)(layers.GlobalMaxPooling2D()(layers.Conv2D(5, 1)(x)))


def along_positions(x):
    x = ops.cumsum(layers.Dense(8)(x), axis=1)
    x = ops.roll(ops.sort(x, axis=1), 2, axis=1) + ops.flip(x, 2)
    x = ops.softmax(layers.Dense(6)(x), axis=1) + ops.normalize(layers.Dense(6)(x), axis=1)
    return layers.Dense(2)(ops.diff(x, axis=1))


def reduced(x):
    x = layers.Conv2D(8, 3)(x)
    y = [ops.logsumexp(x, (1, 2)), ops.median(x, (1, 2)), ops.norm(x, axis=(1, 2)), ops.nanmax(x, (1, 2))]
    mean, variance = ops.moments(x, (1, 2))
    place = ops.cast(ops.argmax(ops.max(x, 1), axis=1), "float32")
    return layers.Dense(2)(ops.concatenate([*y, mean, variance, place], -1))


def gated(x):
    """A gated linear unit: each half of the channels is tied to the other."""
    x = ops.glu(layers.Dense(12)(x))
    return layers.Dense(2)(ops.glu(layers.Dense(10)(x), axis=1))


def resized(x):
    x = ops.image.resize(layers.Conv2D(8, 3)(x), (5, 5))
    x = ops.image.pad_images(ops.rot90(layers.Conv2D(6, 1)(x), axes=(1, 2)), 1, 1, target_height=8, target_width=8)
    return layers.Dense(2)(layers.Flatten()(x))


def side_by_side(x):
    """Tensors of positions side by side, or on top of each other: their channels go together."""
    x = layers.Concatenate(axis=1)([layers.Dense(8)(x), layers.Dense(8)(x)])
    x = ops.stack([layers.Dense(6)(x), layers.Dense(6)(x)], axis=-1)
    x = ops.max(ops.stack([x[..., 0], x[..., 1]], axis=1), axis=1)
    x = ops.vstack([layers.Dense(8)(x), layers.Dense(8)(x)])
    one, other = ops.split(layers.Dense(2)(layers.Flatten()(x)), 2, axis=0)
    return one + other


def stacked(x):
    one, other = layers.Dense(6)(x), layers.Dense(4)(x)
    x = ops.append(one, other, axis=-1)
    x = ops.hstack([ops.fliplr(x), x])
    return layers.Dense(2)(x)


NETWORKS = {
    "elementwise": (elementwise, SEQUENCE),
    "merged": (merged, SEQUENCE),
    "repeated": (repeated, SEQUENCE),
    "parts": (parts, IMAGE),
    "picked": (picked, SEQUENCE),
    "blocks": (blocks, IMAGE),
    "along_positions": (along_positions, SEQUENCE),
    "reduced": (reduced, IMAGE),
    "gated": (gated, SEQUENCE),
    "resized": (resized, IMAGE),
    "side_by_side": (side_by_side, SEQUENCE),
    "stacked": (stacked, SEQUENCE),
}


NEWER = {"elementwise": "3.15", "parts": "3.14", "blocks": "3.14", "reduced": "3.14", "stacked": "3.14"}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", named(NETWORKS, NEWER))
def test_masked_and_removed_agree_and_the_plan_predicts_the_costs(name, scope):
    body, *shapes = NETWORKS[name]
    model = network(body, *shapes)
    plan = tfprune.plan_channels(model, 0.4, scope=scope)
    assert set(plan.frozen.values()) == {"model output"}
    prove(model, plan)


@since("3.13")
def test_rearranging_takes_the_same_from_all_heads():
    """Keras rearranges batches of a known size only."""
    inputs = keras.Input(batch_shape=(2, 4, 5, 3))
    x = ops.rearrange(layers.Conv2D(8, 1, name="conv")(inputs), "b h w c -> b (h w) c")
    heads = ops.rearrange(layers.Dense(12, name="heads")(x), "b t (h d) -> b h t d", h=3)
    fixed = ops.rearrange(layers.Dense(6, name="fixed")(x), "b t (h d) -> b h t d", d=2)
    x = ops.rearrange(ops.relu(heads), "b h t d -> b t (h d)")
    outputs = [layers.Dense(2)(x), layers.Dense(2)(fixed)]
    model = randomize(keras.Model(inputs, outputs))
    plan = tfprune.ChannelPlan.from_removed(model, {"conv": [0, 7], "heads": [1]})
    assert plan.keep["heads"] == (0, 2, 3, 4, 6, 7, 8, 10, 11)
    assert "fixes its number of channels" in plan.frozen["fixed"]
    prove(model, plan)


def test_the_shape_to_broadcast_to_follows_the_channels():
    inputs = keras.Input(batch_shape=(4, 5))
    x = ops.broadcast_to(layers.Dense(8, name="wide")(inputs)[:, None], (4, 3, 8))
    model = randomize(keras.Model(inputs, layers.Dense(2)(ops.reshape(x, (4, 24)))))
    prove(model, tfprune.ChannelPlan.from_removed(model, {"wide": [0, 7]}))


def test_channels_go_together_where_positions_stand_side_by_side():
    def body(x):
        x = layers.Concatenate(axis=1)([layers.Dense(6, name="one")(x), layers.Dense(6, name="other")(x)])
        return layers.Dense(2)(layers.Flatten()(x))

    model = network(body, SEQUENCE)
    plan = tfprune.ChannelPlan.from_removed(model, {"one": [2]})
    assert plan.keep["other"] == (0, 1, 3, 4, 5)
    prove(model, plan)


@since("3.14")
def test_channels_of_a_block_go_together():
    def body(x):
        return layers.Conv2D(2, 1)(ops.depth_to_space(layers.Conv2D(12, 1, name="wide")(x), 2))

    plan = tfprune.ChannelPlan.from_removed(network(body, IMAGE), {"wide": [1]})
    assert plan.keep["wide"] == (0, 2, 3, 5, 6, 8, 9, 11)  # 1, 4, 7 and 10 are the pixels of one channel


def test_the_largest_of_several_tensors_is_no_reduction_over_the_batch():
    def body(x):
        one, other = layers.Dense(8, name="one")(x), layers.Dense(8, name="other")(x)
        return layers.Dense(2)(ops.max(ops.stack([one, ops.sin(one), other], axis=0), axis=0))

    model = network(body, SEQUENCE)
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.keep["one"] == plan.keep["other"]
    small = prove(model, plan)
    assert_as_zeroed(model, plan, small, np.random.default_rng(0).normal(size=(5, *SEQUENCE)).astype("float32"))


def test_a_channel_goes_with_its_gate():
    model = network(lambda x: layers.Dense(2)(ops.glu(layers.Dense(6, name="wide")(x))), SEQUENCE)
    assert tfprune.ChannelPlan.from_removed(model, {"wide": [1]}).keep["wide"] == (0, 2, 3, 5)


KERNEL = np.ones((3, 3, 8, 4), "float32")


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda x: ops.argmax(x, axis=-1)[..., None], "reduces over the channels"),
        (lambda x: ops.top_k(x, 3)[0], "works along the channels"),
        (lambda x: ops.cumsum(x, axis=-1), "works along the channels"),
        (lambda x: ops.roll(x, 1, axis=-1), "works along the channels"),
        (lambda x: ops.triu(x), "works along the channels"),
        (lambda x: ops.normalize(x, axis=-1), "normalizes over the channels"),
        (lambda x: ops.layer_normalization(x), "normalizes over the channels"),
        (lambda x: ops.rms_normalization(x), "normalizes over the channels"),
        (lambda x: ops.sparsemax(x), "softmax over the channels"),
        (lambda x: ops.take(x, [0, 5], axis=-1), "picks single channels"),
        (lambda x: ops.stack(ops.unstack(x, axis=-1)[:2], axis=-1), "picks single channels"),
        (lambda x: ops.repeat(x, [1, 2] * 4, axis=-1), "repeats single channels"),
        (lambda x: ops.conv(x, KERNEL), "has a kernel that is a tensor"),
        (lambda x: ops.moments(x, (1, 2, 3), keepdims=True)[0], "over the batch or the channels"),
        (lambda x: ops.quantile(x, 0.5, axis=-1, keepdims=True), "looks at all channels"),
        (lambda x: ops.map(lambda y: y * 2, x), "that is not known"),
        (lambda x: ops.batch_normalization(x, np.zeros(8), np.ones(8), -1), "has statistics that are tensors"),
        (lambda x: ops.tensordot(x, x, axes=[[0, 1, 2], [0, 1, 2]]), "multiplies across the batch"),
        (lambda x: ops.dot(x, KERNEL[0, 0]), "multiplies by a constant"),
        (lambda x: ops.image.rgb_to_grayscale(x[..., :3]), "works on the colours"),
    ],
)
def test_operations_on_all_channels_freeze_them_with_the_reason(operation, reason):
    inputs = keras.Input(IMAGE)
    outputs = operation(layers.Conv2D(8, 1, name="wide")(inputs))
    graph = ChannelGraph(keras.Model(inputs, outputs))
    reasons = {graph.frozen.get(group) for group in graph.group_of[graph.records["wide"].created].tolist()}
    assert any(reason in (text or "") for text in reasons)
