"""What trainings cost in FLOPs: each by itself, and with the trainings that had to come before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfprune.training.regimes import REGIMES

if TYPE_CHECKING:
    from tfprune.experiments.store.rows import Results, Row


def training_flops(results: Results) -> dict[Row, tuple[float, float | None]]:
    """The FLOPs of every row's own training, and with all trainings that it cannot do without.

    A backward pass counts as two forward passes, so an epoch is 3 x FLOPs x images. A regime that inherits weights, or
    rewinds those that the trained ones tell, cannot do without the trainings that led to the pruned network. A regime
    with new weights cannot do without them if only they tell the architecture. What is not known, because the plan does
    not tell or a training is not there any more, is None.
    """
    large = {(row.study, row.seed): row.flops for row in results.rows if row.regime == "unpruned"}
    own, of_stage = {}, {}
    for row in results.rows:
        # A method that trains sparse does so before the cut, with the whole network.
        flops = large[row.study, row.seed] if row.regime == "pruned" else row.flops
        own[row] = 3.0 * flops * row.train_examples * row.epochs
        if row in results.trained:
            of_stage[results.trained[row].name] = own[row]
    found = {}
    for row in results.rows:
        origin = results.origins[row.study, row.seed]
        before = [of_stage.get(name) for name in origin["trained"]] if "trained" in origin else [None]
        needed = None if None in before else sum(before)
        if row.regime == "unpruned" and not row.epochs:  # it came with its weights
            found[row] = own[row], None
        elif row.regime == "unpruned" or (_is_fresh(row.regime) and origin.get("predefined")):
            found[row] = own[row], own[row]
        elif row.regime == "pruned":
            found[row] = own[row], needed  # its own training is the last of those
        else:
            found[row] = own[row], None if needed is None else own[row] + needed
    return found


def _is_fresh(regime: str) -> bool:
    return regime in REGIMES and REGIMES[regime].weights in ("fresh", "scaled")
