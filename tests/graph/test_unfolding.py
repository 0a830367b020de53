"""Layers without a rule that become the layers inside of them, for any batch and any length."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfprune
from tests.helpers import assert_as_zeroed, network, predict, randomize
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph


@keras.saving.register_keras_serializable("unfolding")
class Rms(layers.Layer):
    """A normalization with a weight of its own, whose config needs no width; its output shape is found by tracing."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6) * self.scale


@keras.saving.register_keras_serializable("unfolding")
class Turned(layers.Layer):
    """Rotates pairs of a head's channels by an angle that follows from the position."""

    def call(self, x):
        half = x.shape[-1] // 2
        angles = ops.arange(ops.shape(x)[1], dtype="float32")[:, None] / 10.0 ** ops.arange(half, dtype="float32")
        cosine, sine = ops.cos(angles)[None, :, None, :], ops.sin(angles)[None, :, None, :]
        one, other = ops.split(x, 2, axis=-1)
        return ops.concatenate([one * cosine - other * sine, other * cosine + one * sine], axis=-1)

    def compute_output_shape(self, shape):
        return shape


def causal(x, window):
    """(batch, length, length): what a position may look at; as people write it, spread over the batch."""
    batch, length = ops.shape(x)[0], ops.shape(x)[1]
    rows, columns = ops.expand_dims(ops.arange(length), 1), ops.arange(length)
    mask = ops.broadcast_to(ops.cast(rows >= columns, "int32"), (batch, length, length))
    return ops.minimum(mask, ops.cast(rows < columns + window, "int32"))


@keras.saving.register_keras_serializable("unfolding")
class Decoder(layers.Layer):
    """Its widths follow from what enters, so that no config has others; `heads` alone is an argument."""

    def __init__(self, heads, hidden, **options):
        super().__init__(**options)
        self.heads, self.hidden = heads, hidden

    def build(self, shape):
        width, self.head = shape[-1], shape[-1] // self.heads
        self.before, self.between, self.turn = Rms(name="before"), Rms(name="between"), Turned(name="turn")
        one = {"output_shape": (None, self.heads, self.head)}
        self.query = layers.EinsumDense("bsd,dhk->bshk", **one, name="query")
        self.key = layers.EinsumDense("bsd,dhk->bshk", **one, name="key")
        self.value = layers.EinsumDense("bsd,dhk->bshk", **one, name="value")
        self.out = layers.EinsumDense("bshk,hkd->bsd", output_shape=(None, width), name="out")
        self.widen, self.narrow = layers.Dense(self.hidden, activation="relu"), layers.Dense(width, name="narrow")
        for layer in (self.before, self.between, self.query, self.key, self.value, self.widen):
            layer.build(shape)
        self.out.build((None, None, self.heads, self.head))
        self.narrow.build((None, None, self.hidden))

    def call(self, x, mask=None):
        read = self.before(x)
        query, key, value = self.turn(self.query(read)), self.turn(self.key(read)), self.value(read)
        scores = ops.einsum("bqhk,bshk->bhqs", query, key) * self.head**-0.5
        seen = causal(x, 4) if mask is None else ops.minimum(causal(x, 4), ops.expand_dims(mask, 1))
        scores = scores + (1 - ops.cast(ops.expand_dims(seen, 1), scores.dtype)) * -1e9
        x = x + self.out(ops.einsum("bhqs,bshk->bqhk", ops.softmax(scores), value))
        return x + self.narrow(self.widen(self.between(x)))

    def compute_output_spec(self, x, mask=None):
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self):
        return {**super().get_config(), "heads": self.heads, "hidden": self.hidden}


def language_model():
    tokens, mask = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    x = layers.Embedding(11, 24, name="embedding")(tokens) * 2.0
    for number in range(2):
        x = Decoder(4, 20, name=f"decoder_{number}")(x, mask=mask)
    return randomize(keras.Model([tokens, mask], layers.Dense(3)(Rms(name="last")(x))))


def test_a_decoder_stays_where_its_arguments_have_all_widths():
    model = language_model()
    small = tfprune.plan_channels(model, 0.5, normalization="narrowed").apply(model)
    assert [(layer.heads, layer.hidden) for layer in small.layers if isinstance(layer, Decoder)] == [(2, 10), (2, 10)]


def sentences(batch, length):
    generator = np.random.default_rng(length)
    return [generator.integers(0, 11, (batch, length)), generator.integers(0, 2, (batch, length))]


@pytest.mark.parametrize(
    ("normalization", "ratios"),
    [
        ("frozen", {"decoder_0/query": 0.5, "decoder_1/query": 0.5, "decoder_1/dense": 0.5}),
        ("narrowed", {"embedding": 0.5, "decoder_1/query": 0.25, "decoder_0/dense": 0.5}),
    ],
)
def test_a_decoder_with_a_causal_mask_is_unfolded_for_any_length(normalization, ratios, tmp_path):
    model = language_model()
    plan = tfprune.plan_channels(model, ratios=ratios, normalization=normalization)
    assert {name: 1 - len(plan.keep[name]) / plan.widths[name] for name in ratios} == ratios
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = plan.apply(model)
    assert not any(isinstance(layer, Decoder) for layer in small.layers)
    assert sum(isinstance(layer, Turned) for layer in small.layers) == 2  # these stay what they are
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    for batch, length in ((1, 3), (2, 8), (5, 17)):  # other sizes than those of the tracing, and these
        given = sentences(batch, length)
        assert tfprune.verify(model, plan, inputs=given) <= 1e-5
        assert np.array_equal(predict(small, given)[0], predict(loaded, given)[0])


@keras.saving.register_keras_serializable("unfolding")
class Reader(layers.Layer):
    """Attention whose mask counts along what is read, not along what reads; both are as long as they like."""

    def build(self, x_shape, memory_shape):
        self.key, self.value = layers.Dense(x_shape[-1], name="key"), layers.Dense(x_shape[-1], name="value")
        self.key.build(memory_shape)
        self.value.build(memory_shape)

    def call(self, x, memory):
        scores = ops.einsum("bqd,bsd->bqs", x, self.key(memory))
        late = ops.cast(ops.arange(ops.shape(memory)[1]), scores.dtype)
        return ops.einsum("bqs,bsd->bqd", ops.softmax(scores - 0.3 * late), self.value(memory))

    def compute_output_shape(self, x_shape, memory_shape):
        return x_shape


def test_lengths_are_counted_along_the_input_that_has_them():
    one, other = keras.Input((None, 4)), keras.Input((None, 5))
    x, memory = layers.Dense(8, name="reading")(one), layers.Dense(12, name="read")(other)
    model = randomize(keras.Model([one, other], layers.Dense(3)(Reader(name="reader")(x, memory))))
    plan = tfprune.plan_channels(model, ratios={"reader/value": 0.5, "read": 0.25})
    assert "reader (Reader) becomes the layers inside of it" in " ".join(plan.notes)
    generator = np.random.default_rng(0)
    for lengths in ((3, 9), (9, 3), (6, 6)):
        given = [
            generator.normal(size=(2, length, width)).astype("float32")
            for length, width in zip(lengths, (4, 5), strict=True)
        ]
        assert tfprune.verify(model, plan, inputs=given) <= 1e-5


@keras.saving.register_keras_serializable("unfolding")
class Experts(layers.Layer):
    """Every expert sees every token; gates and values take turns, as some networks store them."""

    def __init__(self, experts, hidden, **options):
        super().__init__(**options)
        self.experts, self.hidden = experts, hidden

    def build(self, shape):
        self.router = layers.Dense(self.experts, name="router")
        self.router.build(shape)
        self.wide = self.add_weight(shape=(self.experts, shape[-1], 2 * self.hidden), name="wide")
        self.back = self.add_weight(shape=(self.experts, self.hidden, shape[-1]), name="back")

    def call(self, x):
        width = x.shape[-1]
        tokens = ops.reshape(x, (-1, width))
        share = ops.transpose(ops.softmax(self.router(tokens)), (1, 0))
        both = ops.einsum("td,edh->eth", tokens, self.wide)
        made = ops.einsum("eth,ehd->etd", ops.silu(both[..., ::2]) * both[..., 1::2], self.back)
        return ops.reshape(ops.sum(made * share[:, :, None], axis=0), (-1, x.shape[1], width))

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "experts": self.experts, "hidden": self.hidden}


def test_the_hidden_width_of_experts_shrinks_in_all_of_them(tmp_path):
    def body(x):
        return layers.Dense(2)(layers.GlobalAveragePooling1D()(Experts(3, 10, name="experts")(layers.Dense(6)(x))))

    model = network(body, (7, 4))
    plan = tfprune.plan_channels(model, ratios={"experts/wide": 0.4})
    kept = np.asarray(plan.keep["experts/wide"])
    assert len(kept) == 12
    assert (kept[::2] % 2 == 0).all()  # a gate goes with its value
    assert (kept[1::2] == kept[::2] + 1).all()
    assert "experts/router" in plan.frozen
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = plan.apply(model)
    assert small.get_layer("experts").hidden == 6
    small.save(tmp_path / "small.keras")
    given = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert np.array_equal(predict(small, given)[0], predict(again, given)[0])


@keras.saving.register_keras_serializable("unfolding")
class Leaking(layers.Layer):
    """Hands on a tensor of a layer inside of it by an attribute."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = Keeping(name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x) + self.inner.kept

    def compute_output_shape(self, shape):
        return shape


@keras.saving.register_keras_serializable("unfolding")
class Keeping(layers.Layer):
    def build(self, shape):
        self.one, self.two = layers.Dense(shape[-1], name="one"), layers.Dense(shape[-1], name="two")
        self.one.build(shape)
        self.two.build(shape)

    def call(self, x):
        self.kept = ops.relu(self.one(x))
        return self.two(self.kept)


def test_a_tensor_that_a_layer_keeps_for_others_is_followed():
    model = network(lambda x: layers.Dense(2)(Leaking(name="leaking")(layers.Dense(8, name="wide")(x))), (4,))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 4
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


def test_one_row_over_many_loses_the_columns_that_these_lose():
    def body(x):
        rows = layers.Reshape((3, 4))(layers.Dense(12, name="rows")(x))
        row = layers.Reshape((1, 4))(layers.Dense(4, name="row")(x))
        return layers.Dense(2)(layers.Flatten()(layers.Dense(6, name="after")(ops.multiply(rows, row))))

    model = network(body, (6,))
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["rows"]), len(plan.keep["row"]), len(plan.keep["after"])) == (6, 2, 3)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    given = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    assert_as_zeroed(model, plan, plan.apply(model), given)


@pytest.mark.parametrize(
    ("key", "free"),
    [
        (slice(None, None, 2), True),
        (slice(1, None, 2), True),
        (slice(None, 6, 2), False),
        (slice(2, None, 2), False),
        (slice(None, None, 3), False),
    ],
)
def test_channels_in_turns_go_together(key, free):
    def body(x):
        return layers.Dense(2)(layers.Dense(8, activation="relu", name="turns")(x)[:, key])

    model = network(body, (5,))
    graph = ChannelGraph(model)
    assert ("turns" not in graph.frozen_layers()) == free
    if free:
        plan = tfprune.plan_channels(model, 0.5)
        assert len(plan.keep["turns"]) == 4
        assert all(channel // 2 * 2 in plan.keep["turns"] for channel in plan.keep["turns"])
        assert tfprune.verify(model, plan) <= 1e-5


@keras.saving.register_keras_serializable("unfolding")
class Masking(layers.Layer):
    """Has weights that it only needs in training, as tokens in the places of masked ones."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width, self.embed = width, layers.Dense(width, name="embed")

    def build(self, shape):
        self.embed.build(shape)
        self.token = self.add_weight(shape=(1, self.width), name="token")

    def call(self, x, masks=None):
        x = self.embed(x)
        return x if masks is None else ops.where(masks, self.token, x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.width)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_a_weight_that_is_not_used_is_as_wide_as_the_output():
    model = network(lambda x: layers.Dense(2)(ops.relu(Masking(8, name="masking")(x))), (5,))
    plan = tfprune.plan_channels(model, 0.5)
    small = plan.apply(model)
    kept = list(plan.keep["masking/embed"])
    assert len(kept) == 4
    token = model.get_layer("masking").token.numpy()
    assert np.array_equal(small.get_layer("masking").token.numpy(), token[:, kept])


@keras.saving.register_keras_serializable("unfolding")
class Steep(layers.Layer):
    """The scale of a softmax follows from a width."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width
        self.one, self.two = layers.Dense(width, name="one"), layers.Dense(width, name="two")

    def build(self, shape):
        self.one.build(shape)
        self.two.build(shape)

    def call(self, x):
        scores = ops.einsum("bqd,bsd->bqs", self.one(x), self.two(x)) * self.width**-0.5
        return ops.einsum("bqs,bsd->bqd", ops.softmax(scores), x)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_a_softmax_does_not_hide_a_scale_that_follows_from_the_width():
    model = network(lambda x: layers.Dense(2)(Steep(8, name="steep")(x)), (6, 5))
    plan = tfprune.plan_channels(model, ratios={"steep/one": 0.5})
    assert "steep (Steep) becomes the layers inside of it" in " ".join(plan.notes)
    assert tfprune.verify(model, plan) <= 1e-5


def test_what_cannot_be_unfolded_for_its_parts_freezes():
    @keras.saving.register_keras_serializable("unfolding")
    class Part(Twice):
        def get_config(self):
            raise AttributeError("no config today")

    @keras.saving.register_keras_serializable("unfolding")
    class Around(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.part = Part(name="part")

        def build(self, shape):
            self.part.build(shape)
            self.last = layers.Dense(shape[-1], name="last")
            self.last.build(shape)

        def call(self, x):
            return self.last(self.part(x))

        def compute_output_shape(self, shape):
            return shape

    def body(x):
        x = layers.Dense(6, name="free")(layers.Dense(8)(x))
        return layers.Dense(2)(layers.Dense(5)(Around(name="around")(x)))

    model = network(body, (4,))
    plan = tfprune.plan_channels(model, 0.5)
    assert "around/part/middle" in plan.frozen
    assert tfprune.verify(model, plan) <= 1e-5
    with pytest.raises(PlanError, match=r"around \(Around\) has no field in its config"):
        tfprune.plan_channels(model, ratios={"around/part/middle": 0.5})


class Twice(layers.Layer):
    """Of its two widths the config has none; both lengths are in one reshape, so that it cannot be unfolded either."""

    def build(self, shape):
        self.middle, self.end = layers.Dense(4, name="middle"), layers.Dense(shape[-1], name="end")
        self.middle.build(shape)
        self.end.build((None, 4))
        self.table = self.add_weight(shape=(3, 2), name="table")

    def call(self, x):
        return self.end(ops.relu(self.middle(x))) * ops.sum(self.table)


class Hidden(layers.Layer):
    """Holds a weight where nobody looks, and reads its value; no config has its widths."""

    def __init__(self, dtype_of_weight="float32", **options):
        super().__init__(**options)
        self.kind = dtype_of_weight
        self.up, self.down = layers.Dense(8, name="up"), layers.Dense(6, name="down")

    def build(self, shape):
        self.up.build(shape)
        self.down.build((*shape[:-1], 8))
        factor = self.add_weight(shape=(), dtype=self.kind, initializer="ones", name="factor")
        self.held = types.SimpleNamespace(factor=factor)

    def call(self, x):
        return self.down(ops.relu(self.up(x)) * ops.cast(self.held.factor, "float32"))


class Tied(layers.Layer):
    """Turns words into channels and channels into words, by one weight of a layer inside."""

    def __init__(self, words, width, **options):
        super().__init__(**options)
        self.words, self.width, self.embedding = words, width, layers.Embedding(words, width, name="words")

    def build(self, shape):
        self.embedding.build(shape)

    def call(self, x, reverse=False):
        return x @ ops.transpose(self.embedding.embeddings) if reverse else self.embedding(x)

    def compute_output_spec(self, x, reverse=False):
        shape = (*x.shape[:-1], self.words) if reverse else (*x.shape, self.width)
        return keras.KerasTensor(shape, "float32")


@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_a_weight_that_is_read_as_a_number_does_not_become_a_constant(kind):
    model = network(lambda x: layers.Dense(3)(Hidden(kind, name="hidden")(layers.Dense(5)(x))), (4,))
    model.get_layer("hidden").held.factor.assign(2)
    plan = tfprune.plan_channels(model, 0.5)
    assert "hidden reads the value of factor" in plan.frozen["hidden/up"]
    small = plan.apply(model)
    assert len(small.weights) == len(model.weights)
    assert tfprune.verify(model, plan) <= 1e-5


def test_a_tied_embedding_loses_channels_and_stays_tied():
    tokens = keras.Input((5,), dtype="int32")
    tied = Tied(9, 8, name="tied")
    x = tied(tokens)
    x = x + layers.Dense(8)(layers.Dense(6, activation="relu", name="free")(x))
    model = randomize(keras.Model(tokens, tied(x, reverse=True)))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["free"]) == 3
    assert len(plan.keep["tied/words"]) == 4
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    fresh = plan.apply(model, weights="fresh", seed=1)
    assert sum(weight.shape == (9, 4) for weight in fresh.weights) == 1
    fresh.get_layer("tied").embedding.embeddings.assign(np.zeros((9, 4)))
    assert not predict(fresh, np.ones((2, 5), "int32"))[0].any()  # what it gives follows from its own weight


def test_a_model_of_open_length_keeps_its_losses():
    class Regular(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.inner = layers.Dense(6, activity_regularizer="l1")

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return self.inner(x)

    inputs = keras.Input((None, 4))
    model = randomize(keras.Model(inputs, layers.Dense(3)(Regular(name="regular")(layers.Dense(8)(inputs)))))
    tfprune.verify(model, tfprune.plan_channels(model, 0.5))
    assert model.losses == []


@keras.saving.register_keras_serializable("unfolding")
class Unnamed(layers.Layer):
    """Takes neither a name nor a dtype."""

    def __init__(self):
        super().__init__()
        self.up, self.down = layers.Dense(8, activation=lambda x: x * ops.sigmoid(1.7 * x)), layers.Dense(6)

    def build(self, shape):
        self.up.build(shape)
        self.down.build((*shape[:-1], 8))

    def call(self, x):
        return self.down(self.up(x))


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_a_layer_without_a_dtype_is_proved_in_16_bits(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = network(lambda x: layers.Dense(3)(Unnamed()(layers.Dense(5, name="wide")(x))), (4,))
        plan = tfprune.plan_channels(model, 0.5)
        assert len(plan.keep["wide"]) == 2
        assert tfprune.verify(model, plan) <= 1e-5
        assert keras.config.dtype_policy().name == policy
    finally:
        keras.config.set_dtype_policy(before)


def test_a_lambda_that_comes_to_light_is_told(tmp_path):
    model = network(lambda x: layers.Dense(3)(Unnamed()(layers.Dense(5)(x))), (4,))
    plan = tfprune.plan_channels(model, 0.5)
    assert any("cannot be loaded: a lambda is the activation of unnamed" in note for note in plan.notes)
    plan.apply(model).save(tmp_path / "small.keras")
    with pytest.raises(TypeError, match="could not be deserialized"):
        keras.saving.load_model(tmp_path / "small.keras")


@keras.saving.register_keras_serializable("unfolding")
class Closed(layers.Layer):
    """Cannot be looked into; its config makes it again as it is."""

    def build(self, shape):
        self.square = self.add_weight(shape=(shape[-1], shape[-1]), name="square")

    def call(self, x):
        return tf.linalg.matmul(x, self.square)

    def compute_output_shape(self, shape):
        return shape


class Around(layers.Layer):
    """Cannot be made again itself: nobody tells its function."""

    def __init__(self, after, **options):
        super().__init__(**options)
        self.after, self.up, self.down, self.closed = after, layers.Dense(12), layers.Dense(5), Closed()

    def build(self, shape):
        self.up.build(shape)
        self.down.build((*shape[:-1], 12))
        self.closed.build((*shape[:-1], 5))

    def call(self, x):
        return self.after(self.closed(self.down(self.up(x))))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 5)

    def get_config(self):
        raise NotImplementedError("it holds a function")


def test_a_layer_that_cannot_be_looked_into_does_not_hinder_what_is_beside_it(tmp_path):
    model = network(lambda x: layers.Dense(3)(Around(ops.tanh, name="around")(layers.Dense(8, name="first")(x))), (6,))
    plan = tfprune.plan_channels(model, 0.5)
    assert {name: len(kept) for name, kept in plan.keep.items()}.items() >= {"first": 4, "around/dense": 6}.items()
    assert "cannot be looked into" in plan.frozen["around/dense_2"]
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = plan.apply(model)
    assert any(isinstance(layer, Closed) for layer in small.layers)
    small.save(tmp_path / "small.keras")
    inputs = np.random.default_rng(0).normal(size=(3, 6))
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(predict(loaded, inputs)[0], predict(small, inputs)[0], rtol=1e-6)


@keras.saving.register_keras_serializable("unfolding")
class Forgetful(layers.Layer):
    """Passes all on, and tells the length as open, whatever it is."""

    def call(self, x):
        return ops.tanh(x)

    def compute_output_shape(self, shape):
        return (None, None, *shape[2:])


@keras.saving.register_keras_serializable("unfolding")
class OfKnownLength(layers.Layer):
    """Tells the length of what it gives, which the layers inside do not. No config of it has half of the heads."""

    def __init__(self, shared, **options):
        super().__init__(**options)
        self.shared = shared
        self.split = layers.EinsumDense("btc,chd->bthd", output_shape=(None, 4, 6), name="split")
        self.join = layers.EinsumDense("bthd,hdc->btc", output_shape=(None, 24), name="join")
        self.forget = Forgetful(name="forget")

    def build(self, shape):
        self.split.build(shape)
        self.join.build((*shape[:-1], 4, 6))

    def call(self, x):
        x = ops.tanh(self.split(x)) + ops.sin(self.split(x)) if self.shared else self.split(x)
        return self.forget(self.join(self.forget(x)))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 24)

    def get_config(self):
        return {**super().get_config(), "shared": self.shared}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "after", [lambda x: layers.Dense(5)(layers.Permute((2, 1))(x)), layers.LayerNormalization(axis=(1, 2))]
)
def test_a_length_that_is_known_stays_known(after, shared, tmp_path):
    def body(x):
        own = OfKnownLength(shared, name="own")
        return layers.Dense(3)(after(own(layers.Dense(24, name="wide")(x))))

    model = network(body, (8, 16))
    plan = tfprune.plan_channels(model, ratios={"own/split": 0.5, "wide": 0.25})
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    small = plan.apply(model)
    assert not any(isinstance(layer, OfKnownLength) for layer in small.layers)
    assert all(tensor.shape[1] in (8, 24) for tensor in (small.output, small.get_layer("own_join").output))
    costs = tfprune.profile(small)
    assert (costs.params, costs.macs, costs.flops) == (plan.params[1], plan.macs[1], plan.flops[1])
    inputs = np.random.default_rng(0).normal(size=(5, 8, 16)).astype("float32")
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    again = tfprune.plan_channels(small, 0.5)  # what is behind a reshape that only tells a size can go, too
    assert len(again.keep["own_split"]) == 1
    assert tfprune.verify(small, again, power=True).unnoticed == ()
    # By hand: heads that go give zero where all of their weights are zero, and channels that go are read by nobody.
    heads, wide = (np.setdiff1d(np.arange(size), plan.keep[name]) for name, size in (("own/split", 4), ("wide", 24)))
    own = model.get_layer("own")
    for weight, axis, lost in ((own.split.kernel, 1, heads), (own.split.kernel, 0, wide)):
        value = weight.numpy()
        value[(slice(None),) * axis + (lost,)] = 0
        weight.assign(value)
    for one in (small, loaded):
        np.testing.assert_allclose(predict(one, inputs)[0], predict(model, inputs)[0], rtol=1e-4, atol=1e-5)
