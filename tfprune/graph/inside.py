"""What a layer does inside: its `call`, run on symbolic tensors, as a list of the operations that it makes.

The shapes are fixed ones, so that a `call` may ask for them; they serve to learn which operations follow each other,
and end up in no network. Variables of the layer's own, which it multiplies with or adds, stand as tensors too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import tree

from tfprune.errors import PlanError
from tfprune.graph import keras_internals
from tfprune.graph.keras_internals import Arguments
from tfprune.support.checks import error_line

BATCH = 2  # examples in a traced call: more than the one that would be broadcast
LENGTH = 8  # of axes whose size is unknown


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation inside of a layer.

    Attributes:
        operation: The Keras layer or operation that is called.
        arguments: Its arguments, with KerasTensors in the places of tensors.
        inputs: Numbers of the tensors among the arguments.
        outputs: Numbers of the tensors that it makes.
        output_shapes: Their shapes, batch axis included.
    """

    operation: Any
    arguments: Arguments
    inputs: Sequence[int]
    outputs: Sequence[int]
    output_shapes: Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
    """What happens inside of a layer when it is called.

    Attributes:
        steps: The operations, in order.
        inputs: Numbers of the tensors that enter.
        variables: Number of a tensor -> the variable of the layer's own that it stands for.
        constants: Number of a tensor -> its value, of constants that layers inside are called with.
        outputs: Numbers of the tensors that leave.
        output_shapes: Their shapes.
        adds_losses: Whether a layer in it adds losses of its own.
    """

    steps: Sequence[Step]
    inputs: Sequence[int]
    variables: dict[int, Any]
    constants: dict[int, Any]
    outputs: Sequence[int]
    output_shapes: Sequence[tuple[int, ...]]
    adds_losses: bool


def look_inside(
    layer: Any,
    arguments: Arguments,
    shapes: Sequence[tuple[int | None, ...]],
    is_known: Callable[[Any], bool],
    batch: int = BATCH,
    length: int = LENGTH,
    training: bool = False,
) -> Inside:
    """Runs the `call` of a layer on symbolic tensors; the layer stays as it is.

    Layers inside of it that are not known are run in the same way, so that only known ones are among the steps.

    Args:
        layer: The layer, built.
        arguments: Those of the call.
        shapes: Of the tensors among them; unknown sizes become `BATCH` and `LENGTH`.
        is_known: Whether there is a rule for a layer.
        batch: The size of the batch.
        length: The size of other axes of unknown size.
        training: Whether it is called as in training.

    Raises:
        PlanError: If the call cannot be traced; the message is the reason, without the layer's name.
    """
    entering = [
        keras.KerasTensor(fixed(shape, batch, length), tensor.dtype)
        for shape, tensor in zip(shapes, arguments.tensors, strict=True)
    ]
    args, kwargs = arguments.filled(entering)
    if "training" in inspect.signature(layer.call).parameters:
        kwargs["training"] = training
    try:
        outputs, variables, met, calls = _traced(layer, args, kwargs, entering, is_known, True, training)
    except Exception:  # whatever the code of others raises: some layers give what Keras cannot record, such as None
        try:
            outputs, variables, met, calls = _traced(layer, args, kwargs, entering, is_known, False, training)
        except PlanError:
            raise
        except Exception as error:  # and on tensors without values
            raise PlanError(f"cannot be looked into ({error_line(error)[:200]})") from error
    known = [*entering, *(tensor for tensor, _ in variables), *(tensor for tensor, _ in met.constants)]
    numbers = {id(tensor): number for number, tensor in enumerate(known)}
    steps = _steps(calls, numbers)
    first = len(entering)
    return Inside(
        steps,
        range(first),
        {first + place: variable for place, (_, variable) in enumerate(variables)},
        {first + len(variables) + place: value for place, (_, value) in enumerate(met.constants)},
        [numbers[id(tensor)] for tensor in outputs],
        [tuple(tensor.shape) for tensor in outputs],
        met.adds_losses,
    )


def _traced(
    layer: Any,
    args: tuple,
    kwargs: dict[str, Any],
    entering: list[Any],
    is_known: Callable[[Any], bool],
    whole: bool,
    training: bool,
) -> tuple[list[Any], list, keras_internals.Inlined, list]:
    """Runs the call; `whole`: layers inside that are not known and have no weights are recorded as they are.

    Returns:
        What it gives; own variables, each with the tensor in its place; what else was met; the calls that lead there.
    """
    inner = [own for own in keras_internals.layers_within(layer) if own is layer or not is_known(own)]
    inlined = keras_internals.calls_inlined(layer, is_known, whole, training)
    with _variables_as_tensors(inner) as variables, inlined as met:
        outputs = tree.flatten(layer.call(*args, **kwargs))
        if not all(isinstance(output, keras.KerasTensor) for output in outputs):
            raise PlanError("gives out something that does not depend on what enters")
        known = [*entering, *(tensor for tensor, _ in variables), *(tensor for tensor, _ in met.constants)]
        return outputs, variables, met, keras_internals.calls_behind(outputs, known)


def _steps(calls: Sequence[tuple[Any, Arguments, Sequence[Any]]], numbers: dict[int, int]) -> list[Step]:
    """Calls as steps; `numbers` has the number of each symbolic tensor by its identity, and gets those of new ones."""
    steps = []
    for operation, given, made in calls:
        inputs = [numbers[id(tensor)] for tensor in given.tensors]
        first = len(numbers)
        numbers.update((id(tensor), first + place) for place, tensor in enumerate(made))
        shapes = [tuple(tensor.shape) for tensor in made]
        steps.append(Step(operation, given, inputs, range(first, first + len(made)), shapes))
    return steps


def fixed(shape: Sequence[int | None], batch: int = BATCH, length: int = LENGTH) -> tuple[int, ...]:
    """A shape without unknown sizes."""
    return tuple(size or (length if axis else batch) for axis, size in enumerate(shape))


@contextlib.contextmanager
def _variables_as_tensors(layers: Sequence[Any]) -> Iterator[list[tuple[Any, Any]]]:
    """Puts symbolic tensors in the places of the variables that layers have as attributes, or in lists.

    Gives both, in pairs. At the end all is as it was, also what `call` has set or appended.
    """
    before = [(layer, dict(vars(layer))) for layer in layers]
    attributes = [
        value for _, values in before for name, value in values.items() if not keras_internals.of_every_layer(name)
    ]
    held = [(own, dict(own) if isinstance(own, dict) else dict(enumerate(own))) for own in _containers(attributes)]
    found = [*attributes, *(value for _, content in held for value in content.values())]
    variables = {id(value): value for value in found if isinstance(value, keras.Variable)}
    tensors = {key: keras.KerasTensor(value.shape, value.dtype) for key, value in variables.items()}

    def replaced(values: dict) -> dict:
        return {name: tensors.get(id(value), value) for name, value in values.items()}

    try:
        for layer, values in before:  # past Keras, which would track what is set
            vars(layer).update(replaced(values))
        for container, content in held:
            _fill(container, replaced(content))
        yield [(tensors[key], value) for key, value in variables.items()]
    finally:
        for layer, values in before:
            vars(layer).clear()
            vars(layer).update(values)
        for container, content in held:
            _fill(container, content)


def _containers(values: Sequence[Any]) -> Iterator[list | dict]:
    """The lists and dictionaries among values, at any depth."""
    waiting, seen = list(values), set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, dict)) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += value.values() if isinstance(value, dict) else value


def _fill(container: list | dict, content: dict) -> None:
    """Puts values in the place of those of a list (content: place -> value) or a dictionary, past what Keras tracks."""
    if isinstance(container, dict):
        dict.clear(container)
        dict.update(container, content)
    else:
        list.clear(container)
        list.extend(container, content.values())
