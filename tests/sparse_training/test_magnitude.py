"""Magnitude pruning while a user's own `fit` trains: exact after every batch, in every setting, and over restarts."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.kernels import EVERY_NAME, every_kind
from tests.processes import finish, last_json, start
from tests.sparse_training.networks import Watch, data, dense_network, kernels_of, off, zeros_of
from tfprune.errors import PlanError, UsageError
from tfprune.planning.ranking import find_masks

SIZES = {"first": 60, "second": 80, "head": 24}
SCHEDULE = tfprune.PolynomialDecay(end_step=12, frequency=4)


def train(model, epochs=1, watch=None, batch_size=8, callbacks=(), **fit):
    x, y = data()
    own = [*callbacks, *tfprune.callbacks(model), *([watch] if watch else [])]
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, callbacks=own, **fit)


def sparse(method, optimizer="adam", model=None, **compile_settings):
    model = tfprune.sparse(dense_network() if model is None else model, method)
    model.compile(optimizer, "mse", **compile_settings)
    return model


def cubic(step, end, final):
    return final - final * (1 - min(step, end) / end) ** 3


def expected_zeros(step):
    """After so many batches of 8: the cut before batch t is that of the last multiple of 4 up to t."""
    return {name: off(size, cubic(min(step // 4 * 4, 12), 12, 0.8)) for name, size in SIZES.items()}


SETTINGS = {
    "sgd": {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9)},
    "decay": {"optimizer": keras.optimizers.AdamW(0.01, weight_decay=0.1)},
    "averages": {"optimizer": keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5)},
    "averages written back": {"optimizer": keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3)},
    "accumulation": {"optimizer": keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)},
    "scaled loss": {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))},
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_sparsity_is_exact_in_every_layer_at_every_batch_end_and_nothing_grows_back(setting):
    made = dict(SETTINGS[setting])
    if isinstance(made.get("optimizer"), keras.optimizers.Optimizer):
        made["optimizer"] = type(made["optimizer"]).from_config(made["optimizer"].get_config())
    model, watch = sparse(tfprune.Magnitude(0.8, SCHEDULE), **made), Watch()
    train(model, epochs=3, watch=watch)
    assert watch.zeros == [expected_zeros(step) for step in range(1, 16)]
    assert not watch.came_back
    assert zeros_of(model) == expected_zeros(15)  # averages, where there are some, are in the network by now
    plan, plain = tfprune.finish(model)
    assert plan.sizes() == {name: (size, size - off(size, 0.8)) for name, size in SIZES.items()}
    assert plan.prove(plain)
    assert plain is model


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float16", "float64"])
def test_zeros_are_exact_under_every_dtype_policy(policy):
    model, watch = sparse(tfprune.Magnitude(0.8), model=dense_network(policy)), Watch()
    train(model, watch=watch)
    assert watch.zeros == [{name: off(size, 0.8) for name, size in SIZES.items()}] * 5


def test_every_kernel_of_every_kind_of_layer_is_pruned():
    tokens, y = np.random.default_rng(0).integers(0, 11, (16, 6)), np.zeros((16, 2))
    model = tfprune.sparse(every_kind(), tfprune.Magnitude(0.75))
    sizes = {name: value.size for name, value in kernels_of(model).items()}
    model.compile("adam", "mse")
    watch = Watch()
    model.fit(tokens, y, batch_size=4, verbose=0, callbacks=[*tfprune.callbacks(model), watch])
    assert list(sizes) == EVERY_NAME
    assert watch.zeros == [{name: off(size, 0.75) for name, size in sizes.items()}] * 4
    plan, plain = tfprune.finish(model)
    assert set(plan.sizes()) == set(EVERY_NAME)
    assert plan.prove(plain)


class OwnStep(keras.Model):
    """A model with a `call` and a `train_step` of its own, which applies two updates."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = layers.Dense(10, "relu", name="hidden"), layers.Dense(3, name="out")

    def call(self, x):
        return self.head(self.hidden(x))

    def train_step(self, batch):
        x, y = batch
        for _ in range(2):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def test_a_train_step_of_ones_own_is_called_and_its_optimizer_may_count_twice():
    model = OwnStep()
    model.build((None, 6))
    model, watch = sparse(tfprune.Magnitude(0.8, SCHEDULE), "sgd", model), Watch()
    train(model, epochs=3, watch=watch)
    steps = [min(step // 4 * 4, 12) for step in range(1, 16)]
    assert [zeros["hidden"] for zeros in watch.zeros] == [off(60, cubic(step, 12, 0.8)) for step in steps]
    assert isinstance(model, OwnStep)
    assert int(model.optimizer.iterations) == 30
    plan, plain = tfprune.finish(model)
    assert plain is model
    assert plan.prove(plain)


def test_several_batches_at_once_miss_no_cut():
    model, watch = sparse(tfprune.Magnitude(0.8, SCHEDULE), steps_per_execution=5), Watch()
    train(model, epochs=3, watch=watch)
    assert watch.zeros == [expected_zeros(4), expected_zeros(8), expected_zeros(12)]


REPLICAS = """
two_devices()
import keras, tensorflow as tf
import tfprune
from tests.sparse_training.networks import Watch, dense_network, kernels_of
from tests.sparse_training.test_magnitude import SCHEDULE, expected_zeros, train

def trained(**compile_settings):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = tfprune.sparse(dense_network(), tfprune.Magnitude(0.8, SCHEDULE))
        model.compile(keras.optimizers.SGD(0.1), "mse", **compile_settings)
    watch = Watch()
    train(model, epochs=3, watch=watch)
    copies = [copy.numpy() for copy in model.get_layer("first").kernel.value.values]
    same = [bool(((copy == 0) == (kernels_of(model)["first"] == 0)).all()) for copy in copies]
    return [watch.zeros == [expected_zeros(step) for step in range(1, 16)], watch.came_back, same]

report = {"plain": trained()}
try:
    trained(steps_per_execution=2)
except tfprune.UsageError as error:
    report["told"] = str(error)
print(json.dumps(report))
"""


@pytest.mark.slow
def test_several_replicas_hold_the_same_masks(tmp_path):
    (output,) = finish(start(tmp_path, "replicas", REPLICAS))
    report = last_json(output)
    assert report["plain"] == [True, [], [True, True]]
    assert report["told"].startswith("Keras cannot train on several replicas with steps_per_execution=2")


def test_a_network_that_was_trained_before_is_masked_and_a_constraint_of_its_own_stays():
    model = dense_network()
    own = keras.constraints.MaxNorm(0.5)
    model.get_layer("first").kernel.constraint = own
    model.compile("adam", "mse")
    x, y = data()
    model.fit(x, y, verbose=0)  # the compiled step knows of no masks
    model = tfprune.sparse(model, tfprune.Magnitude(0.8))  # and is not compiled again
    train(model)
    kernel = model.get_layer("first").kernel.numpy()
    assert zeros_of(model) == {name: off(size, 0.8) for name, size in SIZES.items()}
    assert np.linalg.norm(kernel, axis=0).max() < 0.5 + 1e-6
    tfprune.finish(model)
    assert model.get_layer("first").kernel.constraint is own
    assert model.get_layer("second").kernel.constraint is None
    model.fit(x, y, verbose=0)
    assert not any(zeros_of(model).values())  # nothing holds them any more


def test_a_global_rank_spreads_what_goes_over_the_kernels():
    model = dense_network()
    model.get_layer("first").kernel.assign(model.get_layer("first").kernel * 0.01)
    before = kernels_of(model)
    model = sparse(tfprune.Magnitude(0.3, scope="global"), keras.optimizers.SGD(0.0), model)
    train(model)
    flat = np.abs(np.concatenate([value.ravel() for value in before.values()]))
    threshold = np.sort(flat)[off(164, 0.3) - 1]
    for name, value in kernels_of(model).items():
        np.testing.assert_array_equal(value == 0, np.abs(before[name]) <= threshold)


@pytest.mark.parametrize("pattern", ["2:4", "block"])
def test_patterns_are_those_of_one_cut(pattern):
    before = kernels_of(dense_network())
    sparsity = 0.5 if pattern == "2:4" else 0.6
    model = sparse(tfprune.Magnitude(sparsity, pattern=pattern), keras.optimizers.SGD(0.0))
    train(model)
    expected, _ = find_masks(before, sparsity, None, pattern)
    for name, value in kernels_of(model).items():
        np.testing.assert_array_equal(value != 0, expected[name])


def test_skipped_kernels_keep_all():
    model = sparse(tfprune.Magnitude(0.8, skip=["fir*", "head"]))
    train(model)
    assert zeros_of(model) == {"first": 0, "second": off(80, 0.8), "head": 0}
    plan, _ = tfprune.finish(model)
    assert list(plan.masks) == ["second"]


# Going on.


def unbroken():
    model = sparse(tfprune.Magnitude(0.8, SCHEDULE))
    train(model, epochs=3)
    return kernels_of(model)


def test_a_second_fit_goes_on_also_when_it_is_compiled_anew():
    model = sparse(tfprune.Magnitude(0.8, SCHEDULE))
    train(model)
    assert zeros_of(model) == expected_zeros(5)
    model.compile("sgd", "mse")
    train(model)
    assert zeros_of(model) == expected_zeros(10)
    train(model)
    assert zeros_of(model) == expected_zeros(15)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_file_of_the_whole_network_is_plain_and_goes_on_like_one_training(tmp_path, epochs):
    model = sparse(tfprune.Magnitude(0.8, SCHEDULE))
    path = tmp_path / "model.keras"
    train(model, epochs=epochs, callbacks=[keras.callbacks.ModelCheckpoint(path)])
    loaded = keras.models.load_model(path)
    assert zeros_of(loaded) == expected_zeros(5 * epochs)
    again = tfprune.sparse(loaded, tfprune.Magnitude(0.8, SCHEDULE))
    watch = Watch()
    train(again, epochs=3, initial_epoch=epochs, watch=watch)
    assert watch.zeros == [expected_zeros(step) for step in range(5 * epochs + 1, 16)]
    expected = unbroken()
    for name, value in kernels_of(again).items():
        np.testing.assert_array_equal(value, expected[name])


def test_weights_alone_go_on_like_one_training(tmp_path):
    model = sparse(tfprune.Magnitude(0.8, SCHEDULE))
    train(model, epochs=2)
    model.save_weights(tmp_path / "w.weights.h5")
    again = sparse(tfprune.Magnitude(0.8, SCHEDULE), model=dense_network(seed=5))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "w.weights.h5")
    train(again, epochs=3, initial_epoch=2)
    expected = unbroken()
    for name, value in kernels_of(again).items():
        np.testing.assert_array_equal(value, expected[name])


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("is_first", [True, False])
def test_a_backup_is_restored_and_goes_on_like_one_training(tmp_path, is_first):
    for stop in ([Stop()], []):
        model = sparse(tfprune.Magnitude(0.8, SCHEDULE))
        backup, (own,) = keras.callbacks.BackupAndRestore(tmp_path / "backup"), tfprune.callbacks(model)
        together = [backup, own] if is_first else [own, backup]
        x, y = data()
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[*together, *stop])
    expected = unbroken()
    for name, value in kernels_of(model).items():
        np.testing.assert_array_equal(value, expected[name])


def test_weights_of_before_are_masked_again_at_the_end():
    model = sparse(tfprune.Magnitude(0.8, SCHEDULE))
    best = keras.callbacks.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)
    train(model, epochs=3, callbacks=[best])  # of the first epoch, which had the fewest zeros
    assert zeros_of(model) == expected_zeros(15)


def test_other_weights_that_know_of_no_masks_are_masked():
    model = sparse(tfprune.Magnitude(0.8))
    train(model)
    model.set_weights(dense_network(seed=3).get_weights())
    watch = Watch()
    train(model, watch=watch)
    assert watch.zeros == [{name: off(size, 0.8) for name, size in SIZES.items()}] * 5


def test_the_initial_step_can_be_given():
    model = tfprune.sparse(dense_network(), tfprune.Magnitude(0.8, SCHEDULE), initial_step=5)
    model.compile("adam", "mse")
    assert zeros_of(model) == expected_zeros(5)
    train(model)
    assert zeros_of(model) == expected_zeros(10)


def test_a_network_that_was_trained_long_begins_at_step_zero():
    model = dense_network()
    model.compile("adam", "mse")
    x, y = data()
    model.fit(x, y, batch_size=1, verbose=0)
    model, watch = tfprune.sparse(model, tfprune.Magnitude(0.8, SCHEDULE)), Watch()
    train(model, watch=watch)
    assert watch.zeros == [expected_zeros(step) for step in range(1, 6)]


def test_a_layer_that_begins_at_zero_does_not_pass_for_an_earlier_training():
    model = dense_network()
    model.get_layer("head").kernel.assign(np.zeros((8, 3)))
    model, watch = sparse(tfprune.Magnitude(0.8, SCHEDULE), model=model), Watch()
    train(model, watch=watch)
    assert [zeros["first"] for zeros in watch.zeros] == [expected_zeros(step)["first"] for step in range(1, 6)]


# What is told.


def test_a_training_that_ends_before_the_schedule_is_told():
    model = sparse(tfprune.Magnitude(0.8, SCHEDULE))
    train(model)
    with pytest.warns(UserWarning, match="ended at step 5, before the schedule's end at step 12"):
        plan, _ = tfprune.finish(model)
    assert plan.notes == ("the training ended at step 5, before the schedule's end at step 12",)
    assert {name: before - kept for name, (before, kept) in plan.sizes().items()} == expected_zeros(5)


def test_wrong_calls_are_one_line_each():
    model = dense_network()
    with pytest.raises(UsageError, match=r"No method is around 'dense'. Call model = tfprune.sparse"):
        tfprune.callbacks(model)
    with pytest.raises(UsageError, match=r"No method is around 3. Call"):
        tfprune.finish(3)
    with pytest.raises(UsageError, match=r"received 0.8 as method. Valid: Magnitude, Lottery"):
        tfprune.sparse(model, 0.8)
    with pytest.raises(UsageError, match=r"received 'x.keras' as model"):
        tfprune.sparse("x.keras", tfprune.Magnitude(0.8))
    with pytest.raises(PlanError, match=r"skip='no\*' fits no kernel. Valid: first, second, head"):
        tfprune.sparse(model, tfprune.Magnitude(0.8, skip="no*"))
    with pytest.raises(PlanError, match="Nothing in 'dense' can be pruned: all kernels are skipped"):
        tfprune.sparse(model, tfprune.Magnitude(0.8, skip="*"))
    tfprune.sparse(model, tfprune.Magnitude(0.8))
    with pytest.raises(UsageError, match="trained sparse already"):
        tfprune.sparse(model, tfprune.Magnitude(0.8))
    other = dense_network()
    other.compile("sgd", "mse")
    x, y = data()
    with pytest.raises(UsageError, match=r"Train what tfprune.sparse returned"):
        other.fit(x, y, verbose=0, callbacks=tfprune.callbacks(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 is no number in"),
        ({"sparsity": 0.5, "scope": "all"}, "Unknown scope 'all'"),
        ({"sparsity": 0.5, "pattern": "4:8"}, "Unknown pattern '4:8'"),
        ({"sparsity": 0.7, "pattern": "2:4"}, "pattern='2:4' removes half"),
        ({"sparsity": 0.7, "pattern": "block", "block_size": (0, 1)}, "block_size"),
    ],
)
def test_arguments_out_of_range_are_told(arguments, message):
    with pytest.raises(PlanError, match=message):
        tfprune.Magnitude(**arguments)


def test_quantized_layers_are_refused_with_the_way_out():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="one"), layers.Dense(4, name="two")])
    model.get_layer("one").quantize("int8")
    with pytest.raises(PlanError, match=r"one has quantized weights .* Prune the model first"):
        tfprune.sparse(model, tfprune.Magnitude(0.5))
    model = tfprune.sparse(model, tfprune.Magnitude(0.5, skip="one"))
    assert tfprune.callbacks(model)


def test_weights_that_are_not_finite_are_told():
    model = dense_network()
    model.get_layer("second").kernel.assign(np.full((10, 8), np.nan))
    with pytest.raises(PlanError, match="second has weights that are not finite"):
        tfprune.sparse(model, tfprune.Magnitude(0.8))


# What fresh eyes have found.


def test_a_step_that_was_compiled_before_holds_masks_all_the_same_and_is_told():
    model, optimizer = dense_network(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    x, y = data(8)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    step()
    model = tfprune.sparse(model, tfprune.Magnitude(0.8))
    told = keras.callbacks.CallbackList(tfprune.callbacks(model), model=model)
    told.on_train_begin()
    told.on_epoch_begin(0)
    told.on_train_batch_begin(0)
    step()
    with pytest.warns(UserWarning, match="does not apply the constraints of its weights"):
        told.on_train_batch_end(0)
    assert zeros_of(model) == {name: off(size, 0.8) for name, size in SIZES.items()}
    told.on_train_batch_begin(1)
    step()
    told.on_train_batch_end(1)
    assert zeros_of(model) == {name: off(size, 0.8) for name, size in SIZES.items()}


def test_a_loop_that_tells_of_no_epoch_is_told():
    model = tfprune.sparse(dense_network(), tfprune.Magnitude(0.8))
    (callback,) = tfprune.callbacks(model)
    callback.set_model(model)
    callback.on_train_begin()
    with pytest.raises(UsageError, match="told of batch 0, without the beginning of an epoch"):
        callback.on_train_batch_begin(0)
    callback.on_epoch_begin(0)
    with pytest.raises(UsageError, match="told of batch -1"):
        callback.on_train_batch_begin(-1)


def test_a_training_without_the_callbacks_is_told():
    model = sparse(tfprune.Magnitude(0.8, SCHEDULE))
    model.fit(*data(), verbose=0)
    with pytest.warns(UserWarning, match="No weight was turned off. Was fit given the callbacks"):
        tfprune.finish(model)


def test_networks_that_share_layers_are_pruned_one_at_a_time():
    shared = dense_network()
    around = keras.Sequential([shared, layers.Dense(2, name="more")])
    around.build((None, 6))
    tfprune.sparse(shared, tfprune.Magnitude(0.5))
    with pytest.raises(UsageError, match=r"is pruned in another network that shares it\. Call tfprune"):
        tfprune.sparse(around, tfprune.Magnitude(0.5))
    tfprune.finish(shared)
    assert tfprune.sparse(around, tfprune.Magnitude(0.5)) is around


@pytest.mark.parametrize("skip", [None, 5, [layers.Dense(1)]])
def test_what_is_no_name_to_skip_is_told(skip):
    for method in (tfprune.Magnitude, tfprune.Lottery, tfprune.NetworkSlimming):
        with pytest.raises(PlanError, match="must be names of layers or kernels"):
            method(0.5, skip=skip)


@pytest.mark.parametrize("method", [tfprune.NetworkSlimming(), tfprune.SoftFilter()])
def test_methods_that_hold_no_zeros_tell_it(method):
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(8, 3), layers.BatchNormalization()])
    model.add(layers.Conv2D(4, 3))
    model = tfprune.plan_weights(model, 0.5, scope="layer").apply(model)
    with pytest.warns(UserWarning, match="does not hold them at zero"):
        tfprune.sparse(model, method)
