import numpy as np
import pytest

from tests.helpers import plain_cnn, residual_cnn
from tfprune.criteria import Evidence, group_scores
from tfprune.errors import UsageError
from tfprune.graph import ChannelGraph


def scores_of(model, layer, criterion, seed=0):
    graph = ChannelGraph(model)
    scores = group_scores(criterion, Evidence(graph, graph.keep_all(), seed))
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
    with pytest.raises(UsageError, match=r"Unknown criterion 'gama'\. Did you mean 'gamma'\?.*l1, l2, geometric_median, gamma, random"):
        scores_of(plain_cnn(), "conv_a", "gama")
