"""Regimes: what is done with the pruned architecture. A regime is data.

Definitions: Liu et al., "Rethinking the Value of Network Pruning" (ICLR 2019), section 3. E stands for the
same number of epochs as the large model, B for the same computation budget. The two tickets are those of its
appendix A, after Frankle & Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019).
"""

from __future__ import annotations

import dataclasses

from tfprune.errors import UsageError
from tfprune.support.registry import unknown_name
from tfprune.training.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Regime:
    """How a pruned network is trained.

    Attributes:
        name: As in flags and results.
        weights: `"inherit"`: those that the pruned network inherits. `"fresh"`: new ones. `"scaled"`: new ones, in a
            network with single weights pruned scaled to what is left of them. `"rewind"`: of the weights with which
            the large model's training began (or had after some epochs) those that are not pruned.
        budget: `"finetune"`: its own number of epochs. `"epochs"`: as many as the large model. `"flops"`: as
            much computation as the large model, or what `BUDGETS` offers instead.
        constant: Train at the lowest learning rate of the large model's training throughout; else repeat its
            schedule, stretched over the epochs.
    """

    name: str
    weights: str
    budget: str
    constant: bool

    def epochs(
        self, epochs: int, finetune_epochs: int, flops_ratio: float, budget_cap: float | None, budget: str = "flops"
    ) -> int:
        """Number of epochs to train for.

        Args:
            epochs: Those of the large model.
            finetune_epochs: Those of fine-tuning.
            flops_ratio: FLOPs of the large over FLOPs of the pruned network.
            budget_cap: The most that Scratch-B may multiply the epochs by; None for no cap.
            budget: Of Scratch-B, one of `BUDGETS`.
        """
        if self.budget == "finetune":
            return finetune_epochs
        if "epochs" in (self.budget, budget):
            return epochs
        ratio = flops_ratio if budget_cap is None else min(flops_ratio, budget_cap)
        # An epoch of fine-tuning costs what one of Scratch-B costs: it is the same network.
        more = finetune_epochs if budget == "flops_plus_finetune" else 0
        return max(epochs, int(epochs * ratio + 1e-9)) + more  # a whole product must not lose an epoch to rounding

    def schedule(self, learning_rate: float, epochs: int, drops: str = "cifar") -> Schedule:
        """Learning rates over so many epochs, given the first rate and the drops of the large model's training."""
        whole = Schedule.paper(learning_rate, epochs, drops)
        return Schedule(whole.lowest) if self.constant else whole


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("finetune", weights="inherit", budget="finetune", constant=True),
        Regime("scratch_e", weights="fresh", budget="epochs", constant=False),
        Regime("scratch_b", weights="fresh", budget="flops", constant=False),
        Regime("winning_ticket", weights="rewind", budget="epochs", constant=False),
        Regime("random_ticket", weights="scaled", budget="epochs", constant=False),
    )
}
# What Scratch-B may spend: the epochs of the large model's training, its FLOPs (the paper), or these and the FLOPs
# of fine-tuning, which is what the fine-tuned network has had.
BUDGETS = ("epochs", "flops", "flops_plus_finetune")
# What `all` stands for: the paper's comparison.
ALL = ("finetune", "scratch_e", "scratch_b")


def parse_regimes(names: list[str]) -> list[Regime]:
    """Regimes by name, `all` for those of `ALL`, in the order of the paper's tables.

    Raises:
        UsageError: For an unknown name, or none at all.
    """
    for name in names:
        if name not in (*REGIMES, "all"):
            raise unknown_name("regime", name, (*REGIMES, "all"))
    if not names:
        raise UsageError(f"No regime given. Valid: {', '.join((*REGIMES, 'all'))}.")
    wanted = {*names, *(ALL if "all" in names else ())}
    return [regime for regime in REGIMES.values() if regime.name in wanted]
