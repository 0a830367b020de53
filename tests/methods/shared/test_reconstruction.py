"""ThiNet and regression: channels chosen, and kernels made, by the outputs of the layer behind."""

import csv
import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.helpers import (
    accuracy,
    drawn_plan,
    network,
    plain_cnn,
    predict,
    prove,
    randomize,
    residual_cnn,
    weights_by_path,
)
from tfprune.data import load
from tfprune.errors import PlanError
from tfprune.experiments.run import main
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.methods.regression import lasso_choice
from tfprune.methods.shared.reconstruction import POSITIONS, find_sites, least_squares, patches
from tfprune.methods.thinet import least_contributing
from tfprune.models import build_model
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.loading import load_plan
from tfprune.surgery.rebuild import clone

BOTH = ["thinet", "regression"]


def draw(seed, count, shape=(8, 8, 3)):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype("float32")


def sample(count):
    return draw(101, min(count, 300)), np.zeros(300, "int32")


def made(method, model, seed=0, ratios=None, ratio=None, sample=sample):
    if ratios is None and ratio is None:
        ratio = 0.5
    decision = METHODS.get(method).decide(model, MethodSettings(ratio=ratio, ratios=ratios, seed=seed), sample)
    model.set_weights(decision.weights)
    return decision.plan


def vgg_like(seed=0):
    """conv_1 (8), conv_2 (12), pool, conv_3 (16), fc (10), logits; no normalization, as ThiNet's VGG-16."""
    inputs = x = keras.Input((8, 8, 3))
    for number, filters in enumerate((8, 12, 16), 1):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv_{number}")(x)
        x = layers.ReLU()(x)
        if number > 1:
            x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(10, activation="relu", name="fc")(layers.Flatten()(x))
    return randomize(keras.Model(inputs, layers.Dense(4, name="logits")(x), name="vgg_like"), seed)


def bottlenecks(seed=0):
    """A stem of 12 and two blocks: 1x1 (8), 3x3 (8, the second with stride 2), 1x1 (12)."""
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(12, 3, padding="same", name="stem")(inputs))
    for block, strides in ((1, 1), (2, 2)):
        y = x
        for part, (filters, size, step) in enumerate(((8, 1, 1), (8, 3, strides), (12, 1, 1)), 1):
            y = layers.Conv2D(filters, size, step, padding="same", use_bias=False, name=f"conv_{block}_{part}")(y)
            y = layers.BatchNormalization(name=f"bn_{block}_{part}")(y)
            y = layers.ReLU()(y) if part < 3 else y
        if strides > 1:
            x = layers.Conv2D(12, 1, strides, name="shortcut")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(keras.Model(inputs, layers.Dense(4, name="logits")(x), name="bottlenecks"), seed)


NEXT = {
    vgg_like: {"conv_1": "conv_2", "conv_2": "conv_3", "conv_3": "fc"},
    bottlenecks: {"conv_1_1": "conv_1_2", "conv_1_2": "conv_1_3", "conv_2_1": "conv_2_2", "conv_2_2": "conv_2_3"},
    residual_cnn: {"branch_a": "branch_b"},
}
PLACES = [(make, layer) for make, pairs in NEXT.items() for layer in pairs]


def seen(model, layer, x):
    """What a layer reads in a network."""
    return np.asarray(keras.Model(model.input, model.get_layer(layer).input)(x, training=False))


def without_activation(model, layer, x):
    """What a layer gives before its own activation."""
    own = model.get_layer(layer)
    keras_activation, own.activation = own.activation, keras.activations.linear
    try:
        return np.asarray(own(seen(model, layer, x)))
    finally:
        own.activation = keras_activation


def error_at(original, small, reader, x):
    """Squared error of the reader's outputs, relative to what it gave."""
    return relative_to(without_activation(original, reader, x), small, reader, x)


def relative_to(y, small, reader, x):
    """Squared error of the reader's outputs, relative to those wanted."""
    return float(((without_activation(small, reader, x) - y) ** 2).sum() / (y**2).sum())


def random_plan(model, layer, count, seed):
    width = model.get_layer(layer).filters
    return ChannelPlan.from_removed(model, {layer: np.random.default_rng(seed).permutation(width)[:count].tolist()})


# Better than others, on images that neither has seen.


HELD_OUT = draw(55, 60)


@functools.cache
def errors_of_others(make, layer, seed):
    """How many channels half of a layer's are, what its reader gave, and the errors after L1-norm and by chance.

    Made once for both methods.
    """
    original, reader = make(seed), NEXT[make][layer]
    y = without_activation(original, reader, HELD_OUT)
    plan = METHODS.get("l1_norm").plan(original, MethodSettings(ratios={layer: 0.5}))
    count = plan.widths[layer] - len(plan.keep[layer])
    chance = [random_plan(original, layer, count, number).apply(original) for number in range(3)]
    by_chance = np.mean([relative_to(y, one, reader, HELD_OUT) for one in chance])
    return count, y, relative_to(y, plan.apply(original), reader, HELD_OUT), by_chance


@pytest.mark.parametrize(("make", "layer"), PLACES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("method", BOTH)
def test_outputs_of_the_next_layer_are_nearer_than_after_l1_norm_or_chance(method, make, layer):
    errors = {"own": [], "l1": [], "random": []}
    for seed in range(4):
        count, y, l1, by_chance = errors_of_others(make, layer, seed)
        model = make(seed)
        plan = made(method, model, seed, {layer: 0.5})
        assert plan.widths[layer] - len(plan.keep[layer]) == count
        errors["own"].append(relative_to(y, plan.apply(model), NEXT[make][layer], HELD_OUT))
        errors["l1"].append(l1)
        errors["random"].append(by_chance)
    assert min(errors["own"]) > 0  # something was lost, so there was something to choose
    assert all(own < l1 for own, l1 in zip(errors["own"], errors["l1"], strict=True)), errors
    assert all(own < other for own, other in zip(errors["own"], errors["random"], strict=True)), errors


@pytest.mark.slow
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("make", [vgg_like, bottlenecks])
def test_the_choice_is_better_than_chance_with_the_same_reconstruction(method, make, monkeypatch):
    generator = np.random.default_rng(0)

    def drawn(gram, *others):
        chosen = generator.permutation(len(gram))[: others[-1]]  # how many go, or how many stay
        return chosen.tolist() if method == "thinet" else np.isin(np.arange(len(gram)), chosen)

    errors = []
    for chance in (False, True):
        if chance:
            choice = {"thinet": "thinet.least_contributing", "regression": "regression.lasso_choice"}[method]
            monkeypatch.setattr(f"tfprune.methods.{choice}", drawn)
        one = []
        for seed, (layer, reader) in itertools.product(range(5), NEXT[make].items()):
            original, model = make(seed), make(seed)
            one.append(error_at(original, made(method, model, seed, {layer: 0.5}).apply(model), reader, HELD_OUT))
        errors.append(np.mean(one))
    assert errors[0] < 0.8 * errors[1], errors


@pytest.mark.slow
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("make", NEXT)
def test_a_whole_network_stays_nearer_to_itself_than_after_l1_norm(method, make):
    held_out = draw(56, 80)
    for seed in range(3):
        original, model = make(seed), make(seed)
        (before,) = predict(original, held_out)
        (after,) = predict(made(method, model, seed).apply(model), held_out)
        (l1,) = predict(METHODS.get("l1_norm").plan(original, MethodSettings(ratio=0.5)).apply(original), held_out)
        assert ((after - before) ** 2).sum() < ((l1 - before) ** 2).sum()


# Against plain loops and numpy.


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_choice_is_that_of_plain_loops(seed):
    parts = np.random.default_rng(seed).normal(0.3, 1, (40, 9)) * np.linspace(0.5, 1.5, 9)
    removed = []
    for _ in range(6):
        best = None
        for channel in range(9):
            if channel in removed:
                continue
            error = 0.0
            for row in parts:
                total = 0.0
                for other in [*removed, channel]:
                    total += float(row[other])
                error += total * total
            if best is None or error < best[0]:
                best = (error, channel)
        removed.append(best[1])
    assert least_contributing(parts.T @ parts, 6) == removed


def test_the_greedy_choice_looks_at_sums_not_at_single_channels():
    x = np.random.default_rng(0).normal(size=(50, 4))
    parts = np.column_stack([5 * x[:, 0], x[:, 1], -5 * x[:, 0] + 0.1 * x[:, 2], 1.1 * x[:, 3]])
    # Alone, channel 1 is the smallest and 3 the next; 0 and 2 are large, and cancel.
    assert least_contributing(parts.T @ parts, 2) == [1, 3]
    cancelling = np.column_stack([x[:, 0], 2 * x[:, 1], -x[:, 0], 2 * x[:, 2]])
    assert set(least_contributing(cancelling.T @ cancelling, 2)) == {0, 2}


@pytest.mark.parametrize("outputs", [(), (4,)])
def test_least_squares_is_that_of_numpy(outputs):
    generator = np.random.default_rng(3)
    x, y = generator.normal(0.5, 1, (200, 12)) * np.logspace(-3, 3, 12), generator.normal(size=(200, *outputs))
    solution, ridge = least_squares(x.T @ x, x.T @ y, generator.normal(size=(12, *outputs)))
    assert not ridge
    np.testing.assert_allclose(solution, np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-6, atol=1e-9)


def test_what_samples_do_not_determine_stays_near_its_start():
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(200, 6)), generator.normal(size=(200, 2))
    start = generator.normal(size=(6, 2))
    x[:, 2] = 0
    solution, ridge = least_squares(x.T @ x, x.T @ y, start)
    assert not ridge
    np.testing.assert_array_equal(solution[2], start[2])
    used = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(solution[used], np.linalg.lstsq(x[:, used], y, rcond=None)[0], rtol=1e-6)
    x[:, 5] = x[:, 4]
    solution, ridge = least_squares(x.T @ x, x.T @ y, start)
    assert ridge
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    assert ((x @ solution - y) ** 2).sum() < ((x @ best - y) ** 2).sum() * 1.001
    np.testing.assert_allclose(solution[4] - solution[5], start[4] - start[5], atol=1e-9)
    few, ridge = least_squares(x[:3].T @ x[:3], x[:3].T @ y[:3], start)
    assert ridge
    assert np.abs(x[:3] @ few - y[:3]).max() < 0.05


def all_patches(layer, x):
    """Every patch that a layer reads, in the order of its outputs, by TensorFlow."""
    if isinstance(layer, layers.Dense):
        return x.reshape(-1, x.shape[-1]).astype("float64")
    size, step = (1, *layer.kernel_size, 1), (1, *layer.strides, 1)
    found = tf.image.extract_patches(x, size, step, (1, 1, 1, 1), layer.padding.upper())
    return found.numpy().reshape(-1, found.shape[-1]).astype("float64")


@pytest.fixture
def every_position(monkeypatch):
    """Takes all positions, so that a test needs no draws."""
    monkeypatch.setattr("tfprune.methods.shared.reconstruction.POSITIONS", 1000)


@pytest.mark.parametrize("make", NEXT)
def test_kernels_of_regression_are_numpys_least_squares_from_the_pruned_to_the_original_network(make, every_position):
    original, model = make(5), make(5)
    plan = made("regression", model)
    assert not any("ridge" in note for note in plan.notes)
    small, x = plan.apply(model), sample(300)[0]
    for reader in NEXT[make].values():
        left, whole = small.get_layer(reader), original.get_layer(reader)
        rows = all_patches(whole, seen(original, reader, x))
        outputs = rows @ whole.kernel.numpy().reshape(rows.shape[1], -1).astype("float64")
        rows = all_patches(left, seen(small, reader, x))
        kernel = np.linalg.lstsq(rows, outputs, rcond=None)[0][:, list(plan.keep[reader])]
        received = left.kernel.numpy().reshape(kernel.shape)
        np.testing.assert_allclose(received, kernel, atol=2e-4 * np.abs(kernel).max())


def one_output(seed=0):
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(10, 3, name="first")(inputs))
    return randomize(keras.Model(inputs, layers.Conv2D(1, 3, strides=2, padding="same", name="last")(x)), seed)


def test_scales_of_thinet_are_numpys_least_squares(every_position):
    original, model = one_output(), one_output()
    plan = made("thinet", model)
    kept, x = list(plan.keep["first"]), sample(300)[0]
    rows = all_patches(original.get_layer("last"), seen(original, "last", x)).reshape(-1, 9, 10)
    kernel = original.get_layer("last").kernel.numpy().reshape(9, 10).astype("float64")
    parts = np.einsum("rtc,tc->rc", rows, kernel)
    assert sorted(set(range(10)) - set(least_contributing(parts.T @ parts, 5))) == kept
    scales = np.linalg.lstsq(parts[:, kept], parts.sum(1), rcond=None)[0]
    assert np.ptp(scales) > 0.1
    np.testing.assert_allclose(
        plan.apply(model).get_layer("last").kernel.numpy().reshape(9, 5), kernel[:, kept] * scales, atol=1e-5
    )


@pytest.mark.parametrize("make", NEXT)
def test_thinet_multiplies_the_kernel_by_one_scale_per_channel(make):
    original, model = make(6), make(6)
    plan = made("thinet", model)
    for layer, reader in NEXT[make].items():
        kernels = [m.get_layer(reader).kernel.numpy().astype("float64") for m in (model, original)]
        ratio = (kernels[0] / kernels[1]).reshape(-1, plan.widths[layer], kernels[0].shape[-1])
        assert np.ptp(ratio, axis=(0, 2)).max() < 1e-5
        assert np.abs(ratio[0, :, 0][list(plan.keep[layer])] - 1).max() > 1e-3
    changed = {
        path
        for path, value in weights_by_path(model).items()
        if not np.array_equal(value, weights_by_path(original)[path])
    }
    assert len(changed) == len(NEXT[make])


CONVOLUTIONS = [
    (layers.Conv2D(4, 3, padding="same"), (3, 3, 2)),
    (layers.Conv2D(4, (3, 2), strides=2, padding="same"), (6, 5, 2)),
    (layers.Conv2D(4, 3, strides=(3, 2), padding="valid"), (9, 7, 2)),
    (layers.Conv2D(4, 3, dilation_rate=2, padding="same"), (3, 3, 2)),
    (layers.Conv2D(4, 3, dilation_rate=(2, 1)), (7, 4, 2)),
    (layers.Conv1D(4, 3, strides=2, padding="same"), (9, 2)),
    (layers.Conv1D(4, 3, dilation_rate=2, padding="causal"), (8, 2)),
    (layers.Conv1D(4, 4, strides=2, padding="causal"), (8, 2)),
    (layers.Conv3D(4, 2, strides=2, padding="same"), (3, 4, 3, 2)),
    (layers.Dense(4), (7,)),
    (layers.Dense(4), (5, 7)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda value: str(value)[:20])
def test_patches_times_the_kernel_are_what_the_layer_gives(layer, shape):
    x = draw(1, 5, shape)
    expected = np.asarray(layer(x)).reshape(-1, 4)
    taken = patches(layer, x, np.random.default_rng(0))
    assert len(expected) <= 5 * POSITIONS
    np.testing.assert_allclose(taken @ layer.kernel.numpy().reshape(-1, 4), expected, atol=1e-5)


def test_positions_are_drawn_where_there_are_many_and_all_get_their_turn():
    layer, x = layers.Conv2D(4, 3, padding="same"), draw(1, 400, (5, 6, 2))
    expected = np.asarray(layer(x)).reshape(400, 30, 4)
    taken = patches(layer, x, np.random.default_rng(3))
    assert taken.shape == (400 * POSITIONS, 18)
    drawn = np.random.default_rng(3).integers(30, size=(400, POSITIONS))
    assert set(drawn.ravel().tolist()) == set(range(30))
    outputs = (taken @ layer.kernel.numpy().reshape(18, 4)).reshape(400, POSITIONS, 4)
    np.testing.assert_allclose(outputs, np.take_along_axis(expected, drawn[..., None], 1), atol=1e-5)


# What can go at no loss, goes.


def with_first_kernel(make, layer, change):
    model = make(2)
    own = model.get_layer(layer)
    own.set_weights([change(np.array(weight)) for weight in own.get_weights()])
    return model


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize(("make", "layer"), [(vgg_like, "conv_1"), (vgg_like, "conv_3"), (vgg_like, "conv_2")])
def test_channels_that_are_always_zero_go_first(method, make, layer):
    model = make(2)
    kernel, bias = model.get_layer(layer).get_weights()
    dead = [1, 4, 5]
    bias[dead], kernel[..., dead] = -1e3, 0
    model.get_layer(layer).set_weights([kernel, bias])
    (before,) = predict(model, draw(9, 20))
    plan = made(method, model, ratios={layer: 3 / len(bias)})
    zero = ~seen(model, NEXT[make][layer], sample(300)[0]).reshape(-1, len(bias)).any(axis=0)
    assert zero[dead].all()  # others may be zero by chance
    assert zero[list(set(range(len(bias))) - set(plan.keep[layer]))].all()
    np.testing.assert_allclose(predict(plan.apply(model), draw(9, 20))[0], before, atol=2e-4 * np.abs(before).max())


def test_regression_merges_channels_that_depend_on_each_other_linearly():
    """conv_1 makes copies; nothing is lost when as many channels go as are copies of others."""
    model = vgg_like(2)
    kernel, bias = model.get_layer("conv_1").get_weights()
    kernel[..., 3], bias[3] = kernel[..., 0], bias[0]
    kernel[..., 6], bias[6] = 2 * kernel[..., 1], 2 * bias[1]
    model.get_layer("conv_1").set_weights([kernel, bias])
    reading, *rest = model.get_layer("conv_2").get_weights()
    reading[:, :, 3], reading[:, :, 6] = 0.7 * reading[:, :, 0], -0.4 * reading[:, :, 1]
    model.get_layer("conv_2").set_weights([reading, *rest])
    (before,) = predict(model, draw(9, 20))
    l1 = METHODS.get("l1_norm").plan(model, MethodSettings(ratios={"conv_1": 0.25})).apply(model)
    plan = made("regression", model, ratios={"conv_1": 0.25})
    assert len({0, 3} & set(plan.keep["conv_1"])) == len({1, 6} & set(plan.keep["conv_1"])) == 1
    after = predict(plan.apply(model), draw(9, 20))[0]
    assert np.abs(after - before).max() < 1e-3 * np.abs(before).max()
    assert np.abs(predict(l1, draw(9, 20))[0] - before).max() > 0.05 * np.abs(before).max()


def test_thinet_doubles_the_scale_of_a_channel_whose_copy_goes():
    model = one_output(2)
    kernel, bias = (np.array(weight) for weight in model.get_layer("first").get_weights())
    reading, *rest = model.get_layer("last").get_weights()
    kernel[..., 7], bias[7], reading[:, :, 7] = kernel[..., 2], bias[2], reading[:, :, 2]
    # Together they make as little as any other channel, so one of them goes first.
    reading[:, :, [2, 7]] *= 0.05
    model.get_layer("first").set_weights([kernel, bias])
    model.get_layer("last").set_weights([reading, *rest])
    (before,) = predict(model, draw(9, 20))
    plan = made("thinet", model, ratios={"first": 0.1})
    (gone,) = set(range(10)) - set(plan.keep["first"])
    assert gone in (2, 7)
    scales = model.get_layer("last").kernel.numpy()[..., 0] / reading[..., 0]
    np.testing.assert_allclose(scales[..., 9 - gone], 2, rtol=1e-3)
    np.testing.assert_allclose(predict(plan.apply(model), draw(9, 20))[0], before, atol=1e-4)


# The LASSO.


@pytest.mark.parametrize("keep", range(1, 13))
def test_the_lasso_leaves_exactly_as_many_as_asked(keep):
    generator = np.random.default_rng(keep)
    z = generator.normal(0.4, 1, (300, 12)) * generator.uniform(0.2, 2, 12)
    assert lasso_choice(z.T @ z, z.T @ z.sum(1), keep).sum() == keep
    z[:, 5], z[:, 7], z[:, 9] = z[:, 1], z[:, 2] + z[:, 3], 0
    kept = lasso_choice(z.T @ z, z.T @ z.sum(1), keep)
    assert kept.sum() == keep
    assert not kept[9] or keep == 12
    assert lasso_choice(np.zeros((12, 12)), np.zeros(12), keep).sum() == keep


@pytest.mark.parametrize("seed", range(4))
def test_the_lasso_is_that_of_coordinate_descent(seed):
    from sklearn.linear_model import Lasso

    generator = np.random.default_rng(seed)
    z = generator.normal(0.4, 1, (300, 10)) * generator.uniform(0.2, 2, 10)
    y = z.sum(1) + generator.normal(0, 0.5, 300)
    known = {}
    for penalty in np.geomspace(10, 1e-4, 2000):
        factors = Lasso(alpha=penalty, fit_intercept=False, tol=1e-8, max_iter=20000).fit(z, y).coef_
        known[int((factors != 0).sum())] = factors != 0  # the smallest penalty comes last
    checked = 0
    for keep in range(1, 10):
        if keep in known and keep + 1 in known:
            np.testing.assert_array_equal(lasso_choice(z.T @ z, z.T @ y, keep), known[keep])
            checked += 1
    assert checked >= 5


# As a method of pruning.


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.9])
def test_counts_are_exact_and_the_plan_is_proved(method, ratio):
    for make in NEXT:
        model = make(1)
        plan = made(method, model, ratio=ratio)
        for layer in plan.widths:
            width = plan.widths[layer]
            asked = max(1, int(np.floor(width * (1 - ratio) + 1e-9))) if layer in NEXT[make] else width
            assert len(plan.keep[layer]) == asked
        if any(len(plan.keep[layer]) < plan.widths[layer] for layer in plan.keep):
            prove(model, plan)
        without = METHODS.get(method).plan(make(1), MethodSettings(ratio=ratio))
        assert {layer: len(keep) for layer, keep in without.keep.items()} == {
            layer: len(keep) for layer, keep in plan.keep.items()
        }


@pytest.mark.parametrize("method", BOTH)
def test_without_data_the_widths_are_the_same_and_the_model_stays(method):
    model = vgg_like()
    before = weights_by_path(model)
    plan = METHODS.get(method).plan(model, MethodSettings(ratio=0.5))
    assert plan.keep == METHODS.get("l1_norm").plan(model, MethodSettings(ratio=0.5)).keep
    assert all(np.array_equal(value, before[path]) for path, value in weights_by_path(model).items())
    assert plan.flops == made(method, model).flops


@pytest.mark.parametrize("method", BOTH)
def test_the_same_seed_gives_the_same_and_another_seed_other_kernels(method):
    models = [bottlenecks() for _ in range(3)]
    plans = [made(method, model, seed) for model, seed in zip(models, (3, 3, 4), strict=True)]
    assert plans[0] == plans[1]
    kernels = [weights_by_path(plan.apply(model)) for plan, model in zip(plans, models, strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(kernels[0].values(), kernels[1].values(), strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(kernels[0].values(), kernels[2].values(), strict=True))


@pytest.mark.parametrize("method", BOTH)
def test_the_plan_tells_how_it_was_made_and_survives_a_file(method, tmp_path):
    model = residual_cnn()
    plan = made(method, model, seed=7)
    assert plan.origin == {"method": method, "ratio": 0.5, "seed": 7, "images": 300, "positions": POSITIONS}
    plan.save(tmp_path / "plan.json")
    assert tfprune.load_plan(tmp_path / "plan.json") == plan


def depthwise(x):
    x = layers.ReLU()(layers.Conv2D(8, 3, name="first")(x))
    x = layers.ReLU()(layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x))
    return layers.GlobalAveragePooling2D()(layers.Conv2D(6, 1, name="pointwise")(x))


def nested(x):
    inside = keras.Sequential([keras.Input((6, 6, 8)), layers.ReLU(), layers.Conv2D(6, 3, name="reader")])
    return layers.Flatten()(inside(layers.Conv2D(8, 3, name="first")(x)))


def of_sequences(x):
    x = layers.Reshape((64, 3))(x)
    x = layers.Conv1D(8, 3, activation="relu", name="first")(x)
    return layers.Flatten()(layers.Dense(5, name="reader")(x))


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("body", [depthwise, nested, of_sequences])
def test_other_networks_can_be_pruned(method, body):
    model = network(body, (8, 8, 3))
    plan = made(method, model, ratios={"first": 0.5})
    small = prove(model, plan)
    original = network(body, (8, 8, 3))
    x = draw(77, 50)
    l1 = METHODS.get("l1_norm").plan(original, MethodSettings(ratios={"first": 0.5})).apply(original)
    errors = [((predict(one, x)[0] - predict(original, x)[0]) ** 2).sum() for one in (small, l1)]
    assert errors[0] < errors[1]


def two_readers(x):
    x = layers.Conv2D(8, 3, name="first")(x)
    return layers.Flatten()(layers.Concatenate()([layers.Conv2D(4, 1, name="a")(x), layers.Conv2D(4, 1, name="b")(x)]))


def grouped(x):
    x = layers.Conv2D(4, 3, name="before")(layers.Conv2D(8, 3, name="first")(x))
    return layers.Flatten()(layers.Conv2D(4, 1, groups=2, name="reader")(x))


def transposed(x):
    return layers.Flatten()(layers.Conv2DTranspose(4, 3, name="reader")(layers.Conv2D(8, 3, name="first")(x)))


def together(x):
    x = layers.Concatenate()([layers.Conv2D(8, 3, name="first")(x), layers.Conv2D(4, 3, name="other")(x)])
    return layers.Flatten()(layers.Conv2D(4, 1, name="reader")(x))


def twice(x):
    reader = layers.Conv2D(8, 3, padding="same", name="reader")
    return layers.Dense(3)(layers.Flatten()(reader(reader(layers.Conv2D(8, 3, name="first")(x)))))


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        (two_readers, ("'first'", "read by 2 layers: a, b")),
        (transposed, ("reader, a Conv2DTranspose",)),
        (together, ("read by reader together with other layers", "Valid: none here")),
        (twice, ("'first'", "all free and coupled to no others", "Valid: none here")),
        (grouped, ("Valid: first",)),
    ],
)
@pytest.mark.parametrize("method", BOTH)
def test_a_layer_that_cannot_be_judged_is_told(method, body, fragments):
    named = "before" if body is grouped else "first"
    with pytest.raises(PlanError) as error:
        made(method, network(body, (8, 8, 3)), ratios={named: 0.5})
    for fragment in (f"{method} cannot prune", *fragments):
        assert fragment in str(error.value)


@pytest.mark.parametrize("method", BOTH)
def test_what_cannot_be_judged_is_left_alone_by_a_ratio(method):
    def body(x):
        x = layers.ReLU()(layers.Conv2D(8, 3, name="fine")(x))
        return two_readers(x)

    plan = made(method, network(body, (8, 8, 3)), ratio=0.5)
    assert [len(plan.keep[layer]) for layer in ("fine", "first")] == [4, 8]
    assert any("first keeps its channels: it is read by 2 layers: a, b" in note for note in plan.notes)
    with pytest.raises(PlanError, match=r"first is read by 2 layers.*'uniform'"):
        made(method, network(two_readers, (8, 8, 3)), ratio=0.5)
    with pytest.raises(PlanError, match=r"has none[.] The method 'uniform'"):
        made(method, network(lambda x: layers.Dense(3)(layers.Dense(4)(x)), (5,)), ratio=0.5)


def test_regression_leaves_readers_alone_that_are_too_large(monkeypatch):
    monkeypatch.setattr(type(METHODS.get("regression")), "most_columns", 100)
    plan = made("regression", vgg_like())
    assert [len(plan.keep[f"conv_{n}"]) for n in (1, 2, 3)] == [4, 12, 8]
    assert any(
        "conv_2 keeps its channels: it is read by conv_3, whose 108 inputs are above 100" in note for note in plan.notes
    )


@pytest.mark.parametrize("method", BOTH)
def test_a_failure_leaves_the_model_as_it_was(method):
    model = vgg_like()
    model.get_layer("conv_3").bias.assign(np.full(16, np.inf))
    before = weights_by_path(model)
    with pytest.raises(PlanError, match="fc reads values that are not finite"):
        made(method, model)
    assert all(np.array_equal(value, before[path], equal_nan=True) for path, value in weights_by_path(model).items())
    with pytest.raises(PlanError, match=r"inputs of shape \[\(9, 9, 3\)\]"):
        made(method, vgg_like(), sample=lambda count: (draw(0, 10, (9, 9, 3)), None))


def test_a_site_knows_the_columns_of_every_channel():
    sites, reasons = find_sites(ChannelGraph(plain_cnn()))
    assert reasons == {}
    assert {site.layer: site.reader for site in sites.values()} == {"conv_a": "conv_b", "conv_b": "fc"}
    assert sites["conv_a"].channel_of.tolist() == list(range(6)) * 9
    assert sites["conv_b"].channel_of.tolist() == list(range(10)) * 16


# On a network that has learned, and through the study.


@pytest.fixture(scope="module")
def learned():
    """A network that has seen fashion_mini for a few epochs, and the data."""
    data = load("fashion_mini")
    inputs = x = keras.Input((32, 32, 1))
    for number, filters in enumerate((16, 32, 32), 1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.8, name=f"bn_{number}")(x))
        x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(32, activation="relu", name="fc")(layers.Flatten()(x))
    model = clone(keras.Model(inputs, layers.Dense(10, name="logits")(x)), weights="fresh", seed=1)
    keras.utils.set_random_seed(1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    images, labels = data.normalized_sample(6000)
    model.fit(images, labels, batch_size=64, epochs=3, verbose=0)
    return model, data


def stored(folder):
    """The weights of a stage."""
    with np.load(next(folder.glob("*.npz"))) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.mark.slow
@pytest.mark.parametrize("method", BOTH)
def test_accuracy_before_fine_tuning_beats_chance_and_l1_norm_at_the_same_shape(method, learned):
    model, data = learned
    assert accuracy(model, data) > 0.75
    own = clone(model)
    plan = made(method, own, sample=lambda count: data.normalized_sample(min(count, 1000)))
    reached = accuracy(plan.apply(own), data)
    chance = []
    for seed in range(5):
        control = drawn_plan(model, plan, seed)
        assert control.params == plan.params
        chance.append(accuracy(control.apply(model), data))
    l1 = METHODS.get("l1_norm").plan(model, MethodSettings(ratio=0.5))
    print(f"{method}: {accuracy(model, data):.3f} -> {reached:.3f}; L1 {accuracy(l1.apply(model), data):.3f}, {chance}")
    assert reached > max(chance)
    assert reached > accuracy(l1.apply(model), data)


@pytest.mark.slow
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("model", ["vgg11", "resnet20"])
def test_the_study_goes_the_whole_way(method, model, tmp_path):
    argv = ["--smoke", f"--workdir={tmp_path}", f"--method={method}", f"--model={model}", "--ratio=0.4", "--noexport"]
    assert main([*argv, "--dry_run"]) == 0
    assert main(argv) == 0
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["regime"] for row in rows] == ["unpruned", "pruned", "finetune", "scratch_e", "scratch_b"]
    assert {(row["method"], row["setting"]) for row in rows} == {(method, "ratio=0.4")}
    (stage,) = (tmp_path / "stages").glob("plan-*")
    assert load_plan(stage / "plan.json").origin["method"] == method
    # The weights that are inherited are the reconstructed ones, not those of the large network.
    large = next(folder for folder in (tmp_path / "stages").iterdir() if folder.name.startswith("train-"))
    trained = build_model(model, (32, 32, 1), 10, 0.25)
    trained.set_weights(stored(large))
    small = load_plan(stage / "plan.json").apply(trained)
    same = [np.array_equal(a, b) for a, b in zip(small.get_weights(), stored(stage), strict=True)]
    assert 0 < same.count(False) < len(same)
