"""Lottery tickets by one's own `fit`: every round begins where the first one did, with fewer weights."""

import keras
import numpy as np
import pytest

import tfprune
from tests.sparse_training.networks import Watch, data, dense_network, kernels_of
from tfprune.errors import PlanError, UsageError

TOTAL = 164


def tickets(method, optimizer=None, model=None):
    model = tfprune.sparse(dense_network() if model is None else model, method)
    model.compile(keras.optimizers.Adam(0.01) if optimizer is None else optimizer, "mse")
    return model


def train(model, *callbacks, epochs=2):
    x, y = data()
    own = [*callbacks, *tfprune.callbacks(model)]
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=own)


class Start(keras.callbacks.Callback):
    """The weights and the optimizer's state before the first batch of a `fit`."""

    def on_train_batch_begin(self, batch, logs=None):
        if not hasattr(self, "weights"):
            self.weights = [value.numpy() for value in self.model.variables]
            self.optimizer = [value.numpy() for value in self.model.optimizer.variables]


def lowest(values, count):
    """The masks without the `count` weights of least magnitude of all kernels together."""
    threshold = np.sort(np.abs(np.concatenate([value.ravel() for value in values.values()])))[count - 1]
    return {name: np.abs(value) > threshold for name, value in values.items()}


def test_every_round_begins_with_the_first_weights_under_the_masks_of_the_trained_ones():
    first = [weight.numpy() for weight in dense_network().variables]
    model = tickets(tfprune.Lottery(0.75, rounds=2))
    for count in (0, int(TOTAL * 0.5), int(TOTAL * 0.75)):
        masks = lowest(kernels_of(model), count) if count else {}
        start, watch = Start(), Watch()
        train(model, start, watch)
        for name, value, now in zip(("first", "", "second", "", "head", ""), first, start.weights, strict=True):
            np.testing.assert_array_equal(now, value * masks.get(name, 1))
        assert not any(value.any() for value in start.optimizer[:1])  # it counts from 0 again
        assert not any(np.any(value) for value in start.optimizer[2:])  # its moments are 0, its rate is what it was
        assert {sum(zeros.values()) for zeros in watch.zeros} == {count}
    plan, plain = tfprune.finish(model)
    assert plan.nonzero == (model.count_params(), model.count_params() - int(TOTAL * 0.75))
    assert plan.prove(plain)
    assert not plan.notes


def test_rounds_go_back_to_a_later_step_with_the_state_of_the_optimizer():
    class At(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 7:
                self.weights = [value.numpy() for value in self.model.variables]
                self.optimizer = [value.numpy() for value in self.model.optimizer.variables]

    model, at, start = tickets(tfprune.Lottery(0.5, rewind_to=7)), At(), Start()
    train(model, at)
    masks = lowest(kernels_of(model), TOTAL // 2)
    train(model, start)
    for name, early, now in zip(("first", "", "second", "", "head", ""), at.weights, start.weights, strict=True):
        np.testing.assert_array_equal(now, early * masks.get(name, 1))
    for early, now in zip(at.optimizer, start.optimizer, strict=True):
        np.testing.assert_array_equal(now, early)


def test_the_weights_to_go_back_to_may_be_a_file(tmp_path):
    model = dense_network(seed=4)
    model.save_weights(tmp_path / "early.weights.h5")
    expected = [weight.numpy() for weight in model.variables]
    model, start = tickets(tfprune.Lottery(0.5, rewind_to=tmp_path / "early.weights.h5")), Start()
    train(model)
    masks = lowest(kernels_of(model), TOTAL // 2)
    train(model, start)
    for name, early, now in zip(("first", "", "second", "", "head", ""), expected, start.weights, strict=True):
        np.testing.assert_array_equal(now, early * masks.get(name, 1))
    assert int(start.optimizer[0]) == 0
    assert not any(np.any(value) for value in start.optimizer[2:])


def test_a_network_that_is_compiled_anew_goes_back_all_the_same():
    model, start = tickets(tfprune.Lottery(0.5)), Start()
    train(model)
    model.compile("sgd", "mse")
    train(model, start)
    first = [weight.numpy() for weight in dense_network().variables]
    for value, now in zip(first, start.weights, strict=True):
        np.testing.assert_array_equal(now, value * (now != 0))
    assert sum(int((value == 0).sum()) for value in kernels_of(model).values()) == TOTAL // 2


def test_a_file_of_a_round_goes_on_with_that_round_and_then_with_the_next(tmp_path):
    dense_network().save_weights(tmp_path / "early.weights.h5")
    method = tfprune.Lottery(0.75, rounds=2, rewind_to=tmp_path / "early.weights.h5")
    model = tickets(method)
    train(model)
    train(model, keras.callbacks.ModelCheckpoint(tmp_path / "round.keras"))
    zero = {name: value == 0 for name, value in kernels_of(model).items()}
    loaded = keras.models.load_model(tmp_path / "round.keras")
    trained = kernels_of(loaded)
    again = tfprune.sparse(loaded, method)
    start, watch = Start(), Watch()
    train(again, start, watch)
    np.testing.assert_array_equal(start.weights[0], trained["first"])  # the same round, from where it was
    assert all({name: int(mask.sum()) for name, mask in zero.items()} == zeros for zeros in watch.zeros)
    train(again)
    assert sum(int((value == 0).sum()) for value in kernels_of(again).values()) == int(TOTAL * 0.75)


def test_rounds_that_are_missing_are_told():
    model = tickets(tfprune.Lottery(0.75, rounds=2))
    train(model)
    with pytest.warns(UserWarning, match="Only 0 of 2 rounds were trained: call fit once more for each"):
        plan, _ = tfprune.finish(model)
    assert plan.notes == ("0 of 2 rounds were trained",)


def test_a_step_that_never_came_is_told():
    model = tickets(tfprune.Lottery(0.5, rewind_to=100))
    train(model)
    with pytest.raises(UsageError, match="weights of step 100 are not known: the training before had fewer steps"):
        train(model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsity": 0.0}, PlanError, "sparsity=0.0 is no number in"),
        ({"sparsity": 0.5, "rounds": 0}, PlanError, "rounds=0 must be a whole number of at least 1"),
        ({"sparsity": 0.5, "rewind_to": -1}, PlanError, "rewind_to=-1 must be a whole number"),
        ({"sparsity": 0.5, "rewind_to": "nowhere.weights.h5"}, UsageError, r"'nowhere.weights.h5' is no file"),
        ({"sparsity": 0.5, "scope": "block"}, PlanError, "Unknown scope 'block'"),
    ],
)
def test_arguments_out_of_range_are_told(arguments, error, message):
    with pytest.raises(error, match=message):
        tfprune.Lottery(**arguments)


def rates(model):
    """The learning rates of the batches of a `fit`."""
    found = []

    class Rate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            found.append(float(self.model.optimizer.learning_rate))

    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[*tfprune.callbacks(model), Rate()])
    return found


@pytest.mark.parametrize("kind", [keras.optimizers.SGD, keras.optimizers.Adam])
@pytest.mark.parametrize("step", [0, 2])
def test_the_learning_rate_goes_back_too_unless_the_network_is_compiled_anew(kind, step):
    for is_anew in (False, True):
        model = tickets(tfprune.Lottery(0.5, rewind_to=step), kind(0.5))
        train(model, keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.1**epoch))
        if is_anew:
            model.compile(keras.optimizers.RMSprop(0.003), "mse")
        # Kept before the rate of the first epoch was set, or after.
        assert rates(model)[0] == pytest.approx(0.003 if is_anew else 0.1)


def test_a_round_that_is_interrupted_is_no_round():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = tickets(tfprune.Lottery(0.75, rounds=2))
    train(model)
    with pytest.raises(KeyboardInterrupt):
        train(model, Stop())
    watch = Watch()
    train(model, watch)
    assert {sum(zeros.values()) for zeros in watch.zeros} == {TOTAL // 2}
    train(model, watch)
    assert sum(watch.zeros[-1].values()) == int(TOTAL * 0.75)


def test_a_file_that_does_not_fit_is_told_before_anything_is_trained(tmp_path):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    model = dense_network()
    before = model.get_weights()
    with pytest.raises(UsageError, match="holds no weights of 'dense'"):
        tfprune.sparse(model, tfprune.Lottery(0.5, rewind_to=tmp_path / "other.weights.h5"))
    for weight, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, was)
    assert model.get_layer("first").kernel.constraint is None
