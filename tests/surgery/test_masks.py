"""Masks while a network trains with Keras' own `fit`: what is off is exactly zero, whatever the setting."""

import contextlib
import json
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.processes import finish, last_json, start
from tfprune.errors import PlanError, UsageError
from tfprune.planning.ranking import find_masks
from tfprune.plans.weights import WeightPlan
from tfprune.surgery.mask_constraint import Mask, averages_of
from tfprune.surgery.masks import GradualMasks
from tfprune.surgery.rebuild import clone

NAMES = ("conv", "depthwise", "dense")
ADAM, SGD = keras.optimizers.Adam, keras.optimizers.SGD


def made_network(policy="float32", **of_conv):
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, activation="tanh", name="conv", dtype=policy, **of_conv)(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise", dtype=policy)(x)
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    model = keras.Model(inputs, layers.Dense(5, name="dense", dtype=policy)(x), name="made")
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(0.0, 0.5, weight.shape) for weight in model.get_weights()])
    return model


def made_masks(model, names=NAMES, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.random(tuple(model.get_layer(name).kernel.shape)) < 0.4 for name in names}


def made_data(count=24):
    generator = np.random.default_rng(1)
    return generator.normal(size=(count, 6, 6, 3)), generator.normal(size=(count, 5))


class Zeros(keras.callbacks.Callback):
    """Sees at every end of a batch, of an epoch and of an evaluation whether masked weights are zero, others not.

    And whether the moving averages of masked weights are zero, where there are any.
    """

    def __init__(self, masks):
        super().__init__()
        self.masks, self.seen = masks, []

    def look(self, *_, **__):
        self.seen.append(self.fine())

    def fine(self):
        return held(self.model, self.masks) and self.averages_are()

    def averages_are(self):
        return all(
            (average.numpy()[~mask] == 0).all()
            for name, mask in self.masks.items()
            for average in averages_of(self.model.optimizer, self.model.get_layer(name).kernel)
        )

    on_train_batch_end = on_epoch_end = on_test_end = look


def kernels(model, names=NAMES):
    return {name: np.asarray(model.get_layer(name).kernel.numpy(), "float64") for name in names}


def held(model, masks):
    return all(np.array_equal(value != 0, masks[name]) for name, value in kernels(model, masks).items())


def train(model, masks, optimizer, epochs=2, callbacks=(), before=(), **options):
    """Fits a twin of a network under masks; returns it after the zeros were found at every batch."""
    plan = WeightPlan.from_masks(model, masks)
    twin = clone(plan.apply(model), plan.edit())
    twin.compile(optimizer, "mse")
    zeros = Zeros(masks)
    twin.fit(
        *made_data(), batch_size=8, epochs=epochs, verbose=0, callbacks=[*before, *plan.callbacks(), *callbacks, zeros],
        **options,
    )  # fmt: skip
    assert zeros.seen
    assert all(zeros.seen), zeros.seen
    assert held(twin, masks)
    return twin


# Optimizers and their moving averages.

AVERAGED = {"use_ema": True, "ema_momentum": 0.7}
OPTIMIZERS = {
    "sgd": lambda: SGD(0.1, momentum=0.9, **AVERAGED),
    "adam": lambda: ADAM(0.05, **AVERAGED),
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1, **AVERAGED),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.02, **AVERAGED),
    "lion": lambda: keras.optimizers.Lion(0.01, **AVERAGED),
    "adafactor": lambda: keras.optimizers.Adafactor(0.05, **AVERAGED),
    "overwriting": lambda: ADAM(0.05, **AVERAGED, ema_overwrite_frequency=2),
    "accumulating": lambda: ADAM(0.05, **AVERAGED, gradient_accumulation_steps=2),
    "scaling the loss": lambda: keras.optimizers.LossScaleOptimizer(ADAM(0.05, **AVERAGED)),
}
if hasattr(keras.optimizers, "MultiOptimizer"):  # older versions of Keras have none
    OPTIMIZERS["several"] = lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(ADAM(0.05, **AVERAGED), {"conv/kernel": SGD(0.1, **AVERAGED)})
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_averages_of_weights_that_are_off_are_zero_too(name):
    model = made_network()
    masks = made_masks(model)
    optimizer = OPTIMIZERS[name]()
    twin = train(model, masks, optimizer)
    for layer, mask in masks.items():
        kernel = twin.get_layer(layer).kernel
        (average,) = averages_of(twin.optimizer, kernel)
        assert np.array_equal(average.numpy(), kernel.numpy())  # of which Keras has made the weights, at the end
        assert np.array_equal(average.numpy() != 0, mask)


@pytest.mark.parametrize("on_epoch", [False, True])
def test_zeros_stay_when_averages_are_swapped_in(on_epoch):
    model = made_network()
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch)
    train(model, made_masks(model), OPTIMIZERS["adam"](), 3, [swap], validation_data=made_data(8))


@pytest.mark.parametrize("options", [{"steps_per_execution": 3}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_averages_are_masked_in_every_kind_of_step(options):
    model = made_network()
    plan = WeightPlan.from_masks(model, made_masks(model))
    twin = clone(plan.apply(model), plan.edit())
    twin.compile(OPTIMIZERS["adam"](), "mse", **options)
    twin.fit(*made_data(), batch_size=8, verbose=0, callbacks=plan.callbacks())
    assert held(twin, plan.arrays())


def test_averages_are_masked_in_a_loop_of_ones_own():
    model = made_network()
    masks = made_masks(model)
    plan = WeightPlan.from_masks(model, masks)
    twin, optimizer = clone(plan.apply(model), plan.edit()), OPTIMIZERS["adam"]()
    for name, mask in masks.items():
        twin.get_layer(name).kernel.constraint.mask.assign(mask.astype("float32"))
    optimizer.build(twin.trainable_variables)
    inputs, targets = (tf.constant(array, "float32") for array in made_data())

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((twin(inputs, training=True) - targets) ** 2)
        optimizer.apply(tape.gradient(loss, twin.trainable_variables))

    for _ in range(3):
        step()
        assert held(twin, masks)
    optimizer.finalize_variable_values(twin.trainable_variables)
    assert held(twin, masks)


@pytest.mark.parametrize("averaged", [{}, AVERAGED], ids=["plain", "averaged"])
@pytest.mark.parametrize("epochs", [1, 4])
def test_masks_that_come_on_in_mid_training_take_the_averages_along(epochs, averaged):
    model = made_network()
    plan = WeightPlan.from_masks(model, made_masks(model))
    twin = clone(model, plan.edit())
    twin.compile(ADAM(0.05, **averaged), "mse")
    counts, total = [], sum(value.size for value in kernels(twin).values())

    class Counts(keras.callbacks.Callback):
        def look(self, *_, **__):
            counts.append(sum(int((value == 0).sum()) for value in kernels(self.model).values()))

        on_train_batch_end = on_epoch_end = look

    gradual = GradualMasks(0.75, lambda found, sparsity: find_masks(found, sparsity)[0])
    # It gives back the weights of the first epoch, when fewer were off.
    first = keras.callbacks.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)
    swap = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if averaged else []
    size = 24 if epochs == 1 else 8  # one step: the last cut comes after it, at the end of the epoch
    twin.fit(*made_data(), batch_size=size, epochs=epochs, verbose=0, callbacks=[first, gradual, *swap, Counts()])
    assert counts == sorted(counts)  # nothing grows back
    assert counts[-1] == int(0.75 * total)
    masks = {name: twin.get_layer(name).kernel.constraint.array() for name in NAMES}
    assert held(twin, masks)
    assert sum(int((~mask).sum()) for mask in masks.values()) == int(0.75 * total)


def test_gradual_masks_need_to_know_how_long_a_training_is():
    model = made_network()
    twin = clone(model, WeightPlan.from_masks(model, made_masks(model)).edit())
    twin.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices(made_data()).batch(8).filter(lambda *_: True)
    with pytest.raises(UsageError, match=r"steps=None.*steps_per_epoch"):
        twin.fit(data, verbose=0, callbacks=[GradualMasks(0.5, lambda found, sparsity: {})])


# Dtypes.


@pytest.mark.parametrize("averaged", [{}, AVERAGED], ids=["plain", "averaged"])
@pytest.mark.parametrize("policy", ["bfloat16", "float16", "float64", "mixed_bfloat16", "mixed_float16"])
def test_masks_have_the_dtype_of_their_kernels(policy, averaged):
    model = made_network(policy)
    twin = train(model, made_masks(model), SGD(0.05, **averaged))
    for name in NAMES:
        kernel = twin.get_layer(name).kernel
        assert kernel.constraint.mask.dtype.name == kernel.dtype == keras.DTypePolicy(policy).variable_dtype
    plan = tfprune.plan_weights(model, 0.5, dense=True)
    sparse = plan.apply(model)
    assert held(sparse, plan.arrays())
    assert "exactly zero" in plan.prove(model)
    assert {sparse.get_layer(name).kernel.dtype for name in NAMES} == {keras.DTypePolicy(policy).variable_dtype}


def test_weights_of_float64_are_ranked_as_such():
    model = made_network("float64")
    close = 1.0 + 1e-12 * np.arange(108)[::-1].reshape(3, 3, 3, 4)
    model.get_layer("conv").kernel.assign(close)
    plan = tfprune.plan_weights(model, 0.5, skip=["depthwise"])
    assert np.array_equal(plan.arrays()["conv"].ravel(), np.arange(108) < 54)


# One training after another.


class Off(Zeros):
    """Sees only whether what is off is zero: what was turned on again may still be."""

    def fine(self):
        values = kernels(self.model, self.masks)
        return all((values[name][~mask] == 0).all() for name, mask in self.masks.items()) and self.averages_are()


@pytest.mark.parametrize("averaged", [{}, AVERAGED], ids=["plain", "averaged"])
def test_masks_are_set_anew_between_two_trainings(averaged):
    model = made_network()
    first, second = (WeightPlan.from_masks(model, made_masks(model, seed=seed)) for seed in (1, 2))
    twin = clone(model, first.edit())
    twin.compile(ADAM(0.05, **averaged), "mse")
    data, options = made_data(), {"batch_size": 8, "epochs": 2, "verbose": 0}
    twin.fit(*data, **options)  # traced without any mask
    assert all((value != 0).all() for value in kernels(twin).values())
    for plan in (first, first, second):
        zeros = Off(plan.arrays())
        twin.fit(*data, **options, callbacks=[*plan.callbacks(), zeros])
        assert all(zeros.seen)
        assert held(twin, plan.arrays())
    only = WeightPlan.from_masks(model, made_masks(model, ["conv"], seed=3))
    twin.fit(*data, **options, callbacks=only.callbacks())
    found = kernels(twin)
    assert np.array_equal(found["conv"] != 0, only.arrays()["conv"])
    assert (found["dense"] != 0).all()  # the other layers keep all weights
    twin.fit(*data, **options)  # without callbacks the masks stay
    assert np.array_equal(kernels(twin)["conv"] != 0, only.arrays()["conv"])


def test_what_has_no_mask_is_told():
    model = made_network()
    plan, other = (WeightPlan.from_masks(model, made_masks(model, names)) for names in (["conv"], NAMES))
    twin = clone(model, plan.edit())
    twin.compile("sgd", "mse")
    with pytest.raises(UsageError, match=r"'made' has no mask for layer 'depthwise'; it has masks for conv\. .*clone"):
        twin.fit(*made_data(), verbose=0, callbacks=other.callbacks())
    inputs = keras.Input((6, 6, 3))
    wide = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3, name="conv")(inputs)))
    twin = clone(wide, plan.edit())
    twin.compile("sgd", "mse")
    with pytest.raises(UsageError, match=r"\(3, 3, 3, 4\), its kernel in .* \(3, 3, 3, 5\)"):
        twin.fit(*made_data(), verbose=0, callbacks=plan.callbacks())
    with pytest.raises(UsageError, match=r"shape \(2, 3\) got a weight of shape \(3, 2\)"):
        Mask((2, 3))(np.ones((3, 2)))


# Files.


@pytest.fixture
def no_pickle(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)


@pytest.mark.parametrize(
    ("policy", "of_conv", "averaged"),
    [
        ("float32", {}, AVERAGED),
        ("float32", {"kernel_constraint": keras.constraints.MaxNorm(0.3, axis=(0, 1, 2))}, {}),
        ("bfloat16", {}, {}),
        ("mixed_float16", {"kernel_constraint": "unit_norm"}, AVERAGED),
    ],
    ids=["averaged", "constrained", "bfloat16", "mixed and constrained"],
)
def test_a_checkpoint_of_the_whole_network_goes_on_under_its_masks(tmp_path, no_pickle, policy, of_conv, averaged):
    model = made_network(policy, **of_conv)
    masks = made_masks(model)
    plan = WeightPlan.from_masks(model, masks)
    twin = clone(model, plan.edit())
    twin.compile(ADAM(0.05, **averaged), "mse")
    file = tmp_path / "at_{batch}.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(file, save_freq=1)
    twin.fit(*made_data(), batch_size=8, verbose=0, callbacks=[checkpoint, *plan.callbacks()])
    loaded = tfprune.load(tmp_path / "at_2.keras")
    assert held(loaded, masks)
    inner = loaded.get_layer("conv").kernel.constraint.inner
    kind = type(keras.constraints.get(of_conv.get("kernel_constraint")))
    assert type(inner) is kind
    zeros = Zeros(masks)
    loaded.fit(*made_data(), batch_size=8, verbose=0, callbacks=[zeros])  # no callback of ours is needed
    assert len(zeros.seen) == 4
    assert all(zeros.seen)
    assert held(loaded, masks)
    for name, mask in masks.items():
        assert np.array_equal(loaded.get_layer(name).kernel.constraint.array(), mask)
    if isinstance(inner, keras.constraints.MaxNorm):
        norms = np.sqrt((kernels(loaded)["conv"] ** 2).sum(axis=(0, 1, 2)))
        assert norms.max() <= 0.3 + 1e-5
    content = json.loads(loaded.to_json())
    (config,) = (layer["config"] for layer in content["config"]["layers"] if layer["config"]["name"] == "dense")
    assert len(json.dumps(config["kernel_constraint"]["config"])) < 150  # 20 weights


def test_a_training_from_a_checkpoint_is_the_one_that_was_not_interrupted(tmp_path):
    model = made_network()
    plan = WeightPlan.from_masks(model, made_masks(model))
    options = {"batch_size": 8, "verbose": 0, "shuffle": False}
    twin = clone(model, plan.edit())
    twin.compile(OPTIMIZERS["overwriting"](), "mse")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "at_{epoch}.keras")
    twin.fit(*made_data(), **options, epochs=4, callbacks=[*plan.callbacks(), checkpoint])
    loaded = keras.saving.load_model(tmp_path / "at_2.keras")
    loaded.fit(*made_data(), **options, epochs=4, initial_epoch=2)
    for one, other in zip(twin.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["fixed", "gradual"])
def test_a_backup_goes_on_under_the_same_masks(tmp_path, kind):
    model = made_network()
    plan = WeightPlan.from_masks(model, made_masks(model))
    results = []

    def fit(callbacks):
        twin = clone(model, plan.edit())
        twin.compile(ADAM(0.05), "mse")
        gradual = GradualMasks(0.75, lambda found, sparsity: find_masks(found, sparsity)[0])
        own = plan.callbacks() if kind == "fixed" else [gradual]
        twin.fit(*made_data(), batch_size=8, verbose=0, shuffle=False, epochs=8, callbacks=[*callbacks, *own])
        results.append(twin)

    fit([])
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with contextlib.suppress(KeyboardInterrupt):
        fit([backup, Stop()])
    assert len(results) == 1
    fit([keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    whole, resumed = results
    masks = [{name: one.get_layer(name).kernel.constraint.array() for name in NAMES} for one in results]
    assert all(np.array_equal(masks[0][name], masks[1][name]) for name in NAMES)
    assert held(resumed, masks[0])
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_weights_alone_are_those_of_the_plain_network(tmp_path):
    model = made_network()
    masks = made_masks(model)
    twin = train(model, masks, "adam", callbacks=[])
    twin.save_weights(tmp_path / "twin.weights.h5")
    plain = made_network()
    plain.load_weights(tmp_path / "twin.weights.h5")
    assert held(plain, masks)
    plan = WeightPlan.from_masks(model, masks)
    again = clone(model, plan.edit())
    again.load_weights(tmp_path / "twin.weights.h5")
    again.compile("adam", "mse")
    zeros = Zeros(masks)
    again.fit(*made_data(), batch_size=8, verbose=0, callbacks=[*plan.callbacks(), zeros])
    assert all(zeros.seen)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("mask"),
        lambda config: config["mask"].update(bits="§"),
        lambda config: config["mask"].update(shape=[70, 3]),
        lambda config: config["mask"].update(shape=["x", 3]),
        lambda config: config.update(dtype="text"),
    ],
)
def test_a_damaged_mask_is_told(change):
    config = json.loads(json.dumps(Mask((4, 5), keras.constraints.NonNeg()).get_config()))
    assert isinstance(Mask.from_config(config).inner, keras.constraints.NonNeg)
    change(config)
    with pytest.raises(UsageError, match=r"no config of a mask .*another checkpoint"):
        Mask.from_config(config)


def test_who_imports_only_tfprune_can_load_a_masked_network(tmp_path):
    model = made_network()
    masks = made_masks(model)
    train(model, masks, "sgd").save(tmp_path / "twin.keras")
    shown = f"type(tfprune.load({str(tmp_path / 'twin.keras')!r}).get_layer('conv').kernel.constraint)"
    command = [sys.executable, "-c", f"import tfprune; print({shown})"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "mask_constraint.Mask" in done.stdout, done.stderr[-2000:]


# Layers that are frozen, shared or copied.


@pytest.mark.parametrize("averaged", [{}, AVERAGED], ids=["plain", "averaged"])
def test_frozen_layers_keep_their_zeros(averaged):
    model = made_network()
    model.get_layer("conv").trainable = False
    masks = made_masks(model)
    twin = train(model, masks, ADAM(0.05, **averaged))
    assert not twin.get_layer("conv").trainable
    assert np.array_equal(kernels(twin)["conv"], kernels(model)["conv"] * masks["conv"])


def test_averages_of_layers_that_are_frozen_too_late_are_refused():
    model = made_network()
    plan = WeightPlan.from_masks(model, made_masks(model))
    twin = clone(model, plan.edit())
    twin.compile(OPTIMIZERS["adam"](), "mse")
    twin.fit(*made_data(), verbose=0, callbacks=plan.callbacks())
    twin.get_layer("conv").trainable = False
    with pytest.raises(UsageError, match=r"averages .* of conv/kernel, conv/bias, which are frozen .*compile"):
        twin.fit(*made_data(), verbose=0, callbacks=plan.callbacks())
    twin.compile(OPTIMIZERS["adam"](), "mse")
    twin.fit(*made_data(), verbose=0, callbacks=plan.callbacks())
    assert held(twin, plan.arrays())


def shared_within():
    inputs, shared = keras.Input((6, 6, 3)), layers.Conv2D(3, 3, padding="same", name="shared")
    inner_inputs = keras.Input((6, 6, 3))
    inner = keras.Model(inner_inputs, layers.ReLU()(shared(inner_inputs)), name="inner")
    x = layers.Add()([shared(shared(inputs)), inner(inputs)])
    return keras.Model(inputs, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)), name="sharing")


def test_shared_layers_keep_their_zeros_also_those_that_a_nested_model_shares():
    model = shared_within()
    train(model, made_masks(model, ["shared", "head"]), OPTIMIZERS["adam"]())


def test_a_clone_of_keras_has_masks_of_its_own():
    model = made_network()
    masks = made_masks(model)
    twin = train(model, masks, "sgd")
    copy = keras.models.clone_model(twin)
    copy.compile(ADAM(0.05, **AVERAGED), "mse")  # its weights are new ones: the first step masks them
    zeros = Zeros(masks)
    copy.fit(*made_data(), batch_size=8, verbose=0, callbacks=[zeros])
    assert all(zeros.seen)
    assert held(copy, masks)
    copy.get_layer("conv").kernel.constraint.mask.assign(np.ones((3, 3, 3, 4)))
    assert np.array_equal(twin.get_layer("conv").kernel.constraint.array(), masks["conv"])


def test_a_masked_network_is_rebuilt_with_what_is_left_of_its_masks():
    model = made_network(kernel_constraint="non_neg")
    masks = made_masks(model)
    plan = WeightPlan.from_masks(model, masks)
    twin = clone(plan.apply(model), plan.edit())
    for name, mask in masks.items():
        twin.get_layer(name).kernel.constraint.mask.assign(mask.astype("float32"))
    copy = clone(twin)
    for name, mask in masks.items():
        own, other = (one.get_layer(name).kernel.constraint for one in (copy, twin))
        assert own is not other
        assert own.mask is not other.mask
        assert np.array_equal(own.array(), mask)
    small = tfprune.ChannelPlan.from_removed(twin, {"conv": [1, 2]}).apply(twin)
    left = small.get_layer("conv").kernel.constraint
    assert np.array_equal(left.array(), masks["conv"][..., [0, 3]])
    assert isinstance(left.inner, keras.constraints.NonNeg)
    small.compile(OPTIMIZERS["adam"](), "mse")
    small.fit(*made_data(), batch_size=8, verbose=0)
    assert (kernels(small)["depthwise"][~masks["depthwise"][:, :, [0, 3]]] == 0).all()
    again = clone(twin, WeightPlan.from_masks(model, made_masks(model, ["conv"], seed=9)).edit())
    assert isinstance(again.get_layer("conv").kernel.constraint.inner, keras.constraints.NonNeg)
    assert again.get_layer("conv").kernel.constraint.array().all()


# Layers whose kernels are no plain weights.


def quantized(mode):
    model = made_network()
    layer = model.get_layer("dense")
    layer.enable_lora(2) if mode == "LoRA" else layer.quantize(mode)
    return model


@pytest.mark.parametrize("mode", ["int8", "int4", "float8", "LoRA"])
def test_quantized_layers_and_layers_of_lora_are_refused_with_the_way_out(mode):
    plain, model = made_network(), quantized(mode)
    told = "dense has weights of LoRA .*Merge" if mode == "LoRA" else rf"dense has quantized weights \({mode}\)\. Prune"
    plan = tfprune.plan_weights(plain, 0.5, dense=True)
    for refused in (
        lambda: tfprune.plan_weights(model, 0.5, dense=True),
        lambda: plan.apply(model),
        lambda: plan.prove(model),
        lambda: clone(model, plan.edit()),
        lambda: WeightPlan.from_masks(model, {"dense": plan.arrays()["dense"]}),
    ):
        with pytest.raises(PlanError, match=told) as error:
            refused()
        assert "\n" not in str(error.value)
    some = tfprune.plan_weights(model, 0.5)  # of the convolutions
    if mode == "float8":
        with pytest.raises(PlanError, match=rf"dense cannot be made again: it {told.removeprefix('dense ')}"):
            some.apply(model)
    else:
        sparse = some.apply(model)
        assert held(sparse, some.arrays())
        batch = made_data(4)[0]
        masked = model
        for name, mask in some.arrays().items():
            masked.get_layer(name).kernel.assign(masked.get_layer(name).kernel * mask)
        np.testing.assert_allclose(sparse.predict(batch, verbose=0), masked.predict(batch, verbose=0), rtol=1e-5)
    assert tfprune.plan_weights(model, 0.5, dense=True, skip=["dense"]).arrays().keys() == some.arrays().keys()


def test_the_ways_out_lead_out(tmp_path):
    model = quantized("LoRA")
    model.get_layer("dense").lora_kernel_b.assign(np.random.default_rng(3).normal(size=(2, 5)))
    model.save_weights(tmp_path / "merged.weights.h5")
    merged = made_network()
    merged.load_weights(tmp_path / "merged.weights.h5")
    batch = made_data(4)[0]
    np.testing.assert_allclose(merged.predict(batch, verbose=0), model.predict(batch, verbose=0), rtol=1e-4, atol=1e-5)
    plan = tfprune.plan_weights(merged, 0.5, dense=True)
    sparse = plan.apply(merged)
    sparse.quantize("int8")
    codes = sparse.get_layer("dense").kernel.numpy()
    assert (codes[~plan.arrays()["dense"]] == 0).all()


# Several replicas.

MIRRORED = """
two_devices()
import keras, tensorflow as tf
import tfprune
from tests.surgery.test_masks import ADAM, AVERAGED, NAMES, held, made_data, made_masks, made_network, Zeros
from tfprune.plans.weights import WeightPlan
from tfprune.surgery.rebuild import clone

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
report = {}

def train(optimizer, callbacks=(), **options):
    model = made_network()
    masks = made_masks(model)
    plan = WeightPlan.from_masks(model, masks)
    with strategy.scope():
        twin = clone(plan.apply(model), plan.edit())
        twin.compile(optimizer(), "mse", **options)
    zeros = Zeros(masks)
    try:
        twin.fit(*made_data(), batch_size=8, epochs=2, verbose=0, validation_data=made_data(8),
                 callbacks=[*plan.callbacks(), *callbacks, zeros])
    except tfprune.UsageError as error:
        return str(error)
    copies = [copy.numpy() for copy in twin.get_layer("conv").kernel.value.values]
    return [len(copies), all(zeros.seen), held(twin, masks)] + [
        bool(((copy != 0) == masks["conv"]).all()) for copy in copies
    ]

file = keras.callbacks.ModelCheckpoint("twin.keras")
report["averaged"] = train(lambda: ADAM(0.05, **AVERAGED), [file])
loaded = tfprune.load("twin.keras")
report["loaded"] = [held(loaded, made_masks(made_network())), type(loaded.get_layer("conv").kernel.constraint).__name__]
report["scaled"] = train(lambda: keras.optimizers.LossScaleOptimizer(ADAM(0.05, **AVERAGED)))
report["swapped"] = train(lambda: ADAM(0.05, **AVERAGED), [keras.callbacks.SwapEMAWeights()])
report["overwriting"] = train(lambda: ADAM(0.05, **AVERAGED, ema_overwrite_frequency=2))
report["accumulating"] = train(lambda: keras.optimizers.LossScaleOptimizer(ADAM(gradient_accumulation_steps=2)))
report["executing"] = train(ADAM, steps_per_execution=2)
print(json.dumps(report))
"""


def test_averages_on_two_replicas_and_what_keras_cannot_do_there(tmp_path):
    (output,) = finish(start(tmp_path, "averages", MIRRORED))
    report = last_json(output)
    for name in ("averaged", "scaled", "swapped"):
        assert report[name] == [2, True, True, True, True], name
    assert report["loaded"] == [True, "Mask"]
    told = {"overwriting": "ema_overwrite_frequency=2", "accumulating": "gradient_accumulation_steps=2"}
    for name, setting in {**told, "executing": "steps_per_execution=2"}.items():
        assert f"cannot train on several replicas with {setting}, with masks or without. Compile" in report[name]
