import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import plain_cnn, prove, randomize
from tfprune.errors import PlanError
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.models import build_model
from tfprune.planning.to_pattern import network_stages, pattern_of, plan_guided
from tfprune.plans.patterns import Pattern

# Table 21 of the paper: kept fractions of VGG-16 on CIFAR-10, by the percentage that was removed.
TABLE_21 = {
    10: (0.969, 1.0, 0.991, 0.861, 0.871),
    20: (0.914, 1.0, 0.975, 0.718, 0.751),
    30: (0.883, 1.0, 0.966, 0.575, 0.626),
    40: (0.875, 1.0, 0.957, 0.446, 0.486),
    50: (0.844, 1.0, 0.947, 0.312, 0.352),
    60: (0.836, 1.0, 0.947, 0.258, 0.132),
}
# Figure 6, transferred guided pruning: parameters of VGG-19 for CIFAR-100, in 1e7.
FIGURE_6 = {10: 1.567, 20: 1.196, 30: 0.881, 40: 0.624, 50: 0.428, 60: 0.307}
VGG19 = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4)
VGG11_STAGES = [["conv_1"], ["conv_2"], ["conv_3", "conv_4"], ["conv_5", "conv_6"], ["conv_7", "conv_8"]]


@pytest.fixture(scope="module")
def vgg19():
    return build_model("vgg19", (32, 32, 3), 100)


@pytest.fixture
def vgg11():
    return build_model("vgg11", (32, 32, 3), 10, 0.25)


def params_of_vgg19(fractions):
    """Counted by hand: convolutions without biases, gamma and beta, one dense layer of 100 classes."""
    total, entering, stage = 0, 3, 0
    for width in VGG19:
        if width == "M":
            stage += 1
            continue
        leaving = int(width * fractions[stage])
        total, entering = total + 9 * entering * leaving + 2 * leaving, leaving
    return total + entering * 100 + 100


@pytest.mark.parametrize("removed", TABLE_21)
def test_a_pattern_of_vgg16_makes_the_vgg19_of_figure_6(vgg19, removed):
    plan = plan_guided(vgg19, Pattern("channels", TABLE_21[removed]))
    assert round(plan.params[1] / 1e7, 3) == FIGURE_6[removed]
    assert plan.params[1] == params_of_vgg19(TABLE_21[removed])
    widths = [len(plan.keep[f"conv_{n}"]) for n in range(1, 17)]
    assert widths[:2] == [int(64 * TABLE_21[removed][0])] * 2
    assert widths[12:] == [int(512 * TABLE_21[removed][4])] * 4


def test_the_pattern_of_a_plan_is_what_it_keeps_of_the_channels_of_each_stage(vgg11):
    plan = tfprune.plan_channels(vgg11, 0.4, scope="global", criterion="random", seed=3)
    kept = [sum(len(plan.keep[name]) for name in own) / sum(plan.widths[name] for name in own) for own in VGG11_STAGES]
    found = pattern_of(vgg11, plan, "mine", {"seeds": [3]})
    assert found.stages == pytest.approx(kept)
    assert (found.kind, found.name, found.origin) == ("channels", "mine", {"seeds": [3]})
    assert pattern_of(vgg11, plan).origin["criterion"] == "random"


def test_the_pattern_of_masks_is_the_share_of_each_position_that_is_kept(vgg11):
    plan = tfprune.plan_weights(vgg11, 0.6)
    masks, found = plan.arrays(), pattern_of(vgg11, plan).stages
    for stage, names in zip(found, VGG11_STAGES, strict=True):
        assert list(stage) == ["3x3"]
        for row in range(3):
            for column in range(3):
                kept = sum(masks[name][row, column].sum() for name in names)
                assert stage["3x3"][row][column] == pytest.approx(
                    kept / sum(masks[name][row, column].size for name in names)
                )


def test_kernels_of_other_sizes_have_probabilities_of_their_own():
    model = build_model("preresnet56", (32, 32, 3), 10, 0.5)
    plan = tfprune.plan_weights(model, 0.5)
    masks, (first, *_) = plan.arrays(), pattern_of(model, plan).stages
    small = [mask for mask in masks.values() if mask.shape[:2] == (1, 1)]
    assert set(first) == {"3x3", "1x1"}
    assert min(mask.mean() for mask in small) < first["1x1"][0][0] < max(mask.mean() for mask in small)
    drawn = plan_guided(model, pattern_of(model, plan), seed=1)
    assert drawn.nonzero[1] == pytest.approx(plan.nonzero[1], rel=0.01)


def test_drawn_masks_have_the_probability_of_each_position_and_repeat_themselves():
    model = build_model("vgg11", (32, 32, 3), 10, 0.5)
    chances = np.random.default_rng(0).uniform(0.1, 0.9, (5, 3, 3))
    pattern = Pattern("weights", [{"3x3": own.tolist()} for own in chances])
    plan = plan_guided(model, pattern, seed=4)
    for expected, names in zip(chances, VGG11_STAGES, strict=True):
        for name in names:
            mask = plan.arrays()[name]
            error = 5 * np.sqrt(0.25 / mask[0, 0].size)  # five standard deviations
            assert np.abs(mask.mean((2, 3)) - expected).max() < error
    assert plan_guided(model, pattern, seed=4).masks == plan.masks
    assert plan_guided(model, pattern, seed=5).masks != plan.masks


def test_a_kernel_of_a_size_that_the_pattern_does_not_have_takes_the_mean():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(64, 5, padding="same", name="five")(layers.Conv2D(64, 3, padding="same", name="three")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    masks = plan_guided(model, Pattern("weights", [{"3x3": [[0.2] * 3, [0.3] * 3, [0.4] * 3]}])).arrays()
    assert masks["five"].mean() == pytest.approx(0.3, abs=0.01)
    assert masks["three"].mean((1, 2, 3)) == pytest.approx([0.2, 0.3, 0.4], abs=0.07)


def test_a_guided_network_is_a_plan_like_any_other():
    model = plain_cnn()
    graph = tfprune.ChannelGraph(model)
    sizes = {record.calls[0].output_shape[1:3] for record in graph.records.values() if "conv" in record.name}
    plan = plan_guided(model, Pattern("channels", (0.5,) * len(sizes)))
    prove(model, plan)
    assert plan.origin["method"] == "guided"


@pytest.mark.parametrize("name", ["resnet20", "preresnet56", "densenet40"])
def test_networks_with_streams_get_a_pattern_and_have_it(name):
    model = randomize(build_model(name, (32, 32, 3), 10, 0.5))
    plan = METHODS.get("network_slimming").plan(model, MethodSettings(ratio=0.5))
    wanted = pattern_of(model, plan)
    made = plan_guided(model, wanted)
    prove(model, made)
    found = pattern_of(model, made)
    if name == "resnet20":  # the stages are coupled by the stream: one of them may lose more
        assert all(own <= kept + 1e-6 for own, kept in zip(found.stages, wanted.stages, strict=True))
    else:
        assert np.abs(np.subtract(found.stages, wanted.stages)).max() < 0.07  # what rounding down leaves out


def test_layers_of_two_stages_that_are_coupled_lose_the_same_channels():
    inputs = keras.Input((8, 8, 3))
    fine = layers.Conv2D(16, 3, padding="same", name="fine")(inputs)
    coarse = layers.Conv2D(16, 3, strides=2, padding="same", name="coarse")(inputs)
    x = layers.Add()([fine, layers.UpSampling2D(2)(coarse)])
    x = layers.Conv2D(8, 3, padding="same", name="last")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    plan = plan_guided(model, Pattern("channels", (0.5, 0.25)))
    # The deeper branch comes first, so that its maps are the first stage.
    assert [len(plan.keep[name]) for name in ("fine", "coarse", "last")] == [8, 8, 2]
    prove(model, plan)


def test_the_smallest_fraction_leaves_a_channel():
    model = plain_cnn()
    stages = len(pattern_of(model, tfprune.plan_channels(model, 0.5)).stages)
    plan = plan_guided(model, Pattern("channels", (1e-6,) * stages))
    assert min(len(kept) for kept in plan.keep.values()) == 1


def test_a_pattern_that_empties_a_layer_is_told(vgg11):
    zero = {"3x3": [[0.0] * 3] * 3}
    with pytest.raises(PlanError, match=r"leaves conv_2 without any weight\. Keep more of that stage"):
        plan_guided(vgg11, Pattern("weights", [{"3x3": [[0.5] * 3] * 3}, *[zero] * 4]))


def test_a_network_of_another_number_of_stages_is_told_with_its_own(vgg11):
    with pytest.raises(PlanError, match=r"has 3 stages, 'vgg11' has 5: conv_1; conv_2; conv_3, conv_4; .*Take a"):
        plan_guided(vgg11, Pattern("channels", (0.5,) * 3))
    with pytest.raises(PlanError, match="has 1 stage, 'vgg11' has 5"):
        plan_guided(vgg11, Pattern("weights", [{"3x3": [[0.5] * 3] * 3}]))


def test_transposed_and_separable_convolutions_have_stages_too():
    inputs = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(8, 3, padding="same", name="separable")(inputs)
    x = layers.Conv2DTranspose(8, 2, strides=2, name="transposed")(x)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    plan = plan_guided(model, Pattern("channels", (0.5, 0.25)))
    assert [len(plan.keep[name]) for name in ("separable", "transposed")] == [4, 2]
    assert network_stages(model, "weights") == [["transposed"]]
    prove(model, plan)


def test_maps_of_one_area_and_other_sides_are_stages_apart_and_maps_of_any_size_are_refused():
    inputs = keras.Input((8, 2, 3))
    x = layers.Conv2D(4, 3, padding="same", name="tall")(inputs)
    x = layers.Conv2D(4, 1, name="square")(layers.Reshape((4, 4, 4))(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    assert network_stages(model, "weights") == [["tall"], ["square"]]
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)), name="any")
    with pytest.raises(PlanError, match="the size of the maps of first depends on the input"):
        plan_guided(model, Pattern("channels", (0.5,)))


def test_what_a_pattern_says_of_itself_does_not_hide_how_the_plan_was_made(vgg11):
    pattern = Pattern("channels", (0.5,) * 5, "mine", {"method": "theirs", "seed": 7, "setting": "ratio=0.5"})
    origin = plan_guided(vgg11, pattern, seed=3).origin
    assert (origin["method"], origin["pattern"], origin["seed"]) == ("guided", "mine", 3)
    assert origin["setting"] == "ratio=0.5"


def test_a_network_without_stages_and_a_design_are_told():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(8)(inputs)), name="flat")
    with pytest.raises(PlanError, match="'flat' has no stages: no convolution of it can be pruned"):
        plan_guided(model, Pattern("channels", (0.5,)))
    with pytest.raises(PlanError, match="'flat' has no stages"):
        pattern_of(model, tfprune.plan_channels(model, 0.5))
    with pytest.raises(PlanError, match="A design is another network"):
        pattern_of(model, tfprune.DesignPlan.beside(model, model))
