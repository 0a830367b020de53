import json

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import plain_cnn, prove
from tfprune.errors import PlanError
from tfprune.models import build_model
from tfprune.patterns import Pattern, load_pattern, stages

# Table 21: kept fractions of VGG-16 on CIFAR-10, by the ratio that was removed.
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


@pytest.fixture(scope="module")
def vgg19():
    return build_model("vgg19", (32, 32, 3), 100)


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
def test_a_pattern_of_vgg16_designs_the_vgg19_of_figure_6(vgg19, removed):
    plan = Pattern("channels", TABLE_21[removed]).design(vgg19)
    assert round(plan.params[1] / 1e7, 3) == FIGURE_6[removed]
    assert plan.params[1] == params_of_vgg19(TABLE_21[removed])
    widths = [len(plan.keep[f"conv_{n}"]) for n in range(1, 17)]
    assert widths[:2] == [int(64 * TABLE_21[removed][0])] * 2
    assert widths[12:] == [int(512 * TABLE_21[removed][4])] * 4


def test_stages_go_by_the_size_of_the_maps(vgg19):
    assert [len(stage) for stage in stages(vgg19)] == [2, 2, 4, 4, 4]
    preresnet = build_model("preresnet56", (32, 32, 3), 10, 0.25)
    assert len(stages(preresnet)) == 3


def test_the_pattern_of_a_plan_is_the_mean_of_each_stage():
    model = build_model("vgg11", (32, 32, 3), 10, 0.25)
    plan = tfprune.plan_channels(model, 0.4, scope="global", criterion="random", seed=3)
    found = Pattern.of(plan, model).stages
    for fraction, names in zip(found, stages(model), strict=True):
        assert fraction == pytest.approx(np.mean([len(plan.keep[name]) / plan.widths[name] for name in names]))


def test_the_pattern_of_masks_is_the_keep_probability_of_each_position():
    model = build_model("vgg11", (32, 32, 3), 10, 0.25)
    plan = tfprune.plan_weights(model, 0.6)
    masks = plan.arrays()
    for pattern, names in zip(Pattern.of(plan, model).stages, stages(model), strict=True):
        for row in range(3):
            for column in range(3):
                shares = [masks[name][row, column].sum() / masks[name][row, column].size for name in names]
                assert pattern[row][column] == pytest.approx(np.mean(shares))


def test_drawn_masks_have_the_probability_of_each_position_and_repeat_themselves():
    model = build_model("vgg11", (32, 32, 3), 10, 0.5)
    generator = np.random.default_rng(0)
    pattern = Pattern("weights", tuple(generator.uniform(0.1, 0.9, (5, 3, 3))))
    plan = pattern.design(model, seed=4)
    for chances, names in zip(pattern.stages, stages(model), strict=True):
        for name in names:
            mask = plan.arrays()[name]
            error = 5 * np.sqrt(0.25 / mask[0, 0].size)  # five standard deviations
            assert np.abs(mask.mean((2, 3)) - np.asarray(chances)).max() < error
    again, other = pattern.design(model, seed=4), pattern.design(model, seed=5)
    assert again.masks == plan.masks
    assert other.masks != plan.masks
    # What is drawn from a pattern has that pattern, within sampling error.
    assert np.abs(np.asarray(Pattern.of(plan, model).stages) - np.asarray(pattern.stages)).max() < 0.1


def test_a_designed_network_is_a_plan_like_any_other():
    model = plain_cnn()
    prove(model, Pattern("channels", (0.5,) * len(stages(model))).design(model))


def test_a_stage_of_a_residual_network_keeps_its_stream_whole_in_step():
    model = build_model("preresnet56", (32, 32, 3), 10, 0.5)
    plan = Pattern("channels", (0.5, 0.75, 1.0)).design(model)
    small = plan.apply(model)
    assert small.count_params() < model.count_params()


def test_a_pattern_is_saved_edited_and_loaded(tmp_path):
    path = tmp_path / "pattern.json"
    Pattern("channels", (0.5, 1.0), {"model": "mine"}).save(path)
    assert load_pattern(path) == Pattern("channels", (0.5, 1.0), {"model": "mine"})
    content = json.loads(path.read_text())
    content["stages"][0] = 0.25
    path.write_text(json.dumps(content))
    assert load_pattern(path).stages == (0.25, 1.0)


def test_the_mean_of_patterns():
    mean = Pattern.mean([Pattern("channels", (0.2, 1.0)), Pattern("channels", (0.4, 0.5))])
    assert mean.stages == pytest.approx((0.3, 0.75))
    with pytest.raises(PlanError, match="one number of stages"):
        Pattern.mean([Pattern("channels", (0.2, 1.0)), Pattern("channels", (0.4,))])


@pytest.mark.parametrize("stages", [(), (1.2,), (-0.1, 0.5), ("a",), ((0.5, 0.5),), (float("nan"),)])
def test_what_is_no_pattern(stages):
    with pytest.raises(PlanError, match="one fraction from 0 to 1 for each stage"):
        Pattern("channels", stages)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other"}', '{"format": "tfprune pattern 1"}'])
def test_a_file_that_is_no_pattern(tmp_path, content):
    path = tmp_path / "pattern.json"
    path.write_text(content)
    with pytest.raises(PlanError, match=r"pattern\.json' is no pattern"):
        load_pattern(path)
    with pytest.raises(PlanError, match="Cannot read the pattern"):
        load_pattern(tmp_path / "nowhere.json")


def test_a_network_of_another_number_of_stages_is_refused():
    with pytest.raises(PlanError, match=r"has 3 stages; 'vgg11' has 5, of maps of 1024, 256, 64, 16, 4 pixels"):
        Pattern("channels", (0.5,) * 3).design(build_model("vgg11", (32, 32, 3), 10, 0.25))
    inputs = keras.Input((8,))
    with pytest.raises(PlanError, match="no convolutions"):
        stages(keras.Model(inputs, layers.Dense(3)(inputs), name="flat"))
