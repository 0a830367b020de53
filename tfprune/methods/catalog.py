"""What an entry of the catalogue of methods is: what a command line knows of each before it pays for TensorFlow.

A method is one file and one entry in `tfprune.methods.flags_of_methods`. From outside it is one call, made before a
command parses its flags::

    import sys

    from tfprune.experiments import run
    from tfprune.methods import METHODS, Option

    METHODS.add("mine", "my_package.mine:METHOD", [Option("strength", "Of mine. Default: 1.", default=1.0)])
    sys.exit(run.main(sys.argv[1:]))

Flags, help, errors, settings, search and budgets read the entry; what a method does is `tfprune.methods.base.Method`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tfprune.errors import UsageError
from tfprune.support.checks import shown
from tfprune.support.registry import Registry, unknown_name

CHANNELS, WEIGHTS = "channels", "weights"  # what most ratios count
GUIDED = "guided"  # the method with which the search makes networks to the patterns that it has found


class Options(Mapping[str, Any]):
    """The values of a method's own flags: a mapping that does not change, so that settings can be keys."""

    def __init__(self, values: Mapping[str, Any] | None = None):
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Options({self._values})"


@dataclasses.dataclass(frozen=True)
class Case:
    """What the default of an option may depend on.

    Attributes:
        recipe: Name of the data set's recipe, as `tfprune.experiments.setup.recipes` has it.
        model: Name of the network.
        options: The method's options that are declared before.
    """

    recipe: str
    model: str
    options: Mapping[str, Any]


_KINDS = (float, int, str, bool)
_EXCLUDED = ("rounds", "skip", "variant")
_OF_EVERY_COMMAND = ("flagfile", "h", "help", "helpfull", "helpshort", "undefok")
_SHOWN = ("flag", "value", "training", "fresh")


@dataclasses.dataclass(frozen=True)
class Option:
    """A flag of one method's own.

    Attributes:
        name: Of the flag, without dashes; no other flag has it.
        help: What --help says of it, its default included.
        kind: float, int, str or bool.
        default: The value where the flag is not given, and nothing is known of data set and network.
        usual: Instead, the value where the flag is not given for a data set and network.
        valid: The values of a string; none: every string.
        least: The least value of a number; None: every number.
        shown: How results with another value than the default are told apart. `flag`: the setting's name has
            `name=value`, or `name` alone for a switch. `value`: it has the value alone. `training`: it has nothing,
            because the key of the method's own training tells the value. `fresh`: it has nothing, because the option
            concerns the new weights of scratch_e and scratch_b alone; their stages are told apart.
        words: What the column `budget` of these two says, for an option that is shown as `fresh`.
        excludes: Flags that do not go with another value than the default: `rounds`, `skip`, `variant`.
        fixed: Values with which the ratio is known -> that ratio.
        decides: For an option that decides how much goes where no ratio is given: how, in the words of --help. It then
            stands in the setting's name in the place of the ratio.
        smoke_least: What --smoke raises a value above 0 to, so that the few steps show something.

    Raises:
        ValueError: If it is declared in a way that is not valid.
    """

    name: str
    help: str
    kind: type = float
    default: Any = None
    usual: Callable[[Case], Any] | None = None
    valid: tuple[str, ...] = ()
    least: float | None = None
    shown: Literal["flag", "value", "training", "fresh"] = "flag"
    words: str = ""
    excludes: tuple[str, ...] = ()
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    decides: str = ""
    smoke_least: float | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"The option {self.name!r} needs a name of small letters, digits and _, without dashes.")
        if self.name in _OF_EVERY_COMMAND:
            raise ValueError(f"The option {self.name!r} is a flag of every command. Give it another name.")
        for field in ("help", "words", "decides"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"The option {self.name!r} has {field}={getattr(self, field)!r}, which is no text.")
        if self.usual is not None and not callable(self.usual):
            raise ValueError(f"The option {self.name!r} has usual={self.usual!r}, which is no function of a Case.")
        if not isinstance(self.valid, (tuple, list)):
            raise ValueError(f"The option {self.name!r} has valid={self.valid!r}; give the values in a tuple.")
        if self.kind not in _KINDS:
            raise ValueError(f"The option {self.name!r} has kind={self.kind!r}; valid: float, int, str, bool.")
        if self.shown not in _SHOWN:  # or results with other values would be taken for these
            raise ValueError(f"The option {self.name!r} has shown={self.shown!r}; valid: {', '.join(_SHOWN)}.")
        if self.default is not None and not self._is_of_its_kind(self.default):
            raise ValueError(f"The default {self.default!r} of the option {self.name!r} is no {self.kind.__name__}.")
        if self.valid and self.default is not None and self.default not in self.valid:
            raise ValueError(f"The default {self.default!r} of the option {self.name!r} is none of {self.valid}.")
        if self.least is not None and self.kind not in (int, float):
            raise ValueError(f"The option {self.name!r} has least={self.least!r}, which is for numbers.")
        if self.least is not None and self.default is not None and not self.default >= self.least:
            raise ValueError(f"The default {self.default!r} of the option {self.name!r} is below {self.least!r}.")
        if unknown := sorted({*self.excludes} - {*_EXCLUDED}):
            raise ValueError(
                f"The option {self.name!r} has excludes={self.excludes!r} with {unknown[0]!r}; valid: "
                f"{', '.join(_EXCLUDED)}, in a tuple."
            )

    def _is_of_its_kind(self, value: Any) -> bool:
        if isinstance(value, bool):
            return self.kind is bool
        return isinstance(value, (int, float) if self.kind is float else self.kind)

    def check(self, value: Any) -> None:
        """Raises a UsageError for a value that is not valid."""
        if value is None:
            return
        if self.valid and value not in self.valid:
            raise unknown_name(self.name, value, self.valid)
        if self.least is not None and not self.least <= value < math.inf:
            raise UsageError(f"--{self.name}={value} must be {self.least:g} or more.")

    def text(self, value: Any) -> str:
        """A value as `name=value`, or as its name for a switch that is on, or as the value alone."""
        if self.shown == "value":
            return str(value)
        if value is True:
            return self.name
        return f"{self.name}={value:g}" if isinstance(value, float) else f"{self.name}={value}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the catalogue says of a method.

    Attributes:
        name: Of the method, as --method takes it.
        target: "module:attribute" of the `Method`, imported when it is needed; or the `Method` itself.
        options: Its own flags. In this order they stand in the setting's name and get their defaults.
        counts: What its ratio is a fraction of: `CHANNELS`, `WEIGHTS`, or other words that --help can use.
        in_rounds: Whether it prunes a network again that it has pruned: --rounds.
        takes_macs: Whether it can be asked for MACs: --macs.
        skips: Whether it chooses the layers to prune itself, and so can leave some alone: --skip.
        guided: Whether it makes a network to a pattern, --guide, and takes no ratio.
        rescales: Whether it draws the new weights of random_ticket scaled to the weights that it leaves.
        searched: Whether a search looks, unless told otherwise, at the architectures that it finds.
        proximal: Whether it trains with steps that only `tfprune.training.optimizer.CoupledSGD` takes.
        control: Whether it is the uniform network that a search lays beside what was found, and that counts the same.
        recipes: Name of a recipe -> the fields in which this method's differs.
        check: Raises a UsageError for options and a ratio (None without one) that do not go together.
    """

    name: str
    target: Any
    options: tuple[Option, ...] = ()
    counts: str = CHANNELS
    in_rounds: bool = False
    takes_macs: bool = False
    skips: bool = False
    guided: bool = False
    rescales: bool = False
    searched: bool = False
    proximal: bool = False
    control: bool = False
    recipes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    check: Callable[[Mapping[str, Any], float | None], None] | None = None

    @property
    def decided_by(self) -> Option | None:
        """The option that decides how much goes where no ratio is given; None if there has to be a ratio."""
        return next((option for option in self.options if option.decides), None)

    def changed(self, options: Mapping[str, Any], *shown: str) -> list[Option]:
        """The options, shown in one of these ways, that have another value than the default."""
        return [own for own in self.options if own.shown in shown and options[own.name] != own.default]

    def excluding(self, options: Mapping[str, Any], flag: str) -> list[Option]:
        """The options whose values do not go with a flag; by name."""
        found = [own for own in self.options if flag in own.excludes and options[own.name] != own.default]
        return sorted(found, key=lambda option: option.name)


_TRAITS = {field.name for field in dataclasses.fields(Entry)} - {"name", "target", "options"}


class Catalog(Registry):
    """The methods by name, with what the catalogue says of each."""

    def __init__(self) -> None:
        super().__init__("method")
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, target: Any, options: Sequence[Option] = (), **traits: Any) -> None:
        """Registers a method.

        Args:
            name: As --method takes it.
            target: "module:attribute" of the `tfprune.methods.base.Method`, which is imported when it is needed; or
                the method itself.
            options: The method's own flags.
            traits: What else there is to say, by the names of the attributes of `Entry`.

        Raises:
            ValueError: If the name or a flag is taken, or if something is given that is not valid.
        """
        if unknown := sorted(traits.keys() - _TRAITS):
            raise ValueError(f"The method {name!r} has no trait {unknown[0]!r}; valid: {', '.join(sorted(_TRAITS))}.")
        own = list(options) if isinstance(options, Iterable) else []
        if not isinstance(options, Iterable) or not all(isinstance(option, Option) for option in own):
            raise ValueError(f"The options of the method {name!r} must be a list of Option; received {shown(options)}.")
        entry = Entry(name, target, tuple(own), **traits)
        taken = {option.name: method.name for method in self.entries() for option in method.options}
        for option in own:
            if option.name in taken:
                raise ValueError(f"The flag --{option.name} is registered twice: for {taken[option.name]} and {name}.")
            taken[option.name] = name
        super().add(name, target)
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Takes a method out again."""
        super().remove(name)
        del self._entries[name]

    def entry(self, name: str) -> Entry:
        """What the catalogue says of a method; a UsageError that lists the valid names if there is none."""
        return self._entries[self.check(name)]

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in the order of their registration."""
        return tuple(self._entries.values())

    def having(self, trait: str) -> tuple[str, ...]:
        """The names of the methods of which an attribute of `Entry` is true."""
        return tuple(entry.name for entry in self.entries() if getattr(entry, trait))

    def options(self) -> dict[str, Option]:
        """The flags of all methods by name, those of a method in alphabetical order."""
        return {
            option.name: option
            for entry in self.entries()
            for option in sorted(entry.options, key=lambda option: option.name)
        }

    def owner(self, flag: str) -> str | None:
        """The method that a flag belongs to; None if it belongs to none."""
        return next((own.name for own in self.entries() if flag in [option.name for option in own.options]), None)

    def excluding(self, flag: str) -> list[str]:
        """The flags of methods that do not go with a flag, with dashes."""
        return [f"--{name}" for name, option in self.options().items() if flag in option.excludes]
