"""Attention, contractions and recurrent layers: pruned, proved, and counted."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import named, network, prove
from tfprune.graph.channel_graph import ChannelGraph

SEQUENCE, VIDEO = (5, 4), (3, 6, 6, 2)


def dot_attention(x):
    query, value = layers.Dense(8)(x), layers.Dense(8)(x)
    return layers.Dense(2)(layers.Attention(use_scale=True)([query, value]))


def attention_with_keys(x):
    query, value, key = layers.Dense(8)(x), layers.Dense(6)(x), layers.Dense(8)(x)
    return layers.Dense(2)(layers.Attention(score_mode="concat", use_scale=True)([query, value, key]))


def additive_attention(x):
    query, value, key = layers.Dense(8)(x), layers.Dense(6)(x), layers.Dense(8)(x)
    y, scores = layers.AdditiveAttention()([query, value, key], return_attention_scores=True)
    return layers.Concatenate()([layers.Dense(2)(y), scores])


def grouped_queries(x):
    x = layers.Dense(8)(x)
    y = layers.GroupQueryAttention(4, num_query_heads=6, num_key_value_heads=3, use_gate=True)(x, layers.Dense(8)(x))
    return layers.Dense(2)(x + y)


def gated_heads(x):
    y = layers.MultiHeadAttention(4, 3, value_dim=2, use_gate=True)(layers.Dense(6)(x), layers.Dense(7)(x))
    return layers.Dense(2)(y)


def heads_with_scores(x):
    y, scores = layers.MultiHeadAttention(4, 3)(query=x, value=x, return_attention_scores=True)
    return layers.Concatenate()(
        [layers.Dense(2)(y), layers.Reshape((5, 10))(layers.Dense(2)(layers.Permute((2, 3, 1))(scores)))]
    )


def heads_with_named_tensors(x):
    query, value, key = layers.Dense(6)(x), layers.Dense(7)(x), layers.Dense(5)(x)
    y = layers.MultiHeadAttention(4, 3)(query=query, value=value, key=key)
    return layers.Dense(2)(y)


def heads_of_einsum_dense(x):
    """Attention with heads made by EinsumDense: whole heads go."""
    query, key, value = (layers.EinsumDense("btc,chd->bthd", (None, 4, 3), bias_axes="hd")(x) for _ in range(3))
    scores = ops.softmax(ops.einsum("bthd,bshd->bhts", query, key), axis=-1)
    y = ops.einsum("bhts,bshd->bthd", scores, value)
    return layers.EinsumDense("bthd,hdc->btc", (None, 2), bias_axes="c")(y)


def heads_by_reshape(x):
    """Attention with heads cut out of dense layers: every head loses the same channels."""
    query, key, value = (layers.Reshape((5, 2, 6))(layers.Dense(12)(x)) for _ in range(3))
    scores = ops.softmax(ops.einsum("...thd,...shd->...hts", query, key), axis=-1)
    y = layers.Reshape((5, 12))(ops.einsum("bhts,bshd->bthd", scores, value))
    return layers.Dense(2)(y)


def heads_by_transpose(x):
    query, key, value = (layers.Permute((2, 1, 3))(layers.Reshape((5, 2, 6))(layers.Dense(12)(x))) for _ in range(3))
    scores = ops.softmax(query @ ops.swapaxes(key, -1, -2), axis=-1)
    return layers.Dense(2)(layers.Reshape((5, 12))(layers.Permute((2, 1, 3))(scores @ value)))


def fused_attention(x):
    query, key, value = (layers.EinsumDense("btc,chd->bthd", (None, 4, 3))(x) for _ in range(3))
    y = ops.dot_product_attention(query, key, value)
    return layers.EinsumDense("bthd,hdc->btc", (None, 2))(y)


def einsum_dense(x):
    x = layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d", activation="relu")(x)
    x = layers.EinsumDense("...x,xy->...y", 6, bias_axes="y")(x)
    x = layers.EinsumDense("abc,c->abc", (None, 6))(x)  # a scale per channel
    return layers.EinsumDense("ab...,bc->ac...", 3)(layers.Permute((2, 1))(x))


def grouped_einsum_dense(x):
    """A dense layer for every group: what it creates goes from all groups alike."""
    x = layers.EinsumDense("bgc,gcd->bgd", (5, 8), bias_axes="gd")(x)
    return layers.EinsumDense("bgd,gde->be", (3,))(x)


def single_head(x):
    x = layers.EinsumDense("abc,cde->abde", (5, 1, 8), bias_axes="de")(x)
    return layers.EinsumDense("abde,dec->abc", (5, 2))(x)


def dots(x):
    one, other = layers.Dense(8)(x), layers.Dense(8)(x)
    scores = layers.Dot(axes=-1, normalize=True)([one, other])
    vectors = layers.GlobalMaxPooling1D()(layers.Dense(6)(x)), layers.GlobalAveragePooling1D()(layers.Dense(6)(x))
    values = layers.Dot(axes=(2, 1))([scores, layers.Dense(7)(x)])
    return layers.Dense(3)(layers.Concatenate()([layers.Flatten()(values), layers.Dot(axes=1)(vectors)]))


def convolutional_lstm(x):
    x = layers.ConvLSTM2D(6, 3, return_sequences=True, padding="same")(x)
    x = layers.ConvLSTM2D(8, 3, strides=2)(x)
    return layers.Dense(2)(layers.Flatten()(x))


def convolutional_lstm_with_states(x):
    x, hidden, memory = layers.ConvLSTM2D(6, 3, return_sequences=True, return_state=True, padding="same")(x)
    x = layers.ConvLSTM2D(6, 3, padding="same", use_bias=False)(x, initial_state=[hidden, memory])
    return layers.Dense(2)(layers.GlobalAveragePooling2D()(x))


def convolutional_lstm_of_other_ranks(one, three):
    one = layers.Flatten()(layers.ConvLSTM1D(5, 3)(layers.Dense(4)(one)))
    three = layers.Flatten()(layers.ConvLSTM3D(4, 2, return_sequences=True)(three))
    return layers.Dense(2)(layers.Concatenate()([one, three]))


def cells(x):
    x = layers.RNN(layers.LSTMCell(8), return_sequences=True)(x)
    x, state = layers.RNN(layers.GRUCell(6, reset_after=False), return_sequences=True, return_state=True)(x)
    return layers.Dense(2)(layers.RNN(layers.SimpleRNNCell(6))(x, initial_state=state))


NETWORKS = {
    "dot_attention": (dot_attention, SEQUENCE),
    "attention_with_keys": (attention_with_keys, SEQUENCE),
    "additive_attention": (additive_attention, SEQUENCE),
    "grouped_queries": (grouped_queries, SEQUENCE),
    "gated_heads": (gated_heads, SEQUENCE),
    "heads_with_scores": (heads_with_scores, SEQUENCE),
    "heads_with_named_tensors": (heads_with_named_tensors, SEQUENCE),
    "heads_of_einsum_dense": (heads_of_einsum_dense, SEQUENCE),
    "heads_by_reshape": (heads_by_reshape, SEQUENCE),
    "heads_by_transpose": (heads_by_transpose, SEQUENCE),
    "fused_attention": (fused_attention, SEQUENCE),
    "einsum_dense": (einsum_dense, SEQUENCE),
    "grouped_einsum_dense": (grouped_einsum_dense, SEQUENCE),
    "single_head": (single_head, SEQUENCE),
    "dots": (dots, SEQUENCE),
    "convolutional_lstm": (convolutional_lstm, VIDEO),
    "convolutional_lstm_with_states": (convolutional_lstm_with_states, VIDEO),
    "convolutional_lstm_of_other_ranks": (convolutional_lstm_of_other_ranks, (3, 6, 2), (2, 4, 4, 4, 2)),
    "cells": (cells, SEQUENCE),
}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", named(NETWORKS, {"grouped_queries": "3.14", "gated_heads": "3.14"}))
def test_masked_and_removed_agree_and_the_plan_predicts_the_costs(name, scope):
    body, *shapes = NETWORKS[name]
    model = network(body, *shapes)
    plan = tfprune.plan_channels(model, 0.4, scope=scope)
    assert set(plan.frozen.values()) == {"model output"}
    prove(model, plan)


def test_heads_of_keys_go_with_the_heads_of_queries_that_read_them():
    def body(x):
        x = layers.Dense(8, name="wide")(x)
        return layers.Dense(2)(x + layers.GroupQueryAttention(3, 6, 3, name="attention")(x, x))

    model = network(body, SEQUENCE)
    plan = tfprune.ChannelPlan.from_removed(model, {"attention": [1], "wide": [0, 5]})
    small, layer = prove(model, plan).get_layer("attention"), model.get_layer("attention")
    assert (small.num_query_heads, small.num_key_value_heads) == (4, 2)
    channels = [1, 2, 3, 4, 6, 7]
    for name, heads in (("query", [0, 1, 4, 5]), ("key", [0, 2]), ("value", [0, 2])):
        kernel = getattr(layer, f"_{name}_dense").kernel.numpy()[np.ix_(channels, heads)]
        np.testing.assert_array_equal(getattr(small, f"_{name}_dense").kernel.numpy(), kernel)
    kernel = layer._output_dense.kernel.numpy()[[0, 1, 4, 5]][:, :, channels]
    np.testing.assert_array_equal(small._output_dense.kernel.numpy(), kernel)


def test_channels_of_queries_and_keys_go_together_with_their_scale():
    def body(x):
        query, value, key = layers.Dense(4, name="query")(x), layers.Dense(3, name="value")(x), layers.Dense(4)(x)
        return layers.Dense(2)(layers.AdditiveAttention(name="attention")([query, value, key]))

    model = network(body, SEQUENCE)
    small = prove(model, tfprune.ChannelPlan.from_removed(model, {"query": [2], "value": [0]}))
    scale = model.get_layer("attention").scale.numpy()
    np.testing.assert_array_equal(small.get_layer("attention").scale.numpy(), scale[[0, 1, 3]])


def test_filters_of_a_convolutional_lstm_go_from_every_gate():
    model = network(lambda x: layers.Conv2D(2, 1)(layers.ConvLSTM2D(4, 3, name="lstm")(x)), VIDEO)
    small = prove(model, tfprune.ChannelPlan.from_removed(model, {"lstm": [1]}))
    kept = np.asarray([0, 2, 3])
    columns = np.concatenate([gate * 4 + kept for gate in range(4)])
    kernel, recurrent, bias = model.get_layer("lstm").get_weights()
    expected = [kernel[..., columns], recurrent[:, :, kept][..., columns], bias[columns]]
    for one, other in zip(expected, small.get_layer("lstm").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_contraction_counts_its_products():
    """Scores of 5 x 5 positions over 8 channels, and as many products with the 6 channels of the values."""
    model = network(dots_of_attention, SEQUENCE)
    profiles = {layer.name: layer.macs for layer in tfprune.profile(model).layers}
    assert profiles["scores"] == 5 * 5 * 8
    assert profiles["attended"] == 5 * 5 * 6


def dots_of_attention(x):
    scores = layers.Dot(-1, name="scores")([layers.Dense(8)(x), layers.Dense(8)(x)])
    return layers.Dense(2)(layers.Dot((2, 1), name="attended")([scores, layers.Dense(6)(x)]))


def scores(x):
    return ops.einsum("btd,bsd->bts", layers.Dense(3)(x), layers.Dense(3)(x))


@keras.saving.register_keras_serializable("tests")
class UsersCell(layers.SimpleRNNCell):
    """A user's subclass of a cell may compute anything."""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)], name="rnn")(x), "rnn stacks cells"),
        (lambda x: layers.RNN(UsersCell(4), name="rnn")(x), r"runs a cell \(UsersCell\) that is not known"),
        (lambda x: ops.einsum("btd,btd->b", x, x)[:, None], None),
        (lambda x: ops.einsum("btd,bse->bde", x, layers.Dense(3)(x)), "makes pairs of channels"),
        (lambda x: ops.einsum("bdd->bd", x[:, :, :5]), "takes a diagonal"),
        (lambda x: ops.einsum("btd,de->bte", x, np.ones((8, 3), "float32")), "multiplies by a constant"),
        (lambda x: ops.matmul(x, np.ones((8, 3), "float32")), "multiplies by a constant"),
        (lambda x: layers.EinsumDense("btd,tc->bcd", (3, 8))(x), None),
        (lambda x: ops.dot_product_attention(*[layers.Reshape((5, 4, 2))(x)] * 3), "by the width of the keys"),
        (lambda x: layers.Attention()([x, x], mask=[ops.any(layers.Dense(3)(x) > 0, -1)] * 2), "has masks"),
        (lambda x: ops.einsum("bts,bus->btu", scores(x), x[..., :5]), "needs an axis to stay whole"),
    ],
)
def test_what_cannot_be_pruned_is_frozen_with_the_reason(body, reason):
    model = network(lambda x: layers.Dense(2)(body(layers.Dense(8, name="wide")(x))), SEQUENCE)
    graph = ChannelGraph(model)
    group = graph.group_of[graph.records["wide"].created[0]]
    if reason is None:
        assert group not in graph.frozen
    else:
        assert re.search(reason, graph.frozen[group])


def test_masks_stay_whole():
    """What the mask of an attention is made of cannot go; the heads still can."""

    def body(x, mask):
        x = layers.MultiHeadAttention(4, 3, name="attention")(x, layers.Dense(6)(x), attention_mask=mask)
        return layers.Dense(2)(x)

    model = network(body, SEQUENCE, (5, 5))
    assert prove(model, tfprune.plan_channels(model, 0.5)).get_layer("attention").num_heads == 2
