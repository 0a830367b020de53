import dataclasses
from types import SimpleNamespace

import pytest

from tests.stages import ROW
from tfprune.experiments.findings.costs import training_flops
from tfprune.experiments.store.rows import Results

# An epoch: a forward and a backward pass, which is two, over 256 images.
LARGE, SMALL, EPOCHS = 1000, 400, 6
TRAIN = 3 * LARGE * 256 * EPOCHS


def own(epochs, flops=SMALL):
    return 3 * flops * 256 * epochs


def results(origin, sparse=False, epochs=None):
    """One study of one seed; `sparse`: the network to prune is trained in a way of its own."""
    lengths = {
        "unpruned": EPOCHS, "pruned": EPOCHS * sparse, "finetune": 2, "scratch_e": EPOCHS, "scratch_b": 15,
        "winning_ticket": EPOCHS, "random_ticket": EPOCHS,
    } | (epochs or {})  # fmt: skip
    rows = {
        regime: dataclasses.replace(ROW, regime=regime, epochs=length, flops=LARGE if regime == "unpruned" else SMALL)
        for regime, length in lengths.items()
    }
    stages = {rows[regime]: SimpleNamespace(name=regime) for regime in rows if rows[regime].epochs}
    stages[rows["unpruned"]] = SimpleNamespace(name="large")
    if sparse:
        stages[rows["pruned"]] = SimpleNamespace(name="sparse")
    return Results(list(rows.values()), {}, {}, stages, {(ROW.study, ROW.seed): origin}, {}, {})


def costs(*args, **kwargs):
    return {row.regime: pair for row, pair in training_flops(results(*args, **kwargs)).items()}


def test_predefined_widths_cost_scratch_training_nothing_before_it():
    found = costs({"trained": ["large"], "predefined": True})
    assert found["unpruned"] == (TRAIN, TRAIN)
    assert found["pruned"] == (0, TRAIN)
    assert found["finetune"] == (own(2), own(2) + TRAIN)
    assert found["scratch_e"] == (own(EPOCHS), own(EPOCHS))
    assert found["scratch_b"] == (own(15), own(15))
    assert found["scratch_b"][0] == TRAIN  # 6 epochs x 2.5 fewer FLOPs: the same budget
    assert found["winning_ticket"] == (own(EPOCHS), own(EPOCHS) + TRAIN)
    assert found["random_ticket"] == (own(EPOCHS), own(EPOCHS))


def test_an_architecture_that_training_has_found_costs_this_training():
    found = costs({"trained": ["large"], "predefined": False})
    for regime in ("finetune", "scratch_e", "scratch_b", "winning_ticket", "random_ticket"):
        assert found[regime][1] == found[regime][0] + TRAIN
    assert found["unpruned"] == (TRAIN, TRAIN)


@pytest.mark.parametrize(("trained", "before"), [(["sparse"], TRAIN), (["large", "sparse"], 2 * TRAIN)])
def test_sparse_training_is_of_the_large_network_and_needs_another_only_if_it_begins_with_it(trained, before):
    found = costs({"trained": trained, "predefined": False}, sparse=True)
    assert found["pruned"] == (TRAIN, before)
    assert found["finetune"] == (own(2), own(2) + before)
    assert found["scratch_e"][1] == own(EPOCHS) + before


def test_rounds_cost_the_tickets_of_the_rounds_before():
    # The ticket of the first round, of another study in the same workdir.
    first = dataclasses.replace(ROW, regime="winning_ticket", epochs=EPOCHS, flops=700, study="bbbbbbbb")
    found = results({"trained": ["large", "ticket"], "predefined": False})
    found.rows.append(dataclasses.replace(first, regime="unpruned", flops=LARGE))
    found.rows.append(first)
    found.trained[first] = SimpleNamespace(name="ticket")
    found.origins["bbbbbbbb", ROW.seed] = {"trained": ["large"], "predefined": False}
    pairs = {(row.study, row.regime): pair for row, pair in training_flops(found).items()}
    assert pairs[ROW.study, "winning_ticket"][1] == TRAIN + own(EPOCHS, 700) + own(EPOCHS)
    assert pairs["bbbbbbbb", "winning_ticket"][1] == TRAIN + own(EPOCHS, 700)


@pytest.mark.parametrize("origin", [{}, {"trained": ["gone"], "predefined": False}])
def test_what_is_not_known_is_not_made_up(origin):
    found = costs(origin)
    assert found["finetune"] == (own(2), None)
    assert found["scratch_e"] == (own(EPOCHS), None)
    assert found["pruned"] == (0, None)
    assert found["unpruned"] == (TRAIN, TRAIN)
