"""Which rule belongs to which layer or operation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from tfprune.errors import PlanError, UsageError
from tfprune.graph.base_layers import is_of_keras
from tfprune.graph.calls import Call
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.ledger import Labels
from tfprune.support.checks import error_line, shown

Rule = Callable[[Call], "Labels | list[Labels]"]
Flops = Callable[[Call], int]
_RuleT = TypeVar("_RuleT", bound=Rule)


@dataclasses.dataclass(frozen=True)
class _Known:
    """What was registered for a class."""

    rule: Rule
    flops: Flops | None


_BY_NAME: dict[str, _Known] = {}
_FOR_UNKNOWN: list[Rule] = []
_BY_CLASS: dict[type, _Known] = {}


def rule(*kinds: str | type, flops: Flops | None = None) -> Callable[[_RuleT], _RuleT]:
    """Registers a rule for classes of layers or operations.

    Args:
        *kinds: Classes, whose earlier rule it replaces; or names of Keras' own classes that have none yet.
        flops: A function of the call: FLOPs of each element of its output, as the paper counts them, beside two for
            every multiply-accumulate and one for a bias. None: those of the base class, such as 1 of a ReLU.

    Returns:
        A decorator that gives the function back unchanged.

    Raises:
        UsageError: If one of them is no class and no name of a class of Keras, or is a name that has a rule already;
            or if `flops` is no function.
    """
    if not kinds:
        raise UsageError("rule() names no class; use it as @tfprune.rule(MyLayer).")
    for kind in kinds:
        if not isinstance(kind, (str, type)):
            raise UsageError(f"rule({shown(kind)}) names no class; use it as @tfprune.rule(MyLayer).")
        if isinstance(kind, str) and kind not in _names_of_keras():
            raise UsageError(f"rule({kind!r}): Keras has no such class; for a class of your own give the class itself.")
    names = [kind for kind in kinds if isinstance(kind, str)]
    for_names = rule_of_keras(*names, flops=flops)
    if flops is not None and not callable(flops):
        raise UsageError(f"rule(flops={shown(flops)}) is no function; give one of the call, as flops=lambda call: 1.")

    def register(function: _RuleT) -> _RuleT:
        if not callable(function):
            raise UsageError(f"The rule for {shown(kinds[0])} is no function, but {shown(function)}.")
        for_names(function)
        for kind in kinds:
            if not isinstance(kind, str):
                _BY_CLASS[kind] = _checked(function, flops, kind)
        return function

    return register


def rule_of_keras(*names: str, flops: Flops | None = None) -> Callable[[_RuleT], _RuleT]:
    """Registers a rule for classes of Keras by name, also for those that other versions of Keras have.

    Args:
        *names: Names of classes of layers or operations.
        flops: As of `rule`.

    Raises:
        UsageError: If one of them has a rule already.
    """
    for name in names:
        if name in _BY_NAME:
            raise UsageError(f"There is a rule for {name} already: {_BY_NAME[name].rule.__name__}.")

    def register(function: _RuleT) -> _RuleT:
        for name in names:
            _BY_NAME[name] = _Known(function, flops)
        return function

    return register


@functools.cache
def _names_of_keras() -> frozenset[str]:
    """Names of the classes of layers and operations of Keras, and of tfprune's, which extend them."""

    def below(base: type[Any]) -> Iterator[type[Any]]:
        for extension in base.__subclasses__():
            yield extension
            yield from below(extension)

    return frozenset(kind.__name__ for kind in below(keras.Operation) if is_of_keras(kind))


def _checked(function: Rule, flops: Flops | None, kind: type) -> _Known:
    """A user's rule, whose mistakes are told with its name where they are made, not where they do harm."""

    @contextlib.contextmanager
    def telling(call: Call) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            name = getattr(function, "__name__", "of yours")
            what = "" if isinstance(error, PlanError) else f"{type(error).__name__}: "
            message = " ".join(f"{what}{error}".split())
            raise PlanError(f"The rule {name!r} for {kind.__name__} (layer {call.record.name!r}): {message}") from error

    @functools.wraps(function)
    def checked(call: Call) -> list[Labels]:
        with telling(call):
            result = function(call)
            outputs = list(result) if isinstance(result, (list, tuple)) else [result]
            _check_outputs(call, outputs)
            if not call.record.given_up:
                _check_weights(call, outputs)
            for count in call.products:
                _check_count("call.macs", count(np.ones(call.ledger.count, bool)))
        return outputs

    def checked_flops(call: Call) -> int:
        with telling(call):
            return _check_count("flops", flops(call) if flops is not None else 0)

    return _Known(checked, None if flops is None else checked_flops)


def _check_outputs(call: Call, outputs: Sequence[Any]) -> None:
    def fits(labels: Any, shape: tuple) -> bool:
        return (
            isinstance(labels, np.ndarray)
            and labels.dtype.kind == "i"
            and labels.ndim == len(shape)
            and all(own in (1, size) for own, size in zip(labels.shape, shape, strict=True))
        )

    shapes = call.output_shapes
    if len(outputs) != len(shapes) or not all(map(fits, outputs, shapes)):
        received = ", ".join(str(getattr(labels, "shape", shown(labels))) for labels in outputs) or "nothing"
        raise PlanError(
            f"it returned labels of shape {received} for outputs of shape {', '.join(map(str, shapes))}; return one "
            "integer array for each output, of its rank, with its size or 1 along every axis."
        )


def _check_weights(call: Call, outputs: Sequence[Labels]) -> None:
    widths = {size for labels in (*call.inputs, *outputs) for size in labels.shape if size > 1}
    for index, weight in enumerate(getattr(call.operation, "weights", ())):
        shape = tuple(weight.shape)
        for axis, labels in call.record.axes.get(index, {}).items():
            if axis not in range(len(shape)) or np.shape(labels) != (shape[axis],):
                raise PlanError(
                    f"it gave {np.size(labels)} labels for axis {axis} of the weight {weight.name!r} of shape {shape}; "
                    "give axes from 0 on, and one label for each index along them."
                )
        if index not in call.told and widths.intersection(shape):
            raise PlanError(
                f"it does not tell of the weight {weight.name!r} of shape {shape}; call call.weight(variable, "
                "{axis: labels}), with {} if no axis of it follows the channels."
            )


def _check_count(what: str, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 0:
        raise PlanError(
            f"{what} gave {shown(count)}; give a whole number of 0 or more, such as int(kept[labels].sum())."
        )
    return int(count)


def find_rule(operation: Any) -> Rule | None:
    """The rule for a layer or operation, by its class or the nearest base class that has one.

    Names stand for Keras' own classes (and tfprune's, which extend them): a user's subclass of Dense may
    compute anything, so it is not taken for a Dense, unless all that it changes is the constructor.
    """
    bases = type(operation).__mro__
    own = next((_BY_CLASS[base].rule for base in bases if base in _BY_CLASS), None)
    if own is not None or not (is_of_keras(type(operation)) or _as_its_base(operation)[0]):
        return own
    return next((_BY_NAME[base.__name__].rule for base in bases if base.__name__ in _BY_NAME), None)


# What a subclass may have of its own, and compute as its base does all the same.
_CONSTRUCTION = frozenset(("__init__", "get_config", "from_config", "__module__", "__doc__", "__qualname__"))
# Fields of Keras' own configs that rules change, whole numbers.
_WIDTHS = frozenset(("filters", "units", "num_heads", "num_query_heads", "output_dim"))
# Layer -> whether it computes as its base, and whether its constructor has a width of its own.
_SUBCLASSES: weakref.WeakKeyDictionary[Any, tuple[bool, bool]] = weakref.WeakKeyDictionary()


def _as_its_base(operation: Any) -> tuple[bool, bool]:
    """Whether a layer of a user's class is Keras' layer with another constructor, which can be made from its config.

    And whether that constructor has a width of its own, whatever the config says.
    """
    if not isinstance(operation, keras.Layer) or isinstance(operation, keras.Model) or is_of_keras(type(operation)):
        return False, False
    if operation not in _SUBCLASSES:
        _SUBCLASSES[operation] = _compared_with_base(operation)
    return _SUBCLASSES[operation]


def _compared_with_base(layer: Any) -> tuple[bool, bool]:
    kind, bases = type(layer), type(layer).__mro__
    first = next(place for place, one in enumerate(bases) if is_of_keras(one))
    base: Any = bases[first]
    known = set(dir(base)) - _CONSTRUCTION
    own = {name for one in bases[:first] for name in vars(one)}
    if base is keras.Layer or own & known or own & {"call", "build"} or "call" in vars(layer):
        return False, False
    try:
        config = layer.get_config()
        named_alike = set(base.get_config(layer)) <= set(config)
        if not named_alike or kind.from_config(dict(config)).get_config() != config:
            return False, False
        wider = [{**config, width: 2 * config[width]} for width in _WIDTHS.intersection(config)]
        return True, any(kind.from_config(dict(other)).get_config() != other for other in wider)
    except Exception:  # whatever the constructor of others raises on the config
        return False, False


def has_rule(operation: Any) -> bool:
    """Whether there is a rule for a layer or operation."""
    return find_rule(operation) is not None


def _output_flops(call: Call) -> int:
    """FLOPs of each output element, as the class of the operation or the nearest base class tells them."""
    for base in type(call.operation).__mro__:
        known = _BY_CLASS.get(base) or (_BY_NAME.get(base.__name__) if is_of_keras(base) else None)
        if known is not None and known.flops is not None:
            return known.flops(call)
    return 0


def trace(call: Call) -> list[Labels]:
    """Returns the label arrays of a call's outputs, one per output."""
    call.output_flops = _output_flops(call)
    if isinstance(call.operation, keras.Layer) and any(map(has_other_weights, layers_within(call.operation))):
        return give_up(call, f"{call.record.name} has quantized weights or weights of LoRA")
    known = find_rule(call.operation)
    try:
        outputs = (known or _FOR_UNKNOWN[0])(call)
    except PlanError:
        raise
    except Exception as error:  # what Keras' own operation raises on labels
        for labels in (axis for axes in call.record.axes.values() for axis in axes.values()):
            call.freeze(labels, f"{call.record.name} cannot be followed")
        if call.record.created is not None:
            call.freeze(call.record.created, f"{call.record.name} cannot be followed")
        return give_up(call, f"{call.record.name} cannot be followed ({error_line(error)[:120]})")
    if _as_its_base(call.operation)[1] and call.record.created is not None:
        call.freeze(call.record.created, f"{call.record.name} has a width of its own, whatever its config says")
    return outputs if isinstance(outputs, list) else [outputs]


def for_unknown(function: _RuleT) -> _RuleT:
    """Makes a function the rule of all layers and operations that have none."""
    _FOR_UNKNOWN[:] = [function]
    return function


def has_other_weights(layer: Any) -> bool:
    """Whether a layer itself has other weights than it was made with, of which no rule knows."""
    return bool(getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None))


def other_weights_in_words(layer: Any) -> str:
    """What such a layer has, and the way out, for a message that begins with its name and ends with a full stop."""
    if getattr(layer, "lora_enabled", False):
        return (
            "has weights of LoRA beside its kernel. Merge them first: save_weights writes merged kernels; load these "
            "into the same network without LoRA, and prune that"
        )
    return f"has quantized weights ({layer.quantization_mode}). Prune the model first, then quantize what comes out"


def give_up(call: Call, reason: str) -> list[Labels]:
    """Freezes all that enters and leaves an operation; what its rule told of costs before is forgotten."""
    call.record.given_up, call.given_up = reason, True
    call.kernels.clear()
    call.products.clear()
    for labels in call.inputs:
        call.freeze(labels, reason)
    return [call.frozen_labels(len(shape), reason) for shape in call.output_shapes]
