"""Models with a `call` of their own: what is pruned is what they compute, in training too, and as they are now."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfprune
from tests.helpers import predict, randomize
from tfprune.errors import PlanError, VerificationError
from tfprune.surgery.rebuild import clone

INPUTS = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")


class Around(keras.Model):
    """A functional model whose call does more than its graph."""

    def call(self, x, training=None):
        return super().call(ops.tanh(x) * 3.0, training=training)


class AroundSequential(keras.Sequential):
    def call(self, x, training=None, mask=None):
        return super().call(ops.tanh(x) * 3.0, training=training)


def functional():
    inputs = keras.Input((8,))
    return Around(inputs, layers.Dense(2, name="out")(layers.Dense(16, activation="relu", name="hidden")(inputs)))


def sequential():
    return AroundSequential([keras.Input((8,)), layers.Dense(16, activation="relu", name="hidden"), layers.Dense(2)])


def nested():
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Identity()(functional()(inputs)))


@pytest.mark.parametrize("make", [functional, sequential, nested])
def test_a_model_that_does_more_than_its_graph(make):
    model = randomize(make())
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    (kept,) = (kept for name, kept in plan.keep.items() if len(kept) == 8)
    kernel, bias, out, offset = (weight.numpy() for weight in model.weights)
    hidden = np.maximum(3 * np.tanh(INPUTS) @ kernel + bias, 0)
    np.testing.assert_allclose(small(INPUTS), hidden[:, kept] @ out[list(kept)] + offset, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(clone(model)(INPUTS), model(INPUTS), rtol=1e-5, atol=1e-6)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


@keras.saving.register_keras_serializable("traced")
class Noisy(keras.Model):
    """Something else in training, where there is no batch yet."""

    def __init__(self, width=16, fixed=False, **options):
        super().__init__(**options)
        self.width, self.fixed, self.seed = width, fixed, keras.random.SeedGenerator(0)
        self.wide, self.out = layers.Dense(16 if fixed else width, activation="relu"), layers.Dense(2)

    def build(self, shape):
        self.wide.build(shape)
        self.out.build((*shape[:-1], self.wide.units))

    def call(self, x, training=False):
        x = self.wide(x)
        if training:
            x = x + keras.random.normal(ops.shape(x), seed=self.seed)
        return self.out(x)


def test_what_a_model_does_in_training_alone_stays():
    model = Noisy(16)
    model(INPUTS)
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = plan.apply(model)
    assert sorted(tuple(weight.shape) for weight in small.trainable_weights) == [(2,), (8,), (8, 2), (8, 8)]
    one, two = (np.asarray(small(INPUTS, training=True)) for _ in range(2))
    assert np.abs(one - two).max() > 0.1


def test_where_that_is_not_possible_the_reason_is_told():
    model = Noisy(16, fixed=True)
    model(INPUTS)
    with pytest.raises(PlanError, match="does other things in training"):
        tfprune.plan_channels(model, 0.5)


class Optional(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.out = layers.Dense(16), layers.Dense(16), layers.Dense(2)

    def call(self, x, context=None):
        x = self.one(x)
        return self.out(x if context is None else x + self.other(context))


def test_a_second_tensor_that_may_be_left_out_is_not_left_out_without_a_word():
    model = Optional()
    model(INPUTS, context=INPUTS)
    with pytest.raises(PlanError, match="weights that its call does not use without context, as optional"):
        tfprune.plan_channels(model, 0.5)


class Scaled(keras.Model):
    def __init__(self):
        super().__init__()
        self.scale, self.seen = 1.0, []
        self.wide, self.out = layers.Dense(16, activation="relu"), layers.Dense(2)

    def call(self, x):
        self.seen.append(x)
        return self.out(self.wide(x)) * self.scale


def test_a_model_is_traced_as_it_is_now_and_stays_it():
    model = Scaled()
    model(INPUTS)
    before = len(model.seen)
    tfprune.profile(model)
    model.scale = 3.0
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan) <= 1e-5
    small, (kept,) = plan.apply(model), [kept for kept in plan.keep.values() if len(kept) == 8]
    kernel, bias, out, offset = (weight.numpy() for weight in model.weights)
    hidden = np.maximum(INPUTS @ kernel + bias, 0)
    expected = 3 * (hidden[:, kept] @ out[list(kept)] + offset)
    np.testing.assert_allclose(predict(small, INPUTS)[0], expected, rtol=1e-4, atol=1e-5)
    assert all(isinstance(value, type(model.seen[0])) for value in model.seen[before:])  # no tensors without values


def test_a_call_that_follows_what_no_trace_shows_is_noticed():
    class Late(Scaled):
        def call(self, x):
            return super().call(x) * FACTOR["now"]

    FACTOR["now"] = 1.0
    model = Late()
    model(INPUTS)
    plan = tfprune.plan_channels(model, 0.5)
    FACTOR["now"] = 2.0
    with pytest.raises(VerificationError, match="the graph that its call was traced as differ"):
        tfprune.verify(model, plan)


FACTOR = {}


def test_a_functional_model_that_computes_with_the_weight_of_a_layer_is_refused():
    tokens = keras.Input((5,), dtype="int32")
    embedding = layers.Embedding(20, 16, name="words")
    x = layers.Dense(16)(layers.Dense(32)(embedding(tokens)))
    model = keras.Model(tokens, ops.einsum("btd,vd->btv", x, embedding.embeddings))
    with pytest.raises(PlanError, match=r"computes with words/embeddings, the weight of a layer"):
        tfprune.plan_channels(model, 0.5)


@keras.saving.register_keras_serializable("traced")
class Token(keras.Model):
    """A class token for as many examples as there are."""

    def __init__(self, width=16, **options):
        super().__init__(**options)
        self.width, self.embed, self.out = width, layers.Dense(width), layers.Dense(3)

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, self.width), name="token")
        self.embed.build(shape)
        self.out.build((None, self.width))

    def call(self, x):
        x = self.embed(x)
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, self.width))
        return self.out(ops.mean(ops.concatenate([token, x], axis=1), axis=1))


def test_a_token_for_any_batch():
    model, inputs = Token(16), INPUTS.reshape(2, 6, 4)
    model(inputs)
    randomize(model)
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = plan.apply(model)
    assert (1, 1, 8) in [tuple(weight.shape) for weight in small.weights]
    assert small(np.concatenate([inputs] * 3)).shape == (6, 3)


class Named(keras.Model):
    """Takes a dictionary of tensors, one of which it looks up; a layer has the name of another one."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden = layers.Embedding(30, 16), layers.Dense(20, name="taken")
        self.out = layers.Dense(3)

    def call(self, inputs):
        looked_up = ops.max(self.table(inputs["ids"]), axis=1)
        return self.out(ops.concatenate([looked_up, self.hidden(inputs["num"]), inputs["taken"]], axis=-1))


@pytest.mark.filterwarnings("error:.*Received key '(ids|num)'")
def test_inputs_of_a_dictionary_keep_their_names_and_whole_numbers(tmp_path):
    model = Named()
    generator = np.random.default_rng(0)
    example = {
        "ids": generator.integers(0, 30, (4, 6)).astype("int32"),
        "num": generator.normal(size=(4, 5)).astype("float32"),
    }
    example["taken"] = example["num"][:, :2]
    model(example)
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan) <= 1e-5
    with pytest.warns(UserWarning, match="the pruned network is a plain"):
        small = plan.apply(model)
    found = {key: (tensor.name, tensor.dtype) for key, tensor in small.input.items()}
    assert found["ids"] == ("ids", "int32")
    assert found["num"] == ("num", "float32")
    assert small.get_layer("taken").units == 10
    small.save(tmp_path / "small.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "small.keras")(example), small(example), rtol=1e-6)


class Tokens(keras.Model):
    """Looks up what it also computes with."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.out = layers.Embedding(30, 16), layers.Dense(12), layers.Dense(3)

    def call(self, tokens):
        shown = ops.expand_dims(ops.cast(tokens > 0, "float32"), -1)
        return self.out(ops.relu(self.hidden(ops.sum(shown * self.table(tokens), axis=1))))


def test_whole_numbers_are_given_to_what_looks_them_up():
    model = Tokens()
    model(np.ones((2, 7), "int32"))
    plan = tfprune.plan_channels(model, 0.5)
    with pytest.warns(UserWarning, match="the pruned network is a plain"):
        assert plan.apply(model).inputs[0].dtype == "int32"
    assert tfprune.verify(model, plan) <= 1e-5
