import pytest

from tfprune.training.schedules import Schedule


@pytest.mark.parametrize("epochs", [*range(2, 65), 89, 160, 178, 190, 220, 243, 260, 300, 3100])
def test_the_rate_drops_at_the_whole_part_of_half_and_three_quarters(epochs):
    schedule = Schedule.paper(0.1, epochs)
    for epoch in range(epochs):
        drops = (epoch >= int(0.5 * epochs)) + (epoch >= int(0.75 * epochs))
        assert schedule.at(epoch) == pytest.approx((0.1, 0.01, 0.001)[drops], rel=1e-12)


@pytest.mark.parametrize("epochs", [*range(3, 65), 90, 106, 118, 141, 180])
def test_on_imagenet_the_rate_drops_after_every_third(epochs):
    schedule = Schedule.paper(0.1, epochs, "imagenet")
    for epoch in range(epochs):
        drops = (epoch >= epochs // 3) + (epoch >= 2 * epochs // 3)
        assert schedule.at(epoch) == pytest.approx((0.1, 0.01, 0.001)[drops], rel=1e-12)


def test_a_single_epoch_has_the_full_rate():
    assert Schedule.paper(0.1, 1).at(0) == 0.1


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 243])
def test_the_first_epoch_has_the_full_rate_and_the_rate_never_rises(epochs):
    rates = [Schedule.paper(0.3, epochs).at(epoch) for epoch in range(epochs)]
    assert rates[0] == 0.3
    assert rates == sorted(rates, reverse=True)


def test_two_epochs_have_both_drops_before_the_second():
    assert [Schedule.paper(1.0, 2).at(epoch) for epoch in (0, 1)] == pytest.approx([1.0, 0.01])


def test_243_epochs_drop_at_121_and_182():
    schedule = Schedule.paper(1.0, 243)
    rates = [schedule.at(epoch) for epoch in (120, 121, 181, 182, 242)]
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01])


def test_lowest_is_the_rate_after_the_last_drop():
    assert Schedule.paper(0.1, 160).lowest == pytest.approx(0.001)
    assert Schedule(0.1).lowest == 0.1
    assert Schedule(0.5, (1, 2, 3), factor=0.5).lowest == 0.0625


def test_without_drops_the_rate_is_constant():
    assert {Schedule(0.02).at(epoch) for epoch in range(500)} == {0.02}


@pytest.mark.parametrize("epochs", [200, 250, 10])
def test_soft_filter_pruning_starts_at_a_tenth_and_drops_thrice_by_a_fifth(epochs):
    schedule = Schedule.paper(0.1, epochs, "soft_filter")
    for epoch in range(epochs):
        drops = sum(epoch >= part * epochs // 200 for part in (60, 120, 160))
        assert schedule.at(epoch) == pytest.approx(0.1 * 0.2**drops if epoch else 0.01, rel=1e-12)
    assert schedule.lowest == pytest.approx(0.1 * 0.2**3)


@pytest.mark.parametrize(("epochs", "drops"), [(100, (30, 60, 90)), (117, (35, 70, 105)), (179, (53, 107, 161))])
def test_sparse_structure_selection_drops_after_30_60_and_90_percent(epochs, drops):
    # The paper's repository has 106 and 159 for 179 epochs: twice and three times the whole part of the first.
    assert Schedule.paper(0.1, epochs, "sss").drops == drops
