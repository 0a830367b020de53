"""Walking the graph of a Keras model: its calls in order, nested models unfolded, and how they hang together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from tfprune.errors import PlanError
from tfprune.graph import keras_internals
from tfprune.graph.arguments import Arguments
from tfprune.graph.inside import Step
from tfprune.graph.keras_internals import maker
from tfprune.graph.over_time import taken_apart
from tfprune.graph.traced_models import calls_as_keras, operands, traced


def functional(model: Any) -> keras.Model:
    """Returns the functional model behind a model: of a subclassed one what its `call` does, on the same layers.

    Raises:
        PlanError: If `model` is no Keras model, has not been built, or has a `call` that cannot be traced.
    """
    if not isinstance(model, keras.Model):
        raise PlanError(f"Expected a Keras 3 model, received {type(model).__module__}.{type(model).__name__}.")
    if not calls_as_keras(model):
        return traced(model)
    if isinstance(model, keras.Sequential):
        inner = keras_internals.functional_of_sequential(model)
        if not model.built or inner is None:
            raise PlanError(
                f"The Sequential model {model.name!r} has no input shape yet. Call model.build(input_shape) first."
            )
        return inner
    return model


def flat_inputs(model: keras.Model, inputs: Any) -> list:
    """The tensors at a model's inputs, in their order and of their dtypes, from whatever the model takes.

    Raises:
        ValueError: If the model does not take them.
    """
    return keras_internals.standardized_inputs(functional(model), inputs)


def pack_inputs(model: keras.Model, values: Sequence[Any]) -> Any:
    """Arranges a flat list of values in the structure in which a model takes its inputs."""
    return tree.pack_sequence_as(keras_internals.input_structure(functional(model)), values)


def pack_outputs(model: keras.Model, values: Sequence[Any]) -> Any:
    """Arranges a flat list of values in the structure of a model's outputs."""
    return tree.pack_sequence_as(keras_internals.output_structure(functional(model)), values)


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of an operation, as Keras recorded it.

    Attributes:
        number: Its place in the order in which the calls are run.
        operation: The Keras layer or operation that is called.
        arguments: Its arguments, with KerasTensors in the places of tensors.
        inputs: Numbers of the tensors among the arguments; one that occurs twice is there twice.
        outputs: Numbers of the tensors that it makes.
        output_shapes: Their shapes, batch axis included.
        training: What a nested model around the call was given as `training`; None where that is nothing, or where
            the operation does not ask.
    """

    number: int
    operation: Any
    arguments: Arguments
    inputs: Sequence[int]
    outputs: Sequence[int]
    output_shapes: Sequence[tuple[int | None, ...]]
    training: bool | None

    def of_step(self, step: Step) -> Node:
        """The call of an operation inside of this one."""
        given = (step.operation, step.arguments, step.inputs, step.outputs, step.output_shapes)
        return Node(-1, *given, None)

    def filled(self, values: Sequence[Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments to call the operation with, given the values in the places of tensors."""
        args, kwargs = self.arguments.filled(values)
        if self.training is not None:
            kwargs["training"] = self.training
        return args, kwargs


def _check_operands(model: keras.Model) -> None:
    """Raises a PlanError where an operation computes with a weight of a layer, which would be the large network's."""
    owned = set(map(id, model.weights))
    for operation, variable in operands(model):
        if id(variable) in owned:
            raise PlanError(
                f"{operation.name} computes with {variable.path}, the weight of a layer, which the smaller network "
                "would share with the large one. Use keras.layers.ReversibleEmbedding to tie embeddings, or a layer "
                "of your own that holds the weight."
            )


def free_name(wanted: str, taken: Container[str]) -> str:
    """The name that is wanted, or with a number behind it the first that is not taken."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


class Wiring:
    """The calls of a model and the tensors between them, each of which has a number.

    Nested functional and Sequential models are unfolded, so that there are calls of plain operations only.

    Args:
        model: A functional or Sequential model.

    Attributes:
        nodes: The calls, in an order in which they can be run.
        inputs: Numbers of the tensors at the model's inputs.
        outputs: Numbers of the tensors at the model's outputs.
        names: Identity of an operation -> its name, which nothing else has: two nested models may both have a "conv".
            What is no part of a nested model keeps its own, for by that losses, metrics and users know it.

    Raises:
        PlanError: If the model is of a kind whose graph cannot be known.
    """

    def __init__(self, model: keras.Model):
        model = functional(model)
        self.nodes: list[Node] = []
        self._tensor_count = 0
        self.inputs: Sequence[int] = self._new_tensors(len(model.inputs))
        self.outputs: Sequence[int] = self._unfold(model, self.inputs, None)
        self.names = self._named(model)

    def _new_tensors(self, count: int) -> Sequence[int]:
        self._tensor_count += count
        return range(self._tensor_count - count, self._tensor_count)

    def _unfold(self, model: keras.Model, inputs: Sequence[int], training: bool | None) -> list[int]:
        """Adds the calls of a model whose inputs are these tensors; returns the tensors at its outputs."""
        numbers = dict(zip(map(id, model.inputs), inputs, strict=True))
        _check_operands(model)
        for operation, arguments, outputs in keras_internals.recorded_calls(model):
            made: Sequence[int]
            apart = self._apart(operation, arguments)
            if apart is not None:
                made = self._unfold(apart, [numbers[id(tensor)] for tensor in arguments.tensors], training)
            elif isinstance(operation, keras.Model) and calls_as_keras(operation):
                given = arguments.args[0] if arguments.args else arguments.kwargs["inputs"]
                read = [numbers.get(id(tensor)) for tensor in tree.flatten(given)]
                entering = [number for number in read if number is not None]
                if len(entering) < len(read):
                    raise PlanError(f"The nested model {operation.name!r} is called with a constant; make it an input.")
                told = arguments.kwargs.get("training") if training is None else training
                made = self._unfold(functional(operation), entering, told)
            else:
                made = self._new_tensors(len(outputs))
                self.nodes.append(
                    Node(
                        len(self.nodes),
                        operation,
                        arguments,
                        [numbers[id(tensor)] for tensor in arguments.tensors],
                        made,
                        [tuple(tensor.shape) for tensor in outputs],
                        training if training is not None and keras_internals.takes_training(operation) else None,
                    )
                )
            numbers.update(zip(map(id, outputs), made, strict=True))
        return [numbers[id(tensor)] for tensor in model.outputs]

    def _apart(self, operation: Any, arguments: Arguments) -> keras.Model | None:
        """The layers of a network in a TimeDistributed, each in one of its own; None for all other operations."""
        over_time = isinstance(operation, keras.layers.TimeDistributed) and isinstance(operation.layer, keras.Model)
        if not over_time or len(arguments.tensors) != 1:
            return None
        return taken_apart(operation, Wiring, arguments.tensors[0])

    def _named(self, model: keras.Model) -> dict[int, str]:
        model, operations = functional(model), {id(node.operation): node.operation for node in self.nodes}
        called = [operation for operation, _, _ in keras_internals.recorded_calls(model) if id(operation) in operations]
        own = {operation.name: id(operation) for operation in [*map(maker, model.inputs), *called]}
        makers = {number: node.operation for node in self.nodes for number in node.outputs}
        for tensor, number in zip(model.outputs, self.outputs, strict=True):
            # The output of a nested model has its name, which only the layer that makes the output may have as well.
            own.setdefault(maker(tensor).name, id(makers.get(number)))
        names: dict[int, str] = {}
        taken = set(own)
        for key, operation in operations.items():
            keeps = own.get(operation.name) == key
            names[key] = operation.name if keeps else free_name(operation.name, taken)
            taken.add(names[key])
        return names

    def replay(self, inputs: Any, run: Callable[[Node, list[Any]], Any]) -> list[Any]:
        """Runs the graph once, with every operation's call replaced.

        Args:
            inputs: The values at the model's inputs, in any structure of the right number of leaves.
            run: `run(node, values)` returns the values at the call's outputs, in any structure; `values` are those
                in the places of the tensors among its arguments.

        Returns:
            The values at the model's outputs.
        """
        known: list[Any] = [None] * self._tensor_count
        for number, value in zip(self.inputs, tree.flatten(inputs), strict=True):
            known[number] = value
        for node in self.nodes:
            made = tree.flatten(run(node, [known[number] for number in node.inputs]))
            for number, value in zip(node.outputs, made, strict=True):
                known[number] = value
        return [known[number] for number in self.outputs]

    def needed(self, bypass: Mapping[str, int]) -> list[bool]:
        """Whether each call is needed for the outputs when merging operations pass on one operand only.

        Args:
            bypass: Name of a merging operation -> the operand that it passes on.
        """
        wanted, needed = set(self.outputs), [False] * len(self.nodes)
        for node in reversed(self.nodes):
            if wanted.isdisjoint(node.outputs):
                continue
            needed[node.number] = True
            alone = bypass.get(self.names[id(node.operation)])
            wanted.update(number for index, number in enumerate(node.inputs) if alone in (None, index))
        return needed

    def readers(self) -> Counter[int]:
        """Number of a tensor -> how often it is read; an output is read once more."""
        return Counter(number for node in self.nodes for number in node.inputs) + Counter(self.outputs)


def stream_normalizations(model: keras.Model) -> list[str]:
    """Names of the batch normalizations that read what others read too, or what several layers have made."""
    wiring = Wiring(model)
    readers = wiring.readers()
    merged = {number for node in wiring.nodes if len(node.inputs) > 1 for number in node.outputs}
    return [
        wiring.names[id(node.operation)]
        for node in wiring.nodes
        if isinstance(node.operation, keras.layers.BatchNormalization)
        and (readers[node.inputs[0]] > 1 or node.inputs[0] in merged)
    ]


def run_each(wiring: Wiring, inputs: Sequence[Any]) -> Iterator[tuple[Node, list[Any]]]:
    """Runs the calls of a model one after the other, as it is used and not trained; yields each with what it gives."""
    known = dict(zip(wiring.inputs, inputs, strict=True))
    for node in wiring.nodes:
        args, kwargs = node.filled([known[number] for number in node.inputs])
        outputs = tree.flatten(node.operation(*args, **kwargs))
        known.update(zip(node.outputs, outputs, strict=True))
        yield node, outputs
