"""Attention written by hand: whole heads go where the widths inside of them have to stay."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import assert_as_zeroed, network, predict, prove
from tfprune.graph.channel_graph import ChannelGraph

SEQUENCE = (6, 7)


@keras.saving.register_keras_serializable("heads")
class Heads(layers.Layer):
    """Attention with heads cut out of dense layers; the scores are divided by the square root of a head's width."""

    def __init__(self, way, width=32, heads=4, **options):
        super().__init__(**options)
        self.way, self.width, self.heads = way, width, heads

    def build(self, shape):
        head = self.width // self.heads
        for name in ("query", "key", "value"):
            setattr(self, name, layers.Dense(self.width, name=name))
            getattr(self, name).build(shape)
        self.out = layers.Dense(shape[-1], name="out")
        self.out.build((*shape[:-1], self.width))
        if self.way == "normalized":
            self.norm = layers.RMSNormalization(name="norm")
            self.norm.build((None, None, None, head))
        if self.way in ("biased", "scaled"):
            self.own = self.add_weight(shape=(self.heads, head if self.way == "biased" else 1), name="own")

    def call(self, x):
        shape = (-1, x.shape[1], self.heads, self.width // self.heads)
        cut = [ops.reshape(own(x), shape) for own in (self.query, self.key, self.value)]
        y = WAYS[self.way](self, *cut)
        return self.out(ops.reshape(y, (-1, x.shape[1], self.width)))

    def get_config(self):
        return {**super().get_config(), "way": self.way, "width": self.width, "heads": self.heads}


def attended(query, key, value):
    scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5)
    return ops.einsum("bhqk,bkhd->bqhd", scores, value)


def linear(query, key, value):
    query, key = ops.elu(query) + 1, ops.elu(key) + 1
    sums = 1 / (ops.einsum("bqhd,bhd->bqh", query, ops.sum(key, 1)) + 1e-6)
    return ops.einsum("bqhd,bhde,bqh->bqhe", query, ops.einsum("bkhd,bkhe->bhde", key, value), sums)


def turned(query, key, value):
    query, key, value = (ops.transpose(own, (0, 2, 1, 3)) for own in (query, key, value))
    scores = ops.softmax(ops.matmul(query, ops.swapaxes(key, -1, -2)) / np.sqrt(query.shape[-1]))
    return ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))


WAYS = {
    "normalized": lambda own, query, key, value: attended(own.norm(query), own.norm(key), value),
    "of length one": lambda _, query, key, value: turned(ops.normalize(query), ops.normalize(key), value),
    "biased": lambda own, query, key, value: attended(query + own.own, key, value),
    "scaled": lambda own, query, key, value: attended(query * own.own, key, value),
    "linear": lambda _, query, key, value: linear(query, key, value),
    "fused": lambda _, query, key, value: ops.dot_product_attention(query, key, value, is_causal=True),
}  # fmt: skip


def around(way):
    return network(lambda x: layers.Dense(3)(x + Heads(way, name="own")(x)), SEQUENCE)


@pytest.mark.parametrize("way", WAYS)
def test_whole_heads_go_from_queries_keys_and_values(way, tmp_path):
    model = around(way)
    plan = tfprune.plan_channels(model, 0.5)
    assert sorted(plan.frozen.values()) == ["model input", "model output"]  # the width that is added to, and the last
    kept = np.asarray(plan.keep["own/query"])
    assert len(kept) == 16
    assert all(np.isin(np.arange(8 * head, 8 * head + 8), kept).all() for head in set((kept // 8).tolist()))
    assert plan.keep["own/query"] == plan.keep["own/key"] == plan.keep["own/value"]
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = prove(model, plan)
    layer = small.get_layer("own")
    assert (type(layer), layer.width, layer.heads) == (Heads, 16, 2)
    if way in ("biased", "scaled"):
        assert np.array_equal(layer.own.numpy(), model.get_layer("own").own.numpy()[sorted(set((kept // 8).tolist()))])
    given = np.random.default_rng(0).normal(size=(5, *SEQUENCE)).astype("float32")
    assert_as_zeroed(model, plan, small, given)
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    assert np.array_equal(predict(loaded, given)[0], predict(small, given)[0])


def by_layers(width):
    """Attention of plain layers and operations, of normalized queries and keys, in a functional model."""

    def body(x):
        query, key, value = (layers.Reshape((6, 4, width))(layers.Dense(4 * width, name=name)(x)) for name in "qkv")
        y = attended(*(layers.LayerNormalization()(own) for own in (query, key)), value)
        return layers.Dense(3)(layers.Reshape((6, 4 * width))(y))

    return network(body, SEQUENCE)


def test_whole_heads_go_in_a_functional_model_where_norms_hold_the_widths():
    model = by_layers(5)
    plan = tfprune.ChannelPlan.from_removed(model, {"q": [5]})  # of the second head
    assert all(plan.keep[name] == (*range(5), *range(10, 20)) for name in "qkv")
    small = prove(model, plan)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    assert_as_zeroed(model, plan, small, np.random.default_rng(0).normal(size=(5, *SEQUENCE)).astype("float32"))


def test_widths_inside_of_heads_go_where_nothing_holds_them():
    """What could go before goes as before: values lose widths, and all heads the same ones."""

    def body(x):
        query, key, value = (layers.Reshape((6, 4, 5))(layers.Dense(20, name=name)(x)) for name in "qkv")
        scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", query, key) * 0.4)
        return layers.Dense(3)(layers.Reshape((6, 20))(ops.einsum("bhqk,bkhd->bqhd", scores, value)))

    model = network(body, SEQUENCE)
    plan = tfprune.ChannelPlan.from_removed(model, {"q": [1], "v": [2, 3]})
    assert plan.keep["q"] == plan.keep["k"] == tuple(n for n in range(20) if n % 5 != 1)
    assert plan.keep["v"] == tuple(n for n in range(20) if n % 5 not in (2, 3))
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


def test_heads_that_nothing_frees_stay_with_the_reason():
    """A softmax over the heads and one over the widths hold both."""

    def body(x):
        cut = layers.Reshape((6, 4, 5))(layers.Dense(20, name="wide")(x))
        return layers.Dense(3)(layers.Reshape((6, 20))(ops.softmax(ops.softmax(cut, axis=-1), axis=-2)))

    graph = ChannelGraph(network(body, SEQUENCE))
    assert graph.frozen_layers()["wide"].startswith("softmax over the channels")
