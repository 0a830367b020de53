"""The kernels of a network and their names, and plans that mask any of them."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.kernels import EVERY_NAME, every_kind
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.plans.kernels import kernels_within


def test_every_kernel_has_a_name_that_does_not_depend_on_what_was_made_before():
    for _ in range(2):  # Keras counts on in the names of inner layers
        assert list(kernels_within(ChannelGraph(every_kind()))) == EVERY_NAME


def random_masks(model, seed=0):
    generator = np.random.default_rng(seed)
    kernels = kernels_within(ChannelGraph(model))
    return {name: generator.random(kernel.shape) < 0.4 for name, kernel in kernels.items()}


def test_a_plan_masks_any_kernel_is_saved_and_fits_the_network_made_again(tmp_path):
    model = every_kind()
    masks = random_masks(model)
    plan = tfprune.WeightPlan.from_masks(model, masks)
    off = sum(int((~mask).sum()) for mask in masks.values())
    assert plan.nonzero == (model.count_params(), model.count_params() - off)
    plan.save(tmp_path / "plan.json")
    again = every_kind()
    again.set_weights(model.get_weights())
    sparse = tfprune.load_plan(tmp_path / "plan.json").apply(again)
    assert plan.prove(again).startswith(f"{off:,} masked weights")
    expected = [weight.numpy() for weight in model.weights]
    for name, kernel in kernels_within(ChannelGraph(model)).items():
        place = next(i for i, weight in enumerate(model.weights) if weight is kernel.variable)
        expected[place] = np.where(masks[name], expected[place], 0)
    tokens = np.arange(12).reshape(2, 6) % 11
    model.set_weights(expected)
    np.testing.assert_allclose(sparse(tokens), model(tokens), atol=1e-6)


def test_a_row_tells_the_multiply_accumulates_of_its_kernel():
    inputs = keras.Input((6, 4))
    x = layers.TimeDistributed(layers.Dense(5), name="timed")(inputs)
    x = layers.LSTM(3, name="lstm")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    plan = tfprune.WeightPlan.from_masks(
        model, {name: np.ones_like(mask) for name, mask in random_masks(model).items()}
    )
    assert {row.layer: row.macs for row in plan.rows} == {
        "timed/dense/kernel": (6 * 20, 6 * 20),
        "lstm/lstm_cell/kernel": (6 * 5 * 12, 6 * 5 * 12),
        "lstm/lstm_cell/recurrent_kernel": (6 * 3 * 12, 6 * 3 * 12),
        "head": (6, 6),
    }
    assert sum(row.macs[0] for row in plan.rows) == tfprune.profile(model).macs


def test_a_mask_of_no_kernel_is_told_with_those_that_there_are():
    model = every_kind()
    with pytest.raises(PlanError, match=r"has no kernel 'gru'. It has: embedding/embeddings, both/lstm_cell/kernel"):
        tfprune.WeightPlan.from_masks(model, {"gru": np.ones((3, 9), bool)})
    with pytest.raises(PlanError, match=r"'head' of the plan is a kernel of shape \(2, 2\)"):
        tfprune.WeightPlan.from_masks(model, {"head": np.ones((2, 2), bool)})
