import numpy as np

from tfprune.graph.ledger import Ledger


def test_labels_are_never_used_twice():
    ledger = Ledger()
    one, none, other = ledger.fresh(3), ledger.fresh(0), ledger.fresh(2)
    assert one.tolist() == [0, 1, 2]
    assert none.tolist() == []
    assert other.tolist() == [3, 4]
    assert ledger.count == 5


def test_ties_couple_through_others_and_position_by_position():
    ledger = Ledger()
    a, b, c = ledger.fresh(3), ledger.fresh(3), ledger.fresh(3)
    ledger.tie(a, b)
    ledger.tie(b[:2], c[:2])
    groups = ledger.groups()
    assert groups.count == 4
    assert groups.of[a].tolist() == groups.of[b].tolist()
    assert groups.of[c[:2]].tolist() == groups.of[a[:2]].tolist()
    assert len(set(groups.of[[*a, c[2]]].tolist())) == 4


def test_ties_are_broadcast():
    ledger = Ledger()
    grid = ledger.fresh(6).reshape(2, 3)
    ledger.tie(grid, grid[:1])
    groups = ledger.groups()
    assert groups.count == 3
    assert np.array_equal(groups.of[grid[0]], groups.of[grid[1]])


def test_a_frozen_label_freezes_its_group_and_the_first_reason_is_told():
    ledger = Ledger()
    a, b = ledger.fresh(2), ledger.fresh(2)
    ledger.freeze(b[:1], "first")
    ledger.freeze(a, "second")
    ledger.tie(a[:1], b[:1])
    groups = ledger.groups()
    assert groups.frozen == {groups.of[a[0]]: "first", groups.of[a[1]]: "second"}
    assert groups.of[b[1]] not in groups.frozen


def test_without_labels_there_are_no_groups():
    groups = Ledger().groups()
    assert (groups.count, groups.of.tolist(), groups.frozen) == (0, [], {})


def test_parts_are_the_different_labels_that_an_operation_cuts_out():
    ledger = Ledger()
    labels = ledger.fresh(2)
    ledger.keep_one(np.array([1, 0, 1]) + labels[0], "split")
    ((part, operation),) = ledger.parts
    assert (part.tolist(), operation) == ([0, 1], "split")
