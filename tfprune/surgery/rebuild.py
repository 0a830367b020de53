"""Surgery: a network rebuilt with fewer channels.

The layers are made anew from copies of their configs with the fields that the channel graph names changed,
called in the order of the graph, and given their weights sliced. What comes out is a plain Keras model.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import secrets
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Record, Shape
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.keras_internals import layers_within, maker, time_mask
from tfprune.graph.ledger import Kept
from tfprune.graph.own_layers.layer_configs import config_of, from_config, global_policy, policy_within, telling
from tfprune.graph.own_layers.made_again import changed_config
from tfprune.graph.own_layers.unfolding import counted_along, known_shapes, needs_unfolding, passes, reshape_sizes
from tfprune.graph.rules.dispatch import has_other_weights, other_weights_in_words
from tfprune.graph.walk import free_name, pack_inputs, pack_outputs
from tfprune.support.checks import first_line, in_one_line
from tfprune.surgery.after_the_cut.compensation import Held
from tfprune.surgery.configs import lambda_again, own_objects, seeded, without_arrays, without_shapes
from tfprune.surgery.layers import plain_weights

Edit = Callable[[Record, dict], tuple[type, dict]]


def rebuild(
    graph: ChannelGraph, kept: Kept, weights: str = "inherit", seed: int | None = None, edit: Edit | None = None
) -> keras.Model:
    """Builds the network that is left of a model; arguments as of `Built`.

    Returns:
        A functional model; nested models have become part of it.
    """
    return Built(graph, kept, weights, seed, edit).model


class Built:
    """The network that is left of a model, and what it was made of.

    Args:
        graph: The channel graph of the model.
        kept: (labels,) bool: the labels that stay.
        weights: `"inherit"` slices the model's weights, `"fresh"` leaves what the initializers made, but of layers that
            are frozen or that `adapt` has taught.
        seed: Makes `"fresh"` weights reproducible: every initializer (and dropout) gets a seed of its own
            that follows from this one and the layer's name. None: random anew at every call.
        edit: Optional `edit(record, config)`, returns the class and config to make a layer of.
        loadable: Whether layers that could not be loaded from a file become those inside of them, if that is possible.
        held: What removed channels are replaced by in the biases of what reads them; with inherited weights.
        policy: The dtype of layers that are told none, as many that layers of one's own make. None: what they have in
            the model.

    Attributes:
        model: The network.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        kept: Kept,
        weights: str = "inherit",
        seed: int | None = None,
        edit: Edit | None = None,
        loadable: bool = True,
        held: Held | None = None,
        policy: str | None = None,
    ):
        self._kept, self._edit, self._loadable, self._held, self._policy = kept, edit, loadable, held, policy
        if held is not None:
            self._edit = held.edit
        self._seed = secrets.randbits(31) if weights == "fresh" and seed is None else seed
        self._taken = {record.name for record in graph.records.values() if record.whole is None}
        self._taken |= {maker(tensor).name for tensor in (*graph.model.inputs, *graph.model.outputs)}
        self._made: dict[str, Any] = {}  # operation -> the one that takes its place
        self._records: dict[str, Record] = {}
        self._unfolds = any(map(self._becomes_others, graph.records.values()))
        model = graph.model
        inputs = [keras.layers.InputLayer.from_config(maker(tensor).get_config()).output for tensor in model.inputs]
        outputs = _named(graph.replay(inputs, self._run), model, self._made)
        self.model = keras.Model(pack_inputs(model, inputs), pack_outputs(model, outputs), name=model.name)
        if held is not None:
            self.hand_on({})
        for name, operation in self._made.items():
            if held is None:
                _hand_on_weights(self._records[name], operation, kept, weights == "inherit")
            _hand_on_state(self._records[name], operation)

    def hand_on(self, values: Mapping[int, np.ndarray]) -> None:
        """Gives the network what is left of other values than the model's weights.

        Args:
            values: Identity of a variable of the model -> the value in its place.
        """
        added = {} if self._held is None else self._held.added(values)
        values = values if self._held is None else self._held.values(values)
        for name, operation in self._made.items():
            record = self._records[name]
            record.values = values
            _hand_on_weights(record, operation, self._kept, inherit=True, added=added.get(name))
            record.values = {}

    def copies(self) -> dict[int, Any]:
        """Identity of a variable of the model -> the one that has taken its place in the network."""
        found: dict[int, Any] = {}
        for name, made in self._made.items():
            if own := self._records[name].weights:
                # An activation with weights gets its own, which come last, when the layer is first called on data.
                found.update(zip(map(id, own), plain_weights(made), strict=False))
        return found

    def _becomes_others(self, record: Record) -> bool:
        return needs_unfolding(record, self._kept, self._loadable)

    def _run(self, call: Call, values: list[Any]) -> Any:
        """What takes the place of one call."""
        if call.removed:
            return [None] * len(call.node.outputs)
        if call.passes is not None:
            return values[call.passes]
        if self._becomes_others(call.record):
            return self._unfolded(call, values)
        return self._called(call, *call.node.filled(values))

    def _called(self, call: Call, args: tuple, kwargs: dict[str, Any], shapes: Sequence[Shape] = ()) -> Any:
        record, edit = call.record, self._edit
        if shapes and type(record.operation) is keras.layers.EinsumDense and len(record.calls) == 1:
            edit = _with_sizes(edit, shapes[0])
        if self._unfolds and (factor := _scale(call)) is not None:
            (value,) = (one for one in args if isinstance(one, keras.KerasTensor))
            return keras.layers.Rescaling(factor, dtype=value.dtype, name=self._name(record.name))(value)
        if call.arguments is not None:
            args, kwargs = call.arguments(self._kept, args, kwargs)
        with _drawing(self._seed, record), global_policy(self._policy or policy_within(record.operation)):
            if record.name not in self._made:
                made = _remake(record, self._kept, self._seed, edit, self._name(record.name))
                self._made[record.name], self._records[record.name] = made, record
            kind = type(record.operation).__name__
            with in_one_line(f"{record.name} ({kind}) cannot be made again: a call of what its config makes raises"):
                return self._made[record.name](*args, **kwargs)

    def _name(self, name: str) -> str:
        """A name that Keras takes, and that nothing else in the network has; names of inner layers have slashes."""
        plain = name if "/" not in name else free_name(name.replace("/", "_"), self._taken)
        self._taken.add(plain)
        return plain

    def _unfolded(self, call: Call, values: list[Any]) -> list[Any]:
        """The layers inside of a layer in its place."""
        inside = call.inside
        if inside is None:
            raise ValueError(f"{call.record.name} was not looked into.")
        sizes, known = reshape_sizes(call, self._kept), dict(zip(inside.inputs, values, strict=True))
        known |= {number: self._counted(call, number, values) for number in inside.counts}
        for number, (step, (inner, _)) in enumerate(zip(inside.steps, call.steps, strict=True)):
            given = [known[place] for place in step.inputs]
            if inner is None:
                raise ValueError(f"{call.record.name} cannot be unfolded.")
            if passes(call, number):
                outputs = given
            elif number in sizes:
                outputs = self._reshaped(inner, given[0], *sizes[number])
            elif self._becomes_others(inner.record):
                outputs = self._unfolded(inner, given)
            else:
                args, kwargs = step.arguments.filled(given)
                shapes = known_shapes(call, number, self._kept)
                outputs = self._called(inner, args, _telling(step.operation, kwargs), shapes)
                outputs = self._sized(inner, tree.flatten(outputs), shapes)
            known.update(zip(step.outputs, tree.flatten(outputs), strict=True))
        return [known[place] for place in inside.outputs]

    def _counted(self, call: Call, number: int, values: list[Any]) -> Any:
        """The numbers from 0 up to the length of an axis, whatever that is."""
        along = counted_along(call, number)
        if call.inside is None or along is None:
            raise ValueError(f"{call.record.name} cannot be unfolded.")
        (place, axis), dtype = along, keras.backend.standardize_dtype(call.inside.counts[number].dtype)
        value = values[place]
        line = value[tuple(slice(None) if own == axis else 0 for own in range(len(value.shape)))]
        ones = keras.ops.ones_like(line, dtype=dtype)
        summed = keras.ops.cumsum(ones, axis=0)
        counted = keras.ops.subtract(summed, 1)
        for tensor in (line, ones, summed, counted):
            maker(tensor).name = self._name(f"{call.record.name}/count")
        return counted

    def _sized(self, inner: Call, values: list[Any], shapes: list[Shape]) -> list[Any]:
        """What a layer gives, with the sizes that are known: the layer around it told them, and not every one does."""
        sized = []
        for value, shape in zip(values, shapes, strict=True):
            # What need not be spread over the batch may have fewer axes.
            pairs = zip(value.shape[1:], shape[1:], strict=True) if len(value.shape) == len(shape) else ()
            lost = any(one is None and two is not None for one, two in pairs)
            # A mask of padded steps would be lost; and of several open sizes none follows from the others.
            if lost and time_mask(value) is None and shape[1:].count(None) <= 1:
                sizes = tuple(-1 if size is None else size for size in shape[1:])
                value = keras.layers.Reshape(sizes, name=self._name(f"{inner.record.name}/sizes"))(value)
            sized.append(value)
        return sized

    def _reshaped(self, inner: Call, value: Any, sizes: Shape, keeps_batch: bool) -> Any:
        name = self._name(inner.record.name)
        if keeps_batch:
            return keras.layers.Reshape(sizes, dtype=_float_of(value), name=name)(value)
        made = keras.ops.reshape(value, sizes)
        maker(made).name = name
        return made


def _with_sizes(edit: Edit | None, shape: Shape) -> Edit:
    """An edit that tells an EinsumDense also the sizes that are known of what it gives."""

    def edited(record: Record, config: dict) -> tuple[type, dict]:
        kind, config = (type(record.operation), config) if edit is None else edit(record, config)
        given = config["output_shape"]
        if "..." not in config["equation"] and len(given) == len(shape) - 1:
            pairs = zip(given, shape[1:], strict=True)
            config = {**config, "output_shape": tuple(size if own is None else own for own, size in pairs)}
        return kind, config

    return edited


def _float_of(value: Any) -> str | None:
    """The dtype of a layer that passes a tensor on as it is: whatever the global policy, it casts nothing."""
    return value.dtype if keras.backend.is_float_dtype(value.dtype) else None


def _scale(call: Call) -> float | None:
    """The number that a call multiplies a tensor with, if that is what it does.

    What `keras.ops.multiply` makes of a number passes for sparse, which many layers do not take.
    """
    arguments = call.node.arguments
    if type(call.operation).__name__ != "Multiply" or len(arguments.tensors) != 1 or arguments.kwargs:
        return None
    (factor,) = (value for value in arguments.args if not isinstance(value, keras.KerasTensor))
    is_float = keras.backend.is_float_dtype(arguments.tensors[0].dtype)
    return float(factor) if is_float and np.ndim(factor) == 0 else None


def _telling(operation: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name without those that are what they are by default, which some classes of layers do not take.

    And without the `training` of the tracing: the network's own is handed on by Keras.
    """
    parameters = inspect.signature(operation.call).parameters
    return {
        name: value
        for name, value in kwargs.items()
        if name != "training" and not (name in parameters and parameters[name].default is value)
    }


@contextlib.contextmanager
def _drawing(seed: int | None, record: Record) -> Iterator[None]:
    """Makes the new weights of a layer with layers inside follow from a seed, which its config does not tell them."""
    if seed is None or not record.looked_into:
        yield
        return
    before = random.getstate()  # Keras draws the seeds of initializers that have none from Python's generator
    random.seed(zlib.crc32(f"{seed}:{record.name}".encode()))
    try:
        yield
    finally:
        random.setstate(before)


def _hand_on_weights(record: Record, made: Any, kept: Kept, inherit: bool, added: np.ndarray | None = None) -> None:
    """Gives the new layer what is left of the old one's weights; of fresh ones only what training would not make.

    `added`: The bias of a layer that had none.
    """
    # Normalization, with statistics of the data; what other layers learn of data is no weight.
    of_data = hasattr(record.operation, "finalize_state") and bool(record.weights)
    frozen = set() if inherit or of_data else _frozen(record.operation)
    if not (inherit or of_data or frozen):
        return
    activation = getattr(made, "activation", None)
    if isinstance(activation, keras.layers.Layer) and not activation.built:
        activation.build(record.calls[0].output_shape)  # its channels are frozen, so that it is as wide as it was
    own = plain_weights(made) if record.weights else []
    if added is not None:
        own = [weight for weight in own if weight is not made.bias]
        made.bias.assign(added.reshape(made.bias.shape))
    for index, weight in zip(range(len(record.weights)), own, strict=True):
        if frozen and id(record.weights[index]) not in frozen:
            continue
        value = record.left(index, kept)
        if value.shape != tuple(weight.shape):
            if has_other_weights(record.operation):
                raise PlanError(f"{record.name} cannot be made again: it {other_weights_in_words(record.operation)}.")
            raise PlanError(
                f"{record.name} ({type(record.operation).__name__}) cannot be made again with other widths: of its "
                f"config comes {weight.name} of shape {tuple(weight.shape)}, where {value.shape} is left."
            )
        weight.assign(value)
    if of_data:
        made.finalize_state()  # it computes with copies of its weights


def _frozen(operation: Any) -> set[int]:
    """Identities of the weights of layers that are not trained, which would stay as an initializer has drawn them."""
    layers = layers_within(operation) if isinstance(operation, keras.Layer) else []
    return {id(weight) for layer in layers if not layer.trainable for weight in layer.weights}


def _hand_on_state(record: Record, made: Any) -> None:
    """Gives the new layer what was done to the old one: what `adapt` has taught it, and which parts are not trained."""
    operation = record.operation
    if record.looked_into:
        old, new = layers_within(operation), layers_within(made)
        for one, other in zip(old, new, strict=False):
            if len(old) == len(new) and not one.trainable:
                other.trainable = False
    if hasattr(operation, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            operation.save_assets(folder)
            if os.listdir(folder):
                made.load_assets(folder)
    if isinstance(operation, keras.layers.Discretization):
        made.bin_boundaries = operation.bin_boundaries


def _named(outputs: list, model: keras.Model, made: dict[str, Any]) -> list:
    """Gives outputs of nested models, which have become part of the network, the names by which losses know them."""
    names = [maker(tensor).name for tensor in model.outputs]
    return [
        keras.layers.Identity(dtype=_float_of(output), name=name)(output)
        if name not in made and names.count(name) == 1 and maker(output).name != name
        else output
        for output, name in zip(outputs, names, strict=True)
    ]


def _remake(record: Record, kept: Kept, seed: int | None, edit: Edit | None, name: str) -> Any:
    operation, kind = record.operation, type(record.operation)
    try:
        config = config_of(operation)
    except NotImplementedError as error:
        if type(operation).get_config is keras.Layer.get_config and kind.__module__.startswith("keras."):
            # Keras' own layer with no arguments but those of every layer, one of which has no config: a dtype policy.
            return kind(name=name, dtype=operation.dtype_policy.name)
        if record.weights or isinstance(operation, keras.layers.Layer):
            raise PlanError(
                f"{record.name} ({kind.__name__}) cannot be made again: it, or a part of it, has no get_config."
            ) from error
        return operation  # an operation with an array among its arguments; it has no state, so it serves again
    if record.looked_into:
        config = changed_config(record, kept)
    for key, (value, _) in record.settings.items():
        config[key] = value(kept)
    config = without_shapes(config)
    config["name"] = name
    if any(index in record.axes for index in range(len(record.weights))):
        config = without_arrays(config, record.name, fresh=seed is not None)
    config |= own_objects(record, config, kept)
    if seed is not None:
        config = seeded(config, seed, record.name)
    if edit is not None:
        kind, config = edit(record, config)
    # Keras refuses to make functions from configs, and here they are.
    if kind is keras.layers.Lambda:
        return lambda_again(operation, record.name)
    if isinstance(getattr(operation, "layer", None), keras.layers.Lambda):
        return kind(**{**config, "layer": lambda_again(operation.layer, operation.layer.name)})
    try:
        return telling(from_config(kind, config), config)
    except (TypeError, ValueError) as error:
        raise PlanError(
            f"{record.name} cannot be made again from the config of its {kind.__name__}: {first_line(error)}"
        ) from error


def clone(
    model: keras.Model,
    edit: Edit | None = None,
    weights: str = "inherit",
    seed: int | None = None,
    policy: str | None = None,
) -> keras.Model:
    """The same network with layers of its own, weights copied or fresh; `edit` and `policy` as of `Built`."""
    graph = ChannelGraph(model)
    return Built(graph, graph.keep_all(), weights, seed, edit, loadable=False, policy=policy).model
