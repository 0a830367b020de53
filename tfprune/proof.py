"""The proof: the masked original and the smaller network compute the same.

The masked original is the network itself with the removed channels zero wherever channels are mixed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from tfprune.errors import NothingProvedError, PlanError, VerificationError
from tfprune.graph import ChannelGraph
from tfprune.labels import Record
from tfprune.surgery import clone
from tfprune.walk import map_tensors, pack_inputs, replay

Watch = Callable[[np.ndarray, Any], Any]


def masked_outputs(graph: ChannelGraph, kept: Any, inputs: list, watch: Watch | None = None) -> list:
    """What the whole network computes with the removed channels zero wherever channels are mixed.

    Args:
        graph: The channel graph of the model.
        kept: (labels,) bool, an array or a tensor.
        inputs: One array per model input.
        watch: Optional `watch(labels, value)`, called with every tensor whose channels are mixed, masked, and
            its label array; returns the tensor to go on with.

    Returns:
        The outputs, flat.
    """
    calls = iter(graph.calls)

    def call(node, args, kwargs):
        entry = next(calls)
        inference = {"training": False} if "training" in getattr(node.operation, "_call_context_args", ()) else {}
        if entry is None:  # of a removed branch: computed all the same, and zeroed where it ends
            return node.operation(*args, **(kwargs | inference))

        def mask(index, value):
            if entry.passes is not None:
                return value if index == entry.passes else keras.ops.zeros_like(value)
            labels = entry.mixed.get(index)
            if labels is None:
                return value
            if not (isinstance(kept, np.ndarray) and kept[labels].all()):
                # Selection, not a product with zero: what an overflowing channel holds must not come through.
                value = keras.ops.where(keras.ops.take(kept, labels), value, keras.ops.zeros_like(value))
            return watch(labels, value) if watch else value

        args, kwargs = map_tensors(node, args, kwargs, mask)
        if not entry.record.inner_mixed:
            return entry.operation(*args, **(kwargs | inference))
        return _with_masked_weights(entry.record, kept, args, kwargs | inference)

    return replay(graph.model, [keras.ops.convert_to_tensor(value) for value in inputs], call)


def _with_masked_weights(record: Record, kept: Any, args: tuple, kwargs: dict) -> Any:
    """Calls a layer that mixes channels of its own, with the weights by which it reads removed ones zero."""
    layer, values = record.operation, {}
    for index, axis in record.inner_mixed.items():
        weight = record.weights[index]
        keep = keras.ops.take(kept, record.axes[index][axis])
        keep = keras.ops.reshape(keep, [-1 if other == axis else 1 for other in range(len(weight.shape))])
        values[id(weight)] = keras.ops.where(keep, weight, keras.ops.zeros_like(weight))
    variables = (
        [values.get(id(v), v.value) for v in own] for own in (layer.trainable_variables, layer.non_trainable_variables)
    )
    outputs, _ = layer.stateless_call(*variables, *args, **kwargs)
    return outputs


class MaskedModel(keras.Model):
    """The masked original as a model: it shares the layers and weights of the network that it masks.

    Args:
        graph: The channel graph of the network.

    Attributes:
        kept: (labels,) bool variable; assign it to remove other channels, at no cost of tracing again.
    """

    def __init__(self, graph: ChannelGraph):
        super().__init__(name=f"masked_{graph.model.name}")
        self.graph, self.network = graph, graph.model
        self.kept = self.add_weight(shape=graph.keep_all().shape, dtype="bool", trainable=False, name="kept")
        self.kept.assign(graph.keep_all())
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The masked outputs, in the structure of the network's."""
        outputs = masked_outputs(self.graph, self.kept.value, tree.flatten(inputs))
        return tree.pack_sequence_as(self.network._outputs_struct, outputs)


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
    smaller network is built by `plan.apply(model)`, with the weights that the model has now. Networks of 16-bit
    precision are proved with their layers in float32: in 16 bits the order of a sum alone makes a difference.

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
        PlanError: If the plan is not for this model, or is a `WeightPlan`, which proves itself.
    """
    if not hasattr(plan, "graph"):
        raise PlanError("A weight plan removes no channel that could be masked instead. Use plan.prove(model).")
    model = _in_full_precision(model)
    graph = plan.graph(model)
    inputs = random_inputs(graph.model, examples, seed)
    with _fresh_states(model):
        masked = masked_outputs(graph, plan.kept(graph), inputs)
    with _fresh_states(model):
        whole = tree.flatten(model(pack_inputs(model, inputs), training=False))
    _check_informative(whole, masked)
    small = plan.apply(model)
    removed = tree.flatten(small(pack_inputs(model, inputs), training=False))
    return compare_outputs(masked, removed, tolerance, "the masked and the smaller network", VerificationError)


@contextlib.contextmanager
def _fresh_states(model: keras.Model) -> Iterator[None]:
    """Lets stateful recurrent layers begin anew, as those of the smaller network do, and gives the states back."""
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "stateful", False)]
    states = [(state, state.numpy()) for layer in layers for state in layer.states]
    for layer in layers:
        layer.reset_state()
    yield
    for state, value in states:
        state.assign(value)


def _in_full_precision(model: keras.Model) -> keras.Model:
    """The model, or a twin in float32 of one that has layers of 16 bits."""

    def widened(config: Any) -> Any:
        if not isinstance(config, dict):
            return config
        return {
            key: "float32" if key == "dtype" and _is_short(value) else widened(value) for key, value in config.items()
        }

    if not any(_is_short(layer.dtype_policy) for layer in model._flatten_layers()):
        return model
    return clone(model, lambda record, config: (type(record.operation), widened(config)))


def _is_short(dtype: Any) -> bool:
    """Whether a dtype or policy, an object or its config, is of 16 bits or mixed with them."""
    return keras.dtype_policies.get(dtype).name.endswith("float16")


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
