import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

import tfprune
from tests.helpers import plain_cnn, randomize, residual_cnn
from tfprune.errors import PlanError, UsageError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.planning.criteria import NEED_DATA, Evidence, group_scores
from tfprune.planning.criteria.batches import as_batches, as_loss


def scores_of(model, layer, criterion, seed=0, data=None, loss=None, aggregate="mean", removed=None):
    graph = ChannelGraph(model)
    kept = tfprune.ChannelPlan.from_removed(model, removed).kept(graph) if removed else graph.keep_all()
    batches = [] if data is None else as_batches(model, data)
    loss = as_loss(model, loss) if criterion == "taylor" else None
    scores = group_scores(criterion, Evidence(graph, kept, seed, batches, loss), aggregate)
    return scores[graph.group_of[graph.records[layer].created]]


def norms(model, layer, order):
    kernel = model.get_layer(layer).kernel.numpy().astype("float64")
    filters = kernel.reshape(-1, kernel.shape[-1])
    return np.abs(filters).sum(0) if order == 1 else np.sqrt((filters**2).sum(0))


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("layer", ["conv_a", "conv_b", "fc"])
def test_norms_are_those_of_numpy_relative_to_the_layers_mean(criterion, order, layer):
    model = plain_cnn()
    expected = norms(model, layer, order)
    assert np.allclose(scores_of(model, layer, criterion), expected / expected.mean(), rtol=1e-6)


def test_coupled_layers_share_the_mean_of_their_scores():
    model = residual_cnn()
    stem, branch = norms(model, "stem", 1), norms(model, "branch_b", 1)
    expected = (stem / stem.mean() + branch / branch.mean()) / 2
    assert np.allclose(scores_of(model, "stem", "l1"), expected, rtol=1e-6)
    assert np.allclose(scores_of(model, "branch_b", "l1"), expected, rtol=1e-6)


def test_gamma_is_the_mean_of_absolute_scales_that_a_channel_passes():
    model = residual_cnn()
    gamma = {name: np.abs(model.get_layer(f"bn_{name}").gamma.numpy()) for name in ("stem", "branch_a", "branch_b")}
    assert np.allclose(scores_of(model, "stem", "gamma"), (gamma["stem"] + gamma["branch_b"]) / 2)
    assert np.allclose(scores_of(model, "branch_a", "gamma"), gamma["branch_a"])
    assert np.isnan(scores_of(plain_cnn(), "fc", "gamma")).all()  # no batch normalization follows


def test_random_follows_its_seed_and_not_the_weights():
    first = scores_of(plain_cnn(seed=0), "conv_b", "random", seed=1)
    assert (first == scores_of(plain_cnn(seed=9), "conv_b", "random", seed=1)).all()
    assert (first != scores_of(plain_cnn(seed=0), "conv_b", "random", seed=2)).all()
    assert ((first >= 0) & (first < 1)).all()


def test_layer_of_zeros_has_scores_of_zero():
    model = plain_cnn()
    model.get_layer("conv_a").kernel.assign(np.zeros((3, 3, 3, 6), "float32"))
    assert not scores_of(model, "conv_a", "l1").any()


def test_unknown_criterion_lists_the_valid_ones():
    with pytest.raises(
        UsageError, match=r"Unknown criterion 'gama'\. Did you mean 'gamma'\?.*l1, l2, geometric_median, gamma, random"
    ):
        scores_of(plain_cnn(), "conv_a", "gama")


def test_geometric_median_sums_the_distances_to_the_other_filters():
    model = plain_cnn()
    for layer in ("conv_a", "conv_b", "fc"):
        kernel = model.get_layer(layer).kernel.numpy().astype("float64")
        filters = kernel.reshape(-1, kernel.shape[-1]).T
        expected = cdist(filters, filters).sum(axis=1)
        assert np.allclose(scores_of(model, layer, "geometric_median"), expected / expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric_median"])
def test_filters_of_recurrent_units_are_those_of_all_gates(criterion):
    inputs = keras.Input((5, 4))
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.LSTM(6, name="lstm")(inputs))))
    parts = [np.split(weight.numpy().astype("float64"), 4, axis=1) for weight in model.get_layer("lstm").weights[:2]]
    filters = np.concatenate([gate for gates in parts for gate in gates]).T
    expected = {
        "l1": np.abs(filters).sum(1),
        "l2": np.linalg.norm(filters, axis=1),
        "geometric_median": cdist(filters, filters).sum(1),
    }[criterion]
    assert np.allclose(scores_of(model, "lstm", criterion), expected / expected.mean(), rtol=1e-6)


def read_by(model, layer, x):
    """What a layer reads, as float64, by a model of its own."""
    reader = model.get_layer(layer)
    return keras.Model(model.input, reader.input)(x, training=False).numpy().astype("float64")


def test_activations_are_measured_where_channels_are_read():
    model, x = plain_cnn(), np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype("float32")
    read = read_by(model, "conv_b", x)
    mean = np.abs(read).mean((0, 1, 2))
    zeros = (read == 0).mean((0, 1, 2))
    assert zeros.max() > 0
    assert np.allclose(scores_of(model, "conv_a", "mean_activation", data=x), mean / mean.mean(), rtol=1e-5)
    assert np.allclose(scores_of(model, "conv_a", "apoz", data=x), 1 - zeros, rtol=1e-6)
    # Flattened: every channel is read at each of its positions.
    flat = np.abs(read_by(model, "fc", x)).reshape(40, -1, 10).mean((0, 1))
    assert np.allclose(scores_of(model, "conv_b", "mean_activation", data=x), flat / flat.mean(), rtol=1e-5)


def test_apoz_without_any_zero_is_told():
    inputs = keras.Input((4,))
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(inputs))))
    with pytest.raises(PlanError, match="on these data none ever is"):
        tfprune.plan_channels(model, 0.5, criterion="apoz", data=np.ones((3, 4), "float32"))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("make", "layer"), [(plain_cnn, "conv_a"), (plain_cnn, "conv_b"), (residual_cnn, "stem")])
def test_taylor_is_the_slope_of_the_loss_along_each_group(make, layer, compiled):
    model = make()
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(5, 8, 8, 3)).astype("float32"), generator.integers(0, 5, 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if compiled:
        model.compile(loss=loss)
    scores = scores_of(model, layer, "taylor", data=(x, y), loss=None if compiled else loss)

    # By finite differences: scale what every consumer reads of one channel, which its kernel's rows can do as well.
    readers = {"conv_a": ["conv_b"], "conv_b": ["fc"], "stem": ["branch_a", "logits"]}[layer]
    channels = model.get_layer(layer).filters
    kernels = {name: model.get_layer(name).kernel.numpy() for name in readers}

    def losses(channel, scale):
        for name, kernel in kernels.items():
            scaled = kernel.reshape(*kernel.shape[:-2], -1, channels, kernel.shape[-1]).copy()
            scaled[..., channel, :] *= scale
            model.get_layer(name).kernel.assign(scaled.reshape(kernel.shape))
        logits = model(x, training=False).numpy().astype("float64")
        return logsumexp(logits, axis=1) - logits[np.arange(5), y]

    step = 1e-2
    expected = [np.abs(losses(c, 1 + step) - losses(c, 1 - step)).mean() / (2 * step) for c in range(channels)]
    assert np.allclose(scores, expected, rtol=2e-2, atol=2e-4)


def test_data_come_as_arrays_pairs_or_batches():
    model, x = plain_cnn(), np.random.default_rng(0).normal(size=(50, 8, 8, 3)).astype("float32")
    y = np.zeros(50)
    expected = scores_of(model, "conv_a", "mean_activation", data=x)
    forms = [
        (x, y),
        [x[:20], x[20:]],
        [(x[:30], y[:30]), (x[30:], y[30:])],
        tf.data.Dataset.from_tensor_slices((x, y)).batch(16),
    ]
    for form in forms:
        assert np.allclose(scores_of(model, "conv_a", "mean_activation", data=form), expected, rtol=1e-5)


def test_scores_of_coupled_channels_are_aggregated_as_asked():
    model = residual_cnn()
    stem, branch = (norms(model, name, 1) / norms(model, name, 1).mean() for name in ("stem", "branch_b"))
    for aggregate, expected in (
        ("sum", stem + branch),
        ("max", np.maximum(stem, branch)),
        ("mean", (stem + branch) / 2),
    ):
        assert np.allclose(scores_of(model, "stem", "l1", aggregate=aggregate), expected, rtol=1e-6)


def test_what_is_removed_counts_for_nothing():
    model = plain_cnn()
    removed = {"conv_a": [1, 4], "conv_b": [0, 2, 7]}
    small = tfprune.ChannelPlan.from_removed(model, removed).apply(model)
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")
    for criterion in ("l1", "l2", "geometric_median", "mean_activation", "apoz"):
        data = x if criterion in NEED_DATA else None
        left = [channel for channel in range(10) if channel not in removed["conv_b"]]
        masked = scores_of(model, "conv_b", criterion, data=data, removed=removed)[left]
        assert np.allclose(masked, scores_of(small, "conv_b", criterion, data=data), rtol=1e-5)


class Penalized(layers.Layer):
    def call(self, x):
        self.add_loss(1e-3 * keras.ops.sum(x**2))
        return 2.0 * x


def test_the_losses_that_layers_have_added_in_a_training_do_not_reach_the_criterion():
    inputs = keras.Input((5,))
    hidden = Penalized()(layers.Dense(8, activation="relu", name="hidden")(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    data = np.random.default_rng(0).normal(size=(8, 5)).astype("float32"), np.arange(8) % 3
    untrained = tfprune.plan_channels(model, 0.5, criterion="taylor", data=data)
    model.fit(*data, verbose=0)  # it leaves tensors of a graph that is gone
    assert tfprune.plan_channels(model, 0.5, criterion="taylor", data=data).keep == untrained.keep
