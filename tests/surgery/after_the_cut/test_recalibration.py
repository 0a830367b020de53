"""Moving statistics measured anew, against numpy by hand in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.helpers import network, normalizations, plain_cnn, randomize, weights_by_path
from tfprune.errors import TfpruneError, UsageError


def data_of(shape, seed=0):
    return np.random.default_rng(seed).normal(0.7, 1.3, shape).astype("float32")


def statistics(layer):
    return [np.asarray(one, "float64") for one in (layer.moving_mean, layer.moving_variance)]


def expect(layer, values, mask=None):
    """The statistics of a layer are those of what enters it."""
    rows = np.asarray(values, "float64").reshape(-1, values.shape[-1])
    rows = rows if mask is None else rows[np.asarray(mask).ravel()]
    np.testing.assert_allclose(statistics(layer), [rows.mean(0), rows.var(0)], rtol=2e-5, atol=1e-6)


def entering(model, name, data):
    tensor = model.get_layer(name).input
    return np.asarray(keras.Model(model.input, tensor)(data, training=False), "float64")


def test_the_statistics_are_those_of_all_data_whatever_the_batches():
    model, data = plain_cnn(), data_of((70, 8, 8, 3))
    expected = entering(model, "bn_a", data)
    for batch_size in (70, 32, 7, 1):
        randomize(model)
        assert tfprune.recalibrate(model, data, batch_size=batch_size) is model
        expect(model.get_layer("bn_a"), expected)


def test_a_layer_behind_another_is_measured_behind_what_that_one_makes_of_the_batch():
    model, data = plain_cnn(), data_of((40, 8, 8, 3))
    tfprune.recalibrate(model, data, batch_size=40)
    # All data are one batch, so that the statistics of the first layer are by now those it was normalized with.
    expect(model.get_layer("bn_b"), entering(model, "bn_b", data))


def test_training_mode_with_all_data_in_a_batch_and_no_momentum_gives_the_same():
    model, data = plain_cnn(), data_of((24, 8, 8, 3))
    tfprune.recalibrate(model, data)
    received = [one.numpy() for one in model.weights]
    randomize(model)
    for layer in normalizations(model):
        layer.momentum = 0.0
    model(data, training=True)
    for one, other in zip(model.weights, received, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-5, atol=1e-6)


def in_batches(data, size=9):
    return [data[start : start + size] for start in range(0, len(data), size)]


class Batches(keras.utils.PyDataset):
    def __init__(self, data):
        super().__init__()
        self.data = data

    def __len__(self):
        return -(-len(self.data) // 9)

    def __getitem__(self, index):  # never raises an IndexError
        return self.data[9 * (index % len(self)) :][:9], np.zeros(1)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: (x, np.zeros(len(x))),
        lambda x: (x, np.zeros(len(x)), np.ones(len(x))),
        lambda x: tf.constant(x),
        lambda x: [x],
        lambda x: {"image": x},
        lambda x: in_batches(x),
        lambda x: ((one, None) for one in in_batches(x)),
        lambda x: tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(9),
        lambda x: tf.data.Dataset.from_tensor_slices({"image": x}).batch(9),
        Batches,
    ],
)
def test_data_in_every_form(form):
    model, data = plain_cnn(), data_of((40, 8, 8, 3))
    expected = entering(model, "bn_a", data)
    tfprune.recalibrate(model, form(data))
    expect(model.get_layer("bn_a"), expected)


@pytest.mark.parametrize("by", [list, tuple, dict])
def test_several_inputs(by):
    one, other = keras.Input((5,), name="z"), keras.Input((5,), name="a")
    model = keras.Model([one, other], layers.BatchNormalization(name="bn")(layers.Concatenate()([one, other])))
    first, second = data_of((2, 30, 5))
    given = {list: [first, second], tuple: ([first, second], np.zeros(30)), dict: {"a": second, "z": first}}[by]
    tfprune.recalibrate(model, given)
    expect(model.get_layer("bn"), np.concatenate([first, second], axis=-1))


class Counting(layers.Layer):
    """Counts its calls, adds a loss, has layers inside."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), dtype="int32", trainable=False, initializer="zeros")
        self.inner = layers.BatchNormalization()
        self.inner.build(shape)

    def call(self, x, training=None):
        self.calls.assign_add(1)
        self.add_loss(keras.ops.mean(x))
        return self.inner(x, training=training)


def with_all():
    """Dropout, frozen and nested layers, a layer with one inside, a stateful recurrent one."""
    inner_input = keras.Input((6, 4))
    inner = keras.Model(inner_input, layers.BatchNormalization(name="nested")(layers.Dense(4)(inner_input)))
    inputs = keras.Input((6, 3), batch_size=10)
    x = layers.Dropout(0.5, seed=1)(layers.Dense(4, name="first")(inputs))
    x = layers.GaussianNoise(0.5, seed=2)(inner(x))
    x = Counting(name="counting")(x)
    x = layers.BatchNormalization(name="frozen", trainable=False)(x)
    x = layers.GRU(5, stateful=True, return_sequences=True)(x)
    x = layers.TimeDistributed(layers.BatchNormalization(), name="timed")(x)
    return randomize(keras.Model(inputs, layers.Dense(2)(x)))


def test_all_else_stays_as_it_is():
    model, data = with_all(), data_of((20, 6, 3))
    model.get_layer("counting").calls.assign(3)
    model.compile("adam", "mse")
    model.fit(data, np.zeros((20, 6, 2)), batch_size=10, verbose=0)
    before, losses = weights_by_path(model), len(model.losses)
    states = [one.numpy().copy() for one in model.variables]
    updates = int(model.optimizer.iterations)
    tfprune.recalibrate(model, data)
    changed = [path for path, value in weights_by_path(model).items() if not np.array_equal(value, before[path])]
    assert len(changed) == 8
    assert all(path.rpartition("/")[2].startswith("moving_") for path in changed)
    for variable, value in zip(model.variables, states, strict=True):  # seeds and recurrent states are among them
        assert variable.name.startswith("moving_") or np.array_equal(variable.numpy(), value), variable.path
    assert len(model.losses) == losses
    assert int(model.optimizer.iterations) == updates
    assert not model.get_layer("frozen").trainable
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


def test_nested_and_inner_layers_see_what_enters_them():
    model, data = with_all(), data_of((10, 6, 3))
    tfprune.recalibrate(model, data)
    nested = model.layers[3]
    dense, normalization = nested.layers[1:]
    x = np.asarray(dense(model.get_layer("first")(data)))
    expect(normalization, x)
    counting, frozen = model.get_layer("counting"), model.get_layer("frozen")
    x = normalization(x)
    expect(counting.inner, np.asarray(x))
    expect(frozen, np.asarray(counting.inner(x)))


def test_masked_time_steps_do_not_count():
    def body(x):
        x = layers.Embedding(9, 4, mask_zero=True, name="words")(x)
        return layers.BatchNormalization(name="bn")(x)

    model = network(body, (5,), dtype="int32")
    tokens = np.random.default_rng(0).integers(0, 9, (30, 5))
    tfprune.recalibrate(model, tokens)
    expect(model.get_layer("bn"), np.asarray(model.get_layer("words")(tokens)), tokens != 0)


def test_a_shared_layer_is_measured_over_all_of_its_calls():
    def body(x):
        shared = layers.BatchNormalization(name="shared")
        return layers.Add()([shared(x), shared(layers.Rescaling(3.0)(x))])

    model, data = network(body, (5,)), data_of((30, 5))
    tfprune.recalibrate(model, data)
    expect(model.get_layer("shared"), np.concatenate([data, 3 * data]))


def test_channels_first_and_renorm():
    def body(x):
        return layers.BatchNormalization(axis=1, renorm=True, name="bn")(x)

    model, data = network(body, (3, 4)), data_of((30, 3, 4))
    tfprune.recalibrate(model, data)
    layer, rows = model.get_layer("bn"), data.swapaxes(1, 2)
    expect(layer, rows)
    deviation = np.sqrt(rows.reshape(-1, 3).var(0) + layer.epsilon)
    np.testing.assert_allclose(layer.renorm_mean, layer.moving_mean)
    for received in (layer.renorm_stddev, layer.moving_stddev):
        np.testing.assert_allclose(received, deviation, rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
def test_every_dtype_policy(policy):
    inputs = keras.Input((6,))
    x = layers.Dense(8, dtype=policy, name="dense")(inputs)
    model = randomize(keras.Model(inputs, layers.BatchNormalization(dtype=policy, name="bn")(x)))
    data, layer = data_of((40, 6)), model.get_layer("bn")
    dtype = layer.moving_mean.dtype
    tfprune.recalibrate(model, data)
    assert layer.moving_mean.dtype == dtype
    rows = np.asarray(keras.ops.cast(model.get_layer("dense")(data), "float64"))
    rounding = 1e-9 if policy == "float64" else 2e-3 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(statistics(layer), [rows.mean(0), rows.var(0)], rtol=rounding, atol=rounding)


def test_a_large_mean_leaves_the_variance_its_digits():
    model = network(lambda x: layers.BatchNormalization(name="bn")(x), (4,))
    data = 1000 + data_of((300, 4))
    tfprune.recalibrate(model, data, batch_size=16)
    np.testing.assert_allclose(statistics(model.get_layer("bn"))[1], data.astype("float64").var(0), rtol=1e-4)


def test_a_subclassed_model():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.bn = layers.Dense(4), layers.BatchNormalization()

        def call(self, x, training=None):
            return self.bn(self.dense(x), training=training)

    model, data = Mine(), data_of((30, 3))
    model(data)
    tfprune.recalibrate(model, data)
    expect(model.bn, np.asarray(model.dense(data)))


def test_inside_of_what_tensorflow_compiles():
    class Compiled(layers.Layer):
        def build(self, shape):
            self.bn = layers.BatchNormalization()
            self.bn.build(shape)

        @tf.function
        def call(self, x):
            return self.bn(x)

    model, data = network(lambda x: Compiled(name="compiled")(x), (3,)), data_of((30, 3))
    model(data)
    tfprune.recalibrate(model, data)
    expect(model.get_layer("compiled").bn, data)
    assert not tf.config.functions_run_eagerly()


def endless():
    return tf.data.Dataset.from_tensors(data_of((4, 8, 8, 3))).repeat()


WITH_NAN = np.where(np.arange(192).reshape(8, 8, 3) == 5, np.nan, 1.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "is a NoneType"),
        ("images", "is a str"),
        (np.zeros((0, 8, 8, 3)), "no example"),
        ([], "no example"),
        (iter([]), "no example"),
        (tf.data.Dataset.from_tensor_slices(np.zeros((0, 8, 8, 3))).batch(2), "no example"),
        (np.zeros((4, 8, 9, 3)), r"has batches of \(4, 8, 9, 3\); 'plain_cnn' takes \(None, 8, 8, 3\)"),
        (tf.data.Dataset.from_tensor_slices(np.zeros((4, 8, 8, 3))), "does not take|batches of"),
        (endless(), "no end"),
        (WITH_NAN[None], "no finite numbers"),
        ([np.zeros((4, 8, 8, 3)), WITH_NAN[None]], "no finite numbers"),
        ({"picture": np.zeros((4, 8, 8, 3))}, "does not take"),
        (np.array(["a", "b"]), "does not take|batches of"),
        (np.full((4, 8, 8, 3), 1e38), "overflows"),
    ],
)
def test_bad_data_are_told_in_one_line_and_the_network_stays_as_it_was(data, message):
    model = plain_cnn()
    before = model.get_weights()
    with pytest.raises(TfpruneError, match=message) as caught:
        tfprune.recalibrate(model, data)
    assert "\n" not in str(caught.value)
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))


def test_what_else_cannot_be():
    with pytest.raises(UsageError, match="has no batch normalization"):
        tfprune.recalibrate(network(lambda x: layers.Dense(2)(x), (3,)), np.zeros((4, 3)))
    with pytest.raises(UsageError, match="batch_size=0"):
        tfprune.recalibrate(plain_cnn(), np.zeros((4, 8, 8, 3)), batch_size=0)
    vectors = network(lambda x: layers.BatchNormalization()(x), (3,))
    with pytest.raises(UsageError, match="one value per channel"):
        tfprune.recalibrate(vectors, np.zeros((1, 3)))
    with pytest.raises(UsageError, match="exactly 10"):
        tfprune.recalibrate(with_all(), np.zeros((12, 6, 3)))
    two = network(lambda x, y: layers.BatchNormalization()(layers.Add()([x, y])), (2,), (2,))
    with pytest.raises(UsageError, match=r"unlike numbers of examples for its inputs: \[3, 4\]"):
        tfprune.recalibrate(two, [np.zeros((3, 2)), np.zeros((4, 2))])


def test_a_pruned_network_comes_back():
    model, data = plain_cnn(), data_of((64, 8, 8, 3))
    tfprune.recalibrate(model, data)
    small = tfprune.plan_channels(model, ratio=0.5).apply(model)
    tfprune.recalibrate(small, data)
    for layer in normalizations(small):
        outputs = entering(small, layer.name, data) - np.asarray(layer.moving_mean)
        normalized = outputs / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
        assert np.abs(normalized.mean((0, 1, 2))).max() < 1e-4
