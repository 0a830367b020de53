import math

import numpy as np
import pytest
from scipy import stats

from tfprune.experiments.findings.statistics import (
    compare,
    mean_and_std,
    paired_difference,
    sampling_error,
    verdict,
    verdict_on_design,
)
from tfprune.training.measures import ERROR, SCORE, SHARE, Measure

ONE = {0: 0.9312, 1: 0.9365, 2: 0.9344, 3: 0.9380, 4: 0.9321}
OTHER = {0: 0.9301, 1: 0.9320, 2: 0.9350, 3: 0.9341, 4: 0.9300}


def test_mean_and_sample_deviation_equal_numpys():
    values = list(ONE.values())
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(np.mean(values), rel=1e-12)
    assert std == pytest.approx(math.sqrt(sum((v - sum(values) / 5) ** 2 for v in values) / 4), rel=1e-9)


def test_a_single_value_has_no_deviation():
    mean, std = mean_and_std([0.5])
    assert mean == 0.5
    assert math.isnan(std)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_interval_is_that_of_scipys_paired_t_test(count):
    one, other = ({seed: values[seed] for seed in range(count)} for values in (ONE, OTHER))
    expected = stats.ttest_rel(list(one.values()), list(other.values())).confidence_interval(0.95)
    difference = paired_difference(one, other)
    assert difference.mean == pytest.approx(np.mean(list(one.values())) - np.mean(list(other.values())))
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert difference.n == count


def test_runs_are_paired_by_seed_and_not_by_order():
    shuffled = {seed: OTHER[seed] for seed in (3, 0, 4, 2, 1)}
    assert paired_difference(ONE, shuffled) == paired_difference(ONE, OTHER)


def test_only_seeds_that_both_have_count():
    difference = paired_difference({**ONE, 8: 0.1}, {**OTHER, 9: 0.99})
    assert difference == paired_difference(ONE, OTHER)
    assert paired_difference({1: 0.5}, {2: 0.5}) is None


def test_a_difference_is_shown_when_the_interval_excludes_zero():
    def shown(*differences):
        return paired_difference(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0)).shown

    assert shown(0.010, 0.011, 0.012)
    assert shown(-0.010, -0.011, -0.012)
    assert not shown(0.010, -0.011, 0.012)
    assert not shown(0.01)  # one seed shows nothing


def test_the_sampling_error_is_that_of_a_difference_of_two_proportions():
    generator = np.random.default_rng(0)
    pairs = generator.binomial(2000, 0.9, (2, 40000)) / 2000
    assert sampling_error(0.9, 2000) == pytest.approx(1.96 * np.std(pairs[0] - pairs[1]), rel=0.02)


def runs(base, *differences):
    return {seed: base + difference for seed, difference in enumerate(differences)}


EQUAL = runs(0.9, 0, 0, 0)
UP, DOWN, BOTH_WAYS = (
    runs(0.9, 0.010, 0.012, 0.011),
    runs(0.9, -0.010, -0.012, -0.011),
    runs(0.9, 0.01, -0.012, 0.005),
)


def test_verdict_better():
    words = verdict({"finetune": EQUAL, "scratch_b": UP}, 10_000)
    assert "not worth it: Scratch-B" in words
    assert "Scratch-B ended 1.1 points above" in words
    assert "no difference" not in words


def test_verdict_worse():
    words = verdict({"finetune": EQUAL, "scratch_e": DOWN}, 10_000)
    assert words.startswith("Pruning was worth it")
    assert "Scratch-E ended 1.1 points below" in words
    assert "no difference" not in words


def test_verdict_no_difference():
    words = verdict({"finetune": EQUAL, "scratch_e": BOTH_WAYS}, 10_000)
    assert words.startswith("No advantage of scratch training")
    assert "Scratch-E ended 0.1 points above" in words
    assert "n=3: no difference shown" in words


def test_verdict_tells_the_interval():
    interval = stats.ttest_1samp((0.010, 0.012, 0.011), 0).confidence_interval(0.95)
    words = verdict({"finetune": EQUAL, "scratch_b": UP}, 10_000)
    assert f"95 % confidence interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f}, n=3" in words


def test_verdict_needs_every_scratch_regime_below_to_say_that_pruning_was_worth_it():
    def lead(scratch_e, scratch_b):
        accuracies = {"finetune": EQUAL, "scratch_e": scratch_e, "scratch_b": scratch_b}
        return verdict(accuracies, 10_000).partition(".")[0]

    assert lead(DOWN, DOWN).startswith("Pruning was worth it")
    assert lead(DOWN, BOTH_WAYS).startswith("No advantage")
    assert lead(BOTH_WAYS, BOTH_WAYS).startswith("No advantage")
    assert "not worth it: Scratch-B" in lead(DOWN, UP)
    assert "not worth it: Scratch-E" in lead(UP, BOTH_WAYS)


def test_verdict_of_one_seed_is_measured_against_the_test_sets_sampling_error():
    limit = 1.96 * math.sqrt(2 * 0.9 * 0.1 / 2000)  # 1.86 points

    def one_seed(difference):
        return verdict({"finetune": {0: 0.9}, "scratch_b": {0: 0.9 + difference}}, 2000)

    for difference in (0.9 * limit, -0.9 * limit, 1.1 * limit, -1.1 * limit):
        between = 0.9 + difference / 2  # of the two accuracies
        own = 1.96 * math.sqrt(2 * between * (1 - between) / 2000)
        told = f"sampling error of the test set (±{100 * own:.1f} points on 2,000 examples)"
        assert told in one_seed(difference)
    assert one_seed(-0.9 * limit).startswith("No advantage")
    assert "1.7 points below" in one_seed(-0.9 * limit)
    assert "no difference shown" in one_seed(0.9 * limit)
    assert one_seed(-1.1 * limit).startswith("Pruning was worth it")
    assert "2.0 points below" in one_seed(-1.1 * limit)
    assert "not worth it: Scratch-B" in one_seed(1.1 * limit)
    for difference in (1.1 * limit, -1.1 * limit):
        assert "one seed does not show the spread over seeds" in one_seed(difference)


@pytest.mark.parametrize(
    "accuracies", [{}, {"finetune": {0: 0.9}}, {"scratch_e": {0: 0.9}}, {"finetune": {0: 1}, "scratch_e": {1: 1}}]
)
def test_no_verdict_without_runs_to_compare(accuracies):
    assert verdict(accuracies, 100).startswith("No verdict")


def test_a_design_is_compared_with_the_large_network():
    words = verdict_on_design({"unpruned": EQUAL, "scratch_e": DOWN, "scratch_b": UP}, 10_000)
    assert "inherits no weights" in words
    assert "Scratch-E ended 1.1 points below it in accuracy (95 %" in words
    assert "Scratch-B ended 1.1 points above it in accuracy (95 %" in words
    assert "Scratch-E" not in verdict_on_design({"unpruned": EQUAL, "scratch_b": BOTH_WAYS}, 10_000)
    assert "no difference shown" in verdict_on_design({"unpruned": EQUAL, "scratch_b": BOTH_WAYS}, 10_000)
    for nothing in ({}, {"unpruned": EQUAL}, {"scratch_e": UP}, {"unpruned": {0: 1}, "scratch_e": {1: 1}}):
        assert verdict_on_design(nothing, 100).startswith("No verdict")


def test_seeds_that_agree_by_chance_prove_nothing_below_the_sampling_error():
    fine_tuned = {0: 0.80859375, 1: 0.80859375}
    words = verdict({"scratch_e": {0: 0.8125, 1: 0.8125}, "finetune": fine_tuned}, 256)
    assert words.startswith("No advantage of scratch training")
    assert "n=2: no difference shown" in words
    assert "not worth it" in verdict({"scratch_e": {0: 0.95, 1: 0.95}, "finetune": fine_tuned}, 256)


# Other metrics.

MAE, R2 = Measure("mae", ERROR), Measure("r2", SCORE)


def test_of_an_error_less_is_better():
    lower = verdict({"finetune": EQUAL, "scratch_b": DOWN}, 100, MAE)
    assert lower.startswith("The inherited weights were not worth it: Scratch-B, from new weights, did better")
    assert "with lower mae" in lower
    assert "Scratch-B ended 0.011 below it in mae, of which lower is better (95 % confidence interval" in lower
    higher = verdict({"finetune": EQUAL, "scratch_b": UP}, 100, MAE)
    assert higher.startswith("Pruning was worth it")
    assert "with lower mae" in higher
    assert "no difference shown" in verdict({"finetune": EQUAL, "scratch_b": BOTH_WAYS}, 100, MAE)


def test_of_a_score_more_is_better():
    words = verdict({"finetune": EQUAL, "scratch_b": UP}, 100, R2)
    assert "not worth it: Scratch-B" in words
    assert "with higher r2" in words
    assert "Scratch-B ended 0.011 above it in r2, of which higher is better" in words
    assert verdict({"finetune": EQUAL, "scratch_b": DOWN}, 100, R2).startswith("Pruning was worth it")


def test_one_seed_shows_nothing_of_a_metric_whose_sampling_error_is_not_known():
    words = verdict({"finetune": {0: 9.0}, "scratch_b": {0: 1.0}}, 10_000, MAE)
    assert words.startswith("No advantage of scratch training")
    assert "one seed does not show the spread over seeds: no difference shown" in words
    same = {0: 9.0, 1: 9.0}, {0: 1.0, 1: 1.0}  # two seeds alike by chance show no more
    assert compare(*same, 10_000, MAE).sign == 0


def test_a_share_of_another_name_is_told_in_points():
    words = verdict({"finetune": EQUAL, "scratch_b": UP}, 10_000, Measure("mask_accuracy", SHARE))
    assert "with higher mask_accuracy" in words
    assert "ended 1.1 points above it in mask_accuracy" in words


def test_tickets_and_designs_are_judged_by_the_same_way():
    tickets = verdict({"random_ticket": EQUAL, "winning_ticket": DOWN}, 100, MAE)
    assert tickets.startswith("The first weights mattered")
    design = verdict_on_design({"unpruned": EQUAL, "scratch_e": DOWN}, 100, MAE)
    assert "0.011 below it in mae, of which lower is better" in design
