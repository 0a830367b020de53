import math

import pytest

from tfprune.experiments.timing import in_turns


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
    (found,) = in_turns(runs, rounds=3, clock=clock)
    assert (found.ratio, found.iqr, found.n) == (2.0, pytest.approx(1.0), 3)
    assert (found.name, found.baseline, found.seconds, found.drift) == ("own", "base", 2.0, 0.0)
    assert clock.calls == ["base", "own"] * 4 + ["base"]


@pytest.mark.parametrize(("last", "held"), [(4.1, True), (4.3, False), (3.7, False)])
def test_nothing_is_claimed_where_the_baseline_has_drifted(last, held):
    clock = Clock()
    runs = {"base": clock.run("base", [4, 4, 4, last]), "own": clock.run("own", [2, 2, 2])}
    (found,) = in_turns(runs, rounds=2, clock=clock)
    assert found.drift == pytest.approx(last / 4 - 1)
    assert math.isnan(found.ratio) != held
