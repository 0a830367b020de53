import dataclasses
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers import randomize
from tests.trainings import CLASSES, MEAN, STD, STRATEGY, make_data
from tfprune.data.image_data import ImageData
from tfprune.errors import DivergedError, UsageError
from tfprune.experiments.studies.monitor import EarlyWeights
from tfprune.methods.base import MethodSettings
from tfprune.methods.network_slimming import METHOD as NETWORK_SLIMMING
from tfprune.methods.soft_filter import ZeroFilters
from tfprune.methods.sparse_structure_selection import METHOD as SELECTION
from tfprune.planning.weights import find_masks
from tfprune.surgery.layers import FusedBatchNormalization
from tfprune.surgery.masks import GradualMasks, mask_edit
from tfprune.training import augment, loop
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.schedules import Schedule

FILTERS = 4


def conv_bn_dense(seed=0, ending="logits"):
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(FILTERS, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if ending == "softmax argument":
        outputs = layers.Dense(CLASSES, activation="softmax", name="logits")(x)
    else:
        outputs = layers.Dense(CLASSES, name="logits")(x)
        if ending == "softmax layer":
            outputs = layers.Softmax(name="softmax")(outputs)
        elif ending == "softmax activation":
            outputs = layers.Activation("softmax", name="softmax")(outputs)
        elif ending == "softmax operation":
            outputs = keras.ops.softmax(outputs)
    return randomize(keras.Model(inputs, outputs, name="tiny"), seed)


def make_trainer(model=None, data=None, edit=None, **config):
    config = {"batch_size": 8, "weight_decay": 1e-3, **config}
    model = conv_bn_dense() if model is None else model
    return Trainer(model, data or make_data(), TrainingConfig(**config), STRATEGY, edit)


@pytest.fixture(scope="module")
def trainer():
    """One for all tests that need no change of the step."""
    return make_trainer()


@pytest.fixture
def batches(monkeypatch):
    """No augmentation; the numbers of the images of every batch that is trained on, in order."""
    seen = []

    def record(images):
        seen.append(images[:, 0, 0, 0].tolist())
        return images

    def leave(images, draws):
        recorded = tf.numpy_function(record, [images], images.dtype)
        recorded.set_shape(images.shape)
        return recorded

    monkeypatch.setattr(augment, "random_crop_and_flip", leave)
    return seen


class Recorder(keras.callbacks.Callback):
    """Every event with the keys of its logs; the losses of the batches."""

    def __init__(self):
        super().__init__()
        self.events, self.batch_logs = [], []

    def _note(self, event, index=None, logs=None):
        self.events.append((event, index, tuple(sorted(logs or {}))))

    def on_train_begin(self, logs=None):
        self._note("train_begin", None, logs)

    def on_train_end(self, logs=None):
        self._note("train_end", None, logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._note("epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._note("epoch_end", epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self._note("batch_begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self._note("batch_end", batch, logs)
        self.batch_logs.append(dict(logs))

    def on_test_begin(self, logs=None):
        self._note("test_begin", None, logs)

    def on_test_end(self, logs=None):
        self._note("test_end", None, logs)


# The step, against a network worked out by hand.


class ByHand:
    """conv_bn_dense in numpy and float64: forward, backward, momentum SGD, moving statistics."""

    def __init__(self, weights, decay, gamma_l1, momentum=0.9, nesterov=False):
        self.kernel, self.gamma, self.beta, self.mean, self.variance, self.dense, self.bias = (
            np.asarray(weight, np.float64) for weight in weights
        )
        self.decay, self.gamma_l1, self.momentum, self.nesterov = decay, gamma_l1, momentum, nesterov
        self.velocity = {}

    @staticmethod
    def patches(x):
        padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
        return np.stack([padded[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3)], axis=-1)

    def forward(self, images, training):
        x = self.patches((images.astype(np.float64) / 255 - MEAN[0]) / STD[0])
        z = x @ self.kernel.reshape(9, FILTERS)
        mean, variance = (z.mean((0, 1, 2)), z.var((0, 1, 2))) if training else (self.mean, self.variance)
        normal = (z - mean) / np.sqrt(variance + 1e-5)
        active = np.maximum(self.gamma * normal + self.beta, 0)
        pooled = active.mean((1, 2))
        logits = pooled @ self.dense + self.bias
        shifted = logits - logits.max(1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
        return x, mean, variance, normal, active, pooled, probabilities

    def step(self, images, labels, rate):
        x, mean, variance, normal, active, pooled, probabilities = self.forward(images, training=True)
        batch = len(images)
        loss = -np.log(probabilities[np.arange(batch), labels]).mean() + self.gamma_l1 * np.abs(self.gamma).sum()
        hits = (probabilities.argmax(1) == labels).mean()
        d_logits = (probabilities - np.eye(CLASSES)[labels]) / batch
        d_active = (d_logits @ self.dense.T)[:, None, None, :] / (32 * 32) * (active > 0)
        d_normal = d_active * self.gamma
        count = batch * 32 * 32
        d_z = (d_normal - d_normal.mean((0, 1, 2)) - normal * (d_normal * normal).sum((0, 1, 2)) / count) / np.sqrt(
            variance + 1e-5
        )
        gradients = {
            "kernel": np.einsum("nijk,nijf->kf", x, d_z).reshape(3, 3, 1, FILTERS),
            "gamma": (d_active * normal).sum((0, 1, 2)) + self.gamma_l1 * np.sign(self.gamma),
            "beta": d_active.sum((0, 1, 2)),
            "dense": pooled.T @ d_logits,
            "bias": d_logits.sum(0),
        }
        for name, gradient in gradients.items():
            gradient = gradient + self.decay * getattr(self, name)
            self.velocity[name] = self.momentum * self.velocity.get(name, 0) + gradient
            move = gradient + self.momentum * self.velocity[name] if self.nesterov else self.velocity[name]
            setattr(self, name, getattr(self, name) - rate * move)
        self.mean = 0.9 * self.mean + 0.1 * mean
        self.variance = 0.9 * self.variance + 0.1 * variance * count / (count - 1)
        return loss, hits

    def weights(self):
        return [self.kernel, self.gamma, self.beta, self.mean, self.variance, self.dense, self.bias]


DECAY = 5e-3
BOTH_RULES = pytest.mark.parametrize("nesterov", [False, True])
WITH_AND_WITHOUT_L1 = pytest.mark.parametrize("gamma_l1", [0.0, 0.05])


def train_beside(monkeypatch, epochs, gamma_l1, nesterov):
    """Trains conv_bn_dense: the data, its first weights, what was recorded of every step, the result, `ByHand`."""
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 1)
    data, model = make_data(), conv_bn_dense()
    model.get_layer("bn").gamma.assign([0.0, -0.7, 0.9, 1.2])  # at 0 the penalty has no gradient
    edit = NETWORK_SLIMMING.edit(MethodSettings(options={"gamma_l1": gamma_l1})) if gamma_l1 else None
    trainer = make_trainer(model, data, edit, weight_decay=DECAY, nesterov=nesterov)
    recorder, start = Recorder(), model.get_weights()
    result = trainer.run(start, epochs, Schedule(0.2, (1,)), seed=3, callbacks=[recorder])
    by_hand = ByHand(start, DECAY, gamma_l1, nesterov=nesterov)
    return data, start, recorder.batch_logs, result, by_hand


@BOTH_RULES
@WITH_AND_WITHOUT_L1
def test_two_epochs_of_five_steps_equal_the_network_worked_out_by_hand(batches, monkeypatch, gamma_l1, nesterov):
    data, start, batch_logs, result, by_hand = train_beside(monkeypatch, 2, gamma_l1, nesterov)
    assert len(batches) == 10
    for epoch, rate, tolerance in ((0, 0.2, 1e-6), (1, 0.02, 1e-5)):  # float32 drifts away
        losses, hits = zip(
            *(
                by_hand.step(data.train_images[batch], data.train_labels[batch], rate)
                for batch in batches[5 * epoch : 5 * epoch + 5]
            ),
            strict=True,
        )
        logs = batch_logs[5 * epoch : 5 * epoch + 5]
        running = np.cumsum(losses) / np.arange(1, 6)
        np.testing.assert_allclose([log["loss"] for log in logs], running, rtol=0, atol=tolerance)
        np.testing.assert_allclose(result.history[epoch]["loss"], np.mean(losses), rtol=0, atol=tolerance)
        np.testing.assert_allclose(result.history[epoch]["accuracy"], np.mean(hits), rtol=0, atol=1e-6)
        assert result.history[epoch]["learning_rate"] == pytest.approx(rate)
        probabilities = by_hand.forward(data.test_images, training=False)[-1]
        chosen = probabilities[np.arange(30), data.test_labels]
        np.testing.assert_allclose(result.history[epoch]["val_loss"], -np.log(chosen).mean(), atol=1e-5)
        accuracy = (probabilities.argmax(1) == data.test_labels).mean()
        np.testing.assert_allclose(result.history[epoch]["val_accuracy"], accuracy, atol=1e-6)
    for received, expected, before in zip(result.weights, by_hand.weights(), start, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)
        assert np.abs(expected - before).max() > 1e-3  # every weight was trained


@pytest.fixture
def float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


@BOTH_RULES
@WITH_AND_WITHOUT_L1
def test_five_steps_in_float64_equal_the_network_worked_out_by_hand(float64, batches, monkeypatch, gamma_l1, nesterov):
    data, _, batch_logs, result, by_hand = train_beside(monkeypatch, 1, gamma_l1, nesterov)
    losses = [by_hand.step(data.train_images[batch], data.train_labels[batch], 0.2)[0] for batch in batches]
    sums = [log["loss"] * steps for steps, log in enumerate(batch_logs, 1)]
    np.testing.assert_allclose(np.diff(sums, prepend=0), losses, rtol=0, atol=1e-6)
    names = ("kernel", "gamma", "beta", "mean", "variance", "dense", "bias")
    for name, received, expected in zip(names, result.weights, by_hand.weights(), strict=True):
        if name != "variance":  # of which Keras' own layer, which float64 goes through, takes the biased one
            np.testing.assert_allclose(received, expected, rtol=0, atol=3e-7, err_msg=name)


def test_the_slimming_penalty_pulls_gamma_by_lambda_and_not_at_zero(batches):
    # A rate and nothing else: with and without the penalty, one step from the same weights.
    model = conv_bn_dense()
    gamma = np.float32([0.0, -0.5, 0.5, 1e-3])
    model.get_layer("bn").gamma.assign(gamma)
    data = make_data(train=8)
    moved = []
    for strength in (0.0, 0.01):
        edit = NETWORK_SLIMMING.edit(MethodSettings(options={"gamma_l1": strength}))
        trainer = make_trainer(model, data, edit, weight_decay=0.0)
        moved.append(trainer.run(model.get_weights(), 1, Schedule(0.1), seed=0).weights)
    np.testing.assert_allclose(moved[1][1] - moved[0][1], -0.1 * 0.01 * np.sign(gamma), atol=1e-7)
    for index in (0, 2, 5, 6):  # nothing else moves
        np.testing.assert_allclose(moved[1][index], moved[0][index], atol=1e-7)


# Batches: which images, in which order.


def test_every_image_is_used_at_most_once_an_epoch_and_none_is_left_out_for_good(batches):
    trainer = make_trainer(data=make_data(train=44))
    trainer.run(conv_bn_dense().get_weights(), 6, Schedule(0.01), seed=0)
    epochs = [np.concatenate(batches[5 * e : 5 * e + 5]) for e in range(6)]
    assert [len(epoch) for epoch in epochs] == [40] * 6
    for epoch in epochs:
        assert len(set(epoch)) == 40
        assert set(epoch) <= set(range(44))
    assert set(np.concatenate(epochs)) == set(range(44))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_the_order_depends_on_seed_and_epoch_only(batches):
    weights = [conv_bn_dense(seed).get_weights() for seed in (0, 1)]
    trainer = make_trainer()
    orders = {}
    for name, (start, seed, rate) in {
        "first": (0, 4, 0.01),
        "other weights and rate": (1, 4, 0.1),
        "other seed": (0, 5, 0.01),
    }.items():
        batches.clear()
        trainer.run(weights[start], 2, Schedule(rate), seed=seed)
        orders[name] = [list(batch) for batch in batches]
    batches.clear()
    another = make_trainer(conv_bn_dense(7), data=make_data(seed=0))
    another.run(weights[0], 2, Schedule(0.01), seed=4)
    assert orders["first"] == orders["other weights and rate"] == batches
    assert orders["first"] != orders["other seed"]
    assert orders["first"][:5] != orders["first"][5:]


def test_the_augmentation_is_that_of_seed_and_step(monkeypatch):
    seen = []

    def record(images, draws):
        seen.append(draws.copy())
        return images

    def spy(images, draws):
        recorded = tf.numpy_function(record, [images, draws], images.dtype)
        recorded.set_shape(images.shape)
        return recorded

    monkeypatch.setattr(augment, "random_crop_and_flip", spy)
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 3)  # the calls are no part of it
    make_trainer().run(conv_bn_dense().get_weights(), 2, Schedule(0.01), seed=6)
    expected = [tf.random.stateless_uniform((8, 3), (6, step)).numpy() for step in range(10)]
    np.testing.assert_array_equal(seen, expected)


# Runs can be repeated.


def assert_equal_runs(one, other):
    assert one.history == other.history
    for first, second in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_second_run_repeats_the_first_bit_for_bit_also_after_another(trainer):
    weights, schedule = conv_bn_dense().get_weights(), Schedule(0.1, (2,))
    first = trainer.run(weights, 3, schedule, seed=1)
    assert_equal_runs(first, trainer.run(weights, 3, schedule, seed=1))
    other = trainer.run(conv_bn_dense(5).get_weights(), 2, Schedule(0.3), seed=9)
    assert other.history[0]["loss"] != first.history[0]["loss"]
    assert_equal_runs(first, trainer.run(weights, 3, schedule, seed=1))
    assert_equal_runs(first, make_trainer().run(weights, 3, schedule, seed=1))


def test_a_shorter_run_is_the_beginning_of_a_longer_one(trainer):
    weights = conv_bn_dense().get_weights()
    short = trainer.run(weights, 2, Schedule(0.1), seed=1)
    assert trainer.run(weights, 4, Schedule(0.1), seed=1).history[:2] == short.history


def test_a_run_repeats_itself_after_one_that_diverged(trainer):
    weights = conv_bn_dense().get_weights()
    first = trainer.run(weights, 1, Schedule(0.1), seed=1)
    with pytest.raises(DivergedError):
        trainer.run(weights, 3, Schedule(1e30), seed=1)
    assert_equal_runs(first, trainer.run(weights, 1, Schedule(0.1), seed=1))


def dropout_net():
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(FILTERS, 3, name="conv")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    return randomize(keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x)))


def test_a_network_with_dropout_repeats_itself_too():
    model = dropout_net()
    trainer = make_trainer(model)
    first = trainer.run(model.get_weights(), 2, Schedule(0.1), seed=1)
    assert_equal_runs(first, trainer.run(model.get_weights(), 2, Schedule(0.1), seed=1))
    assert_equal_runs(first, make_trainer(model).run(model.get_weights(), 2, Schedule(0.1), seed=1))


def test_the_model_that_was_given_is_left_as_it_is():
    model = conv_bn_dense()
    before, kinds = model.get_weights(), [type(layer) for layer in model.layers]
    trainer = make_trainer(model)
    trainer.run(model.get_weights(), 1, Schedule(0.1), seed=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [type(layer) for layer in model.layers] == kinds
    assert FusedBatchNormalization not in kinds
    assert type(trainer.model.get_layer("bn")) is FusedBatchNormalization


# Callbacks.


def test_callbacks_get_the_events_and_logs_of_keras_in_the_order_of_fit(trainer):
    data, ours, theirs = make_data(), Recorder(), Recorder()
    trainer.run(conv_bn_dense().get_weights(), 2, Schedule(0.1), seed=0, callbacks=[ours])
    model = conv_bn_dense()
    # All five steps in one call, as our loop takes them.
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], steps_per_execution=5)
    model.fit(
        data.train_images[:40], data.train_labels[:40], batch_size=8, epochs=2, verbose=0, callbacks=[theirs],
        validation_data=(data.test_images, data.test_labels), validation_batch_size=30,
    )  # fmt: skip
    assert [event[:2] for event in ours.events] == [event[:2] for event in theirs.events]
    logs = {event: keys for event, _, keys in ours.events}
    for event, _, keys in theirs.events:
        if event != "train_end":
            assert logs[event] == keys, event
    assert logs["train_end"] == logs["epoch_end"]  # what fit passes too


def test_callbacks_see_every_call_of_several_steps(monkeypatch):
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 2)
    recorder = Recorder()
    make_trainer().run(conv_bn_dense().get_weights(), 1, Schedule(0.1), seed=0, callbacks=[recorder])
    steps = [event[:2] for event in recorder.events if event[0].startswith("batch")]
    begins_and_ends = [("batch_begin", 0), ("batch_end", 1), ("batch_begin", 2), ("batch_end", 3)]
    assert steps == [*begins_and_ends, ("batch_begin", 4), ("batch_end", 4)]


def test_callbacks_are_told_the_parameters_and_the_model(trainer):
    callback = keras.callbacks.Callback()
    trainer.run(conv_bn_dense().get_weights(), 2, Schedule(0.1), seed=0, callbacks=[callback])
    assert callback.model is trainer.model
    assert callback.params["epochs"] == 2
    assert callback.params["steps"] == 5
    assert float(callback.model.optimizer.learning_rate) == pytest.approx(0.1)


def test_a_callback_can_stop_training(trainer):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    weights = conv_bn_dense().get_weights()
    stopped = trainer.run(weights, 5, Schedule(0.1), seed=0, callbacks=[Stop()])
    assert [epoch["epoch"] for epoch in stopped.history] == [1, 2]
    assert len(trainer.run(weights, 3, Schedule(0.1), seed=0).history) == 3  # not for ever
    assert_equal_runs(stopped, trainer.run(weights, 2, Schedule(0.1), seed=0))


def test_a_callback_that_zeroes_filters_trains_as_soft_pruning_does(trainer):
    class Zero(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.get_layer("conv").kernel
            kernel.assign(np.array(kernel.numpy()) * [1, 0, 1, 1])

    result = trainer.run(conv_bn_dense().get_weights(), 2, Schedule(0.1), seed=0, callbacks=[Zero()])
    assert not result.weights[0][..., 1].any()
    assert result.weights[0][..., [0, 2, 3]].all()


def test_keras_own_callbacks_work_unchanged(trainer, tmp_path, capsys):
    callbacks = [
        keras.callbacks.TensorBoard(tmp_path / "board", histogram_freq=1),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.EarlyStopping("val_loss", mode="max", patience=0, start_from_epoch=0),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.TerminateOnNaN(),
    ]
    result = trainer.run(
        conv_bn_dense().get_weights(), 6, Schedule(0.1), seed=0, callbacks=callbacks, progress_bar=True
    )
    ran = len(result.history)
    assert 2 <= ran < 6  # the loss falls, and a callback that wants it to rise gives up
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + ran
    assert len(list(tmp_path.glob("*.weights.h5"))) == ran
    assert list((tmp_path / "board").rglob("events*"))
    shown = capsys.readouterr().out
    assert "Epoch 1/6" in shown
    assert "val_accuracy" in shown


def test_without_a_progress_bar_nothing_is_printed(trainer, capsys):
    trainer.run(conv_bn_dense().get_weights(), 1, Schedule(0.1), seed=0)
    assert capsys.readouterr().out == ""


# Results.


def accuracy_by_numpy(model, data):
    images = (data.test_images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    outputs = np.asarray(model(images, training=False))
    return (outputs.argmax(-1) == data.test_labels).mean()


@pytest.mark.parametrize("count", [1, 29, 500, 501, 1003])
def test_test_accuracy_is_that_of_the_plain_model_with_the_returned_weights(count):
    data, model = make_data(test=count), conv_bn_dense()
    trainer = make_trainer(model, data)
    result = trainer.run(model.get_weights(), 2, Schedule(0.1), seed=0)
    plain = conv_bn_dense()
    plain.set_weights(result.weights)
    assert result.history[-1]["val_accuracy"] == pytest.approx(accuracy_by_numpy(plain, data), abs=1e-6)
    evaluated = trainer.evaluate(result.weights)
    assert evaluated == {key: result.history[-1][key] for key in ("val_loss", "val_accuracy")}


def test_images_of_other_sizes_are_trained_and_tested_on():
    # 5 x 7 x 1 bytes do not fill the words in which pixels are stored.
    generator = np.random.default_rng(0)
    for height, width in ((5, 7), (70, 66)):
        splits = []
        for count in (9, 7):
            labels = generator.integers(0, CLASSES, count).astype(np.int32)
            splits += [generator.integers(0, 256, (count, height, width, 1), np.uint8), labels]
        data = ImageData("made", *splits, CLASSES, MEAN, STD)
        inputs = keras.Input((height, width, 1))
        outputs = layers.Dense(CLASSES)(layers.Flatten()(inputs))
        model = randomize(keras.Model(inputs, outputs))
        trainer = make_trainer(model, data, batch_size=4)
        assert trainer.evaluate(model.get_weights())["val_accuracy"] == pytest.approx(accuracy_by_numpy(model, data))
        assert np.isfinite(trainer.run(model.get_weights(), 1, Schedule(0.001), seed=0).history[0]["loss"])


def test_evaluate_uses_the_weights_that_it_is_given(trainer):
    data = make_data()
    for seed in (0, 1, 2):
        model = conv_bn_dense(seed)
        accuracy = trainer.evaluate(model.get_weights())["val_accuracy"]
        assert accuracy == pytest.approx(accuracy_by_numpy(model, data), abs=1e-6)


def test_training_learns(trainer):
    result = trainer.run(conv_bn_dense().get_weights(), 25, Schedule(0.2, (20,)), seed=0)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert result.seconds > 0
    assert [epoch["epoch"] for epoch in result.history] == list(range(1, 26))


@pytest.mark.parametrize("ending", ["softmax argument", "softmax activation", "softmax layer", "softmax operation"])
def test_a_network_that_ends_in_a_softmax_trains_as_the_one_that_ends_in_logits(ending):
    weights = conv_bn_dense().get_weights()
    expected, received = (
        make_trainer(conv_bn_dense(ending=end)).run(weights, 2, Schedule(0.1), seed=0) for end in ("logits", ending)
    )
    for one, other in zip(expected.history, received.history, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    for one, other in zip(expected.weights, received.weights, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)


@pytest.mark.parametrize("xla", [False, True])
def test_xla_compiles_the_step_and_computes_the_same(xla, plain_run):
    model = conv_bn_dense()
    trainer = make_trainer(model, xla=xla)
    result = trainer.run(model.get_weights(), 2, Schedule(0.05), seed=0)
    graph = trainer._compiled.train._list_all_concrete_functions()[0].graph.as_graph_def()
    compiled = [function for function in graph.library.function if function.attr["_XlaMustCompile"].b]
    assert bool(compiled) == xla
    for own, other in zip(result.weights, plain_run.weights, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)
    assert [logs["loss"] for logs in result.history] == pytest.approx(
        [logs["loss"] for logs in plain_run.history], rel=1e-5
    )


@pytest.fixture(scope="module")
def plain_run():
    model = conv_bn_dense()
    return make_trainer(model).run(model.get_weights(), 2, Schedule(0.05), seed=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_keeps_float32_variables_and_trains(dtype):
    model = conv_bn_dense()
    trainer = make_trainer(model, precision=f"mixed_{dtype}")
    assert {v.dtype for v in trainer.model.variables} == {"float32"}
    assert {v.dtype for v in trainer.model.optimizer.variables} <= {"float32", "int64", "int32"}
    assert trainer.model.get_layer("conv").compute_dtype == dtype
    assert trainer.model.output.dtype == "float32"
    result = trainer.run(model.get_weights(), 25, Schedule(0.2, (20,)), seed=0)
    assert result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]
    assert {weight.dtype for weight in result.weights} == {np.dtype("float32")}
    assert model.get_layer("conv").compute_dtype == "float32"


def test_mixed_float16_has_the_losses_of_float32(monkeypatch):
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 1)
    model, losses = conv_bn_dense(), []
    for precision in ("float32", "mixed_float16"):
        seen = Recorder()
        make_trainer(model, precision=precision).run(model.get_weights(), 2, Schedule(0.05), 0, [seen])
        losses.append([logs["loss"] for logs in seen.batch_logs])
    np.testing.assert_allclose(*losses, rtol=5e-3)
    assert losses[0] != losses[1]


class StateOfSteps(keras.callbacks.Callback):
    """After every call: the trained variables with their momentum; the scale of the loss; the loss so far."""

    def __init__(self):
        super().__init__()
        self.trained, self.scales, self.losses = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.trained.append([v.numpy() for v in (*self.model.trainable_variables, *optimizer.momentums)])
        self.scales.append(float(optimizer.loss_scale.numpy()))
        self.losses.append(logs["loss"])


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflow_leaves_out_one_step_of_the_loop_and_is_no_divergence(monkeypatch, bad):
    model, seen = conv_bn_dense(), {}
    for calls in (1, 16):  # steps between callbacks
        monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", calls)
        trainer, steps = make_trainer(model, precision="mixed_float16"), StateOfSteps()
        optimizer, scaled = trainer.model.optimizer, trainer.model.optimizer.scaled

        def overflowing(loss, optimizer=optimizer, scaled=scaled):
            return scaled(loss) * tf.where(optimizer.iterations.value == 2, np.float32(bad), np.float32(1))

        monkeypatch.setattr(optimizer, "scaled", overflowing)
        trainer.run(model.get_weights(), 1, Schedule(0.1), 0, [steps])
        seen[calls] = steps
    assert [scale / 2**15 for scale in seen[1].scales] == [1, 1, 0.5, 0.5, 0.5]
    same = [all(map(np.array_equal, *pair)) for pair in itertools.pairwise(seen[1].trained)]
    assert same == [False, True, False, False]
    assert np.isfinite(seen[1].losses).all()
    assert all(map(np.array_equal, seen[1].trained[-1], seen[16].trained[-1]))
    assert (seen[16].scales, seen[16].losses) == (seen[1].scales[-1:], seen[1].losses[-1:])


def test_a_float16_network_that_is_killed_goes_on_with_its_scale(tmp_path, monkeypatch):
    monkeypatch.setattr("tfprune.training.optimizer._STEPS_TO_GROW", 7)  # in the middle of the second of 4 epochs
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 1)
    model, path, seen = conv_bn_dense(), tmp_path / "state.npz", [StateOfSteps(), StateOfSteps()]
    trainers = [make_trainer(model, precision="mixed_float16") for _ in range(3)]
    whole = trainers[0].run(model.get_weights(), 4, Schedule(0.1), 3, [seen[0]])
    with pytest.raises(Killed):
        trainers[1].run(model.get_weights(), 4, Schedule(0.1), 3, [KillBefore(2)], checkpoint=path)
    assert_equal_runs(whole, trainers[2].run(model.get_weights(), 4, Schedule(0.1), 3, [seen[1]], checkpoint=path))
    assert seen[0].scales[-10:] == seen[1].scales
    assert set(seen[1].scales) == {2.0**16, 2.0**17}


def test_a_float16_network_whose_outputs_are_no_numbers_is_told_with_a_way_out():
    model = conv_bn_dense()
    weights = model.get_weights()
    weights[0] = weights[0] * 1e6  # of the convolution: its outputs are no numbers in float16
    with pytest.raises(DivergedError, match=r"loss is nan in step 1 of 5 .* Try a lower learning rate or mixed_bf"):
        make_trainer(model, precision="mixed_float16").run(weights, 1, Schedule(0.1), seed=0)


def test_a_float16_network_whose_gradients_are_never_numbers_is_told(monkeypatch):
    monkeypatch.setattr(loop, "_LEAST_SCALE", 2.0**14)
    trainer = make_trainer(precision="mixed_float16")
    monkeypatch.setattr(trainer.model.optimizer, "scaled", lambda loss: loss * np.float32(np.inf))
    with pytest.raises(DivergedError, match=r"epoch 1 are no finite numbers .* rate 0\.1\. Try .* mixed_bfloat16"):
        trainer.run(conv_bn_dense().get_weights(), 1, Schedule(0.1), seed=0)


def test_layers_keep_their_constraints_and_regularizers():
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(FILTERS, 3, kernel_constraint=keras.constraints.NonNeg(), name="conv")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    regularizer = keras.regularizers.L2(10.0)
    outputs = layers.Dense(CLASSES, kernel_regularizer=regularizer, name="logits")(x)
    model = randomize(keras.Model(inputs, outputs))
    result = make_trainer(model).run(model.get_weights(), 3, Schedule(0.02), seed=0)
    assert model.get_weights()[0].min() < 0 <= result.weights[0].min()
    assert np.abs(result.weights[2]).max() < 0.5 * np.abs(model.get_weights()[2]).max()


# What goes wrong.


def test_a_loss_that_diverges_is_told_with_epoch_steps_and_rate(monkeypatch):
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 2)
    trainer = make_trainer()
    with pytest.raises(DivergedError) as error:
        trainer.run(conv_bn_dense().get_weights(), 4, Schedule(1e-3, (2,), factor=1e30), seed=0)
    message = str(error.value)
    assert "\n" not in message
    assert "epoch 3" in message
    assert re.search("in step [123] of 5 of", message)  # the first that sees what the step before has done
    assert "1e+27" in message
    assert "Try a lower learning rate" in message


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UsageError, match=r"batch_size=45 .* 44 training examples of made"):
        make_trainer(batch_size=45)


def test_a_batch_of_the_whole_data_is_one_step():
    trainer = make_trainer(batch_size=44)
    assert trainer.steps_per_epoch == 1
    assert len(trainer.run(conv_bn_dense().get_weights(), 1, Schedule(0.1), seed=0).history) == 1


# Going on from a checkpoint.


class Killed(BaseException):
    """The process ends."""


class KillBefore(keras.callbacks.Callback):
    """Ends the process in the middle of an epoch, counted from 0."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self._current and batch >= 2:
            raise Killed

    def on_epoch_begin(self, epoch, logs=None):
        self._current = epoch


def stacked_with_dropout(seed=0):
    """As conv_bn_dense, with a layer that draws random numbers of its own."""
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(FILTERS, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Dropout(0.3, name="dropout")(layers.ReLU(name="relu")(x))
    return randomize(
        keras.Model(inputs, layers.Dense(CLASSES, name="logits")(layers.GlobalAveragePooling2D()(x))), seed
    )


OWN_CALLBACKS = {
    "none": (None, lambda: []),
    "masks that grow": (
        mask_edit(lambda record: record.name == "conv"),
        lambda: [GradualMasks(0.6, lambda kernels, sparsity: find_masks(kernels, sparsity)[0])],
    ),
    "zero filters": (None, lambda: [ZeroFilters(0.5)]),
    "early weights": (None, lambda: [EarlyWeights(1)]),
}


@pytest.mark.parametrize("own", OWN_CALLBACKS)
@pytest.mark.parametrize("killed", [(1,), (2,), (1, 1, 3)])
def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path, monkeypatch, own, killed):
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 1)
    edit, make = OWN_CALLBACKS[own]
    model, schedule, path = stacked_with_dropout(), Schedule(0.1, (2,)), tmp_path / "state.npz"
    whole_callbacks = make()
    whole = make_trainer(model, edit=edit).run(model.get_weights(), 4, schedule, 3, whole_callbacks)
    for epoch in killed:
        with pytest.raises(Killed):  # another trainer each time, as in another process
            make_trainer(model, edit=edit).run(
                model.get_weights(), 4, schedule, 3, [*make(), KillBefore(epoch)], checkpoint=path
            )
    seen, callbacks = Recorder(), make()
    result = make_trainer(model, edit=edit).run(
        model.get_weights(), 4, schedule, 3, [*callbacks, seen], checkpoint=path
    )
    assert_equal_runs(whole, result)
    assert [index for event, index, _ in seen.events if event == "epoch_begin"] == list(range(killed[-1], 4))
    for one, other in zip(whole_callbacks, callbacks, strict=True):
        if isinstance(one, EarlyWeights):
            assert all(map(np.array_equal, one.weights, other.weights))


def test_gates_go_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 1)
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(FILTERS, 3, padding="same", name="stem")(inputs)
    branch = layers.BatchNormalization(name="bn")(layers.Conv2D(FILTERS, 3, padding="same", name="conv")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, branch]))
    model, path = keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x)), tmp_path / "state.npz"
    settings = MethodSettings(options={"gate_l1": 0.4})
    trainers = [make_trainer(model, edit=SELECTION.edit(settings)) for _ in range(2)]
    weights, gates = model.get_weights(), [SELECTION.callbacks(settings)[0] for _ in range(3)]
    whole = trainers[0].run(weights, 3, Schedule(0.1), 3, [gates[0]])
    with pytest.raises(Killed):
        trainers[1].run(weights, 3, Schedule(0.1), 3, [gates[1], KillBefore(1)], checkpoint=path)
    result = trainers[1].run(weights, 3, Schedule(0.1), 3, [gates[2]], checkpoint=path)
    assert_equal_runs(whole, result)
    assert gates[0].values == gates[2].values
    assert set(gates[0].values.values()) != {1.0}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "another network's"])
def test_a_damaged_checkpoint_is_named_and_kept_aside(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CALLBACKS", 1)
    model, path = conv_bn_dense(), tmp_path / "state.npz"
    whole = make_trainer(model).run(model.get_weights(), 3, Schedule(0.1), 3)
    with pytest.raises(Killed):
        make_trainer(model).run(model.get_weights(), 3, Schedule(0.1), 3, [KillBefore(2)], checkpoint=path)
    content = path.read_bytes()
    if damage == "flipped":
        middle = content.index(b"model.0.npy") + 200
        content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if damage == "another network's":
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **{**arrays, "model.0": arrays["model.0"][..., 1:]})
        content = path.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "other": b"PK" + bytes(100)}.get(damage, content)
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"state\.npz' is damaged .* state\.damaged"):
        result = make_trainer(model).run(model.get_weights(), 3, Schedule(0.1), 3, checkpoint=path)
    assert_equal_runs(whole, result)
    assert (tmp_path / "state.damaged").read_bytes() == damaged


def test_the_calls_that_an_epoch_is_done_in_change_no_digit(monkeypatch):
    weights, runs = conv_bn_dense().get_weights(), []
    for seconds in (0.0, 1e6):  # one step a call; as many as there may be
        monkeypatch.setattr(loop, "_SECONDS_PER_CALL", seconds)
        runs.append(make_trainer().run(weights, 2, Schedule(0.1), seed=1))
    assert_equal_runs(*runs)


def test_a_loss_that_explodes_without_overflow_is_told(monkeypatch):
    model = conv_bn_dense()
    weights = [
        1e9 * weight if "logits" in str(v.path) else weight
        for v, weight in zip(model.weights, model.get_weights(), strict=True)
    ]
    with pytest.raises(DivergedError, match=r"loss is \d.*e\+\d+ in step 1 of 5 of epoch 1, at learning rate 0\.1"):
        make_trainer(model).run(weights, 1, Schedule(0.1), seed=0)


def test_held_out_images_are_evaluated_beside_the_test_images():
    whole = make_data(train=60)
    data = whole.holding_out(0.3)
    model = conv_bn_dense()
    result = make_trainer(model, data).run(model.get_weights(), 2, Schedule(0.1), 0)
    # The same network with the held out images in the place of the test images.
    swapped = dataclasses.replace(
        data, test_images=data.validation_images, test_labels=data.validation_labels,
        validation_images=None, validation_labels=None,
    )  # fmt: skip
    other = make_trainer(model, swapped).run(model.get_weights(), 2, Schedule(0.1), 0)
    for one, two in zip(result.history, other.history, strict=True):
        assert (one["validation_loss"], one["validation_accuracy"]) == (two["val_loss"], two["val_accuracy"])
        assert one["loss"] == two["loss"]
        assert "validation_loss" not in two
    assert result.history[0]["val_loss"] != other.history[0]["val_loss"]
