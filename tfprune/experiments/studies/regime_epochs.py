"""How long each regime trains: in epochs, and what is unusual about it in words."""

from __future__ import annotations

from tfprune.errors import PlanError
from tfprune.experiments.setup.settings import Settings
from tfprune.plans.loading import Plan
from tfprune.training.regimes import Regime


def epochs(settings: Settings, regime: Regime, plan: Plan) -> int:
    """The epoch with which a regime ends, for the network of a plan."""
    s = settings
    ratio = flops_ratio(plan) if regime.budget == "flops" and s.budget != "epochs" else 1.0
    return regime.epochs(s.epochs, s.finetune_epochs, ratio, s.budget_cap, s.budget)


def first_epoch(settings: Settings, regime: Regime) -> int:
    """The epoch with which a regime begins, counted from 0."""
    return settings.rewind_epoch if regime.weights == "rewind" else 0


def flops_ratio(plan: Plan) -> float:
    """How many times fewer FLOPs the pruned network has as the paper's code counts; Scratch-B's factor of the epochs.

    Raises:
        PlanError: If there are no fewer.
    """
    before, after = plan.budget_flops
    if after >= before:  # the code of the paper counted before it masked: Scratch-B was Scratch-E
        raise PlanError(f"The plan saves no FLOPs ({before:,} -> {after:,}), so Scratch-B has no budget. Prune more.")
    return before / after


def in_words(settings: Settings, regime: str, plan: Plan) -> str:
    """What sets a regime apart from the same one of other settings, as the column `budget` has it."""
    if regime == "finetune":
        return in_epochs(settings.finetune_epochs)
    parts, cap = [], settings.budget_cap
    if regime == "random_ticket" and settings.entry.rescales:
        parts.append("rescaled initial weights")
    if regime == "winning_ticket" and settings.rewind_epoch:
        parts.append(f"rewound to epoch {settings.rewind_epoch}")
    if regime == "scratch_b" and settings.budget == "epochs":
        parts.append("the epochs of the large network")
    elif regime == "scratch_b" and cap is not None and cap < flops_ratio(plan):
        parts.append(f"at most {cap:g} x the epochs")
    if regime == "scratch_b" and settings.budget == "flops_plus_finetune":
        parts.append(f"plus {in_epochs(settings.finetune_epochs)} of fine-tuning")
    if regime in ("scratch_e", "scratch_b"):
        parts += [option.words for option in settings.entry.changed(settings.options, "fresh")]
    return ", ".join(parts)


def in_epochs(number: int) -> str:
    """A number of epochs in words."""
    return "1 epoch" if number == 1 else f"{number} epochs"
