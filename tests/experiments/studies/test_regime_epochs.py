import json
import math
from fractions import Fraction

import pytest

import tfprune
from tests.commands import studies
from tests.helpers import plain_cnn, preactivated, randomize
from tfprune.errors import PlanError
from tfprune.experiments.studies.dry_run import describe
from tfprune.experiments.studies.regime_epochs import flops_ratio
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.models import build_model
from tfprune.plans.channels import ChannelPlan
from tfprune.training.regimes import REGIMES


def preresnet164(width):
    """FLOPs as the published code counts them. `width`: layer, channels -> how many of them are left."""
    total, size, entering, number = conv(3, 16, 9, 32), 32, 16, 1
    for stage, inner in enumerate((16, 32, 64)):
        for block in range(18):
            after = size // 2 if stage and not block else size
            selected = width(f"bn_{number + 1}", entering)
            one, two = width(f"conv_{number + 1}", inner), width(f"conv_{number + 2}", inner)
            total += selecting(entering, selected, size) + conv(selected, one, 1, size)
            total += selecting(one, one, size) + conv(one, two, 9, after)
            total += selecting(two, two, after) + conv(two, 4 * inner, 1, after)
            total += 0 if block else conv(entering, 4 * inner, 1, after)
            size, entering, number = after, 4 * inner, number + 3
    last = width("bn_164", entering)
    return total + selecting(entering, last, 8) + 64 * last + 2 * 10 * last + 10


def densenet40(width):
    """As `preresnet164`; transitions make as many channels as the published ones, all of what they had."""
    total, size, channels, number = conv(3, 24, 9, 32), 32, 24, 1
    for block in range(3):
        for _ in range(12):
            number += 1
            selected = width(f"bn_{number}", channels)
            total += selecting(channels, selected, size) + conv(selected, 12, 9, size)
            channels += 12
        number += 1
        selected = width(f"bn_{number}", channels)
        total += selecting(channels, selected, size)
        if block < 2:
            total += conv(selected, channels, 1, size)
            size //= 2
    return total + 64 * selected + 2 * 10 * selected + 10


def conv(entering, leaving, taps, size):
    return 2 * entering * leaving * taps * size * size


def selecting(normalized, selected, size):
    """Normalization of all channels (2 each), and the ReLU of those that a layer of indices then takes (1 each)."""
    return (2 * normalized + selected) * size * size


@pytest.mark.parametrize("ratio", [0.4, 0.6])
@pytest.mark.parametrize("count", [preresnet164, densenet40])
def test_slimmed_networks_with_streams_have_the_budget_of_the_published_code(count, ratio):
    model = randomize(build_model(count.__name__, (32, 32, 3), 10))
    plan = METHODS.get("network_slimming").plan(model, MethodSettings(ratio=ratio))
    before = count(lambda layer, channels: channels)
    after = count(lambda layer, channels: len(plan.keep[layer]) if layer in plan.keep else channels)
    assert REGIMES["scratch_b"].epochs(160, 40, flops_ratio(plan), None) == math.floor(160 * Fraction(before, after))
    # What the network really costs is told as it is, and would buy more epochs.
    assert plan.flops[1] == tfprune.profile(plan.apply(model)).flops
    assert 160 * plan.flops[0] / plan.flops[1] > 160 * flops_ratio(plan) + 1


def test_normalizations_that_select_count_whole_in_the_budget_and_as_they_are_elsewhere(tmp_path):
    model = preactivated()
    plan = ChannelPlan.from_removed(model, {"bn_1": [0, 3], "bn_2": [1], "conv_1a": [2]}, views=["bn_1", "bn_2"])
    # Three of their channels are gone, of maps of 8x8, with 2 FLOPs an element.
    assert plan.selecting_flops == 2 * 64 * 3
    assert plan.budget_flops == (plan.flops[0], plan.flops[1] + 384)
    assert flops_ratio(plan) == plan.flops[0] / (plan.flops[1] + 384)
    assert plan.flops[1] == tfprune.profile(plan.apply(model)).flops
    plan.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "edited.json").write_text(json.dumps({**content, "selecting_flops": 100}))
    with pytest.raises(PlanError, match=r"it tells 100 selecting_flops, the model has 384"):
        tfprune.load_plan(tmp_path / "edited.json").apply(model)
    del content["selecting_flops"]  # as older versions wrote it
    (tmp_path / "older.json").write_text(json.dumps(content))
    older = tfprune.load_plan(tmp_path / "older.json")
    assert older.budget_flops == older.flops == plan.flops
    older.apply(model)


def test_where_nothing_selects_the_budget_is_that_of_the_network(tmp_path):
    plan = tfprune.plan_channels(plain_cnn(), 0.5)
    assert plan.budget_flops == plan.flops
    plan.save(tmp_path / "plan.json")
    assert "selecting_flops" not in (tmp_path / "plan.json").read_text()


def test_a_dry_run_tells_both_numbers_where_they_differ(tmp_path):
    for model, told in (("preresnet56", True), ("vgg11", False)):
        (study,) = studies(tmp_path, f"--model={model}", "--width=.25", "--method=uniform", "--ratio=.5")
        before, after = study.outlook()[0].flops
        (line,) = (line for line in describe(study).splitlines() if line.startswith("budget"))
        assert f" {before / after:.2f} x fewer FLOPs" in line
        assert f" {flops_ratio(study.outlook()[0]):.2f} x the epochs" in line
        assert ("as the paper's code counts" in line) == told
