"""Making a layer that tfprune looked into again, with other widths: which fields of its config have to change, and how.

What a field means is not known. But the shapes that every weight has to have are, and a layer of another config shows
its shapes when it is made. So fields whose numbers fit are tried, until all shapes are right.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Record, Shape
from tfprune.graph.descriptions import as_text
from tfprune.graph.inside import fixed
from tfprune.graph.keras_internals import losses_kept
from tfprune.graph.ledger import Kept, Labels
from tfprune.graph.own_layers.layer_configs import (
    config_of,
    description,
    from_config,
    global_policy,
    is_loadable,
    policy_within,
)
from tfprune.graph.own_layers.made_alike import computes_the_same, goes_alike, left_of_inputs, left_of_weight
from tfprune.support.checks import error_line

_TRIES, _MOST = 32, 4096  # how many values of the fields are tried, of how many
FEW_TRIES = 6  # where there is another way to make a layer
Path = tuple[str | int, ...]
# Model -> what was tried of a layer -> how often, and the fields and their values; None: in vain. The blocks of a
# network are alike, so that what was found for one serves the others.
_known: weakref.WeakKeyDictionary[keras.Model, dict[tuple, tuple[int, dict[Path, int] | None]]] = (
    weakref.WeakKeyDictionary()
)


def changed_config(record: Record, kept: Kept, tries: int = _TRIES) -> dict[str, Any]:
    """The config of a layer for the channels that are kept.

    Args:
        record: The layer.
        kept: (labels,) bool.
        tries: How many configs are tried at most.

    Raises:
        PlanError: If none is found that makes a layer of the right shapes.
    """
    try:
        config = config_of(record.operation)
    except Exception as error:  # whatever the code of others raises
        raise PlanError(
            f"{_named(record)} cannot be made again: its get_config raises {error_line(error)[:120]}"
        ) from error
    wanted: list[Shape] = [
        left_of_weight(shape, record.axes.get(index, {}), kept) for index, shape in enumerate(record.shapes)
    ]
    entering = [left_of_inputs(call, kept) for call in record.calls]
    unchanged = wanted == record.shapes and all(
        new == call.input_shapes for new, call in zip(entering, record.calls, strict=True)
    )
    called_with = as_text([[call.node.arguments.args, call.node.arguments.kwargs] for call in record.calls])
    key = (description(record.operation), called_with, str([record.shapes, wanted, entering]))
    known = _known.setdefault(record.model, {})
    tried, fields = known.get(key, (0, None))
    if fields is None and tried < tries:
        if unchanged:
            tries, fields = _TRIES, {} if _makes(record, config, wanted, entering, kept, from_config) else None
        else:
            fields = _search(record, config, wanted, entering, kept, tries)
        known[key] = tries, fields
    if fields is None and unchanged:
        raise PlanError(f"{_named(record)} cannot be made again: its config makes another layer than it is")
    if fields is None:
        raise PlanError(f"{_named(record)} has no field in its config for this width")
    return _with(config, fields)


def check_made_whole(record: Record) -> None:
    """Checks that a layer that keeps all of its channels, because it could not be looked into, can be made again.

    Raises:
        PlanError: If its config makes no layer, or one of other weights.
    """
    layer = record.operation
    if not isinstance(layer, keras.Layer) or not record.weights or type(layer).__module__.startswith("keras."):
        return
    try:
        with global_policy(policy_within(layer)):
            made = from_config(type(layer), config_of(layer))
            for call in record.calls:
                _call_on_zeros(made, call, call.input_shapes)
    except Exception as error:  # whatever the code of others raises
        raise PlanError(
            f"{_named(record)} cannot be made again from its config ({error_line(error)[:120]})."
        ) from error
    if [tuple(weight.shape) for weight in made.weights] != record.shapes:
        raise PlanError(f"{_named(record)} cannot be made again: its config makes a layer of other weights.")


def _call_on_zeros(layer: Any, call: Call, shapes: Sequence[Shape]) -> None:
    """Builds a layer by a call on numbers, which takes a hundredth of the time of symbolic tensors."""
    tensors = call.node.arguments.tensors
    given = [keras.ops.zeros(fixed(shape), one.dtype) for shape, one in zip(shapes, tensors, strict=True)]
    args, kwargs = call.node.arguments.filled(given)
    layer(*args, **kwargs)


def _named(record: Record) -> str:
    return f"{record.name} ({type(record.operation).__name__})"


def unmakeable(record: Record, group_of: Labels, frozen: Mapping[int, str], at_once: bool = False) -> dict[int, str]:
    """The coupled groups that a layer which was looked into cannot lose, with the reason.

    Groups that occur in the same places are lost alike, so a few of each kind are tried.

    Args:
        record: The layer.
        group_of: (labels,) int array: the coupled group of every label.
        frozen: Groups that cannot be removed anyway.
        at_once: Whether it is enough to know that it cannot lose all of them; then they are all given.
    """
    places: dict[int, set[int]] = {}
    told = [labels for axes in record.axes.values() for labels in axes.values()]
    for place, labels in enumerate([*told, *(labels for call in record.calls for labels in call.inputs)]):
        for group in np.unique(group_of[labels]).tolist():
            if group not in frozen:
                places.setdefault(group, set()).add(place)
    kinds: dict[frozenset[int], list[int]] = {}
    for group, found in places.items():
        kinds.setdefault(frozenset(found), []).append(group)

    def why_not(several: Sequence[list[int]]) -> str:
        # As many of each kind as no other loses, so that no width is right by chance.
        removed = [
            group for number, groups in enumerate(several, 1) for group in groups[: min(number, len(groups) - 1)]
        ]
        try:
            changed_config(record, ~np.isin(group_of, removed), FEW_TRIES if at_once else _TRIES)
        except PlanError as error:
            return str(error)
        return ""

    every = [groups for groups in kinds.values() if len(groups) > 1]
    reason = why_not(every) if every else ""
    if not reason:
        return {}
    if at_once:
        return dict.fromkeys((group for groups in every for group in groups), reason)
    possible: list[list[int]] = []
    lost: dict[int, str] = {}
    for groups in every:
        reason = why_not([*possible, groups])
        if reason:
            lost.update(dict.fromkeys(groups, reason))
        else:
            possible.append(groups)
    return lost


def _search(
    record: Record, config: dict[str, Any], wanted: list[Shape], entering: list[list[Shape]], kept: Kept, tries: int
) -> dict[Path, int] | None:
    """The fields to change, with their values; None if no values were found that are right."""
    made = {
        (record.shapes[index][axis], wanted[index][axis] or 1) for index, axes in record.axes.items() for axis in axes
    }
    given = {
        (one, other)
        for call, shapes in zip(record.calls, entering, strict=True)
        for old, new in zip(call.input_shapes, shapes, strict=True)
        for one, other in zip(old, new, strict=True)
        if one is not None and other is not None
    }
    sizes: dict[int, set[int]] = {}
    for old, new in sorted(made | given):
        sizes.setdefault(old, set()).add(new)
    fields = {path: _candidates(value, sizes) for path, value in _whole_numbers(config)}
    fields = {path: values for path, values in fields.items() if len(values) > 1}
    changed = {(old, new) for old, new in made - given if old != new}
    # A field has one value, and so serves one width, and those that are so many times as wide.
    needed = len([pair for pair in changed if not any(_is_times(pair, other) for other in changed)])
    if needed > len(fields):
        return None
    # By Keras' own means, so that what is saved can be loaded; unless the layer as it is could not be loaded either.
    make = (lambda kind, own: kind.from_config(own)) if is_loadable(record) else from_config
    choices = list(itertools.islice(itertools.product(*fields.values()), _MOST))
    current = [value for path, value in _whole_numbers(config) if path in fields]

    def changes(values: Sequence[int]) -> int:
        return sum(new != old for new, old in zip(values, current, strict=True))

    # As many fields as widths are the likeliest: another number may be the same by chance.
    for values in sorted(choices, key=lambda values: abs(changes(values) - needed))[:tries]:
        found = dict(zip(fields, values, strict=True))
        if _makes(record, _with(config, found), wanted, entering, kept, make):
            return found
    return None


def _is_times(pair: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a width, before and after, is several times another."""
    times, rest = divmod(pair[0], other[0])
    return times > 1 and not rest and pair[1] == times * other[1]


def _candidates(value: int, sizes: dict[int, set[int]]) -> list[int]:
    """What a field may become, the likeliest first: what sizes equal to it, or multiples of it, have become."""
    found = [new for new in sorted(sizes.get(value, ())) if new != value]
    for old, news in sizes.items():
        times, rest = divmod(old, value)
        if times > 1 and not rest:
            found += [new // times for new in sorted(news) if new != old and new % times == 0]
    return [*dict.fromkeys(found), value]


def _whole_numbers(config: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """The numbers above 1 in a config, at any depth, and where they are."""
    if isinstance(config, dict):
        items: Any = config.items()
    elif isinstance(config, (list, tuple)):
        items = enumerate(config)
    else:
        if isinstance(config, int) and not isinstance(config, bool) and config > 1:
            yield path, config
        return
    for key, value in items:
        if isinstance(value, keras.Layer):
            continue
        if key != "build_config":
            yield from _whole_numbers(value, (*path, key))


def _with(config: dict[str, Any], fields: dict[Path, int]) -> dict[str, Any]:
    """A copy of a config with some of its numbers changed."""
    made = _copied(config)
    for path, value in fields.items():
        made = _set(made, path, value)
    return made


def _copied(config: Any) -> Any:
    """A copy of the containers; what some configs hold beside numbers and texts cannot be copied."""
    if isinstance(config, dict):
        return {key: _copied(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_copied(value) for value in config]
    return config


def _set(config: Any, path: Path, value: int) -> Any:
    if not path:
        return value
    key, *rest = path
    if isinstance(config, tuple):
        return tuple(_set(item, tuple(rest), value) if place == key else item for place, item in enumerate(config))
    config[key] = _set(config[key], tuple(rest), value)
    return config


def _makes(
    record: Record,
    config: dict[str, Any],
    wanted: list[Shape],
    entering: list[list[Shape]],
    kept: Kept,
    make: Callable[[Any, dict[str, Any]], Any],
) -> bool:
    """Whether the layer of a config has the right weights, and does inside what the labels foretell."""
    left = Counter(wanted)

    def check(shape: tuple[int, ...]) -> None:
        left[shape] -= 1
        if left[shape] < 0:
            raise ValueError(f"no weight of shape {shape} is wanted")

    try:
        # Most configs are wrong, and it shows long before the layer has run.
        with global_policy(policy_within(record.operation)), _weights_watched(check):
            layer = make(type(record.operation), config)
            for call, shapes in zip(record.calls, entering, strict=True):
                _call_on_zeros(layer, call, shapes)
        for call, shapes in zip(record.calls, entering, strict=True):
            if [tuple(weight.shape) for weight in layer.weights] != wanted:
                return False
            if not goes_alike(layer, call, shapes, kept):
                return False
        with losses_kept(record.operation):
            return computes_the_same(record, layer, entering, kept)
    except Exception:  # whatever the code of others raises on numbers that do not go together
        return False


@contextlib.contextmanager
def _weights_watched(made: Callable[[tuple[int, ...]], None]) -> Iterator[None]:
    """Calls a function with the shape of every weight that a layer adds meanwhile; it may raise."""
    original = keras.Layer.add_weight

    def add_weight(self: Any, *args: Any, **kwargs: Any) -> Any:
        variable = original(self, *args, **kwargs)
        made(tuple(variable.shape))
        return variable

    keras.Layer.add_weight = add_weight
    try:
        yield
    finally:
        keras.Layer.add_weight = original
