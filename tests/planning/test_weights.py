"""Which weights `plan_weights` turns off, by rank and by the pattern of a mask; which arguments it refuses."""

import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import network, residual_cnn
from tfprune.errors import PlanError
from tfprune.models import build_model
from tfprune.planning.ranking import find_masks, rank

KERNELS = {"stem": (3, 3, 3, 8), "branch_a": (3, 3, 8, 6), "branch_b": (3, 3, 6, 8)}
WEIGHTS = 216 + 432 + 432


@pytest.fixture(scope="module")
def model():
    return residual_cnn()


def kernels(model, names=KERNELS):
    return {name: model.get_layer(name).kernel.numpy() for name in names}


# Which weights go.


@pytest.mark.parametrize("sparsity", [0.1, 0.333, 0.5, 0.8, 0.95])
def test_the_global_plan_removes_exactly_the_lowest_ranked_weights(model, sparsity):
    masks = tfprune.plan_weights(model, sparsity).arrays()
    values = kernels(model)
    assert list(masks) == list(values)
    magnitudes = np.concatenate([np.abs(kernel).ravel() for kernel in values.values()])
    keep = np.ones(WEIGHTS, bool)
    keep[np.argsort(magnitudes, kind="stable")[: int(WEIGHTS * sparsity)]] = False
    assert np.array_equal(np.concatenate([mask.ravel() for mask in masks.values()]), keep)


@pytest.mark.parametrize("sparsity", [0.25, 0.8])
def test_the_plan_by_layer_removes_the_same_share_of_every_kernel(model, sparsity):
    masks = tfprune.plan_weights(model, sparsity, scope="layer").arrays()
    for name, kernel in kernels(model).items():
        order = np.argsort(np.abs(kernel).ravel(), kind="stable")
        off = order[: int(kernel.size * sparsity)]
        assert np.array_equal(np.flatnonzero(~masks[name].ravel()), np.sort(off)), name


def test_ties_go_by_position_so_that_the_count_is_exact():
    masks, notes = find_masks({"a": np.ones((2, 5)), "b": -np.ones(10)}, 0.35)
    assert np.flatnonzero(~masks["a"].ravel()).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert masks["b"].all()
    assert notes == []
    masks, _ = find_masks({"a": np.zeros(10), "b": np.zeros(10)}, 0.5, scope="layer")
    assert [np.flatnonzero(~mask).tolist() for mask in masks.values()] == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("count", [1, 299, 300, 301, 450, 499])
def test_zeros_rank_lowest_by_position_and_the_others_after_them(count):
    generator = np.random.default_rng(0)
    kernel = np.where(generator.permutation(500) < 300, 0.0, generator.normal(size=500))
    (mask,), held = rank([kernel], count)
    assert np.flatnonzero(~mask).tolist() == np.sort(np.argsort(np.abs(kernel), kind="stable")[:count]).tolist()
    assert held == []


def test_a_layer_that_would_be_emptied_keeps_its_largest_weight_and_the_plan_tells():
    low, high = np.asarray([0.1, -0.3, 0.2]), np.linspace(1, 2, 7)
    masks, (note,) = find_masks({"low": low, "high": high}, 0.4)
    assert masks["low"].tolist() == [False, True, False]
    assert masks["high"].tolist() == [False, False, True, True, True, True, True]  # two more in its place
    assert note == "low was held at its minimum of 1 of 3 weights"
    masks, notes = find_masks({"low": low, "high": high}, 0.2)
    assert masks["low"].tolist() == [False, True, False]  # nothing was held: two of ten go
    assert notes == []


def test_a_sparsity_beyond_the_minimum_of_all_layers_leaves_one_weight_each():
    masks, notes = find_masks({"a": np.arange(4.0), "b": np.arange(4.0)}, 0.99)
    assert [mask.tolist() for mask in masks.values()] == [[False] * 3 + [True]] * 2
    assert notes == ["all 2 layers were held at their minimum of 1 weight"]


def test_it_prunes_every_convolution_of_the_paper_and_neither_dense_layers_nor_biases():
    model = build_model("preresnet56", (32, 32, 3), 10, 0.25)
    plan = tfprune.plan_weights(model, 0.5)
    convolutions = [layer.name for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert list(plan.masks) == convolutions
    assert any(model.get_layer(name).kernel_size == (1, 1) for name in convolutions)
    total = sum(model.get_layer(name).kernel.numpy().size for name in convolutions)
    assert sum(row.weights[0] - row.weights[1] for row in plan.rows) == total // 2


def test_dense_kernels_are_pruned_on_request(model):
    plan = tfprune.plan_weights(model, 0.5, dense=True)
    assert list(plan.masks) == [*KERNELS, "logits"]
    assert plan.prove(model)


def test_skipped_layers_keep_everything(model):
    plan = tfprune.plan_weights(model, 0.5, skip=["branch_*"])
    assert plan.sizes() == {"stem": (216, 108)}
    sparse = plan.apply(model)
    assert np.array_equal(sparse.get_layer("branch_a").kernel, model.get_layer("branch_a").kernel)
    assert tfprune.plan_weights(model, 0.5, skip="stem").masks.keys() == {"branch_a", "branch_b"}


def body(x):
    x = layers.Conv2DTranspose(6, 3, name="up")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    return layers.Dense(2, name="head")(layers.Flatten()(layers.Conv2D(8, 3, name="conv")(x)))


def test_transposed_and_depthwise_convolutions_are_pruned_too_but_not_by_a_pattern():
    model = network(body, (8, 8, 3))
    plan = tfprune.plan_weights(model, 0.6)
    assert list(plan.masks) == ["up", "depthwise", "conv"]
    assert plan.prove(model)
    plan = tfprune.plan_weights(model, pattern="2:4")
    assert list(plan.masks) == ["conv"]
    assert [note.split()[0] for note in plan.notes] == ["up", "depthwise"]


# Mask patterns.


def test_two_of_four_neighbours_among_the_inputs_stay_the_larger_ones():
    model = network(lambda x: layers.Dense(6, name="fc")(layers.GlobalMaxPooling2D()(conv(x))), (6, 6, 8))
    plan = tfprune.plan_weights(model, pattern="2:4", dense=True)
    for name, values in kernels(model, ["conv", "fc"]).items():
        mask = plan.arrays()[name]
        groups = np.moveaxis(mask, -2, -1).reshape(-1, 4)
        assert (groups.sum(-1) == 2).all()
        magnitudes = np.abs(np.moveaxis(values, -2, -1).reshape(-1, 4))
        assert np.array_equal(groups, magnitudes >= np.sort(magnitudes)[:, 2:3]), name
    assert plan.origin == {"criterion": "magnitude", "sparsity": 0.5, "scope": "layer", "dense": True, "pattern": "2:4"}


def conv(x):
    return layers.Conv2D(12, 3, name="conv")(x)


@pytest.mark.parametrize(("inputs", "kept"), [(1, 1), (2, 2), (3, 2), (5, 3), (7, 4)])
def test_what_does_not_fill_a_group_of_four_counts_as_if_zeros_did(inputs, kept):
    plan_of = {"a": np.random.default_rng(inputs).normal(size=(3, 3, inputs, 5)).astype("float32")}
    masks, _ = find_masks(plan_of, 0.5, mask_pattern="2:4")
    assert (masks["a"].sum(-2) == kept).all()


@pytest.mark.parametrize("kind", [layers.Conv1D, layers.Conv3D])
def test_patterns_are_for_convolutions_of_every_rank(kind):
    shape = (9, 4) if kind is layers.Conv1D else (5, 5, 5, 4)
    model = network(lambda x: layers.Flatten()(kind(4, 3, name="conv")(x)), shape)
    mask = tfprune.plan_weights(model, pattern="2:4").arrays()["conv"]
    assert (mask.sum(-2) == 2).all()
    mask = tfprune.plan_weights(model, 0.5, pattern="block", block_size=(2, 2)).arrays()["conv"]
    assert 2 * mask.sum() == mask.size


def test_blocks_of_least_mean_magnitude_go_whole():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype("float32")
    masks, _ = find_masks({"a": kernel}, 0.75, mask_pattern="block", block_size=(2, 4))
    blocks = np.abs(kernel.reshape(18, 2, 2, 4)).mean((1, 3))
    expected = blocks >= np.sort(blocks.ravel())[27]  # 9 of 36 stay
    assert np.array_equal(masks["a"].reshape(18, 2, 2, 4).all((1, 3)), expected)
    assert np.array_equal(masks["a"].reshape(18, 2, 2, 4).any((1, 3)), expected)


# What is wrong is told.


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"sparsity": 0}, ("sparsity=0", "(0, 1)")),
        ({"sparsity": 1.0}, ("sparsity=1.0", "(0, 1)")),
        ({"sparsity": -0.5}, ("sparsity=-0.5",)),
        ({"sparsity": float("nan")}, ("sparsity=nan",)),
        ({"sparsity": "0.5"}, ("sparsity='0.5'",)),
        ({}, ("sparsity=None", "(0, 1)")),
        ({"sparsity": 1e-6}, ("sparsity=1e-06", "none of the 1,080 weights", "residual_cnn")),
        ({"sparsity": 0.5, "scope": "network"}, ("'network'", "'global', 'layer'")),
        ({"sparsity": 0.5, "skip": ["steam"]}, ("'steam'", "stem, branch_a, branch_b")),
        ({"sparsity": 0.5, "skip": ["*"]}, ("Nothing in 'residual_cnn'", "stem: skipped")),
        ({"sparsity": 0.5, "pattern": "1:2"}, ("'1:2'", "'2:4', 'block'")),
        ({"sparsity": 0.8, "pattern": "2:4"}, ("removes half", "sparsity=0.8", "Leave it out")),
        ({"sparsity": 0.5, "pattern": "block", "scope": "global"}, ("'block'", "scope='layer'")),
        ({"sparsity": 0.5, "pattern": "block", "block_size": (0, 4)}, ("block_size=(0, 4)", "rows and columns")),
        ({"sparsity": 0.5, "pattern": "block", "block_size": (4,)}, ("block_size=(4,)",)),
    ],
    ids=str,
)
def test_wrong_arguments_are_told(model, arguments, fragments):
    with pytest.raises(PlanError) as error:
        tfprune.plan_weights(model, **arguments)
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def test_a_network_without_convolutions_is_told_of_dense():
    model = network(lambda x: layers.Dense(2, name="fc")(x), (5,))
    with pytest.raises(PlanError, match=r"Nothing in .* no convolutions; dense=True"):
        tfprune.plan_weights(model, 0.5)
    assert tfprune.plan_weights(model, 0.5, dense=True).sizes() == {"fc": (10, 5)}


def test_weights_that_are_not_finite_are_told():
    model = residual_cnn()
    model.get_layer("branch_a").kernel.assign(np.full(KERNELS["branch_a"], np.nan))
    with pytest.raises(PlanError, match="branch_a has weights that are not finite"):
        tfprune.plan_weights(model, 0.5)


@pytest.mark.parametrize("shape", [(8, 3), (1, 12), (3, 3, 2, 4), (5, 1)])
@pytest.mark.parametrize("block_size", [(1, 4), (2, 3)])
def test_one_row_or_column_of_blocks_is_ranked_like_any_other(shape, block_size):
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")
    mask = find_masks({"a": kernel}, 0.5, None, "block", block_size)[0]["a"].reshape(-1, shape[-1])
    matrix, means = np.abs(kernel.reshape(-1, shape[-1])), {}
    for i in range(0, matrix.shape[0], block_size[0]):
        for j in range(0, matrix.shape[1], block_size[1]):
            means[i, j] = matrix[i : i + block_size[0], j : j + block_size[1]].mean()
    kept = sorted(means, key=means.get)[len(means) - max(1, round(len(means) * 0.5)) :]
    expected = np.zeros(matrix.shape, bool)
    for i, j in kept:
        expected[i : i + block_size[0], j : j + block_size[1]] = True
    np.testing.assert_array_equal(mask, expected)
