"""What a layer does inside: its `call`, run on symbolic tensors, as a list of the operations that it makes.

The shapes are fixed ones, so that a `call` may ask for them; they serve to learn which operations follow each other,
and end up in no network. Variables of the layer's own, which it multiplies with or adds, stand as tensors too.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence, Set
from typing import Any

import keras
from keras import tree

from tfprune.errors import PlanError
from tfprune.graph import keras_internals
from tfprune.graph.arguments import Arguments
from tfprune.graph.calls_inside import Apart, AsBase, Run
from tfprune.graph.stand_ins import values_kept, variables_as_tensors
from tfprune.support.checks import error_line

BATCH = 2  # examples in a traced call: more than the one that would be broadcast
LENGTH = 8  # of axes whose size is unknown
OTHER_BATCH, OTHER_LENGTH = 5, 13  # others, to see what depends on them


@dataclasses.dataclass(frozen=True)
class Way:
    """A way in which a call is traced. It may do what symbolic tensors do not allow in one, and not in another.

    Attributes:
        apart: Layers inside that are not known are steps.
        of_known: The weights of those that are known are tensors, too, as those of a tied embedding.
        counted: Which calls of `arange`, by their number, count up to the length of an open axis; None: those up to a
            size that one has. A channel axis may have the same size by chance.
        opaque: Layers inside that cannot be looked into are steps, too.
    """

    apart: bool = True
    of_known: bool = False
    counted: frozenset[int] | None = frozenset()
    opaque: bool = False


_PLAIN = Way(apart=False)
WAYS = (Way(of_known=True, counted=None), Way(counted=None), Way(), _PLAIN, Way(opaque=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation inside of a layer.

    Attributes:
        operation: The Keras layer or operation that is called.
        arguments: Its arguments, with KerasTensors in the places of tensors.
        inputs: Numbers of the tensors among the arguments.
        outputs: Numbers of the tensors that it makes.
        output_shapes: Their shapes, batch axis included.
        inside: Of a layer that is not known, what it does inside.
    """

    operation: Any
    arguments: Arguments
    inputs: Sequence[int]
    outputs: Sequence[int]
    output_shapes: Sequence[tuple[int, ...]]
    inside: Inside | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
    """What happens inside of a layer when it is called.

    Attributes:
        steps: The operations, in order.
        inputs: Numbers of the tensors that enter.
        input_shapes: Their shapes.
        variables: Number of a tensor -> the variable of the layer's own that it stands for.
        constants: Number of a tensor -> its value, of constants that layers inside are called with.
        counts: Number of a tensor -> its value, the numbers from 0 up to the length of an axis that is open.
        way: The way in which it was traced.
        outputs: Numbers of the tensors that leave.
        output_shapes: Their shapes.
        reads: Names of variables of which it reads the value, which is a constant among the steps.
        adds_losses: Whether it adds losses of its own, those of layers among the steps aside.
        counts_calls: Whether it changes variables of its own that it does not compute with, as one that counts calls.
    """

    steps: Sequence[Step]
    inputs: Sequence[int]
    input_shapes: Sequence[tuple[int, ...]]
    variables: dict[int, Any]
    constants: dict[int, Any]
    counts: dict[int, Any]
    way: Way
    outputs: Sequence[int]
    output_shapes: Sequence[tuple[int, ...]]
    reads: Sequence[str]
    adds_losses: bool
    counts_calls: bool

    @property
    def counted(self) -> frozenset[int]:
        """The calls of `arange`, by their number, that count up to the length of an open axis."""
        return self.way.counted or frozenset()


def look_inside(
    layer: Any,
    arguments: Arguments,
    shapes: Sequence[tuple[int | None, ...]],
    is_known: Callable[[Any], bool],
    batch: int = BATCH,
    length: int = LENGTH,
    training: bool = False,
    ways: Sequence[Way] = WAYS,
) -> Inside:
    """Runs the `call` of a layer on symbolic tensors; the layer stays as it is.

    Layers inside of it that are not known are run in the same way, and are steps that have an inside of their own;
    where the tensors of such a layer are used from elsewhere, its steps are among those of the layer around it.

    Args:
        layer: The layer, built.
        arguments: Those of the call.
        shapes: Of the tensors among them; unknown sizes become `BATCH` and `LENGTH`.
        is_known: Whether there is a rule for a layer.
        batch: The size of the batch.
        length: The size of other axes of unknown size.
        training: Whether it is called as in training.
        ways: The ways to try, one after the other; what was traced before is traced in the same way again.

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
    lengths = {
        size
        for tensor, own in zip(arguments.tensors, entering, strict=True)
        for known, size in zip(tensor.shape[1:], own.shape[1:], strict=True)
        if known is None
    }
    run = functools.partial(_traced, layer, args, kwargs, entering, is_known, training, lengths)
    failed: dict[Way, Exception] = {}
    for way in ways:
        try:
            return run(way)
        except Exception as error:  # whatever the code of others raises
            failed[way] = error
    reason = failed.get(_PLAIN, failed[ways[0]])
    if isinstance(reason, PlanError):
        raise reason
    raise PlanError(f"cannot be looked into ({error_line(reason)[:200]})") from reason


def _traced(
    layer: Any,
    args: tuple,
    kwargs: dict[str, Any],
    entering: list[Any],
    is_known: Callable[[Any], bool],
    training: bool,
    lengths: Set[int],
    way: Way,
) -> Inside:
    """Runs the call on `entering`; `lengths`: of open axes."""
    within = keras_internals.layers_within(layer)
    inner = [own for own in within if own is layer or not is_known(own)]
    others = [own for own in within if way.of_known and own not in inner]
    run = Run(layer, is_known, way.apart, training, lengths, way.counted, way.opaque)
    seeds = [one.state for one in keras_internals.seed_generators(layer)]
    with values_kept(seeds), variables_as_tensors(inner, others) as variables, run.recording():
        outputs = tree.flatten(layer.call(*args, **kwargs))
        if not all(isinstance(output, keras.KerasTensor) for output in outputs):
            raise PlanError("gives out something that does not depend on what enters")
        return _Recorder(variables, run, way, lengths).inside(
            layer, entering, outputs, frozenset(run.counted), run.reads
        )


class _Recorder:
    """Makes the steps of what was recorded.

    Args:
        variables: Variables of layers' own, each with the tensor in its place before it.
        met: The run.
        way: The way in which it was traced.
        lengths: Sizes of open axes.
    """

    def __init__(self, variables: Sequence[tuple[Any, Any]], met: Run, way: Way, lengths: Set[int]):
        self._variables, self._met, self._way, self._lengths = variables, met, way, lengths

    def inside(
        self,
        layer: Any,
        entering: Sequence[Any],
        outputs: Sequence[Any],
        counted: frozenset[int],
        reads: Sequence[str],
    ) -> Inside:
        """What leads from some symbolic tensors to others inside of a layer."""
        met, known, places = self._met, list(entering), []
        found = (self._variables, met.constants, met.counts)
        calls = keras_internals.calls_behind(outputs, [*known, *(tensor for pairs in found for tensor, _ in pairs)])
        used = {id(tensor) for tensor in outputs} | {id(tensor) for _, given, _ in calls for tensor in given.tensors}
        for pairs in found:  # what is not used has no number, so that the others' are the same where more stands ready
            needed = [(tensor, value) for tensor, value in pairs if id(tensor) in used]
            places.append({len(known) + place: value for place, (_, value) in enumerate(needed)})
            known += [tensor for tensor, _ in needed]
        numbers = {id(tensor): number for number, tensor in enumerate(known)}
        steps = [self._step(numbers, *call) for call in calls]
        given = [numbers[id(tensor)] for tensor in outputs]
        variables, constants, counts = places
        changed = {id(variable) for tensor, variable in self._variables if tensor.changed}
        if read := [variable.name for variable in variables.values() if id(variable) in changed]:
            raise PlanError(f"computes with {', '.join(read)}, which it changes with every call")
        adding = [layer] if self._way.apart else keras_internals.layers_within(layer)
        return Inside(
            steps,
            range(len(entering)),
            [tuple(tensor.shape) for tensor in entering],
            variables,
            constants,
            counts,
            dataclasses.replace(self._way, counted=counted),
            given,
            [tuple(tensor.shape) for tensor in outputs],
            reads,
            any(id(own) in met.adding for own in adding),
            not changed.isdisjoint(id(variable) for own in adding for variable in own.weights),
        )

    def _step(self, numbers: dict[int, int], operation: Any, given: Arguments, made: Sequence[Any]) -> Step:
        """One call; `numbers` has the number of each symbolic tensor by its identity, and gets those of new ones."""
        inputs, first = [numbers[id(tensor)] for tensor in given.tensors], 1 + max(numbers.values(), default=-1)
        numbers.update((id(tensor), first + place) for place, tensor in enumerate(made))
        outputs, shapes = range(first, first + len(made)), [tuple(tensor.shape) for tensor in made]
        if isinstance(operation, AsBase):
            operation = operation.layer
        if not isinstance(operation, Apart):
            return Step(operation, given, inputs, outputs, shapes)
        given_of = (operation.entering, operation.made, operation.counted, operation.reads)
        inside = self.inside(operation.layer, *given_of)
        return Step(operation.layer, self._opened(given), inputs, outputs, shapes, inside)

    def _opened(self, given: Arguments) -> Arguments:
        """Arguments whose open axes are told as such, so that the layer can be looked into by itself."""
        tensors = [
            keras.KerasTensor(
                [None if axis and size in self._lengths else size for axis, size in enumerate(one.shape)], one.dtype
            )
            for one in given.tensors
        ]
        return Arguments(*given.filled(tensors), tensors)


def fixed(shape: Sequence[int | None], batch: int = BATCH, length: int = LENGTH) -> tuple[int, ...]:
    """A shape without unknown sizes."""
    return tuple(size or (length if axis else batch) for axis, size in enumerate(shape))
