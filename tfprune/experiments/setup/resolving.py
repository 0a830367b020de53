"""From the values of flags to settings: defaults by data set, network and method, and what is wrong with the flags.

Nothing here imports TensorFlow, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from tfprune.data import IMAGE_SIZES, check_dataset
from tfprune.errors import UsageError
from tfprune.experiments.setup import checks
from tfprune.experiments.setup.flags import flag_name, flag_of
from tfprune.experiments.setup.recipes import NARROW, Recipe, recipe_for, recipe_name
from tfprune.experiments.setup.settings import Settings
from tfprune.methods import METHODS
from tfprune.methods.catalog import Case, Options
from tfprune.models import MODELS, check_model, is_file
from tfprune.paper.variants import get_variant, is_design
from tfprune.plans.patterns import Pattern, load_pattern
from tfprune.support.files import check_writable
from tfprune.training.regimes import REGIMES, parse_regimes

_MOST_SEEDS = 1000


def settings_from_flags(values: flags.FlagValues, in_memory: bool = False) -> list[Settings]:
    """Resolves defaults and checks everything that can be checked without TensorFlow.

    Args:
        values: Those of the flags.
        in_memory: Whether data and network are objects of a Python program, so that their names name nothing.

    Returns:
        The settings: every combination of the values of the flags that take several, and of these every round.

    Raises:
        UsageError: For the first thing that is wrong; the message says what is valid.
    """
    several = {f.name: flag_of(f).each for f in dataclasses.fields(Settings) if flag_of(f) and flag_of(f).each}
    choices = [_choices(name, values[name].value, kind) for name, kind in several.items()]
    rounds = 1 if values.rounds is None else values.rounds
    if rounds < 1:
        raise UsageError(f"--rounds={rounds} must be at least 1.")
    found = []
    for combination in itertools.product(*choices):
        settings = _resolved(values, dict(zip(several, combination, strict=True)), in_memory)
        found += [dataclasses.replace(settings, round=number) for number in range(1, rounds + 1)]
    workdir = found[0].workdir
    if not values.dry_run:
        check_writable(workdir)
    elif workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={str(workdir)!r} is no folder.")
    return found


def _choices(name: str, texts: list[str] | None, kind: Callable[[str], Any]) -> list[Any]:
    """The values of a flag that takes several; [None] where it is not given."""
    if texts is None:
        return [None]
    try:
        found = [kind(text) for text in texts]
    except ValueError:
        raise UsageError(f"--{name}={','.join(texts)} must be a number, or several with commas between.") from None
    if not found:
        raise UsageError(f"--{name}= names nothing. Give one value or more.")
    if twice := [text for place, text in enumerate(texts) if found[place] in found[:place]]:
        raise UsageError(f"--{name}={','.join(texts)} names {twice[0]} twice. Leave one of them out.")
    return found


def _resolved(values: flags.FlagValues, own: Mapping[str, Any], in_memory: bool) -> Settings:
    """One setting; `own` is what it has of the flags that take several values."""
    dataset, method, model = own["dataset"], METHODS.check(own["method"]), own["model"]
    checks.check_names(values)
    if in_memory:
        recipe, width = recipe_for("npz", model, method), 1.0
    else:
        check_dataset(dataset)
        recipe = recipe_for(dataset, model, method)
        checks.check_data(dataset, values.data_dir, values.image_size)
        width = _width(values, model, recipe)
    checks.check_owners(values)
    ratio, guide = _amount(values, own, method, model)
    plain = _plain(values, own, recipe)
    cap = plain["budget_cap"]
    special = {
        "image_size": IMAGE_SIZES.get(dataset) if values.image_size is None else values.image_size,
        "model": os.path.abspath(model) if is_file(model) and not in_memory else model,
        "imports": tuple(values["import"].value or ()),
        "metrics": tuple(values.metrics or ()),
        "formats": tuple(dict.fromkeys(values.formats)),
        "optimizer": checks.optimizer_of(values),
        "in_memory": in_memory,
        "width": width,
        "ratio": ratio,
        "guide": guide,
        "skip": tuple(values.skip or ()),
        "options": _options(values, method, Case("own" if in_memory else recipe_name(dataset), model, {})),
        "regimes": _regimes(values.regimes, own["variant"], values.budget),
        "round": 1,
        "seeds": _parse_seeds(values.seeds),
        "drops": recipe.drops,
        "budget_cap": None if cap == math.inf else cap,
        "workdir": Path(values.workdir),
    }
    if values.finetune_epochs is None:
        special["finetune_epochs"] = math.ceil(plain["epochs"] * recipe.finetune_share)
    settings = Settings(**{**plain, **special})
    checks.check_ranges(settings)
    checks.check_own(settings)
    checks.check_given_weights(settings, values)
    checks.check_options(settings)
    checks.check_tickets(settings, 1 if values.rounds is None else values.rounds)
    return _shrunk(settings) if values.smoke else settings


def _plain(values: flags.FlagValues, own: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The settings as their flags have them, or the recipe, or else unset."""
    plain = {}
    for field in dataclasses.fields(Settings):
        if (flag := flag_of(field)) is None:
            continue
        value = own[field.name] if field.name in own else values[flag_name(field)].value
        plain[field.name] = getattr(recipe, field.name, flag.unset) if value is None else value
    return plain


def _width(values: flags.FlagValues, model: str, recipe: Recipe) -> float:
    """The width multiplier, which a recipe has for the model that it names; checked with the model."""
    width = values.width
    if width is None:
        width = 1.0 if values["model"].present else recipe.width
    check_model(model, width)
    return width


def _options(values: flags.FlagValues, method: str, case: Case) -> Options:
    """The values of a method's own flags."""
    found: dict[str, Any] = {}
    for option in METHODS.entry(method).options:
        value = values[option.name].value
        if value is None and option.usual:
            value = option.usual(dataclasses.replace(case, options=dict(found)))
        elif value is None:
            value = option.default
        option.check(value)
        found[option.name] = value
    return Options(found)


def _amount(
    values: flags.FlagValues, own: Mapping[str, Any], method: str, model: str
) -> tuple[float | None, Pattern | None]:
    """The ratio, if there is one, and the pattern; of what says how much goes only one may be given."""
    entry = METHODS.entry(method)
    given = {name: own[name] for name in ("ratio", "macs", "variant", "guide") if own[name] is not None}
    received = " and ".join(f"--{name}={','.join(values[name].value)}" for name in given)
    if entry.guided:
        if set(given) != {"guide"}:
            raise UsageError(
                f"--method={method} makes a network to a pattern: give --guide, a file that tfprune.experiments.search "
                f"has written, and neither --ratio, --macs nor --variant; received {received or 'none of them'}."
            )
        return None, load_pattern(own["guide"])
    if len(given) > 1:
        guided = ", ".join(METHODS.having("guided"))
        raise UsageError(
            f"Give one of --ratio, --macs and --variant, and --guide for {guided} alone; received {received}."
        )
    for name, text in (("ratio", f"of {entry.counts} to remove"), ("macs", "of the MACs to keep")):
        if name in given and not 0.0 < given[name] < 1.0:
            raise UsageError(f"--{name}={given[name]:g} is outside (0, 1): give the fraction {text}.")
    if "macs" in given and not entry.takes_macs:
        able = ", ".join(METHODS.having("takes_macs"))
        raise UsageError(f"--macs goes with {able}; received --method={method}. Give --ratio.")
    if "variant" in given:
        get_variant(given["variant"], method, model)
    if given or entry.decided_by:
        return own["ratio"], None
    return 0.5, None


def _regimes(names: list[str], variant: str | None, budget: str) -> tuple[str, ...]:
    """The regimes by name; `all` for a design are those of new weights, and with a budget of epochs not Scratch-B."""
    regimes = parse_regimes(names)
    if budget == "epochs" and {"scratch_e", "scratch_b"} <= {regime.name for regime in regimes}:
        if "scratch_b" in names:
            raise UsageError(
                f"With --budget=epochs scratch_b is scratch_e; received --regimes={','.join(names)}. Leave one out."
            )
        regimes = [regime for regime in regimes if regime.name != "scratch_b"]
    if not is_design(variant):
        return tuple(regime.name for regime in regimes)
    fresh = tuple(regime.name for regime in regimes if regime.weights == "fresh")
    others = [name for name in names if name not in (*fresh, "all")]
    if budget == "flops_plus_finetune":
        raise UsageError(
            f"--budget=flops_plus_finetune: {variant} is a network of its own, which is not fine-tuned. Leave it out."
        )
    if others:
        valid = ", ".join(name for name, regime in REGIMES.items() if regime.weights == "fresh")
        raise UsageError(
            f"--regimes={','.join(names)}: {others[0]} is of what pruning leaves of a larger network; {variant} is a "
            f"network of its own and inherits no weights. Valid: {valid}, all."
        )
    return fresh


def _parse_seeds(texts: list[str]) -> tuple[int, ...]:
    try:
        numbers = tuple(int(text) for text in texts)
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0 or max(numbers) > 2**31 - 1 or len(set(numbers)) < len(numbers):
        raise UsageError(
            f"--seeds={','.join(texts)} is neither a number of seeds (5) nor a list of different seeds (3,7)."
        )
    if len(numbers) == 1 and numbers[0] == 0:
        raise UsageError("--seeds=0 asks for no seed at all. Give how many, or a list such as 0,1.")
    if len(numbers) == 1 and numbers[0] > _MOST_SEEDS:
        raise UsageError(
            f"--seeds={numbers[0]} asks for {numbers[0]:,} seeds; at most {_MOST_SEEDS:,}. "
            f"For that seed alone and another, give a list: {numbers[0]},1."
        )
    return tuple(range(numbers[0])) if len(numbers) == 1 else numbers


def _shrunk(settings: Settings) -> Settings:
    """The same study on synthetic data (own data stay), one epoch and a narrow network."""
    ours = settings.model in MODELS.names()
    if not settings.has_own_data:
        settings = dataclasses.replace(
            settings, dataset="synthetic", data_dir=None, train_examples=None, image_size=None
        )
    return dataclasses.replace(
        settings,
        width=min(settings.width, NARROW) if ours else settings.width,
        options=_shrunk_options(settings),
        epochs=2 if settings.rewind_epoch else 1,
        rewind_epoch=min(settings.rewind_epoch, 1),
        finetune_epochs=1,
        budget_cap=2.0,
        workdir=settings.workdir / "smoke" if settings.workdir == Path("runs") else settings.workdir,
    )


def _shrunk_options(settings: Settings) -> Options:
    """The options, strong enough to show something within a few steps."""
    values = dict(settings.options)
    for option in settings.entry.options:
        if option.smoke_least is not None and values[option.name] > 0:
            values[option.name] = max(values[option.name], option.smoke_least)
    return Options(values)
