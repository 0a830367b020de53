"""What a pruning method is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.errors import UsageError
from tfprune.methods.flags_of_methods import METHODS
from tfprune.models import build_model
from tfprune.planning.channels import GLOBAL_MAX_RATIO, plan_channels
from tfprune.plans.base import Plan
from tfprune.plans.designs import DesignPlan
from tfprune.plans.patterns import Pattern
from tfprune.support.checks import shown
from tfprune.support.registry import unknown_name
from tfprune.surgery.rebuild import Edit


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """What a method is asked to do.

    Attributes:
        ratio: Fraction of channels (or weights, or blocks) to remove; None when something else decides.
        macs: Fraction of the MACs to keep, instead of a ratio.
        ratios: Layer -> fraction to remove there, from a variant of the paper; None when a ratio is given.
        bypass: Addition -> the operand that it passes on alone, from a variant that removes blocks.
        design: Name of the network that a variant is, where pruning does not lead to it.
        width: Width multiplier of the network, which a design gets too.
        guide: The pattern that the network gets.
        skip: Names or patterns of layers that keep everything, for the methods that choose the layers themselves.
        options: The values of the method's own flags; `option` reads them.
        asked: The method and all that it is asked, in words.
        learned: What `Method.learned` has told of the training of the network to prune.
        rescale: Whether new weights are to be scaled to the weights that the network keeps, as those of random_ticket.
        round: Which round of pruning this is, from 1; before it, the rounds before it have pruned the network.
        seed: For methods that draw at random, and of new weights.
    """

    ratio: float | None = None
    macs: float | None = None
    ratios: Mapping[str, float] | None = None
    bypass: Mapping[str, int] | None = None
    design: str | None = None
    width: float = 1.0
    guide: Pattern | None = None
    skip: Sequence[str] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    asked: str = ""
    learned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rescale: bool = False
    round: int = 1
    seed: int = 0

    def option(self, name: str) -> Any:
        """The value of one of the method's own flags; the default of the catalogue where none is given.

        Raises:
            UsageError: If no method has such a flag.
        """
        if name in self.options:
            return self.options[name]
        known = METHODS.options()
        if name not in known:
            raise unknown_name("option of a method", name, tuple(known))
        return known[name].default

    @property
    def draw_seed(self) -> int:
        """The seed of what this round draws; rounds draw apart."""
        return self.seed if self.round == 1 else mixed_seed(self.seed, self.round)

    @classmethod
    def of(cls, settings: Any, seed: int) -> MethodSettings:
        """What the settings of a study ask of its method, for one seed."""
        own = {field.name for field in dataclasses.fields(cls)} - {"learned", "rescale", "seed"}
        return cls(**{name: getattr(settings, name) for name in own}, seed=seed)


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """What a method decides about a trained network.

    Attributes:
        plan: What goes.
        weights: Of the network, in the order of `model.get_weights()`, with which the pruned network inherits; None
            for those that the network has.
    """

    plan: Plan
    weights: list[np.ndarray] | None = None


def mixed_seed(seed: int, purpose: int) -> int:
    """A seed that is another one for every purpose."""
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1)[0] >> 1)


Sample = Callable[[int], tuple[np.ndarray, np.ndarray]]


class Method:
    """A pruning method; subclasses override what they do differently.

    Attributes:
        trains_sparse: Whether the network that is pruned is trained in another way than the one that is not.
        automatic: Whether the widths of the pruned network follow from the trained weights, so that they
            are not known before.
        blind: Whether it looks at no trained weights, so that masks are known before, too.
        ranks_any: Of a method that trains sparse, whether it can prune a network that was trained otherwise all the
            same, as where the large network comes with its weights.
    """

    trains_sparse = False
    ranks_any = False
    automatic = False
    blind = False

    def configured(self, settings: MethodSettings) -> Method:
        """The method that these settings make of this one, where its attributes depend on them; `Designed` for all."""
        return DESIGNED if settings.design else self

    def edit(self, settings: MethodSettings) -> Edit | None:
        """The change of layers with which the network to prune is trained; None for none."""
        return None

    def continues(self, settings: MethodSettings) -> bool:
        """Whether its own training starts from the trained large network, at a tenth of the learning rate."""
        return False

    def callbacks(self, settings: MethodSettings) -> list[keras.callbacks.Callback]:
        """Keras callbacks of the training of the network to prune."""
        return []

    def training_in_words(self, settings: MethodSettings) -> str:
        """What is special about the method's own training, for people; and for `sparse_key`, unless that is changed."""
        return ""

    def sparse_key(self, settings: MethodSettings) -> str:
        """What tells the method's own training from every other one: settings with the same key share a training.

        The words of `training_in_words`; without any, all that the method is asked, so that nothing is mixed up.
        """
        if not self.trains_sparse:
            return ""
        return self.training_in_words(settings) or settings.asked

    def learned(self, callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, Any]:
        """What these callbacks know after the training that the weights do not tell; JSON types only."""
        return {}

    def expected(self, model: keras.Model, settings: MethodSettings) -> tuple[Plan, bool]:
        """A plan for a network that is not trained, and whether its widths will be those of the real one.

        Raises:
            PlanError: For what `plan` would refuse after the training.
        """
        plan = self.plan(model, settings)
        if not self.automatic:
            return plan, True
        ratio = None if settings.ratio is None else min(settings.ratio, GLOBAL_MAX_RATIO)
        return plan_channels(model, ratio, macs=settings.macs, skip=settings.skip), False

    def fresh(self, plan: Plan, model: keras.Model, settings: MethodSettings) -> keras.Model:
        """The pruned architecture with the new weights from which it is trained from scratch."""
        return plan.apply(model, weights="fresh", seed=settings.seed)

    def plan(self, model: keras.Model, settings: MethodSettings) -> Plan:
        """Makes the plan for a network, from its weights alone.

        Args:
            model: The network; it stays as it is.
            settings: What is asked for.
        """
        raise NotImplementedError

    def decide(self, model: keras.Model, settings: MethodSettings, sample: Sample) -> Decision:
        """Decides about a trained network: by the plan alone, unless a method looks at images too.

        Args:
            model: The trained network; it stays as it is.
            settings: What is asked for.
            sample: `sample(count)` returns normalized training images, float32 (count, height, width, channels),
                and their labels, int32 (count,); of a user's own data inputs and targets as the network takes them.
        """
        return Decision(self.plan(model, settings))


class Designed(Method):
    """The network that the settings name, whatever method it is said to come from; nothing is removed or judged."""

    def plan(self, model: keras.Model, settings: MethodSettings) -> DesignPlan:
        """Makes the plan of that network for the images and classes of the large one, whose weights do not matter."""
        design = build_model(settings.design, model.input_shape[1:], model.output_shape[-1], settings.width)
        return DesignPlan.beside(model, design, origin={"design": settings.design, "width": settings.width})


DESIGNED = Designed()


def method_named(name: str) -> Method:
    """The method that is registered under a name.

    Raises:
        UsageError: For an unknown name, or if what is registered is no method that can make plans.
    """
    found = METHODS.get(name)
    if not isinstance(found, Method):
        raise UsageError(
            f"The method {name!r} must be registered as an instance of a subclass of tfprune.methods.base.Method; "
            f"received {shown(found)}."
        )
    if type(found).plan is Method.plan and Method.decide is type(found).decide:
        raise UsageError(
            f"The method {name!r} needs a plan(model, settings): its class {type(found).__name__} has none."
        )
    return found


def expected_plan(method: Method, model: keras.Model, settings: MethodSettings) -> tuple[Plan, bool]:
    """What `Method.expected` returns, checked.

    Raises:
        PlanError: If no plan can be made.
        UsageError: If it returns something else.
    """
    found = method.expected(model, settings)
    if not isinstance(found, tuple) or len(found) != 2:
        raise UsageError(f"{type(method).__name__}.expected must return a plan and a bool; it returned {shown(found)}.")
    _check_plan(method, "plan" if type(method).expected is Method.expected else "expected", found[0])
    return found


def decision(method: Method, model: keras.Model, settings: MethodSettings, sample: Sample) -> Decision:
    """What `Method.decide` returns, checked.

    Raises:
        PlanError: If no plan can be made.
        UsageError: If it returns something else, or weights that do not fit the model.
    """
    found = method.decide(model, settings, sample)
    if not isinstance(found, Decision):
        raise UsageError(
            f"{type(method).__name__}.decide must return a Decision, as Decision(plan) or Decision(plan, weights); it "
            f"returned {shown(found)}."
        )
    _check_plan(method, "decide", found.plan)
    if found.weights is not None:
        given = [np.shape(weight) for weight in found.weights]
        own = [tuple(weight.shape) for weight in model.weights]
        if given != own:
            raise UsageError(
                f"{type(method).__name__}.decide must return weights like those of model.get_weights(), {len(own)} "
                f"arrays; it returned {len(given)}, or others in shape."
            )
    return found


def _check_plan(method: Method, function: str, plan: Any) -> None:
    if not isinstance(plan, Plan):
        raise UsageError(f"{type(method).__name__}.{function} must return a plan; it returned {shown(plan)}.")
