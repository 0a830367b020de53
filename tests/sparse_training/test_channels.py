"""Slimming, soft filters and gates around a network of one's own, with its own `fit`."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune.errors import PlanError, UsageError


def residual(blocks=3):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_bn")(x))
    for number in range(blocks):
        y = layers.Conv2D(8, 3, padding="same", name=f"one_{number}")(x)
        y = layers.ReLU()(layers.BatchNormalization(name=f"bn_one_{number}")(y))
        y = layers.BatchNormalization(name=f"bn_two_{number}")(
            layers.Conv2D(8, 3, padding="same", name=f"two_{number}")(y)
        )
        x = layers.ReLU()(layers.Add(name=f"add_{number}")([x, y]))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)), name="residual")


class Own(keras.Model):
    """A subclass around a network, with a `train_step` that counts."""

    def __init__(self):
        super().__init__()
        self.inner, self.count = residual(), 0

    def call(self, x):
        return self.inner(x)

    def train_step(self, batch):
        self.count += 1
        return super().train_step(batch)


def data(count=64):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 8, 8, 3)).astype("float32"), generator.integers(0, 3, count)


def compiled(model, rate=0.05):
    model.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def train(model, epochs=2, **fit):
    x, y = data()
    return model.fit(
        x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=tfprune.callbacks(model), **fit
    )


def gammas(model):
    return {
        layer.name: layer.gamma.numpy()
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    }


def test_slimming_adds_the_penalty_to_the_loss_and_takes_it_off_again():
    keras.utils.set_random_seed(1)
    model = Own()
    model.build((None, 8, 8, 3))
    model = compiled(tfprune.sparse(model, tfprune.NetworkSlimming(0.5, gamma_l1=0.1)))
    total = sum(float(np.abs(gamma).sum()) for gamma in gammas(model).values())
    assert float(sum(model.losses)) == pytest.approx(0.1 * total, rel=1e-5)
    train(model, 3)
    assert isinstance(model, Own)
    assert model.count == 1  # traced once
    ranked = np.sort(np.abs(np.concatenate(list(gammas(model).values()))))
    assert ranked[0] < 0.98  # they began at 1
    plan, plain = tfprune.finish(model)
    assert plain is model
    assert not model.losses
    assert tfprune.verify(plain, plan) < 1e-5
    assert plan.params[1] < plan.params[0]


def test_the_penalty_of_slimming_has_the_gradient_of_its_source():
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(4, 1), layers.BatchNormalization(name="bn"),
                              layers.Flatten(), layers.Dense(1)])  # fmt: skip
    gamma = np.array([0.5, -0.25, 0.0, 2.0], "float32")
    model.get_layer("bn").gamma.assign(gamma)
    model.get_layer("bn").gamma.regularizer = keras.regularizers.L2(0.5)
    model = tfprune.sparse(model, tfprune.NetworkSlimming(0.5, gamma_l1=0.1))
    model.compile(keras.optimizers.SGD(1.0), keras.losses.MeanSquaredError(reduction="sum"), loss_weights=[0.0])
    model.fit(np.ones((2, 4, 4, 2)), np.ones((2, 1)), verbose=0, callbacks=tfprune.callbacks(model))
    np.testing.assert_allclose(
        model.get_layer("bn").gamma.numpy(), gamma - 0.1 * np.sign(gamma) - 2 * 0.5 * gamma, atol=1e-6
    )
    tfprune.finish(model)
    assert isinstance(model.get_layer("bn").gamma.regularizer, keras.regularizers.L2)


def test_a_gamma_with_a_penalty_of_another_kind_and_a_network_without_gamma_are_told():
    model = residual()
    model.get_layer("bn_one_0").gamma.regularizer = keras.regularizers.OrthogonalRegularizer()
    with pytest.raises(PlanError, match="bn_one_0 has a gamma_regularizer of its own"):
        tfprune.sparse(model, tfprune.NetworkSlimming())
    assert not any(layer.gamma.regularizer for layer in model.layers if layer.name == "stem_bn")  # nothing half done
    with pytest.raises(PlanError, match="has none"):
        tfprune.sparse(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), tfprune.NetworkSlimming())


@pytest.mark.parametrize("is_evaluated", [True, False])
def test_soft_filters_are_zero_after_every_epoch_and_train_on(is_evaluated):
    keras.utils.set_random_seed(2)
    model, seen = Own(), []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.inner.get_layer("one_0").kernel.numpy()
            seen.append(int((~kernel.reshape(-1, 8).any(axis=0)).sum()))

        def on_train_batch_end(self, batch, logs=None):
            kernel = self.model.inner.get_layer("one_0").kernel.numpy()
            trained.append(int((~kernel.reshape(-1, 8).any(axis=0)).sum()))

    trained = []
    model.build((None, 8, 8, 3))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(np.full(8, 0.5))  # so that no ReLU is closed, and zero filters have slopes
    model = compiled(tfprune.sparse(model, tfprune.SoftFilter(0.5)))
    x, y = data()
    model.fit(
        x, y, batch_size=16, epochs=2, verbose=0, callbacks=[*tfprune.callbacks(model), Look()],
        validation_data=(x, y) if is_evaluated else None,
    )  # fmt: skip
    assert seen == [4, 4]
    assert min(trained) == 0
    plan, plain = tfprune.finish(model)
    assert len(plan.keep["one_0"]) == 4
    assert tfprune.verify(plain, plan) < 1e-5


def test_gates_are_taken_down_by_the_learning_rate_times_the_strength():
    model = residual()
    before = model.get_weights()
    gated = tfprune.sparse(model, tfprune.SparseStructureSelection(0.5))
    gated.compile(keras.optimizers.SGD(0.0625), "mse", loss_weights=[0.0])
    x, _y = data(64)
    gated.fit(x, np.zeros((64, 3)), batch_size=16, epochs=2, verbose=0, callbacks=tfprune.callbacks(gated))
    gates = [float(layer.gate.numpy()) for layer in gated.layers if hasattr(layer, "gate")]
    assert gates == pytest.approx([1 - 8 * 0.0625 * 0.5] * 3)  # eight steps, no other slope
    for weight, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, was)  # until it is finished


def test_gates_that_close_remove_their_blocks_and_change_no_output():
    keras.utils.set_random_seed(3)
    model = residual()
    gated = compiled(tfprune.sparse(model, tfprune.SparseStructureSelection(12.0, ratio=0.4)), 0.02)
    train(gated)
    x, _ = data(8)
    expected = gated(x).numpy()
    plan, plain = tfprune.finish(gated)
    assert plain is model
    np.testing.assert_allclose(plain(x), expected, atol=1e-5)
    assert "2 of 3 residual blocks are removed" in plan.notes
    assert tfprune.verify(plain, plan) < 1e-5


def test_what_cannot_be_gated_is_told_before_anything_is_trained():
    model = Own()
    model.build((None, 8, 8, 3))
    with pytest.raises(PlanError, match="without the train_step of Own"):
        tfprune.sparse(model, tfprune.SparseStructureSelection())
    with pytest.raises(PlanError, match="removes residual blocks"):
        tfprune.sparse(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), tfprune.SparseStructureSelection())
    with pytest.raises(UsageError, match="SoftFilter knows no steps"):
        tfprune.sparse(residual(), tfprune.SoftFilter(), initial_step=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfprune.NetworkSlimming(1.5), "ratio=1.5 is no number in"),
        (lambda: tfprune.NetworkSlimming(0.5, -1), "gamma_l1=-1 is no number in"),
        (lambda: tfprune.SoftFilter(0), "ratio=0 is no number in"),
        (lambda: tfprune.SparseStructureSelection(0), "gate_l1=0 is no number in"),
        (lambda: tfprune.SparseStructureSelection(gates="all"), "Unknown gates 'all'"),
    ],
)
def test_arguments_out_of_range_are_told(make, message):
    with pytest.raises(PlanError, match=message):
        make()
