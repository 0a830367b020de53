import math
from fractions import Fraction

import pytest

from tfprune.errors import UsageError
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.models import build_model
from tfprune.paper.variants import VARIANTS
from tfprune.training.regimes import BUDGETS, REGIMES, parse_regimes

FINETUNE, SCRATCH_E, SCRATCH_B = (REGIMES[name] for name in ("finetune", "scratch_e", "scratch_b"))


def test_which_regime_inherits_weights():
    assert {name: regime.weights for name, regime in REGIMES.items()} == {
        "finetune": "inherit",
        "scratch_e": "fresh",
        "scratch_b": "fresh",
        "winning_ticket": "rewind",
        "random_ticket": "scaled",
    }


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.52, 7.9])
@pytest.mark.parametrize("cap", [None, 1.0, 2.0])
def test_e_has_the_large_models_epochs_and_finetuning_its_own(ratio, cap):
    assert SCRATCH_E.epochs(160, 40, ratio, cap) == 160
    assert FINETUNE.epochs(160, 40, ratio, cap) == 40


@pytest.mark.parametrize("epochs", [1, 2, 6, 7, 90, 160, 200])
@pytest.mark.parametrize("ratio", [1.0, 1.0001, 1.52, 1.999, 2.0, 2.7, 19.4])
def test_b_has_the_budget_of_the_large_model(epochs, ratio):
    length = SCRATCH_B.epochs(epochs, 40, ratio, None)
    assert length == math.floor(epochs * Fraction(str(ratio)))  # exact, where int(90 * 19.4) is 1745
    # The same said otherwise: the whole epochs of the small network that the budget pays.
    assert -1e-9 < epochs - length / ratio < (1 + 1e-9) / ratio


def test_b_can_be_capped():
    assert SCRATCH_B.epochs(90, 20, 3.7, 2.0) == 180
    assert SCRATCH_B.epochs(90, 20, 1.4, 2.0) == 126
    assert SCRATCH_B.epochs(90, 20, 3.7, 1.0) == 90
    assert SCRATCH_B.epochs(90, 20, 3.7, 1.5) == 135


@pytest.mark.parametrize("ratio", [1e-9, 0.3, 0.999, 1.0, 1.001])
@pytest.mark.parametrize("epochs", [1, 3, 160])
def test_b_is_never_shorter_than_e(ratio, epochs):
    assert SCRATCH_B.epochs(epochs, 1, ratio, None) >= SCRATCH_E.epochs(epochs, 1, ratio, None)


@pytest.mark.parametrize(
    ("variant", "model", "epochs"),
    [("VGG-16-A", "vgg16_l1", 243), ("ResNet-56-A", "resnet56", 178), ("ResNet-56-B", "resnet56", 220)],
)
def test_b_has_the_lengths_of_the_papers_runs(variant, model, epochs):
    large = build_model(model, (32, 32, 3), 10)
    plan = METHODS.get("l1_norm").plan(large, MethodSettings(ratios=VARIANTS[variant].ratios))
    assert SCRATCH_B.epochs(160, 40, plan.flops[0] / plan.flops[1], None) == epochs


@pytest.mark.parametrize("epochs", [1, 2, 40, 160])
def test_finetuning_stays_at_the_lowest_rate_of_training(epochs):
    schedule = FINETUNE.schedule(0.1, epochs)
    assert [schedule.at(epoch) for epoch in range(epochs)] == pytest.approx([0.001] * epochs)


@pytest.mark.parametrize("regime", [SCRATCH_E, SCRATCH_B])
def test_scratch_training_stretches_the_schedule(regime):
    schedule = regime.schedule(0.1, 243)
    rates = [schedule.at(epoch) for epoch in (0, 120, 121, 181, 182, 242)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_on_imagenet_the_schedule_drops_by_thirds():
    assert SCRATCH_B.schedule(0.1, 180, "imagenet").drops == (60, 120)
    assert FINETUNE.schedule(0.1, 20, "imagenet").at(0) == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["all"], ["finetune", "scratch_e", "scratch_b"]),
        (["scratch_b", "finetune"], ["finetune", "scratch_b"]),
        (["scratch_e", "scratch_e"], ["scratch_e"]),
        (["scratch_e", "all"], ["finetune", "scratch_e", "scratch_b"]),
        (["random_ticket", "all"], ["finetune", "scratch_e", "scratch_b", "random_ticket"]),
    ],
)
def test_names_are_parsed_into_the_order_of_the_papers_tables(names, expected):
    assert [regime.name for regime in parse_regimes(names)] == expected


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(
        UsageError, match=r"'scratch_c'.*'scratch_[eb]'.*finetune, .*, winning_ticket, random_ticket, all"
    ):
        parse_regimes(["finetune", "scratch_c"])


def test_no_name_at_all_is_refused():
    with pytest.raises(UsageError, match="finetune, scratch_e, scratch_b, winning_ticket, random_ticket, all"):
        parse_regimes([])


@pytest.mark.parametrize(("ratio", "cap"), [(1.52, None), (3.7, 2.0), (1.0, None)])
def test_b_may_spend_what_fine_tuning_has_had_too(ratio, cap):
    plain = SCRATCH_B.epochs(160, 40, ratio, cap)
    assert SCRATCH_B.epochs(160, 40, ratio, cap, "flops_plus_finetune") == plain + 40
    assert SCRATCH_B.epochs(160, 40, ratio, cap, "epochs") == 160
    for budget in BUDGETS:
        assert SCRATCH_E.epochs(160, 40, ratio, cap, budget) == 160
        assert FINETUNE.epochs(160, 40, ratio, cap, budget) == 40
