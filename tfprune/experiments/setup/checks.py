"""What is wrong with settings: values out of range, and what does not go together."""

from __future__ import annotations

import math

from absl import flags

from tfprune.data import check_image_size
from tfprune.engines.names import FORMATS
from tfprune.errors import UsageError
from tfprune.experiments.setup.settings import OPTIMIZERS, WEIGHTS_OF_LARGE, Settings
from tfprune.methods import METHODS
from tfprune.models import is_file
from tfprune.support.registry import unknown_name
from tfprune.training import PRECISIONS, STRATEGIES
from tfprune.training.regimes import BUDGETS


def check_names(values: flags.FlagValues) -> None:
    """Raises a UsageError for a flag whose value is none of a few."""
    for name, valid in (
        ("strategy", STRATEGIES),
        ("precision", PRECISIONS),
        ("budget", BUDGETS),
        ("weights", WEIGHTS_OF_LARGE),
        ("optimizer", OPTIMIZERS),
    ):
        if values[name].value not in valid:
            raise unknown_name(name, values[name].value, valid)
    for name in values.formats:
        if name not in FORMATS:
            raise unknown_name("formats", name, FORMATS)
    if not values.formats:
        raise UsageError(f"--formats= names nothing. Valid: {', '.join(FORMATS)}; --noexport writes none of them.")
    if values.better not in (None, "higher", "lower"):
        raise unknown_name("better", values.better, ("higher", "lower"))


def check_data(dataset: str, data_dir: str | None, image_size: int | None) -> None:
    """Raises a UsageError for data that cannot be had like this."""
    check_image_size(dataset, image_size)
    if dataset == "folder" and data_dir is None:
        raise UsageError("--dataset=folder needs --data_dir: a folder with one folder of images per class.")
    if dataset == "npz" and data_dir is None:
        raise UsageError("--dataset=npz needs --data_dir: an .npz file with x_train, y_train, x_test and y_test.")


def optimizer_of(values: flags.FlagValues) -> str:
    """The value of --optimizer; flags of the paper's SGD ask for that one."""
    given = [name for name in ("learning_rate", "weight_decay") if values[name].value is not None]
    given += ["nesterov"] if values.nesterov is not None else []
    if given and values.optimizer == "model":
        raise UsageError(
            f"--optimizer=model takes the network's own rates; --{given[0]} is of --optimizer=paper. Leave one "
            "of them out."
        )
    return "paper" if given else values.optimizer


def check_own(settings: Settings) -> None:
    """Raises a UsageError for what only own data take."""
    if settings.has_own_data:
        return
    given = {name: getattr(settings, name) for name in ("loss", "metrics", "judged_by", "better")}
    given["optimizer"] = settings.optimizer if settings.optimizer == "model" else None
    for name, value in given.items():
        if value:
            text = value if isinstance(value, str) else ",".join(value)
            raise UsageError(
                f"--{name}={text} is for data of your own, --dataset=npz or a function; {settings.dataset} is trained "
                "as the paper does, with cross-entropy and its SGD, and judged by accuracy."
            )


def check_given_weights(settings: Settings, values: flags.FlagValues) -> None:
    """Raises a UsageError for what does not go with a large network that comes with its weights."""
    if not settings.is_given:
        return
    if not settings.in_memory and not is_file(settings.model):
        raise UsageError(
            f"--weights=trained takes the weights in a file: --model=mine.keras; received --model={settings.model}, "
            "which has none."
        )
    if "winning_ticket" in settings.regimes or settings.rewind_epoch:
        raise UsageError(
            "A winning ticket starts from the weights with which the large network's training began; with "
            "--weights=trained these are not known. Leave winning_ticket and --rewind_epoch out."
        )
    for option in settings.entry.options:
        if option.shown == "training" and values[option.name].value is not None:
            raise UsageError(
                f"--{option.name} is of a training of the large network; with --weights=trained there is none. Leave "
                "one of them out."
            )


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
    if settings.after_cut and settings.design:
        raise UsageError(
            f"--after_cut is about weights that are inherited; --variant={settings.variant} is a design, which "
            "inherits none. Leave one of them out."
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
