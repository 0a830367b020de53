"""The settings of a study: what its flags say, their defaults by data set, and what is wrong with them.

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

from tfprune.data import DATASETS, IMAGE_SIZES, check_image_size
from tfprune.errors import UsageError
from tfprune.experiments.setup.flags import IN_ROUNDS, PATTERNS, SCHEDULES, SKIPPING, WITH_MACS
from tfprune.experiments.setup.recipes import FINE_GATES, NARROW, recipe_for
from tfprune.methods import GATES, METHODS
from tfprune.models import MODELS, check_model, is_file
from tfprune.paper.variants import VARIANTS, get_variant, is_design
from tfprune.plans.patterns import Pattern, load_pattern
from tfprune.support.files import check_writable, file_name
from tfprune.support.registry import unknown_name
from tfprune.training import PRECISIONS, STRATEGIES
from tfprune.training.regimes import BUDGETS, REGIMES, Regime, parse_regimes

# Flags that belong to one method.
_OWN_FLAGS = {
    "gamma_l1": "network_slimming",
    "gate_l1": "sparse_structure_selection",
    "gates": "sparse_structure_selection",
    "pretrained": "soft_filter",
    "pattern": "magnitude",
    "schedule": "magnitude",
    "scratch_rescale": "magnitude",
    "guide": "guided",
}
_SMOKE_GATE_L1 = 2.0  # closes gates within the few steps of --smoke
_MOST_SEEDS = 1000
OF_WEIGHTS = ("magnitude", "uniform_sparsification")
# Flags that take several values, of which every combination is a setting.
_LISTS = {
    "dataset": str, "model": str, "method": str, "ratio": float, "macs": float, "variant": str, "guide": str,
    "learning_rate": float,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """One setting of a study, for any number of seeds and regimes; all fields are resolved."""

    dataset: str
    data_dir: str | None
    train_examples: int | None
    image_size: int | None
    model: str
    width: float
    method: str
    ratio: float | None
    macs: float | None
    variant: str | None
    guide: Pattern | None
    skip: tuple[str, ...]
    gamma_l1: float
    gate_l1: float
    gates: str
    pretrained: bool
    pattern: str | None
    schedule: str | None
    scratch_rescale: bool
    regimes: tuple[str, ...]
    rewind_epoch: int
    round: int
    seeds: tuple[int, ...]
    epochs: int
    finetune_epochs: int
    batch_size: int
    learning_rate: float
    drops: str
    weight_decay: float
    nesterov: bool
    budget: str
    budget_cap: float | None
    validation_fraction: float
    strategy: str
    precision: str
    xla: bool
    deterministic: bool
    workdir: Path
    export: bool
    dry_run: bool

    @property
    def name(self) -> str:
        """As the column `setting` has it: the variant, the pattern, or how much is pruned how, or the penalty."""
        gates = f"gates={self.gates}" if self.gates != "blocks" else None
        if self.guide:
            return f"guide={file_name(self.guide.name)}-{self.guide.digest}"
        if self.variant or self.ratio is self.macs is None:
            return self.variant or " ".join(filter(None, (gates, f"gate_l1={self.gate_l1:g}")))
        skip = f"skip={'+'.join(self.skip)}" if self.skip else None
        amount = f"ratio={self.ratio:g}" if self.macs is None else f"macs={self.macs:g}"
        how = (gates, "pretrained" if self.pretrained else None, self.schedule, self.pattern, amount)
        return " ".join(filter(None, (*how, skip, f"round={self.round}" if self.round > 1 else None)))

    @property
    def ratios(self) -> dict[str, float] | None:
        """Layer -> fraction to remove, of the variant; None when a ratio is given."""
        return dict(VARIANTS[self.variant].ratios) if self.variant else None

    @property
    def bypass(self) -> dict[str, int] | None:
        """Addition -> the operand that it passes on alone, of the variant; None without one."""
        return dict(VARIANTS[self.variant].bypass) if self.variant else None

    @property
    def design(self) -> str | None:
        """Name of the network that the variant is; None where it is what removing channels leaves."""
        return VARIANTS[self.variant].design if self.variant else None

    @property
    def regime_list(self) -> list[Regime]:
        """The regimes to run, in the order of the paper's tables."""
        return [REGIMES[name] for name in self.regimes]


def settings_from_flags(values: flags.FlagValues) -> list[Settings]:
    """Resolves defaults and checks everything that can be checked without TensorFlow.

    Returns:
        The settings: every combination of the values of the flags that take several, and of these every round.

    Raises:
        UsageError: For the first thing that is wrong; the message says what is valid.
    """
    choices = [_choices(name, values[name].value, kind) for name, kind in _LISTS.items()]
    rounds = 1 if values.rounds is None else values.rounds
    if rounds < 1:
        raise UsageError(f"--rounds={rounds} must be at least 1.")
    found = [
        dataclasses.replace(settings, round=number)
        for combination in itertools.product(*choices)
        for settings in [_resolved(values, dict(zip(_LISTS, combination, strict=True)))]
        for number in range(1, rounds + 1)
    ]
    for settings in found:
        _check_tickets(settings, rounds)
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


def _resolved(values: flags.FlagValues, own: Mapping[str, Any]) -> Settings:
    """One setting; `own` is what it has of the flags that take several values."""
    dataset, method, model = DATASETS.check(own["dataset"]), METHODS.check(own["method"]), own["model"]
    for name, valid in (("strategy", STRATEGIES), ("precision", PRECISIONS), ("budget", BUDGETS)):
        if values[name].value not in valid:
            raise unknown_name(name, values[name].value, valid)
    recipe = recipe_for(dataset, model, method)
    check_image_size(dataset, values.image_size)
    if dataset == "folder" and values.data_dir is None:
        raise UsageError("--dataset=folder needs --data_dir: a folder with one folder of images per class.")

    width = values.width
    if width is None:
        width = 1.0 if values["model"].present else recipe.width
    check_model(model, width)
    for name, owner in _OWN_FLAGS.items():
        if values[name].value is not None and owner not in values.method:
            raise UsageError(f"--{name} belongs to --method={owner}; received --method={','.join(values.method)}.")
    if method == "guided" and len(values.method) > 1:
        raise UsageError(
            f"--method=guided goes without other methods, which have no --guide; received "
            f"--method={','.join(values.method)}. Run it by itself in the same --workdir."
        )
    ratio, guide = _amount(own, method, model)

    def given(name, default):
        value = own[name] if name in own else values[name].value
        return default if value is None or _OWN_FLAGS.get(name, method) != method else value

    gates = given("gates", GATES[0])
    if gates not in GATES:
        raise unknown_name("gates", gates, GATES)
    gate_l1 = recipe.gate_l1 if method == "sparse_structure_selection" else 0.0
    epochs, share = given("epochs", recipe.epochs), recipe.finetune_epochs
    cap = given("budget_cap", recipe.budget_cap)
    settings = Settings(
        dataset=dataset,
        data_dir=values.data_dir,
        train_examples=values.train_examples,
        image_size=given("image_size", IMAGE_SIZES.get(dataset)),
        model=os.path.abspath(model) if is_file(model) else model,
        width=width,
        method=method,
        ratio=ratio,
        macs=own["macs"],
        variant=own["variant"],
        guide=guide,
        skip=tuple(values.skip or ()),
        gamma_l1=given("gamma_l1", recipe.gamma_l1 if method == "network_slimming" else 0.0),
        gate_l1=given("gate_l1", gate_l1 if gates == "blocks" else gate_l1 / FINE_GATES),
        gates=gates,
        pretrained=given("pretrained", False),
        pattern=given("pattern", None),
        schedule=given("schedule", None),
        scratch_rescale=given("scratch_rescale", False),
        regimes=_regimes(values.regimes, own["variant"], values.budget),
        rewind_epoch=given("rewind_epoch", 0),
        round=1,
        seeds=_parse_seeds(values.seeds),
        epochs=epochs,
        finetune_epochs=given("finetune_epochs", -(-epochs * share[0] // share[1])),
        batch_size=given("batch_size", recipe.batch_size),
        learning_rate=given("learning_rate", recipe.learning_rate),
        drops=recipe.drops,
        weight_decay=given("weight_decay", recipe.weight_decay),
        nesterov=given("nesterov", recipe.nesterov),
        budget=values.budget,
        budget_cap=None if cap == math.inf else cap,
        validation_fraction=given("validation_fraction", 0.0),
        strategy=values.strategy,
        precision=values.precision,
        xla=values.xla,
        deterministic=values.deterministic,
        workdir=Path(values.workdir),
        export=values.export,
        dry_run=values.dry_run,
    )
    _check_ranges(settings)
    _check_pattern(settings)
    return _shrunk(settings) if values.smoke else settings


def _amount(own: Mapping[str, Any], method: str, model: str) -> tuple[float | None, Pattern | None]:
    """The ratio, if there is one, and the pattern; of what says how much goes only one may be given."""
    given = {name: own[name] for name in ("ratio", "macs", "variant", "guide") if own[name] is not None}
    flags = " and ".join(f"--{name}={value}" for name, value in given.items())
    if method == "guided":
        if set(given) != {"guide"}:
            raise UsageError(
                "--method=guided makes a network to a pattern: give --guide, a file that tfprune.experiments.search "
                f"has written, and neither --ratio, --macs nor --variant; received {flags or 'none of them'}."
            )
        return None, load_pattern(own["guide"])
    if len(given) > 1:
        raise UsageError(f"Give one of --ratio, --macs and --variant, and --guide for guided alone; received {flags}.")
    for name, text in (("ratio", f"of {'weights' if method in OF_WEIGHTS else 'channels'} to remove"),
                       ("macs", "of the MACs to keep")):  # fmt: skip
        if name in given and not 0.0 < given[name] < 1.0:
            raise UsageError(f"--{name}={given[name]:g} is outside (0, 1): give the fraction {text}.")
    if "macs" in given and method not in WITH_MACS:
        raise UsageError(f"--macs goes with {', '.join(WITH_MACS)}; received --method={method}. Give --ratio.")
    if "variant" in given:
        get_variant(given["variant"], method, model)
    if given or method == "sparse_structure_selection":  # there the penalty decides
        return own["ratio"], None
    return 0.5, None


def _check_tickets(settings: Settings, rounds: int) -> None:
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
    if settings.method not in IN_ROUNDS or settings.ratio is None or settings.pattern or settings.schedule:
        given = [(name, getattr(settings, name)) for name in ("variant", "macs", "pattern", "schedule")]
        other = [f"--{name}={value}" for name, value in given if value]
        raise UsageError(
            f"--rounds={rounds} goes with a --ratio of {', '.join(IN_ROUNDS)}, without --pattern and --schedule; "
            f"received {' '.join([f'--method={settings.method}', *other])}."
        )


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


def _check_pattern(settings: Settings) -> None:
    if settings.skip and (settings.method not in SKIPPING or settings.variant or settings.schedule):
        raise UsageError(
            f"--skip goes with a --ratio of {', '.join(SKIPPING)}, without --schedule; received "
            f"--method={settings.method} {settings.name}."
        )
    for name, valid in (("pattern", PATTERNS), ("schedule", SCHEDULES)):
        if getattr(settings, name) not in (None, *valid):
            raise unknown_name(name, getattr(settings, name), valid)
    if settings.variant and settings.gates != "blocks":
        raise UsageError(
            f"--gates={settings.gates} and --variant={settings.variant} do not go together: a variant says itself what "
            "goes. Leave one of them out."
        )
    if settings.pattern == "2:4" and settings.ratio != 0.5:
        raise UsageError(
            f"--pattern=2:4 removes half of the weights; received --ratio={settings.ratio:g}. Leave it out."
        )
    if settings.pattern == "2:4" and settings.schedule:
        raise UsageError(f"--pattern=2:4 is made at once; it does not go with --schedule={settings.schedule}.")


def _shrunk(settings: Settings) -> Settings:
    """The same study on synthetic data, one epoch and a narrow network."""
    ours = settings.model in MODELS.names()
    return dataclasses.replace(
        settings,
        dataset="synthetic",
        data_dir=None,
        train_examples=None,
        image_size=None,
        width=min(settings.width, NARROW) if ours else settings.width,
        gate_l1=max(settings.gate_l1, _SMOKE_GATE_L1) if settings.gate_l1 else 0.0,
        epochs=2 if settings.rewind_epoch else 1,
        rewind_epoch=min(settings.rewind_epoch, 1),
        finetune_epochs=1,
        budget_cap=2.0,
        workdir=settings.workdir / "smoke" if settings.workdir == Path("runs") else settings.workdir,
    )


def _check_ranges(settings: Settings) -> None:
    for name in ("epochs", "finetune_epochs", "batch_size"):
        if getattr(settings, name) < 1:
            raise UsageError(f"--{name}={getattr(settings, name)} must be at least 1.")
    if not 0 <= settings.rewind_epoch < settings.epochs:
        raise UsageError(
            f"--rewind_epoch={settings.rewind_epoch} must be 0 or more, and less than the {settings.epochs} epochs."
        )
    for name in ("weight_decay", "gamma_l1", "gate_l1"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise UsageError(f"--{name}={getattr(settings, name)} must be 0 or more.")
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
