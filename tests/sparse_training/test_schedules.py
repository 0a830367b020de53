"""When is pruned, and how much: against the formula, and step by step against TFMOT's own answers."""

import keras
import numpy as np
import pytest
from tensorflow_model_optimization.sparsity import keras as tfmot

import tfprune
from tfprune.errors import PlanError, UsageError
from tfprune.sparse_training.schedules import Timetable


def cuts(timetable, steps, stride=1):
    """Step -> sparsity, of the cuts that a training makes which asks every `stride` steps."""
    found, last = {}, -1
    for step in range(0, steps + 1, stride):
        due = timetable.latest(step, last)
        if due is not None:
            found[due], last = timetable.at(due), due
    return found


def cubic(step, begin, end, final, initial=0.0, power=3):
    return final + (initial - final) * (1 - (step - begin) / (end - begin)) ** power


@pytest.mark.parametrize(("begin", "end", "frequency"), [(0, 20, 5), (3, 20, 5), (4, 11, 100), (0, 1, 1), (2, 9, 1)])
def test_sparsity_follows_the_formula_at_every_cut_and_ends_at_the_final_one(begin, end, frequency):
    schedule = tfprune.PolynomialDecay(end_step=end, begin_step=begin, frequency=frequency)
    expected = sorted({*range(begin, end + 1, frequency), end})
    found = cuts(Timetable(schedule, 0.8), 2 * end)
    assert list(found) == expected
    np.testing.assert_allclose(list(found.values()), [cubic(step, begin, end, 0.8) for step in expected], atol=1e-6)
    assert found[end] == 0.8


def test_every_field_of_the_schedule_counts():
    schedule = tfprune.PolynomialDecay(end_step=10, begin_step=2, initial_sparsity=0.3, power=1, frequency=4)
    found = cuts(Timetable(schedule, 0.7), 12)
    np.testing.assert_allclose(list(found.items()), [(2, 0.3), (6, 0.5), (10, 0.7)], atol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        tfmot.PolynomialDecay(0.1, 0.8, 2, 30, 3, 4),
        tfmot.ConstantSparsity(0.6, 5, 40, 7),
        tfmot.ConstantSparsity(0.6, 3),
    ],
    ids=["polynomial", "constant with an end", "constant"],
)
def test_schedules_of_tfmot_are_due_when_they_say(schedule):
    timetable = Timetable(schedule, None)
    told = [step for step in range(60) if bool(schedule(step)[0])]
    found = list(cuts(timetable, 59))
    if schedule.end_step < 0:  # what is off stays off, so that the first cut is the last
        assert found == told[:1]
    else:
        assert found == sorted({*told, schedule.end_step})
    assert [timetable.at(step) for step in found] == pytest.approx(
        [float(schedule(step)[1]) for step in found], abs=1e-6
    )


def test_a_schedule_of_ones_own_is_asked_at_every_step():
    class Twice(tfmot.PruningSchedule):
        def __call__(self, step):
            return int(step) in (3, 7), 0.1 * int(step)

        def get_config(self):
            return {}

    timetable = Timetable(Twice(), None)
    assert cuts(timetable, 12) == pytest.approx({3: 0.3, 7: 0.7})
    assert timetable.end is None
    assert timetable.sparsity is None


def test_several_batches_at_once_miss_no_cut():
    schedule = tfprune.PolynomialDecay(end_step=20, frequency=5)
    found = cuts(Timetable(schedule, 0.8), 24, stride=8)
    assert list(found) == [0, 5, 15, 20]  # at 8, 16 and 24 the last that was due


def test_a_beginning_that_is_the_end_is_one_cut():
    assert cuts(Timetable(tfprune.PolynomialDecay(end_step=4, begin_step=4), 0.5), 9) == {4: 0.5}
    assert np.isnan(float(tfmot.PolynomialDecay(0.0, 0.5, 4, 4)(4)[1]))  # where TFMOT's gives no number


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfprune.PolynomialDecay(end_step=3, begin_step=5), "end_step=3 must be a whole number of at least 5"),
        (lambda: tfprune.PolynomialDecay(end_step=3, frequency=0), "frequency=0 must be a whole number of at least 1"),
        (
            lambda: tfprune.PolynomialDecay(end_step=3, initial_sparsity=1),
            r"initial_sparsity=1 is no number in \[0, 1\)",
        ),
        (lambda: tfprune.ConstantSparsity(-1), "begin_step=-1 must be a whole number of at least 0"),
    ],
)
def test_fields_out_of_range_are_told(make, message):
    with pytest.raises(PlanError, match=message):
        make()


def test_what_is_no_schedule_is_told_and_so_are_two_sparsities():
    with pytest.raises(UsageError, match=r"schedule=0.8 is none. Valid: tfprune.PolynomialDecay"):
        tfprune.Magnitude(schedule=0.8)
    with pytest.raises(UsageError, match=r"ends at a sparsity of 0.6, but 0.8 is asked for"):
        tfprune.Magnitude(0.8, tfmot.ConstantSparsity(0.6, 0))
    with pytest.raises(UsageError, match="needs the final sparsity"):
        tfprune.Magnitude(schedule=tfprune.ConstantSparsity())
    with pytest.raises(UsageError, match="Magnitude needs a sparsity"):
        tfprune.Magnitude()


def test_a_schedule_that_gives_no_number_is_told():
    class Wrong(tfmot.PruningSchedule):
        def __call__(self, step):
            return True, float("nan")

        def get_config(self):
            return {}

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(UsageError, match="Wrong gives a sparsity of nan at step 0"):
        tfprune.sparse(model, tfprune.Magnitude(schedule=Wrong()))
