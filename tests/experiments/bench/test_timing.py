import math

import pytest

from tfprune.experiments.bench.timing import in_turns


class Clock:
    """A clock that runs advance by hand."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def run(self, name, seconds):
        durations = iter(seconds)

        def work():
            self.calls.append(name)
            self.now += next(durations)

        return work


def test_a_ratio_is_the_median_of_those_of_single_rounds():
    clock = Clock()
    # The machine is twice as slow in the second round, for both.
    runs = {"base": clock.run("base", [9, 4, 8, 4, 4]), "own": clock.run("own", [9, 2, 4, 1])}
    times = in_turns(runs, ["base"], rounds=3, clock=clock)
    assert times.median("own") == 2.0
    speed, cost = times.speed("own", "base"), times.cost("own", "base")
    assert (speed.value, speed.iqr) == (2.0, pytest.approx(1.0))  # of 2, 2 and 4
    assert (cost.value, cost.iqr) == (0.5, pytest.approx(0.125))
    assert clock.calls == ["base", "own"] * 4 + ["base"]


@pytest.mark.parametrize(("last", "held"), [(4.1, True), (4.3, False), (3.7, False)])
def test_nothing_is_claimed_where_the_baseline_has_drifted(last, held):
    clock = Clock()
    attempts = 1 if held else 3
    base = [4] + [4, 4, last] * attempts
    runs = {"base": clock.run("base", base), "own": clock.run("own", [2] * (1 + 2 * attempts))}
    times = in_turns(runs, ["base"], rounds=2, clock=clock)
    assert times.drifts == {"base": pytest.approx(last / 4 - 1)}
    assert math.isnan(times.speed("own", "base").value) != held
    assert clock.calls.count("base") == len(base)


def test_what_drifts_once_is_timed_again():
    clock = Clock()
    runs = {"base": clock.run("base", [4, 4, 8, 5, 5]), "own": clock.run("own", [1, 1, 1])}
    times = in_turns(runs, ["base"], rounds=1, clock=clock)
    assert times.speed("own", "base").value == 5.0


def test_of_two_baselines_one_may_drift():
    clock = Clock()
    runs = {"a": clock.run("a", [4] * 7), "b": clock.run("b", [4] + [4, 5] * 3), "own": clock.run("own", [2] * 4)}
    times = in_turns(runs, ["a", "b"], rounds=1, clock=clock)
    assert times.speed("own", "a").value == 2.0
    assert math.isnan(times.cost("own", "b").value)
