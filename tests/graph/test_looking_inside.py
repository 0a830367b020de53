"""Layers that nobody taught: what they do inside says what can go, and they are made again with other widths."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfprune
from tests.helpers import network, predict, prove, randomize
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.keras_internals import layers_within


@keras.saving.register_keras_serializable("looking")
class Block(layers.Layer):
    """As people write them: a width in the config, layers made in the constructor."""

    def __init__(self, hidden, **options):
        super().__init__(**options)
        self.hidden = hidden
        self.widen, self.gate = layers.Dense(hidden, activation=ops.silu), layers.Dense(hidden)

    def build(self, shape):
        self.narrow = layers.Dense(shape[-1], name="narrow")
        self.widen.build(shape)
        self.gate.build(shape)
        self.narrow.build((*shape[:-1], self.hidden))

    def call(self, x):
        batch, width = ops.shape(x)[0], x.shape[-1]
        return ops.reshape(x + self.narrow(self.widen(x) * self.gate(x)), (batch, width))

    def get_config(self):
        return {**super().get_config(), "hidden": self.hidden}


@keras.saving.register_keras_serializable("looking")
class Twice(layers.Layer):
    """One width in the config for two of them inside."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width
        self.first, self.second = layers.Conv2D(width, 3, padding="same"), layers.Conv2D(width, 3, padding="same")
        self.drop = layers.Dropout(0.5)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], self.width))

    def call(self, x):
        return self.second(self.drop(ops.relu(self.first(x))))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.width)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("looking")
class Own(layers.Layer):
    """Weights of its own: a scale, a shift, a position table, a token, and a product with a kernel."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.shift = self.add_weight(shape=(1, shape[-1]), initializer="zeros", name="shift")
        self.positions = self.add_weight(shape=shape[1:], initializer="uniform", name="positions")
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="uniform", name="token")
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), initializer="glorot_uniform", name="kernel")

    def call(self, x):
        self.seen = x  # nobody should
        x = x * self.scale[None, None, :] + self.shift + self.positions
        x = ops.concatenate([ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1])), x], axis=1)
        return x + ops.tanh(x) @ self.kernel

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 1, shape[2])


def with_block():
    return network(lambda x: layers.Dense(3)(Block(16, name="block")(layers.Dense(8, name="wide")(x))), (5,))


def with_twice():
    def body(x):
        x = Twice(8, name="twice")(layers.Conv2D(6, 3, name="before")(x))
        return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))

    return network(body, (8, 8, 3))


def with_own():
    def body(x):
        return layers.Dense(3)(layers.GlobalAveragePooling1D()(Own(name="own")(layers.Dense(8, name="wide")(x))))

    return network(body, (6, 4))


def proved(model, plan, tmp_path):
    """The smaller network, proved with full power, and the same after it was saved."""
    proof = tfprune.verify(model, plan, power=True, random_weights=True)
    assert proof <= 1e-5
    assert proof.tried > 0
    assert proof.unnoticed == ()
    small = plan.apply(model)
    assert sum(np.prod(weight.shape) for weight in small.weights) == plan.params[1]
    small.save(tmp_path / "small.keras")
    inputs = np.random.default_rng(0).normal(size=(7, *model.input_shape[1:])).astype("float32")  # another batch
    (before,) = predict(small, inputs)
    assert np.array_equal(before, predict(keras.saving.load_model(tmp_path / "small.keras"), inputs)[0])
    return small


def test_a_layer_stays_what_it_is_where_its_config_has_the_width(tmp_path):
    model = with_block()
    plan = tfprune.plan_channels(model, 0.5)
    kept = {layer: len(kept) for layer, kept in plan.keep.items() if layer != model.layers[-1].name}
    assert kept == {"wide": 4, "block/dense": 8, "block/dense_2": 8, "block/narrow": 4}
    small = proved(model, plan, tmp_path)
    block = small.get_layer("block")
    assert type(block) is Block
    assert (block.hidden, block.widen.units, block.narrow.units) == (8, 8, 4)
    kept = list(plan.keep["block/dense"])
    rows = list(plan.keep["wide"])
    own = model.get_layer("block").widen.kernel.numpy()
    assert np.array_equal(block.widen.kernel.numpy(), own[rows][:, kept])


def test_a_layer_of_which_no_config_has_the_widths_becomes_the_layers_inside(tmp_path):
    model = with_twice()
    plan = tfprune.plan_channels(model, ratios={"twice/conv2d": 0.75, "twice/conv2d_2": 0.5})
    assert [len(plan.keep[name]) for name in ("twice/conv2d", "twice/conv2d_2")] == [2, 4]
    assert any(note.startswith("twice (Twice) becomes the layers inside of it") for note in plan.notes)
    small = proved(model, plan, tmp_path)
    assert not any(isinstance(layer, Twice) for layer in small.layers)
    assert any(isinstance(layer, layers.Dropout) for layer in small.layers)  # it drops while it trains, as before
    alike = tfprune.plan_channels(model, ratios={"twice/conv2d": 0.5, "twice/conv2d_2": 0.5})
    assert isinstance(alike.apply(model).get_layer("twice"), Twice)


def test_weights_of_the_layers_own_go_with_the_channels_that_they_meet(tmp_path):
    model = with_own()
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 4
    own = proved(model, plan, tmp_path).get_layer("own")
    assert [tuple(weight.shape) for weight in own.weights] == [(4,), (1, 4), (6, 4), (1, 1, 4), (4, 4)]
    kept = list(plan.keep["wide"])
    assert np.array_equal(own.positions.numpy(), model.get_layer("own").positions.numpy()[:, kept])


def test_looking_leaves_the_layers_as_they_are():
    model = with_own()
    own = model.get_layer("own")
    own.seen = None
    before = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers_within(model)]
    attributes = {name: value for name, value in vars(own).items() if not name.startswith("_")}
    weights = model.get_weights()
    tfprune.verify(model, tfprune.plan_channels(model, 0.5), random_weights=True, power=True)
    assert [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer, *_ in before] == before
    assert {name: value for name, value in vars(own).items() if not name.startswith("_")} == attributes
    assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))
    assert own.built
    assert keras.Layer.__call__.__qualname__ == "Layer.__call__"


class Scaled(layers.Layer):
    """What its heads are divided by follows from how many there are: no shape tells it."""

    def __init__(self, heads, **options):
        super().__init__(**options)
        self.heads, self.inner = heads, layers.Dense(heads, activation="relu")

    def build(self, shape):
        self.inner.build(shape)
        self.factor = 1.0 / self.heads

    def call(self, x):
        return self.inner(x) * self.factor

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}


def test_a_config_that_changes_more_than_shapes_is_not_taken(tmp_path):
    model = network(lambda x: layers.Dense(2)(Scaled(8, name="scaled")(x)), (5,))
    plan = tfprune.plan_channels(model, 0.5)
    assert any("scaled (Scaled) becomes the layers inside" in note for note in plan.notes)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


class Raising(layers.Layer):
    def call(self, x):
        raise RuntimeError("not today\nnor tomorrow") if not isinstance(x, tf.Tensor) else None

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Endless(layers.Layer):
    def call(self, x):
        return self(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Lying(layers.Layer):
    def call(self, x):
        return x[:, :4]

    def compute_output_shape(self, shape):
        return shape


class Branching(layers.Layer):
    def call(self, x):
        return x if float(ops.sum(x)) > 0 else -x

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Raising, r"cannot be looked into \(RuntimeError: not today\)"),
        (Endless, r"cannot be looked into \(RecursionError: it calls itself\)"),
        (Lying, r"gives \(2, 4\) where it tells \(None, 8\)"),
        (Branching, r"cannot be looked into \(\w+: "),
    ],
)
def test_what_cannot_be_looked_into_freezes_with_the_reason_in_one_line(layer, reason):
    inputs = keras.Input((5,))
    x = layer(name="odd")(layers.Dense(8, name="wide")(layers.Dense(6, name="free")(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(x))
    plan = tfprune.plan_channels(model, 0.5)
    assert (len(plan.keep["wide"]), len(plan.keep["free"])) == (8, 3)
    why = plan.frozen["wide"]
    assert "\n" not in why
    with pytest.raises(PlanError, match=rf"wide: odd \({layer.__name__}\) is not known to tfprune, and {reason}"):
        tfprune.plan_channels(model, 0.5, skip=["free"])


class Token(layers.Layer):
    """A token for every example, of a batch that is known when it is traced alone."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width, self.one, self.two = width, layers.Dense(width), layers.Dense(width)

    def build(self, shape):
        self.one.build(shape)
        self.two.build((*shape[:-1], self.width))

    def call(self, x):
        zeros = ops.zeros((ops.shape(x)[0], 1, self.width))
        return ops.concatenate([self.two(ops.relu(self.one(x))), zeros], axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 1, self.width)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_no_batch_of_the_tracing_ends_up_in_the_smaller_network():
    def body(x):
        return layers.Dense(2)(layers.GlobalAveragePooling1D()(Token(8, name="token")(x)))

    model = network(body, (6, 4))
    with pytest.raises(PlanError, match=r"has no field in its config for this width"):
        tfprune.plan_channels(model, ratios={"token/dense": 0.5})


@pytest.mark.parametrize(
    ("function", "free"),
    [
        (keras.ops.silu, True),
        (tf.nn.relu, True),
        (tf.nn.swish, True),
        (lambda x: x * ops.sigmoid(x), True),
        (lambda x: ops.where(x > 0, x, 0.1 * x), True),
        (lambda x: x / ops.sum(x, axis=-1, keepdims=True), False),
        (lambda x: ops.flip(x, axis=-1), False),
        (lambda x: x * ops.arange(8, dtype="float32"), False),
        (keras.ops.softmax, False),
    ],
)
def test_any_function_that_looks_at_one_element_at_a_time_is_an_activation(function, free):
    model = network(lambda x: layers.Dense(2)(layers.Dense(8, activation=function, name="wide")(x)), (4,))
    graph = ChannelGraph(model)
    assert ("wide" not in graph.frozen_layers()) == free
    if free:
        assert tfprune.verify(model, tfprune.plan_channels(model, 0.5), power=True).unnoticed == ()


def test_positions_that_become_examples_and_come_back_are_no_raw_error():
    inputs = keras.Input((6, 4))
    x = ops.reshape(layers.Dense(8, activation="relu", name="first")(inputs), (-1, 8))
    x = ops.reshape(layers.Dense(16, activation="relu", name="second")(x), (-1, 6, 16))
    model = randomize(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))))
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan) <= 1e-5


# What a new user found.


def around(layer, shape=(6, 5)):
    """A network with a layer in its middle."""
    inputs = keras.Input(shape)
    x = layers.Dense(7, activation="relu")(layer(layers.Dense(16, activation="relu", name="emb")(inputs)))
    return randomize(keras.Model(inputs, layers.Dense(3, name="out")(x)))


class Wide(layers.Layer):
    """A dense layer inside, of a width that the config does not tell, and what a subclass does with it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.norm, self.drop = layers.Dense(10), layers.BatchNormalization(), layers.Dropout(0.5)

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 10))


class Fixed(Wide):
    def call(self, x):
        return self.norm(self.dense(x), training=False)


class Always(Wide):
    def call(self, x):
        return self.drop(self.dense(x), training=True)


class InTraining(Wide):
    def call(self, x, training=None):
        return self.dense(x) * (5.0 if training else 1.0)


@pytest.mark.parametrize("kind", [Fixed, Always, InTraining])
def test_what_a_layer_does_in_training_alone_keeps_it_from_being_unfolded(kind):
    plan = tfprune.plan_channels(around(kind(name="odd")), 0.5)
    assert len(plan.keep["odd/dense"]) == 10
    assert not any("becomes the layers" in note for note in plan.notes)


class HandsOn(Wide):
    def call(self, x, training=None):
        return self.drop(self.norm(self.dense(x), training=training), training=training)


def test_an_unfolded_layer_trains_as_it_did():
    model = around(HandsOn(name="odd"))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["odd/dense"]) == 5
    small, inputs = plan.apply(model), np.ones((2, 6, 5), "float32")
    (norm,) = (layer for layer in small.layers if isinstance(layer, layers.BatchNormalization))
    before = norm.moving_mean.numpy()
    assert len({float(np.sum(small(inputs, training=True))) for _ in range(12)}) > 1  # it drops
    assert not np.array_equal(norm.moving_mean.numpy(), before)


class Louder(layers.Layer):
    """An attribute that its config does not tell."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.loudness, self.dense = units, 1.0, layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) * self.loudness

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_an_attribute_that_the_config_does_not_tell_is_not_lost():
    tfprune.plan_channels(around(Louder(12, name="louder")), 0.5)  # what is known of one says nothing of another
    layer = Louder(12, name="louder")
    layer.loudness = 5.0
    model = around(layer)
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()


def test_what_is_not_trained_inside_is_not_trained_in_the_smaller_network():
    model = with_block()
    model.get_layer("block").widen.trainable = False
    small = tfprune.plan_channels(model, 0.5).apply(model)
    assert [small.get_layer("block").widen.trainable, small.get_layer("block").gate.trainable] == [False, True]


def test_fresh_weights_inside_follow_from_the_seed():
    model = with_block()
    plan = tfprune.plan_channels(model, 0.5)
    one, same, other = (plan.apply(model, weights="fresh", seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(*pair) for pair in zip(one, same, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


class Holder(layers.Layer):
    def __init__(self, inner, **options):
        super().__init__(**options)
        self.inner = inner

    def call(self, x):
        return ops.relu(self.inner(x))


def test_a_layer_that_two_layers_hold_is_told():
    shared = layers.Dense(8, name="shared")
    shared.build((None, 8))
    inputs = keras.Input((8,))
    x = Holder(shared, name="one")(Holder(shared, name="two")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6, name="wide")(x)))
    with pytest.raises(PlanError, match="two and one share the weight shared/kernel"):
        tfprune.plan_channels(model, 0.5)


class Doubled(layers.Dense):
    def call(self, x):
        return super().call(x) * 2.0


class Tied(layers.Layer):
    """An autoencoder of one weight."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def call(self, x):
        return ops.matmul(ops.relu(ops.matmul(x, self.kernel)), ops.transpose(self.kernel))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class OfSizes(Wide):
    def call(self, x):
        x = self.dense(x)
        return ops.relu(ops.relu(x)) if x.shape[0] is not None and x.shape[0] > 3 else ops.relu(x)


class Loop(layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")

    def call(self, x):
        return ops.fori_loop(0, 3, lambda _, y: y * self.factor, x)


class Sampling(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + 1e-9 * keras.random.normal(ops.shape(x), seed=self.seeds)


class Counting(layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1)
        return x


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Doubled(12, activation="relu", name="odd"),
        lambda: Doubled(12, activation="tanh", name="odd"),
        lambda: Tied(9, name="odd"),
        lambda: OfSizes(name="odd"),
        lambda: Loop(name="odd"),
        lambda: Sampling(name="odd"),
        lambda: Counting(name="odd"),
    ],
)
def test_an_odd_layer_is_pruned_or_frozen_and_what_is_promised_holds(layer):
    model = around(layer())
    before = [keras.ops.convert_to_numpy(variable) for variable in model.variables if "seed" not in variable.path]
    for normalization in ("frozen", "narrowed"):
        plan = tfprune.plan_channels(model, 0.5, normalization=normalization)
        assert tfprune.verify(model, plan, power=True) <= 1e-5
        small = plan.apply(model)
        assert (
            sum(np.prod(weight.shape) for weight in small.weights if "calls" not in weight.path) >= plan.params[1] - 1
        )
    after = [keras.ops.convert_to_numpy(variable) for variable in model.variables if "seed" not in variable.path]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_names_stay_unique_where_a_layer_becomes_the_layers_inside():
    inputs = keras.Input((5,))
    x = layers.Dense(9, name="b_dense")(Plain(name="b")(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(2)(x)))
    plan = tfprune.plan_channels(model, 0.5)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    names = [layer.name for layer in plan.apply(model).layers]
    assert len(set(names)) == len(names)
    assert {"b_dense", "b_dense_2"} <= set(names)


class Plain(Wide):
    def call(self, x):
        return ops.relu(self.dense(x))


class Shifts(NamedTuple):
    one: keras.Variable
    others: list


@keras.saving.register_keras_serializable("looking")
class Listed(layers.Layer):
    """Weights in a list, in a dictionary and in tuples; it notes its calls, and adds a loss."""

    def __init__(self, width=12, **options):
        super().__init__(**options)
        self.width, self.calls = width, []

    def build(self, shape):
        self.kernels = [self.add_weight(shape=(shape[-1], self.width)), self.add_weight(shape=(self.width, 6))]
        self.scales = {"last": (self.add_weight(shape=(6,)), None)}
        self.shifts = Shifts(self.add_weight(shape=(6,)), [self.add_weight(shape=(6,))])

    def call(self, x):
        self.calls.append("called")
        self.add_loss(ops.mean(x))
        x = ops.relu(x @ self.kernels[0]) @ self.kernels[1] * self.scales["last"][0]
        return x * ops.sigmoid(self.shifts.one) + self.shifts.others[0]

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_weights_in_lists_are_weights_and_nothing_that_a_call_does_is_left():
    model = network(lambda x: layers.Dense(2)(Listed(name="listed")(layers.Dense(8, name="first")(x))), (5,))
    layer = model.get_layer("listed")
    calls, kernels, losses = list(layer.calls), list(layer.kernels), len(model.losses)
    own = [layer.scales["last"], layer.shifts, layer.shifts.others, *layer.shifts, *layer.shifts.others]
    plan = tfprune.plan_channels(model, 0.5)
    assert sorted(size for size in plan.sizes().values() if size[0] > size[1]) == [(8, 4), (12, 6)]
    proof = tfprune.verify(model, plan, power=True)
    assert (proof <= 1e-5, proof.unnoticed) == (True, ())
    small = plan.apply(model)
    assert layer.calls == calls
    assert all(one is other for one, other in zip(layer.kernels, kernels, strict=True))
    after = [layer.scales["last"], layer.shifts, layer.shifts.others, *layer.shifts, *layer.shifts.others]
    assert all(one is other for one, other in zip(after, own, strict=True))
    assert all(isinstance(one, keras.Variable) for one in (layer.scales["last"][0], *layer.shifts.others))
    assert len(model.losses) == losses
    small(np.ones((3, 5), "float32"))
    assert len(small.losses) == 1  # the layer stays the layer that adds it


@keras.saving.register_keras_serializable("looking")
class Renamed(layers.LSTM):
    def __init__(self, units, **options):
        super().__init__(units, **options)
        self.note = "mine"


@keras.saving.register_keras_serializable("looking")
class Enlarged(layers.Dense):
    """A config of it makes another layer: twice as wide again."""

    def __init__(self, units, **options):
        super().__init__(2 * units, **options)


@keras.saving.register_keras_serializable("looking")
class Negated(layers.Dense):
    def call(self, x):
        return -super().call(x)


def test_a_subclass_with_another_constructor_alone_is_what_its_base_is():
    def body(x):
        x = Renamed(8, name="mine", return_sequences=True)(layers.Dense(6, name="first")(x))
        return layers.Dense(2)(Negated(10, name="negated")(x))

    model = network(body, (4, 5))
    records = ChannelGraph(model).records
    assert not records["mine"].looked_into
    assert records["negated"].looked_into
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.sizes()["mine"] == (8, 4)
    assert tfprune.verify(model, plan, power=True).unnoticed == ()
    assert type(plan.apply(model).get_layer("mine")) is Renamed


def test_a_subclass_that_its_config_does_not_make_is_not_taken_for_its_base():
    model = network(lambda x: layers.Dense(2)(Enlarged(4, name="wide")(layers.Dense(6, name="first")(x))), (5,))
    with pytest.raises(PlanError, match=r"wide \(Enlarged\) has no field in its config for this width"):
        tfprune.plan_channels(model, 0.5)


def test_a_subclass_of_a_layer_normalization_is_narrowed():
    own = type("Own", (layers.LayerNormalization,), {})
    model = network(lambda x: layers.Dense(2)(own(name="norm")(layers.Dense(8, name="first")(x))), (5,))
    plan = tfprune.plan_channels(model, 0.5, normalization="narrowed")
    assert plan.sizes()["first"] == (8, 4)
    assert tfprune.verify(model, plan) <= 1e-5


@pytest.mark.parametrize("skip", ["block", "bl*", "block/*"])
def test_a_layer_that_is_skipped_by_its_own_name_keeps_all_that_is_inside(skip):
    model = network(lambda x: layers.Dense(2)(layers.Dense(8, name="after")(Listed(name="block")(x))), (5,))
    plan = tfprune.plan_channels(model, 0.5, skip=[skip])
    assert {layer for layer, (before, after) in plan.sizes().items() if before > after} == {"after"}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_layers_of_ones_own_in_sixteen_bits_are_proved(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = network(lambda x: layers.Dense(2)(Listed(name="block")(layers.Dense(8)(x))), (5,))
        plan = tfprune.plan_channels(model, 0.5)
        assert tfprune.verify(model, plan) <= 1e-5
    finally:
        keras.config.set_dtype_policy(before)


def test_weight_plans_are_proved_beside_a_layer_of_ones_own():
    model = network(lambda x: layers.Dense(2)(Block(8, name="block")(layers.Dense(8)(x))), (5,))
    assert "exactly zero" in tfprune.plan_weights(model, 0.5, dense=True).prove(model)


@keras.saving.register_keras_serializable("looking")
class Secretive(layers.Layer):
    """It cannot be traced, and neither its config nor an attribute of that name tells the width."""

    def __init__(self, width=4, **options):
        super().__init__(**options)
        self.units = width

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def call(self, x):
        return tf.numpy_function(np.matmul, (x, self.kernel), tf.float32)

    def get_config(self):
        return {key: value for key, value in super().get_config().items() if key != "width"}


def test_a_layer_that_its_config_does_not_make_is_told_before_a_plan_is_promised():
    model = network(lambda x: layers.Dense(2)(layers.Dense(8)(Secretive(6, name="secretive")(x))), (5,))
    with pytest.raises(PlanError, match=r"secretive \(Secretive\) cannot be made again: .* of other weights"):
        tfprune.plan_channels(model, 0.5)
    whole = network(lambda x: layers.Dense(2)(layers.Dense(8, name="wide")(Secretive(4, name="whole")(x))), (5,))
    assert tfprune.plan_channels(whole, 0.5).sizes()["wide"] == (8, 4)


class SplitBias(keras.layers.Layer):
    """Adds halves of a weight of its own to what a layer inside makes."""

    def __init__(self, **config):
        super().__init__(**config)
        self.inner = layers.Dense(4)

    def build(self, shape):
        self.inner.build(shape)
        self.bias = self.add_weight(shape=(2, 4), name="bias")

    def call(self, x):
        one, two = ops.split(self.bias, 2, axis=0)
        return ops.relu(self.inner(x) + ops.squeeze(one, 0)) + ops.squeeze(two, 0)


def test_a_weight_that_is_cut_apart_hinders_nothing_else():
    model = network(lambda x: layers.Dense(3, name="head")(SplitBias()(layers.Dense(6, name="wide")(x))), (6,))
    plan = tfprune.plan_channels(model, 0.5)
    assert len(plan.keep["wide"]) == 3
    prove(model, plan)


class Unregistered(layers.Layer):
    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable("looking")
class OfALibrary(keras.Model):
    """As libraries write them: layers in the constructor, whose arguments are the config."""

    def __init__(self, width=8, **options):
        inputs = keras.Input((5,))
        super().__init__(inputs, layers.Dense(2)(Unregistered()(layers.Dense(width, name="wide")(inputs))), **options)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}


def test_classes_that_only_the_smaller_file_needs_are_told(tmp_path):
    model = OfALibrary()
    model.save(tmp_path / "large.keras")
    assert keras.saving.load_model(tmp_path / "large.keras").width == 8
    plan = tfprune.plan_channels(model, 0.5)
    assert [note for note in plan.notes if "custom_objects= for Unregistered" in note]
    with pytest.warns(UserWarning, match="is a OfALibrary"):
        plan.apply(model).save(tmp_path / "small.keras")
    with pytest.raises(tfprune.UsageError, match="it needs 'Unregistered'"):
        tfprune.load(tmp_path / "small.keras")
    assert tfprune.load(tmp_path / "small.keras", {"Unregistered": Unregistered}).get_layer("wide").units == 4


@keras.saving.register_keras_serializable("looking")
class Sixteen(layers.Conv2D):
    """A width of its own, whatever its config says."""

    def __init__(self, **options):
        super().__init__(**{**options, "filters": 16, "kernel_size": 3})


@keras.saving.register_keras_serializable("looking")
class OtherName(layers.Dense):
    def __init__(self, width, **options):
        super().__init__(width, **options)

    def get_config(self):
        config = super().get_config()
        return {**{key: value for key, value in config.items() if key != "units"}, "width": config["units"]}


def test_a_subclass_with_a_width_of_its_own_keeps_it():
    model = network(
        lambda x: layers.Conv2D(2, 1)(Sixteen(name="own")(layers.Conv2D(10, 1, name="first")(x))), (6, 6, 3)
    )
    plan = tfprune.plan_channels(model, 0.5)
    assert {layer: sizes for layer, sizes in plan.sizes().items() if sizes[0] > sizes[1]} == {"first": (10, 5)}
    assert tfprune.verify(model, plan) <= 1e-5


def test_a_subclass_that_names_its_width_otherwise_is_made_with_another():
    model = network(lambda x: layers.Dense(2)(OtherName(8, name="own")(layers.Dense(10, name="first")(x))), (6,))
    plan = tfprune.plan_channels(model, 0.5)
    assert plan.sizes()["first"] == (10, 5)
    assert tfprune.verify(model, plan) <= 1e-5
    assert plan.apply(model).get_layer("own").units == 4


@keras.saving.register_keras_serializable("looking")
class Regular(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.Dense(8, activity_regularizer="l2", kernel_regularizer="l2")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        self.add_loss(ops.mean(x))
        return self.inner(x)


def test_losses_of_the_last_call_stay_what_they_are():
    model = network(lambda x: layers.Dense(2)(Regular()(layers.Dense(8, activity_regularizer="l1")(x))), (5,))
    model(np.ones((3, 5), "float32"))
    losses = [float(loss) for loss in model.losses]
    plan = tfprune.plan_channels(model, 0.5)
    tfprune.verify(model, plan, power=True)
    plan.apply(model)
    assert [float(loss) for loss in model.losses] == losses
    assert len(losses) == 4


@keras.saving.register_keras_serializable("looking")
class Counted(layers.Layer):
    """Counts its calls."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width, self.inner = width, layers.Dense(width)

    def build(self, shape):
        self.inner.build(shape)
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="count")

    def call(self, x):
        self.count.assign_add(1)
        return ops.relu(self.inner(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("looking")
class Growing(layers.Layer):
    """Computes with what it counts."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="ones", trainable=False, name="count")

    def call(self, x):
        self.count.assign(self.count + 1.0)
        return x * self.count


def counting(layer):
    def body(x):
        x = layers.Dense(8, activation="relu", name="first")(x)
        return layers.Dense(3)(layer(layers.Dense(8, name="before")(x)))

    model = network(body, (5,))
    randomize(model)
    layer.count.assign(3)
    return model


def test_a_layer_that_counts_its_calls_is_pruned_and_goes_on_counting(tmp_path):
    model = counting(Counted(10, name="own"))
    plan = tfprune.plan_channels(model, 0.5)
    assert {name: len(keep) for name, keep in plan.keep.items() if name != model.layers[-1].name} == {
        "first": 4, "before": 4, "own/dense": 5,
    }  # fmt: skip
    small = proved(model, plan, tmp_path)
    assert type(small.get_layer("own")) is Counted
    before = int(small.get_layer("own").count)
    small(np.ones((2, 5), "float32"))
    assert int(small.get_layer("own").count) == before + 1
    assert int(model.get_layer("own").count) == 3


def test_a_layer_that_computes_with_what_it_counts_is_frozen_in_plain_words():
    model = counting(Growing(name="own"))
    assert ChannelGraph(model).frozen_layers()["before"] == (
        "own (Growing) is not known to tfprune, and computes with count, which it changes with every call"
    )


@pytest.mark.parametrize("criterion", ["l1", "mean_activation", "taylor"])
@pytest.mark.parametrize("layer", [Counted, Growing])
def test_nothing_that_a_layer_counts_is_changed_by_a_plan(layer, criterion):
    model = counting(Counted(10, name="own") if layer is Counted else Growing(name="own"))
    data = np.random.default_rng(0).normal(size=(16, 5)).astype("float32"), np.zeros((16, 3), "float32")
    more = {"l1": {}, "mean_activation": {"data": data[0]}, "taylor": {"data": data, "loss": "mse"}}[criterion]
    plan = tfprune.plan_channels(model, 0.5, criterion=criterion, **more)
    assert float(model.get_layer("own").count) == 3
    assert tfprune.verify(model, plan, power=True) <= 1e-5
    plan.apply(model)
    assert float(model.get_layer("own").count) == 3
