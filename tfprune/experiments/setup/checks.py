"""What is wrong with settings: values out of range, and what does not go together."""

from __future__ import annotations

import math

from absl import flags

from tfprune.errors import UsageError
from tfprune.experiments.setup.settings import Settings
from tfprune.methods import METHODS


def check_owners(values: flags.FlagValues) -> None:
    """Raises a UsageError for a flag of a method that is not run, and for a method that goes without others."""
    methods = values.method
    for name in METHODS.options():
        owner = METHODS.owner(name)
        if values[name].value is not None and owner not in methods:
            raise UsageError(f"--{name} belongs to --method={owner}; received --method={','.join(methods)}.")
    guided = METHODS.having("guided")
    if values.guide is not None and not set(guided) & set(methods):
        raise UsageError(f"--guide belongs to --method={' or '.join(guided)}; received --method={','.join(methods)}.")
    for name in guided:
        if name in methods and len(methods) > 1:
            raise UsageError(
                f"--method={name} goes without other methods, which have no --guide; received "
                f"--method={','.join(methods)}. Run it by itself in the same --workdir."
            )


def check_tickets(settings: Settings, rounds: int) -> None:
    """Raises a UsageError for rounds and rewinding without winning tickets, or that the method does not do."""
    ticket = "winning_ticket" in settings.regimes
    if settings.rewind_epoch and not ticket:
        raise UsageError(
            f"--rewind_epoch={settings.rewind_epoch} is of --regimes=winning_ticket; received "
            f"--regimes={','.join(settings.regimes)}."
        )
    if rounds == 1:
        return
    if not ticket:
        raise UsageError(
            f"--rounds={rounds} prunes the winning ticket of the round before, so it takes winning_ticket among "
            f"--regimes; received --regimes={','.join(settings.regimes)}. Try --regimes=winning_ticket,random_ticket."
        )
    excluding = settings.entry.excluding(settings.options, "rounds")
    if settings.entry.in_rounds and settings.ratio is not None and not excluding:
        return
    given = [f"--method={settings.method}"]
    given += [f"--{name}={getattr(settings, name)}" for name in ("variant", "macs") if getattr(settings, name)]
    given += [f"--{option.name}={settings.options[option.name]}" for option in excluding]
    raise UsageError(
        f"--rounds={rounds} goes with a --ratio of {', '.join(METHODS.having('in_rounds'))}, without "
        f"{' and '.join(METHODS.excluding('rounds'))}; received {' '.join(given)}."
    )


def check_options(settings: Settings) -> None:
    """Raises a UsageError for options, and layers to skip, that do not go with the rest."""
    entry, options = settings.entry, settings.options
    if settings.skip and (not entry.skips or settings.variant or entry.excluding(options, "skip")):
        raise UsageError(
            f"--skip goes with a --ratio of {', '.join(METHODS.having('skips'))}, without "
            f"{' and '.join(METHODS.excluding('skip'))}; received --method={settings.method} {settings.name}."
        )
    if settings.variant:
        for option in entry.excluding(options, "variant"):
            raise UsageError(
                f"--{option.name}={options[option.name]} and --variant={settings.variant} do not go together: a "
                "variant says itself what goes. Leave one of them out."
            )
    if entry.check:
        entry.check(options, settings.ratio)


def check_ranges(settings: Settings) -> None:
    """Raises a UsageError for a number that is out of its range."""
    for name in ("epochs", "finetune_epochs", "batch_size"):
        if getattr(settings, name) < 1:
            raise UsageError(f"--{name}={getattr(settings, name)} must be at least 1.")
    if not 0 <= settings.rewind_epoch < settings.epochs:
        raise UsageError(
            f"--rewind_epoch={settings.rewind_epoch} must be 0 or more, and less than the {settings.epochs} epochs."
        )
    if not 0 <= settings.weight_decay < math.inf:
        raise UsageError(f"--weight_decay={settings.weight_decay} must be 0 or more.")
    if not 0 < settings.learning_rate < math.inf:
        raise UsageError(f"--learning_rate={settings.learning_rate} must be above 0.")
    if settings.budget_cap is not None and not settings.budget_cap >= 1:
        raise UsageError(f"--budget_cap={settings.budget_cap} must be at least 1: Scratch-B is never shorter than E.")
    if not 0 <= settings.validation_fraction < 1:
        raise UsageError(
            f"--validation_fraction={settings.validation_fraction:g} must be 0, to hold out nothing, or less than 1."
        )
    if settings.train_examples is not None and settings.train_examples < 1:
        raise UsageError(f"--train_examples={settings.train_examples} must be at least 1.")
