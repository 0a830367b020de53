"""Selection in front of a batch normalization, and removal of whole branches."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import (
    densely_connected,
    images,
    plain_cnn,
    preactivated,
    predict,
    prove,
    relative_error,
    residual_cnn,
)
from tfprune.errors import PlanError
from tfprune.graph.walk import stream_normalizations
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.plans.channels import ChannelPlan

VIEWS = {
    preactivated: {"bn_1": ("conv_1a", [0, 3]), "bn_2": ("conv_2a", [3, 4, 7]), "bn_end": ("head", [1])},
    densely_connected: {"bn_1": ("conv_1", [5]), "bn_2": ("conv_2", [0, 1, 8]), "bn_end": ("head", [2, 12])},
}


@pytest.mark.parametrize("make", VIEWS)
def test_a_view_selects_for_one_reader_alone(make):
    model = make()
    removed = {view: channels for view, (_, channels) in VIEWS[make].items()}
    plan = ChannelPlan.from_removed(model, removed, views=list(removed))
    small = prove(model, plan)
    # By hand: the reader behind each view has zero weights where it would read the removed channels.
    masked = make()
    for reader, channels in VIEWS[make].values():
        kernel = np.array(masked.get_layer(reader).kernel.numpy())
        kernel[..., channels, :] = 0
        masked.get_layer(reader).kernel.assign(kernel)
    x = images(model)
    assert relative_error(predict(masked, x), predict(small, x)) <= 1e-5
    assert relative_error(predict(model, x), predict(small, x)) > 1e-3
    for view, (reader, channels) in VIEWS[make].items():
        left = model.get_layer(view).gamma.shape[0] - len(channels)
        assert small.get_layer(view).gamma.shape == (left,)
        assert small.get_layer(reader).kernel.shape[-2] == left
    assert small.get_layer("stem").filters == model.get_layer("stem").filters
    assert "selects among them" in plan.frozen["stem"]


def test_views_go_together_with_ordinary_channels_and_survive_files(tmp_path):
    model = preactivated()
    removed = {"bn_1": [0, 3], "bn_2": [1], "conv_1a": [2, 5], "conv_2a": [0]}
    plan = ChannelPlan.from_removed(model, removed, views=["bn_1", "bn_2"])
    plan.save(tmp_path / "plan.json")
    loaded = tfprune.load_plan(tmp_path / "plan.json")
    assert loaded == plan
    small = prove(model, loaded)
    small.save(tmp_path / "small.keras")
    x = images(model)
    again = keras.saving.load_model(tmp_path / "small.keras", custom_objects={}, safe_mode=True)
    assert np.array_equal(predict(small, x)[0], predict(again, x)[0])
    # What came out is a network like any other.
    prove(small, tfprune.plan_channels(small, ratios={"conv_1a": 0.5}))


def test_all_views_kept_leaves_the_network_as_it_is():
    model = preactivated()
    same = ChannelPlan.from_removed(model, {}, views=["bn_1", "bn_end"]).apply(model)
    assert [type(layer) for layer in same.layers] == [type(layer) for layer in model.layers]
    assert np.array_equal(predict(model, images(model))[0], predict(same, images(model))[0])


def test_a_bypassed_branch_is_gone_with_all_its_layers(tmp_path):
    model = preactivated()
    plan = ChannelPlan.from_removed(model, {"conv_2a": [0]}, bypass={"add_1": 0})
    small = prove(model, plan)
    gone = {"bn_1", "conv_1a", "bn_1a", "conv_1b", "add_1"}
    assert gone.isdisjoint(layer.name for layer in small.layers)
    assert plan.keep["conv_1a"] == plan.keep["conv_1b"] == ()
    assert len(plan.keep["conv_2a"]) == 5
    # By hand: the last convolution of the branch computes nothing.
    masked = preactivated()
    for weight in masked.get_layer("conv_1b").weights:
        weight.assign(np.zeros(weight.shape))
    masked = ChannelPlan.from_removed(masked, {"conv_2a": [0]}).apply(masked)
    x = images(model)
    assert relative_error(predict(masked, x), predict(small, x)) <= 1e-5
    lost = sum(model.get_layer(name).count_params() for name in gone)
    lost += 9 * 8 + 9 * 8 + 4  # conv_2a's filter, what reads it, its normalization
    assert small.count_params() == model.count_params() - lost
    plan.save(tmp_path / "plan.json")
    assert tfprune.load_plan(tmp_path / "plan.json") == plan
    assert "conv_1a" in str(plan)


def test_the_shortcut_may_go_instead_of_the_branch():
    model = residual_cnn()
    small = prove(model, ChannelPlan.from_removed(model, {"branch_a": [1]}, bypass={"add": 1}))
    assert len(small.get_layer("branch_a").kernel.numpy()) == 3
    without = prove(model, ChannelPlan.from_removed(model, {"stem": [0, 5]}, bypass={"add": 0}))
    assert [layer.name for layer in without.layers if isinstance(layer, layers.Conv2D)] == ["stem"]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"views": ["bn_9"]}, ("views names 'bn_9'", "no such layer")),
        ({"views": ["conv_1a"]}, ("views names 'conv_1a', a Conv2D", "batch normalization")),
        ({"bypass": {"add_9": 0}}, ("bypass names 'add_9'", "no such layer")),
        ({"bypass": {"add_1": 2}}, ("bypass gives 'add_1'", "operand 2")),
        ({"bypass": {"conv_1a": 0}}, ("bypass gives 'conv_1a', a Conv2D", "give an addition")),
        ({"views": ["bn_1"], "bypass": {"add_1": 0}}, ("views names 'bn_1'", "no such layer left")),
    ],
)
def test_mistakes_are_told(options, fragments):
    with pytest.raises(PlanError) as error:
        ChannelPlan.from_removed(preactivated(), {}, **options)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_channels_of_a_removed_branch_cannot_be_removed_again():
    with pytest.raises(PlanError, match="no layer 'conv_1a' that creates channels"):
        ChannelPlan.from_removed(preactivated(), {"conv_1a": [0]}, bypass={"add_1": 0})
    with pytest.raises(PlanError, match="'plain_cnn' has no such layer"):
        ChannelPlan.from_removed(preactivated(), {}, bypass={"add_1": 0}).apply(plain_cnn())


@pytest.mark.parametrize(
    ("make", "views"),
    [
        (preactivated, ["bn_1", "bn_2", "bn_end"]),
        (densely_connected, ["bn_1", "bn_2", "bn_end"]),
        (residual_cnn, []),
        (plain_cnn, []),
    ],
)
def test_normalizations_of_streams_are_found(make, views):
    assert stream_normalizations(make()) == views


@pytest.mark.parametrize("make", [preactivated, densely_connected])
def test_slimming_ranks_the_views_with_all_other_channels(make):
    model = make()
    plan = METHODS.get("network_slimming").plan(model, MethodSettings(ratio=0.4))
    names = [layer.name for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    gammas = {name: np.abs(model.get_layer(name).gamma.numpy()) for name in names}
    threshold = np.sort(np.concatenate(list(gammas.values())))
    threshold = threshold[len(threshold) - int(np.floor(0.6 * len(threshold)))]
    for name, gamma in gammas.items():
        owner = name.replace("bn_", "conv_") if name.endswith("a") else name
        assert plan.keep[owner] == tuple(np.flatnonzero(gamma >= threshold))
    prove(model, plan)
