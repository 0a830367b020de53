import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tests.helpers import plain_cnn, randomize, residual_cnn
from tfprune.errors import PlanError, UsageError
from tfprune.planning.cutting import kept_channels
from tfprune.plans.channels import ChannelPlan

LAYERS = ("conv_a", "conv_b", "fc")  # of plain_cnn: 6, 10 and 8 channels that can go


@pytest.fixture(scope="module")
def model():
    return plain_cnn()


def widths(plan):
    return [len(plan.keep[layer]) for layer in LAYERS]


def dense(*units):
    inputs = x = keras.Input((4,))
    for number, count in enumerate(units):
        x = layers.Dense(count, name=f"dense_{number}")(x)
    return randomize(keras.Model(inputs, layers.Dense(2, name="head")(x)))


def test_kept_channels_is_the_exact_floor():
    assert kept_channels(10, 0.9) == 1  # in binary 10 * (1 - .9) is below 1
    for width in (1, 2, 3, 7, 10, 16, 64, 100, 512):
        for percent in range(1, 100):
            assert kept_channels(width, percent / 100) == width * (100 - percent) // 100


def test_ratio_keeps_the_floor_in_every_layer(model):
    assert widths(tfprune.plan_channels(model, 0.5)) == [3, 5, 4]
    assert widths(tfprune.plan_channels(model, 0.9)) == [1, 1, 1]
    assert widths(tfprune.plan_channels(model, 0.3)) == [4, 7, 5]
    assert len(tfprune.plan_channels(model, 0.3).keep["logits"]) == 5
    assert len(tfprune.plan_channels(dense(10), 0.9).keep["dense_0"]) == 1


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_ratio_removes_the_channels_of_least_norm(model, criterion):
    plan = tfprune.plan_channels(model, 0.4, criterion=criterion)
    for layer, keep in (("conv_a", 3), ("conv_b", 6), ("fc", 4)):
        kernel = model.get_layer(layer).kernel.numpy().astype("float64")
        filters = kernel.reshape(-1, kernel.shape[-1])
        norm = np.linalg.norm(filters, ord=1 if criterion == "l1" else 2, axis=0)
        assert plan.keep[layer] == tuple(np.sort(np.argsort(norm)[-keep:]))


def test_coupled_layers_lose_the_same_channels():
    plan = tfprune.plan_channels(residual_cnn(), 0.5)
    assert plan.keep["stem"] == plan.keep["branch_b"]
    assert len(plan.keep["stem"]) == 4


def test_every_part_of_a_zero_padded_stream_loses_the_ratio():
    inputs = keras.Input((8, 8, 3))
    stem = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    short = keras.ops.pad(stem, ((0, 0), (0, 0), (0, 0), (4, 4)))
    x = layers.Add()([short, layers.Conv2D(16, 3, padding="same", name="wide")(stem)])
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    plan = tfprune.plan_channels(model, 0.25)
    assert len(plan.keep["stem"]) == 6
    assert len(plan.keep["wide"]) == 12
    assert tuple(c - 4 for c in plan.keep["wide"] if 4 <= c < 12) == plan.keep["stem"]


@pytest.mark.parametrize("make", [plain_cnn, residual_cnn])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("target", [0.9, 0.5, 0.2])
def test_budget_is_met_within_one_channel(make, scope, cost, target):
    model = make()
    plan = tfprune.plan_channels(model, **{cost: target}, scope=scope)
    whole, left = getattr(plan, cost)
    assert left <= target * whole
    removed = {layer: set(range(width)) - set(plan.keep[layer]) for layer, width in plan.widths.items()}
    costs = []
    for layer, channels in removed.items():
        for channel in channels:
            # One channel given back, and what is coupled to it; both layers of a coupled pair name it.
            fewer = {name: own - {channel} if _coupled(name, layer) else own for name, own in removed.items()}
            costs.append(getattr(ChannelPlan.from_removed(model, fewer), cost)[1])
    assert max(costs) > target * whole


def _coupled(one, other):
    return one == other or {one, other} == {"stem", "branch_b"}


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_global_budget_follows_the_ranking(model, cost):
    plan = tfprune.plan_channels(model, **{cost: 0.4}, scope="global")
    # By brute force: every ratio there is, in steps of one of the 24 channels.
    ladder = [tfprune.plan_channels(model, step / 24, scope="global") for step in range(1, 24)]
    step = next(i for i, rung in enumerate(ladder) if getattr(rung, cost)[1] <= 0.4 * getattr(plan, cost)[0])
    assert plan.keep == ladder[step].keep


def test_budget_of_a_layer_scope_takes_the_same_fraction_everywhere_to_within_a_channel(model):
    plan = tfprune.plan_channels(model, macs=0.6)
    left = [len(plan.keep[layer]) / plan.widths[layer] for layer in LAYERS]
    assert max(left) - min(left) < 1 / 6


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric_median"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("make", [plain_cnn, residual_cnn])
def test_steps_judge_what_is_left_anew(make, scope, criterion):
    model = make()
    how = {"criterion": criterion, "scope": scope, "max_ratio": 0.75}
    plan = tfprune.plan_channels(model, 0.5, steps=2, **how)
    # By hand: prune a quarter, and a third of what is left by a plan for the smaller network.
    first = tfprune.plan_channels(model, 0.25, **how)
    small = first.apply(model)
    pool_sizes = list(map(len, tfprune.ChannelGraph(small).pools()))
    if scope == "layer":
        assert [len(plan.keep[layer]) for layer in plan.widths] == [
            len(tfprune.plan_channels(model, 0.5, **how).keep[layer]) for layer in plan.widths
        ]
        ratios = {
            layer: 1 - len(plan.keep[layer]) / len(first.keep[layer])
            for layer in plan.widths
            if layer not in ("logits", "branch_b")
        }
        second = tfprune.plan_channels(small, criterion=criterion, ratios=ratios)
    else:
        total = sum(map(len, tfprune.ChannelGraph(model).pools()))
        ratio = 1 - (total - math.floor(total / 2)) / sum(pool_sizes)
        second = tfprune.plan_channels(small, ratio, criterion=criterion, scope="global")
    composed = {layer: tuple(first.keep[layer][i] for i in kept) for layer, kept in second.keep.items()}
    assert plan.keep == composed


def test_steps_with_a_budget_meet_it(model):
    plan = tfprune.plan_channels(model, params=0.3, steps=3, scope="global")
    assert 0.2 < plan.params[1] / plan.params[0] <= 0.3


def test_macs_that_cannot_be_reached_are_told_with_what_can():
    with pytest.raises(PlanError, match=r"macs=0.01 cannot be reached: .* 0\.\d\d\d of the MACs are left"):
        tfprune.plan_channels(plain_cnn(), macs=0.01, min_channels=4)


def test_ratios_of_single_layers(model):
    assert widths(tfprune.plan_channels(model, ratios={"conv_b": 0.5})) == [6, 5, 8]
    assert widths(tfprune.plan_channels(model, 0.5, ratios={"conv_b": 0.2, "fc": 0.0})) == [3, 8, 8]


def test_skip_takes_names_and_patterns(model):
    assert widths(tfprune.plan_channels(model, 0.5, skip=["conv_*"])) == [6, 10, 4]
    assert widths(tfprune.plan_channels(model, 0.5, skip=["conv_a", "fc"])) == [6, 5, 8]
    plan = tfprune.plan_channels(residual_cnn(), 0.5, skip=["branch_b"])
    assert [len(plan.keep[layer]) for layer in ("stem", "branch_a", "branch_b")] == [8, 3, 8]


def test_round_to_keeps_a_multiple_and_the_best_of_the_removed(model):
    assert widths(tfprune.plan_channels(model, 0.5, round_to=4)) == [4, 8, 4]
    exact, rounded = tfprune.plan_channels(model, 0.5), tfprune.plan_channels(model, 0.5, round_to=4)
    sums = np.abs(model.get_layer("conv_b").kernel.numpy()).sum((0, 1, 2))
    assert rounded.keep["conv_b"] == tuple(np.sort(np.argsort(sums)[2:]))
    assert set(exact.keep["conv_b"]) < set(rounded.keep["conv_b"])


def test_min_channels_and_max_ratio_hold_and_are_told(model):
    plan = tfprune.plan_channels(model, 0.8, min_channels=3)
    assert widths(plan) == [3, 3, 3]
    assert len(plan.notes) == 3
    assert "conv_b: held at the minimum of 3 of 10 channels" in plan.notes[1]
    plan = tfprune.plan_channels(model, 0.8, max_ratio=0.5)
    assert widths(plan) == [3, 5, 4]
    assert widths(tfprune.plan_channels(model, 0.8, min_channels=7)) == [6, 7, 7]


def test_global_scope_ranks_all_layers_together(model):
    plan = tfprune.plan_channels(model, 0.5, scope="global")
    scores, owners = [], []
    for layer in LAYERS:
        kernel = model.get_layer(layer).kernel.numpy().astype("float64")
        sums = np.abs(kernel.reshape(-1, kernel.shape[-1])).sum(0)
        scores.append(sums / sums.mean())
        owners += [(layer, index) for index in range(len(sums))]
    lowest = {owners[index] for index in np.argsort(np.concatenate(scores), kind="stable")[:12]}
    assert {(la, c) for la in LAYERS for c in range(plan.widths[la]) if c not in plan.keep[la]} == lowest
    assert plan.notes == ()


def test_global_scope_leaves_a_channel_of_every_layer():
    plan = tfprune.plan_channels(dense(5, 40), 0.9, scope="global")
    assert sum(len(plan.keep[layer]) for layer in ("dense_0", "dense_1")) == 4  # floor of 4.5
    assert all(plan.keep.values())


def test_gamma_prunes_only_what_has_a_gamma(model):
    assert widths(tfprune.plan_channels(model, 0.5, criterion="gamma")) == [3, 5, 8]


def test_random_follows_its_seed(model):
    plans = [tfprune.plan_channels(model, 0.5, criterion="random", seed=seed) for seed in (1, 1, 2)]
    assert plans[0].keep == plans[1].keep != plans[2].keep


def test_origin_tells_what_was_asked(model):
    plan = tfprune.plan_channels(model, 0.5, criterion="l2", skip=["fc"])
    assert {key: plan.origin[key] for key in ("ratio", "criterion", "skip")} == {
        "ratio": 0.5,
        "criterion": "l2",
        "skip": ["fc"],
    }


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({}, ("one of ratio", "macs", "params", "received none")),
        ({"ratio": 0.5, "macs": 0.5}, ("one of ratio", "received ratio and macs")),
        ({"macs": 0.5, "params": 0.5}, ("one of ratio", "received macs and params")),
        ({"params": 2}, ("params=2", "(0, 1)")),
        ({"ratio": 0.5, "aggregate": "median"}, ("'median'", "'mean', 'sum', 'max'")),
        ({"ratio": 0.5, "steps": 0}, ("steps=0", "at least 1")),
        ({"ratio": 0.5, "criterion": "taylor"}, ("'taylor'", "data=")),
        ({"ratio": 0.5, "data": np.zeros((1, 8, 8, 3))}, ("'l1' looks at no data", "apoz, taylor")),
        ({"ratio": 0.5, "loss": "mse"}, ("'l1' has no use for loss=",)),
        ({"ratio": 0.5, "criterion": "apoz", "data": 3}, ("data= is a int",)),
        ({"ratio": 0.5, "criterion": "apoz", "data": []}, ("holds no batch",)),
        ({"ratio": 0.5, "criterion": "apoz", "data": np.zeros((4, 9, 8, 3))}, ("[(9, 8, 3)]", "[(8, 8, 3)]")),
        ({"ratio": 0.5, "criterion": "taylor", "data": np.zeros((4, 8, 8, 3))}, ("needs targets",)),
        (
            {"ratio": 0.5, "criterion": "taylor", "data": (np.zeros((4, 8, 8, 3)), np.zeros(4))},
            ("needs a loss", "compile", "loss="),
        ),
        (
            {"ratio": 0.5, "criterion": "taylor", "data": (np.zeros((4, 8, 8, 3)), np.zeros(4)), "loss": "entropy"},
            ("'entropy' is no loss",),
        ),
        ({"ratio": 0.0}, ("ratio=0.0", "(0, 1)")),
        ({"ratio": 1.0}, ("ratio=1.0", "(0, 1)")),
        ({"ratio": 1.5}, ("ratio=1.5", "(0, 1)")),
        ({"ratio": math.nan}, ("ratio=nan", "(0, 1)")),
        ({"ratio": "0.5"}, ("ratio", "0.5")),
        ({"macs": -0.1}, ("macs=-0.1", "(0, 1)")),
        ({"ratio": 0.5, "scope": "model"}, ("'model'", "'layer'", "'global'")),
        ({"ratio": 0.5, "round_to": 0}, ("round_to=0", "at least 1")),
        ({"ratio": 0.5, "min_channels": 0}, ("min_channels=0", "at least 1")),
        ({"ratio": 0.5, "max_ratio": 0.0}, ("max_ratio=0.0", "(0, 1]")),
        ({"ratio": 0.5, "max_ratio": 1.1}, ("max_ratio=1.1", "(0, 1]")),
        ({"ratios": {"conv_a": 1.0}}, ("ratios['conv_a']=1.0", "[0, 1)")),
        ({"ratios": {"conv_z": 0.5}}, ("'conv_z'", "conv_a, conv_b, fc, logits")),
        ({"ratios": {"conv_a": 0.5}, "scope": "global"}, ("ratios=", "scope='layer'")),
        ({"ratios": {"conv_a": 0.5}, "macs": 0.5}, ("ratios=", "macs=")),
        ({"ratios": {"conv_a": 0.0}}, ("no channel",)),
        ({"ratios": {"logits": 0.5}}, ("logits", "model output")),
        ({"ratios": {"logits": 0.5, "conv_a": 0.5}}, ("logits", "model output")),
        ({"ratio": 0.5, "skip": ["block_*"]}, ("'block_*'", "conv_a, conv_b, fc, logits")),
        ({"ratio": 0.5, "skip": ["*"]}, ("Nothing in 'plain_cnn'", "conv_a: skipped", "model output")),
        ({"ratio": 0.1, "round_to": 32}, ("removes no channel", "10 channels", "round_to")),
        ({"ratio": 0.5, "skip": None}, ("skip=None", "list of layer names")),
        ({"ratio": 0.5, "skip": 3}, ("skip=3", "list of layer names")),
        ({"ratio": 0.5, "skip": [None]}, ("skip=[None]", "list of layer names")),
        ({"ratio": 0.5, "views": 3}, ("views=3", "list of layer names")),
        ({"ratios": 0.5}, ("ratios=0.5", "dictionary: layer name -> fraction")),
        ({"ratios": [("conv_a", 0.5)]}, ("ratios=[('conv_a', 0.5)]", "dictionary")),
        ({"ratios": {}}, ("ratios={} names no layer",)),
        ({"ratio": 0.5, "criterion": None}, ("Unknown criterion None", "l1, l2")),
        ({"ratio": 0.5, "criterion": len}, ("Unknown criterion", "l1, l2")),
        ({"ratio": 0.5, "criterion": [1]}, ("Unknown criterion [1]", "l1, l2")),
        ({"ratio": 0.5, "aggregate": ["mean"]}, ("Unknown aggregate ['mean']", "'mean', 'sum', 'max'")),
        ({"ratio": 0.5, "seed": -1}, ("seed=-1", "at least 0")),
        ({"ratio": 0.5, "steps": 1.5}, ("steps=1.5", "whole number")),
        ({"ratios": {"conv_a": 0.5, "fc": 0.5}, "skip": ["conv_*"]}, ("ratios names 'conv_a'", "skip=")),
        ({"ratios": {"fc": 0.5}, "criterion": "gamma"}, ("ratios names 'fc'", "'gamma' scores no channel")),
        ({"ratios": {"fc": 0.5, "conv_a": 0.5}, "criterion": "gamma"}, ("ratios names 'fc'", "'gamma'")),
        ({"ratios": {"conv_a": 0.1}, "round_to": 6}, ("ratios={'conv_a': 0.1}", "max_ratio", "scope", "criterion")),
        ({"ratio": 0.5, "criterion": "apoz", "data": np.full((4, 8, 8, 3), np.nan)}, ("NaN", "inputs of batch 0")),
        ({"ratio": 0.5, "criterion": "l3"}, ("'l3'", "Did you mean", "l1, l2, geometric_median, gamma, random")),
    ],
    ids=str,
)
def test_wrong_argument_is_told(model, arguments, fragments):
    with pytest.raises(UsageError) as error:
        tfprune.plan_channels(model, **arguments)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments), message
    assert "\n" not in message


def test_skip_may_be_a_single_pattern_or_is_told_as_it_was_given(model):
    try:
        plan = tfprune.plan_channels(model, 0.5, skip="conv_*")
    except PlanError as error:
        assert "conv_*" in str(error)  # noqa: PT017
    else:
        assert widths(plan) == [6, 10, 4]


def test_models_that_cannot_be_planned_are_told():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    for wrong, fragment in (
        (Subclassed(), r"The subclassed model .* \(Subclassed\) has no input shape yet"),
        (keras.Sequential([layers.Dense(3)]), "model.build"),
        (None, "NoneType"),
        ("vgg16", "builtins.str"),
    ):
        with pytest.raises(PlanError, match=fragment):
            tfprune.plan_channels(wrong, 0.5)


def test_nothing_prunable_is_told_with_the_reasons():
    inputs = keras.Input((4,))
    x = layers.LayerNormalization(name="norm")(layers.Dense(6, name="wide")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x), name="stuck")
    with pytest.raises(PlanError) as error:
        tfprune.plan_channels(model, 0.5)
    assert "Nothing in 'stuck' can be pruned" in str(error.value)
    assert "wide: norm normalizes over the channels" in str(error.value)
    assert "head: model output" in str(error.value)


def test_model_without_gammas_is_told():
    with pytest.raises(PlanError, match="'gamma' scores no channel"):
        tfprune.plan_channels(dense(4), 0.5, criterion="gamma")


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.45, 0.7])
@pytest.mark.parametrize("width", [0.25, 1.0])
def test_layers_of_several_pools_keep_the_floor_of_their_own_width(ratio, width):
    from tfprune.models import build_model

    network = build_model("resnet20", (32, 32, 3), 10, width)
    plan = tfprune.plan_channels(network, ratio)
    for layer, kept in plan.keep.items():
        if layer != "logits":
            assert len(kept) == math.floor(plan.widths[layer] * (1 - ratio) + 1e-9), layer


def test_coupled_layers_have_one_ratio():
    model = residual_cnn()
    with pytest.raises(PlanError, match=r"gives 'stem' 0\.25 and 'branch_b' 0\.75, but they are coupled"):
        tfprune.plan_channels(model, ratios={"stem": 0.25, "branch_b": 0.75})
    plan = tfprune.plan_channels(model, ratios={"stem": 0.25, "branch_b": 0.25})
    assert len(plan.keep["stem"]) == len(plan.keep["branch_b"]) == 6
    with pytest.raises(PlanError, match=r"ratios names 'stem', which skip= keeps whole \(or a layer coupled to it\)"):
        tfprune.plan_channels(model, 0.5, ratios={"stem": 0.25}, skip=["branch_b"])


def test_a_layer_that_keeps_less_than_its_own_ratio_is_told():
    inputs = keras.Input((8, 8, 3))
    stem = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    short = keras.ops.pad(stem, ((0, 0), (0, 0), (0, 0), (4, 4)))
    x = layers.Add()([short, layers.Conv2D(16, 3, padding="same", name="wide")(stem)])
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    plan = tfprune.plan_channels(model, ratios={"stem": 0.25, "wide": 0.5})
    assert (len(plan.keep["stem"]), len(plan.keep["wide"]), plan.notes) == (6, 8, ())
    plan = tfprune.plan_channels(model, ratios={"stem": 0.75, "wide": 0.25})
    assert plan.notes == ("wide: keeps fewer than 12 channels, for the layers coupled to some of it",)


def test_layers_that_a_criterion_cannot_score_are_told(model):
    plan = tfprune.plan_channels(model, 0.5, criterion="gamma")
    assert plan.notes == ("criterion 'gamma' cannot score (all) channels of fc: they stay",)


def test_skip_takes_the_exact_name_of_a_layer_before_it_is_a_pattern():
    inputs = keras.Input((4,))
    x = layers.Dense(6, name="d1")(layers.Dense(8, name="d[1]")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="o")(x))
    assert {layer: len(kept) for layer, kept in tfprune.plan_channels(model, 0.5, skip=["d[1]"]).keep.items()} == {
        "d[1]": 8, "d1": 3, "o": 2,
    }  # fmt: skip


def any_size():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(6, 3, name="conv_b")(layers.Conv2D(8, 3, name="conv_a")(inputs))
    return randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))


def test_budgets_in_macs_need_inputs_of_known_size():
    with pytest.raises(PlanError, match=r"macs=0\.5 needs inputs of known size: .* of conv_a, conv_b .*params="):
        tfprune.plan_channels(any_size(), macs=0.5)
    plan = tfprune.plan_channels(any_size(), params=0.5)
    assert plan.notes == ("sizes of the input are unknown: MACs and FLOPs are per position",)
    assert plan.notes[0] in str(tfprune.profile(any_size()))
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Resizing(8, 8)(inputs)))
    resized = keras.Model(inputs, layers.Dense(2)(x))
    assert tfprune.plan_channels(resized, macs=0.5).notes == tfprune.profile(resized).notes == ()


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric_median", "gamma", "apoz", "mean_activation"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_told_with_their_layer(criterion, value):
    model = plain_cnn()
    variable = model.get_layer("bn_b").gamma if criterion == "gamma" else model.get_layer("conv_b").kernel
    variable.assign(np.where(np.arange(10) == 3, value, variable.numpy()))
    data = np.ones((2, 8, 8, 3), "float32") if criterion in ("apoz", "mean_activation") else None
    with pytest.raises(PlanError, match=r"conv_b.*NaN or infini"):
        tfprune.plan_channels(model, 0.5, criterion=criterion, data=data)
    model.get_layer("conv_b").kernel.assign(np.ones((3, 3, 6, 10)))


def test_a_quantized_model_is_told_as_the_reason():
    model = dense(6)
    model.quantize("int8")
    with pytest.raises(PlanError, match="dense_0 has quantized weights"):
        tfprune.plan_channels(model, 0.5)


def test_layers_that_are_not_known_are_named_even_where_nothing_is_lost_by_it():
    class Unknown(layers.Layer):
        def call(self, x):
            return tf.identity(x)

        def compute_output_shape(self, shape):
            return shape

    inputs = keras.Input((4,))
    x = layers.Dense(8)(Unknown(name="strange")(inputs))
    plan = tfprune.plan_channels(keras.Model(inputs, layers.Dense(2, name="o")(x)), 0.5)
    assert plan.frozen == {"o": "model output"}
    costs, note = plan.notes
    assert costs == "what these layers compute is not known, and counts as 0 MACs: strange (Unknown)"
    assert note.startswith("strange (Unknown) is not known to tfprune, and cannot be looked into (")


def test_widths_of_attention_that_stay_are_told_once():
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(4, 3)(inputs, inputs)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    plan = tfprune.plan_channels(keras.Model(inputs, layers.Dense(2)(x)), 0.5)
    assert plan.notes == ("MultiHeadAttention: whole heads can go; the widths of keys and values stay",)
