"""Surgery: a network rebuilt with fewer channels, and the proof that it computes the same.

The layers are made anew from copies of their configs with the fields that the channel graph names changed,
called in the order of the graph, and given their weights sliced. What comes out is a plain Keras model.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree

from tfprune.errors import NothingProvedError, PlanError, VerificationError
from tfprune.graph import ChannelGraph
from tfprune.labels import Kept, Record
from tfprune.walk import map_tensors, pack_inputs, replay

Edit = Callable[[Record, dict], tuple[type, dict]]


def rebuild(
    graph: ChannelGraph, kept: Kept, weights: str = "inherit", seed: int | None = None, edit: Edit | None = None
) -> keras.Model:
    """Builds the network that is left of a model.

    Args:
        graph: The channel graph of the model.
        kept: (labels,) bool: the labels that stay.
        weights: `"inherit"` slices the model's weights, `"fresh"` leaves what the initializers made.
        seed: Makes `"fresh"` weights reproducible: every initializer (and dropout) gets a seed of its own
            that follows from this one and the layer's name. None: random anew at every call.
        edit: Optional `edit(record, config)`, returns the class and config to make a layer of.

    Returns:
        A functional model; nested models have become part of it.
    """
    if weights == "fresh" and seed is None:
        seed = secrets.randbits(31)
    made: dict[str, Any] = {}

    calls = iter(graph.calls)

    def call(node, args, kwargs):
        entry = next(calls)
        record = entry.record
        if record.name not in made:
            made[record.name] = _remake(record, kept, seed, edit)
        if entry.arguments is not None:
            args, kwargs = entry.arguments(kept, args, kwargs)
        return made[record.name](*args, **kwargs)

    model = graph.model
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history.operation.name)
        for tensor in model.inputs
    ]
    outputs = replay(model, inputs, call)
    small = keras.Model(
        pack_inputs(model, inputs),
        tree.pack_sequence_as(model._outputs_struct, outputs),
        name=model.name,
    )
    for record in graph.records.values():
        state = hasattr(record.operation, "finalize_state")  # Normalization, whose statistics are of the data
        if weights == "inherit" or state:
            for index, (new, old) in enumerate(
                zip(getattr(made[record.name], "weights", ()), record.weights, strict=True)
            ):
                new.assign(keras.ops.convert_to_numpy(old)[np.ix_(*record.slices(index, kept))])
            if state:  # it computes with copies of its weights
                made[record.name].finalize_state()
    return small


def _remake(record: Record, kept: Kept, seed: int | None, edit: Edit | None) -> Any:
    kind, config = type(record.operation), record.operation.get_config()
    for key, (value, _) in record.settings.items():
        config[key] = value(kept)
    config = _without_shapes(config)
    config["name"] = record.name
    if any(index in record.axes for index in range(len(record.weights))):
        config = _without_arrays(config, record.name, fresh=seed is not None)
    if "activation" in config and hasattr(record.operation, "activation"):
        config["activation"] = record.operation.activation  # the function itself; its name may be nobody's
    if seed is not None:
        config = _seeded(config, seed, record.name)
    if edit is not None:
        kind, config = edit(record, config)
    if kind is keras.layers.Lambda:  # Keras refuses to make functions from configs, and here is the function
        layer = record.operation
        return kind(layer.function, layer._output_shape, layer.mask, layer.arguments, name=record.name)
    return kind.from_config(config)


def _without_shapes(config: Any) -> Any:
    """Drops the shapes with which Keras would build the layers inside of wrappers; they are the old ones."""
    if not isinstance(config, dict):
        return config
    return {key: _without_shapes(value) for key, value in config.items() if key != "build_config"}


def _without_arrays(config: dict, name: str, fresh: bool) -> dict:
    """Replaces initializers that are whole arrays, which have the old shape; inherited weights need none."""

    def is_array(value: Any) -> bool:
        return isinstance(value, dict) and isinstance((value.get("config") or {}).get("value"), (dict, list))

    arrays = [key for key, value in config.items() if key.endswith("initializer") and is_array(value)]
    if arrays and fresh:
        raise PlanError(f"{name} starts from an array ({arrays[0]}), so there are no fresh weights of another shape.")
    return {key: "zeros" if key in arrays else value for key, value in config.items()}


def _seeded(config: Any, seed: int, path: str) -> Any:
    """Gives every `seed` field in a config a value that follows from the seed and the field's path."""
    if not isinstance(config, dict):
        return config
    seeded = {key: _seeded(value, seed, f"{path}/{key}") for key, value in config.items()}
    if "seed" in seeded:
        seeded["seed"] = zlib.crc32(f"{seed}:{path}".encode())
    return seeded


def clone(
    model: keras.Model, edit: Edit | None = None, weights: str = "inherit", seed: int | None = None
) -> keras.Model:
    """The same network with layers of its own, weights copied or fresh; `edit` as for `rebuild`."""
    graph = ChannelGraph(model)
    return rebuild(graph, graph.keep_all(), weights, seed, edit)


def masked_outputs(graph: ChannelGraph, kept: Kept, inputs: list) -> list:
    """What the whole network computes with the removed channels zero wherever channels are mixed.

    Args:
        graph: The channel graph of the model.
        kept: (labels,) bool.
        inputs: One array per model input.

    Returns:
        The outputs, flat.
    """
    calls = iter(graph.calls)

    def call(node, args, kwargs):
        entry = next(calls)

        def mask(index, value):
            labels = entry.mixed.get(index)
            if labels is None or kept[labels].all():
                return value
            # Selection, not a product with zero: what an overflowing channel holds must not come through.
            return keras.ops.where(kept[labels], value, keras.ops.zeros_like(value))

        args, kwargs = map_tensors(node, args, kwargs, mask)
        return _masked_operation(entry.record, kept, args, kwargs)(*args, **kwargs)

    return replay(graph.model, [keras.ops.convert_to_tensor(value) for value in inputs], call)


def _masked_operation(record: Record, kept: Kept, args: tuple, kwargs: dict) -> Any:
    """The operation itself; where it mixes channels of its own, a copy with the weights of removed ones zero."""
    removed = {
        index: (axis, np.flatnonzero(~kept[record.axes[index][axis]])) for index, axis in record.inner_mixed.items()
    }
    if not any(len(channels) for _, channels in removed.values()):
        return record.operation
    twin = type(record.operation).from_config(record.operation.get_config())
    twin(*args, **kwargs)  # builds it
    for index, (new, old) in enumerate(zip(twin.weights, record.weights, strict=True)):
        value = np.array(keras.ops.convert_to_numpy(old))
        if index in removed:
            axis, channels = removed[index]
            value[(slice(None),) * axis + (channels,)] = 0
        new.assign(value)
    return twin


def random_inputs(model: keras.Model, examples: int, seed: int = 0) -> list[np.ndarray]:
    """Random inputs, one array per model input; axes of unknown size get 32.

    Numbers are standard normal; integers are from 1 on and below the vocabulary of every embedding (0 may stand
    for padding, which a model may leave out altogether).
    """
    generator = np.random.default_rng(seed)
    sizes = [layer.input_dim for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    vocabulary = max(2, min(sizes, default=2))

    def draw(tensor):
        shape = (tensor.shape[0] or examples, *(size or 32 for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return generator.integers(1, vocabulary, shape).astype(tensor.dtype)
        if tensor.dtype == "bool":
            return generator.random(shape) < 0.5
        return generator.standard_normal(shape).astype(tensor.dtype)

    return [draw(tensor) for tensor in model.inputs]


def verify(model: keras.Model, plan: Any, examples: int = 4, seed: int = 0, tolerance: float = 1e-5) -> float:
    """Proves a plan: the masked original and the smaller network compute the same.

    The masked original has the removed channels zero at the input of every layer that mixes channels. The
    smaller network is built by `plan.apply(model)`, with the weights that the model has now.

    Args:
        model: The network that the plan is for.
        plan: A `ChannelPlan`.
        examples: Number of random inputs.
        seed: Of the random inputs.
        tolerance: The largest difference that counts as the same, relative to the largest output.

    Returns:
        max |masked - smaller| / max |masked|.

    Raises:
        VerificationError: If the difference is above the tolerance, or not a number.
        NothingProvedError: If the outputs depend neither on the inputs nor on what is removed (a saturated
            activation), so that they would be the same after any surgery.
        PlanError: If the plan is not for this model.
    """
    graph = ChannelGraph(model)
    inputs = random_inputs(graph.model, examples, seed)
    masked = masked_outputs(graph, plan.kept(graph), inputs)
    _check_informative(tree.flatten(model(pack_inputs(model, inputs), training=False)), masked)
    small = plan.apply(model)
    removed = tree.flatten(small(pack_inputs(model, inputs), training=False))
    return compare_outputs(masked, removed, tolerance, "the masked and the smaller network", VerificationError)


def _check_informative(whole: list, masked: list) -> None:
    """Raises a NothingProvedError if outputs tell neither examples nor the masked network from the whole one."""
    for one, other in zip(whole, masked, strict=True):
        one, other = (keras.ops.convert_to_numpy(output).astype(np.float64) for output in (one, other))
        noise = 1e-6 * np.abs(one).max(initial=0.0)
        if not (np.ptp(one, axis=0).max(initial=0.0) <= noise and np.abs(one - other).max(initial=0.0) <= noise):
            return
    raise NothingProvedError(
        "The outputs are the same for all random inputs, with and without the removed channels, so comparing them "
        "proves nothing. Is the last activation saturated? Verify the model without it."
    )


def compare_outputs(expected: list, received: list, tolerance: float, what: str, error: type[Exception]) -> float:
    """Returns max |expected - received| / max |expected| over outputs; raises `error` above the tolerance."""
    worst = 0.0
    for one, other in zip(expected, received, strict=True):
        one, other = (keras.ops.convert_to_numpy(value).astype(np.float64) for value in (one, other))
        difference = np.abs(one - other).max(initial=0.0)
        scale = np.abs(one).max(initial=0.0)
        worst = max(worst, difference / scale if difference else 0.0)
        if not np.isfinite(difference) or worst > tolerance:
            raise error(
                f"{what} differ by {difference:.3g} where the largest output is {scale:.3g}: "
                f"a relative error of {worst:.3g}, above the tolerance of {tolerance:.3g}."
            )
    return float(worst)
