"""Parts of tensors in the ways that stop channels, limits per channel, and embeddings that turn back into words."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import assert_as_zeroed, predict, randomize
from tfprune.graph.channel_graph import ChannelGraph


def heads(x):
    return layers.Reshape((6, 2, 4))(x)


STOPPING = {
    "one channel": (lambda x: x[:, :, 3], "picks single channels"),
    "single channels": (lambda x: ops.take(x, [0, 3, 5], axis=-1), "picks single channels"),
    "of all numbers": (lambda x: ops.reshape(ops.take(x, [0, 3, 5]), (1, 3)), "picks from a constant"),
    "limits per channel": (
        lambda x: ops.clip(x, 0.1, np.linspace(0.2, 2, 8).astype("float32")),
        "has constants per channel",
    ),
}


@pytest.mark.parametrize("case", STOPPING)
def test_what_picks_among_channels_stops_them_with_the_reason(case):
    function, reason = STOPPING[case]
    fixed = {"batch_size": 1} if case == "of all numbers" else {}
    inputs = keras.Input((6, 4), **fixed)
    x = function(layers.Dense(8, activation="relu", name="before")(inputs))
    x = layers.Dense(6, activation="relu", name="after")(x)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    assert reason in ChannelGraph(model).frozen_layers()["before"]
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["before"]), len(plan.keep["after"])) == (8, 3)
    assert tfprune.verify(model, plan) <= 1e-5


PARTS = {
    "of widths": lambda x: heads(x)[..., :2],
    "of heads": lambda x: ops.slice(heads(x), (0, 0, 0, 0), (1, 6, 2, 2)),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_part_of_heads_loses_the_same_widths_of_all_of_them(case):
    inputs = keras.Input((6, 4), batch_size=1)
    x = PARTS[case](layers.Dense(8, activation="relu", name="before")(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    plan = tfprune.ChannelPlan.from_removed(model, {"before": [1, 2]})
    assert plan.keep["before"] == (0, 3, 4, 7)
    given = np.random.default_rng(0).normal(size=(1, 6, 4)).astype("float32")
    assert_as_zeroed(model, plan, plan.apply(model), given)
    assert tfprune.verify(model, plan, inputs=given, power=True).unnoticed == ()


def test_a_slice_along_positions_of_what_has_no_channels_goes_through():
    # The input's own channels are nobody's to remove.
    inputs = keras.Input((6, 4), batch_size=2)
    x = layers.Dense(8, activation="relu", name="wide")(ops.slice(inputs, (0, 1, 0), (2, 3, 4)))
    model = randomize(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    plan = tfprune.plan_channels(model, 0.5)
    kept = list(plan.keep["wide"])
    assert len(kept) == 4
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    given = np.random.default_rng(0).normal(size=(2, 6, 4)).astype("float32")
    wide, head = model.get_layer("wide").get_weights(), model.get_layer("head").get_weights()
    read = np.maximum(given[:, 1:4] @ wide[0][:, kept] + wide[1][kept], 0) @ head[0][kept] + head[1]
    np.testing.assert_allclose(predict(plan.apply(model), given)[0], read, rtol=1e-4, atol=1e-5)


def test_a_slice_of_words_goes_through():
    tokens = keras.Input((6,), dtype="int32", batch_size=2)
    x = layers.Embedding(9, 8, name="words")(ops.slice(tokens, (0, 2), (2, 3)))
    model = randomize(keras.Model(tokens, layers.Dense(3, name="head")(x)))
    plan = tfprune.plan_channels(model, 0.5)
    kept, given = list(plan.keep["words"]), np.random.default_rng(0).integers(0, 9, (2, 6))
    head = model.get_layer("head").get_weights()
    read = model.get_layer("words").embeddings.numpy()[given[:, 2:5]][..., kept] @ head[0][kept] + head[1]
    np.testing.assert_allclose(predict(plan.apply(model), given)[0], read, rtol=1e-4, atol=1e-5)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


def test_a_slice_of_sums_over_all_channels_goes_through():
    inputs = keras.Input((6, 4), batch_size=2)
    sums = ops.sum(layers.Dense(8, activation="relu", name="wide")(inputs), axis=-1, keepdims=True)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="head")(ops.slice(sums, (0, 2, 0), (2, 3, 1)))))
    plan = tfprune.plan_channels(model, 0.5)
    kept, given = list(plan.keep["wide"]), np.random.default_rng(0).normal(size=(2, 6, 4)).astype("float32")
    wide, head = model.get_layer("wide").get_weights(), model.get_layer("head").get_weights()
    summed = np.maximum(given[:, 2:5] @ wide[0][:, kept] + wide[1][kept], 0).sum(axis=-1, keepdims=True)
    assert len(kept) == 4
    assert [record.name for record in ChannelGraph(model).records.values() if record.given_up] == []
    np.testing.assert_allclose(predict(plan.apply(model), given)[0], summed @ head[0] + head[1], rtol=1e-4, atol=1e-5)


def test_positions_that_a_tensor_names_are_picked_and_channels_go():
    inputs, places = keras.Input((6, 4)), keras.Input((3,), dtype="int32", name="places")
    wide = layers.Dense(8, activation="relu", name="wide")
    x = ops.take(wide(inputs)[0], ops.mod(places, 6), axis=0)
    model = randomize(keras.Model([inputs, places], layers.Dense(3, name="head")(x)))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 4
    given = [np.random.default_rng(0).normal(size=(2, 6, 4)).astype("float32"), np.array([[0, 5, 2], [1, 1, 4]])]
    assert tfprune.verify(model, plan, inputs=given, power=True) <= 1e-5


needs_reversible = pytest.mark.skipif(not hasattr(layers, "ReversibleEmbedding"), reason="a newer Keras brought it")


@needs_reversible
@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_turns_channels_into_words_loses_them_in_both_directions(tied, tmp_path):
    tokens = keras.Input((5,), dtype="int32")
    words = layers.ReversibleEmbedding(11, 8, tie_weights=tied, name="words")
    x = words(tokens)
    x = x + layers.Dense(8, name="narrow")(layers.Dense(6, activation="relu", name="wide")(x))
    model = randomize(keras.Model(tokens, words(x, reverse=True)))
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.keep["words"] == plan.keep["narrow"]
    assert (len(plan.keep["words"]), len(plan.keep["wide"])) == (4, 3)
    proof = tfprune.verify(model, plan, power=True)
    assert (proof <= 1e-5, proof.unnoticed) == (True, ())
    small, kept = plan.apply(model), list(plan.keep["words"])
    large = [weight.numpy() for weight in model.get_layer("words").weights]
    left = [weight.numpy() for weight in small.get_layer("words").weights]
    assert np.array_equal(left[0], large[0][:, kept])
    assert len(left) == (1 if tied else 2)
    assert tied or np.array_equal(left[1], large[1][kept])
    # Multiply-accumulates by hand: two dense layers, and words out of channels, at five positions.
    assert plan.macs == (5 * (8 * 6 + 6 * 8 + 8 * 11), 5 * (4 * 3 + 3 * 4 + 4 * 11))
    small.save(tmp_path / "small.keras")
    given = np.random.default_rng(0).integers(0, 11, (7, 5))
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert np.array_equal(predict(small, given)[0], predict(again, given)[0])


@needs_reversible
def test_words_that_are_read_alone_have_a_second_table_that_follows():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.ReversibleEmbedding(11, 8, tie_weights=False, name="words")(tokens)
    model = randomize(keras.Model(tokens, layers.Dense(3)(layers.Flatten()(x))))
    plan = tfprune.plan_channels(model, 0.5)
    small, kept = plan.apply(model).get_layer("words"), list(plan.keep["words"])
    assert np.array_equal(small.reverse_embeddings.numpy(), model.get_layer("words").reverse_embeddings.numpy()[kept])
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


@needs_reversible
def test_what_becomes_words_loses_the_channels_of_the_words():
    tokens = keras.Input((5,), dtype="int32")
    words = layers.ReversibleEmbedding(11, 8, name="words")
    x = layers.Dense(8, name="narrow")(layers.Dense(6, activation="relu", name="wide")(words(tokens)))
    model = randomize(keras.Model(tokens, words(x, reverse=True)))
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.keep["words"] == plan.keep["narrow"]
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
