"""Weights that a layer holds itself, in the ways in which people compute with them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import assert_as_zeroed, predict, randomize
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.plans.channels import ChannelPlan

ENTERS = -1  # in the shape of a weight: the width that enters


@keras.saving.register_keras_serializable("own_weights")
class Weighing(layers.Layer):
    """One way to compute with weights of these shapes."""

    def __init__(self, way, shapes, **options):
        super().__init__(**options)
        self.way, self.shapes = way, shapes

    def build(self, shape):
        self.own = [
            self.add_weight(shape=[shape[-1] if size == ENTERS else size for size in own], name=f"own_{number}")
            for number, own in enumerate(self.shapes)
        ]

    def call(self, x):
        return WAYS[self.way](x, *self.own)

    def get_config(self):
        return {**super().get_config(), "way": self.way, "shapes": self.shapes}


def repeated(x, token):
    return ops.broadcast_to(token, (ops.shape(x)[0], *token.shape[1:]))


WAYS = {
    "two tokens": lambda x, one, two: ops.concatenate([repeated(x, one), repeated(x, two), x], axis=1),
    "two where": lambda x, one, two: ops.where(x > 0, one, two) * x,
    "two where within": lambda x, up, one, two, down: ops.where(ops.sin(x @ up) > 0, one, two) @ down,
    "one where": lambda x, one: ops.where(x > 0, x, one),
    "spread": lambda x, w: ops.relu(ops.sum(x, axis=-1, keepdims=True) * w),
    "depthwise": lambda x, w: ops.depthwise_conv(x, w, padding="same"),
    "transposed": lambda x, w: ops.conv_transpose(x, w, strides=2, padding="same"),
    "first": lambda x, w: ops.conv(ops.transpose(x, (0, 3, 1, 2)), w, data_format="channels_first"),
    "grouped": lambda x, w: ops.conv(x, w),
    "kernel of one filter": lambda x, w: ops.conv(x, ops.tile(w, (1, 1, 1, 4))),
    "equation": lambda x, w: ops.einsum("btd,dk->btk", x, w),
    "equation without a result": lambda x, w: ops.einsum("ij,jk", x, w),
    "equation of what is centred": lambda x, w: ops.einsum("btd,dk->btk", x, w - ops.mean(w, axis=0)),
    "look up": lambda x, w: ops.take(w, x, axis=0),
    "look up all": lambda x, w: ops.take(w, x),
    "in front": lambda x, w: ops.matmul(w, x),
    "channels beside": lambda x, w: ops.concatenate([x, repeated(x, w)], axis=-1),
    "a wide column": lambda x, w: ops.concatenate([x, ops.broadcast_to(w, (ops.shape(x)[0], 3, x.shape[-1]))], axis=1),
    "heads": lambda x, w: ops.reshape(ops.reshape(x, (-1, 2, x.shape[-1] // 2)) * w, (-1, x.shape[-1])),
    "repeated rows": lambda x, w: ops.transpose(x, (0, 2, 1)) + ops.repeat(w, 2, axis=0),
    "outer": lambda x, w: ops.expand_dims(x, -1) * w,
    "a table over one": lambda x, w: ops.sum(x, axis=(1, 2), keepdims=True) * w,
    "a product of two": lambda x, one, two: x @ ops.matmul(one, two),
    "a product of three": lambda x, one, two, three: x @ ops.einsum("io,ir,ro->io", one, two, three),
    "added product": lambda x, w, one, two: x @ (w + 0.5 * ops.matmul(one, two)),
    "dot": lambda x, w: ops.dot(x, w),
    "tensordot": lambda x, w: ops.tensordot(x, w, axes=[[-1], [0]]),
    "tensordot over two": lambda x, w: ops.expand_dims(ops.tensordot(x, w, axes=2), 1),
    "one number": lambda x, w: x * ops.expand_dims(ops.matmul(x, w), -1),
    "one dot": lambda x, w: x * ops.expand_dims(ops.dot(x, w), -1),
    "itself turned": lambda x, w: x @ (w + ops.transpose(w)),
    "clipped": lambda x, w: x * ops.clip(w, -0.5, 0.5),
    "clipped one by one": lambda x, w: x * ops.clip(w, -0.5, np.linspace(0.1, 0.9, 8, dtype="float32")),
    "inverse": lambda x, w: x @ ops.inv(w + 3.0 * ops.eye(w.shape[0])),
    "standardized": lambda x, w: ops.relu(x @ ops.softmax(w, axis=0)),
}  # fmt: skip
IMAGE, ROW, LINE = (6, 6, 3), (5, 3), (3,)


def around(way, *shapes, shape=ROW, wide=8):
    """The layer between one that makes what enters, and one that reads what leaves."""
    inputs = keras.Input(shape)
    x = layers.Dense(wide, activation="relu", name="before")(inputs)
    x = Weighing(way, [list(own) for own in shapes], name="own")(x)
    x = layers.Dense(6, activation="relu", name="after")(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x))))


def proved(model, tmp_path):
    """The smaller network by the plan of half of all channels, proved, and the same after it was saved."""
    plan = tfprune.plan_channels(model, 0.5)
    proof = tfprune.verify(model, plan, power=True)
    assert (proof <= 1e-5, proof.unnoticed, proof.tried > 0) == (True, (), True)
    small = plan.apply(model)
    small.save(tmp_path / "small.keras")
    given = np.random.default_rng(0).normal(size=(7, *model.input_shape[1:])).astype("float32")
    assert_as_zeroed(model, plan, small, given)
    (found,) = predict(small, given)
    assert np.array_equal(found, predict(keras.saving.load_model(tmp_path / "small.keras"), given)[0])
    assert type(small.get_layer("own")) is Weighing
    return small, plan


# Way -> the shapes of the weights, that of the input, and what is left of the weights.
FREE = {
    "two tokens": ([(1, 1, ENTERS), (1, 1, ENTERS)], ROW, [(1, 1, 4), (1, 1, 4)]),
    "two where": ([(ENTERS,), (1, ENTERS)], ROW, [(4,), (1, 4)]),
    "clipped": ([(ENTERS,)], ROW, [(4,)]),
    "one where": ([(5, ENTERS)], ROW, [(5, 4)]),
    "depthwise": ([(3, 3, ENTERS, 2)], IMAGE, [(3, 3, 4, 2)]),
    "transposed": ([(3, 3, 10, ENTERS)], IMAGE, [(3, 3, 5, 4)]),
    "equation": ([(ENTERS, 10)], ROW, [(4, 5)]),
    "equation without a result": ([(ENTERS, 10)], LINE, [(4, 5)]),
    "dot": ([(ENTERS, 10)], ROW, [(4, 5)]),
    "tensordot": ([(ENTERS, 10)], ROW, [(4, 5)]),
    "tensordot over two": ([(5, ENTERS, 6)], ROW, [(5, 4, 3)]),
    "heads": ([(4,)], LINE, [(2,)]),
    "one number": ([(ENTERS,)], ROW, [(4,)]),
    "one dot": ([(ENTERS,)], ROW, [(4,)]),
    "in front": ([(7, 5)], ROW, [(7, 5)]),
    "a product of two": ([(ENTERS, 5), (5, 6)], ROW, [(4, 5), (5, 3)]),
    "a product of three": ([(ENTERS, 6), (ENTERS, 5), (5, 6)], ROW, [(4, 3), (4, 5), (5, 3)]),
    "added product": ([(ENTERS, 6), (ENTERS, 4), (4, 6)], ROW, [(4, 3), (4, 4), (4, 3)]),
}  # fmt: skip


@pytest.mark.parametrize("way", FREE)
def test_weights_follow_the_channels_that_they_meet(way, tmp_path):
    if way == "one number" and len(ops.matmul(keras.KerasTensor((2, 3)), keras.KerasTensor((3,))).shape) > 1:
        pytest.skip("Keras before 3.15 foretells a matrix where it gives a vector, and nothing is pruned")
    shapes, shape, left = FREE[way]
    small, plan = proved(around(way, *shapes, shape=shape), tmp_path)
    assert [tuple(weight.shape) for weight in small.get_layer("own").own] == left
    assert (len(plan.keep["before"]), len(plan.keep["after"])) == (4, 3)


def test_the_kept_rows_and_columns_of_a_weight_are_those_of_the_plan(tmp_path):
    model = around("equation", (ENTERS, 10))
    small, plan = proved(model, tmp_path)
    (made,) = [name for name in plan.keep if name.startswith("own/")]
    whole = model.get_layer("own").own[0].numpy()
    assert np.array_equal(small.get_layer("own").own[0].numpy(), whole[list(plan.keep["before"])][:, plan.keep[made]])


# Way -> the shapes of the weights, that of the input, and how many of the channels before can go.
HELD = {
    "clipped one by one": ([(ENTERS,)], ROW, 0),
    "kernel of one filter": ([(3, 3, ENTERS, 1)], IMAGE, 0),
    "grouped": ([(3, 3, 4, 8)], IMAGE, 0),
    "equation of what is centred": ([(ENTERS, 10)], ROW, 0),
    "channels beside": ([(1, 5, 4)], ROW, 4),
    "a wide column": ([(3, 1)], ROW, 0),
    "repeated rows": ([(4, 5)], ROW, 0),
    "outer": ([(4,)], LINE, 0),
    "a table over one": ([(4, 5)], ROW, 4),
    "standardized": ([(ENTERS, 10)], ROW, 0),
    "itself turned": ([(ENTERS, ENTERS)], ROW, 0),
    "inverse": ([(ENTERS, ENTERS)], ROW, 0),
}  # fmt: skip


@pytest.mark.parametrize("way", HELD)
def test_what_cannot_lose_channels_keeps_them_and_the_rest_is_pruned(way, tmp_path):
    shapes, shape, lost = HELD[way]
    model = around(way, *shapes, shape=shape)
    _, plan = proved(model, tmp_path)
    assert (8 - len(plan.keep["before"]), len(plan.keep["after"])) == (lost, 3)


def test_a_weight_that_meets_one_number_makes_channels():
    model = around("spread", (12,))
    plan = ChannelPlan.from_removed(model, {"own/own_0": [0, 1, 5, 7, 11], "before": [2, 3, 4]})
    small = plan.apply(model)
    kept = [2, 3, 4, 6, 8, 9, 10]
    assert np.array_equal(small.get_layer("own").own[0].numpy(), model.get_layer("own").own[0].numpy()[kept])
    assert np.array_equal(small.get_layer("after").kernel.numpy(), model.get_layer("after").kernel.numpy()[kept])
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


def looking_up(way, words):
    tokens = keras.Input((5,), dtype="int32")
    x = Weighing(way, [[words, 12]], name="own")(tokens)
    x = layers.Dense(6, activation="relu", name="after")(ops.expand_dims(x, -1) if way == "look up all" else x)
    return randomize(keras.Model(tokens, layers.Dense(3, name="head")(layers.Flatten()(x))))


def test_a_table_of_words_loses_columns_and_keeps_all_words():
    model = looking_up("look up", 12)  # as many words as channels, which are not words
    kept = [0, 2, 3, 7, 11]
    plan = ChannelPlan.from_removed(model, {"own/own_0": sorted(set(range(12)) - set(kept)), "after": [1]})
    small, table = plan.apply(model), model.get_layer("own").own[0].numpy()
    assert np.array_equal(small.get_layer("own").own[0].numpy(), table[:, kept])
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    # By numpy alone: what the layer behind reads of each word is its row without the removed columns.
    tokens = np.random.default_rng(0).integers(0, 12, (4, 5))
    after, head = (small.get_layer(name).get_weights() for name in ("after", "head"))
    read = np.maximum(table[tokens][..., kept] @ after[0] + after[1], 0)
    np.testing.assert_allclose(predict(small, tokens)[0], read.reshape(4, -1) @ head[0] + head[1], rtol=1e-4, atol=1e-5)


def test_a_table_that_is_read_number_by_number_stays_whole():
    model = looking_up("look up all", 20)
    plan = tfprune.plan_channels(model, 0.5)
    assert [tuple(weight.shape) for weight in plan.apply(model).get_layer("own").own] == [(20, 12)]
    assert len(plan.keep["after"]) == 3
    assert tfprune.verify(model, plan, power=True) <= 1e-5


def test_weights_of_a_width_that_neither_enters_nor_leaves_follow_each_other():
    model = around("two where within", (ENTERS, 12), (12,), (12,), (12, ENTERS))
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model).get_layer("own").own
    assert [weight.shape[0] for weight in small[1:]] == [6, 6, 6]
    assert small[0].shape[1] == 6
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


def test_reasons_name_the_layer_and_what_it_does():
    def reason(way):
        shapes, shape, _ = HELD[way]
        return ChannelGraph(around(way, *shapes, shape=shape)).frozen_layers()["before"]

    assert reason("outer") == "broadcast over the channels in own/multiply_1"
    assert reason("kernel of one filter") == "own/conv_0 has a kernel that is a tensor"
    assert reason("standardized") == "own_0 of own is computed over all of them"
    assert reason("itself turned") == "own/matmul_1 needs an axis to stay whole"
